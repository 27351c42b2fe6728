package badger

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// fullCheckpoint makes a checkpoint of rows over as many slots of time, keys
// and groups, so that none meet, and of accounts.
func fullCheckpoint(rows, accounts int) *quota.Checkpoint {
	cp := &quota.Checkpoint{}
	for i := range rows {
		cp.Rows = append(cp.Rows, quota.Row{
			Slot: quota.Slot{Step: quota.StepMinute, Start: 1_780_000_000 + int64(i)*60, Key: quota.ID(i) << 30,
				Group: quota.ID(i)<<30 | 1, Model: "claude-sonnet-4-20250514"},
			Totals: quota.Totals{Requests: 5, Input: 50000, Cached: 10000, Output: 9000, Reasoning: 3000, Total: 59000},
		})
	}
	for i := range accounts {
		a := quota.AccountCounters{ID: quota.ID(i) << 30}
		a.QuotaUsed, a.QuotaPeriod, a.LastUsed = 1e9, quota.Period{Start: 1_780_000_000, End: 1_782_000_000}, 1_780_000_000_000_000_000
		a.DayTokens, a.DayRequests, a.DayPeriod = 1e6, 1000, a.QuotaPeriod
		for n := range a.Tokens {
			a.Tokens[n], a.Requests[n] = 40000, 12
		}
		cp.Accounts = append(cp.Accounts, a)
	}
	return cp
}

// secondOf makes the checkpoint of a second in which so many keys, of 20
// groups, were used.
func secondOf(accounts int) *quota.Checkpoint {
	cp := fullCheckpoint(len(quota.Steps)*accounts, accounts)
	for i := range cp.Rows {
		slot := &cp.Rows[i].Slot
		slot.Step = quota.Step(i % len(quota.Steps))
		slot.Start = slot.Step.Start(1_780_000_000)
		slot.Key, slot.Group = quota.ID(i/len(quota.Steps))<<30, quota.ID(i/len(quota.Steps)%20)<<30|1
	}
	return cp
}

// BenchmarkJournalAppendFlush is what a call pays twice: a record appended,
// and waited for until it survives a kill.
func BenchmarkJournalAppendFlush(b *testing.B) {
	s := ready(b, b.TempDir(), b.Logf)
	append1 := func(b *testing.B, r *quota.Record) {
		if err := s.Flush(s.Append(r)); err != nil {
			b.Error(err)
		}
	}
	cut := func() {
		_, through, err := s.Cut()
		ok(b, err)
		ok(b, s.Checkpoint(&quota.Checkpoint{Through: through, Trim: true}))
	}
	b.Run("single", func(b *testing.B) {
		b.ReportAllocs()
		r := call()
		for b.Loop() {
			append1(b, &r)
		}
		cut()
	})
	for _, callers := range []int{2, 16, 64} {
		b.Run(fmt.Sprintf("parallel-%d", callers), func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(max(1, callers/runtime.GOMAXPROCS(0)))
			b.RunParallel(func(pb *testing.PB) {
				r := call()
				for pb.Next() {
					append1(b, &r)
				}
			})
			cut()
		})
	}
	b.Run("append-only", func(b *testing.B) {
		b.ReportAllocs()
		r := call()
		for n := 0; b.Loop(); n++ {
			if seq := s.Append(&r); n%100 == 0 {
				s.Flush(seq)
			}
		}
		cut()
	})
}

// groupCommit is the other way that was open: one goroutine commits into
// Badger what has gathered while it committed before, and wakes those who wait.
type groupCommit struct {
	db      *badger.DB
	mu      sync.Mutex
	pending []waiting
	kick    chan struct{}
}

type waiting struct {
	key, value []byte
	done       chan error
}

func (g *groupCommit) run() {
	for range g.kick {
		g.mu.Lock()
		list := g.pending
		g.pending = nil
		g.mu.Unlock()
		txn := g.db.NewTransaction(true)
		for _, w := range list {
			txn.Set(w.key, w.value)
		}
		err := txn.Commit()
		for _, w := range list {
			w.done <- err
		}
	}
}

func (g *groupCommit) put(w waiting) error {
	g.mu.Lock()
	g.pending = append(g.pending, w)
	g.mu.Unlock()
	select {
	case g.kick <- struct{}{}:
	default:
	}
	return <-w.done
}

// BenchmarkBadgerGroupCommit is what a call would pay without the journal.
func BenchmarkBadgerGroupCommit(b *testing.B) {
	o := badgerOptions(b.TempDir(), b.Logf)
	o.SyncWrites = false // as the journal without a sync: it survives a kill
	db, err := badger.Open(o)
	ok(b, err)
	defer db.Close()
	g := &groupCommit{db: db, kick: make(chan struct{}, 1)}
	go g.run()
	defer close(g.kick)
	r := call()
	value := appendRecord(nil, &r)
	var seq atomic.Uint64
	put := func(b *testing.B, done chan error) {
		if err := g.put(waiting{idKey(tableOpen, seq.Add(1)), value, done}); err != nil {
			b.Error(err)
		}
	}
	b.Run("single", func(b *testing.B) {
		b.ReportAllocs()
		done := make(chan error, 1)
		for b.Loop() {
			put(b, done)
		}
	})
	for _, callers := range []int{2, 16, 64} {
		b.Run(fmt.Sprintf("parallel-%d", callers), func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(max(1, callers/runtime.GOMAXPROCS(0)))
			b.RunParallel(func(pb *testing.PB) {
				done := make(chan error, 1)
				for pb.Next() {
					put(b, done)
				}
			})
		})
	}
}

func BenchmarkCut(b *testing.B) {
	s := ready(b, b.TempDir(), b.Logf)
	const records = 2000
	b.ReportAllocs()
	r := call()
	for b.Loop() {
		for range records {
			s.Append(&r)
		}
		list, _, err := s.Cut()
		ok(b, err)
		for range list {
		}
		s.journal.trim(s.journal.cutThrough())
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/records, "ns/record")
}

func BenchmarkPut(b *testing.B) {
	for _, n := range []int{1, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := ready(b, b.TempDir(), b.Logf)
			list := keys(n)
			b.ReportAllocs()
			for b.Loop() {
				ok(b, s.Put(list, nil))
			}
		})
	}
}

func BenchmarkCheckpoint(b *testing.B) {
	for name, cp := range map[string]*quota.Checkpoint{
		"10-keys": secondOf(10), "1000-keys": secondOf(1000), "most": fullCheckpoint(quota.MaxCheckpointRows, 1000),
	} {
		b.Run(name, func(b *testing.B) {
			s := ready(b, b.TempDir(), b.Logf)
			b.ReportAllocs()
			for b.Loop() {
				cp.Through++
				ok(b, s.Checkpoint(cp))
			}
		})
	}
}

func BenchmarkKeyBySecret(b *testing.B) {
	s := ready(b, b.TempDir(), b.Logf)
	list := keys(10000)
	ok(b, s.Put(list, nil))
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		_, err := s.KeyBySecret(list[n%len(list)].Secrets[0].Hash)
		ok(b, err)
	}
}

// rss returns the memory that this process holds, in MiB.
func rss(t testing.TB) (mib float64) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip("only Linux tells the memory that is held")
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	var kb float64
	fmt.Sscan(rest, &kb)
	return kb / 1024
}

// TestMillionKeys reports what a million keys cost. It asserts only what does
// not depend on the machine.
func TestMillionKeys(t *testing.T) {
	if os.Getenv("LLM_QUOTA_TEST_MILLION") == "" {
		t.Skip("set LLM_QUOTA_TEST_MILLION=1 to run it: it takes a minute or two")
	}
	dir := t.TempDir()
	s := ready(t, dir, t.Logf)
	begin := time.Now()
	hash := func() quota.SecretHash {
		list := keys(1_000_000)
		for i := 0; i < len(list); i += 10000 {
			ok(t, s.Put(list[i:i+10000], nil))
		}
		return list[777_777].Secrets[0].Hash
	}()
	t.Logf("put in %v, size %d MiB", time.Since(begin), s.Info().SizeBytes>>20)
	ok(t, s.Close())
	for range 3 {
		debug.FreeOSMemory()
		before := rss(t)
		begin = time.Now()
		s = ready(t, dir, t.Logf)
		opened := time.Since(begin)
		if id, err := s.KeyBySecret(hash); err != nil || id != 777_778<<1 {
			t.Fatal(id, err)
		}
		t.Logf("open %v, first lookup after %v, RSS %.0f MiB before, %.0f after", opened, time.Since(begin), before, rss(t))
		ok(t, s.Close())
	}
}
