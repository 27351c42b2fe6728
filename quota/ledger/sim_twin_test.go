package ledger

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/llm-quota/caddy-llm-quota/limiter"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

// simRules is the directory as the twin knows it: what is set, by account.
type simRules struct {
	zone     string
	accounts map[quota.ID]simRule
}

type simRule struct {
	name   string
	above  quota.ID
	quota  *quota.Quota
	limits quota.Limits
	member quota.Member // of a group
	config bool         // it is the configuration's
}

func (r *simRules) clone() *simRules {
	return &simRules{r.zone, maps.Clone(r.accounts)}
}

// simTerms is what holds for an account.
type simTerms struct {
	schedule, day *quota.Schedule // schedule is nil without a quota
	max           [limitKinds]int64
}

func (r *simRules) terms(id quota.ID) simTerms {
	a := r.accounts[id]
	q, limits := a.quota, a.limits
	if id.Kind() == quota.KindKey && a.above != 0 {
		member := r.accounts[a.above].member
		limits = limits.Or(member.Limits)
		if q == nil {
			q = member.Quota
		}
	}
	var t simTerms
	t.max[tokenQuota] = none
	for kind := range limitKinds {
		if b := limits.Bound(kind.name()); b != nil {
			t.max[kind] = bound(*b)
		}
	}
	zone := r.zone
	if q != nil {
		zone = cmp.Or(q.TimeZone, zone)
		if n, ok := q.Tokens.Max(); ok {
			t.max[tokenQuota] = n
			t.schedule, _ = q.Schedule(r.zone)
		}
	}
	t.day, _ = quota.Quota{Reset: quota.ResetDaily}.Schedule(zone)
	return t
}

// chain returns the account and all above it.
func (r *simRules) chain(id quota.ID) (ids []quota.ID) {
	for ; id != 0; id = r.accounts[id].above {
		ids = append(ids, id)
	}
	return ids
}

// simTwin is the ledger again, slow and plain: it remembers every call, and
// counts from the beginning whenever it is asked.
type simTwin struct {
	accounts map[quota.ID]simAccount
	calls    []simCall
	refused  []simRefusal
	began    int64 // when the process did, by the clock that runs evenly
}

// simAccount is what an account counts by.
type simAccount struct {
	epochs  [limitKinds]simEpoch
	granted int64
	stood   bool  // it was without a quota since its period began
	reset   int64 // Unix second of the quota's last reset by hand
	dayZero int64 // the same of tokens_per_day
	reqZero int64 // the same of requests_per_day
}

// simEpoch is what a limit counts in: a new one begins with each period, each
// reset, and each time that the use is found anew.
type simEpoch struct {
	number int
	period quota.Period
	found  int64 // what was used in it before, where that was looked up
	old    bool  // of an earlier schedule, to which a clock that was set back led
}

type simCall struct {
	key, group            quota.ID
	id                    int
	at, ended             int64 // the ledger's time, Unix nanoseconds
	tick, endTick, mono   int64
	endMono               int64
	input, held, charge   int64
	open, failed, guessed bool
	crashed               bool // it was under way at a crash
	later                 string
	shares                []simShare // never changed: replaced
}

type simShare struct {
	id     quota.ID
	epochs [limitKinds]int
}

type simRefusal struct {
	key, group quota.ID
	at         int64
}

func (t *simTwin) clone() *simTwin {
	return &simTwin{maps.Clone(t.accounts), slices.Clone(t.calls), slices.Clone(t.refused), t.began}
}

// ids returns all accounts, in order.
func (t *simTwin) ids() []quota.ID { return slices.Sorted(maps.Keys(t.accounts)) }

// next begins an epoch.
func (a *simAccount) next(kind limitKind, p quota.Period, found int64) {
	a.epochs[kind] = simEpoch{number: a.epochs[kind].number + 1, period: p, found: found}
	if kind == tokenQuota {
		a.granted = 0
	}
}

// simLookup is a limit whose use must be looked up in the history: its schedule
// was changed, or the clock was set back far.
type simLookup struct {
	id   quota.ID
	kind limitKind
	want quota.Period
	simTerms
	stood bool // it was without a quota before
	again bool // the period is the same as before, but maybe not what is counted in it
}

// at returns the period that the limit's schedule has at a time.
func (u *simLookup) at(t time.Time) quota.Period {
	if u.kind == tokenQuota {
		return u.schedule.At(t)
	}
	return u.day.At(t)
}

// advance begins the periods that hold at now, and returns what it cannot tell
// by itself.
func (t *simTwin) advance(now time.Time, rules *simRules, changed map[quota.ID]bool) (lookups []simLookup) {
	for _, id := range t.ids() {
		a, terms := t.accounts[id], rules.terms(id)
		for _, kind := range []limitKind{tokenQuota, requestsPerDay, tokensPerDay} {
			schedule := terms.day
			if kind == tokenQuota {
				schedule = terms.schedule
			}
			if schedule == nil {
				a.stood = true
				continue
			}
			want, is, stood := schedule.At(now), a.epochs[kind].period, kind == tokenQuota && a.stood
			if kind == tokenQuota {
				a.stood = false
			}
			switch soon := is.Start > now.Unix() && is.Start <= now.Add(clockGrain).Unix(); {
			case is == want, soon && !changed[id]:
			case over(is, now) && !stood && (schedule.At(time.Unix(is.Start, 0)) == is || t.lastUsed(id) < want.Start):
				a.next(kind, want, 0)
			default:
				lookups = append(lookups, simLookup{id, kind, want, terms, stood, false})
			}
		}
		t.accounts[id] = a
	}
	return lookups
}

// others adds what else can be looked up.
func (t *simTwin) others(lookups []simLookup, rules *simRules) []simLookup {
	for _, id := range t.ids() {
		a, terms := t.accounts[id], rules.terms(id)
		for _, kind := range []limitKind{tokenQuota, requestsPerDay, tokensPerDay} {
			there := slices.ContainsFunc(lookups, func(u simLookup) bool { return u.id == id && u.kind == kind })
			if !there && (kind != tokenQuota || terms.schedule != nil) {
				lookups = append(lookups, simLookup{id, kind, a.epochs[kind].period, terms, false, true})
			}
		}
	}
	return lookups
}

// lookedUp takes over that a limit was looked up. Those calls under way count
// in what was found that the ledger says do.
func (t *simTwin) lookedUp(now time.Time, u simLookup, goesOn func(*simCall) bool) {
	a := t.accounts[u.id]
	was, granted := a.epochs[u.kind], a.granted
	a.next(u.kind, u.want, 0)
	if !over(was.period, now) {
		a.granted = granted
	}
	t.accounts[u.id] = a
	for i := range t.calls {
		c := &t.calls[i]
		k := c.share(u.id)
		if k < 0 {
			continue
		}
		c.later = "" // whether its charge is in what was found cannot be told
		if c.open && goesOn(c) {
			c.shares = slices.Clone(c.shares)
			c.shares[k].epochs[u.kind] = a.epochs[u.kind].number
		}
	}
}

func (c *simCall) share(id quota.ID) int {
	return slices.IndexFunc(c.shares, func(s simShare) bool { return s.id == id })
}

// state counts where an account stands.
func (t *simTwin) state(id quota.ID, rules *simRules, tick int64) (s [limitKinds]limitState) {
	a, terms := t.accounts[id], rules.terms(id)
	counted := func(at int64) bool {
		return limiter.Bucket(at)+limiter.Buckets > limiter.Bucket(tick)
	}
	for kind := range limitKinds {
		s[kind].max, s[kind].used = terms.max[kind], a.epochs[kind].found
	}
	if s[tokenQuota].max != none {
		s[tokenQuota].max = max(s[tokenQuota].max+a.granted, 0)
	}
	for i := range t.calls {
		c := &t.calls[i]
		k := c.share(id)
		if k < 0 {
			continue
		}
		in := func(kind limitKind) bool { return c.shares[k].epochs[kind] == a.epochs[kind].number }
		charge, held := c.charge, int64(0)
		if c.open {
			charge, held = 0, c.held
			s[concurrent].used++
		}
		for _, kind := range []limitKind{tokenQuota, tokensPerDay} {
			if in(kind) {
				s[kind].used += charge
				s[kind].reserved += held
			}
		}
		if in(requestsPerDay) {
			s[requestsPerDay].used++
		}
		if in(requestsPerMinute) && counted(c.tick) {
			s[requestsPerMinute].used++
		}
		if !in(tokensPerMinute) {
			continue
		}
		if counted(c.tick) {
			s[tokensPerMinute].used += min(charge+held, c.held)
		}
		if c.charge > c.held && !c.open && counted(c.endTick) {
			s[tokensPerMinute].used += c.charge - c.held
		}
	}
	return s
}

// admit tells whether a call fits everywhere, and how much would be held.
func (c Call) simAdmit(states [][limitKinds]limitState) (held int64, ok bool) {
	held, ok = c.Input+c.Output, true
	if c.Input == 0 {
		held = 0
	}
	for _, state := range states {
		for kind, s := range state {
			if s.max == none {
				continue
			}
			need := int64(1)
			if limitKind(kind).tokens() {
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

// take notes an admission.
func (t *simTwin) take(c simCall, rules *simRules) {
	c.open, c.group = true, rules.accounts[c.key].above
	for _, id := range rules.chain(c.key) {
		s := simShare{id: id}
		for kind, e := range t.accounts[id].epochs {
			s.epochs[kind] = e.number
		}
		c.shares = append(c.shares, s)
	}
	t.calls = append(t.calls, c)
}

// call returns the call of that id.
func (t *simTwin) call(id int) *simCall {
	for i := range t.calls {
		if t.calls[i].id == id {
			return &t.calls[i]
		}
	}
	return nil
}

// resetLimit resets a limit by hand.
func (t *simTwin) resetLimit(id quota.ID, kind limitKind, now time.Time) {
	a := t.accounts[id]
	a.next(kind, a.epochs[kind].period, 0)
	switch kind {
	case tokenQuota:
		a.reset = now.Unix()
	case tokensPerDay:
		a.dayZero = now.Unix()
	case requestsPerDay:
		a.reqZero = now.Unix()
	}
	t.accounts[id] = a
}

// since sums what an account used of calls admitted since the Unix second start.
// Calls under way are requests, too. most adds those that were under way when
// the process began, which may have gone on in a period that they do not lie in,
// and the least lacks what was ever under way at a crash, if the clock was set
// back.
func (t *simTwin) since(u simLookup, start int64, most, setBack bool) (sum int64) {
	for i := range t.calls {
		c := &t.calls[i]
		went := most && c.crashed && c.endMono == t.began
		if c.share(u.id) < 0 || c.at/int64(time.Second) < start && !went {
			continue
		}
		switch {
		case u.kind == requestsPerDay:
			sum++
		case !c.open && !(c.crashed && setBack && !most):
			sum += c.charge
		}
	}
	return sum
}

// in sums what a key was settled to have used, while in a group of its own, of
// calls admitted from start to end, Unix seconds; 0: no end.
func (t *simTwin) in(key, own quota.ID, kind limitKind, start, end int64) (sum int64) {
	for i := range t.calls {
		c := &t.calls[i]
		at := c.at / int64(time.Second)
		switch {
		case c.open || c.key != key || c.group != own || at < start || end != 0 && at >= end:
		case kind == requestsPerDay:
			sum++
		default:
			sum += c.charge
		}
	}
	return sum
}

// lastUsed returns the Unix second of an account's last admission.
func (t *simTwin) lastUsed(id quota.ID) (last int64) {
	for i := range t.calls {
		if c := &t.calls[i]; c.share(id) >= 0 {
			last = max(last, c.at/int64(time.Second))
		}
	}
	return last
}
