package dialect

import (
	"bytes"
	"net/http"
	"strings"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Whatever an upstream sends, nothing panics, memory stays, the client gets
// the bytes, and the call is charged.

// hostileMemory is generous: a meter is some 2 KiB, that of an event stream
// some 2 KiB more.
const hostileMemory = 8 << 20

// hostile is what may come in each framing: one document, put into it.
var hostileFramings = map[string]struct {
	wire *wire
	wrap func(doc string) string
}{
	"json":        {&openaiWire, func(doc string) string { return doc }},
	"sse":         {&openaiWire, func(doc string) string { return "data: " + doc + "\n\n" }},
	"sse, CRLF":   {&anthropicWire, func(doc string) string { return "event: x\r\ndata: " + doc + "\r\n\r\n" }},
	"lines":       {&openaiWire, func(doc string) string { return doc + "\n" }},
	"array":       {&geminiWire, func(doc string) string { return "[" + doc + "\n,\n" + doc + "]" }},
	"eventstream": {&bedrockWire, func(doc string) string { return event("metadata", doc) }},
	"chunks":      {&bedrockWire, chunk},
}

func hostileDocs() map[string]string {
	return map[string]string{
		"no UTF-8":         "{\"choices\":[{\"delta\":{\"content\":\"\xff\xfe\xc3\x28\xf0\x9f\"}}],\"\xff\":\"\xc0\"}",
		"controls":         "{\"a\":\"\x00\x01\x1f\x7f\"}",
		"1e400":            `{"usage":{"prompt_tokens":1e400,"completion_tokens":-1e400,"input_tokens":1e400,"inputTokens":1e400,"outputTokens":1e400},"usageMetadata":{"promptTokenCount":1e400,"totalTokenCount":1e400},"amazon-bedrock-invocationMetrics":{"inputTokenCount":1e400}}`,
		"endless number":   `{"usage":{"prompt_tokens":` + strings.Repeat("9", 1<<16) + `}}`,
		"odd types":        `{"usage":[{"prompt_tokens":{}},[[]],"x",{"inputTokens":[1e9,"1"]}],"usageMetadata":"x","type":{},"error":[],"choices":{"delta":[]}}`,
		"deep":             strings.Repeat(`{"usage":[`, 1<<12) + strings.Repeat("]}", 1<<12),
		"deep brackets":    strings.Repeat("[", 1<<14),
		"unbalanced":       `{"usage":{"prompt_tokens":5]}`,
		"escapes":          `{"\u0075\u0073age":{"\\":"\\\"\\\\","` + strings.Repeat(`\u0061`, 1<<12) + `":"` + strings.Repeat(`\\\"`, 1<<12) + `"}}`,
		"two usages":       `{"usage":{"prompt_tokens":5},"usage":{"prompt_tokens":1e9,"completion_tokens":1e9}}`,
		"many names":       `{` + strings.Repeat(`"usage":{"prompt_tokens":1},`, 1<<12) + `"a":1}`,
		"usage in content": `{"choices":[{"delta":{"content":"\"usage\":{\"prompt_tokens\":777}}","usage":{"prompt_tokens":777}}}],"candidates":[{"content":{"parts":[{"text":"\"usageMetadata\":{\"promptTokenCount\":777}"}]}}],"delta":{"text":"\"usage\":{\"inputTokens\":777}","usage":{"input_tokens":777,"inputTokens":777}}}`,
		"nothing":          ``,
	}
}

func TestHostileDocuments(t *testing.T) {
	for framing, f := range hostileFramings {
		for name, doc := range hostileDocs() {
			body := f.wrap(doc)
			for _, h := range []http.Header{nil, {"Content-Type": {"application/vnd.amazon.eventstream"}}, {"Content-Type": {"application/x-ndjson"}}, {"Content-Type": {"text/event-stream"}}} {
				want, _, same := answer(generate(f.wire), 200, h, body, End{})
				if same != body {
					t.Fatalf("%s, %s: the client got %d bytes of %d", framing, name, len(same), len(body))
				}
				if want.Tokens.Charge() == 0 && !want.Failed || want.Tokens.Input == 777 || want.Tokens.Output == 777 {
					t.Errorf("%s, %s: %+v", framing, name, want)
				}
				var cuts []int
				for i := 3; i < len(body); i += 11 {
					cuts = append(cuts, i)
				}
				if len(cuts) > 3000 {
					continue
				}
				if got, _, _ := answer(generate(f.wire), 200, h, body, End{}, cuts...); got != want {
					t.Errorf("%s, %s: in pieces %+v, not %+v", framing, name, got, want)
				}
			}
		}
	}
}

// TestHostileStreams: endless ones, of 8 MiB each.
func TestHostileStreams(t *testing.T) {
	const size = 8 << 20
	lying := func(head string) string { return frame(strings.Repeat("x", 1<<12), ":event-type", head)[:1<<11] }
	for name, s := range map[string]struct {
		wire         *wire
		first, again string
		least, most  int64
	}{
		"a million tiny events":    {&openaiWire, "", "data:{}\n\n", 100, 101},
		"a million tiny deltas":    {&openaiWire, "", `data:{"choices":[{"delta":{"content":"a"}}]}` + "\n\n", size / 50, size / 10},
		"blank lines":              {&openaiWire, "data: x", "\n", 100, 101},
		"an endless line":          {&openaiWire, `data: {"choices":[{"delta":{"content":"`, "word ", size / 4, size},
		"an endless comment":       {&openaiWire, ": ", "x", 100, 101},
		"an endless field":         {&openaiWire, "", "x", 100, 101},
		"an endless event name":    {&openaiWire, "event: ", "x", 100, 101},
		"an endless JSON string":   {&openaiWire, `{"choices":[{"message":{"content":"`, "word ", size / 4, size},
		"an endless name":          {&openaiWire, `{"`, "x", 100, 101},
		"endless lines":            {&openaiWire, "{}\n", "{}\n", 100, 101},
		"an endless array":         {&geminiWire, "[{}", ",{}", 100, 101},
		"endless white space":      {&openaiWire, "", " \n", 100, 101},
		"a million tiny frames":    {&bedrockWire, "", event("x", `{}`), 100, 101},
		"a million tiny chunks":    {&bedrockWire, "", chunk(`{}`), 100, 101},
		"an endless frame":         {&bedrockWire, "\x01\xff\xff\xff\x00\x00\x00\x00" + crcOf("\x01\xff\xff\xff\x00\x00\x00\x00") + `{"delta":{"text":"`, "word ", size / 4, size},
		"an endless chunk":         {&bedrockWire, "\x01\xff\xff\xff" + event("chunk", "")[4:8] + crcOf("\x01\xff\xff\xff"+event("chunk", "")[4:8]) + event("chunk", "")[12:12+len(event("chunk", ""))-frameLeast] + `{"bytes":"`, "e30K", 100, 101},
		"endless headers":          {&bedrockWire, "\x01\xff\xff\xff\x01\xff\xff\xef" + crcOf("\x01\xff\xff\xff\x01\xff\xff\xef"), "\x03abc\x07\x00\x03abc", 100, size},
		"a frame that breaks off":  {&bedrockWire, lying("x"), lying("chunk"), 100, size},
		"no frames":                {&bedrockWire, "\x00\x00\x00", "\x00", 100, size},
		"no text, declared as SSE": {&anthropicWire, "\xff\xfe", "\xff\x00\xfe\r", 100, 101},
	} {
		t.Run(name, func(t *testing.T) {
			piece := []byte(strings.Repeat(s.again, 32<<10/len(s.again)+1))
			grown := heapGrowth(func(sample func()) {
				got := &counter{h: http.Header{}}
				w := NewWriter(got, generate(s.wire), nil)
				w.Write([]byte(s.first))
				want := int64(len(s.first))
				for ; want < size; want += int64(len(piece)) {
					w.Write(piece)
					sample()
				}
				w.Finish()
				out := w.Outcome(End{Panicked: true})
				if got.n != want || !bytes.Equal(got.last, piece) {
					t.Errorf("the client got %d bytes of %d", got.n, want)
				}
				if n := out.Tokens.Charge(); !out.Estimated || !out.Failed || n < s.least || n > s.most {
					t.Errorf("%+v", out)
				}
			})
			if grown > hostileMemory {
				t.Errorf("memory grew by %d KiB", grown>>10)
			}
		})
	}
}

// TestHostileSession: the same for what comes on a connection.
func TestHostileSession(t *testing.T) {
	const size = 8 << 20
	for name, s := range map[string]struct{ first, again string }{
		"a million tiny messages": {"", wsText("{}")},
		"a million responses":     {"", wsText(doneFirst)},
		"an endless message":      {"\x81\x7f\x00\x00\x7f\xff\xff\xff\xff\xff" + `{"delta":"`, "x"},
		"endless fragments":       {"\x01\x01{", "\x00\x01 "},
		"endless pings":           {"", "\x89\x04ping"},
		"no frames":               {"\xff", "\xff"},
		"no UTF-8":                {"", wsText("{\"type\":\"response.x.delta\",\"delta\":\"\xff\xfe\"}")},
		"1e400":                   {"", wsText(`{"type":"response.done","response":{"usage":{"input_tokens":1e400,"output_tokens":1e9}}}`)},
		"all that can be told":    {"", wsText(`{"type":"response.done","response":{"usage":{"input_tokens":1e9,"output_tokens":1e9}}}`)},
	} {
		piece := []byte(strings.Repeat(s.again, 32<<10/len(s.again)+1))
		grown := heapGrowth(func(sample func()) {
			w := newSession()
			w.feed([]byte(s.first))
			for n := 0; n < size; n += len(piece) {
				w.feed(piece)
				sample()
			}
			if got, _ := w.close(); got.Input > quota.MaxUsage || got.Output > quota.MaxUsage || got.Input < 0 {
				t.Errorf("%s: %+v", name, got)
			}
		})
		if grown > hostileMemory {
			t.Errorf("%s: memory grew by %d KiB", name, grown>>10)
		}
	}
}

// counter is a client that counts.
type counter struct {
	h    http.Header
	n    int64
	last []byte
}

func (c *counter) Header() http.Header { return c.h }
func (c *counter) WriteHeader(int)     {}
func (c *counter) Write(p []byte) (int, error) {
	c.n, c.last = c.n+int64(len(p)), p
	return len(p), nil
}
