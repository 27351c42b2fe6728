package badger

import (
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// blocking is a file of which each write and sync waits while it is shut.
type blocking struct {
	file
	entered chan struct{} // one who waits
	open    chan struct{} // closed: it goes on
}

func block(f file) *blocking {
	return &blocking{file: f, entered: make(chan struct{}, 100), open: make(chan struct{})}
}

func (b *blocking) wait() {
	b.entered <- struct{}{}
	<-b.open
}

func (b *blocking) WriteAt(p []byte, off int64) (int, error) {
	b.wait()
	return b.file.WriteAt(p, off)
}

func (b *blocking) Sync() error {
	b.wait()
	return b.file.Sync()
}

const forEver = time.Hour // longer than a test may last

func TestHangingWriteHoldsUpOneCaller(t *testing.T) {
	dir := t.TempDir()
	s := ready(t, dir, t.Logf)
	j := s.journal
	f := block(j.segment.f)
	j.segment.f = f
	j.writing.patience = time.Millisecond
	flush := func() error { r := sample(j.seq + 1); return s.Flush(s.Append(&r)) }
	ok(t, s.Guard(epoch))

	first := make(chan error, 1)
	go func() { first <- flush() }()
	<-f.entered
	if err := flush(); !errors.Is(err, errStalled) {
		t.Fatalf("the second call: %v", err)
	}
	j.writing.patience = forEver // that it hangs is known: nobody waits again
	for range 3 {
		if err := flush(); !errors.Is(err, errStalled) {
			t.Fatalf("a later call: %v", err)
		}
	}
	for what, err := range map[string]error{
		"Guard": s.Guard(epoch.Add(time.Second)),
		"Cut":   func() error { _, _, err := s.Cut(); return err }(),
		"Sync":  s.Sync(1),
	} {
		if !errors.Is(err, errStalled) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := s.Info().SizeBytes; n < 0 {
		t.Errorf("size %d", n)
	}
	if _, err := s.Key(2); !errors.Is(err, quota.ErrNotFound) { // what is read is not held up
		t.Errorf("Key: %v", err)
	}

	close(f.open)
	ok(t, <-first)
	ok(t, flush())
	ok(t, s.Guard(epoch.Add(2*time.Second)))
	ok(t, s.Close())
	_, seqs := recovered(t, filepath.Join(dir, journalDir), t.Logf)
	equal(t, "records", upTo(6), seqs)
}

func TestHangingSyncHoldsUpNoFlush(t *testing.T) {
	s := ready(t, t.TempDir(), t.Logf)
	j := s.journal
	r := sample(1)
	ok(t, s.Flush(s.Append(&r)))
	f := block(j.segment.f)
	syncing := make(chan error, 1)
	j.segment.f = slowSync{f.file, f}
	go func() { syncing <- s.Sync(1) }()
	<-f.entered
	r = sample(2)
	ok(t, s.Flush(s.Append(&r)))
	// Guard takes it for what it is when it has lasted for longer than others
	// would wait.
	ok(t, s.Guard(epoch))
	ok(t, s.Guard(epoch.Add(stallAfter/2)))
	if err := s.Guard(epoch.Add(stallAfter)); !errors.Is(err, errStalled) {
		t.Errorf("Guard: %v", err)
	}
	j.syncing.patience = time.Millisecond
	if err := s.Checkpoint(&quota.Checkpoint{Through: 1}); !errors.Is(err, errStalled) {
		t.Errorf("Checkpoint: %v", err)
	}
	close(f.open)
	ok(t, <-syncing)
	ok(t, s.Guard(epoch.Add(time.Minute)))
	ok(t, s.Checkpoint(&quota.Checkpoint{Through: 1}))
}

// slowSync waits only when it is synced.
type slowSync struct {
	file
	slow *blocking
}

func (f slowSync) Sync() error { return f.slow.Sync() }

func TestHangingChangeHoldsUpNoOther(t *testing.T) {
	hang := make(chan struct{})
	entered := make(chan struct{}, 10)
	o := keptOptions(t.TempDir(), t.Logf)
	var armed atomic.Bool
	o.Fault = func(step Step, _ string, done bool) error {
		if step == StepCommit && !done && armed.Load() {
			entered <- struct{}{}
			<-hang
		}
		return nil
	}
	s, err := Open(o)
	ok(t, err)
	defer s.Close()
	recoverTruth(t, s)
	armed.Store(true)
	first := make(chan error, 1)
	go func() { first <- s.Put(keys(1), nil) }()
	<-entered
	s.tables.writing.patience = time.Millisecond
	if err := s.Put(keys(2), nil); !errors.Is(err, errStalled) {
		t.Errorf("Put: %v", err)
	}
	if err := s.Guard(epoch); !errors.Is(err, errStalled) {
		t.Errorf("Guard: %v", err)
	}
	if _, err := s.Snapshot(); !errors.Is(err, errStalled) {
		t.Errorf("Snapshot: %v", err)
	}
	armed.Store(false)
	close(hang)
	ok(t, <-first)
	s.tables.writing.patience = changePatience
	ok(t, s.Put(keys(2), nil))
	ok(t, s.Guard(epoch))
}

func TestLatchIsALock(t *testing.T) {
	l := newLatch()
	n := 0
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 1000 {
				if err := l.lock(); err != nil {
					t.Error(err)
					return
				}
				n++
				l.unlock()
			}
		})
	}
	all.Wait()
	if n != 8000 {
		t.Errorf("%d", n)
	}
}
