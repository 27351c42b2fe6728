package dialect

import (
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

const geminiChat = `{"contents":[{"role":"user","parts":[{"text":"12345678"}]}]}`

// recognised is what a path and a body are taken for.
type recognised struct {
	path, body     string
	kind           Kind
	before, after  string // the dialect by the path, and by the body too
	model          string
	stream         bool
	unmetered      bool
	usage          string // an answer of that wire, and what it costs
	input, outputs int64
}

func (tc *recognised) check(t *testing.T, method string) {
	t.Helper()
	r := httptest.NewRequest(method, tc.path, strings.NewReader(tc.body))
	before := Of(r).Name()
	c, ref := Read(r, Options{MaxBody: 1 << 20})
	if ref != nil || c.Kind != tc.kind || before != tc.before || c.Dialect.Name() != tc.after || c.Model != tc.model || c.Stream != tc.stream || c.Unmetered != tc.unmetered {
		t.Errorf("%s %s %s: kind %d, %s (before: %s), model %q, stream %t, unmetered %t, %v", method, tc.path, tc.body, c.Kind, c.Dialect.Name(), before, c.Model, c.Stream, c.Unmetered, ref)
		return
	}
	if tc.usage != "" {
		out, _, _ := answer(c, 200, nil, tc.usage, End{})
		if out.Tokens.Input != tc.input || out.Tokens.Output != tc.outputs || out.Estimated {
			t.Errorf("%s %s: %+v", tc.path, tc.usage, out)
		}
	}
}

func TestRecogniseGoogle(t *testing.T) {
	const (
		usage  = `{"usageMetadata":{"promptTokenCount":5,"candidatesTokenCount":2,"thoughtsTokenCount":3,"totalTokenCount":10}}`
		claude = `{"type":"message","usage":{"input_tokens":3,"cache_read_input_tokens":2,"output_tokens":5}}`
		mine   = "/v1/projects/p/locations/us-central1/"
	)
	for _, tc := range []recognised{
		{"/v1beta/models/gemini-2.5-pro:generateContent", geminiChat, Generate, "gemini", "gemini", "gemini-2.5-pro", false, false, usage, 5, 5},
		{"/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse", geminiChat, Generate, "gemini", "gemini", "gemini-2.5-pro", true, false, usage, 5, 5},
		{"/v1/models/Gemini-X:generateContent", `{"model":"models/other"}`, Generate, "gemini", "gemini", "Gemini-X", false, false, usage, 5, 5},
		{"/google/v1beta/tunedModels/t-1:generateContent", geminiChat, Generate, "gemini", "gemini", "t-1", false, false, usage, 5, 5},
		{"/v1beta/models/gemini-2.5-pro:countTokens", geminiChat, Free, "gemini", "gemini", "gemini-2.5-pro", false, false, "", 0, 0},
		{"/v1beta/models/e:embedContent", `{"content":{"parts":[{"text":"x"}]}}`, Embed, "gemini", "gemini", "e", false, false, `{"usageMetadata":{"promptTokenCount":6}}`, 6, 0},
		{"/v1beta/models/e:batchEmbedContents", `{"requests":[]}`, Embed, "gemini", "gemini", "e", false, false, `{"usageMetadata":{"totalTokenCount":6}}`, 6, 0},
		{"/v1beta/models/e:asyncBatchEmbedContent", `{}`, Other, "gemini", "gemini", "e", false, true, "", 0, 0},
		{"/v1beta/models/m:batchGenerateContent", `{}`, Other, "gemini", "gemini", "m", false, true, "", 0, 0},
		{"/v1beta/batches/b:cancel", ``, Free, "gemini", "gemini", "", false, false, "", 0, 0},
		{"/v1beta/interactions", `{"model":"gemini-3","input":"hi","stream":true}`, Generate, "gemini", "gemini", "gemini-3", true, false, `{"usage":{"total_input_tokens":12,"total_output_tokens":2,"total_thought_tokens":116,"total_tool_use_tokens":4,"total_tokens":134}}`, 16, 118},
		{"/v1beta/interactions/i/cancel", ``, Free, "gemini", "gemini", "", false, false, "", 0, 0},
		{"/v1beta/cachedContents", `{"model":"models/m"}`, Free, "gemini", "gemini", "models/m", false, false, "", 0, 0},
		{"/v1alpha/auth_tokens", `{}`, Other, "gemini", "gemini", "", false, true, "", 0, 0},
		{"/upload/v1beta/files", `{}`, Other, "gemini", "gemini", "", false, false, "", 0, 0},
		{"/v1beta/who/knows", geminiChat, Generate, "gemini", "gemini", "", false, false, usage, 5, 5},
		{"/v1beta/openai/chat/completions", `{"model":"g","messages":[]}`, Generate, "openai", "openai", "g", false, false, `{"usage":{"prompt_tokens":35,"completion_tokens":12,"total_tokens":109}}`, 35, 74},
		{"/v1beta/openai/who/knows", `{}`, Other, "unknown", "unknown", "", false, false, "", 0, 0},
		{mine + "publishers/google/models/gemini-2.5-pro:generateContent", geminiChat, Generate, "vertex", "vertex", "gemini-2.5-pro", false, false, usage, 5, 5},
		{"/v1beta1/publishers/google/models/m:streamGenerateContent", geminiChat, Generate, "vertex", "vertex", "m", true, false, "[" + usage + "]", 5, 5},
		{mine + "endpoints/123:generateContent", geminiChat, Generate, "vertex", "vertex", "123", false, false, usage, 5, 5},
		{mine + "endpoints/123:predict", `{"instances":[{"prompt":"x"}]}`, Generate, "vertex", "vertex", "123", false, false, "", 0, 0},
		{mine + "publishers/google/models/e:predict", `{"instances":[{"content":"x"}]}`, Embed, "vertex", "vertex", "e", false, false, ``, 0, 0},
		{mine + "batchPredictionJobs", `{}`, Other, "vertex", "vertex", "", false, true, "", 0, 0},
		{mine + "publishers/anthropic/models/claude-x@1:rawPredict", `{"messages":[]}`, Generate, "anthropic", "anthropic", "claude-x@1", false, false, claude, 5, 5},
		{mine + "publishers/anthropic/models/claude-x@1:streamRawPredict", `{"messages":[],"stream":true}`, Generate, "anthropic", "anthropic", "claude-x@1", true, false, claude, 5, 5},
		{mine + "publishers/anthropic/models/count-tokens:rawPredict", `{"model":"claude-x","messages":[]}`, Free, "anthropic", "anthropic", "claude-x", false, false, "", 0, 0},
		{mine + "publishers/mistralai/models/mistral-x:rawPredict", `{"model":"other","messages":[]}`, Generate, "openai", "openai", "mistral-x", false, false, `{"usage":{"prompt_tokens":1,"completion_tokens":2}}`, 1, 2},
		{mine + "endpoints/openapi/chat/completions", `{"model":"meta/llama","messages":[]}`, Generate, "openai", "openai", "meta/llama", false, false, "", 0, 0},
		{"/v1/models/a/../b:generateContent", geminiChat, Generate, "gemini", "gemini", "b", false, false, "", 0, 0},
		{"/v1beta/models/a:generateContent/x", geminiChat, Generate, "gemini", "gemini", "", false, false, "", 0, 0},
		{"/v1beta/models/a%253AgenerateContent", geminiChat, Generate, "gemini", "gemini", "", false, false, "", 0, 0},
	} {
		tc.check(t, "POST")
	}
	for _, tc := range []recognised{
		{path: "/v1beta/models", kind: Free, before: "gemini", after: "gemini"},
		{path: "/v1beta/openai/models", kind: Free, before: "unknown", after: "unknown"},
		{path: "/v1beta1/projects/p/locations/l/cachedContents/c", kind: Free, before: "vertex", after: "vertex"},
	} {
		tc.check(t, "GET")
	}
	(&recognised{path: "/v1beta/cachedContents/c", body: `{"ttl":"1s"}`, kind: Free, before: "gemini", after: "gemini"}).check(t, "PATCH")
}

func TestGeminiSizes(t *testing.T) {
	for _, tc := range []struct {
		body       string
		input, max int64
	}{
		{geminiChat, 2 + 4, -1},
		{`{"contents":{"parts":{"text":"12345678"}}}`, 2, -1},
		{`{"contents":[{"parts":[{"inlineData":{"mimeType":"image/png","data":"iVBORw0KGgo="}},{"inline_data":{"data":"AA"}},{"fileData":{"fileUri":"gs://x"}},{"text":"1234"}]}]}`, 3000 + 1 + 4, -1},
		{`{"contents":[{"parts":[{"functionCall":{"name":"1234","args":{"a":["1234"]}}},{"functionResponse":{"response":{"b":"1234"}},"thoughtSignature":"xxxxxxxx"}]}]}`, 3 + 4, -1},
		{`{"systemInstruction":{"parts":[{"text":"1234"}]},"contents":[]}`, 1, -1},
		{`{"system_instruction":{"parts":[{"text":"12345678"}]}}`, 2, -1},
		{`{"contents":[],"tools":[{"functionDeclarations":[{"name":"12345678"}]}]}`, ceilDiv(int64(len(`[{"functionDeclarations":[{"name":"12345678"}]}]`)), 4), -1},
		{`{"generationConfig":{"maxOutputTokens":10}}`, 1, 10},
		{`{"generation_config":{"max_output_tokens":10,"candidate_count":3}}`, 1, 30},
		{`{"generationConfig":{"maxOutputTokens":10,"candidateCount":0}}`, 1, 10},
		{`{"generationConfig":{"maxOutputTokens":100,"maxOutputTokens":7,"max_output_tokens":8,"candidateCount":2,"candidateCount":1}}`, 1, 200},
		{`{"generationConfig":{"maxOutputTokens":1e400}}`, 1, maxCount},
		{`{"generationConfig":{"maxOutputTokens":null}}`, 1, -1},
		{`{"contents":[{"maxOutputTokens":10,"generationConfig":{"maxOutputTokens":10}}]}`, 4, -1},
	} {
		c, ref := Read(post("/v1beta/models/m:generateContent", tc.body), Options{})
		if ref != nil || c.Input != tc.input || c.MaxOutput != tc.max {
			t.Errorf("%s: input %d, max %d; want %d, %d (%v)", tc.body, c.Input, c.MaxOutput, tc.input, tc.max, ref)
		}
	}
	for body, input := range map[string]int64{
		`{"requests":[{"content":{"parts":[{"text":"1234"}]}},{"content":{"parts":[{"text":"1234"}]}}]}`: 2,
		`{"content":{"parts":[{"text":"12345678"}]}}`:                                                    2,
		`{"instances":[{"content":"12345678"},{"image":{"bytesBase64Encoded":"AA"}}]}`:                   1002,
	} {
		if c, _ := Read(post("/v1beta1/publishers/google/models/m:predict", body), Options{}); c.Input != input {
			t.Errorf("%s: %d", body, c.Input)
		}
	}
	for _, body := range []string{
		`{"generationConfig":{},"generationConfig":{"maxOutputTokens":9}}`,
		`{"generationConfig":{"maxOutputTokens":1},"generation_config":{"maxOutputTokens":9}}`,
	} {
		if _, ref := Read(post("/v1beta/models/m:generateContent", body), Options{}); ref == nil || ref.Reason != quota.InvalidBody {
			t.Errorf("%s: %v", body, ref)
		}
	}
}

func TestGeminiOutcome(t *testing.T) {
	chunk := func(text, more string) string {
		return `{"candidates":[{"content":{"parts":[{"text":"` + text + `"}]}` + more + `}]`
	}
	const bare = "{\n  \"error\": {\n    \"code\": 499,\n    \"status\": \"CANCELLED\"\n  }\n}\n"
	for _, tc := range []struct {
		name, body string
		kind       Kind
		end        End
		want       quota.Outcome
	}{
		{"last chunk wins", sse(chunk("a", "")+`,"usageMetadata":{"promptTokenCount":20,"candidatesTokenCount":9,"totalTokenCount":29}}`, chunk("b", `,"finishReason":"STOP"`)+`,"usageMetadata":{"promptTokenCount":17,"candidatesTokenCount":6,"totalTokenCount":23}}`), Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 17, Output: 6}}},
		{"candidates vanished", sse(chunk("b", `,"finishReason":1`) + `,"usageMetadata":{"promptTokenCount":32,"thoughtsTokenCount":42,"totalTokenCount":86}}`), Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 32, Output: 54, Reasoning: 42}}},
		{"tools' prompts", `{"usageMetadata":{"promptTokenCount":10,"toolUsePromptTokenCount":100,"candidatesTokenCount":5,"cachedContentTokenCount":4,"totalTokenCount":115}}`, Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 110, Cached: 4, Output: 5}}},
		{"total less than the sum", `{"usageMetadata":{"promptTokenCount":18,"candidatesTokenCount":1,"thoughtsTokenCount":166,"totalTokenCount":184}}`, Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 18, Output: 167, Reasoning: 166}}},
		{"usage without counts", sse(chunk("1234567", "")+`,"usageMetadata":{"trafficType":"ON_DEMAND"}}`, chunk("", `,"finishReason":"STOP"`)+`}`), Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 100, Output: 2}, Estimated: true}},
		{"blocked", `{"promptFeedback":{"blockReason":"SAFETY"},"usageMetadata":{"promptTokenCount":9,"totalTokenCount":9}}`, Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 9}}},
		{"broken off", sse(chunk("12345671234567", "") + `,"usageMetadata":{"promptTokenCount":9,"totalTokenCount":9}}`), Generate, End{Panicked: true}, quota.Outcome{Tokens: quota.Tokens{Input: 9, Output: 4}, Estimated: true, Failed: true}},
		{"an error as an array", `[{"error":{"code":429,"status":"RESOURCE_EXHAUSTED"}}]`, Generate, End{}, quota.Outcome{Failed: true}},
		{"an error alone", bare, Generate, End{}, quota.Outcome{Failed: true}},
		{"a bare error amid events", sse(chunk("1234567", "")+"}") + bare, Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 100, Output: 2}, Estimated: true, Failed: true}},
		{"a bare error ahead of usage", ": hi\r\n\r\n" + bare + "\r\n" + sse(chunk("b", `,"finishReason":"STOP"`)+`,"usageMetadata":{"promptTokenCount":17,"candidatesTokenCount":6,"totalTokenCount":23}}`), Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 17, Output: 6}, Failed: true}},
		{"embedding without usage", `{"embeddings":[{"values":[0.1]}]}`, Embed, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 100}, Estimated: true}},
		{"predicted text", `{"predictions":["1234567"]}`, Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 100, Output: 2}, Estimated: true}},
		{"usage in content is content", `{"candidates":[{"content":{"parts":[{"text":"x","usageMetadata":{"promptTokenCount":1}}]},"usageMetadata":{"promptTokenCount":1}}]}`, Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 100, Output: 1}, Estimated: true}},
		{"interaction", "event: step.delta\n" + sse(`{"delta":{"text":"x"},"event_type":"step.delta","metadata":{"usage":{"total_tokens":79,"total_input_tokens":11}}}`) + "event: interaction.completed\n" + sse(`{"interaction":{"status":"completed","usage":{"total_tokens":211,"total_input_tokens":9,"total_output_tokens":13,"total_thought_tokens":189}},"event_type":"interaction.completed"}`), Generate, End{ClientGone: true}, quota.Outcome{Tokens: quota.Tokens{Input: 9, Output: 202, Reasoning: 189}}},
		{"interaction, broken off", "event: step.delta\n" + sse(`{"delta":{"text":"x"},"event_type":"step.delta","metadata":{"usage":{"total_tokens":79,"total_input_tokens":11}}}`), Generate, End{Panicked: true}, quota.Outcome{Tokens: quota.Tokens{Input: 11, Output: 68}, Estimated: true, Failed: true}},
		{"interaction, failed", `{"status":"failed","error":{"code":"x"}}`, Generate, End{}, quota.Outcome{Failed: true}},
	} {
		c := generate(&geminiWire)
		c.Kind = tc.kind
		if got, _, _ := answer(c, 200, nil, tc.body, tc.end); got != tc.want {
			t.Errorf("%s: got  %+v\nwant %+v", tc.name, got, tc.want)
		}
	}
}

func TestGeminiRefusals(t *testing.T) {
	limit := func(why quota.Reason, l quota.LimitName, wait time.Duration) *quota.Refusal {
		return &quota.Refusal{Reason: why, Limit: l, Account: testKey(), AccountName: "ci", Max: 200, Used: 150, Requested: 60, Wait: wait}
	}
	for _, tc := range []struct {
		ref                  *quota.Refusal
		code                 int
		status, id, wait, in string
	}{
		{&quota.Refusal{Reason: quota.InvalidKey}, 400, "INVALID_ARGUMENT", "", "", "API key not valid. Please pass a valid API key."},
		{&quota.Refusal{Reason: quota.ExpiredKey}, 400, "INVALID_ARGUMENT", "", "", "expired"},
		{&quota.Refusal{Reason: quota.AmbiguousCredential}, 400, "INVALID_ARGUMENT", "", "", "more than one"},
		{&quota.Refusal{Reason: quota.ModelNotAllowed}, 403, "PERMISSION_DENIED", "", "", "model"},
		{&quota.Refusal{Reason: quota.BodyTooLarge}, 413, "INVALID_ARGUMENT", "", "", "too large"},
		{&quota.Refusal{Reason: quota.StoreUnavailable}, 503, "UNAVAILABLE", "", "", "at the moment"},
		{&quota.Refusal{Reason: quota.TooManyFailures, Wait: time.Second}, 429, "RESOURCE_EXHAUSTED", "", "1s", "Please retry in 1s."},
		{limit(quota.RateLimited, quota.TokensPerMinute, 1574*time.Millisecond), 429, "RESOURCE_EXHAUSTED", "TokensPerMinutePerKey", "1.574s", "Please retry in 1.574s."},
		{limit(quota.RateLimited, quota.RequestsPerDay, 3*time.Hour), 429, "RESOURCE_EXHAUSTED", "RequestsPerDayPerKey", "10800s", "Please retry in 10800s."},
		{limit(quota.RateLimited, quota.ConcurrentRequests, 0), 429, "RESOURCE_EXHAUSTED", "ConcurrentRequestsPerKey", "1s", "Please retry in 1s."},
		{limit(quota.QuotaSpent, quota.TokenQuota, quota.Never), 429, "RESOURCE_EXHAUSTED", "TokenQuotaPerKey", "", "You exceeded your current quota"},
	} {
		rec := httptest.NewRecorder()
		status := Refuse(rec, gemini, tc.ref, &quota.Rates{HasRequests: true, HasQuota: true, QuotaRemaining: 7}, refusedAt)
		var got struct {
			Error struct {
				Code            int
				Message, Status string
				Details         []struct {
					Type       string `json:"@type"`
					Reason     string
					RetryDelay string
					Violations []struct{ QuotaID, QuotaValue string }
				}
			}
		}
		if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		e := got.Error
		if status != tc.code || rec.Code != tc.code || e.Code != tc.code || e.Status != tc.status || !strings.Contains(e.Message, tc.in) {
			t.Errorf("%v: %d %s", tc.ref, status, rec.Body)
		}
		var id, wait, reason string
		for _, d := range e.Details {
			wait += d.RetryDelay
			reason += d.Reason
			for _, v := range d.Violations {
				id += v.QuotaID
			}
		}
		if id != tc.id || wait != tc.wait || (reason == "API_KEY_INVALID") != (tc.ref.Reason == quota.InvalidKey || tc.ref.Reason == quota.ExpiredKey) {
			t.Errorf("%v: %s", tc.ref, rec.Body)
		}
		if h := rec.Header(); h.Get("X-LLM-Quota-Remaining") != "7" || h.Get("X-Ratelimit-Limit-Requests") != "" || h.Get("WWW-Authenticate") != "" {
			t.Errorf("%v: %v", tc.ref, h)
		}
	}
}

// TestGoogleRefusalBodies pins the exact bytes that SDKs parse.
func TestGoogleRefusalBodies(t *testing.T) {
	refs := map[string]*quota.Refusal{
		`{"error":{"code":400,"message":"API key not valid. Please pass a valid API key.","status":"INVALID_ARGUMENT","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"API_KEY_INVALID","domain":"googleapis.com","metadata":{"service":"generativelanguage.googleapis.com"}}]}}`: {Reason: quota.InvalidKey},
		`{"error":{"code":403,"message":"This API key may not use this model.","status":"PERMISSION_DENIED"}}`: {Reason: quota.ModelNotAllowed},
		`{"error":{"code":429,"message":"Rate limit reached on requests per min (RPM) for key \"ci\": Limit 60, Used 60, Requested 1. Please retry in 26s.","status":"RESOURCE_EXHAUSTED","details":[{"@type":"type.googleapis.com/google.rpc.QuotaFailure","violations":[{"quotaMetric":"llm-quota/requests_per_minute","quotaId":"RequestsPerMinutePerKey","quotaDimensions":{"key":"ci"},"quotaValue":"60"}]},{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"26s"}]}}`: {
			Reason: quota.RateLimited, Limit: quota.RequestsPerMinute, Account: testKey(), AccountName: "ci", Max: 60, Used: 60, Requested: 1, Wait: 26 * time.Second},
	}
	for want, ref := range refs {
		rec := httptest.NewRecorder()
		Refuse(rec, gemini, ref, nil, refusedAt)
		if got := strings.TrimSpace(rec.Body.String()); got != want {
			t.Error(cmp.Diff(want, got))
		}
	}
	for d, want := range map[Dialect]string{
		ollama: `{"error":"This API key may not use this model."}`,
		cohere: `{"message":"This API key may not use this model."}`,
	} {
		rec := httptest.NewRecorder()
		if status := Refuse(rec, d, &quota.Refusal{Reason: quota.ModelNotAllowed}, nil, refusedAt); status != 403 || strings.TrimSpace(rec.Body.String()) != want {
			t.Errorf("%s: %d %s", d.Name(), status, rec.Body)
		}
	}
}
