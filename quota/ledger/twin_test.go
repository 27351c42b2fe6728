package ledger

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/llm-quota/caddy-llm-quota/limiter"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

// twin is the ledger again, slow and plain: it remembers every call and every
// change, and counts from the beginning whenever it is asked.
type twin struct {
	accounts map[quota.ID]*twinAccount
	calls    []*twinCall
}

type twinAccount struct {
	above    quota.ID
	quotaMax int64
	limits   quota.Limits
	schedule *quota.Schedule
	day      *quota.Schedule
	grants   []twinGrant
	resets   map[quota.LimitName]int
	dayZero  int // calls before this index do not count in requests_per_day
}

type twinGrant struct {
	period quota.Period
	resets int
	tokens int64
}

type twinCall struct {
	at, ended    time.Time
	held, charge int64
	open         bool
	later        string // not empty: the charge is provisional
	key          quota.ID
	shares       []twinShare
}

// twinShare is the periods of one account at admission.
type twinShare struct {
	id                        quota.ID
	period, day               quota.Period
	quotaResets, minuteResets int
	dayResets                 int
}

func (t *twin) chain(id quota.ID) (ids []quota.ID) {
	for ; id != 0; id = t.accounts[id].above {
		ids = append(ids, id)
	}
	return ids
}

func (t *twin) share(id quota.ID, now time.Time) twinShare {
	a := t.accounts[id]
	return twinShare{
		id: id, period: a.schedule.At(now), day: a.day.At(now),
		quotaResets: a.resets[quota.TokenQuota], minuteResets: a.resets[quota.TokensPerMinute],
		dayResets: a.resets[quota.TokensPerDay],
	}
}

// state counts where an account stands.
func (t *twin) state(id quota.ID, now time.Time) map[quota.LimitName]limitState {
	a, here := t.accounts[id], t.share(id, now)
	counted := func(at time.Time) bool {
		return limiter.Bucket(at.UnixNano())+limiter.Buckets > limiter.Bucket(now.UnixNano())
	}
	s := map[quota.LimitName]limitState{}
	for i, c := range t.calls {
		k := slices.IndexFunc(c.shares, func(s twinShare) bool { return s.id == id })
		if k < 0 {
			continue
		}
		was := c.shares[k]
		add := func(name quota.LimitName, used, reserved int64) {
			v := s[name]
			s[name] = limitState{used: v.used + used, reserved: v.reserved + reserved}
		}
		used, reserved := c.charge, int64(0)
		if c.open {
			used, reserved = 0, c.held
			add(quota.ConcurrentRequests, 1, 0)
		}
		if was.period == here.period && was.quotaResets == here.quotaResets {
			add(quota.TokenQuota, used, reserved)
		}
		if was.day == here.day {
			if was.dayResets == here.dayResets {
				add(quota.TokensPerDay, used, reserved)
			}
			if i >= a.dayZero {
				add(quota.RequestsPerDay, 1, 0)
			}
		}
		if counted(c.at) && i >= a.resets["rpm"] {
			add(quota.RequestsPerMinute, 1, 0)
		}
		if was.minuteResets != here.minuteResets {
			continue
		}
		if counted(c.at) {
			if c.open {
				add(quota.TokensPerMinute, c.held, 0)
			} else {
				add(quota.TokensPerMinute, min(c.charge, c.held), 0)
			}
		}
		if !c.open && c.charge > c.held && counted(c.ended) {
			add(quota.TokensPerMinute, c.charge-c.held, 0)
		}
	}
	for _, name := range quota.LimitNames {
		v := s[name]
		v.max = none
		if b := a.limits.Bound(name); b != nil {
			v.max = bound(*b)
		} else if a.quotaMax != none {
			v.max = a.quotaMax
			for _, g := range a.grants {
				if g.period == here.period && g.resets == here.quotaResets {
					v.max += g.tokens
				}
			}
			v.max = max(v.max, 0)
		}
		s[name] = v
	}
	return s
}

// admit tells whether a call fits everywhere, and how much would be held.
func (t *twin) admit(id quota.ID, now time.Time, c Call) (held int64, ok bool) {
	held, ok = c.Input+c.Output, true
	if c.Input == 0 {
		held = 0
	}
	for _, id := range t.chain(id) {
		for name, s := range t.state(id, now) {
			if s.max == none {
				continue
			}
			need := int64(1)
			if name == quota.TokenQuota || name == quota.TokensPerDay || name == quota.TokensPerMinute {
				if c.Input == 0 && s.max > 0 {
					continue
				}
				need = c.Input + c.Least
				held = min(held, max(s.max-s.used-s.reserved, 0))
			}
			if s.max == 0 || s.used+s.reserved+need > s.max {
				ok = false
			}
		}
	}
	return held, ok
}

func (t *twin) take(id quota.ID, now time.Time, held int64) *twinCall {
	c := &twinCall{at: now, held: held, open: true, key: id}
	for _, id := range t.chain(id) {
		c.shares = append(c.shares, t.share(id, now))
	}
	t.calls = append(t.calls, c)
	return c
}

// world is a ledger and its twin under the same random life.
type world struct {
	*twin
	t      *rapid.T
	dir    func() string
	now    time.Time
	ledger *Ledger
	path   string
	ids    []quota.ID // keys, then groups
	keys   int
	open   map[*twinCall]*Reservation
}

func genBound(t *rapid.T, name string, top int64) quota.Bound {
	return rapid.OneOf(
		rapid.Just(quota.Bound{}), rapid.Just(quota.Unlimited), rapid.Just(quota.At(0)),
		rapid.Custom(func(t *rapid.T) quota.Bound { return quota.At(rapid.Int64Range(1, top).Draw(t, "n")) }),
		rapid.Custom(func(t *rapid.T) quota.Bound { return quota.At(rapid.Int64Range(1, top).Draw(t, "n")) }),
		rapid.Custom(func(t *rapid.T) quota.Bound { return quota.At(rapid.Int64Range(1, top).Draw(t, "n")) }),
	).Draw(t, name)
}

func genLimits(t *rapid.T) quota.Limits {
	return quota.Limits{
		RequestsPerMinute:  genBound(t, "rpm", 8),
		TokensPerMinute:    genBound(t, "tpm", 2000),
		RequestsPerDay:     genBound(t, "rpd", 20),
		TokensPerDay:       genBound(t, "tpd", 6000),
		ConcurrentRequests: genBound(t, "concurrent", 4),
	}
}

func genQuota(t *rapid.T) *quota.Quota {
	if rapid.Bool().Draw(t, "no quota") {
		return nil
	}
	q := &quota.Quota{
		Tokens:   quota.At(rapid.Int64Range(0, 10000).Draw(t, "quota")),
		Reset:    rapid.SampledFrom([]quota.Reset{quota.ResetDaily, quota.ResetWeekly, quota.ResetMonthly, quota.ResetManual}).Draw(t, "reset"),
		TimeZone: rapid.SampledFrom([]string{"UTC", "America/New_York", "Asia/Kathmandu", "Africa/Cairo"}).Draw(t, "zone"),
	}
	if q.Reset != quota.ResetManual {
		q.At = rapid.SampledFrom([]string{"", "06:00", "23:59"}).Draw(t, "at")
	}
	return q
}

func (w *world) add(id, above quota.ID, q *quota.Quota, limits quota.Limits) {
	a := &twinAccount{above: above, quotaMax: none, limits: limits, resets: map[quota.LimitName]int{}}
	zone := quota.Quota{Tokens: quota.At(0), Reset: quota.ResetDaily}
	a.schedule = &quota.Schedule{Reset: quota.ResetManual, Zone: time.UTC}
	if q != nil {
		zone.TimeZone = q.TimeZone
		a.quotaMax, _ = q.Tokens.Max()
		a.schedule, _ = q.Schedule("UTC")
	}
	a.day, _ = zone.Schedule("UTC")
	w.accounts[id] = a
	w.ids = append(w.ids, id)
}

func (w *world) check(err error) {
	if err != nil {
		w.t.Helper()
		w.t.Fatal(err)
	}
}

func (w *world) build() {
	w.twin = &twin{accounts: map[quota.ID]*twinAccount{}}
	w.open = map[*twinCall]*Reservation{}
	var groups []quota.ID
	for i := range rapid.IntRange(0, 3).Draw(w.t, "groups") {
		spec := NewGroup{Name: fmt.Sprint("group ", i)}
		if i > 0 {
			spec.Parent = rapid.SampledFrom(append(groups, 0)).Draw(w.t, "parent")
		}
		spec.Quota, spec.Limits = genQuota(w.t), genLimits(w.t)
		g, err := w.ledger.CreateGroup(w.now, spec)
		w.check(err)
		groups = append(groups, g.ID)
		w.add(g.ID, g.Parent, g.Quota, g.Limits)
	}
	slices.Reverse(w.ids)
	for i := range 3 {
		spec := NewKey{Name: fmt.Sprint("key ", i), Group: rapid.SampledFrom(append(groups, 0)).Draw(w.t, "group")}
		spec.Quota, spec.Limits = genQuota(w.t), genLimits(w.t)
		made, err := w.ledger.CreateKeys(w.now, []NewKey{spec})
		w.check(err)
		w.add(made[0].Key.ID, spec.Group, spec.Quota, spec.Limits)
	}
	slices.Reverse(w.ids) // the keys first
	w.keys = 3
}

func (w *world) key() quota.ID { return rapid.SampledFrom(w.ids[:w.keys]).Draw(w.t, "key") }
func (w *world) any() quota.ID { return rapid.SampledFrom(w.ids).Draw(w.t, "account") }

func (w *world) reserve(t *rapid.T) {
	w.t = t
	id := w.key()
	c := Call{
		Model: "m", Input: rapid.Int64Range(0, 700).Draw(t, "input"),
		Output: rapid.Int64Range(0, 900).Draw(t, "output"), Observe: rapid.IntRange(0, 9).Draw(t, "observe") == 0,
	}
	if c.Input > 0 && rapid.IntRange(0, 3).Draw(t, "least") == 0 {
		c.Least = min(c.Output, 1)
	}
	held, ok := w.admit(id, w.now, c)
	a, err := w.ledger.Account(w.now, id)
	w.check(err)
	r := new(Reservation)
	ref, err := w.ledger.Reserve(w.now, a, c, r)
	w.check(err)
	switch {
	case c.Observe:
		if held = c.Input + c.Output; c.Input == 0 {
			held = 0
		}
		if ref != nil || (r.Observed == nil) != ok {
			t.Fatalf("observe %+v: refused %v, observed %v; the twin says %v", c, ref, r.Observed, ok)
		}
	case (ref == nil) != ok:
		t.Fatalf("reserve %+v on %v: %v; the twin says %v: %v", c, id, ref, ok, w.state(id, w.now))
	case ref != nil:
		w.freed(id, c, ref)
		return
	}
	if r.Held != held {
		t.Fatalf("reserve %+v held %d; the twin holds %d", c, r.Held, held)
	}
	w.open[w.take(id, w.now, held)] = r
}

// freed checks that what was said of the limit that refused holds: it refuses
// until the wait is over, and not then, if nothing else happens.
func (w *world) freed(id quota.ID, c Call, ref *quota.Refusal) {
	a := w.accounts[ref.Account]
	if ref.Wait == quota.Never || ref.Wait == time.Second || ref.Limit == quota.TokenQuota && ref.Requested > a.quotaMax {
		return
	}
	fits := func(now time.Time, underWay bool) bool {
		s := w.state(ref.Account, now)[ref.Limit]
		return s.used+s.reserved+ref.Requested <= s.max || underWay && s.reserved > 0
	}
	if at := w.now.Add(ref.Wait); !fits(at, true) || fits(at.Add(-1), false) && ref.Wait > time.Second {
		w.t.Fatalf("%v does not free in %v: %v", ref, ref.Wait, w.state(ref.Account, at)[ref.Limit])
	}
}

func (w *world) settle(t *rapid.T) {
	w.t = t
	var calls []*twinCall
	for _, c := range w.calls {
		if w.open[c] != nil {
			calls = append(calls, c)
		}
	}
	if len(calls) == 0 {
		t.Skip("nothing is open")
	}
	c := rapid.SampledFrom(calls).Draw(t, "call")
	c.charge = rapid.SampledFrom([]int64{0, c.held, c.held / 2, c.held + 1, 3*c.held + 100}).Draw(t, "charge")
	c.open, c.ended = false, w.now
	o := quota.Outcome{Tokens: quota.Tokens{Input: c.charge}}
	if rapid.IntRange(0, 3).Draw(t, "background") == 0 {
		c.charge, c.later = c.held, fmt.Sprint("answer ", slices.Index(w.calls, c))
		o.Later = c.later
	}
	for range rapid.IntRange(1, 3).Draw(t, "times") { // settling is idempotent
		w.check(w.ledger.Settle(w.now, w.open[c], o))
	}
	delete(w.open, c)
}

// correct tells what a call used that was charged provisionally, also twice.
func (w *world) correct(t *rapid.T) {
	w.t = t
	var calls []*twinCall
	for _, c := range w.calls {
		if c.later != "" {
			calls = append(calls, c)
		}
	}
	if len(calls) == 0 {
		t.Skip("nothing is provisional")
	}
	c := rapid.SampledFrom(calls).Draw(t, "call")
	n := rapid.SampledFrom([]int64{0, c.held, c.held / 2, c.held + 50}).Draw(t, "charge")
	a, err := w.ledger.Account(w.now, c.key)
	w.check(err)
	for i := range 2 {
		found, err := w.ledger.Correct(w.now, a, quota.Outcome{Tokens: quota.Tokens{Output: n}, Later: c.later})
		w.check(err)
		if found != (i == 0) {
			t.Fatalf("correcting for the time %d found a provisional charge: %v", i+1, found)
		}
	}
	c.charge, c.ended, c.later = n, w.now, ""
}

func (w *world) grant(t *rapid.T) {
	w.t = t
	id, n := w.any(), rapid.Int64Range(-3000, 3000).Draw(t, "tokens")
	err := w.ledger.Grant(w.now, id, n)
	if a := w.accounts[id]; a.quotaMax == none {
		if !errors.Is(err, quota.ErrConflict) {
			t.Fatalf("granting without a quota: %v", err)
		}
		return
	}
	w.check(err)
	s := w.share(id, w.now)
	w.accounts[id].grants = append(w.accounts[id].grants, twinGrant{s.period, s.quotaResets, n})
}

func (w *world) reset(t *rapid.T) {
	w.t = t
	id := w.any()
	name := rapid.SampledFrom(quota.LimitNames[:5]).Draw(t, "limit")
	w.check(w.ledger.Reset(w.now, id, []quota.LimitName{name}))
	a := w.accounts[id]
	switch name {
	case quota.RequestsPerDay:
		a.dayZero = len(w.calls)
	case quota.RequestsPerMinute:
		a.resets["rpm"] = len(w.calls)
	default:
		a.resets[name]++
	}
}

func (w *world) limit(t *rapid.T) {
	w.t = t
	id := w.any()
	limits := genLimits(t)
	var err error
	if id.Kind() == quota.KindKey {
		_, err = w.ledger.UpdateKey(w.now, id, func(k *quota.Key) error { k.Limits = limits; return nil })
	} else {
		_, err = w.ledger.UpdateGroup(w.now, id, func(g *quota.Group) error { g.Limits = limits; return nil })
	}
	w.check(err)
	w.accounts[id].limits = limits
}

func (w *world) move(t *rapid.T) {
	w.t = t
	id, to := w.key(), rapid.SampledFrom(append(slices.Clone(w.ids[w.keys:]), 0)).Draw(t, "group")
	_, err := w.ledger.UpdateKey(w.now, id, func(k *quota.Key) error { k.Group = to; return nil })
	w.check(err)
	w.accounts[id].above = to
}

func (w *world) pass(t *rapid.T) {
	d := rapid.OneOf(
		rapid.Int64Range(0, int64(10*time.Second)),
		rapid.Int64Range(0, int64(2*time.Minute)),
		rapid.Int64Range(0, int64(30*time.Hour)),
	).Draw(t, "pass")
	w.now = w.now.Add(time.Duration(d))
}

// verify compares every account's state.
func (w *world) verify(t *rapid.T) {
	for _, id := range w.ids {
		got := map[quota.LimitName]limitState{}
		s, err := w.ledger.State(w.now, id)
		w.check(err)
		for _, l := range s.Limits {
			got[l.Limit] = limitState{l.Max, l.Used, l.Reserved}
			if left := max(l.Max-l.Used-l.Reserved, 0); l.Remaining != left {
				t.Fatalf("%s of %v: %d remain of %+v", l.Limit, id, l.Remaining, l)
			}
		}
		for name, want := range w.state(id, w.now) {
			if g, ok := got[name]; ok != (want.max != none) || (ok && g != want) {
				t.Fatalf("%s of %v is %+v; the twin says %+v", name, id, g, want)
			}
		}
	}
	g := w.ledger.Gauges()
	var held int64
	for c := range w.open {
		held += c.held
	}
	if g.OpenReservations != int64(len(w.open)) || g.ReservedTokens != held {
		t.Fatalf("gauges %+v; the twin has %d open that hold %d", g, len(w.open), held)
	}
}

// crash ends the process without a word: what is open is charged as it was
// held, once, and nothing else changes.
func (w *world) crash(t *rapid.T) {
	w.t = t
	w.restart(false)
}

// stop ends it in good order, with calls still under way.
func (w *world) stop(t *rapid.T) {
	w.t = t
	w.restart(true)
}

func (w *world) restart(orderly bool) {
	if rapid.IntRange(0, 2).Draw(w.t, "restart") > 0 { // it is slow
		return
	}
	if orderly {
		w.check(w.ledger.Close(w.now))
	} else {
		w.path = crashCopy(w.t, w.path, w.dir())
		w.check(w.ledger.store.Close())
	}
	w.ledger = openLedger(w.t, w.path, w.now)
	for c := range w.open {
		c.open, c.ended, c.charge = false, w.now, c.held
	}
	clear(w.open)
}

func (w *world) checkpoint(t *rapid.T) { w.check(w.ledger.Checkpoint(w.now)) }

func (w *world) evict(t *rapid.T) {
	w.check(w.ledger.Checkpoint(w.now))
	w.ledger.evict(w.now)
}

// books verifies them.
func (w *world) books(t *rapid.T) { balanced(t, w.ledger, w.now) }

// TestTwin drives the ledger and its twin through the same random lives:
// admissions, settlements (also repeated), resets, grants, changed limits,
// moved keys, checkpoints, evictions, restarts and crashes. After every step
// both must say the same of every limit, and the books must agree at any time.
// With it hold G1 (settled and reserved fit the limit at every admission, a
// refusal changes nothing), G3, G4, G6 and G10.
func TestTwin(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := &world{t: rt, dir: t.TempDir, now: time.Unix(1_790_000_000, 0).Add(time.Duration(rapid.Int64Range(0, int64(400*24*time.Hour)).Draw(rt, "start")))}
		w.path = w.dir()
		w.ledger = openLedger(rt, w.path, w.now)
		defer func() { w.ledger.store.Close() }()
		w.build()
		rt.Repeat(map[string]func(*rapid.T){
			"":           w.verify,
			"reserve":    w.reserve,
			"reserve2":   w.reserve,
			"reserve3":   w.reserve,
			"settle":     w.settle,
			"settle2":    w.settle,
			"correct":    w.correct,
			"grant":      w.grant,
			"reset":      w.reset,
			"limit":      w.limit,
			"move":       w.move,
			"pass":       w.pass,
			"checkpoint": w.checkpoint,
			"evict":      w.evict,
			"crash":      w.crash,
			"stop":       w.stop,
			"books":      w.books,
		})
		w.books(rt)
	})
}
