package ledger

import (
	"fmt"
	"runtime"
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
