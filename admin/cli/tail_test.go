package cli_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// eventsOf serves streams of events, one to each that connects, which it ends.
// To whoever comes after the last it says nothing. Each that connects is told of.
func eventsOf(streams ...string) (http.HandlerFunc, chan *http.Request) {
	seen := make(chan *http.Request, 10)
	n := 0
	return func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/events") {
			fmt.Fprintf(w, `{"name":"Ada"}`)
			return
		}
		seen <- r
		w.Header().Set("Content-Type", "text/event-stream")
		if n++; n <= len(streams) {
			fmt.Fprint(w, streams[n-1])
			return
		}
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}, seen
}

// event is an event of the stream.
func event(id int, kind, rest string) string {
	return fmt.Sprintf("id: %d\nevent: %s\ndata: {\"time\":\"2026-05-15T10:20:30Z\",\"key\":null,\"group\":null%s}\n\n", id, kind, rest)
}

// When the stream breaks, tail goes on after what it has shown.
func TestTailConnectsAgain(t *testing.T) {
	serve, seen := eventsOf(
		": hello\n\n"+event(7, "admission", `,"model":"gpt-4o","tokens":1024`)+event(8, "refusal", `,"reason":"insufficient_quota","model":"\u001b[31m"`),
		event(9, "alert", `,"alert":{"message":"80 % of the quota of key Ada are used"}`)+"id: 10\nevent: admission\ndata: {",
	)
	b := fake(t, serve)
	lines, end := b.background("tail --type refusal,admission,alert --key Ada")
	for _, want := range []string{
		"10:20:30  admission   -  gpt-4o  1,024 tokens\n", "10:20:30  refusal     \"-  \\x1b[31m  insufficient_quota\"\n",
		"10:20:30  alert       80 % of the quota of key Ada are used\n",
	} {
		if got, err := lines.ReadString('\n'); got != want {
			t.Errorf("printed %q, want %q (%v)", got, want, err)
		}
	}
	for _, want := range []string{"", "8", "9"} {
		r := <-seen
		if got := r.Header.Get("Last-Event-ID"); got != want {
			t.Errorf("the last event is %q, want %q", got, want)
		}
		if q := r.URL.Query().Encode(); q != "key=name%3AAda&types=refusal%2Cadmission%2Calert" {
			t.Errorf("asked for %s", q)
		}
	}
	if code := end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// What is amiss from the beginning ends it.
func TestTailFails(t *testing.T) {
	b := newBench(t)
	b.run("tail --key nobody").exits(1).says("showing events")
	b.loadApps(map[string]any{})
	b.run("tail").exits(1).says("llm_quota is not in the running configuration")
}

// Real calls are shown, and a change of the configuration does not end it.
func TestTailOfGate(t *testing.T) {
	b := newBench(t)
	b.run("groups create engineering").ok()
	secret := b.run(`keys create Ada --group engineering --models gpt-4o`).ok().out
	lines, end := b.background("tail --json --key Ada --type settlement,refusal,change")
	type line struct {
		ID, Type, Key, Group, Model, Reason string
		Tokens                              int64
		Change                              *struct{ Actor, Source, Action string }
	}
	next := func() (l line) {
		t.Helper()
		s, err := lines.ReadString('\n')
		if err == nil {
			err = json.Unmarshal([]byte(s), &l)
		}
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		return l
	}
	stop := b.busy(secret) // it may begin before tail listens, so it goes on
	until := func(kind string) line {
		for {
			if l := next(); l.Type == kind {
				return l
			}
		}
	}
	first := until("settlement")
	stop()
	if first.ID == "" || first.Key != b.key("Ada").ID.String() || first.Group != b.group("engineering").ID.String() ||
		first.Model != "gpt-4o" || first.Tokens != 10 {
		t.Errorf("%+v", first)
	}
	for _, action := range []string{"disable", "enable"} {
		b.run("keys %s Ada", action).ok()
		if c := until("change").Change; c == nil || c.Action != action || c.Actor != "tester" || c.Source != "cli" {
			t.Errorf("%s: %+v", action, c)
		}
		b.load(`{"time_zone":"Europe/Berlin"}`) // tail connects again
	}
	if code := end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
