package dialect

import (
	"net/http"
	"strings"
)

// The Anthropic family: the Messages API, at Anthropic and wherever else it is
// offered, and the old text completions.

var anthropicRows = []row{
	{suffix: "/messages/count_tokens", endpoint: endpoint{kind: Free}},
	{suffix: "/messages/batches", endpoint: endpoint{kind: Other, unmetered: true}},
	{within: "/messages/batches/", endpoint: endpoint{kind: Free}},
	{suffix: "/v1/messages", endpoint: endpoint{kind: Generate}},
	{suffix: "/v1/complete", endpoint: endpoint{kind: Generate}},
}

func anthropicEndpoint(t *target) (endpoint, bool) {
	e, ok := t.match(anthropicRows)
	if !ok && anthropicHeader(t.request) && strings.HasSuffix(t.low, "/messages") {
		e, ok = endpoint{kind: Generate}, true
	}
	e.dialect, e.wire = anthropic, &anthropicWire
	return e, ok
}

// anthropicHeader tells whether the caller speaks as Anthropic's SDKs do.
func anthropicHeader(r *http.Request) bool {
	return len(r.Header["Anthropic-Version"]) > 0
}

var anthropicWire = wire{
	request: requestSpec,
	hidden:  [2]int64{8, 548},
	answer: newSpec(
		usageRules("usage"), usageRules("message.usage"),
		[]rule{
			at("type", str(strType)),
			at("model", str(strModel)),
			at("message.model", str(strModel)),
			at("error", slot(slotError)),
			at("delta.text", text(textPlain)),
			at("delta.thinking", text(textPlain)),
			at("delta.partial_json", text(textTools)),
			at("content_block.text", text(textPlain)),
			at("content.text", text(textPlain)),
			at("content.thinking", text(textPlain)),
			at("content.input.**", text(textTools)),
			at("completion", text(textPlain)),
		},
	),
	fold:   foldAnthropic,
	tokens: anthropicTokens,
}

// foldAnthropic takes up an event or a whole message. What message_start says
// of the output is only its beginning.
func foldAnthropic(m *meter, event []byte) {
	sc := &m.sc
	if sc.has|sc.absurd != 0 {
		m.mergeUsage()
	}
	switch string(sc.strs[strType].bytes()) {
	case "message_delta":
		m.final = m.final || sc.has&(1<<nOutput) != 0
	case "message", "completion":
		m.final = true
	case "message_stop":
		m.complete = true
	case "error":
		m.failed = true
	}
	if m.reportsError(slotError) || string(event) == "error" {
		m.failed = true
	}
	m.delivered(sc.text[textPlain], sc.text[textTools])
}
