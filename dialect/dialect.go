// Package dialect stands between the wire and the domain: it finds the caller's
// credential, recognises a call, reads its model and sizes, meters its answer,
// and writes refusals and rate-limit headers as the caller's SDK expects them.
// It knows providers; it knows neither Caddy nor the ledger.
//
// Each provider family is one file with one [Dialect] in the table of
// dialects; each framing of answers (JSON, SSE) is one file too.
package dialect

import (
	"net/http"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Kind says what a call is, as far as charging goes.
type Kind uint8

// The kinds of call.
const (
	// Other: nothing known. Tokens are reserved, so that a spent quota refuses
	// it, and charged if the answer reports usage.
	Other Kind = iota
	// Generate: the answer is generated. If it reports no usage, an estimate
	// is charged.
	Generate
	// Embed: input is charged, nothing is generated.
	Embed
	// Media: images and sound. If the answer reports no usage, the estimate of
	// the input alone is charged.
	Media
	// Free: charged no tokens whatever the answer says: counting tokens, lists
	// of models, reading and deleting stored objects, moderation.
	Free
)

// Call is a request as the gate understands it.
type Call struct {
	Dialect Dialect
	Kind    Kind
	Model   string // as the request names it; empty when it names none that can be read
	Stream  bool   // the request asks for a streamed answer
	// Input is the estimate of the input's tokens; at least 1 unless Kind is Free.
	Input int64
	// MaxOutput is the most tokens that the request allows to be generated,
	// over all its choices; -1 when it sets no maximum.
	MaxOutput int64

	injected bool   // usage was asked for in the caller's stead: hide it again
	body     []byte // what is sent on; nil when the body was not read
}

// Dialect is one provider family's manner of speaking.
type Dialect interface {
	// Name is the dialect's name in metrics and logs: "openai", "anthropic".
	Name() string
	// refusal writes the body and the headers that are the dialect's own.
	refusal(h http.Header, status int, ref *quota.Refusal, message string) (body []byte)
	// rates sets the dialect's rate-limit headers.
	rates(h http.Header, r *quota.Rates, now time.Time)
}
