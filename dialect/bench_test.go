package dialect

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

var benchRequest = `{"model":"gpt-4o-mini","messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"` +
	strings.Repeat("The quick brown fox jumps over the lazy dog. ", 40) + `"}],"temperature":0.7,"max_tokens":256,"stream":false}`

var benchAnswer = `{"id":"chatcmpl-1","object":"chat.completion","created":1728648000,"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"message":{"role":"assistant","content":"` +
	strings.Repeat("Lorem ipsum dolor sit amet, consectetur. ", 25) + `","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":412,"completion_tokens":230,"total_tokens":642,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},"service_tier":"default","system_fingerprint":"fp_1"}`

type discard struct{ h http.Header }

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) WriteHeader(int)             {}
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }

type rewinder struct{ strings.Reader }

func (*rewinder) Close() error { return nil }

func benchRead(b *testing.B, body string, opt Options) *Call {
	r := httptest.NewRequest("POST", "/v1/chat/completions", nil)
	r.Header.Set("Content-Type", "application/json")
	src := &rewinder{}
	var c *Call
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		src.Reset(body)
		r.Body, r.ContentLength = src, int64(len(body))
		c, _ = Read(r, opt)
		c.Forward(r)
	}
	return c
}

func BenchmarkRead(b *testing.B) { benchRead(b, benchRequest, Options{MaxBody: 1 << 20}) }

func BenchmarkReadInject(b *testing.B) {
	benchRead(b, strings.Replace(benchRequest, `"stream":false`, `"stream":true`, 1), Options{MaxBody: 1 << 20, InjectUsage: true})
}

func BenchmarkMeterJSON(b *testing.B) {
	c := &Call{Dialect: openai, Kind: Generate, wire: &openaiWire}
	d := &discard{http.Header{"Content-Type": {"application/json"}}}
	answer := []byte(benchAnswer)
	b.ReportAllocs()
	b.SetBytes(int64(len(answer)))
	for b.Loop() {
		w := NewWriter(d, c, nil)
		w.WriteHeader(200)
		w.Write(answer)
		w.Finish()
		if w.Outcome(End{}).Tokens.Charge() != 642 {
			b.Fatal("wrong charge")
		}
	}
}

func benchStream() [][]byte {
	var events [][]byte
	for range 50 {
		events = append(events, []byte(`data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1728648000,"model":"gpt-4o-mini-2024-07-18","service_tier":"default","system_fingerprint":"fp_1","choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}],"usage":null,"obfuscation":"CVQ55D"}`+"\n\n"))
	}
	return append(events,
		[]byte(`data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1728648000,"model":"gpt-4o-mini-2024-07-18","choices":[],"usage":{"prompt_tokens":412,"completion_tokens":50,"total_tokens":462}}`+"\n\n"),
		[]byte("data: [DONE]\n\n"))
}

func benchMeterStream(b *testing.B, injected bool) {
	c := &Call{Dialect: openai, Kind: Generate, wire: &openaiWire, injected: injected}
	events := benchStream()
	b.ReportAllocs()
	for b.Loop() {
		w := NewWriter(&discard{http.Header{"Content-Type": {"text/event-stream"}}}, c, nil)
		w.WriteHeader(200)
		for _, e := range events {
			w.Write(e)
		}
		w.Finish()
		if w.Outcome(End{}).Tokens.Charge() != 462 {
			b.Fatal("wrong charge")
		}
	}
}

func BenchmarkMeterStream(b *testing.B)       { benchMeterStream(b, false) }
func BenchmarkMeterStreamHidden(b *testing.B) { benchMeterStream(b, true) }

func BenchmarkCredential(b *testing.B) {
	r := httptest.NewRequest("POST", "/v1/chat/completions", nil)
	b.ReportAllocs()
	for b.Loop() {
		r.Header.Set("Authorization", "Bearer lq_ab12cd34_0123456789")
		ReadCredential(r, "")
		RemoveCredential(r, "")
	}
}

func BenchmarkSetRates(b *testing.B) {
	now := time.Unix(1700000000, 0)
	rates := &quota.Rates{
		HasRequests: true, Requests: quota.Rate{Limit: 60, Remaining: 59, Reset: now.Add(time.Second)},
		HasTokens: true, Tokens: quota.Rate{Limit: 150000, Remaining: 149984, Reset: now.Add(6 * time.Minute)},
		HasQuota: true, QuotaRemaining: 1000,
	}
	h := http.Header{}
	b.ReportAllocs()
	for b.Loop() {
		SetRates(h, openai, rates, now)
	}
}

var _ io.ReadCloser = (*rewinder)(nil)

func BenchmarkMeterEvents(b *testing.B) {
	c := &Call{Dialect: bedrock, Kind: Generate, wire: &bedrockWire}
	for name, body := range map[string]string{
		"converse": strings.Repeat(event("contentBlockDelta", `{"contentBlockIndex":0,"delta":{"text":" word"},"p":"abcdefghijklmnop"}`), 50) + converseStream(),
		"chunks":   strings.Repeat(chunk(`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":" word"}}`), 50) + chunkStream(),
	} {
		b.Run(name, func(b *testing.B) {
			answer := []byte(body)
			b.ReportAllocs()
			b.SetBytes(int64(len(answer)))
			for b.Loop() {
				w := NewWriter(&discard{http.Header{}}, c, nil)
				for p := range chunksOf(answer, 200) {
					w.Write(p)
				}
				w.Finish()
				if w.Outcome(End{}).Tokens.Output != 20 {
					b.Fatal("wrong charge")
				}
			}
		})
	}
}
