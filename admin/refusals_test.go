package admin

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// newRefusalBench is a bench that keeps refusals from start on.
func newRefusalBench(t testing.TB) *bench {
	b := newBench(t)
	b.hub = NewHub(start)
	t.Cleanup(b.hub.Close)
	return b
}

// decide decides about a call of a key; zero: an unknown one.
func (b *bench) decide(key quota.ID, model, decision string, ref *quota.Refusal) {
	b.Helper()
	t := Trace{Start: b.now, Dialect: "openai", Model: model, Hub: b.hub}
	if key != 0 {
		a, err := b.ledger.Account(b.now, key)
		if err != nil {
			b.Fatal(err)
		}
		if t.Policy, err = b.ledger.Policy(b.now, a); err != nil {
			b.Fatal(err)
		}
	}
	t.Decide(decision, ref)
}

func (b *bench) refusals(query string) Refusals {
	b.Helper()
	return read[Refusals](b.do(http.MethodGet, "/llm_quota/refusals?"+query, "").ok(200))
}

// models are those of a page, in its order.
func (r Refusals) models() string {
	var all []string
	for i := range r.Refusals {
		all = append(all, r.Refusals[i].Model)
	}
	return strings.Join(all, " ")
}

func TestRefusals(t *testing.T) {
	b := newRefusalBench(t)
	if none := b.do("GET", "/llm_quota/refusals", "").ok(200).body; strings.TrimSpace(none) != `{"refusals":[],"by_reason":{},"since":"2026-05-15T10:20:30Z","next_cursor":null}` {
		t.Errorf("at first there is %s", none)
	}
	top := b.newGroup(`{"name":"top"}`)
	below := b.newGroup(`{"name":"below","parent":"name:top"}`)
	k, other := b.newKey(`{"name":"k","group":"name:below"}`), b.newKey(`{"name":"other"}`)
	b.decide(k.ID, "admitted", Admit, nil)
	b.decide(0, "unknown", Refuse, &quota.Refusal{Reason: quota.InvalidKey})
	b.decide(k.ID, "one", Refuse, &quota.Refusal{Reason: quota.RateLimited, Limit: quota.TokensPerMinute, Account: top.ID, Requested: 7})
	b.decide(k.ID, "two", Observe, &quota.Refusal{Reason: quota.QuotaSpent, Limit: quota.TokenQuota, Account: k.ID, Requested: 9})
	b.decide(other.ID, "", Refuse, &quota.Refusal{Reason: quota.DisabledKey})
	b.do("PATCH", "/llm_quota/keys/name:k", `{"group":null}`).ok(200)
	b.decide(k.ID, "three", Refuse, &quota.Refusal{Reason: quota.QuotaSpent, Limit: quota.TokenQuota, Account: k.ID})

	all := b.refusals("")
	want := []Refusal{
		{Key: k.ID, Model: "three", Reason: quota.QuotaSpent, Limit: quota.TokenQuota, Account: Ref(k.ID), Decision: Refuse},
		{Key: other.ID, Reason: quota.DisabledKey, Decision: Refuse},
		{Key: k.ID, Group: Ref(below.ID), Model: "two", Reason: quota.QuotaSpent, Limit: quota.TokenQuota, Account: Ref(k.ID), Requested: 9, Decision: Observe},
		{Key: k.ID, Group: Ref(below.ID), Model: "one", Reason: quota.RateLimited, Limit: quota.TokensPerMinute, Account: Ref(top.ID), Requested: 7, Decision: Refuse},
	}
	last := "~"
	for i := range all.Refusals {
		r := &all.Refusals[i]
		if _, err := quota.ParseNoteID(r.ID); err != nil || time.Since(r.Time) > time.Minute || r.ID >= last {
			t.Errorf("after %s: %+v: %v", last, r, err)
		}
		last, r.ID, r.Time = r.ID, "", time.Time{}
	}
	if diff := cmp.Diff(want, all.Refusals); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for query, want := range map[string]string{
		"key=name:k": "three two one", "key=" + other.ID.String(): "", "group=name:below": "two one", "group=name:top": "two one",
		"group=name:top&decision=refused": "one", "decision=observed": "two", "limit=2": "three ", "key=" + other.ID.String() + "&group=name:top": "",
	} {
		if got := b.refusals(query).models(); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	if diff := cmp.Diff(map[quota.Reason]int{quota.QuotaSpent: 2, quota.RateLimited: 1}, b.refusals("key=name:k&limit=1").ByReason); diff != "" {
		t.Errorf("by reason: -want +got:\n%s", diff)
	}
	for query, word := range map[string]string{
		"key=none": "key", "group=name:none": "group", "decision=admitted": "decision", "limit=0": "limit", "cursor=x": "cursor", "reason=x": "reason",
	} {
		b.do("GET", "/llm_quota/refusals?"+query, "").fails(400, word)
	}
	b.do("DELETE", "/llm_quota/refusals", "").fails(405, "GET")
	b.hub = nil
	b.decide(k.ID, "nowhere", Refuse, &quota.Refusal{Reason: quota.QuotaSpent})
	b.do("GET", "/llm_quota/refusals", "").fails(503, "refusals")
}

// Pages neither repeat nor skip what was there, whatever comes in between.
func TestRefusalsPaged(t *testing.T) {
	b := newRefusalBench(t)
	k := b.newKey(`{"name":"k"}`)
	refuse := func(model string) { b.decide(k.ID, model, Refuse, &quota.Refusal{Reason: quota.QuotaSpent}) }
	for i := range 7 {
		refuse(fmt.Sprint(i))
	}
	var pages []string
	for cursor := ""; ; refuse("new") {
		page := b.refusals("limit=3&cursor=" + cursor)
		if n := page.ByReason[quota.QuotaSpent]; n != 7+len(pages) {
			t.Errorf("page %d counts %d", len(pages), n)
		}
		if pages = append(pages, page.models()); page.NextCursor == nil {
			break
		}
		cursor = *page.NextCursor
	}
	if diff := cmp.Diff([]string{"6 5 4", "3 2 1", "0"}, pages); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// Who is refused all the time pushes out nobody else, and since tells of it.
func TestRefusalsOfAFlood(t *testing.T) {
	b := newRefusalBench(t)
	group := b.newGroup(`{"name":"g"}`)
	calm, flood := b.newKey(`{"name":"calm"}`), b.newKey(`{"name":"flood","group":"name:g"}`)
	b.decide(calm.ID, "first", Refuse, &quota.Refusal{Reason: quota.QuotaSpent})
	var times []time.Time
	for i := range 5 * maxRefusals {
		at := start.Add(time.Duration(i) * time.Second)
		times = append(times, at)
		b.hub.refusals.add(Refusal{Time: at, Key: flood.ID, Group: Ref(group.ID), Model: "m", Reason: quota.RateLimited, Decision: Refuse})
	}
	lost := times[len(times)-maxRefusalsOfKey-1]
	for query, want := range map[string]time.Time{"": lost, "key=name:flood": lost, "group=name:g": lost, "key=name:calm": start} {
		if got := b.refusals(query).Since; !got.Equal(want) {
			t.Errorf("%s: all are kept since %v, want %v", query, got, want)
		}
	}
	all := b.refusals("limit=1000")
	if n := all.ByReason[quota.RateLimited]; n != maxRefusalsOfKey || len(all.Refusals) != n+1 || all.Refusals[n].Model != "first" {
		t.Errorf("%d of the one that floods are kept, and %d in all", n, len(all.Refusals))
	}
	b.hub.refusals.add(Refusal{Time: times[len(times)-1], Key: flood.ID, Reason: quota.RateLimited, Decision: Refuse}) // it has been moved
	for range maxRefusalsOfKey {
		b.hub.refusals.add(Refusal{Time: times[len(times)-1].Add(time.Hour), Key: flood.ID, Reason: quota.RateLimited, Decision: Refuse})
	}
	if got := b.refusals("group=name:g").Since; got.Before(times[len(times)-1]) {
		t.Errorf("after the move all of the group are kept since %v", got)
	}
}

// What is kept is what a list that forgets the oldest keeps, of each key and in
// all, and since is right of it.
func TestRefusalsAgainstAList(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	h := NewHub(start)
	var list, lost []Refusal
	for i := range 30_000 {
		key := quota.ID(1 + random.IntN(40))
		if random.IntN(3) > 0 {
			key = quota.ID(1 + random.IntN(4))
		}
		r := Refusal{
			Time: start.Add(time.Duration(i) * time.Millisecond), Key: key, Group: Ref(random.IntN(3)),
			Model: fmt.Sprint(i), Reason: quota.QuotaSpent, Decision: Refuse,
		}
		h.refusals.add(r)
		list = append(list, r)
		of := 0
		for j := range list {
			if list[j].Key == key {
				of++
			}
		}
		for j := 0; of > maxRefusalsOfKey || len(list) > maxRefusals; j++ {
			if of <= maxRefusalsOfKey || list[j].Key == key {
				lost = append(lost, list[j])
				list = append(list[:j], list[j+1:]...)
				break
			}
		}
		if i%1000 != 999 {
			continue
		}
		for _, f := range []refusalFilter{{}, {key: key}, {key: 40}, {groups: map[quota.ID]bool{1: true}}, {key: key, groups: map[quota.ID]bool{2: true}}} {
			got, more := h.refusals.read(f, page{limit: 1000})
			var want Refusals
			for j := len(list) - 1; j >= 0; j-- {
				if f.takes(&list[j]) {
					want.Refusals = append(want.Refusals, list[j])
				}
			}
			if got.models() != want.models() || more != 0 || got.ByReason[quota.QuotaSpent] != len(want.Refusals) {
				t.Fatalf("after %d %+v keeps %s, want %s", i, f, got.models(), want.models())
			}
			for j := range lost {
				if f.takes(&lost[j]) && lost[j].Time.After(got.Since) {
					t.Fatalf("after %d %+v keeps all since %v, but has lost one of %v", i, f, got.Since, lost[j].Time)
				}
			}
		}
	}
	if n := len(h.refusals.keys); n > 40 || h.refusals.n != maxRefusals {
		t.Errorf("%d are kept, of %d keys", h.refusals.n, n)
	}
}

// Whatever callers send, it takes less than a megabyte, and holds on to nothing
// of theirs.
func TestRefusalsMemory(t *testing.T) {
	h := NewHub(start)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	for i := range 20 * maxRefusals {
		body := strings.Repeat("x", 1<<12) + fmt.Sprint(i)
		r := Refusal{Time: start, Key: quota.ID(i + 1), Model: body, Reason: quota.RateLimited, Decision: Refuse}
		h.refusals.add(r)
		if got := h.refusals.newest.Model; len(got) != maxModel || unsafe.StringData(got) == unsafe.StringData(body) {
			t.Fatalf("of a model of %d bytes %d are kept, in place: %v", len(body), len(got), unsafe.StringData(got) == unsafe.StringData(body))
		}
	}
	if took := int64(heap()) - int64(before); took > 1<<20 {
		t.Errorf("%d refusals take %d bytes", h.refusals.n, took)
	}
	runtime.KeepAlive(h)
}

// Many are refused while others read.
func TestRefusalsAtOnce(t *testing.T) {
	b := newRefusalBench(t)
	var wg sync.WaitGroup
	for i := range 8 {
		p := &ledger.Policy{ID: quota.ID(i + 1)}
		wg.Go(func() {
			for range 300 {
				t := Trace{Start: b.now, Model: "m", Policy: p, Hub: b.hub}
				t.Decide(Refuse, &quota.Refusal{Reason: quota.QuotaSpent})
			}
		})
		wg.Go(func() {
			for range 20 {
				b.do("GET", "/llm_quota/refusals?limit=1000", "").ok(200)
			}
		})
	}
	wg.Wait()
	if got := b.refusals("limit=1000"); len(got.Refusals) != 8*maxRefusalsOfKey {
		t.Errorf("%d are kept: %v", len(got.Refusals), got.ByReason)
	}
}

func BenchmarkRefusal(b *testing.B) {
	l := &NewHub(start).refusals
	key := quota.ID(0)
	b.ReportAllocs()
	for b.Loop() {
		key++
		l.add(Refusal{Time: start, Key: 1 + key%5000, Model: "gpt-4o", Reason: quota.RateLimited, Decision: Refuse})
	}
}
