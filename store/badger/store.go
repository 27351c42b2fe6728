// Package badger is the store of a single node: what happens goes into a
// write-ahead file, and from there, checkpoint by checkpoint, into tables in
// an embedded Badger database.
//
// The file is what makes a call cheap: a write into the system's cache
// survives the death of the process and costs a microsecond, where a commit of
// Badger's costs many and wakes several goroutines. The tables are written
// every few seconds, in whole changes, each of them durable when it is done.
//
// In the data directory lie
//
//	badger/       the tables
//	journal/      the segments of the write-ahead file
//	hash.key      the key of the secrets' hashes
//	tables.mark   the numbers of the last change and record, to see when some are lost
//	change.redo   a great change, while it is being made
//	snapshots/    the tables as they were, and what the journal held then
//	ballast       room on the disk, to be given up when there is no other
//	damaged/      what was found damaged, and notes of what was lost
//
// Tables that are damaged never stop the start: they are put away, and made
// again from the newest snapshot and the journal. What is lost all the same is
// told by Guard until somebody has looked into it.
package badger

import (
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Options say where a store is kept and how safely.
type Options struct {
	// Dir is the data directory. It is made, with mode 0700, if it is missing.
	Dir string
	// SyncInterval is how often the caller will call Sync. 0 means that it
	// need not: every Flush survives a power loss when it returns.
	SyncInterval time.Duration
	// SnapshotEvery is how much time SnapshotDue leaves between two snapshots. 0:
	// none is ever due.
	SnapshotEvery time.Duration
	// Snapshots is how many saved snapshots are kept; fewer, when they take more
	// than a quarter of the room on the disk. 0: none can be saved.
	Snapshots int
	// Logger takes what an operator should know: damage, losses, and Badger's
	// own warnings. Default: nothing is logged.
	Logger func(format string, args ...any)
	// SegmentSize is the size in bytes above which a new file of the journal is
	// begun. Default: 4 MiB.
	SegmentSize int64
	// Fault, in simulations, makes steps fail. Default: none does.
	Fault Fault

	now  func() time.Time                // for names and durations; default: time.Now
	free func(dir string) (uint64, bool) // default: freeBytes
}

// Store implements quota.Store.
type Store struct {
	options Options
	hashKey []byte
	tables  *tables
	journal *journal

	saved      saved
	puts       atomic.Uint64 // changes to keys and groups since the start
	watch      watch
	recovered  atomic.Bool
	compacting atomic.Bool
	lastSync   atomic.Int64

	// users counts the calls that are under way; Close waits for them.
	mu     sync.Mutex
	users  int
	closed bool
	idle   chan struct{}

	closing atomic.Bool // closed, for those who look often
}

// enter begins a use of the store, which leave ends.
func (s *Store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return quota.ErrClosed
	}
	s.users++
	return nil
}

func (s *Store) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users == 0 && s.closed {
		close(s.idle)
	}
}

// HashKey implements quota.Directory.
func (s *Store) HashKey() []byte { return append([]byte(nil), s.hashKey...) }

// Recover implements quota.Store.
func (s *Store) Recover(open, replay func(*quota.Record) error) (through uint64, err error) {
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.leave()
	if s.recovered.Swap(true) {
		return 0, errors.New("recovering a store that was recovered before")
	}
	if err := s.tables.open(open); err != nil {
		return 0, fmt.Errorf("recovering open reservations: %w", err)
	}
	m := s.tables.meta
	if err := s.journal.recover(m.base(), max(m.last, s.tables.mark.durable), replay); err != nil {
		return 0, fmt.Errorf("recovering the journal: %w", err)
	}
	return m.through, nil
}

// Append implements quota.Journal. While the journal cannot be written, up to
// 64 MiB of records are held; what comes on top is dropped and counted, and
// Flush returns an error for it also when the journal can be written again.
func (s *Store) Append(r *quota.Record) uint64 { return s.journal.append(r) }

// Flush implements quota.Journal.
func (s *Store) Flush(seq uint64) error { return s.journal.flush(seq) }

// Cut implements quota.Journal. The records are read back from the file.
func (s *Store) Cut() (records iter.Seq[*quota.Record], through uint64, err error) {
	if err := s.enter(); err != nil {
		return nil, 0, err
	}
	defer s.leave()
	return s.journal.cut()
}

// Uncut implements quota.Store.
func (s *Store) Uncut(fn func(*quota.Record) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	return s.journal.uncut(fn)
}

// Lost returns how many records of the journal were found missing by Recover
// or have been dropped since.
func (s *Store) Lost() uint64 {
	s.journal.mu.Lock()
	defer s.journal.mu.Unlock()
	return s.journal.lost
}

// Sync implements quota.Store. What the tables hold is on the disk already.
func (s *Store) Sync(now int64) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	durable, err := s.journal.sync()
	if err != nil {
		return err
	}
	s.tables.mark.synced(durable)
	s.lastSync.Store(now)
	return nil
}

// Info implements quota.Store. The size is that of the tables on disk and the
// journal; a few megabytes that wait in memory to become a table are not in it.
func (s *Store) Info() quota.StoreInfo {
	info := quota.StoreInfo{Engine: "badger", LastSync: s.lastSync.Load()}
	if s.enter() != nil {
		return info
	}
	defer s.leave()
	info.SizeBytes = s.journal.size()
	for _, level := range s.tables.db.Levels() {
		info.SizeBytes += level.Size
	}
	return info
}

// Close implements quota.Store. It waits for calls that are under way, and
// must not be made from within one.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return quota.ErrClosed
	}
	s.closed = true
	s.closing.Store(true)
	if s.users == 0 {
		close(s.idle)
	}
	s.mu.Unlock()
	<-s.idle
	err := s.journal.close()
	s.tables.mark.synced(s.journal.durable)
	err = errors.Join(err, s.tables.close())
	if err != nil {
		return fmt.Errorf("closing the store in %s: %w", s.options.Dir, err)
	}
	return nil
}

// logger passes on Badger's errors and warnings.
type logger func(format string, args ...any)

func (l logger) Errorf(format string, args ...any)   { l("badger: "+format, args...) }
func (l logger) Warningf(format string, args ...any) { l("badger: "+format, args...) }
func (l logger) Infof(string, ...any)                {}
func (l logger) Debugf(string, ...any)               {}

// Interface guards.
var (
	_ quota.Store   = (*Store)(nil)
	_ badger.Logger = logger(nil)
)
