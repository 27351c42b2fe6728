package badger

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Snapshots that are saved lie in snapshotsDir, named by their time.
const (
	snapshotsDir = "snapshots"
	snapshotExt  = ".lqsnap"
	tempExt      = ".tmp"
)

// Values of Options that suit most.
const (
	DefaultSnapshots     = 24
	DefaultSnapshotEvery = time.Hour
)

const (
	// easeOff is how many times as long as a snapshot took nothing is done about
	// the next one.
	easeOff = 20
	// againAfter is how much time is left after one that failed, and after one
	// that lacks a change to keys or groups: those are not in the journal, and a
	// store that is made good must not bring back a key that was revoked.
	againAfter = time.Minute
)

// saved is what a store knows of its snapshots.
type saved struct {
	saving sync.Mutex // held while one is written

	mu     sync.Mutex
	last   time.Time // when the last one was made; zero: none is there
	tried  time.Time
	took   time.Duration
	puts   uint64 // changes to keys and groups that are in it
	commit uint64 // the tables' last change in it
	seq    uint64 // the last record in it
	base   uint64 // the tables in it lack no record up to this one
}

// snapshotFile is one that is saved.
type snapshotFile struct {
	path string
	time time.Time
	size int64
}

// listSnapshots returns what is saved in dir, the oldest first.
func listSnapshots(dir string) (list []snapshotFile, err error) {
	entries, err := os.ReadDir(filepath.Join(dir, snapshotsDir))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listing snapshots: %w", err)
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), snapshotExt)
		at, terr := time.Parse(nameTime, name)
		info, ierr := e.Info()
		if !ok || terr != nil || ierr != nil || !info.Mode().IsRegular() {
			continue
		}
		list = append(list, snapshotFile{filepath.Join(dir, snapshotsDir, e.Name()), at, info.Size()})
	}
	slices.SortFunc(list, func(a, b snapshotFile) int { return a.time.Compare(b.time) })
	return list, nil
}

// readSnapshotHeader returns the header of a snapshot.
func readSnapshotHeader(path string) (imageHeader, error) {
	f, err := os.Open(path)
	if err != nil {
		return imageHeader{}, err
	}
	defer closeFile(f)
	h, _, err := readImageHeader(f)
	return h, err
}

// findSnapshots learns of the snapshots of an earlier process, and makes the
// journal keep what the newest but one lacks: should the newest turn out to be
// damaged, too, nothing is lost yet.
func (s *Store) findSnapshots() {
	leftover, _ := filepath.Glob(filepath.Join(s.options.Dir, snapshotsDir, "*"+tempExt))
	for _, path := range leftover { // of a process that died
		_ = os.Remove(path)
	}
	list, err := listSnapshots(s.options.Dir)
	if err != nil {
		s.options.Logger("%v", err)
	}
	v := &s.saved
	for _, f := range slices.Backward(list) {
		h, err := readSnapshotHeader(f.path)
		if err != nil {
			s.options.Logger("reading the snapshot %s: %v", f.path, err)
			continue
		}
		first := v.last.IsZero()
		if first {
			v.last, v.commit, v.seq, v.base = f.time, h.Commit, h.Last, h.Base
		}
		if s.options.Snapshots > 0 {
			s.journal.kept = max(h.Base, 1)
		}
		if !first {
			return
		}
	}
}

// SnapshotDue implements quota.Store.
func (s *Store) SnapshotDue(now time.Time) bool {
	o, v := &s.options, &s.saved
	if o.Snapshots <= 0 || o.SnapshotEvery <= 0 || !s.recovered.Load() || s.enter() != nil {
		return false
	}
	defer s.leave()
	v.mu.Lock()
	defer v.mu.Unlock()
	if since := now.Sub(v.tried); !v.tried.IsZero() && since >= 0 && since < max(againAfter, easeOff*v.took) {
		return false
	}
	every := o.SnapshotEvery
	if s.puts.Load() != v.puts {
		every = min(every, againAfter)
	}
	// Made in what is the future now, it says nothing of when.
	if since := now.Sub(v.last); !v.last.IsZero() && since >= 0 && since < max(every, easeOff*v.took) {
		return false
	}
	return v.last.IsZero() || s.journal.flushed.Load() != v.seq || s.tables.mark.last() != v.commit
}

// Save implements quota.Snapshot.
func (sn *snapshot) Save(now time.Time) error {
	s := sn.s
	if s.options.Snapshots <= 0 {
		return errors.New("saving a snapshot: none are to be kept")
	}
	s.saved.saving.Lock()
	defer s.saved.saving.Unlock()
	begin := s.options.now()
	err := sn.save(now)
	v := &s.saved
	v.mu.Lock()
	v.tried, v.took = now, s.options.now().Sub(begin)
	keep := v.base
	if err == nil {
		if v.last.IsZero() {
			keep = sn.meta.base()
		}
		v.last, v.commit, v.seq, v.base, v.puts = now, sn.meta.commit, sn.last, sn.meta.base(), sn.puts
	}
	v.mu.Unlock()
	if err != nil {
		return fmt.Errorf("saving a snapshot: %w", err)
	}
	s.journal.keep(max(keep, 1))
	return s.dropSnapshots()
}

func (sn *snapshot) save(now time.Time) error {
	s := sn.s
	r := s.tables.room
	// It takes no more than the tables, mostly much less.
	need := 2 * r.floor
	for _, level := range s.tables.db.Levels() {
		need += uint64(level.Size)
	}
	if err := r.require(need); err != nil {
		return err
	}
	dir := filepath.Join(s.options.Dir, snapshotsDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	list, err := listSnapshots(s.options.Dir)
	if err != nil {
		return err
	}
	// Their names tell their order, whatever the clock does.
	if n := len(list); n > 0 && !now.After(list[n-1].time) {
		now = list[n-1].time.Add(1)
	}
	path := filepath.Join(dir, now.UTC().Format(nameTime)+snapshotExt)
	err = writeFileFrom(path, func(f *os.File) error {
		_, err := sn.WriteTo(&roomyWriter{w: f, room: r})
		return err
	})
	if err != nil {
		return err
	}
	return syncDir(s.options.Dir)
}

// roomyWriter ends when the room on the disk does.
type roomyWriter struct {
	w    io.Writer
	room *room
	n    int
}

func (rw *roomyWriter) Write(b []byte) (int, error) {
	if rw.n += len(b); rw.n >= lookEvery {
		rw.n = 0
		if err := rw.room.require(rw.room.floor); err != nil {
			return 0, err
		}
	}
	return rw.w.Write(b)
}

// dropSnapshots removes the snapshots beyond the number that is kept: first
// those that follow another closely, as after changes to keys, so that the rest
// reach back as far as they are meant to; then the oldest. But for the newest,
// the oldest go too that together take more than a quarter of the space that is
// free and theirs.
func (s *Store) dropSnapshots() error {
	list, err := listSnapshots(s.options.Dir)
	if err != nil {
		return err
	}
	var size uint64
	for _, f := range list {
		size += uint64(f.size)
	}
	free, known := s.tables.room.look()
	for len(list) > 1 {
		drop := 0
		switch {
		case len(list) > s.options.Snapshots:
			drop = s.crowded(list)
		case !known || size <= (free+size)/4:
			return nil
		}
		if err := os.Remove(list[drop].path); err != nil {
			return fmt.Errorf("removing an old snapshot: %w", err)
		}
		size -= uint64(list[drop].size)
		free += uint64(list[drop].size)
		list = slices.Delete(list, drop, drop+1)
	}
	return nil
}

// crowded returns the first snapshot, but for the newest two, that follows the
// one before it closely; the oldest, if none does.
func (s *Store) crowded(list []snapshotFile) int {
	for i := 1; i < len(list)-2; i++ {
		if list[i].time.Sub(list[i-1].time) < s.options.SnapshotEvery*9/10 {
			return i
		}
	}
	return 0
}
