package dialect

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/json"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func post(path, body string) *http.Request {
	r := httptest.NewRequest("POST", path, strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	return r
}

func TestRecognise(t *testing.T) {
	const chat = `{"model":"m","messages":[{"role":"user","content":"hi"}]}`
	for _, tc := range []struct {
		method, path, body string
		kind               Kind
		dialect, model     string
		unmetered          bool
	}{
		{"POST", "/v1/chat/completions", chat, Generate, "openai", "m", false},
		{"POST", "//v1/./x/../chat//completions/", chat, Generate, "openai", "m", false},
		{"POST", "/API/V1/Chat/Completions", chat, Generate, "openai", "m", false},
		{"POST", "/v1/chat%2Fcompletions", chat, Generate, "openai", "m", false},
		{"POST", "/v1/%63hat/completions", chat, Generate, "openai", "m", false},
		{"POST", "/openai/v1/chat/completions", chat, Generate, "openai", "m", false},
		{"POST", "/models/chat/completions?api-version=1", chat, Generate, "azure", "m", false},
		{"POST", "/openai/deployments/My-Dep/chat/completions?api-version=1", chat, Generate, "azure", "My-Dep", false},
		{"POST", "//openai/deployments/d/embeddings", `{"input":"x"}`, Embed, "azure", "d", false},
		{"POST", "/v1/completions", `{"model":"m","prompt":"x"}`, Generate, "openai", "m", false},
		{"POST", "/v1/responses", `{"model":"m","input":"x"}`, Generate, "openai", "m", false},
		{"POST", "/v1/responses/input_tokens", `{"model":"m","input":"x"}`, Free, "openai", "m", false},
		{"POST", "/v1/responses/resp_1/cancel", ``, Free, "openai", "", false},
		{"GET", "/v1/responses/resp_1", ``, Free, "openai", "", false},
		{"DELETE", "/v1/files/f", ``, Free, "openai", "", false},
		{"OPTIONS", "/v1/chat/completions", ``, Free, "openai", "", false},
		{"POST", "/v1/embeddings", `{"model":"m","input":["a","b"]}`, Embed, "openai", "m", false},
		{"POST", "/v1/images/generations", `{"model":"m","prompt":"x"}`, Media, "openai", "m", false},
		{"POST", "/v1/audio/speech", `{"model":"m","input":"x"}`, Media, "openai", "m", false},
		{"POST", "/v1/moderations", `{"model":"m","input":"x"}`, Free, "openai", "m", false},
		{"POST", "/v1/batches", `{"input_file_id":"f"}`, Other, "openai", "", true},
		{"POST", "/v1/threads/t/messages", `{"role":"user","content":"x"}`, Free, "openai", "", false},
		{"POST", "/v1/threads/t/runs", `{"assistant_id":"a"}`, Free, "openai", "", true},
		{"POST", "/v1/messages", chat, Generate, "anthropic", "m", false},
		{"POST", "/anthropic/v1/messages", chat, Generate, "anthropic", "m", false},
		{"POST", "/v1/messages/count_tokens", chat, Free, "anthropic", "m", false},
		{"POST", "/v1/messages/batches", `{"requests":[]}`, Other, "anthropic", "", true},
		{"POST", "/v1/complete", `{"model":"m","prompt":"x"}`, Generate, "anthropic", "m", false},
		{"POST", "/v1/threads/..;/chat/completions", chat, Generate, "unknown", "m", false},
		{"POST", "/v1/threads/%252e%252e/chat/completions", chat, Generate, "unknown", "m", false},
		{"post", "/v1/chat/completions", chat, Generate, "openai", "m", false},
		{"POST", "/generate", `{"inputs":"x"}`, Generate, "unknown", "", false},
		{"POST", "/who/knows", chat, Generate, "unknown", "m", false},
		{"POST", "/who/knows", `{"model":"m","query":"x"}`, Other, "unknown", "m", false},
		{"POST", "/who/knows", `not json`, Other, "unknown", "", false},
		{"POST", "/v1/chat/completions", `{"model":"m",`, Generate, "openai", "", false},
		{"POST", "/v1/chat/completions", `{"model":"m"} {"model":"n"}`, Generate, "openai", "", false},
		{"POST", "/v1/chat/completions", `{"mod\u0065l":"\u006d"}`, Generate, "openai", "m", false},
		{"POST", "/v1/chat/completions", `{"model":7}`, Generate, "openai", "", false},
	} {
		r := httptest.NewRequest(tc.method, tc.path, strings.NewReader(tc.body))
		before := Of(r).Name()
		c, ref := Read(r, Options{MaxBody: 1 << 20})
		if ref != nil || c.Kind != tc.kind || c.Dialect.Name() != tc.dialect || before != tc.dialect || c.Model != tc.model || c.Unmetered != tc.unmetered {
			t.Errorf("%s %s %s: kind %d, %s (before: %s), model %q, unmetered %t, %v", tc.method, tc.path, tc.body, c.Kind, c.Dialect.Name(), before, c.Model, c.Unmetered, ref)
		}
		if (c.Input > 0) != (c.Kind != Free) {
			t.Errorf("%s %s: input %d", tc.method, tc.path, c.Input)
		}
	}
	r := httptest.NewRequest("GET", "/v1/models", nil)
	r.Header.Set("anthropic-version", "2023-06-01")
	if d := Of(r); d.Name() != "anthropic" {
		t.Errorf("/v1/models with anthropic-version: %s", d.Name())
	}
	r = httptest.NewRequest("GET", "/v1/who/knows", nil)
	r.Header.Set("Upgrade", "websocket")
	if c, _ := Read(r, Options{}); c.Kind != Other || !c.Unmetered {
		t.Errorf("an upgrade: kind %d, unmetered %t", c.Kind, c.Unmetered)
	}
}

func TestSizes(t *testing.T) {
	image := `data:image/png;base64,` + strings.Repeat("iVBORw0KGgo", 1000)
	blob := strings.Repeat("iVBORw0KGgo", 1000)
	for _, tc := range []struct {
		path, body string
		input, max int64
	}{
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":"12345678"}]}`, 2 + 4, -1},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":"12345678"}],"max_tokens":10,"max_completion_tokens":20,"n":3}`, 6, 60},
		{"/v1/chat/completions", `{"messages":[],"max_tokens":-1}`, 1, -1},
		{"/v1/chat/completions", `{"messages":[],"max_tokens":null}`, 1, -1},
		{"/v1/chat/completions", `{"messages":[],"max_tokens":1e99,"n":9999999999999}`, 1, maxCount},
		{"/v1/chat/completions", `{"messages":[{"content":[{"type":"image_url","image_url":{"url":"` + image + `"}},{"type":"text","text":"1234"}]}]}`, 1000 + 1 + 4, -1},
		{"/v1/chat/completions", `{"messages":[{"content":[{"type":"input_audio","input_audio":{"data":"` + blob + `","format":"wav"}}]}]}`, 1004, -1},
		{"/v1/messages", `{"max_tokens":5,"messages":[{"role":"user","content":[{"type":"image","source":{"type":"base64","media_type":"image/png","data":"` + blob + `"}}]}]}`, 1004 + 8, 5},
		{"/v1/completions", `{"prompt":["a","b","c"],"max_tokens":7,"n":2,"best_of":4}`, 1, 7 * 4 * 3},
		{"/v1/completions", `{"prompt":[1,2,3],"max_tokens":7}`, 3, 7},
		{"/v1/completions", `{"prompt":[[1,2,3],[4]],"max_tokens":7}`, 4, 14},
		{"/v1/embeddings", `{"input":[[1,2],[3]]}`, 3, -1},
		{"/v1/responses", `{"input":"12345678","instructions":"1234","max_output_tokens":9}`, 3, 9},
		{"/v1/chat/completions", `{"messages":[],"tools":[{"type":"function","function":{"name":"` + strings.Repeat("x", 352) + `"}}]}`, 99 - 20, -1},
		{"/v1/chat/completions", strings.Repeat("x", 40), 10, -1},
	} {
		c, ref := Read(post(tc.path, tc.body), Options{})
		if ref != nil || c.Input != tc.input || c.MaxOutput != tc.max {
			t.Errorf("%s %.120s: input %d, max %d; want %d, %d (%v)", tc.path, tc.body, c.Input, c.MaxOutput, tc.input, tc.max, ref)
		}
	}
}

func TestDuplicateFields(t *testing.T) {
	for _, tc := range []struct {
		body   string
		refuse bool
	}{
		{`{"model":"a","model":"b"}`, true},
		{`{"model":"a","mod\u0065l":"b"}`, true},
		{`{"model":"a","MODEL":"b"}`, true},
		{`{"stream":true,"stream":false}`, true},
		{`{"stream_options":{},"stream_options":{"include_usage":true}}`, true},
		{`{"n":1,"n":9}`, true},
		{`{"max_tokens":1,"max_tokens":9}`, true},
		{`{"max_completion_tokens":1,"x":2,"max_completion_tokens":9}`, true},
		{`{"max_output_tokens":1,"max_output_tokens":9}`, true},
		{`{"max_tokens":1,"max_completion_tokens":9}`, false},
		{`{"model":"a","messages":[{"model":"b"}],"x":{"model":"c"}}`, false},
		{`{"temperature":1,"temperature":2}`, false},
	} {
		_, ref := Read(post("/v1/chat/completions", tc.body), Options{})
		if (ref != nil) != tc.refuse || ref != nil && ref.Reason != quota.InvalidBody {
			t.Errorf("%s: %v", tc.body, ref)
		}
	}
}

func TestBodyTooLarge(t *testing.T) {
	body := `{"model":"a","messages":[]}`
	for _, most := range []int64{1, int64(len(body)) - 1} {
		for _, known := range []bool{true, false} {
			r := post("/v1/chat/completions", body)
			if !known {
				r.ContentLength = -1
			}
			if c, ref := Read(r, Options{MaxBody: most}); ref == nil || ref.Reason != quota.BodyTooLarge || c == nil {
				t.Errorf("%d bytes of at most %d: %v", len(body), most, ref)
			}
		}
	}
	if _, ref := Read(post("/v1/chat/completions", body), Options{MaxBody: int64(len(body))}); ref != nil {
		t.Error(ref)
	}
	// What is not read is capped on its way.
	r := httptest.NewRequest("POST", "/v1/files", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/octet-stream")
	r.ContentLength = -1
	c, ref := Read(r, Options{MaxBody: 5})
	c.Forward(r)
	if _, err := io.ReadAll(r.Body); ref != nil || err == nil {
		t.Errorf("a file above the cap: %v, %v", ref, err)
	}
}

func TestRequestCoding(t *testing.T) {
	const body = `{"model":"a","messages":[{"content":"12345678"}]}`
	code := func(w io.WriteCloser, buf *bytes.Buffer) string {
		io.WriteString(w, body)
		w.Close()
		return buf.String()
	}
	var g, z, s, b bytes.Buffer
	zw, _ := zstd.NewWriter(&s)
	coded := map[string]string{
		"gzip": code(gzip.NewWriter(&g), &g), "deflate": code(zlib.NewWriter(&z), &z), "zstd": code(zw, &s), "identity": body,
		"br": code(brotli.NewWriter(&b), &b),
	}
	for coding, b := range coded {
		r := post("/v1/chat/completions", b)
		r.Header.Set("Content-Encoding", coding)
		r.Header.Set("Accept-Encoding", "gzip")
		c, ref := Read(r, Options{MaxBody: 1000})
		if ref != nil || c.Model != "a" {
			t.Fatalf("%s: %v", coding, ref)
		}
		c.Forward(r)
		got, _ := io.ReadAll(r.Body)
		if string(got) != body || r.ContentLength != int64(len(body)) || r.Header.Get("Accept-Encoding") != "" || coding != "identity" && r.Header.Get("Content-Encoding") != "" {
			t.Errorf("%s: %q, %d, %v", coding, got, r.ContentLength, r.Header)
		}
		r = post("/v1/chat/completions", b)
		r.Header.Set("Content-Encoding", coding)
		if _, ref := Read(r, Options{MaxBody: 20}); ref == nil || ref.Reason != quota.BodyTooLarge {
			t.Errorf("%s above the cap: %v", coding, ref)
		}
	}
	for coding, reason := range map[string]quota.Reason{"lzma": quota.UnknownCoding, "br": quota.InvalidBody, "gzip, gzip": quota.UnknownCoding, "gzip": quota.InvalidBody, "zstd": quota.InvalidBody} {
		r := post("/v1/chat/completions", body)
		r.Header.Set("Content-Encoding", coding)
		if c, ref := Read(r, Options{}); c == nil || ref == nil || ref.Reason != reason {
			t.Errorf("%s: %v", coding, ref)
		}
	}
}

func TestMultipart(t *testing.T) {
	form := func(fields ...string) *http.Request {
		var b bytes.Buffer
		mw := multipart.NewWriter(&b)
		for i := 0; i < len(fields); i += 2 {
			mw.WriteField(fields[i], fields[i+1])
		}
		fw, _ := mw.CreateFormFile("file", "a.mp3")
		fw.Write(bytes.Repeat([]byte{0, 1, '\r', '\n'}, 5000))
		mw.Close()
		r := httptest.NewRequest("POST", "/v1/audio/transcriptions", &b)
		r.Header.Set("Content-Type", mw.FormDataContentType())
		return r
	}
	r := form("model", "whisper-1", "prompt", "12345678", "stream", "true")
	before, _ := io.ReadAll(r.Body)
	r.Body = io.NopCloser(bytes.NewReader(before))
	c, ref := Read(r, Options{MaxBody: 1 << 20})
	if ref != nil || c.Model != "whisper-1" || !c.Stream || c.Input != 1002 || c.Kind != Media {
		t.Errorf("%+v %v", c, ref)
	}
	c.Forward(r)
	if after, _ := io.ReadAll(r.Body); !bytes.Equal(before, after) {
		t.Error("the form changed on its way")
	}
	if _, ref := Read(form("model", "a", "model", "b"), Options{}); ref == nil || ref.Reason != quota.InvalidBody {
		t.Errorf("two models: %v", ref)
	}
}

func TestForwardRetries(t *testing.T) {
	r := post("/v1/chat/completions", `{"model":"a"}`)
	c, _ := Read(r, Options{})
	c.Forward(r)
	for range 3 {
		b, _ := io.ReadAll(r.Body)
		if string(b) != `{"model":"a"}` {
			t.Fatalf("%q", b)
		}
		r.Body, _ = r.GetBody()
	}
}

func TestInject(t *testing.T) {
	const on = `"include_usage":true`
	for in, want := range map[string]string{
		`{"stream":true}`:                                            `{"stream":true,"stream_options":{` + on + `}}`,
		`{"stream": true , "a":1}`:                                   `{"stream": true,"stream_options":{` + on + `} , "a":1}`,
		`{"stream":true,"stream_options":{}}`:                        `{"stream":true,"stream_options":{` + on + `}}`,
		`{"stream":true,"stream_options":{ }}`:                       `{"stream":true,"stream_options":{` + on + ` }}`,
		`{"stream_options": null, "stream":true}`:                    `{"stream_options": {` + on + `}, "stream":true}`,
		`{"stream":true,"stream_options":{"include_usage":false}}`:   `{"stream":true,"stream_options":{` + on + `}}`,
		`{"stream":true,"stream_options":{"include_usage":null}}`:    `{"stream":true,"stream_options":{` + on + `}}`,
		`{"stream":true,"stream_options":{"x":[1]}}`:                 `{"stream":true,"stream_options":{` + on + `,"x":[1]}}`,
		`{"stream":true,"stream_options":{"include_usage": true}}`:   `{"stream":true,"stream_options":{"include_usage": true}}`,
		`{"stream":true,"stream_options":7}`:                         `{"stream":true,"stream_options":7}`,
		`{"stream":false}`:                                           `{"stream":false}`,
		`{"stream":false,"stream_options":{"include_usage":false}}`:  `{"stream":false,"stream_options":{"include_usage":false}}`,
		`{"messages":[{"stream":true}]}`:                             `{"messages":[{"stream":true}]}`,
		`{"stream":true`:                                             `{"stream":true`,
		`{"stream":true,"\u0073tream_options":{"include_usage":0}} `: `{"stream":true,"\u0073tream_options":{` + on + `}} `,
	} {
		r := post("/v1/chat/completions", in)
		c, ref := Read(r, Options{InjectUsage: true})
		c.Forward(r)
		got, _ := io.ReadAll(r.Body)
		if ref != nil || string(got) != want || c.injected != (in != want) || int(r.ContentLength) != len(want) {
			t.Errorf("%s: %s (%v)", in, got, ref)
		}
	}
	for path, opt := range map[string]Options{"/v1/chat/completions": {}, "/v1/responses": {InjectUsage: true}, "/v1/messages": {InjectUsage: true}, "/unknown": {InjectUsage: true}} {
		if c, _ := Read(post(path, `{"stream":true,"messages":[]}`), opt); c.injected {
			t.Errorf("injected into %s with %+v", path, opt)
		}
	}
}

// FuzzInject: what was JSON is JSON afterwards, and the same but for the option.
func FuzzInject(f *testing.F) {
	f.Add(`{"stream":true,"stream_options":{"include_usage":false,"x":1},"a":"\"}"}`)
	f.Add(`{"a":[{"stream":true}],"stream":true}`)
	f.Add(`{ "stream" : true , "stream_options" : null }`)
	f.Add(`{"stream":true,"stream_options":{}}`)
	f.Fuzz(func(t *testing.T, in string) {
		r := post("/v1/completions", in)
		c, ref := Read(r, Options{InjectUsage: true})
		if ref != nil {
			return
		}
		c.Forward(r)
		got, _ := io.ReadAll(r.Body)
		if !c.injected {
			if string(got) != in {
				t.Fatalf("%q became %q", in, got)
			}
			return
		}
		var before, after map[string]any
		if json.Unmarshal([]byte(in), &before) != nil {
			return
		}
		if err := json.Unmarshal(got, &after); err != nil {
			t.Fatalf("%q became %q: %v", in, got, err)
		}
		options, _ := after["stream_options"].(map[string]any)
		if options["include_usage"] != true && strings.Count(in, "include_usage")+strings.Count(in, `\`) < 2 {
			t.Fatalf("%q became %q", in, got)
		}
		delete(before, "stream_options")
		delete(after, "stream_options")
		if d := cmp.Diff(before, after); d != "" {
			t.Fatalf("%q became %q: %s", in, got, d)
		}
	})
}
