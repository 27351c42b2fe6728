package admin

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// The most bytes of a request body.
const (
	maxBody  = 1 << 20
	maxArray = 64 << 20 // of an array of keys
)

// body reads the request's body, up to max bytes or, if it is an array,
// maxOfArray. It is nil if there is none.
func (c *call) body(maxOfObject, maxOfArray int64) ([]byte, error) {
	in := bufio.NewReader(c.r.Body)
	if _, err := in.Peek(1); errors.Is(err, io.EOF) {
		return nil, nil
	}
	kind, _, err := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return nil, fail(http.StatusUnsupportedMediaType, "the body is not declared as Content-Type: application/json")
	}
	if coding := c.r.Header.Get("Content-Encoding"); coding != "" && coding != "identity" {
		return nil, fail(http.StatusUnsupportedMediaType, "the body is coded: Content-Encoding %s is not read here", shown(coding))
	}
	limit := maxOfObject
	var data bytes.Buffer
	for {
		// One byte more than allowed tells that there is more.
		_, err := io.CopyN(&data, in, limit+1-int64(data.Len()))
		switch {
		case errors.Is(err, io.EOF):
			if !utf8.Valid(data.Bytes()) {
				return nil, bad("the body is not UTF-8")
			}
			return data.Bytes(), nil
		case err != nil:
			return nil, bad("reading the body: %w", err)
		case limit == maxOfArray || !isArray(data.Bytes()):
			return nil, fail(http.StatusRequestEntityTooLarge, "the body is longer than %d bytes", limit)
		}
		limit = maxOfArray
	}
}

// patch reads the body as one JSON object.
func (c *call) patch() ([]field, error) {
	data, err := c.body(maxBody, maxBody)
	if err != nil {
		return nil, err
	}
	return object("", data)
}

// options is patch for a body that may be left out.
func (c *call) options() ([]field, error) {
	data, err := c.body(maxBody, maxBody)
	if err != nil || data == nil {
		return nil, err
	}
	return object("", data)
}

func isArray(data []byte) bool {
	return bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("["))
}

// field is one field of a JSON object.
type field struct {
	name  string
	path  string // from the top of the body
	value json.RawMessage
}

// object reads a JSON object in which no field comes twice, and nothing after
// it. at is where in the body it stands: "" is the top.
func object(at string, data []byte) ([]field, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		if at == "" {
			return nil, invalid("the body", "is not a JSON object")
		}
		return nil, invalid(at, "is not an object")
	}
	var fields []field
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, malformed(err)
		}
		f := field{name: name, path: name}
		if at != "" {
			f.path = at + "." + name
		}
		if err := dec.Decode(&f.value); err != nil {
			return nil, malformed(err)
		}
		if seen[name] {
			return nil, invalid(shown(f.path), "comes twice")
		}
		seen[name] = true
		fields = append(fields, f)
	}
	if _, err := dec.Token(); err != nil {
		return nil, malformed(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, invalid("the body", "goes on after its JSON")
	}
	return fields, nil
}

// array reads a JSON array of objects, and nothing after it.
func array(data []byte, most int) ([][]field, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	if _, err := dec.Token(); err != nil {
		return nil, malformed(err)
	}
	var all [][]field
	for dec.More() {
		if len(all) == most {
			return nil, invalid("the body", "has more than %d entries", most)
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, malformed(err)
		}
		fields, err := object(fmt.Sprintf("[%d]", len(all)), raw)
		if err != nil {
			return nil, err
		}
		all = append(all, fields)
	}
	if _, err := dec.Token(); err != nil {
		return nil, malformed(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, invalid("the body", "goes on after its JSON")
	}
	return all, nil
}

// invalid returns the error for a field, which it names. What the field held
// is not shown unless problem shows it: it may be a secret in the wrong place.
func invalid(path, problem string, args ...any) error {
	return fmt.Errorf("%s %s: %w", path, fmt.Sprintf(problem, args...), quota.ErrInvalid)
}

// malformed returns the error for what is no JSON. The decoder's own text
// shows no more than one character.
func malformed(err error) error {
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return invalid("the body", "is malformed JSON near byte %d: %s", syntax.Offset, syntax)
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return invalid("the body", "is malformed JSON: it ends too early")
	}
	return invalid("the body", "is malformed JSON")
}

// shown is outside text as it may stand in a message: quoted if it must, and
// not long.
func shown(s string) string {
	if len(s) > 64 {
		s = s[:64] + "..."
	}
	if strings.ContainsAny(s, " \"'") || !quota.Printable(s) {
		return strconv.QuoteToGraphic(s)
	}
	return s
}

func isNull(v json.RawMessage) bool { return string(v) == "null" }

// str reads a string; null is the empty one.
func str(f field) (s string, err error) {
	if json.Unmarshal(f.value, &s) != nil {
		return "", invalid(f.path, "is not a string")
	}
	return s, nil
}

// boolean reads true or false; null is false.
func boolean(f field) (b bool, err error) {
	if json.Unmarshal(f.value, &b) != nil {
		return false, invalid(f.path, "is not true or false")
	}
	return b, nil
}

// stringList reads an array of strings; null is none.
func stringList(f field) (l []string, err error) {
	var items []*string
	if json.Unmarshal(f.value, &items) != nil {
		return nil, invalid(f.path, "is not an array of strings")
	}
	for _, s := range items {
		if s == nil {
			return nil, invalid(f.path, "is not an array of strings")
		}
		l = append(l, *s)
	}
	return l, nil
}

// integer reads a whole number, also one with a point or an exponent.
func integer(f field) (int64, error) {
	var n json.Number
	if isNull(f.value) || f.value[0] == '"' || json.Unmarshal(f.value, &n) != nil {
		return 0, invalid(f.path, "is not a whole number")
	}
	if i, err := n.Int64(); err == nil {
		return i, nil
	}
	x, err := n.Float64()
	if err != nil || x != float64(int64(x)) || x < -quota.MaxAmount || x > quota.MaxAmount {
		return 0, invalid(f.path, "is not a whole number between -2^53 and 2^53")
	}
	return int64(x), nil
}

// prefixed names the field that an error is about.
func prefixed(path string, err error) error { return fmt.Errorf("%s: %w", path, err) }
