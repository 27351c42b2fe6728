package dialect

import (
	"bytes"
	"encoding/json"
	"strings"
	"sync"
)

// Where a request's spec puts what it finds.
const (
	reqModel int8 = iota
	reqStream
	reqStreamOptions
	reqIncludeUsage
	reqN
	reqBestOf
	reqMaxTokens
	reqMaxCompletion
	reqMaxOutput
	reqMaxSample
	reqTools
	reqFunctions
	reqFormat
	reqTextFormat
	reqMessages
	reqPrompt
	reqInput
	reqContents
	reqOther   // members that make a request one for generation if they are strings
	reqConfig  // an object that holds the maximum
	reqPredict // a maximum of which none, 0 and less are no maximum
	reqSlots
)

// What a request's text counts for.
const (
	reqText int8 = iota
	reqBlob      // members that hold base64
	reqFile      // members that are a file each, or tell where one lies
)

// Numbers of a request, of which the greatest counts where several are given.
const (
	reqNestedMax int8 = iota
	reqNestedChoices
)

// Counts of a request's elements.
const (
	reqTurns int8 = iota
	reqPrompts
)

// decisive are the members of which a second one is refused: what the gate and
// the provider read must be the same.
var decisive = []struct {
	name string
	slot int8
}{
	{"model", reqModel}, {"stream", reqStream}, {"stream_options", reqStreamOptions}, {"n", reqN},
	{"best_of", reqBestOf}, {"max_tokens", reqMaxTokens}, {"max_completion_tokens", reqMaxCompletion},
	{"max_output_tokens", reqMaxOutput}, {"max_tokens_to_sample", reqMaxSample},
}

// nested are members that hold something decisive: a second one is refused in
// the families whose specs have them.
var nested = []struct {
	name string
	slot int8
}{{"generationConfig", reqConfig}}

// requestSpec reads the requests of the OpenAI-shaped families and Anthropic's.
var requestSpec = newSpec(requestRules...)

var requestRules = [][]rule{{
	at("model", slot(reqModel)),
	at("stream", slot(reqStream)),
	at("stream_options", slot(reqStreamOptions)),
	at("stream_options.include_usage", slot(reqIncludeUsage)),
	at("n", slot(reqN)),
	at("best_of", slot(reqBestOf)),
	at("max_tokens", slot(reqMaxTokens)),
	at("max_completion_tokens", slot(reqMaxCompletion)),
	at("max_output_tokens", slot(reqMaxOutput)),
	at("max_tokens_to_sample", slot(reqMaxSample)),
	at("tools", slot(reqTools)),
	at("functions", slot(reqFunctions)),
	at("response_format", slot(reqFormat)),
	at("text.format", slot(reqTextFormat)),
	at("instructions", text(reqText)),
	at("suffix", text(reqText)),
	at("query", text(reqText)),
},
	deepText("messages", slot(reqMessages), elems(reqTurns)),
	deepText("input", slot(reqInput), elems(reqTurns)),
	deepText("prompt", slot(reqPrompt), elems(reqPrompts)),
	deepText("contents", slot(reqContents), elems(reqTurns)),
	deepText("inputs", slot(reqOther)),
	deepText("message", slot(reqOther)),
	deepText("system"),
	deepText("documents"),
}

// deepText are the rules for a member in which all strings are read by the
// model but the names of parts and the like.
func deepText(name string, top ...action) []rule {
	rules := []rule{at(name+".**", text(reqText))}
	for _, s := range []string{"role", "type", "id", "call_id", "tool_call_id", "tool_use_id", "cache_control", "detail", "format", "media_type", "status", "signature"} {
		rules = append(rules, at(name+".**."+s))
	}
	for _, s := range []string{"data", "file_data", "b64_json", "bytes"} {
		rules = append(rules, at(name+".**."+s, text(reqBlob)))
	}
	return append(rules, at(name, top...))
}

// reading is the reading of one request's JSON.
type reading struct {
	sc       scanner
	body     []byte
	blobs    int64
	variants [reqSlots]uint8 // decisive members in other spelling
}

var readings = sync.Pool{New: func() any {
	rd := &reading{}
	rd.sc.visit, rd.sc.other = rd.visit, rd.other
	return rd
}}

// readJSON reads body by the given spec. The reading is to be freed.
func readJSON(body []byte, sp *spec) *reading {
	rd := readings.Get().(*reading)
	rd.body, rd.blobs, rd.variants = body, 0, [reqSlots]uint8{}
	rd.sc.sp = sp
	rd.sc.reset()
	n := rd.sc.feed(body)
	rd.sc.end()
	if rd.sc.done() && len(bytes.TrimSpace(body[n:])) > 0 {
		rd.sc.state = scanBad
	}
	return rd
}

func (rd *reading) free() {
	rd.body = nil
	readings.Put(rd)
}

// valid tells whether the body is one whole JSON object.
func (rd *reading) valid() bool { return rd.sc.done() && bytes.TrimLeft(rd.body, " \t\r\n")[0] == '{' }

// visit counts a string; base64 parts count by their number.
func (rd *reading) visit(class int8, s []byte) int64 {
	switch {
	case class == reqFile, class == reqBlob && looksBase64(s), isDataURL(s):
		rd.blobs++
		return 0
	}
	return textLen(s, 0)
}

func isDataURL(s []byte) bool {
	return len(s) > 5 && string(s[:5]) == "data:" && bytes.Contains(s[:min(len(s), 128)], []byte(";base64"))
}

// looksBase64 tells whether s is long and begins like base64.
func looksBase64(s []byte) bool {
	if len(s) < 256 {
		return false
	}
	for _, c := range s[:64] {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("+/-_=\\", c) >= 0) {
			return false
		}
	}
	return true
}

// other notes decisive members in another spelling, which some servers take
// for the same.
func (rd *reading) other(name []byte) {
	for i := range decisive {
		if d := &decisive[i]; len(d.name) == len(name) && bytes.EqualFold([]byte(d.name), name) {
			rd.variants[d.slot]++
		}
	}
}

// twice returns the name of a decisive member that occurs more than once.
func (rd *reading) twice() string {
	for i := range decisive {
		d := &decisive[i]
		if int(rd.sc.slots[d.slot].count)+int(rd.variants[d.slot]) > 1 {
			return d.name
		}
	}
	for i := range nested {
		if d := &nested[i]; rd.sc.slots[d.slot].count > 1 {
			return d.name
		}
	}
	return ""
}

// raw returns the value in that slot as it stands.
func (rd *reading) raw(slot int8) []byte {
	v := &rd.sc.slots[slot]
	if v.kind == 0 || v.end <= v.start {
		return nil
	}
	return rd.body[v.start:v.end]
}

func (rd *reading) has(slot int8) bool { return rd.sc.slots[slot].kind != 0 }

func (rd *reading) true(slot int8) bool { return string(rd.raw(slot)) == "true" }

// string returns the string in that slot; "" if there is none, or one longer
// than any name.
func (rd *reading) string(slot int8) string {
	raw := rd.raw(slot)
	if len(raw) < 2 || raw[0] != '"' || len(raw) > 1024 {
		return ""
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1])
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// count returns the number in that slot, or -1 if there is none that counts.
func (rd *reading) count(slot int8) int64 {
	raw := rd.raw(slot)
	if len(raw) == 0 || raw[0] == '-' || raw[0] > '9' || raw[0] < '0' {
		return -1
	}
	n, ok := count(raw)
	if !ok {
		return maxCount
	}
	return n
}

// number returns the number of that index, the greatest of several; -1 if there
// is none.
func (rd *reading) number(i int8) int64 {
	switch bit := uint32(1) << i; {
	case rd.sc.absurd&bit != 0:
		return maxCount
	case rd.sc.has&bit != 0:
		return min(rd.sc.nums[i], maxCount)
	}
	return -1
}

// maxCount bounds what requests may ask for, so that products do not overflow.
const maxCount = 1 << 40

// generates tells by the body's shape whether it asks for generation.
func (rd *reading) generates() bool {
	for _, s := range [...]int8{reqMessages, reqPrompt, reqInput, reqContents} {
		if rd.has(s) {
			return true
		}
	}
	return rd.sc.slots[reqOther].kind == '"'
}
