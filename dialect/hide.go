package dialect

// filter takes out of a stream the one event that is there only because usage
// was asked for in the caller's stead. It holds back no more than an event
// that is not yet whole and may still be the one.
type filter struct {
	held    []byte // the beginning of such an event
	passed  bool   // the event at hand is not the one, and its beginning is written
	between bool   // an event has just ended
	dropped bool   // and was taken out
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

// sift shows p to the meter and returns what may be written now. That is a
// part of p itself unless something is held or hidden.
func (w *Writer) sift(p []byte) []byte {
	f, m := w.filter, &w.meter
	s := sieve{filter: f, p: p}
	blank := 0
	if m.framing == framingUnknown {
		blank = m.sniff(p)
	}
	if m.framing != framingSSE { // white space so far, or an answer that is no stream
		f.off = m.framing != framingUnknown
		w.observe(p[blank:])
		return p
	}
	if !w.siftEvents(&s, blank) {
		f.off = true
		s.emit(len(p))
	}
	return s.result()
}

// siftEvents goes through the events of s.p, which begin behind blank bytes. It
// returns false if the meter panicked.
func (w *Writer) siftEvents(s *sieve, blank int) (ok bool) {
	defer w.giveUp()
	f, m := w.filter, &w.meter
	m.bytes += int64(len(s.p))
	if blank > 0 {
		s.emit(blank)
	}
	for at := blank; at < len(s.p); {
		if f.between && m.sse.skipLF && s.p[at] == '\n' { // the second half of the CRLF that ended the event before
			m.sse.skipLF = false
			if at++; f.dropped {
				s.kept = at
			} else {
				s.emit(at)
			}
			continue
		}
		n, ended := m.sse.feed(s.p[at:], m)
		at += n
		f.between, f.dropped = ended, ended && m.onlyUsage && !f.passed
		switch {
		case f.dropped:
			f.held, s.kept = f.held[:0], at
		case ended:
			f.passed = false
			s.emit(at)
		case f.passed || !m.mayBeUsage() || len(f.held)+at-s.kept > maxHeld:
			f.passed = true
			s.emit(at)
		default:
			f.held = append(f.held, s.p[s.kept:at]...)
			s.kept = at
		}
		if ended {
			m.onlyUsage = false
		}
	}
	return true
}

// sieve is what becomes of one piece of the stream.
type sieve struct {
	*filter
	p        []byte
	kept     int    // what of p before this is settled
	from, to int    // the part of p to write, if nothing was copied
	copied   []byte // what to write, if it is not one part of p
}

// emit lets pass what is held and p up to the given position.
func (s *sieve) emit(to int) {
	switch {
	case len(s.held) == 0 && s.copied == nil && s.from == s.to:
		s.from, s.to = s.kept, to
	case len(s.held) == 0 && s.copied == nil && s.to == s.kept:
		s.to = to
	default:
		if s.copied == nil {
			s.copied = append(s.copied, s.p[s.from:s.to]...)
		}
		s.copied = append(s.copied, s.held...)
		s.copied = append(s.copied, s.p[s.kept:to]...)
		s.held = s.held[:0]
	}
	s.kept = to
}

func (s *sieve) result() []byte {
	if s.copied != nil {
		return s.copied
	}
	return s.p[s.from:s.to]
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
