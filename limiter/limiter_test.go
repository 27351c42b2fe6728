package limiter

import (
	"fmt"
	"math"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const second = 1_000_000_000

// twin is a Window that is slow and obviously right: a list of what was
// counted, and the newest bucket that was seen.
type twin struct {
	newest  int64
	full    int64 // the most that one bucket holds
	charges []charge
}

type charge struct{ bucket, amount int64 }

func (tw *twin) see(tick int64) {
	tw.newest = max(tw.newest, Bucket(tick))
}

func (tw *twin) sum(tick int64) (sum int64) {
	tw.see(tick)
	for _, c := range tw.charges {
		if c.bucket >= tw.newest-12 {
			sum += c.amount
		}
	}
	return sum
}

func (tw *twin) in(bucket int64) (sum int64) {
	for _, c := range tw.charges {
		if c.bucket == bucket {
			sum += c.amount
		}
	}
	return sum
}

func (tw *twin) put(bucket, n int64) {
	var all int64
	for _, c := range tw.charges {
		if c.bucket >= tw.newest-12 {
			all += c.amount
		}
	}
	n = min(max(n, 0), tw.full-tw.in(bucket), math.MaxInt64-all)
	tw.charges = append(tw.charges, charge{bucket, n})
}

func (tw *twin) add(tick, n int64) {
	tw.see(tick)
	tw.put(tw.newest, n)
}

func (tw *twin) giveBack(tick, added, n int64) {
	tw.see(tick)
	bucket := min(Bucket(added), tw.newest)
	if bucket < tw.newest-12 {
		return
	}
	tw.charges = append(tw.charges, charge{bucket, -min(max(n, 0), tw.in(bucket))})
}

func (tw *twin) restore(tick int64) {
	back := max(tw.newest-Bucket(tick), 0)
	counted := *tw
	*tw = twin{newest: tw.newest - back, full: tw.full}
	for age := range int64(Buckets) {
		tw.put(max(tw.newest-age, 0), counted.in(counted.newest-age))
	}
}

func TestWindowAgreesWithAListOfCharges(t *testing.T) {
	t.Run("uint32", func(t *testing.T) { agree[uint32](t, math.MaxUint32) })
	t.Run("int64", func(t *testing.T) { agree[int64](t, math.MaxInt64) })
}

func agree[T uint32 | int64](t *testing.T, full int64) {
	amounts := rapid.OneOf(
		rapid.Int64Range(0, 100),
		rapid.Just(full), rapid.Just(full/2), rapid.Just(full-1),
	)
	starts := rapid.SampledFrom([]int64{
		math.MinInt64, -100 * second, -1, 0, 1, 59 * second, 1_800_000_000 * second, math.MaxInt64 - 1000*second,
	})
	steps := rapid.OneOf(
		rapid.Int64Range(0, 5*second),
		rapid.Int64Range(0, 70*second),
		rapid.Int64Range(-70*second, 0),
		rapid.SampledFrom([]int64{0, 1, BucketWidth - 1, BucketWidth, 12 * BucketWidth, 13 * BucketWidth, 14 * BucketWidth}),
	)
	rapid.Check(t, func(t *rapid.T) {
		var w Window[T]
		tw := twin{full: full}
		tick := starts.Draw(t, "start")
		step := func(t *rapid.T) {
			if d := steps.Draw(t, "step"); d > 0 && tick <= math.MaxInt64-d || d < 0 && tick >= math.MinInt64-d {
				tick += d
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"step": step,
			"add": func(t *rapid.T) {
				n := amounts.Draw(t, "n")
				w.Add(tick, T(n))
				tw.add(tick, n)
			},
			"return": func(t *rapid.T) {
				n, added := amounts.Draw(t, "n"), rapid.OneOf(
					rapid.Int64Range(tick-min(70*second, tick-math.MinInt64), tick), rapid.Int64(),
				).Draw(t, "added")
				w.Return(tick, added, T(n))
				tw.giveBack(tick, added, n)
			},
			"until": func(t *rapid.T) {
				target := rapid.OneOf(rapid.Int64Range(-1, 300), rapid.Int64()).Draw(t, "target")
				exact(t, w, tick, target)
				tw.see(tick)
			},
			"clear": func(t *rapid.T) {
				w.Clear()
				tw.charges = nil
			},
			"dump and restore": func(t *rapid.T) {
				newest, buckets := w.Dump()
				step(t)
				w = Window[T]{}
				w.Restore(tick, newest, buckets)
				tw.restore(tick)
			},
			"": func(t *rapid.T) {
				if got, want := w.Sum(tick), tw.sum(tick); got != want {
					t.Fatalf("at tick %d the sum is %d, want %d", tick, got, want)
				}
			},
		})
	})
}

// exact checks that Until names the first instant at which the sum fits.
func exact[T uint32 | int64](t *rapid.T, w Window[T], tick, target int64) {
	wait, ok := w.Until(tick, target)
	sum := w.Sum(tick)
	switch {
	case target < 0:
		if ok || wait != 0 {
			t.Fatalf("a sum never falls to %d, but Until says %d, %v", target, wait, ok)
		}
		return
	case !ok:
		t.Fatalf("every sum falls to %d, but Until says never", target)
	case sum <= target:
		if wait != 0 {
			t.Fatalf("the sum %d fits %d already, but Until says %d", sum, target, wait)
		}
		return
	}
	if tick >= 0 && wait > 65*second && w.newest() == Bucket(tick) {
		t.Fatalf("Until says %d ns, but nothing counts for more than 65 s", wait)
	}
	if tick < 0 || wait <= 0 || tick > math.MaxInt64-wait { // beyond what a tick can tell
		return
	}
	before, at := w, w
	if sum := before.Sum(tick + wait - 1); sum <= target {
		t.Fatalf("one ns before Until the sum is %d already, target %d", sum, target)
	}
	if sum := at.Sum(tick + wait); sum > target {
		t.Fatalf("at Until the sum is still %d, target %d", sum, target)
	}
}

// drawTicks are events between which anything from nothing to more than a
// window passes.
func drawTicks(t *rapid.T, least int) []int64 {
	gaps := rapid.SliceOfN(rapid.OneOf(
		rapid.Int64Range(0, second),
		rapid.Int64Range(0, 20*second),
		rapid.SampledFrom([]int64{0, 1, BucketWidth - 1, BucketWidth, 60*second - 1, 60 * second, 60*second + 1, 65 * second}),
	), least, 60).Draw(t, "gaps")
	ticks := make([]int64, len(gaps))
	tick := rapid.Int64Range(0, 10*second).Draw(t, "start")
	for i, gap := range gaps {
		tick += gap
		ticks[i] = tick
	}
	return ticks
}

func TestNoSixtySecondsHoldMoreThanTheLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit = 100
		type event struct{ tick, n int64 }
		var (
			w        Window[int64]
			admitted []event
		)
		for _, tick := range drawTicks(t, 1) {
			n := rapid.Int64Range(1, limit).Draw(t, "n")
			if w.Sum(tick)+n > limit {
				continue
			}
			w.Add(tick, n)
			admitted = append(admitted, event{tick, n})
		}
		// A span that holds the most can be moved until it starts at a charge.
		for i, first := range admitted {
			var sum int64
			for _, e := range admitted[i:] {
				if e.tick-first.tick <= 60*second { // closed at both ends: more than 60 s
					sum += e.n
				}
			}
			if sum > limit {
				t.Fatalf("the 60 s from %d hold %d, limit %d", first.tick, sum, limit)
			}
		}
	})
}

func TestAtMostOneBucketMoreThanAnExactLog(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type event struct{ tick, n int64 }
		var (
			w   Window[uint32]
			log []event
		)
		for _, tick := range drawTicks(t, 1) {
			var exact, oldest int64
			for _, e := range log {
				if e.tick > tick-60*second {
					exact += e.n
				} else if Bucket(e.tick) == Bucket(tick)-12 {
					oldest += e.n
				}
			}
			if sum := w.Sum(tick); sum < exact || sum > exact+oldest {
				t.Fatalf("at %d the sum is %d, exactly %d, and %d in the oldest bucket", tick, sum, exact, oldest)
			}
			n := rapid.Int64Range(0, 1000).Draw(t, "n")
			w.Add(tick, uint32(n))
			log = append(log, event{tick, n})
		}
	})
}

func TestAChargeCountsSixtyToSixtyFiveSeconds(t *testing.T) {
	for _, tt := range []struct{ at, until int64 }{
		{0, 65 * second},
		{1, 65 * second},
		{5*second - 1, 65 * second},
		{5 * second, 70 * second},
		{62 * second, 125 * second},
		{1_800_000_004 * second, 1_800_000_065 * second},
	} {
		t.Run(fmt.Sprint(tt.at), func(t *testing.T) {
			var w Window[int64]
			w.Add(tt.at, 7)
			wait, ok := w.Until(tt.at, 6)
			if !ok || tt.at+wait != tt.until {
				t.Errorf("it counts until %d (%v), want %d", tt.at+wait, ok, tt.until)
			}
			if got := w.Sum(tt.until - 1); got != 7 {
				t.Errorf("one ns before, the sum is %d, want 7", got)
			}
			if got := w.Sum(tt.until); got != 0 {
				t.Errorf("then the sum is %d, want 0", got)
			}
		})
	}
}

func TestAFullBucketStaysFull(t *testing.T) {
	var r Window[uint32]
	r.Add(0, math.MaxUint32-1)
	r.Add(1, 3)
	if got := r.Sum(1); got != math.MaxUint32 {
		t.Errorf("the sum of requests is %d, want %d", got, uint32(math.MaxUint32))
	}
	r.Add(BucketWidth, 5)
	if got := r.Sum(BucketWidth); got != math.MaxUint32+5 {
		t.Errorf("the sum over two buckets is %d, want %d", got, int64(math.MaxUint32)+5)
	}

	var k Window[int64]
	for i := range int64(Buckets) {
		k.Add(i*BucketWidth, math.MaxInt64/2)
	}
	if got := k.Sum(12 * BucketWidth); got != math.MaxInt64 {
		t.Errorf("the sum of tokens is %d, want %d", got, int64(math.MaxInt64))
	}
	if got := k.Sum(100 * BucketWidth); got != 0 {
		t.Errorf("later the sum of tokens is %d, want 0", got)
	}
}

func TestAmountsBelowZeroCountAsZero(t *testing.T) {
	var w Window[int64]
	w.Add(0, 10)
	w.Add(0, -3)
	w.Return(0, 0, -3)
	w.Add(0, math.MinInt64)
	w.Return(0, 0, math.MinInt64)
	if got := w.Sum(0); got != 10 {
		t.Errorf("the sum is %d, want 10", got)
	}
}

func TestTicksBelowZeroLieInTheFirstBucket(t *testing.T) {
	for _, tick := range []int64{math.MinInt64, -1_000_000 * second, -5 * second, -1} {
		t.Run(fmt.Sprint(tick), func(t *testing.T) {
			var w Window[uint32]
			w.Add(tick, 3)
			w.Return(tick, tick, 1)
			if got := w.Sum(tick); got != 2 {
				t.Errorf("the sum is %d, want 2", got)
			}
			if got := w.Sum(0); got != 2 {
				t.Errorf("at tick 0 the sum is %d, want 2", got)
			}
			w.Until(tick, 0)
			newest, buckets := w.Dump()
			w.Restore(tick, newest, buckets)
			if got := w.Sum(64 * second); got != 2 {
				t.Errorf("at 64 s the sum is %d, want 2", got)
			}
			if got := w.Sum(65 * second); got != 0 {
				t.Errorf("at 65 s the sum is %d, want 0", got)
			}
		})
	}
}

func TestReturnTakesOnlyFromTheBucketOfAdmission(t *testing.T) {
	for _, tt := range []struct {
		name            string
		tick, added     int64
		n               uint32
		want, wantLater int64 // at tick, and when the first bucket is gone
	}{
		{"part", 10 * second, 0, 4, 16, 10},
		{"all", 10 * second, 0, 10, 10, 10},
		{"more than it holds", 10 * second, 0, 100, 10, 10},
		{"the second bucket", 10 * second, 7 * second, 4, 16, 6},
		{"an empty bucket", 20 * second, 12 * second, 4, 20, 10},
		{"added after now", 6 * second, 100 * second, 4, 16, 6},
		{"no longer counted", 65 * second, 0, 4, 10, 10},
		{"long gone", 1000 * second, 0, 4, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var w Window[uint32]
			w.Add(0, 10)
			w.Add(5*second, 10)
			w.Return(tt.tick, tt.added, tt.n)
			if got := w.Sum(tt.tick); got != tt.want {
				t.Errorf("the sum is %d, want %d", got, tt.want)
			}
			if got := w.Sum(max(tt.tick, 65*second)); got != tt.wantLater {
				t.Errorf("later the sum is %d, want %d", got, tt.wantLater)
			}
		})
	}
}

func TestDumpBeginsWithTheNewest(t *testing.T) {
	var w Window[int64]
	w.Add(0, 1)
	w.Add(10*second, 2)
	w.Add(14*second, 3)
	newest, buckets := w.Dump()
	if want := [Buckets]int64{5, 0, 1}; newest != 2 || buckets != want {
		t.Errorf("Dump is %d, %v, want 2, %v", newest, buckets, want)
	}
}

func TestRestoreLosesNothingThatCounts(t *testing.T) {
	full := [Buckets]int64{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13}
	for _, tt := range []struct {
		name         string
		tick, newest int64
		buckets      [Buckets]int64
		want         []int64 // sums at tick and 5 s, 10 s, ... later
	}{
		{"same bucket", 500 * second, 100, full, []int64{91, 78, 66, 55, 45, 36, 28, 21, 15, 10, 6, 3, 1, 0}},
		{"some time later", 511 * second, 100, full, []int64{66, 55, 45, 36, 28, 21, 15, 10, 6, 3, 1, 0}},
		{"long after", 1000 * second, 100, full, []int64{0}},
		{"clock set back", 400 * second, 100, full, []int64{91, 78, 66, 55, 45, 36, 28, 21, 15, 10, 6, 3, 1, 0}},
		{"clock begun anew", 0, 100, full, []int64{91, 91, 91, 91, 91, 91, 91, 91, 91, 91, 91, 91, 91, 0}},
		{"clock begun anew 10 s ago", 10 * second, 100, full, []int64{91, 91, 91, 91, 91, 91, 91, 91, 91, 91, 91, 3, 1, 0}},
		{"damaged", 500 * second, 100, [Buckets]int64{-5, 2, math.MinInt64}, []int64{2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0}},
		{"damaged number", 500 * second, math.MinInt64, [Buckets]int64{7}, []int64{0}},
		{"number too great", 500 * second, math.MaxInt64, [Buckets]int64{7}, []int64{7}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := Window[int64]{sum: 999, start: 3, buckets: [Buckets]int64{1, 2, 3}} // replaced, whatever it held
			w.Restore(tt.tick, tt.newest, tt.buckets)
			var got []int64
			for i := range tt.want {
				got = append(got, w.Sum(tt.tick+int64(i)*BucketWidth))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("sums (-want +got):\n%s", diff)
			}
		})
	}
}

// Every active key holds one of each.
func TestWindowsStaySmall(t *testing.T) {
	if got := unsafe.Sizeof(Window[uint32]{}); got > 72 {
		t.Errorf("a window of requests takes %d bytes", got)
	}
	if got := unsafe.Sizeof(Window[int64]{}); got > 120 {
		t.Errorf("a window of tokens takes %d bytes", got)
	}
}
