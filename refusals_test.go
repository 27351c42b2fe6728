package llmquota

import (
	"strings"
	"testing"
)

// What is wrong with a call is told in one order, whatever else is wrong with
// it, and none of it reaches the upstream or is charged to a limit.
func TestRefusalOrder(t *testing.T) {
	next, requests := seenUpstream(t)
	const dated, afar, small, limited = "expires 2020-01-01", "allowed_ips 192.0.2.0/24", "models claude-*", "requests_per_day 0"
	site := "llm_quota {\nmax_request_body 200B\n}\n" + next
	body := strings.Replace(chatBody, "hi", strings.Repeat("long ", 100), 1)
	g := newGate(t)
	for _, c := range []struct {
		wrong  []string
		status int
		code   string
	}{
		{[]string{dated, afar, small, limited}, 401, "api_key_expired"},
		{[]string{afar, small, limited}, 403, "ip_not_allowed"},
		{[]string{small, limited}, 413, "request_too_large"},
		{[]string{limited}, 413, "request_too_large"},
	} {
		g.load(keyK(c.wrong...), site)
		g.do("POST", "/v1/chat/completions", body).refused(c.status, c.code)
	}
	g.load(keyK(small, limited), site)
	g.chat().refused(403, "model_not_allowed")
	twice := strings.Replace(chatBody, "{", `{"model":"claude-x",`, 1)
	g.do("POST", "/v1/chat/completions", twice).refused(400, "invalid_body")
	g.do("POST", "/v1/chat/completions", chatBody, "Content-Encoding", "rot13").refused(415, "unsupported_encoding")
	g.load(keyK(limited), site)
	g.chat().refused(429, "rate_limit_exceeded")
	if len(requests) > 0 {
		t.Errorf("the upstream saw\n%s", <-requests)
	}
	g.wants(used{refused: 8})
	g.load(keyK("requests_per_day 1", "allowed_ips 127.0.0.0/8 ::1"), site)
	g.chat().ok(200) // of which none was taken
}

// Calls that cannot be metered are refused to keys under a token limit, their
// own or a group's, unless told otherwise.
func TestUnmetered(t *testing.T) {
	up := upstream(t, completes)
	const under = "group team {\n tokens_per_day 1M\n}\n"
	for _, c := range []struct {
		name, options, option string
		refused               bool
	}{
		{"quota", keyK("quota 1M monthly"), "", true},
		{"of the group", under + keyK("group team"), "unmetered deny", true},
		{"no token limit", keyK("requests_per_day 100"), "", false},
		{"allowed", keyK("quota 1M monthly"), "unmetered allow", false},
		{"observed", keyK("quota 1M monthly"), "admission observe", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := startGate(t, c.options, proxy(up, c.option))
			r := g.do("POST", "/v1/batches", `{"input_file_id":"f","endpoint":"/v1/chat/completions"}`)
			if c.refused {
				r.refused(403, "unmetered_call")
			} else {
				r.ok(200)
			}
			g.chat().ok(200)
		})
	}
}
