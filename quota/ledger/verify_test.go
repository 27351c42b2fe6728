package ledger

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// balanced fails the test if the books do not agree, and returns how much was
// compared.
func balanced(t fataler, l *Ledger, now time.Time) int {
	t.Helper()
	v, err := l.Verify(now)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range v.Differences {
		t.Fatalf("%v %s is %d, computed %d", d.Account, d.Counter, d.Stored, d.Computed)
	}
	return v.Checked
}

// life is a ledger to which everything happens that may change its books.
type life struct {
	t      *rapid.T
	dir    func() string
	path   string
	now    time.Time
	ledger *Ledger
	keys   []quota.ID
	groups []quota.ID
	open   []*Reservation
	later  []quota.Later // provisional calls
	calls  int
}

func (w *life) check(err error) {
	if err != nil {
		w.t.Helper()
		w.t.Fatal(err)
	}
}

func (w *life) build() {
	for i := range 3 {
		spec := NewGroup{Name: fmt.Sprint("group ", i)}
		spec.Quota = genQuota(w.t)
		if i > 0 {
			spec.Parent = rapid.SampledFrom(append(w.groups, 0)).Draw(w.t, "parent")
		}
		g, err := w.ledger.CreateGroup(w.now, spec)
		w.check(err)
		w.groups = append(w.groups, g.ID)
	}
	for i := range 3 {
		spec := NewKey{Name: fmt.Sprint("key ", i), Group: rapid.SampledFrom(append(w.groups, 0)).Draw(w.t, "group")}
		spec.Quota = genQuota(w.t)
		made, err := w.ledger.CreateKeys(w.now, []NewKey{spec})
		w.check(err)
		w.keys = append(w.keys, made[0].Key.ID)
	}
}

func (w *life) key() quota.ID { return rapid.SampledFrom(w.keys).Draw(w.t, "key") }

func (w *life) any() quota.ID {
	return rapid.SampledFrom(slices.Concat(w.keys, w.groups)).Draw(w.t, "account")
}

func (w *life) reserve(t *rapid.T) {
	w.t = t
	a, err := w.ledger.Account(w.now, w.key())
	w.check(err)
	r := new(Reservation)
	_, err = w.ledger.Reserve(w.now, a, Call{
		Model: rapid.SampledFrom([]string{"", "m", "n"}).Draw(t, "model"), Input: rapid.Int64Range(0, 500).Draw(t, "input"),
		Output: rapid.Int64Range(0, 500).Draw(t, "output"), Observe: true,
	}, r)
	w.check(err)
	w.open = append(w.open, r)
	w.calls++
}

func (w *life) settle(t *rapid.T) {
	w.t = t
	if len(w.open) == 0 {
		t.Skip("nothing is open")
	}
	i := rapid.IntRange(0, len(w.open)-1).Draw(t, "call")
	r := w.open[i]
	w.open = slices.Delete(w.open, i, i+1)
	o := quota.Outcome{Tokens: quota.Tokens{Input: rapid.Int64Range(0, 900).Draw(t, "charge")}}
	if rapid.IntRange(0, 3).Draw(t, "background") == 0 {
		o.Later = fmt.Sprint("answer ", w.calls, " ", len(w.later))
		w.later = append(w.later, quota.Later{Key: r.accounts[0].id, Name: o.Later})
	}
	w.check(w.ledger.Settle(w.now, r, o))
}

func (w *life) correct(t *rapid.T) {
	w.t = t
	if len(w.later) == 0 {
		t.Skip("nothing is provisional")
	}
	call := w.later[0]
	w.later = w.later[1:]
	a, err := w.ledger.Account(w.now, call.Key)
	w.check(err)
	n := rapid.Int64Range(0, 900).Draw(t, "charge")
	_, err = w.ledger.Correct(w.now, a, quota.Outcome{Tokens: quota.Tokens{Input: n}, Later: call.Name})
	w.check(err)
}

func (w *life) reset(t *rapid.T) {
	w.t = t
	name := rapid.SampledFrom(quota.LimitNames[:5]).Draw(t, "limit")
	w.check(w.ledger.Reset(w.now, w.any(), []quota.LimitName{name}))
}

func (w *life) schedule(t *rapid.T) {
	w.t = t
	id, q := w.any(), genQuota(t)
	var err error
	if id.Kind() == quota.KindKey {
		_, err = w.ledger.UpdateKey(w.now, id, func(k *quota.Key) error { k.Quota = q; return nil })
	} else {
		_, err = w.ledger.UpdateGroup(w.now, id, func(g *quota.Group) error { g.Quota = q; return nil })
	}
	w.check(err)
}

func (w *life) zone(t *rapid.T) {
	w.t = t
	w.check(w.ledger.Configure(w.now, &Config{Zone: rapid.SampledFrom([]string{"UTC", "Asia/Tokyo", "Asia/Kathmandu", "America/St_Johns"}).Draw(t, "zone")}))
}

func (w *life) move(t *rapid.T) {
	w.t = t
	to := rapid.SampledFrom(append(slices.Clone(w.groups), 0)).Draw(t, "group")
	change := w.ledger.UpdateKey
	if rapid.Bool().Draw(t, "carry") {
		change = w.ledger.CarryKey
	}
	_, err := change(w.now, w.key(), func(k *quota.Key) error { k.Group = to; return nil })
	w.check(err)
}

// hang puts a group under another, unless that makes a circle.
func (w *life) hang(t *rapid.T) {
	w.t = t
	to := rapid.SampledFrom(append(slices.Clone(w.groups), 0)).Draw(t, "parent")
	id := rapid.SampledFrom(w.groups).Draw(t, "group")
	for up := to; up != 0; {
		if up == id {
			t.Skip("a circle")
		}
		g, err := w.ledger.Group(up)
		w.check(err)
		up = g.Parent
	}
	_, err := w.ledger.UpdateGroup(w.now, id, func(g *quota.Group) error { g.Parent = to; return nil })
	w.check(err)
}

func (w *life) pass(t *rapid.T) {
	w.now = w.now.Add(time.Duration(rapid.OneOf(
		rapid.Int64Range(0, int64(2*time.Minute)),
		rapid.Int64Range(0, int64(30*time.Hour)),
		rapid.Int64Range(0, int64(30*24*time.Hour)),
	).Draw(t, "pass")))
}

// astray sets the clock forth for one call, and back.
func (w *life) astray(t *rapid.T) {
	right := w.now
	w.now = w.now.Add(time.Duration(rapid.Int64Range(int64(-3*time.Hour), int64(60*time.Hour)).Draw(t, "step")))
	w.reserve(t)
	w.settle(t)
	w.now = right.Add(time.Second)
}

func (w *life) tick(t *rapid.T) {
	w.t = t
	w.check(w.ledger.Tick(w.now))
}

func (w *life) evict(t *rapid.T) {
	w.t = t
	w.check(w.ledger.Checkpoint(w.now))
	w.ledger.evict(w.now.Add(2 * idleAfter))
}

func (w *life) restart(t *rapid.T) {
	w.t = t
	if rapid.Bool().Draw(t, "in good order") {
		w.check(w.ledger.Close(w.now))
	} else {
		w.path = crashCopy(t, w.path, w.dir())
		w.check(w.ledger.store.Close())
	}
	w.ledger = openLedger(t, w.path, w.now)
	w.open = nil
}

func (w *life) books(t *rapid.T) {
	w.t = t
	if n := balanced(t, w.ledger, w.now); n == 0 && w.calls > 0 {
		t.Fatal("nothing was compared")
	}
}

// TestBooks lives at random through everything that changes the books: the
// history and the counters agree at any time, to the token.
func TestBooks(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := &life{t: rt, dir: t.TempDir, now: time.Unix(1_790_000_000, 0).Add(time.Duration(rapid.Int64Range(0, int64(40*24*time.Hour)).Draw(rt, "start")))}
		w.path = w.dir()
		w.ledger = openLedger(rt, w.path, w.now)
		defer func() { w.ledger.store.Close() }()
		w.build()
		rt.Repeat(map[string]func(*rapid.T){
			"reserve":  w.reserve,
			"reserve2": w.reserve,
			"reserve3": w.reserve,
			"settle":   w.settle,
			"settle2":  w.settle,
			"correct":  w.correct,
			"reset":    w.reset,
			"schedule": w.schedule,
			"zone":     w.zone,
			"move":     w.move,
			"hang":     w.hang,
			"pass":     w.pass,
			"astray":   w.astray,
			"tick":     w.tick,
			"evict":    w.evict,
			"restart":  w.restart,
			"books":    w.books,
			"books2":   w.books,
		})
		w.books(rt)
	})
}
