package admin

import (
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// Names of the events that the gate emits through Caddy's events app. The data
// of all but EventReset are the fields of the alert; a forecast is a threshold.
const (
	EventThreshold      = "llm_quota.threshold"
	EventExceeded       = "llm_quota.exceeded"
	EventReset          = "llm_quota.reset"
	EventStoreDegraded  = "llm_quota.store_degraded"
	EventStoreRecovered = "llm_quota.store_recovered"
)

// eventOf are the events of alerts.
var eventOf = map[quota.AlertKind]string{
	quota.AlertThreshold: EventThreshold, quota.AlertForecast: EventThreshold, quota.AlertExceeded: EventExceeded,
	quota.AlertStoreDegraded: EventStoreDegraded, quota.AlertStoreRecovered: EventStoreRecovered,
}

// Announcer tells operators what happens to a gate: in the log and the metrics,
// by Caddy's events, to webhooks and to those who read events live. It outlives
// the configuration, as the open ledger does. Handlers of Caddy's events run in
// the goroutine that emits them, for which it has one of its own.
type Announcer struct {
	ledger  *ledger.Ledger
	logger  *zap.Logger
	hub     *Hub
	post    *post
	gate    func() (Gate, error)
	queue   chan announcement
	dropped atomic.Int64 // events for which the queue had no room
	quit    chan struct{}
	done    sync.WaitGroup
}

type announcement struct {
	event string
	data  map[string]any
}

// maxAnnouncements is how many events may wait; what comes on top is dropped.
const maxAnnouncements = 256

// NewAnnouncer starts one for a ledger that is not used yet. It runs until
// Stop and Close.
func NewAnnouncer(l *ledger.Ledger, logger *zap.Logger) *Announcer {
	return newAnnouncer(l, logger, running)
}

func newAnnouncer(l *ledger.Ledger, logger *zap.Logger, gate func() (Gate, error)) *Announcer {
	a := &Announcer{
		ledger: l, logger: logger, hub: NewHub(time.Now()), post: newPost(l, logger), gate: gate,
		queue: make(chan announcement, maxAnnouncements), quit: make(chan struct{}),
	}
	l.OnHealth(a.health)
	l.PlanAlerts(a.post.plan)
	l.OnAlert(a.alert)
	l.OnReset(a.reset)
	l.OnChange(a.change)
	a.post.start()
	a.done.Go(a.run)
	return a
}

// Hub returns where events are read live.
func (a *Announcer) Hub() *Hub { return a.hub }

// Apply makes targets those that alerts are sent to. owner is the configuration
// that they are of.
func (a *Announcer) Apply(owner any, targets []Target) { a.post.apply(owner, targets) }

// Withdraw takes back what owner applied. If it was the newest, because what
// came with it failed to start, the targets before it hold again.
func (a *Announcer) Withdraw(owner any) { a.post.withdraw(owner) }

// Stop ends the webhooks and the live events. It must be called before the
// ledger is closed. What was not delivered will be when the ledger is opened
// again.
func (a *Announcer) Stop() {
	a.post.close()
	a.hub.Close()
}

// Close passes on the events that wait, if there is a gate to emit them, and
// ends. It comes after the ledger is closed, which may have something to tell.
func (a *Announcer) Close() {
	close(a.quit)
	a.done.Wait()
}

// emit passes on an event. It never blocks.
func (a *Announcer) emit(event string, data map[string]any) {
	select {
	case a.queue <- announcement{event, data}:
	default:
		a.dropped.Add(1)
	}
}

func (a *Announcer) run() {
	defer a.tellDropped()
	minute := time.NewTicker(time.Minute)
	defer minute.Stop()
	for {
		select {
		case e := <-a.queue:
			a.pass(e)
		case <-minute.C:
			a.tellDropped()
		case <-a.quit:
			for len(a.queue) > 0 {
				a.pass(<-a.queue)
			}
			return
		}
	}
}

// pass waits a little for the gate, which is not running yet while Caddy starts.
func (a *Announcer) pass(e announcement) {
	for range 50 {
		gate, err := a.gate()
		if err == nil {
			gate.Emit(e.event, e.data)
			return
		}
		select {
		case <-a.quit:
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
	a.logger.Warn("an event has nobody to emit it", zap.String("event", e.event))
}

func (a *Announcer) tellDropped() {
	if n := a.dropped.Swap(0); n > 0 {
		a.logger.Warn("too many events of Caddy's waited for their handlers: some are dropped", zap.Int64("number", n))
	}
}

// health tells how the store does. Its alert is told at once, and stored once
// the store can.
func (a *Announcer) health(h ledger.Health, well bool) {
	alert := quota.Alert{Kind: quota.AlertStoreDegraded}
	since := h.Since.UTC().Format(time.RFC3339)
	switch {
	case well:
		alert.Kind = quota.AlertStoreRecovered
		alert.Message = fmt.Sprintf("the store works again; it had failed since %s: %s: %v", since, h.Op, h.Err)
	case h.Damaged:
		alert.Message = fmt.Sprintf("the store has lost something; see to it, and remove what it names: %v", h.Err)
	default:
		alert.Message = fmt.Sprintf("the store fails; limits do as on_store_error says: %s: %v", h.Op, h.Err)
	}
	a.ledger.NewAlert(time.Now(), &alert)
	a.post.plan(&alert)
	a.tell(&alert, map[string]any{"op": h.Op, "error": h.Err.Error(), "since": h.Since})
	a.post.add(alert, false)
}

// alert tells of an alert that is stored.
func (a *Announcer) alert(alert quota.Alert) {
	a.tell(&alert, nil)
	a.post.add(alert, true)
}

// tell tells of an alert by all but webhooks. more is added to its event's data.
func (a *Announcer) tell(alert *quota.Alert, more map[string]any) {
	Alerted(alert.Kind)
	fields := []zap.Field{zap.String("id", alert.ID), zap.String("kind", string(alert.Kind))}
	if alert.Account != 0 {
		fields = append(fields, zap.String("account", alert.Account.String()), zap.String("name", alert.Name),
			zap.String("limit", string(alert.Limit)), zap.Int64("used", alert.Used), zap.Int64("max", alert.Max))
	}
	if alert.Threshold > 0 {
		fields = append(fields, zap.Float64("threshold", alert.Threshold))
	}
	log := a.logger.Warn
	switch alert.Kind {
	case quota.AlertExceeded, quota.AlertStoreDegraded:
		log = a.logger.Error
	case quota.AlertStoreRecovered:
		log = a.logger.Info
	}
	log(alert.Message, fields...)
	data := alertData(alert)
	for k, v := range more {
		data[k] = v
	}
	a.emit(eventOf[alert.Kind], data)
	if !a.hub.Listened() {
		return
	}
	shown := *alert
	shown.Deliveries = nil
	e := Event{Type: EventAlert, Time: alert.Time, Reason: string(alert.Kind), Alert: &shown}
	switch {
	case alert.Account == 0:
	case alert.Account.Kind() == quota.KindGroup:
		e.Group = Ref(alert.Account)
	default:
		e.Key = Ref(alert.Account)
		if k, err := a.ledger.Key(alert.Account); err == nil {
			e.Group = Ref(k.Group)
		}
	}
	a.hub.Publish(e)
}

// alertData are the fields of an alert for an event of Caddy's: those that its
// JSON has, under the same names.
func alertData(alert *quota.Alert) map[string]any {
	data := map[string]any{"id": alert.ID, "time": alert.Time, "kind": string(alert.Kind), "message": alert.Message}
	if alert.Account == 0 {
		return data
	}
	data["account"], data["name"], data["limit"] = alert.Account.String(), alert.Name, string(alert.Limit)
	data["used"], data["max"] = alert.Used, alert.Max
	if alert.Threshold > 0 {
		data["threshold"] = alert.Threshold
	}
	for name, t := range map[string]*time.Time{"period_start": alert.PeriodStart, "resets_at": alert.ResetsAt, "exhausted_at": alert.ExhaustedAt} {
		if t != nil {
			data[name] = *t
		}
	}
	return data
}

// reset tells that a limit counts from nothing again.
func (a *Announcer) reset(r ledger.ResetEvent) {
	data := map[string]any{"account": r.Account.String(), "name": r.Name, "limit": string(r.Limit), "by_hand": r.ByHand}
	if r.Period.Start != 0 {
		data["period_start"] = time.Unix(r.Period.Start, 0).UTC()
	}
	if r.Period.End != 0 {
		data["resets_at"] = time.Unix(r.Period.End, 0).UTC()
	}
	a.emit(EventReset, data)
}

// change tells of a change to those who read events live.
func (a *Announcer) change(c quota.Change) {
	if !a.hub.Listened() {
		return
	}
	e := Event{Type: EventChange, Time: c.Time, Reason: string(c.Action), Change: &c}
	if c.Object.Kind() == quota.KindGroup {
		e.Group = Ref(c.Object)
	} else {
		e.Key = Ref(c.Object)
		for _, image := range []json.RawMessage{c.Before, c.After} { // the group after it, if there is one
			var k struct {
				Group quota.ID `json:"group"`
			}
			if json.Unmarshal(image, &k) == nil && k.Group != 0 {
				e.Group = Ref(k.Group)
			}
		}
	}
	a.hub.Publish(e)
}
