package llmquota

import (
	"runtime"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// Nothing of this module or its store goes on when a configuration is gone.
// Caddy's own goroutines, such as those of its admin endpoint, are its affair.
func TestLoadAndUnloadLeaksNothing(t *testing.T) {
	up := upstream(t, completes)
	g := newGate(t)
	for i := range 6 {
		g.load(keyK(), proxy(up))
		g.chat().ok(200)
		if i%2 == 0 {
			g.load(keyK("quota 1M monthly"), proxy(up))
			g.chat().ok(200)
		}
		if i%3 == 0 {
			if err := g.tryLoad(keyK()+"time_zone Nowhere/City\n", proxy(up)); err == nil {
				t.Error("a bad zone was taken")
			}
		}
		if err := caddy.Stop(); err != nil {
			t.Fatal(err)
		}
		g.released(g.dir)
		g.client.CloseIdleConnections()
		var left []string
		g.until("nothing of ours runs any more", func() bool {
			left = left[:0]
			for _, s := range goroutines("llm-quota/caddy-llm-quota", "dgraph-io/") {
				if !strings.Contains(s, "testing.tRunner") && !strings.Contains(s, "httptest") && !strings.Contains(s, "os/signal") {
					left = append(left, s)
				}
			}
			if len(left) > 0 {
				runtime.Gosched()
			}
			return len(left) == 0
		})
	}
	g.load(keyK(), proxy(up))
	g.wants(used{requests: 9, input: 99, output: 63})
}
