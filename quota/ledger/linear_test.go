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

// linearClients is how many callers a history has. Each has one call open at a
// time.
const linearClients = 6

// linearInput is an operation: reserve, settle (void is one of 0 tokens), reset,
// grant, or look, the latter three on the key (account 0) or its group (1).
type linearInput struct {
	op      string
	client  int
	account int
	tokens  int64 // input of a call, charge, grant
	output  int64
}

type linearOutput struct {
	admitted                bool
	held                    int64
	used, reserved, granted int64
}

// linearAccount and linearState are the ledger as one that does one operation
// after another would have it.
type linearAccount struct {
	used, reserved, granted int64
	resets                  int
}

type linearState struct {
	accounts [2]linearAccount
	open     [linearClients]struct {
		held   int64
		resets [2]int
	}
}

// linearModel is the sequential ledger with these quotas.
func linearModel(max [2]int64) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return linearState{} },
		Step: func(state, in, out any) (bool, any) {
			s, i, o := state.(linearState), in.(linearInput), out.(linearOutput)
			a := &s.accounts[i.account]
			switch i.op {
			case "reserve":
				held := i.tokens + i.output
				for n, m := range max {
					a := &s.accounts[n]
					left := m + a.granted - a.used - a.reserved
					if i.tokens > left {
						return !o.admitted, s
					}
					held = min(held, left)
				}
				if !o.admitted || o.held != held {
					return false, s
				}
				s.open[i.client].held = held
				for n := range s.accounts {
					s.accounts[n].reserved += held
					s.open[i.client].resets[n] = s.accounts[n].resets
				}
			case "settle":
				open := &s.open[i.client]
				for n := range s.accounts {
					if open.resets[n] == s.accounts[n].resets {
						s.accounts[n].reserved -= open.held
						s.accounts[n].used += i.tokens
					}
				}
				open.held = 0
			case "reset":
				*a = linearAccount{resets: a.resets + 1}
			case "grant":
				a.granted += i.tokens
			case "look":
				return o.used == a.used && o.reserved == a.reserved && o.granted == a.granted, s
			}
			return true, s
		},
		DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v: %+v", in, out) },
	}
}

// linearHistory lets clients work on one key in a group all at once, and returns
// what they did and saw.
func linearHistory(t *testing.T, l *Ledger, now time.Time, max [2]int64, name string, seed uint64) []porcupine.Operation {
	t.Helper()
	manual := func(n int64) *quota.Quota { return &quota.Quota{Tokens: quota.At(n), Reset: quota.ResetManual} }
	g, err := l.CreateGroup(now, NewGroup{Name: name, GroupRules: quota.GroupRules{Quota: manual(max[1])}})
	if err != nil {
		t.Fatal(err)
	}
	made, err := l.CreateKeys(now, []NewKey{{Name: name, Group: g.ID, KeyRules: quota.KeyRules{Quota: manual(max[0])}}})
	if err != nil {
		t.Fatal(err)
	}
	ids := [2]quota.ID{made[0].Key.ID, g.ID}
	key, err := l.Account(now, ids[0])
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	var mu sync.Mutex
	var history []porcupine.Operation
	var clients sync.WaitGroup
	for client := range linearClients {
		clients.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(client)))
			do := func(in linearInput, op func() (linearOutput, error)) linearOutput {
				in.client = client
				call := int64(time.Since(begun))
				out, err := op()
				end := int64(time.Since(begun))
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				history = append(history, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: end})
				return out
			}
			for range 8 {
				in := linearInput{op: "reserve", tokens: random.Int64N(max[0]/2) + 1, output: random.Int64N(max[0])}
				r := new(Reservation)
				if out := do(in, func() (linearOutput, error) {
					ref, err := l.Reserve(now, key, Call{Input: in.tokens, Output: in.output}, r)
					return linearOutput{admitted: ref == nil, held: r.Held}, err
				}); out.admitted {
					in := linearInput{op: "settle"}
					if random.IntN(3) > 0 {
						in.tokens = random.Int64N(out.held + 20)
					}
					do(in, func() (linearOutput, error) {
						o := quota.Outcome{Tokens: quota.Tokens{Input: in.tokens}}
						if err := l.Settle(now, r, o); err != nil {
							return linearOutput{}, err
						}
						return linearOutput{}, l.Settle(now, r, o) // again: nothing
					})
				}
				in = linearInput{op: "look", account: random.IntN(2)}
				switch random.IntN(6) {
				case 0:
					in.op = "reset"
					do(in, func() (linearOutput, error) {
						return linearOutput{}, l.Reset(now, ids[in.account], []quota.LimitName{quota.TokenQuota})
					})
				case 1:
					in.op, in.tokens = "grant", random.Int64N(50)
					do(in, func() (linearOutput, error) { return linearOutput{}, l.Grant(now, ids[in.account], in.tokens) })
				default:
					do(in, func() (linearOutput, error) {
						s, err := l.State(now, ids[in.account])
						if err != nil {
							return linearOutput{}, err
						}
						q := s.Limits[0]
						return linearOutput{used: q.Used, reserved: q.Reserved, granted: q.Granted}, nil
					})
				}
			}
		})
	}
	clients.Wait()
	return history
}

// Whatever callers do at the same time to a key in a group, what each of them
// sees is what they would see if one operation came after another.
func TestLinearizable(t *testing.T) {
	now := time.Date(2026, 5, 10, 12, 0, 0, 0, time.UTC)
	l := newLedger(t, now)
	histories := 300
	if testing.Short() {
		histories = 60
	}
	max := [2]int64{200, 300}
	caught, admitted, refused := 0, 0, 0
	for n := range histories {
		history := linearHistory(t, l, now, max, fmt.Sprint("h", n), uint64(n))
		if t.Failed() {
			return
		}
		if !porcupine.CheckOperations(linearModel(max), history) {
			t.Fatalf("history %d cannot be put in an order:\n%v", n, history)
		}
		// A check that cannot fail is none: by wrong quotas most histories must
		// be impossible.
		if !porcupine.CheckOperations(linearModel([2]int64{max[0] - 1, max[1]}), history) {
			caught++
		}
		for _, op := range history {
			if op.Input.(linearInput).op != "reserve" {
				continue
			}
			if op.Output.(linearOutput).admitted {
				admitted++
			} else {
				refused++
			}
		}
	}
	t.Logf("%d histories: %d calls admitted, %d refused; a quota that is wrong by 1 is seen in %d", histories, admitted, refused, caught)
	if caught < histories/2 || admitted == 0 || refused == 0 {
		t.Errorf("a wrong quota is seen in %d of %d histories only, with %d admitted and %d refused", caught, histories, admitted, refused)
	}
}
