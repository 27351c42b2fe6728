package badger

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// snapshot implements quota.Snapshot.
type snapshot struct {
	s       *Store
	txn     *badger.Txn
	meta    meta
	tail    []stretch // of the journal, with all records after meta.base()
	last    uint64    // the last record in it
	puts    uint64    // changes to keys and groups in it, since the start
	created time.Time
	closed  func() error
}

// stretch is a part of a segment, from its header on.
type stretch struct {
	f   *os.File
	end int64
}

// Snapshot implements quota.Store. The store's Close waits for snapshots to be
// closed; a backup that is being written ends with an error then.
func (s *Store) Snapshot() (quota.Snapshot, error) {
	sn, err := s.snapshot()
	if err != nil {
		return nil, fmt.Errorf("taking a snapshot: %w", err)
	}
	return sn, nil
}

func (s *Store) snapshot() (*snapshot, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	sn := &snapshot{s: s, created: s.options.now(), puts: s.puts.Load()}
	sn.closed = sync.OnceValue(sn.release)
	if err := sn.take(); err != nil {
		return nil, errors.Join(err, sn.Close())
	}
	return sn, nil
}

// take takes what the store is now. No change is under way.
func (sn *snapshot) take() (err error) {
	if err := sn.s.journal.usable(); err != nil {
		return err
	}
	t := sn.s.tables
	if err := t.writing.lock(); err != nil {
		return err
	}
	defer t.writing.unlock()
	if err := t.settle(); err != nil {
		return err
	}
	sn.meta = t.meta
	sn.txn = t.db.NewTransaction(false)
	sn.tail, sn.last, err = sn.s.journal.view(sn.meta.base())
	return err
}

// view opens the segments that hold records after base, and returns the last
// record in them.
func (j *journal) view(base uint64) (tail []stretch, last uint64, err error) {
	if err := j.lockBoth(); err != nil {
		return nil, 0, err
	}
	defer j.unlockBoth()
	for _, s := range append(j.sealed[:len(j.sealed):len(j.sealed)], j.segment) {
		last = max(last, s.last)
		if s.last <= base {
			continue
		}
		f, err := os.Open(s.path)
		if err != nil {
			return tail, 0, fmt.Errorf("reading the journal: %w", err)
		}
		tail = append(tail, stretch{f, s.size})
	}
	return tail, last, nil
}

// Through implements quota.Snapshot.
func (sn *snapshot) Through() uint64 { return sn.meta.through }

// Accounts implements quota.Snapshot.
func (sn *snapshot) Accounts(fn func(*quota.AccountCounters) error) error {
	return scan(sn.txn, tableCounters, []byte{tableCounters}, false, func(item *badger.Item) error {
		id, err := decodeID(item.Key()[1:])
		if err != nil {
			return err
		}
		a := quota.AccountCounters{ID: id}
		if err := item.Value(func(b []byte) error { return decodeCounters(b, &a.Counters) }); err != nil {
			return fmt.Errorf("reading the counters of %s: %w", id, err)
		}
		return fn(&a)
	})
}

// Open implements quota.Snapshot.
func (sn *snapshot) Open(fn func(*quota.Record) error) error { return sn.s.tables.openIn(sn.txn, fn) }

// Usage implements quota.Snapshot.
func (sn *snapshot) Usage(q quota.RowQuery, fn func(*quota.Row) error) error {
	return queryRows(sn.txn, q, fn)
}

// Tail implements quota.Snapshot.
func (sn *snapshot) Tail(fn func(*quota.Record) error) error {
	return sn.eachRecord(func(r *quota.Record, _ []byte) error { return fn(r) })
}

// eachRecord calls fn for each record after meta.base(), as Recover would
// replay them.
func (sn *snapshot) eachRecord(fn func(r *quota.Record, b []byte) error) error {
	f := frames{base: sn.meta.base()}
	for _, st := range sn.tail {
		if err := f.read(st.f, st.end, fn); err != nil {
			return fmt.Errorf("reading the journal: %w", err)
		}
	}
	return nil
}

// frames reads the records of segments, one after the other, each after base
// and once.
type frames struct {
	base uint64
	scan scanner
	rd   recordReader
}

func (f *frames) read(r io.ReaderAt, end int64, fn func(r *quota.Record, b []byte) error) error {
	f.scan.reset(r, min(headerSize, end), end)
	for {
		b, err := f.scan.next()
		if err != nil {
			return ignoreEOF(err)
		}
		r, err := f.rd.read(b)
		if err != nil || r.Seq <= f.base { // Recover passes over what cannot be read, too
			continue
		}
		f.base = r.Seq
		if err := fn(r, b); err != nil {
			return err
		}
	}
}

// WriteTo implements quota.Snapshot.
func (sn *snapshot) WriteTo(w io.Writer) (int64, error) {
	iw, err := newImageWriter(w, &imageHeader{
		Engine: imageEngine, Schema: int(sn.meta.schema), Created: sn.created.UTC(),
		Commit: sn.meta.commit, Through: sn.meta.through, Base: sn.meta.base(), Last: sn.last,
	})
	if err == nil {
		if err = sn.write(iw); err != nil {
			iw.abort()
		}
	}
	var n int64
	if iw != nil {
		n = iw.out.n
	}
	if err != nil {
		return n, fmt.Errorf("writing a backup: %w", err)
	}
	return n, nil
}

func (sn *snapshot) write(iw *imageWriter) error {
	if err := iw.add(frameHashKey, sn.s.hashKey); err != nil {
		return err
	}
	it := sn.txn.NewIterator(badger.DefaultIteratorOptions)
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		if sn.s.closing.Load() { // it waits for this to end
			return quota.ErrClosed
		}
		item := it.Item()
		if err := item.Value(func(b []byte) error { return iw.add(frameRows, item.Key(), b) }); err != nil {
			return err
		}
	}
	if err := sn.eachRecord(func(_ *quota.Record, b []byte) error { return iw.add(frameRecords, b) }); err != nil {
		return err
	}
	return iw.close()
}

// Close implements quota.Snapshot.
func (sn *snapshot) Close() error { return sn.closed() }

func (sn *snapshot) release() error {
	if sn.txn != nil {
		sn.txn.Discard()
	}
	var err error
	for _, st := range sn.tail {
		err = errors.Join(err, st.f.Close())
	}
	sn.s.leave()
	return err
}

// Interface guard.
var _ quota.Snapshot = (*snapshot)(nil)
