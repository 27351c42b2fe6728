package cli

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/admin/client"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

func (e *env) addActions(parent *cobra.Command) {
	e.add(parent, command{
		use: "reset <key|group:name>", short: "Makes limits of a key or group count from nothing",
		long: `Makes limits count from nothing, by default the quota. Only this account is reset,
not the groups above it. Calls under way settle into the history, not into the
fresh period, and what was granted on top is gone.`,
		example: `caddy llm-quota reset Ada
caddy llm-quota reset group:engineering --limits quota,tokens_per_day`,
		flags: func(fs *pflag.FlagSet) {
			fs.StringSlice("limits", []string{"quota"}, "limits to reset: quota, requests_per_minute, tokens_per_minute, requests_per_day, tokens_per_day")
		},
		run: reset, complete: []completer{completeAccount},
	})
	e.add(parent, command{
		use: "grant <key|group:name> <tokens>", short: "Adds tokens to a quota, in its current period",
		long: `Adds tokens to a quota until its period ends. A negative number takes back; it
comes after "--", lest it be taken for a flag.`,
		example: `caddy llm-quota grant Ada 100k
caddy llm-quota grant group:engineering -- -50k`,
		run: grant, complete: []completer{completeAccount},
	})
}

func reset(r *run, args []string) error {
	limits, _ := r.flags.GetStringSlice("limits")
	return r.act(args[0], "reset", "resetting", "is reset", patch{"limits": limits})
}

func grant(r *run, args []string) error {
	n, err := parseAmount(args[1])
	if err != nil {
		return misused("<tokens>: %w", err)
	}
	done := "is granted " + plural(n, "token")
	if n < 0 {
		done = "has given back " + plural(-n, "token")
	}
	return r.act(args[0], "grant", "granting to", done, patch{"tokens": n})
}

// act does something with an account, and shows how it stands then.
func (r *run) act(arg, action, doing, done string, body patch) error {
	kind, name := account(arg)
	a, err := r.get(client.Request{Method: http.MethodPost, Path: client.Path(kind, name, action), Body: body}, nil)
	if err != nil {
		return fmt.Errorf("%s %s: %w", doing, titled(kind, name), err)
	}
	if r.json {
		return r.printRaw(a)
	}
	var now struct {
		ID        quota.ID
		Name      string
		Effective admin.Effective
		State     admin.State
	}
	if err := json.Unmarshal(a.Body, &now); err != nil {
		return fmt.Errorf("reading the answer: %w", err)
	}
	r.notef("The %s (%s) %s.\n", titled(kind, now.Name), now.ID, done)
	r.printState(now.Effective, now.State)
	return nil
}
