package dialect

import (
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func TestRecogniseOllama(t *testing.T) {
	const (
		chat = `{"model":"llama3","messages":[{"role":"user","content":"hi"}]}`
		done = `{"done":true,"prompt_eval_count":26,"eval_count":298}`
	)
	for _, tc := range []recognised{
		{"/api/chat", chat, Generate, "ollama", "ollama", "llama3", true, false, done, 26, 298},
		{"/ollama/api/chat", chat, Generate, "ollama", "ollama", "llama3", true, false, done, 26, 298},
		{"/api/chat", `{"model":"m","stream":false,"messages":[]}`, Generate, "ollama", "ollama", "m", false, false, done, 26, 298},
		{"/api/chat", `{"model":"m","stream":null,"messages":[]}`, Generate, "ollama", "ollama", "m", true, false, done, 26, 298},
		{"/api/generate", `{"model":"m","prompt":"x"}`, Generate, "ollama", "ollama", "m", true, false, done, 26, 298},
		{"/api/embed", `{"model":"m","input":["a","b"]}`, Embed, "ollama", "ollama", "m", false, false, `{"embeddings":[[0.1]],"prompt_eval_count":8}`, 8, 0},
		{"/api/embeddings", `{"model":"m","prompt":"a"}`, Embed, "ollama", "ollama", "m", false, false, "", 0, 0},
		{"/api/show", `{"model":"m"}`, Free, "ollama", "ollama", "m", false, false, "", 0, 0},
		{"/api/pull", `{"model":"m"}`, Free, "ollama", "ollama", "m", false, false, "", 0, 0},
		{"/api/push", `{}`, Free, "ollama", "ollama", "", false, false, "", 0, 0},
		{"/api/create", `{}`, Free, "ollama", "ollama", "", false, false, "", 0, 0},
		{"/api/copy", `{}`, Free, "ollama", "ollama", "", false, false, "", 0, 0},
		{"/api/blobs/sha256:00", `x`, Free, "ollama", "ollama", "", false, false, "", 0, 0},
		{"/v1/chat/completions", chat, Generate, "openai", "openai", "llama3", false, false, "", 0, 0},
		{"/api/chat/completions", chat, Generate, "openai", "openai", "llama3", false, false, "", 0, 0},
	} {
		tc.check(t, "POST")
	}
	for _, path := range []string{"/api/tags", "/api/ps", "/api/version"} {
		(&recognised{path: path, kind: Free, before: "ollama", after: "ollama"}).check(t, "GET")
	}
	(&recognised{path: "/api/delete", body: `{"model":"m"}`, kind: Free, before: "ollama", after: "ollama", model: "m"}).check(t, "DELETE")
}

func TestOllamaSizes(t *testing.T) {
	for _, tc := range []struct {
		path, body string
		input, max int64
	}{
		{"/api/chat", `{"messages":[{"role":"user","content":"12345678"}]}`, 2 + 4 + 6, -1},
		{"/api/chat", `{"messages":[{"role":"user","content":"1234","images":["iVBORw0KGgo=","AA"]}]}`, 2000 + 1 + 4 + 6, -1},
		{"/api/generate", `{"prompt":"1234","system":"1234","images":["AA"],"context":[1,2,3]}`, 1000 + 5 + 6, -1},
		{"/api/embed", `{"input":["1234","1234"]}`, 2, -1},
		{"/api/embeddings", `{"prompt":"1234"}`, 1, -1},
		{"/api/chat", `{"options":{"num_predict":10}}`, 6, 10},
		{"/api/chat", `{"options":{"num_predict":10.0}}`, 6, 10},
		{"/api/chat", `{"options":{"num_predict":-1}}`, 6, -1},
		{"/api/chat", `{"options":{"num_predict":0}}`, 6, -1},
		{"/api/chat", `{"options":{"num_predict":"10"}}`, 6, -1},
		{"/api/chat", `{"options":{"num_predict":-1,"num_predict":5}}`, 6, -1},
		{"/api/chat", `{"options":{"num_predict":5},"options":{"num_predict":-1}}`, 6, -1},
		{"/api/chat", `{"num_predict":5}`, 6, -1},
	} {
		c, ref := Read(post(tc.path, tc.body), Options{})
		if ref != nil || c.Input != tc.input || c.MaxOutput != tc.max {
			t.Errorf("%s: input %d, max %d; want %d, %d (%v)", tc.body, c.Input, c.MaxOutput, tc.input, tc.max, ref)
		}
	}
}

func TestOllamaOutcome(t *testing.T) {
	const word = `{"message":{"content":"1234567"},"done":false}` + "\n"
	for _, tc := range []struct {
		name, body string
		kind       Kind
		end        End
		want       quota.Outcome
	}{
		{"no stream", `{"message":{"content":"x"},"done":true,"prompt_eval_count":26,"eval_count":298}`, Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 26, Output: 298}}},
		{"the prompt lay in the cache", `{"response":"x","done":true,"eval_count":38}`, Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Output: 38}}},
		{"no counts at all", `{"response":"1234567","done":true}`, Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 100, Output: 2}, Estimated: true}},
		{"loaded", `{"response":"","done":true,"done_reason":"load"}`, Generate, End{}, quota.Outcome{}},
		{"unloaded", `{"message":{"content":""},"done_reason":"unload","done":true}`, Generate, End{}, quota.Outcome{}},
		{"embedding without counts", `{"embedding":[0.1,0.2]}`, Embed, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 100}, Estimated: true}},
		{"client gone", word + word, Generate, End{ClientGone: true}, quota.Outcome{Tokens: quota.Tokens{Input: 100, Output: 4}, Estimated: true, Failed: true}},
		{"client gone after the end", word + `{"done":true,"prompt_eval_count":3,"eval_count":4}`, Generate, End{ClientGone: true}, quota.Outcome{Tokens: quota.Tokens{Input: 3, Output: 4}}},
		{"cut within a line", word + `{"message":{"content":"1234567`, Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 100, Output: 4}, Estimated: true, Failed: true}},
		{"error", `{"error":"model not found"}`, Generate, End{}, quota.Outcome{Failed: true}},
		{"error after words", word + `{"error":"oh"}` + "\n", Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 100, Output: 2}, Estimated: true, Failed: true}},
		{"counts in content", `{"message":{"content":"{\"eval_count\":9}","eval_count":9,"tool_calls":[{"function":{"arguments":{"prompt_eval_count":7}}}]},"done":true,"eval_count":1}`, Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Output: 1}}},
		{"absurd", `{"done":true,"prompt_eval_count":1e400,"eval_count":1}`, Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 100}, Estimated: true}},
		{"negative", `{"done":true,"prompt_eval_count":-4,"eval_count":1}`, Generate, End{}, quota.Outcome{Tokens: quota.Tokens{Output: 1}}},
	} {
		c := generate(&ollamaWire)
		c.Kind = tc.kind
		if got, _, _ := answer(c, 200, nil, tc.body, tc.end); got != tc.want {
			t.Errorf("%s: got  %+v\nwant %+v", tc.name, got, tc.want)
		}
	}
}
