package ledger

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/store/badger"
)

var simSeed = flag.Uint64("seed", 0, "replay this one life in TestSimulation; or SEED in the environment")

// simStats counts what was simulated.
type simStats struct {
	seeds, steps, admitted, refused, settled, swept, lookups int

	crashes, losses, torn, restarts, again int

	ops map[string]int
	at  map[string]int
}

func (s *simStats) add(o *simStats) {
	v, from := reflect.ValueOf(s).Elem(), reflect.ValueOf(o).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.Int {
			*(*int)(f.Addr().UnsafePointer()) += int(from.Field(i).Int())
		}
	}
	for name, n := range o.ops {
		s.ops[name] += n
	}
	for name, n := range o.at {
		s.at[name] += n
	}
}

// simSteps is how many operations a life has.
const simSteps = 250

// live is one random life.
func live(t testing.TB, seed uint64, dir string) *simStats {
	w := &simWorld{
		t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 0)),
		stats: &simStats{seeds: 1, ops: map[string]int{}},
		rules: &simRules{"UTC", map[quota.ID]simRule{}},
		twin:  &simTwin{accounts: map[quota.ID]simAccount{}}, open: map[int]*Reservation{},
	}
	w.disk = newSimDisk(w.rng, dir)
	w.stats.at = w.disk.at
	w.sync = simPick(w, []time.Duration{0, time.Second, time.Second})
	w.clock.start, w.far, w.carries = w.begin(), w.chance(3), w.chance(3)
	w.clock.mono = 1
	defer func() {
		if w.store != nil && w.store.Store != nil {
			w.disk.dead = true
			w.store.Close()
		}
	}()
	w.disk.revive(-1)
	w.openStore()
	w.build()
	w.snap(w.store.last)
	for range simSteps {
		w.live1()
	}
	w.restart("stop")
	w.audit()
	w.verify()
	return w.stats
}

// begin returns a time, often a day before the clocks of some zone are put.
func (w *simWorld) begin() time.Time {
	t := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(w.rng.Int64N(int64(600 * 24 * time.Hour))))
	zone, err := quota.LoadZone(simPick(w, simZones))
	w.check(err)
	if _, end := t.In(zone).ZoneBounds(); !end.IsZero() && w.chance(2) {
		t = end.Add(-time.Duration(w.rng.Int64N(int64(36 * time.Hour)))).UTC()
	}
	return t
}

// live1 does one operation, or ends the process in one way or the other.
func (w *simWorld) live1() {
	w.stats.steps++
	w.disk.fuse = -1
	if w.chance(12) {
		w.disk.fuse = w.rng.IntN(12) // it dies in this one, if it goes so far
	}
	w.advance(nil)
	switch op := w.rng.IntN(60); {
	case w.disk.dead:
	case op == 0:
		w.disk.fuse = -1
		w.restart("stop")
	case op <= 2:
		w.disk.dead = true
	default:
		w.drawOp()()
	}
	w.snap(w.store.last)
	if !w.disk.dead && !w.chance(8) { // accounts may rest a while
		w.verify()
		w.snap(w.store.last)
	}
	for w.disk.dead {
		w.restart(simPick(w, []string{"crash", "crash", "power loss"}))
	}
	if w.store.doubled != "" {
		w.fail("%s", w.store.doubled)
	}
}

// snap keeps the twin as it is at that record.
func (w *simWorld) snap(seq uint64) {
	w.snaps = append(w.snaps, simSnap{seq, w.twin.clone()})
}

// build makes the accounts.
func (w *simWorld) build() {
	w.seen = w.clock.now().UnixNano()
	w.config = w.drawConfig()
	w.owners++
	w.check(w.ledger.Apply(w.clock.now(), w.owners, w.config))
	for _, name := range []string{"config group", "config key 0", "config key 1"} {
		kind := quota.KindKey
		if name == "config group" {
			kind = quota.KindGroup
		}
		id, err := w.ledger.Find(kind, name)
		w.check(err)
		w.rules.accounts[id] = simRule{name: name, config: true}
	}
	w.configure(w.rules, w.config)
	w.replaced = []*simRules{w.rules}
	groups := []quota.ID{0}
	for i := range 2 {
		rule := simRule{name: fmt.Sprint("group ", i), above: simPick(w, groups), quota: w.quota(), limits: w.limits()}
		rule.member = quota.Member{Quota: w.quota(), Limits: w.limits()}
		spec := NewGroup{Name: rule.name, Parent: rule.above}
		spec.Quota, spec.Limits, spec.Member = rule.quota, rule.limits, rule.member
		g, err := w.ledger.CreateGroup(w.clock.now(), spec)
		w.check(err)
		w.rules.accounts[g.ID] = rule
		groups = append(groups, g.ID)
	}
	for i := range 3 {
		rule := simRule{name: fmt.Sprint("key ", i), above: simPick(w, groups), quota: w.quota(), limits: w.limits()}
		spec := NewKey{Name: rule.name, Group: rule.above}
		spec.Quota, spec.Limits = rule.quota, rule.limits
		made, err := w.ledger.CreateKeys(w.clock.now(), []NewKey{spec})
		w.check(err)
		w.rules.accounts[made[0].Key.ID] = rule
	}
	for id := range w.rules.accounts {
		a, terms := simAccount{}, w.rules.terms(id)
		for kind := range limitKinds {
			if kind == tokenQuota && terms.schedule != nil {
				a.epochs[kind].period = terms.schedule.At(w.clock.now())
			} else if kind == tokensPerDay || kind == requestsPerDay {
				a.epochs[kind].period = terms.day.At(w.clock.now())
			}
		}
		w.twin.accounts[id] = a
	}
}

// TestSimulation lets the ledger and its store live through random lives, in
// which the process is killed between any two steps on its disk, the power
// fails, and the clock is set. After every operation the ledger and the twin
// say the same of every limit, so that G1 to G6, G9 and G10 hold. SEED or -seed
// replays one life, and SIM_DURATION goes on with new ones for that long.
func TestSimulation(t *testing.T) {
	seed, until := *simSeed, time.Duration(0)
	var err error
	if s := os.Getenv("SEED"); s != "" {
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	if s := os.Getenv("SIM_DURATION"); s != "" {
		if until, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	if seed != 0 {
		stats := live(t, seed, t.TempDir())
		stats.log(t)
		return
	}
	simulate(t, until)
}

// simLives is how many lives an everyday test has.
const simLives = 8

func simulate(t *testing.T, until time.Duration) {
	begun, lives := time.Now(), uint64(simLives)
	first := uint64(1)
	if until > 0 {
		first, lives = rand.Uint64()>>16, 1<<40
	} else if testing.Short() {
		lives = 3
	}
	var mu sync.Mutex
	total := &simStats{ops: map[string]int{}, at: map[string]int{}}
	next := first
	take := func() (uint64, bool) {
		mu.Lock()
		defer mu.Unlock()
		if next-first >= lives || t.Failed() || until > 0 && time.Since(begun) > until {
			return 0, false
		}
		next++
		return next - 1, true
	}
	t.Run("lives", func(t *testing.T) {
		for i := range 2 {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				for {
					seed, ok := take()
					if !ok {
						return
					}
					sub := filepath.Join(dir, fmt.Sprint(seed))
					stats := live(t, seed, sub)
					if err := os.RemoveAll(sub); err != nil {
						t.Fatal(err)
					}
					mu.Lock()
					total.add(stats)
					mu.Unlock()
				}
			})
		}
	})
	total.log(t)
	if t.Failed() {
		return
	}
	if total.crashes == 0 || total.losses == 0 || total.lookups == 0 {
		t.Error("nothing happened")
	}
	if total.seeds < 200 {
		return
	}
	for _, step := range []badger.Step{
		badger.StepCreate, badger.StepWrite, badger.StepTruncate, badger.StepSync, badger.StepSyncDir, badger.StepRemove,
		badger.StepCommit, badger.StepMark, badger.StepRedo, badger.StepRedoDone,
	} {
		for _, when := range []string{"before ", "after "} {
			if total.at[when+string(step)] == 0 {
				t.Errorf("the process never died %s%s", when, step)
			}
		}
	}
	if total.torn == 0 {
		t.Error("no record was torn")
	}
}

func (s *simStats) log(t *testing.T) {
	t.Logf("%d lives of %d operations: %d calls admitted, %d refused, %d settled, %d swept; %d starts: after %d crashes (%d with a torn record), %d power losses, %d of them while starting; the clock was set %d times; lost, leaked and doubled: 0",
		s.seeds, s.steps, s.admitted, s.refused, s.settled, s.swept, s.restarts, s.crashes, s.torn, s.losses, s.again, s.ops["step"])
	t.Logf("the process died %s", simPoints(s.at))
	names := make([]string, 0, len(s.ops))
	for name, n := range s.ops {
		names = append(names, fmt.Sprintf("%s %d", name, n))
	}
	slices.Sort(names)
	t.Logf("operations: %s; limits looked up in the history %d", strings.Join(names, ", "), s.lookups)
}
