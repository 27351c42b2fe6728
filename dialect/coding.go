package dialect

import (
	"bufio"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"io"
	"net/http"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// maxWindow bounds the memory of one zstd decoder.
const maxWindow = 8 << 20

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
		return nil, true, &quota.Refusal{Reason: quota.UnknownCoding, Detail: "The request body may be plain or coded with gzip, deflate or zstd."}
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
	case "zstd":
		var d *zstd.Decoder
		d, err = zstd.NewReader(src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
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
