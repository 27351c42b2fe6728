package ledger

import (
	"fmt"
	"slices"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// simOps are the operations, each as often as its weight.
var simOps = []struct {
	weight int
	name   string
	do     func(*simWorld)
}{
	{30, "reserve", (*simWorld).reserve},
	{20, "settle", (*simWorld).settle},
	{4, "settle again", (*simWorld).settleAgain},
	{4, "correct", (*simWorld).correct},
	{3, "grant", (*simWorld).grant},
	{3, "reset", (*simWorld).reset},
	{3, "limits", (*simWorld).changeLimits},
	{3, "quota", (*simWorld).changeQuota},
	{2, "move key", (*simWorld).moveKey},
	{2, "carry key", (*simWorld).carryKey},
	{1, "move group", (*simWorld).moveGroup},
	{2, "member", (*simWorld).changeMember},
	{2, "reload", (*simWorld).reload},
	{1, "withdraw", (*simWorld).withdraw},
	{14, "pass", (*simWorld).pass},
	{5, "step", (*simWorld).step},
	{6, "tick", (*simWorld).tickNow},
	{4, "checkpoint", (*simWorld).checkpoint},
	{3, "sync", (*simWorld).syncNow},
	{2, "evict", (*simWorld).evict},
	{2, "audit", (*simWorld).audit},
	{1, "batch", (*simWorld).batch},
}

func (w *simWorld) drawOp() func() {
	sum := 0
	for _, op := range simOps {
		sum += op.weight
	}
	n := w.rng.IntN(sum)
	for _, op := range simOps {
		if n -= op.weight; n < 0 {
			return func() { w.stats.ops[op.name]++; op.do(w) }
		}
	}
	panic("no operation")
}

func (w *simWorld) of(kind quota.Kind, also ...quota.ID) []quota.ID {
	ids := slices.Clone(also)
	for _, id := range w.twin.ids() {
		if id.Kind() == kind {
			ids = append(ids, id)
		}
	}
	return ids
}

func (w *simWorld) anyKey() quota.ID { return simPick(w, w.of(quota.KindKey)) }
func (w *simWorld) any() quota.ID    { return simPick(w, w.twin.ids()) }

// api returns the accounts that the configuration does not set.
func (w *simWorld) api(kind quota.Kind) (ids []quota.ID) {
	for _, id := range w.of(kind) {
		if !w.rules.accounts[id].config {
			ids = append(ids, id)
		}
	}
	return ids
}

func (w *simWorld) reserve() {
	id := w.anyKey()
	c := Call{Model: "m", Input: w.rng.Int64N(500), Output: w.rng.Int64N(700), Observe: w.chance(12)}
	if w.chance(8) {
		c.Input = 0
	} else if w.chance(3) {
		c.Least = min(c.Output, 1)
	}
	w.note("reserve %v %+v", id, c)
	now, tick := w.look(), w.tick()
	held, ok := c.simAdmit(w.states(id))
	if w.disk.dead {
		return
	}
	a := w.account(id)
	if w.disk.dead {
		return
	}
	r := new(Reservation)
	ref, err := w.ledger.Reserve(w.clock.now(), a, c, r)
	w.check(err)
	if err == nil && !w.disk.dead {
		if c.Observe {
			if held = c.Input + c.Output; c.Input == 0 {
				held = 0
			}
			if ref != nil || (r.Observed == nil) != ok {
				w.fail("observe %+v: refused %v, observed %v; the twin says %v", c, ref, r.Observed, ok)
			}
		} else if (ref == nil) != ok {
			w.fail("reserve %+v: %v; the twin says %v: %+v", c, ref, ok, w.states(id))
		}
		if ref == nil && r.Held != held {
			w.fail("reserve %+v held %d; the twin holds %d", c, r.Held, held)
		}
	}
	if err != nil || ref != nil {
		w.stats.refused++
		w.twin.refused = append(w.twin.refused, simRefusal{id, w.rules.accounts[id].above, now.UnixNano()})
		return
	}
	w.calls++
	call := simCall{key: id, id: w.calls, at: now.UnixNano(), tick: tick, mono: w.clock.mono, input: min(c.Input, r.Held), held: r.Held}
	w.twin.take(call, w.rules)
	w.open[w.calls] = r
	w.durable(r.record.ID)
	if w.disk.dead {
		return
	}
	w.stats.admitted++
	if !c.Observe {
		w.rolling(id, c.Input > 0)
		for _, s := range w.states(id) { // G1
			for _, kind := range []limitKind{tokenQuota, tokensPerDay} {
				if c.Input > 0 && s[kind].max != none && s[kind].used+s[kind].reserved > s[kind].max {
					w.fail("%s holds %+v after an admission", kind.name(), s[kind])
				}
			}
		}
	}
}

// durable checks that a record was flushed before the operation returned.
func (w *simWorld) durable(seq uint64) {
	if w.store.acked < seq && !w.disk.dead {
		w.fail("record %d is not flushed; the last that is is %d", seq, w.store.acked)
	}
}

// openCalls returns those under way, the oldest first.
func (w *simWorld) openCalls() (calls []*simCall) {
	for i := range w.twin.calls {
		if c := &w.twin.calls[i]; c.open && w.open[c.id] != nil {
			calls = append(calls, c)
		}
	}
	return calls
}

func (w *simWorld) settle() {
	calls := w.openCalls()
	if len(calls) == 0 {
		return
	}
	c := simPick(w, calls)
	charge := simPick(w, []int64{0, c.held, c.held / 2, c.held + 1, 2*c.held + 100})
	o := quota.Outcome{Tokens: quota.Tokens{Input: charge - charge/3, Output: charge / 3}, Estimated: w.chance(3), Failed: w.chance(4)}
	if charge == 0 && w.chance(2) {
		o = quota.Outcome{Failed: true} // a void
	}
	if w.chance(6) {
		charge, o.Later, o.Estimated = c.held, fmt.Sprint("answer ", c.id), true
	}
	w.note("settle call %d of %d: %+v", c.id, c.held, o)
	r := w.open[c.id]
	w.end(c, charge, o)
	for range 1 + w.rng.IntN(3) {
		w.check(w.ledger.Settle(w.clock.now(), r, o))
	}
	w.durable(w.store.settles[r.record.ID])
	w.ended = append(w.ended, r)
	w.stats.settled++
}

// end notes that a call has ended.
func (w *simWorld) end(c *simCall, charge int64, o quota.Outcome) {
	c.open, c.charge, c.later, c.guessed, c.failed = false, charge, o.Later, o.Estimated, o.Failed
	c.ended, c.endTick, c.endMono = w.look().UnixNano(), w.tick(), w.clock.mono
	delete(w.open, c.id)
}

// settleAgain settles calls that were settled before, some of them long ago.
func (w *simWorld) settleAgain() {
	if len(w.ended) == 0 {
		return
	}
	r := simPick(w, w.ended)
	w.note("settle reservation %d again", r.record.ID)
	last := w.store.last
	w.look()
	w.check(w.ledger.Settle(w.clock.now(), r, quota.Outcome{Tokens: quota.Tokens{Input: 12_345}}))
	if w.store.last != last {
		w.fail("settling again was journaled")
	}
}

// correct tells what calls used that were charged provisionally, also twice.
func (w *simWorld) correct() {
	var calls []*simCall
	for i := range w.twin.calls {
		if c := &w.twin.calls[i]; c.later != "" && w.clock.now().UnixNano()-c.at < int64(60*24*time.Hour) {
			calls = append(calls, c)
		}
	}
	if len(calls) == 0 {
		return
	}
	c := simPick(w, calls)
	charge := simPick(w, []int64{0, c.held, c.held / 2, c.held + 50})
	w.note("correct call %d: %d", c.id, charge)
	a := w.account(c.key)
	later := c.later
	if w.disk.dead {
		return
	}
	c.charge, c.later, c.guessed, c.failed = charge, "", false, false
	c.endTick, c.endMono = w.tick(), w.clock.mono
	for i := range 2 {
		found, err := w.ledger.Correct(w.clock.now(), a, quota.Outcome{Tokens: quota.Tokens{Output: charge}, Later: later})
		w.check(err)
		if found != (i == 0) && !w.disk.dead {
			w.fail("correcting for the time %d found a provisional charge: %v", i+1, found)
		}
	}
}

func (w *simWorld) grant() {
	id, n := w.any(), w.rng.Int64N(6000)-3000
	if w.rules.terms(id).schedule == nil {
		return
	}
	w.note("grant %v %d", id, n)
	w.look()
	w.check(w.ledger.Grant(w.clock.now(), id, n))
	a := w.twin.accounts[id]
	a.granted += n
	w.twin.accounts[id] = a
	w.durable(w.store.last)
}

func (w *simWorld) reset() {
	id, kind := w.any(), limitKind(w.rng.IntN(int(concurrent)))
	w.note("reset %s of %v", kind.name(), id)
	now := w.look()
	w.check(w.ledger.Reset(w.clock.now(), id, []quota.LimitName{kind.name()}))
	w.twin.resetLimit(id, kind, now)
	w.durable(w.store.last)
}

// pass lets time go on, now and then over several periods.
func (w *simWorld) pass() {
	most := simPick(w, []time.Duration{time.Second, 10 * time.Second, time.Minute, 2 * time.Minute, time.Hour, 30 * time.Hour})
	if w.chance(30) {
		most = 40 * 24 * time.Hour
	}
	d := time.Duration(w.rng.Int64N(int64(most)))
	if w.chance(8) { // to just before or after the end of a period
		if end := w.twin.accounts[w.any()].epochs[tokenQuota].period.End; end != 0 {
			to := time.Unix(end, 0).Sub(w.clock.now()) + time.Duration(w.rng.IntN(3)-1)*time.Second/2
			if to > 0 && to < 32*24*time.Hour {
				d = to
			}
		}
	}
	w.note("%v pass", d)
	w.clock.mono += int64(d)
}

// step sets the wall clock.
func (w *simWorld) step() {
	most := simPick(w, []time.Duration{50 * time.Millisecond, 2 * time.Second, time.Minute, 50 * time.Minute, 40 * time.Hour})
	d := w.rng.Int64N(2*int64(most)) - int64(most)
	if w.clock.offset > int64(time.Hour) && w.chance(2) {
		d = -w.clock.offset // put right
	}
	if most > maxStep && !w.far {
		d = max(d, -int64(maxStep))
	}
	w.note("the clock is set by %v", time.Duration(d))
	w.clock.offset += d
}

func (w *simWorld) tickNow() {
	w.note("tick")
	w.store.settled = w.store.settled[:0]
	w.unread = true // some may be let go
	now := w.clock.now()
	old := w.openCalls()
	w.check(w.ledger.Tick(now))
	swept := slices.Clone(w.store.settled)
	for _, id := range swept { // those that nobody settles
		i := slices.IndexFunc(old, func(c *simCall) bool { r := w.open[c.id]; return r != nil && r.record.ID == id })
		if i < 0 {
			w.fail("a tick settled reservation %d", id)
		}
		c := old[i]
		if now.UnixNano()-c.at <= int64(maxOpen) {
			w.fail("a tick settled call %d after %v", c.id, time.Duration(now.UnixNano()-c.at))
		}
		w.ended = append(w.ended, w.open[c.id])
		w.end(c, c.held, quota.Outcome{Estimated: true, Failed: true})
		w.snap(w.store.settles[id])
		w.stats.swept++
	}
}

func (w *simWorld) checkpoint() {
	w.note("checkpoint")
	w.check(w.ledger.Checkpoint(w.clock.now()))
}

func (w *simWorld) syncNow() {
	w.note("sync")
	w.check(w.ledger.Sync(w.clock.now()))
}

func (w *simWorld) evict() {
	w.note("evict")
	w.check(w.ledger.Checkpoint(w.clock.now()))
	if !w.disk.dead {
		w.ledger.evict(w.clock.now())
		w.unread = true
	}
}
