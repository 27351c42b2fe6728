package ledger

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// alertsOf returns the alerts in the store, the oldest first.
func alertsOf(t *testing.T, l *Ledger) (list []string) {
	t.Helper()
	if err := l.Alerts(0, func(a *quota.Alert) bool {
		list = append(list, fmt.Sprintf("%s %s %s %g: %d of %d", a.Kind, a.Name, a.Limit, a.Threshold, a.Used, a.Max))
		return true
	}); err != nil {
		t.Fatal(err)
	}
	slices.Reverse(list)
	return list
}

// Each threshold of each account fires once in a period: over further use,
// grants, restarts, reloads and evictions; again in the next period, and after
// a reset by hand.
func TestAlertsFireOnce(t *testing.T) {
	now := time.Date(2026, 5, 10, 12, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	var told []string
	open := func() *Ledger {
		l := openLedger(t, dir, now)
		l.OnAlert(func(a quota.Alert) {
			told = append(told, fmt.Sprintf("%s %s %s %g: %d of %d", a.Kind, a.Name, a.Limit, a.Threshold, a.Used, a.Max))
		})
		if err := l.Configure(now, &Config{}); err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := open()
	q := &quota.Quota{Tokens: quota.At(100), Reset: quota.ResetDaily}
	g, err := l.CreateGroup(now, NewGroup{Name: "g", GroupRules: quota.GroupRules{Quota: &quota.Quota{Tokens: quota.At(1000), Reset: quota.ResetMonthly}, AlertAt: []float64{9, 5}}})
	if err != nil {
		t.Fatal(err)
	}
	made, err := l.CreateKeys(now, []NewKey{
		{Name: "k", Group: g.ID, KeyRules: quota.KeyRules{Quota: q}},
		{Name: "quiet", KeyRules: quota.KeyRules{Quota: q, AlertAt: []float64{}}},
		{Name: "free"},
	})
	if err != nil {
		t.Fatal(err)
	}
	use := func(i int, tokens int64) {
		t.Helper()
		a, err := l.Account(now, made[i].Key.ID)
		if err != nil {
			t.Fatal(err)
		}
		var r Reservation
		if _, err := l.Reserve(now, a, Call{Input: 1, Observe: true}, &r); err != nil {
			t.Fatal(err)
		}
		if err := l.Settle(now, &r, quota.Outcome{Tokens: quota.Tokens{Input: tokens}}); err != nil {
			t.Fatal(err)
		}
	}
	var want []string
	step := func(what string, more ...string) {
		t.Helper()
		now = now.Add(2 * time.Second)
		if err := l.Tick(now); err != nil {
			t.Fatal(err)
		}
		want = append(want, more...)
		if got := alertsOf(t, l); !slices.Equal(got, want) || !slices.Equal(told, want) {
			t.Fatalf("%s: stored\n%s\ntold\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(told, "\n"), strings.Join(want, "\n"))
		}
	}
	use(0, 49)
	use(1, 500)
	use(2, 500)
	step("below")
	use(0, 31)
	if err := l.Checkpoint(now); err != nil { // one between two ticks hides nothing
		t.Fatal(err)
	}
	step("80 %", "threshold k quota 80: 80 of 100", "threshold g quota 5: 80 of 1000")
	use(0, 1)
	step("again")
	if err := l.Grant(now, made[0].Key.ID, 100); err != nil {
		t.Fatal(err)
	}
	use(0, 80)
	step("after a grant", "threshold g quota 9: 161 of 1000")
	if err := l.Close(now); err != nil {
		t.Fatal(err)
	}
	l = open()
	use(0, 1)
	step("after a restart")
	use(0, 40)
	step("100 %", "exceeded k quota 100: 202 of 200")
	now = now.Add(20 * time.Minute)
	if err := l.Tick(now); err != nil {
		t.Fatal(err)
	}
	use(0, 1)
	step("after an eviction")
	if err := l.Reset(now, made[0].Key.ID, []quota.LimitName{quota.TokenQuota}); err != nil {
		t.Fatal(err)
	}
	use(0, 85)
	step("after a reset", "threshold k quota 80: 85 of 100")
	if _, err := l.UpdateKey(now, made[0].Key.ID, func(k *quota.Key) error { k.Quota.Tokens = quota.At(85); return nil }); err != nil {
		t.Fatal(err)
	}
	step("after the quota was lowered", "exceeded k quota 100: 85 of 85")
	now = now.AddDate(0, 0, 1)
	use(0, 300)
	step("on the next day, all at once", "threshold k quota 80: 300 of 85", "exceeded k quota 100: 300 of 85")
	if err := l.Close(now); err != nil {
		t.Fatal(err)
	}
}

// What was crossed just before a reset or a grant is told all the same.
func TestAlertsBeforeResetAndGrant(t *testing.T) {
	now := time.Date(2026, 5, 10, 12, 0, 0, 0, time.UTC)
	l := openLedger(t, t.TempDir(), now)
	if err := l.Configure(now, &Config{}); err != nil {
		t.Fatal(err)
	}
	made, err := l.CreateKeys(now, []NewKey{{Name: "k", KeyRules: quota.KeyRules{Quota: &quota.Quota{Tokens: quota.At(100), Reset: quota.ResetDaily}}}})
	if err != nil {
		t.Fatal(err)
	}
	id := made[0].Key.ID
	use := func(tokens int64) {
		t.Helper()
		a, err := l.Account(now, id)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Settle(now, reserve(t, l, now, a, 1), quota.Outcome{Tokens: quota.Tokens{Input: tokens}}); err != nil {
			t.Fatal(err)
		}
	}
	use(90)
	if err := l.Reset(now, id, []quota.LimitName{quota.TokenQuota}); err != nil {
		t.Fatal(err)
	}
	use(100)
	if err := l.Grant(now, id, 1000); err != nil {
		t.Fatal(err)
	}
	if err := l.Tick(now.Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	want := []string{"threshold k quota 80: 90 of 100", "threshold k quota 80: 100 of 100", "exceeded k quota 100: 100 of 100"}
	if got := alertsOf(t, l); !slices.Equal(got, want) {
		t.Errorf("alerts %q, want %q", got, want)
	}
	if err := l.Close(now); err != nil {
		t.Fatal(err)
	}
}

// By option, limits of the day warn too.
func TestAlertsOnDays(t *testing.T) {
	now := time.Date(2026, 5, 10, 12, 0, 0, 0, time.UTC)
	l := newLedger(t, now)
	if err := l.Configure(now, &Config{AlertAt: []float64{50}, AlertOn: []quota.LimitName{quota.RequestsPerDay, quota.TokensPerDay}}); err != nil {
		t.Fatal(err)
	}
	k, _ := makeKey(t, l, now, 0, quota.Limits{RequestsPerDay: quota.At(4), TokensPerDay: quota.At(100)}, 1)
	for range 2 {
		var r Reservation
		if _, err := l.Reserve(now, k, Call{Input: 1, Observe: true}, &r); err != nil {
			t.Fatal(err)
		}
		if err := l.Settle(now, &r, quota.Outcome{Tokens: quota.Tokens{Input: 25}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Tick(now); err != nil {
		t.Fatal(err)
	}
	want := []string{"threshold key requests_per_day 50: 2 of 4", "threshold key tokens_per_day 50: 50 of 100"}
	if got := alertsOf(t, l); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, c := range []*Config{{AlertAt: []float64{0}}, {AlertOn: []quota.LimitName{quota.TokensPerMinute}}} {
		if _, err := c.Resolve(func(s string) (string, error) { return s, nil }); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}

// A forecast is made once in a period, when enough of it was seen, and only if
// the limit will be used up well before it resets.
func TestForecast(t *testing.T) {
	u := func(used int64) *use {
		return &use{max: 1000, used: used, period: quota.Period{Start: 0, End: 100 * 3600}}
	}
	hour := func(n float64) time.Time { return time.Unix(int64(n*3600), 0) }
	for _, c := range []struct {
		what string
		u    *use
		now  time.Time
		made time.Time
		want time.Time
	}{
		{"too early", u(500), hour(9), hour(-50), time.Time{}},
		{"as fast as the period allows", u(500), hour(50), hour(-50), time.Time{}},
		{"a little too fast", u(520), hour(50), hour(-50), time.Time{}},
		{"too fast", u(600), hour(50), hour(-50), hour(50 + 50.0*400/600)},
		{"of a key that is new", u(600), hour(50), hour(45), time.Time{}},
		{"of a key that was made in the period", u(600), hour(60), hour(40), hour(60 + 20.0*400/600)},
		{"used up", u(1000), hour(50), hour(-50), time.Time{}},
		{"nothing used", u(0), hour(50), hour(-50), time.Time{}},
		{"of no period", &use{max: 1000, used: 600}, hour(50), hour(-50), time.Time{}},
	} {
		end, ok := c.u.exhausted(c.now, c.made)
		if ok != !c.want.IsZero() || ok && end.Unix() != c.want.Unix() {
			t.Errorf("%s: got %v, %t, want %v", c.what, end, ok, c.want)
		}
	}
	day := time.Date(2026, 5, 10, 0, 0, 0, 0, time.UTC)
	l := newLedger(t, day.Add(-time.Hour))
	if err := l.Configure(day.Add(-time.Hour), &Config{}); err != nil {
		t.Fatal(err)
	}
	k := dailyKey(t, l, day.Add(-time.Hour))
	for _, hours := range []int{1, 3, 4, 5} {
		now := day.Add(time.Duration(hours) * time.Hour)
		spend(t, l, now, k)
		if err := l.Tick(now); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{
		"forecast group quota 0: 20 of 50", "forecast key quota 0: 20 of 50",
		"threshold group quota 80: 40 of 50", "threshold key quota 80: 40 of 50",
	}
	got := alertsOf(t, l)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// What is told of a reset names the account and its new period.
func TestResetsAreTold(t *testing.T) {
	now := time.Date(2026, 5, 10, 12, 0, 0, 0, time.UTC)
	l := newLedger(t, now)
	var told []string
	l.OnReset(func(e ResetEvent) {
		told = append(told, fmt.Sprintf("%s %s %s %t", e.Name, e.Limit, time.Unix(e.Period.Start, 0).UTC().Format(time.DateOnly), e.ByHand))
	})
	k := dailyKey(t, l, now)
	spend(t, l, now, k)
	spend(t, l, now.AddDate(0, 0, 3), k)
	spend(t, l, now.AddDate(0, 0, 3), k)
	if err := l.Reset(now.AddDate(0, 0, 3), k.ID(), []quota.LimitName{quota.TokenQuota, quota.RequestsPerDay}); err != nil {
		t.Fatal(err)
	}
	want := []string{"key quota 2026-05-13 false", "group quota 2026-05-13 false", "key quota 2026-05-13 true", "key requests_per_day 2026-05-13 true"}
	if !slices.Equal(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
}

// An alert can be changed, and is found again by what it is about.
func TestUpdateAlert(t *testing.T) {
	now := time.Date(2026, 5, 10, 12, 0, 0, 0, time.UTC)
	l := newLedger(t, now)
	a := quota.Alert{Kind: quota.AlertStoreDegraded, Message: "disk full"}
	if err := l.AddAlert(now, &a); err != nil {
		t.Fatal(err)
	}
	id, err := quota.ParseNoteID(a.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.UpdateAlert(id, func(a *quota.Alert) { a.Deliveries = []quota.Delivery{{Target: "x"}} }); err != nil {
		t.Fatal(err)
	}
	if err := l.UpdateAlert(id+1, func(*quota.Alert) {}); err == nil {
		t.Error("an alert that is not there is changed")
	}
	if err := l.Alerts(0, func(got *quota.Alert) bool {
		if got.ID != a.ID || len(got.Deliveries) != 1 || got.Message != "disk full" {
			t.Errorf("got %+v", got)
		}
		return true
	}); err != nil {
		t.Error(err)
	}
}
