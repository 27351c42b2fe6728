package ledger

import (
	"math"
	"slices"
	"time"

	"github.com/llm-quota/caddy-llm-quota/limiter"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

// verify compares every account with the twin.
func (w *simWorld) verify() {
	w.advance(nil)
	if w.unread {
		w.read, w.unread = w.clock.mono, false
	}
	for _, id := range w.twin.ids() {
		if w.disk.dead {
			return
		}
		s, err := w.ledger.State(w.clock.now(), id)
		w.check(err)
		if w.disk.dead {
			return
		}
		w.compare(id, s)
	}
	g := w.ledger.Gauges()
	var held int64
	for id := range w.open {
		held += w.twin.call(id).held
	}
	if g.OpenReservations != int64(len(w.open)) || g.ReservedTokens != held {
		w.fail("gauges %+v; the twin has %d open that hold %d", g, len(w.open), held)
	}
}

func (w *simWorld) compare(id quota.ID, s *State) {
	a, want := w.twin.accounts[id], w.twin.state(id, w.rules, w.tick())
	seen := [limitKinds]bool{}
	for _, l := range s.Limits {
		kind := limitKind(slices.Index(quota.LimitNames, l.Limit))
		got := limitState{l.Max, l.Used, l.Reserved}
		seen[kind] = true
		switch kind {
		case requestsPerMinute, tokensPerMinute:
			if _, _, doubt := w.window(id, kind); doubt {
				w.within(id, kind, got.used)
				continue
			}
		case tokenQuota, requestsPerDay, tokensPerDay:
			if end := periodEnd(a.epochs[kind].period); !l.ResetsAt.Equal(end) {
				w.fail("%s of %v resets at %v, want %v", l.Limit, id, l.ResetsAt, end)
			}
		}
		if got != want[kind] {
			w.fail("%s of %v is %+v; the twin says %+v\n%+v\n%+v", l.Limit, id, got, want[kind], w.rules.accounts[id], a)
		}
		if kind == tokenQuota && l.Granted != a.granted {
			w.fail("%v is granted %d; the twin says %d", id, l.Granted, a.granted)
		}
	}
	for kind, c := range want {
		if seen[kind] != (c.max != none) {
			w.fail("%s of %v is there: %v; the twin says %+v", limitKind(kind).name(), id, seen[kind], c)
		}
	}
}

// window is what is known of a limit per minute: by the windows' clock it counts
// most, by the clock that runs evenly it must count sure. They differ when the
// wall clock was set back before a start, since windows go by it then: what lies
// in the future counts from the start, or from when the account is read again,
// for a minute.
func (w *simWorld) window(id quota.ID, kind limitKind) (sure, most int64, doubt bool) {
	now, read := w.tick(), w.clock.mono-w.read < int64(65*time.Second) || w.unread
	for i := range w.twin.calls {
		c := &w.twin.calls[i]
		k := c.share(id)
		if k < 0 || c.shares[k].epochs[kind] != w.twin.accounts[id].epochs[kind].number {
			continue
		}
		in, beyond := int64(1), int64(0)
		if kind == tokensPerMinute {
			in, beyond = min(c.charge, c.held), max(c.charge-c.held, 0)
			if c.open {
				in, beyond = c.held, 0
			}
		}
		count := func(mono, tick, n int64) {
			age := w.clock.mono - mono
			if age < w.minute() && w.clock.mono >= w.leap {
				sure += n
			}
			counts := limiter.Bucket(tick)+limiter.Buckets > limiter.Bucket(now)
			stale := counts && age > int64(65*time.Second)
			if counts && (!stale || read) {
				most += n
			}
			doubt = doubt || stale && n > 0
		}
		count(c.mono, c.tick, in)
		count(c.endMono, c.endTick, beyond)
	}
	if doubt = doubt || w.clock.mono < w.fuzzy || (w.setBack || w.behind) && read; doubt && read {
		most = math.MaxInt64 // what is replayed onto a window of the future counts in its newest bucket
	}
	return sure, most, doubt
}

// minute is the span that a limit per minute holds over. After a start with a
// clock that was set back it may lack one bucket, as the buckets are moved whole.
func (w *simWorld) minute() int64 {
	if w.behind && w.clock.mono-w.twin.began < int64(65*time.Second) {
		return int64(time.Minute) - limiter.BucketWidth
	}
	return int64(time.Minute)
}

// within checks a window that is in doubt.
func (w *simWorld) within(id quota.ID, kind limitKind, got int64) {
	if sure, most, _ := w.window(id, kind); got < sure || got > most {
		w.fail("%s of %v is %d; the last minute had %d, and no more than %d can count", kind.name(), id, got, sure, most)
	}
}

// rolling checks that no span of 60 seconds was charged more than a limit per
// minute admits, by the clock that runs evenly. It is asked after an admission,
// with tokens or without.
func (w *simWorld) rolling(id quota.ID, held bool) {
	if w.clock.mono < w.leap {
		return
	}
	for _, id := range w.rules.chain(id) {
		max, number := w.rules.terms(id).max, w.twin.accounts[id].epochs
		var requests, tokens int64
		for i := range w.twin.calls {
			c := &w.twin.calls[i]
			k := c.share(id)
			if k < 0 {
				continue
			}
			recent := func(mono int64) bool { return w.clock.mono-mono < w.minute() }
			if recent(c.mono) && c.shares[k].epochs[requestsPerMinute] == number[requestsPerMinute].number {
				requests++
			}
			if c.shares[k].epochs[tokensPerMinute] != number[tokensPerMinute].number {
				continue
			}
			switch {
			case c.open:
				if recent(c.mono) {
					tokens += c.held
				}
				continue
			case recent(c.mono):
				tokens += min(c.charge, c.held)
			}
			if recent(c.endMono) && c.charge > c.held {
				tokens += c.charge - c.held
			}
		}
		if n := max[requestsPerMinute]; n != none && requests > n {
			w.fail("%v had %d requests in 60 s; the limit is %d", id, requests, n)
		}
		if n := max[tokensPerMinute]; n != none && held && tokens > n {
			w.fail("%v had %d tokens in 60 s; the limit is %d", id, tokens, n)
		}
	}
}

// audit compares the history with the twin, by key and group and day.
func (w *simWorld) audit() {
	type slot struct {
		start      int64
		key, group quota.ID
	}
	want, byGroup := map[slot]quota.Totals{}, map[slot]quota.Totals{}
	add := func(at int64, key, group quota.ID, t quota.Totals) {
		s := slot{quota.StepDay.Start(at / int64(time.Second)), key, group}
		sum := want[s]
		sum.Add(&t)
		want[s] = sum
		s.key = 0
		sum = byGroup[s]
		sum.Add(&t)
		byGroup[s] = sum
	}
	for i := range w.twin.calls {
		if c := &w.twin.calls[i]; !c.open {
			t := quota.Totals{Requests: 1, Total: c.charge}
			if c.failed {
				t.Failed = 1
			}
			if c.guessed {
				t.Estimated = c.charge
			}
			add(c.at, c.key, c.group, t)
		}
	}
	for _, r := range w.twin.refused {
		add(r.at, r.key, r.group, quota.Totals{Refused: 1})
	}
	for _, byKey := range []bool{true, false} {
		left := byGroup
		if byKey {
			left = want
		}
		found := map[slot]quota.Totals{} // of several rows, while the store cannot be written
		err := w.ledger.Usage(w.clock.now(), quota.RowQuery{Step: quota.StepDay, To: 1 << 40, ByKey: byKey}, func(r *quota.Row) error {
			if r.Input+r.Output != r.Total {
				w.fail("row %+v: input and output are not the total", r)
			}
			s := slot{r.Start, r.Key, r.Group}
			got := found[s]
			got.Add(&r.Totals)
			got.Input, got.Output = 0, 0
			found[s] = got
			return nil
		})
		for s, got := range found {
			if got != left[s] && err == nil {
				w.fail("history of %+v is %+v; the twin says %+v", s, got, left[s])
			}
			delete(left, s)
		}
		w.check(err)
		if len(left) > 0 && !w.disk.dead {
			w.fail("the history lacks %+v", left)
		}
	}
}
