package e2e

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// TestChaosFlood floods the gate with unknown keys, and with models and paths
// that nobody has named before. The first flood fills what is bounded; the
// second, much longer, may add nothing.
func TestChaosFlood(t *testing.T) {
	first, second := 2000, 6000
	if chaosLong() {
		second = 100_000
	}
	provider := newChaosProvider(t)
	g := newGate(t, provider.URL, `
		key known {
			secret lq-secret-of-the-known
			quota 1G manual
		}
		key refused {
			secret lq-secret-of-the-refused
			models gpt-*
		}`, "")
	// Known to the gate before the flood: unknown keys must not hold them back.
	for _, key := range []string{"known", "refused"} {
		if e := (&chaosCall{url: g.url, secret: "lq-secret-of-the-" + key, model: "gpt-4o"}).make(); !e.whole {
			t.Fatalf("the first call: %+v", e)
		}
	}
	flood(t, g, provider, first)
	heap, rss := g.memory()
	series, files := g.callersSeries(), size(t, g.dir)
	models := len(g.usage("").Breakdown)
	flood(t, g, provider, second)
	heap2, rss2 := g.memory()
	series2, files2, models2 := g.callersSeries(), size(t, g.dir), len(g.usage("").Breakdown)
	t.Logf("after %d and %d more hostile calls of each kind: heap %d and %d KiB, RSS %d and %d KiB, %d and %d series, %d and %d models, %d and %d KiB on disk",
		first, second, heap>>10, heap2>>10, rss>>10, rss2>>10, len(series), len(series2), models, models2, files>>10, files2>>10)
	n := tally{rounds: 1, faults: 4 * int64(first+second)}
	// A few megabytes are the noise of a collector; an entry for each call is not.
	if heap2 > heap+8<<20 || rss2 > rss+64<<20 {
		t.Errorf("the heap grew from %d to %d bytes, RSS from %d to %d", heap, heap2, rss, rss2)
		n.leaked++
	}
	for name := range series2 {
		if !series[name] {
			t.Errorf("a new series: %s", name)
			n.leaked++
		}
	}
	if len(series) > 1000 || models2 > 1000 || models2 > models {
		t.Errorf("%d series; the history names %d models, before %d", len(series), models2, models)
		n.leaked++
	}
	// The journal and Badger's own log turn over at some megabytes.
	if files2 > files+64<<20 {
		t.Errorf("%d bytes on disk, before %d", files2, files)
		n.leaked++
	}
	var keys struct {
		Keys []keyObject `json:"keys"`
	}
	if g.api(http.MethodGet, "/keys", nil, &keys); len(keys.Keys) != 2 {
		t.Errorf("there are %d keys, want 2", len(keys.Keys))
		n.leaked++
	}
	kept(t, "G11", n)
}

// flood makes that many hostile calls of each kind, and checks that they were
// answered as they should be.
func flood(t *testing.T, g *gate, provider *chaosProvider, count int) {
	t.Helper()
	var workers sync.WaitGroup
	var next, wrong atomic.Int64
	send := func(path, secret, model string, want ...int) {
		body := fmt.Sprintf(`{"model":%q,"max_tokens":10,"messages":[{"role":"user","content":"?"}]}`, model)
		r, err := http.NewRequest(http.MethodPost, g.url+path, strings.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		r.Header.Set("Authorization", "Bearer "+secret)
		resp, err := keptClient.Do(r)
		if err != nil {
			t.Error(err)
			return
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		for _, status := range want {
			if resp.StatusCode == status {
				return
			}
		}
		if wrong.Add(1) == 1 {
			t.Errorf("%s as %s with %s: %s", path, secret, model, resp.Status)
		}
	}
	for range 16 {
		workers.Go(func() {
			for next.Add(1) <= int64(count) {
				name := strconv.FormatUint(rand.Uint64(), 36)
				// An address that presents too many unknown keys is held back.
				send("/v1/chat/completions", "lq-secret-of-nobody-"+name, "gpt-4o", http.StatusUnauthorized, http.StatusTooManyRequests)
				send("/v1/chat/completions", "lq-secret-of-the-known", "model-"+name, http.StatusOK)
				send("/v1/chat/completions", "lq-secret-of-the-refused", "model-"+name, http.StatusForbidden)
				send("/"+name+"/v1/"+name, "lq-secret-of-the-known", "", http.StatusOK)
			}
		})
	}
	workers.Wait()
	provider.forget()
}

// forget drops what the provider saw, which is its own to remember.
func (p *chaosProvider) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.seen)
}

// memory returns the bytes that live on the heap, after a collection, and those
// that the process has of the system.
func (p *process) memory() (heap, rss int64) {
	p.t.Helper()
	for range 2 { // what the first collection finds unused, the second frees
		resp, err := http.Get("http://" + p.admin + "/debug/pprof/heap?gc=1")
		if err != nil {
			p.t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	live, n := p.metric("go_memstats_heap_alloc_bytes")
	resident, m := p.metric("process_resident_memory_bytes")
	if n != 1 || m != 1 {
		p.t.Fatal("Caddy tells nothing of its memory")
	}
	return int64(live), int64(resident)
}

// callersSeries returns the gate's series of metrics, but for those of the
// store's operations, in which callers have no part.
func (p *process) callersSeries() map[string]bool {
	p.t.Helper()
	resp, err := http.Get("http://" + p.admin + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	all := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "caddy_llm_quota_") && !strings.HasPrefix(line, "caddy_llm_quota_store_op_") {
			all[line[:strings.LastIndexByte(line, ' ')]] = true
		}
	}
	if len(all) == 0 {
		p.t.Fatal("no metrics of the gate")
	}
	return all
}

// size returns what the store takes on disk, where sparse files take less than
// they seem to.
func size(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.Walk(filepath.Join(dir, "caddy", "llm_quota"), func(_ string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return nil // a file may go while we look
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			n += st.Blocks * 512
		}
		return nil
	})
	if err != nil || n == 0 {
		t.Fatalf("the store takes %d bytes: %v", n, err)
	}
	return n
}
