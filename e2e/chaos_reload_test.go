package e2e

import (
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestChaosReload changes the configuration again and again under load, and
// compares the gate with a bare site of the same process, which takes the same
// load. Connections that the system drops when a reload closes their socket
// are bare Caddy's, too; beyond that no call may fail.
func TestChaosReload(t *testing.T) {
	const every = 600 * time.Millisecond
	rounds := chaosRounds(6)
	provider := newChaosProvider(t)
	at := freeAddresses(t, 3)
	config := func(round int) string {
		return caddyfile(at[0], at[1], provider.URL, fmt.Sprintf(`
		group team {
			quota %dG manual
			requests_per_minute %d
		}
		key load {
			secret lq-secret-of-the-load
			group team
			quota %dG manual
			tokens_per_minute %dM
		}
		key witness {
			secret lq-secret-of-the-witness
			requests_per_day %d
		}`, 1+round%3, 1_000_000+round, 1+round%2, 900+round, round), "llm_quota") +
			"http://" + at[2] + " {\n\treverse_proxy " + strings.TrimPrefix(provider.URL, "http://") + "\n}\n"
	}
	g := &gate{newProcess(t, config(0), at[0], at[1], at[2]), "http://" + at[1]}
	g.start()
	opened := opening(t, g.process)

	var gated, bare []*chaosLoad
	for _, fresh := range []bool{true, false} {
		for i, l := range append(chaosLoads(g, "lq-secret-of-the-load"), chaosLoads(g, "lq-secret-of-the-load")...) {
			l.fresh = fresh
			l.model += fmt.Sprintf("-fresh=%t", fresh)
			if i < 2 {
				gated = append(gated, l)
				continue
			}
			l.url, l.model = "http://"+at[2], "bare-"+l.model
			bare = append(bare, l)
		}
	}
	// A stream begins before each reload, and lasts over several.
	long := &chaosLoad{chaosCall: chaosCall{url: g.url, secret: "lq-secret-of-the-load", model: "chaos-long", stream: true, events: 40, wait: every / 10, fresh: true}}
	var streams sync.WaitGroup
	stop := runAll(append(gated, bare...), 2)
	for round := 1; round <= rounds; round++ {
		streams.Go(func() {
			for !long.one() { // its connection was dropped
			}
		})
		time.Sleep(every)
		text, status := config(round), http.StatusOK
		if round%10 == 5 { // one that fails once it is under way: the one before it goes on
			text, status = strings.Replace(text, "requests_per_day", "expires never\nrequests_per_day", 1), http.StatusBadRequest
		}
		if got, body := g.load(text); got != status {
			t.Errorf("reload %d: status %d, want %d: %s", round, got, status, body)
		}
		if n := g.key("name:witness").State.Limits["requests_per_day"].Remaining; status == http.StatusOK && n != int64(round) {
			t.Errorf("after reload %d the witness has %d requests left, want %d", round, n, round)
		}
	}
	stop()
	streams.Wait()

	n := exact(t, g.process, provider, append(gated, long))
	books := agree(t, g.process, "team", "load")
	failed, dropped := [2]int64{}, [2]float64{}
	for site, loads := range [][]*chaosLoad{gated, bare} {
		for _, l := range loads {
			failed[site] += l.refused.Load() + l.broken.Load()
			dropped[site] += float64(l.dropped.Load())
			t.Log(l)
		}
	}
	t.Log(long)
	n.lost += max(failed[0]-failed[1], 0) + int64(rounds) - long.ended.Load()
	// Who is dropped is chance: five standard deviations, so that it never is.
	if dropped[0] > dropped[1]+5*math.Sqrt(dropped[0]+dropped[1])+5 {
		t.Errorf("the gate dropped %v connections, bare Caddy %v", dropped[0], dropped[1])
		n.lost += int64(dropped[0] - dropped[1])
	}
	if again := opening(t, g.process); again != opened {
		t.Errorf("the store was opened again: %v, before %v", again, opened)
		n.doubled++
	}
	n.rounds, n.faults = int64(rounds), int64(rounds)
	kept(t, "G7", n)
	books.rounds, books.faults = n.rounds, n.faults
	kept(t, "G3", books)
}

// load loads a configuration, as `caddy reload` does.
func (p *process) load(text string) (status int, body string) {
	p.t.Helper()
	resp, err := http.Post("http://"+p.admin+"/load", "text/caddyfile", strings.NewReader(text))
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// opening names the opening of the store: Badger writes its lock file whenever
// it opens a database.
func opening(t *testing.T, p *process) time.Time {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(p.dir, "*", "llm_quota", "badger", "LOCK"))
	if err != nil || len(found) != 1 {
		t.Fatalf("found %d lock files of the store: %v", len(found), err)
	}
	info, err := os.Stat(found[0])
	if err != nil {
		t.Fatal(err)
	}
	return info.ModTime()
}
