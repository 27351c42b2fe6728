package ledger

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// MaxReportSteps is the most steps that one report may have.
const MaxReportSteps = 10_000

// The steps of reports. They are calendar steps of the report's time zone.
const (
	PerMinute = "minute"
	PerHour   = "hour"
	PerDay    = "day"
	PerMonth  = "month"
)

// By says what the lines of a report are told apart by.
type By struct{ Model, Key, Group bool }

// ReportQuery selects usage by the time of admission in [From, To), widened to
// whole steps.
type ReportQuery struct {
	From, To time.Time
	Step     string         // PerMinute, PerHour, PerDay or PerMonth
	Zone     *time.Location // nil: UTC
	By       By
	// Key, Group and Model select when they are set. A group is taken with all
	// groups that stand below it now.
	Key, Group quota.ID
	Model      string
	// Cells asks for Report.Cell.
	Cells bool
}

// Report is usage, summed.
type Report struct {
	From, To time.Time // whole steps
	// RoughBefore is, where days of UTC had to stand for those of another zone,
	// the time before which they do: each is counted in the step that holds its
	// noon. Zero: nowhere.
	RoughBefore time.Time
	Totals      quota.Totals
	Lines       []ReportLine // by total, the greatest first; none without By
	Series      []ReportStep // every step, the earliest first
	cells       map[cell]*quota.Totals
}

// ReportLine is the usage of one model, key or group. What the report is not
// told apart by is zero.
type ReportLine struct {
	Label
	quota.Totals
}

// Label is what a line stands for.
type Label struct {
	Model string
	Key   quota.ID
	Group quota.ID // the key's own group when it was spent; zero: none
}

// ReportStep is the usage of one step.
type ReportStep struct {
	Start time.Time
	quota.Totals
}

type cell struct {
	step int
	Label
}

// Cell returns the usage of one line in the step of that index, if the query
// asked for cells.
func (r *Report) Cell(step int, line Label) quota.Totals {
	if t := r.cells[cell{step, line}]; t != nil {
		return *t
	}
	return quota.Totals{}
}

// Report sums the usage that q selects. A query that asks for too many steps,
// or for finer ones than are kept so long, is quota.ErrInvalid. Of minutes,
// hours and days, the first step may lack what was dropped at the retention's
// edge.
func (l *Ledger) Report(now time.Time, q ReportQuery) (*Report, error) {
	if q.Zone == nil {
		q.Zone = time.UTC
	}
	starts, err := q.starts()
	if err != nil {
		return nil, err
	}
	parts, err := l.sources(now, &q, starts)
	if err != nil {
		return nil, err
	}
	var in map[quota.ID]bool
	if q.Group != 0 {
		if in, err = l.Descendants(q.Group); err != nil {
			return nil, fmt.Errorf("reading the groups: %w", err)
		}
	}
	s := newSummary(&q, starts)
	usage, done, err := l.usage()
	if err != nil {
		return nil, fmt.Errorf("reading usage: %w", err)
	}
	defer done()
	for _, p := range parts {
		err := usage(quota.RowQuery{Step: p.step, From: p.from, To: p.to, Key: q.Key, ByKey: q.By.Key}, func(r *quota.Row) error {
			if (in == nil || in[r.Group]) && (q.Model == "" || q.Model == r.Model) {
				r.Start += p.noon
				s.add(r)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("reading usage: %w", err)
		}
		if p.noon != 0 {
			s.report.RoughBefore = time.Unix(p.to, 0).In(q.Zone)
		}
	}
	return s.finish(), nil
}

// starts returns the Unix seconds at which the steps start, and at last the
// one at which they end.
func (q *ReportQuery) starts() ([]int64, error) {
	if !q.From.Before(q.To) {
		return nil, fmt.Errorf("to is not after from: %w", quota.ErrInvalid)
	}
	at, err := steps(q.Step, q.Zone)
	if err != nil {
		return nil, err
	}
	if q.From.Year() < 1 || q.To.AddDate(0, 1, 1).Year() > 9999 { // widened, it must be what RFC 3339 can write
		return nil, fmt.Errorf("from and to are not between the years 1 and 9999: %w", quota.ErrInvalid)
	}
	to := q.To.Unix()
	if q.To.Nanosecond() > 0 {
		to++
	}
	p := at(q.From.Unix())
	starts := []int64{p.Start}
	for {
		starts = append(starts, p.End)
		if p.End >= to {
			return starts, nil
		}
		if len(starts) > MaxReportSteps {
			return nil, fmt.Errorf("from, to and step %s ask for more than %d rows: %w", q.Step, MaxReportSteps, quota.ErrInvalid)
		}
		p = at(p.End)
	}
}

// steps returns the function that finds the step which holds a Unix second.
func steps(step string, zone *time.Location) (func(int64) quota.Period, error) {
	calendar := quota.Schedule{Zone: zone, MonthDay: 1}
	switch step {
	case PerMinute:
		return func(t int64) quota.Period {
			start := quota.StepMinute.Start(t)
			return quota.Period{Start: start, End: start + 60}
		}, nil
	case PerHour:
		return func(t int64) quota.Period { return hour(t, zone) }, nil
	case PerDay:
		calendar.Reset = quota.ResetDaily
	case PerMonth:
		calendar.Reset = quota.ResetMonthly
	default:
		return nil, fmt.Errorf("step %q is not minute, hour, day or month: %w", clip(step), quota.ErrInvalid)
	}
	return func(t int64) quota.Period { return calendar.At(time.Unix(t, 0)) }, nil
}

// hour returns the hour of the zone's clocks that holds the Unix second t.
// Where the clocks are put by less than an hour, the hour in which that happens
// is cut there: after it the hours start at another minute of UTC.
func hour(t int64, zone *time.Location) quota.Period {
	local := time.Unix(t, 0).In(zone)
	_, offset := local.Zone()
	wall := t + int64(offset)
	start := t - (wall%3600+3600)%3600
	p := quota.Period{Start: start, End: start + 3600}
	since, until := local.ZoneBounds()
	if !since.IsZero() && p.Start < since.Unix() && shifted(since, offset) {
		p.Start = since.Unix()
	}
	if !until.IsZero() && p.End > until.Unix() && shifted(until, offset) {
		p.End = until.Unix()
	}
	return p
}

// shifted tells whether hours start at another minute of UTC on the other side
// of a change of the zone's offset than they do with the given one.
func shifted(change time.Time, offset int) bool {
	_, before := change.Add(-time.Second).Zone()
	_, after := change.Zone()
	return (before-offset)%3600 != 0 || (after-offset)%3600 != 0
}

// part is a span of which a report reads the rows of one step. noon is how far
// into a row the second lies that says in which of the report's steps it counts.
type part struct {
	step     quota.Step
	from, to int64
	noon     int64
}

// sources returns what a report is made of: the rows of the coarsest stored step
// of which its steps can be made and that is kept since its beginning. Where
// that is none, but only because its days and months are not those of UTC, the
// days of UTC stand for them until finer rows begin.
func (l *Ledger) sources(now time.Time, q *ReportQuery, starts []int64) ([]part, error) {
	from := q.From
	if q.Step == PerMonth { // too wide to be let begin with a part that was dropped
		from = time.Unix(starts[0], 0)
	}
	usable := 1
	switch q.Step {
	case PerHour:
		usable = 2
	case PerDay, PerMonth:
		usable = 2
		if onDays(starts) {
			usable = 3
		}
	}
	first, last := starts[0], starts[len(starts)-1]
	retention := l.Retention()
	var kept time.Duration
	for _, step := range slices.Backward(quota.Steps[:usable]) {
		if !from.Before(now.Add(-retention[step])) {
			return []part{{step: step, from: first, to: last}}, nil
		}
		kept = max(kept, retention[step])
	}
	if (q.Step == PerDay || q.Step == PerMonth) && !from.Before(now.Add(-retention[quota.StepDay])) {
		const noon = 12 * 3600
		finer := ceil(quota.StepDay, now.Add(-retention[quota.StepQuarter]).Unix())
		rough := part{quota.StepDay, ceil(quota.StepDay, first-noon), min(finer, ceil(quota.StepDay, last-noon)), noon}
		if finer >= last {
			return []part{rough}, nil
		}
		return []part{rough, {step: quota.StepQuarter, from: finer, to: last}}, nil
	}
	hint := "take a coarser step or a later from"
	if q.Step == PerDay || q.Step == PerMonth {
		hint, kept = "take a later from", max(kept, retention[quota.StepDay])
	}
	return nil, fmt.Errorf("from: usage by %s in %s is kept for %s, since %s; %s: %w",
		q.Step, q.Zone, days(kept), now.Add(-kept).UTC().Format(time.RFC3339), hint, quota.ErrInvalid)
}

// onDays tells whether all of the times are starts of UTC days.
func onDays(starts []int64) bool {
	for _, t := range starts {
		if t != quota.StepDay.Start(t) {
			return false
		}
	}
	return true
}

// days writes a retention as it is configured, in days where it is whole ones.
func days(d time.Duration) string {
	if day := quota.StepDay.Duration(); d >= day && d%day == 0 {
		return fmt.Sprintf("%dd", d/day)
	}
	return d.String()
}

// clip shortens outside text for an error message.
func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "..."
	}
	return s
}

// summary is a report in the making.
type summary struct {
	query  *ReportQuery
	starts []int64
	report *Report
	lines  map[Label]*quota.Totals
	last   int // the step of the row before: rows often come in order
}

func newSummary(q *ReportQuery, starts []int64) *summary {
	n := len(starts) - 1
	s := &summary{query: q, starts: starts, lines: map[Label]*quota.Totals{}, report: &Report{
		From: time.Unix(starts[0], 0).In(q.Zone), To: time.Unix(starts[n], 0).In(q.Zone),
		Series: make([]ReportStep, n),
	}}
	for i := range s.report.Series {
		s.report.Series[i].Start = time.Unix(starts[i], 0).In(q.Zone)
	}
	if q.Cells {
		s.report.cells = map[cell]*quota.Totals{}
	}
	return s
}

func (s *summary) add(r *quota.Row) {
	if r.Start < s.starts[s.last] || r.Start >= s.starts[s.last+1] {
		i, found := slices.BinarySearch(s.starts, r.Start)
		if !found {
			i--
		}
		s.last = min(max(i, 0), len(s.starts)-2)
	}
	s.report.Totals.Add(&r.Totals)
	s.report.Series[s.last].Add(&r.Totals)
	by := s.query.By
	if by == (By{}) {
		return
	}
	var label Label
	if by.Model {
		label.Model = r.Model
	}
	if by.Key {
		label.Key = r.Key
	}
	if by.Group {
		label.Group = r.Group
	}
	addTo(s.lines, label, &r.Totals)
	if s.report.cells != nil {
		addTo(s.report.cells, cell{s.last, label}, &r.Totals)
	}
}

func addTo[K comparable](sums map[K]*quota.Totals, k K, t *quota.Totals) {
	sum := sums[k]
	if sum == nil {
		sum = new(quota.Totals)
		sums[k] = sum
	}
	sum.Add(t)
}

func (s *summary) finish() *Report {
	r := s.report
	r.Lines = make([]ReportLine, 0, len(s.lines))
	for label, t := range s.lines {
		r.Lines = append(r.Lines, ReportLine{label, *t})
	}
	slices.SortFunc(r.Lines, func(a, b ReportLine) int {
		return cmp.Or(
			cmp.Compare(b.Total, a.Total), strings.Compare(a.Model, b.Model),
			cmp.Compare(a.Key, b.Key), cmp.Compare(a.Group, b.Group),
		)
	})
	return r
}
