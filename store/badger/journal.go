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
	lose     func(what string) // told of losses, besides log
	putAway  func(path string, cause error) error
	room     *room // nil: endless
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
	writing  *latch
	segment  *segment
	out      []byte // what is left of the frames that are being written
	outSeq   uint64 // the last record in out
	written  uint64 // every record up to this one is in the file
	unlooked int    // bytes written since the room on the disk was looked at
	held     atomic.Int64
	bytes    atomic.Int64 // size, as it was last known

	// flushed is what Flush may return for without a look at anything else,
	// but for the dropped records, of which lostLast is the last.
	flushed   atomic.Uint64
	lostFirst atomic.Uint64
	lostLast  atomic.Uint64
	ended     atomic.Bool // close was called

	// syncing is held while files are synced, made or removed.
	syncing *latch
	sealed  []*segment // those before segment, the oldest first
	cutAt   int64      // where in segment the last Cut was made
	cutSeq  uint64     // the last record before it
	trimmed uint64     // no record up to this one is needed any more
	kept    uint64     // segments with a record after it are kept, up to keepMost bytes; 0: none
	durable uint64     // every record up to this one survives a power loss
	toldOf  uint64     // lostFirst of the losses that were told

	// What the last Cut's iterator reads with.
	cutFile   *os.File
	cutScan   scanner
	cutReader recordReader
}

func newJournal(dir string, log func(format string, args ...any)) *journal {
	return &journal{
		dir: dir, log: log, lose: func(string) {}, putAway: func(_ string, err error) error { return err }, limit: maxHeld, rotateAt: segmentSize,
		writing: newLatch(), syncing: newLatch(),
	}
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
	if err := j.writing.lock(); err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	defer j.writing.unlock()
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
		if err := j.admit(); err != nil {
			j.held.Store(int64(len(j.out)))
			return fmt.Errorf("writing the journal: %w", err)
		}
		n, err := j.segment.f.WriteAt(j.out, j.segment.size)
		j.segment.size += int64(n)
		j.unlooked += n
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

// lookEvery is how many bytes are written between two looks at the room.
const lookEvery = 1 << 20

// admit leaves the last megabytes of the disk to the tables, which must have
// them, where the journal can wait.
func (j *journal) admit() error {
	if j.room == nil || (j.unlooked < lookEvery && !j.room.full.Load()) || j.ended.Load() {
		return nil
	}
	j.unlooked = 0
	return j.room.admit()
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

// sync makes all that was flushed survive a power loss, and returns the number
// of the last record that does.
func (j *journal) sync() (durable uint64, err error) {
	if err := j.syncing.lock(); err != nil {
		return 0, fmt.Errorf("syncing the journal: %w", err)
	}
	defer j.syncing.unlock()
	if j.syncEach { // then write syncs, too
		if err := j.writing.lock(); err != nil {
			return 0, fmt.Errorf("syncing the journal: %w", err)
		}
		defer j.writing.unlock()
	}
	for _, s := range j.sealed {
		if s.f == nil {
			continue
		}
		if err := s.sync(s.size); err != nil {
			return 0, err
		}
		s.close()
	}
	s, size, last, err := j.end()
	if err != nil || s == nil {
		return 0, err
	}
	if err := s.sync(size); err != nil {
		return 0, err
	}
	j.durable = max(j.durable, last)
	return j.durable, nil
}

// end returns the segment that is written, how far it is, and its last record.
func (j *journal) end() (s *segment, size int64, last uint64, err error) {
	if !j.syncEach {
		if err := j.writing.lock(); err != nil {
			return nil, 0, 0, fmt.Errorf("syncing the journal: %w", err)
		}
		defer j.writing.unlock()
	}
	if j.segment == nil {
		return nil, 0, 0, nil
	}
	return j.segment, j.segment.size, j.segment.last, nil
}

// cut implements quota.Journal. What was appended is read back from the file:
// it lies in the system's cache, and so the memory held does not grow with the
// time between two Cuts.
func (j *journal) cut() (iter.Seq[*quota.Record], uint64, error) {
	if err := j.lockBoth(); err != nil {
		return nil, 0, err
	}
	defer j.unlockBoth()
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

func (j *journal) lockBoth() error {
	if err := j.syncing.lock(); err != nil {
		return fmt.Errorf("using the journal: %w", err)
	}
	if err := j.writing.lock(); err != nil {
		j.syncing.unlock()
		return fmt.Errorf("using the journal: %w", err)
	}
	return nil
}

func (j *journal) unlockBoth() {
	j.writing.unlock()
	j.syncing.unlock()
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
			j.lose(fmt.Sprintf("a part of %s could not be read back (%v, %d bytes skipped): what was used in the seconds before is missing from the usage", f.Name(), err, j.cutScan.skipped))
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
	j.tellDropped()
	j.mu.Lock()
	lost := j.lost
	j.mu.Unlock()
	j.log("the journal can be written again: of the records %d to %d some were dropped, %d since the start", first, last, lost)
	j.lostFirst.Store(0)
	j.lostLast.Store(0)
}

// tellDropped tells of records that are being dropped, once. syncing is held.
func (j *journal) tellDropped() {
	if first := j.lostFirst.Load(); first > 0 && first != j.toldOf {
		j.toldOf = first
		j.lose(fmt.Sprintf("the journal could not be written for so long that records were dropped, from number %d on: what those calls used is charged in memory, and lost when the process ends", first))
	}
}

// cutThrough returns the last record before the last Cut, or 0 while the disk
// hangs.
func (j *journal) cutThrough() uint64 {
	if j.syncing.lock() != nil {
		return 0
	}
	defer j.syncing.unlock()
	return j.cutSeq
}

// size returns the bytes of all segments, as they were last known.
func (j *journal) size() int64 {
	if j.lockBoth() != nil {
		return j.bytes.Load()
	}
	defer j.unlockBoth()
	var n int64
	for _, s := range j.sealed {
		n += s.size
	}
	if j.segment != nil {
		n += j.segment.size
	}
	j.bytes.Store(n)
	return n
}

// close writes and syncs what is left, and closes the files. A disk that hangs
// keeps them open.
func (j *journal) close() error {
	err := j.usable()
	if err == nil {
		err = j.writeLast()
		_, serr := j.sync()
		err = errors.Join(err, serr)
	} else {
		err = nil
	}
	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	j.ended.Store(true)
	if lerr := j.lockBoth(); lerr != nil {
		return errors.Join(err, lerr)
	}
	defer j.unlockBoth()
	j.tellDropped()
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

// writeLast writes what is left, also into the last megabytes of the disk:
// there is no later.
func (j *journal) writeLast() error {
	if err := j.writing.lock(); err != nil {
		return fmt.Errorf("writing the journal: %w", err)
	}
	defer j.writing.unlock()
	j.room = nil
	return j.write()
}
