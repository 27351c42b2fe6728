package cli

import (
	"context"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// completionWait is how long a shell waits for names at most.
const completionWait = 2 * time.Second

// completer returns what an argument that begins with a text may be. It fails
// silently: whoever presses the tab key wants no errors.
type completer func(r *run, begin string) []string

func (e *env) completeArgs(all []completer) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, begin string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= len(all) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		if all[len(args)] == nil { // a file
			return nil, cobra.ShellCompDirectiveDefault
		}
		return e.completed(c, all[len(args)], begin)
	}
}

// completeFlag completes the value of a flag.
func (e *env) completeFlag(f completer) cobra.CompletionFunc {
	return func(c *cobra.Command, _ []string, begin string) ([]string, cobra.ShellCompDirective) {
		return e.completed(c, f, begin)
	}
}

func (e *env) completed(c *cobra.Command, f completer, begin string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.Background(), completionWait)
	defer cancel()
	r := &run{env: e, ctx: ctx, flags: c.Flags(), names: map[string]string{}}
	if r.connect() != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer r.api.Close()
	return f(r, begin), cobra.ShellCompDirectiveNoFileComp
}

// flagValues are the flags whose values can be completed, by name.
var flagValues = map[string]completer{
	"group": completeGroupOrNone, "parent": completeGroupOrNone, "key": completeKey,
	"status":           oneOf("active", "disabled", "expired", "deleted"),
	"sort":             oneOf("created", "name", "last_used", "used"),
	"by":               oneOf("model", "key", "group"),
	"step":             oneOf("minute", "hour", "day", "month"),
	"quota-week-start": oneOf("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"),
	"type":             oneOf(eventTypes...),
	"limits":           oneOf("quota", "requests_per_minute", "tokens_per_minute", "requests_per_day", "tokens_per_day"),
}

// completeFlags makes the flags of a command known to shells.
func (e *env) completeFlags(c *cobra.Command) {
	for name, f := range flagValues {
		if c.Flags().Lookup(name) != nil {
			// It fails only for a flag that is not there, or twice for the same.
			_ = c.RegisterFlagCompletionFunc(name, e.completeFlag(f))
		}
	}
}

func oneOf(values ...string) completer {
	return func(_ *run, begin string) []string { return beginning(values, begin) }
}

func beginning(values []string, begin string) (all []string) {
	for _, v := range values {
		if strings.HasPrefix(v, begin) {
			all = append(all, v)
		}
	}
	return all
}

func completeKey(r *run, begin string) []string   { return r.namesOf(quota.KindKey, begin) }
func completeGroup(r *run, begin string) []string { return r.namesOf(quota.KindGroup, begin) }

func completeGroupOrNone(r *run, begin string) []string {
	return append(completeGroup(r, begin), beginning([]string{"none"}, begin)...)
}

// completeAccount completes a key, or a group after "group:".
func completeAccount(r *run, begin string) []string {
	name, is := strings.CutPrefix(begin, "group:")
	if !is {
		return append(completeKey(r, begin), beginning([]string{"group:"}, begin)...)
	}
	all := completeGroup(r, name)
	for i := range all {
		all[i] = "group:" + all[i]
	}
	return all
}

// namesOf returns the names, and once an ID is begun the IDs, that begin so.
func (r *run) namesOf(kind quota.Kind, begin string) (all []string) {
	query := url.Values{}
	ids := strings.HasPrefix(begin, "key_") || strings.HasPrefix(begin, "grp_")
	if begin != "" && !ids {
		query.Set("q", begin)
	}
	path := "/" + kind.String() + "s"
	p, err := r.pages(path, path[1:], query, 200)
	if err != nil {
		return nil
	}
	rows, err := decoded[struct{ ID, Name string }](p)
	if err != nil {
		return nil
	}
	for _, row := range rows {
		value := row.Name
		if ids {
			value = row.ID
		}
		if strings.HasPrefix(value, begin) {
			all = append(all, value)
		}
	}
	return all
}
