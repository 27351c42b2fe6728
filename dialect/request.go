package dialect

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Options are how requests are read.
type Options struct {
	// MaxBody is the greatest body, in bytes, plain; 0: no maximum.
	MaxBody int64
	// InjectUsage asks for usage in OpenAI-style streams where the caller did not.
	InjectUsage bool
	// Strict fills in what strict admission asks for.
	Strict bool
	// DefaultReserve is how many tokens a call without a maximum of output
	// asks to hold for it; under Strict it is DefaultCap, for each choice.
	DefaultReserve, DefaultCap int64
}

// Read reads the request's body, recognises the call and estimates its sizes.
// The call is never nil; with a refusal it is what was known by then. What was
// read goes upstream only when [Call.Forward] puts it back.
func Read(r *http.Request, opt Options) (*Call, *quota.Refusal) {
	if opt.MaxBody <= 0 {
		opt.MaxBody = math.MaxInt64
	}
	e, known := find(r)
	c := &Call{
		Dialect: e.dialect, Kind: e.kind, Model: e.model, Unmetered: e.unmetered,
		Stream: e.stream == streamAlways, MaxOutput: -1, wire: e.wire,
		realtime: e.realtime, tunnel: r.Method == http.MethodConnect, Recall: e.recall,
	}
	ref := c.readCall(r, &e, known, opt)
	if opt.Strict && ref == nil {
		c.bind(r, known)
	}
	return c, ref
}

// readCall reads the body, if it is one to be read, into c.
func (c *Call) readCall(r *http.Request, e *endpoint, known bool, opt Options) *quota.Refusal {
	if c.Kind != Free {
		c.Input = 1
	}
	if r.Body == nil || r.Body == http.NoBody || c.tunnel {
		return nil
	}
	if r.ContentLength > opt.MaxBody {
		return tooLarge(opt.MaxBody)
	}
	boundary, ours := bodyType(r, c, known)
	if !ours {
		r.Body = http.MaxBytesReader(nil, r.Body, opt.MaxBody)
		return nil
	}
	if ref := c.readBody(r, opt.MaxBody); ref != nil {
		return ref
	}
	if boundary != "" {
		return c.readForm(boundary)
	}
	return c.readJSON(e, known, opt)
}

// bodyType tells whether the body is one to be read. A multipart form is, of
// media calls; boundary is its. What an unknown call carries besides text is
// not: it may be a file of any size. What a known one carries always is, for
// servers do not heed what it is declared to be.
func bodyType(r *http.Request, c *Call, known bool) (boundary string, ours bool) {
	declared := r.Header.Get("Content-Type")
	if declared == "application/json" || declared == "" {
		return "", true
	}
	media, params, err := mime.ParseMediaType(declared)
	form := err == nil && media == "multipart/form-data"
	if known && c.Kind != Other && c.Kind != Free {
		if form {
			boundary = params["boundary"]
		}
		return boundary, true
	}
	main, _, _ := strings.Cut(media, "/")
	switch {
	case strings.Contains(media, "json"), main == "text", media == "application/x-www-form-urlencoded":
		return "", true
	}
	return "", false
}

// readBody reads the body, decoded if it is coded, into c.body.
func (c *Call) readBody(r *http.Request, most int64) *quota.Refusal {
	src, coded, ref := requestDecoder(r)
	if ref != nil {
		return ref
	}
	hint := r.ContentLength
	if coded {
		hint, most = -1, min(most, maxPlain)
	}
	body, err := readAll(src, hint, most)
	var limit *http.MaxBytesError
	switch {
	case err == errTooLarge:
		return tooLarge(most)
	case errors.As(err, &limit):
		return tooLarge(limit.Limit)
	case err != nil && coded:
		return &quota.Refusal{Reason: quota.InvalidBody, Detail: "The request body does not decode as its Content-Encoding says."}
	case err != nil:
		return &quota.Refusal{Reason: quota.InvalidBody, Detail: "The request body could not be read to its end."}
	}
	c.body, c.read, c.decoded = body, true, coded
	return nil
}

var errTooLarge = errors.New("body too large")

// readAll reads src to its end; hint is its length, -1 if unknown. Memory
// grows with what comes, not with what was announced.
func readAll(src io.Reader, hint, most int64) ([]byte, error) {
	const first, last = 512, 64 << 10
	if hint < 0 {
		hint = first
	}
	buf := make([]byte, 0, min(hint+1, last))
	for {
		n, err := src.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if int64(len(buf)) > most {
			return nil, errTooLarge
		}
		if err == io.EOF {
			return buf, nil
		}
		if err != nil {
			return nil, err
		}
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
	}
}

func tooLarge(most int64) *quota.Refusal {
	return &quota.Refusal{Reason: quota.BodyTooLarge, Detail: fmt.Sprintf("The request body is larger than %d bytes.", most)}
}

// readJSON takes up what the body says if it is JSON. If it is not, it goes on
// as it is: its length is the estimate, and it names no model.
func (c *Call) readJSON(e *endpoint, known bool, opt Options) *quota.Refusal {
	rd := readJSON(c.body, c.wire.request)
	defer rd.free()
	if name := rd.twice(); name != "" {
		return &quota.Refusal{Reason: quota.InvalidBody, Detail: fmt.Sprintf("The field %q occurs more than once.", name)}
	}
	if e.reshape != nil {
		e.reshape(e, rd)
		c.Dialect, c.Kind, c.wire = e.dialect, e.kind, e.wire
	}
	if !known && rd.generates() {
		c.Kind = Generate
	}
	if c.Kind == Free {
		if c.Model == "" && rd.valid() {
			c.Model = rd.string(reqModel)
		}
		return nil
	}
	if !rd.valid() {
		c.Input = max(ceilDiv(int64(len(c.body)), bytesPerToken), 1)
		return nil
	}
	if c.Model == "" {
		c.Model = rd.string(reqModel)
	}
	c.Stream = e.stream.asks(rd)
	c.Input = estimateInput(rd, c.wire)
	c.MaxOutput = estimateMax(rd)
	if e.inject && opt.InjectUsage && c.Stream {
		c.body, c.injected = injectUsage(c.body, rd)
	}
	return nil
}

// Forward puts the body that goes upstream back on r: byte for byte what came,
// but for the option that asks for usage, and plain if it came coded. The
// answer of a call that is metered is asked for uncoded.
func (c *Call) Forward(r *http.Request) {
	if c.Kind != Free || c.Recall != "" {
		r.Header.Del("Accept-Encoding")
	}
	if c.realtime { // likewise its messages
		r.Header.Del("Sec-Websocket-Extensions")
	}
	if !c.read {
		return
	}
	if c.decoded {
		r.Header.Del("Content-Encoding")
	}
	r.Body, r.GetBody, r.ContentLength, r.TransferEncoding = http.NoBody, c.newBody, int64(len(c.body)), nil
	if len(c.body) > 0 {
		r.Body, _ = c.newBody()
	}
	r.Header.Set("Content-Length", strconv.Itoa(len(c.body)))
}

func (c *Call) newBody() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(c.body)), nil
}
