package dialect

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// frame builds one frame of an event stream with the given headers, name after
// value.
func frame(payload string, headers ...string) string {
	var h []byte
	for i := 0; i < len(headers); i += 2 {
		h = append(append(h, byte(len(headers[i]))), headers[i]...)
		h = binary.BigEndian.AppendUint16(append(h, 7), uint16(len(headers[i+1])))
		h = append(h, headers[i+1]...)
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(frameLeast+len(h)+len(payload)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(h)))
	b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	b = append(append(b, h...), payload...)
	return string(binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b)))
}

func crcOf(s string) string {
	return string(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE([]byte(s))))
}

func event(name, payload string) string {
	return frame(payload, ":event-type", name, ":content-type", "application/json", ":message-type", "event")
}

// chunk wraps a model's document as InvokeModelWithResponseStream does.
func chunk(doc string) string {
	return event("chunk", `{"bytes":"`+base64.StdEncoding.EncodeToString([]byte(doc))+`","p":"abcdefgh"}`)
}

func converseStream() string {
	return event("messageStart", `{"p":"abc","role":"assistant"}`) +
		event("contentBlockDelta", `{"contentBlockIndex":0,"delta":{"text":"1234567"},"p":"ab"}`) +
		event("contentBlockDelta", `{"contentBlockIndex":1,"delta":{"toolUse":{"input":"{\"a\":1}"}},"p":"ab"}`) +
		event("messageStop", `{"p":"abcdefgh","stopReason":"end_turn"}`) +
		event("metadata", `{"metrics":{"latencyMs":1},"p":"a","usage":{"inputTokens":10,"outputTokens":20,"totalTokens":38,"cacheReadInputTokens":5,"cacheReadInputTokenCount":5,"cacheWriteInputTokens":3}}`)
}

var converseCharge = quota.Outcome{Tokens: quota.Tokens{Input: 18, Cached: 5, CacheWrite: 3, Output: 20}}

func chunkStream() string {
	return chunk(`{"type":"message_start","message":{"usage":{"input_tokens":10,"cache_read_input_tokens":5,"output_tokens":2}}}`) +
		chunk(`{"type":"content_block_delta","delta":{"type":"text_delta","text":"`+strings.Repeat("ä", 700)+`"}}`) +
		chunk(`{"type":"message_delta","usage":{"output_tokens":130}}`) +
		chunk(`{"type":"message_stop","amazon-bedrock-invocationMetrics":{"inputTokenCount":10,"outputTokenCount":20,"cacheReadInputTokenCount":5,"cacheWriteInputTokenCount":3}}`)
}

func TestEventStreamAtEverySplit(t *testing.T) {
	for name, body := range map[string]string{"converse": converseStream(), "invoke": chunkStream()} {
		c := generate(&bedrockWire)
		want, w, _ := answer(c, 200, nil, body, End{})
		if want != converseCharge || !w.meter.complete || w.meter.text == 0 {
			t.Fatalf("%s: %+v complete %t", name, want, w.meter.complete)
		}
		for i := range len(body) {
			for _, j := range []int{i + 1, i + 2, i + 13, len(body)} {
				got, v, same := answer(c, 200, nil, body, End{}, i, j)
				if got != want || same != body || v.meter.text != w.meter.text || v.meter.tools != w.meter.tools || v.meter.chunks != w.meter.chunks {
					t.Fatalf("%s cut at %d, %d: %+v, not %+v", name, i, j, got, want)
				}
			}
			// Broken off: what was not reported is estimated, nothing is taken for final.
			got, _, _ := answer(c, 200, nil, body[:i], End{Panicked: true})
			told := !got.Estimated && got.Tokens.Output == 130 // by the model, if not by Bedrock
			if !got.Failed || !got.Estimated && !told || got.Tokens.Input == 0 {
				t.Fatalf("%s broken off at %d: %+v", name, i, got)
			}
		}
	}
}

func TestEventStreamEnds(t *testing.T) {
	usage := event("metadata", `{"usage":{"inputTokens":10,"outputTokens":20,"totalTokens":30}}`)
	text := event("contentBlockDelta", `{"delta":{"text":"1234567"}}`)
	exception := frame(`{"message":"no"}`, ":exception-type", "throttlingException", ":message-type", "exception")
	spoilt := func(s string, at int) string {
		b := []byte(s)
		b[(at+len(b))%len(b)] ^= 1
		return string(b)
	}
	tok := func(in, out int64) quota.Tokens { return quota.Tokens{Input: in, Output: out} }
	estimated := func(in, out int64) quota.Outcome {
		return quota.Outcome{Tokens: tok(in, out), Estimated: true, Failed: true}
	}
	unread := func(s string) int64 { return ceilDiv(int64(len(s)), bytesPerEvent) }
	for _, tc := range []struct {
		name, body string
		want       quota.Outcome
	}{
		{"nothing but an exception", exception, quota.Outcome{Failed: true}},
		{"an exception after text", text + exception, estimated(100, 2)},
		{"an exception after usage", text + usage + exception, quota.Outcome{Tokens: tok(10, 20), Failed: true}},
		{"usage within an exception", text + frame(`{"usage":{"inputTokens":1}}`, ":event-type", "metadata", ":message-type", "exception"), estimated(100, 2)},
		{"no headers, no payload", frame("") + usage, quota.Outcome{Tokens: tok(10, 20)}},
		{"payload that is no JSON", event("x", "}{") + usage, quota.Outcome{Tokens: tok(10, 20)}},
		{"bytes that are no base64", event("chunk", `{"bytes":"A!=="}`) + usage, quota.Outcome{Tokens: tok(10, 20)}},
		{"base64 with escapes", event("chunk", `{"bytes":"`+strings.ReplaceAll(base64.StdEncoding.EncodeToString([]byte(`{"usage":{"inputTokens":10,"outputTokens":20},"a":"???>>>"}`)), "/", `\/`)+`"}`), quota.Outcome{Tokens: tok(10, 20)}},
		{"usage in content", event("contentBlockDelta", `{"delta":{"text":"\"usage\":{\"inputTokens\":1000}","usage":{"inputTokens":9}}}`) + usage, quota.Outcome{Tokens: tok(10, 20)}},
		{"wrong prelude CRC", text + spoilt(usage, 9), estimated(100, 2+unread(usage[preludeLen:]))},
		{"wrong length", text + spoilt(usage, 2), estimated(100, 2+unread(usage[preludeLen:]))},
		{"wrong message CRC", text + spoilt(usage, -1), estimated(100, 2)},
		{"a changed payload", text + spoilt(usage, -10), estimated(100, 2)},
		{"a changed frame after usage", text + usage + spoilt(text, -1), estimated(10, 20)},
	} {
		got, _, same := answer(generate(&bedrockWire), 200, nil, tc.body, End{}, 5, 77)
		if got != tc.want || same != tc.body {
			t.Errorf("%s: %+v, not %+v", tc.name, got, tc.want)
		}
	}
}

// TestLyingLengths: what a prelude claims, right CRC and all, costs nothing.
func TestLyingLengths(t *testing.T) {
	for _, l := range [][2]uint32{{0, 0}, {15, 0}, {16, 1}, {1 << 31, 1 << 30}, {0xffffffff, 0}, {0xffffffff, 0xffffffef}, {0xffffffff, 0xffffffff}, {100, 0xffffffff}} {
		b := binary.BigEndian.AppendUint32(nil, l[0])
		b = binary.BigEndian.AppendUint32(b, l[1])
		b = binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
		body := converseStream() + string(b) + strings.Repeat(`{"usage":{"inputTokens":1000}}`, 100)
		got, _, same := answer(generate(&bedrockWire), 200, nil, body, End{}, 3, 1000)
		if same != body || !got.Failed || got.Tokens.Input != 18 || got.Tokens.Output < 20 || got.Tokens.Output > 50 {
			t.Errorf("%x: %+v", l, got)
		}
	}
}

func FuzzEventStream(f *testing.F) {
	f.Add([]byte(converseStream()), uint16(7), uint16(0))
	f.Add([]byte(chunkStream()), uint16(3), uint16(300))
	f.Add([]byte(event("chunk", `{"bytes":"e30=","p":[{}]}`)), uint16(1), uint16(1))
	spoilt := chunk(`{"delta":{"text":"` + strings.Repeat("word ", 20) + `"}}`)
	f.Add([]byte(spoilt[:150]+"@"+spoilt[151:200]), uint16(3), uint16(0)) // no base64, and no end
	f.Fuzz(func(t *testing.T, body []byte, size, at uint16) {
		// A changed byte is caught by a CRC; what the fuzzer makes itself is
		// framed too, so that it is read further than that.
		for _, s := range []string{string(body), event("chunk", string(body)) + chunkStream(), chunk(string(body)) + converseStream()} {
			c := generate(&bedrockWire)
			want, w, same := answer(c, 200, nil, s, End{})
			n := int(size)%64 + 1
			var cuts []int
			for i := int(at) % 64; i < len(s); i += n {
				cuts = append(cuts, i)
			}
			got, v, _ := answer(c, 200, nil, s, End{}, cuts...)
			if same != s || got != want || v.meter.text != w.meter.text || v.meter.gaveUp != w.meter.gaveUp || v.meter.unread != w.meter.unread {
				t.Fatalf("in pieces of %d:\n%+v unread %d\nnot\n%+v unread %d", n, got, v.meter.unread, want, w.meter.unread)
			}
		}
	})
}

func TestBase64InPieces(t *testing.T) {
	var plain bytes.Buffer
	for i := range 2000 {
		plain.WriteByte(byte(i * 7))
	}
	for n := range 5 {
		want := plain.Bytes()[:plain.Len()-n]
		coded := []byte(strings.ReplaceAll(base64.StdEncoding.EncodeToString(want), "/", `\/`))
		for _, size := range []int{1, 2, 3, 4, 5, 63, 1024, 1 << 20} {
			var d base64Reader
			got := &collector{}
			for p := range chunksOf(coded, size) {
				d.feed(p, got)
			}
			if !d.whole() || !bytes.Equal(got.Bytes(), want) {
				t.Fatalf("%d bytes in pieces of %d: %d bytes, bad %t", len(want), size, got.Len(), d.bad)
			}
		}
	}
}

type collector struct{ bytes.Buffer }

func (c *collector) data(p []byte) { c.Write(p) }
func (c *collector) end([]byte)    {}

func chunksOf(p []byte, n int) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for len(p) > 0 {
			k := min(n, len(p))
			if !yield(p[:k]) {
				return
			}
			p = p[k:]
		}
	}
}
