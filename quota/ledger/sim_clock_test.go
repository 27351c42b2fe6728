package ledger

import (
	"testing"
	"time"
	"unsafe"
)

// simClock is a computer's two clocks: one that runs evenly for ever, and the
// wall clock, which people and time servers set.
type simClock struct {
	start  time.Time
	mono   int64 // nanoseconds since the beginning
	offset int64 // by which the wall clock is ahead of start + mono
}

// now is what time.Now would return.
func (c *simClock) now() time.Time {
	return withMonotonic(c.start.Add(time.Duration(c.mono+c.offset)), 1+c.mono)
}

// withMonotonic returns t with that monotonic reading. Nothing but time.Now can
// make a time with one, so that it is put where package time keeps it; a
// package that kept it elsewhere would fail TestSimClock.
func withMonotonic(t time.Time, mono int64) time.Time {
	const hasMonotonic = 1 << 63
	now := time.Now().UTC()
	layout := (*struct {
		wall uint64
		ext  int64
		loc  *time.Location
	})(unsafe.Pointer(&now))
	seconds := t.Unix() - time.Date(1885, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	layout.wall = hasMonotonic | uint64(seconds)<<30 | uint64(t.Nanosecond())
	layout.ext = mono
	return now
}

func TestSimClock(t *testing.T) {
	c := simClock{start: time.Date(2026, 11, 22, 3, 4, 5, 6, time.UTC)}
	before := c.now()
	c.mono += int64(7 * time.Second)
	c.offset -= int64(time.Hour)
	after := c.now()
	if d := after.Sub(before); d != 7*time.Second {
		t.Errorf("%v passed on the even clock, want 7s", d)
	}
	if want := c.start.Add(7*time.Second - time.Hour); after.UnixNano() != want.UnixNano() || before.UnixNano() != c.start.UnixNano() {
		t.Errorf("the wall clock shows %v, want %v", after, want)
	}
}
