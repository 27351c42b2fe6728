package badger

import (
	"errors"
	"os"
)

// keepMost is how many bytes of segments are kept for the snapshots. With them
// one can be brought up to date, should the tables be damaged.
const keepMost = 256 << 20

// trim removes the segments that hold nothing after the record upTo, but for
// those that are kept for the snapshots.
func (j *journal) trim(upTo uint64) {
	if j.syncing.lock() != nil {
		return // the next one does it
	}
	defer j.syncing.unlock()
	j.trimmed = max(j.trimmed, upTo)
	j.removeOld()
}

// keep makes trim keep the segments with a record after the given one; 0: none
// but those that are needed.
func (j *journal) keep(after uint64) {
	if j.syncing.lock() != nil {
		return
	}
	defer j.syncing.unlock()
	j.kept = after
	j.removeOld()
}

// removeOld removes the segments that are neither needed nor to be kept.
// syncing is held.
func (j *journal) removeOld() {
	var bytes int64
	first := len(j.sealed) // the oldest that stays
	for ; first > 0; first-- {
		s := j.sealed[first-1]
		if s.last > j.trimmed {
			continue
		}
		bytes += s.size
		if j.kept == 0 || s.last <= j.kept || bytes > keepMost {
			break
		}
	}
	left := j.sealed[:0]
	for i, s := range j.sealed {
		if i >= first {
			left = append(left, s)
			continue
		}
		s.close()
		if err := j.remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
			j.log("removing a segment of the journal: %v", err)
			left = append(left, s)
		}
	}
	clear(j.sealed[len(left):])
	j.sealed = left
}

func (j *journal) remove(path string) error {
	return j.fault.step(StepRemove, path, func() error { return os.Remove(path) })
}

// noteDropped tells of records that are being dropped.
func (j *journal) noteDropped() {
	if j.lostFirst.Load() == 0 || j.syncing.lock() != nil {
		return
	}
	defer j.syncing.unlock()
	j.tellDropped()
}
