package dialect

import (
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// The Bedrock family: Converse, which speaks to all models alike, and
// InvokeModel, where each model speaks its own way and Bedrock tells in headers
// or in the last event what was used.

var bedrockRows = []row{
	{suffix: "/converse", within: "/model/", endpoint: endpoint{kind: Generate}},
	{suffix: "/converse-stream", within: "/model/", endpoint: endpoint{kind: Generate, stream: streamAlways}},
	{suffix: "/invoke", within: "/model/", endpoint: endpoint{kind: Generate}},
	{suffix: "/invoke-with-response-stream", within: "/model/", endpoint: endpoint{kind: Generate, stream: streamAlways}},
	{suffix: "/count-tokens", within: "/model/", endpoint: endpoint{kind: Free}},
	// What is said both ways at once is not read here.
	{suffix: "/invoke-with-bidirectional-stream", within: "/model/", endpoint: endpoint{kind: Other, unmetered: true}},
	// The results lie in a bucket, what they used is told nowhere.
	{suffix: "/async-invoke", endpoint: endpoint{kind: Other, unmetered: true}},
	{suffix: "/model-invocation-job", endpoint: endpoint{kind: Other, unmetered: true}},
	{suffix: "/model-invocation-jobs", endpoint: endpoint{kind: Other, unmetered: true}},
	{within: "/model-invocation-job/", endpoint: endpoint{kind: Free}}, // stopping one
	// Guardrails count units of text, not tokens.
	{suffix: "/apply", within: "/guardrail/", endpoint: endpoint{kind: Free}},
	// Lists, which are only ever read.
	{suffix: "/foundation-models", endpoint: endpoint{kind: Other}},
	{within: "/foundation-models/", endpoint: endpoint{kind: Other}},
	{suffix: "/inference-profiles", endpoint: endpoint{kind: Other}},
	{within: "/inference-profiles/", endpoint: endpoint{kind: Other}},
}

// bedrockEndpoint claims the paths of the family, which carry the model.
func bedrockEndpoint(t *target) (endpoint, bool) {
	e, ok := t.match(bedrockRows)
	if !ok {
		return e, false
	}
	e.dialect, e.wire, e.model = bedrock, &bedrockWire, bedrockModel(t.request.URL)
	if e.kind == Generate {
		e.kind = bedrockKind(e.model)
	}
	return e, true
}

// bedrockModel returns the model that a path names: a model's id, the id of an
// inference profile, or the ARN of one of them, whose slashes come encoded. A
// path that may mean another one than it seems to names none.
func bedrockModel(u *url.URL) string {
	const mark = "/model/"
	p := u.EscapedPath()
	i := strings.Index(lowerASCII(p), mark)
	if i < 0 {
		return ""
	}
	model := p[i+len(mark):]
	model = model[:max(strings.LastIndexByte(strings.TrimRight(model, "/"), '/'), 0)]
	model, err := url.PathUnescape(model)
	if err != nil || path.Clean("/"+model) != "/"+model || model == "" {
		return ""
	}
	return model
}

// bedrockKind tells from a model's name what it does. A profile's name may not
// tell; then it is taken to generate text.
func bedrockKind(model string) Kind {
	for _, k := range bedrockKinds {
		if strings.Contains(model, k.part) {
			return k.kind
		}
	}
	return Generate
}

var bedrockKinds = []struct {
	part string
	kind Kind
}{
	{"embed", Embed}, {"rerank", Embed},
	{"titan-image", Media}, {"nova-canvas", Media}, {"nova-reel", Media}, {"stability.", Media}, {"luma.", Media},
}

var bedrockWire = wire{
	request: newSpec(
		deepText("messages", slot(reqMessages), elems(reqTurns)),
		[]rule{
			at("messages.**.toolUseId"),
			at("messages.**.bytes", text(reqFile)),
			at("messages.**.s3Location.uri", text(reqFile)),
			at("toolConfig", slot(reqTools)),
			at("tools", slot(reqFunctions)),
			at("inputText", slot(reqOther), text(reqText)),
			at("preamble", text(reqText)),
			at("query", text(reqText)),
			// The maximum, wherever a model takes it: of several the greatest.
			at("inferenceConfig.maxTokens", num(reqNestedMax)),
			at("inferenceConfig.max_new_tokens", num(reqNestedMax)),
			at("additionalModelRequestFields.max_tokens", num(reqNestedMax)),
			at("textGenerationConfig.maxTokenCount", num(reqNestedMax)),
			at("max_tokens", num(reqNestedMax)),
			at("max_completion_tokens", num(reqNestedMax)),
			at("max_tokens_to_sample", num(reqNestedMax)),
			at("max_gen_len", num(reqNestedMax)),
			at("maxTokens", num(reqNestedMax)),
			at("num_generations", num(reqNestedChoices)),
			at("num_results", num(reqNestedChoices)),
			at("numResults", num(reqNestedChoices)),
			at("n", num(reqNestedChoices)),
		},
		deepText("system"),
		deepText("prompt", slot(reqPrompt)),
		deepText("message", slot(reqOther)),
		deepText("chat_history"),
		deepText("documents"),
		deepText("texts"),
		deepText("images"),
		deepText("inputs"),
	),
	hidden: [2]int64{2, 506},
	answer: newSpec(
		camelUsage("usage"), camelUsage("metadata.usage"),
		usageRules("usage"), usageRules("message.usage"),
		[]rule{
			at("type", str(strType)),
			at("model", str(strModel)),
			at("message.model", str(strModel)),
			at("error", slot(slotError)),
			// What Bedrock itself counted, in the last event of an InvokeModel stream.
			at("amazon-bedrock-invocationMetrics.inputTokenCount", num(nCountedInput)),
			at("amazon-bedrock-invocationMetrics.outputTokenCount", num(nCountedOutput)),
			at("amazon-bedrock-invocationMetrics.cacheReadInputTokenCount", num(nCountedRead)),
			at("amazon-bedrock-invocationMetrics.cacheWriteInputTokenCount", num(nCountedMade)),
			// Titan, Llama, Cohere.
			at("inputTextTokenCount", num(nInput)),
			at("totalOutputTextTokenCount", num(nOutput)),
			at("results.tokenCount", sum(nOutput)),
			at("prompt_token_count", num(nInput)),
			at("generation_token_count", num(nOutput)),
			at("meta.tokens.input_tokens", num(nInput)),
			at("meta.tokens.output_tokens", num(nOutput)),
		},
		bedrockTexts(),
	),
	head:   bedrockHead,
	fold:   foldBedrock,
	tokens: bedrockTokens,
}

// camelUsage reads the usage objects of Converse and of Nova.
func camelUsage(path string) []rule {
	p := func(name string, i int8) rule { return at(path+"."+name, num(i)) }
	return []rule{
		at(path, fresh),
		p("inputTokens", nInput), p("outputTokens", nOutput), p("totalTokens", nTotal),
		p("cacheReadInputTokens", nReadBeside), p("cacheReadInputTokenCount", nReadBeside),
		p("cacheWriteInputTokens", nMadeBeside), p("cacheWriteInputTokenCount", nMadeBeside),
	}
}

// bedrockTexts says where generated text lies: in Converse's answers and
// events, and in those of the models behind InvokeModel.
func bedrockTexts() (rules []rule) {
	for _, p := range []string{"output.message.content", "delta", "contentBlockDelta.delta"} {
		rules = append(rules,
			at(p+".text", text(textPlain)),
			at(p+".reasoningContent.text", text(textPlain)),
			at(p+".reasoningContent.reasoningText.text", text(textPlain)),
			at(p+".toolUse.input.**", text(textTools)),
		)
	}
	for _, p := range []string{
		"delta.thinking", "content_block.text", "content.text", "content.thinking", "completion", // Anthropic
		"outputText", "results.outputText", "generation", "outputs.text", // Titan, Llama, Mistral
		"text", "generations.text", "completions.data.text", // Cohere, AI21
		"choices.text", "choices.delta.content", "choices.delta.reasoning_content",
		"choices.message.content", "choices.message.reasoning_content",
	} {
		rules = append(rules, at(p, text(textPlain)))
	}
	return append(rules,
		at("delta.partial_json", text(textTools)),
		at("content.input.**", text(textTools)),
		at("choices.delta.tool_calls.function.arguments", text(textTools)),
		at("choices.message.tool_calls.function.arguments", text(textTools)),
	)
}

// bedrockHead takes up what InvokeModel tells in its header, if it does not
// answer with a stream.
func bedrockHead(m *meter, h http.Header) {
	for name, i := range bedrockCounts {
		v := h[name]
		if len(v) == 0 {
			continue
		}
		if n, ok := count([]byte(v[0])); ok {
			m.usage.n[i], m.usage.has = n, m.usage.has|1<<i
		} else {
			m.usage.absurd |= 1 << i
		}
		m.seen, m.final = true, true
	}
}

var bedrockCounts = map[string]int8{
	"X-Amzn-Bedrock-Input-Token-Count":             nCountedInput,
	"X-Amzn-Bedrock-Output-Token-Count":            nCountedOutput,
	"X-Amzn-Bedrock-Cache-Read-Input-Token-Count":  nCountedRead,
	"X-Amzn-Bedrock-Cache-Write-Input-Token-Count": nCountedMade,
}

// foldBedrock takes up an event or a whole answer. Models tell parts in the
// first event and parts in later ones; what Anthropic's first tells of the
// output is only its beginning.
func foldBedrock(m *meter, event []byte) {
	sc := &m.sc
	typ := string(sc.strs[strType].bytes())
	counted := (sc.has|sc.absurd)&(1<<nCountedInput|1<<nCountedOutput) != 0
	if sc.has|sc.absurd != 0 {
		m.mergeUsage()
		m.final = m.final || counted || !m.inEvent || sc.has&(1<<nOutput) != 0 && typ != "message_start"
	}
	if counted || string(event) == "metadata" {
		m.complete = true
	}
	if m.reportsError(slotError) || typ == "error" {
		m.failed = true
	}
	m.delivered(sc.text[textPlain], sc.text[textTools])
}

// bedrockTokens reads usage as it is meant on Bedrock. What Bedrock counted
// goes before what the model says; to neither the cache is input.
func bedrockTokens(u *numbers, k Kind) (quota.Tokens, bool) {
	if u.any(nPassInput, nPassOutput) && !u.any(nCountedInput) {
		return anthropicTokens(u, k)
	}
	if u.absurd&^(1<<nReasoning) != 0 {
		return quota.Tokens{}, false
	}
	in, read, made := u.get(nInput), u.get(nReadBeside), u.get(nMadeBeside)
	out, counted := u.get(nOutput), u.any(nCountedInput)
	if counted {
		in, read, made = u.get(nCountedInput), u.get(nCountedRead), u.get(nCountedMade)
	}
	if u.any(nCountedOutput) {
		out = u.get(nCountedOutput)
	}
	t := quota.Tokens{
		Input: in + read + made, Cached: read + u.get(nCached), CacheWrite: made + u.get(nCacheWrite),
		Output: out, Reasoning: u.get(nReasoning),
	}
	if gap := u.get(nTotal) - t.Input - t.Output; gap > 0 && !counted {
		t.Output += gap // as in openaiTokens: more was used than is told apart
	}
	return believable(t)
}

// bedrock is the dialect of AWS's SDKs: the kind of the error stands in a
// header, by which they know their exceptions and what to retry.
var bedrock Dialect = bedrockDialect{}

type bedrockDialect struct{}

func (bedrockDialect) Name() string { return "bedrock" }

func (bedrockDialect) refusal(h http.Header, r *refused) []byte {
	h.Set("X-Amzn-Errortype", bedrockError(r))
	h.Set("X-Amzn-Requestid", r.requestID)
	return marshal(struct {
		Message string `json:"message"`
	}{r.message})
}

// bedrockError returns the exception that a refusal is to AWS's SDKs. Of these
// they retry ThrottlingException and ServiceUnavailableException, so that
// whatever waiting does not help is another.
func bedrockError(r *refused) string {
	switch r.ref.Reason {
	case quota.ExpiredKey:
		return "ExpiredTokenException"
	case quota.InvalidKey, quota.DisabledKey:
		return "UnrecognizedClientException"
	case quota.ModelNotAllowed, quota.AddressNotAllowed, quota.Unmetered:
		return "AccessDeniedException"
	case quota.QuotaSpent:
		return "ServiceQuotaExceededException"
	case quota.RateLimited, quota.TooManyFailures:
		if r.passing() {
			return "ThrottlingException"
		}
		return "ServiceQuotaExceededException"
	}
	if r.status >= http.StatusInternalServerError {
		return "ServiceUnavailableException"
	}
	return "ValidationException"
}

func (bedrockDialect) rates() *rateNames { return nil }
