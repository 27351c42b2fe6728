package ledger

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// entries returns the audit log, the oldest first, each entry on a line.
func entries(t *testing.T, l *Ledger) (list []string) {
	t.Helper()
	var last string
	if err := l.Changes(0, func(c *quota.Change) bool {
		if last != "" && c.ID >= last {
			t.Errorf("entry %s comes after %s", c.ID, last)
		}
		last = c.ID
		list = append(list, fmt.Sprintf("%s %s %s %s %s: %s > %s", c.Actor, c.Source, c.Action, c.Object.Kind(), c.Name, c.Before, c.After))
		return true
	}); err != nil {
		t.Fatal(err)
	}
	slices.Reverse(list)
	return list
}

// Every change leaves one entry, with who made it, what was and what is, and
// without any secret; it is told, and it is there after a restart.
func TestAudit(t *testing.T) {
	now := time.Date(2026, 5, 10, 12, 0, 0, 0, time.UTC)
	dir := t.TempDir()
	open := openLedger(t, dir, now)
	told := 0
	open.OnChange(func(quota.Change) { told++ })
	l := open.As(quota.Author{Actor: "ada", Source: quota.ByDashboard})
	g, err := l.CreateGroup(now, NewGroup{Name: "team"})
	if err != nil {
		t.Fatal(err)
	}
	made, err := l.CreateKeys(now, []NewKey{{Name: "k", Secret: "a-secret-that-nobody-sees"}})
	if err != nil {
		t.Fatal(err)
	}
	id := made[0].Key.ID
	update := func(edit func(*quota.Key)) {
		t.Helper()
		if _, err := l.UpdateKey(now, id, func(k *quota.Key) error { edit(k); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	update(func(k *quota.Key) { k.Group = g.ID })
	update(func(k *quota.Key) { k.Disabled = true })
	update(func(k *quota.Key) { k.Disabled = false })
	update(func(k *quota.Key) {
		k.Name, k.Quota = "k2", &quota.Quota{Tokens: quota.At(100), Reset: quota.ResetDaily}
	})
	if _, err := l.UpdateKey(now, id, func(*quota.Key) error { return errors.New("no") }); err == nil {
		t.Fatal("a failed edit changes the key")
	}
	_, secret, err := l.Rotate(now, id, time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Account(now, id)
	if err != nil {
		t.Fatal(err)
	}
	spend(t, l, now, a)
	if err := errors.Join(l.Grant(now, id, 50), l.Reset(now, id, []quota.LimitName{quota.TokenQuota})); err != nil {
		t.Fatal(err)
	}
	if err := l.Grant(now, g.ID, 50); err == nil {
		t.Fatal("a group without a quota takes a grant")
	}
	if err := l.DeleteGroup(now, g.ID, true, nil); err != nil {
		t.Fatal(err)
	}
	if err := l.DeleteKey(now, id, nil); err != nil {
		t.Fatal(err)
	}
	want := []string{
		`ada dashboard create group team: null > {"name":"team","parent":"","source":"api"}`,
		`ada dashboard create key k: null > {"name":"k","group":"","prefix":"a-se","source":"api","disabled":false}`,
		`ada dashboard move key k: {"name":"k","group":"","prefix":"a-se","source":"api","disabled":false} > {"name":"k","group":"G","prefix":"a-se","source":"api","disabled":false}`,
		`ada dashboard disable key k: {"name":"k","group":"G","prefix":"a-se","source":"api","disabled":false} > {"name":"k","group":"G","prefix":"a-se","source":"api","disabled":true}`,
		`ada dashboard enable key k: {"name":"k","group":"G","prefix":"a-se","source":"api","disabled":true} > {"name":"k","group":"G","prefix":"a-se","source":"api","disabled":false}`,
		`ada dashboard update key k2: {"name":"k","group":"G","prefix":"a-se","source":"api","disabled":false} > {"name":"k2","group":"G","prefix":"a-se","source":"api","disabled":false,"quota":{"tokens":100,"reset":"daily"}}`,
		`ada dashboard rotate key k2: {"name":"k2","group":"G","prefix":"a-se","source":"api","disabled":false,"quota":{"tokens":100,"reset":"daily"}} > {"name":"k2","group":"G","prefix":"P","source":"api","disabled":false,"quota":{"tokens":100,"reset":"daily"}}`,
		`ada dashboard grant key k2: {"granted":0} > {"granted":50}`,
		`ada dashboard reset key k2: {"used":{"quota":10},"granted":50} > {"used":{"quota":0}}`,
		`ada dashboard move key k2: {"name":"k2","group":"G","prefix":"P","source":"api","disabled":false,"quota":{"tokens":100,"reset":"daily"}} > {"name":"k2","group":"","prefix":"P","source":"api","disabled":false,"quota":{"tokens":100,"reset":"daily"}}`,
		`ada dashboard delete group team: {"name":"team","parent":"","source":"api"} > null`,
		`ada dashboard delete key k2: {"name":"k2","group":"","prefix":"P","source":"api","disabled":false,"quota":{"tokens":100,"reset":"daily"}} > null`,
	}
	check := func(l *Ledger) {
		t.Helper()
		got := entries(t, l)
		for i := range got {
			if strings.Contains(got[i], secret) || strings.Contains(got[i], "nobody-sees") {
				t.Errorf("a secret is in %s", got[i])
			}
			got[i] = strings.NewReplacer(g.ID.String(), "G", secret[:11], "P").Replace(got[i])
		}
		if !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	check(l)
	if told != len(want) {
		t.Errorf("%d changes were told, want %d", told, len(want))
	}
	if err := l.Close(now); err != nil {
		t.Fatal(err)
	}
	l = openLedger(t, dir, now.Add(-time.Hour)) // the clock was put back: entries stay in order
	defer l.Close(now)
	check(l)
	if _, err := l.CreateKeys(now, []NewKey{{Name: "later"}}); err != nil {
		t.Fatal(err)
	}
	want = append(want, ` `+` create key later: null > {"name":"later","group":"","prefix":"Q","source":"api","disabled":false}`)
	k, err := l.Find(quota.KindKey, "later")
	if err != nil {
		t.Fatal(err)
	}
	rec, err := l.Key(k)
	if err != nil {
		t.Fatal(err)
	}
	want[len(want)-1] = strings.Replace(want[len(want)-1], "Q", rec.Prefix, 1)
	check(l)
}

// What a configuration makes, takes over, removes and puts back is in the
// audit log.
func TestAuditOfConfiguration(t *testing.T) {
	now := time.Date(2026, 5, 10, 12, 0, 0, 0, time.UTC)
	l := newLedger(t, now)
	if _, err := l.CreateKeys(now, []NewKey{{Name: "taken"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.CreateGroup(now, NewGroup{Name: "team"}); err != nil {
		t.Fatal(err)
	}
	config := func(keys ...string) {
		t.Helper()
		c := Config{Groups: []ConfigGroup{{Name: "team"}}}
		for _, name := range keys {
			c.Keys = append(c.Keys, ConfigKey{Name: name, Group: "team", Secret: "the-secret-of-the-key-" + name})
		}
		now = now.Add(time.Second)
		if err := l.Configure(now, &c); err != nil {
			t.Fatal(err)
		}
	}
	config("taken", "own")
	config("taken", "own") // nothing new
	config("own")
	config("taken", "own")
	var got []string
	for _, e := range entries(t, l)[2:] {
		got = append(got, e[:strings.Index(e, ":")])
	}
	want := []string{
		" config take_over group team", " config take_over key taken", " config create key own",
		" config remove key taken", " config put_back key taken",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A key that is moved takes what it used along only when it is told to, from
// and to every group that it leaves and enters, and the books agree.
func TestCarry(t *testing.T) {
	now := time.Date(2026, 5, 10, 12, 0, 0, 0, time.UTC)
	for _, carry := range []bool{false, true} {
		dir := t.TempDir()
		l := openLedger(t, dir, now)
		group := func(name string, parent quota.ID, reset quota.Reset) quota.ID {
			g, err := l.CreateGroup(now, NewGroup{Name: name, Parent: parent, GroupRules: quota.GroupRules{
				Quota: &quota.Quota{Tokens: quota.At(1000), Reset: reset}, Limits: quota.Limits{RequestsPerDay: quota.At(100), TokensPerDay: quota.At(1000)},
			}})
			if err != nil {
				t.Fatal(err)
			}
			return g.ID
		}
		top := group("top", 0, quota.ResetMonthly)
		from, to := group("from", top, quota.ResetDaily), group("to", top, quota.ResetManual)
		other := group("other", 0, quota.ResetWeekly)
		made, err := l.CreateKeys(now, []NewKey{{Name: "k", Group: from}, {Name: "stays", Group: from}})
		if err != nil {
			t.Fatal(err)
		}
		k, _ := l.Account(now, made[0].Key.ID)
		stays, _ := l.Account(now, made[1].Key.ID)
		spend(t, l, now, k)
		spend(t, l, now, k)
		spend(t, l, now, stays)
		open := reserve(t, l, now, k, 5)
		move := func(to quota.ID) {
			t.Helper()
			change := l.UpdateKey
			if carry {
				change = l.CarryKey
			}
			if _, err := change(now, k.ID(), func(k *quota.Key) error { k.Group = to; return nil }); err != nil {
				t.Fatal(err)
			}
		}
		// wants are tokens of the quota, requests and tokens of the day.
		check := func(what string, id quota.ID, want [3]int64) {
			t.Helper()
			s, err := l.State(now, id)
			if err != nil {
				t.Fatal(err)
			}
			got := [3]int64{}
			for _, v := range s.Limits {
				switch v.Limit {
				case quota.TokenQuota:
					got[0] = v.Used
				case quota.RequestsPerDay:
					got[1] = v.Used
				case quota.TokensPerDay:
					got[2] = v.Used
				}
			}
			if got != want {
				t.Errorf("carry %t: %s has %v, want %v", carry, what, got, want)
			}
		}
		verified := func() {
			t.Helper()
			v, err := l.Verify(now)
			if err != nil || len(v.Differences) > 0 || v.Checked == 0 {
				t.Errorf("carry %t: verification says %+v, %v", carry, v, err)
			}
		}
		move(to)
		verified()
		if err := l.Settle(now, open, quota.Outcome{Tokens: quota.Tokens{Input: 7}}); err != nil {
			t.Fatal(err)
		}
		if carry {
			check("from", from, [3]int64{17, 2, 17})
			check("to", to, [3]int64{20, 2, 20})
		} else {
			check("from", from, [3]int64{37, 4, 37})
			check("to", to, [3]int64{})
		}
		check("top", top, [3]int64{37, 4, 37})
		verified()
		spend(t, l, now, k)
		move(other)
		verified()
		if carry {
			check("other", other, [3]int64{10, 1, 10})
		}
		l = openLedger(t, crashCopy(t, dir, t.TempDir()), now)
		verified()
		if carry {
			check("from", from, [3]int64{17, 2, 17})
			check("to", to, [3]int64{20, 2, 20})
			check("top", top, [3]int64{37, 4, 37})
		}
	}
}
