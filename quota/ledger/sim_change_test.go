package ledger

import (
	"fmt"
	"slices"
	"strings"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func (w *simWorld) bound(top int64) quota.Bound {
	switch w.rng.IntN(6) {
	case 0:
		return quota.Unlimited
	case 1, 2:
		return quota.Bound{}
	case 3:
		if w.chance(4) {
			return quota.At(0)
		}
	}
	return quota.At(1 + w.rng.Int64N(top))
}

func (w *simWorld) limits() quota.Limits {
	return quota.Limits{
		RequestsPerMinute: w.bound(12), TokensPerMinute: w.bound(4000), RequestsPerDay: w.bound(40),
		TokensPerDay: w.bound(12_000), ConcurrentRequests: w.bound(8),
	}
}

// simZones have midnights that are skipped or come twice, and odd offsets.
var simZones = []string{
	"UTC", "America/New_York", "Asia/Kathmandu", "Africa/Cairo", "America/Santiago",
	"Asia/Beirut", "America/Havana", "Australia/Lord_Howe", "Pacific/Apia",
}

func (w *simWorld) quota() *quota.Quota {
	switch w.rng.IntN(8) {
	case 0, 1:
		return nil
	case 2:
		return &quota.Quota{Tokens: quota.Unlimited}
	}
	q := &quota.Quota{
		Tokens: quota.At(w.rng.Int64N(20_000)),
		Reset:  simPick(w, []quota.Reset{quota.ResetDaily, quota.ResetDaily, quota.ResetWeekly, quota.ResetMonthly, quota.ResetManual}),
	}
	if w.chance(2) {
		q.TimeZone = simPick(w, simZones)
	}
	if q.Reset != quota.ResetManual {
		q.At = simPick(w, []string{"", "", "06:00", "23:59", "02:30"})
	}
	if q.Reset == quota.ResetMonthly {
		q.MonthDay = simPick(w, []quota.MonthDay{0, 31, quota.LastDay})
	}
	return q
}

// direct changes the directory: both at once, or neither if the process dies.
func (w *simWorld) direct(change func(*simRules), do func() error) {
	w.before = w.rules
	w.rules = w.before.clone()
	change(w.rules)
	w.check(do())
	if !w.disk.dead {
		w.directed()
	}
}

// directed brings the twin in accord with changed rules.
func (w *simWorld) directed() {
	changed := map[quota.ID]bool{}
	for _, id := range w.twin.ids() {
		changed[id] = true
	}
	w.before = nil
	w.advance(changed)
}

func (w *simWorld) setRule(id quota.ID, change func(*simRule)) {
	edit := func(r *simRules) {
		rule := r.accounts[id]
		change(&rule)
		r.accounts[id] = rule
	}
	w.direct(edit, func() (err error) {
		rule := w.rules.accounts[id]
		if id.Kind() == quota.KindKey {
			_, err = w.ledger.UpdateKey(w.clock.now(), id, func(k *quota.Key) error {
				k.Group, k.Quota, k.Limits = rule.above, rule.quota, rule.limits
				return nil
			})
			return err
		}
		_, err = w.ledger.UpdateGroup(w.clock.now(), id, func(g *quota.Group) error {
			g.Parent, g.Quota, g.Limits, g.Member = rule.above, rule.quota, rule.limits, rule.member
			return nil
		})
		return err
	})
}

func (w *simWorld) changeLimits() {
	id := simPick(w, append(w.api(quota.KindKey), w.api(quota.KindGroup)...))
	w.note("set the limits of %v", id)
	w.setRule(id, func(r *simRule) { r.limits = w.limits() })
}

func (w *simWorld) changeQuota() {
	id := simPick(w, append(w.api(quota.KindKey), w.api(quota.KindGroup)...))
	q := w.quota()
	w.note("set the quota of %v to %+v", id, q)
	w.setRule(id, func(r *simRule) { r.quota = q })
}

func (w *simWorld) changeMember() {
	id := simPick(w, w.api(quota.KindGroup))
	w.note("set what members of %v inherit", id)
	w.setRule(id, func(r *simRule) { r.member = quota.Member{Quota: w.quota(), Limits: w.limits()} })
}

func (w *simWorld) moveKey() {
	id, to := simPick(w, w.api(quota.KindKey)), simPick(w, w.of(quota.KindGroup, 0))
	w.note("move %v to %v", id, to)
	w.setRule(id, func(r *simRule) { r.above = to })
}

// carryKey moves a key with what it used in its group.
func (w *simWorld) carryKey() {
	id, to := simPick(w, w.api(quota.KindKey)), simPick(w, w.of(quota.KindGroup, 0))
	from := w.rules.accounts[id].above
	if !w.carries || from == to {
		return
	}
	w.note("carry %v from %v to %v", id, from, to)
	left, entered := w.rules.chain(from), w.rules.chain(to)
	for i := range w.twin.calls { // a correction counts where the call was charged, and not where it was carried
		if c := &w.twin.calls[i]; c.key == id {
			c.later = ""
		}
	}
	w.carrying = true
	w.slack += w.twin.in(id, from, tokensPerDay, 0, 0) + w.twin.in(id, from, requestsPerDay, 0, 0)
	w.direct(func(r *simRules) {
		rule := r.accounts[id]
		rule.above = to
		r.accounts[id] = rule
	}, func() error {
		_, err := w.ledger.CarryKey(w.clock.now(), id, func(k *quota.Key) error { k.Group = to; return nil })
		return err
	})
	for _, g := range left {
		if !slices.Contains(entered, g) {
			w.carried(id, from, g, -1)
		}
	}
	for _, g := range entered {
		if !slices.Contains(left, g) {
			w.carried(id, from, g, 1)
		}
	}
	w.carrying = w.disk.dead
}

// carried adds to the counters of group g, or takes from them, what a key used
// in its own group in the present periods of g.
func (w *simWorld) carried(key, own, g quota.ID, sign int64) {
	if w.disk.dead || w.setBack {
		return
	}
	a, terms := w.twin.accounts[g], w.rules.terms(g)
	for _, kind := range []limitKind{tokenQuota, tokensPerDay, requestsPerDay} {
		if kind == tokenQuota && terms.schedule == nil {
			continue
		}
		is := w.account(g)
		used, in := is.counter(kind)
		e := &a.epochs[kind]
		if in != e.period {
			w.fail("%s of %v has the period %v after a key was carried, want %v", kind.name(), g, in, e.period)
		}
		least, most := w.knownFrom(in.Start), in.Start
		if kind == tokenQuota && a.reset >= in.Start {
			least, most = w.knownFrom(a.reset+1), a.reset/60*60 // the history knows minutes
		}
		was := w.twin.state(g, w.rules, w.tick())[kind].used
		lo, hi := w.twin.in(key, own, kind, least, in.End), w.twin.in(key, own, kind, most, in.End)
		if sign < 0 {
			lo, hi = max(-hi, -was), max(-lo, -was)
		}
		if n := used - was; n < lo || n > hi {
			w.fail("%s of %v changed by %d when a key was carried, want %d to %d", kind.name(), g, n, lo, hi)
		}
		e.found += used - was
	}
	w.twin.accounts[g] = a
}

func (w *simWorld) moveGroup() {
	id, to := simPick(w, w.api(quota.KindGroup)), simPick(w, w.of(quota.KindGroup, 0))
	if slices.Contains(w.rules.chain(to), id) || len(w.rules.chain(to)) > 3 {
		return
	}
	w.note("move group %v to %v", id, to)
	w.setRule(id, func(r *simRule) { r.above = to })
}

// drawConfig makes a configuration of the same accounts.
func (w *simWorld) drawConfig() *Config {
	c := &Config{Zone: simPick(w, simZones)}
	if w.config != nil && w.chance(2) {
		c.Zone = w.config.Zone
	}
	g := ConfigGroup{Name: "config group"}
	g.Quota, g.Limits = w.quota(), w.limits()
	g.Member = quota.Member{Quota: w.quota(), Limits: w.limits()}
	c.Groups = append(c.Groups, g)
	for i := range 2 {
		k := ConfigKey{Name: fmt.Sprint("config key ", i), Secret: fmt.Sprintf("sk-config-%020d", i)}
		k.Quota, k.Limits = w.quota(), w.limits()
		if i == 0 {
			k.Group = g.Name
		}
		if i == 0 || w.config == nil || w.chance(2) { // the other comes and goes
			c.Keys = append(c.Keys, k)
		}
	}
	c, err := c.Resolve(func(s string) (string, error) { return s, nil })
	w.check(err)
	return c
}

// configure sets the rules that follow from a configuration.
func (w *simWorld) configure(r *simRules, c *Config) {
	r.zone = c.Zone
	id := func(name string) quota.ID {
		for id, rule := range r.accounts {
			if rule.name == name && rule.config {
				return id
			}
		}
		return 0
	}
	for _, g := range c.Groups {
		r.accounts[id(g.Name)] = simRule{name: g.Name, quota: g.Quota, limits: g.Limits, member: g.Member, config: true}
	}
	for _, k := range c.Keys {
		r.accounts[id(k.Name)] = simRule{name: k.Name, above: id(k.Group), quota: k.Quota, limits: k.Limits, config: true}
	}
}

func (w *simWorld) reload() {
	c := w.drawConfig()
	w.note("reload: zone %s", c.Zone)
	w.apply(c)
}

// apply makes c the configuration, as a reload or the start does.
func (w *simWorld) apply(c *Config) {
	w.owners++
	w.config = c
	w.replaced = append(w.replaced, w.rules)
	w.direct(func(r *simRules) { w.configure(r, c) }, func() error { return w.ledger.Apply(w.clock.now(), w.owners, c) })
}

// withdraw takes the newest configuration back, as when it failed to start.
func (w *simWorld) withdraw() {
	n := len(w.ledger.applied)
	if n < 2 {
		return
	}
	w.note("withdraw the newest configuration")
	w.config = w.ledger.applied[n-2].config
	was := w.replaced[n-1]
	w.replaced = w.replaced[:n-1]
	w.direct(func(r *simRules) {
		r.zone = w.config.Zone
		for id, rule := range was.accounts {
			if rule.config {
				r.accounts[id] = rule
			}
		}
	}, func() error {
		w.ledger.Withdraw(w.clock.now(), w.ledger.applied[n-1].owner)
		return nil
	})
}

// batch makes many great keys at once, all or none: more than one change of
// the tables holds.
func (w *simWorld) batch() {
	if w.fat > 0 {
		return
	}
	w.note("make a batch of great keys")
	specs := make([]NewKey, simBatch)
	for i := range specs {
		specs[i].Name = fmt.Sprint("great ", i)
		specs[i].Metadata = map[string]string{}
		for n := range 64 {
			specs[i].Metadata[fmt.Sprint(n)] = strings.Repeat("x", 1000)
		}
	}
	if w.chance(2) {
		w.disk.fuse = w.rng.IntN(10)
	}
	w.fatNow = true
	_, err := w.ledger.CreateKeys(w.clock.now(), specs)
	w.check(err)
	if !w.disk.dead {
		w.fat, w.fatNow = simBatch, false
	}
}

// simBatch is how many keys a batch has.
const simBatch = 45
