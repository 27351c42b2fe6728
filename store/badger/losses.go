package badger

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// What was lost is told by files in damagedDir, beside what was found damaged,
// until an operator removes them.
const (
	damagedDir = "damaged"
	noteName   = "note.txt"
	// nameTime is the form of times in names: UTC, in the order of time.
	nameTime = "20060102T150405.000000000Z"
)

// lookAtLosses is how much time lies between two looks of Guard's at them.
const lookAtLosses = 3 * time.Second

// note is what an operator is told of a loss.
type note struct {
	found string // what was found
	did   string // what was done
	lost  string // what may be lost
	to    string // what to do
}

func (n *note) text(now time.Time) string {
	return fmt.Sprintf(`llm_quota: this store was damaged. Noticed on %s.

What was found
  %s

What was done
  %s

What may be lost
  %s

What to do
  %s
  When you have looked into it, remove this directory. Until then the store
  reports that it is damaged.
`, now.UTC().Format(time.RFC3339), n.found, n.did, n.lost, n.to)
}

// losses keeps the notes of a store.
type losses struct {
	dir string // the store's
	log func(format string, args ...any)
	now func() time.Time

	mu      sync.Mutex
	pending []string // texts that could not be written yet
	names   []string // what lies in damagedDir
	looked  time.Time
}

// tell logs a loss and writes a note of it.
func (l *losses) tell(n *note) {
	now := l.now()
	l.log("the store in %s is damaged: %s: %s: what may be lost: %s", l.dir, n.found, n.did, n.lost)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pending = append(l.pending, n.text(now))
	l.looked = time.Time{}
	l.writeNotes(now)
}

// writeNotes writes the notes that wait. mu is held.
func (l *losses) writeNotes(now time.Time) {
	for len(l.pending) > 0 {
		place, err := newPlace(l.dir, now)
		if err == nil {
			err = writeFile(filepath.Join(place, noteName), []byte(l.pending[0]))
		}
		if err != nil {
			l.log("writing a note of what was lost: %v", err)
			return
		}
		l.pending = l.pending[1:]
	}
}

// newPlace makes a new directory for what is damaged.
func newPlace(dir string, now time.Time) (string, error) {
	if err := os.MkdirAll(filepath.Join(dir, damagedDir), 0o700); err != nil {
		return "", err
	}
	for n := 0; ; n++ {
		place := filepath.Join(dir, damagedDir, now.UTC().Add(time.Duration(n)).Format(nameTime))
		err := os.Mkdir(place, 0o700)
		if !os.IsExist(err) {
			return place, err
		}
	}
}

// unread returns an error that names what nobody has looked into.
func (l *losses) unread(now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writeNotes(now)
	if now.Sub(l.looked) >= lookAtLosses || now.Before(l.looked) {
		l.looked = now
		l.names = notEmpty(filepath.Join(l.dir, damagedDir))
	}
	switch n := len(l.names); {
	case n > 3:
		return fmt.Errorf("%w: see %s and %d more in %s, and remove them", quota.ErrDamaged, strings.Join(l.names[:3], ", "), n-3, filepath.Join(l.dir, damagedDir))
	case n > 0:
		return fmt.Errorf("%w: see %s in %s, and remove it", quota.ErrDamaged, strings.Join(l.names, ", "), filepath.Join(l.dir, damagedDir))
	case len(l.pending) > 0:
		return fmt.Errorf("%w: there are %d notes that cannot be written", quota.ErrDamaged, len(l.pending))
	}
	return nil
}

// notEmpty returns the names in dir of all but empty directories.
func notEmpty(dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			if within, err := os.ReadDir(filepath.Join(dir, e.Name())); err == nil && len(within) == 0 {
				continue
			}
		}
		names = append(names, e.Name())
	}
	return names
}
