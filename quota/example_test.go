package quota_test

import (
	"fmt"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// A monthly quota that starts anew on the 31st: a month that lacks the day
// takes its last one, and the next month has the 31st again.
func ExampleSchedule() {
	q := quota.Quota{
		Tokens:   quota.At(1_000_000),
		Reset:    quota.ResetMonthly,
		TimeZone: "America/New_York",
		At:       "06:00",
		MonthDay: 31,
	}
	schedule, err := q.Schedule("UTC")
	if err != nil {
		fmt.Println(err)
		return
	}
	now := time.Date(2027, time.February, 14, 12, 0, 0, 0, time.UTC)
	for range 3 {
		p := schedule.At(now)
		start, end := time.Unix(p.Start, 0), time.Unix(p.End, 0)
		fmt.Println(start.In(schedule.Zone).Format(time.RFC822), "to", end.In(schedule.Zone).Format(time.RFC822))
		now = end
	}
	// Output:
	// 31 Jan 27 06:00 EST to 28 Feb 27 06:00 EST
	// 28 Feb 27 06:00 EST to 31 Mar 27 06:00 EDT
	// 31 Mar 27 06:00 EDT to 30 Apr 27 06:00 EDT
}
