package dashboard_test

import (
	"net/http"
	"strings"
	"testing"
)

// Who is let in: callers that were authenticated, and browsers on the same
// machine with nothing in between.
func TestAccess(t *testing.T) {
	closed := newPage(t, "llm_quota_dashboard")
	open := newPage(t, "llm_quota_dashboard {\n allow_unauthenticated\n}")
	far := visitor{peer: "192.0.2.7:1234", host: "gate.example.com"}
	cases := map[string]struct {
		who visitor
		in  bool
	}{
		"the machine itself":               {visitor{}, true},
		"localhost without a port":         {visitor{host: "localhost"}, true},
		"localhost in capitals":            {visitor{host: "LocalHost:9"}, true},
		"127.0.0.1":                        {visitor{host: "127.0.0.1:8080"}, true},
		"127.0.0.1 without a port":         {visitor{host: "127.0.0.1"}, true},
		"IPv6":                             {visitor{peer: "[::1]:50000", host: "[::1]:8080"}, true},
		"IPv6 without a port":              {visitor{peer: "[::1]:50000", host: "[::1]"}, true},
		"IPv4 in IPv6":                     {visitor{peer: "[::ffff:127.0.0.1]:50000"}, true},
		"another loopback address":         {visitor{peer: "127.9.9.9:50000"}, true},
		"another host":                     {visitor{host: "gate.example.com"}, false},
		"a host that begins like it":       {visitor{host: "localhost.example.com"}, false},
		"a host that ends like it":         {visitor{host: "evil.localhost"}, false},
		"no host":                          {visitor{host: " "}, false},
		"another loopback host":            {visitor{host: "127.0.0.2"}, false},
		"another machine":                  {visitor{peer: "192.0.2.7:1234"}, false},
		"another machine, own host":        {far, false},
		"an address that was not told":     {visitor{peer: "@"}, false},
		"a peer without a port":            {visitor{peer: "127.0.0.1"}, false},
		"an authenticated caller":          {visitor{peer: far.peer, host: far.host, user: "anna"}, true},
		"an authenticated one via a proxy": {visitor{host: far.host, user: "anna"}.with("X-Forwarded-For", "192.0.2.7"), true},
	}
	for _, name := range []string{
		"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Anything", "X-Real-Ip", "Via", "Cf-Connecting-Ip", "True-Client-Ip",
	} {
		cases["a proxy with "+name] = struct {
			who visitor
			in  bool
		}{visitor{}.with(name, "127.0.0.1"), false}
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			closed, open := &page{t, closed.handler, closed.app}, &page{t, open.handler, open.app}
			for _, path := range []string{"/llm-quota/", "/llm-quota/api/keys", "/llm-quota/api/session", "/llm-quota/nothing"} {
				r := closed.do(c.who, "GET", path, "")
				if in := r.StatusCode != http.StatusForbidden; in != c.in {
					t.Errorf("%s: status %d", path, r.StatusCode)
				}
				if r := open.do(c.who, "GET", path, ""); r.StatusCode == http.StatusForbidden {
					t.Errorf("%s is refused to whom it need not know", path)
				}
			}
			if !c.in {
				closed.fails(closed.do(c.who, "POST", "/llm-quota/api/keys", `{"name":"x"}`), 403, "authenticated")
				if body := closed.is(closed.do(c.who, "GET", "/llm-quota/", ""), 403); !strings.Contains(body, "<p>This dashboard is open only to callers who have been authenticated") {
					t.Errorf("the page says %s", body)
				}
			}
		})
	}
	if body := closed.is(closed.do(visitor{}, "GET", "/llm-quota/api/keys", ""), 200); !strings.Contains(body, `"keys":[]`) {
		t.Errorf("a refused caller has made a key: %s", body)
	}
}

func TestRoles(t *testing.T) {
	type may struct{ look, change bool }
	for name, c := range map[string]struct {
		directive string
		role      string
		may       may
	}{
		"without roles":        {"llm_quota_dashboard", "", may{true, true}},
		"an operator":          {"llm_quota_dashboard {\n role {http.auth.user.role}\n}", "operator", may{true, true}},
		"a viewer":             {"llm_quota_dashboard {\n role {http.auth.user.role}\n}", "viewer", may{true, false}},
		"another role":         {"llm_quota_dashboard {\n role {http.auth.user.role}\n}", "admin", may{}},
		"a role in capitals":   {"llm_quota_dashboard {\n role {http.auth.user.role}\n}", "Operator", may{}},
		"no role":              {"llm_quota_dashboard {\n role {http.auth.user.role}\n}", "", may{}},
		"no such placeholder":  {"llm_quota_dashboard {\n role {http.auth.user.rolle}\n}", "operator", may{}},
		"a role for all":       {"llm_quota_dashboard {\n role viewer\n}", "operator", may{true, false}},
		"read-only":            {"llm_quota_dashboard {\n read_only\n}", "", may{true, false}},
		"read-only, operators": {"llm_quota_dashboard {\n read_only\n role {http.auth.user.role}\n}", "operator", may{true, false}},
		"read-only, no role":   {"llm_quota_dashboard {\n read_only\n role {http.auth.user.role}\n}", "none", may{}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPage(t, c.directive)
			who := visitor{peer: "192.0.2.7:1234", user: "anna", role: c.role}
			reads, writes := 403, 403
			if c.may.look {
				reads = 200
			}
			if c.may.change {
				writes = 201
			}
			for _, path := range []string{"/llm-quota/", "/llm-quota/api/keys", "/llm-quota/api/usage", "/llm-quota/api/session"} {
				p.is(p.do(who, "GET", path, ""), reads)
				p.is(p.do(who, "HEAD", path, ""), reads)
			}
			p.is(p.do(who, "POST", "/llm-quota/api/keys", `{"name":"x"}`), writes)
			for _, method := range []string{"POST", "PATCH", "PUT", "DELETE", "OPTIONS", "CONNECT"} {
				if r := p.do(who, method, "/llm-quota/api/groups/x", ""); (r.StatusCode == 403) == c.may.change {
					t.Errorf("%s: status %d", method, r.StatusCode)
				}
			}
			// A copy of the store holds what no reader is to have.
			if r := p.do(who, "GET", "/llm-quota/api/backup", ""); (r.StatusCode == 403) == c.may.change {
				t.Errorf("backup: status %d", r.StatusCode)
			}
			if !c.may.look {
				return
			}
			s := decode[map[string]any](t, p.is(p.do(who, "GET", "/llm-quota/api/session", ""), 200))
			if s["user"] != "anna" || s["read_only"] != !c.may.change || s["version"] == "" || (s["role"] != "viewer" && s["role"] != "operator") || len(s) != 5 {
				t.Errorf("the session is %v", s)
			}
		})
	}
}

// Requests that another site has a browser make change nothing, and read
// nothing of the API.
func TestOtherSites(t *testing.T) {
	p := newPage(t, "llm_quota_dashboard {\n allow_unauthenticated\n}")
	const body = `{"name":"x"}`
	const keys = "/llm-quota/api/keys"
	own := visitor{host: "gate.example.com"}
	for name, c := range map[string]struct {
		who  visitor
		page int // GET of the page
		read int
		post int
	}{
		"no browser":              {own, 200, 200, 201},
		"the page itself":         {own.with("Sec-Fetch-Site", "same-origin").with("Origin", "https://gate.example.com"), 200, 200, 201},
		"an older browser":        {own.with("Origin", "https://gate.example.com"), 200, 200, 201},
		"the address bar":         {own.with("Sec-Fetch-Site", "none"), 200, 200, 201},
		"another site":            {own.with("Sec-Fetch-Site", "cross-site").with("Origin", "https://evil.example"), 200, 403, 403},
		"another site's own host": {own.with("Sec-Fetch-Site", "cross-site").with("Origin", "https://gate.example.com"), 200, 403, 403},
		"a sibling":               {own.with("Sec-Fetch-Site", "same-site").with("Origin", "https://blog.example.com"), 200, 403, 403},
		"another in an older one": {own.with("Origin", "https://evil.example"), 200, 200, 403},
		"a sandbox":               {own.with("Origin", "null"), 200, 200, 403},
	} {
		t.Run(name, func(t *testing.T) {
			p := &page{t, p.handler, p.app}
			p.is(p.do(c.who, "GET", "/llm-quota/", ""), c.page)
			p.is(p.do(c.who, "GET", keys, ""), c.read)
			r := p.do(c.who, "POST", keys, strings.Replace(body, "x", name, 1))
			p.is(r, c.post)
			p.is(p.do(c.who, "DELETE", keys+"/none", ""), map[int]int{201: 404, 403: 403}[c.post])
			for _, form := range []string{"text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"} {
				p.is(p.do(c.who.with("Content-Type", form), "POST", keys, body), map[int]int{201: 415, 403: 403}[c.post])
			}
			for _, header := range []string{"Access-Control-Allow-Origin", "Access-Control-Allow-Credentials"} {
				if got := r.Header.Get(header); got != "" {
					t.Errorf("%s is %q", header, got)
				}
			}
		})
	}
}
