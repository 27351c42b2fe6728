package e2e

import (
	"net/http"
	"testing"
	"time"
)

// crowd is how many callers press upon one limit at a time.
const crowd = 100

// overrunKeys have one small limit each.
const overrunKeys = `
	group team {
		quota 30k manual
	}
	key quota {
		secret lq-secret-of-the-quota
		quota 20k manual
	}
	key one {
		secret lq-secret-of-the-one
		group team
	}
	key other {
		secret lq-secret-of-the-other
		group team
	}
	key requests {
		secret lq-secret-of-the-requests
		requests_per_minute 50
	}
	key tokens {
		secret lq-secret-of-the-tokens
		tokens_per_minute 5000
	}
	key concurrent {
		secret lq-secret-of-the-concurrent
		concurrent_requests 7
	}`

// press makes calls by a whole crowd until a thousand have been refused, most
// of them because others hold the rest, and then by one caller until nothing is
// left. The provider answers honestly: no more output than was asked for.
func press(t *testing.T, g *gate, keys ...string) []*chaosLoad {
	t.Helper()
	loads := make([]*chaosLoad, len(keys))
	for i, key := range keys {
		loads[i] = &chaosLoad{chaosCall: chaosCall{url: g.url, secret: "lq-secret-of-the-" + key, model: "press-" + key, wait: 2 * time.Millisecond}}
	}
	stop := runAll(loads, crowd/len(keys))
	defer stop()
	g.until("a thousand calls are refused", func() bool {
		var n int64
		for _, l := range loads {
			n += l.refused.Load()
		}
		return n >= 1000
	})
	stop()
	for _, l := range loads {
		for before := l.refused.Load(); l.refused.Load() == before && keys[0] != "concurrent"; {
			l.one()
		}
	}
	return loads
}

// TestChaosOverrun lets a crowd press upon small limits. What is used beyond a
// quota is no more than calls used beyond what was reserved for them, and no
// refusal charges anything.
func TestChaosOverrun(t *testing.T) {
	rounds := 1
	if chaosLong() {
		rounds = 10
	}
	for range rounds {
		overrun(t, "", false)
		overrun(t, "admission strict", true)
	}
}

func overrun(t *testing.T, handler string, strict bool) {
	provider := newChaosProvider(t)
	defer provider.Close()
	g := newGate(t, provider.URL, overrunKeys, handler)
	defer g.kill()
	beyond := func(keys ...string) (loads []*chaosLoad, used, overage int64) {
		t.Helper()
		before, _ := g.metric("caddy_llm_quota_overage_tokens_total")
		loads = press(t, g, keys...)
		n := exact(t, g.process, provider, loads)
		for _, l := range loads {
			used += l.tokens.Load()
			n.faults += l.refused.Load()
		}
		after, _ := g.metric("caddy_llm_quota_overage_tokens_total")
		n.rounds = 1
		kept(t, "G4", n)
		return loads, used, int64(after - before)
	}
	within := func(guarantee, what string, loads []*chaosLoad, used, most, overage int64) {
		t.Helper()
		t.Logf("%s: %d used of %d, %d beyond what was reserved (strict: %t)", what, used, most, overage, strict)
		if strict && overage != 0 {
			t.Errorf("%s: strict, but calls used %d tokens beyond what was reserved", what, overage)
		}
		if used < most/2 {
			t.Errorf("%s: only %d used of %d: the crowd did not press upon it", what, used, most)
		}
		n := tally{rounds: 1, leaked: max(used-most-overage, 0)}
		for _, l := range loads {
			n.faults += l.refused.Load()
		}
		kept(t, guarantee, n)
	}

	loads, used, overage := beyond("quota")
	within("G1", "quota of a key", loads, used, 20_000, overage)
	if q := g.key("name:quota").State.Quota; q.Used != used || q.Reserved != 0 {
		t.Errorf("the quota has %d used and %d reserved, want %d and 0", q.Used, q.Reserved, used)
	}
	loads, used, overage = beyond("one", "other")
	within("G1", "quota of a group", loads, used, 30_000, overage)
	var group keyObject
	g.api(http.MethodGet, "/groups/name:team", nil, &group)
	n := diff(used, group.State.Quota.Used)
	n.rounds, n.leaked = 1, group.State.Quota.Reserved+g.differences()
	kept(t, "G3", n)

	start := time.Now()
	loads, _, _ = beyond("requests")
	requests := provider.of(loads[0].model).arrived.Load()
	minutes := 1 + int64(time.Since(start)/time.Minute) // one, unless the machine stood still
	within("G2", "requests per minute", loads, requests, 50*minutes, 0)
	start = time.Now()
	loads, used, overage = beyond("tokens")
	minutes = 1 + int64(time.Since(start)/time.Minute)
	within("G2", "tokens per minute", loads, used, 5000*minutes, overage)

	loads, _, _ = beyond("concurrent")
	saw := provider.of(loads[0].model)
	within("G1", "concurrent requests", loads, saw.most.Load(), 7, 0)
}
