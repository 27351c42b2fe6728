// Command fill writes a large store for the tests of the dashboard: 10,000
// keys in 50 groups that have been used for a year, as a gate would have left
// them. It is a program of its own so that the race detector, which slows the
// ledger down many times, does not watch it.
package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
	"github.com/llm-quota/caddy-llm-quota/store/badger"
)

const (
	keys   = 10_000
	groups = 50
	days   = 365
	daily  = 250 // calls on a working day, on average
	hourly = 40  // calls in each hour of the last two days, on average
)

// What groups and keys are called, with a number where that is not enough.
var (
	departments = []string{"Research", "Product", "Support", "Sales", "Finance", "Legal", "Security", "Data", "Mobile", "Design"}
	teams       = []string{"", " EU", " US", " Asia", " Labs"}
	services    = []string{"checkout", "search", "captions", "summaries", "translation", "triage", "onboarding", "reports", "assistant", "moderation"}
)

// models are called the more often the earlier they stand here.
var models = []string{"gpt-4o-mini-2024-07-18", "claude-sonnet-4-5", "gpt-4o-2024-11-20", "gemini-2.5-flash", "mistral-large-2411", "command-a-03-2025", "llama-3.3-70b", "deepseek-r1"}

func main() {
	start := time.Now()
	if err := fill(os.Args[1], start); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(time.Since(start))
}

// filler makes calls at times that only grow.
type filler struct {
	l    *ledger.Ledger
	keys []ledger.Created
	rand *rand.Rand
}

func fill(dir string, end time.Time) error {
	st, err := badger.Open(badger.Options{Dir: dir, SyncInterval: time.Hour})
	if err != nil {
		return err
	}
	begin := end.AddDate(0, 0, -days)
	l, err := ledger.Open(st, begin, func(op string, err error) { fmt.Fprintln(os.Stderr, op, err) })
	if err != nil {
		return err
	}
	if err := l.Configure(begin, &ledger.Config{}); err != nil { // which alerts are due
		return err
	}
	f := &filler{l: l, rand: rand.New(rand.NewPCG(1, 2))}
	if err := f.accounts(begin); err != nil {
		return err
	}
	if err := f.history(begin, end); err != nil {
		return err
	}
	if err := l.Tick(end); err != nil { // drops what is past its retention
		return err
	}
	return l.Close(end)
}

// accounts makes groups, every fifth the parent of the four after it, and keys.
func (f *filler) accounts(at time.Time) error {
	var ids []quota.ID
	for i := range groups {
		spec := ledger.NewGroup{Name: departments[i/len(teams)] + teams[i%len(teams)]}
		tokens := 480_000 + int64(i*37%groups)*20_000
		if i%5 == 0 { // for those below it too
			tokens *= 5
		}
		spec.Quota = &quota.Quota{Tokens: quota.At(tokens), Reset: quota.ResetMonthly}
		if i%5 > 0 {
			spec.Parent = ids[i-i%5]
		}
		g, err := f.l.CreateGroup(at, spec)
		if err != nil {
			return err
		}
		ids = append(ids, g.ID)
	}
	specs := make([]ledger.NewKey, keys)
	for i := range specs {
		specs[i].Name = fmt.Sprintf("%s-%d", services[i%len(services)], i)
		specs[i].Group = ids[(i+i/groups)%groups]
		specs[i].Quota = &quota.Quota{Tokens: quota.At(200_000), Reset: quota.ResetDaily}
		specs[i].Limits.RequestsPerMinute = quota.At(600)
	}
	var err error
	f.keys, err = f.l.CreateKeys(at, specs)
	return err
}

// history makes the calls of each day, and those of the last two hour by hour.
func (f *filler) history(begin, end time.Time) error {
	for at := begin; at.Before(end.AddDate(0, 0, -2)); at = at.AddDate(0, 0, 1) {
		n := daily/2 + daily*int(at.Sub(begin)/(24*time.Hour))/days
		if d := at.Weekday(); d == time.Saturday || d == time.Sunday {
			n /= 3
		}
		if err := f.calls(at, 24*time.Hour, n); err != nil {
			return err
		}
	}
	for at := end.AddDate(0, 0, -2); at.Before(end); at = at.Add(time.Hour) {
		day := math.Sin(float64(at.UTC().Hour()-6) / 12 * math.Pi) // the nights are quiet
		if err := f.calls(at, time.Hour, int(hourly*(1+0.8*day))); err != nil {
			return err
		}
	}
	return nil
}

// calls makes n calls from a time on, spread over a span.
func (f *filler) calls(from time.Time, span time.Duration, n int) error {
	var r ledger.Reservation
	for i := range n {
		at := from.Add(span * time.Duration(i) / time.Duration(n))
		// Few keys make most of the calls.
		which := int(float64(keys) * f.rand.Float64() * f.rand.Float64() * f.rand.Float64())
		model := models[int(float64(len(models))*f.rand.Float64()*f.rand.Float64())]
		a, err := f.l.Account(at, f.keys[which].Key.ID)
		if err != nil {
			return err
		}
		refusal, err := f.l.Reserve(at, a, ledger.Call{Model: model, Input: 500, Output: 500}, &r)
		if err != nil {
			return err
		}
		if refusal != nil {
			continue
		}
		o := quota.Outcome{Tokens: quota.Tokens{Input: 200 + f.rand.Int64N(2000), Output: f.rand.Int64N(1500)}, Failed: i%97 == 0}
		if err := f.l.Settle(at, &r, o); err != nil {
			return err
		}
	}
	return f.l.Checkpoint(from.Add(span))
}
