package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// storePolicies are what on_store_error can say of a kind of limit.
var storePolicies = [...]string{"allow", "deny", "local"}

// policyKeys returns keys for one combination of policies, each with limits of
// one kind, of both, and of none. Nothing of them is used before.
func policyKeys(combination int) string {
	var keys strings.Builder
	for kind, limits := range map[string]string{
		"rates":  "requests_per_minute 3",
		"quotas": "quota 300 manual\nrequests_per_day 100",
		"day":    "requests_per_day 3",
		"both":   "requests_per_minute 3\nrequests_per_day 5",
		"none":   "",
	} {
		fmt.Fprintf(&keys, "key %s-%d {\nsecret lq-secret-of-the-%s-%d\n%s\n}\n", kind, combination, kind, combination, limits)
	}
	return keys.String()
}

// TestChaosStorePolicies fills the store's disk and has each combination of
// on_store_error loaded while it is full. What calls were admitted meanwhile
// counts when there is room again, once, and all limits hold.
func TestChaosStorePolicies(t *testing.T) {
	disk := newSmallDisk(t, 256)
	provider := newChaosProvider(t)
	var keys strings.Builder
	combinations := len(storePolicies) * len(storePolicies)
	for i := range combinations {
		keys.WriteString(policyKeys(i))
	}
	at := freeAddresses(t, 2)
	config := func(rates, quotas string) string {
		return caddyfile(at[0], at[1], provider.URL, fmt.Sprintf("store badger %s\non_store_error {\nrate_limits %s\nquotas %s\n}\n%s",
			filepath.Join(disk.dir, "store"), rates, quotas, keys.String()), "llm_quota")
	}
	g := &gate{newProcess(t, config("local", "local"), at[0], at[1]), "http://" + at[1]}
	g.start()
	loads := map[string]*chaosLoad{}
	var all []*chaosLoad
	for _, c := range storeFailures {
		l := &chaosLoad{chaosCall: chaosCall{url: g.url, model: "chaos-" + c.kind}}
		loads[c.kind], all = l, append(all, l)
	}
	n := tally{faults: 1}
	disk.fill(time.Second)
	// Somebody has to call, for the gate to find that it cannot write.
	loads["none"].secret = "lq-secret-of-the-none-0"
	loads["none"].some(1)
	g.healthy(false)
	for i := range combinations {
		rates, quotas := storePolicies[i/len(storePolicies)], storePolicies[i%len(storePolicies)]
		if status, body := g.load(config(rates, quotas)); status != http.StatusOK {
			t.Fatalf("loading a configuration while the disk is full: %d %s", status, body)
		}
		n.rounds++
		for _, c := range storeFailures {
			l := loads[c.kind]
			l.secret = fmt.Sprintf("lq-secret-of-the-%s-%d", c.kind, i)
			good, status, code := l.some(c.calls)
			least, most, refusal := c.expected(rates, quotas)
			if good < least || good > most || good < c.calls && status != refusal || (status == http.StatusServiceUnavailable) != (code == "quota_store_unavailable") {
				t.Errorf("rate_limits %s, quotas %s: of %d calls under %s %d were admitted, want %d to %d; the last refusal is %d %s, want %d",
					rates, quotas, c.calls, c.kind, good, least, most, status, code, refusal)
				n.lost += int64(max(least-good, 0))
				n.leaked += int64(max(good-most, 0))
			}
		}
	}
	if good, status, _ := loads["none"].some(1); good != 1 {
		t.Errorf("a call without limits is answered %d", status)
	}
	disk.empty()
	g.healthy(true)
	for kind, l := range loads { // all limits hold again
		l.secret = fmt.Sprintf("lq-secret-of-the-%s-0", kind) // which allowed all
		if good, status, _ := l.some(1); kind != "none" && (good != 0 || status != 429) {
			t.Errorf("with room on the disk, a call beyond the limits of %s is answered %d", kind, status)
			n.leaked++
		}
	}
	n.add(exact(t, g.process, provider, all))
	g.kill()
	g.start()
	n.add(exact(t, g.process, provider, all))
	kept(t, "G8", n)
}

// A storeFailure is how many calls a key of policyKeys makes while the store
// fails, and how many of them its limits of each kind admit; 0: it has none.
type storeFailure struct {
	kind          string
	calls         int
	rates, quotas int
}

var storeFailures = []storeFailure{
	{"rates", 6, 3, 0},
	{"quotas", 40, 0, 39}, // how many calls of different sizes fit is chance
	{"day", 6, 0, 3},
	{"both", 8, 3, 5},
	{"none", 3, 0, 0},
}

// expected returns how many calls are admitted under these policies, and the
// status of those that are not.
func (f *storeFailure) expected(rates, quotas string) (least, most, refusal int) {
	most = f.calls
	for _, limit := range [...]struct {
		policy string
		admits int
	}{{rates, f.rates}, {quotas, f.quotas}} {
		switch {
		case limit.admits == 0 || limit.policy == "allow":
		case limit.policy == "deny":
			return 0, 0, http.StatusServiceUnavailable
		default:
			most = min(most, limit.admits)
		}
	}
	least = most
	if f.kind == "quotas" && most < f.calls {
		least = 1
	}
	return least, most, http.StatusTooManyRequests
}
