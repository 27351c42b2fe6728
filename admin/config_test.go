package admin

import (
	"strings"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// configure applies a configuration.
func (b *bench) configure(c ledger.Config) {
	b.Helper()
	resolved, err := c.Resolve(func(s string) (string, error) { return s, nil })
	if err != nil {
		b.Fatal(err)
	}
	if err := b.ledger.Configure(b.now, resolved); err != nil {
		b.Fatal(err)
	}
}

func TestConfiguredKey(t *testing.T) {
	b := newBench(t)
	c := ledger.Config{
		Groups: []ledger.ConfigGroup{{Name: "g"}},
		Keys: []ledger.ConfigKey{{Name: "k", Group: "g", Secret: "sk-configured-0123456789", KeyRules: quota.KeyRules{
			Quota: &quota.Quota{Tokens: quota.At(100), Reset: quota.ResetDaily},
		}}},
	}
	b.configure(c)
	path := "/llm_quota/keys/name:k"
	k := read[Key](b.do("GET", path, "").ok(200))
	if k.Source != quota.SourceConfig || k.Disabled {
		t.Errorf("%+v", k)
	}
	for _, field := range []string{`"name":"x"`, `"group":null`, `"models":[]`, `"quota":null`, `"limits":{}`, `"metadata":{}`, `"expires_at":null`} {
		name, _, _ := strings.Cut(field[1:], `"`)
		b.do("PATCH", path, `{"disabled":true,`+field+`}`).fails(409, name)
	}
	b.do("PATCH", path, `{"oops":1}`).fails(400, "oops")
	b.do("PATCH", path, `{"disabled":3}`).fails(400, "disabled")
	b.do("DELETE", path, "").fails(409)
	b.do("POST", path+"/rotate", "").fails(409)
	b.do("POST", path+"/reset", "").ok(200)
	b.do("POST", path+"/grant", `{"tokens":7}`).ok(200)
	b.do("PATCH", path, `{"disabled":true}`).ok(200)
	b.configure(c)
	if k = read[Key](b.do("GET", path, "")); !k.Disabled || k.State.Quota.Granted != 7 {
		t.Errorf("a reload undid the API: %+v", k)
	}
	b.do("PATCH", path, `{"disabled":false}`).ok(200)

	c.Keys = nil
	b.configure(c)
	if k = read[Key](b.do("GET", path, "").ok(200)); !k.Disabled {
		t.Error("a removed key is not shown as disabled")
	}
	if got := read[Keys](b.do("GET", "/llm_quota/keys?status=disabled", "").ok(200)); len(got.Keys) != 1 {
		t.Error("a removed key is not listed as disabled")
	}
	b.do("PATCH", path, `{"disabled":false}`).fails(409, "disabled")
	b.do("DELETE", path, "").ok(204)
}

func TestConfiguredGroup(t *testing.T) {
	b := newBench(t)
	b.configure(ledger.Config{Groups: []ledger.ConfigGroup{{Name: "g", GroupRules: quota.GroupRules{Quota: &quota.Quota{Tokens: quota.At(9), Reset: quota.ResetDaily}}}}})
	path := "/llm_quota/groups/name:g"
	for _, field := range []string{"name", "parent", "quota", "limits", "member", "metadata", "alert_at"} {
		b.do("PATCH", path, `{"`+field+`":null}`).fails(409, field)
	}
	b.do("PATCH", path, `{"x":null}`).fails(400, "x")
	b.do("DELETE", path+"?force=true", "").fails(409)
	b.do("POST", path+"/grant", `{"tokens":1}`).ok(200)
	b.do("POST", path+"/reset", "").ok(200)
	b.newKey(`{"name":"k","group":"name:g"}`)
	b.configure(ledger.Config{})
	b.do("DELETE", path, "").fails(409)
	b.do("DELETE", path+"?force=true", "").ok(204)
}
