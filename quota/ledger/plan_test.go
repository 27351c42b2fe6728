package ledger

import (
	"os"
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

// A threshold that is crossed just before the end is told of at the end or, if
// the process was killed, at the next start, without a call.
func TestAlertsAtTheEnd(t *testing.T) {
	for _, killed := range []bool{false, true} {
		now := time.Date(2026, 5, 15, 10, 0, 0, 0, time.UTC)
		dir := t.TempDir()
		var told []quota.Alert
		open := func(dir string) *Ledger {
			st, err := badger.Open(badger.Options{Dir: dir, SyncInterval: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			l, err := Open(st, now, func(op string, err error) { t.Errorf("%s: %v", op, err) })
			if err != nil {
				t.Fatal(err)
			}
			l.OnAlert(func(a quota.Alert) { told = append(told, a) })
			if err := l.Tick(now); err != nil { // before the configuration
				t.Fatal(err)
			}
			if err := l.Configure(now, &Config{}); err != nil {
				t.Fatal(err)
			}
			return l
		}
		l := open(dir)
		made, err := l.CreateKeys(now, []NewKey{{Name: "k", KeyRules: quota.KeyRules{Quota: &quota.Quota{Tokens: quota.At(100), Reset: quota.ResetDaily}}}})
		if err != nil {
			t.Fatal(err)
		}
		a, err := l.Account(now, made[0].Key.ID)
		if err != nil {
			t.Fatal(err)
		}
		var r Reservation
		if ref, err := l.Reserve(now, a, Call{Input: 85}, &r); ref != nil || err != nil {
			t.Fatal(ref, err)
		}
		if err := l.Settle(now, &r, quota.Outcome{Tokens: quota.Tokens{Input: 85}}); err != nil {
			t.Fatal(err)
		}
		if killed { // what lies in the folder now is all that is left
			copied := t.TempDir()
			if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			defer l.Close(now)
			l = open(copied)
			if err := l.Tick(now); err != nil {
				t.Fatal(err)
			}
		} else if err := l.Close(now); err != nil {
			t.Fatal(err)
		}
		if len(told) != 1 || told[0].Threshold != 80 || told[0].Used != 85 {
			t.Errorf("killed %t: told of %+v", killed, told)
		}
		if killed {
			if err := l.Close(now); err != nil {
				t.Error(err)
			}
		}
	}
}
