package ledger

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// pair is a row as it is stored, and as other rows say that it should be.
type pair struct{ stored, computed quota.Totals }

// pairs holds rows to be compared. Of a slot, Key and Account are empty.
type pairs map[quota.Slot]*pair

func (p pairs) at(s quota.Slot) *pair {
	if p[s] == nil {
		p[s] = new(pair)
	}
	return p[s]
}

// rows compares the rows of an account in one step with those of the step
// below, where both are kept.
func (v *verifier) rows(id quota.ID, step quota.Step) error {
	fine := step - 1
	from := max(v.kept[fine], v.kept[step])
	if from != math.MinInt64 {
		from = ceil(step, from)
	}
	found := pairs{}
	read := func(of quota.Step, add func(*pair, *quota.Totals)) error {
		q := stretch{quota.RowQuery{Step: of, From: from, To: math.MaxInt64}}
		q.of(id)
		return v.snap.Usage(q.RowQuery, func(r *quota.Row) error {
			add(found.at(quota.Slot{Step: step, Start: step.Start(r.Start), Group: r.Group, Model: r.Model}), &r.Totals)
			return nil
		})
	}
	if err := read(fine, func(p *pair, t *quota.Totals) { p.computed.Add(t) }); err != nil {
		return err
	}
	if err := read(step, func(p *pair, t *quota.Totals) { p.stored.Add(t) }); err != nil {
		return err
	}
	for slot, p := range found {
		v.compareRow(id, "usage", slot, p)
	}
	return nil
}

// maxSums is how many sums are held at a time.
const maxSums = 50_000

var errTooMany = errors.New("too many rows at a time")

// sums compares the rows that are summed over the keys of each group with the
// rows by key.
func (v *verifier) sums(step quota.Step) error {
	first, last := int64(math.MaxInt64), int64(math.MinInt64)
	err := v.snap.Usage(quota.RowQuery{Step: step, From: math.MinInt64, To: math.MaxInt64}, func(r *quota.Row) error {
		first, last = min(first, r.Start), max(last, r.Start)
		return nil
	})
	if err != nil {
		return err
	}
	return v.sumsIn(quota.RowQuery{Step: step, From: math.MinInt64, To: math.MaxInt64}, first, last)
}

// sumsIn compares the sums that q selects. Most start from first to last; where
// they are too many to be held, that span is halved.
func (v *verifier) sumsIn(q quota.RowQuery, first, last int64) error {
	found := pairs{}
	width := int64(q.Step.Duration() / time.Second)
	read := func(q quota.RowQuery, add func(*pair, *quota.Totals)) error {
		return v.snap.Usage(q, func(r *quota.Row) error {
			slot := r.Slot
			slot.Key = 0
			add(found.at(slot), &r.Totals)
			if len(found) > maxSums && last-first >= width {
				return errTooMany
			}
			return nil
		})
	}
	byKey := q
	byKey.ByKey = true
	err := read(q, func(p *pair, t *quota.Totals) { p.stored.Add(t) })
	if err == nil {
		err = read(byKey, func(p *pair, t *quota.Totals) { p.computed.Add(t) })
	}
	if errors.Is(err, errTooMany) {
		found = nil
		middle := q.Step.Start(first+(last-first)/2) + width
		before, after := q, q
		before.To, after.From = middle, middle
		if err := v.sumsIn(before, first, middle-width); err != nil {
			return err
		}
		return v.sumsIn(after, middle, last)
	}
	for slot, p := range found {
		v.compareRow(slot.Group, "sum", slot, p)
	}
	return err
}

// compareRow compares every field of a row.
func (v *verifier) compareRow(id quota.ID, what string, slot quota.Slot, p *pair) {
	v.found.Checked++
	if p.stored == p.computed {
		return
	}
	steps := [...]string{quota.StepMinute: "minute", quota.StepQuarter: "quarter", quota.StepDay: "day"}
	row := fmt.Sprintf("%s by %s at %s", what, steps[slot.Step], time.Unix(slot.Start, 0).UTC().Format(time.RFC3339))
	if slot.Model != "" {
		row += " of " + slot.Model
	}
	computed := fields(&p.computed)
	for i, f := range fields(&p.stored) {
		v.differ(id, row+": "+f.name, f.n, computed[i].n)
	}
}

type field struct {
	name string
	n    int64
}

// fields lists the numbers of t by their names in reports.
func fields(t *quota.Totals) []field {
	return []field{
		{"requests", t.Requests}, {"refused", t.Refused}, {"failed", t.Failed},
		{"input_tokens", t.Input}, {"cached_input_tokens", t.Cached}, {"cache_write_tokens", t.CacheWrite},
		{"output_tokens", t.Output}, {"reasoning_tokens", t.Reasoning},
		{"total_tokens", t.Total}, {"estimated_tokens", t.Estimated},
	}
}
