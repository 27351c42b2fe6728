package badger

import (
	"fmt"
	"sync"
	"time"
)

// changePatience is how long one change of the tables, such as ten thousand new
// keys, may last until those who wait for it are told that it hangs.
const changePatience = 10 * time.Second

// watch is what Guard has seen when it was called before.
type watch struct {
	mu    sync.Mutex
	turns [3]uint64
	since [3]time.Time
}

// Guard implements quota.Store. It looks at the room on the disk, and tells of
// a disk that hangs without waiting for it. What was lost it tells until
// damagedDir is empty.
func (s *Store) Guard(now time.Time) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	if err := s.stalled(now); err != nil {
		return err
	}
	if err := s.tables.room.tend(now); err != nil {
		s.journal.keep(0) // what is kept for the snapshots is the least needed
		return fmt.Errorf("writing is held back: %w", err)
	}
	s.compact()
	s.journal.noteDropped()
	return s.tables.losses.unread(now)
}

// stalled returns an error if one holder of a latch has held it for longer than
// others would wait.
func (s *Store) stalled(now time.Time) error {
	w := &s.watch
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, l := range [...]*latch{s.journal.writing, s.journal.syncing, s.tables.writing} {
		turn, same := l.stuck(w.turns[i])
		if !same {
			w.turns[i], w.since[i] = turn, now
		}
		if turn > 0 && (l.stalled.Load() == turn || now.Sub(w.since[i]) >= l.patience) {
			return errStalled
		}
	}
	return nil
}
