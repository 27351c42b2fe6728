package badger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// backup returns a backup of a store.
func backup(t testing.TB, s *Store) []byte {
	t.Helper()
	sn, err := s.Snapshot()
	ok(t, err)
	defer sn.Close()
	var b bytes.Buffer
	n, err := sn.WriteTo(&b)
	ok(t, err)
	if n != int64(b.Len()) {
		t.Errorf("%d bytes are said to be written, %d are", n, b.Len())
	}
	return b.Bytes()
}

// lived returns an open store with something of everything in it.
func lived(t testing.TB) (*Store, truth) {
	t.Helper()
	dir, want := life(t, true, false)
	s, err := Open(keptOptions(dir, t.Logf))
	ok(t, err)
	t.Cleanup(func() { s.Close() })
	ok(t, s.Put(nil, []*quota.Group{{ID: 5, Name: "group"}}))
	recoverTruth(t, s)
	return s, want
}

func TestBackupIsTheStore(t *testing.T) {
	s, want := lived(t)
	b := backup(t, s)
	info, err := VerifyBackup(bytes.NewReader(b))
	ok(t, err)
	if info.Keys != 5 || info.Groups != 1 || info.Schema != int(schemaVersion()) || info.Records != 4 || info.Created.IsZero() || info.Rows == 0 {
		t.Errorf("info: %+v", info)
	}
	dir := filepath.Join(t.TempDir(), "a", "b")
	ok(t, Restore(dir, bytes.NewReader(b)))
	names, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(names) != 4 {
		t.Errorf("in the directory: %q", names)
	}
	var l logs
	got, err := Open(keptOptions(dir, l.log))
	ok(t, err)
	defer got.Close()
	if d := cmp.Diff(want, recoverTruth(t, got)); d != "" {
		t.Error(d)
	}
	if !bytes.Equal(got.HashKey(), s.HashKey()) {
		t.Error("the key of the hashes is another")
	}
	r := sample(1)
	if seq := got.Append(&r); seq != s.journal.seq+1 {
		t.Errorf("the next record has number %d, want %d", seq, s.journal.seq+1)
	}
	if told(t, got) {
		t.Error("it is said to be damaged")
	}
	l.empty(t)
}

// TestBackupUnderLoad takes backups while calls are made: what was flushed
// before a backup is in it, and nothing twice.
func TestBackupUnderLoad(t *testing.T) {
	s, err := Open(keptOptions(t.TempDir(), t.Logf))
	ok(t, err)
	defer s.Close()
	recoverTruth(t, s)
	ok(t, s.Put(keys(2), nil))
	stop := make(chan struct{})
	var flushed sync.Map // writer → number of its records
	var all sync.WaitGroup
	const writers = 4
	for w := range writers {
		flushed.Store(w, int64(0))
		all.Go(func() {
			for n := int64(1); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				r := quota.Record{Kind: quota.RecordGrant, Account: quota.ID(w), Amount: n}
				if err := s.Flush(s.Append(&r)); err != nil {
					t.Error(err)
					return
				}
				flushed.Store(w, n)
			}
		})
	}
	var checkpoints sync.Mutex // none while a snapshot is taken
	all.Go(func() {
		for n := 3; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			checkpoints.Lock()
			moveGrants(t, s)
			checkpoints.Unlock()
			if n < 30 {
				ok(t, s.Put(keys(n), nil))
			}
		}
	})
	for range 8 {
		before, after := map[int]int64{}, map[int]int64{}
		flushed.Range(func(w, n any) bool { before[w.(int)] = n.(int64); return true })
		checkpoints.Lock()
		sn, err := s.Snapshot()
		checkpoints.Unlock()
		ok(t, err)
		flushed.Range(func(w, n any) bool { after[w.(int)] = n.(int64) + 1; return true })
		var b bytes.Buffer
		_, err = sn.WriteTo(&b)
		ok(t, err)
		ok(t, sn.Close())
		dir := t.TempDir()
		ok(t, Restore(dir, &b))
		for w, n := range grantsIn(t, dir) {
			if n < before[w] || n > after[w] {
				t.Errorf("writer %d: %d records in the backup, %d to %d were flushed", w, n, before[w], after[w])
			}
		}
	}
	close(stop)
	all.Wait()
}

// moveGrants makes a checkpoint in which each grant is a request of a key.
func moveGrants(t testing.TB, s *Store) {
	t.Helper()
	records, through, err := s.Cut()
	ok(t, err)
	sums := map[quota.ID]int64{}
	for r := range records {
		sums[r.Account]++
	}
	cp := &quota.Checkpoint{Through: through, Trim: true}
	for id, n := range sums {
		cp.Rows = append(cp.Rows, quota.Row{Slot: quota.Slot{Key: id + 100}, Totals: quota.Totals{Requests: n}})
	}
	ok(t, s.Checkpoint(cp))
}

// grantsIn returns how many grants of each writer a store holds.
func grantsIn(t testing.TB, dir string) map[int]int64 {
	t.Helper()
	s, err := Open(keptOptions(dir, func(f string, a ...any) { t.Errorf(f, a...) }))
	ok(t, err)
	sums := map[int]int64{}
	var tail []quota.Record
	nothing := func(*quota.Record) error { return nil }
	through, err := s.Recover(nothing, func(r *quota.Record) error { tail = append(tail, *r); return nil })
	ok(t, err)
	ok(t, s.Usage(quota.RowQuery{To: 1, ByKey: true}, func(r *quota.Row) error { sums[int(r.Key-100)] += r.Requests; return nil }))
	for _, r := range tail {
		if r.Seq > through {
			w := int(r.Account)
			if sums[w]++; sums[w] != r.Amount {
				t.Errorf("writer %d: record %d comes as number %d", w, r.Amount, sums[w])
			}
		}
	}
	ok(t, s.Guard(epoch))
	ok(t, s.Close())
	return sums
}

func TestDamagedBackupsAreRefused(t *testing.T) {
	s, _ := lived(t)
	b := backup(t, s)
	check := func(what string, b []byte) {
		t.Helper()
		dir := filepath.Join(t.TempDir(), "new")
		err := Restore(dir, bytes.NewReader(b))
		if err == nil || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: error is %v", what, err)
		}
		if exists(dir) {
			t.Errorf("%s: the directory is there", what)
		}
	}
	for at := range positions(int64(len(b)), 40) {
		damaged := flipped(b, at)
		if _, err := VerifyBackup(bytes.NewReader(damaged)); err != nil { // or it holds the same, by its checksum
			check(fmt.Sprintf("flipped at %d of %d", at, len(b)), damaged)
		}
	}
	for n := range positions(int64(len(b)), 40) {
		check(fmt.Sprintf("%d bytes of %d", n, len(b)), b[:n])
	}
	check("with a byte more", append(bytes.Clone(b), 0))
	check("twice", append(bytes.Clone(b), b...))
	sound := 0 // such as change only how much memory the decompression wants
	for at := range b {
		if _, err := VerifyBackup(bytes.NewReader(flipped(b, int64(at)))); err == nil {
			sound++
		}
	}
	if sound > len(b)/100 {
		t.Errorf("%d of %d flips are not seen", sound, len(b))
	}
	mine := errors.New("mine")
	if _, err := VerifyBackup(io.MultiReader(bytes.NewReader(b[:len(b)/2]), failing{mine})); !errors.Is(err, mine) || errors.Is(err, errImage) {
		t.Errorf("an error of the stream: %v", err)
	}
}

// flipped returns b with a bit inverted.
func flipped(b []byte, at int64) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestRestoreWantsAnEmptyDirectory(t *testing.T) {
	s, want := lived(t)
	b := backup(t, s)
	for name, allowed := range map[string]bool{"file": false, ".hidden": false, "badger/x": false, lostFound + "/x": true, stageTemp + "/badger/x": true} {
		dir := t.TempDir()
		ok(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o700))
		ok(t, os.WriteFile(filepath.Join(dir, name), []byte("mine"), 0o600))
		err := Restore(dir, bytes.NewReader(b))
		if allowed {
			ok(t, err)
			if got, lost, _ := reopen(t, dir, want); lost || !cmp.Equal(got, want) {
				t.Errorf("%s: %+v", name, got)
			}
			continue
		}
		if first, _, _ := strings.Cut(name, "/"); err == nil || !strings.Contains(err.Error(), "not empty: it holds "+first) {
			t.Errorf("%s: error is %v", name, err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != "mine" {
			t.Errorf("%s was touched: %q, %v", name, got, err)
		}
		if entries, _ := os.ReadDir(dir); len(entries) != 1 {
			t.Errorf("%s: %d entries", name, len(entries))
		}
	}
	dir := t.TempDir()
	openIn(t, dir, t.Logf)
	if err := Restore(dir, bytes.NewReader(b)); err == nil {
		t.Error("a store in use is overwritten")
	}
}

func TestBackupOfALaterVersionIsRefused(t *testing.T) {
	s, _ := lived(t)
	b := backup(t, s)
	later := bytes.Clone(b)
	later[len(imageMagic)]++
	n := int(binary.BigEndian.Uint32(later[len(imageMagic)+1:])) + len(imageMagic) + 5
	binary.BigEndian.PutUint32(later[n:], crc32.Checksum(later[:n], castagnoli))
	if _, err := VerifyBackup(bytes.NewReader(later)); !errors.Is(err, errNewer) || !strings.Contains(err.Error(), "version 2 is not known to this program, which knows version 1") {
		t.Errorf("error is %v", err)
	}
	for what, h := range map[string]imageHeader{
		"engine": {Engine: "redis", Schema: 1}, "schema": {Engine: imageEngine, Schema: 9},
	} {
		var out bytes.Buffer
		iw, err := newImageWriter(&out, &h)
		ok(t, err)
		ok(t, iw.close())
		if _, err := VerifyBackup(&out); err == nil || errors.Is(err, errImage) {
			t.Errorf("%s: error is %v", what, err)
		}
	}
}

func TestClosingEndsABackup(t *testing.T) {
	s, _ := lived(t)
	sn, err := s.Snapshot()
	ok(t, err)
	closing := make(chan error, 1)
	go func() { closing <- s.Close() }()
	for !s.closing.Load() {
		time.Sleep(time.Millisecond)
	}
	if _, err := sn.WriteTo(io.Discard); !errors.Is(err, quota.ErrClosed) {
		t.Errorf("error is %v", err)
	}
	select {
	case err := <-closing:
		t.Fatalf("closed before the snapshot: %v", err)
	default:
	}
	ok(t, sn.Close())
	ok(t, sn.Close())
	ok(t, <-closing)
	if _, err := s.Snapshot(); !errors.Is(err, quota.ErrClosed) {
		t.Errorf("error is %v", err)
	}
}

// snapshotTimes returns the times of the snapshots in a store's directory, as seconds
// after epoch.
func snapshotTimes(t testing.TB, s *Store) (seconds []float64) {
	t.Helper()
	list, err := listSnapshots(s.options.Dir)
	ok(t, err)
	for _, f := range list {
		seconds = append(seconds, f.time.Sub(epoch).Seconds())
		if info, err := os.Stat(f.path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %o, %v", f.path, info.Mode().Perm(), err)
		}
		if _, err := readSnapshotHeader(f.path); err != nil {
			t.Error(err)
		}
	}
	return seconds
}

func TestNewestSnapshotsAreKept(t *testing.T) {
	s, _ := lived(t)
	check := func(want ...float64) {
		t.Helper()
		if got := snapshotTimes(t, s); !slices.Equal(got, want) {
			t.Errorf("snapshots %v, want %v", got, want)
		}
	}
	check(0)
	for n := range 4 {
		saveSnapshot(t, s, epoch.Add(time.Duration(n+1)*time.Second))
	}
	check(0, 3, 4)                            // the oldest is an hour of its own
	saveSnapshot(t, s, epoch.Add(-time.Hour)) // the clock was set back
	check(0, 4, 4.000000001)
	// Together they take more than a quarter of what is free and theirs.
	list, err := listSnapshots(s.options.Dir)
	ok(t, err)
	theirs := uint64(list[0].size)
	s.tables.room.floor = 10
	s.tables.room.free = func(string) (uint64, bool) { return 12 * theirs, true }
	saveSnapshot(t, s, epoch.Add(5*time.Second))
	check(0, 4.000000001, 5)
	s.tables.room.free = func(string) (uint64, bool) { return 6 * theirs, true }
	saveSnapshot(t, s, epoch.Add(6*time.Second))
	check(5, 6)
	// The newest stays, whatever it takes.
	s.tables.room.floor, s.tables.room.free = 0, func(string) (uint64, bool) { return theirs, true }
	for _, level := range s.tables.db.Levels() {
		theirs = max(theirs, uint64(level.Size))
	}
	saveSnapshot(t, s, epoch.Add(7*time.Second))
	check(7)
}

func TestSnapshotNeedsRoom(t *testing.T) {
	s, _ := lived(t)
	save := func() error {
		sn, err := s.Snapshot()
		ok(t, err)
		defer sn.Close()
		return sn.Save(epoch.Add(time.Hour))
	}
	s.tables.room.free = func(string) (uint64, bool) { return 2*minFree - 1, true }
	if err := save(); !errors.Is(err, errNoRoom) {
		t.Errorf("error is %v", err)
	}
	// Room that ends while it is written.
	looks := 0
	s.tables.room.free = func(string) (uint64, bool) {
		if looks++; looks > 1 {
			return minFree - 1, true
		}
		return 1 << 40, true
	}
	rw := roomyWriter{w: io.Discard, room: s.tables.room}
	s.tables.room.look()
	if _, err := rw.Write(make([]byte, lookEvery)); !errors.Is(err, errNoRoom) {
		t.Errorf("error is %v", err)
	}
	s.tables.room.free = freeBytes
	s.options.Snapshots = 0
	if err := save(); err == nil {
		t.Error("one is saved, though none are to be kept")
	}
	if got := snapshotTimes(t, s); !slices.Equal(got, []float64{0}) {
		t.Errorf("snapshots %v", got)
	}
}

func TestSnapshotDue(t *testing.T) {
	now := epoch
	o := keptOptions(t.TempDir(), t.Logf)
	o.now = func() time.Time { return now }
	s, err := Open(o)
	ok(t, err)
	due := func(want bool) {
		t.Helper()
		if got := s.SnapshotDue(now); got != want {
			t.Errorf("after %v: %v", now.Sub(epoch), got)
		}
	}
	due(false) // not recovered
	recoverTruth(t, s)
	due(true) // there is none
	saveSnapshot(t, s, now)
	due(false)
	now = epoch.Add(2 * time.Hour)
	due(false) // nothing has changed
	use(t, s, 1)
	due(true)
	saveSnapshot(t, s, now)
	now = now.Add(59 * time.Minute)
	use(t, s, 1)
	due(false)
	ok(t, s.Put(keys(1), nil)) // a key that is revoked must not come back
	due(true)
	saveSnapshot(t, s, now)
	now = now.Add(59 * time.Second)
	ok(t, s.Put(keys(1), nil))
	due(false)
	now = now.Add(time.Second)
	due(true)
	now = epoch.Add(-time.Hour) // the clock was set back before all of them
	due(true)

	now = epoch.Add(4 * time.Hour)
	ok(t, s.Close())
	ok(t, os.WriteFile(filepath.Join(o.Dir, snapshotsDir, "x"+snapshotExt+tempExt), nil, 0o600))
	s, err = Open(o)
	ok(t, err)
	recoverTruth(t, s)
	if names, _ := filepath.Glob(filepath.Join(o.Dir, snapshotsDir, "*"+tempExt)); len(names) > 0 {
		t.Errorf("left over: %q", names)
	}
	due(true) // by the files
	// One that took long.
	s.options.now = func() time.Time { now = now.Add(10 * time.Minute); return now }
	saveSnapshot(t, s, now)
	s.options.now = o.now
	begun := now.Add(-10 * time.Minute)
	took := s.saved.took
	if took < 10*time.Minute {
		t.Fatalf("took %v", took)
	}
	use(t, s, 1)
	for now = begun; now.Before(begun.Add(easeOff * took)); now = now.Add(took) {
		if now.Sub(s.saved.tried) < easeOff*took {
			due(false)
		}
	}
	now = s.saved.tried.Add(easeOff * took)
	due(true)

	// One that failed is tried again, but not at once.
	s.tables.room.free = func(string) (uint64, bool) { return 0, true }
	sn, err := s.Snapshot()
	ok(t, err)
	if err := sn.Save(now); !errors.Is(err, errNoRoom) {
		t.Errorf("error is %v", err)
	}
	ok(t, sn.Close())
	now = now.Add(againAfter - 1)
	due(false)
	now = now.Add(1)
	due(true)
	s.options.SnapshotEvery = 0
	due(false)
	s.options.SnapshotEvery, s.options.Snapshots = time.Hour, 0
	due(false)
	s.options.Snapshots = 1
	due(true)
	s.tables.room.free = freeBytes
	ok(t, s.Close())
	due(false)
}

// TestJournalIsKeptForTheSnapshot checks which segments stay.
func TestJournalIsKeptForTheSnapshot(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(keptOptions(dir, t.Logf))
	ok(t, err)
	recoverTruth(t, s)
	var charged int64
	segments := func() int {
		paths, _ := filepath.Glob(filepath.Join(dir, journalDir, "*"))
		return len(paths)
	}
	round := func(n int) {
		for range n {
			use(t, s, 20)
			move(t, s, &charged)
		}
	}
	round(5)
	if n := segments(); n > 2 {
		t.Errorf("%d segments are kept for no snapshot", n)
	}
	saveSnapshot(t, s, epoch)
	round(5)
	if n := segments(); n < 6 {
		t.Errorf("%d segments", n)
	}
	ok(t, s.Close())
	s, err = Open(keptOptions(dir, t.Logf))
	ok(t, err)
	defer s.Close()
	if got := recoverTruth(t, s); got.Used != 200 || got.Charged != 200 {
		t.Errorf("%+v", got)
	}
	round(1)
	if n := segments(); n < 7 {
		t.Errorf("%d segments after a restart", n)
	}
	saveSnapshot(t, s, epoch.Add(time.Second))
	if n := segments(); n < 7 {
		t.Errorf("%d segments after the next snapshot", n)
	}
	saveSnapshot(t, s, epoch.Add(2*time.Second))
	if n := segments(); n > 2 {
		t.Errorf("%d segments after the one after it", n)
	}
	round(3)
	s.journal.sealed[0].size = keepMost // what is more than that goes, the oldest first
	s.journal.trim(0)
	if n := segments(); n != 3 {
		t.Errorf("%d segments", n)
	}
	s.tables.room.free = func(string) (uint64, bool) { return 0, true }
	if err := s.Guard(epoch); !errors.Is(err, errNoRoom) {
		t.Errorf("Guard: %v", err)
	}
	if n := segments(); n > 1 {
		t.Errorf("%d segments on a disk that is full", n)
	}
	s.tables.room.free = freeBytes
}
