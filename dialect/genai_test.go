package dialect

import (
	"io"
	"net/http/httptest"
	"strings"
	"testing"
)

// What a call is to OpenTelemetry's conventions, and which model its answer
// names.
func TestOperationAndModel(t *testing.T) {
	const sse = "text/event-stream"
	for _, c := range []struct {
		path, body, operation string
		contentType, answer   string
		model                 string
	}{
		{"/v1/chat/completions", `{"model":"gpt-4o","messages":[]}`, "chat", "", `{"model":"gpt-4o-2024-11-20","choices":[]}`, "gpt-4o-2024-11-20"},
		{"/v1/chat/completions/", `{"model":"gpt-4o","messages":[],"stream":true}`, "chat", sse, "data: {\"id\":\"c\",\"choices\":[]}\n\ndata: {\"model\":\"gpt-4o-x\",\"choices\":[{}]}\n\ndata: {\"model\":\"other\"}\n\ndata: [DONE]\n\n", "gpt-4o-x"},
		{"/v1/responses", `{"model":"gpt-4o","input":"hi","stream":true}`, "chat", sse, "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"r\",\"model\":\"gpt-5-1\"}}\n\n", "gpt-5-1"},
		{"/v1/completions", `{"model":"m","prompt":"hi"}`, "text_completion", "", `{"model":"m-1"}`, "m-1"},
		{"/v1/fim/completions", `{"model":"codestral","prompt":"hi"}`, "text_completion", "", `{}`, ""},
		{"/v1/embeddings", `{"model":"e","input":"hi"}`, "embeddings", "", `{"model":"e-1","data":[]}`, "e-1"},
		{"/v1/images/generations", `{"model":"i","prompt":"hi"}`, "generate_content", "", `{"data":[]}`, ""},
		{"/v1/messages", `{"model":"claude","max_tokens":5,"messages":[]}`, "chat", sse, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"claude-1\",\"usage\":{\"input_tokens\":1}}}\n\n", "claude-1"},
		{"/v1/messages", `{"model":"claude","max_tokens":5,"messages":[]}`, "chat", "", `{"type":"message","model":"claude-2"}`, "claude-2"},
		{"/v1beta/models/gemini-pro:generateContent", `{"contents":[]}`, "generate_content", "", `{"candidates":[],"modelVersion":"gemini-pro-002"}`, "gemini-pro-002"},
		{"/v1beta/models/e:embedContent", `{"content":{}}`, "embeddings", "", `{}`, ""},
		{"/v1/projects/p/locations/l/publishers/anthropic/models/claude:rawPredict", `{"messages":[]}`, "chat", "", `{"type":"message","model":"claude-3"}`, "claude-3"},
		{"/api/generate", `{"model":"llama","prompt":"hi","stream":false}`, "text_completion", "", `{"model":"llama:8b","response":"x","done":true}`, "llama:8b"},
		{"/api/chat", `{"model":"llama","messages":[],"stream":false}`, "chat", "", `{"model":"llama:8b","done":true}`, "llama:8b"},
		{"/v2/chat", `{"model":"command","messages":[]}`, "chat", "", `{}`, ""},
		{"/v2/rerank", `{"model":"rerank-v3","query":"hi"}`, "", "", `{}`, ""},
		{"/v1/rerank", `{"model":"r","query":"hi"}`, "", "", `{}`, ""},
		{"/model/anthropic.claude/invoke", `{"messages":[]}`, "chat", "", `{"type":"message","model":"claude-4"}`, "claude-4"},
		{"/model/amazon.titan-embed/invoke", `{"inputText":"hi"}`, "embeddings", "", `{}`, ""},
		{"/somewhere", `{"model":"m","messages":[]}`, "chat", "", `{"model":"m-1"}`, "m-1"},
		{"/somewhere", `{"model":"m"}`, "", "", `{"model":"m-1"}`, "m-1"},
		{"/v1/moderations", `{"model":"m","input":"hi"}`, "", "", `{"model":"m-1"}`, ""}, // not metered, so not read
		{"/v1/chat/completions", `{"model":"m","messages":[]}`, "chat", "", `{"model":"` + strings.Repeat("m", strCap+1) + `"}`, ""},
		{"/v1/chat/completions", `{"model":"m","messages":[]}`, "chat", "", `{"model":"odd\"name"}`, ""},
	} {
		r := httptest.NewRequest("POST", c.path, strings.NewReader(c.body))
		call, ref := Read(r, Options{})
		if ref != nil {
			t.Errorf("%s: %v", c.path, ref)
			continue
		}
		if got := call.Operation(r.URL.Path); got != c.operation {
			t.Errorf("%s is %q, want %q", c.path, got, c.operation)
		}
		rec := newRecorder()
		w := NewWriter(rec, call, nil)
		rec.Header().Set("Content-Type", "application/json")
		if c.contentType != "" {
			rec.Header().Set("Content-Type", c.contentType)
		}
		for i := range c.answer { // a name may come in any pieces
			if _, err := io.WriteString(w, c.answer[i:i+1]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Finish(); err != nil {
			t.Fatal(err)
		}
		w.Outcome(End{})
		if got := w.Model(); got != c.model {
			t.Errorf("%s was answered by %q, want %q", c.path, got, c.model)
		}
	}
}
