package llmquota

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/limiter"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// from makes a chat request of a client at that address.
func from(addr, secret string) *http.Request {
	r := httptest.NewRequest("POST", "/v1/chat/completions", strings.NewReader(chatBody))
	r.RemoteAddr = netip.AddrPortFrom(netip.MustParseAddr(addr), 4321).String()
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+secret)
	return r
}

// throttled fails the test unless the answer is that of an address which has
// presented too many unknown keys.
func (r *reply) throttled() *reply {
	r.Helper()
	r.refused(429, "rate_limit_exceeded")
	if !strings.Contains(r.body, `"type":"requests"`) || !strings.Contains(r.body, "Too many unknown API keys came from this address. Please try again in ") {
		r.Errorf("the answer is %s", r.body)
	}
	return r
}

// exhaust makes an address owe as many failures as it can not pay back while a
// test lasts.
func exhaust(a *App, addr string) {
	now := int64(time.Since(epoch))
	for range int64(time.Hour) / limiter.FailureRefill {
		a.failures.Add(now, netip.MustParseAddr(addr))
	}
}

// Who tries keys is soon told to wait, and may then try again. Meanwhile keys
// that are in use work from the same address, and others are not affected.
func TestFloodOfWrongKeys(t *testing.T) {
	b := newBench(t, t.TempDir(), `{"name":"k","secret":"`+secret+`"}`, `{}`)
	next := answers(200, answer(11, 7))
	reg := prometheus.NewRegistry()
	if err := admin.RegisterMetrics(reg); err != nil {
		t.Fatal(err)
	}
	before := seriesOf(t, reg)
	const culprit, colleague = "2001:db8::1", "2001:db8::2:0:0:1" // of one network
	statuses := map[int]int{}
	call := func(addr, secret string) *reply {
		t.Helper()
		r := b.serve(from(addr, secret), next)
		statuses[r.status]++
		return r
	}
	call(colleague, secret).ok(200) // from now on the key is in memory
	for i := range limiter.FailureBurst {
		call(culprit, "wrong-key-number-"+strconv.Itoa(i)).refused(401, "invalid_api_key")
	}
	last := call(culprit, "wrong-key")
	for last.status == 401 { // as long as tokens come back as fast
		last = call(culprit, "wrong-key-number-"+strconv.Itoa(statuses[401]))
	}
	last.throttled()
	if h := last.header; h.Get("Retry-After") != "1" || h.Get("Retry-After-Ms") != "1000" || h.Get("X-Should-Retry") != "" {
		t.Errorf("headers %v", h)
	}
	call(colleague, secret).ok(200)
	call("2001:db8:0:1::1", "wrong-key-of-a-neighbour").refused(401, "invalid_api_key")
	call("192.0.2.1", "wrong-key-of-a-neighbour").refused(401, "invalid_api_key")
	for end := time.Now().Add(patience); last.status == 429; last = call(culprit, "wrong-key") {
		if time.Now().After(end) {
			t.Fatal("nothing comes back")
		}
		last.throttled()
		call(colleague, secret).ok(200)
	}
	last.refused(401, "invalid_api_key")

	after := seriesOf(t, reg)
	for labels, want := range map[string]int{
		"decision=admitted dialect=openai group= reason=":               statuses[200],
		"decision=refused dialect=openai group= reason=invalid_api_key": statuses[401],
		"decision=refused dialect=openai group= reason=auth_throttled":  statuses[429],
	} {
		name := "caddy_llm_quota_requests_total " + labels
		if got := after[name] - before[name]; got != float64(want) {
			t.Errorf("%s grew by %v, want %d", name, got, want)
		}
	}
	l, err := b.app.Ledger()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	report, err := l.Report(now, ledger.ReportQuery{From: now.Add(-time.Hour), To: now, Step: ledger.PerDay})
	if err != nil {
		t.Fatal(err)
	}
	if n := report.Totals; n.Requests != int64(statuses[200]) || n.Refused != 0 {
		t.Errorf("%d were admitted; the history has %+v", statuses[200], n)
	}
}

// A key that is not in memory has to be looked up, for which a throttled
// address waits; once it is known, from wherever, it passes from there too. The
// address is the client's, as Caddy knows it behind trusted proxies.
func TestThrottledAddressBehindProxies(t *testing.T) {
	up := upstream(t, completes)
	g := newGate(t)
	trusting := func(options string) string {
		return strings.Replace(g.caddyfile(options, "log {\noutput test_sink\nformat json\n}\n"+proxy(up)),
			"\tmetrics\n", "\tmetrics\n\tservers {\n\t\ttrusted_proxies static private_ranges\n\t}\n", 1)
	}
	if err := g.loadText(trusting(keyK())); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"active", "fresh", "third"} {
		g.api("POST", "/llm_quota/keys", `{"name":"`+name+`","secret":"test-secret-of-the-key-`+name+`"}`).ok(201)
	}
	const bad, good = "203.0.113.5", "203.0.113.6"
	call := func(addr, key string) *reply {
		t.Helper()
		return g.chat("X-Forwarded-For", addr, "Authorization", "Bearer test-secret-of-the-key-"+key)
	}
	call(bad, "active").ok(200)
	call(bad, "nobody").refused(401, "invalid_api_key")
	exhaust(g.app(), bad)
	takeLogs()
	call(bad, "nobody").throttled()
	call(bad, "fresh").throttled() // the store is not asked
	g.do("POST", "/v1/messages", chatBody, "X-Forwarded-For", bad, "X-Api-Key", "wrong-key-of-nobody", "Authorization", "").ok(429)
	g.do("GET", "/llm_quota/me", "", "X-Forwarded-For", bad, "Authorization", "Bearer wrong-key-of-nobody").ok(429)
	g.chat("X-Forwarded-For", bad, "Authorization", "").refused(401, "invalid_api_key") // for which no store is asked
	call(good, "nobody").refused(401, "invalid_api_key")
	call(bad, "active").ok(200)
	call(good, "fresh").ok(200)
	call(bad, "fresh").ok(200)
	g.until("the access log has all calls", func() bool { return len(logged(t, seenLogs(), "http.log.access")) == 9 })
	if got, _ := logged(t, seenLogs(), "http.log.access")[0]["llm_quota"].(map[string]any); got["decision"] != "refused" || got["reason"] != "auth_throttled" || got["key_id"] != nil {
		t.Errorf("the access log has %v", got)
	}

	// It lasts as long as the ledger is open, over reloads.
	before := g.app().failures
	if err := g.loadText(trusting(keyK("requests_per_day 100"))); err != nil {
		t.Fatal(err)
	}
	call(bad, "third").throttled()
	if g.app().failures != before {
		t.Error("the reload began a new table")
	}
	g.dir += "-2"
	if err := g.loadText(trusting(keyK())); err != nil {
		t.Fatal(err)
	}
	g.released(strings.TrimSuffix(g.dir, "-2"))
	call(bad, "third").refused(401, "invalid_api_key")
	if g.app().failures == before {
		t.Error("another store shares the table")
	}
}

// Where a handler has authenticated the caller, and where callers need no key,
// no address is held back; a wrong key is held back where none is needed.
func TestThrottledAddressWithoutKeys(t *testing.T) {
	up := upstream(t, completes)
	g := startGate(t, keyK(), "route /named/* {\nuri strip_prefix /named\n"+proxy(up, "identity k")+"}\nroute {\n"+proxy(up, "anonymous k")+"}\n")
	exhaust(g.app(), "127.0.0.1")
	g.chat("Authorization", "").ok(200)
	g.chat("Authorization", "Bearer wrong-key-of-nobody").throttled()
	g.do("POST", "/named/v1/chat/completions", chatBody, "Authorization", "Bearer wrong-key-of-nobody").ok(200)
}

// heapInUse is what is in use after everything that can be is freed.
func heapInUse() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// seriesOf returns the metrics of a registry by name and labels.
func seriesOf(t testing.TB, reg prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetName() + "=" + l.GetValue()
			}
			all[name] = m.GetCounter().GetValue()
		}
	}
	return all
}

// floodOf is how many callers, models or paths a flood has.
func floodOf(t *testing.T, n int) int {
	if testing.Short() {
		t.Skip("floods take seconds")
	}
	return n
}

// mostLeft is the most that a flood may leave behind on the heap. Of what it
// brings, 20 bytes each would be more.
const mostLeft = 4 << 20

// heapStaysAt fails the test if more than mostLeft stays in use beyond heap.
// What the store needs only for a while, as when it makes room, it gives back.
func heapStaysAt(t *testing.T, heap int64) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		grown := heapInUse() - heap
		if grown <= mostLeft {
			t.Logf("the heap has grown by %d bytes", grown)
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the heap has grown by %d bytes", grown)
		}
	}
}

// Random keys from random addresses leave nothing behind, in memory or metrics.
func TestFloodOfKeysAndAddressesLeavesNothing(t *testing.T) {
	many := floodOf(t, 200_000)
	b := newBench(t, t.TempDir(), `{"name":"k","secret":"`+secret+`"}`, `{}`)
	reg := prometheus.NewRegistry()
	if err := admin.RegisterMetrics(reg); err != nil {
		t.Fatal(err)
	}
	var statuses [600]int
	flood := func(first, n int) {
		for i := first; i < first+n; i++ {
			addr := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i), 15: 1})
			statuses[b.serve(from(addr.String(), "wrong-key-number-"+strconv.Itoa(i)), nil).status]++
		}
	}
	flood(0, many/10)
	heap, series := heapInUse(), len(seriesOf(t, reg))
	flood(many/10, many)
	heapStaysAt(t, heap)
	if got := len(seriesOf(t, reg)); got != series {
		t.Errorf("%d series became %d", series, got)
	}
	if statuses[401] != many+many/10 {
		t.Errorf("%d of %d calls were refused as unknown", statuses[401], many+many/10)
	}
	runtime.KeepAlive(b)
}

// However many models, paths and methods a caller thinks of, metrics, history
// and memory are bounded.
func TestFloodOfModelsAndPathsIsBounded(t *testing.T) {
	many := floodOf(t, 100_000)
	b := newBench(t, t.TempDir(), `{"name":"k","secret":"`+secret+`"}`, `{}`)
	reg := prometheus.NewRegistry()
	if err := admin.RegisterMetrics(reg); err != nil {
		t.Fatal(err)
	}
	next := answers(200, answer(11, 7))
	n := 0
	flood := func(times int) {
		for range times {
			n++
			name := "probe-" + strconv.Itoa(n)
			r := from("192.0.2.1", secret)
			body, err := json.Marshal(map[string]any{"model": name, "messages": []any{}})
			if err != nil {
				t.Fatal(err)
			}
			switch n % 4 {
			case 0: // a model of one's own
			case 1: // in the path
				r.URL.Path, body = "/v1beta/models/"+name+":generateContent", []byte(`{}`)
			case 2: // a path of one's own
				r.URL.Path = "/" + name + "/" + name
			case 3: // a method of one's own
				r.Method = "PROBE" + strconv.Itoa(n)
			}
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
			b.serve(r, next).ok(200)
		}
	}
	flood(many / 10)
	heap, before := heapInUse(), seriesOf(t, reg)
	flood(many)
	heapStaysAt(t, heap)
	after := seriesOf(t, reg)
	if len(after) != len(before) {
		t.Errorf("%d series became %d", len(before), len(after))
	}
	models, dialects := map[string]bool{}, map[string]bool{}
	for name := range after {
		for label := range strings.FieldsSeq(name) {
			if model, is := strings.CutPrefix(label, "model="); is && strings.HasPrefix(model, "probe-") {
				models[model] = true
			} else if d, is := strings.CutPrefix(label, "dialect="); is {
				dialects[d] = true
			} else if strings.Contains(strings.ToLower(label), "probe") {
				t.Errorf("a label says %s", label)
			}
		}
	}
	if len(models) == 0 || len(models) > 100 {
		t.Errorf("%d of the models are in the metrics, want 100 at most", len(models))
	}
	for d := range dialects {
		if !slices.Contains([]string{"openai", "azure", "anthropic", "gemini", "vertex", "cohere", "ollama", "bedrock", "unknown"}, d) {
			t.Errorf("there is a dialect %q", d)
		}
	}

	l, err := b.app.Ledger()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	report, err := l.Report(now, ledger.ReportQuery{From: now.Add(-24 * time.Hour), To: now, Step: ledger.PerDay, By: ledger.By{Model: true}})
	if err != nil {
		t.Fatal(err)
	}
	if report.Totals.Requests != int64(n) {
		t.Errorf("the history has %d requests of %d", report.Totals.Requests, n)
	}
	if lines := len(report.Lines); lines < 100 || lines > 202 { // 200 names, other, and none
		t.Errorf("the history tells %d models apart", lines)
	}
}
