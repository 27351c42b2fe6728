package quota

import (
	"archive/zip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

const (
	minute = 60
	hour   = 60 * minute
	day    = 24 * hour
)

// stressZones have or had what is rare: transitions at midnight or a minute
// past it, days left out or lived twice, half hours, Ramadan, two hours.
var stressZones = []string{
	"Africa/Cairo", "Africa/Casablanca", "America/Asuncion", "America/Havana", "America/Nuuk", "America/Santiago",
	"America/Sao_Paulo", "America/St_Johns", "Antarctica/Troll", "Asia/Amman", "Asia/Beirut", "Asia/Gaza",
	"Asia/Kathmandu", "Asia/Manila", "Asia/Pyongyang", "Asia/Tehran", "Atlantic/Azores", "Australia/Lord_Howe",
	"Europe/Berlin", "Europe/Dublin", "Pacific/Apia", "Pacific/Chatham", "Pacific/Fakaofo", "Pacific/Kiritimati",
	"Pacific/Kwajalein", "UTC",
}

// allZones returns one name for each different zone of the database, or
// stressZones if there is no Go tree to read it from.
func allZones(t *testing.T) []string {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return stressZones
	}
	z, err := zip.OpenReader(filepath.Join(strings.TrimSpace(string(root)), "lib", "time", "zoneinfo.zip"))
	if err != nil {
		return stressZones
	}
	defer z.Close()
	var names []string
	seen := make(map[[32]byte]bool)
	for _, f := range z.File {
		if f.FileInfo().IsDir() {
			continue
		}
		r, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(data); !seen[sum] {
			seen[sum] = true
			names = append(names, f.Name)
		}
	}
	return names
}

func mustZone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := LoadZone(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

// slowClock finds boundaries by looking at a zone's clock minute after minute.
type slowClock struct {
	zone    *time.Location
	changes []int64 // the minutes at which the offset differs from the minute before
}

// newSlowClock looks at the clock from one Unix second to another, both whole
// days of UTC. Offsets that hold for less than six hours would be missed.
func newSlowClock(zone *time.Location, from, to int64) *slowClock {
	c := &slowClock{zone: zone}
	const coarse = 6 * hour
	for t := from; t < to; t += coarse {
		if c.offset(t) == c.offset(t+coarse) {
			continue
		}
		for m := t + minute; m <= t+coarse; m += minute {
			if c.offset(m) != c.offset(m-minute) {
				c.changes = append(c.changes, m)
			}
		}
	}
	return c
}

func (c *slowClock) offset(t int64) int64 {
	_, offset := time.Unix(t, 0).In(c.zone).Zone()
	return int64(offset)
}

// first returns the first Unix second, of those that are whole minutes, at
// which the local clock shows wall or later.
func (c *slowClock) first(wall int64) int64 {
	const far = 16 * hour // no offset since 1900 is greater
	calm := true
	for _, at := range c.changes {
		calm = calm && (at < wall-far || at > wall+far)
	}
	if calm {
		return wall - c.offset(wall)
	}
	t := wall - far
	for t+c.offset(t) < wall {
		t += minute
	}
	return t
}

// boundaries returns the instants at which s starts anew, for the local days
// from one to another (as midnights of UTC): each once, though two scheduled
// times that a zone skipped may fall on one instant.
func (c *slowClock) boundaries(s *Schedule, from, to int64) []int64 {
	var all []int64
	for d := from; d < to; d += day {
		date := time.Unix(d, 0).UTC()
		switch s.Reset {
		case ResetWeekly:
			if date.Weekday() != s.WeekStart {
				continue
			}
		case ResetMonthly:
			tomorrow := time.Unix(d+day, 0).UTC()
			isLast := tomorrow.Day() == 1
			isDay := date.Day() == int(s.MonthDay)
			if !isDay && !(isLast && (s.MonthDay == LastDay || date.Day() < int(s.MonthDay))) {
				continue
			}
		}
		at := c.first(d + int64(s.Hour)*hour + int64(s.Minute)*minute)
		if len(all) == 0 || all[len(all)-1] != at {
			all = append(all, at)
		}
	}
	return all
}

// walk follows s over the boundaries want by what At says alone.
func walk(t *testing.T, s *Schedule, want []int64) bool {
	t.Helper()
	for i, start := range want[:len(want)-1] {
		p := Period{start, want[i+1]}
		inside := [...]time.Time{
			time.Unix(start, 0),
			time.Unix(p.End-1, 999_999_999),
			time.Unix(start+rand.Int64N(p.End-start), rand.Int64N(1e9)),
		}
		often := len(inside)
		if i%8 != 0 {
			often--
		}
		for _, at := range inside[:often] {
			if got := s.At(at); got != p {
				t.Errorf("%s %s at %02d:%02d, week_start %v, month_day %d: the period of %s is %s, want %s", s.Zone, s.Reset,
					s.Hour, s.Minute, s.WeekStart, s.MonthDay, at.UTC().Format(time.RFC3339Nano), show(got), show(p))
				return false
			}
		}
	}
	return true
}

func show(p Period) string {
	return time.Unix(p.Start, 0).UTC().Format(time.RFC3339) + "/" + time.Unix(p.End, 0).UTC().Format(time.RFC3339)
}

// schedules are weeks and months of several kinds.
func schedules(zone *time.Location) (all []*Schedule) {
	ats := clockTimes
	next := func() (h, m int) {
		at := ats[0]
		ats = append(ats[1:len(ats):len(ats)], at)
		return at[0], at[1]
	}
	for _, d := range []time.Weekday{time.Sunday, time.Monday, time.Saturday} {
		h, m := next()
		all = append(all, &Schedule{Reset: ResetWeekly, Zone: zone, Hour: h, Minute: m, WeekStart: d})
	}
	for _, d := range []MonthDay{1, 15, 28, 29, 30, 31, LastDay} {
		h, m := next()
		all = append(all, &Schedule{Reset: ResetMonthly, Zone: zone, Hour: h, Minute: m, MonthDay: d})
	}
	return all
}

// clockTimes are times of the reset, most of them times that some zone skips
// or repeats.
var clockTimes = [][2]int{{0, 0}, {2, 30}, {0, 1}, {23, 59}, {1, 0}, {0, 30}, {3, 0}, {12, 0}, {23, 1}, {2, 0}}

func TestEveryZoneResetsOncePerPeriod(t *testing.T) {
	from, to := date(2026, 1, 1), date(2028, 1, 1)
	zones := allZones(t)
	if len(zones) < 300 {
		t.Logf("only %d zones to look at", len(zones))
	}
	for i, name := range zones {
		zone := mustZone(t, name)
		c := newSlowClock(zone, from-40*day, to+2*day)
		at := clockTimes[i%len(clockTimes)]
		daily := &Schedule{Reset: ResetDaily, Zone: zone, Hour: at[0], Minute: at[1]}
		if !walk(t, daily, c.boundaries(daily, from, to)) {
			continue
		}
		for _, s := range schedules(zone) {
			walk(t, s, c.boundaries(s, from-32*day, to))
		}
		for _, change := range c.changes {
			midnight := change - change%day
			for j := i % 2; j < len(clockTimes); j += 2 {
				s := &Schedule{Reset: ResetDaily, Zone: zone, Hour: clockTimes[j][0], Minute: clockTimes[j][1]}
				walk(t, s, c.boundaries(s, midnight-2*day, midnight+3*day))
			}
		}
	}
}

// After their last listed transition zones follow a rule, of which ZoneBounds
// says nothing true on the last day of a leap year.
func TestTheEndOfALeapYearUnderARule(t *testing.T) {
	from, to := date(2040, 12, 27), date(2041, 1, 5)
	for _, name := range allZones(t) {
		zone := mustZone(t, name)
		c := newSlowClock(zone, from-2*day, to+2*day)
		for _, at := range clockTimes[:4] {
			s := &Schedule{Reset: ResetDaily, Zone: zone, Hour: at[0], Minute: at[1]}
			walk(t, s, c.boundaries(s, from, to))
		}
	}
}

func TestZonesOfTheTwenties(t *testing.T) {
	for _, name := range allZones(t) {
		zone := mustZone(t, name)
		for at := date(2020, 1, 1); at < date(2030, 1, 1); at += 30 * day {
			if _, offset := time.Unix(at, 0).In(zone).Zone(); offset%(15*minute) != 0 {
				t.Errorf("the offset of %s is %d s, which StepQuarter cannot serve", name, offset)
				break
			}
		}
	}
}

func TestStrangeYearsResetOncePerPeriod(t *testing.T) {
	years := map[string][]int{
		"Pacific/Apia":        {2010, 2011, 2012},
		"Pacific/Fakaofo":     {2011},
		"Pacific/Kiritimati":  {1994, 1995},
		"Pacific/Kwajalein":   {1993},
		"America/St_Johns":    {1987, 1988, 1989, 2006, 2007, 2011},
		"Antarctica/Troll":    {2005, 2016},
		"Australia/Lord_Howe": {1981, 1985, 2008, 2019},
		"Africa/Casablanca":   {2012, 2018, 2019, 2025},
		"Africa/Cairo":        {2010, 2014, 2023},
		"Asia/Beirut":         {2022, 2023},
		"Asia/Gaza":           {2011, 2016},
		"Asia/Pyongyang":      {2015, 2018},
		"America/Sao_Paulo":   {2017, 2018},
		"Atlantic/Azores":     {1992, 1993},
	}
	for _, name := range stressZones {
		t.Run(name, func(t *testing.T) {
			zone := mustZone(t, name)
			for _, year := range append(years[name], 1999, 2024) {
				from, to := date(year, 1, 1), date(year+1, 1, 1)
				c := newSlowClock(zone, from-40*day, to+2*day)
				for _, s := range schedules(zone) {
					walk(t, s, c.boundaries(s, from-32*day, to))
				}
				for _, at := range clockTimes[:4] {
					s := &Schedule{Reset: ResetDaily, Zone: zone, Hour: at[0], Minute: at[1]}
					walk(t, s, c.boundaries(s, from, to))
				}
			}
		})
	}
}

func TestAtHoldsAnyInstant(t *testing.T) {
	zones := allZones(t)
	rapid.Check(t, func(t *rapid.T) {
		zone, err := LoadZone(rapid.SampledFrom(zones).Draw(t, "zone"))
		if err != nil {
			t.Fatal(err)
		}
		s := &Schedule{
			Reset:     rapid.SampledFrom([]Reset{ResetDaily, ResetWeekly, ResetMonthly}).Draw(t, "reset"),
			Zone:      zone,
			Hour:      rapid.IntRange(0, 23).Draw(t, "hour"),
			Minute:    rapid.IntRange(0, 59).Draw(t, "minute"),
			WeekStart: time.Weekday(rapid.IntRange(0, 6).Draw(t, "week_start")),
			MonthDay:  MonthDay(rapid.SampledFrom([]int{-1, 1, 2, 15, 28, 29, 30, 31}).Draw(t, "month_day")),
		}
		// From before the first transition of any zone to the far future.
		at := rapid.OneOf(
			rapid.Int64Range(date(1800, 1, 1), date(2400, 1, 1)),
			rapid.Int64Range(date(1975, 1, 1), date(2050, 1, 1)),
			rapid.Int64Range(date(2040, 12, 28), date(2041, 1, 4)),
		).Draw(t, "at")
		p := s.At(time.Unix(at, 0))
		if !p.Holds(at) || p.Start >= p.End {
			t.Fatalf("the period of %d is %s", at, show(p))
		}
		if p.End-p.Start > 34*day {
			t.Fatalf("the period %s is longer than any", show(p))
		}
		if next := s.At(time.Unix(p.End, 0)); next.Start != p.End {
			t.Fatalf("after %s comes %s", show(p), show(next))
		}
		if before := s.At(time.Unix(p.Start-1, 0)); before.End != p.Start {
			t.Fatalf("before %s comes %s", show(p), show(before))
		}
		for _, in := range []int64{p.Start, p.End - 1} {
			if same := s.At(time.Unix(in, 0)); same != p {
				t.Fatalf("%s holds %d, but that has %s", show(p), in, show(same))
			}
		}
	})
}

func date(y, m, d int) int64 { return time.Date(y, time.Month(m), d, 0, 0, 0, 0, time.UTC).Unix() }

func TestBoundariesThatAreKnown(t *testing.T) {
	for _, tt := range []struct {
		name  string
		quota Quota
		// Starts of consecutive periods; the first is looked up by itself.
		starts []string
	}{
		{
			"Samoa leaves out 30 December 2011",
			Quota{Reset: ResetDaily, TimeZone: "Pacific/Apia"},
			[]string{"2011-12-29T00:00:00-10:00", "2011-12-31T00:00:00+14:00", "2012-01-01T00:00:00+14:00"},
		},
		{
			"a time on a day left out is the day after's first instant",
			Quota{Reset: ResetDaily, TimeZone: "Pacific/Apia", At: "06:00"},
			[]string{"2011-12-29T06:00:00-10:00", "2011-12-31T00:00:00+14:00", "2011-12-31T06:00:00+14:00"},
		},
		{
			"a month that starts on a day left out",
			Quota{Reset: ResetMonthly, TimeZone: "Pacific/Apia", MonthDay: 30},
			[]string{"2011-11-30T00:00:00-10:00", "2011-12-31T00:00:00+14:00", "2012-01-30T00:00:00+14:00"},
		},
		{
			"Kwajalein leaves out 21 August 1993",
			Quota{Reset: ResetWeekly, TimeZone: "Pacific/Kwajalein", WeekStart: "saturday"},
			[]string{"1993-08-14T00:00:00-12:00", "1993-08-22T00:00:00+12:00", "1993-08-28T00:00:00+12:00"},
		},
		{
			"Chile has no midnight when summer begins",
			Quota{Reset: ResetDaily, TimeZone: "America/Santiago"},
			[]string{"2026-09-05T00:00:00-04:00", "2026-09-06T01:00:00-03:00", "2026-09-07T00:00:00-03:00"},
		},
		{
			"Chile has 25 hours when summer ends at midnight",
			Quota{Reset: ResetDaily, TimeZone: "America/Santiago"},
			[]string{"2026-04-04T00:00:00-03:00", "2026-04-05T00:00:00-04:00", "2026-04-06T00:00:00-04:00"},
		},
		{
			"Cuba has midnight twice",
			Quota{Reset: ResetDaily, TimeZone: "America/Havana"},
			[]string{"2026-10-31T00:00:00-04:00", "2026-11-01T00:00:00-04:00", "2026-11-02T00:00:00-05:00"},
		},
		{
			"Newfoundland goes back over midnight a minute after it",
			Quota{Reset: ResetDaily, TimeZone: "America/St_Johns"},
			[]string{"2006-10-28T00:00:00-02:30", "2006-10-29T00:00:00-02:30", "2006-10-30T00:00:00-03:30"},
		},
		{
			"Newfoundland's double summer time begins a minute after midnight",
			Quota{Reset: ResetDaily, TimeZone: "America/St_Johns", At: "00:30"},
			[]string{"1988-04-02T00:30:00-03:30", "1988-04-03T02:01:00-01:30", "1988-04-04T00:30:00-01:30"},
		},
		{
			"Lord Howe's half hour",
			Quota{Reset: ResetDaily, TimeZone: "Australia/Lord_Howe", At: "02:15"},
			[]string{"2026-10-03T02:15:00+10:30", "2026-10-04T02:30:00+11:00", "2026-10-05T02:15:00+11:00"},
		},
		{
			"Troll's two hours",
			Quota{Reset: ResetDaily, TimeZone: "Antarctica/Troll", At: "02:00"},
			[]string{"2026-03-28T02:00:00+00:00", "2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"},
		},
		{
			"Liberia gave up its seconds",
			Quota{Reset: ResetDaily, TimeZone: "Africa/Monrovia"},
			[]string{"1972-01-06T00:44:30Z", "1972-01-07T00:44:30Z", "1972-01-08T00:00:00Z"},
		},
		{
			"31 does not drift to 28",
			Quota{Reset: ResetMonthly, TimeZone: "UTC", MonthDay: 31},
			[]string{"2027-01-31T00:00:00Z", "2027-02-28T00:00:00Z", "2027-03-31T00:00:00Z", "2027-04-30T00:00:00Z", "2027-05-31T00:00:00Z"},
		},
		{
			"30 in a leap year",
			Quota{Reset: ResetMonthly, TimeZone: "UTC", MonthDay: 30},
			[]string{"2028-01-30T00:00:00Z", "2028-02-29T00:00:00Z", "2028-03-30T00:00:00Z"},
		},
		{
			"the last day",
			Quota{Reset: ResetMonthly, TimeZone: "UTC", MonthDay: LastDay, At: "23:59"},
			[]string{"2027-11-30T23:59:00Z", "2027-12-31T23:59:00Z", "2028-01-31T23:59:00Z", "2028-02-29T23:59:00Z"},
		},
		{
			"weeks from monday over new year",
			Quota{Reset: ResetWeekly},
			[]string{"2026-12-28T00:00:00Z", "2027-01-04T00:00:00Z", "2027-01-11T00:00:00Z"},
		},
		{
			"months from the first",
			Quota{Reset: ResetMonthly, At: "06:00"},
			[]string{"2026-12-01T06:00:00Z", "2027-01-01T06:00:00Z"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := tt.quota.Schedule("UTC")
			if err != nil {
				t.Fatal(err)
			}
			var want []int64
			for _, text := range tt.starts {
				at, err := time.Parse(time.RFC3339, text)
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, at.Unix())
			}
			walk(t, s, want)
		})
	}
}

func TestAManualPeriodHasNoBounds(t *testing.T) {
	s, err := Quota{Reset: ResetManual, Tokens: At(1)}.Schedule("")
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 1, date(2026, 1, 1), date(9999, 1, 1)} {
		if p := s.At(time.Unix(at, 0)); p != (Period{}) || !p.Holds(at) {
			t.Errorf("the period of %d is %s", at, show(p))
		}
	}
}

func TestDailyIsTheDayOfTheSameZone(t *testing.T) {
	s, err := Quota{Reset: ResetMonthly, TimeZone: "Asia/Kathmandu", At: "12:00", MonthDay: 9}.Schedule("UTC")
	if err != nil {
		t.Fatal(err)
	}
	at := date(2026, 3, 2)
	if got, want := s.Daily().At(time.Unix(at, 0)), (Period{at - 5*hour - 45*minute, at + 18*hour + 15*minute}); got != want {
		t.Errorf("the day is %s, want %s", show(got), show(want))
	}
}

func TestScheduleFillsDefaults(t *testing.T) {
	for _, tt := range []struct {
		zone string
		in   Quota
		want Quota
	}{
		{"Europe/Berlin", Quota{Reset: ResetDaily}, Quota{Reset: ResetDaily, TimeZone: "Europe/Berlin", At: "00:00"}},
		{"", Quota{Reset: ResetDaily}, Quota{Reset: ResetDaily, TimeZone: "UTC", At: "00:00"}},
		{"UTC", Quota{Reset: ResetWeekly}, Quota{Reset: ResetWeekly, TimeZone: "UTC", At: "00:00", WeekStart: "monday"}},
		{"UTC", Quota{Reset: ResetMonthly}, Quota{Reset: ResetMonthly, TimeZone: "UTC", At: "00:00", MonthDay: 1}},
		{"UTC", Quota{Reset: ResetManual}, Quota{Reset: ResetManual, TimeZone: "UTC"}},
		{"UTC", Quota{Tokens: Unlimited}, Quota{Tokens: Unlimited}},
		{
			"UTC",
			Quota{Reset: ResetMonthly, TimeZone: "Asia/Tokyo", At: "06:00", MonthDay: LastDay},
			Quota{Reset: ResetMonthly, TimeZone: "Asia/Tokyo", At: "06:00", MonthDay: LastDay},
		},
	} {
		if diff := cmp.Diff(tt.want, tt.in.Filled(tt.zone), cmp.AllowUnexported(Bound{})); diff != "" {
			t.Errorf("%+v in %q (-want +got):\n%s", tt.in, tt.zone, diff)
		}
	}
}

func TestScheduleReadsItsFields(t *testing.T) {
	for _, tt := range []struct {
		in   Quota
		want Schedule
	}{
		{Quota{Reset: ResetDaily, At: "23:59"}, Schedule{Reset: ResetDaily, Hour: 23, Minute: 59, WeekStart: 1, MonthDay: 1}},
		{Quota{Reset: ResetWeekly, WeekStart: "sunDAY"}, Schedule{Reset: ResetWeekly, WeekStart: 0, MonthDay: 1}},
		{Quota{Reset: ResetMonthly, MonthDay: LastDay}, Schedule{Reset: ResetMonthly, WeekStart: 1, MonthDay: LastDay}},
		{Quota{Reset: ResetMonthly, MonthDay: 31}, Schedule{Reset: ResetMonthly, WeekStart: 1, MonthDay: 31}},
		{Quota{Tokens: Unlimited}, Schedule{Reset: ResetManual, WeekStart: 1, MonthDay: 1}},
	} {
		got, err := tt.in.Schedule("Asia/Tokyo")
		if err != nil {
			t.Errorf("%+v: %v", tt.in, err)
			continue
		}
		if got.Zone.String() != "Asia/Tokyo" {
			t.Errorf("%+v: the zone is %s", tt.in, got.Zone)
		}
		if got.Zone = nil; *got != tt.want {
			t.Errorf("%+v: the schedule is %+v, want %+v", tt.in, *got, tt.want)
		}
	}
}

func TestScheduleErrorsNameTheField(t *testing.T) {
	for _, tt := range []struct {
		in    Quota
		zone  string
		field string
		value string
	}{
		{Quota{Tokens: At(5)}, "UTC", "reset", "missing"},
		{Quota{}, "UTC", "reset", "missing"},
		{Quota{Reset: "hourly"}, "UTC", "reset", `"hourly"`},
		{Quota{Reset: "Daily"}, "UTC", "reset", `"Daily"`},
		{Quota{Reset: ResetDaily, TimeZone: "Mars/Olympus"}, "UTC", "time_zone", `"Mars/Olympus"`},
		{Quota{Reset: ResetDaily, TimeZone: "Local"}, "UTC", "time_zone", `"Local"`},
		{Quota{Reset: ResetDaily, TimeZone: "../../etc/localtime"}, "UTC", "time_zone", "localtime"},
		{Quota{Reset: ResetDaily}, "nowhere", "time_zone", `"nowhere"`},
		{Quota{Tokens: Unlimited}, "nowhere", "time_zone", `"nowhere"`},
		{Quota{Reset: ResetDaily, At: "6:00"}, "UTC", "at", `"6:00"`},
		{Quota{Reset: ResetDaily, At: "24:00"}, "UTC", "at", `"24:00"`},
		{Quota{Reset: ResetDaily, At: "12:60"}, "UTC", "at", `"12:60"`},
		{Quota{Reset: ResetDaily, At: "12:5"}, "UTC", "at", `"12:5"`},
		{Quota{Reset: ResetDaily, At: "06:00:00"}, "UTC", "at", `"06:00:00"`},
		{Quota{Reset: ResetDaily, At: strings.Repeat("\x00", 5000)}, "UTC", "at", `\x00..."`},
		{Quota{Reset: ResetWeekly, WeekStart: "mon"}, "UTC", "week_start", `"mon"`},
		{Quota{Reset: ResetMonthly, MonthDay: 32}, "UTC", "month_day", "32"},
		{Quota{Reset: ResetMonthly, MonthDay: -2}, "UTC", "month_day", "-2"},
		{Quota{Reset: ResetMonthly, MonthDay: 127}, "UTC", "month_day", "127"},
	} {
		_, err := tt.in.Schedule(tt.zone)
		if !errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), tt.field+" ") || !strings.Contains(err.Error(), tt.value) {
			t.Errorf("%+v in %s: the error is %v, want one about %s %s", tt.in, tt.zone, err, tt.field, tt.value)
		} else if len(err.Error()) > 300 {
			t.Errorf("the error is %d bytes long", len(err.Error()))
		}
	}
}

func TestMonthDayJSON(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want MonthDay
		out  string
	}{
		{`1`, 1, `1`}, {`31`, 31, `31`}, {`"last"`, LastDay, `"last"`}, {`28.0`, 28, `28`}, {`1e1`, 10, `10`},
	} {
		var d MonthDay
		if err := json.Unmarshal([]byte(tt.in), &d); err != nil || d != tt.want {
			t.Errorf("%s is read as %d (%v), want %d", tt.in, d, err, tt.want)
		}
		if out, err := json.Marshal(d); err != nil || string(out) != tt.out {
			t.Errorf("%d is written as %s (%v), want %s", d, out, err, tt.out)
		}
	}
	for _, in := range []string{
		`0`, `-1`, `32`, `287`, `1.5`, `"1"`, `"first"`, `"LAST"`, `""`, `true`, `[1]`, `{}`, `1e99`,
		`"` + strings.Repeat("x", 5000) + `"`,
	} {
		d := MonthDay(7)
		err := json.Unmarshal([]byte(in), &d)
		if !errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), "month_day "+in[:1]) && len(in) < 40 || len(err.Error()) > 200 {
			t.Errorf("%.40s: the error is %v", in, err)
		}
		if d != 7 {
			t.Errorf("%.40s is an error and yet read as %d", in, d)
		}
	}
}

func TestParseMonthDay(t *testing.T) {
	for in, want := range map[string]MonthDay{"1": 1, "31": 31, "last": LastDay} {
		if got, err := ParseMonthDay(in); err != nil || got != want {
			t.Errorf("%q is %d (%v), want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "0", "32", "-1", "+1", "257", "1.0", "Last", " 1", "99999999999999999999"} {
		if got, err := ParseMonthDay(in); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), fmt.Sprintf("month_day %q ", in)) {
			t.Errorf("%q is %d, %v", in, got, err)
		}
	}
}

func TestQuotaJSONOmitsDefaultsAndReadsNull(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Quota
		out  string
	}{
		{
			`{"tokens":1e6,"reset":"monthly","time_zone":"UTC","at":"00:00","month_day":"last"}`,
			Quota{Tokens: At(1_000_000), Reset: ResetMonthly, TimeZone: "UTC", At: "00:00", MonthDay: LastDay},
			`{"tokens":1000000,"reset":"monthly","time_zone":"UTC","at":"00:00","month_day":"last"}`,
		},
		{
			`{"tokens":5,"reset":"daily","time_zone":null,"at":null,"week_start":null,"month_day":null}`,
			Quota{Tokens: At(5), Reset: ResetDaily},
			`{"tokens":5,"reset":"daily"}`,
		},
		{`{"tokens":"unlimited"}`, Quota{Tokens: Unlimited}, `{"tokens":"unlimited"}`},
	} {
		var q Quota
		if err := json.Unmarshal([]byte(tt.in), &q); err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		if diff := cmp.Diff(tt.want, q, cmp.AllowUnexported(Bound{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.in, diff)
		}
		if out, err := json.Marshal(q); err != nil || string(out) != tt.out {
			t.Errorf("written as %s (%v), want %s", out, err, tt.out)
		}
	}
}

func TestParseWeekdayReadsEveryDay(t *testing.T) {
	days := []string{"sunday", "Monday", "TUESDAY", "wednesday", "thursday", "friday", "saturday"}
	for i, name := range days {
		if d, err := ParseWeekday(name); err != nil || d != time.Weekday(i) {
			t.Errorf("%q is %v (%v)", name, d, err)
		}
	}
}

func BenchmarkScheduleAt(b *testing.B) {
	s := &Schedule{Reset: ResetMonthly, Zone: mustZone(b, "America/New_York"), MonthDay: 31}
	at := time.Unix(date(2026, 3, 15), 0)
	b.ReportAllocs()
	for b.Loop() {
		s.At(at)
	}
}
