package ledger

import (
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/store/badger"
)

// What is planned for an alert is stored with it, and an alert that was told
// before it was stored keeps its place in the list.
func TestPlannedAndKeptAlerts(t *testing.T) {
	st, err := badger.Open(badger.Options{Dir: t.TempDir(), SyncInterval: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Date(2026, 5, 15, 10, 0, 0, 0, time.UTC)
	l, err := Open(st, now, func(op string, err error) { t.Errorf("%s: %v", op, err) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close(now)
	var told []quota.Alert
	l.OnAlert(func(a quota.Alert) { told = append(told, a) })
	l.PlanAlerts(func(a *quota.Alert) { a.Deliveries = []quota.Delivery{{Target: "t", State: quota.DeliveryPending}} })

	early := quota.Alert{Kind: quota.AlertStoreDegraded, Message: "early"}
	l.NewAlert(now, &early)
	if err := l.AddAlert(now, &quota.Alert{Kind: quota.AlertStoreRecovered, Message: "late"}); err != nil {
		t.Fatal(err)
	}
	if err := l.KeepAlert(early); err != nil {
		t.Fatal(err)
	}
	var messages []string
	if err := l.Alerts(0, func(a *quota.Alert) bool {
		messages = append(messages, a.Message)
		if a.Message == "early" && (a.ID != early.ID || !a.Time.Equal(now)) {
			t.Errorf("kept as %+v", a)
		}
		if planned := len(a.Deliveries) == 1; planned != (a.Message == "late") {
			t.Errorf("%s has the deliveries %+v", a.Message, a.Deliveries)
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if len(messages) != 2 || messages[0] != "late" || messages[1] != "early" {
		t.Errorf("the list holds %q", messages)
	}
	if len(told) != 1 || len(told[0].Deliveries) != 1 {
		t.Errorf("told of %+v", told)
	}
	if l.KeepAlert(quota.Alert{}) == nil {
		t.Error("an alert without an ID was kept")
	}
}
