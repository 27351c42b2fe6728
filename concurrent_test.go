package llmquota

import (
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Two keys of one group, a thousand calls at once: at no moment is more taken
// than any limit allows, and what is refused is charged nothing.
func TestThousandCallsAtOnce(t *testing.T) {
	const (
		calls, each            = 1000, 5 // tokens: the estimate of what chatBody brings in
		ofKey, ofGroup   int64 = 1003, 1503
		secretA, secretB       = "test-secret-of-the-key-a", "test-secret-of-the-key-b"
	)
	up := upstream(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) //nolint:errcheck // what came does not matter
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, answer(each, 0)) //nolint:errcheck // nor whether anybody listens
	})
	g := startGate(t, fmt.Sprintf("group team {\n quota %d monthly\n}\n", ofGroup)+
		fmt.Sprintf("key a {\n secret %s\n group team\n quota %d monthly\n}\n", secretA, ofKey)+
		fmt.Sprintf("key b {\n secret %s\n group team\n quota %d monthly\n}\n", secretB, ofKey), proxy(up))
	l := g.ledger()
	accounts := map[quota.ID]int64{}
	for _, a := range []struct {
		kind quota.Kind
		name string
		max  int64
	}{{quota.KindKey, "a", ofKey}, {quota.KindKey, "b", ofKey}, {quota.KindGroup, "team", ofGroup}} {
		id, err := l.Find(a.kind, a.name)
		if err != nil {
			t.Fatal(err)
		}
		accounts[id] = a.max
	}
	look := func() {
		for id, most := range accounts {
			s, err := l.State(time.Now(), id)
			if err != nil {
				t.Error(err)
				continue
			}
			if q := s.Limits[0]; q.Used+q.Reserved > most {
				t.Errorf("%s: used %d and reserved %d, of %d", id, q.Used, q.Reserved, most)
			}
		}
	}
	var admitted, refused [2]atomic.Int64
	secrets := [2]string{secretA, secretB}
	work := make(chan int)
	var callers, watcher sync.WaitGroup
	for range 64 {
		callers.Go(func() {
			for i := range work {
				switch r := g.chat("Authorization", "Bearer "+secrets[i%2]); r.status {
				case 200:
					admitted[i%2].Add(1)
				case 429:
					refused[i%2].Add(1)
				default:
					t.Errorf("status %d: %s", r.status, r.body)
				}
			}
		})
	}
	done := make(chan struct{})
	watcher.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				look()
			}
		}
	})
	for i := range calls {
		work <- i
	}
	close(work)
	callers.Wait()
	close(done)
	watcher.Wait()

	// What was refused only because others were under way fits now.
	for i := range secrets {
		for g.chat("Authorization", "Bearer "+secrets[i]).status == 200 {
			admitted[i].Add(1)
			g.usage("")
		}
		refused[i].Add(1)
	}
	look()
	if sum := each * (admitted[0].Load() + admitted[1].Load()); sum != ofGroup-ofGroup%each {
		t.Errorf("%d tokens were admitted, of %d", sum, ofGroup)
	}
	report := g.usage("by=key")
	var sum quota.Totals
	for _, line := range report.Breakdown {
		sum.Add(&line.Totals)
	}
	group := g.usage("group=name:team").Totals
	if sum != group || sum != report.Totals {
		t.Errorf("the keys used %+v, the group %+v, all %+v", sum, group, report.Totals)
	}
	for i, name := range []string{"a", "b"} {
		k := g.key(name)
		n := g.usage("key=name:" + name).Totals
		if n.Requests != admitted[i].Load() || n.Refused != refused[i].Load() || n.Total != each*n.Requests || k.State.Quota.Used != n.Total || k.State.Quota.Reserved != 0 || n.Failed+n.Estimated != 0 {
			t.Errorf("%s: %d admitted, %d refused; usage %+v, state %+v", name, admitted[i].Load(), refused[i].Load(), n, k.State.Quota)
		}
	}
}
