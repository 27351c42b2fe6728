package e2e

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const hookSecret = "the-secret-of-the-webhooks"

// hook is a receiver of webhooks on this machine, which is an address as good
// as any: the operator has chosen it.
type hook struct {
	t    *testing.T
	url  string
	down atomic.Bool
	mu   sync.Mutex
	got  map[string][]string // bodies by delivery
}

func newHook(t *testing.T) *hook {
	h := &hook{t: t, got: map[string][]string{}}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	h.url = s.URL
	return h
}

func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil { // the gate was killed
		return
	}
	at, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get("X-LLM-Quota-Signature"), "t="), ",")
	mac := hmac.New(sha256.New, []byte(hookSecret))
	io.WriteString(mac, at+"."+string(body)) //nolint:errcheck // it never fails
	if want := "t=" + at + ",v1=" + hex.EncodeToString(mac.Sum(nil)); r.Header.Get("X-LLM-Quota-Signature") != want {
		h.t.Errorf("signed %q, want %q", r.Header.Get("X-LLM-Quota-Signature"), want)
	}
	if h.down.Load() {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	id := r.Header.Get("X-LLM-Quota-Delivery")
	h.got[id] = append(h.got[id], string(body))
}

// ids are the alerts that came, with how often each did.
func (h *hook) ids() map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := map[string]int{}
	for id, bodies := range h.got {
		all[id] = len(bodies)
	}
	return all
}

type alerts struct {
	Alerts []struct {
		ID         string  `json:"id"`
		Kind       string  `json:"kind"`
		Name       string  `json:"name"`
		Threshold  float64 `json:"threshold"`
		Deliveries []struct {
			Target   string `json:"target"`
			State    string `json:"state"`
			Attempts int    `json:"attempts"`
		} `json:"deliveries"`
	} `json:"alerts"`
}

// told waits until that many alerts are listed and count of the deliveries of
// each, or more, are done.
func (p *process) told(n, count int) (a alerts) {
	p.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		a = alerts{}
		p.api(http.MethodGet, "/alerts", nil, &a)
		done := len(a.Alerts) == n
		for _, alert := range a.Alerts {
			k := 0
			for _, d := range alert.Deliveries {
				if d.State == "delivered" {
					k++
				}
			}
			done = done && k >= count
		}
		if done {
			return a
		}
	}
	p.t.Fatalf("%d alerts are not told of to %d in a minute: %+v", n, count, a)
	return a
}

// hookCall makes a call, for which the provider of these tests reports 100
// tokens.
func hookCall(t *testing.T, url string) {
	t.Helper()
	r, err := http.NewRequest(http.MethodPost, url+"/v1/chat/completions", strings.NewReader(`{"model":"m","max_tokens":10,"messages":[{"role":"user","content":"hi"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer lq-secret-of-the-caller")
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %v: %s", resp.Status, err, b)
	}
}

func newHookProvider(t *testing.T) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) //nolint:errcheck // what it asks does not matter
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"choices":[{"index":0,"message":{"role":"assistant","content":"Hi."}}],"usage":{"prompt_tokens":60,"completion_tokens":40,"total_tokens":100}}`) //nolint:errcheck // a caller that has gone
	}))
	t.Cleanup(s.Close)
	return s
}

// TestWebhooks crosses thresholds by real calls, and kills the gate between and
// in the middle of deliveries. In the end each alert was fired once, and each
// webhook was told of each.
func TestWebhooks(t *testing.T) {
	steady, shaky := newHook(t), newHook(t)
	g := newGate(t, newHookProvider(t).URL, fmt.Sprintf(`
		alert_at 20%% 40%% 60%% 80%% 100%%
		webhook %s/steady?token=in-the-query {
			secret %s
		}
		webhook %s/shaky?token=in-the-query {
			secret %s
		}
		key caller {
			secret lq-secret-of-the-caller
			quota 1000 manual
		}`, steady.url, hookSecret, shaky.url, hookSecret), "")

	shaky.down.Store(true)
	hookCall(t, g.url)
	hookCall(t, g.url) // 20 %
	first := g.told(1, 1).Alerts[0]
	for first.Deliveries[1].Attempts == 0 {
		first = g.told(1, 1).Alerts[0]
	}
	if first.Threshold != 20 || first.Deliveries[0].State != "delivered" || first.Deliveries[1].State != "pending" {
		t.Errorf("first is %+v", first)
	}
	hookCall(t, g.url)
	hookCall(t, g.url) // 40 %, and killed before or while it is told
	g.kill()
	g.start()
	second := g.told(2, 1)
	if again := second.Alerts[1]; again.ID != first.ID || again.Deliveries[1].Attempts < first.Deliveries[1].Attempts {
		t.Errorf("the first was %+v, is %+v", first, again)
	}
	g.kill()
	shaky.down.Store(false)
	g.start()
	g.told(2, 2)
	for range 6 { // 60, 80 and 100 %
		hookCall(t, g.url)
	}
	time.Sleep(time.Second) // when alerts are fired and told, as a rule
	g.kill()
	g.start()
	all := g.told(5, 2)
	for i, want := range []float64{100, 80, 60, 40, 20} {
		a := all.Alerts[i]
		kind := "threshold"
		if want == 100 {
			kind = "exceeded"
		}
		if a.Threshold != want || a.Kind != kind || a.Name != "caller" || a.Deliveries[0].Target != steady.url+"/steady" {
			t.Errorf("alert %d is %+v", i, a)
		}
		for _, h := range []*hook{steady, shaky} {
			h.mu.Lock()
			for _, body := range h.got[a.ID] {
				var sent struct {
					ID        string
					Threshold float64
				}
				if err := json.Unmarshal([]byte(body), &sent); err != nil || sent.ID != a.ID || sent.Threshold != want {
					t.Errorf("sent %s (%v)", body, err)
				}
			}
			h.mu.Unlock()
		}
	}
	for _, h := range []*hook{steady, shaky} {
		if ids := h.ids(); len(ids) != 5 {
			t.Errorf("told of %v, not of five alerts", ids)
		}
	}
	// It was noted as delivered before anything was killed.
	if n := steady.ids()[first.ID]; n != 1 {
		t.Errorf("told %d times of the first alert", n)
	}
	g.stop()
	if log := g.log(); bytes.Contains(log, []byte("in-the-query")) || bytes.Contains(log, []byte(hookSecret)) {
		t.Error("the log shows what is secret")
	}
}

// TestEventsLast reads events from the admin endpoint for longer than the ten
// seconds that it gives to requests.
func TestEventsLast(t *testing.T) {
	g := newGate(t, newHookProvider(t).URL, `
		key caller {
			secret lq-secret-of-the-caller
		}`, "")
	resp, err := http.Get("http://" + g.admin + "/llm_quota/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	until := func(what string) {
		t.Helper()
		for lines.Scan() {
			if lines.Text() == what {
				return
			}
		}
		t.Fatalf("the stream ended before %q: %v", what, lines.Err())
	}
	hookCall(t, g.url)
	until("event: settlement")
	time.Sleep(11 * time.Second)
	hookCall(t, g.url)
	until("event: admission")
	until("event: settlement")
	until(":") // fifteen seconds after the beginning
	g.stop()
	if lines.Scan(); lines.Err() != nil && lines.Text() != "" {
		t.Errorf("it ends with %v", lines.Err())
	}
}
