package llmquota

import (
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/admin"
)

// A configuration that fails leaves the old one in force: for calls, for the
// admin endpoint, whose routes were made anew for it by then, and in the
// ledger, which has held the new one's keys for a moment if the app was started
// before what failed.
func TestFailedReload(t *testing.T) {
	occupied, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer occupied.Close()
	const other = "test-secret-of-another-key"
	added := "group extra {\n quota 5 daily\n}\nkey other {\n secret " + other + "\n}\n"
	up := upstream(t, completes)
	good := proxy(up)
	cases := []struct {
		name, options, site, wrong string
		times                      int
		move                       bool // to another store
	}{
		// Apps start in random order: often enough for both orders.
		{"listener", keyK("quota 1 daily", "group extra") + added, good + "}\nhttp://" + occupied.Addr().String() + " {\nrespond hi\n", "address already in use", 8, false},
		{"listener, with another store", keyK("quota 1 daily", "group extra") + added, good + "}\nhttp://" + occupied.Addr().String() + " {\nrespond hi\n", "address already in use", 8, true},
		{"provision", keyK("quota 1 daily") + added + "time_zone Nowhere/City\n", good, "Nowhere/City", 1, false},
		{"site", keyK("quota 1 daily") + added, proxy(up, "self_service nowhere"), "self_service", 1, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			g := startGate(t, "group team {\n quota 1M monthly\n}\n"+keyK("quota 1000 monthly", "group team"), good)
			g.chat().ok(200)
			app, key := g.app(), g.key("k")
			for range c.times {
				dir := g.dir
				if c.move {
					g.dir = filepath.Join(t.TempDir(), "other")
				}
				err := g.tryLoad(c.options, c.site)
				if c.move {
					g.released(g.dir)
				}
				g.dir = dir
				if err == nil || !strings.Contains(err.Error(), c.wrong) {
					t.Fatalf("the load ended with: %v", err)
				}
				if g.app() != app {
					t.Fatal("another app runs")
				}
				g.chat().ok(200)
				g.chat("Authorization", "Bearer "+other).ok(401)
				active := decode[admin.Keys](g.api("GET", "/llm_quota/keys?status=active", "").ok(200)).Keys
				if len(active) != 1 || active[0].ID != key.ID {
					t.Fatalf("active keys: %+v", active)
				}
				k := active[0]
				if n, _ := k.Quota.Tokens.Max(); n != 1000 || k.Group != key.Group || k.Source != "config" {
					t.Fatalf("the key is %+v, it was %+v", k, key)
				}
			}
			open := 0
			books.Range(func(_, _ any) bool { open++; return true })
			if refs, _ := books.References(g.dir); refs != 1 || open != 1 {
				t.Errorf("%d stores are open, with %d references to this one", open, refs)
			}
			if n := int64(c.times + 1); g.totals().requests != n || g.key("k").State.Quota.Used != 18*n {
				t.Errorf("used %+v, state %+v, after %d calls", g.totals(), g.key("k").State.Quota, n)
			}
			// And the next good one takes over.
			g.load(keyK("quota 2000 monthly")+added, good)
			g.chat("Authorization", "Bearer "+other).ok(200)
			names := []string{}
			for _, k := range decode[admin.Keys](g.api("GET", "/llm_quota/keys?status=active", "").ok(200)).Keys {
				names = append(names, k.Name)
			}
			if slices.Sort(names); !slices.Equal(names, []string{"k", "other"}) {
				t.Errorf("active keys: %v", names)
			}
		})
	}
}
