package llmquota

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

// tail reads the events of the admin endpoint until the stream ends. What has
// come is what shown returns, as "type reason".
func tail(g *gate, lastID string) (shown func() []string, last func() string, ended <-chan struct{}) {
	g.Helper()
	r, err := http.NewRequestWithContext(g.Context(), "GET", g.admin+"/llm_quota/events", nil)
	if err != nil {
		g.Fatal(err)
	}
	r.Header.Set("Last-Event-ID", lastID)
	resp := g.open(r)
	if resp.StatusCode != 200 {
		g.Fatalf("the stream has status %d", resp.StatusCode)
	}
	var mu sync.Mutex
	var types []string
	var id string
	over := make(chan struct{})
	go func() {
		defer close(over)
		defer resp.Body.Close()
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			mu.Lock()
			if t, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
				types = append(types, t)
			} else if s, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
				id = s
			}
			mu.Unlock()
		}
	}()
	shown = func() []string { mu.Lock(); defer mu.Unlock(); return slices.Clone(types) }
	last = func() string { mu.Lock(); defer mu.Unlock(); return id }
	return shown, last, over
}

// Events come through the admin endpoint as calls are made. A reload ends the
// stream, so that Caddy's servers need not wait for it, and who comes back has
// missed nothing.
func TestEventsOverReload(t *testing.T) {
	up := upstream(t, completes)
	g := startGate(t, keyK("quota 40 daily"), proxy(up))
	shown, last, ended := tail(g, "")
	g.chat().ok(200)
	g.until("the first call is shown", func() bool { return slices.Equal(shown(), []string{"admission", "settlement"}) })
	id := last()

	g.load(keyK("quota 40 daily", "requests_per_day 1"), proxy(up))
	select {
	case <-ended:
	case <-g.Context().Done():
		t.Fatal("the stream goes on")
	}
	g.chat().refused(429, "rate_limit_exceeded")
	shown, _, ended = tail(g, id)
	g.until("what has happened meanwhile is shown", func() bool {
		all := shown()
		return len(all) >= 2 && all[0] == "change" && all[1] == "refusal"
	})
	g.load(keyK("quota 40 daily"), proxy(up))
	<-ended
}

// A webhook is told of what calls use, once, over reloads; one that the new
// configuration lacks is told no more.
func TestAlertsOverReload(t *testing.T) {
	up := upstream(t, completes) // 18 tokens a call
	var mu sync.Mutex
	got := map[string][]string{}
	hook := func(name string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			if err != nil || !strings.Contains(string(b), r.Header.Get("X-LLM-Quota-Delivery")) {
				t.Errorf("%v in %s", err, b)
			}
			mu.Lock()
			defer mu.Unlock()
			got[name] = append(got[name], string(b))
		}))
		t.Cleanup(s.Close)
		return "webhook " + s.URL + "/" + name + "\n"
	}
	count := func(name string) int { mu.Lock(); defer mu.Unlock(); return len(got[name]) }
	old, both := hook("old"), hook("both")
	key := keyK("quota 100 daily")
	g := startGate(t, "alert_at 30% 60%\nforecast off\n"+old+both+key, proxy(up))
	g.chat().ok(200)
	g.chat().ok(200) // 36
	g.until("both are told", func() bool { return count("old") == 1 && count("both") == 1 })

	g.load("alert_at 30% 60%\nforecast off\n"+both+key, proxy(up))
	if err := g.tryLoad(old+"time_zone Nowhere/City\n"+key, proxy(up)); err == nil {
		t.Fatal("a bad configuration was taken")
	}
	g.chat().ok(200)
	g.chat().ok(200) // 72
	g.until("the one that is left is told", func() bool { return count("both") == 2 })
	var list admin.Alerts
	g.until("it is noted", func() bool {
		list = decode[admin.Alerts](g.api("GET", "/llm_quota/alerts", "").ok(200))
		return len(list.Alerts) == 2 && len(list.Alerts[0].Deliveries) == 1 && list.Alerts[0].Deliveries[0].State == quota.DeliveryDelivered
	})
	if count("old") != 1 || count("both") != 2 || list.Alerts[0].Threshold != 60 || list.Alerts[1].Threshold != 30 {
		t.Errorf("told %v, listed %+v", got, list)
	}
	if entries := decode[admin.Audit](g.api("GET", "/llm_quota/audit?account=name:k", "").ok(200)).Entries; len(entries) != 1 || entries[0].Source != quota.ByConfig {
		t.Errorf("the audit log has %+v", entries)
	}
}
