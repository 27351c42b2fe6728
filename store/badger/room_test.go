package badger

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// disk is one of which the free space is as it is told, less the ballast.
type disk struct {
	size atomic.Int64 // free, but for the ballast
	dir  string
}

func (d *disk) free(string) (uint64, bool) {
	n := d.size.Load()
	if info, err := os.Stat(filepath.Join(d.dir, ballastName)); err == nil {
		n -= info.Size()
	}
	return uint64(max(0, n)), true
}

// onDisk returns a store on a disk of that many bytes.
func onDisk(t testing.TB, size int64) (*Store, *disk, *logs) {
	t.Helper()
	d := &disk{dir: t.TempDir()}
	d.size.Store(size)
	l := new(logs)
	o := keptOptions(d.dir, l.log)
	o.free = d.free
	s, err := Open(o)
	ok(t, err)
	t.Cleanup(func() { d.size.Store(1 << 40); s.Close() })
	recoverTruth(t, s)
	return s, d, l
}

func TestBallast(t *testing.T) {
	s, d, l := onDisk(t, 1<<30)
	path := filepath.Join(d.dir, ballastName)
	now := epoch
	guard := func(wantErr error, ballast bool) {
		t.Helper()
		now = now.Add(lookAtRoom)
		if err := s.Guard(now); !errors.Is(err, wantErr) || (wantErr == nil && err != nil) {
			t.Errorf("Guard: %v, want %v", err, wantErr)
		}
		if exists(path) != ballast {
			t.Errorf("with %d bytes: ballast %v, want %v", d.size.Load(), !ballast, ballast)
		}
	}
	guard(nil, true)
	info, err := os.Stat(path)
	ok(t, err)
	if info.Size() != ballastSize || info.Mode().Perm() != 0o600 {
		t.Errorf("%d bytes, mode %o", info.Size(), info.Mode().Perm())
	}
	if n := blocks(t, info); n >= 0 && n < ballastSize {
		t.Errorf("it takes %d bytes of the disk", n)
	}
	ok(t, os.Truncate(path, 5)) // one that is too small is made anew
	guard(nil, true)
	if info, err := os.Stat(path); err != nil || info.Size() != ballastSize {
		t.Errorf("made anew: %v, %v", info, err)
	}

	d.size.Store(minFree + ballastSize) // just enough
	guard(nil, true)
	d.size.Store(minFree + ballastSize - 1)
	guard(errNoRoom, false)
	l.has(t, "the tables are not written until there are 117440512")
	if err := s.Guard(now); err == nil || !strings.Contains(err.Error(), "the disk has 100663295 bytes free, 117440512 are needed") {
		t.Errorf("Guard: %v", err)
	}
	if err := s.Put(keys(1), nil); !errors.Is(err, errNoRoom) {
		t.Errorf("Put: %v", err)
	}
	d.size.Store(minFree + ballastSize + minFree/4 - 1) // more than the floor, but not enough for the ballast
	guard(errNoRoom, false)
	d.size.Store(minFree + ballastSize + minFree/4)
	guard(nil, true)
	l.has(t, "the tables are written")
	ok(t, s.Put(keys(1), nil))

	d.size.Store(minFree + ballastSize - 1) // a change notices, too
	if err := s.Put(keys(2), nil); !errors.Is(err, errNoRoom) || exists(path) {
		t.Errorf("Put: %v, ballast %v", err, exists(path))
	}
	d.size.Store(1 << 30)
	ok(t, s.Put(keys(2), nil))
}

func TestFillingADisk(t *testing.T) { // where it cannot be taken at once
	path := filepath.Join(t.TempDir(), ballastName)
	f, err := os.Create(path)
	ok(t, err)
	defer f.Close()
	ok(t, fill(f, 1<<20))
	info, err := f.Stat()
	ok(t, err)
	if n := blocks(t, info); info.Size() != 1<<20 || (n >= 0 && n < 1<<20) {
		t.Errorf("%d bytes, %d on the disk", info.Size(), n)
	}
}

func TestBallastThatCannotBeMade(t *testing.T) {
	s, d, l := onDisk(t, 1<<30)
	path := filepath.Join(d.dir, ballastName)
	ok(t, os.MkdirAll(filepath.Join(path, "in the way"), 0o700))
	ok(t, s.Guard(epoch))
	l.has(t, "taking room on the disk")
	ok(t, s.Put(keys(1), nil))
}

func TestJournalLeavesTheLastMegabytes(t *testing.T) {
	s, d, _ := onDisk(t, 1<<30)
	put := func() error { r := sample(1); return s.Flush(s.Append(&r)) }
	ok(t, put())
	d.size.Store(minJournal - 1)
	if err := s.Guard(epoch); !errors.Is(err, errNoRoom) {
		t.Errorf("Guard: %v", err)
	}
	size := s.journal.segment.size
	for range 3 {
		if err := put(); !errors.Is(err, errNoRoom) {
			t.Errorf("Flush: %v", err)
		}
	}
	if s.journal.segment.size != size {
		t.Error("it was written to")
	}
	d.size.Store(minJournal)
	ok(t, put())

	// Without Guard it looks by itself, after what is written.
	d.size.Store(minJournal - 1)
	var err error
	for n := 0; err == nil && n < 2*lookEvery; n += 10 { // a record takes more
		err = put()
	}
	if !errors.Is(err, errNoRoom) {
		t.Errorf("Flush: %v", err)
	}
	written := s.journal.seq
	// What is left when it closes is written all the same.
	if err := s.Close(); !errors.Is(err, errNoRoom) || !strings.Contains(err.Error(), "the tables stay open") {
		t.Errorf("Close: %v", err)
	}
	left := t.TempDir()
	copyStore(t, d.dir, left)
	d.size.Store(1 << 40)
	again := ready(t, left, t.Logf)
	if again.journal.seq != written {
		t.Errorf("%d records are there, want %d", again.journal.seq, written)
	}
	ok(t, s.tables.db.Close())
}

func TestOpenGivesUpTheBallast(t *testing.T) {
	s, d, _ := onDisk(t, 1<<30)
	path := filepath.Join(d.dir, ballastName)
	ok(t, s.Guard(epoch))
	ok(t, s.Put(keys(1), nil))
	ok(t, s.Close())
	open := func() (*Store, error) {
		o := keptOptions(d.dir, t.Logf)
		o.free = d.free
		return Open(o)
	}
	d.size.Store(minOpen - 1)
	if _, err := open(); !errors.Is(err, errNoRoom) || exists(path) {
		t.Fatalf("error is %v", err)
	}
	ok(t, os.WriteFile(path, nil, 0o600))
	ok(t, os.Truncate(path, ballastSize))
	d.size.Store(minOpen + 1) // less than nothing without what the ballast takes
	s, err := open()
	ok(t, err)
	recoverTruth(t, s)
	if exists(path) {
		t.Error("the ballast is there")
	}
	if err := s.Guard(epoch); !errors.Is(err, errNoRoom) {
		t.Errorf("Guard: %v", err)
	}
	r := sample(1)
	ok(t, s.Flush(s.Append(&r)))
	if _, err := s.Key(2); err != nil {
		t.Error(err)
	}
	ok(t, s.Close())
}

func TestUnknownRoomIsEndless(t *testing.T) {
	o := keptOptions(t.TempDir(), t.Logf)
	o.free = func(string) (uint64, bool) { return 0, false }
	s, err := Open(o)
	ok(t, err)
	recoverTruth(t, s)
	ok(t, s.Put(keys(1), nil))
	use(t, s, 3)
	saveSnapshot(t, s, epoch)
	ok(t, s.Guard(epoch))
	if exists(filepath.Join(o.Dir, ballastName)) {
		t.Error("there is a ballast")
	}
	ok(t, s.Close())
}

func TestGuardLooksFromTimeToTime(t *testing.T) {
	s, d, _ := onDisk(t, 1<<30)
	ok(t, s.Guard(epoch))
	looks := 0
	s.tables.room.free = func(dir string) (uint64, bool) { looks++; return d.free(dir) }
	for n := range 10 {
		ok(t, s.Guard(epoch.Add(time.Duration(n)*lookAtRoom/10)))
	}
	if looks != 0 {
		t.Errorf("%d looks", looks)
	}
	ok(t, s.Guard(epoch.Add(lookAtRoom)))
	if looks == 0 {
		t.Error("no look")
	}
	ok(t, os.MkdirAll(filepath.Join(d.dir, damagedDir), 0o700))
	ok(t, os.WriteFile(filepath.Join(d.dir, damagedDir, "mine"), nil, 0o600))
	if err := s.Guard(epoch.Add(3 * lookAtRoom)); !errors.Is(err, quota.ErrDamaged) || !strings.Contains(err.Error(), "see mine in "+d.dir) {
		t.Errorf("Guard: %v", err)
	}
	ok(t, os.Remove(filepath.Join(d.dir, damagedDir, "mine")))
	if err := s.Guard(epoch.Add(3 * lookAtRoom)); !errors.Is(err, quota.ErrDamaged) {
		t.Errorf("Guard at the same time: %v", err)
	}
	ok(t, os.MkdirAll(filepath.Join(d.dir, damagedDir, "empty"), 0o700))
	ok(t, s.Guard(epoch.Add(5*lookAtRoom)))
}
