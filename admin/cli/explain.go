package cli

import (
	"cmp"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/admin/client"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

func (e *env) addExplain(parent *cobra.Command) {
	e.add(parent, command{
		use: "explain <key|group:name>", short: "Shows whether a call would be admitted now, and which limit decides",
		long: `Shows whether a call would be admitted now, and every limit that is looked at,
those of the groups above among them. It is decided by what decides real calls,
and changes nothing. The exit code is 0 whatever the decision.`,
		example: `caddy llm-quota explain Ada
caddy llm-quota explain Ada --model gpt-4o --input-tokens 20k --max-output-tokens 4000
caddy llm-quota explain group:engineering --input-tokens 1M`,
		flags: func(fs *pflag.FlagSet) {
			fs.String("model", "", "model that is asked for")
			fs.String("input-tokens", "", "tokens of input")
			fs.String("max-output-tokens", "", "most tokens of output, as the request declares them")
		},
		run: explain, complete: []completer{completeAccount},
	})
}

func explain(r *run, args []string) error {
	kind, name := account(args[0])
	q := url.Values{}
	if s := r.text("model"); s != "" {
		q.Set("model", s)
	}
	for flag, param := range map[string]string{"input-tokens": "input_tokens", "max-output-tokens": "max_output_tokens"} {
		s := r.text(flag)
		if s == "" {
			continue
		}
		n, err := parseAmount(s)
		if err != nil || n < 0 {
			return misused("--%s: %q is not a number like 5000 or 20k", flag, s)
		}
		q.Set(param, strconv.FormatInt(n, 10))
	}
	var x admin.Explanation
	a, err := r.get(client.Request{Path: client.Path(kind, name, "explain"), Query: q}, &x)
	if err != nil {
		return fmt.Errorf("explaining %s: %w", titled(kind, name), err)
	}
	if r.json {
		return r.printRaw(a)
	}
	r.printExplanation(&x)
	return nil
}

func (r *run) printExplanation(x *admin.Explanation) {
	verdict := r.styled(green, "admitted")
	if !x.Admitted {
		verdict = r.styled(red, "refused") + ": " + clean(x.Reason)
		if x.Limit != "" {
			verdict += fmt.Sprintf(", by %s of %s", x.Limit, clean(cmp.Or(titled(quota.ID(x.Account).Kind(), r.name(quota.ID(x.Account))), "-")))
		}
	}
	r.printf("%s\n", verdict)
	if i := strings.LastIndex(x.Message, ": limit "); i >= 0 { // what comes before it has been said
		r.printf("%s\n", clean(x.Message[i+2:]))
	} else if x.Message != x.Reason && x.Message != "" {
		r.printf("%s\n", clean(x.Message))
	}
	if x.Admitted {
		r.printf("reserves %s of input and %s of output\n", plural(x.Reserve.Input, "token"), amount(x.Reserve.Output))
	}
	if len(x.Limits) == 0 {
		r.printf("no limit holds\n")
		return
	}
	r.printf("\n")
	t := table{head: []string{"ACCOUNT", "LIMIT", ">MAX", ">USED", ">HELD", ">LEFT", "FITS", "RESETS"}}
	for i := range x.Limits {
		l := &x.Limits[i]
		fits := cell{"yes", green}
		if !l.Fits {
			fits = cell{"no", red}
		}
		resets := ""
		if l.ResetsAt != nil {
			resets = since(r.now(), l.ResetsAt)
		}
		t.row(titled(l.Account.Kind(), cmp.Or(l.Name, l.Account.String())), string(l.Limit), exactly(l.Max),
			amount(l.Used), amount(l.Reserved), amount(l.Remaining), fits, resets)
	}
	t.print(r.env)
}
