package badger

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"sync"
	"sync/atomic"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// maxHeld is how many bytes of records are held while they cannot be written.
// What is appended beyond it is dropped: told by Flush, logged and counted.
const maxHeld = 64 << 20

// segmentSize is the size above which a Cut ends the file it is written to. A
// file for every Cut would cost three more syncs each.
const segmentSize = 4 << 20

// errLost says that a record never reached the journal, and never will.
var errLost = errors.New("the journal could not be written for so long that records were dropped")

// journal is the write-ahead file. Locks are taken in the order syncing,
// writing, mu.
type journal struct {
	dir      string
	syncEach bool // every flush survives a power loss
	log      func(format string, args ...any)
	limit    int   // maxHeld
	rotateAt int64 // Options.SegmentSize
	fault    Fault

	// mu guards what Append touches.
	mu      sync.Mutex
	seq     uint64 // of the last record appended
	pending []byte // frames to be written next
	spare   []byte // the buffer that pending and out take turns with
	lost    uint64 // records dropped, since start
	opened  bool   // recover has returned
	closed  bool

	// writing is held by the one that writes; others wait for it, and mostly
	// find their records written when they get it.
	writing sync.Mutex
	segment *segment
	out     []byte // what is left of the frames that are being written
	outSeq  uint64 // the last record in out
	written uint64 // every record up to this one is in the file
	held    atomic.Int64

	// flushed is what Flush may return for without a look at anything else,
	// but for the dropped records, of which lostLast is the last.
	flushed   atomic.Uint64
	lostFirst atomic.Uint64
	lostLast  atomic.Uint64
	ended     atomic.Bool // close was called

	// syncing is held while files are synced, made or removed.
	syncing sync.Mutex
	sealed  []*segment // those before segment, the oldest first
	cutAt   int64      // where in segment the last Cut was made
	cutSeq  uint64     // the last record before it

	// What the last Cut's iterator reads with.
	cutFile   *os.File
	cutScan   scanner
	cutReader recordReader
}

// append implements quota.Journal.
func (j *journal) append(r *quota.Record) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seq++
	r.Seq = j.seq
	if r.Kind == quota.RecordOpen {
		r.ID = r.Seq
	}
	start := len(j.pending)
	j.pending = appendFrame(j.pending, r)
	switch n := len(j.pending); {
	case !j.opened || j.closed:
		j.pending = j.pending[:start]
	case n-start > frameHeader+maxRecord || n+int(j.held.Load()) > j.limit:
		j.pending = j.pending[:start]
		j.drop(r.Seq)
	}
	return r.Seq
}

// drop counts a record that could not be held.
func (j *journal) drop(seq uint64) {
	j.lost++
	if j.lostFirst.Load() == 0 {
		j.lostFirst.Store(seq)
		j.log("the journal cannot be written and %d bytes are waiting: records are dropped from now on", j.limit)
	}
	j.lostLast.Store(seq)
}

// flush implements quota.Journal.
func (j *journal) flush(seq uint64) error {
	if j.flushed.Load() >= seq && j.lostLast.Load() < seq && !j.ended.Load() {
		return nil
	}
	j.writing.Lock()
	defer j.writing.Unlock()
	if j.flushed.Load() < seq || j.ended.Load() {
		if err := j.write(); err != nil {
			return err
		}
	}
	if last := j.lostLast.Load(); last > 0 && seq <= last && seq >= j.lostFirst.Load() {
		return errLost
	}
	return nil
}

// write writes all that is pending, and syncs it if every flush does. What
// fails to be written stays for the next call, which goes on at the byte where
// this one stopped. writing is held.
func (j *journal) write() error {
	if err := j.usable(); err != nil {
		return err
	}
	for len(j.out) > 0 || j.take() {
		n, err := j.segment.f.WriteAt(j.out, j.segment.size)
		j.segment.size += int64(n)
		j.out = j.out[n:]
		j.held.Store(int64(len(j.out)))
		if err != nil {
			return fmt.Errorf("writing the journal: %w", err)
		}
		j.written = j.outSeq
		j.segment.last = j.outSeq
	}
	if j.syncEach {
		if err := j.segment.sync(j.segment.size); err != nil {
			return err
		}
	}
	j.flushed.Store(j.written)
	return nil
}

// maxSpare is the size above which a buffer is not kept.
const maxSpare = 1 << 20

// take makes what is pending the next to be written, and tells whether there
// is anything.
func (j *journal) take() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.outSeq = j.seq
	if len(j.pending) == 0 {
		j.written = j.seq // dropped ones, at most
		return false
	}
	j.out = j.pending
	j.pending, j.spare = j.spare[:0], j.pending[:0]
	if cap(j.spare) > maxSpare {
		j.spare = nil
	}
	return true
}

// usable returns an error before recover and after close.
func (j *journal) usable() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.closed:
		return quota.ErrClosed
	case !j.opened:
		return errors.New("the journal is used before Recover")
	}
	return nil
}

// sync makes all that was flushed survive a power loss.
func (j *journal) sync() error {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	if j.syncEach { // then write syncs, too
		j.writing.Lock()
		defer j.writing.Unlock()
	}
	for _, s := range j.sealed {
		if s.f == nil {
			continue
		}
		if err := s.sync(s.size); err != nil {
			return err
		}
		s.close()
	}
	s, size := j.end()
	if s == nil {
		return nil
	}
	return s.sync(size)
}

// end returns the segment that is written, and how far it is.
func (j *journal) end() (*segment, int64) {
	if !j.syncEach {
		j.writing.Lock()
		defer j.writing.Unlock()
	}
	if j.segment == nil {
		return nil, 0
	}
	return j.segment, j.segment.size
}

// cut implements quota.Journal. What was appended is read back from the file:
// it lies in the system's cache, and so the memory held does not grow with the
// time between two Cuts.
func (j *journal) cut() (iter.Seq[*quota.Record], uint64, error) {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	j.writing.Lock()
	defer j.writing.Unlock()
	if err := j.write(); err != nil {
		return nil, 0, err
	}
	from, end := j.cutAt, j.segment.size
	if from == end {
		j.cutSeq = j.written
		return func(func(*quota.Record) bool) {}, j.cutSeq, nil
	}
	f, err := os.Open(j.segment.path)
	if err != nil {
		return nil, 0, fmt.Errorf("reading the journal back: %w", err)
	}
	if err = j.check(f, from, end); err == nil && end >= j.rotateAt {
		err = j.rotate()
	}
	if err != nil {
		closeFile(f)
		return nil, 0, err
	}
	if j.cutFile != nil {
		closeFile(j.cutFile)
	}
	j.cutFile, j.cutAt, j.cutSeq = f, j.segment.size, j.written
	j.tellLost()
	return func(yield func(*quota.Record) bool) { j.read(f, from, end, yield) }, j.cutSeq, nil
}

// check reads what a Cut will return, so that an error is told while the Cut
// can still be made again.
func (j *journal) check(f *os.File, from, end int64) error {
	j.cutScan.reset(f, from, end)
	for {
		_, err := j.cutScan.next()
		if j.cutScan.skipped > 0 {
			return fmt.Errorf("reading the journal back: %d bytes of %s have changed", j.cutScan.skipped, j.segment.path)
		}
		if err != nil {
			return ignoreEOF(err)
		}
	}
}

// read yields the records of a part of a segment that check has passed.
func (j *journal) read(f *os.File, from, end int64, yield func(*quota.Record) bool) {
	j.cutScan.reset(f, from, end)
	for {
		b, err := j.cutScan.next()
		var r *quota.Record
		if err == nil {
			r, err = j.cutReader.read(b)
		}
		if ignoreEOF(err) != nil || j.cutScan.skipped > 0 {
			j.log("reading the journal back: %v, %d bytes skipped: what was used since may be missing from the usage", err, j.cutScan.skipped)
		}
		if err != nil || !yield(r) {
			return
		}
	}
}

// rotate begins a new segment. syncing and writing are held.
func (j *journal) rotate() error {
	next, err := createSegment(j.dir, j.segment.number+1, j.written+1, j.fault)
	if err != nil {
		return err
	}
	j.sealed = append(j.sealed, j.segment)
	j.segment = next
	return nil
}

// tellLost logs that records were dropped, once they can be written again.
func (j *journal) tellLost() {
	first, last := j.lostFirst.Load(), j.lostLast.Load()
	if last == 0 || last > j.cutSeq {
		return
	}
	j.mu.Lock()
	lost := j.lost
	j.mu.Unlock()
	j.log("the journal can be written again: of the records %d to %d some were dropped, %d since the start", first, last, lost)
	j.lostFirst.Store(0)
	j.lostLast.Store(0)
}

// trim removes the segments that hold nothing after the record upTo.
func (j *journal) trim(upTo uint64) {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	kept := j.sealed[:0]
	for _, s := range j.sealed {
		if s.last > upTo {
			kept = append(kept, s)
			continue
		}
		s.close()
		if err := j.remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			j.log("removing a segment of the journal: %v", err)
			kept = append(kept, s)
		}
	}
	clear(j.sealed[len(kept):])
	j.sealed = kept
}

func (j *journal) remove(path string) error {
	return j.fault.step(StepRemove, path, func() error { return os.Remove(path) })
}

// cutThrough returns the last record before the last Cut.
func (j *journal) cutThrough() uint64 {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	return j.cutSeq
}

// size returns the bytes of all segments.
func (j *journal) size() (n int64) {
	j.syncing.Lock()
	defer j.syncing.Unlock()
	for _, s := range j.sealed {
		n += s.size
	}
	j.writing.Lock()
	defer j.writing.Unlock()
	if j.segment != nil {
		n += j.segment.size
	}
	return n
}

// close writes and syncs what is left, and closes the files.
func (j *journal) close() error {
	var err error
	if j.usable() == nil {
		j.writing.Lock()
		err = j.write()
		j.writing.Unlock()
		err = errors.Join(err, j.sync())
	}
	j.syncing.Lock()
	defer j.syncing.Unlock()
	j.writing.Lock()
	defer j.writing.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
	j.ended.Store(true)
	for _, s := range j.sealed {
		s.close()
	}
	if j.segment != nil {
		j.segment.close()
	}
	if j.cutFile != nil {
		closeFile(j.cutFile)
	}
	return err
}
