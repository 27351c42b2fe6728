package dialect

import "io"

// maxPlain is the most of a coded answer that is decoded to be metered.
const maxPlain = 256 << 20

// inflow decodes a coded answer for the meter while the coded bytes pass. The
// decoder runs in a goroutine of its own, since decoders pull and answers are
// pushed; each feed returns when the decoder has taken the bytes.
type inflow struct {
	in    *io.PipeWriter
	done  chan struct{}
	bad   bool  // the answer could not be decoded to its end
	coded int64 // bytes that came
}

// newInflow returns nil if the coding is not known.
func newInflow(coding string, m *meter) *inflow {
	switch coding {
	case "gzip", "x-gzip", "deflate", "zstd":
	default:
		return nil
	}
	r, w := io.Pipe()
	f := &inflow{in: w, done: make(chan struct{})}
	go f.run(coding, r, m)
	return f
}

// run decodes until the answer ends. Whatever goes wrong, the rest is drained
// and what was read counts.
func (f *inflow) run(coding string, r *io.PipeReader, m *meter) {
	defer close(f.done)
	defer r.Close()
	defer func() {
		if recover() != nil {
			f.bad = true
		}
	}()
	plain, _, err := newDecoder(coding, r)
	if err != nil {
		f.bad = true
		return
	}
	buf := make([]byte, 4<<10)
	for total := 0; total < maxPlain; {
		n, err := plain.Read(buf)
		if n > 0 {
			m.feed(buf[:n])
			total += n
		}
		if err != nil {
			f.bad = err != io.EOF
			return
		}
	}
	f.bad = true
}

// feed hands p to the decoder; one that has given up takes nothing.
func (f *inflow) feed(p []byte) {
	f.coded += int64(len(p))
	f.in.Write(p) //nolint:errcheck // the error says that the decoder has given up
}

// close ends the answer and waits until the decoder has read it all. From
// then on the meter is the caller's again.
func (f *inflow) close() {
	f.in.Close()
	<-f.done
}
