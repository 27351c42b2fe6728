package dialect

import (
	"net/http"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Ollama's own API. What it offers under /v1/ is OpenAI-shaped.

var ollamaRows = []row{
	{suffix: "/api/chat", endpoint: endpoint{kind: Generate, wire: &ollamaWire, stream: streamDefault}},
	{suffix: "/api/generate", endpoint: endpoint{kind: Generate, wire: &ollamaWire, stream: streamDefault}},
	{suffix: "/api/embed", endpoint: endpoint{kind: Embed, wire: &ollamaEmbedWire}},
	{suffix: "/api/embeddings", endpoint: endpoint{kind: Embed, wire: &ollamaEmbedWire}},
	{suffix: "/api/tags", endpoint: endpoint{kind: Free}},
	{suffix: "/api/show", endpoint: endpoint{kind: Free}},
	{suffix: "/api/ps", endpoint: endpoint{kind: Free}},
	{suffix: "/api/version", endpoint: endpoint{kind: Free}},
	{suffix: "/api/pull", endpoint: endpoint{kind: Free}},
	{suffix: "/api/push", endpoint: endpoint{kind: Free}},
	{suffix: "/api/create", endpoint: endpoint{kind: Free}},
	{suffix: "/api/copy", endpoint: endpoint{kind: Free}},
	{suffix: "/api/delete", endpoint: endpoint{kind: Free}},
	{within: "/api/blobs/", endpoint: endpoint{kind: Free}},
}

func ollamaEndpoint(t *target) (endpoint, bool) {
	e, ok := t.match(ollamaRows)
	e.dialect = ollama
	if e.wire == nil {
		e.wire = &ollamaWire
	}
	return e, ok
}

var ollamaWire = wire{
	request: newSpec(append(requestRules,
		[]rule{
			at("options.num_predict", slot(reqPredict)),
			at("format", slot(reqFormat)),
			at("template", text(reqText)),
			at("context", text(reqText)), // the tokens of the turns before
			at("images", text(reqFile)),  // bare base64
			at("messages.**.images", text(reqFile)),
			at("messages.**.thinking", text(reqText)),
		})...),
	hidden: [2]int64{6, 71},
	answer: newSpec([]rule{
		at("error", slot(slotError)),
		at("done", slot(slotFinish)),
		at("done_reason", str(strStatus)),
		at("model", str(strModel)),
		at("prompt_eval_count", num(nInput)),
		at("eval_count", num(nOutput)),
		at("response", text(textPlain)),
		at("thinking", text(textPlain)),
		at("message.content", text(textPlain)),
		at("message.thinking", text(textPlain)),
		at("message.tool_calls.function.arguments.**", text(textTools)),
	}),
	fold:   foldOllama,
	tokens: ollamaTokens,
}

var ollamaEmbedWire = bare(ollamaWire)

// bare returns w for calls to which the provider adds no prompt of its own.
func bare(w wire) wire {
	w.hidden = [2]int64{}
	return w
}

// foldOllama takes up a line or a whole answer. Only the last line has counts;
// a model that is loaded or unloaded at a caller's wish answers nothing and
// counts nothing.
func foldOllama(m *meter, _ []byte) {
	sc := &m.sc
	reason := string(sc.strs[strStatus].bytes())
	if (sc.has|sc.absurd)&(1<<nInput|1<<nOutput) != 0 || reason == "load" || reason == "unload" {
		m.replaceUsage()
	}
	if sc.slots[slotFinish].kind != 0 {
		m.complete = m.finished()
	}
	if m.reportsError(slotError) {
		m.failed = true
	}
	m.delivered(sc.text[textPlain], sc.text[textTools])
}

// ollamaTokens reads counts as Ollama means them. Those that are 0 are left
// out, and in older versions prompt_eval_count is 0 for a prompt that lies in
// the cache whole: that is what it used, so it is no reason for an estimate,
// which would charge for the same prompt by another measure each time.
func ollamaTokens(u *numbers, _ Kind) (quota.Tokens, bool) {
	if u.absurd&(1<<nInput|1<<nOutput) != 0 {
		return quota.Tokens{}, false
	}
	return believable(quota.Tokens{Input: u.get(nInput), Output: u.get(nOutput)})
}

// predict returns the number that Ollama takes for the maximum; -1 where it
// takes it for none, which it does below 1, or where it is not sure which of
// several it takes.
func (rd *reading) predict() int64 {
	n := rd.count(reqPredict)
	if n < 1 || rd.sc.slots[reqPredict].count > 1 {
		return -1
	}
	return n
}

var ollama Dialect = ollamaDialect{}

type ollamaDialect struct{}

func (ollamaDialect) Name() string { return "ollama" }

// rates: Ollama has none of its own; clients that look for any look for these.
func (ollamaDialect) rates() *rateNames { return &openaiRates }

func (ollamaDialect) refusal(_ http.Header, r *refused) []byte {
	return marshal(struct {
		Error string `json:"error"`
	}{r.message})
}
