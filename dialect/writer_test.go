package dialect

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// recorder notes what reaches the writer below.
type recorder struct {
	*httptest.ResponseRecorder
	statuses []int
	flushes  int
	writeErr error
}

func newRecorder() *recorder { return &recorder{ResponseRecorder: httptest.NewRecorder()} }

func (r *recorder) WriteHeader(status int) {
	r.statuses = append(r.statuses, status)
	if status >= 200 {
		r.ResponseRecorder.WriteHeader(status)
	}
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.writeErr != nil {
		return 0, r.writeErr
	}
	return r.ResponseRecorder.Write(p)
}

func (r *recorder) ReadFrom(io.Reader) (int64, error) { panic("went round Write") }
func (r *recorder) FlushError() error                 { r.flushes++; return nil }
func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return nil, nil, errors.New("hijacked")
}

func TestInformationalHeadersPass(t *testing.T) {
	rec, calls := newRecorder(), 0
	w := NewWriter(rec, generate(&openaiWire), func(h http.Header, status int) {
		calls++
		h.Set("X-Rates", "1")
		if status != 200 {
			t.Errorf("status %d", status)
		}
	})
	w.WriteHeader(103)
	w.WriteHeader(100)
	if w.Status() != 0 || calls != 0 {
		t.Errorf("status %d, %d calls after informational headers", w.Status(), calls)
	}
	w.Write([]byte("x"))
	w.WriteHeader(500) // superfluous: told below, not taken
	if w.Status() != 200 || calls != 1 || len(rec.statuses) != 4 || rec.Result().Header.Get("X-Rates") != "1" {
		t.Errorf("status %d, %d calls, %v", w.Status(), calls, rec.statuses)
	}
}

func TestSwitchingProtocolsIsFinal(t *testing.T) {
	rec := newRecorder()
	w := NewWriter(rec, &Call{Dialect: openai, Kind: Other, wire: &openaiWire, Unmetered: true}, nil)
	w.WriteHeader(101)
	if _, _, err := http.NewResponseController(w).Hijack(); err == nil || err.Error() != "hijacked" {
		t.Errorf("hijacking: %v", err)
	}
	if out := w.Outcome(End{}); w.Status() != 101 || out != (quota.Outcome{}) {
		t.Errorf("%d %+v", w.Status(), out)
	}
}

func TestNothingGoesRoundWrite(t *testing.T) {
	rec := newRecorder()
	w := NewWriter(rec, generate(&openaiWire), nil)
	if _, err := io.Copy(w, struct{ io.Reader }{strings.NewReader(`{"usage":{"prompt_tokens":5,"completion_tokens":7}}`)}); err != nil {
		t.Fatal(err)
	}
	if out := w.Outcome(End{}); out.Tokens.Charge() != 12 {
		t.Errorf("%+v", out)
	}
}

func TestFlushSendsHeaderThroughUs(t *testing.T) {
	rec, calls := newRecorder(), 0
	w := NewWriter(rec, generate(&openaiWire), func(http.Header, int) { calls++ })
	if err := http.NewResponseController(w).Flush(); err != nil {
		t.Fatal(err)
	}
	if calls != 1 || rec.flushes != 1 || w.Status() != 200 {
		t.Errorf("%d calls, %d flushes, status %d", calls, rec.flushes, w.Status())
	}
}

func TestMeterPanicHarmsNothing(t *testing.T) {
	broken := openaiWire
	broken.fold = func(*meter, []byte) { panic("bug") }
	body := sse(`{"choices":[{"delta":{"content":"a"}}]}`, `{"choices":[],"usage":{"prompt_tokens":1}}`, `{"choices":[{"delta":{"content":"b"}}]}`)
	for _, injected := range []bool{false, true} {
		for n := range len(body) {
			c := generate(&broken)
			c.injected = injected
			out, _, got := answer(c, 200, nil, body, End{}, n)
			if got != body {
				t.Fatalf("injected %t, cut at %d: the client got %q", injected, n, got)
			}
			if !out.Estimated || out.Tokens.Input != 100 || out.Tokens.Output == 0 {
				t.Fatalf("%+v", out)
			}
		}
	}
}

func TestClientWriteErrorIsTold(t *testing.T) {
	for _, injected := range []bool{false, true} {
		rec := newRecorder()
		rec.writeErr = errors.New("gone")
		c := generate(&openaiWire)
		c.injected = injected
		w := NewWriter(rec, c, nil)
		if n, err := w.Write([]byte(sse(`{"choices":[{}],"usage":{"prompt_tokens":5,"completion_tokens":7}}`))); err == nil || n != 0 {
			t.Errorf("wrote %d, %v", n, err)
		}
		if out := w.Outcome(End{Panicked: true}); out.Tokens.Charge() != 12 || !out.Failed {
			t.Errorf("%+v", out)
		}
	}
}

func TestHiddenUsage(t *testing.T) {
	const (
		azureFirst = `{"choices":[],"model":"","prompt_filter_results":[]}`
		text       = `{"choices":[{"delta":{"content":"a"}}],"usage":null}`
		usage      = `{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}`
		withChoice = `{"choices":[{"delta":{}}],"usage":{"prompt_tokens":5,"completion_tokens":7}}`
		nullUsage  = `{"choices":[],"usage":null,"moderation":{}}`
		noChoices  = `{"usage":{"prompt_tokens":5,"completion_tokens":7}}`
	)
	in := sse(azureFirst, text, usage, nullUsage, noChoices, withChoice, "[DONE]")
	want := sse(azureFirst, text, nullUsage, noChoices, withChoice, "[DONE]")
	c := generate(&openaiWire)
	c.injected = true
	h := http.Header{"Content-Type": {"text/event-stream"}, "Content-Length": {"99"}}
	out, w, got := answer(c, 200, h, in, End{})
	if got != want || out.Tokens.Charge() != 12 || w.Header().Get("Content-Length") != "" {
		t.Errorf("%q %+v %v", got, out, w.Header())
	}
	// An answer that is no stream is none of the filter's business.
	h = http.Header{"Content-Type": {"application/json"}, "Content-Length": {"99"}}
	if _, w, got = answer(c, 200, h, usage, End{}); got != usage || w.Header().Get("Content-Length") != "99" {
		t.Errorf("%q", got)
	}
	if _, _, got = answer(c, 200, nil, " \n"+usage, End{}, 1); got != " \n"+usage {
		t.Errorf("%q", got)
	}
	// Only what may be the event is held back, and not without end.
	rec := newRecorder()
	w = NewWriter(rec, c, nil)
	step := func(p string, want int) {
		t.Helper()
		w.Write([]byte(p))
		if rec.Body.Len() != want {
			t.Errorf("after %.30q… %d bytes have passed, not %d", p, rec.Body.Len(), want)
		}
	}
	step(`data: {"choices":[`, 0)
	step(`{"delta`, 25)
	step(`":{}}]}`+"\n\n", 34)
	step(`data: {"choices":[],"usage":{"x":"`, 34)
	step(strings.Repeat("x", maxHeld), 34+34+maxHeld)
	step(`"}}`+"\n\n", 34+34+maxHeld+5)
}

func TestFinishWritesWhatIsHeld(t *testing.T) {
	c := generate(&openaiWire)
	c.injected = true
	const half = `data: {"choices":[],"usage":{"prompt_tok`
	if _, _, got := answer(c, 200, nil, half, End{}); got != half {
		t.Errorf("%q", got)
	}
}

func TestCodedAnswers(t *testing.T) {
	const body = `{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}`
	pack := func(mk func(io.Writer) io.WriteCloser) string {
		var b bytes.Buffer
		w := mk(&b)
		io.WriteString(w, body)
		w.Close()
		return b.String()
	}
	coded := map[string]string{
		"gzip":    pack(func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }),
		"deflate": pack(func(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) }),
		"zstd":    pack(func(w io.Writer) io.WriteCloser { z, _ := zstd.NewWriter(w); return z }),
	}
	before := runtime.NumGoroutine()
	for coding, b := range coded {
		for n := range len(b) {
			c := generate(&openaiWire)
			c.injected = true
			out, _, got := answer(c, 200, http.Header{"Content-Encoding": {coding}}, b, End{}, n, n+1)
			if got != b || out.Tokens.Charge() != 12 || out.Estimated {
				t.Fatalf("%s cut at %d: %+v", coding, n, out)
			}
			if out, _, _ = answer(c, 200, http.Header{"Content-Encoding": {coding}}, b[:n], End{Panicked: true}); !out.Failed {
				t.Fatalf("%s broken off at %d: %+v", coding, n, out)
			}
		}
	}
	for range 100 {
		if runtime.NumGoroutine() <= before {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines left", n-before)
	}
	const odd = "\x01\x02\x03 not what it says"
	for _, coding := range []string{"br", "gzip", "nonsense"} {
		out, _, got := answer(generate(&openaiWire), 200, http.Header{"Content-Encoding": {coding}}, odd, End{})
		if !out.Estimated || out.Tokens.Input != 100 || got != odd || out.Tokens.Output == 0 {
			t.Errorf("%s: %+v %q", coding, out, got)
		}
	}
}
