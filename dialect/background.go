package dialect

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Responses in the background: the answer to the call is but a promise, and
// what it used is told to whoever asks for the response later, by its name.

// responsesWire reads the answers of the Responses API.
var responsesWire = wire{
	request: requestSpec,
	hidden:  openaiWire.hidden,
	answer: newSpec(openaiAnswer, []rule{
		at("id", keep),
		at("response.id", keep),
		at("background", slot(slotBackground)),
		at("response.background", slot(slotBackground)),
	}),
	fold:   foldResponses,
	tokens: openaiTokens,
}

// stored is what an answer tells of the response that is stored of it.
type stored struct {
	name       string
	status     string
	background bool // the provider goes on with it whoever listens
	streamed   bool // it came as events
}

// foldResponses takes up an event or a whole answer.
func foldResponses(m *meter, event []byte) {
	foldOpenAI(m, event)
	sc := &m.sc
	status := sc.strs[strStatus].bytes()
	if m.w == &anthropicWire || len(status) == 0 {
		return
	}
	if m.stored == nil {
		m.stored = &stored{}
	}
	s := m.stored
	if string(status) != s.status {
		s.status = string(status)
	}
	if n := plainString(sc.kept); n != "" && n != s.name {
		s.name = n
	}
	background := &sc.slots[slotBackground]
	s.background = s.background || background.kind == 't' || s.status == "queued"
	s.streamed = m.inEvent
}

// plainString returns the JSON string that stands so between its quotes; "" if
// it is none, or longer than a name may be.
func plainString(raw []byte) string {
	s := string(raw)
	if bytes.IndexByte(raw, '\\') >= 0 && json.Unmarshal([]byte(`"`+s+`"`), &s) != nil || len(s) > quota.MaxLater {
		return ""
	}
	return s
}

// recallName returns the name of the response that a request asks for, or has
// cancelled: …/responses/{name}, …/responses/{name}/cancel. It is empty for
// other requests.
func recallName(t *target) string {
	const mark = "/responses/"
	i := strings.LastIndex(t.low, mark)
	if i < 0 || t.request.Header.Get("Upgrade") != "" {
		return ""
	}
	name := t.path[i+len(mark):]
	switch t.request.Method {
	case http.MethodGet:
	case http.MethodPost:
		if !strings.HasSuffix(t.low, "/cancel") {
			return ""
		}
		name = name[:len(name)-len("/cancel")]
	default:
		return ""
	}
	if len(name) > quota.MaxLater || strings.Contains(name, "/") {
		return ""
	}
	return name
}

// later returns the name by which the usage of the call is told later; "" if
// the answer is not one that the provider goes on with. A stream that breaks
// off has to have said that it runs in the background, for others end with it.
func (w *Writer) later() string {
	m, s := &w.meter, w.meter.stored
	if s == nil || w.call.Kind == Free || m.failed || w.status < 200 || w.status >= 300 || s.ended() {
		return ""
	}
	if s.streamed && !s.background || !s.streamed && m.seen {
		return ""
	}
	return s.name
}

// ended tells whether the provider will do no more for the response.
func (s *stored) ended() bool { return s.status != "queued" && s.status != "in_progress" }

// Recalled returns the outcome of the call that Outcome.Later names, as this
// answer to a later call tells it; false unless it tells how that one ended and,
// if it was answered, what it used. The response that was cancelled or failed
// used nothing if it does not say so. It is called after [Writer.Outcome].
func (w *Writer) Recalled() (quota.Outcome, bool) {
	c, m, s := w.call, &w.meter, w.meter.stored
	out := quota.Outcome{Later: c.Recall}
	if c.Recall == "" || s == nil || s.name != c.Recall || w.status < 200 || w.status >= 300 {
		return out, false
	}
	switch s.status {
	case "completed", "incomplete":
	case "failed", "cancelled":
		out.Failed = true
	default:
		return out, false
	}
	if !m.seen {
		return out, out.Failed
	}
	t, ok := c.wire.tokens(&m.usage, Generate)
	out.Tokens = t
	return out, ok
}
