package badger

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// recovery reads the journal that an earlier process has left.
type recovery struct {
	j      *journal
	base   uint64 // records up to this one are not needed
	next   uint64 // the number that the next record should have
	replay func(*quota.Record) error

	scan    scanner
	reader  recordReader
	missing uint64 // records that should be there
	first   uint64 // the first of them
	last    uint64
}

// recover calls replay for each record after base and makes the journal ready
// to be appended to. Records up to atLeast are known to have been written.
func (j *journal) recover(base, atLeast uint64, replay func(*quota.Record) error) error {
	if err := j.syncing.lock(); err != nil {
		return err
	}
	defer j.syncing.unlock()
	segments, err := listSegments(j.dir)
	if err != nil {
		return err
	}
	rec := &recovery{j: j, base: base, next: base + 1, replay: replay}
	skip := needless(segments, base)
	for i, s := range segments {
		if i < skip {
			continue
		}
		err := rec.read(s, i == len(segments)-1)
		if unreadable(err, s.path) {
			s.size = 0 // it is there no more
			err = j.putAway(s.path, err)
		}
		if err != nil {
			return fmt.Errorf("reading %s: %w", s.path, err)
		}
	}
	if rec.next <= atLeast {
		rec.gap(atLeast + 1)
	}
	if err := j.begin(segments, rec); err != nil {
		return err
	}
	if rec.missing > 0 {
		j.lose(fmt.Sprintf("%d records of the journal are missing, of those from %d to %d", rec.missing, rec.first, rec.last))
	}
	return nil
}

// unreadable tells whether the error is that the file cannot be read, and not
// that somebody else may not, or cannot just now.
func unreadable(err error, path string) bool {
	var of *fs.PathError
	return errors.As(err, &of) && of.Path == path && (of.Op == "open" || of.Op == "read") && isDamage(err)
}

// needless returns how many of the first segments hold nothing after the record
// base, by the header of the one that follows, and notes what is in them. They
// are kept for the snapshots and need not be read.
func needless(segments []*segment, base uint64) (n int) {
	for n+1 < len(segments) {
		s := segments[n]
		info, err := os.Stat(s.path)
		if err != nil {
			return n
		}
		first, ok := firstRecord(segments[n+1].path)
		if !ok || first > base+1 {
			return n
		}
		s.size, s.synced, s.last = info.Size(), info.Size(), first-1
		n++
	}
	return n
}

// firstRecord returns what the header of a segment tells.
func firstRecord(path string) (first uint64, ok bool) {
	f, err := os.Open(path)
	if err != nil {
		return 0, false
	}
	defer closeFile(f)
	first, ok, err = readHeader(f)
	return first, ok && err == nil
}

// begin starts a new segment after those that were found.
func (j *journal) begin(found []*segment, rec *recovery) error {
	number := uint64(1)
	for _, s := range found {
		number = s.number + 1
		if s.size > headerSize {
			j.sealed = append(j.sealed, s)
		} else if err := j.remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing an empty segment: %w", err)
		}
	}
	s, err := createSegment(j.dir, number, rec.next, j.fault)
	if err != nil {
		return err
	}
	if err := j.writing.lock(); err != nil {
		return err
	}
	defer j.writing.unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.trimmed, j.durable = rec.base, rec.next-1
	j.segment, j.cutAt, j.opened = s, s.size, true
	j.seq = rec.next - 1
	j.written, j.cutSeq, j.lost = j.seq, j.seq, rec.missing
	j.flushed.Store(j.seq)
	return nil
}

// read replays one segment.
func (rec *recovery) read(s *segment, last bool) error {
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer closeFile(f)
	info, err := f.Stat()
	if err != nil {
		return err
	}
	s.size = info.Size()
	first, ok, err := readHeader(f)
	switch {
	case err != nil:
		return err
	case ok && first > rec.next:
		rec.gap(first)
	case !ok && s.size >= headerSize: // a crash leaves a short one, and a power loss brings one back that was removed
		rec.j.log("journal %s: the header is damaged", s.path)
	}
	rec.scan.reset(f, min(headerSize, s.size), s.size)
	if err := rec.records(s, last); err != nil {
		return err
	}
	s.last = rec.next - 1
	if s.size != info.Size() {
		if err := rec.j.fault.step(StepTruncate, s.path, func() error { return f.Truncate(s.size) }); err != nil {
			return fmt.Errorf("cutting off a torn record: %w", err)
		}
	}
	// The process that wrote it may have died between a write and a sync.
	if err := rec.j.fault.step(StepSync, s.path, f.Sync); err != nil {
		return fmt.Errorf("syncing: %w", err)
	}
	s.synced = s.size
	return nil
}

// records replays the frames of s.
func (rec *recovery) records(s *segment, last bool) error {
	for {
		b, err := rec.scan.next()
		if skipped := rec.scan.skipped; skipped > 0 {
			if errors.Is(err, io.EOF) && last {
				s.size -= skipped
				rec.j.log("journal %s: dropping %d bytes of a torn record at the end", s.path, skipped)
			} else {
				rec.j.log("journal %s: %d bytes before offset %d are damaged", s.path, skipped, rec.scan.at()-int64(len(b)))
			}
		}
		if err != nil {
			return ignoreEOF(err)
		}
		r, err := rec.reader.read(b)
		if err != nil {
			rec.j.log("journal %s: %v", s.path, err)
			continue
		}
		if err := rec.record(s, r); err != nil {
			return err
		}
	}
}

// record replays one record, if it is in its place.
func (rec *recovery) record(s *segment, r *quota.Record) error {
	switch {
	case r.Seq <= rec.base:
		return nil
	case r.Seq < rec.next:
		rec.j.log("journal %s: record %d comes after record %d: passed over", s.path, r.Seq, rec.next-1)
		return nil
	case r.Seq > rec.next:
		rec.gap(r.Seq)
	}
	rec.next = r.Seq + 1
	return rec.replay(r)
}

// gap reports that the records from the expected one to the one before next
// are not there.
func (rec *recovery) gap(next uint64) {
	n := next - rec.next
	if rec.missing == 0 {
		rec.first = rec.next
	}
	rec.last = next - 1
	rec.missing += n
	rec.j.log("journal: %d records missing, %d to %d", n, rec.next, next-1)
	rec.next = next
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}
