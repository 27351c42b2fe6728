package admin

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func TestListAlerts(t *testing.T) {
	b := newBench(t)
	if body := b.do("GET", "/llm_quota/alerts", "").ok(200).body; body != "{\"alerts\":[],\"next_cursor\":null}\n" {
		t.Errorf("without alerts: %s", body)
	}
	g := b.newGroup(`{"name":"shared","quota":{"tokens":1000,"reset":"daily"}}`)
	k := b.newKey(`{"name":"shared","quota":{"tokens":100,"reset":"daily"}}`)
	other := b.newKey(`{"name":"other","group":"name:shared"}`)
	b.spend(k.ID, "m", 85)
	b.spend(other.ID, "m", 1000)
	if err := b.ledger.Tick(b.now); err != nil {
		t.Fatal(err)
	}
	if err := b.ledger.AddAlert(b.now, &quota.Alert{Kind: quota.AlertStoreDegraded}); err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]string{
		"":                         "store_degraded key:80 group:100 group:80",
		"account=" + k.ID.String(): "key:80",
		"account=" + g.ID.String(): "group:100 group:80",
		"account=name:shared":      "key:80 group:100 group:80",
		"account=name:other":       "",
		"kind=threshold":           "key:80 group:80",
		"kind=exceeded":            "group:100",
		"kind=store_degraded":      "store_degraded",
		"kind=forecast":            "",
		"kind=threshold&account=name:shared&limit=1": "",
	} {
		all := read[Alerts](b.do("GET", "/llm_quota/alerts?"+query, "").ok(200))
		var got []string
		for _, a := range all.Alerts {
			s := string(a.Kind)
			if a.Account != 0 {
				s = fmt.Sprintf("%s:%v", a.Account.Kind(), a.Threshold)
			}
			got = append(got, s)
		}
		slices.Sort(got) // accounts of one tick have no order
		want := strings.Fields(want)
		slices.Sort(want)
		if strings.Contains(query, "limit=1") {
			if len(got) != 1 || all.NextCursor == nil {
				t.Errorf("%s lists %v", query, got)
			}
		} else if !slices.Equal(got, want) {
			t.Errorf("%s lists %v, want %v", query, got, want)
		}
	}
	for query, word := range map[string]string{
		"kind=x": "kind", "account=x": "account", "account=name:none": "name:none", "account=key_0000000000002": "account",
		"limit=0": "limit", "cursor=x": "cursor", "accuont=x": "accuont",
	} {
		b.do("GET", "/llm_quota/alerts?"+query, "").fails(400, word)
	}
}

// A page is followed by the next one whatever is fired in between.
func TestListAlertsPages(t *testing.T) {
	b := newBench(t)
	fire := func(i int) {
		if err := b.ledger.AddAlert(b.now, &quota.Alert{Kind: quota.AlertThreshold, Message: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		fire(i)
	}
	var got []string
	path := "/llm_quota/alerts?limit=2"
	for i, next := 5, ""; ; i++ {
		page := read[Alerts](b.do("GET", path+next, "").ok(200))
		for _, a := range page.Alerts {
			got = append(got, a.Message)
		}
		if page.NextCursor == nil {
			break
		}
		fire(i)
		next = "&cursor=" + *page.NextCursor
	}
	if s := strings.Join(got, " "); s != "4 3 2 1 0" {
		t.Errorf("pages hold %s", s)
	}
}

func TestListAudit(t *testing.T) {
	b := newBench(t)
	if body := b.do("GET", "/llm_quota/audit", "").ok(200).body; body != "{\"entries\":[],\"next_cursor\":null}\n" {
		t.Errorf("without entries: %s", body)
	}
	g := b.newGroup(`{"name":"g"}`)
	k := b.newKey(`{"name":"k"}`)
	b.do("PATCH", "/llm_quota/keys/name:k", `{"disabled":true}`).ok(200)
	b.do("PATCH", "/llm_quota/keys/name:k", `{"group":"name:g"}`).ok(200)
	b.do("DELETE", "/llm_quota/keys/name:k", "").ok(204)
	for query, want := range map[string]string{
		"":                         "delete move disable create create",
		"limit=2":                  "delete move",
		"account=" + k.ID.String(): "delete move disable create",
		"account=name:g":           "create",
		"action=create":            "create create",
		"source=api&action=move":   "move",
		"source=config":            "",
		"account=" + g.ID.String() + "&action=move": "",
	} {
		page := read[Audit](b.do("GET", "/llm_quota/audit?"+query, "").ok(200))
		var got []string
		for _, e := range page.Entries {
			got = append(got, string(e.Action))
		}
		if s := strings.Join(got, " "); s != want || (page.NextCursor != nil) != strings.HasPrefix(query, "limit") {
			t.Errorf("%s lists %s, then %v, want %s", query, s, page.NextCursor, want)
		}
		if page.NextCursor != nil {
			rest := read[Audit](b.do("GET", "/llm_quota/audit?cursor="+*page.NextCursor, "").ok(200))
			if len(rest.Entries) != 3 || rest.Entries[0].Action != quota.ActionDisable {
				t.Errorf("then %+v", rest.Entries)
			}
		}
	}
	for query, word := range map[string]string{"action=x": "action", "source=x": "source", "account=name:none": "account", "kind=x": "kind"} {
		b.do("GET", "/llm_quota/audit?"+query, "").fails(400, word)
	}
}

// An alert is seen in the log, the metrics and Caddy's events; so is a reset.
func TestAlertIsTold(t *testing.T) {
	n := openNews(t, t.TempDir())
	reg := registry(t)
	count := func(kind string) float64 { return scrape(t, reg)["alerts_total kind="+kind] }
	threshold, exceeded := count("threshold"), count("exceeded")
	k := n.newKey(`{"name":"k","quota":{"tokens":100,"reset":"daily"}}`)
	n.spend(k.ID, "m", 100)
	if err := n.ledger.Tick(n.now); err != nil {
		t.Fatal(err)
	}
	n.do("POST", "/llm_quota/keys/name:k/reset", "").ok(200)
	n.until("three events were emitted", func() bool { return len(n.heard()) >= 3 })
	heard := n.heard()
	if len(heard) != 3 || heard[0].name != EventThreshold || heard[1].name != EventExceeded || heard[2].name != EventReset {
		t.Fatalf("events %+v", heard)
	}
	listed := read[Alerts](n.do("GET", "/llm_quota/alerts", "").ok(200)).Alerts[0]
	data := heard[1].data
	for name, want := range map[string]any{
		"id": listed.ID, "kind": "exceeded", "account": k.ID.String(), "name": "k", "limit": "quota", "threshold": 100.0,
		"used": int64(100), "max": int64(100), "message": listed.Message, "period_start": *listed.PeriodStart, "resets_at": *listed.ResetsAt,
	} {
		if data[name] != want {
			t.Errorf("%s is %v, want %v", name, data[name], want)
		}
	}
	if r := heard[2].data; r["account"] != k.ID.String() || r["limit"] != "quota" || r["by_hand"] != true {
		t.Errorf("the reset has %v", r)
	}
	if count("threshold") != threshold+1 || count("exceeded") != exceeded+1 {
		t.Errorf("counted %v and %v", count("threshold")-threshold, count("exceeded")-exceeded)
	}
	var levels []string
	for _, l := range n.logs.FilterField(zap.String("name", "k")).All() {
		levels = append(levels, l.Level.String())
	}
	if !slices.Equal(levels, []string{"warn", "error"}) {
		t.Errorf("logged at %q", levels)
	}
}

// A handler of Caddy's that takes its time costs events, not calls, and the log
// says how many.
func TestAnnouncerDrops(t *testing.T) {
	n := openNews(t, t.TempDir())
	goOn, busy := make(chan struct{}), make(chan struct{}, 1)
	n.onEmit = func() {
		select {
		case busy <- struct{}{}:
		default:
		}
		<-goOn
	}
	n.news.emit(EventReset, nil)
	select {
	case <-busy:
	case <-time.After(30 * time.Second):
		t.Fatal("nothing is emitted")
	}
	for range maxAnnouncements + 7 {
		n.news.emit(EventReset, nil)
	}
	n.news.tellDropped()
	n.news.tellDropped()
	all := n.logs.FilterField(zap.Int64("number", 7)).All()
	if len(all) != 1 {
		t.Errorf("logged %v", n.logs.All())
	}
	close(goOn)
	n.until("the rest is emitted", func() bool { return len(n.heard()) == maxAnnouncements+1 })
}
