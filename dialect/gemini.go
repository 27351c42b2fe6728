package dialect

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// The Google family: the Gemini API and Vertex AI, which also hosts others'
// models in their own wire formats. The model and what is done with it stand
// in the path, as in /v1beta/models/M:generateContent.

// googleActions are what may stand behind the colon of a path, in lower case.
var googleActions = map[string]endpoint{
	"generatecontent":       {kind: Generate},
	"streamgeneratecontent": {kind: Generate, stream: streamAlways},
	"generateanswer":        {kind: Generate},
	"rawpredict":            {kind: Generate},
	"streamrawpredict":      {kind: Generate, stream: streamAlways},
	"embedcontent":          {kind: Embed},
	"batchembedcontents":    {kind: Embed},
	"predict":               {kind: Embed},
	"predictlongrunning":    {kind: Media},
	"counttokens":           {kind: Free},
	"computetokens":         {kind: Free},
	"fetchpredictoperation": {kind: Free},
	// Their answers name a job, and what it used is told elsewhere or not at all.
	"batchgeneratecontent":   {kind: Other, unmetered: true},
	"asyncbatchembedcontent": {kind: Other, unmetered: true},
}

// googleRows are the paths without such an action.
var googleRows = []row{
	{suffix: "/interactions", endpoint: endpoint{kind: Generate}},
	{within: "/interactions/", endpoint: endpoint{kind: Free}},
	// What a stored context says it holds is not what this call used.
	{within: "/cachedcontents", endpoint: endpoint{kind: Free}},
	{within: "/operations/", endpoint: endpoint{kind: Free}},
	{suffix: "/batchpredictionjobs", endpoint: endpoint{kind: Other, unmetered: true}},
	{within: "/batchpredictionjobs/", endpoint: endpoint{kind: Free}},
	{within: "/batches/", endpoint: endpoint{kind: Free}},
	{suffix: "/tuningjobs", endpoint: endpoint{kind: Other, unmetered: true}},
	{suffix: "/tunedmodels", endpoint: endpoint{kind: Other, unmetered: true}},
	// A token with which calls can be made past us.
	{suffix: "/auth_tokens", endpoint: endpoint{kind: Other, unmetered: true}},
	{within: "/files", endpoint: endpoint{kind: Other}},
	{within: "/filesearchstores", endpoint: endpoint{kind: Other}},
	{within: "/corpora", endpoint: endpoint{kind: Other}},
}

// geminiEndpoint claims the paths of the family. Calls to others' models on
// Vertex are answered and refused as those others do.
func geminiEndpoint(t *target) (endpoint, bool) {
	d := googleDialect(t)
	name, action := googleAction(t)
	e, ok := googleActions[action]
	if !ok {
		if d == nil {
			return e, false
		}
		e, ok = t.match(googleRows)
		e.dialect, e.wire = d, &geminiWire
		return e, ok
	}
	if d == nil {
		d = gemini
	}
	e.dialect, e.wire, e.model = d, &geminiWire, name
	switch {
	case strings.HasSuffix(action, "rawpredict"):
		hosted(&e, t)
	case action == "predict" && strings.Contains(t.low, "/endpoints/"):
		e.kind = Generate // a model of the caller's own, of whatever sort
	}
	return e, true
}

// hosted makes e the endpoint of another's model: Anthropic's, or one that is
// OpenAI-shaped as Mistral's are.
func hosted(e *endpoint, t *target) {
	e.dialect, e.wire = openai, &openaiWire
	if t.after("/publishers/") == "anthropic" {
		e.dialect, e.wire = anthropic, &anthropicWire
		if e.model == "count-tokens" {
			e.kind, e.stream, e.model = Free, streamAsked, ""
		}
	}
}

// googleAction parts a path's end into the model and what is done with it, in
// lower case. The model is all that stands behind the last collection.
func googleAction(t *target) (model, action string) {
	colon := strings.LastIndexByte(t.low, ':')
	if colon < 0 || strings.IndexByte(t.low[colon:], '/') >= 0 {
		return "", ""
	}
	from := -1
	for _, collection := range [...]string{"/models/", "/tunedmodels/", "/endpoints/", "/dynamic/"} {
		if i := strings.LastIndex(t.low[:colon], collection); i >= 0 {
			from = max(from, i+len(collection))
		}
	}
	if from >= 0 {
		model = t.path[from:colon]
	}
	return model, t.low[colon+1:]
}

// googleDialect returns the dialect of a path of Google's making, known or
// not; nil if it is none, or one of the OpenAI-compatible ones.
func googleDialect(t *target) Dialect {
	in := func(s string) bool { return strings.Contains(t.low, s) }
	var d Dialect
	switch {
	case in("/v1beta/"), in("/v1alpha/"):
		d = gemini
	case in("/v1beta1/"), in("/publishers/google/"), in("/projects/") && in("/locations/"):
		d = vertex
	}
	if d != nil && (in("/openai/") || in("/endpoints/openapi/")) {
		return nil
	}
	return d
}

// What only Google's usage objects have stands where it is only Anthropic's
// that have something else.
const nToolUse = nReadBeside // what built-in tools put into the prompt, beside it

var geminiWire = wire{
	request: newSpec(geminiRequest, partsText("contents"), partsText("content"), partsText("requests.content"),
		partsText("systemInstruction"), partsText("system_instruction"),
		deepText("input", slot(reqInput), elems(reqTurns)), deepText("instances", slot(reqPrompt)),
		[]rule{at("instances.**.bytesBase64Encoded", text(reqFile))}),
	answer: newSpec(
		[]rule{
			at("usageMetadata", fresh),
			at("usageMetadata.promptTokenCount", num(nInput)),
			at("usageMetadata.toolUsePromptTokenCount", num(nToolUse)),
			at("usageMetadata.candidatesTokenCount", num(nOutput)),
			at("usageMetadata.thoughtsTokenCount", num(nReasoning)),
			at("usageMetadata.cachedContentTokenCount", num(nCached)),
			at("usageMetadata.totalTokenCount", num(nTotal)),
			at("predictions.embeddings.statistics.token_count", sum(nPassInput)),
		},
		interactionUsage("usage"), interactionUsage("interaction.usage"), interactionUsage("metadata.usage"),
		[]rule{
			at("error", slot(slotError)),
			at("interaction.error", slot(slotError2)),
			at("candidates.finishReason", slot(slotFinish)),
			at("promptFeedback.blockReason", slot(slotFinish)),
			at("event_type", str(strType)),
			at("modelVersion", str(strModel)),
			at("model", str(strModel)),
			at("interaction.model", str(strModel)),
			at("status", str(strStatus)),
			at("interaction.status", str(strStatus)),
			at("candidates.content.parts.text", text(textPlain)),
			at("candidates.content.parts.functionCall.args.**", text(textTools)),
			at("candidates.content.parts.executableCode.code", text(textPlain)),
			at("candidates.content.parts.codeExecutionResult.output", text(textPlain)),
			at("predictions", text(textPlain)),
			at("predictions.content", text(textPlain)),
			at("steps.content.text", text(textPlain)),
			at("steps.arguments.**", text(textTools)),
			at("outputs.text", text(textPlain)),
			at("delta.text", text(textPlain)),
			at("delta.content.text", text(textPlain)),
			at("delta.arguments.**", text(textTools)),
		},
	),
	fold:   foldGemini,
	tokens: geminiTokens,
}

// geminiRequest are the members that are no text. JSON for Google may spell
// each name in two ways.
var geminiRequest = []rule{
	at("model", slot(reqModel)),
	at("stream", slot(reqStream)),
	at("generationConfig", slot(reqConfig)),
	at("generation_config", slot(reqConfig)),
	at("generationConfig.maxOutputTokens", num(reqNestedMax)),
	at("generationConfig.max_output_tokens", num(reqNestedMax)),
	at("generation_config.maxOutputTokens", num(reqNestedMax)),
	at("generation_config.max_output_tokens", num(reqNestedMax)),
	at("parameters.maxOutputTokens", num(reqNestedMax)),
	at("generationConfig.candidateCount", num(reqNestedChoices)),
	at("generationConfig.candidate_count", num(reqNestedChoices)),
	at("generation_config.candidateCount", num(reqNestedChoices)),
	at("generation_config.candidate_count", num(reqNestedChoices)),
	at("generationConfig.responseSchema", slot(reqFormat)),
	at("generationConfig.response_schema", slot(reqFormat)),
	at("generationConfig.responseJsonSchema", slot(reqFormat)),
	at("response_format", slot(reqFormat)),
	at("tools", slot(reqTools)),
	at("contents", slot(reqContents), elems(reqTurns)),
	at("system_instruction", text(reqText)), // a string in interactions
}

// partsText are the rules for the parts of a content at path.
func partsText(path string) []rule {
	path += ".parts."
	var rules []rule
	for _, name := range []string{
		"functionCall.args", "function_call.args", "functionResponse.response", "function_response.response",
	} {
		rules = append(rules, at(path+name+".**", text(reqText)))
	}
	for _, name := range []string{
		"text", "functionCall.name", "function_call.name", "functionResponse.name", "function_response.name",
		"executableCode.code", "executable_code.code", "codeExecutionResult.output", "code_execution_result.output",
	} {
		rules = append(rules, at(path+name, text(reqText)))
	}
	for _, name := range []string{"inlineData.data", "inline_data.data", "fileData.fileUri", "file_data.file_uri"} {
		rules = append(rules, at(path+name, text(reqFile)))
	}
	return rules
}

// interactionUsage reads the usage objects of interactions at a path.
func interactionUsage(path string) []rule {
	return []rule{
		at(path, fresh),
		at(path+".total_input_tokens", num(nInput)),
		at(path+".total_tool_use_tokens", num(nToolUse)),
		at(path+".total_output_tokens", num(nOutput)),
		at(path+".total_thought_tokens", num(nReasoning)),
		at(path+".total_cached_tokens", num(nCached)),
		at(path+".total_tokens", num(nTotal)),
	}
}

// foldGemini takes up a chunk, an event or a whole answer. Every chunk of a
// stream reports the usage so far, so that of a stream that breaks off only
// what came with its end, or after it, is the last word.
func foldGemini(m *meter, event []byte) {
	sc := &m.sc
	plain, tools := sc.text[textPlain], sc.text[textTools]
	used := (sc.has|sc.absurd)&(1<<nInput|1<<nOutput|1<<nTotal) != 0
	if used {
		m.replaceUsage()
	}
	if !used && sc.has&(1<<nPassInput) != 0 { // statistics of Vertex's embeddings: no usage, but better than a guess
		m.replaceUsage()
		m.final = false
	}
	typ, status := string(sc.strs[strType].bytes()), string(sc.strs[strStatus].bytes())
	if m.reportsError(slotError) || m.reportsError(slotError2) || string(event) == "error" || status == "failed" {
		m.failed = true
	}
	if m.inEvent {
		last := m.finished() || typ == "interaction.completed"
		m.complete = last || m.complete && plain+tools == 0
		if used {
			m.final, m.soFar = m.complete, true
		}
	}
	m.delivered(plain, tools)
}

// geminiTokens reads usage as Google means it: what tools put into the prompt
// and what was thought stand beside the rest, and the total is of all. Fields
// that are 0 are left out, now and then also others: then the total knows.
func geminiTokens(u *numbers, k Kind) (quota.Tokens, bool) {
	if u.absurd&(1<<nInput|1<<nToolUse|1<<nOutput|1<<nReasoning|1<<nTotal|1<<nPassInput) != 0 {
		return quota.Tokens{}, false
	}
	t := quota.Tokens{
		Input: u.get(nInput) + u.get(nToolUse) + u.get(nPassInput), Output: u.get(nOutput) + u.get(nReasoning),
		Cached: u.get(nCached), Reasoning: u.get(nReasoning),
	}
	if gap := u.get(nTotal) - t.Input - t.Output; gap > 0 {
		if k == Embed {
			t.Input += gap
		} else {
			t.Output += gap
		}
	}
	return believable(t)
}

var (
	gemini Dialect = geminiDialect{"gemini", "generativelanguage.googleapis.com"}
	vertex Dialect = geminiDialect{"vertex", "aiplatform.googleapis.com"}
)

// geminiDialect refuses with a google.rpc.Status, as its JSON stands under
// "error" (https://cloud.google.com/apis/design/errors).
type geminiDialect struct{ name, service string }

func (d geminiDialect) Name() string { return d.name }

// rates: Google documents no headers for them.
func (geminiDialect) rates() *rateNames { return nil }

func (d geminiDialect) refusal(_ http.Header, r *refused) []byte {
	type status struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
		Status  string `json:"status"`
		Details []any  `json:"details,omitempty"`
	}
	s := status{Message: r.message, Status: r.grpc}
	switch {
	case r.status == http.StatusUnauthorized:
		r.status = http.StatusBadRequest // what Google answers to a wrong key
		if r.ref.Reason == quota.InvalidKey && r.ref.Detail == "" {
			s.Message = "API key not valid. Please pass a valid API key."
		}
		s.Details = []any{errorInfo{
			Type: googleRPC + "ErrorInfo", Reason: "API_KEY_INVALID", Domain: "googleapis.com",
			Metadata: map[string]string{"service": d.service},
		}}
	case r.ref.Limit != "":
		s.Details = []any{quotaFailure{googleRPC + "QuotaFailure", []violation{violationOf(r.ref)}}}
	}
	if r.wait > 0 {
		wait := seconds(r.wait)
		// Google's words, from which tools read the wait.
		s.Message = strings.Replace(s.Message, "Please try again in "+duration(r.wait)+".", "Please retry in "+wait+".", 1)
		s.Details = append(s.Details, retryInfo{googleRPC + "RetryInfo", wait})
	}
	s.Code = r.status
	return marshal(struct {
		Error status `json:"error"`
	}{s})
}

const googleRPC = "type.googleapis.com/google.rpc."

type errorInfo struct {
	Type     string            `json:"@type"`
	Reason   string            `json:"reason"`
	Domain   string            `json:"domain"`
	Metadata map[string]string `json:"metadata"`
}

type quotaFailure struct {
	Type       string      `json:"@type"`
	Violations []violation `json:"violations"`
}

type violation struct {
	Metric     string            `json:"quotaMetric"`
	ID         string            `json:"quotaId"`
	Dimensions map[string]string `json:"quotaDimensions"`
	Value      string            `json:"quotaValue"`
}

type retryInfo struct {
	Type  string `json:"@type"`
	Delay string `json:"retryDelay"`
}

// quotaIDs begin the names of limits in Google's manner, from which tools tell
// whether to wait: those per minute free soon, those per day and quotas do not.
var quotaIDs = map[quota.LimitName]string{
	quota.RequestsPerMinute:  "RequestsPerMinute",
	quota.RequestsPerDay:     "RequestsPerDay",
	quota.TokensPerMinute:    "TokensPerMinute",
	quota.TokensPerDay:       "TokensPerDay",
	quota.ConcurrentRequests: "ConcurrentRequests",
	quota.TokenQuota:         "TokenQuota",
}

func violationOf(ref *quota.Refusal) violation {
	per := "PerKey"
	if ref.Account.Kind() == quota.KindGroup {
		per = "PerGroup"
	}
	return violation{
		Metric: "llm-quota/" + string(ref.Limit), ID: quotaIDs[ref.Limit] + per,
		Dimensions: map[string]string{ref.Account.Kind().String(): ref.AccountName},
		Value:      strconv.FormatInt(ref.Max, 10),
	}
}

// seconds writes d as Google's JSON writes a duration, no finer than
// milliseconds.
func seconds(d time.Duration) string {
	ms := int64((d + time.Millisecond - 1) / time.Millisecond)
	return strconv.FormatFloat(float64(ms)/1000, 'f', -1, 64) + "s"
}
