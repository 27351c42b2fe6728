// Package storetest tells whether an engine keeps what quota.Store promises.
// Every engine runs the same suite, so that a limit, a reservation and a row
// of usage mean the same wherever they are kept.
package storetest

import (
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Opener opens the store that dir names, or makes it: the same dir is the same
// store again, another dir another. An engine that keeps its data elsewhere
// may use dir as a name only. The suite closes what it opens, and calls
// Recover itself. Flush need not survive a power loss.
type Opener = func(t testing.TB, dir string) quota.Store

// Run runs the suite.
func Run(t *testing.T, open Opener) {
	for _, part := range []struct {
		name string
		run  func(*testing.T, Opener)
	}{
		{"Directory", testDirectory},
		{"Journal", testJournal},
		{"Checkpoint", testCheckpoint},
		{"Usage", testUsage},
		{"Notes", testNotes},
		{"Snapshot", testSnapshot},
		{"Life", testLife},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(t, open) })
	}
}

// store is a store under test, with what Recover returned.
type store struct {
	quota.Store
	t       testing.TB
	open    Opener
	dir     string
	opened  []quota.Record
	replay  []quota.Record
	through uint64
}

// start opens and recovers a new store, which the end of the test closes.
func start(t testing.TB, open Opener) *store {
	t.Helper()
	return startIn(t, open, t.TempDir())
}

func startIn(t testing.TB, open Opener, dir string) *store {
	t.Helper()
	s := &store{Store: open(t, dir), t: t, open: open, dir: dir}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !errors.Is(err, quota.ErrClosed) {
			t.Errorf("Close: %v", err)
		}
	})
	var err error
	s.through, err = s.Recover(
		func(r *quota.Record) error { s.opened = append(s.opened, clone(r)); return nil },
		func(r *quota.Record) error { s.replay = append(s.replay, clone(r)); return nil },
	)
	ok(t, err)
	return s
}

// again closes the store and opens it anew.
func (s *store) again() *store {
	s.t.Helper()
	ok(s.t, s.Close())
	return startIn(s.t, s.open, s.dir)
}

// crashed opens what a process that was killed now would leave. It skips the
// test when the engine keeps nothing in its directory.
func (s *store) crashed() *store {
	s.t.Helper()
	dir := s.t.TempDir()
	if n := copyDir(s.t, s.dir, dir); n == 0 {
		s.t.Skip("the engine keeps no files: a crash of this process changes nothing")
	}
	return startIn(s.t, s.open, dir)
}

// cut returns copies of what Cut yields.
func (s *store) cut() (list []quota.Record, through uint64) {
	s.t.Helper()
	records, through, err := s.Cut()
	ok(s.t, err)
	for r := range records {
		list = append(list, clone(r))
	}
	return list, through
}

func clone(r *quota.Record) quota.Record {
	c := *r
	c.Shares = append([]quota.Share(nil), r.Shares...)
	return c
}

// copyDir copies a directory and returns the number of files. Stretches of
// zeros become holes, as they are in the files that engines map.
func copyDir(t testing.TB, from, to string) (n int) {
	t.Helper()
	var err error
	for range 100 { // an open store tidies up by itself: again, if a file went
		ok(t, os.RemoveAll(to))
		if n, err = tryCopy(from, to); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	ok(t, err)
	return n
}

func tryCopy(from, to string) (n int, err error) {
	err = filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, path)
		target := filepath.Join(to, rel)
		if d.IsDir() {
			return os.MkdirAll(target, 0o700)
		}
		n++
		return copySparse(path, target)
	})
	return n, err
}

func copySparse(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	var zeros [64 << 10]byte
	buf := make([]byte, len(zeros))
	for off := int64(0); ; {
		n, err := in.ReadAt(buf, off)
		if string(buf[:n]) != string(zeros[:n]) {
			if _, err := out.WriteAt(buf[:n], off); err != nil {
				return err
			}
		}
		off += int64(n)
		if errors.Is(err, io.EOF) {
			return out.Truncate(off)
		}
		if err != nil {
			return err
		}
	}
}

// failer is a *testing.T or a *rapid.T.
type failer interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func ok(t failer, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func is(t failer, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("error is %v, want %v", err, target)
	}
}

var comparers = cmp.Options{
	cmp.AllowUnexported(quota.Bound{}),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

func same(t failer, what string, want, got any) {
	t.Helper()
	if d := cmp.Diff(want, got, comparers); d != "" {
		t.Fatalf("%s (-want +got):\n%s", what, d)
	}
}

// ids makes IDs, each greater than the last.
type ids struct{ last quota.ID }

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)

func (g *ids) next(kind quota.Kind) quota.ID {
	g.last = quota.NextID(kind, g.last, epoch)
	return g.last
}

func hash(n uint32) (h quota.SecretHash) {
	h[0], h[1], h[2], h[3], h[31] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n), 1
	return h
}

func (g *ids) key(name string, secrets ...uint32) *quota.Key {
	k := &quota.Key{
		ID: g.next(quota.KindKey), Name: name, Prefix: "lq_12345678", Source: quota.SourceAPI,
		CreatedAt: epoch, UpdatedAt: epoch,
	}
	for _, n := range secrets {
		k.Secrets = append(k.Secrets, quota.Secret{Hash: hash(n)})
	}
	return k
}

func (g *ids) group(name string) *quota.Group {
	return &quota.Group{
		ID: g.next(quota.KindGroup), Name: name, Source: quota.SourceAPI, CreatedAt: epoch, UpdatedAt: epoch,
	}
}
