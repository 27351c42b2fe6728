package admin

import (
	"bufio"
	"cmp"
	"encoding/csv"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

func showUsage(c *call) error {
	if err := c.params("from", "to", "step", "by", "key", "group", "model", "format", "time_zone"); err != nil {
		return err
	}
	format, err := c.oneOf("format", "json", "csv")
	if err != nil {
		return err
	}
	q, err := c.reportQuery()
	if err != nil {
		return err
	}
	q.Cells = format == "csv"
	r, err := c.ledger.Report(c.now, q)
	if err != nil {
		return err
	}
	if format == "csv" {
		return c.usageCSV(r, q.By)
	}
	return c.json(http.StatusOK, usageOf(r, &q))
}

// reportQuery reads what usage is asked for.
func (c *call) reportQuery() (q ledger.ReportQuery, err error) {
	if q.Step, err = c.oneOf("step", ledger.PerMinute, ledger.PerHour, ledger.PerDay, ledger.PerMonth); err != nil {
		return q, err
	}
	q.Step = cmp.Or(q.Step, ledger.PerHour)
	if q.Zone, err = quota.LoadZone(cmp.Or(c.query.Get("time_zone"), c.ledger.Zone())); err != nil {
		return q, err
	}
	if q.Key, err = c.account(quota.KindKey, "key"); err != nil {
		return q, err
	}
	if q.Group, err = c.account(quota.KindGroup, "group"); err != nil {
		return q, err
	}
	q.Model = c.query.Get("model")
	if q.By, err = c.by(); err != nil {
		return q, err
	}
	if q.To, err = c.instant("to", q.Zone, c.now); err != nil {
		return q, err
	}
	q.From, err = c.instant("from", q.Zone, q.To.Add(-24*time.Hour))
	return q, err
}

func (c *call) by() (by ledger.By, err error) {
	s := c.query.Get("by")
	if s == "" {
		return by, nil
	}
	for name := range strings.SplitSeq(s, ",") {
		switch name {
		case "model":
			by.Model = true
		case "key":
			by.Key = true
		case "group":
			by.Group = true
		default:
			return by, bad("by: %s is not model, key or group", shown(name))
		}
	}
	return by, nil
}

// instant reads a time in RFC 3339, or a date: its first instant in zone.
func (c *call) instant(name string, zone *time.Location, absent time.Time) (time.Time, error) {
	s := c.query.Get(name)
	if s == "" {
		return absent, nil
	}
	// The "+" of an offset that was not escaped has become a space.
	if t, err := time.Parse(time.RFC3339, strings.Replace(s, " ", "+", 1)); err == nil {
		return t, nil
	}
	t, err := quota.ParseExpiry(s, zone.String())
	if err != nil {
		return t, bad("%s: %s is neither a date like 2026-01-31 nor a time in RFC 3339", name, shown(s))
	}
	return t, nil
}

func usageOf(r *ledger.Report, q *ledger.ReportQuery) Usage {
	u := Usage{
		From: r.From, To: r.To, Step: q.Step, TimeZone: q.Zone.String(), RoughBefore: moment(r.RoughBefore), Totals: r.Totals,
		Breakdown: make([]UsageLine, len(r.Lines)), Series: make([]UsageStep, len(r.Series)),
	}
	for i := range r.Lines {
		line := &r.Lines[i]
		shown := &u.Breakdown[i]
		shown.Totals = line.Totals
		if q.By.Model {
			shown.Model = &line.Model
		}
		if q.By.Key {
			shown.Key = (*Ref)(&line.Key)
		}
		if q.By.Group {
			shown.Group = (*Ref)(&line.Group)
		}
	}
	for i, step := range r.Series {
		u.Series[i] = UsageStep{step.Start, step.Totals}
	}
	return u
}

// csvTotals are the columns of totals, in the order of the JSON.
var csvTotals = []string{
	"requests", "refused", "failed", "input_tokens", "cached_input_tokens", "cache_write_tokens",
	"output_tokens", "reasoning_tokens", "total_tokens", "estimated_tokens",
}

// usageCSV writes a line for each step and each line of the breakdown.
func (c *call) usageCSV(r *ledger.Report, by ledger.By) error {
	h := c.w.Header()
	h.Set("Content-Type", "text/csv; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	out := csv.NewWriter(bufio.NewWriterSize(c.w, 64<<10))
	head := append(labels("start", by, "model", "key", "group"), csvTotals...)
	out.Write(head) //nolint:errcheck // kept for Error below
	for i, step := range r.Series {
		start := step.Start.Format(time.RFC3339)
		if by == (ledger.By{}) {
			out.Write(append([]string{start}, columns(&step.Totals)...)) //nolint:errcheck
			continue
		}
		for j := range r.Lines {
			l := r.Lines[j].Label
			t := r.Cell(i, l)
			out.Write(append(labels(start, by, l.Model, l.Key.String(), l.Group.String()), columns(&t)...)) //nolint:errcheck
			if out.Error() != nil {
				return nil // the client has gone
			}
		}
	}
	out.Flush()
	return nil
}

// labels are the first columns of a line: the start and what is told apart.
func labels(start string, by ledger.By, model, key, group string) []string {
	l := make([]string, 1, 4+len(csvTotals))
	l[0] = start
	if by.Model {
		l = append(l, model)
	}
	if by.Key {
		l = append(l, key)
	}
	if by.Group {
		l = append(l, group)
	}
	return l
}

func columns(t *quota.Totals) []string {
	var all []string
	for _, n := range []int64{
		t.Requests, t.Refused, t.Failed, t.Input, t.Cached, t.CacheWrite, t.Output, t.Reasoning, t.Total, t.Estimated,
	} {
		all = append(all, strconv.FormatInt(n, 10))
	}
	return all
}
