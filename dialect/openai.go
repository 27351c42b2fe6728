package dialect

import (
	"bytes"
	"slices"
	"strings"
)

// The OpenAI-shaped family: OpenAI itself, Azure OpenAI, and the many that
// offer its endpoints under whatever prefix.

var openaiRows = []row{
	// Where an answer tells of nothing that this call used.
	{suffix: "/responses/input_tokens", endpoint: endpoint{kind: Free}},
	{suffix: "/moderations", endpoint: endpoint{kind: Free}},
	{suffix: "/tokenize", endpoint: endpoint{kind: Free}},
	{suffix: "/detokenize", endpoint: endpoint{kind: Free}},
	// A run's usage stands in the stored run, over and over.
	{suffix: "/runs", within: "/threads/", endpoint: endpoint{kind: Free, unmetered: true}},
	{suffix: "/submit_tool_outputs", within: "/threads/", endpoint: endpoint{kind: Free, unmetered: true}},
	{suffix: "/threads/runs", endpoint: endpoint{kind: Free, unmetered: true}},
	{suffix: "/batches", endpoint: endpoint{kind: Other, unmetered: true}},

	{suffix: "/chat/completions", endpoint: endpoint{kind: Generate, inject: true}},
	{suffix: "/fim/completions", endpoint: endpoint{kind: Generate}},
	{suffix: "/completions", endpoint: endpoint{kind: Generate, inject: true}},
	{suffix: "/responses", endpoint: endpoint{kind: Generate, wire: &responsesWire}},
	{suffix: "/responses/compact", endpoint: endpoint{kind: Generate}},
	{suffix: "/embeddings", endpoint: endpoint{kind: Embed}},
	{suffix: "/rerank", endpoint: endpoint{kind: Embed}},
	{suffix: "/images/generations", endpoint: endpoint{kind: Media}},
	{suffix: "/images/edits", endpoint: endpoint{kind: Media}},
	{suffix: "/images/variations", endpoint: endpoint{kind: Media}},
	{suffix: "/audio/transcriptions", endpoint: endpoint{kind: Media}},
	{suffix: "/audio/translations", endpoint: endpoint{kind: Media}},
	{suffix: "/audio/speech", endpoint: endpoint{kind: Media}},

	// Stored objects: what they say was used, other calls used.
	{within: "/responses/", endpoint: endpoint{kind: Free, wire: &responsesWire}},
	{within: "/batches/", endpoint: endpoint{kind: Free}},
	{within: "/v1/threads", endpoint: endpoint{kind: Free}},
	{within: "/v1/assistants", endpoint: endpoint{kind: Free}},
	{within: "/v1/conversations", endpoint: endpoint{kind: Free}},
	{within: "/v1/vector_stores", endpoint: endpoint{kind: Other}},
	{within: "/v1/files", endpoint: endpoint{kind: Other}},
	{within: "/v1/uploads", endpoint: endpoint{kind: Other}},
	{within: "/v1/fine_tuning", endpoint: endpoint{kind: Other, unmetered: true}},
	{within: "/v1/evals", endpoint: endpoint{kind: Other, unmetered: true}},
	// Sessions made here are held past the gate.
	{within: "/v1/realtime", endpoint: endpoint{kind: Other, unmetered: true}},
}

const azureDeployments = "/openai/deployments/"

// openaiEndpoint claims the paths of the family. Azure's older paths carry the
// model, and a model in the body is ignored there.
func openaiEndpoint(t *target) (endpoint, bool) {
	e, ok := t.match(openaiRows)
	if !ok {
		return e, false
	}
	e.dialect = openai
	switch e.wire {
	case nil:
		e.wire = &openaiWire
	case &responsesWire:
		e.recall = recallName(t)
	}
	if strings.Contains(t.low, azureDeployments) {
		e.dialect, e.model = azure, t.after(azureDeployments)
	} else if strings.Contains(t.request.URL.RawQuery, "api-version=") {
		e.dialect = azure
	}
	return e, true
}

var openaiWire = wire{
	request: requestSpec,
	hidden:  [2]int64{0, -20},
	answer:  newSpec(openaiAnswer),
	fold:    foldOpenAI,
	tokens:  openaiTokens,
}

var openaiAnswer = slices.Concat(
	usageRules("usage"), usageRules("x_groq.usage"), usageRules("response.usage"), usageRules("message.usage"),
	[]rule{
		at("usage", slot(slotUsage)),
		at("error", slot(slotError)),
		at("response.error", slot(slotError2)),
		at("type", str(strType)),
		at("model", str(strModel)),
		at("response.model", str(strModel)),
		at("status", str(strStatus)),
		at("response.status", str(strStatus)),
		at("choices", slot(slotChoices), elems(elemChoices)),
		// Chat and completions, streamed and whole.
		at("choices.text", text(textPlain)),
		at("choices.delta.content", text(textPlain)),
		at("choices.delta.content.text", text(textPlain)),
		at("choices.delta.reasoning_content", text(textPlain)),
		at("choices.delta.reasoning", text(textPlain)),
		at("choices.delta.refusal", text(textPlain)),
		at("choices.delta.tool_calls.function.arguments", text(textTools)),
		at("choices.delta.function_call.arguments", text(textTools)),
		at("choices.message.content", text(textPlain)),
		at("choices.message.content.text", text(textPlain)),
		at("choices.message.reasoning_content", text(textPlain)),
		at("choices.message.reasoning", text(textPlain)),
		at("choices.message.refusal", text(textPlain)),
		at("choices.message.tool_calls.function.arguments", text(textTools)),
		at("choices.message.function_call.arguments", text(textTools)),
		// Responses: its events repeat at their ends what they delivered
		// piece by piece, so only the pieces count, or the whole object.
		at("delta", text(textDelta)),
		at("output.content.text", text(textPlain)),
		at("output.summary.text", text(textPlain)),
		at("output.arguments", text(textTools)),
		at("output.input", text(textTools)),
		// A model behind an unknown path, or one that only speaks a little alike.
		at("completion", text(textPlain)),
		at("message.content", text(textPlain)),
		at("response", text(textPlain)),
		at("text", text(textPlain)),
		at("generated_text", text(textPlain)),
	},
)

// foldOpenAI takes up a chunk, an event or a whole answer.
func foldOpenAI(m *meter, event []byte) {
	sc := &m.sc
	typ := sc.strs[strType].bytes()
	if t := string(typ); t == "message_start" || t == "message" && sc.has&(1<<nReadBeside) != 0 {
		m.w, sc.sp = &anthropicWire, anthropicWire.answer // Anthropic's, under a path that did not tell
		foldAnthropic(m, event)
		return
	}
	if (sc.has|sc.absurd)&(1<<nInput|1<<nOutput|1<<nTotal) != 0 {
		m.replaceUsage()
		m.onlyUsage = sc.slots[slotChoices].kind == '[' && sc.elems[elemChoices] == 0 && sc.slots[slotUsage].kind == '{'
	}
	if m.reportsError(slotError) || m.reportsError(slotError2) || string(event) == "error" || string(typ) == "error" {
		m.failed = true
	}
	switch string(sc.strs[strStatus].bytes()) {
	case "failed":
		m.failed = true
	case "completed", "incomplete":
		m.complete = m.complete || bytes.HasPrefix(typ, responsePrefix)
	}
	plain, tools := sc.text[textPlain], sc.text[textTools]
	switch {
	case bytes.Contains(typ, argumentsPart):
		tools += sc.text[textDelta]
	case m.inEvent && bytes.HasPrefix(typ, responsePrefix), bytes.HasPrefix(typ, transcriptPrefix):
		plain = sc.text[textDelta]
	default:
		plain += sc.text[textDelta]
	}
	m.delivered(plain, tools)
}

var (
	responsePrefix   = []byte("response.")
	transcriptPrefix = []byte("transcript.")
	argumentsPart    = []byte("arguments")
)
