package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
	_ "time/tzdata"
)

// TestChaosReset lets quotas of every kind of period and of several zones be
// spent, kills the gate, and starts it when all of them have come to their end
// meanwhile. Each is reset once: not again at the start after that. It waits
// for the clock, and so runs with CHAOS only.
func TestChaosReset(t *testing.T) {
	if !chaosLong() {
		t.Skip("it takes more than a minute: run it with CHAOS=1")
	}
	provider := newChaosProvider(t)
	// The minute at which all quotas end, with time to spend them before.
	end := time.Now().Add(20 * time.Second).Truncate(time.Minute).Add(time.Minute)
	var keys strings.Builder
	var loads []*chaosLoad
	for _, name := range []string{"UTC", "Asia/Kathmandu", "America/St_Johns", "America/New_York", "Pacific/Auckland"} {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		local := end.In(zone)
		for period, option := range map[string]string{
			"daily":   "",
			"weekly":  "week_start " + strings.ToLower(local.Weekday().String()),
			"monthly": fmt.Sprintf("month_day %d", local.Day()),
		} {
			key := strings.ReplaceAll(name, "/", "-") + "-" + period
			fmt.Fprintf(&keys, "key %s {\nsecret lq-secret-of-the-key-%s\nquota 300 %s {\ntime_zone %s\nat %s\n%s\n}\n}\n", key, key, period, name, local.Format("15:04"), option)
			loads = append(loads, &chaosLoad{chaosCall: chaosCall{secret: "lq-secret-of-the-key-" + key, model: key}})
		}
	}
	g := newGate(t, provider.URL, keys.String(), "")
	spent := make([]int64, len(loads))
	for i, l := range loads {
		l.url = g.url
		if good, status, _ := l.some(20); good == 0 || status != 429 {
			t.Fatalf("%s: %d calls were admitted, then %d", l.model, good, status)
		}
		spent[i] = l.tokens.Load()
	}
	g.kill()
	if !time.Now().Before(end) {
		t.Fatal("the machine is too slow: the quotas ended before they were spent")
	}
	time.Sleep(time.Until(end.Add(time.Second)))
	g.start()
	n := tally{rounds: int64(len(loads)), faults: int64(len(loads))}
	check := func(when string) {
		t.Helper()
		for i, l := range loads {
			k := g.key("name:" + l.model)
			fresh := l.tokens.Load() - spent[i]
			n.lost += max(k.State.Quota.Used-fresh, 0) // not reset
			n.doubled += max(fresh-k.State.Quota.Used, 0)
			if k.State.Quota.Used != fresh {
				t.Errorf("%s, %s: the quota has %d used, want %d", l.model, when, k.State.Quota.Used, fresh)
			}
		}
	}
	check("after its end")
	for _, l := range loads {
		if good, status, code := l.some(1); good != 1 {
			t.Errorf("%s: in the new period a call is answered %d %s", l.model, status, code)
			n.lost++
		}
	}
	n.add(exact(t, g.process, provider, loads))
	check("after a call in the new period")
	for range 2 {
		g.kill()
		g.start()
		check("after another start")
	}
	n.add(exact(t, g.process, provider, loads))
	kept(t, "G10", n)
}
