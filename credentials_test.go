package llmquota

import (
	"net/http"
	"net/http/httputil"
	"strings"
	"testing"
)

// seenUpstream is a provider that tells what requests came to it.
func seenUpstream(t *testing.T) (string, chan string) {
	requests := make(chan string, 64)
	up := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		dump, err := httputil.DumpRequest(r, true)
		if err != nil {
			t.Error(err)
		}
		requests <- string(dump)
		completes(w, r)
	})
	return "reverse_proxy " + strings.TrimPrefix(up.URL, "http://") + "\n", requests
}

// Wherever the credential stands, it is found, and the upstream sees nothing
// of it, unless it is to be forwarded.
func TestCredentialPlaces(t *testing.T) {
	next, requests := seenUpstream(t)
	const none = ""
	places := []struct {
		name, path string
		headers    []string
	}{
		{"bearer", "/v1/chat/completions", []string{"Authorization", "Bearer " + secret}},
		{"bearer in lower case", "/v1/chat/completions", []string{"Authorization", "bearer  " + secret}},
		{"x-api-key", "/v1/chat/completions", []string{"Authorization", none, "X-Api-Key", secret}},
		{"api-key", "/v1/chat/completions", []string{"Authorization", none, "Api-Key", secret}},
		{"x-goog-api-key", "/v1/chat/completions", []string{"Authorization", none, "X-Goog-Api-Key", secret}},
		{"query", "/v1/chat/completions?a=1&key=" + secret + "&b=%202", []string{"Authorization", none}},
		{"query, escaped", "/v1/chat/completions?a=1&b=%202&%6bey=" + strings.ReplaceAll(secret, "-", "%2D"), []string{"Authorization", none}},
		{"the same in all places", "/v1/chat/completions?a=1&key=" + secret + "&b=%202", []string{"X-Api-Key", secret, "Api-Key", secret, "X-Goog-Api-Key", secret}},
		{"with empty ones", "/v1/chat/completions?a=1&key=&b=%202", []string{"X-Api-Key", secret, "Authorization", "Bearer "}},
	}
	g := startGate(t, keyK(), "llm_quota\n"+next)
	for _, p := range places {
		t.Run(p.name, func(t *testing.T) {
			g := *g
			g.TB = t
			g.do("POST", p.path, chatBody, p.headers...).ok(200)
			got := <-requests
			low := strings.ToLower(got)
			for _, trace := range []string{"test-secret", "test%2d", "authorization:", "api-key:", "key="} {
				if strings.Contains(low, trace) {
					t.Errorf("the upstream sees %q in\n%s", trace, got)
				}
			}
			if strings.Contains(p.path, "?") && !strings.Contains(got, "?a=1&b=%202 ") {
				t.Errorf("the rest of the query is not as it was:\n%s", got)
			}
			if !strings.HasSuffix(got, "\r\n\r\n"+chatBody) {
				t.Errorf("the body is not as it was:\n%s", got)
			}
		})
	}
	g.load(keyK(), "llm_quota {\nforward_credential\n}\n"+next)
	for _, p := range places {
		t.Run(p.name+", forwarded", func(t *testing.T) {
			g := *g
			g.TB = t
			r := g.request("POST", p.path, chatBody, p.headers...)
			g.send(r).ok(200)
			got := <-requests
			if !strings.HasPrefix(got, "POST "+p.path+" ") {
				t.Errorf("the query is not as it was:\n%s", got)
			}
			for name, values := range r.Header {
				if !strings.Contains(got, name+": "+strings.TrimSpace(values[0])) {
					t.Errorf("the upstream does not see %s: %s\n%s", name, values, got)
				}
			}
		})
	}
}

func TestCredentialRefusals(t *testing.T) {
	next, requests := seenUpstream(t)
	const other = "some-other-secret-of-nobody"
	g := startGate(t, keyK()+"key off {\n secret test-secret-of-the-key-off\n expires 2020-01-01\n}\n", "llm_quota\n"+next)
	cases := []struct {
		name, path string
		headers    []string
		status     int
		code       string
	}{
		{"none", "/v1/chat/completions", []string{"Authorization", ""}, 401, "invalid_api_key"},
		{"unknown", "/v1/chat/completions", []string{"Authorization", "Bearer " + other}, 401, "invalid_api_key"},
		{"another scheme", "/v1/chat/completions", []string{"Authorization", "Basic dGVzdDp0ZXN0"}, 401, "invalid_api_key"},
		{"no visible ASCII", "/v1/chat/completions", []string{"Authorization", "", "X-Api-Key", secret + "\u00e4"}, 401, "invalid_api_key"},
		{"too long", "/v1/chat/completions", []string{"Authorization", "Bearer " + strings.Repeat("x", 513)}, 401, "invalid_api_key"},
		{"expired", "/v1/chat/completions", []string{"Authorization", "Bearer test-secret-of-the-key-off"}, 401, "api_key_expired"},
		{"two that differ", "/v1/chat/completions", []string{"X-Api-Key", other}, 400, "ambiguous_credential"},
		{"header and query that differ", "/v1/chat/completions?key=" + other, nil, 400, "ambiguous_credential"},
		{"twice in the query", "/v1/chat/completions?key=" + secret + "&key=" + other, []string{"Authorization", ""}, 400, "ambiguous_credential"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			g := *g
			g.TB = t
			g.do("POST", c.path, chatBody, c.headers...).refused(c.status, c.code)
		})
	}
	t.Run("one header twice", func(t *testing.T) {
		g := *g
		g.TB = t
		r := g.request("POST", "/v1/chat/completions", chatBody)
		r.Header.Add("Authorization", "Bearer "+secret)
		g.send(r).refused(400, "ambiguous_credential")
	})
	t.Run("in Anthropic's words", func(t *testing.T) {
		g := *g
		g.TB = t
		r := g.do("POST", "/v1/messages", `{"model":"claude-x","max_tokens":5,"messages":[]}`, "Authorization", "").ok(401)
		if !strings.Contains(r.body, `"type":"authentication_error"`) {
			t.Errorf("refused with %s", r.body)
		}
	})
	if len(requests) > 0 {
		t.Errorf("the upstream saw\n%s", <-requests)
	}
	g.wants(used{refused: 1}) // the expired key's; of nobody's there is no trace
}

func TestAnonymous(t *testing.T) {
	next, _ := seenUpstream(t)
	g := startGate(t, keyK()+"key guests {\n secret test-secret-of-the-guests\n requests_per_day 1\n}\n", "llm_quota {\nanonymous guests\n}\n"+next)
	g.chat("Authorization", "").ok(200)
	g.chat("Authorization", "").refused(429, "rate_limit_exceeded")
	g.chat().ok(200)
	g.chat("Authorization", "Bearer a-wrong-secret-of-nobody").refused(401, "invalid_api_key")
	if n := g.usage("key=name:guests").Totals; n.Requests != 1 || n.Refused != 1 {
		t.Errorf("the guests used %+v", n)
	}
}

func TestCredentialHeader(t *testing.T) {
	next, requests := seenUpstream(t)
	g := startGate(t, keyK(), "llm_quota {\ncredential header X-My-Key\n}\n"+next)
	g.chat().refused(401, "invalid_api_key") // Authorization is not asked
	g.chat("X-My-Key", secret, "Authorization", "Bearer of-the-upstream", "X-Api-Key", "also-the-upstreams").ok(200)
	got := <-requests
	if strings.Contains(got, secret) || !strings.Contains(got, "Bearer of-the-upstream") || !strings.Contains(got, "also-the-upstreams") {
		t.Errorf("the upstream sees\n%s", got)
	}
}

// bcryptOfPassword is the hash of "password", as cheap as they come.
const bcryptOfPassword = "$2b$04$abcdefghijklmnopqrstuughE8Ev8uGFaUgY2cNEySvxngrb/Jzdm"

// The caller was authenticated by another handler, and is found by name.
func TestIdentity(t *testing.T) {
	next, requests := seenUpstream(t)
	g := startGate(t, "key alice {\n secret test-secret-of-alice\n requests_per_day 1\n}\n",
		"basic_auth {\nalice "+bcryptOfPassword+"\nbob "+bcryptOfPassword+"\n}\nllm_quota {\nidentity {http.auth.user.id}\n}\n"+next)
	login := func(name string) *reply {
		r := g.request("POST", "/v1/chat/completions", chatBody)
		r.SetBasicAuth(name, "password")
		return g.send(r)
	}
	login("alice").ok(200)
	if got := <-requests; !strings.Contains(got, "Authorization: Basic ") {
		t.Errorf("what is not the gate's credential was taken away:\n%s", got)
	}
	login("alice").refused(429, "rate_limit_exceeded")
	login("bob").refused(401, "invalid_api_key") // known to Caddy, but no key
	if r := g.chat(); r.status != 401 || strings.Contains(r.body, "error") {
		t.Errorf("without a login: %d %s", r.status, r.body)
	}
}
