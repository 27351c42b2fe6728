package ledger

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/store/badger"
)

// openStore opens the store and the ledger on it. It is an error only if the
// process died meanwhile.
func (w *simWorld) openStore() error {
	st, err := badger.Open(badger.Options{
		Dir: w.disk.dir, SyncInterval: w.sync, SegmentSize: 2 << 10, Fault: w.disk.fault,
		Logger: func(format string, args ...any) {
			s := fmt.Sprintf(format, args...)
			torn := strings.Contains(s, "a torn record at the end") || w.stats.losses > 0 && strings.Contains(s, "the header is damaged")
			if !w.disk.dead && !torn {
				w.fail("the store says: %s", s)
			}
		},
	})
	if err != nil {
		w.check(err)
		w.store = &simStore{}
		return err
	}
	w.store = &simStore{Store: st, disk: w.disk, settles: map[uint64]uint64{}, turns: map[simTurn]quota.Period{}}
	l, err := Open(w.store, w.clock.now(), func(op string, err error) {
		if !w.disk.dead {
			w.fail("%s: %v", op, err)
		}
	})
	if err != nil || w.disk.dead {
		w.check(err)
		w.disk.dead = true
		st.Close()
		return cmp.Or(err, errDead)
	}
	w.base = w.clock.now().UnixNano() - w.clock.mono
	w.ledger = &Keeper{Ledger: l, quit: make(chan struct{})}
	return nil
}

// restart ends the process and begins another. The way it ends is "stop", in
// good order, "crash" or "power loss".
func (w *simWorld) restart(how string) {
	w.snap(w.store.last)
	least := w.end1(how)
	synced := w.store.synced
	tick := w.tick()
	w.disk.revive(-1)
	kept := uint64(math.MaxUint64) // what every start after the end has found
	for n := 0; ; n++ {
		if n < 3 && w.chance(3) {
			w.disk.revive(w.rng.IntN(25))
		}
		err := w.openStore()
		if w.store.recovered {
			kept = min(kept, w.store.survived)
		}
		if err == nil {
			break
		}
		if how = simPick(w, []string{"crash", "power loss"}); w.disk.died != "" {
			w.note("%s while starting, %s", how, w.disk.died)
		}
		w.stats.again++
		w.damage(how)
		if how == "power loss" && w.sync > 0 && kept == math.MaxUint64 { // nothing was synced yet
			least = min(least, synced)
		}
		w.disk.revive(-1)
	}
	w.survived(least, kept)
	w.windows(tick)
	w.boot()
}

// end1 ends the process and returns the last record that must survive.
func (w *simWorld) end1(how string) (least uint64) {
	w.stats.restarts++
	died := w.disk.died
	w.note("%s %s", how, died)
	if how == "stop" {
		w.check(w.ledger.Ledger.Close(w.clock.now()))
		if !w.disk.dead {
			return w.store.last
		}
		how = "crash"
	}
	w.disk.dead = true
	if err := w.store.Close(); err != nil && !errors.Is(err, errDead) && !errors.Is(err, quota.ErrClosed) {
		w.fail("closing what has died: %v", err)
	}
	least = w.store.acked
	if how == "power loss" && w.sync > 0 {
		least = w.store.synced
	}
	w.damage(how)
	return least
}

func (w *simWorld) damage(how string) {
	var err error
	if how == "power loss" {
		w.stats.losses++
		err = w.disk.lose()
	} else {
		var torn bool
		w.stats.crashes++
		if torn, err = w.disk.kill(); torn {
			w.stats.torn++
		}
	}
	if err != nil {
		w.fail("%v", err)
	}
}

// survived leads the twin back to the record n, up to which the journal was
// kept, which must reach the record least. Calls that were under way are charged what they held.
func (w *simWorld) survived(least, n uint64) {
	if n < least {
		w.fail("records up to %d survived; those up to %d were promised to", n, least)
	}
	i := len(w.snaps) - 1
	for i > 0 && w.snaps[i].seq > n {
		i--
	}
	if last := w.snaps[len(w.snaps)-1].seq; n > last {
		w.fail("record %d survived, but the last that was written is %d", n, last)
	}
	w.twin = w.snaps[i].twin.clone()
	clear(w.open)
	w.ended = nil
	w.twin.began = w.clock.mono
	now := w.clock.now().UnixNano()
	for i := range w.twin.calls {
		if c := &w.twin.calls[i]; c.open {
			c.open, c.crashed, c.charge, c.guessed, c.failed = false, true, c.held, true, true
			c.ended, c.endTick, c.endMono = now, w.tick(), w.clock.mono
		}
	}
	w.snaps = nil
	w.snap(w.store.last)
}

// windows notes how far the windows are known at a start, at which they go by
// the wall clock. tick is where the clock of the process before stood.
func (w *simWorld) windows(tick int64) {
	span := int64(66 * time.Second)
	w.unread = true
	switch now := w.tick(); {
	case now < tick:
		w.behind = true
		w.fuzzy = w.clock.mono + span
	case now > tick:
		w.leap = w.clock.mono + span
	}
}

// boot makes the new process as the one before was.
func (w *simWorld) boot() {
	if w.before != nil { // it died while the directory was changed: all of it or nothing
		if !w.told(w.rules) {
			w.rules = w.before
		}
		w.before = nil
	}
	if !w.told(w.rules) {
		w.fail("the directory is not what was put")
	}
	w.greatKeys()
	w.owners++
	w.before = w.rules // as of any change: the process may die in this one, too
	w.rules = w.before.clone()
	w.configure(w.rules, w.config)
	err := w.ledger.Apply(w.clock.now(), w.owners, w.config)
	w.check(err)
	if err == nil && !w.disk.dead {
		w.replaced, w.before = []*simRules{w.before}, nil
		for _, id := range w.twin.ids() {
			w.unquoted(id)
		}
	}
	if w.disk.dead {
		return
	}
	now := w.clock.now().UnixNano()
	if got := w.ledger.seen.Load(); got < now || got > max(now, min(w.latest, now+int64(maxStep))) {
		w.fail("the ledger's time is %v after the start; the clock says %v, and the latest before was %v", time.Unix(0, got).UTC(), w.clock.now(), time.Unix(0, w.latest).UTC())
	}
	// Accounts that are read before the latest time is known may be led back.
	w.seen, w.lost = w.ledger.seen.Load(), w.setBack || now < w.seen || w.carrying
	w.earlier = w.earlier || w.seen < w.latest
	w.carrying = false
	w.booting = true
	w.advance(nil)
	w.booting = false
	if w.disk.dead {
		return
	}
	w.verify()
	w.snap(w.store.last)
	if w.chance(2) && !w.disk.dead {
		w.audit()
	}
}

// unquoted takes over the quota's period and use of an account that has no quota
// at the start, where they are not as the twin knows them: nobody sees them now,
// and of a change that a crash fell into a part of the records may be kept.
func (w *simWorld) unquoted(id quota.ID) {
	acc := w.account(id)
	if w.disk.dead || w.rules.terms(id).schedule != nil {
		return
	}
	used, in := acc.counter(tokenQuota)
	a := w.twin.accounts[id]
	if e := &a.epochs[tokenQuota]; in != e.period {
		e.found += used - w.twin.state(id, w.rules, w.tick())[tokenQuota].used
		e.period = in
		w.twin.accounts[id] = a
	}
}

// told tells whether the directory says what rules say.
func (w *simWorld) told(rules *simRules) bool {
	for id, rule := range rules.accounts {
		is := simRule{config: rule.config}
		if id.Kind() == quota.KindKey {
			k, err := w.ledger.Key(id)
			w.check(err)
			is.name, is.above, is.quota, is.limits = k.Name, k.Group, k.Quota, k.Limits
		} else {
			g, err := w.ledger.Group(id)
			w.check(err)
			is.name, is.above, is.quota, is.limits, is.member = g.Name, g.Parent, g.Quota, g.Limits, g.Member
		}
		if !reflect.DeepEqual(is, rule) {
			return false
		}
	}
	return true
}

// greatKeys checks that a batch of keys is there whole or not at all.
func (w *simWorld) greatKeys() {
	n := 0
	w.check(w.ledger.Keys(0, func(k *quota.Key) bool {
		if strings.HasPrefix(k.Name, "great") {
			n++
		}
		return true
	}))
	if n != w.fat && !(w.fatNow && n == simBatch) {
		w.fail("%d great keys are there, want %d", n, w.fat)
	}
	w.fat, w.fatNow = n, false
}
