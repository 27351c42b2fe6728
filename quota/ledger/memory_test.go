package ledger

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// BenchmarkActiveKeys measures what a key costs in memory once it is in use,
// with limits of its own, and how long a start takes over as many keys.
func BenchmarkActiveKeys(b *testing.B) {
	const n = 50_000
	now := time.Now()
	dir := b.TempDir()
	l := openLedger(b, dir, now)
	limits := quota.Limits{RequestsPerMinute: quota.At(60), TokensPerMinute: quota.At(100_000)}
	var secrets []string
	for i := 0; i < n; i += 10_000 {
		specs := make([]NewKey, 10_000)
		for k := range specs {
			specs[k] = NewKey{Name: fmt.Sprint("key ", i+k), KeyRules: quota.KeyRules{
				Quota: &quota.Quota{Tokens: quota.At(1_000_000), Reset: quota.ResetMonthly}, Limits: limits,
			}}
		}
		made, err := l.CreateKeys(now, specs)
		if err != nil {
			b.Fatal(err)
		}
		for _, m := range made {
			secrets = append(secrets, m.Secret)
		}
	}
	if err := l.Close(now); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		start := time.Now()
		l := openLedger(b, dir, now)
		b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms/start")
		use := func(secrets []string) uint64 {
			r := new(Reservation)
			for _, s := range secrets {
				a, err := l.Authenticate(now, s)
				if err != nil {
					b.Fatal(err)
				}
				if ref, err := l.Reserve(now, a, Call{Model: "m", Input: 10, Output: 10}, r); ref != nil || err != nil {
					b.Fatal(ref, err)
				}
				if err := l.Settle(now, r, quota.Outcome{Tokens: quota.Tokens{Input: 5}}); err != nil {
					b.Fatal(err)
				}
			}
			return heap()
		}
		// The first half fills what the database holds in any case.
		first := use(secrets[:n/2])
		b.ReportMetric(float64(use(secrets[n/2:])-first)/(n/2), "B/key")
		if err := l.Close(now); err != nil {
			b.Fatal(err)
		}
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkVerify measures how long the books of a hundred thousand keys take
// to be verified, and how much memory on top of what the ledger needs itself.
func BenchmarkVerify(b *testing.B) {
	const n = 100_000
	now := time.Date(2026, 5, 20, 12, 0, 0, 0, time.UTC)
	l := openLedger(b, b.TempDir(), now)
	defer l.store.Close()
	var groups []quota.ID
	for i := range 20 {
		g, err := l.CreateGroup(now, NewGroup{Name: fmt.Sprint("group ", i)})
		if err != nil {
			b.Fatal(err)
		}
		groups = append(groups, g.ID)
	}
	r := new(Reservation)
	for i := 0; i < n; i += 10_000 {
		specs := make([]NewKey, 10_000)
		for k := range specs {
			specs[k] = NewKey{Name: fmt.Sprint("key ", i+k), Group: groups[k%20]}
		}
		made, err := l.CreateKeys(now, specs)
		if err != nil {
			b.Fatal(err)
		}
		for _, m := range made {
			a, err := l.Account(now, m.Key.ID)
			if err != nil {
				b.Fatal(err)
			}
			if ref, err := l.Reserve(now, a, Call{Model: "m", Input: 10}, r); ref != nil || err != nil {
				b.Fatal(ref, err)
			}
			if err := l.Settle(now, r, quota.Outcome{Tokens: quota.Tokens{Input: 5}}); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := l.Checkpoint(now); err != nil {
		b.Fatal(err)
	}
	verify := func() {
		if checked := balanced(b, l, now); checked < 3*n {
			b.Fatalf("%d numbers were compared", checked)
		}
	}
	for b.Loop() {
		verify()
	}
	b.ReportMetric(float64(growth(verify))/(1<<20), "MiB")
}

// growth returns by how much memory grows while fn runs.
func growth(fn func()) uint64 {
	defer debug.SetGCPercent(debug.SetGCPercent(10)) // little of what is measured is garbage
	before := heap()
	most := before
	done, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		for {
			select {
			case <-done:
				return
			case <-time.After(10 * time.Millisecond):
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapAlloc)
			}
		}
	}()
	fn()
	close(done)
	<-watched
	return most - before
}
