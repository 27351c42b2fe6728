package dialect

// filter takes out of a stream the one event that is there only because usage
// was asked for in the caller's stead. It holds back no more than an event
// that is not yet whole and may still be the one.
type filter struct {
	held    []byte // the beginning of such an event
	passed  bool   // the event at hand is not the one, and its beginning is written
	dropped bool   // the event before was taken out
	off     bool
}

// maxHeld is the most that is held back; a longer event passes whatever it is.
const maxHeld = 64 << 10

// writeFiltered passes on p without what is to be hidden.
func (w *Writer) writeFiltered(p []byte) (int, error) {
	f := w.filter
	out := w.sift(p)
	if f.off {
		w.filter = nil
	}
	if len(out) == 0 {
		return len(p), nil
	}
	if n, err := w.rw.Write(out); err != nil {
		return min(n, len(p)), err
	}
	return len(p), nil
}

// sift shows p to the meter and returns what may be written now: a part of p
// wherever nothing is held or hidden.
func (w *Writer) sift(p []byte) (out []byte) {
	f, m := w.filter, &w.meter
	rest, kept := p, 0 // kept: bytes of p before rest that may be written
	defer func() {
		if recover() != nil {
			w.active, m.gaveUp, f.off = false, true, true
			out = append(append(out, f.held...), p[kept:]...)
			f.held = nil
		}
	}()
	if m.framing == framingUnknown {
		m.sniff(p)
	}
	if m.framing != framingSSE { // white space so far, or an answer that is no stream
		f.off = m.framing != framingUnknown
		m.feed(p)
		return p
	}
	m.bytes += int64(len(p))
	emit := func(to int) {
		out = append(out, f.held...)
		f.held = f.held[:0]
		out = append(out, p[kept:to]...)
		kept = to
	}
	for len(rest) > 0 {
		if f.dropped {
			f.dropped = false
			if m.sse.skipLF && rest[0] == '\n' { // the second half of the hidden event's CRLF
				m.sse.skipLF = false
				rest, kept = rest[1:], kept+1
				continue
			}
		}
		n, ended := m.sse.feed(rest, m)
		at := len(p) - len(rest) + n
		rest = rest[n:]
		switch {
		case ended && m.onlyUsage && !f.passed:
			m.onlyUsage = false
			f.held, kept, f.dropped = f.held[:0], at, true
		case ended:
			m.onlyUsage, f.passed = false, false
			emit(at)
		case f.passed || !m.mayBeUsage() || len(f.held)+at-kept > maxHeld:
			f.passed = true
			emit(at)
		default:
			f.held = append(f.held, p[kept:at]...)
			kept = at
		}
	}
	return out
}

// mayBeUsage tells whether the event at hand may still turn out to be the one:
// no choice has come, and what came is JSON.
func (m *meter) mayBeUsage() bool {
	return m.sc.elems[elemChoices] == 0 && !m.sc.bad()
}

// finishFiltered ends the stream: a last event without its blank line is
// hidden too if it is the one.
func (w *Writer) finishFiltered() error {
	f := w.filter
	w.filter = nil
	w.finishMeter()
	if len(f.held) == 0 || w.active && w.meter.onlyUsage {
		return nil
	}
	_, err := w.rw.Write(f.held)
	return err
}
