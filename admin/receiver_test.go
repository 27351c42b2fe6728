package admin

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
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

// delivered is a request that came to a receiver.
type delivered struct {
	method string
	header http.Header
	id     string // of the alert
	body   string
}

// receiver is a server of webhooks that keeps what it gets.
type receiver struct {
	*httptest.Server
	mu  sync.Mutex
	got []delivered
}

// receive starts one that answers as said; nil: with status 200.
func receive(t *testing.T, answer http.HandlerFunc) *receiver {
	r := new(receiver)
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(q.Body)
		if err != nil {
			t.Errorf("reading a delivery: %v", err)
		}
		r.mu.Lock()
		r.got = append(r.got, delivered{q.Method, q.Header.Clone(), q.Header.Get("X-LLM-Quota-Delivery"), string(body)})
		r.mu.Unlock()
		if answer != nil {
			q.Header.Set("Test-Body", string(body))
			answer(w, q)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) all() []delivered {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

// ids are those of the alerts that came, in the order in which they did.
func (r *receiver) ids() (all []string) {
	for _, d := range r.all() {
		all = append(all, d.id)
	}
	return all
}

// sickStore is the real store, which stores no alerts and is ill while it is
// told to.
type sickStore struct {
	quota.Store
	sick atomic.Bool
}

func (s *sickStore) Guard(now time.Time) error {
	if s.sick.Load() {
		return errors.New("the disk is full")
	}
	return s.Store.Guard(now)
}

func (s *sickStore) PutNotes(kind quota.NoteKind, notes ...quota.Note) error {
	if s.sick.Load() {
		return errors.New("the disk is full")
	}
	return s.Store.PutNotes(kind, notes...)
}

// newsroom is a ledger with an announcer, and the API on it.
type newsroom struct {
	listener
	keeper *ledger.Keeper
	news   *Announcer
	store  *sickStore
	logs   *observer.ObservedLogs
}

// openNews opens the ledger in dir. Retries follow at once.
func openNews(t *testing.T, dir string) *newsroom {
	t.Helper()
	st, err := badger.Open(badger.Options{Dir: dir, SyncInterval: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	n := &newsroom{store: &sickStore{Store: st}, listener: listener{bench: bench{TB: t, now: time.Now(), done: make(chan struct{})}}}
	if n.ledger, err = ledger.Open(n.store, n.now, func(string, error) {}); err != nil {
		t.Fatal(err)
	}
	if err := n.ledger.Configure(n.now, &ledger.Config{}); err != nil {
		t.Fatal(err)
	}
	core, logs := observer.New(zap.DebugLevel)
	n.logs = logs
	n.news = newAnnouncer(n.ledger, zap.New(core), func() (Gate, error) { return n, nil })
	n.hub = n.news.Hub()
	for i := range n.news.post.retries {
		n.retries(i, time.Millisecond)
	}
	n.news.post.again = 10 * time.Millisecond
	n.mux = muxOf(API{gate: func() (Gate, error) { return n, nil }, now: func() time.Time { return n.now }})
	n.keeper = ledger.Keep(n.ledger, time.Second)
	t.Cleanup(n.close)
	return n
}

// retries sets one pause of the schedule.
func (n *newsroom) retries(i int, d time.Duration) {
	own := slices.Clone(n.news.post.retries)
	own[i] = d
	n.news.post.retries = own
}

// close ends it as the end of the process does.
func (n *newsroom) close() {
	if n.news == nil {
		return
	}
	n.news.Stop()
	if err := n.keeper.Close(n.now); err != nil {
		n.Error(err)
	}
	n.news.Close()
	n.news = nil
}

// apply makes the webhooks those that hold, for an owner.
func (n *newsroom) apply(owner string, hooks ...Webhook) {
	n.Helper()
	targets, err := Targets(hooks, func(s string) (string, error) { return s, nil })
	if err != nil {
		n.Fatal(err)
	}
	n.news.Apply(owner, targets)
}

// fire fires an alert and returns it.
func (n *newsroom) fire(message string) quota.Alert {
	n.Helper()
	a := quota.Alert{Kind: quota.AlertThreshold, Limit: quota.TokenQuota, Threshold: 80, Used: 80, Max: 100, Message: message}
	if err := n.ledger.AddAlert(n.now, &a); err != nil {
		n.Fatal(err)
	}
	return a
}

// until waits for what must come.
func (n *newsroom) until(what string, ok func() bool) {
	n.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.Fatalf("it does not come about that %s; the log says %v", what, n.logs.All())
		}
	}
}

// delivery returns how far a target was told of an alert, as the API shows it.
func (n *newsroom) delivery(id, target string) quota.Delivery {
	n.Helper()
	for _, a := range read[Alerts](n.do("GET", "/llm_quota/alerts?limit=1000", "").ok(200)).Alerts {
		if a.ID != id {
			continue
		}
		for _, d := range a.Deliveries {
			if strings.HasPrefix(d.Target, target) {
				return d
			}
		}
	}
	return quota.Delivery{}
}

// comesTo waits until a delivery has that state.
func (n *newsroom) comesTo(state quota.DeliveryState, id, target string) quota.Delivery {
	n.Helper()
	var d quota.Delivery
	n.until("the delivery of "+id+" to "+target+" is "+string(state), func() bool {
		d = n.delivery(id, target)
		return d.State == state
	})
	return d
}

// loaded waits until each courier has what waited for it in the store.
func (n *newsroom) loaded() {
	n.Helper()
	n.until("couriers are ready", func() bool {
		p := n.news.post
		p.mu.Lock()
		defer p.mu.Unlock()
		return !slices.ContainsFunc(p.couriers, func(c *courier) bool { return !c.loaded || c.more })
	})
}
