package dialect

import (
	"net/http"
	"strings"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// The Cohere family, versions 1 and 2. What it offers under /compatibility/ is
// OpenAI-shaped, and /v1/rerank, which many offer, is left to that family.

var cohereRows = []row{
	{suffix: "/v2/chat", endpoint: endpoint{kind: Generate, wire: &cohereWire}},
	{suffix: "/v1/chat", endpoint: endpoint{kind: Generate, wire: &cohereWire, reshape: reshapeChat}},
	{suffix: "/v1/generate", endpoint: endpoint{kind: Generate, wire: &cohereWire}},
	{suffix: "/v1/summarize", endpoint: endpoint{kind: Generate, wire: &cohereWire}},
	{suffix: "/v1/embed", endpoint: endpoint{kind: Embed, wire: &cohereInputWire}},
	{suffix: "/v2/embed", endpoint: endpoint{kind: Embed, wire: &cohereInputWire}},
	{suffix: "/v2/rerank", endpoint: endpoint{kind: Embed, wire: &cohereInputWire}},
	{suffix: "/v1/classify", endpoint: endpoint{kind: Embed, wire: &cohereInputWire}},
	{suffix: "/v1/tokenize", endpoint: endpoint{kind: Free, wire: &cohereInputWire}},
	{suffix: "/v1/detokenize", endpoint: endpoint{kind: Free, wire: &cohereInputWire}},
	{suffix: "/v1/embed-jobs", endpoint: endpoint{kind: Other, wire: &cohereInputWire, unmetered: true}},
}

func cohereEndpoint(t *target) (endpoint, bool) {
	e, ok := t.match(cohereRows)
	e.dialect = cohere
	return e, ok
}

// reshapeChat tells Cohere's first chat, which takes one message, from those
// of others that stand at the same path and take OpenAI's messages.
func reshapeChat(e *endpoint, rd *reading) {
	if rd.has(reqMessages) && !rd.has(reqOther) {
		e.dialect, e.wire, e.inject = openai, &openaiWire, true
	}
}

// What only Cohere's usage objects have stands where it is only Anthropic's
// that have something else.
const (
	nBilledInput  = nPassInput
	nBilledOutput = nPassOutput
)

var cohereWire = wire{
	request: newSpec(append(requestRules,
		[]rule{
			at("num_generations", slot(reqN)),
			at("preamble", text(reqText)),
			at("texts", text(reqText)),
			at("images", text(reqText)), // data URLs
			at("text", text(reqText)),
			at("inputs.**.image_url.url", text(reqText)),
		},
		deepText("chat_history", elems(reqTurns)),
		deepText("tool_results"),
		deepText("examples"),
	)...),
	hidden: [2]int64{491, 1407},
	answer: newSpec(
		cohereUsage("usage"), cohereUsage("delta.usage"), cohereUsage("meta"), cohereUsage("response.meta"),
		[]rule{
			at("error", slot(slotError)),
			at("type", str(strType)),
			at("event_type", str(strType)),
			at("finish_reason", str(strStatus)),
			at("delta.finish_reason", str(strStatus)),
			at("message.content.text", text(textPlain)),
			at("message.content.thinking", text(textPlain)),
			at("message.tool_plan", text(textPlain)),
			at("message.tool_calls.function.arguments", text(textTools)),
			at("delta.message.content.text", text(textPlain)),
			at("delta.message.content.thinking", text(textPlain)),
			at("delta.message.tool_plan", text(textPlain)),
			at("delta.message.tool_calls.function.arguments", text(textTools)),
			// The first version; what its stream-end repeats below "response"
			// was delivered before.
			at("text", text(textPlain)),
			at("generations.text", text(textPlain)),
			at("summary", text(textPlain)),
			at("tool_calls.parameters.**", text(textTools)),
			at("tool_call_delta.parameters", text(textTools)),
		},
	),
	fold:   foldCohere,
	tokens: cohereTokens,
}

var cohereInputWire = bare(cohereWire)

// cohereUsage reads the usage objects of both versions at a path.
func cohereUsage(path string) []rule {
	return []rule{
		at(path, fresh),
		at(path+".tokens.input_tokens", num(nInput)),
		at(path+".tokens.output_tokens", num(nOutput)),
		at(path+".tokens.reasoning_tokens", num(nReasoning)),
		at(path+".cached_tokens", num(nCached)),
		at(path+".billed_units.input_tokens", num(nBilledInput)),
		at(path+".billed_units.output_tokens", num(nBilledOutput)),
	}
}

// foldCohere takes up an event, a line or a whole answer. An answer that ended
// in an error has usage objects too, but empty ones.
func foldCohere(m *meter, event []byte) {
	sc := &m.sc
	if (sc.has|sc.absurd)&(1<<nInput|1<<nOutput|1<<nBilledInput|1<<nBilledOutput) != 0 {
		m.replaceUsage()
	}
	switch typ := string(sc.strs[strType].bytes()); {
	case typ == "message-end", typ == "stream-end":
		m.complete = true
	case typ != "":
		m.complete = false
	}
	if strings.HasPrefix(string(sc.strs[strStatus].bytes()), "ERROR") || m.reportsError(slotError) || string(event) == "error" {
		m.failed = true
	}
	m.delivered(sc.text[textPlain], sc.text[textTools])
}

// cohereTokens reads usage as Cohere means it: tokens are what the model read
// and wrote, the prompt that Cohere adds included; billed units leave that
// out, and count where there is nothing else.
func cohereTokens(u *numbers, _ Kind) (quota.Tokens, bool) {
	in, out := nInput, nOutput
	if !u.any(nInput, nOutput) {
		in, out = nBilledInput, nBilledOutput
	}
	if u.absurd&(1<<in|1<<out) != 0 {
		return quota.Tokens{}, false
	}
	return believable(quota.Tokens{
		Input: u.get(in), Output: u.get(out), Cached: u.get(nCached), Reasoning: u.get(nReasoning),
	})
}

var cohere Dialect = cohereDialect{}

type cohereDialect struct{}

func (cohereDialect) Name() string { return "cohere" }

// rates: Cohere's own tell of calls per month only; clients that look for any
// look for these.
func (cohereDialect) rates() *rateNames { return &openaiRates }

func (cohereDialect) refusal(_ http.Header, r *refused) []byte {
	return marshal(struct {
		Message string `json:"message"`
	}{r.message})
}
