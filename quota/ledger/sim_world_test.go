package ledger

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/store/badger"
)

// simStore is the real store, of which it notes what it promised.
type simStore struct {
	*badger.Store
	disk      *simDisk
	last      uint64 // the last record appended
	acked     uint64 // the last that Flush has returned for
	synced    uint64 // the last that Sync has returned for
	survived  uint64 // the last that Recover found
	recovered bool
	settled   []uint64
	settles   map[uint64]uint64 // the settlements that were appended, by reservation
	turns     map[simTurn]quota.Period
	doubled   string
}

type simTurn struct {
	id    quota.ID
	limit quota.LimitName
}

func (s *simStore) Append(r *quota.Record) uint64 {
	s.last = s.Store.Append(r)
	switch r.Kind {
	case quota.RecordSettle:
		if before := s.settles[r.ID]; before != 0 {
			s.doubled = fmt.Sprintf("reservation %d is settled by records %d and %d", r.ID, before, s.last)
		}
		s.settles[r.ID] = s.last
		s.settled = append(s.settled, r.ID)
	case quota.RecordTurn:
		t := simTurn{r.Account, r.Limit}
		if s.turns[t] == r.Period {
			s.doubled = fmt.Sprintf("%s of %v turns twice to %v", r.Limit, r.Account, r.Period)
		}
		s.turns[t] = r.Period
	case quota.RecordSet: // it may be led back
		delete(s.turns, simTurn{r.Account, r.Limit})
	}
	return s.last
}

func (s *simStore) Flush(seq uint64) error {
	err := s.Store.Flush(seq)
	if err == nil && !s.disk.dead {
		s.acked = max(s.acked, seq)
	}
	return err
}

func (s *simStore) Sync(now int64) error {
	acked := s.acked
	err := s.Store.Sync(now)
	if err == nil && !s.disk.dead {
		s.synced = max(s.synced, acked)
	}
	return err
}

func (s *simStore) Recover(open, replay func(*quota.Record) error) (uint64, error) {
	through, err := s.Store.Recover(open, func(r *quota.Record) error {
		s.survived = max(s.survived, r.Seq)
		if r.Kind == quota.RecordSettle {
			s.settles[r.ID] = r.Seq
		}
		return replay(r)
	})
	s.survived = max(s.survived, through)
	s.last, s.recovered = s.survived, err == nil
	return through, err
}

// simWorld is a ledger on its store, and the twin, under one random life.
type simWorld struct {
	t     testing.TB
	rng   *rand.Rand
	seed  uint64
	stats *simStats
	done  []string // the operations so far

	clock    simClock
	disk     *simDisk
	sync     time.Duration
	store    *simStore
	ledger   *Keeper
	config   *Config
	owners   int
	replaced []*simRules // the rules before each configuration that holds

	rules    *simRules
	before   *simRules // what they were before the change that is under way
	carrying bool      // a key is being carried: its use may have left one group and not entered the other
	carries  bool      // keys are carried in this life
	slack    int64     // what was ever carried
	fat      int       // how many great keys there are
	fatNow   bool      // a batch of them is being made

	twin  *simTwin
	snaps []simSnap // the twin at each record since the last start
	calls int

	seen   int64 // the ledger's time
	latest int64 // the latest that it ever was
	far    bool  // the clock may be set back far in this life
	// setBack says that it was, again that it was more than once, and lost that
	// what the twin knew of periods does not hold any more.
	setBack, again, lost bool
	booting              bool // what was looked up before the start may be kept or not

	base int64 // what must be added to clock.mono to get the windows' clock
	// What is known of windows after a start goes by these times of clock.mono.
	// Until fuzzy, they are in doubt, since their clock was set back; until leap,
	// they may lack what looked old to it. read is when accounts were last read
	// from the tables, unread that some are not in memory.
	fuzzy, leap, read int64
	unread            bool
	behind            bool // their clock was ever set back
	earlier           bool // after a start the ledger's time was ever before the latest that it had been

	open  map[int]*Reservation // by the number of the call
	ended []*Reservation
}

type simSnap struct {
	seq  uint64
	twin *simTwin
}

// fail ends the test, and shows how it came to this.
func (w *simWorld) fail(format string, args ...any) {
	w.t.Helper()
	last := w.done[max(len(w.done)-60, 0):]
	w.t.Fatalf("seed %d, after %d operations: %s\nThe last were:\n\t%s", w.seed, len(w.done), fmt.Sprintf(format, args...), strings.Join(last, "\n\t"))
}

// check fails the test over an error, unless the process has died.
func (w *simWorld) check(err error) {
	if err != nil && !w.disk.dead {
		w.t.Helper()
		w.fail("%v", err)
	}
}

func (w *simWorld) note(format string, args ...any) {
	w.done = append(w.done, fmt.Sprintf("%s ", w.wall().Format("2006-01-02 15:04:05.000"))+fmt.Sprintf(format, args...))
}

func (w *simWorld) chance(of int) bool { return w.rng.IntN(of) == 0 }

func simPick[T any](w *simWorld, from []T) T { return from[w.rng.IntN(len(from))] }

// wall is the ledger's time, as clock.go describes it.
func (w *simWorld) wall() time.Time {
	now := w.clock.now()
	switch t := now.UnixNano(); {
	case t >= w.seen && t < w.seen+int64(clockGrain):
	case t < w.seen && t >= w.seen-int64(maxStep):
		return time.Unix(0, w.seen).UTC()
	}
	return now
}

// look does what looking at the clock does, and has the ledger do so.
func (w *simWorld) look() time.Time {
	now := w.wall()
	w.ledger.wall(w.clock.now())
	if now.UnixNano() < w.seen-int64(maxStep) {
		w.again = w.setBack
		w.setBack, w.lost = true, true
		clear(w.store.turns)
	}
	w.latest = max(w.latest, now.UnixNano())
	if t := now.UnixNano(); t < w.seen || t >= w.seen+int64(clockGrain) {
		w.seen = t
	}
	return now
}

func (w *simWorld) tick() int64 { return w.base + w.clock.mono }

// advance brings the twin to the present, and finds what must be looked up.
func (w *simWorld) advance(changed map[quota.ID]bool) {
	now := w.look()
	lookups := w.twin.advance(now, w.rules, changed)
	if w.lost || w.setBack { // what is looked up depends on when an account was last used and read
		lookups = w.twin.others(lookups, w.rules)
	}
	for _, u := range lookups {
		if w.lookUp(now, u); w.disk.dead {
			return
		}
	}
	w.lost = false
}

// lookUp takes over what the ledger says of a limit whose use it had to look
// up, if it lies within what is right.
func (w *simWorld) lookUp(now time.Time, u simLookup) {
	_, err := w.ledger.State(w.clock.now(), u.id)
	w.check(err)
	if w.disk.dead {
		return
	}
	was := w.twin.accounts[u.id].epochs[u.kind]
	found, in := w.account(u.id).counter(u.kind)
	ended, rested := over(in, now), false
	switch {
	case was.old && in == was.period && !ended && !w.lost && !w.setBack:
		return
	case in == u.want:
	case ended: // nothing is used until it is turned
		found = 0
		if u.want.Start > now.Unix() { // it had begun by a clock that was set back at the start
			u.want = u.at(now)
		}
	case (w.lost || w.setBack || was.period.Start > now.Unix()) && in.Holds(now.Unix()): // it has not been used since, and goes on
		u.want, rested = in, true
	default:
		w.fail("%s of %v has the period %v, want %v", u.kind.name(), u.id, in, u.want)
	}
	sure, most := w.bounds(u, ended, rested)
	if found < sure || found > most {
		w.fail("%s of %v is %d after its period became %v; it was used %d to %d since then", u.kind.name(), u.id, found, u.want, sure, most)
	}
	w.twin.lookedUp(now, u, func(c *simCall) bool { return !ended && w.goesOn(c, u) })
	a := w.twin.accounts[u.id]
	switch {
	case u.kind == tokenQuota && ended:
		a.granted = 0
	case u.kind == tokenQuota && (w.lost || w.setBack || w.booting):
		a.granted = w.account(u.id).quota.granted
	}
	under := w.twin.state(u.id, w.rules, w.tick())[u.kind].used
	a.epochs[u.kind].found, a.epochs[u.kind].old = found-under, rested
	w.twin.accounts[u.id] = a
	w.stats.lookups++
}

// bounds returns what a limit that was looked up must and may say. A clock that
// was set back far leaves more open: what was used while it was ahead counts in
// the period that it was led back to, and not again in its own, and what was
// under way then may count in neither.
func (w *simWorld) bounds(u simLookup, ended, rested bool) (sure, most int64) {
	a := w.twin.accounts[u.id]
	reset := map[limitKind]int64{tokenQuota: a.reset, tokensPerDay: a.dayZero, requestsPerDay: a.reqZero}[u.kind]
	late := max(u.want.Start, reset+1)
	// What was carried away may count no more, nor what was under way at a crash
	// that came when the limit had been looked up.
	least := func(start int64) int64 {
		return max(w.twin.since(u, start, false, w.setBack || w.booting)-w.slack, 0)
	}
	greatest := func(start int64) int64 { return w.twin.since(u, start, true, w.setBack) + w.slack }
	switch {
	case u.again, rested:
		return 0, greatest(0)
	case u.kind == tokenQuota && u.schedule.Reset == quota.ResetManual:
		if u.stood || w.setBack || w.booting { // it went on counting, from the beginning of the last period or from its end
			return 0, greatest(0)
		}
		sure = w.twin.state(u.id, w.rules, w.tick())[u.kind].used
		return sure, sure
	case w.setBack && (w.again || ended || reset != 0 || u.kind == requestsPerDay):
		return 0, greatest(0)
	case w.setBack:
		return least(u.want.Start), greatest(0)
	case u.kind == tokenQuota: // the history knows minutes
		if w.earlier { // what came after a reset may be of a time before it
			reset -= int64(maxStep / time.Second)
		}
		return least(w.knownFrom(late)), greatest(max(u.want.Start, reset) / 60 * 60)
	}
	// A reset by hand of a day is not known to the history.
	return least(w.knownFrom(late)), greatest(u.want.Start)
}

// knownFrom returns the first Unix second, not before t, from which on the
// history knows what was used: it knows minutes and, once they are dropped,
// quarters of an hour.
func (w *simWorld) knownFrom(t int64) int64 {
	pruned, err := w.ledger.store.Pruned()
	w.check(err)
	if t < pruned[quota.StepMinute] {
		return ceil(quota.StepQuarter, t)
	}
	return ceil(quota.StepMinute, t)
}

// account returns an account in the ledger's memory.
func (w *simWorld) account(id quota.ID) *Account {
	a, err := w.ledger.Account(w.clock.now(), id)
	w.check(err)
	return a
}

// goesOn tells whether a call under way counts in the present period of a limit.
func (w *simWorld) goesOn(c *simCall, u simLookup) bool {
	a, r := w.account(u.id), w.open[c.id]
	for i := range r.record.Shares {
		if s := &r.record.Shares[i]; s.Account == u.id {
			return u.kind == tokenQuota && s.Quota == a.quota.number || u.kind != tokenQuota && s.Day == a.day.number
		}
	}
	return false
}

// counter returns the counter of a calendar limit, and its period.
func (a *Account) counter(kind limitKind) (int64, quota.Period) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch kind {
	case tokenQuota:
		return a.quota.used, a.quota.period
	case tokensPerDay:
		return a.day.tokens, a.day.period
	}
	return a.day.requests, a.day.period
}

// states returns where the accounts above a key stand. What the twin cannot
// know after a clock was set back at a start is the ledger's.
func (w *simWorld) states(id quota.ID) (states [][limitKinds]limitState) {
	for _, id := range w.rules.chain(id) {
		s := w.twin.state(id, w.rules, w.tick())
		for _, kind := range []limitKind{requestsPerMinute, tokensPerMinute} {
			if _, _, doubt := w.window(id, kind); !doubt {
				continue
			}
			got, err := w.ledger.State(w.clock.now(), id)
			w.check(err)
			if w.disk.dead {
				return states
			}
			for _, l := range got.Limits {
				if l.Limit == kind.name() {
					s[kind].used = l.Used
				}
			}
		}
		states = append(states, s)
	}
	return states
}
