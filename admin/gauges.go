package admin

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// Watch shows the figures of an open ledger in the metrics, beside those of
// others, until Unwatch.
func Watch(l *ledger.Ledger) {
	gauges.mu.Lock()
	defer gauges.mu.Unlock()
	gauges.watched[l] = 0
}

// Unwatch ends what Watch began. It must be called before the ledger is closed.
func Unwatch(l *ledger.Ledger) {
	gauges.mu.Lock()
	defer gauges.mu.Unlock()
	gauges.count(l)
	delete(gauges.watched, l)
}

// Unopened shows a store that cannot be opened as one that does not work, until
// it is called again. The owner is whoever needs it.
func Unopened(owner any, is bool) {
	gauges.mu.Lock()
	defer gauges.mu.Unlock()
	if is {
		gauges.unopened[owner] = true
	} else {
		delete(gauges.unopened, owner)
	}
}

// ledgers is a collector that reads the watched ledgers whenever it is scraped:
// nothing is kept up to date for a scrape that may never come.
type ledgers struct {
	mu       sync.Mutex
	watched  map[*ledger.Ledger]int64 // with the overage that has been counted
	unopened map[any]bool
	overage  int64 // of all ledgers, closed ones too

	reserved, overageDesc, open, up, usedRatio *prometheus.Desc
}

var gauges = &ledgers{
	watched:     map[*ledger.Ledger]int64{},
	unopened:    map[any]bool{},
	reserved:    desc("reserved_tokens", "Tokens that calls under way hold."),
	overageDesc: desc("overage_tokens_total", "Tokens that calls used beyond what was reserved for them."),
	open:        desc("open_reservations", "Calls that are under way."),
	up:          desc("store_up", "Whether the store works: 0 while it fails, or has lost something that nobody has seen to."),
	usedRatio:   desc("quota_used_ratio", "Share of a group's quota that is used in the current period, of the groups that have used most.", "group"),
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
}

// Describe sends what is collected.
func (g *ledgers) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{g.reserved, g.overageDesc, g.open, g.up, g.usedRatio} {
		ch <- d
	}
}

// Collect reads the ledgers.
func (g *ledgers) Collect(ch chan<- prometheus.Metric) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	var sum ledger.Gauges
	ratios := map[string]float64{}
	up := 1.0
	for l := range g.watched {
		g.count(l)
		own := l.Gauges()
		sum.OpenReservations += own.OpenReservations
		sum.ReservedTokens += own.ReservedTokens
		usedRatios(l, now, ratios)
		if l.Health() != nil {
			up = 0
		}
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	ch <- prometheus.MustNewConstMetric(g.overageDesc, prometheus.CounterValue, float64(g.overage))
	gauge(g.reserved, float64(sum.ReservedTokens))
	gauge(g.open, float64(sum.OpenReservations))
	if len(g.unopened) > 0 {
		up = 0
	}
	if len(g.watched)+len(g.unopened) > 0 {
		gauge(g.up, up)
	}
	for _, group := range fullest(ratios) {
		gauge(g.usedRatio, ratios[group], group)
	}
}

// fullest returns the names of the MaxGroups groups that have used most of
// their quotas: of many groups, those that somebody may want to hear of.
func fullest(ratios map[string]float64) []string {
	names := slices.SortedFunc(maps.Keys(ratios), func(a, b string) int {
		return cmp.Or(cmp.Compare(ratios[b], ratios[a]), cmp.Compare(a, b))
	})
	return names[:min(len(names), MaxGroups)]
}

// count adds the overage since the last count, so that the total does not fall
// when a ledger is closed.
func (g *ledgers) count(l *ledger.Ledger) {
	n := l.Gauges().OverageTokens
	g.overage += n - g.watched[l]
	g.watched[l] = n
}

// usedRatios adds the groups of a ledger that have a quota. Of two ledgers'
// groups with one name, the fuller is shown.
func usedRatios(l *ledger.Ledger, now time.Time, ratios map[string]float64) {
	var groups []*quota.Group
	if l.Groups(0, func(g *quota.Group) bool {
		if g.Living() && g.Quota != nil && g.Quota.Tokens != quota.Unlimited {
			groups = append(groups, g)
		}
		return true
	}) != nil {
		return // store_up tells
	}
	for _, g := range groups {
		s, err := l.State(now, g.ID)
		if err != nil {
			continue
		}
		for _, limit := range s.Limits {
			if limit.Limit != quota.TokenQuota {
				continue
			}
			ratio := 1.0 // a quota of nothing is spent
			if limit.Max > 0 {
				ratio = float64(limit.Used) / float64(limit.Max)
			}
			ratios[g.Name] = max(ratio, ratios[g.Name])
		}
	}
}
