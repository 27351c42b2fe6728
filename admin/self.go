package admin

import (
	"errors"
	"net/http"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// Self is what a key is shown of itself: its object without metadata, and what
// it used.
type Self struct {
	Key
	Usage SelfUsage `json:"usage"`
}

// SelfUsage is what a key used. Days are those of its quota's time zone.
type SelfUsage struct {
	Today quota.Totals `json:"today"`
	// Period is the current period of its quota; null where it has none that
	// the calendar begins.
	Period *quota.Totals `json:"period"`
	// Days are the last 30 days, today among them, the earliest first.
	Days []UsageStep `json:"days"`
	// Models are what was called in those days, the most used first.
	Models []UsageLine `json:"models"`
}

// selfDays is how many days a key is shown.
const selfDays = 30

// ServeSelf answers a request with the key that it came with.
func ServeSelf(w http.ResponseWriter, l *ledger.Ledger, account *ledger.Account, now time.Time) error {
	k, err := l.Key(account.ID())
	if err != nil {
		return err
	}
	s, err := l.State(now, k.ID)
	if err != nil {
		return err
	}
	self := Self{Key: KeyOf(k, s)}
	self.Metadata = nil
	q := quota.Quota{Tokens: quota.Unlimited}
	if s.Policy.Quota != nil {
		q = *s.Policy.Quota
	}
	schedule, err := q.Schedule(l.Zone())
	if err != nil {
		return err
	}
	if self.Usage.Today, err = l.UsedSince(now, k.ID, schedule.Daily().At(now).Start); err != nil {
		return err
	}
	if schedule.Reset != quota.ResetManual {
		period, err := l.UsedSince(now, k.ID, schedule.At(now).Start)
		if err != nil {
			return err
		}
		self.Usage.Period = &period
	}
	recent := ledger.ReportQuery{
		From: now.AddDate(0, 0, 1-selfDays), To: now.Add(time.Nanosecond), Step: ledger.PerDay,
		Zone: schedule.Zone, By: ledger.By{Model: true}, Key: k.ID,
	}
	report, err := l.Report(now, recent)
	switch {
	case err == nil:
		u := usageOf(report, &recent)
		self.Usage.Days, self.Usage.Models = u.Series, u.Breakdown
	case errors.Is(err, quota.ErrInvalid): // the configured retention is shorter
		self.Usage.Days, self.Usage.Models = []UsageStep{}, []UsageLine{}
	default:
		return err
	}
	return (&call{w: w}).json(http.StatusOK, self)
}
