package dashboard_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	llmquota "github.com/llm-quota/caddy-llm-quota"
	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/admin/dashboard"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

// TestMain keeps Caddy's folders out of the user's home.
func TestMain(m *testing.M) {
	home, err := os.MkdirTemp("", "llm-quota-home-")
	if err != nil {
		panic(err)
	}
	for _, name := range []string{"HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"} {
		os.Setenv(name, home)
	}
	code := m.Run()
	os.RemoveAll(home)
	os.Exit(code)
}

// page is a dashboard on a gate with a store of its own.
type page struct {
	testing.TB
	handler *dashboard.Handler
	app     *llmquota.App
}

// newPage returns a dashboard with the options that a Caddyfile gives it.
func newPage(t testing.TB, directive string) *page {
	t.Helper()
	store, err := json.Marshal(map[string]any{"store": map[string]any{"engine": "badger", "dir": filepath.Join(t.TempDir(), "store")}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, err := caddy.ProvisionContext(&caddy.Config{AppsRaw: caddy.ModuleMap{"llm_quota": store}})
	if err != nil {
		t.Fatal(err)
	}
	p := &page{TB: t, handler: new(dashboard.Handler)}
	app, err := ctx.App("llm_quota")
	if err != nil {
		t.Fatal(err)
	}
	p.app = app.(*llmquota.App)
	t.Cleanup(func() {
		if err := errors.Join(p.handler.Cleanup(), p.app.Cleanup()); err != nil {
			t.Error(err)
		}
	})
	if err := p.handler.UnmarshalCaddyfile(caddyfile.NewTestDispenser(directive)); err != nil {
		t.Fatal(err)
	}
	if err := p.handler.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	if err := p.handler.Validate(); err != nil {
		t.Fatal(err)
	}
	return p
}

// visitor is how a request comes in. The zero visitor sits at the machine.
type visitor struct {
	peer, host string
	header     http.Header
	user, role string // as an authentication handler says
}

func (v visitor) with(name, value string) visitor {
	v.header = v.header.Clone()
	if v.header == nil {
		v.header = http.Header{}
	}
	v.header.Set(name, value)
	return v
}

// passed is what the next handler answers.
const passed = http.StatusTeapot

// do makes a request. A body is declared as JSON unless the visitor says
// otherwise.
func (p *page) do(v visitor, method, target, body string) *http.Response {
	p.Helper()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.Host, r.RemoteAddr = "localhost:8080", "127.0.0.1:50000"
	if v.peer != "" {
		r.RemoteAddr = v.peer
	}
	if v.host != "" {
		r.Host = v.host
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for name, values := range v.header {
		r.Header[name] = values
	}
	repl := caddy.NewReplacer()
	if v.user != "" {
		repl.Set("http.auth.user.id", v.user)
		repl.Set("http.auth.user.role", v.role)
	}
	r = r.WithContext(context.WithValue(r.Context(), caddy.ReplacerCtxKey, repl))
	w := httptest.NewRecorder()
	next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) error {
		w.WriteHeader(passed)
		return nil
	})
	if err := p.handler.ServeHTTP(w, r, next); err != nil {
		p.Fatalf("%s %s: %v", method, target, err)
	}
	return w.Result()
}

func text(t testing.TB, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// is fails the test unless the answer has that status. It returns the body.
func (p *page) is(r *http.Response, status int) string {
	p.Helper()
	body := text(p, r)
	if r.StatusCode != status {
		p.Errorf("status %d, want %d: %s", r.StatusCode, status, body)
	}
	return body
}

// fails is is for an error in JSON.
func (p *page) fails(r *http.Response, status int, word string) {
	p.Helper()
	body := p.is(r, status)
	var e struct{ Error string }
	if json.Unmarshal([]byte(body), &e) != nil || !strings.Contains(e.Error, word) || r.Header.Get("Content-Type") != "application/json" {
		p.Errorf("the error does not tell of %q in JSON: %s", word, body)
	}
}

func decode[T any](t testing.TB, body string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	return v
}

func TestPaths(t *testing.T) {
	p := newPage(t, "llm_quota_dashboard")
	for path, status := range map[string]int{
		"/llm-quota/": 200, "/llm-quota/api/status": 200, "/llm-quota/api/session": 200,
		"/": passed, "/llm-quotas/": passed, "/v1/chat/completions": passed, "/llm-quota": 308,
		"/llm-quota/nothing": 404, "/llm-quota/assets/": 404, "/llm-quota/assets/js/main.js": 404, "/llm-quota/index.html": 404,
		"/llm-quota/api": 404, "/llm-quota/api/": 404, "/llm-quota/api/nothing": 404, "/llm-quota/api/keys/": 404,
		"/llm-quota/api//keys": 404, "/llm-quota/api/../api/keys": 404, "/llm-quota/api/session/": 404,
	} {
		p.is(p.do(visitor{}, "GET", path, ""), status)
	}
	r := p.do(visitor{}, "GET", "/llm-quota?x=1", "")
	if got := r.Header.Get("Location"); got != "llm-quota/?x=1" {
		t.Errorf("it redirects to %q", got)
	}
	for _, path := range []string{"/llm-quota/", "/llm-quota/api/session"} {
		r := p.do(visitor{}, "POST", path, "{}")
		p.is(r, 405)
		if got := r.Header.Get("Allow"); got != "GET, HEAD" {
			t.Errorf("%s allows %q", path, got)
		}
	}
	own := newPage(t, "llm_quota_dashboard /")
	own.is(own.do(visitor{}, "GET", "/", ""), 200)
	own.is(own.do(visitor{}, "GET", "/api/keys", ""), 200)
	deep := newPage(t, "llm_quota_dashboard /ops/quota")
	deep.is(deep.do(visitor{}, "GET", "/ops/quota/api/keys", ""), 200)
	deep.is(deep.do(visitor{}, "GET", "/ops/quota/", ""), 200)
	deep.is(deep.do(visitor{}, "GET", "/ops/", ""), passed)
}

// The API below the dashboard is that of the admin endpoint.
func TestAPI(t *testing.T) {
	p := newPage(t, "llm_quota_dashboard")
	anna := visitor{peer: "192.0.2.7:1234", host: "gate.example.com", user: "anna"}
	body := p.is(p.do(anna, "POST", "/llm-quota/api/keys", `{"name":"a % b","quota":{"tokens":10,"reset":"daily"}}`), 201)
	k := decode[admin.Key](t, body)
	if k.Secret == "" || k.Name != "a % b" {
		t.Errorf("created %s", body)
	}
	r := p.do(anna, "GET", "/llm-quota/api/keys/name:a%20%25%20b", "")
	tag := r.Header.Get("ETag")
	if shown := decode[admin.Key](t, p.is(r, 200)); shown.ID != k.ID || shown.Secret != "" || tag == "" {
		t.Errorf("shown %+v with ETag %q", shown, tag)
	}
	p.is(p.do(anna.with("If-Match", tag), "PATCH", "/llm-quota/api/keys/"+k.ID.String(), `{"name":"c"}`), 200)
	p.fails(p.do(anna.with("If-Match", tag), "PATCH", "/llm-quota/api/keys/"+k.ID.String(), `{"name":"d"}`), 412, "changed")
	p.fails(p.do(anna.with("Content-Type", "text/plain"), "POST", "/llm-quota/api/keys", `{"name":"x"}`), 415, "application/json")
	p.fails(p.do(anna, "GET", "/llm-quota/api/keys?nonsense=1", ""), 400, "nonsense")
	p.fails(p.do(anna, "PUT", "/llm-quota/api/keys", "{}"), 405, "PUT")
	p.is(p.do(anna, "DELETE", "/llm-quota/api/keys/"+k.ID.String(), ""), 204)

	l, err := p.app.Ledger()
	if err != nil {
		t.Fatal(err)
	}
	var authors []quota.Author
	if err := l.Changes(0, func(c *quota.Change) bool {
		authors = append(authors, c.Author)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if len(authors) != 3 {
		t.Errorf("the audit log has changes by %v", authors)
	}
	for _, a := range authors {
		if a != (quota.Author{Actor: "anna", Source: "dashboard"}) {
			t.Errorf("the author is %+v", a)
		}
	}
}

func TestOptions(t *testing.T) {
	for text, want := range map[string]*dashboard.Handler{
		"llm_quota_dashboard":       {},
		"llm_quota_dashboard /ops/": {Path: "/ops/"},
		"llm_quota_dashboard {\n read_only\n role {http.auth.user.role}\n allow_unauthenticated\n}": {
			ReadOnly: true, Role: "{http.auth.user.role}", AllowUnauthenticated: true,
		},
	} {
		h := new(dashboard.Handler)
		if err := h.UnmarshalCaddyfile(caddyfile.NewTestDispenser(text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if h.Path != want.Path || h.ReadOnly != want.ReadOnly || h.Role != want.Role || h.AllowUnauthenticated != want.AllowUnauthenticated {
			t.Errorf("%s becomes %+v", text, h)
		}
	}
	for _, path := range []string{"//", "/a//b", "/../", "/a/./b/", "a/"} {
		if err := (&dashboard.Handler{Path: path}).Validate(); err == nil {
			t.Errorf("the path %q is taken", path)
		}
	}
}

var moduleLink = regexp.MustCompile(`href="(assets/[0-9a-f]+/js/[^"]+)"`)

// build returns where the files of the page are.
func (p *page) build() string {
	p.Helper()
	m := moduleLink.FindStringSubmatch(p.is(p.do(visitor{}, "GET", "/llm-quota/", ""), 200))
	if m == nil {
		p.Fatal("the page links no module")
	}
	build, _, _ := strings.Cut(m[1], "/js/")
	return "/llm-quota/" + build + "/"
}
