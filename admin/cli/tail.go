package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
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
it connects again; what has happened meanwhile is missing.`,
		example: "caddy llm-quota tail\ncaddy llm-quota tail --type refusal,alert --group engineering\ncaddy llm-quota tail --key Ada --json",
		flags: func(fs *pflag.FlagSet) {
			fs.StringSlice("type", nil, "only these types: "+strings.Join(eventTypes, ", "))
			fs.String("key", "", "only this key's")
			fs.StringP("group", "g", "", "only those of keys directly in this group")
		},
		run: tail,
	})
}

// filter is what tail shows.
type filter struct {
	types      []string
	key, group admin.Ref // zero: any
}

func (f *filter) takes(kind string, e *admin.Event) bool {
	return (len(f.types) == 0 || slices.Contains(f.types, kind)) &&
		(f.key == 0 || f.key == e.Key) && (f.group == 0 || f.group == e.Group)
}

func (r *run) tailFilter() (f filter, err error) {
	f.types, _ = r.flags.GetStringSlice("type")
	for _, s := range f.types {
		if !slices.Contains(eventTypes, s) {
			return f, misused("--type: %q is not one of %s", s, strings.Join(eventTypes, ", "))
		}
	}
	if f.key, err = r.find(quota.KindKey, r.text("key")); err == nil {
		f.group, err = r.find(quota.KindGroup, r.text("group"))
	}
	return f, err
}

// find returns the ID of the account that s names; zero if s is empty.
func (r *run) find(kind quota.Kind, s string) (admin.Ref, error) {
	if s == "" {
		return 0, nil
	}
	var found struct {
		ID   admin.Ref
		Name string
	}
	if _, err := r.get(client.Request{Path: client.Path(kind, s)}, &found); err != nil {
		return 0, fmt.Errorf("finding %s: %w", titled(kind, s), err)
	}
	r.names[found.ID.String()] = found.Name
	return found.ID, nil
}

func tail(r *run, _ []string) error {
	f, err := r.tailFilter()
	if err != nil {
		return err
	}
	pause, connected, lost := firstPause, false, false
	for {
		err := r.api.Events(r.ctx, func() {
			pause, connected = firstPause, true
			if lost {
				r.notef("Connected again.\n")
			}
			lost = false
		}, func(e *client.Event) error { return r.printEvent(&f, e) })
		if r.ctx.Err() != nil {
			return nil // whoever interrupts it has seen enough
		}
		refused, is := errors.AsType[*client.Error](err)
		if !connected || (is && refused.Status < 500 && refused.Status != 404) {
			return fmt.Errorf("showing events: %w", cmp.Or(err, errors.New("the stream has ended")))
		}
		if !lost {
			r.notef("The connection is lost (%s). Connecting again…\n", cmp.Or(err, errors.New("the stream has ended")))
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

// printEvent prints an event as a line, if it is wanted.
func (r *run) printEvent(f *filter, raw *client.Event) error {
	var e admin.Event
	if err := json.Unmarshal(raw.Data, &e); err != nil {
		return fmt.Errorf("reading an event: %w", err)
	}
	if !f.takes(raw.Type, &e) {
		return nil
	}
	if r.json {
		return r.printJSON(struct {
			ID   string `json:"id"`
			Type string `json:"type"`
			admin.Event
		}{raw.ID, raw.Type, e})
	}
	r.printf("%s  %s  %s\n", e.Time.In(r.now().Location()).Format(time.TimeOnly), r.styled(eventStyles[raw.Type], fmt.Sprintf("%-10s", clean(raw.Type))), clean(r.eventText(raw.Type, &e)))
	return nil
}

var eventStyles = map[string]string{"admission": faint, "settlement": green, "refusal": red, "alert": yellow, "change": bold}

func (r *run) eventText(kind string, e *admin.Event) string {
	switch {
	case e.Change != nil:
		c := e.Change
		return strings.TrimSpace(fmt.Sprintf("%s: %s by %s (%s)  %s", objectOf(c), c.Action, cmp.Or(c.Actor, "-"), c.Source, changeOf(c)))
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
