package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/admin/client"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

// eventTypes are the types of events.
var eventTypes = []string{"admission", "settlement", "refusal", "alert", "change"}

// The pauses before the stream is asked for again: each is twice the one
// before.
const (
	firstPause = 500 * time.Millisecond
	lastPause  = 15 * time.Second
)

func (e *env) addTail(parent *cobra.Command) {
	e.add(parent, command{
		use: "tail", short: "Shows what happens, as it happens",
		long: `Shows calls that are admitted, settled and refused, alerts and changes, as they
happen, until it is interrupted. When Caddy is restarted or the connection breaks,
it connects again; of what has happened meanwhile it shows what the gate still
has.`,
		example: "caddy llm-quota tail\ncaddy llm-quota tail --type refusal,alert --group engineering\ncaddy llm-quota tail --key Ada --json",
		flags: func(fs *pflag.FlagSet) {
			fs.StringSlice("type", nil, "only these types: "+strings.Join(eventTypes, ", "))
			fs.String("key", "", "only this key's")
			fs.StringP("group", "g", "", "only those of keys directly in this group")
		},
		run: tail,
	})
}

// tailQuery asks for the events that the flags name.
func (r *run) tailQuery() (url.Values, error) {
	q := url.Values{}
	types, _ := r.flags.GetStringSlice("type")
	for _, s := range types {
		if !slices.Contains(eventTypes, s) {
			return nil, misused("--type: %q is not one of %s", s, strings.Join(eventTypes, ", "))
		}
	}
	if len(types) > 0 {
		q.Set("types", strings.Join(types, ","))
	}
	r.ofAccounts(q)
	return q, nil
}

// ofAccounts asks for what is of the key and the group that the flags name.
func (r *run) ofAccounts(q url.Values) {
	for flag, kind := range map[string]quota.Kind{"key": quota.KindKey, "group": quota.KindGroup} {
		if s := r.text(flag); s != "" {
			q.Set(flag, client.Ref(kind, s))
		}
	}
}

func tail(r *run, _ []string) error {
	query, err := r.tailQuery()
	if err != nil {
		return err
	}
	defer r.catch()()
	pause, connected, lost, last := firstPause, false, false, ""
	opened := func() {
		if lost {
			r.notef("Connected again.\n")
		}
		pause, connected, lost = firstPause, true, false
	}
	for {
		err := r.api.Events(r.ctx, query, last, opened, func(e *client.Event) error {
			last = e.ID
			return r.printEvent(e)
		})
		if r.ctx.Err() != nil {
			return nil // whoever interrupts it has seen enough
		}
		err = cmp.Or(err, errEnded)
		if !connected || r.out.failed != nil || !passing(err) {
			return fmt.Errorf("showing events: %w", err)
		}
		if !lost {
			r.notef("The connection is lost (%s). Connecting again…\n", clean(err.Error()))
		}
		lost = true
		select {
		case <-r.ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// errEnded says that the gate has ended the stream: its configuration is
// another now, or tail was too slow.
var errEnded = errors.New("the stream has ended")

// passing tells whether an error may pass by itself. While Caddy starts, there
// may be no gate in it yet.
func passing(err error) bool {
	refused, is := errors.AsType[*client.Error](err)
	return !is || refused.Status >= http.StatusInternalServerError || refused.Status == http.StatusNotFound
}

// printEvent prints an event as a line.
func (r *run) printEvent(raw *client.Event) error {
	var e admin.Event
	if err := json.Unmarshal(raw.Data, &e); err != nil {
		return fmt.Errorf("reading an event: %w", err)
	}
	if r.json {
		return r.printJSON(struct {
			ID   string `json:"id"`
			Type string `json:"type"`
			admin.Event
		}{raw.ID, raw.Type, e})
	}
	at := e.Time.In(r.now().Location()).Format(time.TimeOnly)
	kind := r.styled(eventStyles[raw.Type], fmt.Sprintf("%-10s", clean(raw.Type)))
	r.printf("%s  %s  %s\n", at, kind, clean(r.eventText(raw.Type, &e)))
	return r.out.failed
}

var eventStyles = map[string]string{"admission": faint, "settlement": green, "refusal": red, "alert": yellow, "change": bold}

func (r *run) eventText(kind string, e *admin.Event) string {
	switch {
	case e.Change != nil:
		c := e.Change
		return strings.TrimSpace(fmt.Sprintf("%s: %s by %s (%s)  %s", objectOf(c), c.Action, cmp.Or(c.Actor, "-"), c.Source, r.changeOf(c)))
	case e.Alert != nil && e.Alert.Message != "":
		return e.Alert.Message
	case e.Alert != nil:
		return strings.TrimSpace(string(e.Alert.Kind) + " " + e.Alert.Name + " " + strconv.FormatFloat(e.Alert.Threshold, 'f', -1, 64) + "% of " + string(e.Alert.Limit))
	}
	parts := []string{cmp.Or(r.name(quota.ID(e.Key)), "-")}
	if group := r.name(quota.ID(e.Group)); group != "" {
		parts[0] += " (" + group + ")"
	}
	for _, s := range []string{e.Model, e.Reason} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	if kind != "refusal" {
		parts = append(parts, plural(e.Tokens, "token"))
	}
	return strings.Join(parts, "  ")
}
