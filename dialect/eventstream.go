package dialect

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"hash/crc32"
)

// eventReader takes apart an application/vnd.amazon.eventstream body that comes
// in pieces of any length: frames of a prelude (total length, length of the
// headers, CRC-32 of these two), headers, a payload, and a CRC-32 of all that.
// It holds no frame: payloads flow on as they come, also those that are wrapped
// in base64, so that a frame's length costs nothing whatever it claims to be.
type eventReader struct {
	state   eventState
	part    headerPart
	have    uint8    // bytes in buf
	buf     [12]byte // the prelude, or the CRC at the end
	crc     uint32   // of the frame so far
	headers uint32   // bytes of headers to come
	payload uint32   // bytes of payload to come
	left    int      // bytes to come of the header's name or value
	name    frameName
	value   frameName
	event   frameName // the frame's :event-type
	failed  bool      // the frame is no event: an exception or an error
	wrapped bool      // the payload is {"bytes":"<base64>"}
	outer   scanner   // of such a payload
	inner   base64Reader
	to      eventSink
}

// eventSink takes up the payloads of events.
type eventSink interface {
	sink
	// drop says that what came of the document is void; failed, that the
	// stream reports an error instead.
	drop(failed bool)
}

type eventState uint8

const (
	eventPrelude eventState = iota
	eventHeaders
	eventPayload
	eventCRC
)

type headerPart uint8

const (
	headerNameLen headerPart = iota
	headerName
	headerType
	headerLenHigh
	headerLenLow
	headerValue
)

// frameName keeps a short name; one that is longer is none that matters.
type frameName struct {
	b [sseNameCap]byte
	n uint8
}

func (f *frameName) add(p []byte) { f.n += uint8(copy(f.b[f.n:], p)) }

func (f *frameName) bytes() []byte { return f.b[:f.n] }

// Lengths that every frame has.
const (
	preludeLen = 12
	frameLeast = preludeLen + 4
)

func newEventReader(to eventSink) *eventReader {
	r := &eventReader{to: to}
	r.outer.sp = chunkSpec
	r.outer.part = func(seg []byte) {
		if r.inner.feed(seg, to); r.inner.bad {
			to.drop(false) // what came before it too, lest it depend on the pieces
		}
	}
	return r
}

// chunkSpec reads what InvokeModelWithResponseStream wraps its documents in.
var chunkSpec = newSpec([]rule{at("bytes", text(textPlain))})

// feed reads p. If it is not what the framing allows, ok is false and n how
// much was read; nothing after that can be believed.
func (r *eventReader) feed(p []byte) (n int, ok bool) {
	for n < len(p) {
		rest := p[n:]
		switch r.state {
		case eventPrelude:
			k := copy(r.buf[r.have:], rest)
			n, r.have = n+k, r.have+uint8(k)
			if r.have == preludeLen && !r.prelude() {
				return n, false
			}
		case eventHeaders:
			rest = upTo(rest, r.headers)
			n, r.headers = n+len(rest), r.headers-uint32(len(rest))
			r.crc = crc32.Update(r.crc, crc32.IEEETable, rest)
			for len(rest) > 0 {
				k, ok := r.header(rest)
				if rest = rest[k:]; !ok {
					return n - len(rest), false
				}
			}
			if r.headers == 0 && r.part != headerNameLen {
				return n, false
			}
			r.advance()
		case eventPayload:
			rest = upTo(rest, r.payload)
			n, r.payload = n+len(rest), r.payload-uint32(len(rest))
			r.crc = crc32.Update(r.crc, crc32.IEEETable, rest)
			r.content(rest)
			r.advance()
		case eventCRC:
			k := copy(r.buf[r.have:4], rest)
			n, r.have = n+k, r.have+uint8(k)
			if r.have < 4 {
				continue
			}
			if binary.BigEndian.Uint32(r.buf[:4]) != r.crc {
				return n, false
			}
			r.end()
		}
	}
	return n, true
}

// upTo returns the first n bytes of p, or all.
func upTo(p []byte, n uint32) []byte {
	if uint64(len(p)) > uint64(n) {
		return p[:n]
	}
	return p
}

// prelude takes up the lengths of the frame that begins.
func (r *eventReader) prelude() bool {
	total, headers := binary.BigEndian.Uint32(r.buf[:]), binary.BigEndian.Uint32(r.buf[4:])
	if crc32.ChecksumIEEE(r.buf[:8]) != binary.BigEndian.Uint32(r.buf[8:]) || total < frameLeast || headers > total-frameLeast {
		return false
	}
	r.crc = crc32.ChecksumIEEE(r.buf[:])
	r.headers, r.payload = headers, total-frameLeast-headers
	r.part, r.failed, r.wrapped, r.event.n = headerNameLen, false, false, 0
	r.state, r.have = eventHeaders, 0
	r.advance()
	return true
}

// advance goes on to the part of the frame that has bytes to come.
func (r *eventReader) advance() {
	if r.state == eventHeaders && r.headers == 0 {
		r.state = eventPayload
		if r.wrapped = string(r.event.bytes()) == "chunk"; r.wrapped {
			r.outer.reset()
			r.inner.n, r.inner.ended, r.inner.bad = 0, false, false
		}
	}
	if r.state == eventPayload && r.payload == 0 {
		r.state, r.have = eventCRC, 0
	}
}

// header reads on in the headers and returns how far it came.
func (r *eventReader) header(p []byte) (n int, ok bool) {
	c := p[0]
	switch r.part {
	case headerNameLen:
		r.left, r.name.n, r.value.n = int(c), 0, 0
		r.part = headerName
		return 1, c > 0
	case headerName:
		n = min(r.left, len(p))
		r.name.add(p[:n])
		if r.left -= n; r.left == 0 {
			r.part = headerType
		}
		return n, true
	case headerType:
		if int(c) >= len(headerSizes) {
			return 1, false
		}
		r.left = headerSizes[c]
		if r.part = headerValue; r.left < 0 {
			r.part, r.left = headerLenHigh, 0
		} else if r.left == 0 {
			r.part = headerNameLen
		}
	case headerLenHigh:
		r.left, r.part = int(c)<<8, headerLenLow
	case headerLenLow:
		r.left |= int(c)
		if r.part = headerValue; r.left == 0 {
			r.headerEnd()
		}
	case headerValue:
		n = min(r.left, len(p))
		r.value.add(p[:n])
		if r.left -= n; r.left == 0 {
			r.headerEnd()
		}
		return n, true
	}
	return 1, true
}

// headerSizes are the lengths of values by their type: true, false, the
// integers, bytes and string, which tell their own, timestamp and UUID.
var headerSizes = [...]int{0, 0, 1, 2, 4, 8, -1, -1, 8, 16}

func (r *eventReader) headerEnd() {
	r.part = headerNameLen
	switch string(r.name.bytes()) {
	case ":message-type":
		r.failed = string(r.value.bytes()) != "event"
	case ":event-type":
		r.event = r.value
	}
}

// content takes up a piece of the payload.
func (r *eventReader) content(p []byte) {
	switch {
	case r.failed:
	case r.wrapped:
		r.outer.feed(p)
	default:
		r.to.data(p)
	}
}

// end ends the frame, whose CRC is right.
func (r *eventReader) end() {
	r.state, r.have = eventPrelude, 0
	switch {
	case r.failed:
		r.to.drop(true)
	case r.wrapped && !(r.outer.done() && r.inner.whole()):
		r.to.drop(false)
	default:
		r.to.end(r.event.bytes())
	}
}

// between tells whether no frame has begun that has not ended.
func (r *eventReader) between() bool { return r.state == eventPrelude && r.have == 0 }

// base64Reader decodes base64 that stands in a JSON string and comes in pieces
// of any length. What is not base64 makes it bad.
type base64Reader struct {
	quad  [4]byte
	n     uint8
	ended bool // there was padding: nothing may follow
	bad   bool
	buf   [576]byte // what is handed on
}

func (d *base64Reader) feed(p []byte, to sink) {
	for len(p) > 0 && !d.bad {
		if d.n > 0 || len(p) < 4 {
			if p[0] != '\\' { // JSON may write a slash with one
				d.quad[d.n] = p[0]
				d.n++
			}
			if p = p[1:]; d.n == 4 {
				d.n = 0
				d.decode(d.quad[:], to)
			}
			continue
		}
		bulk := p
		if i := bytes.IndexByte(bulk, '\\'); i >= 0 {
			bulk = bulk[:i]
		}
		if bulk = bulk[:len(bulk)&^3]; len(bulk) == 0 {
			d.quad[0], d.n, p = p[0], 1, p[1:]
			if d.quad[0] == '\\' {
				d.n = 0
			}
			continue
		}
		d.decode(bulk, to)
		p = p[len(bulk):]
	}
}

// decode hands on what p, whole groups of four, stands for.
func (d *base64Reader) decode(p []byte, to sink) {
	for len(p) > 0 && !d.bad {
		k := min(len(p), len(d.buf)/3*4)
		n, err := base64.StdEncoding.Decode(d.buf[:], p[:k])
		if d.bad = err != nil || d.ended || bytes.ContainsAny(p[:k], "\r\n"); d.bad {
			return
		}
		d.ended = n < k/4*3
		to.data(d.buf[:n])
		p = p[k:]
	}
}

// whole tells whether all that came was base64.
func (d *base64Reader) whole() bool { return !d.bad && d.n == 0 }
