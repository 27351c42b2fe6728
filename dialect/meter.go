package dialect

import (
	"strings"
)

// Where the specs of answers put what they find.
const (
	slotError      int8 = iota // the error that the answer reports
	slotError2                 // the same within "response"
	slotUsage                  // the usage object at the top
	slotChoices                // the list of choices
	slotFinish                 // that, or why, the answer is at its end
	slotBackground             // whether a response runs in the background
)

// Strings that are kept.
const (
	strType   int8 = iota // of the event or object
	strStatus             // of the response
	strModel              // that answered
)

// Numbers of a usage object.
const (
	nInput      int8 = iota // what the provider calls input or prompt
	nOutput                 // what it calls output or completion
	nTotal                  // what it says is the sum
	nCached                 // read from a cache, within the input
	nCacheWrite             // written to a cache, within the input
	nReasoning              // thought, within the output or beside it
	nAudio                  // heard, within the input or beside it
	nReadBeside             // read from a cache, beside the input
	nMadeBeside             // written to a cache, beside the input
	nPassInput              // sums over the passes of one call
	nPassOutput
	nPassRead
	nPassMade
	nCountedInput // by the platform and not the model, beside the cache
	nCountedOutput
	nCountedRead
	nCountedMade
)

// Classes of delivered content.
const (
	textPlain int8 = iota // text that is shown or thought aloud
	textTools             // arguments of tool calls
	textDelta             // one or the other, as the event's type says
)

// Counts of elements.
const elemChoices int8 = 0

// numbers are what a usage object says.
type numbers struct {
	n      [numNumbers]int64
	has    uint32
	absurd uint32
}

func (u *numbers) get(i int8) int64 { return u.n[i] }

// any tells whether one of the given numbers was there, or something in its
// place that is none.
func (u *numbers) any(is ...int8) bool {
	for _, i := range is {
		if (u.has|u.absurd)&(1<<i) != 0 {
			return true
		}
	}
	return false
}

// meter reads an answer as it passes and keeps what its charge follows from.
// It holds no part of the answer: its size is that of its fields, about 2 KiB.
type meter struct {
	w       *wire
	framing framing
	gaveUp  bool // the answer could not be read; what it holds is estimated
	sse     sseSplitter
	events  *eventReader
	sc      scanner
	lead    [6]byte // the first bytes of the document at hand
	leadN   uint8
	inEvent bool // the answer is a stream of events, not one document
	lines   bool // it was announced as one of lines
	array   arrayState
	stored  *stored // what the answer tells of a stored response
	model   short   // that answered, as the answer names it first

	usage    numbers
	seen     bool  // usage was reported
	final    bool  // the usage reported is that of the whole answer
	soFar    bool  // it is that of the answer so far, wherever it stops
	failed   bool  // the answer reports an error
	complete bool  // the answer came to its proper end
	cut      bool  // the answer is a document that lacks its end
	ended    bool  // finish was called
	bytes    int64 // of the body, as metered
	unread   int64 // of these, what came after the meter gave up
	text     int64 // bytes of text delivered
	tools    int64 // bytes of tool arguments delivered
	chunks   int64 // documents that delivered something

	// onlyUsage says of the document that ended last: nothing but usage.
	onlyUsage bool
}

type framing uint8

const (
	framingUnknown framing = iota
	framingNone            // not to be read
	framingJSON
	framingSSE
	framingLines  // newline-delimited JSON
	framingArray  // a JSON array that comes element by element
	framingEvents // application/vnd.amazon.eventstream
)

func (m *meter) init(w *wire, contentType string) {
	m.w, m.sc.sp = w, w.answer
	m.sc.reset()
	media, sub, _ := strings.Cut(contentType, "/")
	switch strings.ToLower(media) {
	case "audio", "image", "video", "font":
		m.framing = framingNone
	case "application":
		if strings.HasPrefix(sub, "octet-stream") {
			m.framing = framingNone
		}
		m.lines = declaresLines(sub)
	}
}

// sniff finds out from the first byte that is not white space how the answer
// is framed; the declared type is wrong too often. It returns how many bytes of
// white space stand before that one: they are no part of any framing.
func (m *meter) sniff(p []byte) (blank int) {
	for i, c := range p {
		switch c {
		case ' ', '\t', '\r', '\n':
			continue
		case '{':
			m.framing = framingJSON
		case '[':
			m.framing, m.inEvent = framingArray, true
		case 0, 1: // of a frame's length: no text begins so
			m.framing, m.inEvent = framingEvents, true
			m.events = newEventReader(m)
		default:
			m.framing, m.inEvent = framingSSE, true
		}
		return i
	}
	return len(p)
}

// feed reads the next piece of the answer's plain body.
func (m *meter) feed(p []byte) {
	m.bytes += int64(len(p))
	if m.gaveUp {
		m.unread += int64(len(p))
	}
	if m.framing == framingUnknown {
		p = p[m.sniff(p):]
	}
	switch m.framing {
	case framingJSON:
		m.feedJSON(p)
	case framingSSE:
		for len(p) > 0 {
			n, _ := m.sse.feed(p, m)
			p = p[n:]
		}
	case framingLines:
		m.feedLines(p)
	case framingArray:
		m.feedArray(p)
	case framingEvents:
		if n, ok := m.events.feed(p); !ok {
			m.stop(p[n:])
		}
	}
}

// feedJSON reads a body that begins as one JSON document. If more comes after
// it, or was announced to come, the document is but the first line of many.
func (m *meter) feedJSON(p []byte) {
	n := m.sc.feed(p)
	switch {
	case m.sc.done():
		m.complete = true
		m.endDocument(nil)
	case !m.sc.bad() || !m.lines:
		return
	}
	m.framing = framingLines
	m.feedLines(p[n:])
}

// data implements sink.
func (m *meter) data(p []byte) {
	if int(m.leadN) < len(m.lead) {
		m.leadN += uint8(copy(m.lead[m.leadN:], p))
	}
	m.sc.feed(p)
}

// end implements sink.
func (m *meter) end(event []byte) {
	if string(m.lead[:m.leadN]) == "[DONE]" {
		m.complete = true
	}
	m.leadN = 0
	m.endDocument(event)
}

// drop implements eventSink.
func (m *meter) drop(failed bool) {
	m.failed = m.failed || failed
	m.leadN = 0
	m.sc.reset()
}

// stop ends the reading before rest: the answer is not what it seemed to be.
// What it said until then stays, but not as the last word.
func (m *meter) stop(rest []byte) {
	m.framing, m.gaveUp, m.cut, m.final, m.complete = framingNone, true, true, false, false
	m.unread += int64(len(rest))
	m.deliverRest()
}

// deliverRest adds what came of a document that has no end.
func (m *meter) deliverRest() {
	if !m.sc.bad() {
		m.delivered(m.sc.text[textPlain]+m.sc.text[textDelta], m.sc.text[textTools])
	}
	m.drop(false)
}

// endDocument takes up what the document at hand said.
func (m *meter) endDocument(event []byte) {
	m.onlyUsage = false
	m.sc.end()
	switch {
	case m.sc.done():
		if m.model.n == 0 {
			m.model = m.sc.strs[strModel]
		}
		m.w.fold(m, event)
	case string(event) == "error":
		m.failed = true
	default: // cut off: what had come was delivered
		m.deliverRest()
	}
	m.sc.reset()
}

// finish is told that the answer ends here.
func (m *meter) finish() {
	switch m.framing {
	case framingSSE:
		m.sse.finish(m)
	case framingJSON, framingLines:
		m.sc.end()
		if m.sc.done() {
			m.complete = true
		}
		m.cut = !m.sc.done() && m.sc.started() && !m.sc.bad()
		m.endDocument(nil)
	case framingArray:
		m.cut = m.array != arrayEnded && !m.sc.bad()
		m.endDocument(nil)
	case framingEvents:
		if !m.events.between() {
			m.cut = true
			m.deliverRest()
		}
	}
}

// delivered adds what the document at hand delivered.
func (m *meter) delivered(text, tools int64) {
	m.text += text
	m.tools += tools
	if text+tools > 0 {
		m.chunks++
	}
}

// replaceUsage takes the usage of the document at hand for that of the answer.
func (m *meter) replaceUsage() {
	m.usage = numbers{m.sc.nums, m.sc.has, m.sc.absurd}
	for i := range m.usage.n {
		if m.usage.has&(1<<i) == 0 {
			m.usage.n[i] = 0
		}
	}
	m.seen, m.final = true, true
}

// mergeUsage takes over the numbers that the document at hand has.
func (m *meter) mergeUsage() {
	for i := range m.sc.nums {
		if m.sc.has&(1<<i) != 0 {
			m.usage.n[i] = m.sc.nums[i]
		}
	}
	m.usage.has |= m.sc.has
	m.usage.absurd = m.usage.absurd&^m.sc.has | m.sc.absurd
	m.seen = true
}

// finished tells whether the document at hand says that it is the last that
// matters.
func (m *meter) finished() bool { return m.reportsError(slotFinish) }

// reportsError tells whether the value in that slot is an error: not null,
// false or the empty string, which some providers always send.
func (m *meter) reportsError(slot int8) bool {
	v := &m.sc.slots[slot]
	switch v.kind {
	case 0, 'n', 'f':
		return false
	case '"':
		return v.end-v.start > 2
	}
	return true
}
