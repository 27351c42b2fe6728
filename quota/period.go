package quota

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // the official Caddy image has no time zone files
)

// Reset says when a quota starts anew.
type Reset string

// The resets a quota may have.
const (
	ResetDaily   Reset = "daily"
	ResetWeekly  Reset = "weekly"
	ResetMonthly Reset = "monthly"
	ResetManual  Reset = "manual"
)

// LastDay as a MonthDay is the last day of each month.
const LastDay MonthDay = -1

// MonthDay is a day of the month, 1 to 31, or LastDay. In JSON it is a number
// or "last".
type MonthDay int8

// MarshalJSON writes the number or "last".
func (d MonthDay) MarshalJSON() ([]byte, error) {
	if d == LastDay {
		return []byte(`"last"`), nil
	}
	return strconv.AppendInt(nil, int64(d), 10), nil
}

// UnmarshalJSON reads a number from 1 to 31, "last", or null for the default.
func (d *MonthDay) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		*d = 0
		return nil
	}
	if s, ok := jsonString(b); ok && s == "last" {
		*d = LastDay
		return nil
	}
	n, err := wholeNumber(b)
	if err != nil || n < 1 || n > 31 {
		return badMonthDay(clipJSON(b))
	}
	*d = MonthDay(n)
	return nil
}

// ParseMonthDay reads 1 to 31, or last.
func ParseMonthDay(s string) (MonthDay, error) {
	if s == "last" {
		return LastDay, nil
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil || n < 1 || n > 31 {
		return 0, badMonthDay(clip([]byte(s)))
	}
	return MonthDay(n), nil
}

func badMonthDay(shown string) error {
	return fmt.Errorf("month_day %s is not 1 to 31 or last: %w", shown, ErrInvalid)
}

// Quota is a number of tokens for each calendar period.
type Quota struct {
	// The tokens of one period: a whole number, or "unlimited" to switch an
	// inherited quota off. 0 admits nothing.
	Tokens Bound `json:"tokens"`
	// When the quota starts anew: daily, weekly, monthly, or manual (only
	// when somebody resets it).
	Reset Reset `json:"reset,omitempty"`
	// The IANA time zone in which days, weeks and months are reckoned.
	// Default: the app's.
	TimeZone string `json:"time_zone,omitempty"`
	// The local time of the reset, as HH:MM. A time that a day lacks is the
	// first instant after it; of one that comes twice, the first counts.
	// Default: 00:00.
	At string `json:"at,omitempty"`
	// The day on which a week starts, by its English name. Default: monday.
	WeekStart string `json:"week_start,omitempty"`
	// The day on which a month starts: 1 to 31, or last. A day that a month
	// lacks is its last day. Default: 1.
	MonthDay MonthDay `json:"month_day,omitempty"`
}

// Filled returns q with every default written out, as it holds in an app whose
// time zone is zone.
func (q Quota) Filled(zone string) Quota {
	if q.Reset == "" {
		return q
	}
	q.TimeZone = cmp.Or(q.TimeZone, zone, "UTC")
	if q.At == "" && q.Reset != ResetManual {
		q.At = "00:00"
	}
	if q.WeekStart == "" && q.Reset == ResetWeekly {
		q.WeekStart = "monday"
	}
	if q.MonthDay == 0 && q.Reset == ResetMonthly {
		q.MonthDay = 1
	}
	return q
}

// Schedule returns the quota's schedule in an app whose time zone is zone. The
// error names the field that is wrong.
func (q Quota) Schedule(zone string) (*Schedule, error) {
	q = q.Filled(zone)
	s := &Schedule{Reset: q.Reset}
	switch q.Reset {
	case ResetDaily, ResetWeekly, ResetMonthly, ResetManual:
	case "":
		if q.Tokens != Unlimited {
			return nil, fmt.Errorf("reset is missing: daily, weekly, monthly or manual: %w", ErrInvalid)
		}
		s.Reset = ResetManual
	default:
		return nil, fmt.Errorf("reset %s is not daily, weekly, monthly or manual: %w", clip([]byte(q.Reset)), ErrInvalid)
	}
	if q.TimeZone == "" {
		q.TimeZone = zone
	}
	var err error
	if s.Zone, err = LoadZone(q.TimeZone); err != nil {
		return nil, err
	}
	if q.At != "" {
		t, err := time.Parse("15:04", q.At)
		if err != nil || len(q.At) != 5 {
			return nil, fmt.Errorf("at %s is not a time like 06:00: %w", clip([]byte(q.At)), ErrInvalid)
		}
		s.Hour, s.Minute = t.Hour(), t.Minute()
	}
	s.WeekStart = time.Monday
	if q.WeekStart != "" {
		if s.WeekStart, err = ParseWeekday(q.WeekStart); err != nil {
			return nil, err
		}
	}
	s.MonthDay = cmp.Or(q.MonthDay, 1)
	if s.MonthDay < LastDay || s.MonthDay > 31 {
		return nil, badMonthDay(strconv.Itoa(int(s.MonthDay)))
	}
	return s, nil
}

// LoadZone returns the IANA time zone of that name; the empty name is UTC.
func LoadZone(name string) (*time.Location, error) {
	if name == "" {
		return time.UTC, nil
	}
	loc, err := time.LoadLocation(name)
	if err != nil || name == "Local" {
		return nil, fmt.Errorf("time_zone %s is not known: %w", clip([]byte(name)), ErrInvalid)
	}
	return loc, nil
}

// ParseWeekday reads a day's English name in any case.
func ParseWeekday(s string) (time.Weekday, error) {
	for d := time.Sunday; d <= time.Saturday; d++ {
		if strings.EqualFold(s, d.String()) {
			return d, nil
		}
	}
	return 0, fmt.Errorf("week_start %s is not a weekday: %w", clip([]byte(s)), ErrInvalid)
}

// Schedule divides time into the periods of a quota.
type Schedule struct {
	Reset        Reset
	Zone         *time.Location
	Hour, Minute int
	WeekStart    time.Weekday
	MonthDay     MonthDay
}

// Period is a span of time, half-open, in Unix seconds. End is 0 when the
// period has no end.
type Period struct{ Start, End int64 }

// Holds tells whether the Unix second t lies in p.
func (p Period) Holds(t int64) bool { return t >= p.Start && (p.End == 0 || t < p.End) }

// At returns the period that holds t. Periods of one schedule neither overlap
// nor leave a gap: each starts where the one before it ends, at the first
// instant whose local time is not before the schedule's. The period of a
// manual schedule is without start and end.
func (s *Schedule) At(t time.Time) Period {
	if s.Reset == ResetManual {
		return Period{}
	}
	now := t.Unix()
	local := t.In(s.Zone)
	// The local clock has shown the boundary before local's own, so that it
	// lies behind; a clock that was put back may have shown later ones too.
	start := s.boundary(local, -1)
	for n := 0; ; n++ {
		end := s.boundary(local, n)
		if end > now {
			return Period{start, end}
		}
		start = end
	}
}

// Daily returns the schedule of the days in the zone of s.
func (s *Schedule) Daily() *Schedule { return &Schedule{Reset: ResetDaily, Zone: s.Zone} }

// boundary returns the Unix second at which the period starts that belongs to
// the day, week or month n steps from local's own.
func (s *Schedule) boundary(local time.Time, n int) int64 {
	y, m, d := local.Date()
	switch s.Reset {
	case ResetWeekly:
		d -= int(local.Weekday()-s.WeekStart+7) % 7
		d += 7 * n
	case ResetMonthly:
		first := time.Date(y, m+time.Month(n), 1, 0, 0, 0, 0, time.UTC)
		last := first.AddDate(0, 1, -1).Day()
		y, m, d = first.Year(), first.Month(), int(s.MonthDay)
		if s.MonthDay == LastDay || d > last {
			d = last
		}
	default:
		d += n
	}
	return firstInstant(time.Date(y, m, d, s.Hour, s.Minute, 0, 0, time.UTC).Unix(), s.Zone)
}

// firstInstant returns the first Unix second at which the clocks of zone show
// wall (a local time reckoned as if it were UTC) or, if they skip it, the
// second to which they skip. time.Date cannot be used for that: for a local
// time that does not exist it may answer with one before it.
func firstInstant(wall int64, zone *time.Location) int64 {
	t := time.Unix(wall-24*3600, 0).In(zone) // no offset reaches 24 h
	for {
		_, offset := t.Zone()
		at := wall - int64(offset)
		if at < t.Unix() {
			return t.Unix()
		}
		_, end := t.ZoneBounds()
		if !end.IsZero() && !end.After(t) {
			// On the last day of a leap year that is ruled by a zone's footer,
			// the end may lie behind: https://go.dev/issue/81583.
			end = t.Truncate(24 * time.Hour).Add(24 * time.Hour)
		}
		if end.IsZero() || at < end.Unix() {
			return at
		}
		t = end
	}
}
