package badger

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// keptOptions are those of a store that keeps snapshots, and begins a segment
// with almost each Cut.
func keptOptions(dir string, log func(string, ...any)) Options {
	return Options{Dir: dir, SyncInterval: time.Second, SnapshotEvery: time.Hour, Snapshots: 3, SegmentSize: 200, Logger: log}
}

// truth is what is known of a store, by its tables and its journal.
type truth struct {
	Keys    []string
	Secrets int // that find their key
	Used    int64
	Charged int64 // by the counters and the records after them
	Open    int
}

// less tells whether a holds no more than b.
func (a truth) less(b truth) bool {
	for _, k := range a.Keys {
		if !slices.Contains(b.Keys, k) {
			return false
		}
	}
	return a.Secrets <= b.Secrets && a.Used <= b.Used && a.Charged <= b.Charged
}

// recoverTruth recovers a store and returns what is known.
func recoverTruth(t testing.TB, s *Store) (got truth) {
	t.Helper()
	var c quota.Counters
	if err := s.Counters(2, &c); err != nil && !errors.Is(err, quota.ErrNotFound) {
		t.Fatal(err)
	}
	got.Charged = c.QuotaUsed
	open := map[uint64]bool{}
	var replayed []uint64
	through, err := s.Recover(
		func(r *quota.Record) error { open[r.ID] = true; return nil },
		func(r *quota.Record) error {
			switch r.Kind {
			case quota.RecordOpen:
				open[r.ID] = true
			case quota.RecordSettle:
				delete(open, r.ID)
			}
			replayed = append(replayed, r.Seq)
			if r.Seq > c.Seq {
				got.Charged++
			}
			return nil
		})
	ok(t, err)
	for _, seq := range replayed {
		if seq > through {
			got.Used++
		}
	}
	ok(t, s.Usage(quota.RowQuery{To: 1}, func(r *quota.Row) error { got.Used += r.Requests; return nil }))
	ok(t, s.Keys(0, func(k *quota.Key) bool {
		got.Keys = append(got.Keys, k.Name)
		if id, err := s.KeyBySecret(k.Secrets[0].Hash); err == nil && id == k.ID {
			got.Secrets++
		}
		return true
	}))
	got.Open = len(open)
	return got
}

// use appends n records, the first of which opens a reservation.
func use(t testing.TB, s *Store, n int) {
	t.Helper()
	for i := range n {
		r := sample(uint64(i))
		if i == 0 {
			r = quota.Record{Kind: quota.RecordOpen, Key: 2, Reserved: 5, Shares: []quota.Share{{Account: 2}}}
		}
		s.Append(&r)
	}
	ok(t, s.Flush(s.journal.seq))
}

// move makes a checkpoint of what was used.
func move(t testing.TB, s *Store, charged *int64) {
	t.Helper()
	records, through, err := s.Cut()
	ok(t, err)
	cp := &quota.Checkpoint{Through: through, Trim: true, Rows: []quota.Row{{Slot: quota.Slot{Key: 2, Model: "m"}}}}
	for r := range records {
		cp.Rows[0].Requests++
		if r.Kind == quota.RecordOpen {
			cp.Opened = append(cp.Opened, *r)
			cp.Opened[len(cp.Opened)-1].Shares = slices.Clone(r.Shares)
		}
	}
	*charged += cp.Rows[0].Requests
	cp.Accounts = []quota.AccountCounters{{ID: 2, Counters: quota.Counters{Seq: through, QuotaUsed: *charged}}}
	ok(t, s.Checkpoint(cp))
}

func saveSnapshot(t testing.TB, s *Store, now time.Time) {
	t.Helper()
	sn, err := s.Snapshot()
	ok(t, err)
	ok(t, sn.Save(now))
	ok(t, sn.Close())
}

// life is a store that was used: with a snapshot, if so asked, changes after
// it, and a journal that the tables do not hold yet. It returns the directory
// as it is after a crash, or closed.
func life(t testing.TB, snapshot, crash bool) (dir string, want truth) {
	t.Helper()
	dir = t.TempDir()
	s, err := Open(keptOptions(dir, t.Logf))
	ok(t, err)
	recoverTruth(t, s)
	var charged int64
	ok(t, s.Put(keys(3), nil))
	for range 3 {
		use(t, s, 10)
		move(t, s, &charged)
	}
	use(t, s, 7)
	if snapshot {
		saveSnapshot(t, s, epoch)
	}
	for range 3 {
		move(t, s, &charged)
		use(t, s, 5)
	}
	ok(t, s.Put(keys(5), nil))
	move(t, s, &charged)
	use(t, s, 4)
	ok(t, s.Sync(1))
	if crash {
		left := t.TempDir()
		copyStore(t, dir, left)
		ok(t, s.Close())
		dir = left
	} else {
		ok(t, s.Close())
	}
	want = truth{Keys: []string{"key 4", "key 3", "key 2", "key 1", "key 0"}, Secrets: 5, Used: 56, Charged: 56, Open: 8}
	return dir, want
}

// copyStore copies a directory. What ends in zeros ends in a hole.
func copyStore(t testing.TB, from, to string) {
	t.Helper()
	var err error
	for range 100 { // a store that is open tidies up by itself: again, if a file came or went
		ok(t, os.RemoveAll(to))
		before := names(from)
		if err = tryCopy(from, to); err == nil && slices.Equal(before, names(from)) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the store in %s does not come to rest: %v", from, err)
}

// names lists the files below a folder.
func names(dir string) (list []string) {
	_ = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, _ error) error {
		list = append(list, path)
		return nil
	})
	return list
}

func tryCopy(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(from, path)
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, rel), bytes.TrimRight(b, "\x00"), 0o600); err != nil {
			return err
		}
		return os.Truncate(filepath.Join(to, rel), int64(len(b)))
	})
}

// told tells whether Guard says that something was lost.
func told(t testing.TB, s *Store) bool {
	t.Helper()
	err := s.Guard(epoch.Add(time.Hour))
	if err != nil && !errors.Is(err, quota.ErrDamaged) {
		t.Fatalf("Guard: %v", err)
	}
	return err != nil
}

// reopen opens and recovers a damaged store. All must be there, or Guard must
// tell; and what is then there must be there again.
func reopen(t testing.TB, dir string, want truth) (got truth, lost bool, notes string) {
	t.Helper()
	var l logs
	s, err := Open(keptOptions(dir, l.log))
	if err != nil {
		t.Fatalf("it does not open: %v", err)
	}
	got = recoverTruth(t, s)
	lost = told(t, s)
	if d := cmp.Diff(want, got); d != "" && !lost {
		t.Errorf("nothing is told of (-want +got):\n%s\n%q", d, l.lines)
	}
	if !got.less(want) {
		t.Errorf("more than there was: %+v, want %+v", got, want)
	}
	ok(t, s.Close())
	s, err = Open(keptOptions(dir, l.log))
	ok(t, err)
	again := recoverTruth(t, s)
	if d := cmp.Diff(got, again); d != "" {
		t.Errorf("not the same when opened again:\n%s\n%q", d, l.lines)
	}
	if lost && !told(t, s) {
		t.Error("it is told no more, though nobody has looked into it")
	}
	paths, _ := filepath.Glob(filepath.Join(dir, damagedDir, "*", noteName))
	for _, path := range paths {
		b, err := os.ReadFile(path)
		ok(t, err)
		notes += string(b)
	}
	ok(t, os.RemoveAll(filepath.Join(dir, damagedDir)))
	if err := s.Guard(epoch.Add(2 * time.Hour)); err != nil {
		t.Errorf("after somebody has looked into it: %v", err)
	}
	ok(t, s.Close())
	return got, lost, notes
}

func TestLife(t *testing.T) { // what the other tests rest on
	for _, crash := range []bool{false, true} {
		dir, want := life(t, true, crash)
		if got, lost, _ := reopen(t, dir, want); lost || !cmp.Equal(got, want) {
			t.Errorf("%+v, lost: %v", got, lost)
		}
	}
}

// first returns the first file in dir that matches.
func first(t testing.TB, dir, pattern string) string {
	t.Helper()
	paths, _ := filepath.Glob(filepath.Join(dir, pattern))
	if len(paths) == 0 {
		t.Fatalf("no %s", pattern)
	}
	return paths[0]
}

// TestDamage damages a store in a way that is its own kind.
func TestDamage(t *testing.T) {
	cut := func(pattern string, n int64) func(testing.TB, string) {
		return func(t testing.TB, dir string) {
			path := first(t, dir, pattern)
			info, err := os.Stat(path)
			ok(t, err)
			ok(t, os.Truncate(path, max(0, info.Size()-n)))
		}
	}
	remove := func(pattern string) func(testing.TB, string) {
		return func(t testing.TB, dir string) { ok(t, os.RemoveAll(first(t, dir, pattern))) }
	}
	for what, c := range map[string]struct {
		crash  bool
		damage func(testing.TB, string)
		usage  bool // that all of the usage is there all the same
		quiet  bool // nothing is lost, and nothing told
		text   string
	}{
		"table truncated":   {damage: cut("badger/*.sst", 100), usage: true, text: "cannot be read"},
		"table empty":       {damage: cut("badger/*.sst", 1<<40), usage: true, text: "the tables are damaged"},
		"table gone":        {damage: remove("badger/*.sst"), usage: true, text: "no such file"},
		"list of tables":    {damage: remove("badger/MANIFEST"), usage: true, text: "MANIFEST is missing"},
		"list truncated":    {damage: cut("badger/MANIFEST", 3), quiet: true},
		"list empty":        {damage: cut("badger/MANIFEST", 1<<40), usage: true, text: "list of tables"},
		"no tables":         {damage: remove("badger"), usage: true, text: "lost their last"},
		"no tables, mark":   {damage: func(t testing.TB, dir string) { remove("badger")(t, dir); remove(markName)(t, dir) }, usage: true, text: "are empty"},
		"log truncated":     {crash: true, damage: func(t testing.TB, dir string) { ok(t, os.Truncate(first(t, dir, "badger/*.mem"), 300)) }, usage: true, text: "lost their last"},
		"log empty":         {crash: true, damage: cut("badger/*.mem", 1<<40), usage: true, text: "lost their last"},
		"log gone":          {crash: true, damage: remove("badger/*.mem"), usage: true, text: "lost their last"},
		"list without SSTs": {crash: true, damage: remove("badger/MANIFEST"), quiet: true},
		"discards gone":     {damage: remove("badger/DISCARD"), quiet: true},
		"registry gone":     {damage: remove("badger/KEYREGISTRY"), quiet: true},
		"mark gone":         {damage: remove(markName), quiet: true},
		"mark empty":        {damage: cut(markName, 1<<40), quiet: true},
		"key gone":          {damage: remove(hashKeyName), usage: true, text: "hash.key is missing"},
		"key short":         {damage: cut(hashKeyName, 5), usage: true, text: "hash.key has 27 bytes"},
		"key foreign": {damage: func(t testing.TB, dir string) {
			ok(t, os.WriteFile(filepath.Join(dir, hashKeyName), bytes.Repeat([]byte{7}, 32), 0o600))
		}, usage: true, text: "not the one"},
		"journal gone": {damage: remove("journal"), text: "records of the journal are missing"},
		"journal no directory": {damage: func(t testing.TB, dir string) {
			remove("journal")(t, dir)
			ok(t, os.WriteFile(filepath.Join(dir, "journal"), nil, 0o600))
		}, text: "was no directory"},
		"segment no file": {damage: func(t testing.TB, dir string) {
			path := last(t, dir, "journal/*.log")
			ok(t, os.Remove(path))
			ok(t, os.Mkdir(path, 0o700))
		}, text: "is a directory"},
		"last segment empty": {damage: func(t testing.TB, dir string) { ok(t, os.Truncate(last(t, dir, "journal/*.log"), 0)) }, text: "records of the journal are missing"},
		"journal and tables": {damage: func(t testing.TB, dir string) { remove("journal")(t, dir); remove("badger/*.sst")(t, dir) }, text: "the tables are damaged"},
		"redo of noise": {damage: func(t testing.TB, dir string) {
			ok(t, os.WriteFile(filepath.Join(dir, redoName), []byte("noise"), 0o600))
		}, usage: true, text: "what it held is lost"},
		"tables no directory": {damage: func(t testing.TB, dir string) {
			remove("badger")(t, dir)
			ok(t, os.WriteFile(filepath.Join(dir, "badger"), nil, 0o600))
		}, usage: true, text: "no directory"},
	} {
		t.Run(what, func(t *testing.T) {
			dir, want := life(t, true, c.crash)
			c.damage(t, dir)
			got, lost, notes := reopen(t, dir, want)
			if lost == c.quiet {
				t.Errorf("lost: %v", lost)
			}
			if c.usage && (got.Used != want.Used || got.Charged != want.Charged || got.Open != want.Open) {
				t.Errorf("usage is lost: %+v, want %+v", got, want)
			}
			if got.Secrets != len(got.Keys) || len(got.Keys) < 3 {
				t.Errorf("keys: %+v", got)
			}
			if !strings.Contains(notes, c.text) {
				t.Errorf("notes lack %q: %s", c.text, notes)
			}
		})
	}
}

// last returns the last file in dir that matches.
func last(t testing.TB, dir, pattern string) string {
	t.Helper()
	first(t, dir, pattern)
	paths, _ := filepath.Glob(filepath.Join(dir, pattern))
	return paths[len(paths)-1]
}

func TestDamageWithoutSnapshot(t *testing.T) {
	dir, want := life(t, false, false)
	key, err := os.ReadFile(filepath.Join(dir, hashKeyName))
	ok(t, err)
	ok(t, os.Truncate(first(t, dir, "badger/*.sst"), 1000))
	got, lost, notes := reopen(t, dir, want)
	if !lost || len(got.Keys) > 0 || !strings.Contains(notes, "begin empty") || !strings.Contains(notes, "records of the journal are missing, of those from 1") {
		t.Errorf("%+v, lost: %v, notes: %s", got, lost, notes)
	}
	if now, err := os.ReadFile(filepath.Join(dir, hashKeyName)); err != nil || !bytes.Equal(now, key) {
		t.Errorf("the key of the hashes is another: %v", err)
	}
	s := ready(t, dir, t.Logf)
	if s.journal.seq < 56 {
		t.Errorf("the records' numbers begin again at %d", s.journal.seq)
	}
	ok(t, s.Put(keys(2), nil))
}

// flip inverts a bit.
func flip(t testing.TB, path string, at int64) {
	t.Helper()
	b, err := os.ReadFile(path)
	ok(t, err)
	b[at] ^= 0x10
	ok(t, os.WriteFile(path, b, 0o600))
}

// TestFlippedBytes flips bytes of every file of a store, wherever something is
// written: what is known is all that there was, or the loss is told.
func TestFlippedBytes(t *testing.T) {
	each := int64(8)
	if testing.Short() {
		each = 3
	}
	for name, crash := range map[string]bool{"closed": false, "crashed": true} {
		dir, want := life(t, true, crash)
		ok(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			b, err := os.ReadFile(path)
			ok(t, err)
			size := int64(len(bytes.TrimRight(b, "\x00")))
			rel, err := filepath.Rel(dir, path)
			ok(t, err)
			t.Run(name+"/"+rel, func(t *testing.T) {
				for at := range positions(size, each) {
					left := t.TempDir()
					copyStore(t, dir, left)
					flip(t, filepath.Join(left, rel), at)
					reopen(t, left, want)
					if t.Failed() {
						t.Fatalf("flipped at %d of %d", at, size)
					}
				}
			})
			return nil
		}))
	}
}

// positions yields n places in that many bytes, among them the first and the
// last.
func positions(size, n int64) func(func(int64) bool) {
	return func(yield func(int64) bool) {
		for i := range min(n, size) {
			if !yield(i * (size - 1) / max(1, min(n, size)-1)) {
				return
			}
		}
	}
}

// TestFlippedBytesOfTables flips bytes anywhere in a table: never a panic. What
// is not seen changes nothing, since a compressed block can be written in more
// ways than one.
func TestFlippedBytesOfTables(t *testing.T) {
	dir, want := life(t, false, false)
	path := first(t, dir, "badger/*.sst")
	size, err := os.ReadFile(path)
	ok(t, err)
	o := badgerOptions(filepath.Join(dir, tablesDir), t.Logf)
	for at := range positions(int64(len(size)), 200) {
		flip(t, path, at)
		if err := checkTables(o); err == nil {
			left := t.TempDir()
			copyStore(t, dir, left)
			if _, lost, _ := reopen(t, left, want); lost {
				t.Errorf("flipped at %d of %d: it is seen late", at, len(size))
			}
		} else if !isDamage(err) {
			t.Fatalf("flipped at %d of %d: %v", at, len(size), err)
		}
		flip(t, path, at)
	}
	ok(t, checkTables(o))
}

func TestDamageIsToldFromOtherErrors(t *testing.T) {
	for err, want := range map[error]bool{
		nil: false, errInUse: false, fs.ErrPermission: false, errNoRoom: false, errNewer: false, errHashKey: false,
		&fs.PathError{Op: "open", Err: syscall.EMFILE}: false, &fs.PathError{Op: "read", Err: syscall.EIO}: true,
		fs.ErrNotExist: true, errors.New("anything"): true,
	} {
		if got := isDamage(err); got != want {
			t.Errorf("%v: %v", err, got)
		}
	}
}
