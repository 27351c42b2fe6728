package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// DefaultAlertAt are the shares of a limit, in percent, at which alerts fire
// where nothing else is set.
var DefaultAlertAt = []float64{80, 100}

// alertRules are what a configuration says of alerts.
type alertRules struct {
	at       []float64
	on       []limitKind
	forecast bool
}

func newAlertRules(c *Config) *alertRules {
	r := &alertRules{at: DefaultAlertAt, forecast: !c.NoForecast}
	if own := ascending(c.AlertAt); own != nil {
		r.at = *own
	}
	for kind := range limitKinds {
		if slices.Contains(c.AlertOn, kind.name()) || len(c.AlertOn) == 0 && kind == tokenQuota {
			r.on = append(r.on, kind)
		}
	}
	return r
}

// alertable are the limits that alerts are fired on: those of calendar periods.
var alertable = []quota.LimitName{quota.TokenQuota, quota.TokensPerDay, quota.RequestsPerDay}

func (c *Config) validateAlerts() error {
	if err := quota.ValidAlertAt(c.AlertAt); err != nil {
		return err
	}
	for _, name := range c.AlertOn {
		if !slices.Contains(alertable, name) {
			return fmt.Errorf("alert_on: %q is not one of %v: %w", name, alertable, quota.ErrInvalid)
		}
	}
	return nil
}

// AlertRules returns what the configuration says of alerts: the shares of a
// limit, in percent, at which they fire where a key or group sets none, the
// limits that they are about, and whether they also come when a limit is
// expected to be used up early.
func (l *Ledger) AlertRules() (at []float64, on []quota.LimitName, forecast bool) {
	r := l.alerts.Load()
	if r == nil { // it is not configured yet
		return DefaultAlertAt, []quota.LimitName{}, false
	}
	on = []quota.LimitName{}
	for _, kind := range r.on {
		on = append(on, kind.name())
	}
	return slices.Clone(r.at), on, r.forecast
}

// OnAlert sets fn to be called with each alert once it is stored. It must be
// set before the ledger is used, and must not block.
func (l *Ledger) OnAlert(fn func(quota.Alert)) { l.onAlert = fn }

// PlanAlerts sets fn to be called with each alert before it is stored, for the
// deliveries that it is to have: they are stored with it, so that a crash
// forgets none. It must be set before the ledger is used, and must not block.
func (l *Ledger) PlanAlerts(fn func(*quota.Alert)) { l.onPlan = fn }

// ResetEvent tells that a limit of an account counts from nothing again.
type ResetEvent struct {
	Account quota.ID
	Name    string
	Limit   quota.LimitName
	Period  quota.Period // that began
	ByHand  bool
}

// OnReset sets fn to be called when a period of a quota begins, as it is found
// out by the first call in it, and when a limit is reset by hand. It must be
// set before the ledger is used, and must not block.
func (l *Ledger) OnReset(fn func(ResetEvent)) { l.onReset = fn }

// alerted is what is known of an account's alerts on one limit. It spares the
// store; the store knows which alerts were fired.
type alerted struct {
	number   uint32 // of the period
	upTo     float64
	forecast bool
}

type alertKey struct {
	account quota.ID
	kind    limitKind
}

// inspect fires the alerts that are due on the accounts that have changed since
// the last call.
func (l *Ledger) inspect(now time.Time) error {
	if l.alerts.Load() == nil { // the configuration has yet to say which are due
		return nil
	}
	l.inspecting.Lock()
	defer l.inspecting.Unlock()
	l.dirtyMu.Lock()
	accounts := append(l.uninspected, l.dirty...)
	l.uninspected = nil
	l.dirtyMu.Unlock()
	var failed error
	var again []*Account
	for _, a := range accounts { // one that cannot be read does not hold up the others
		if err := l.inspectAccount(now, a); err != nil {
			again = append(again, a)
			failed = fmt.Errorf("storing alerts: %w", err)
		}
	}
	if len(again) > 0 {
		l.dirtyMu.Lock()
		l.uninspected = append(l.uninspected, again...)
		l.dirtyMu.Unlock()
	}
	return failed
}

// inspectNow fires the alerts that are due on one account, ahead of a change
// after which nobody could tell that they were. One that cannot be stored does
// not keep the change from being made.
func (l *Ledger) inspectNow(now time.Time, id quota.ID) {
	if l.alerts.Load() == nil {
		return
	}
	a, err := l.Account(now, id)
	if err == nil {
		l.inspecting.Lock()
		defer l.inspecting.Unlock()
		err = l.inspectAccount(l.wall(now), a)
	}
	if err != nil && !errors.Is(err, quota.ErrNotFound) {
		l.report("alerts", err)
	}
}

// use is how far a limit of calendar periods is used.
type use struct {
	kind      limitKind
	number    uint32
	max, used int64
	period    quota.Period
	since     int64 // from which second on it counts
}

func (l *Ledger) inspectAccount(now time.Time, a *Account) error {
	rules, p := l.alerts.Load(), a.policy.Load()
	if p == nil { // it was found in the journal at the start, and may be gone from memory again
		var err error
		if a, err = l.Account(now, a.id); errors.Is(err, quota.ErrNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		p = a.policy.Load()
	}
	now = l.wall(now)
	for _, kind := range rules.on {
		u := a.use(kind, p)
		if u.max <= 0 || over(u.period, now) {
			continue
		}
		k := alertKey{a.id, kind}
		st := l.alerted[k]
		if st.number != u.number {
			st = alerted{number: u.number}
		}
		was := st
		err := l.inspectUse(now, p, rules, &u, &st)
		if st != was {
			l.alerted[k] = st
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// use returns how far a limit is used.
func (a *Account) use(kind limitKind, p *Policy) use {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.state(kind, p, 0)
	u := use{kind: kind, max: s.max, used: s.used}
	if kind == tokenQuota {
		u.number, u.period = a.quota.number, a.quota.period
		u.since = a.resetSince(u.period)
	} else {
		u.number, u.period, u.since = a.day.number, a.day.period, a.day.period.Start
	}
	return u
}

// inspectUse fires the alerts that are due on one limit, and notes them in st.
func (l *Ledger) inspectUse(now time.Time, p *Policy, rules *alertRules, u *use, st *alerted) error {
	at := rules.at
	if p.alertAt != nil {
		at = *p.alertAt
	}
	for _, t := range at { // in ascending order
		if t <= st.upTo {
			continue
		}
		if float64(u.used)*100 < t*float64(u.max) {
			break
		}
		kind := quota.AlertThreshold
		if t >= 100 {
			kind = quota.AlertExceeded
		}
		if err := l.fire(now, p, u, kind, t, time.Time{}); err != nil {
			return err
		}
		st.upTo = t
	}
	if !rules.forecast || st.forecast || len(at) == 0 {
		return nil
	}
	if end, ok := u.exhausted(now, p.ID.Created()); ok {
		if err := l.fire(now, p, u, quota.AlertForecast, 0, end); err != nil {
			return err
		}
		st.forecast = true
	}
	return nil
}

// A forecast needs to have seen this part of the period, and no less than an
// hour, and is made if the limit will be used up when this part is left or more.
const (
	forecastAfter  = 0.1
	forecastBefore = 0.05
	forecastLeast  = time.Hour
)

// exhausted returns when the limit will be used up, if it goes on being used
// as it was since its period began or the account was made, and whether that is
// well before its period ends.
func (u *use) exhausted(now, made time.Time) (time.Time, bool) {
	if u.period.End == 0 || u.used <= 0 || u.used >= u.max {
		return time.Time{}, false
	}
	length := time.Duration(u.period.End-u.period.Start) * time.Second
	since := time.Unix(max(u.since, made.Unix()), 0)
	seen := now.Sub(since)
	if seen < forecastLeast || seen < time.Duration(forecastAfter*float64(length)) {
		return time.Time{}, false
	}
	left := time.Duration(float64(seen) * float64(u.max-u.used) / float64(u.used))
	end := now.Add(left)
	return end, left < length && end.Before(time.Unix(u.period.End, 0).Add(-time.Duration(forecastBefore*float64(length))))
}

// fire stores an alert and tells of it, unless it was fired before.
func (l *Ledger) fire(now time.Time, p *Policy, u *use, kind quota.AlertKind, threshold float64, exhausted time.Time) error {
	limit := u.kind.name()
	about := strconv.FormatFloat(threshold, 'g', -1, 64)
	if kind == quota.AlertForecast {
		about = string(kind)
	}
	once := fmt.Sprintf("%s/%s/%d/%s", p.ID, limit, u.number, about)
	switch _, err := l.store.NoteOnce(quota.NoteAlert, once); {
	case err == nil:
		return nil
	case !errors.Is(err, quota.ErrNotFound):
		return err
	}
	alert := quota.Alert{
		Kind: kind, Account: p.ID, Name: p.Name, Limit: limit, Threshold: threshold, Used: u.used, Max: u.max,
	}
	what := fmt.Sprintf("%s %q has used %d of %d %s", p.ID.Kind(), p.Name, u.used, u.max, unit(u.kind))
	if u.period.Start != 0 {
		alert.PeriodStart = moment(u.period.Start)
	}
	if u.period.End != 0 {
		alert.ResetsAt = moment(u.period.End)
	}
	switch kind {
	case quota.AlertForecast:
		alert.ExhaustedAt = moment(exhausted.Unix())
		alert.Message = fmt.Sprintf("%s; at this rate it will be used up on %s", what, exhausted.UTC().Format("2006-01-02 15:04 MST"))
	default:
		alert.Message = fmt.Sprintf("%s (%s %%)", what, strconv.FormatFloat(float64(u.used)*100/float64(u.max), 'f', 1, 64))
	}
	if alert.ResetsAt != nil {
		alert.Message += "; it resets on " + alert.ResetsAt.Format("2006-01-02 15:04 MST")
	}
	return l.storeAlert(now, &alert, once)
}

func unit(kind limitKind) string {
	switch kind {
	case tokenQuota:
		return "tokens of its quota"
	case tokensPerDay:
		return "tokens of the day"
	}
	return "requests of the day"
}

func moment(unix int64) *time.Time { return new(time.Unix(unix, 0).UTC()) }

// AddAlert stores an alert that is not on a limit, gives it its ID and time,
// and tells of it.
func (l *Ledger) AddAlert(now time.Time, alert *quota.Alert) error {
	return l.storeAlert(now, alert, "")
}

func (l *Ledger) storeAlert(now time.Time, alert *quota.Alert, once string) error {
	alert.Time = stamp(now)
	if l.onPlan != nil {
		l.onPlan(alert)
	}
	note := quota.Note{ID: l.nextNote(now), Once: once, Body: image(alert)}
	if err := l.store.PutNotes(quota.NoteAlert, note); err != nil {
		return err
	}
	alert.ID = note.ID.String()
	if l.onAlert != nil {
		l.onAlert(*alert)
	}
	return nil
}

// NewAlert gives an alert its ID and time that is told before it is stored,
// which KeepAlert does when the store can.
func (l *Ledger) NewAlert(now time.Time, alert *quota.Alert) {
	alert.ID, alert.Time = l.nextNote(now).String(), stamp(now)
}

// KeepAlert stores an alert that NewAlert has made, without telling of it.
func (l *Ledger) KeepAlert(alert quota.Alert) error {
	id, err := quota.ParseNoteID(alert.ID)
	if err != nil {
		return err
	}
	alert.ID = "" // it is that of the note
	l.alertMu.Lock()
	defer l.alertMu.Unlock()
	return l.store.PutNotes(quota.NoteAlert, quota.Note{ID: id, Body: image(&alert)})
}

// Alerts calls fn for each alert with an ID below the given one (0: all), the
// newest first, until fn returns false.
func (l *Ledger) Alerts(below quota.NoteID, fn func(*quota.Alert) bool) error {
	var failed error
	err := l.store.Notes(quota.NoteAlert, below, func(n *quota.Note) bool {
		var a *quota.Alert
		a, failed = readAlert(n)
		return failed == nil && fn(a)
	})
	return errors.Join(err, failed)
}

func readAlert(n *quota.Note) (*quota.Alert, error) {
	var a quota.Alert
	if err := json.Unmarshal(n.Body, &a); err != nil {
		return nil, fmt.Errorf("reading alert %s: %w", n.ID, err)
	}
	a.ID = n.ID.String()
	return &a, nil
}

// UpdateAlert changes an alert as edit says, or returns quota.ErrNotFound.
func (l *Ledger) UpdateAlert(id quota.NoteID, edit func(*quota.Alert)) error {
	l.alertMu.Lock()
	defer l.alertMu.Unlock()
	var alert *quota.Alert
	var once string
	failed := quota.ErrNotFound
	if err := l.store.Notes(quota.NoteAlert, id+1, func(n *quota.Note) bool {
		if n.ID == id {
			once = n.Once
			alert, failed = readAlert(n)
		}
		return false
	}); err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	edit(alert)
	alert.ID = ""
	return l.store.PutNotes(quota.NoteAlert, quota.Note{ID: id, Once: once, Body: image(alert)})
}

// keepNotes is how many alerts, and how many entries of the audit log, are kept.
const keepNotes = 100_000

// pruneNotes drops the oldest notes, and what is known of the alerts of
// accounts that are no longer in memory.
func (l *Ledger) pruneNotes() error {
	l.inspecting.Lock()
	for k := range l.alerted {
		if _, ok := l.accounts.get(k.account); !ok {
			delete(l.alerted, k)
		}
	}
	l.inspecting.Unlock()
	return errors.Join(l.store.PruneNotes(quota.NoteAlert, keepNotes), l.store.PruneNotes(quota.NoteAudit, keepNotes))
}
