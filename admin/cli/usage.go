package cli

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/admin/client"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

func (e *env) addUsage(parent *cobra.Command) {
	e.add(parent, command{
		use: "usage", short: "Shows what was used: in all, by model, key or group, and over time",
		long: `Shows what was used, by default in the last 24 hours. --from and --to take dates
or times in RFC 3339; the span is widened to whole steps. The step is chosen by
the span when it is not given.

TOKENS are those that were charged: input and output. CACHED lies within INPUT.
REFUSED calls are beside the admitted REQUESTS, FAILED ones within them. --group
includes the groups below it.`,
		example: `caddy llm-quota usage
caddy llm-quota usage --since 7d --by model
caddy llm-quota usage --since 30d --by key,group --group engineering --top 10
caddy llm-quota usage --from 2026-01-01 --to 2026-02-01 --csv
caddy llm-quota usage --since 30d --step day --time-zone Europe/Berlin
caddy llm-quota usage --key Ada --model gpt-4o --json`,
		flags: func(fs *pflag.FlagSet) {
			fs.String("since", "", "how far back to look, like 90m, 24h or 7d")
			fs.String("from", "", "when to begin: a date, or a time in RFC 3339")
			fs.String("to", "", "when to end; now when it is not given")
			fs.String("step", "", "minute, hour, day or month")
			fs.StringSlice("by", nil, "apart by model, key and group, or several of them")
			fs.String("key", "", "only this key's")
			fs.StringP("group", "g", "", "only this group's, and those below it")
			fs.String("model", "", "only this model's")
			fs.String("time-zone", "", "IANA time zone of days and dates; the app's when it is not given")
			fs.Int("top", 30, "how many lines of a breakdown are shown, those with the most tokens; 0 is all")
			fs.Bool("csv", false, "print comma-separated values, a line for each step")
		},
		run: showUsage,
	})
}

func showUsage(r *run, _ []string) error {
	query, err := r.usageQuery()
	if err != nil {
		return err
	}
	q := client.Request{Path: "/usage", Query: query}
	if r.flag("csv") {
		if r.json {
			return misused("--csv and --json exclude one another")
		}
		query.Set("format", "csv")
		a, err := r.get(q, nil)
		if err != nil {
			return fmt.Errorf("showing the usage: %w", err)
		}
		return r.printRaw(a)
	}
	var u admin.Usage
	a, err := r.get(q, &u)
	if err != nil {
		return fmt.Errorf("showing the usage: %w", err)
	}
	if r.json {
		return r.printRaw(a)
	}
	r.printUsage(&u)
	return nil
}

// usageQuery reads what the flags ask for.
func (r *run) usageQuery() (url.Values, error) {
	q := url.Values{}
	if r.number("top") < 0 {
		return nil, misused("--top: %d is negative", r.number("top"))
	}
	from, to := r.text("from"), r.text("to")
	if s := r.text("since"); s != "" {
		if from != "" || to != "" {
			return nil, misused("--since excludes --from and --to")
		}
		d, err := r.duration("since")
		if err != nil {
			return nil, err
		}
		from = r.now().Add(-d).UTC().Format(time.RFC3339)
	}
	for _, flag := range []string{"from", "to"} {
		if s := r.text(flag); s != "" {
			if _, err := quota.ParseExpiry(s, "UTC"); err != nil {
				return nil, misused("--%s: %q is neither a date like 2026-01-31 nor a time in RFC 3339", flag, s)
			}
		}
	}
	by, _ := r.flags.GetStringSlice("by")
	for i, s := range by {
		if !slices.Contains([]string{"model", "key", "group"}, s) {
			return nil, misused("--by: %q is not model, key or group", s)
		}
		if i > 0 {
			q.Set("by", q.Get("by")+","+s)
		} else {
			q.Set("by", s)
		}
	}
	r.ofAccounts(q)
	for param, s := range map[string]string{
		"from": from, "to": to, "model": r.text("model"), "time_zone": r.text("time-zone"),
		"step": cmp.Or(r.text("step"), r.step(from, to)),
	} {
		if s != "" {
			q.Set(param, s)
		}
	}
	return q, nil
}

// step returns the step in which a span is shown well, and that is kept as far
// back by default; "" leaves it to the API.
func (r *run) step(from, to string) string {
	start, err := quota.ParseExpiry(from, "UTC")
	if err != nil {
		return ""
	}
	end, err := quota.ParseExpiry(to, "UTC")
	if err != nil {
		end = r.now()
	}
	const day = 24 * time.Hour
	// The times are in whole seconds.
	switch span, age := end.Sub(start)-time.Minute, r.now().Sub(start); {
	case span <= 3*time.Hour && age < 2*day:
		return "minute"
	case span <= 3*day && age < 90*day:
		return "hour"
	case span <= 100*day && age < 1000*day:
		return "day"
	}
	return "month"
}

func (r *run) printUsage(u *admin.Usage) {
	zone := u.From.Location()
	if loc, err := quota.LoadZone(u.TimeZone); err == nil {
		zone = loc
	}
	layout := map[string]string{"day": time.DateOnly, "month": "2006-01"}[u.Step]
	if layout == "" {
		layout = "2006-01-02 15:04"
	}
	t := &u.Totals
	r.printf("%s to %s, %s, by %s\n\n", u.From.In(zone).Format("2006-01-02 15:04"), u.To.In(zone).Format("2006-01-02 15:04"), u.TimeZone, u.Step)
	if u.RoughBefore != nil {
		r.notef("Before %s days of UTC are shown for those of %s: hours are not kept that long.\n\n", u.RoughBefore.In(zone).Format("2006-01-02 15:04"), u.TimeZone)
	}
	r.facts(
		"requests", fmt.Sprintf("%s (%s failed), and %s refused", amount(t.Requests), amount(t.Failed), amount(t.Refused)),
		"tokens", fmt.Sprintf("%s (%s estimated)", amount(t.Total), amount(t.Estimated)),
		"input", fmt.Sprintf("%s (%s cached, %s written to caches)", amount(t.Input), amount(t.Cached), amount(t.CacheWrite)),
		"output", fmt.Sprintf("%s (%s reasoning)", amount(t.Output), amount(t.Reasoning)),
	)
	r.printSpark(u, zone, layout)
	if t.Requests+t.Refused+t.Total == 0 {
		r.notef("Nothing was used.\n")
		return
	}
	r.printf("\n")
	if by, _ := r.flags.GetStringSlice("by"); len(by) > 0 {
		r.printBreakdown(u, by)
		return
	}
	lines := table{head: append([]string{"START"}, totalsHead...)}
	for i := range u.Series {
		if s := &u.Series[i]; s.Totals != (quota.Totals{}) {
			lines.row(append([]any{s.Start.In(zone).Format(layout)}, totalsRow(&s.Totals, t.Total)...)...)
		}
	}
	lines.print(r.env)
}

// sparkWidth is how many columns the line over time takes at most.
const sparkWidth = 60

func (r *run) printSpark(u *admin.Usage, zone *time.Location, layout string) {
	values := make([]int64, len(u.Series))
	peak := 0
	for i := range u.Series {
		values[i] = u.Series[i].Totals.Total
		if values[i] > values[peak] {
			peak = i
		}
	}
	if len(values) == 0 || values[peak] <= 0 {
		return
	}
	r.printf("\n%s  most: %s at %s\n", r.styled(green, sparkline(values, sparkWidth)), amount(values[peak]), u.Series[peak].Start.In(zone).Format(layout))
}

var totalsHead = []string{">REQUESTS", ">REFUSED", ">FAILED", ">INPUT", ">CACHED", ">OUTPUT", ">TOKENS", ">SHARE"}

func totalsRow(t *quota.Totals, all int64) []any {
	part := ""
	if all > 0 {
		part = strconv.FormatInt(t.Total*100/all, 10) + "%"
	}
	return []any{
		amount(t.Requests), amount(t.Refused), amount(t.Failed), amount(t.Input), amount(t.Cached), amount(t.Output), amount(t.Total), part,
	}
}

func (r *run) printBreakdown(u *admin.Usage, by []string) {
	lines := slices.Clone(u.Breakdown)
	slices.SortStableFunc(lines, func(a, b admin.UsageLine) int {
		return cmp.Or(cmp.Compare(b.Totals.Total, a.Totals.Total), cmp.Compare(b.Totals.Requests, a.Totals.Requests))
	})
	more := 0
	if top := r.number("top"); top > 0 && len(lines) > top {
		more, lines = len(lines)-top, lines[:top]
	}
	t := table{}
	for _, b := range by {
		t.head = append(t.head, map[string]string{"model": "MODEL", "key": "KEY", "group": "GROUP"}[b])
	}
	t.head = append(t.head, totalsHead...)
	for i := range lines {
		l := &lines[i]
		var row []any
		for _, b := range by {
			row = append(row, r.labelOf(l, b))
		}
		t.row(append(row, totalsRow(&l.Totals, u.Totals.Total)...)...)
	}
	t.print(r.env)
	if more > 0 {
		r.notef("%d more: --top 0 shows them.\n", more)
	}
}

// labelOf returns what a line of the breakdown is about.
func (r *run) labelOf(l *admin.UsageLine, by string) string {
	switch {
	case by == "model" && l.Model != nil:
		return cmp.Or(*l.Model, "-")
	case by == "key" && l.Key != nil:
		return cmp.Or(r.name(quota.ID(*l.Key)), "-")
	case by == "group" && l.Group != nil:
		return cmp.Or(r.name(quota.ID(*l.Group)), "-")
	}
	return "-"
}
