// Package dialect stands between the wire and the domain: it finds the caller's
// credential, recognises a call, reads its model and sizes, meters its answer,
// and writes refusals and rate-limit headers as the caller's SDK expects them.
// It knows providers; it knows neither Caddy nor the ledger.
//
// Each provider family is one file with one row in the table of families; each
// framing of answers is one file too.
package dialect

import (
	"net/http"
	"path"
	"strings"

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

// Dialect is one provider family's manner of speaking.
type Dialect interface {
	// Name is the dialect's name in metrics and logs: "openai", "anthropic".
	Name() string
	// refusal sets the headers that are the dialect's own and returns the body.
	refusal(h http.Header, r *refused) []byte
	// rates names the dialect's rate-limit headers; nil if it has none.
	rates() *rateNames
}

// wire is one wire format: how its requests and its answers are read.
type wire struct {
	// request says where a request's sizes lie; the slots are those of reading.
	request *spec
	// hidden is the size of the prompt that the provider adds by itself:
	// without tools, and with tools.
	hidden [2]int64
	// answer says where what is metered lies in a document of an answer.
	answer *spec
	// head, if not nil, takes up what the header of an answer tells.
	head func(m *meter, h http.Header)
	// fold takes up one whole document of an answer, whose findings are in
	// m.sc. event is its event name, if it has one.
	fold func(m *meter, event []byte)
	// tokens turns reported numbers into usage; ok is false if they are not
	// to be believed.
	tokens func(u *numbers, k Kind) (t quota.Tokens, ok bool)
}

// endpoint is what is known of a call from its path.
type endpoint struct {
	dialect Dialect
	kind    Kind
	wire    *wire
	// inject: streams report usage only if stream_options asks for it.
	inject bool
	// unmetered: what the call uses is never told, or not here.
	unmetered bool
	// realtime: it asks for a connection on which events are sent.
	realtime bool
	// model is the one that the path names, if it names one.
	model string
	// recall names the stored response that it asks for, if it is such a call.
	recall string
	// stream says which answers are streams.
	stream streaming
	// reshape, if set, corrects by the body's shape what the path told.
	reshape func(e *endpoint, rd *reading)
}

// streaming is how a request asks for a streamed answer.
type streaming uint8

const (
	streamAsked   streaming = iota // with "stream": true
	streamDefault                  // unless it says "stream": false
	streamAlways                   // by its path
)

// asks tells whether the request at hand asks for a stream.
func (s streaming) asks(rd *reading) bool {
	switch s {
	case streamAlways:
		return true
	case streamDefault:
		return string(rd.raw(reqStream)) != "false"
	}
	return rd.true(reqStream)
}

// row is one line of a family's table of endpoints.
type row struct {
	suffix string // the path ends so
	within string // and holds this
	endpoint
}

// target is a request's path made plain for matching: cleaned, without a slash
// at the end. Low is in lower case, of the same length.
type target struct {
	path, low string
	request   *http.Request
}

// families are asked in this order whether a path is theirs. Adding a provider
// is one file and one line here.
var families = []func(t *target) (e endpoint, ok bool){
	bedrockEndpoint, // first, for what a model's name may hold
	anthropicEndpoint,
	geminiEndpoint,
	ollamaEndpoint,
	cohereEndpoint,
	openaiEndpoint,
}

// look finds out what is known of a request by its path and headers alone.
func look(r *http.Request) (e endpoint, known bool) {
	t := newTarget(r)
	if !strings.ContainsAny(t.path, oddInPath) {
		for _, claim := range families {
			if e, known = claim(&t); known {
				break
			}
		}
	}
	if !known {
		e = endpoint{dialect: unknownDialect, wire: &openaiWire}
		if anthropicHeader(r) {
			e = endpoint{dialect: anthropic, wire: &anthropicWire}
		} else if d := googleDialect(&t); d != nil {
			e = endpoint{dialect: d, wire: &geminiWire}
		}
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodDelete:
		e.kind, e.inject, e.unmetered = Free, false, false
		if r.Header.Get("Upgrade") != "" {
			e = upgraded(e, &t)
		}
		known = true
	case http.MethodConnect:
		e, known = upgraded(e, &t), true
	}
	return e, known
}

// oddInPath are characters that servers read differently: a path with one of
// them may not mean behind us what it seems to mean here, so that only the
// shape of the body is believed.
const oddInPath = ";\\%\x00"

// Of returns the dialect of a request by its path and headers alone: that in
// which it is refused before its body is read.
func Of(r *http.Request) Dialect {
	e, _ := find(r)
	return e.dialect
}

func newTarget(r *http.Request) target {
	p := r.URL.Path
	if !plainPath(p) {
		p = path.Clean("/" + p)
	}
	return target{p, lowerASCII(p), r}
}

// plainPath tells whether path.Clean would leave p as it is.
func plainPath(p string) bool {
	return len(p) > 1 && p[0] == '/' && p[len(p)-1] != '/' && !strings.Contains(p, "//") && !strings.Contains(p, "/.")
}

func lowerASCII(s string) string {
	for i := range len(s) {
		if c := s[i]; c >= 'A' && c <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if b[i] >= 'A' && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}

// match returns the first row that fits.
func (t *target) match(rows []row) (endpoint, bool) {
	for i := range rows {
		r := &rows[i]
		if strings.HasSuffix(t.low, r.suffix) && (r.within == "" || strings.Contains(t.low, r.within)) {
			return r.endpoint, true
		}
	}
	return endpoint{}, false
}

// after returns the segment of the path behind mark, as it was written.
func (t *target) after(mark string) string {
	i := strings.Index(t.low, mark)
	if i < 0 {
		return ""
	}
	s, _, _ := strings.Cut(t.path[i+len(mark):], "/")
	return s
}
