package admin

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
	"github.com/llm-quota/caddy-llm-quota/store/badger"
)

// full is the real store on a disk that is full while it is told to.
type full struct {
	quota.Store
	now atomic.Bool
}

func (f *full) Guard(now time.Time) error {
	if f.now.Load() {
		return errors.New("the disk is full")
	}
	return f.Store.Guard(now)
}

// listener is a gate of which the events are kept.
type listener struct {
	bench
	onEmit func()
	mu     sync.Mutex
	events []event
}

type event struct {
	name string
	data map[string]any
}

func (l *listener) Emit(name string, data map[string]any) {
	if l.onEmit != nil {
		l.onEmit()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, event{name, data})
}

// heard are the events so far.
func (l *listener) heard() []event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

// A store that fails, and works again, is seen in the status, the metrics, the
// log and Caddy's events.
func TestStoreHealth(t *testing.T) {
	st, err := badger.Open(badger.Options{Dir: t.TempDir(), SyncInterval: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	disk := &full{Store: st}
	heard := &listener{bench: bench{TB: t, now: time.Now()}}
	b := &heard.bench
	if b.ledger, err = ledger.Open(disk, b.now, func(op string, _ error) { StoreError(op) }); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.InfoLevel)
	news := newAnnouncer(b.ledger, zap.New(core), func() (Gate, error) { return heard, nil })
	Watch(b.ledger)
	k := ledger.Keep(b.ledger, time.Second)
	defer func() {
		Unwatch(b.ledger)
		if err := k.Close(time.Now()); err != nil {
			t.Error(err)
		}
	}()
	b.mux = muxOf(API{gate: func() (Gate, error) { return heard, nil }})
	reg := registry(t)
	check := func(healthy bool, up float64) {
		t.Helper()
		s := read[Status](b.do("GET", "/llm_quota/status", "").ok(200)).Store
		if s.Healthy != healthy || (s.Problem == "") != healthy || (s.Since == nil) != healthy {
			t.Errorf("the status says %+v", s)
		}
		if got := scrape(t, reg)["store_up"]; got != up {
			t.Errorf("store_up is %v, want %v", got, up)
		}
	}
	until := func(well bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); (b.ledger.Health() == nil) != well; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the store's health does not become %v", well)
			}
		}
	}
	check(true, 1)
	errs := scrape(t, reg)["store_errors_total op=guard"]
	disk.now.Store(true)
	until(false)
	check(false, 0)
	if got := scrape(t, reg)["store_errors_total op=guard"]; got <= errs {
		t.Errorf("store_errors_total is %v, was %v", got, errs)
	}
	disk.now.Store(false)
	until(true)
	check(true, 1)
	for deadline := time.Now().Add(30 * time.Second); logs.Len() < 2 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
	}
	news.Stop()
	news.Close()
	if len(heard.events) != 2 || heard.events[0].name != EventStoreDegraded || heard.events[1].name != EventStoreRecovered {
		t.Errorf("events %+v", heard.events)
	}
	if all := logs.All(); len(all) != 2 || all[0].Level != zap.ErrorLevel || all[1].Level != zap.InfoLevel {
		t.Errorf("logged %v", all)
	}
}
