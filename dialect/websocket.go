package dialect

import "encoding/binary"

// socketReader finds the messages in what a server sends on a WebSocket (RFC
// 6455 §5), given in pieces of any length. Messages of text and of bytes flow
// on as they come, whatever their length; control frames, which may come within
// a message, are passed over. It reads no extension: a compressed message ends
// the reading.
type socketReader struct {
	to      sink
	head    [10]byte // of a server's frame, which has no mask
	have    uint8    // bytes in head
	body    bool     // within the frame's payload
	control bool
	final   bool // the frame is the message's last
	message bool // a message has begun that has not ended
	left    uint64
}

// feed reads p. If it is not what a server may send, ok is false and n how
// much was read; nothing after that can be believed.
func (r *socketReader) feed(p []byte) (n int, ok bool) {
	for n < len(p) {
		if !r.body {
			r.head[r.have] = p[n]
			r.have++
			n++
			if int(r.have) == r.headLen() && !r.begin() {
				return n, false
			}
			continue
		}
		rest := p[n:]
		if uint64(len(rest)) > r.left {
			rest = rest[:r.left]
		}
		n += len(rest)
		r.left -= uint64(len(rest))
		if !r.control {
			r.to.data(rest)
		}
		r.rest()
	}
	return n, true
}

// headLen returns the length of the frame's head as far as it can be told.
func (r *socketReader) headLen() int {
	if r.have < 2 {
		return 2
	}
	switch r.head[1] & 0x7f {
	case 126:
		return 4
	case 127:
		return 10
	}
	return 2
}

// begin takes up the head of a frame.
func (r *socketReader) begin() bool {
	const (
		fin, reserved, opcode     = 0x80, 0x70, 0x0f
		continuation, text, bytes = 0, 1, 2
		closing, pong             = 8, 10
		mask                      = 0x80
	)
	switch r.have {
	case 2:
		r.left = uint64(r.head[1] & 0x7f)
	case 4:
		r.left = uint64(binary.BigEndian.Uint16(r.head[2:]))
	default:
		r.left = binary.BigEndian.Uint64(r.head[2:])
	}
	r.have = 0
	r.final = r.head[0]&fin != 0
	if r.head[0]&reserved != 0 || r.head[1]&mask != 0 || r.left >= 1<<63 {
		return false
	}
	switch op := r.head[0] & opcode; {
	case op >= closing && op <= pong:
		r.control = true
		if !r.final || r.left > 125 {
			return false
		}
	case op == continuation && r.message, (op == text || op == bytes) && !r.message:
		r.control, r.message = false, true
	default:
		return false
	}
	r.body = true
	r.rest()
	return true
}

// rest ends the frame if nothing of it is to come, and with its last frame the
// message.
func (r *socketReader) rest() {
	if r.left > 0 {
		return
	}
	r.body = false
	if r.final && !r.control {
		r.message = false
		r.to.end(nil)
	}
}
