package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// line is one event or comment of a stream.
type line struct {
	id, kind, data, comment string
}

func (l line) event(t testing.TB) (e Event) {
	t.Helper()
	if err := json.Unmarshal([]byte(l.data), &e); err != nil {
		t.Fatalf("%v in %q", err, l.data)
	}
	return e
}

// stream is a client that reads events.
type stream struct {
	testing.TB
	lines chan line // closed when the stream has ended
	resp  *http.Response
	stop  context.CancelFunc
}

// read opens a stream; headers come in pairs.
func readStream(t testing.TB, url string, headers ...string) *stream {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	r, err := http.NewRequestWithContext(ctx, "GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{t, make(chan line, 4096), resp, stop}
	t.Cleanup(func() {
		stop()
		resp.Body.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	go func() {
		defer close(s.lines)
		var l line
		for in := bufio.NewScanner(resp.Body); in.Scan(); {
			name, value, _ := strings.Cut(in.Text(), ":")
			value = strings.TrimPrefix(value, " ")
			switch {
			case in.Text() == "":
				if l.data != "" {
					s.lines <- l
				}
				l = line{}
			case name == "":
				s.lines <- line{comment: "comment " + value}
			case name == "id":
				l.id = value
			case name == "event":
				l.kind = value
			case name == "data":
				l.data = value
			}
		}
	}()
	return s
}

// next returns the next event or comment; a zero one when the stream has ended.
func (s *stream) next() line {
	s.Helper()
	select {
	case l := <-s.lines:
		return l
	case <-time.After(30 * time.Second):
		s.Fatal("no event comes")
		return line{}
	}
}

// wants fails the test unless these events come next, as "type model".
func (s *stream) wants(all ...string) (last line) {
	s.Helper()
	for _, want := range all {
		last = s.next()
		if last.data == "" {
			s.Fatalf("the stream ended, or sent %q, before %s", last.comment, want)
		}
		if e := last.event(s); last.kind+" "+e.Model != want {
			s.Fatalf("%s %s came, want %s", last.kind, last.data, want)
		}
	}
	return last
}

// ends fails the test unless the stream ends.
func (s *stream) ends() {
	s.Helper()
	for {
		if l := s.next(); l == (line{}) {
			return
		}
	}
}

// newStreamBench is a bench with a hub, behind a server that has deadlines as
// Caddy's admin endpoint and sites may.
func newStreamBench(t testing.TB) (*bench, string) {
	b := newBench(t)
	b.hub, b.done = NewHub(time.Now()), make(chan struct{})
	s := httptest.NewUnstartedServer(b.mux)
	s.Config.ReadTimeout, s.Config.WriteTimeout = 100*time.Millisecond, 100*time.Millisecond
	s.Start()
	t.Cleanup(s.Close)
	t.Cleanup(b.hub.Close)
	return b, s.URL + "/llm_quota/events"
}

func say(h *Hub, kind, model string, key, group quota.ID) {
	h.Publish(Event{Type: kind, Time: start, Key: Ref(key), Group: Ref(group), Model: model})
}

// Events come as they happen, also after the server's deadlines.
func TestEvents(t *testing.T) {
	b, url := newStreamBench(t)
	say(b.hub, EventAdmission, "nobody listens", 0, 0)
	s := readStream(t, url)
	if h := s.resp.Header; s.resp.StatusCode != 200 || h.Get("Content-Type") != "text/event-stream" || h.Get("Cache-Control") != "no-store" {
		t.Errorf("%d %v", s.resp.StatusCode, h)
	}
	say(b.hub, EventAdmission, "one", 0, 0)
	first := s.wants("admission one")
	time.Sleep(300 * time.Millisecond) // longer than the deadlines
	say(b.hub, EventSettlement, "two", 0, 0)
	second := s.wants("settlement two")
	i, err1 := strconv.ParseUint(first.id, 10, 53)
	j, err2 := strconv.ParseUint(second.id, 10, 53)
	if err1 != nil || err2 != nil || j != i+1 {
		t.Errorf("IDs %s and %s", first.id, second.id)
	}
	if want := `{"time":"2026-05-15T10:20:30Z","key":null,"group":null,"model":"two","reason":"","tokens":0}`; second.data != want {
		t.Errorf("data %s, want %s", second.data, want)
	}
}

func TestEventsOfTrace(t *testing.T) {
	b, url := newStreamBench(t)
	k := b.newKey(`{"name":"k","group":"` + b.newGroup(`{"name":"g"}`).ID.String() + `"}`)
	a, err := b.ledger.Account(b.now, k.ID)
	if err != nil {
		t.Fatal(err)
	}
	p, err := b.ledger.Policy(b.now, a)
	if err != nil {
		t.Fatal(err)
	}
	s := readStream(t, url)
	known := Trace{Start: b.now, Dialect: "openai", Model: strings.Repeat("m", 1000), Policy: p, Held: 7, Hub: b.hub}
	known.Decide(Observe, &quota.Refusal{Reason: quota.QuotaSpent})
	known.Settled("m", quota.Outcome{Tokens: quota.Tokens{Input: 2, Output: 3}})
	unknown := Trace{Start: b.now, Hub: b.hub}
	unknown.Decide(Refuse, &quota.Refusal{Reason: quota.InvalidKey})
	(&Trace{Start: b.now}).Decide(Admit, nil) // without a hub
	for i, want := range []string{
		fmt.Sprintf("admission %s %s insufficient_quota 7 256", k.ID, k.Group),
		fmt.Sprintf("settlement %s %s insufficient_quota 5 256", k.ID, k.Group),
		"refusal   invalid_api_key 0 0",
	} {
		l := s.next()
		e := l.event(t)
		if got := fmt.Sprintf("%s %s %s %s %d %d", l.kind, e.Key, e.Group, e.Reason, e.Tokens, len(e.Model)); got != want {
			t.Errorf("event %d is %s, want %s", i, got, want)
		}
	}
}

func TestEventsFiltered(t *testing.T) {
	b, url := newStreamBench(t)
	k, g := b.newKey(`{"name":"k"}`), b.newGroup(`{"name":"g"}`)
	refusals := readStream(t, url+"?types=refusal,alert")
	ofKey := readStream(t, url+"?key=name:k")
	ofGroup := readStream(t, url+"?types=admission&group="+g.ID.String())
	for range 2 * maxRing { // which are nothing to them, nor make them late
		say(b.hub, EventChange, "", 1, 0)
	}
	say(b.hub, EventAdmission, "of k", k.ID, 0)
	say(b.hub, EventAdmission, "of g", 0, g.ID)
	say(b.hub, EventRefusal, "of both", k.ID, g.ID)
	ofKey.wants("admission of k", "refusal of both")
	ofGroup.wants("admission of g")
	refusals.wants("refusal of both")
	for query, word := range map[string]string{"types=x": "types: x", "types=,": "types", "key=none": "key", "group=name:none": "group", "tpyes=a": "tpyes"} {
		b.do("GET", "/llm_quota/events?"+query, "").fails(400, word)
	}
}

// A client that comes back gets what it has missed; one that comes late gets
// what is still there.
func TestEventsResume(t *testing.T) {
	b, url := newStreamBench(t)
	s := readStream(t, url)
	say(b.hub, EventAdmission, "one", 0, 0)
	last := s.wants("admission one").id
	s.stop()
	s.ends()
	readersAre(t, b.hub, 0)
	for _, m := range []string{"two", "three"} {
		say(b.hub, EventAdmission, m, 0, 0)
	}
	s = readStream(t, url, "Last-Event-ID", last)
	say(b.hub, EventAdmission, "four", 0, 0)
	s.wants("admission two", "admission three", "admission four")

	readStream(t, url, "Last-Event-ID", "1").wants("admission one", "admission two") // of another process, before
	for _, odd := range []string{"", "x", "9007199254740991"} {
		s := readStream(t, url, "Last-Event-ID", odd)
		say(b.hub, EventAdmission, "after "+odd, 0, 0)
		s.wants("admission after " + odd)
	}
}

func readersAre(t testing.TB, h *Hub, n int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		h.mu.Lock()
		is := len(h.readers)
		h.mu.Unlock()
		if is == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d readers, want %d", is, n)
		}
	}
}

func TestEventsComment(t *testing.T) {
	b, url := newStreamBench(t)
	b.hub.beat = time.Millisecond
	if l := readStream(t, url).next(); l.comment == "" {
		t.Errorf("%+v came", l)
	}
	if NewHub(start).beat != 15*time.Second {
		t.Error("it does not come every 15 seconds")
	}
}

// Streams end when the configuration does, so that its servers need not wait
// for them, and when the gate is closed.
func TestEventsEnd(t *testing.T) {
	b, url := newStreamBench(t)
	s := readStream(t, url)
	close(b.done)
	s.ends()
	readersAre(t, b.hub, 0)
	b.done = nil
	s = readStream(t, url)
	b.hub.Close()
	s.ends()
	b.do("GET", "/llm_quota/events", "").fails(503, "closed")
	b.hub = nil
	b.do("GET", "/llm_quota/events", "").fails(503)
}

func TestEventsHead(t *testing.T) {
	b, _ := newStreamBench(t)
	b.do("HEAD", "/llm_quota/events", "").ok(200)
	readersAre(t, b.hub, 0)
}

func TestEventsTooManyReaders(t *testing.T) {
	b, url := newStreamBench(t)
	var all []*stream
	for range maxReaders {
		all = append(all, readStream(t, url))
	}
	b.do("GET", "/llm_quota/events", "").fails(503, "try again")
	all[0].stop()
	readersAre(t, b.hub, maxReaders-1)
	s := readStream(t, url)
	say(b.hub, EventAdmission, "one", 0, 0)
	s.wants("admission one")
	all[1].wants("admission one")
}

// A client that does not read is dropped, and holds up nobody.
func TestEventsSlowReader(t *testing.T) {
	h := NewHub(start)
	defer h.Close()
	slow, err := h.join(eventFilter{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	quick, err := h.join(eventFilter{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for range 2 * maxRing {
		say(h, EventAdmission, "m", 0, 0)
		items, more, ok := quick.take()
		if n += len(items); !ok || more {
			t.Fatal("the quick one is dropped")
		}
	}
	if n != 2*maxRing || len(h.ring) != maxRing {
		t.Errorf("%d events came to the quick one, %d are kept", n, len(h.ring))
	}
	if _, _, ok := slow.take(); ok {
		t.Error("the slow one is not dropped")
	}
	// What is large counts for more.
	for range 10 {
		h.Publish(Event{Type: EventChange, Change: &AuditEntry{Name: strings.Repeat("x", 1<<20)}})
	}
	if h.bytes > maxRingBytes || len(h.ring) > 4 {
		t.Errorf("%d events of %d bytes are kept", len(h.ring), h.bytes)
	}
	h.Publish(Event{Type: EventChange, Change: &AuditEntry{Name: strings.Repeat("x", maxRingBytes+1)}})
	if len(h.ring) != 1 {
		t.Errorf("%d events are kept beside one that is too large", len(h.ring))
	}
}

// Each reader gets every event once and in order, whoever publishes.
func TestEventsConcurrent(t *testing.T) {
	h := NewHub(start)
	const writers, each = 4, 200 // together fewer than the ring holds
	var readers, publishers sync.WaitGroup
	for range 8 {
		r, err := h.join(eventFilter{types: []string{EventRefusal}}, 0)
		if err != nil {
			t.Fatal(err)
		}
		readers.Go(func() {
			defer r.leave()
			last, n := uint64(0), 0
			for n < writers*each/2 {
				items, _, ok := r.take()
				if !ok {
					t.Error("dropped")
					return
				}
				for _, it := range items {
					if n++; it.id <= last || it.kind != EventRefusal {
						t.Errorf("event %d %s after %d", it.id, it.kind, last)
					}
					last = it.id
				}
				if len(items) == 0 {
					<-r.wake
				}
			}
		})
	}
	for range writers {
		publishers.Go(func() {
			for i := range each {
				say(h, []string{EventAdmission, EventRefusal}[i%2], "m", 0, 0)
			}
		})
	}
	publishers.Wait()
	readers.Wait()
	h.Close()
}

// After the last reader has left, events are kept for a while only.
func TestEventsCool(t *testing.T) {
	h := NewHub(start)
	r, err := h.join(eventFilter{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.leave()
	if !h.Listened() {
		t.Fatal("there is nothing for one who comes back")
	}
	h.cool.Reset(0)
	for h.Listened() {
		runtime.Gosched()
	}
	say(h, EventAdmission, "m", 0, 0)
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.ring) != 0 {
		t.Error("events are kept for nobody")
	}
}

// Changes are told with the key's group, alerts with the alert.
func TestEventsOfChangesAndAlerts(t *testing.T) {
	n := openNews(t, t.TempDir())
	s := httptest.NewServer(n.mux)
	t.Cleanup(s.Close) // after the streams
	changes := readStream(t, s.URL+"/llm_quota/events?types=change")
	g := n.newGroup(`{"name":"g"}`)
	k := n.newKey(`{"name":"k","group":"name:g","quota":{"tokens":100,"reset":"daily"}}`)
	n.do("PATCH", "/llm_quota/keys/"+k.ID.String(), `{"group":null}`).ok(200)
	for _, want := range []string{
		fmt.Sprintf("create  %s g", g.ID), fmt.Sprintf("create %s %s k", k.ID, g.ID), fmt.Sprintf("move %s %s k", k.ID, g.ID),
	} {
		e := changes.wants("change ").event(t)
		if got := fmt.Sprintf("%s %s %s %s", e.Reason, e.Key, e.Group, e.Change.Name); got != want {
			t.Errorf("%s came, want %s", got, want)
		}
		if e.Change.Source != quota.ByAPI || len(e.Change.After) == 0 {
			t.Errorf("the change is %+v", e.Change)
		}
	}
	alerts := readStream(t, s.URL+"/llm_quota/events?types=alert&key=name:k")
	n.spend(k.ID, "m", 85)
	if err := n.ledger.Tick(n.now); err != nil {
		t.Fatal(err)
	}
	if e := alerts.wants("alert ").event(t); e.Alert == nil || e.Alert.Kind != quota.AlertThreshold || e.Alert.Used != 85 || e.Alert.Account != k.ID || e.Reason != string(e.Alert.Kind) {
		t.Errorf("%+v came", e)
	}
}

// While nobody listens, a call costs a look at a flag.
func BenchmarkPublishToNobody(b *testing.B) {
	t := &Trace{Model: "gpt-4o", Policy: &ledger.Policy{}, Hub: NewHub(start)}
	b.ReportAllocs()
	for b.Loop() {
		t.tell(EventSettlement, 1)
	}
}

func BenchmarkPublish(b *testing.B) {
	t := &Trace{Model: "gpt-4o", Policy: &ledger.Policy{ID: 2}, Hub: NewHub(start)}
	defer t.Hub.Close()
	for range 4 {
		if _, err := t.Hub.join(eventFilter{}, 0); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		t.tell(EventSettlement, 1)
	}
}
