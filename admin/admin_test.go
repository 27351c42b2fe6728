package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
	"github.com/llm-quota/caddy-llm-quota/store/badger"
)

// start is when the tests' clock begins: in the middle of a month, a day and
// an hour.
var start = time.Date(2026, 5, 15, 10, 20, 30, 0, time.UTC)

// bench is a ledger on a real store with the API on it.
type bench struct {
	testing.TB
	ledger *ledger.Ledger
	now    time.Time
	mux    *http.ServeMux
	hub    *Hub
	done   chan struct{}

	targets []Target
}

func (b *bench) Ledger() (*ledger.Ledger, error) { return b.ledger, nil }
func (b *bench) Version() string                 { return "v0.0.0-test" }
func (b *bench) Emit(string, map[string]any)     {}
func (b *bench) Hub() *Hub                       { return b.hub }
func (b *bench) Targets() []Target               { return b.targets }
func (b *bench) Done() <-chan struct{}           { return b.done }

func newBench(t testing.TB) *bench {
	t.Helper()
	st, err := badger.Open(badger.Options{Dir: t.TempDir(), SyncInterval: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{TB: t, now: start}
	if b.ledger, err = ledger.Open(st, b.now, func(op string, err error) { t.Errorf("%s: %v", op, err) }); err != nil {
		t.Fatal(err)
	}
	if err := b.ledger.Configure(b.now, &ledger.Config{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.ledger.Close(b.now); err != nil && !errors.Is(err, quota.ErrClosed) {
			t.Error(err)
		}
	})
	b.mux = muxOf(API{gate: func() (Gate, error) { return b, nil }, now: func() time.Time { return b.now }})
	return b
}

// muxOf serves the API as Caddy's admin endpoint does.
func muxOf(a API) *http.ServeMux {
	mux := http.NewServeMux()
	for _, route := range a.Routes() {
		mux.HandleFunc(route.Pattern, func(w http.ResponseWriter, r *http.Request) {
			err := route.Handler.ServeHTTP(w, r)
			if err == nil {
				return
			}
			api, ok := err.(caddy.APIError) //nolint:errorlint // Caddy does it so
			if !ok {
				api = caddy.APIError{HTTPStatus: http.StatusInternalServerError, Err: err}
			}
			if api.Message == "" && api.Err != nil {
				api.Message = api.Err.Error()
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(api.HTTPStatus)
			json.NewEncoder(w).Encode(api)
		})
	}
	return mux
}

// reply is an answer of the API.
type reply struct {
	t      testing.TB
	status int
	header http.Header
	body   string
}

// do makes a request; headers come in pairs. A body is declared as JSON unless
// they say otherwise.
func (b *bench) do(method, path, body string, headers ...string) *reply {
	b.Helper()
	var in io.Reader
	if body != "" {
		in = strings.NewReader(body)
	}
	r := httptest.NewRequest(method, path, in)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	b.mux.ServeHTTP(w, r)
	return &reply{b.TB, w.Code, w.Header(), w.Body.String()}
}

// ok fails the test unless the status is the given one.
func (r *reply) ok(status int) *reply {
	r.t.Helper()
	if r.status != status {
		r.t.Fatalf("status %d, want %d: %s", r.status, status, r.body)
	}
	return r
}

// fails fails the test unless the answer is that error, and all of the words
// are in its message.
func (r *reply) fails(status int, words ...string) {
	r.t.Helper()
	var e struct{ Error string }
	if r.status != status || json.Unmarshal([]byte(r.body), &e) != nil || e.Error == "" {
		r.t.Errorf("status %d, want %d with an error: %s", r.status, status, r.body)
		return
	}
	for _, word := range words {
		if !strings.Contains(e.Error, word) {
			r.t.Errorf("the error %q does not hold %q", e.Error, word)
		}
	}
}

func read[T any](r *reply) (v T) {
	r.t.Helper()
	dec := json.NewDecoder(strings.NewReader(r.body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		r.t.Fatalf("reading %s: %v", r.body, err)
	}
	return v
}

func (b *bench) newKey(body string) Key {
	b.Helper()
	return read[Key](b.do("POST", "/llm_quota/keys", body).ok(201))
}

func (b *bench) newGroup(body string) Group {
	b.Helper()
	return read[Group](b.do("POST", "/llm_quota/groups", body).ok(201))
}

// spend makes a key use tokens, half of them output.
func (b *bench) spend(id quota.ID, model string, tokens int64) {
	b.Helper()
	a, err := b.ledger.Account(b.now, id)
	if err != nil {
		b.Fatal(err)
	}
	var r ledger.Reservation
	ref, err := b.ledger.Reserve(b.now, a, ledger.Call{Model: model, Input: tokens, Observe: true}, &r)
	if err != nil || ref != nil {
		b.Fatal(err, ref)
	}
	half := tokens / 2
	if err := b.ledger.Settle(b.now, &r, quota.Outcome{Tokens: quota.Tokens{Input: tokens - half, Output: half}}); err != nil {
		b.Fatal(err)
	}
}

func TestUnknownPaths(t *testing.T) {
	b := newBench(t)
	for _, path := range []string{
		"/llm_quota", "/llm_quota/", "/llm_quota/nothing", "/llm_quota/keys/", "/llm_quota/keys/a/b", "/llm_quota/keys/a/reset/b", "/llm_quota/groups/x/rotate",
	} {
		b.do("GET", path, "").fails(404)
	}
}

func TestMethods(t *testing.T) {
	b := newBench(t)
	for path, allow := range map[string]string{
		"/llm_quota/keys": "GET, POST", "/llm_quota/keys/x": "DELETE, GET, PATCH", "/llm_quota/keys/x/reset": "POST",
		"/llm_quota/keys/x/rotate": "POST", "/llm_quota/groups": "GET, POST", "/llm_quota/groups/x": "DELETE, GET, PATCH",
		"/llm_quota/groups/x/grant": "POST", "/llm_quota/usage": "GET", "/llm_quota/status": "GET",
	} {
		r := b.do("PUT", path, "{}")
		r.fails(405, "PUT")
		if got := r.header.Get("Allow"); got != allow {
			t.Errorf("%s: Allow is %q, want %q", path, got, allow)
		}
	}
	b.do("HEAD", "/llm_quota/status", "").ok(200)
}

func TestBodies(t *testing.T) {
	b := newBench(t)
	b.newKey(`{"name":"k"}`)
	for _, path := range []string{"/llm_quota/keys", "/llm_quota/groups"} {
		b.do("POST", path, `{}`, "Content-Type", "text/plain").fails(415)
		b.do("POST", path, `{}`, "Content-Type", "").fails(415)
		b.do("POST", path, `{}`, "Content-Encoding", "gzip").fails(415, "gzip")
		b.do("POST", path, "").fails(400)
		b.do("POST", path, `{"name":"x"`).fails(400, "malformed")
		b.do("POST", path, `{"name":"x"} {}`).fails(400, "goes on")
		b.do("POST", path, `{"name":"x","name":"y"}`).fails(400, "name comes twice")
		b.do("POST", path, `"x"`).fails(400, "object")
		b.do("POST", path, `null`).fails(400, "object")
		b.do("POST", path, "{\"name\":\"\xff\"}").fails(400, "UTF-8")
		b.do("POST", path, `{"name":"`+strings.Repeat("x", maxBody)+`"}`).fails(413)
		b.do("POST", path, `{"quota":`+strings.Repeat(`{"a":`, 20000)+`1`+strings.Repeat(`}`, 20000)+`}`).fails(400)
	}
	b.do("POST", "/llm_quota/keys", `[{"name":"`+strings.Repeat("x", maxBody)+`"}]`).fails(400, "name")
	b.do("POST", "/llm_quota/keys", `[{"name":"x"}`).fails(400, "malformed")
	b.do("POST", "/llm_quota/keys", `[{"name":"x"}] 1`).fails(400, "goes on")
	b.do("POST", "/llm_quota/keys", `[1]`).fails(400, "[0]", "object")
	b.do("POST", "/llm_quota/keys", `[`+strings.Repeat(`{},`, maxKeys)+`{}]`).fails(400, "10000")
	b.do("PATCH", "/llm_quota/keys/name:k", "").fails(400)
	b.do("PATCH", "/llm_quota/keys/name:k", `{}`, "Content-Type", "application/x-www-form-urlencoded").fails(415)
	b.do("PATCH", "/llm_quota/keys/name:k", `{}`, "Content-Type", "application/json; charset=utf-8").ok(200)
	// A form that any page may send must not do anything either.
	b.do("POST", "/llm_quota/keys/name:k/reset", `{}`, "Content-Type", "text/plain").fails(415)
	b.do("POST", "/llm_quota/keys/name:k/reset", "").ok(200)
}

func TestBodyTooLargeArray(t *testing.T) {
	b := newBench(t)
	r := httptest.NewRequest("POST", "/llm_quota/keys", io.MultiReader(strings.NewReader("["), bytes.NewReader(make([]byte, maxArray))))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	b.mux.ServeHTTP(w, r)
	(&reply{t, w.Code, w.Header(), w.Body.String()}).fails(413)
}

func TestNotRunning(t *testing.T) {
	b := newBench(t)
	b.mux = muxOf(API{})
	b.do("GET", "/llm_quota/status", "").fails(404, "llm_quota is not")
	b.mux = muxOf(API{gate: func() (Gate, error) { return closedGate{}, nil }})
	b.do("GET", "/llm_quota/keys", "").fails(503, "broken")
}

type closedGate struct{}

func (closedGate) Ledger() (*ledger.Ledger, error) { return nil, errors.New("broken") }
func (closedGate) Version() string                 { return "" }
func (closedGate) Emit(string, map[string]any)     {}
func (closedGate) Hub() *Hub                       { return nil }
func (closedGate) Targets() []Target               { return nil }
func (closedGate) Done() <-chan struct{}           { return nil }

// A ledger that is being closed while a request uses it is not a mistake of
// the request.
func TestClosedLedger(t *testing.T) {
	b := newBench(t)
	if err := b.ledger.Close(b.now); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/llm_quota/keys", "/llm_quota/groups", "/llm_quota/usage", "/llm_quota/keys/name:x"} {
		b.do("GET", path, "").fails(503)
	}
	b.do("POST", "/llm_quota/keys", `{"name":"x"}`).fails(503)
}

func TestStatus(t *testing.T) {
	b := newBench(t)
	k := b.newKey(`{"name":"a"}`)
	b.newKey(`{"name":"b"}`)
	b.newGroup(`{"name":"g"}`)
	b.do("DELETE", "/llm_quota/keys/name:b", "").ok(204)
	b.spend(k.ID, "m", 10)
	a, err := b.ledger.Account(b.now, k.ID)
	if err != nil {
		t.Fatal(err)
	}
	var open ledger.Reservation
	if _, err := b.ledger.Reserve(b.now, a, ledger.Call{Input: 5}, &open); err != nil {
		t.Fatal(err)
	}
	s := read[Status](b.do("GET", "/llm_quota/status", "").ok(200))
	if s.Version != "v0.0.0-test" || s.Store.Engine != "badger" || s.Keys != 1 || s.Groups != 1 ||
		s.OpenReservations != 1 || s.Totals.Requests != 1 || s.Totals.Total != 10 {
		t.Errorf("%+v", s)
	}
	if err := b.ledger.Sync(b.now); err != nil {
		t.Fatal(err)
	}
	if s = read[Status](b.do("GET", "/llm_quota/status", "").ok(200)); s.Store.LastSync == nil || !s.Store.LastSync.Equal(b.now) {
		t.Errorf("last sync %v", s.Store.LastSync)
	}
	b.now = b.now.Add(24 * time.Hour)
	if s = read[Status](b.do("GET", "/llm_quota/status", "").ok(200)); s.Totals.Requests != 0 {
		t.Errorf("yesterday's: %+v", s.Totals)
	}
}

// The status tells when alerts fire, and whom, but not what gives access.
func TestStatusAlerts(t *testing.T) {
	b := newBench(t)
	const none = `"alerts":{"at":[80,100],"on":["quota"],"forecast":true,"webhooks":[]}}`
	if body := b.do("GET", "/llm_quota/status", "").ok(200).body; !strings.Contains(body, none) {
		t.Errorf("the status is %s", body)
	}
	b.configure(ledger.Config{AlertAt: []float64{99.5, 50}, AlertOn: []quota.LimitName{quota.TokensPerDay}, NoForecast: true})
	var err error
	if b.targets, err = Targets([]Webhook{
		{URL: "https://user:word@hooks.example.com/x?token=abc", Secret: "signing"}, {URL: "http://localhost:1/y", Format: FormatSlack},
	}, func(s string) (string, error) { return s, nil }); err != nil {
		t.Fatal(err)
	}
	const want = `"alerts":{"at":[50,99.5],"on":["tokens_per_day"],"forecast":false,"webhooks":[` +
		`{"target":"https://hooks.example.com/x","format":"json","signed":true},{"target":"http://localhost:1/y","format":"slack","signed":false}]}}`
	if body := b.do("GET", "/llm_quota/status", "").ok(200).body; !strings.Contains(body, want) {
		t.Errorf("the status is %s", body)
	}
}

// No answer but the two that must may hold a secret or its hash.
func TestSecretsStaySecret(t *testing.T) {
	b := newBench(t)
	const brought = "sk-brought-along-0123456789"
	k := b.newKey(fmt.Sprintf(`{"name":"a","secret":%q}`, brought))
	if k.Secret != brought || k.Prefix != "sk-b" {
		t.Errorf("secret %q, prefix %q", k.Secret, k.Prefix)
	}
	made := b.newKey(`{"name":"b"}`)
	if !strings.HasPrefix(made.Secret, made.Prefix+"_") {
		t.Errorf("secret %q, prefix %q", made.Secret, made.Prefix)
	}
	rotated := read[Key](b.do("POST", "/llm_quota/keys/name:b/rotate", "").ok(200))
	for _, r := range []*reply{
		b.do("GET", "/llm_quota/keys", ""), b.do("GET", "/llm_quota/keys/name:a", ""),
		b.do("PATCH", "/llm_quota/keys/name:b", `{"disabled":true}`),
		b.do("POST", "/llm_quota/keys", fmt.Sprintf(`{"name":"c","secret":%q}`, brought)),
		b.do("POST", "/llm_quota/keys", fmt.Sprintf(`{"name":"c","secret":[%q]}`, brought)),
		b.do("POST", "/llm_quota/keys", fmt.Sprintf(`{"name":"c","secret":{"a":%q}}`, brought)),
		b.do("POST", "/llm_quota/keys", fmt.Sprintf(`{"name":"c","secret":%q}`, brought+"é")),
		b.do("POST", "/llm_quota/keys", fmt.Sprintf(`{"name":"c","disabled":%q}`, brought)),
		b.do("POST", "/llm_quota/keys", fmt.Sprintf(`{"name":"c","models":%q}`, brought)),
		b.do("POST", "/llm_quota/keys", fmt.Sprintf(`{"name":"c","secret":%q %q`, brought, brought)),
		b.do("PATCH", "/llm_quota/keys/name:b", fmt.Sprintf(`{"secret":%q}`, brought)),
	} {
		for _, secret := range []string{brought, made.Secret, rotated.Secret} {
			if strings.Contains(r.body, secret) {
				t.Errorf("a secret is in %s", r.body)
			}
		}
		if strings.Contains(r.body, "hash") {
			t.Errorf("a hash is in %s", r.body)
		}
	}
}
