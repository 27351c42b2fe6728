package badger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// TestHealingThatIsCutShort ends the process at each step of putting a store in
// order: the next start does the rest.
func TestHealingThatIsCutShort(t *testing.T) {
	spoiled, want := life(t, true, false)
	ok(t, os.Truncate(first(t, spoiled, "badger/*.sst"), 1000))
	ok(t, os.WriteFile(filepath.Join(spoiled, redoName), []byte("noise"), 0o600))
	ok(t, os.WriteFile(filepath.Join(spoiled, hashKeyName), []byte("noise"), 0o600))
	ok(t, os.Remove(last(t, spoiled, "journal/*.log"))) // then the journal is replaced, too
	whole := t.TempDir()
	copyStore(t, spoiled, whole)
	healed, lost, _ := reopen(t, whole, want)
	if !lost || len(healed.Keys) != 3 || healed.Secrets != 3 || healed.Used < 37 {
		t.Fatalf("healed: %+v", healed)
	}
	dead := errors.New("the process has died")
	steps := 0
	for n := 0; ; n++ {
		dir := t.TempDir()
		copyStore(t, spoiled, dir)
		o := keptOptions(dir, t.Logf)
		steps = 0
		died := false
		o.Fault = func(step Step, _ string, _ bool) error {
			if died = died || step == StepSwap && steps == n; died {
				return dead
			}
			if step == StepSwap {
				steps++
			}
			return nil
		}
		s, err := Open(o)
		if !died {
			ok(t, err)
			ok(t, s.Close())
			break
		}
		if !errors.Is(err, dead) {
			t.Fatalf("at step %d: error is %v", n, err)
		}
		got, lost, notes := reopen(t, dir, want)
		if d := cmp.Diff(healed, got); d != "" || !lost || !strings.Contains(notes, "made again from the snapshot") {
			t.Errorf("at step %d: %s, lost: %v, notes: %s", n, d, lost, notes)
		}
	}
	if steps < 12 {
		t.Errorf("%d steps", steps)
	}
}

func TestAnOlderSnapshotIsUsed(t *testing.T) {
	dir, want := life(t, true, false)
	s, err := Open(keptOptions(dir, t.Logf))
	ok(t, err)
	recoverTruth(t, s)
	saveSnapshot(t, s, epoch.Add(1))
	ok(t, s.Close())
	newest := last(t, dir, "snapshots/*")
	flip(t, newest, 300)
	ok(t, os.Truncate(first(t, dir, "badger/*.sst"), 1000))
	got, _, notes := reopen(t, dir, want)
	if len(got.Keys) != 3 || got.Used != want.Used {
		t.Errorf("%+v", got)
	}
	if !strings.Contains(notes, "the snapshot "+filepath.Base(newest)+" cannot be used") {
		t.Errorf("notes: %s", notes)
	}
	// What was made goes on after all that ever was.
	header, err := readSnapshotHeader(newest)
	ok(t, err)
	if s := ready(t, dir, t.Logf); s.tables.meta.commit < header.Commit {
		t.Errorf("change number %d, after %d", s.tables.meta.commit, header.Commit)
	}
}

func TestNoSnapshotCanBeUsed(t *testing.T) {
	dir, want := life(t, true, false)
	flip(t, first(t, dir, "snapshots/*"), 300)
	ok(t, os.Truncate(first(t, dir, "badger/*.sst"), 1000))
	got, lost, notes := reopen(t, dir, want)
	if !lost || len(got.Keys) > 0 || !strings.Contains(notes, "cannot be used") || !strings.Contains(notes, "begin empty") {
		t.Errorf("%+v, lost: %v, notes: %s", got, lost, notes)
	}
	if got.Used == 0 { // from what was kept of the journal
		t.Error("no usage is left")
	}
}

// TestTablesThatHoldMoreThanTheSnapshot loses the last change, which was made
// after the snapshot.
func TestTablesThatHoldMoreThanTheSnapshot(t *testing.T) {
	dir, want := life(t, true, true)
	s, err := Open(keptOptions(dir, t.Logf))
	ok(t, err)
	recoverTruth(t, s)
	ok(t, s.Put(keys(6), nil))
	left := t.TempDir()
	copyStore(t, dir, left)
	ok(t, s.Close())
	want.Keys = append([]string{"key 5"}, want.Keys...)
	want.Secrets++
	path := last(t, left, "badger/*.mem")
	b, err := os.ReadFile(path)
	ok(t, err)
	flip(t, path, int64(bytes.Index(b, []byte(`"name":"key 5"`))))
	got, lost, notes := reopen(t, left, want)
	if !lost || len(got.Keys) != 5 || got.Used != want.Used || got.Charged != want.Charged || got.Open != want.Open {
		t.Errorf("%+v, lost: %v", got, lost)
	}
	if !strings.Contains(notes, "no snapshot holds more") {
		t.Errorf("notes: %s", notes)
	}
}

// TestJournalIsJoinedWithTheSnapshots has lost, together with the tables, a part
// of the journal that the snapshot holds, and one that it does not.
func TestJournalIsJoinedWithTheSnapshots(t *testing.T) {
	dir, want := life(t, true, false)
	ok(t, os.Truncate(first(t, dir, "badger/*.sst"), 1000))
	paths, _ := filepath.Glob(filepath.Join(dir, "journal/*.log"))
	var removed []uint64
	for _, path := range paths {
		if n, has := firstRecord(path); has && (n == 31) {
			removed = append(removed, n)
			ok(t, os.Remove(path))
		}
	}
	if len(removed) != 1 {
		t.Fatalf("removed the segments of %v", removed)
	}
	got, _, notes := reopen(t, dir, want)
	if got.Used != want.Used-5 || !strings.Contains(notes, "5 records of the journal are missing, of those from 38 to 42") {
		t.Errorf("%+v, notes: %s", got, notes)
	}
}

func TestTablesThatTheListLacksAreKept(t *testing.T) {
	dir, want := life(t, true, false) // closed: all in one table
	s, err := Open(keptOptions(dir, t.Logf))
	ok(t, err)
	recoverTruth(t, s)
	ok(t, s.Put(keys(6), nil)) // a change that the table lacks, in a log
	left := t.TempDir()
	copyStore(t, dir, left)
	ok(t, s.Close())
	want.Keys = append([]string{"key 5"}, want.Keys...)
	want.Secrets++
	list := filepath.Join(left, tablesDir, "MANIFEST")
	b, err := os.ReadFile(list)
	ok(t, err)
	for n := manifestHead; n < len(b); n += len(b)/8 + 1 {
		cut := t.TempDir()
		copyStore(t, left, cut)
		ok(t, os.Truncate(filepath.Join(cut, tablesDir, "MANIFEST"), int64(n)))
		if got, lost, notes := reopen(t, cut, want); lost || !cmp.Equal(got, want) {
			t.Errorf("cut at %d of %d: %+v, notes: %s", n, len(b), got, notes)
		}
	}
	// One that was done away with stays away, and one that is damaged, too.
	o := badgerOptions(filepath.Join(left, tablesDir), t.Logf)
	table := first(t, left, "badger/*.sst")
	content, err := os.ReadFile(table)
	ok(t, err)
	ok(t, os.WriteFile(filepath.Join(left, tablesDir, "000077.sst"), content[:len(content)-1], 0o600))
	ok(t, checkTables(o))
	if now, err := os.ReadFile(list); err != nil || !bytes.Equal(now, b) {
		t.Error("a damaged table was added to the list")
	}
	ok(t, os.WriteFile(filepath.Join(left, tablesDir, "000078.sst"), content, 0o600))
	ok(t, checkTables(o))
	now, err := os.ReadFile(list)
	ok(t, err)
	named, err := namedTables(now)
	ok(t, err)
	if !named[78] || named[77] {
		t.Errorf("named: %v", named)
	}
	ok(t, checkTables(o))
	if again, err := os.ReadFile(list); err != nil || !bytes.Equal(again, now) {
		t.Error("it was added twice")
	}
}

// TestOldLogsAreWhole flips bytes in a log of Badger's that is not the newest.
func TestOldLogsAreWhole(t *testing.T) {
	dir, _ := life(t, false, true)
	logs := filepath.Join(dir, tablesDir)
	b, err := os.ReadFile(first(t, dir, "badger/*.mem"))
	ok(t, err)
	size := len(bytes.TrimRight(b, "\x00"))
	if end := logEnd(b); end < size || end > size+4 { // a checksum may end in zeros
		t.Fatalf("ends at %d of %d", end, size)
	}
	b = b[:size+10]
	ok(t, os.Remove(first(t, dir, "badger/*.mem")))
	write := func(number int, b []byte) {
		ok(t, os.WriteFile(filepath.Join(logs, fmt.Sprintf("%05d.mem", number)), b, 0o600))
	}
	write(9, b)
	write(10, b)
	ok(t, checkLogs(logs))
	for at := range positions(int64(size), 100) {
		write(9, flipped(b, at))
		if err := checkLogs(logs); (err == nil) != (at < logHead) {
			t.Errorf("flipped at %d of %d: %v", at, size, err)
		}
	}
	write(9, b)
	write(10, flipped(b, int64(size/2)))
	ok(t, checkLogs(logs)) // the mark tells
}

func TestMark(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(keptOptions(dir, t.Logf))
	ok(t, err)
	recoverTruth(t, s)
	check := func(commit, durable uint64) {
		t.Helper()
		if c, d := readMark(dir); c != commit || d != durable {
			t.Errorf("change %d, record %d, want %d, %d", c, d, commit, durable)
		}
	}
	check(1, 0)
	use(t, s, 3)
	check(1, 0)
	ok(t, s.Sync(1))
	check(1, 3)
	ok(t, s.Put(keys(1), nil))
	check(2, 3)
	use(t, s, 2)
	var charged int64
	move(t, s, &charged)
	check(3, 5)
	use(t, s, 2)
	ok(t, s.Close())
	check(3, 7)
	// One of the first version, with the number of the change alone.
	old := binary.BigEndian.AppendUint64(nil, 3)
	old = binary.BigEndian.AppendUint32(old, crc32.Checksum(old, castagnoli))
	ok(t, os.WriteFile(filepath.Join(dir, markName), old, 0o600))
	check(3, 0)
	s, err = Open(keptOptions(dir, t.Logf))
	ok(t, err)
	recoverTruth(t, s)
	ok(t, s.Sync(1))
	check(3, 7)
	ok(t, s.Guard(epoch))
	ok(t, s.Close())
}

// TestDamagedLastRecordIsToldFromATornOne flips a byte in the last record, and
// cuts it off: both are a loss only if it was surely on the disk.
func TestDamagedLastRecordIsToldFromATornOne(t *testing.T) {
	for _, synced := range []bool{false, true} {
		dir := t.TempDir()
		s, err := Open(keptOptions(dir, t.Logf))
		ok(t, err)
		want := recoverTruth(t, s)
		use(t, s, 3)
		want.Used, want.Charged, want.Open = 3, 3, 1
		if synced {
			ok(t, s.Sync(1))
		}
		for what, damage := range map[string]func(path string, size int64){
			"flipped": func(path string, size int64) { flip(t, path, size-2) },
			"cut off": func(path string, size int64) { ok(t, os.Truncate(path, size-2)) },
		} {
			left := t.TempDir()
			copyStore(t, dir, left)
			path := last(t, left, "journal/*.log")
			damage(path, s.journal.segment.size)
			again, err := Open(keptOptions(left, t.Logf))
			ok(t, err)
			if got := recoverTruth(t, again); got.Used != 2 {
				t.Errorf("%s, synced %v: %+v", what, synced, got)
			}
			if lost := told(t, again); lost != synced {
				t.Errorf("%s, synced %v: lost %v", what, synced, lost)
			}
			ok(t, again.Close())
		}
		ok(t, s.Close())
	}
}

func TestDroppedRecordsAreTold(t *testing.T) {
	s := ready(t, t.TempDir(), t.Logf)
	j := s.journal
	j.limit = 100
	f := &flaky{file: j.segment.f}
	j.segment.f = f
	for range 20 {
		r := sample(1)
		if s.Flush(s.Append(&r)) == nil {
			t.Fatal("no error")
		}
	}
	notes := func() int {
		paths, _ := filepath.Glob(filepath.Join(s.options.Dir, damagedDir, "*", noteName))
		return len(paths)
	}
	for range 3 {
		if err := s.Guard(epoch); !errors.Is(err, quota.ErrDamaged) || notes() != 1 {
			t.Errorf("Guard: %v, %d notes", err, notes())
		}
	}
	f.room = 1 << 20
	r := sample(1)
	s.Append(&r)
	_, _, err := s.Cut()
	ok(t, err)
	if !told(t, s) || notes() != 1 {
		t.Errorf("%d notes", notes())
	}
	ok(t, s.Flush(s.Append(&r)))
}

func TestNotesThatCannotBeWritten(t *testing.T) {
	s := ready(t, t.TempDir(), t.Logf)
	path := filepath.Join(s.options.Dir, damagedDir)
	ok(t, os.WriteFile(path, nil, 0o600)) // in the way
	s.journal.lose("something")
	if err := s.Guard(epoch); !errors.Is(err, quota.ErrDamaged) {
		t.Errorf("Guard: %v", err)
	}
	ok(t, os.Remove(path))
	if err := s.Guard(epoch.Add(lookAtLosses)); !errors.Is(err, quota.ErrDamaged) {
		t.Errorf("Guard: %v", err)
	}
	b, err := os.ReadFile(first(t, path, "*/"+noteName))
	ok(t, err)
	for _, part := range []string{"What was found\n  something", "What was done\n", "What may be lost\n", "What to do\n", "remove this directory"} {
		if !strings.Contains(string(b), part) {
			t.Errorf("the note lacks %q: %s", part, b)
		}
	}
}

func TestMigrations(t *testing.T) {
	defer func(was []migration) { migrations = was }(migrations)
	migrations = nil
	dir := t.TempDir()
	s := ready(t, dir, t.Logf)
	ok(t, s.Put(keys(3), nil))
	ok(t, s.Close())
	row := func(n byte) []byte { return []byte{'x', n} }
	calls := 0
	fail := errors.New("mine")
	migrations = []migration{
		func(tb *tables) (change, error) {
			calls++
			return change{{row(1), []byte("one")}}, nil
		},
		func(tb *tables) (change, error) { // rests on the first
			err := tb.get(row(1), func([]byte) error { return nil })
			if err == nil {
				err = fail
			}
			return change{{row(2), []byte("two")}}, err
		},
	}
	refuses(t, dir, "bringing them from version 2 to 3: mine")
	if exists(filepath.Join(dir, damagedDir)) {
		t.Fatal("the tables were put away")
	}
	fail = nil
	s = ready(t, dir, t.Logf)
	if s.tables.meta.schema != 3 || calls != 1 {
		t.Errorf("version %d, the first migration was made %d times", s.tables.meta.schema, calls)
	}
	if _, err := s.ByName(quota.KindKey, "key 2"); err != nil {
		t.Error(err)
	}
	saveIn := t.TempDir()
	b := backup(t, s)
	ok(t, Restore(saveIn, bytes.NewReader(b)))
	ok(t, s.Close())
	s = ready(t, dir, t.Logf)
	if calls != 1 {
		t.Error("it was made again")
	}
	ok(t, s.Close())
	fresh := ready(t, t.TempDir(), t.Logf)
	if fresh.tables.meta.schema != 3 || calls != 1 {
		t.Errorf("a new store has version %d", fresh.tables.meta.schema)
	}
	migrations = nil // an earlier program
	refuses(t, dir, "schema version 3 is not known to this program, which knows versions up to 1")
	refuses(t, saveIn, "schema version 3 is not known to this program, which knows versions up to 1")
	if exists(filepath.Join(dir, damagedDir)) {
		t.Error("the tables were put away")
	}
	if _, err := VerifyBackup(bytes.NewReader(b)); !errors.Is(err, errNewer) {
		t.Errorf("the backup: %v", err)
	}
}
