package limiter

import (
	"encoding/binary"
	"math"
	"net/netip"
	"sync"
	"testing"
	"unsafe"

	"pgregory.net/rapid"
)

// failTwin is one place of Failures, slow and obviously right: buckets into
// which a piece of a token comes back in every nanosecond that passes.
type failTwin struct {
	now     int64
	buckets [failureWays]failBucket
}

type failBucket struct {
	addr netip.Addr
	// level is in pieces of which a token has FailureRefill. It is negative
	// where more was taken than was there. What runs over a full bucket is
	// kept, to tell which has been full the longest, but never used.
	level int64
}

const fullBucket = FailureBurst * FailureRefill

func newFailTwin() *failTwin {
	tw := new(failTwin)
	for i := range tw.buckets {
		tw.buckets[i].level = fullBucket
	}
	return tw
}

func (tw *failTwin) pass(tick int64) {
	if d := tick - tw.now; d > 0 {
		for i := range tw.buckets {
			tw.buckets[i].level += d
		}
		tw.now = tick
	}
}

func (tw *failTwin) wait(addr netip.Addr) int64 {
	for _, b := range tw.buckets {
		if b.addr == addr {
			return max(FailureRefill-b.level, 0)
		}
	}
	return 0
}

func (tw *failTwin) add(addr netip.Addr) {
	most := 0
	for i, b := range tw.buckets {
		if b.addr == addr {
			tw.buckets[i].level = min(b.level, fullBucket) - FailureRefill
			return
		}
		if b.level > tw.buckets[most].level {
			most = i
		}
	}
	tw.buckets[most] = failBucket{addr, fullBucket - FailureRefill}
}

// known returns the addresses that have a bucket which is not full.
func (tw *failTwin) known() map[netip.Addr]int64 {
	m := map[netip.Addr]int64{}
	for _, b := range tw.buckets {
		if b.addr.IsValid() && b.level < fullBucket {
			m[b.addr] = b.level
		}
	}
	return m
}

func TestFailuresAgreeWithBuckets(t *testing.T) {
	steps := rapid.OneOf(
		rapid.Int64Range(0, 3*FailureRefill),
		rapid.Int64Range(0, 15*second),
		rapid.SampledFrom([]int64{0, 1, FailureRefill - 1, FailureRefill, fullBucket - 1, fullBucket, fullBucket + 1}),
	)
	rapid.Check(t, func(t *rapid.T) {
		f, tw := newFailures(1), newFailTwin()
		tick := rapid.SampledFrom([]int64{0, 1, second, 1_800_000_000 * second}).Draw(t, "start")
		tw.pass(tick)
		addrs := []netip.Addr{}
		for _, s := range []string{"::1", "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1", "255.255.255.255"} {
			addrs = append(addrs, netip.MustParseAddr(s))
		}
		t.Repeat(map[string]func(*rapid.T){
			"step": func(t *rapid.T) {
				tick += steps.Draw(t, "step")
				tw.pass(tick)
			},
			"fail": func(t *rapid.T) {
				addr := rapid.SampledFrom(addrs).Draw(t, "addr")
				for range rapid.SampledFrom([]int{1, 2, FailureBurst - 1, FailureBurst, FailureBurst + 1}).Draw(t, "n") {
					f.Add(tick, addr)
					tw.add(addr)
				}
			},
			"": func(t *rapid.T) {
				for _, addr := range addrs {
					if got, want := f.Wait(tick, addr), tw.wait(addr); got != want {
						t.Fatalf("at %d %s waits %d, want %d", tick, addr, got, want)
					}
				}
				for addr, level := range tw.known() { // also while none has to wait
					i := 0
					for i < failureWays && f.sets[0].ways[i].address != addressOf(addr) {
						i++
					}
					if i == failureWays || f.sets[0].ways[i].full != tick+fullBucket-level {
						t.Fatalf("at %d %s has %d pieces, but the table is %+v", tick, addr, level, f.sets[0].ways)
					}
				}
			},
		})
	})
}

// What is asked first and counted afterwards is bounded all the same.
func TestNoSpanHoldsMoreFailures(t *testing.T) {
	addr := netip.MustParseAddr("203.0.113.9")
	rapid.Check(t, func(t *rapid.T) {
		const most = 20 // under way at once
		var (
			f        = NewFailures()
			tick     int64
			underWay int
			failed   []int64
		)
		gaps := rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(0, FailureRefill), rapid.Int64Range(0, 12*second))
		for range rapid.IntRange(1, 60).Draw(t, "rounds") {
			tick += gaps.Draw(t, "gap")
			for range rapid.IntRange(0, 60).Draw(t, "attempts") {
				if underWay < most && f.Wait(tick, addr) == 0 {
					underWay++
				}
				if underWay > 0 && rapid.Bool().Draw(t, "answered") {
					underWay--
					f.Add(tick, addr)
					failed = append(failed, tick)
				}
			}
		}
		for i, from := range failed {
			for k, to := range failed[i:] {
				if n := int64(k + 1); n > FailureBurst+(to-from)/FailureRefill+most {
					t.Fatalf("%d failures from %d to %d", n, from, to)
				}
			}
		}
	})
}

func TestAnAddressFailsInABurstAndThenAtARate(t *testing.T) {
	f, addr, other := NewFailures(), netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("198.51.100.8")
	const start = 1000 * second
	for i := range FailureBurst {
		if wait := f.Wait(start, addr); wait != 0 {
			t.Fatalf("after %d failures it waits %d", i, wait)
		}
		f.Add(start, addr)
	}
	for _, tt := range []struct{ tick, want int64 }{
		{start, FailureRefill}, {start + 1, FailureRefill - 1}, {start + FailureRefill - 1, 1}, {start + FailureRefill, 0}, {start - 5, FailureRefill + 5},
	} {
		if got := f.Wait(tt.tick, addr); got != tt.want {
			t.Errorf("at %d it waits %d, want %d", tt.tick, got, tt.want)
		}
	}
	if wait := f.Wait(start, other); wait != 0 {
		t.Errorf("the next address waits %d", wait)
	}
	f.Add(start+FailureRefill, addr)
	if wait := f.Wait(start+FailureRefill, addr); wait != FailureRefill {
		t.Errorf("after one more it waits %d", wait)
	}
	for i := range FailureBurst { // when all of it is back
		if wait := f.Wait(start+20*second, addr); wait != 0 {
			t.Fatalf("later, after %d failures, it waits %d", i, wait)
		}
		f.Add(start+20*second, addr)
	}
	if wait := f.Wait(start+20*second, addr); wait != FailureRefill {
		t.Errorf("later it waits %d", wait)
	}
}

func TestTicksOfFailuresBelowZeroCountAsZero(t *testing.T) {
	f, addr := NewFailures(), netip.MustParseAddr("::1")
	if wait := f.Wait(math.MinInt64, addr); wait != 0 {
		t.Errorf("nobody has failed, but it waits %d", wait)
	}
	for range FailureBurst {
		f.Add(math.MinInt64, addr)
	}
	for _, tick := range []int64{math.MinInt64, -20 * second, 0} {
		if wait := f.Wait(tick, addr); wait != FailureRefill {
			t.Errorf("at %d it waits %d", tick, wait)
		}
	}
}

func TestWhichAddressesAreOne(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.2", false},
		{"192.0.2.1", "::ffff:192.0.2.1", true},
		{"192.0.2.1", "::192.0.2.1", false},
		{"2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true},
		{"2001:db8::1", "2001:db8:0:1::1", false},
		{"fe80::1%eth0", "fe80::2%eth1", true},
		{"::1", "127.0.0.1", false},
		{"::1", "0.0.0.0", false},
		{"", "", true},
		{"", "::1", false},
		{"", "0.0.0.0", false},
	} {
		f := NewFailures()
		a, _ := netip.ParseAddr(tt.a) // "" is none
		b, _ := netip.ParseAddr(tt.b)
		for range FailureBurst {
			f.Add(0, a)
		}
		if got := f.Wait(0, b) > 0; got != tt.same || f.Wait(0, a) == 0 {
			t.Errorf("%q and %q: one is %v, want %v", tt.a, tt.b, got, tt.same)
		}
	}
}

// numbered returns the nth of many addresses.
func numbered(n int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(n))
	return netip.AddrFrom4(b)
}

// However many addresses fail a little, those that have failed much are not
// forgotten, and nobody is held back who has not failed.
func TestManyAddressesDoNotMakeTheTableForgetWhoFailedMore(t *testing.T) {
	f, culprit := NewFailures(), netip.MustParseAddr("2001:db8::1")
	for range FailureBurst {
		f.Add(0, culprit)
	}
	const many = 200_000
	for i := range many {
		f.Add(0, numbered(i))
		if f.Wait(0, culprit) == 0 {
			t.Fatalf("forgotten after %d others", i+1)
		}
	}
	for i := range many {
		if wait := f.Wait(0, numbered(i)); wait > 0 {
			t.Fatalf("address %d failed once and waits %d", i, wait)
		}
	}
}

// The places are chosen by a seed, which no two tables share, and evenly.
func TestPlacesCannotBeForeseen(t *testing.T) {
	place := func(f *Failures, n int) uintptr {
		return uintptr(unsafe.Pointer(f.set(addressOf(numbered(n))))) - uintptr(unsafe.Pointer(&f.sets[0]))
	}
	const many = 64 * failureSets
	f, g := NewFailures(), NewFailures()
	same, at := 0, map[uintptr]int{}
	for i := range many {
		p := place(f, i)
		if at[p]++; p == place(g, i) {
			same++
		}
	}
	// 64 of each are to be expected, give or take 8: these bounds are 8 times
	// as far away or more.
	if same > 128 || len(at) != failureSets {
		t.Errorf("%d of %d addresses have the same place in two tables; %d places are used", same, many, len(at))
	}
	for p, n := range at {
		if n > 192 {
			t.Errorf("place %d has %d addresses", p, n)
		}
	}
}

func TestFailuresStaySmall(t *testing.T) {
	f := NewFailures()
	if got := len(f.sets) * int(unsafe.Sizeof(f.sets[0])); got != 288<<10 {
		t.Errorf("the table takes %d bytes", got)
	}
	n := 0
	if allocs := testing.AllocsPerRun(1000, func() {
		n++
		f.Add(int64(n), numbered(n))
		f.Wait(int64(n), numbered(n/2))
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
}

// Under the race detector this shows that the locks hold.
func TestManyFailAtOnce(t *testing.T) {
	f := newFailures(2)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 1000 {
				f.Add(0, numbered(i%3))
				f.Wait(0, numbered(i%3))
			}
		})
	}
	wg.Wait()
	for i, n := range []int64{8 * 334, 8 * 333, 8 * 333} {
		if got, want := f.Wait(0, numbered(i)), (n-FailureBurst+1)*FailureRefill; got != want {
			t.Errorf("address %d waits %d, want %d", i, got, want)
		}
	}
}

func BenchmarkFailuresWait(b *testing.B) {
	f, n := NewFailures(), 0
	b.ReportAllocs()
	for b.Loop() {
		n++
		f.Wait(int64(n), numbered(n))
	}
}

func BenchmarkFailuresAdd(b *testing.B) {
	f, n := NewFailures(), 0
	b.ReportAllocs()
	for b.Loop() {
		n++
		f.Add(int64(n), numbered(n))
	}
}

func BenchmarkFailuresParallel(b *testing.B) {
	f := NewFailures()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		n := 0
		for pb.Next() {
			n++
			if f.Wait(int64(n), numbered(n%1000)) == 0 {
				f.Add(int64(n), numbered(n%1000))
			}
		}
	})
}
