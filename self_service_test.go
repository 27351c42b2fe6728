package llmquota

import (
	"strings"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/admin"
)

// A key is told where it stands, also when nothing is left, and that is charged
// to no limit.
func TestSelfService(t *testing.T) {
	up := upstream(t, completes)
	key := keyK("quota 18 monthly", "requests_per_minute 3", "requests_per_day 3", "concurrent_requests 1", "metadata team secret-plans")
	g := startGate(t, key, proxy(up))
	me := func(path string) admin.Self {
		t.Helper()
		r := g.do("GET", path, "").ok(200)
		if strings.Contains(r.body, "secret-plans") || strings.Contains(r.body, "metadata") || strings.Contains(r.body, secret) {
			t.Errorf("it tells %s", r.body)
		}
		return decode[admin.Self](r)
	}
	for range 5 {
		s := me("/llm_quota/me")
		if s.Name != "k" || s.State.Quota.Used != 0 || s.State.Quota.Remaining != 18 || s.State.Limits["requests_per_minute"].Used != 0 || s.State.Limits["requests_per_day"].Used != 0 {
			t.Errorf("state %+v", s.State)
		}
	}
	g.wants(used{})
	g.chat().ok(200)
	g.wants(used{requests: 1, input: 11, output: 7})
	g.chat().refused(429, "insufficient_quota")
	s := me("/llm_quota/me?x=y")
	if q := s.State.Quota; q.Used != 18 || q.Remaining != 0 || s.Usage.Today.Total != 18 || s.Usage.Period == nil || s.Usage.Period.Total != 18 || s.Usage.Today.Refused != 1 {
		t.Errorf("state %+v, usage %+v", q, s.Usage)
	}
	if days := s.Usage.Days; len(days) != 30 || days[29].Totals.Total != 18 || days[29].Totals.Refused != 1 || days[28].Totals.Total != 0 {
		t.Errorf("by day %+v", days)
	}
	if m := s.Usage.Models; len(m) != 1 || m[0].Model == nil || *m[0].Model == "" || m[0].Totals.Total != 18 || m[0].Key != nil {
		t.Errorf("by model %+v", m)
	}
	if shown := g.key("k"); s.ID != shown.ID || s.Prefix != shown.Prefix || !s.CreatedAt.Equal(shown.CreatedAt) {
		t.Errorf("the key is told %+v, the operator %+v", s.Key, shown)
	}
	g.do("GET", "/llm_quota/me", "", "Authorization", "").refused(401, "invalid_api_key")
	g.do("POST", "/llm_quota/me", chatBody).refused(429, "insufficient_quota") // that is a call

	g.load(key, proxy(up, "self_service /whoami"))
	me("/whoami")
	g.load("key k {\n secret "+secret+"\n}\n", proxy(up, "self_service off"))
	if r := g.do("GET", "/llm_quota/me", "").ok(200); r.body != answer(11, 7) {
		t.Errorf("switched off, it answers %s", r.body)
	}
}
