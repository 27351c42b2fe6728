package badger

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// stallAfter is how long one write to the disk may last until those who wait
// for it are told that it hangs.
const stallAfter = time.Second

// errStalled says that the disk does not come to an end with a write.
var errStalled = errors.New("a write to the disk has not returned for a while")

// latch is a mutex for those who write to the disk, for which others do not
// wait for ever: a disk that hangs holds up the one who writes, and nobody
// else.
type latch struct {
	held chan struct{} // full while it is locked
	turn atomic.Uint64 // grows with each holder
	// stalled is the turn for which somebody waited in vain; as long as that is
	// the current one, nobody waits again.
	stalled  atomic.Uint64
	patience time.Duration
}

func newLatch() *latch {
	return &latch{held: make(chan struct{}, 1), patience: stallAfter}
}

// timers are those of waiters.
var timers = sync.Pool{New: func() any { return time.NewTimer(time.Hour) }}

// lock waits as long as no single holder takes longer than patience, else it
// returns errStalled.
func (l *latch) lock() error {
	select {
	case l.held <- struct{}{}:
		l.turn.Add(1)
		return nil
	default:
		return l.wait()
	}
}

func (l *latch) wait() error {
	turn := l.turn.Load()
	if l.stalled.Load() == turn && turn > 0 {
		return errStalled
	}
	t := timers.Get().(*time.Timer)
	defer timers.Put(t)
	defer t.Stop()
	for {
		t.Reset(l.patience)
		select {
		case l.held <- struct{}{}:
			l.turn.Add(1)
			return nil
		case <-t.C:
		}
		now := l.turn.Load()
		if now == turn {
			l.stalled.Store(turn)
			return errStalled
		}
		turn = now // it is slow, but it goes on
	}
}

func (l *latch) unlock() {
	if l.stalled.Load() != 0 {
		l.stalled.Store(0)
	}
	<-l.held
}

// stuck tells, for one who looks from time to time, whether the latch was held
// in the same turn when it was looked at before, and which turn it is in; 0:
// it is free.
func (l *latch) stuck(before uint64) (now uint64, same bool) {
	if len(l.held) == 0 {
		return 0, false
	}
	now = l.turn.Load()
	return now, now == before
}
