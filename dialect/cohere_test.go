package dialect

import (
	"io"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func TestRecogniseCohere(t *testing.T) {
	const (
		two  = `{"message":{},"usage":{"billed_units":{"input_tokens":8,"output_tokens":33},"tokens":{"input_tokens":503,"output_tokens":35},"cached_tokens":480}}`
		one  = `{"text":"x","meta":{"billed_units":{"input_tokens":6,"output_tokens":33},"tokens":{"input_tokens":501,"output_tokens":35}}}`
		chat = `{"model":"m","messages":[{"role":"user","content":"hi"}]}`
	)
	for _, tc := range []recognised{
		{"/v2/chat", chat, Generate, "cohere", "cohere", "m", false, false, two, 503, 35},
		{"/cohere/v2/chat", `{"model":"m","stream":true,"messages":[]}`, Generate, "cohere", "cohere", "m", true, false, two, 503, 35},
		{"/v1/chat", `{"model":"m","message":"hi"}`, Generate, "cohere", "cohere", "m", false, false, one, 501, 35},
		{"/v1/chat", `{"message":"hi","messages":[]}`, Generate, "cohere", "cohere", "", false, false, one, 501, 35},
		{"/v1/chat", chat, Generate, "cohere", "openai", "m", false, false, `{"usage":{"prompt_tokens":5,"completion_tokens":7}}`, 5, 7},
		{"/v1/generate", `{"model":"m","prompt":"x"}`, Generate, "cohere", "cohere", "m", false, false, `{"generations":[],"meta":{"billed_units":{"input_tokens":5,"output_tokens":55}}}`, 5, 55},
		{"/v1/embed", `{"model":"m","texts":["x"]}`, Embed, "cohere", "cohere", "m", false, false, `{"meta":{"billed_units":{"input_tokens":2}}}`, 2, 0},
		{"/v2/embed", `{"model":"m","texts":["x"]}`, Embed, "cohere", "cohere", "m", false, false, `{"meta":{"billed_units":{"input_tokens":2}}}`, 2, 0},
		{"/v2/rerank", `{"model":"m","query":"x","documents":["y"]}`, Embed, "cohere", "cohere", "m", false, false, "", 0, 0},
		{"/v1/rerank", `{"model":"m","query":"x","documents":["y"]}`, Embed, "openai", "openai", "m", false, false, "", 0, 0},
		{"/v1/classify", `{"model":"m","inputs":["x"]}`, Embed, "cohere", "cohere", "m", false, false, "", 0, 0},
		{"/v1/tokenize", `{"model":"m","text":"x"}`, Free, "cohere", "cohere", "m", false, false, "", 0, 0},
		{"/v1/embed-jobs", `{"model":"m"}`, Other, "cohere", "cohere", "m", false, true, "", 0, 0},
		{"/compatibility/v1/chat/completions", chat, Generate, "openai", "openai", "m", false, false, "", 0, 0},
	} {
		tc.check(t, "POST")
	}
}

// TestInjectAtSharedPath: OpenAI-shaped streams at Cohere's path are asked for usage too.
func TestInjectAtSharedPath(t *testing.T) {
	for body, injected := range map[string]bool{
		`{"stream":true,"messages":[]}`:              true,
		`{"stream":true,"message":"x"}`:              false,
		`{"stream":true,"messages":[],"message":""}`: false,
	} {
		r := post("/v1/chat", body)
		c, ref := Read(r, Options{InjectUsage: true})
		c.Forward(r)
		got, _ := io.ReadAll(r.Body)
		if ref != nil || c.injected != injected || (string(got) != body) != injected {
			t.Errorf("%s: %s (%v)", body, got, ref)
		}
	}
}

func TestCohereSizes(t *testing.T) {
	for _, tc := range []struct {
		path, body string
		input, max int64
	}{
		{"/v2/chat", `{"messages":[{"role":"user","content":"12345678"}],"max_tokens":9}`, 2 + 4 + 491, 9},
		{"/v2/chat", `{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,AA"}}]}]}`, 1000 + 4 + 491, -1},
		{"/v1/chat", `{"message":"1234","preamble":"1234","chat_history":[{"role":"USER","message":"1234"}],"max_tokens":9,"num_generations":3}`, 3 + 4 + 491, 27},
		{"/v1/embed", `{"texts":["1234","12345678"]}`, 3, -1},
		{"/v2/embed", `{"inputs":[{"content":[{"type":"text","text":"1234"},{"type":"image_url","image_url":{"url":"data:image/png;base64,AA"}}]}],"images":["data:image/png;base64,AA"]}`, 2001, -1},
		{"/v2/rerank", `{"query":"1234","documents":["1234","1234"]}`, 3, -1},
	} {
		c, ref := Read(post(tc.path, tc.body), Options{})
		if ref != nil || c.Input != tc.input || c.MaxOutput != tc.max {
			t.Errorf("%s: input %d, max %d; want %d, %d (%v)", tc.body, c.Input, c.MaxOutput, tc.input, tc.max, ref)
		}
	}
	if _, ref := Read(post("/v1/chat", `{"num_generations":1,"num_generations":5}`), Options{}); ref == nil || ref.Reason != quota.InvalidBody {
		t.Errorf("several num_generations: %v", ref)
	}
}

func TestCohereOutcome(t *testing.T) {
	const (
		delta = `{"type":"content-delta","delta":{"message":{"content":{"text":"1234567"}}}}`
		last  = `{"type":"message-end","delta":{"finish_reason":"COMPLETE","usage":{"billed_units":{"input_tokens":7,"output_tokens":3},"tokens":{"input_tokens":502,"output_tokens":6},"cached_tokens":448}}}`
		word  = `{"is_finished":false,"event_type":"text-generation","text":"1234567"}` + "\n"
	)
	used := quota.Tokens{Input: 502, Cached: 448, Output: 6}
	for _, tc := range []struct {
		name, body string
		kind       Kind
		end        End
		want       quota.Outcome
	}{
		{"stream", sse(delta, last), Generate, End{ClientGone: true}, quota.Outcome{Tokens: used}},
		{"stream, broken off", sse(delta), Generate, End{Panicked: true}, quota.Outcome{Tokens: quota.Tokens{Input: 100, Output: 2}, Estimated: true, Failed: true}},
		{"ended in an error", sse(`{"type":"message-end","delta":{"finish_reason":"ERROR","usage":{}}}`), Generate, End{}, quota.Outcome{Failed: true}},
		{"ended in an error, after words", sse(delta, `{"type":"message-end","delta":{"finish_reason":"ERROR","usage":{}}}`), Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 100, Output: 2}, Estimated: true, Failed: true}},
		{"lines", word + word + `{"is_finished":true,"event_type":"stream-end","response":{"text":"12345671234567","meta":{"billed_units":{"input_tokens":23,"output_tokens":78},"tokens":{"input_tokens":90,"output_tokens":80}}},"finish_reason":"COMPLETE"}`, Generate, End{ClientGone: true}, quota.Outcome{Tokens: quota.Tokens{Input: 90, Output: 80}}},
		{"lines, client gone", word + word, Generate, End{ClientGone: true}, quota.Outcome{Tokens: quota.Tokens{Input: 100, Output: 4}, Estimated: true, Failed: true}},
		{"lines without usage", word + `{"event_type":"stream-end","response":{"text":"1234567"}}`, Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 100, Output: 2}, Estimated: true}},
		{"search units are no tokens", `{"results":[],"meta":{"billed_units":{"search_units":1}}}`, Embed, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 100}, Estimated: true}},
		{"billed alone", `{"meta":{"billed_units":{"input_tokens":1.0,"output_tokens":46}}}`, Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 1, Output: 46}}},
		{"absurd", `{"usage":{"tokens":{"input_tokens":1e400,"output_tokens":1}}}`, Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 100}, Estimated: true}},
		{"usage in content is content", `{"message":{"content":[{"text":"{\"usage\":{}}","usage":{"tokens":{"input_tokens":1}}}]}}`, Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 100, Output: 4}, Estimated: true}},
	} {
		c := generate(&cohereWire)
		c.Kind = tc.kind
		if got, _, _ := answer(c, 200, nil, tc.body, tc.end); got != tc.want {
			t.Errorf("%s: got  %+v\nwant %+v", tc.name, got, tc.want)
		}
	}
}
