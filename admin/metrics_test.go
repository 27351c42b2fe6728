package admin

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// scrape returns the metrics of a registry by name and labels.
func scrape(t testing.TB, reg *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := strings.TrimPrefix(f.GetName(), namespace+"_")
			for _, l := range m.GetLabel() {
				name += " " + l.GetName() + "=" + l.GetValue()
			}
			all[name] = value(m)
		}
	}
	return all
}

func value(m *dto.Metric) float64 {
	switch {
	case m.Counter != nil:
		return m.Counter.GetValue()
	case m.Gauge != nil:
		return m.Gauge.GetValue()
	}
	return float64(m.Histogram.GetSampleCount())
}

func registry(t testing.TB) *prometheus.Registry {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	for range 2 { // several sites, one registry
		if err := RegisterMetrics(reg); err != nil {
			t.Fatal(err)
		}
	}
	return reg
}

func TestMetrics(t *testing.T) {
	reg := registry(t)
	Admitted(Admit, "", "openai", "test", time.Millisecond)
	Admitted(Refuse, "insufficient_quota", "openai", "test", time.Millisecond)
	before := scrape(t, reg)
	Admitted(Admit, "", "openai", "test", time.Millisecond)
	Charged("openai", "m", "test", quota.Tokens{Input: 10, Cached: 4, Output: 7})
	Charged("openai", "m", "test", quota.Tokens{Input: 1, CacheWrite: 1, Output: 2, Reasoning: 2})
	StoreOp("flush", "badger", time.Millisecond)
	after := scrape(t, registry(t)) // a reload makes a new registry
	for name, want := range map[string]float64{
		"requests_total decision=admitted dialect=openai group=test reason=":                  1,
		"requests_total decision=refused dialect=openai group=test reason=insufficient_quota": 0,
		"decision_duration_seconds":                                        1,
		"tokens_total dialect=openai group=test model=m type=input":        11,
		"tokens_total dialect=openai group=test model=m type=cached_input": 4,
		"tokens_total dialect=openai group=test model=m type=cache_write":  1,
		"tokens_total dialect=openai group=test model=m type=output":       9,
		"tokens_total dialect=openai group=test model=m type=reasoning":    2,
		"store_op_duration_seconds engine=badger op=flush":                 1,
	} {
		got, ok := after[name]
		if !ok || got-before[name] != want {
			t.Errorf("%s grew by %v, want %v", name, got-before[name], want)
		}
	}
}

func TestGauges(t *testing.T) {
	reg := registry(t)
	none := scrape(t, reg)
	if _, ok := none["store_up"]; ok {
		t.Error("store_up without a store")
	}
	var open ledger.Reservation
	benches := []*bench{newBench(t), newBench(t)}
	for i, b := range benches {
		b.now = time.Now()
		b.newGroup(`{"name":"half","quota":{"tokens":200,"reset":"manual"}}`)
		b.newGroup(`{"name":"zero","quota":{"tokens":0,"reset":"daily"}}`)
		b.newGroup(`{"name":"free","limits":{"requests_per_day":1}}`)
		k := b.newKey(`{"name":"k","group":"name:half"}`)
		b.spend(k.ID, "m", int64(50*(i+1)))
		a, err := b.ledger.Account(b.now, k.ID)
		if err != nil {
			t.Fatal(err)
		}
		Watch(b.ledger)
		var r ledger.Reservation
		if _, err := b.ledger.Reserve(b.now, a, ledger.Call{Input: 3}, &r); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := b.ledger.Settle(b.now, &r, quota.Outcome{Tokens: quota.Tokens{Input: 10}}); err != nil {
				t.Fatal(err)
			}
			if _, err := b.ledger.Reserve(b.now, a, ledger.Call{Input: 3}, &open); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := scrape(t, reg)
	for name, want := range map[string]float64{
		"open_reservations": 2, "reserved_tokens": 6, "overage_tokens_total": none["overage_tokens_total"] + 7,
		"quota_used_ratio group=half": 0.5, "quota_used_ratio group=zero": 1,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
	if _, ok := got["quota_used_ratio group=free"]; ok {
		t.Error("a ratio for a group without a quota")
	}
	Unwatch(benches[0].ledger)
	Unwatch(benches[1].ledger)
	after := scrape(t, reg)
	if after["overage_tokens_total"] != got["overage_tokens_total"] || after["open_reservations"] != 0 {
		t.Errorf("after the ledgers are gone: %v", after)
	}
}

// However many labels there are, what is kept of them is bounded.
func TestSeriesAreBounded(t *testing.T) {
	made := 0
	s := series[int, int]{make: func(n int) int { made++; return n }}
	for i := range maxSeries + 100 {
		if s.of(i) != i {
			t.Fatal(i)
		}
	}
	if n := len(*s.m.Load()); n != maxSeries {
		t.Errorf("%d are kept", n)
	}
	made = 0
	s.of(0)
	s.of(maxSeries + 50)
	if made != 1 {
		t.Errorf("%d were made again", made)
	}
}

func TestMetricsDoNotAllocate(t *testing.T) {
	if n := testing.AllocsPerRun(100, observe); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func observe() {
	Admitted(Admit, "", "openai", "bench", 20*time.Microsecond)
	Charged("openai", "gpt-4o", "bench", quota.Tokens{Input: 100, Cached: 50, CacheWrite: 10, Output: 20, Reasoning: 5})
}

func BenchmarkMetrics(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		observe()
	}
}

func BenchmarkMetricsParallel(b *testing.B) {
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			observe()
		}
	})
}

// However many groups there are, a scrape stays of a size to be scraped: the
// first groups that calls are charged to are counted apart, and of all quotas
// the fullest are shown.
func TestManyGroupsMakeAUsableScrape(t *testing.T) {
	seen, counters, charged := groups.seen, requests.m.Load(), tokens.m.Load()
	groups.seen = nil
	t.Cleanup(func() {
		groups.seen = seen
		requests.m.Store(counters)
		tokens.m.Store(charged)
	})
	reg := registry(t)
	before := scrape(t, reg)
	const many = 10_000
	for i := range many {
		group := fmt.Sprintf("many-%05d", i)
		for range 2 { // the second finds what the first has made
			Admitted(Admit, "", "openai", group, time.Microsecond)
			Charged("openai", "m", group, quota.Tokens{Input: 3, Output: 2})
		}
	}
	after := scrape(t, reg)
	// A series of requests and five of tokens for each group and for the others.
	if n := len(after) - len(before); n > 6*(MaxGroups+1) || n < 6*MaxGroups {
		t.Errorf("%d series came", n)
	}
	for name, want := range map[string]float64{
		"requests_total decision=admitted dialect=openai group=many-00099 reason=": 2,
		"tokens_total dialect=openai group=many-00000 model=m type=input":          6,
		"requests_total decision=admitted dialect=openai group=other reason=":      2 * (many - MaxGroups),
		"tokens_total dialect=openai group=other model=m type=output":              4 * (many - MaxGroups),
		"requests_total decision=admitted dialect=openai group=many-00100 reason=": 0,
		"tokens_total dialect=openai group=many-09999 model=m type=cached_input":   0,
	} {
		if got := after[name] - before[name]; got != want {
			t.Errorf("%s grew by %v, want %v", name, got, want)
		}
	}
}

func TestFullestQuotasAreShown(t *testing.T) {
	b := newBench(t)
	b.now = time.Now()
	for i := range MaxGroups + 20 {
		b.newGroup(fmt.Sprintf(`{"name":"g%03d","quota":{"tokens":1000,"reset":"manual"}}`, i))
		k := b.newKey(fmt.Sprintf(`{"name":"k%d","group":"name:g%03d"}`, i, i))
		b.spend(k.ID, "m", int64(i))
	}
	Watch(b.ledger)
	t.Cleanup(func() { Unwatch(b.ledger) })
	got := scrape(t, registry(t))
	shown := 0
	for name := range got {
		if strings.HasPrefix(name, "quota_used_ratio group=g") {
			shown++
		}
	}
	if shown != MaxGroups {
		t.Errorf("%d are shown, want %d", shown, MaxGroups)
	}
	if _, ok := got["quota_used_ratio group=g019"]; ok {
		t.Error("one of the emptiest is shown")
	}
	if last := fmt.Sprintf("quota_used_ratio group=g%03d", MaxGroups+19); got[last] != 0.119 {
		t.Errorf("%s is %v", last, got[last])
	}
}
