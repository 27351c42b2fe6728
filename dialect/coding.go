package dialect

import (
	"bufio"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"io"
	"net/http"
	"strings"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/zstd"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Caps on decoding. A decoder's memory is its window and some tables: 32 KiB
// and 40 KiB for gzip and deflate, up to 16 MiB for br, whose format allows no
// more, up to maxWindow for zstd.
const (
	// maxWindow is the greatest window of zstd: what RFC 9659 lets be used
	// over HTTP.
	maxWindow = 8 << 20
	// maxPlain is the most of a coded body that is decoded. No answer that is
	// read here comes near it, recorded ones end at 4 MiB.
	maxPlain = 256 << 20
	// maxRatio is how many times as long as its coded bytes an answer may get,
	// once it has passed freePlain. Text gets 3 to 10 times as long, streams
	// that repeat themselves in every event up to 60 times; bombs, 1,000 times
	// with gzip and 9,000 times with zstd.
	maxRatio  = 200
	freePlain = 8 << 20
)

// requestDecoder returns the request's body as plain bytes, and whether it was
// coded. A coding that is not known is a refusal: what is not read cannot be
// limited.
func requestDecoder(r *http.Request) (body io.Reader, coded bool, ref *quota.Refusal) {
	coding := contentCoding(r.Header)
	if coding == "" {
		return r.Body, false, nil
	}
	body, ok, err := newDecoder(coding, r.Body)
	if !ok {
		return nil, true, &quota.Refusal{Reason: quota.UnknownCoding, Detail: "The request body may be plain or coded with gzip, deflate, br or zstd."}
	}
	if err != nil {
		return nil, true, &quota.Refusal{Reason: quota.InvalidBody, Detail: "The request body does not decode as its Content-Encoding says."}
	}
	return body, true, nil
}

// contentCoding returns the coding of a body, in lower case; "" if it is plain.
func contentCoding(h http.Header) string {
	v := h["Content-Encoding"]
	if len(v) == 0 {
		return ""
	}
	coding := strings.ToLower(strings.TrimSpace(strings.Join(v, ",")))
	if coding == "identity" {
		return ""
	}
	return coding
}

// newDecoder returns src decoded; ok is false if the coding is not known.
func newDecoder(coding string, src io.Reader) (dst io.Reader, ok bool, err error) {
	switch coding {
	case "gzip", "x-gzip":
		dst, err = gzip.NewReader(src)
	case "deflate":
		dst, err = newInflater(src)
	case "br":
		dst = brotli.NewReader(src)
	case "zstd":
		var d *zstd.Decoder
		d, err = zstd.NewReader(src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(maxPlain), zstd.WithDecoderLowmem(true))
		dst = d
	default:
		return nil, false, nil
	}
	return dst, true, err
}

// newInflater reads what HTTP calls deflate: zlib by the standard, bare
// deflate by habit.
func newInflater(src io.Reader) (io.Reader, error) {
	br := bufio.NewReader(src)
	head, err := br.Peek(2)
	if err == nil && head[0]&0x0f == 8 && (int(head[0])<<8|int(head[1]))%31 == 0 {
		return zlib.NewReader(br)
	}
	return flate.NewReader(br), nil
}
