package ledger_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
	"github.com/llm-quota/caddy-llm-quota/store/badger"
)

// reported is a ledger with a record of what its calls used.
type reported struct {
	*ledger.Ledger
	now    time.Time
	keys   []quota.ID
	groups []quota.ID // the second stands below the first, the third alone
	calls  []settled
	seen   time.Time // the ledger's time
}

type settled struct {
	at    time.Time
	label ledger.Label
	quota.Totals
}

func newReported(t testing.TB, now time.Time) *reported {
	t.Helper()
	st, err := badger.Open(badger.Options{Dir: t.TempDir(), SyncInterval: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	l, err := ledger.Open(st, now, func(op string, err error) { t.Errorf("%s: %v", op, err) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(now); err != nil {
			t.Error(err)
		}
	})
	r := &reported{Ledger: l, now: now, seen: now}
	for i := range 3 {
		spec := ledger.NewGroup{Name: fmt.Sprint(i)}
		if i == 1 {
			spec.Parent = r.groups[0]
		}
		g, err := l.CreateGroup(now, spec)
		if err != nil {
			t.Fatal(err)
		}
		r.groups = append(r.groups, g.ID)
	}
	made, err := l.CreateKeys(now, []ledger.NewKey{{Name: "a"}, {Name: "b", Group: r.groups[0]}, {Name: "c", Group: r.groups[1]}})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range made {
		r.keys = append(r.keys, m.Key.ID)
	}
	return r
}

// call makes one call at the given time, and notes what it used.
func (r *reported) call(t *rapid.T, at time.Time, key quota.ID) {
	if at.Before(r.seen) && r.seen.Sub(at) <= time.Hour {
		at = r.seen // time stands still
	}
	k, err := r.Key(key)
	if err != nil {
		t.Fatal(err)
	}
	if rapid.IntRange(0, 5).Draw(t, "move") == 0 {
		to := rapid.SampledFrom(append(r.groups, 0)).Draw(t, "group")
		if k, err = r.UpdateKey(at, key, func(k *quota.Key) error { k.Group = to; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	model := rapid.SampledFrom([]string{"", "gpt-4o", "claude", "@cf/a,b"}).Draw(t, "model")
	s := settled{at: at, label: ledger.Label{Model: model, Key: key, Group: k.Group}}
	a, err := r.Account(at, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Policy(at, a); err != nil {
		t.Fatal(err)
	}
	if rapid.IntRange(0, 7).Draw(t, "refuse") == 0 {
		r.Refused(at, a, model)
		s.Refused = 1
		r.calls = append(r.calls, s)
		return
	}
	var res ledger.Reservation
	if _, err := r.Reserve(at, a, ledger.Call{Model: model, Input: 5, Output: 10}, &res); err != nil {
		t.Fatal(err)
	}
	count := rapid.Int64Range(0, 1000)
	o := quota.Outcome{
		Tokens: quota.Tokens{
			Input: count.Draw(t, "input"), Cached: count.Draw(t, "cached"), CacheWrite: count.Draw(t, "write"),
			Output: count.Draw(t, "output"), Reasoning: count.Draw(t, "reasoning"),
		},
		Estimated: rapid.Bool().Draw(t, "estimated"), Failed: rapid.Bool().Draw(t, "failed"),
	}
	later := time.Duration(rapid.IntRange(0, 7200).Draw(t, "seconds")) * time.Second
	r.seen = at.Add(later)
	if err := r.Settle(r.seen, &res, o); err != nil {
		t.Fatal(err)
	}
	s.Totals = o.Settled()
	s.Requests = 1
	r.calls = append(r.calls, s)
}

// stepOf names the step that holds t: read off the local calendar, or counted
// in hours of the zone's minutes past the hour of UTC.
func stepOf(step string, t time.Time) string {
	switch step {
	case ledger.PerMonth:
		return t.Format("2006-01")
	case ledger.PerDay:
		return t.Format("2006-01-02")
	case ledger.PerMinute:
		return t.Format("2006-01-02 15:04 -0700")
	}
	_, offset := t.Zone()
	past := time.Duration(((offset%3600)+3600)%3600) * time.Second
	return fmt.Sprint(t.UTC().Add(past).Truncate(time.Hour), past)
}

var zones = []string{
	"UTC", "Europe/Berlin", "America/New_York", "America/St_Johns", "Asia/Kolkata", "Asia/Kathmandu", "Asia/Beirut",
	"Africa/Cairo", "Africa/Casablanca", "America/Santiago", "Australia/Lord_Howe", "Pacific/Chatham", "Pacific/Apia",
}

// A report's sums are those of the calls, whatever is asked of them, in every
// time zone, over changes of the clock.
func TestReportSums(t *testing.T) {
	now := time.Date(2026, 4, 30, 12, 34, 56, 0, time.UTC)
	r := newReported(t, now)
	first := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	anyTime := rapid.Custom(func(t *rapid.T) time.Time {
		return first.Add(time.Duration(rapid.Int64Range(0, int64(now.Sub(first)/time.Second)).Draw(t, "second")) * time.Second)
	})
	lateTime := rapid.Custom(func(t *rapid.T) time.Time {
		return now.Add(-time.Duration(rapid.Int64Range(0, 47*3600).Draw(t, "ago")) * time.Second)
	})
	rapid.Check(t, func(t *rapid.T) {
		for range rapid.IntRange(0, 20).Draw(t, "calls") {
			r.call(t, rapid.OneOf(anyTime, lateTime).Draw(t, "at"), rapid.SampledFrom(r.keys).Draw(t, "key"))
		}
		for range 5 {
			q := anyQuery(t, r)
			at := anyTime
			if q.Step == ledger.PerMinute {
				at = lateTime
			}
			q.From, q.To = at.Draw(t, "from"), at.Draw(t, "to")
			if q.To.Before(q.From) {
				q.From, q.To = q.To, q.From
			}
			q.To = q.To.Add(time.Duration(rapid.IntRange(1, 2e9).Draw(t, "more")))
			r.compare(t, now, q)
		}
	})
}

// anyQuery is a query without its times.
func anyQuery(t *rapid.T, r *reported) ledger.ReportQuery {
	zone, err := time.LoadLocation(rapid.SampledFrom(zones).Draw(t, "zone"))
	if err != nil {
		t.Fatal(err)
	}
	q := ledger.ReportQuery{
		Zone: zone, Cells: true,
		Step: rapid.SampledFrom([]string{ledger.PerMinute, ledger.PerHour, ledger.PerDay, ledger.PerMonth}).Draw(t, "step"),
		By:   ledger.By{Model: rapid.Bool().Draw(t, "by model"), Key: rapid.Bool().Draw(t, "by key"), Group: rapid.Bool().Draw(t, "by group")},
	}
	if rapid.IntRange(0, 2).Draw(t, "of key") == 0 {
		q.Key = rapid.SampledFrom(r.keys).Draw(t, "only key")
	}
	if rapid.IntRange(0, 2).Draw(t, "of group") == 0 {
		q.Group = rapid.SampledFrom(r.groups).Draw(t, "only group")
	}
	if rapid.IntRange(0, 2).Draw(t, "of model") == 0 {
		q.Model = "gpt-4o"
	}
	return q
}

func (r *reported) compare(t *rapid.T, now time.Time, q ledger.ReportQuery) {
	got, err := r.Report(now, q)
	if err != nil {
		t.Fatal(err)
	}
	step := func(at time.Time) string { return stepOf(q.Step, at.In(q.Zone)) }
	edge := time.Nanosecond
	if got.From.After(q.From) || step(got.From) != step(q.From) || step(got.From.Add(-edge)) == step(q.From) {
		t.Fatalf("from %s widened to %s", q.From.In(q.Zone), got.From)
	}
	if got.To.Before(q.To) || step(got.To.Add(-edge)) != step(q.To.Add(-edge)) || step(got.To) == step(q.To.Add(-edge)) {
		t.Fatalf("to %s widened to %s", q.To.In(q.Zone), got.To)
	}
	var totals quota.Totals
	steps, lines, cells := map[string]quota.Totals{}, map[ledger.Label]quota.Totals{}, map[string]quota.Totals{}
	for _, c := range r.calls {
		if c.at.Before(got.From) || !c.at.Before(got.To) || !r.selected(q, c.label) {
			continue
		}
		totals.Add(&c.Totals)
		sum(steps, step(c.at), &c.Totals)
		if q.By == (ledger.By{}) {
			continue
		}
		label := c.label
		if !q.By.Model {
			label.Model = ""
		}
		if !q.By.Key {
			label.Key = 0
		}
		if !q.By.Group {
			label.Group = 0
		}
		sum(lines, label, &c.Totals)
		sum(cells, fmt.Sprint(step(c.at), label), &c.Totals)
	}
	if got.Totals != totals {
		t.Fatalf("totals %+v, want %+v", got.Totals, totals)
	}
	shown := map[ledger.Label]quota.Totals{}
	for _, l := range got.Lines {
		shown[l.Label] = l.Totals
	}
	if !maps.Equal(shown, lines) || len(got.Lines) != len(lines) {
		t.Fatalf("lines %+v, want %+v", got.Lines, lines)
	}
	if !slices.IsSortedFunc(got.Lines, func(a, b ledger.ReportLine) int { return int(b.Total - a.Total) }) {
		t.Fatalf("lines are not in order: %+v", got.Lines)
	}
	seen := map[string]bool{}
	for i, s := range got.Series {
		name := step(s.Start)
		end := got.To
		if i+1 < len(got.Series) {
			end = got.Series[i+1].Start
		}
		if seen[name] || step(end.Add(-edge)) != name {
			t.Fatalf("step %s to %s", s.Start, end)
		}
		seen[name] = true
		if s.Totals != steps[name] {
			t.Fatalf("step %s: %+v, want %+v", s.Start, s.Totals, steps[name])
		}
		for label := range lines {
			if cell := got.Cell(i, label); cell != cells[fmt.Sprint(name, label)] {
				t.Fatalf("cell %s %+v: %+v", name, label, cell)
			}
		}
	}
}

func (r *reported) selected(q ledger.ReportQuery, l ledger.Label) bool {
	in := q.Group == 0 || l.Group == q.Group || (q.Group == r.groups[0] && l.Group == r.groups[1])
	return in && (q.Key == 0 || q.Key == l.Key) && (q.Model == "" || q.Model == l.Model)
}

func sum[K comparable](sums map[K]quota.Totals, k K, t *quota.Totals) {
	s := sums[k]
	s.Add(t)
	sums[k] = s
}

func TestReportSteps(t *testing.T) {
	now := time.Date(2026, 11, 10, 12, 34, 56, 0, time.UTC)
	r := newReported(t, now)
	for _, c := range []struct {
		zone, step, from, to string
		want                 string
	}{
		{"UTC", "month", "2026-01-31T00:00:00Z", "2026-03-01T00:00:00Z", "2026-01-01T00:00:00Z 2026-02-01T00:00:00Z 2026-03-01T00:00:00Z"},
		{"UTC", "month", "2026-01-31T00:00:00Z", "2026-03-01T00:00:00.000000001Z", "2026-01-01T00:00:00Z 2026-02-01T00:00:00Z 2026-03-01T00:00:00Z 2026-04-01T00:00:00Z"},
		{"Europe/Berlin", "day", "2026-10-25T12:00:00Z", "2026-10-25T12:00:01Z", "2026-10-25T00:00:00+02:00 2026-10-26T00:00:00+01:00"},
		{"Europe/Berlin", "hour", "2026-10-25T00:30:00Z", "2026-10-25T02:00:00Z", "2026-10-25T02:00:00+02:00 2026-10-25T02:00:00+01:00 2026-10-25T03:00:00+01:00"},
		{"Asia/Kathmandu", "hour", "2026-10-25T00:00:00Z", "2026-10-25T00:20:00Z", "2026-10-25T05:00:00+05:45 2026-10-25T06:00:00+05:45 2026-10-25T07:00:00+05:45"},
		{"Australia/Lord_Howe", "hour", "2026-10-03T15:00:00Z", "2026-10-03T16:30:00Z", "2026-10-04T01:00:00+10:30 2026-10-04T02:30:00+11:00 2026-10-04T03:00:00+11:00 2026-10-04T04:00:00+11:00"},
		{"Asia/Tokyo", "minute", "2026-11-10T12:30:59.5Z", "2026-11-10T12:31:00Z", "2026-11-10T21:30:00+09:00 2026-11-10T21:31:00+09:00"},
	} {
		zone, err := time.LoadLocation(c.zone)
		if err != nil {
			t.Fatal(err)
		}
		from, _ := time.Parse(time.RFC3339, c.from)
		to, _ := time.Parse(time.RFC3339, c.to)
		rep, err := r.Report(now, ledger.ReportQuery{From: from, To: to, Step: c.step, Zone: zone})
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		var got []string
		for _, s := range rep.Series {
			got = append(got, s.Start.Format(time.RFC3339))
		}
		got = append(got, rep.To.Format(time.RFC3339))
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s of %s:\n got %s\nwant %s", c.step, c.zone, strings.Join(got, " "), c.want)
		}
	}
}

// Of days and months that are not those of UTC, and begin before finer rows are
// kept, what lies that far back is the days of UTC by their noon, and the rest
// is as it was.
func TestReportRough(t *testing.T) {
	first := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	r := newReported(t, first)
	k, err := r.Account(first, r.keys[1])
	if err != nil {
		t.Fatal(err)
	}
	var calls []time.Time
	for at := first.Add(30 * time.Minute); at.Before(first.AddDate(0, 0, 200)); at = at.Add(7 * time.Hour) {
		calls = append(calls, at)
		var res ledger.Reservation
		if ref, err := r.Reserve(at, k, ledger.Call{Model: "m", Input: 5}, &res); err != nil || ref != nil {
			t.Fatal(ref, err)
		}
		if err := r.Settle(at, &res, quota.Outcome{Tokens: quota.Tokens{Input: 5}}); err != nil {
			t.Fatal(err)
		}
	}
	now := first.AddDate(0, 0, 200).Add(5 * time.Hour)
	finer := time.Date(2026, 4, 22, 0, 0, 0, 0, time.UTC) // the first that begins in the last 90
	for _, name := range zones[1:] {
		zone, err := time.LoadLocation(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range []ledger.ReportQuery{
			{Step: ledger.PerDay, From: first.AddDate(0, 0, 20), To: now},
			{Step: ledger.PerMonth, From: first.AddDate(0, 1, 5), To: now, By: ledger.By{Key: true}, Cells: true},
			{Step: ledger.PerDay, From: first.AddDate(0, 0, 20), To: first.AddDate(0, 0, 60), Key: r.keys[1]},
			{Step: ledger.PerDay, From: first.AddDate(0, 0, 100), To: finer.Add(time.Hour)},
		} {
			q.Zone = zone
			got, err := r.Report(now, q)
			if err != nil {
				t.Fatal(err)
			}
			want, total := map[string]int64{}, int64(0)
			for _, at := range calls {
				if at.Before(finer) {
					at = at.Truncate(24 * time.Hour).Add(12 * time.Hour)
				}
				if !at.Before(got.From) && at.Before(got.To) {
					want[stepOf(q.Step, at.In(zone))]++
					total++
				}
			}
			for _, s := range got.Series {
				if name := stepOf(q.Step, s.Start); s.Requests != want[name] {
					t.Errorf("%s %s: %s has %d requests, want %d", zone, q.Step, name, s.Requests, want[name])
				}
			}
			if got.Totals.Requests != total || total == 0 {
				t.Errorf("%s %s: %d requests in all, want %d", zone, q.Step, got.Totals.Requests, total)
			}
			if b := got.RoughBefore; b.IsZero() || b.After(finer) {
				t.Errorf("%s %s: rough before %s", zone, q.Step, b)
			}
		}
		exact, err := r.Report(now, ledger.ReportQuery{Step: ledger.PerDay, From: now.AddDate(0, 0, -80), To: now, Zone: zone})
		if err != nil || !exact.RoughBefore.IsZero() {
			t.Errorf("%s: what can be told exactly is rough before %s, %v", zone, exact.RoughBefore, err)
		}
	}
}

func TestReportBounds(t *testing.T) {
	now := time.Date(2026, 11, 10, 12, 34, 56, 0, time.UTC)
	r := newReported(t, now)
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	const day = 24 * time.Hour
	for _, c := range []struct {
		zone  *time.Location
		step  string
		ago   time.Duration
		to    time.Duration // after now
		words string        // "": allowed
	}{
		{time.UTC, "minute", 48 * time.Hour, 0, ""},
		{time.UTC, "minute", 48*time.Hour + time.Second, 0, "by minute in UTC is kept for 2d, since 2026-11-08T12:34:56Z"},
		{time.UTC, "hour", 90 * day, 0, ""},
		{time.UTC, "hour", 91 * day, 0, "kept for 90d"},
		{berlin, "day", 90 * day, 0, ""},
		{berlin, "hour", 91 * day, 0, "by hour in Europe/Berlin is kept for 90d"},
		{berlin, "day", 1095 * day, 0, ""},
		{berlin, "day", 1096 * day, 0, "kept for 1095d"},
		{berlin, "month", 1060 * day, 0, ""},
		{berlin, "month", 1095 * day, 0, "kept for 1095d"},
		{time.UTC, "day", 1095 * day, 0, ""},
		{time.UTC, "day", 1096 * day, 0, "kept for 1095d"},
		{time.UTC, "month", 1095 * day, 0, "kept for 1095d"},
		{time.UTC, "month", 1060 * day, 0, ""},
		{time.UTC, "minute", time.Hour, 7 * day, "10000 rows"},
		{time.UTC, "month", time.Hour, 3000 * 30 * day, ""},
		{berlin, "day", time.Hour, 10_000 * 5 * day, "10000 rows"},
		{time.UTC, "hour", time.Hour, -time.Hour, "to is not after from"},
		{time.UTC, "hour", time.Hour, -2 * time.Hour, "to is not after from"},
		{time.UTC, "year", time.Hour, 0, "step"},
		{time.UTC, "", time.Hour, 0, "step"},
	} {
		_, err := r.Report(now, ledger.ReportQuery{From: now.Add(-c.ago), To: now.Add(c.to), Step: c.step, Zone: c.zone})
		switch {
		case c.words == "" && err != nil:
			t.Errorf("%+v: %v", c, err)
		case c.words != "" && (!errors.Is(err, quota.ErrInvalid) || !strings.Contains(err.Error(), c.words)):
			t.Errorf("%+v: %v", c, err)
		}
	}
	// Exactly as many as are allowed.
	from := now.Truncate(time.Minute).Add(-time.Hour)
	rep, err := r.Report(now, ledger.ReportQuery{From: from, To: from.Add(ledger.MaxReportSteps * time.Minute), Step: "minute"})
	if err != nil || len(rep.Series) != ledger.MaxReportSteps {
		t.Errorf("the most steps: %v", err)
	}
}
