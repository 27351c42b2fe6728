package admin

import (
	"net/http"
	"strconv"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

func explainKey(c *call) error   { return c.explain(quota.KindKey) }
func explainGroup(c *call) error { return c.explain(quota.KindGroup) }

// What a call is taken to be like, where the query does not say: one of some
// input, which reserves for output what handlers do by default.
const (
	explainedInput  = 1
	explainedOutput = 1024
)

// explain tells what admission would decide now.
func (c *call) explain(kind quota.Kind) error {
	if err := c.params("model", "input_tokens", "max_output_tokens"); err != nil {
		return err
	}
	id, err := c.living(kind)
	if err != nil {
		return err
	}
	ask := ledger.Call{Model: c.query.Get("model")}
	if ask.Input, err = c.tokens("input_tokens", explainedInput); err != nil {
		return err
	}
	if ask.Output, err = c.tokens("max_output_tokens", explainedOutput); err != nil {
		return err
	}
	x, err := c.ledger.Explain(c.now, id, ask)
	if err != nil {
		return err
	}
	if ref, err := c.refusedAnyway(id, ask.Model); err != nil {
		return err
	} else if ref != nil {
		x.Refusal, x.Input, x.Output = ref, 0, 0
	}
	return c.json(http.StatusOK, explanationOf(x))
}

// refusedAnyway returns the refusal of a key whatever its limits say: it is
// disabled or expired, or may not call the model.
func (c *call) refusedAnyway(id quota.ID, model string) (*quota.Refusal, error) {
	if id.Kind() != quota.KindKey {
		return nil, nil
	}
	a, err := c.ledger.Account(c.now, id)
	if err != nil {
		return nil, err
	}
	p, err := c.ledger.Policy(c.now, a)
	if err != nil {
		return nil, err
	}
	if ref := p.CheckUsable(c.now); ref != nil {
		return ref, nil
	}
	return p.CheckModel(model, false), nil
}

// tokens returns a parameter that is a number of tokens.
func (c *call) tokens(name string, otherwise int64) (int64, error) {
	s := c.query.Get(name)
	if s == "" {
		return otherwise, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > quota.MaxUsage {
		return 0, bad("%s: %s is not a number from 0 to %d", name, shown(s), quota.MaxUsage)
	}
	return n, nil
}

func explanationOf(x *ledger.Explanation) Explanation {
	answer := Explanation{Admitted: x.Refusal == nil, Limits: make([]ExplainedLimit, len(x.Limits))}
	answer.Reserve.Input, answer.Reserve.Output = x.Input, x.Output
	if r := x.Refusal; r != nil {
		answer.Reason, answer.Account, answer.Limit, answer.Message = string(r.Reason), Ref(r.Account), r.Limit, r.String()
	}
	for i := range x.Limits {
		l := &x.Limits[i]
		answer.Limits[i] = ExplainedLimit{
			Account: l.Account, Name: l.Name, Limit: l.Limit, Max: l.Max, Used: l.Used, Reserved: l.Reserved,
			Remaining: l.Remaining, ResetsAt: moment(l.ResetsAt), Fits: l.Fits,
		}
	}
	return answer
}
