// Package limiter counts what happened in a rolling window, and who failed too
// often. It is arithmetic alone: the time is an argument, and whoever owns a
// window guards it.
package limiter

import "math"

// Buckets is the number of buckets that a Window counts: the current one and
// the twelve before it.
const Buckets = 13

// BucketWidth is the width of a bucket in nanoseconds: 5 s.
const BucketWidth = 5_000_000_000

// Window counts amounts over any 60 seconds. Time is cut into buckets of 5 s;
// the current bucket and the 12 before it are counted, whole, so that an
// amount counts for 60 to 65 s: no span of 60 s ever holds more than Sum has
// shown, and at most one bucket's amount is counted too long.
//
// Ticks are nanoseconds of a clock that does not go back; a tick before the
// newest bucket counts as that bucket's. Amounts are not negative: what is
// below 0 counts as 0. A bucket that is full stays full instead of wrapping,
// and so does the sum. The zero Window is empty and ready.
type Window[T uint32 | int64] struct {
	sum     int64      // of all buckets: Sum is asked several times for one Add
	start   int64      // tick at which the newest bucket starts
	buckets [Buckets]T // bucket n is at n mod Buckets
}

// Bucket returns the number of the bucket that holds tick. All before tick 0
// lies in bucket 0.
func Bucket(tick int64) int64 { return max(tick/BucketWidth, 0) }

// newest returns the number of the newest bucket.
func (w *Window[T]) newest() int64 { return w.start / BucketWidth }

// advance drops the buckets that are too old at tick.
func (w *Window[T]) advance(tick int64) {
	if tick-w.start >= BucketWidth {
		w.turn(tick)
	}
}

// turn makes the bucket of tick the newest. It is out of line so that the
// frequent case of advance, in which there is nothing to do, is compiled into
// its callers.
//
//go:noinline
func (w *Window[T]) turn(tick int64) {
	newest, b := w.newest(), Bucket(tick)
	if b-newest >= Buckets {
		w.Clear()
	} else {
		for n := newest + 1; n <= b; n++ {
			w.sum -= int64(w.buckets[n%Buckets])
			w.buckets[n%Buckets] = 0
		}
	}
	w.start = max(w.start, b*BucketWidth)
}

// put counts n in bucket b, as far as there is room.
func (w *Window[T]) put(b int64, n T) {
	was := w.buckets[b%Buckets]
	now := was + T(min(max(int64(n), 0), math.MaxInt64-w.sum))
	if now < was { // wrapped, which only uint32 can: no bucket passes the sum
		now = ^T(0)
	}
	w.buckets[b%Buckets] = now
	w.sum += int64(now - was)
}

// Sum returns what is counted at tick.
func (w *Window[T]) Sum(tick int64) int64 {
	w.advance(tick)
	return w.sum
}

// Add counts n at tick.
func (w *Window[T]) Add(tick int64, n T) {
	w.advance(tick)
	w.put(w.newest(), n)
}

// Return takes back n of what was added at the tick added, unless that is no
// longer counted at tick. It never takes more than the bucket holds.
func (w *Window[T]) Return(tick, added int64, n T) {
	w.advance(tick)
	newest := w.newest()
	b := min(Bucket(added), newest)
	if newest-b >= Buckets {
		return
	}
	n = min(max(n, 0), w.buckets[b%Buckets])
	w.buckets[b%Buckets] -= n
	w.sum -= int64(n)
}

// Until returns in how many nanoseconds after tick the sum will have fallen to
// target or below if nothing is added, and false if it never will (a negative
// target).
func (w *Window[T]) Until(tick, target int64) (int64, bool) {
	if target < 0 {
		return 0, false
	}
	sum := w.Sum(tick)
	if sum <= target {
		return 0, true
	}
	newest := w.newest()
	b := max(newest-Buckets+1, 0) // the oldest that is counted
	for ; b < newest; b++ {
		if sum -= int64(w.buckets[b%Buckets]); sum <= target {
			break
		}
	}
	return (b+Buckets)*BucketWidth - tick, true
}

// Clear empties the window.
func (w *Window[T]) Clear() {
	w.sum = 0
	w.buckets = [Buckets]T{}
}

// Dump returns the newest bucket's number and the buckets, the newest first.
func (w *Window[T]) Dump() (newest int64, buckets [Buckets]T) {
	newest = w.newest()
	for i := range min(newest+1, Buckets) {
		buckets[i] = w.buckets[(newest-i)%Buckets]
	}
	return newest, buckets
}

// Restore sets the window to what Dump returned. Buckets that lie after the
// one of tick, as a clock that was set back leaves them, are moved so that the
// newest is the one of tick; what would come to lie before bucket 0 goes into
// it. So all are still counted, for no longer than 65 s.
func (w *Window[T]) Restore(tick, newest int64, buckets [Buckets]T) {
	newest = max(min(newest, Bucket(tick)), 0)
	*w = Window[T]{start: newest * BucketWidth}
	for i, n := range buckets {
		w.put(max(newest-int64(i), 0), n)
	}
}
