package badger

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func openIn(t testing.TB, dir string, log func(string, ...any)) *Store {
	t.Helper()
	s, err := Open(Options{Dir: dir, SyncInterval: 1, Logger: log})
	ok(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

// ready returns a store that is recovered.
func ready(t testing.TB, dir string, log func(string, ...any)) *Store {
	t.Helper()
	s := openIn(t, dir, log)
	ignore := func(*quota.Record) error { return nil }
	_, err := s.Recover(ignore, ignore)
	ok(t, err)
	return s
}

// keys makes n keys with names and a secret each.
func keys(n int) []*quota.Key {
	list := make([]*quota.Key, n)
	for i := range list {
		k := &quota.Key{ID: quota.ID(i+1) << 1, Name: fmt.Sprintf("key %d", i), Source: quota.SourceAPI, Prefix: "lq_12345678"}
		k.Secrets = []quota.Secret{{}}
		binary.BigEndian.PutUint64(k.Secrets[0].Hash[:], uint64(i)*0x9E3779B97F4A7C15)
		list[i] = k
	}
	return list
}

func refuses(t *testing.T, dir string, part string) {
	t.Helper()
	s, err := Open(Options{Dir: dir, Logger: t.Logf})
	if err == nil {
		s.Close()
		t.Fatal("it opens")
	}
	if !strings.Contains(err.Error(), part) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("error %q lacks %q or the directory", err, part)
	}
}

func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	s := ready(t, dir, t.Logf)
	ok(t, s.Put(keys(1), nil))
	for name, want := range map[string]os.FileMode{
		".": 0o700, "badger": 0o700, "journal": 0o700, "hash.key": 0o600, "tables.mark": 0o600, "journal/0000000001.log": 0o600,
	} {
		info, err := os.Stat(filepath.Join(dir, name))
		ok(t, err)
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", name, got, want)
		}
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	dir := t.TempDir()
	openIn(t, dir, t.Logf)
	refuses(t, dir, "in use")
}

func TestHashKeyIsNeverReplaced(t *testing.T) {
	dir := t.TempDir()
	s := openIn(t, dir, t.Logf)
	path := filepath.Join(dir, hashKeyName)
	want := s.HashKey()
	ok(t, s.Close())
	for what, content := range map[string][]byte{
		"has 5 bytes": []byte("short"), "has 0 bytes": {}, "is not the one": bytes.Repeat([]byte{7}, 32), "is missing": nil,
	} {
		os.Remove(path)
		if content != nil {
			ok(t, os.WriteFile(path, content, 0o600))
		}
		refuses(t, dir, hashKeyName+" "+what)
		if got, _ := os.ReadFile(path); !bytes.Equal(got, content) {
			t.Errorf("%s: the file was changed", what)
		}
	}
	ok(t, os.WriteFile(path, want, 0o600))
	openIn(t, dir, t.Logf)
}

func TestEmptyLogsDoNotStopTheStart(t *testing.T) { // badger#2207
	dir := t.TempDir()
	s := ready(t, dir, t.Logf)
	ok(t, s.Put(keys(3), nil))
	ok(t, s.Close())
	for _, name := range []string{"00007.mem", "00008.mem", "00009.mem"} {
		ok(t, os.WriteFile(filepath.Join(dir, tablesDir, name), nil, 0o600))
	}
	ok(t, os.WriteFile(filepath.Join(dir, tablesDir, "000002.vlog"), nil, 0o600))
	s = ready(t, dir, t.Logf)
	if _, err := s.ByName(quota.KindKey, "key 2"); err != nil {
		t.Fatal(err)
	}
	ok(t, s.Put(keys(4), nil))
	ok(t, s.Close())
	s = ready(t, dir, t.Logf)
	if _, err := s.ByName(quota.KindKey, "key 3"); err != nil {
		t.Fatal(err)
	}
}

func TestLostChangesOfTheTablesAreReported(t *testing.T) {
	from := t.TempDir()
	s := ready(t, from, t.Logf)
	for i := range 20 {
		ok(t, s.Put(keys(i+1), nil))
	}
	dir := t.TempDir()
	ok(t, os.CopyFS(dir, os.DirFS(from))) // as a kill would leave it
	path := filepath.Join(dir, tablesDir, "00001.mem")
	b, err := os.ReadFile(path)
	ok(t, err)
	i := bytes.Index(b, []byte(`"name":"key 9"`))
	b[i] ^= 1
	ok(t, os.WriteFile(path, b, 0o600))
	var l logs
	s = openIn(t, dir, l.log)
	l.has(t, "have lost their last")
	if _, err := s.ByName(quota.KindKey, "key 3"); err != nil {
		t.Fatal(err)
	}
	ok(t, s.Put(keys(20), nil))
	ok(t, s.Close())
	l = logs{}
	openIn(t, dir, l.log)
	l.empty(t)
}

func TestLostCheckpointIsSeenInTheJournal(t *testing.T) {
	dir := t.TempDir()
	s := ready(t, dir, t.Logf)
	s.journal.rotateAt = 1
	for range 3 {
		r := sample(1)
		s.Append(&r)
		_, through, err := s.Cut()
		ok(t, err)
		ok(t, s.Checkpoint(&quota.Checkpoint{Through: through, Trim: true}))
	}
	ok(t, s.Close())
	ok(t, os.RemoveAll(filepath.Join(dir, tablesDir)))
	var l logs
	s = ready(t, dir, l.log)
	l.has(t, "3 records missing, 1 to 3")
	l.has(t, "have lost their last 4 changes")
	if s.Lost() != 3 {
		t.Errorf("lost: %d", s.Lost())
	}
}

func TestChangeThatWasCutShortIsFinished(t *testing.T) {
	dir := t.TempDir()
	s := ready(t, dir, t.Logf)
	ok(t, s.Put(keys(1), nil))
	row := func(n byte) []byte { return []byte{'x', n} }
	m := s.tables.meta
	m.commit++
	c := change{{row(1), []byte("one")}, {row(2), nil}, {[]byte{tableMeta}, m.encode()}}
	redo := filepath.Join(dir, redoName)
	ok(t, s.tables.write(change{{row(1), []byte("old")}, {row(2), []byte("old")}}))
	check := func(want1, want2 string) {
		t.Helper()
		for n, want := range []string{want1, want2} {
			got := "none"
			s.tables.get(row(byte(n+1)), func(b []byte) error { got = string(b); return nil })
			if got != want {
				t.Errorf("row %d is %q, want %q", n+1, got, want)
			}
		}
		if _, err := os.Stat(redo); err == nil {
			t.Error("the file is still there")
		}
	}
	ok(t, s.Close())
	ok(t, writeFile(redo, encodeRedo(c, m.commit)))
	s = ready(t, dir, t.Logf)
	check("one", "none")
	// Once it is done, it must not be done again.
	ok(t, s.tables.write(change{{row(1), []byte("new")}}))
	ok(t, s.Close())
	ok(t, writeFile(redo, encodeRedo(c, m.commit)))
	s = ready(t, dir, t.Logf)
	check("new", "none")
	ok(t, s.Close())
	damaged := encodeRedo(c, m.commit+1)
	damaged[20] ^= 1
	ok(t, os.WriteFile(redo, damaged, 0o600))
	var l logs
	s = ready(t, dir, l.log)
	check("new", "none")
	l.has(t, "what it held is lost")
	// While it runs, the next change finishes one that failed.
	m = s.tables.meta
	m.commit++
	c[2].value = m.encode()
	ok(t, writeFile(redo, encodeRedo(c, m.commit)))
	s.tables.unsure = true
	ok(t, s.Put(keys(2), nil))
	check("one", "none")
	if s.tables.meta.commit != m.commit+1 {
		t.Errorf("change number is %d, want %d", s.tables.meta.commit, m.commit+1)
	}
}

func TestFullDiskRefusesChanges(t *testing.T) {
	s := ready(t, t.TempDir(), t.Logf)
	s.tables.room.free = func(string) (uint64, bool) { return minFree - 1, true }
	if err := s.Put(keys(1), nil); err == nil || !strings.Contains(err.Error(), "bytes free") {
		t.Fatalf("error is %v", err)
	}
	r := sample(1)
	ok(t, s.Flush(s.Append(&r))) // the journal takes what it can
	s.tables.room.free = freeBytes
	ok(t, s.Put(keys(1), nil))
}

func TestCheckpointFitsInOneTransaction(t *testing.T) {
	s := ready(t, t.TempDir(), t.Logf)
	cp := fullCheckpoint(quota.MaxCheckpointRows, 1000)
	c, err := s.tables.addRows(nil, cp.Rows)
	ok(t, err)
	for i := range cp.Accounts {
		c.set(idKey(tableCounters, uint64(i)), appendCounters(nil, &cp.Accounts[i].Counters))
	}
	if len(c) != 2*quota.MaxCheckpointRows+1000 {
		t.Fatalf("%d entries", len(c))
	}
	ok(t, s.tables.write(c))
}

func TestIdleCheckpointsWriteNothing(t *testing.T) {
	s := ready(t, t.TempDir(), t.Logf)
	r := sample(1)
	s.Append(&r)
	_, through, err := s.Cut()
	ok(t, err)
	cp := &quota.Checkpoint{Through: through, Trim: true}
	ok(t, s.Checkpoint(cp))
	commit := s.tables.meta.commit
	for range 3 {
		if _, through, err = s.Cut(); err != nil || through != cp.Through {
			t.Fatal(through, err)
		}
		ok(t, s.Checkpoint(cp))
	}
	if n := s.tables.meta.commit - commit; n != 0 {
		t.Errorf("%d changes were written", n)
	}
}

func TestNothingRunsAfterClose(t *testing.T) {
	before := runtime.NumGoroutine()
	s := ready(t, t.TempDir(), t.Logf)
	ok(t, s.Put(keys(10), nil))
	ok(t, s.Close())
	for range 200 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	buf := make([]byte, 1<<20)
	t.Fatalf("more goroutines than before:\n%s", buf[:runtime.Stack(buf, true)])
}

func TestChangeThatFailedTooLateIsNotRepeated(t *testing.T) {
	s := ready(t, t.TempDir(), t.Logf)
	r := sample(1)
	s.Append(&r)
	_, through, err := s.Cut()
	ok(t, err)
	cp := &quota.Checkpoint{Through: through, Rows: []quota.Row{{Slot: quota.Slot{Key: 2}, Totals: quota.Totals{Requests: 1}}}}
	before := s.tables.meta
	ok(t, s.Checkpoint(cp))
	s.tables.meta, s.tables.unsure = before, true // as after an error of the last sync
	ok(t, s.Checkpoint(cp))
	var sum int64
	ok(t, s.Usage(quota.RowQuery{To: 1}, func(r *quota.Row) error { sum += r.Requests; return nil }))
	if sum != 1 || s.tables.meta.through != through {
		t.Errorf("counted %d times, through %d", sum, s.tables.meta.through)
	}
}
