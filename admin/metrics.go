package admin

import (
	"errors"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

const namespace = "caddy_llm_quota"

// One set for the life of the process, registered again in the registry of
// each configuration, so that counts survive reloads.
var (
	requestsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Name: "requests_total",
		Help: "Requests by what was decided about them.",
	}, []string{"decision", "reason", "dialect", "group"})
	tokensTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Name: "tokens_total",
		Help: "Tokens used. Types cached_input and cache_write lie within input, reasoning within output.",
	}, []string{"type", "dialect", "model", "group"})
	decisionSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: namespace, Name: "decision_duration_seconds",
		Help:    "Time from the arrival of a request's header to the decision about it.",
		Buckets: prometheus.ExponentialBuckets(10e-6, 4, 10), // 10 µs to 2.6 s
	})
	storeOpSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: namespace, Name: "store_op_duration_seconds",
		Help:    "Time that operations of the store took.",
		Buckets: prometheus.ExponentialBuckets(100e-6, 4, 9), // 100 µs to 6.6 s
	}, []string{"op", "engine"})
	storeErrorsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Name: "store_errors_total",
		Help: "Operations of the store that failed.",
	}, []string{"op"})
	alertsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: namespace, Name: "alerts_total",
		Help: "Alerts that were fired.",
	}, []string{"kind"})
)

// Failures are shown as 0 before the first one, which would otherwise not be
// seen as an increase.
func init() {
	for _, op := range []string{"journal", "checkpoint", "sync", "guard", "align", "sweep", "configure", "snapshot", "open"} {
		storeErrorsTotal.WithLabelValues(op)
	}
	for _, kind := range []quota.AlertKind{
		quota.AlertThreshold, quota.AlertExceeded, quota.AlertForecast, quota.AlertStoreDegraded, quota.AlertStoreRecovered,
	} {
		alertsTotal.WithLabelValues(string(kind))
	}
}

// RegisterMetrics adds the metrics to the registry of a configuration.
func RegisterMetrics(reg *prometheus.Registry) error {
	for _, c := range []prometheus.Collector{
		requestsTotal, tokensTotal, decisionSeconds, storeOpSeconds, storeErrorsTotal, alertsTotal, gauges,
	} {
		err := reg.Register(c)
		if _, twice := errors.AsType[prometheus.AlreadyRegisteredError](err); err != nil && !twice {
			return err
		}
	}
	return nil
}

// MaxGroups is how many groups have series of their own. Each one has several
// for every model that it uses, and more than this make scrapes unusable.
const MaxGroups = 100

// OtherGroups is the label of the groups beyond MaxGroups.
const OtherGroups = "other"

// Admitted counts what was decided about a request. The labels must be bounded
// whatever callers send. Of groups, whose names operators give, the first
// MaxGroups are told apart.
func Admitted(decision, reason, dialect, group string, took time.Duration) {
	requests.of(requestLabels{decision, reason, dialect, group}).Inc()
	decisionSeconds.Observe(took.Seconds())
}

// Charged counts the tokens of one call. The model must be a name that
// Ledger.Model has returned, which bounds how many there are.
func Charged(dialect, model, group string, t quota.Tokens) {
	c := tokens.of(tokenLabels{dialect, model, group})
	for i, n := range [...]int64{t.Input, t.Cached, t.CacheWrite, t.Output, t.Reasoning} {
		if n > 0 {
			c[i].Add(float64(n))
		}
	}
}

// StoreError counts an operation of the store that failed.
func StoreError(op string) { storeErrorsTotal.WithLabelValues(op).Inc() }

// Alerted counts an alert.
func Alerted(kind quota.AlertKind) { alertsTotal.WithLabelValues(string(kind)).Inc() }

// StoreOp notes how long an operation of the store took.
func StoreOp(op, engine string, took time.Duration) {
	storeOps.of(storeLabels{op, engine}).Observe(took.Seconds())
}

type (
	requestLabels struct{ decision, reason, dialect, group string }
	tokenLabels   struct{ dialect, model, group string }
	storeLabels   struct{ op, engine string }
	tokenCounters [5]prometheus.Counter
)

// The collectors of the labels in use, so that a request finds its own without
// hashing labels again or allocating.
var (
	requests = series[requestLabels, prometheus.Counter]{make: func(l requestLabels) prometheus.Counter {
		return requestsTotal.WithLabelValues(l.decision, l.reason, l.dialect, groups.label(l.group))
	}}
	tokens = series[tokenLabels, *tokenCounters]{make: func(l tokenLabels) *tokenCounters {
		var c tokenCounters
		group := groups.label(l.group)
		for i, kind := range [...]string{"input", "cached_input", "cache_write", "output", "reasoning"} {
			c[i] = tokensTotal.WithLabelValues(kind, l.dialect, l.model, group)
		}
		return &c
	}}
	storeOps = series[storeLabels, prometheus.Observer]{make: func(l storeLabels) prometheus.Observer {
		return storeOpSeconds.WithLabelValues(l.op, l.engine)
	}}
)

// groups are those that have series of their own, for the life of the process:
// a counter must not change its name.
var groups groupLabels

type groupLabels struct {
	mu   sync.Mutex
	seen map[string]bool
}

// label returns the label of the group of that name; "" is no group.
func (g *groupLabels) label(name string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if name == "" || g.seen[name] {
		return name
	}
	if len(g.seen) >= MaxGroups {
		return OtherGroups
	}
	if g.seen == nil {
		g.seen = make(map[string]bool)
	}
	g.seen[name] = true
	return name
}

// maxSeries bounds what series keeps; beyond it a collector is looked up each
// time.
const maxSeries = 4096

// series keeps collectors by their labels. It is read without a lock: a new
// one makes a new map.
type series[K comparable, V any] struct {
	make func(K) V
	m    atomic.Pointer[map[K]V]
	mu   sync.Mutex // guards the making of a new map
}

func (s *series[K, V]) of(labels K) V {
	if m := s.m.Load(); m != nil {
		if v, ok := (*m)[labels]; ok {
			return v
		}
	}
	return s.add(labels)
}

func (s *series[K, V]) add(labels K) V {
	v := s.make(labels)
	s.mu.Lock()
	defer s.mu.Unlock()
	next := map[K]V{}
	if m := s.m.Load(); m != nil {
		if len(*m) >= maxSeries {
			return v
		}
		next = maps.Clone(*m)
	}
	next[labels] = v
	s.m.Store(&next)
	return v
}
