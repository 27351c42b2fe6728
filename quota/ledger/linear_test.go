package ledger

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// The ledger is asked by many at once. Whatever they are told must be what they
// could have been told one after the other, in an order in which nobody comes
// before one who had his answer already. The checker looks for such an order,
// with a model that is obviously right because it does one thing at a time.

// linearOp is one thing that is asked of a key in a group.
type linearOp struct {
	kind          linearKind
	account       int // 0: the key, 1: the group
	call          int // which reservation
	input, output int64
	tokens        int64 // what is charged, or granted
}

type linearKind int

const (
	linearReserve linearKind = iota
	linearSettle
	linearReset
	linearResetMinute
	linearGrant
	linearRead
)

// linearAnswer is what was answered.
type linearAnswer struct {
	admitted bool
	held     int64
	state    linearLimits
}

// linearLimits is where an account stands.
type linearLimits struct{ max, used, reserved, minute, inFlight int64 }

// linearMost is how many reservations a history may have.
const linearMost = 64

// linearState is the model's.
type linearState struct {
	accounts [2]linearAccount
	calls    [linearMost]linearCall
}

type linearAccount struct {
	max, granted, used, reserved int64
	perMinute, minute, inFlight  int64
	concurrent                   int64
	period, minutes              int // grow with each reset
}

type linearCall struct {
	open             bool
	held             int64
	periods, minutes [2]int
}

func (a *linearAccount) limit() int64 { return max(a.max+a.granted, 0) }

func (a *linearAccount) left() int64 {
	return max(min(a.limit()-a.used-a.reserved, a.perMinute-a.minute), 0)
}

// apply does op and returns what is answered.
func (s *linearState) apply(op linearOp) (answer linearAnswer) {
	switch op.kind {
	case linearReserve:
		answer.admitted, answer.held = s.reserve(op)
	case linearSettle:
		s.settle(op)
	case linearReset:
		a := &s.accounts[op.account]
		a.used, a.reserved, a.granted = 0, 0, 0
		a.period++
	case linearResetMinute:
		a := &s.accounts[op.account]
		a.minute = 0
		a.minutes++
	case linearGrant:
		s.accounts[op.account].granted += op.tokens
	case linearRead:
		a := &s.accounts[op.account]
		answer.state = linearLimits{a.limit(), a.used, a.reserved, a.minute, a.inFlight}
	}
	return answer
}

func (s *linearState) reserve(op linearOp) (admitted bool, held int64) {
	held = op.input + op.output
	for i := range s.accounts {
		a := &s.accounts[i]
		if op.input > a.left() || a.inFlight >= a.concurrent {
			return false, 0
		}
		held = min(held, a.left())
	}
	c := &s.calls[op.call]
	c.open, c.held = true, held
	for i := range s.accounts {
		a := &s.accounts[i]
		a.reserved += held
		a.minute += held
		a.inFlight++
		c.periods[i], c.minutes[i] = a.period, a.minutes
	}
	return true, held
}

func (s *linearState) settle(op linearOp) {
	c := &s.calls[op.call]
	if !c.open {
		return
	}
	c.open = false
	for i := range s.accounts {
		a := &s.accounts[i]
		a.inFlight--
		if c.periods[i] == a.period {
			a.reserved -= c.held
			a.used += op.tokens
		}
		if c.minutes[i] == a.minutes {
			a.minute += op.tokens - c.held
		}
	}
}

// linearModel is the model of a key in a group that begin as given.
func linearModel(begin [2]linearAccount) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return linearState{accounts: begin} },
		Step: func(state, input, output any) (bool, any) {
			s := state.(linearState)
			return s.apply(input.(linearOp)) == output.(linearAnswer), s
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v: %+v", input, output) },
	}
}

// linearLife is a key in a group of which many ask at once.
type linearLife struct {
	ledger  *Ledger
	now     time.Time
	account *Account
	ids     [2]quota.ID
	begun   time.Time

	mu      sync.Mutex
	calls   []*Reservation // by number; nil: refused, or not answered yet
	history []porcupine.Operation
}

// linearLives makes as many keys, each in a group of its own, that begin as
// given.
func linearLives(t *testing.T, n int, begin [2]linearAccount) (lives []*linearLife) {
	t.Helper()
	now := time.Now()
	l := newLedger(t, now)
	rules := func(a linearAccount) (*quota.Quota, quota.Limits) {
		return &quota.Quota{Tokens: quota.At(a.max), Reset: quota.ResetManual},
			quota.Limits{TokensPerMinute: quota.At(a.perMinute), ConcurrentRequests: quota.At(a.concurrent)}
	}
	c := Config{Groups: make([]ConfigGroup, n), Keys: make([]ConfigKey, n)} // all in one change of the directory
	for i := range n {
		g, k := &c.Groups[i], &c.Keys[i]
		g.Name, k.Name, k.Group, k.Secret = fmt.Sprint(i), fmt.Sprint(i), fmt.Sprint(i), fmt.Sprintf("sk-%032d", i)
		k.Quota, k.Limits = rules(begin[0])
		g.Quota, g.Limits = rules(begin[1])
	}
	if err := l.Configure(now, &c); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		a, err := l.ByName(now, fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		lives = append(lives, &linearLife{
			ledger: l, now: now, account: a, begun: time.Now(),
			ids: [2]quota.ID{a.ID(), a.policy.Load().GroupID()},
		})
	}
	return lives
}

// ask asks one thing and writes down when it was asked and answered, and what.
func (w *linearLife) ask(client int, op linearOp) (linearAnswer, error) {
	var r *Reservation
	if op.kind == linearSettle {
		w.mu.Lock()
		r = w.calls[op.call]
		w.mu.Unlock()
	}
	asked := time.Since(w.begun)
	answer, err := w.answer(op, &r)
	answered := time.Since(w.begun)
	w.mu.Lock()
	defer w.mu.Unlock()
	if op.kind == linearReserve && answer.admitted {
		w.calls[op.call] = r
	}
	w.history = append(w.history, porcupine.Operation{
		ClientId: client, Input: op, Call: int64(asked), Output: answer, Return: int64(answered),
	})
	return answer, err
}

func (w *linearLife) answer(op linearOp, r **Reservation) (answer linearAnswer, err error) {
	id := w.ids[op.account]
	switch op.kind {
	case linearReserve:
		*r = new(Reservation)
		var refusal *quota.Refusal
		refusal, err = w.ledger.Reserve(w.now, w.account, Call{Model: "m", Input: op.input, Output: op.output}, *r)
		if answer.admitted = refusal == nil; answer.admitted {
			answer.held = (*r).Held
		}
	case linearSettle:
		err = w.ledger.Settle(w.now, *r, quota.Outcome{Tokens: quota.Tokens{Input: op.tokens}, Failed: op.tokens == 0})
	case linearReset:
		err = w.ledger.Reset(w.now, id, []quota.LimitName{quota.TokenQuota})
	case linearResetMinute:
		err = w.ledger.Reset(w.now, id, []quota.LimitName{quota.TokensPerMinute})
	case linearGrant:
		err = w.ledger.Grant(w.now, id, op.tokens)
	case linearRead:
		var s *State
		if s, err = w.ledger.State(w.now, id); err == nil {
			q, m, c := s.Limits[0], s.Limits[1], s.Limits[2]
			answer.state = linearLimits{q.Max, q.Used, q.Reserved, m.Used, c.Used}
		}
	}
	return answer, err
}

// number returns a new reservation's number, and false if there are too many.
func (w *linearLife) number() (int, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.calls) == linearMost {
		return 0, false
	}
	w.calls = append(w.calls, nil)
	return len(w.calls) - 1, true
}

// some returns the number of any reservation that was admitted.
func (w *linearLife) some(rng *rand.Rand) (int, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for range 5 {
		if len(w.calls) == 0 {
			break
		}
		if i := rng.IntN(len(w.calls)); w.calls[i] != nil {
			return i, true
		}
	}
	return 0, false
}

// client asks n random things, one after the other: to settle calls of others,
// too, and again.
func (w *linearLife) client(client, n int, rng *rand.Rand) error {
	for range n {
		op := linearOp{account: rng.IntN(2)}
		var ok bool
		switch k := rng.IntN(20); {
		case k < 8:
			if op.call, ok = w.number(); !ok {
				continue
			}
			op.kind, op.input, op.output = linearReserve, 1+rng.Int64N(60), rng.Int64N(80)
		case k < 14:
			if op.call, ok = w.some(rng); !ok {
				continue
			}
			op.kind, op.tokens = linearSettle, []int64{0, 10, 30, 200}[rng.IntN(4)]
		case k < 15:
			op.kind = linearReset
		case k < 16:
			op.kind = linearResetMinute
		case k < 17:
			op.kind, op.tokens = linearGrant, rng.Int64N(200)-100
		default:
			op.kind = linearRead
		}
		if _, err := w.ask(client, op); err != nil {
			return fmt.Errorf("%+v: %w", op, err)
		}
	}
	return nil
}

// linearBegin are limits of which a few calls reach each.
var linearBegin = [2]linearAccount{
	{max: 300, perMinute: 400, concurrent: 5},
	{max: 350, perMinute: 350, concurrent: 6},
}

// TestLinearizable has 4 to 8 clients reserve, settle, void, reset, grant and
// read at once, on a key and its group, a few hundred times.
func TestLinearizable(t *testing.T) {
	histories := 300
	if testing.Short() {
		histories = 50
	}
	kinds := map[string]int{}
	for i, w := range linearLives(t, histories, linearBegin) {
		clients := 4 + i%5
		var wg sync.WaitGroup
		for c := range clients {
			wg.Go(func() {
				if err := w.client(c, 40/clients, rand.New(rand.NewPCG(uint64(i), uint64(c)))); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if !porcupine.CheckOperations(linearModel(linearBegin), w.history) {
			for _, op := range w.history {
				t.Logf("client %d, %d to %d: %+v: %+v", op.ClientId, op.Call, op.Return, op.Input, op.Output)
			}
			t.Fatalf("history %d cannot be put in an order", i)
		}
		count(kinds, w.history)
	}
	t.Logf("%d histories: %v", histories, kinds)
	for _, kind := range []string{"admitted", "refused"} {
		if kinds[kind] == 0 {
			t.Errorf("nothing was %s", kind)
		}
	}
}

// count adds what happened in a history.
func count(kinds map[string]int, history []porcupine.Operation) {
	for i, op := range history {
		if op.Input.(linearOp).kind == linearReserve {
			if op.Output.(linearAnswer).admitted {
				kinds["admitted"]++
			} else {
				kinds["refused"]++
			}
		}
		for _, other := range history[:i] {
			if other.Call < op.Return && op.Call < other.Return {
				kinds["overlapping"]++
				break
			}
		}
	}
}

// TestLinearizableFindsBugs checks the checker: histories of a ledger with one
// bug each are not taken for those of a right one.
func TestLinearizableFindsBugs(t *testing.T) {
	w := linearLives(t, 1, linearBegin)[0]
	for {
		n, _ := w.number()
		if answer, err := w.ask(0, linearOp{kind: linearReserve, call: n, input: 70}); err != nil {
			t.Fatal(err)
		} else if !answer.admitted {
			break
		}
	}
	if !porcupine.CheckOperations(linearModel(linearBegin), w.history) {
		t.Fatalf("a sequence is not in order: %+v", w.history)
	}
	wrong := linearBegin
	wrong[0].max, wrong[1].max, wrong[0].perMinute, wrong[1].perMinute = 355, 355, 355, 355
	if porcupine.CheckOperations(linearModel(wrong), w.history) {
		t.Error("a ledger that refuses one call too many is taken for right")
	}

	both := func(op linearOp, answer linearAnswer, op2 linearOp, answer2 linearAnswer) []porcupine.Operation {
		return []porcupine.Operation{
			{ClientId: 0, Input: op, Call: 0, Output: answer, Return: 10},
			{ClientId: 1, Input: op2, Call: 5, Output: answer2, Return: 15},
		}
	}
	great := linearOp{kind: linearReserve, input: 200}
	other := great
	other.call = 1
	in := linearAnswer{admitted: true, held: 200}
	read := linearOp{kind: linearRead}
	half := linearAnswer{state: linearLimits{max: 300, reserved: 200}} // without the call under way
	late := both(great, in, read, linearAnswer{state: linearLimits{max: 300}})
	late[1].Call, late[1].Return = 20, 30
	settle := linearOp{kind: linearSettle, tokens: 50}
	twice := append(both(settle, linearAnswer{}, settle, linearAnswer{}),
		porcupine.Operation{Input: great, Call: -20, Output: in, Return: -10},
		porcupine.Operation{Input: read, Call: 20, Output: linearAnswer{state: linearLimits{max: 300, used: 100, minute: 100}}, Return: 30})
	for name, history := range map[string][]porcupine.Operation{
		"two calls that pass the limit together are both admitted": both(great, in, other, in),
		"half of a reservation is seen":                            both(great, in, read, half),
		"a reservation that was answered is not seen":              late,
		"a call is settled twice":                                  twice,
	} {
		if porcupine.CheckOperations(linearModel(linearBegin), history) {
			t.Errorf("not found: %s", name)
		}
	}
	if !porcupine.CheckOperations(linearModel(linearBegin), both(great, in, other, linearAnswer{})) {
		t.Error("one call that is admitted and one that is refused are taken for a bug")
	}
}
