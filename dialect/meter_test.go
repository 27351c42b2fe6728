package dialect

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// answer sends an answer to call c through a Writer, cut at the given places.
func answer(c *Call, status int, h http.Header, body string, end End, cuts ...int) (quota.Outcome, *Writer, string) {
	rec := httptest.NewRecorder()
	w := NewWriter(rec, c, nil)
	for k, v := range h {
		w.Header()[k] = v
	}
	w.WriteHeader(status)
	for _, cut := range append(cuts, len(body)) {
		if cut = min(cut, len(body)); cut > 0 {
			w.Write([]byte(body[:cut]))
			body = body[cut:]
			for i := range cuts {
				cuts[i] = max(cuts[i]-cut, 0)
			}
		}
	}
	if !end.Panicked {
		w.Finish()
	}
	return w.Outcome(end), w, rec.Body.String()
}

func generate(w *wire) *Call {
	return &Call{Dialect: openai, Kind: Generate, Input: 100, MaxOutput: -1, wire: w}
}

func sse(events ...string) string {
	var b strings.Builder
	for _, e := range events {
		b.WriteString("data: " + e + "\n\n")
	}
	return b.String()
}

var anthropicStart = `{"type":"message_start","message":{"usage":{"input_tokens":10,"cache_creation_input_tokens":5,"cache_read_input_tokens":3,"output_tokens":2}}}`

func TestOutcome(t *testing.T) {
	tok := func(in, out int64) quota.Tokens { return quota.Tokens{Input: in, Output: out} }
	cached := quota.Tokens{Input: 18, Cached: 3, CacheWrite: 5, Output: 40}
	for _, tc := range []struct {
		name   string
		wire   *wire
		kind   Kind
		status int
		body   string
		end    End
		want   quota.Outcome
	}{
		{"usage", &openaiWire, Generate, 200, `{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}`, End{}, quota.Outcome{Tokens: tok(5, 7)}},
		{"usage in content is content", &openaiWire, Generate, 200, `{"choices":[{"message":{"content":"{\"usage\":{\"prompt_tokens\":5}}","usage":{"prompt_tokens":9}}}]}`, End{}, quota.Outcome{Tokens: tok(100, 9), Estimated: true}},
		{"no usage", &openaiWire, Generate, 200, `{"choices":[{"message":{"content":"1234567"}}]}`, End{}, quota.Outcome{Tokens: tok(100, 2), Estimated: true}},
		{"tool arguments are dearer", &openaiWire, Generate, 200, `{"choices":[{"message":{"tool_calls":[{"function":{"arguments":"1234567"}}]}}]}`, End{}, quota.Outcome{Tokens: tok(100, 6), Estimated: true}},
		{"chunks are tokens", &openaiWire, Generate, 200, sse(`{"choices":[{"delta":{"content":"a"}}]}`, `{"choices":[{"delta":{"content":"b"}}]}`, `{"choices":[{"delta":{"content":"c"}}]}`), End{}, quota.Outcome{Tokens: tok(100, 3), Estimated: true}},
		{"embedding without usage", &openaiWire, Embed, 200, `{"data":[]}`, End{}, quota.Outcome{Tokens: tok(100, 0), Estimated: true}},
		{"image without usage", &openaiWire, Media, 200, `{"data":[]}`, End{}, quota.Outcome{Tokens: tok(100, 0), Estimated: true}},
		{"unknown without usage", &openaiWire, Other, 200, `{"data":[]}`, End{}, quota.Outcome{}},
		{"unknown with usage", &openaiWire, Other, 200, `{"usage":{"input_tokens":5,"output_tokens":6}}`, End{}, quota.Outcome{Tokens: tok(5, 6)}},
		{"free", &openaiWire, Free, 200, `{"usage":{"input_tokens":5,"output_tokens":6}}`, End{}, quota.Outcome{}},
		{"error status", &openaiWire, Generate, 429, `{"error":{"message":"no"}}`, End{}, quota.Outcome{Failed: true}},
		{"error status with usage", &openaiWire, Generate, 500, `{"error":{},"usage":{"prompt_tokens":5,"completion_tokens":1}}`, End{}, quota.Outcome{Tokens: tok(5, 1), Failed: true}},
		{"only an error under 200", &openaiWire, Generate, 200, `{"error":{"message":"no"}}`, End{}, quota.Outcome{Failed: true}},
		{"error as a string", &openaiWire, Generate, 200, `{"error":"no"}`, End{}, quota.Outcome{Failed: true}},
		{"null error is none", &openaiWire, Generate, 200, `{"error":null,"output":[{"content":[{"text":"1234567"}]}]}`, End{}, quota.Outcome{Tokens: tok(100, 2), Estimated: true}},
		{"error in a stream, after content", &openaiWire, Generate, 200, sse(`{"choices":[{"delta":{"content":"1234567"}}]}`, `{"error":{"message":"no"}}`), End{}, quota.Outcome{Tokens: tok(100, 2), Estimated: true, Failed: true}},
		{"error field", &openaiWire, Generate, 200, "error: {\"message\":\"no\"}\n\n", End{}, quota.Outcome{Failed: true}},
		{"error event", &openaiWire, Generate, 200, "event: error\ndata: oh no\n\n", End{}, quota.Outcome{Failed: true}},
		{"panicked", &openaiWire, Generate, 200, sse(`{"choices":[{"delta":{"content":"1234567"}}]}`), End{Panicked: true}, quota.Outcome{Tokens: tok(100, 2), Estimated: true, Failed: true}},
		{"cut document", &openaiWire, Generate, 200, `{"choices":[{"message":{"content":"1234567`, End{}, quota.Outcome{Tokens: tok(100, 2), Estimated: true, Failed: true}},
		{"client gone, usage seen", &openaiWire, Generate, 200, sse(`{"usage":{"prompt_tokens":5,"completion_tokens":7}}`), End{ClientGone: true}, quota.Outcome{Tokens: tok(5, 7), Failed: true}},
		{"client gone after the end", &openaiWire, Generate, 200, sse(`{"usage":{"prompt_tokens":5,"completion_tokens":7}}`, "[DONE]"), End{ClientGone: true}, quota.Outcome{Tokens: tok(5, 7)}},
		{"client gone before headers", &openaiWire, Generate, 499, ``, End{ClientGone: true}, quota.Outcome{Failed: true}},
		{"last usage counts", &openaiWire, Generate, 200, sse(`{"usage":{"prompt_tokens":5,"completion_tokens":1}}`, `{"usage":{"prompt_tokens":6,"completion_tokens":7}}`, `{"usage":null}`), End{}, quota.Outcome{Tokens: tok(6, 7)}},
		{"x_groq", &openaiWire, Generate, 200, sse(`{"x_groq":{"usage":{"prompt_tokens":5,"completion_tokens":1,"total_time":0.5}}}`), End{}, quota.Outcome{Tokens: tok(5, 1)}},
		{"responses", &openaiWire, Generate, 200, sse(`{"type":"response.created","response":{"usage":null}}`, `{"type":"response.completed","response":{"status":"completed","usage":{"input_tokens":4,"output_tokens":2,"total_tokens":6}}}`), End{ClientGone: true}, quota.Outcome{Tokens: tok(4, 2)}},
		{"responses, broken off", &openaiWire, Generate, 200, sse(`{"type":"response.output_text.delta","delta":"1234567"}`, `{"type":"response.output_text.done","text":"1234567"}`), End{Panicked: true}, quota.Outcome{Tokens: tok(100, 2), Estimated: true, Failed: true}},
		{"negative", &openaiWire, Generate, 200, `{"usage":{"input_tokens":0,"output_tokens":-9,"total_tokens":-9}}`, End{}, quota.Outcome{}},
		{"floats", &openaiWire, Generate, 200, `{"usage":{"input_tokens":6.0,"output_tokens":1e2}}`, End{}, quota.Outcome{Tokens: tok(6, 100)}},
		{"absurd", &openaiWire, Generate, 200, `{"usage":{"input_tokens":1000000001,"output_tokens":1}}`, End{}, quota.Outcome{Tokens: tok(100, 0), Estimated: true}},
		{"not a number", &openaiWire, Generate, 200, `{"usage":{"input_tokens":"many","output_tokens":1}}`, End{}, quota.Outcome{Tokens: tok(100, 0), Estimated: true}},
		{"far too great", &openaiWire, Generate, 200, `{"usage":{"input_tokens":99999999999999999999999,"output_tokens":1e300}}`, End{}, quota.Outcome{Tokens: tok(100, 0), Estimated: true}},
		{"usage without tokens", &openaiWire, Generate, 200, `{"usage":{"seconds":3}}`, End{}, quota.Outcome{Tokens: tok(100, 0), Estimated: true}},
		{"gap is thought", &openaiWire, Generate, 200, `{"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":40,"completion_tokens_details":{"reasoning_tokens":25}}}`, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 10, Output: 30, Reasoning: 25}}},
		{"gap was heard", &openaiWire, Generate, 200, `{"usage":{"prompt_tokens":9,"completion_tokens":248,"total_tokens":632,"prompt_tokens_details":{"audio_tokens":375}}}`, End{}, quota.Outcome{Tokens: tok(384, 248)}},
		{"cached above input", &openaiWire, Generate, 200, `{"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":375}}}`, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 9, Cached: 9, Output: 2}}},
		{"total alone", &openaiWire, Embed, 200, `{"usage":{"total_tokens":9}}`, End{}, quota.Outcome{Tokens: tok(9, 0)}},
		{"an array", &openaiWire, Generate, 200, `[1,2]`, End{}, quota.Outcome{Tokens: tok(100, 0), Estimated: true}},
		{"no header", &openaiWire, Generate, 0, ``, End{Err: http.ErrAbortHandler}, quota.Outcome{Failed: true}},
		{"anthropic", &anthropicWire, Generate, 200, sse(anthropicStart, `{"type":"message_delta","usage":{"output_tokens":40}}`, `{"type":"message_stop"}`), End{ClientGone: true}, quota.Outcome{Tokens: cached}},
		{"anthropic, null does not replace", &anthropicWire, Generate, 200, sse(anthropicStart, `{"type":"message_delta","usage":{"input_tokens":null,"output_tokens":40}}`), End{}, quota.Outcome{Tokens: cached}},
		{"anthropic, broken off", &anthropicWire, Generate, 200, sse(anthropicStart, `{"type":"content_block_delta","delta":{"type":"text_delta","text":"12345671234567"}}`), End{Panicked: true}, quota.Outcome{Tokens: quota.Tokens{Input: 18, Cached: 3, CacheWrite: 5, Output: 4}, Estimated: true, Failed: true}},
		{"anthropic, iterations", &anthropicWire, Generate, 200, `{"type":"message","usage":{"input_tokens":1,"output_tokens":1,"iterations":[{"input_tokens":10,"output_tokens":2},{"input_tokens":5,"cache_read_input_tokens":3,"output_tokens":4}]}}`, End{}, quota.Outcome{Tokens: quota.Tokens{Input: 18, Cached: 3, Output: 6}}},
		{"anthropic under another path", &openaiWire, Generate, 200, sse(anthropicStart, `{"type":"message_delta","usage":{"output_tokens":40}}`), End{}, quota.Outcome{Tokens: cached}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := generate(tc.wire)
			c.Kind = tc.kind
			var got quota.Outcome
			if tc.status == 0 {
				got = NewWriter(httptest.NewRecorder(), c, nil).Outcome(tc.end)
			} else {
				got, _, _ = answer(c, tc.status, nil, tc.body, tc.end)
			}
			if got != tc.want {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
		})
	}
}

// framings are one answer under all the manners in which servers end lines.
func framings() map[string]string {
	events := ": comment\n\nevent: x\ndata: {\"choices\":[{\"delta\":\ndata: {\"content\":\"ab\\u00e4\\\"\\\\\"}}]}\n\nid: 3\nretry: 10\ndata:{\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7,\"total_tokens\":15}}   \n\ndata: [DONE]\n\n"
	return map[string]string{
		"LF": events, "CRLF": strings.ReplaceAll(events, "\n", "\r\n"), "CR": strings.ReplaceAll(events, "\n", "\r"),
		"BOM": "\ufeff" + events, "no end": strings.TrimRight(events, "\n"), "blank lines": "\n\n" + strings.ReplaceAll(events, "\n\n", "\n\n\n"),
	}
}

func TestStreamAtEverySplit(t *testing.T) {
	for name, body := range framings() {
		for _, injected := range []bool{false, true} {
			c := generate(&openaiWire)
			c.injected = injected
			want, w, passed := answer(c, 200, nil, body, End{})
			if want.Tokens != (quota.Tokens{Input: 5, Output: 10}) || !w.meter.complete || w.meter.chunks != 1 {
				t.Fatalf("%s: %+v complete %t chunks %d", name, want, w.meter.complete, w.meter.chunks)
			}
			if strings.Contains(passed, "usage") == injected {
				t.Fatalf("%s: injected %t, the client got %q", name, injected, passed)
			}
			for i := range len(body) {
				for _, j := range []int{i + 1, i + 2, i + 7, len(body)} {
					got, v, same := answer(c, 200, nil, body, End{}, i, j)
					if got != want || same != passed || v.meter.text != w.meter.text || v.meter.chunks != w.meter.chunks {
						t.Fatalf("%s cut at %d, %d: %+v text %d, not %+v text %d; %q", name, i, j, got, v.meter.text, want, w.meter.text, same)
					}
				}
			}
		}
	}
}

// FuzzChunking: an answer means the same in whatever pieces it comes, and
// nothing but the hidden event is lost of it.
func FuzzChunking(f *testing.F) {
	for _, body := range framings() {
		f.Add(body, uint16(3), true)
	}
	f.Add(`{"a":[1,{"b":"c\\\""}],"usage":{"prompt_tokens":1.5,"completion_tokens":"x"}}`, uint16(1), false)
	f.Add(sse(anthropicStart, `{"type":"message_delta","usage":{"output_tokens":40}}`), uint16(9), false)
	f.Add(`[{"usage":{}} ,`, uint16(2), true)
	f.Add(" \x00\x0100000hhhh", uint16(0), true)
	f.Add(" \tdata: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\n\n", uint16(0), true)
	f.Add("data: {\"choices\":[]}\r\rdata: {\"choices\":[],\"usage\":{\"prompt_tokens\":1}}\r\r\n\n", uint16(2), true)
	f.Fuzz(func(t *testing.T, body string, size uint16, injected bool) {
		for _, wi := range []*wire{&openaiWire, &anthropicWire} {
			c := generate(wi)
			c.injected = injected
			want, w, passed := answer(c, 200, nil, body, End{})
			n := int(size)%64 + 1
			var cuts []int
			for i := n; i < len(body); i += n {
				cuts = append(cuts, i)
			}
			got, v, same := answer(c, 200, nil, body, End{}, cuts...)
			if got != want || same != passed || v.meter.text != w.meter.text || v.meter.tools != w.meter.tools || v.meter.complete != w.meter.complete {
				t.Fatalf("in pieces of %d:\n%+v %q %d\nnot\n%+v %q %d", n, got, same, v.meter.text, want, passed, w.meter.text)
			}
			if !injected && passed != body || len(passed) > len(body) {
				t.Fatalf("the client got %q of %q", passed, body)
			}
			if want.Tokens.Input < 0 || want.Tokens.Output < 0 || want.Tokens.Charge() > 2*quota.MaxUsage+int64(len(body)) {
				t.Fatalf("%+v", want)
			}
		}
	})
}

// FuzzScanner: what encoding/json takes for JSON the scanner takes too, and
// usage is read as encoding/json reads it.
func FuzzScanner(f *testing.F) {
	f.Add(`{"usage":{"prompt_tokens":12,"x":[{}],"completion_tokens":3}}`)
	f.Add(`{"\u0075sage":{"prompt_tokens":1e3},"a":"\\","b":[[[]]],"c":null}`)
	f.Add(` [1,-2.5e+3,true,"\u00e9",{"a":{}}] `)
	f.Add(`{"usage":null,"usage":{"prompt_tokens":1}}`)
	f.Fuzz(func(t *testing.T, body string) {
		var s scanner
		s.sp = openaiWire.answer
		s.reset()
		n := s.feed([]byte(body))
		s.end()
		if !json.Valid([]byte(body)) {
			return
		}
		var nest func(v any) int
		nest = func(v any) int {
			d := 0
			switch v := v.(type) {
			case map[string]any:
				for _, e := range v {
					d = max(d, nest(e))
				}
			case []any:
				for _, e := range v {
					d = max(d, nest(e))
				}
			default:
				return 0
			}
			return d + 1
		}
		var v any
		json.Unmarshal([]byte(body), &v)
		if !s.done() && nest(v) < maxDepth/2 {
			t.Fatalf("not done after %d of %q: state %d", n, body, s.state)
		}
		o, _ := v.(map[string]any)
		u, _ := o["usage"].(map[string]any)
		if p, ok := u["prompt_tokens"].(float64); ok && strings.Count(body, "usage")+strings.Count(body, `\`) == 1 && strings.Count(body, "_tokens") == 1 && p >= 0 && p < 1<<40 && s.absurd == 0 {
			if got := s.nums[nInput]; got != int64(p+0.5) {
				t.Fatalf("%q: %d, not %v", body, got, p)
			}
		}
	})
}

func TestMeterIsSmall(t *testing.T) {
	if size := reflect.TypeFor[Writer]().Size(); size > 4<<10 {
		t.Errorf("a Writer takes %d bytes", size)
	}
	// One endless line, one endless string, no end of depth: nothing is kept.
	for _, piece := range []string{"x", `data: {"choices":[{"delta":{"content":"y`, "[", `{"usage":`, ": ", "event: "} {
		w := NewWriter(&discard{http.Header{}}, generate(&openaiWire), nil)
		p := []byte(strings.Repeat(piece, 1000))
		n := testing.AllocsPerRun(50, func() { w.Write(p) })
		if n > 1 {
			t.Errorf("%q: %v allocations a write", piece, n)
		}
	}
}

func ExampleWriter() {
	c := &Call{Dialect: openai, Kind: Generate, wire: &openaiWire}
	w := NewWriter(httptest.NewRecorder(), c, func(h http.Header, status int) { fmt.Println("status", status) })
	w.Write([]byte(`{"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}`))
	w.Finish()
	fmt.Println(w.Outcome(End{}).Tokens.Charge())
	// Output:
	// status 200
	// 12
}
