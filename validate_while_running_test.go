package llmquota

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// `caddy validate` provisions the configuration, beside a server that runs on
// the same data directory.
func TestValidateWhileRunning(t *testing.T) {
	up := upstream(t, completes)
	g := startGate(t, keyK("quota 1000 monthly"), proxy(up))
	g.chat().ok(200)
	g.wants(used{requests: 1, input: 11, output: 7})
	for range 3 {
		if err := validate(adapt(t, g.caddyfile(keyK("quota 1 monthly")+"group new {\n}\n", proxy(up)))); err != nil {
			t.Fatal(err)
		}
	}
	if refs, _ := books.References(g.dir); refs != 1 {
		t.Errorf("%d references to the store, want 1", refs)
	}
	g.chat().ok(200)
	g.wants(used{requests: 2, input: 22, output: 14})
	if n, _ := g.key("k").Quota.Tokens.Max(); n != 1000 {
		t.Errorf("the validated quota of %d was applied", n)
	}
	g.api("GET", "/llm_quota/groups/name:new", "").ok(404)
}

// What was only validated has opened nothing, and made nothing.
func TestValidateOpensNothing(t *testing.T) {
	g := newGate(t)
	if err := validate(adapt(t, g.caddyfile(keyK(), "llm_quota"))); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(g.dir); !os.IsNotExist(err) {
		t.Errorf("the store's directory: %v", err)
	}
	if dir, err := new(BadgerStore).Location(); err != nil || dir != filepath.Join(caddy.AppDataDir(), "llm_quota") {
		t.Errorf("the default directory is %s, %v", dir, err)
	}
}
