package dialect

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// flushWriter is what all encoders are.
type flushWriter interface {
	io.WriteCloser
	Flush() error
}

// encoders are the codings in which answers come.
var encoders = map[string]func(io.Writer) flushWriter{
	"gzip":    func(w io.Writer) flushWriter { return gzip.NewWriter(w) },
	"x-gzip":  func(w io.Writer) flushWriter { return gzip.NewWriter(w) },
	"deflate": func(w io.Writer) flushWriter { return zlib.NewWriter(w) },
	"Deflate": func(w io.Writer) flushWriter { f, _ := flate.NewWriter(w, 6); return f },
	"br":      func(w io.Writer) flushWriter { return brotli.NewWriter(w) },
	"zstd":    func(w io.Writer) flushWriter { z, _ := zstd.NewWriter(w); return z },
}

// codedPieces returns what comes of the coded pieces as each is flushed.
func codedPieces(coding string, pieces ...string) (coded []string) {
	var b bytes.Buffer
	w := encoders[coding](&b)
	for _, p := range pieces {
		io.WriteString(w, p)
		w.Flush()
		coded = append(coded, b.String())
		b.Reset()
	}
	w.Close()
	return append(coded, b.String())
}

// noGoroutinesLeft tells whether all that were started have ended.
func noGoroutinesLeft(t *testing.T, before int) {
	t.Helper()
	for range 1000 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("%d goroutines left", runtime.NumGoroutine()-before)
}

// TestCodedStreams: what is flushed passes at once and unchanged, and is read
// as it comes; the usage is known at the end, also where the end is missing.
func TestCodedStreams(t *testing.T) {
	before := runtime.NumGoroutine()
	events := []string{
		sse(`{"choices":[{"delta":{"content":"1234567"}}]}`), sse(`{"choices":[{"delta":{"content":"1234567"}}]}`),
		sse(`{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}`), "data: [DONE]\n\n",
	}
	for coding := range encoders {
		pieces := codedPieces(coding, events...)
		for last := range len(pieces) + 1 {
			rec := newRecorder()
			rec.Header().Set("Content-Encoding", coding)
			rec.Header().Set("Content-Type", "text/event-stream")
			w := NewWriter(rec, generate(&openaiWire), nil)
			passed := ""
			for _, p := range pieces[:last] {
				w.Write([]byte(p))
				w.Write(nil)
				w.Flush()
				if passed += p; rec.Body.String() != passed {
					t.Fatalf("%s: %d bytes have passed of %d", coding, rec.Body.Len(), len(passed))
				}
			}
			out := w.Outcome(End{Panicked: last < len(pieces)})
			want := quota.Outcome{Tokens: quota.Tokens{Input: 5, Output: 7}}
			switch last {
			case 0: // no header was written
				want = quota.Outcome{Failed: true}
			case 1, 2:
				want = quota.Outcome{Tokens: quota.Tokens{Input: 100, Output: 2 * int64(last)}, Estimated: true, Failed: true}
			case 3, 4: // broken off in the coding's end, if not in the answer
				want.Failed = true
			}
			if out != want {
				t.Errorf("%s, %d pieces of %d: %+v, not %+v", coding, last, len(pieces), out, want)
			}
		}
	}
	noGoroutinesLeft(t, before)
}

// bomb is one byte over and over, coded: in several members or frames where
// the coding has such, for they are made faster.
func bomb(t testing.TB, coding string, of byte, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := encoders[coding](&b)
	zeros := bytes.Repeat([]byte{of}, 1<<20)
	part := size
	if coding == "gzip" || coding == "zstd" {
		part = 8 << 20
	}
	for range part >> 20 {
		w.Write(zeros)
	}
	w.Close()
	return bytes.Repeat(b.Bytes(), size/part)
}

// TestBombs: however much an answer decodes to, the client gets its bytes, the
// call is charged no more than an estimate by what came, and memory stays.
func TestBombs(t *testing.T) {
	before := runtime.NumGoroutine()
	for _, b := range []struct {
		coding string
		of     byte
		size   int
	}{{"gzip", 0, 224 << 20}, {"gzip", ' ', 224 << 20}, {"deflate", '[', 64 << 20}, {"zstd", 0, 1 << 30}, {"zstd", 'x', 256 << 20}, {"br", ' ', 64 << 20}} {
		coded := bomb(t, b.coding, b.of, b.size)
		grown := heapGrowth(func(sample func()) {
			rec := &discard{http.Header{"Content-Encoding": {b.coding}}}
			w := NewWriter(rec, generate(&openaiWire), nil)
			start := time.Now()
			for p := range chunksOf(coded, 1500) {
				w.Write(p)
				sample()
			}
			w.Finish()
			out := w.Outcome(End{})
			if !out.Estimated || out.Tokens.Input != 100 || out.Tokens.Output > int64(len(coded)) {
				t.Errorf("%s of %q, %d bytes: %+v", b.coding, b.of, len(coded), out)
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("%s: took %v", b.coding, took)
			}
		})
		if grown > 48<<20 {
			t.Errorf("%s of %q: memory grew by %d MiB", b.coding, b.of, grown>>20)
		}
	}
	noGoroutinesLeft(t, before)
}

// heapGrowth returns how much more memory was in use, at most, while f ran and
// took samples.
func heapGrowth(f func(sample func())) (grown uint64) {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	base, n := m.HeapInuse, 0
	take := func() {
		runtime.ReadMemStats(&m)
		grown = max(grown, max(m.HeapInuse, base)-base)
	}
	f(func() {
		if n++; n%64 == 0 {
			take()
		}
	})
	take()
	return grown
}

// TestWindows: a decoder's memory is bounded by its window, not by what the
// answer asks for.
func TestWindows(t *testing.T) {
	var b bytes.Buffer
	z, _ := zstd.NewWriter(&b, zstd.WithWindowSize(64<<20), zstd.WithSingleSegment(false))
	io.WriteString(z, strings.Repeat(`{"a":"`+strings.Repeat("b", 5000)+`"}`, 20000))
	z.Close()
	out, _, _ := answer(generate(&openaiWire), 200, http.Header{"Content-Encoding": {"zstd"}}, b.String(), End{}, 100)
	if !out.Estimated || out.Tokens.Output == 0 {
		t.Errorf("%+v", out)
	}
}

// TestOrdinaryRatios: no cap stops a long stream that repeats itself.
func TestOrdinaryRatios(t *testing.T) {
	var events strings.Builder
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 60000 {
		word := strconv.FormatUint(rnd.Uint64N(50000), 36) // a token of a small vocabulary
		events.WriteString(sse(`{"id":"chatcmpl-1","object":"chat.completion.chunk","model":"gpt-4o","choices":[{"index":0,"delta":{"content":" ` + word + `"},"logprobs":null,"finish_reason":null}],"usage":null}`))
	}
	events.WriteString(sse(`{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":7}}`))
	for _, coding := range []string{"gzip", "br", "zstd"} {
		body := strings.Join(codedPieces(coding, events.String()), "")
		out, _, _ := answer(generate(&openaiWire), 200, http.Header{"Content-Encoding": {coding}}, body, End{}, 100, 5000)
		t.Logf("%s: %d times as long", coding, events.Len()/len(body))
		if out.Estimated || out.Tokens.Charge() != 12 {
			t.Errorf("%s, %d times as long: %+v", coding, events.Len()/len(body), out)
		}
	}
}

// TestRequestBombs: a body is decoded up to its cap, also where there is none.
func TestRequestBombs(t *testing.T) {
	for coding, size := range map[string]int{"gzip": 320 << 20, "zstd": 1 << 30, "br": 64 << 20} {
		body := bomb(t, coding, ' ', size)
		most := int64(8 << 20)
		grown := heapGrowth(func(func()) {
			r := httptest.NewRequest("POST", "/v1/chat/completions", bytes.NewReader(body))
			r.Header.Set("Content-Encoding", coding)
			_, ref := Read(r, Options{MaxBody: most})
			if ref == nil || ref.Reason != quota.BodyTooLarge && ref.Reason != quota.InvalidBody {
				t.Errorf("%s: %v", coding, ref)
			}
		})
		if grown > 96<<20 {
			t.Errorf("%s: memory grew by %d MiB", coding, grown>>20)
		}
	}
}

func FuzzCodedAnswer(f *testing.F) {
	for coding := range encoders {
		f.Add(coding, []byte(strings.Join(codedPieces(coding, sse(`{"usage":{"prompt_tokens":5}}`), "data: x\n\n"), "")), uint16(3))
	}
	f.Add("zstd", []byte("\x28\xb5\x2f\xfd\x04\x60\xff\xff"), uint16(1))
	f.Fuzz(func(t *testing.T, coding string, body []byte, size uint16) {
		rec := httptest.NewRecorder()
		rec.Header().Set("Content-Encoding", coding)
		w := NewWriter(rec, generate(&openaiWire), nil)
		w.WriteHeader(200)
		for p := range chunksOf(body, int(size)%512+1) {
			w.Write(p)
		}
		w.Finish()
		w.Outcome(End{})
		if !bytes.Equal(rec.Body.Bytes(), body) || w.plain != nil {
			t.Fatalf("the client got %d bytes of %d", rec.Body.Len(), len(body))
		}
	})
}
