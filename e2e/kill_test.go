package e2e

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// What each answer of the provider in TestKill reports.
const killInput, killOutput = 20, 30

// TestKill kills the gate with SIGKILL under load, several times, and checks
// after each start what it still knows: all that callers saw finished, each
// call that was open charged once at what was reserved for it, and no call
// lost or counted twice. CHAOS=<n> is the number of rounds.
func TestKill(t *testing.T) {
	rounds := chaosRounds(3)
	var arrived [2]atomic.Int64 // requests that reached the provider, by kind
	hold := make(chan struct{})
	provider := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the gate died while it sent it
		}
		if strings.Contains(string(body), `"hold"`) {
			<-hold
		}
		if strings.Contains(string(body), `"stream":true`) {
			arrived[streamed].Add(1)
			killStream(w)
			return
		}
		arrived[whole].Add(1)
		time.Sleep(rand.N(10 * time.Millisecond))
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"choices":[{"index":0,"message":{"role":"assistant","content":"Two gates."}}],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}`, killInput, killOutput, killInput+killOutput)
	}))
	defer provider.Close()

	g := newGate(t, provider.URL, `
		group team {
			quota 1G manual
		}
		key load {
			secret lq-secret-of-the-load
			group team
			quota 1G manual
			requests_per_day 1M
			tokens_per_minute 1G
		}
		key probe {
			secret lq-secret-of-the-probe
			quota 1G manual
		}`, "")

	// What is reserved for one call, as a call that is held shows.
	reserved := make([]int64, 2)
	for kind := range reserved {
		done := make(chan bool)
		go func() { done <- killCall(g.url, "lq-secret-of-the-probe", kind, "hold", nil) }()
		for reserved[kind] == 0 {
			reserved[kind] = g.key("name:probe").State.Quota.Reserved
		}
		hold <- struct{}{}
		if !<-done {
			t.Fatal("a call failed before anything was killed")
		}
		g.settled()
	}
	if reserved[whole] < killInput+killOutput || reserved[streamed] < killInput+killOutput {
		t.Fatalf("%v tokens were reserved, fewer than answers use: the test proves nothing", reserved)
	}
	for i := range arrived {
		arrived[i].Store(0)
	}

	load := killLoad{start: time.Now()}
	id := g.key("name:load").ID
	for round := range rounds {
		load.run(g, 300*time.Millisecond+rand.N(700*time.Millisecond))
		g.start()
		first := load.check(t, g, id, reserved, &arrived)
		if round%2 == 1 {
			continue
		}
		// What was charged at this start is not charged again at the next, be
		// the process stopped or killed in between.
		if round%4 == 0 {
			g.stop()
		} else {
			g.kill()
		}
		g.start()
		if again := load.check(t, g, id, reserved, &arrived); again != first {
			t.Errorf("after another start the ledger has\n%+v, had\n%+v", again, first)
		}
	}
	load.tally(t, g, g.usage(id), reserved, &arrived)
	t.Logf("%d rounds: %d calls began, %d were seen to end, %d reached the provider",
		rounds, load.sum(&load.began), load.sum(&load.ended), arrived[whole].Load()+arrived[streamed].Load())
}

const whole, streamed = 0, 1 // kinds of call

var killModels = [...]string{"kill-whole", "kill-streamed"}

// killStream answers with a stream that takes some 30 ms.
func killStream(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/event-stream")
	send := func(s string) {
		io.WriteString(w, "data: "+s+"\n\n") //nolint:errcheck // the gate may be dead
		w.(http.Flusher).Flush()
	}
	for range 10 {
		send(`{"choices":[{"index":0,"delta":{"content":"gate "}}]}`)
		time.Sleep(3 * time.Millisecond)
	}
	send(fmt.Sprintf(`{"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}}`, killInput, killOutput, killInput+killOutput))
	send("[DONE]")
}

// killCall makes one call and tells whether it was seen to end well. refused
// counts refusals, if it is there.
func killCall(url, secret string, kind int, word string, refused *atomic.Int64) bool {
	body := fmt.Sprintf(`{"model":%q,"max_tokens":100,"messages":[{"role":"user","content":%q}]`, killModels[kind], word)
	if kind == streamed {
		body += `,"stream":true`
	}
	r, err := http.NewRequest(http.MethodPost, url+"/v1/chat/completions", strings.NewReader(body+"}"))
	if err != nil {
		return false
	}
	r.Header.Set("Authorization", "Bearer "+secret)
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		if refused != nil && resp.StatusCode < 500 {
			refused.Add(1)
		}
		return false
	}
	last := ""
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if lines.Text() != "" {
			last = lines.Text()
		}
	}
	if kind == streamed {
		return lines.Err() == nil && last == "data: [DONE]"
	}
	return lines.Err() == nil && strings.HasSuffix(last, "}}")
}

// killLoad is what callers know of the calls they made.
type killLoad struct {
	began, ended [2]atomic.Int64 // by kind
	refused      atomic.Int64
	rounds       int64
	start        time.Time
}

// killWorkers is how many calls are under way at a time.
const killWorkers = 16

// run makes calls all the time, and kills the gate after a while.
func (l *killLoad) run(g *gate, after time.Duration) {
	l.rounds++
	var workers sync.WaitGroup
	stop := make(chan struct{})
	for range killWorkers {
		workers.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				kind := n % 2
				l.began[kind].Add(1)
				if killCall(g.url, "lq-secret-of-the-load", kind, "work", &l.refused) {
					l.ended[kind].Add(1)
				}
			}
		})
	}
	time.Sleep(after)
	close(stop) // no call begins after the kill, but those under way meet it
	g.kill()
	workers.Wait()
}

func (l *killLoad) sum(of *[2]atomic.Int64) int64 { return of[whole].Load() + of[streamed].Load() }

// check compares the ledger with what callers and the provider saw, and
// returns it.
func (l *killLoad) check(t *testing.T, g *gate, id string, reserved []int64, arrived *[2]atomic.Int64) totals {
	t.Helper()
	if n := l.refused.Load(); n > 0 {
		t.Fatalf("%d calls were refused", n)
	}
	u := g.usage(id)
	for kind, model := range killModels {
		of := u.model(model)
		began, ended, reached := l.began[kind].Load(), l.ended[kind].Load(), arrived[kind].Load()
		if of.Requests < reached || of.Requests > began {
			t.Errorf("%s: %d requests, but %d reached the provider and %d began", model, of.Requests, reached, began)
		}
		if good := of.Requests - of.Failed; good < ended {
			t.Errorf("%s: %d calls ended well, but callers saw %d", model, good, ended)
		}
		if of.Failed > l.rounds*killWorkers {
			t.Errorf("%s: %d calls failed, but no more than %d were open at the kills", model, of.Failed, l.rounds*killWorkers)
		}
		if of.Estimated != of.Failed*reserved[kind] {
			t.Errorf("%s: %d tokens are estimated, want %d for each of %d open calls", model, of.Estimated, reserved[kind], of.Failed)
		}
		if want := (of.Requests-of.Failed)*(killInput+killOutput) + of.Estimated; of.Total != want {
			t.Errorf("%s: %d tokens are charged, want %d", model, of.Total, want)
		}
	}
	if u.Totals.Refused != 0 {
		t.Errorf("%d refusals, but callers saw none", u.Totals.Refused)
	}
	state := g.key(id).State
	if q := state.Quota; q.Used != u.Totals.Total || q.Reserved != 0 {
		t.Errorf("the quota has %d used and %d reserved, want %d and 0", q.Used, q.Reserved, u.Totals.Total)
	}
	if n := state.Limits["requests_per_day"].Used; n != u.Totals.Requests && sameDay(l.start) {
		t.Errorf("requests_per_day has %d used, want %d", n, u.Totals.Requests)
	}
	if n := state.Limits["tokens_per_minute"].Used; n != u.Totals.Total && time.Since(l.start) < 55*time.Second {
		t.Errorf("tokens_per_minute has %d used, want %d", n, u.Totals.Total)
	}
	var group keyObject
	g.api(http.MethodGet, "/groups/name:team", nil, &group)
	if q := group.State.Quota; q.Used != u.Totals.Total || q.Reserved != 0 {
		t.Errorf("the group has %d used and %d reserved, want %d and 0", q.Used, q.Reserved, u.Totals.Total)
	}
	var s status
	if g.api(http.MethodGet, "/status", nil, &s); s.OpenReservations != 0 || !s.Store.Healthy {
		t.Errorf("the status is %+v", s)
	}
	return u.Totals
}

// tally adds what all rounds together have come to.
func (l *killLoad) tally(t *testing.T, g *gate, u usage, reserved []int64, arrived *[2]atomic.Int64) {
	t.Helper()
	settled := tally{rounds: l.rounds, faults: l.rounds}
	open := tally{rounds: l.rounds}
	for kind, model := range killModels {
		of := u.model(model)
		good := of.Requests - of.Failed
		settled.lost += max(l.ended[kind].Load()-good, 0)
		settled.doubled += max(of.Requests-l.began[kind].Load(), 0)
		settled.add(diff(good*(killInput+killOutput), of.Total-of.Estimated))
		open.faults += of.Failed
		open.lost += max(arrived[kind].Load()-of.Requests, 0)
		open.add(diff(of.Failed*reserved[kind], of.Estimated))
	}
	kept(t, "G3", tally{rounds: l.rounds, faults: l.rounds, leaked: g.differences()})
	kept(t, "G5", settled)
	kept(t, "G6", open)
}

// sameDay tells whether it is still the day of then, in UTC.
func sameDay(then time.Time) bool {
	return time.Now().UTC().YearDay() == then.UTC().YearDay()
}
