package ledger

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/llm-quota/caddy-llm-quota/store/badger"
)

// simDisk knows what a power loss would leave of the files that the store
// writes, and ends the process between any two of its steps.
type simDisk struct {
	rng  *rand.Rand
	dir  string
	fuse int // points that are passed until the process dies; below 0: it does not
	dead bool
	died string         // the point at which it died
	at   map[string]int // how often it died at each point

	written struct { // the last write to the journal
		path     string
		from, to int64
	}
	synced  map[string]int64 // how much of each file is surely on the disk
	unnamed map[string]bool  // files whose names may not be
	removed map[string][]byte
	marks   [][]byte // what the tables' mark was
}

func newSimDisk(rng *rand.Rand, dir string) *simDisk {
	d := &simDisk{rng: rng, dir: dir, at: map[string]int{}}
	d.settle()
	return d
}

// settle says that all that is on the disk is there for good.
func (d *simDisk) settle() {
	d.synced, d.unnamed, d.removed, d.marks = map[string]int64{}, map[string]bool{}, map[string][]byte{}, nil
	for _, path := range d.segments() {
		d.synced[path] = fileSize(path)
	}
}

// segments returns the files of the journal, the oldest first.
func (d *simDisk) segments() []string {
	paths, err := filepath.Glob(filepath.Join(d.dir, "journal", "*.log"))
	if err != nil {
		panic(err)
	}
	slices.Sort(paths)
	return paths
}

func fileSize(path string) int64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// fault is the store's badger.Fault.
func (d *simDisk) fault(step badger.Step, path string, done bool) error {
	if d.dead {
		return errDead
	}
	if done {
		d.after(step, path)
	} else {
		d.before(step, path)
	}
	if d.fuse--; d.fuse == -1 {
		d.dead, d.died = true, fmt.Sprintf("before %s", step)
		if done {
			d.died = fmt.Sprintf("after %s", step)
		}
		d.at[d.died]++
		return errDead
	}
	d.fuse = max(d.fuse, -2)
	return nil
}

func (d *simDisk) before(step badger.Step, path string) {
	switch step {
	case badger.StepWrite:
		d.written.path, d.written.from = path, fileSize(path)
		d.written.to = d.written.from
	case badger.StepRemove, badger.StepRedoDone:
		d.removed[path], _ = os.ReadFile(path)
	case badger.StepMark:
		if b, err := os.ReadFile(path); err == nil {
			d.marks = append(d.marks, b)
		}
	}
}

func (d *simDisk) after(step badger.Step, path string) {
	switch step {
	case badger.StepCreate:
		d.synced[path], d.unnamed[path] = 0, true
	case badger.StepWrite:
		d.written.to = fileSize(path)
	case badger.StepSync, badger.StepTruncate:
		d.synced[path] = fileSize(path)
	case badger.StepSyncDir:
		clear(d.unnamed)
		d.named(path)
	case badger.StepRedo: // which syncs the names of its directory
		d.named(filepath.Dir(path))
	}
}

// named says that the names in dir, and that others are there no more, are on
// the disk.
func (d *simDisk) named(dir string) {
	for path := range d.removed {
		if filepath.Dir(path) == dir {
			delete(d.removed, path)
		}
	}
}

// kill leaves what the death of the process leaves: everything that was
// written, the last write in part if it had not returned. It tells whether that
// tore a record.
func (d *simDisk) kill() (torn bool, err error) {
	if d.died != "after "+string(badger.StepWrite) || d.rng.IntN(4) == 0 {
		return false, nil
	}
	size := d.written.from + d.rng.Int64N(d.written.to-d.written.from+1)
	d.synced[d.written.path] = min(d.synced[d.written.path], size)
	return size < d.written.to, os.Truncate(d.written.path, size)
}

// lose leaves what a power loss leaves: what was synced, and of the rest as
// much of its beginning as chance wills, maybe with zeros after it.
func (d *simDisk) lose() error {
	whole := true // nothing of what came before is lost
	for _, path := range d.segments() {
		size, sure := fileSize(path), d.synced[path]
		if !whole && sure > 0 {
			return fmt.Errorf("%s is synced, though something before it is not", path)
		}
		var err error
		switch keep := sure + d.rng.Int64N(size-sure+1); {
		case d.unnamed[path] && (!whole || d.rng.IntN(2) == 0):
			err = os.Remove(path)
			whole = false
		case !whole:
			err = fmt.Errorf("the name of %s is on the disk, though something before it is not", path)
		case keep < size:
			if err = os.Truncate(path, keep); err == nil && d.rng.IntN(3) == 0 {
				err = os.Truncate(path, keep+d.rng.Int64N(size-keep+1))
			}
			whole = false
		}
		if err != nil {
			return err
		}
	}
	for _, path := range slices.Sorted(maps.Keys(d.removed)) {
		if d.rng.IntN(2) == 0 {
			if err := os.WriteFile(path, d.removed[path], 0o600); err != nil {
				return err
			}
		}
	}
	if len(d.marks) > 0 && d.rng.IntN(2) == 0 {
		if err := os.WriteFile(filepath.Join(d.dir, "tables.mark"), d.marks[d.rng.IntN(len(d.marks))], 0o600); err != nil {
			return err
		}
	}
	d.settle()
	return nil
}

// revive lets a new process begin, which dies after so many points; below 0: it
// lives.
func (d *simDisk) revive(fuse int) { d.dead, d.died, d.fuse = false, "", fuse }

// simPoints lists where the process died, for the log.
func simPoints(at map[string]int) string {
	var names []string
	for name, n := range at {
		names = append(names, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
