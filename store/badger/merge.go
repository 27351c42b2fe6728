package badger

import (
	"iter"
	"os"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// item is a record as it is encoded.
type item struct {
	seq    uint64
	record []byte
}

// readJournal yields the records after base in a journal's directory that can be
// read, in order.
func readJournal(dir string, base uint64) iter.Seq2[item, error] {
	return func(yield func(item, error) bool) {
		if !exists(dir) {
			return
		}
		segments, err := listSegments(dir)
		if err != nil {
			yield(item{}, err)
			return
		}
		f := frames{base: base}
		for _, s := range segments {
			err := f.file(s.path, func(r *quota.Record, b []byte) error {
				if !yield(item{r.Seq, b}, nil) {
					return errStop
				}
				return nil
			})
			if err != nil {
				return // nothing else fails
			}
		}
	}
}

// file reads a whole segment. What cannot be read is passed over.
func (f *frames) file(path string, fn func(r *quota.Record, b []byte) error) error {
	in, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer closeFile(in)
	info, err := in.Stat()
	if err != nil {
		return nil
	}
	var failed error
	_ = f.read(in, info.Size(), func(r *quota.Record, b []byte) error {
		failed = fn(r, b)
		return failed
	})
	return failed
}

// covers tells whether one journal holds all records after base that another
// holds.
func covers(dir, other string, base uint64) (bool, error) {
	next, stop := iter.Pull2(readJournal(dir, base))
	defer stop()
	own, err, more := next()
	for want, werr := range readJournal(other, base) {
		if werr != nil {
			return false, werr
		}
		for more && err == nil && own.seq < want.seq {
			own, err, more = next()
		}
		if err != nil {
			return false, err
		}
		if !more || own.seq != want.seq {
			return false, nil
		}
	}
	return true, nil
}

// mergeJournals makes a journal of the records after base of two others. What
// both have is taken from the first.
func mergeJournals(to, dir, other string, base uint64) error {
	w := segmentWriter{dir: to}
	next, stop := iter.Pull2(readJournal(other, base))
	defer stop()
	theirs, err, more := next()
	add := func(before uint64) error {
		for more && err == nil && theirs.seq < before {
			if err := w.add(theirs.seq, theirs.record); err != nil {
				return err
			}
			theirs, err, more = next()
		}
		return err
	}
	for own, oerr := range readJournal(dir, base) {
		if oerr == nil {
			oerr = add(own.seq)
		}
		if oerr == nil && more && theirs.seq == own.seq {
			theirs, err, more = next()
		}
		if oerr == nil {
			oerr = w.add(own.seq, own.record)
		}
		if oerr != nil {
			_ = w.close()
			return oerr
		}
	}
	if err := add(^uint64(0)); err != nil {
		_ = w.close()
		return err
	}
	return w.close()
}
