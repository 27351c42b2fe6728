package admin

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// A receiver gets an alert as the API shows it, once, and signed.
func TestWebhookDelivers(t *testing.T) {
	n := openNews(t, t.TempDir())
	r := receive(t, nil)
	n.apply("config", Webhook{URL: r.URL + "/hook?token=in-the-query", Secret: "signing-secret"})
	a := n.fire(`key "a&b" has used <80>`)
	d := n.comesTo(quota.DeliveryDelivered, a.ID, r.URL)
	if d.Attempts != 1 || d.Error != "" || d.Target != r.URL+"/hook" {
		t.Errorf("the delivery is %+v", d)
	}
	got := r.all()
	if len(got) != 1 {
		t.Fatalf("%d requests came", len(got))
	}
	h := got[0].header
	if got[0].method != "POST" || h.Get("Content-Type") != "application/json" || got[0].id != a.ID || !strings.HasPrefix(h.Get("User-Agent"), "caddy-llm-quota/") {
		t.Errorf("it came as %s with %v", got[0].method, h)
	}
	signedBy(t, got[0], "signing-secret")
	listed := read[Alerts](n.do("GET", "/llm_quota/alerts", "").ok(200)).Alerts[0]
	listed.Deliveries = nil
	var sent quota.Alert
	if err := json.Unmarshal([]byte(got[0].body), &sent); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(sent) != fmt.Sprint(listed) || strings.Contains(got[0].body, "deliveries") {
		t.Errorf("sent %s, listed %+v", got[0].body, listed)
	}
}

// signedBy checks a signature as a receiver would.
func signedBy(t *testing.T, d delivered, secret string) {
	t.Helper()
	at, mac, _ := strings.Cut(d.header.Get("X-LLM-Quota-Signature"), ",v1=")
	at, ok := strings.CutPrefix(at, "t=")
	sum := hmac.New(sha256.New, []byte(secret))
	io.WriteString(sum, at+"."+d.body)
	if want := hex.EncodeToString(sum.Sum(nil)); !ok || mac != want {
		t.Errorf("signature %q, want %s", d.header.Get("X-LLM-Quota-Signature"), want)
	}
}

// The signature of a known message, computed with openssl.
func TestSignature(t *testing.T) {
	const want = "t=1700000000,v1=09ca26c6118437f736f42e04e45046a99b0b4089dbb3c78268d7e2e6f8190118"
	if got := sign("signing-secret", 1700000000, []byte(`{"id":"1"}`)); got != want {
		t.Errorf("signed %s, want %s", got, want)
	}
}

func TestWebhookSlack(t *testing.T) {
	n := openNews(t, t.TempDir())
	r := receive(t, nil)
	n.apply("config", Webhook{URL: r.URL, Format: FormatSlack})
	a := n.fire(`key "a&b" has used <!channel> "80"`)
	n.comesTo(quota.DeliveryDelivered, a.ID, r.URL)
	d := r.all()[0]
	if want := `{"text":"key \"a&amp;b\" has used &lt;!channel&gt; \"80\""}`; d.body != want {
		t.Errorf("sent %s, want %s", d.body, want)
	}
	if s := d.header.Get("X-LLM-Quota-Signature"); s != "" {
		t.Errorf("signed without a secret: %s", s)
	}
}

// Whatever a receiver does, it is told again, six times in all under one ID,
// and given up with an error that says why, without anything secret.
func TestWebhookFails(t *testing.T) {
	const token = "token-in-the-query"
	elsewhere := receive(t, nil)
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	raw := func(s string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			io.WriteString(c, strings.ReplaceAll(s, "$", r.URL.RequestURI()))
		}
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Location", elsewhere.URL)
			http.Error(w, r.URL.String(), code)
		}
	}
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		error  string
	}{
		"error":          {status(500), "status 500"},
		"gone":           {status(410), "status 410"},
		"redirect":       {status(307), "status 307"},
		"old redirect":   {status(302), "status 302"},
		"echo":           {raw("$\r\n\r\n"), "no valid answer"},
		"garbled header": {raw("HTTP/1.1 200 OK\r\n$ $\r\n\r\n"), "no valid answer"},
		"bad status":     {raw("HTTP/1.1 $\r\n\r\n"), "no valid answer"},
		"cut":            {raw("HTTP/1.1 200"), "without an answer"},
		"closed":         {raw(""), "without an answer"},
		"endless header": {raw("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n"), "no valid answer"},
		"hanging": {func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-hang:
			case <-r.Context().Done():
			}
		}, "no answer within"},
	} {
		t.Run(name, func(t *testing.T) {
			n := openNews(t, t.TempDir())
			if name == "hanging" {
				n.news.post.client.Timeout = 300 * time.Millisecond // every attempt is to get there
			}
			bad, good := receive(t, tc.answer), receive(t, nil)
			u, _ := url.Parse(bad.URL)
			u.User = url.UserPassword("user", "password-of-it")
			n.apply("config", Webhook{URL: u.String() + "/x?t=" + token, Secret: "signing-secret"}, Webhook{URL: good.URL})
			a := n.fire("one")
			d := n.comesTo(quota.DeliveryDead, a.ID, bad.URL)
			if d.Attempts != 6 || !strings.Contains(d.Error, tc.error) {
				t.Errorf("the delivery is %+v", d)
			}
			if got := bad.all(); len(got) < 6 || got[0].id != a.ID || got[len(got)-1].id != a.ID {
				t.Errorf("%v came", bad.ids())
			}
			n.comesTo(quota.DeliveryDelivered, a.ID, good.URL)
			if len(good.all()) != 1 || len(elsewhere.all()) != 0 {
				t.Errorf("%d came to the other webhook, %d where it was redirected", len(good.all()), len(elsewhere.all()))
			}
			seen := fmt.Sprint(n.logs.All(), d)
			for _, secret := range []string{token, "password-of-it", "signing-secret"} {
				if strings.Contains(seen, secret) {
					t.Errorf("%s is in %s", secret, seen)
				}
			}
		})
	}
}

func TestWebhookUnreachable(t *testing.T) {
	n := openNews(t, t.TempDir())
	r := receive(t, nil)
	r.Close()
	n.apply("config", Webhook{URL: r.URL + "/?token=in-the-query"})
	a := n.fire("one")
	if d := n.comesTo(quota.DeliveryDead, a.ID, r.URL); !strings.Contains(d.Error, "refused") || strings.Contains(d.Error, "token") {
		t.Errorf("the delivery is %+v", d)
	}
}

// Of an answer no more is read than a little.
func TestWebhookHugeAnswer(t *testing.T) {
	n := openNews(t, t.TempDir())
	const whole = 1 << 30
	var sent atomic.Int64
	ended := make(chan struct{})
	r := receive(t, func(w http.ResponseWriter, _ *http.Request) {
		defer close(ended)
		piece := make([]byte, 64<<10)
		for sent.Load() < whole {
			k, err := w.Write(piece)
			sent.Add(int64(k))
			if err != nil {
				return
			}
		}
	})
	n.apply("config", Webhook{URL: r.URL})
	a := n.fire("one")
	n.comesTo(quota.DeliveryDelivered, a.ID, r.URL)
	<-ended
	if sent.Load() >= whole {
		t.Errorf("all of %d bytes were taken", sent.Load())
	}
}

// First attempts come in the order of the alerts, however many wait, each once.
func TestWebhookOrder(t *testing.T) {
	n := openNews(t, t.TempDir())
	n.news.post.client.Timeout = 5 * time.Minute
	goOn := make(chan struct{})
	r := receive(t, func(http.ResponseWriter, *http.Request) { <-goOn })
	n.apply("config", Webhook{URL: r.URL})
	const many = 2*maxWaiting + 100 // more than memory takes
	var fired []string
	for i := range many {
		fired = append(fired, n.fire(fmt.Sprint(i)).ID)
	}
	close(goOn)
	n.comesTo(quota.DeliveryDelivered, fired[many-1], r.URL)
	if got := r.ids(); !slices.Equal(got, fired) {
		t.Errorf("%d came, not the %d in their order", len(got), many)
	}
	n.news.post.mu.Lock()
	defer n.news.post.mu.Unlock()
	if k := len(n.news.post.letters); k > 1 { // the last may be being stored
		t.Errorf("%d are kept in memory", k)
	}
}

// An alert that fails, or takes its time, holds up none that come later.
func TestWebhookGoesOn(t *testing.T) {
	for _, how := range []string{"fails", "hangs"} {
		t.Run(how, func(t *testing.T) {
			n := openNews(t, t.TempDir())
			n.retries(0, time.Hour)
			n.news.post.client.Timeout = 200 * time.Millisecond
			r := receive(t, func(w http.ResponseWriter, q *http.Request) {
				switch {
				case !strings.Contains(q.Header.Get("Test-Body"), "the first"):
				case how == "fails":
					w.WriteHeader(500)
				default:
					<-q.Context().Done()
				}
			})
			n.apply("config", Webhook{URL: r.URL})
			a, b := n.fire("the first"), n.fire("the second")
			n.comesTo(quota.DeliveryDelivered, b.ID, r.URL)
			if d := n.delivery(a.ID, r.URL); d.State != quota.DeliveryPending || d.Attempts != 1 {
				t.Errorf("the first is %+v", d)
			}
		})
	}
}

// What is not delivered when the process ends is after the next start, with its
// attempts counted on; what is, is not sent again.
func TestWebhookRestart(t *testing.T) {
	dir := t.TempDir()
	var up atomic.Bool
	bad := receive(t, func(w http.ResponseWriter, _ *http.Request) {
		if !up.Load() {
			w.WriteHeader(503)
		}
	})
	good := receive(t, nil)
	hooks := []Webhook{{URL: bad.URL}, {URL: good.URL}}

	n := openNews(t, dir)
	n.retries(1, time.Hour)
	n.apply("config", hooks...)
	a := n.fire("one")
	n.comesTo(quota.DeliveryDelivered, a.ID, good.URL)
	n.until("it was tried twice", func() bool { return n.delivery(a.ID, bad.URL).Attempts == 2 })
	n.close()

	up.Store(true)
	n = openNews(t, dir)
	n.apply("config", hooks...)
	if d := n.comesTo(quota.DeliveryDelivered, a.ID, bad.URL); d.Attempts != 3 || d.Error != "" {
		t.Errorf("after the restart it is %+v", d)
	}
	b := n.fire("two")
	n.comesTo(quota.DeliveryDelivered, b.ID, good.URL)
	n.comesTo(quota.DeliveryDelivered, b.ID, bad.URL)
	if got, want := good.ids(), []string{a.ID, b.ID}; !slices.Equal(got, want) {
		t.Errorf("%q came, want %q", got, want)
	}
	if got, want := bad.ids(), []string{a.ID, a.ID, a.ID, b.ID}; !slices.Equal(got, want) {
		t.Errorf("%q came to the other, want %q", got, want)
	}
}

// Deliveries that nothing was tried of survive the process as well: they are
// stored with the alert. A ledger without an announcer is one that was killed
// in between.
func TestWebhookPlanSurvives(t *testing.T) {
	dir := t.TempDir()
	r := receive(t, nil)
	n := openNews(t, dir)
	n.apply("config", Webhook{URL: r.URL})
	n.loaded()
	n.ledger.OnAlert(func(quota.Alert) {})
	a := n.fire("one")
	n.close()
	if len(r.all()) != 0 {
		t.Fatal("it was sent, so that nothing is proved")
	}
	n = openNews(t, dir)
	n.apply("config", Webhook{URL: r.URL})
	n.comesTo(quota.DeliveryDelivered, a.ID, r.URL)
}

// Of an alert that fires when the configuration is gone already, at the end of
// the process, webhooks are told after the next start.
func TestWebhookOfTheEnd(t *testing.T) {
	dir := t.TempDir()
	r := receive(t, nil)
	n := openNews(t, dir)
	n.apply("config", Webhook{URL: r.URL})
	n.news.Withdraw("config")
	a := n.fire("at the end")
	n.close()
	if len(r.all()) != 0 {
		t.Errorf("told of %q by no configuration", r.ids())
	}
	n = openNews(t, dir)
	n.apply("config", Webhook{URL: r.URL})
	n.comesTo(quota.DeliveryDelivered, a.ID, r.URL)
}

// Deliveries to a webhook that a configuration drops end, once there is no way
// back to the one that had it; a new one is told of new alerts alone.
func TestWebhookConfigChanges(t *testing.T) {
	n := openNews(t, t.TempDir())
	n.retries(0, time.Hour)
	bad := receive(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	kept, added := receive(t, nil), receive(t, nil)
	n.apply("first", Webhook{URL: bad.URL}, Webhook{URL: kept.URL, Secret: "old-secret"})
	a := n.fire("one")
	n.until("it was tried", func() bool { return n.delivery(a.ID, bad.URL).Attempts == 1 })
	n.comesTo(quota.DeliveryDelivered, a.ID, kept.URL)

	// A configuration that fails to start changes nothing.
	n.apply("failing")
	n.news.Withdraw("failing")
	if d := n.delivery(a.ID, bad.URL); d.State != quota.DeliveryPending {
		t.Errorf("after a failed reload it is %+v", d)
	}

	n.apply("second", Webhook{URL: kept.URL, Secret: "new-secret"}, Webhook{URL: added.URL})
	b := n.fire("two")
	n.comesTo(quota.DeliveryDelivered, b.ID, added.URL)
	n.comesTo(quota.DeliveryDelivered, b.ID, kept.URL)
	if d := n.delivery(a.ID, bad.URL); d.State != quota.DeliveryPending {
		t.Errorf("while both hold it is %+v", d)
	}
	n.news.Withdraw("first")
	if d := n.comesTo(quota.DeliveryDead, a.ID, bad.URL); d.Attempts < 1 || d.Error != noTarget {
		t.Errorf("in the end it is %+v", d)
	}
	if got := added.ids(); !slices.Equal(got, []string{b.ID}) {
		t.Errorf("%q came to the new one", got)
	}
	signedBy(t, kept.all()[0], "old-secret")
	signedBy(t, kept.all()[1], "new-secret")
}

// A webhook of an earlier process that the configuration lacks is given up.
func TestWebhookGoneAtRestart(t *testing.T) {
	dir := t.TempDir()
	n := openNews(t, dir)
	n.retries(0, time.Hour)
	bad := receive(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	n.apply("config", Webhook{URL: bad.URL})
	var last quota.Alert
	for i := range maxDead + 20 {
		last = n.fire(fmt.Sprint(i))
	}
	n.until("the last was tried", func() bool { return n.delivery(last.ID, bad.URL).Attempts == 1 })
	n.close()
	n = openNews(t, dir)
	n.apply("config")
	n.until("none is pending", func() bool {
		all := read[Alerts](n.do("GET", "/llm_quota/alerts?limit=1000", "").ok(200)).Alerts
		return len(all) == maxDead+20 && !slices.ContainsFunc(all, func(a Alert) bool { return a.Deliveries[0].State != quota.DeliveryDead })
	})
}

// That the store fails is told at once, and listed when it can be.
func TestWebhookOfSickStore(t *testing.T) {
	n := openNews(t, t.TempDir())
	r := receive(t, nil)
	n.apply("config", Webhook{URL: r.URL})
	n.store.sick.Store(true)
	n.until("the webhook is told", func() bool { return len(r.all()) == 1 })
	if all := read[Alerts](n.do("GET", "/llm_quota/alerts", "").ok(200)).Alerts; len(all) != 0 {
		t.Fatalf("a store that cannot write has %+v", all)
	}
	n.store.sick.Store(false)
	n.until("the webhook is told that it is well", func() bool { return len(r.all()) == 2 })
	var all []Alert
	n.until("both are listed as delivered", func() bool {
		all = read[Alerts](n.do("GET", "/llm_quota/alerts", "").ok(200)).Alerts
		return len(all) == 2 && !slices.ContainsFunc(all, func(a Alert) bool { return a.Deliveries[0].State != quota.DeliveryDelivered })
	})
	if all[0].Kind != quota.AlertStoreRecovered || all[1].Kind != quota.AlertStoreDegraded || !slices.Equal(r.ids(), []string{all[1].ID, all[0].ID}) {
		t.Errorf("listed %+v, told %q", all, r.ids())
	}
}

func TestShownURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://user:pass@Example.com:8443/a/b?c=d#e":                           "https://example.com:8443/a/b",
		"http://10.0.0.7/llm-quota-alerts-production/x":                          "http://10.0.0.7/llm-quota-alerts-production/x",
		"https://hooks.slack.com/services/T00000000/B00000000/abcdEFGH1234abcdE": "https://hooks.slack.com/services/T00000000/B00000000/***",
		"https://discord.com/api/webhooks/123456789012345678/abc-DEF_0123456789": "https://discord.com/api/webhooks/123456789012345678/***",
	} {
		u, err := url.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		got := shownURL(u)
		if masked := strings.HasSuffix(want, "***"); (masked && (!strings.HasPrefix(got, want) || len(got) != len(want)+6)) || (!masked && got != want) {
			t.Errorf("%s is shown as %s, want %s", in, got, want)
		}
	}
}

func TestPause(t *testing.T) {
	var least, most time.Duration
	for i, d := range retries {
		for range 100 {
			if p := pause(retries, i+1, 0); p < d*8/10 || p > d*12/10 {
				t.Fatalf("pause %d is %v, want about %v", i, p, d)
			}
		}
		least, most = least+d*8/10, most+d*12/10
	}
	if len(retries) != 5 || least > 10*time.Minute || most < 10*time.Minute {
		t.Errorf("%d retries take %v to %v", len(retries), least, most)
	}
	if p := pause(retries, 1, 30*time.Second); p != 30*time.Second {
		t.Errorf("after Retry-After: 30, the pause is %v", p)
	}
	if p := pause(retries, 1, 24*time.Hour); p != 6*time.Minute {
		t.Errorf("after a Retry-After of a day, the pause is %v", p)
	}
	now := time.Date(2026, 5, 15, 10, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "-7": 0, "x": 0, "99999999999999999999": 0,
		"Fri, 15 May 2026 10:00:09 GMT": 9 * time.Second, "Fri, 15 May 2026 09:00:00 GMT": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {in}}, now); got != want {
			t.Errorf("Retry-After: %s is %v, want %v", in, got, want)
		}
	}
}

// Errors of the transport say what is wrong and no more.
func TestSendingErrors(t *testing.T) {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	plain := receive(t, nil)
	for target, want := range map[string]string{
		s.URL + "/?token=secret": "certificate",
		strings.Replace(plain.URL, "http", "https", 1) + "/?token=secret":   "server gave HTTP response",
		strings.Replace(s.URL, "https", "http", 1) + "/?token=secret":       "status 400",
		strings.Replace(plain.URL, "127.0.0.1", "127.0.0.1:1@127.0.0.1", 1): "",
	} {
		client := newWebhookClient()
		client.Transport.(*http.Transport).Proxy = nil
		_, err := (&Target{url: target}).attempt(context.Background(), client, "test", quota.Alert{ID: "x"})
		client.CloseIdleConnections()
		if want == "" {
			if err != nil {
				t.Errorf("%s: %v", target, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %s", target, err, want)
		}
	}
	if got := sendingError(errors.New("something with a secret")); strings.Contains(got.Error(), "secret") {
		t.Error(got)
	}
	if got := sendingError(&url.Error{URL: "http://secret", Err: &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "h"}}}); got.Error() != "looking up its host: no such host" {
		t.Error(got)
	}
}
