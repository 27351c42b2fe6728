package dialect

import (
	"io"
	"sync/atomic"
)

// inflow decodes a coded answer for the meter while the coded bytes pass. The
// decoder runs in a goroutine of its own, since decoders pull and answers are
// pushed; each feed returns when the decoder has taken the bytes, and close
// when it has read them all, so that the goroutine never outlives the answer.
type inflow struct {
	in    *io.PipeWriter
	done  chan struct{}
	bad   bool         // the answer could not be decoded to its end
	coded atomic.Int64 // bytes that came
	read  int64        // bytes that had come when the decoder ended
}

// newInflow returns nil if the coding is not known.
func newInflow(coding string, m *meter) *inflow {
	switch coding {
	case "gzip", "x-gzip", "deflate", "br", "zstd":
	default:
		return nil
	}
	r, w := io.Pipe()
	f := &inflow{in: w, done: make(chan struct{})}
	go f.run(coding, r, m)
	return f
}

// run decodes until the answer ends or passes a cap. Whatever goes wrong, the
// rest goes unread and what was read counts.
func (f *inflow) run(coding string, r *io.PipeReader, m *meter) {
	defer close(f.done)
	defer r.Close() //nolint:errcheck // from now on feeding fails at once
	defer func() {
		f.bad = recover() != nil || f.bad
		f.read = f.coded.Load()
	}()
	f.bad = true
	plain, _, err := newDecoder(coding, r)
	if err != nil {
		return
	}
	if d, ok := plain.(interface{ Close() }); ok {
		defer d.Close() // zstd's
	}
	buf := make([]byte, 4<<10)
	for total := int64(0); total < maxPlain && (total < freePlain || total/maxRatio < f.coded.Load()); {
		n, err := plain.Read(buf)
		if n > 0 {
			m.feed(buf[:n])
			total += int64(n)
		}
		if err != nil {
			f.bad = err != io.EOF
			return
		}
	}
}

// feed hands p to the decoder; one that has given up takes nothing.
func (f *inflow) feed(p []byte) {
	if len(p) == 0 { // a decoder takes it for a reader that is stuck
		return
	}
	f.coded.Add(int64(len(p)))
	f.in.Write(p) //nolint:errcheck // the error says that the decoder has given up
}

// close ends the answer and waits until the decoder has read it all. From
// then on the meter is the caller's again: of an answer that could not be
// decoded to its end, it knows how much it has not read.
func (f *inflow) close(m *meter) {
	f.in.Close() //nolint:errcheck // never fails
	<-f.done
	if !f.bad {
		return
	}
	m.gaveUp = true
	coded := f.coded.Load()
	m.unread += usualRatio * max(coded-f.read, 0)
	m.bytes = usualRatio * coded
}

// usualRatio is about how many times as long as its coded bytes an answer is.
const usualRatio = 4
