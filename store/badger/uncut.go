package badger

import (
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// uncut calls fn for each record since the last cut: those in the file, and
// those that have yet to be written.
func (j *journal) uncut(fn func(*quota.Record) error) error {
	in, from, err := j.uncutBytes()
	if err != nil {
		return fmt.Errorf("reading the journal: %w", err)
	}
	defer closeFile(in.f)
	var scan scanner
	var rd recordReader
	scan.reset(in, from, in.size+int64(len(in.rest)))
	for {
		b, err := scan.next()
		if scan.skipped > 0 {
			return fmt.Errorf("reading the journal: %d bytes of %s have changed", scan.skipped, in.f.Name())
		}
		if err != nil {
			return ignoreEOF(err)
		}
		r, err := rd.read(b)
		if err != nil {
			return fmt.Errorf("reading the journal: %w", err)
		}
		if err := fn(r); err != nil {
			return err
		}
	}
}

// uncutBytes returns where the records since the last cut are, and the offset
// at which they begin. Nobody has to wait while they are read.
func (j *journal) uncutBytes() (in *unfinished, from int64, err error) {
	if err := j.usable(); err != nil {
		return nil, 0, err
	}
	if err := j.lockBoth(); err != nil {
		return nil, 0, err
	}
	defer j.unlockBoth()
	f, err := os.Open(j.segment.path)
	if err != nil {
		return nil, 0, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return &unfinished{f, j.segment.size, slices.Concat(j.out, j.pending)}, j.cutAt, nil
}

// unfinished is a file of that size, and what is to follow in it. A frame may
// be there in part.
type unfinished struct {
	f    *os.File
	size int64
	rest []byte
}

// ReadAt implements io.ReaderAt.
func (u *unfinished) ReadAt(p []byte, off int64) (n int, err error) {
	if off < u.size {
		n, err = u.f.ReadAt(p[:min(int64(len(p)), u.size-off)], off)
		if err != nil || n == len(p) {
			return n, err
		}
		off += int64(n)
	}
	m := copy(p[n:], u.rest[min(off-u.size, int64(len(u.rest))):])
	if n += m; n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
