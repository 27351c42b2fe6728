package admin

import (
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// The decisions about a request.
const (
	Admit   = "admitted"
	Observe = "observed" // admitted, though a limit would have refused it
	Refuse  = "refused"
)

// Trace is what one request leaves to be seen: placeholders, the fields of the
// access log, metrics, and the attributes of a span.
type Trace struct {
	Start    time.Time
	Dialect  string
	Model    string
	Decision string
	Reason   quota.Reason
	Policy   *ledger.Policy // nil until the key is known
	Held     int64          // tokens that were reserved
	Hub      *Hub           // where it is told live; nil: nowhere

	// What only spans show.
	Operation string // as OpenTelemetry's conventions name it; "": none of theirs
	Stream    bool   // a streamed answer was asked for
	Answered  string // the model that the answer names

	settled   bool
	estimated bool
	tokens    quota.Tokens
}

// Publish makes the trace's placeholders and log fields those of r. They show
// what the trace holds when they are read.
func (t *Trace) Publish(r *http.Request) {
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Map(t.placeholder)
	}
	if extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		extra.Add(zap.Object("llm_quota", t))
	}
}

// Decide notes the decision, and counts it. ref is why the request was refused
// or would have been; nil if nothing was against it.
func (t *Trace) Decide(decision string, ref *quota.Refusal) {
	t.Decision = decision
	if ref != nil {
		t.Reason = ref.Reason
	}
	Admitted(decision, string(t.Reason), t.Dialect, t.group(), time.Since(t.Start))
	if decision != Admit {
		t.keep(ref)
	}
	if decision == Refuse {
		t.tell(EventRefusal, 0)
	} else {
		t.tell(EventAdmission, t.Held)
	}
}

// Settled notes what the request was charged, and counts it. model is the name
// under which it is counted.
func (t *Trace) Settled(model string, o quota.Outcome) {
	t.settled, t.tokens, t.estimated = true, o.Tokens, o.Estimated
	Charged(t.Dialect, model, t.group(), o.Tokens)
	t.tell(EventSettlement, o.Tokens.Charge())
}

// keep notes the refusal for those who ask later, if it is of a known key.
func (t *Trace) keep(ref *quota.Refusal) {
	if t.Hub == nil || t.Policy == nil {
		return
	}
	t.Hub.refusals.add(Refusal{
		Time: time.Now().UTC(), Key: t.Policy.ID, Group: Ref(t.Policy.GroupID()), Model: t.Model, Reason: ref.Reason,
		Limit: ref.Limit, Account: Ref(ref.Account), Requested: ref.Requested, Decision: t.Decision,
	})
}

// tell tells those who read events live.
func (t *Trace) tell(kind string, tokens int64) {
	if !t.Hub.Listened() {
		return
	}
	e := Event{Type: kind, Time: time.Now().UTC(), Model: t.Model, Reason: string(t.Reason), Tokens: tokens}
	if t.Policy != nil {
		e.Key, e.Group = Ref(t.Policy.ID), Ref(t.Policy.GroupID())
	}
	t.Hub.Publish(e)
}

func (t *Trace) group() string {
	if t.Policy == nil || t.Policy.Group == nil {
		return ""
	}
	return t.Policy.Group.Name
}

const placeholders = "http.llm_quota."

func (t *Trace) placeholder(name string) (any, bool) {
	name, ok := strings.CutPrefix(name, placeholders)
	if !ok {
		return nil, false
	}
	if meta, ok := strings.CutPrefix(name, "key.metadata."); ok {
		if t.Policy == nil {
			return "", true
		}
		return t.Policy.Metadata(meta), true
	}
	switch name {
	case "key.id", "key.name":
		if t.Policy == nil {
			return "", true
		}
		if name == "key.id" {
			return t.Policy.ID.String(), true
		}
		return t.Policy.Name, true
	case "group.id":
		if t.Policy == nil {
			return "", true
		}
		return t.Policy.GroupID().String(), true
	case "group.name":
		return t.group(), true
	case "model":
		return t.Model, true
	case "decision":
		return t.Decision, true
	case "reason":
		return string(t.Reason), true
	case "tokens.input":
		return t.tokens.Input, true
	case "tokens.output":
		return t.tokens.Output, true
	case "tokens.total":
		return t.tokens.Charge(), true
	}
	return nil, false
}

// MarshalLogObject writes the access log's fields.
func (t *Trace) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	enc.AddString("decision", t.Decision)
	if t.Reason != "" {
		enc.AddString("reason", string(t.Reason))
	}
	if t.Policy != nil {
		enc.AddString("key_id", t.Policy.ID.String())
		enc.AddString("key_name", t.Policy.Name)
		if t.Policy.GroupID() != 0 {
			enc.AddString("group_id", t.Policy.GroupID().String())
			enc.AddString("group_name", t.group())
		}
	}
	if t.Model != "" {
		enc.AddString("model", t.Model)
	}
	if t.settled {
		enc.AddInt64("tokens_input", t.tokens.Input)
		enc.AddInt64("tokens_output", t.tokens.Output)
		enc.AddInt64("tokens_total", t.tokens.Charge())
	}
	return nil
}

// Interface guard.
var _ zapcore.ObjectMarshaler = (*Trace)(nil)
