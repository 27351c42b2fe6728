package badger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// The room that is kept on the disk. Badger writes through maps of sparse
// files: where no block can be had for one, the system kills the process.
const (
	// minFree is how much of the disk must be free for a change of the tables
	// to be tried, or for a snapshot to be saved.
	minFree = 4 * memTableSize
	// minOpen is the same for the opening and the closing of the tables.
	minOpen = 2 * memTableSize
	// minJournal is the same for the journal, which can wait.
	minJournal = memTableSize
	// ballastSize is the size of a file that is there to be removed.
	ballastSize = 32 << 20
)

// ballastName is a file that takes room on the disk while there is plenty, and
// gives it to the tables when there is none.
const ballastName = "ballast"

// lookAtRoom is how much time lies between two looks of Guard's at the disk.
const lookAtRoom = 3 * time.Second

// room watches the free space of a disk.
type room struct {
	dir  string
	log  func(format string, args ...any)
	free func(dir string) (uint64, bool) // freeBytes

	floor, last, ballast uint64 // minFree, minJournal, ballastSize

	// full says that the journal must wait.
	full atomic.Bool

	mu     sync.Mutex
	low    bool // the free space fell below floor, and has not come back
	looked time.Time
}

func newRoom(dir string, log func(string, ...any), free func(string) (uint64, bool)) *room {
	if free == nil {
		free = freeBytes
	}
	return &room{dir: dir, log: log, free: free, floor: minFree, last: minJournal, ballast: ballastSize}
}

// enough is how much must be free for all to go on after it was too little: the
// ballast can be made again, and some more, so that it does not go to and fro.
func (r *room) enough() uint64 { return r.floor + r.ballast + r.floor/4 }

// look looks at the disk. When its free space is below the floor the ballast
// is given up.
func (r *room) look() (free uint64, known bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lookNow()
}

func (r *room) lookNow() (free uint64, known bool) {
	free, known = r.free(r.dir)
	if !known {
		return 0, false
	}
	switch {
	case !r.low && free < r.floor:
		r.low = true
		r.log("the disk has only %d bytes free: the tables are not written until there are %d", free, r.enough())
		if os.Remove(r.path()) == nil {
			free, known = r.free(r.dir)
		}
	case r.low && free >= r.enough():
		r.low = false
		r.log("the disk has %d bytes free again: the tables are written", free)
	}
	r.full.Store(known && free < r.last)
	return free, known
}

func (r *room) path() string { return filepath.Join(r.dir, ballastName) }

// check returns an error while the tables must not be written.
func (r *room) check() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.checkNow()
}

func (r *room) checkNow() error {
	free, known := r.lookNow()
	if !known || !r.low {
		return nil
	}
	return noRoom(free, r.enough())
}

// admit returns an error while the journal must not be written.
func (r *room) admit() error {
	if free, known := r.look(); known && free < r.last {
		return noRoom(free, r.last)
	}
	return nil
}

// errNoRoom is what errors about the room on the disk wrap.
var errNoRoom = fmt.Errorf("too little room on the disk: %w", quota.ErrUnavailable)

func noRoom(free, need uint64) error {
	return fmt.Errorf("%w: the disk has %d bytes free, %d are needed", errNoRoom, free, need)
}

// require returns an error if less than that is free, after the ballast was
// given up.
func (r *room) require(need uint64) error {
	if free, known := r.look(); known && free < need {
		return noRoom(free, need)
	}
	return nil
}

// tend is check, from time to time, and makes the ballast when there is room
// for it.
func (r *room) tend(now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.low && now.Sub(r.looked) < lookAtRoom && !now.Before(r.looked) {
		return nil
	}
	r.looked = now
	if err := r.checkNow(); err != nil {
		return err
	}
	info, err := os.Stat(r.path())
	if err == nil && info.Size() == int64(r.ballast) {
		return nil
	}
	if free, known := r.free(r.dir); !known || free < r.enough() {
		return nil
	}
	if err := makeBallast(r.path(), int64(r.ballast)); err != nil {
		_ = os.Remove(r.path())
		r.log("taking room on the disk for when it is full: %v", err)
	}
	return nil
}

// makeBallast makes a file that really takes the room.
func makeBallast(path string, size int64) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return allocate(f, size)
}
