package dialect

import "bytes"

// sink takes up an answer's documents as the framing finds them.
type sink interface {
	// data is the next piece of a document.
	data(p []byte)
	// end says that the document is whole. name is its event name, if it has one.
	end(name []byte)
}

// sseNameCap is how much of a field name or an event name is kept.
const sseNameCap = 40

// sseSplitter finds the events of a server-sent-event stream that comes in
// pieces of any length, as the WHATWG HTML standard §9.2.6 reads them: lines
// end with LF, CRLF or CR, a leading byte order mark is skipped, several data
// lines are one document with line feeds between, comments and unknown fields
// are passed over. It keeps no line: data flows on to the sink as it comes.
// Beyond the standard, a line that begins with a brace begins a bare document,
// up to the next blank line: Google reports a failure amid a stream so.
type sseSplitter struct {
	state   sseState
	skipLF  bool // the last byte was a CR: a LF that follows belongs to it
	started bool // something came after the byte order mark
	bom     uint8
	hasData bool // a data line was seen in this event
	bare    bool // this event is a document without field names
	fieldN  uint8
	eventN  uint8
	field   [8]byte
	event   [sseNameCap]byte
}

type sseState uint8

const (
	sseLineStart sseState = iota
	sseField              // within a field name
	sseSpace              // after the colon of data: one space is skipped
	sseData               // within a data line
	sseEventSpace
	sseEvent // within an event line
	sseSkip  // within a line that does not matter
)

// feed reads p up to the end of the first event in it and returns the bytes
// read and whether an event ended there. Blank lines with nothing before them
// end an event too.
func (s *sseSplitter) feed(p []byte, to sink) (n int, ended bool) {
	i := 0
	for i < len(p) {
		if s.skipLF {
			s.skipLF = false
			if p[i] == '\n' {
				i++
				continue
			}
		}
		c := p[i]
		if !s.started && s.skipBOM(c) {
			i++
			continue
		}
		if c == '\n' || c == '\r' {
			i++
			s.skipLF = c == '\r'
			if s.lineEnd(to) {
				if s.skipLF && i < len(p) { // the LF is part of this event's bytes
					s.skipLF = false
					if p[i] == '\n' {
						i++
					}
				}
				return i, true
			}
			continue
		}
		switch s.state {
		case sseLineStart:
			if s.bare || c == '{' && !s.hasData {
				s.state, s.bare, s.hasData = sseData, true, true
				continue
			}
			s.state, s.fieldN = sseField, 0
			if rest := p[i:]; len(rest) > 5 && string(rest[:5]) == "data:" { // nearly always
				copy(s.field[:], "data")
				s.fieldN = 4
				i += 4
			}
			continue
		case sseField:
			if c == ':' {
				s.fieldEnd(to)
			} else if int(s.fieldN) < len(s.field) {
				s.field[s.fieldN] = c
				s.fieldN++
			} else {
				s.state = sseSkip
			}
			i++
		case sseSpace, sseEventSpace:
			s.state++
			if c == ' ' {
				i++
			}
		default:
			j := i + lineLen(p[i:])
			s.content(p[i:j], to)
			i = j
		}
	}
	return i, false
}

// lineLen returns how many bytes of p come before the end of the line, or all.
func lineLen(p []byte) int {
	if j := bytes.IndexByte(p, '\n'); j >= 0 {
		p = p[:j]
	}
	if j := bytes.IndexByte(p, '\r'); j >= 0 {
		return j
	}
	return len(p)
}

// skipBOM tells whether c is part of a byte order mark at the beginning.
func (s *sseSplitter) skipBOM(c byte) bool {
	if s.bom < 3 && c == "\xef\xbb\xbf"[s.bom] {
		s.bom++
		return true
	}
	s.started = true
	return false
}

// fieldEnd takes up the field name when its colon has come.
func (s *sseSplitter) fieldEnd(to sink) {
	switch string(s.field[:s.fieldN]) {
	case "data":
		if s.hasData {
			to.data(lineFeed)
		}
		s.hasData = true
		s.state = sseSpace
	case "event":
		s.eventN = 0
		s.state = sseEventSpace
	case "error":
		// Not a field of the standard: llama.cpp's server reports a failure so.
		s.eventN = uint8(copy(s.event[:], "error"))
		if s.hasData {
			to.data(lineFeed)
		}
		s.hasData = true
		s.state = sseSpace
	default:
		s.state = sseSkip
	}
}

var lineFeed = []byte{'\n'}

func (s *sseSplitter) content(p []byte, to sink) {
	switch s.state {
	case sseData:
		to.data(p)
	case sseEvent:
		s.eventN += uint8(copy(s.event[s.eventN:], p))
	}
}

// lineEnd ends the line and tells whether it was blank, which ends the event.
func (s *sseSplitter) lineEnd(to sink) bool {
	if s.state == sseField { // a field without a colon has an empty value
		s.fieldEnd(to)
	}
	blank := s.state == sseLineStart
	s.state = sseLineStart
	if blank {
		s.eventEnd(to)
	}
	return blank
}

func (s *sseSplitter) eventEnd(to sink) {
	if s.hasData {
		to.end(s.event[:s.eventN])
	}
	s.hasData, s.bare, s.eventN = false, false, 0
}

// finish ends an event that no blank line has ended: the standard drops it,
// but servers send such last events and clients read them.
func (s *sseSplitter) finish(to sink) {
	if s.state != sseLineStart {
		s.lineEnd(to)
	}
	s.eventEnd(to)
}
