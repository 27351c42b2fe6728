package dialect

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// told is all that a meter has to say of an answer.
func told(out quota.Outcome, w *Writer) string {
	m := &w.meter
	return fmt.Sprintf("%+v text %d, tools %d, chunks %d, complete %t, cut %t, failed %t", out, m.text, m.tools, m.chunks, m.complete, m.cut, m.failed)
}

// geminiChunks are the elements of a streamed answer; the brackets and commas
// in its text, and the usage in it, are text.
var geminiChunks = []string{
	`{"candidates":[{"content":{"parts":[{"text":"[{\"usageMetadata\":{\"totalTokenCount\":9}}]"}]}}],"usageMetadata":{"promptTokenCount":7,"totalTokenCount":7}}`,
	"{\r\n  \"candidates\": [{\"content\": {\"parts\": [{\"functionCall\": {\"args\": {\"a\": \"],\"}}}]}}],\r\n  \"usageMetadata\": {\"promptTokenCount\": 8, \"thoughtsTokenCount\": 3, \"totalTokenCount\": 11}\r\n}",
	`{"candidates":[{"finishReason":"STOP"}],"usageMetadata":{"promptTokenCount":6,"candidatesTokenCount":4,"thoughtsTokenCount":3,"totalTokenCount":13}}`,
}

var ollamaLines = []string{
	`{"model":"m","message":{"role":"assistant","content":"a\nb {"},"done":false}`,
	`{"model":"m","message":{"content":"","tool_calls":[{"function":{"name":"f","arguments":{"eval_count":"99"}}}]},"done":false}`,
	`{"model":"m","message":{"content":""},"done":true,"done_reason":"stop","prompt_eval_count":12,"eval_count":34}`,
}

// streams are whole answers by framing, and what each tells.
var streams = []struct {
	name string
	wire *wire
	body string
	want quota.Tokens
}{
	{"array", &geminiWire, "[" + strings.Join(geminiChunks, "\n,\n") + "]", quota.Tokens{Input: 6, Output: 7, Reasoning: 3}},
	{"array, spread out", &geminiWire, " \n[ \n" + strings.Join(geminiChunks, "\r\n,\r\n") + "\n]\n", quota.Tokens{Input: 6, Output: 7, Reasoning: 3}},
	{"CRLF events", &geminiWire, "data: " + geminiChunks[0] + "\r\n\r\ndata: " + geminiChunks[2] + "\r\n\r\n", quota.Tokens{Input: 6, Output: 7, Reasoning: 3}},
	{"lines", &ollamaWire, strings.Join(ollamaLines, "\n") + "\n", quota.Tokens{Input: 12, Output: 34}},
	{"lines, CRLF, blank ones, no end", &ollamaWire, "\r\n" + strings.Join(ollamaLines, "\r\n\r\n"), quota.Tokens{Input: 12, Output: 34}},
	{"lines that are one", &ollamaWire, strings.Join(ollamaLines, ""), quota.Tokens{Input: 12, Output: 34}},
	{"a broken line among lines", &ollamaWire, ollamaLines[0] + "\nnot json {\n{\"message\":{\"content\":\"cut\n" + ollamaLines[2] + "\n", quota.Tokens{Input: 12, Output: 34}},
}

func TestFramingsAtEverySplit(t *testing.T) {
	for _, tc := range streams {
		c := generate(tc.wire)
		out, w, _ := answer(c, 200, nil, tc.body, End{})
		want := told(out, w)
		if out != (quota.Outcome{Tokens: tc.want}) || !w.meter.complete {
			t.Errorf("%s: %s", tc.name, want)
		}
		for i := range len(tc.body) {
			for _, j := range []int{i + 1, i + 3, len(tc.body)} {
				out, w, passed := answer(c, 200, nil, tc.body, End{}, i, j)
				if got := told(out, w); got != want || passed != tc.body {
					t.Fatalf("%s, cut at %d and %d:\n%s\nnot\n%s", tc.name, i, j, got, want)
				}
			}
		}
	}
}

// TestFramingsBrokenOff: wherever a stream breaks off, it is failed unless all
// that matters had come, and it costs no more than it had told, or an estimate.
func TestFramingsBrokenOff(t *testing.T) {
	for _, tc := range streams[:6] {
		c := generate(tc.wire)
		for i := 1; i < len(tc.body); i++ {
			out, w, _ := answer(c, 200, nil, tc.body[:i], End{Panicked: true})
			if !out.Failed {
				t.Fatalf("%s, broken off at %d: %s", tc.name, i, told(out, w))
			}
			if out.Tokens != tc.want && !out.Estimated && w.meter.chunks > 0 {
				t.Fatalf("%s, broken off at %d, was charged without a flag: %s", tc.name, i, told(out, w))
			}
		}
	}
	// An element's usage counts though the array never ended.
	out, _, _ := answer(generate(&geminiWire), 200, nil, "["+geminiChunks[0], End{ClientGone: true})
	if want := (quota.Outcome{Tokens: quota.Tokens{Input: 7, Output: 12}, Estimated: true, Failed: true}); out != want {
		t.Errorf("%+v, not %+v", out, want)
	}
	// Gone when the last element had come: nothing more mattered.
	out, _, _ = answer(generate(&geminiWire), 200, nil, "["+geminiChunks[2], End{ClientGone: true})
	if out.Tokens.Charge() != 13 || out.Estimated {
		t.Errorf("%+v", out)
	}
	out, _, _ = answer(generate(&geminiWire), 200, nil, "data: "+geminiChunks[2]+"\r\n\r\n", End{ClientGone: true})
	if out.Tokens.Charge() != 13 || out.Failed {
		t.Errorf("%+v", out)
	}
}

// TestLinesAnnounced: where lines are announced, not even the first spoils the rest.
func TestLinesAnnounced(t *testing.T) {
	for _, typ := range []string{"application/x-ndjson", "application/stream+json; charset=utf-8", "application/jsonl"} {
		body := "{oops}\n" + ollamaLines[2] + "\n"
		for i := range len(body) {
			out, _, _ := answer(generate(&ollamaWire), 200, http.Header{"Content-Type": {typ}}, body, End{}, i)
			if out.Tokens != (quota.Tokens{Input: 12, Output: 34}) {
				t.Fatalf("%s, cut at %d: %+v", typ, i, out)
			}
		}
	}
}

// hostile are answers made to mislead, or to be large.
var hostile = map[string]string{
	"endless line":    `{"message":{"content":"` + strings.Repeat("x", 1<<20),
	"endless array":   "[" + strings.Repeat("{},", 1<<16),
	"endless name":    `[{"` + strings.Repeat("x", 1<<20),
	"deep":            strings.Repeat("[", 1<<16),
	"deep objects":    strings.Repeat(`{"usageMetadata":`, 1<<14),
	"no UTF-8":        "{\"message\":{\"content\":\"\xff\xfe\xc0\x80\"},\"eval_count\":\"\xff\"}\n\xff\n",
	"NUL":             "{\"usage\":\x00}\n{\"a\":\"\x00\"}\n",
	"infinite":        `{"usageMetadata":{"promptTokenCount":1e400,"totalTokenCount":1e400},"usage":{"tokens":{"input_tokens":1e400}},"prompt_eval_count":1e400,"done":true}`,
	"negative":        `{"usageMetadata":{"promptTokenCount":-7,"candidatesTokenCount":-9223372036854775808},"usage":{"tokens":{"input_tokens":-1}},"eval_count":-5,"done":true}`,
	"great":           `[{"usageMetadata":{"promptTokenCount":9007199254740991,"toolUsePromptTokenCount":9007199254740991,"totalTokenCount":9007199254740991}}]`,
	"usage of no use": `[{"usageMetadata":[1,2]},{"usageMetadata":"x"},{"usageMetadata":null},{"predictions":[{"embeddings":{"statistics":{"token_count":"x"}}}]}]`,
	"odd array":       `[,,1,"a",null,{"usageMetadata":{"promptTokenCount":3}}]]]{"usageMetadata":{"promptTokenCount":4}}`,
	"bare":            "data: {\"a\":1}\n\n{\n\"error\": {}\n}\ndata: x\n\n{",
}

// FuzzFramings: in whatever pieces an answer comes it tells the same, none
// breaks the meter, and none is charged what cannot be.
func FuzzFramings(f *testing.F) {
	for _, s := range streams {
		f.Add(s.body, uint16(1))
	}
	for _, s := range hostile {
		f.Add(s[:min(len(s), 2000)], uint16(3))
	}
	f.Add("{}\n[{}]\n\"x\"\n12\n", uint16(2))
	f.Fuzz(func(t *testing.T, body string, size uint16) {
		n := int(size)%64 + 1
		var cuts []int
		for i := n; i < len(body); i += n {
			cuts = append(cuts, i)
		}
		for _, wi := range []*wire{&geminiWire, &ollamaWire, &cohereWire} {
			c := generate(wi)
			out, w, passed := answer(c, 200, nil, body, End{})
			want := told(out, w)
			if passed != body {
				t.Fatalf("the client got %q of %q", passed, body)
			}
			out2, w2, _ := answer(c, 200, nil, body, End{}, cuts...)
			if got := told(out2, w2); got != want {
				t.Fatalf("in pieces of %d:\n%s\nnot\n%s", n, got, want)
			}
			if out.Tokens.Input < 0 || out.Tokens.Output < 0 || out.Tokens.Charge() > 2*quota.MaxUsage+int64(len(body)) {
				t.Fatalf("%+v", out)
			}
		}
	})
}

// TestHostileAnswers: an answer made to mislead costs an estimate at most, and
// no piece of it is kept.
func TestHostileAnswers(t *testing.T) {
	for name, body := range hostile {
		for _, wi := range []*wire{&geminiWire, &ollamaWire, &cohereWire} {
			out, w, passed := answer(generate(wi), 200, nil, body, End{}, 1, 2, len(body)/2)
			if passed != body || out.Tokens.Charge() > 100+int64(len(body)) {
				t.Errorf("%s: %s", name, told(out, w))
			}
		}
	}
	for _, piece := range []string{"[", "[{", `{"a":1}` + "\n", "{},", `[{"candidates":[{"content":{"parts":[{"text":"y`, "{\"message\":{\"content\":\"z", "\xff\n"} {
		w := NewWriter(&discard{http.Header{"Content-Type": {"application/x-ndjson"}}}, generate(&geminiWire), nil)
		p := []byte(strings.Repeat(piece, 1000))
		if n := testing.AllocsPerRun(50, func() { w.Write(p) }); n > 0 {
			t.Errorf("%q: %v allocations a write", piece, n)
		}
	}
}
