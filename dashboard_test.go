package llmquota

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

// The dashboard comes after authentication, which tells it who its callers are
// and what role they have, and before the gate, which would ask for a key.
func TestDashboardOnASite(t *testing.T) {
	up := upstream(t, completes)
	g := startGate(t, keyK(), `
	map {http.auth.user.id} {role} {
		alice operator
		bob viewer
	}
	@people path /llm-quota*
	basic_auth @people {
		alice `+bcryptOfPassword+`
		bob `+bcryptOfPassword+`
		carol `+bcryptOfPassword+`
	}
	encode gzip
	llm_quota_dashboard {
		role {role}
	}
	`+proxy(up))
	as := func(user, method, path, body string, headers ...string) *reply {
		t.Helper()
		r := g.request(method, path, body, append([]string{"Authorization", ""}, headers...)...)
		if user != "" {
			r.SetBasicAuth(user, "password")
		}
		return g.send(r)
	}
	g.chat().ok(200)
	const keys = "/llm-quota/api/keys"
	for user, status := range map[string]int{"": 401, "alice": 200, "bob": 200, "carol": 403} {
		as(user, "GET", keys, "").ok(status)
		as(user, "GET", "/llm-quota/", "").ok(status)
	}
	as("bob", "POST", keys, `{"name":"x"}`).ok(403)
	made := decode[admin.Key](as("alice", "POST", keys, `{"name":"x"}`).ok(201))
	var by quota.Author
	if err := g.ledger().Changes(0, func(c *quota.Change) bool {
		by = c.Author
		return false
	}); err != nil {
		t.Fatal(err)
	}
	if by != (quota.Author{Actor: "alice", Source: "dashboard"}) {
		t.Errorf("the last change was made by %+v", by)
	}
	// Through a handler that codes answers, and their ETags with them.
	list := as("alice", "GET", keys+"/"+made.ID.String(), "", "Accept-Encoding", "gzip").ok(200)
	tag := list.header.Get("ETag")
	if list.header.Get("Content-Encoding") != "gzip" || tag == "" {
		t.Errorf("the key comes with %v", list.header)
	}
	as("alice", "PATCH", keys+"/"+made.ID.String(), `{"name":"y"}`, "If-Match", tag).ok(200)
	as("alice", "PATCH", keys+"/"+made.ID.String(), `{"name":"z"}`, "If-Match", tag).ok(412)
	page := as("alice", "GET", "/llm-quota/", "").ok(200).body
	_, file, _ := strings.Cut(page, `<script type="module" src="`)
	file, _, _ = strings.Cut(file, `"`)
	for range 2 { // files have their codings already
		r := as("alice", "GET", "/llm-quota/"+file, "", "Accept-Encoding", "gzip").ok(200)
		tag = r.header.Get("ETag")
		if r.header.Get("Content-Encoding") != "gzip" || len(r.header.Values("Vary")) != 1 {
			t.Errorf("the file comes with %v", r.header)
		}
		as("alice", "GET", "/llm-quota/"+file, "", "Accept-Encoding", "gzip", "If-None-Match", tag).ok(304)
	}
}

// Below a prefix that the site takes off, behind a named matcher, and at the
// root of a site.
func TestDashboardElsewhere(t *testing.T) {
	g := startGate(t, keyK(), `
	handle_path /ops/* {
		llm_quota_dashboard
		respond "not the dashboard"
	}
	handle {
		@here header X-Here yes
		llm_quota_dashboard @here /
		respond "not here"
	}`)
	g.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if to := g.do("GET", "/ops/llm-quota", "").ok(308).header.Get("Location"); to != "llm-quota/" {
		t.Errorf("it redirects to %q", to)
	}
	g.do("GET", "/ops/llm-quota/api/keys", "").ok(200)
	g.do("GET", "/ops/", "").ok(200)
	if r := g.do("GET", "/", "").ok(200); r.body != "not here" {
		t.Errorf("without what the matcher asks, the answer is %s", r.body)
	}
	if r := g.do("GET", "/api/keys", "", "X-Here", "yes").ok(200); !strings.Contains(r.body, `"keys":[{`) {
		t.Errorf("the keys are %s", r.body)
	}
	g.do("GET", "/api/keys", "", "X-Here", "yes", "X-Forwarded-For", "127.0.0.1").ok(403)
}

// Somebody who watches the events holds up neither a reload nor the end: the
// stream ends, and the page opens it again.
func TestDashboardStreamsEndWithTheServer(t *testing.T) {
	const site = "llm_quota_dashboard\nrespond ok"
	g := startGate(t, keyK(), site)
	watch := func() *http.Response {
		t.Helper()
		resp := g.open(g.request("GET", "/llm-quota/api/events", ""))
		if resp.StatusCode != 200 || !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
			t.Fatalf("status %d, %v", resp.StatusCode, resp.Header)
		}
		return resp
	}
	ended := func(resp *http.Response) {
		t.Helper()
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil { // within the client's patience
			t.Errorf("the stream ends with %v", err)
		}
	}
	first := watch()
	lines := bufio.NewScanner(first.Body)
	g.do("POST", "/llm-quota/api/keys", `{"name":"new"}`).ok(201)
	for !strings.Contains(lines.Text(), `"new"`) {
		if !lines.Scan() {
			t.Fatalf("the change is not told: %v", lines.Err())
		}
	}
	g.load(keyK("requests_per_minute 7"), site)
	ended(first)
	second := watch()
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	ended(second)
}
