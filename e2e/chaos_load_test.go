package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidwall/gjson"
)

// A chaosProvider answers each call with a usage of its own, so that no call
// counted twice makes up for one that is lost. What it tells stands in the text
// of its answers, too, for callers who are not shown the usage of a stream.
type chaosProvider struct {
	*httptest.Server
	mu   sync.Mutex
	seen map[string]*providerSaw
}

// providerSaw is what the provider saw of one model.
type providerSaw struct {
	arrived atomic.Int64 // calls that reached it
	told    atomic.Int64 // calls that it answered to the end
	tokens  atomic.Int64 // what it told of these
	inside  atomic.Int64 // calls that are with it
	most    atomic.Int64 // that were with it at a time
}

// Headers that tell the provider how to answer.
const (
	eventsHeader = "X-Events" // of how many events a stream is
	waitHeader   = "X-Wait"   // how long to wait at each event, or before an answer, on average
)

func newChaosProvider(t *testing.T) *chaosProvider {
	p := &chaosProvider{seen: map[string]*providerSaw{}}
	p.Server = httptest.NewServer(p)
	t.Cleanup(p.Close)
	return p
}

// of returns what the provider saw of a model.
func (p *chaosProvider) of(model string) *providerSaw {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen[model] == nil {
		p.seen[model] = new(providerSaw)
	}
	return p.seen[model]
}

func (p *chaosProvider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	saw := p.of(gjson.GetBytes(body, "model").String())
	saw.arrived.Add(1)
	for inside := saw.inside.Add(1); ; {
		if most := saw.most.Load(); most >= inside || saw.most.CompareAndSwap(most, inside) {
			break
		}
	}
	defer saw.inside.Add(-1)
	input, output := 1+rand.Int64N(20), 1+rand.Int64N(max(gjson.GetBytes(body, "max_tokens").Int(), 1))
	usage := fmt.Sprintf(`"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}`, input, output, input+output)
	average, _ := time.ParseDuration(r.Header.Get(waitHeader))
	wait := func() { time.Sleep(time.Duration(rand.Float64() * 2 * float64(average))) }
	if !gjson.GetBytes(body, "stream").Bool() {
		wait()
		w.Header().Set("Content-Type", "application/json")
		_, err = fmt.Fprintf(w, `{"choices":[{"index":0,"message":{"role":"assistant","content":"tokens=%d."}}],%s}`, input+output, usage)
	} else {
		w.Header().Set("Content-Type", "text/event-stream")
		count, _ := strconv.Atoi(r.Header.Get(eventsHeader))
		send := func(s string) {
			if _, e := io.WriteString(w, "data: "+s+"\n\n"); err == nil {
				err = e
			}
			w.(http.Flusher).Flush()
		}
		for range count {
			send(`{"choices":[{"index":0,"delta":{"content":"gate "}}]}`)
			wait()
		}
		send(fmt.Sprintf(`{"choices":[{"index":0,"delta":{"content":"tokens=%d."}}]}`, input+output))
		send(`{"choices":[],` + usage + `}`)
		send("[DONE]")
	}
	if err == nil && r.Context().Err() == nil {
		saw.told.Add(1)
		saw.tokens.Add(input + output)
	}
}

// chaosCall is how a load makes its calls.
type chaosCall struct {
	url, secret string
	model       string
	stream      bool
	events      int
	wait        time.Duration
	fresh       bool // each over a connection of its own
	maxTokens   int  // 100 if it is 0
}

// ending is what a caller saw of one call.
type ending struct {
	status int  // 0: none came
	whole  bool // the answer came to its end
	tokens int64
	code   string // of a refusal
	err    error
}

var toldTokens = regexp.MustCompile(`tokens=(\d+)\.`)

// freshClient does not use a connection twice.
var freshClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// keptClient keeps as many connections as any load has workers.
var keptClient = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 128}}

// make makes one call.
func (c *chaosCall) make() (e ending) {
	most := c.maxTokens
	if most == 0 {
		most = 100
	}
	body := fmt.Sprintf(`{"model":%q,"max_tokens":%d,"messages":[{"role":"user","content":"How many gates are there?"}]`, c.model, most)
	if c.stream {
		body += `,"stream":true`
	}
	r, err := http.NewRequest(http.MethodPost, c.url+"/v1/chat/completions", strings.NewReader(body+"}"))
	if err != nil {
		return ending{err: err}
	}
	r.Header.Set("Authorization", "Bearer "+c.secret)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set(eventsHeader, strconv.Itoa(c.events))
	r.Header.Set(waitHeader, c.wait.String())
	client := keptClient
	if c.fresh {
		client = freshClient
	}
	resp, err := client.Do(r)
	if err != nil {
		return ending{err: err}
	}
	defer resp.Body.Close()
	e.status = resp.StatusCode
	last := ""
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if lines.Text() == "" {
			continue
		}
		last = lines.Text()
		if found := toldTokens.FindStringSubmatch(last); found != nil {
			e.tokens, _ = strconv.ParseInt(found[1], 10, 64)
		}
	}
	e.err, e.code = lines.Err(), gjson.Get(last, "error.code").String()
	e.whole = e.err == nil && e.status == http.StatusOK && (last == "data: [DONE]" || !c.stream && strings.HasSuffix(last, "}}"))
	return e
}

// A chaosLoad makes calls of one kind, and is what their callers saw.
type chaosLoad struct {
	chaosCall
	began   atomic.Int64
	ended   atomic.Int64 // whole answers
	tokens  atomic.Int64 // which these told
	refused atomic.Int64 // answers of another status than 200
	broken  atomic.Int64 // answers that did not come to their end
	dropped atomic.Int64 // no answer, as when a connection waits at a socket that is closed

	mu     sync.Mutex
	oddity string // the first refusal or broken answer
}

// one makes one call, and tells whether anybody took it.
func (l *chaosLoad) one() bool {
	l.began.Add(1)
	e := l.make()
	switch {
	case e.whole:
		l.ended.Add(1)
		l.tokens.Add(e.tokens)
		return true
	case e.status == 0:
		l.dropped.Add(1)
		return false
	case e.status != http.StatusOK:
		l.refused.Add(1)
	default:
		l.broken.Add(1)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.oddity == "" {
		l.oddity = fmt.Sprintf("%+v", e)
	}
	return true
}

// run makes calls, so many at a time, until stop is called, which returns when
// the last one has ended.
func (l *chaosLoad) run(workers int) (stop func()) {
	var under sync.WaitGroup
	quit := make(chan struct{})
	for range workers {
		under.Go(func() {
			for {
				select {
				case <-quit:
					return
				default:
				}
				l.one()
				time.Sleep(time.Millisecond)
			}
		})
	}
	return sync.OnceFunc(func() {
		close(quit)
		under.Wait()
	})
}

func (l *chaosLoad) String() string {
	return fmt.Sprintf("%s: %d began, %d ended well, %d refused, %d dropped, %d broken (the first %s)",
		l.model, l.began.Load(), l.ended.Load(), l.refused.Load(), l.dropped.Load(), l.broken.Load(), l.oddity)
}

// chaosLoads returns a load of whole answers and one of streams.
func chaosLoads(g *gate, secret string) []*chaosLoad {
	return []*chaosLoad{
		{chaosCall: chaosCall{url: g.url, secret: secret, model: "chaos-whole", wait: 5 * time.Millisecond}},
		{chaosCall: chaosCall{url: g.url, secret: secret, model: "chaos-streamed", stream: true, events: 5, wait: 5 * time.Millisecond}},
	}
}

// runAll runs loads at the same time.
func runAll(loads []*chaosLoad, workers int) (stop func()) {
	stops := make([]func(), len(loads))
	for i, l := range loads {
		stops[i] = l.run(workers)
	}
	return func() {
		for _, s := range stops {
			s()
		}
	}
}

// exact compares the ledger with what callers and the provider saw of loads
// during which nothing was cut off: each call that reached the provider is
// charged once, what it told, and its caller saw it end.
func exact(t *testing.T, p *process, provider *chaosProvider, loads []*chaosLoad) (n tally) {
	t.Helper()
	p.settled()
	u := p.usage("")
	for _, l := range loads {
		saw, of := provider.of(l.model), u.model(l.model)
		// What the ledger has may be shown a second later.
		for range 200 {
			if of.Requests == saw.arrived.Load() && of.Total == saw.tokens.Load() {
				break
			}
			time.Sleep(10 * time.Millisecond)
			u = p.usage("")
			of = u.model(l.model)
		}
		arrived, ended := saw.arrived.Load(), l.ended.Load()
		n.add(diff(arrived, of.Requests))
		n.add(diff(saw.tokens.Load(), of.Total))
		n.lost += arrived - ended + l.broken.Load()
		n.leaked += of.Failed + of.Estimated
		if arrived == 0 || ended == 0 {
			t.Errorf("%s: no call ended well: the test proves nothing", l.model)
		}
		if n != (tally{}) {
			t.Errorf("%s\nthe provider saw %d and told %d, %d tokens; the ledger has\n%+v", l, arrived, saw.told.Load(), saw.tokens.Load(), of)
		}
	}
	return n
}

// diff returns what is lost if there is less than due, and doubled if more.
func diff(due, have int64) tally {
	return tally{lost: max(due-have, 0), doubled: max(have-due, 0)}
}

func (n *tally) add(more tally) {
	n.lost += more.lost
	n.leaked += more.leaked
	n.doubled += more.doubled
}

// agree checks that the group has what its keys have spent in it, that all
// counters are what the history makes them, and that nothing is held for a call
// that is over.
func agree(t *testing.T, p *process, group string, keys ...string) (n tally) {
	t.Helper()
	var g keyObject
	p.api(http.MethodGet, "/groups/name:"+group, nil, &g)
	var used, shown int64
	for _, name := range keys {
		k := p.key("name:" + name)
		used += k.State.Quota.Used
		n.leaked += k.State.Quota.Reserved
		u := p.usage(k.ID)
		shown += u.Totals.Total
	}
	n.add(diff(used, g.State.Quota.Used))
	n.add(diff(shown, used))
	n.leaked += g.State.Quota.Reserved
	n.leaked += p.differences()
	if n != (tally{}) {
		t.Errorf("the group has %d used and %d reserved, its keys %d, the history %d", g.State.Quota.Used, g.State.Quota.Reserved, used, shown)
	}
	return n
}

// differences returns how many counters are not what the history makes them.
func (p *process) differences() int64 {
	p.t.Helper()
	var verified struct {
		OK          bool              `json:"ok"`
		Checked     int               `json:"checked"`
		Differences []json.RawMessage `json:"differences"`
	}
	p.api(http.MethodGet, "/verify", nil, &verified)
	if !verified.OK || verified.Checked == 0 {
		p.t.Errorf("of %d counters these differ from the history: %s", verified.Checked, verified.Differences)
	}
	return int64(len(verified.Differences))
}

// complaints returns the warnings and errors of the gate that were logged after
// so many bytes.
func (p *process) complaints(after int) (lines []string) {
	log := bufio.NewScanner(strings.NewReader(string(p.log()[after:])))
	log.Buffer(nil, 1<<20)
	for log.Scan() {
		line := log.Text()
		if strings.Contains(line, `"logger":"llm_quota`) && (strings.Contains(line, `"level":"error"`) || strings.Contains(line, `"level":"warn"`)) {
			lines = append(lines, line)
		}
	}
	return lines
}

// metric returns the sum of a metric's series, and how many there are.
func (p *process) metric(name string) (sum float64, series int) {
	p.t.Helper()
	resp, err := http.Get("http://" + p.admin + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		rest, ok := strings.CutPrefix(lines.Text(), name)
		if !ok || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			p.t.Fatal(err)
		}
		sum += v
		series++
	}
	if err := lines.Err(); err != nil {
		p.t.Fatal(err)
	}
	return sum, series
}

// until waits for something that comes soon, and fails the test if it does not
// come in half a minute.
func (p *process) until(what string, is func() bool) {
	p.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if is() {
			return
		}
		select {
		case <-p.done:
			p.t.Fatalf("waiting until %s, but caddy has ended: %v", what, p.cmd.ProcessState)
		default:
		}
	}
	p.t.Fatalf("after half a minute it is still not so that %s", what)
}
