package dialect

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func TestBedrockPaths(t *testing.T) {
	const converse = `{"model":"other","messages":[{"role":"user","content":[{"text":"x"}]}]}`
	for _, tc := range []struct {
		method, path string
		kind         Kind
		dialect      string
		model        string
		stream       bool
		unmetered    bool
	}{
		{"POST", "/model/us.anthropic.claude-sonnet-4-5-20250929-v1%3A0/converse", Generate, "bedrock", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", false, false},
		{"POST", "/model/us.anthropic.claude-sonnet-4-5-20250929-v1:0/converse", Generate, "bedrock", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", false, false},
		{"POST", "/bedrock/model/m/converse-stream", Generate, "bedrock", "m", true, false},
		{"POST", "/model/m/invoke", Generate, "bedrock", "m", false, false},
		{"POST", "/model/m/invoke/", Generate, "bedrock", "m", false, false},
		{"POST", "/model/m/invoke-with-response-stream", Generate, "bedrock", "m", true, false},
		{"POST", "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A000000000000%3Aapplication-inference-profile%2Fabc/converse", Generate, "bedrock", "arn:aws:bedrock:us-east-1:000000000000:application-inference-profile/abc", false, false},
		{"POST", "/model/arn:aws:bedrock:us-east-1:000000000000:inference-profile/us.amazon.nova-lite-v1:0/invoke", Generate, "bedrock", "arn:aws:bedrock:us-east-1:000000000000:inference-profile/us.amazon.nova-lite-v1:0", false, false},
		{"POST", "/model/cohere.embed-english-v3/invoke", Embed, "bedrock", "cohere.embed-english-v3", false, false},
		{"POST", "/model/amazon.rerank-v1%3A0/invoke", Embed, "bedrock", "amazon.rerank-v1:0", false, false},
		{"POST", "/model/amazon.nova-canvas-v1%3A0/invoke", Media, "bedrock", "amazon.nova-canvas-v1:0", false, false},
		{"POST", "/model/a%2Fresponses%2Fb/invoke", Generate, "bedrock", "a/responses/b", false, false},
		{"POST", "/model/m/count-tokens", Free, "bedrock", "m", false, false},
		{"POST", "/model/m/invoke-with-bidirectional-stream", Other, "bedrock", "m", false, true},
		{"POST", "/async-invoke", Other, "bedrock", "", false, true},
		{"POST", "/model-invocation-job", Other, "bedrock", "", false, true},
		{"POST", "/model-invocation-job/x/stop", Free, "bedrock", "", false, false},
		{"POST", "/guardrail/x/version/1/apply", Free, "bedrock", "", false, false},
		{"GET", "/async-invoke", Free, "bedrock", "", false, false},
		{"GET", "/model-invocation-jobs", Free, "bedrock", "", false, false},
		{"GET", "/foundation-models", Free, "bedrock", "", false, false},
		{"POST", "/openai/v1/chat/completions", Generate, "openai", "other", false, false},
		// What may be read in two ways names no model, so that where models
		// are limited it is refused.
		{"POST", "/model/dear/../cheap/converse", Generate, "bedrock", "", false, false},
		{"POST", "/model/dear%2F..%2Fcheap/converse", Generate, "bedrock", "", false, false},
		{"POST", "/model//converse", Generate, "bedrock", "", false, false},
		{"POST", "/model/m%253A0/converse", Generate, "unknown", "other", false, false},
	} {
		r := httptest.NewRequest(tc.method, tc.path, strings.NewReader(converse))
		before := Of(r).Name()
		c, ref := Read(r, Options{MaxBody: 1 << 20})
		if ref != nil || c.Kind != tc.kind || c.Dialect.Name() != tc.dialect || before != tc.dialect || c.Model != tc.model || c.Unmetered != tc.unmetered || c.Stream != tc.stream {
			t.Errorf("%s %s: kind %d, %s, model %q, stream %t, unmetered %t, %v", tc.method, tc.path, c.Kind, c.Dialect.Name(), c.Model, c.Stream, c.Unmetered, ref)
		}
	}
}

func TestBedrockSizes(t *testing.T) {
	const hidden, tools = 2, 506
	for _, tc := range []struct {
		body       string
		input, max int64
	}{
		{`{"messages":[{"role":"user","content":[{"text":"12345678"}]}],"system":[{"text":"1234"}],"inferenceConfig":{"maxTokens":9}}`, 2 + 1 + 4 + hidden, 9},
		{`{"messages":[{"role":"user","content":[{"image":{"format":"png","source":{"bytes":"aGVsbG8="}}},{"document":{"format":"pdf","name":"1234","source":{"s3Location":{"uri":"s3://b/k"}}}}]}]}`, 2000 + 1 + 4 + hidden, -1},
		{`{"messages":[],"toolConfig":{"tools":[{"toolSpec":{"name":"` + strings.Repeat("x", 364) + `"}}]}}`, 100 + tools, -1},
		{`{"anthropic_version":"bedrock-2023-05-31","max_tokens":7,"messages":[{"role":"user","content":"12345678"}]}`, 2 + 4 + hidden, 7},
		{`{"prompt":"12345678","max_gen_len":7}`, 2 + hidden, 7},
		{`{"prompt":"12345678","maxTokens":7,"numResults":3}`, 2 + hidden, 21},
		{`{"prompt":"12345678","max_tokens_to_sample":7}`, 2 + hidden, 7},
		{`{"prompt":"12345678","max_tokens":7,"num_generations":2}`, 2 + hidden, 14},
		{`{"inputText":"12345678","textGenerationConfig":{"maxTokenCount":7}}`, 2 + hidden, 7},
		{`{"inferenceConfig":{"max_new_tokens":7},"messages":[]}`, hidden, 7},
		// The largest counts, wherever and how often it stands.
		{`{"inferenceConfig":{"maxTokens":7},"inferenceConfig":{"maxTokens":3},"max_tokens":5,"messages":[]}`, hidden, 7},
		{`{"inferenceConfig":{"maxTokens":1e400},"messages":[]}`, hidden, maxCount},
	} {
		c, ref := Read(post("/model/m/invoke", tc.body), Options{})
		if ref != nil || c.Input != tc.input || c.MaxOutput != tc.max {
			t.Errorf("%.120s: input %d, max %d; want %d, %d (%v)", tc.body, c.Input, c.MaxOutput, tc.input, tc.max, ref)
		}
	}
}

func TestBedrockUsage(t *testing.T) {
	head := func(in, out, read, made string) http.Header {
		h := http.Header{}
		for name, v := range map[string]string{"Input": in, "Output": out, "Cache-Read-Input": read, "Cache-Write-Input": made} {
			if v != "" {
				h.Set("X-Amzn-Bedrock-"+name+"-Token-Count", v)
			}
		}
		return h
	}
	tok := func(in, out int64) quota.Outcome { return quota.Outcome{Tokens: quota.Tokens{Input: in, Output: out}} }
	for _, tc := range []struct {
		name string
		h    http.Header
		body string
		want quota.Outcome
	}{
		{"header", head("4", "10", "5", "1209"), `{"usage":{"input_tokens":1,"output_tokens":1}}`, quota.Outcome{Tokens: quota.Tokens{Input: 1218, Cached: 5, CacheWrite: 1209, Output: 10}}},
		{"header of an embedding", head("7", "", "", ""), `{"embeddings":[[1]]}`, tok(7, 0)},
		{"header that is absurd", head("1e400", "1", "", ""), `{"completion":"1234567"}`, quota.Outcome{Tokens: quota.Tokens{Input: 100, Output: 2}, Estimated: true}},
		{"header that is no number", head("many", "1", "", ""), `{}`, quota.Outcome{Tokens: quota.Tokens{Input: 100}, Estimated: true}},
		{"header, negative", head("-4", "1", "", ""), `{}`, tok(0, 1)},
		{"Converse", nil, `{"output":{},"usage":{"inputTokens":14,"outputTokens":5,"cacheWriteInputTokens":1503,"cacheWriteInputTokenCount":1503,"totalTokens":1522}}`, quota.Outcome{Tokens: quota.Tokens{Input: 1517, CacheWrite: 1503, Output: 5}}},
		{"Converse, more than is told apart", nil, `{"usage":{"inputTokens":14,"outputTokens":5,"cacheReadInputTokens":2,"totalTokens":30}}`, quota.Outcome{Tokens: quota.Tokens{Input: 16, Cached: 2, Output: 14}}},
		{"Anthropic", nil, `{"type":"message","usage":{"input_tokens":10,"cache_creation_input_tokens":8,"cache_read_input_tokens":5,"output_tokens":15}}`, quota.Outcome{Tokens: quota.Tokens{Input: 23, Cached: 5, CacheWrite: 8, Output: 15}}},
		{"Anthropic, iterations", nil, `{"type":"message","usage":{"input_tokens":1,"output_tokens":1,"iterations":[{"input_tokens":10,"output_tokens":2},{"input_tokens":5,"output_tokens":4}]}}`, tok(15, 6)},
		{"Llama", nil, `{"generation":"x","prompt_token_count":6,"generation_token_count":18}`, tok(6, 18)},
		{"Titan", nil, `{"inputTextTokenCount":5,"results":[{"tokenCount":6.0,"outputText":"x"},{"tokenCount":7}]}`, tok(5, 13)},
		{"Titan, embedding", nil, `{"embedding":[1],"inputTextTokenCount":12}`, tok(12, 0)},
		{"Cohere", nil, `{"text":"x","meta":{"tokens":{"input_tokens":5,"output_tokens":6}}}`, tok(5, 6)},
		{"Mistral", nil, `{"choices":[],"usage":{"prompt_tokens":6,"completion_tokens":100,"total_tokens":106}}`, tok(6, 100)},
		{"a stream without counts", nil, chunk(`{"generation":"a","prompt_token_count":5,"generation_token_count":1}`) + chunk(`{"generation":"b","prompt_token_count":null,"generation_token_count":2,"stop_reason":"stop"}`), tok(5, 2)},
		{"a stream's counts", nil, chunk(`{"outputText":"x","inputTextTokenCount":13}`) + chunk(`{"totalOutputTextTokenCount":99,"amazon-bedrock-invocationMetrics":{"inputTokenCount":13,"outputTokenCount":100}}`), tok(13, 100)},
		{"nothing told", nil, `{"completions":[{"data":{"text":"1234567"}}]}`, quota.Outcome{Tokens: quota.Tokens{Input: 100, Output: 2}, Estimated: true}},
	} {
		got, _, _ := answer(generate(&bedrockWire), 200, tc.h, tc.body, End{}, 9)
		if got != tc.want {
			t.Errorf("%s: %+v, not %+v", tc.name, got, tc.want)
		}
	}
}

func TestBedrockRefusals(t *testing.T) {
	for _, tc := range []struct {
		ref    quota.Refusal
		status int
		typ    string
	}{
		{quota.Refusal{Reason: quota.InvalidKey}, 401, "UnrecognizedClientException"},
		{quota.Refusal{Reason: quota.DisabledKey}, 401, "UnrecognizedClientException"},
		{quota.Refusal{Reason: quota.ExpiredKey}, 401, "ExpiredTokenException"},
		{quota.Refusal{Reason: quota.AmbiguousCredential}, 400, "ValidationException"},
		{quota.Refusal{Reason: quota.ModelNotAllowed}, 403, "AccessDeniedException"},
		{quota.Refusal{Reason: quota.AddressNotAllowed}, 403, "AccessDeniedException"},
		{quota.Refusal{Reason: quota.Unmetered}, 403, "AccessDeniedException"},
		{quota.Refusal{Reason: quota.InvalidBody}, 400, "ValidationException"},
		{quota.Refusal{Reason: quota.UnknownCoding}, 415, "ValidationException"},
		{quota.Refusal{Reason: quota.BodyTooLarge}, 413, "ValidationException"},
		{quota.Refusal{Reason: quota.StoreUnavailable}, 503, "ServiceUnavailableException"},
		{quota.Refusal{Reason: quota.TooManyFailures, Wait: time.Second}, 429, "ThrottlingException"},
		{quota.Refusal{Reason: quota.RateLimited, Limit: quota.RequestsPerMinute, Wait: time.Second}, 429, "ThrottlingException"},
		{quota.Refusal{Reason: quota.RateLimited, Limit: quota.ConcurrentRequests}, 429, "ThrottlingException"},
		{quota.Refusal{Reason: quota.RateLimited, Limit: quota.TokensPerDay, Wait: time.Hour}, 429, "ServiceQuotaExceededException"},
		{quota.Refusal{Reason: quota.QuotaSpent, Limit: quota.TokenQuota, Wait: time.Hour}, 429, "ServiceQuotaExceededException"},
		{quota.Refusal{Reason: quota.TooManyTokens, Limit: quota.TokenQuota, Wait: quota.Never}, 429, "ValidationException"},
	} {
		tc.ref.Account = testKey()
		rec := httptest.NewRecorder()
		status := Refuse(rec, bedrock, &tc.ref, nil, refusedAt)
		got := map[string]string{}
		if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil || len(got) != 1 || got["message"] == "" {
			t.Errorf("%v: %s", tc.ref, rec.Body)
		}
		if status != tc.status || rec.Header().Get("X-Amzn-Errortype") != tc.typ || rec.Header().Get("X-Amzn-Requestid") == "" {
			t.Errorf("%v: %d %v", tc.ref, status, rec.Header())
		}
	}
}
