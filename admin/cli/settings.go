package cli

import (
	"strings"

	"github.com/spf13/pflag"

	"github.com/llm-quota/caddy-llm-quota/admin/client"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

// limitNames are the limits besides the quota.
var limitNames = quota.LimitNames[1:]

// patch is a JSON merge patch: a field that is nil is cleared.
type patch map[string]any

// flagName returns the flag of a limit.
func flagName(prefix string, name quota.LimitName) string {
	return prefix + strings.ReplaceAll(string(name), "_", "-")
}

// limitFlags makes the flags of a quota and of limits. Those of what members
// of a group inherit have a prefix.
func limitFlags(fs *pflag.FlagSet, prefix, whose string) {
	fs.String(prefix+"quota", "", `token quota`+whose+`, like "5M monthly": a number or unlimited, and daily, weekly, monthly or manual; none clears it`)
	fs.String(prefix+"quota-time-zone", "", "IANA time zone in which it is reckoned")
	fs.String(prefix+"quota-at", "", "local time at which it starts anew, as HH:MM")
	fs.String(prefix+"quota-week-start", "", "weekday on which a weekly one starts anew")
	fs.String(prefix+"quota-month-day", "", "day of the month on which a monthly one starts anew: 1 to 31, or last")
	for _, name := range limitNames {
		fs.String(flagName(prefix, name), "", strings.ReplaceAll(string(name), "_", " ")+whose+": a number, unlimited, or none, which clears it")
	}
}

// limitPatch puts what the flags of limits say into p.
func (r *run) limitPatch(p patch, prefix string) error {
	q := patch{}
	clears := false
	if name := prefix + "quota"; r.flags.Changed(name) {
		tokens, reset, err := parseQuota(r.text(name))
		if err != nil {
			return misused("--%s: %w", name, err)
		}
		clears = !tokens.IsSet()
		q["tokens"] = tokens
		if reset != "" {
			q["reset"] = reset
		}
	}
	for flag, field := range map[string]string{
		"quota-time-zone": "time_zone", "quota-at": "at", "quota-week-start": "week_start", "quota-month-day": "month_day",
	} {
		if !r.flags.Changed(prefix + flag) {
			continue
		}
		if q[field] = any(r.text(prefix + flag)); q[field] == "none" {
			q[field] = nil
		} else if field == "month_day" {
			day, err := quota.ParseMonthDay(r.text(prefix + flag))
			if err != nil {
				return misused("--%s: %q is not 1 to 31 or last", prefix+flag, r.text(prefix+flag))
			}
			q[field] = day
		}
	}
	switch {
	case clears && len(q) > 1:
		return misused("--%squota none clears the quota, so nothing else can be set of it", prefix)
	case clears:
		p["quota"] = nil
	case len(q) > 0:
		p["quota"] = q
	}
	limits := patch{}
	for _, name := range limitNames {
		flag := flagName(prefix, name)
		if !r.flags.Changed(flag) {
			continue
		}
		b, err := parseBound(r.text(flag))
		if err != nil {
			return misused("--%s: %w", flag, err)
		}
		limits[string(name)] = b
	}
	if len(limits) > 0 {
		p["limits"] = limits
	}
	return nil
}

// sharedFlags makes the flags that keys and groups have.
func sharedFlags(fs *pflag.FlagSet) {
	limitFlags(fs, "", "")
	fs.StringSlice("alert-at", nil, "shares of the quota at which alerts fire, like 80%,100%; off is no alerts, and none takes the app's")
	fs.StringArray("metadata", nil, "a text by name, as name=text; may come again; none clears all")
	fs.StringArray("unset-metadata", nil, "name of a text to take away; may come again")
}

func (r *run) sharedPatch() (patch, error) {
	p := patch{}
	if err := r.limitPatch(p, ""); err != nil {
		return nil, err
	}
	if list, set := r.list("alert-at"); set {
		var all []float64
		if len(list) == 1 && list[0] == "off" {
			all, list = []float64{}, nil
		}
		for _, s := range list {
			percent, err := parsePercent(s)
			if err != nil {
				return nil, misused("--alert-at: %w", err)
			}
			all = append(all, percent)
		}
		p["alert_at"] = all
	}
	return p, r.metadataPatch(p)
}

func (r *run) metadataPatch(p patch) error {
	texts, _ := r.flags.GetStringArray("metadata")
	unset, _ := r.flags.GetStringArray("unset-metadata")
	if len(texts)+len(unset) == 0 {
		return nil
	}
	if len(texts) == 1 && texts[0] == "none" && len(unset) == 0 {
		p["metadata"] = nil
		return nil
	}
	m := patch{}
	for _, s := range texts {
		name, text, ok := strings.Cut(s, "=")
		if !ok || name == "" {
			return misused("--metadata: %q is not name=text", s)
		}
		m[name] = text
	}
	for _, name := range unset {
		if _, both := m[name]; both {
			return misused("metadata %q is both set and taken away", name)
		}
		m[name] = nil
	}
	p["metadata"] = m
	return nil
}

// list returns the values of a flag that is a list, and whether it was given.
// "none" is the empty list.
func (r *run) list(flag string) ([]string, bool) {
	l, _ := r.flags.GetStringSlice(flag)
	if len(l) == 1 && (l[0] == "none" || l[0] == "") {
		l = nil
	}
	return l, r.flags.Changed(flag)
}

// groupPatch puts the group that s names into p; none is none.
func groupPatch(p patch, field, s string) {
	p[field] = nil
	if s != "none" && s != "" {
		p[field] = client.Ref(quota.KindGroup, s)
	}
}

func keyFlags(fs *pflag.FlagSet) {
	fs.StringP("group", "g", "", "the group it is in; none takes it out")
	fs.Bool("disabled", false, "its calls are refused")
	fs.String("expires", "", "when it stops working: a date, a time in RFC 3339, or a duration like 30d; none is never")
	fs.StringSlice("models", nil, "patterns of the models it may call, like gpt-4o*,claude-*; none allows all")
	fs.StringSlice("allowed-ips", nil, "addresses or ranges from which it may be used; none allows all")
	sharedFlags(fs)
}

// keyPatch returns the settings of a key that were given.
func (r *run) keyPatch() (patch, error) {
	p, err := r.sharedPatch()
	if err != nil {
		return nil, err
	}
	if r.flags.Changed("group") {
		groupPatch(p, "group", r.text("group"))
	}
	if r.flags.Changed("disabled") {
		p["disabled"] = r.flag("disabled")
	}
	if s := r.text("expires"); r.flags.Changed("expires") {
		p["expires_at"] = nil
		if s != "none" {
			if p["expires_at"], err = parseExpiry(s, r.now()); err != nil {
				return nil, misused("--expires: %w", err)
			}
		}
	}
	if list, set := r.list("models"); set {
		p["models"] = list
	}
	if list, set := r.list("allowed-ips"); set {
		for _, s := range list {
			if _, err := quota.ParseRange(s); err != nil {
				return nil, misused("--allowed-ips: %q is not an address or a range like 10.0.0.0/8", s)
			}
		}
		p["allowed_ips"] = list
	}
	return p, nil
}

func groupFlags(fs *pflag.FlagSet) {
	fs.String("parent", "", "the group above it; none takes it out")
	sharedFlags(fs)
	limitFlags(fs, "member-", " of each key in it that sets none")
}

// groupSettings returns the settings of a group that were given.
func (r *run) groupSettings() (patch, error) {
	p, err := r.sharedPatch()
	if err != nil {
		return nil, err
	}
	if r.flags.Changed("parent") {
		groupPatch(p, "parent", r.text("parent"))
	}
	member := patch{}
	if err := r.limitPatch(member, "member-"); err != nil {
		return nil, err
	}
	if len(member) > 0 {
		p["member"] = member
	}
	return p, nil
}
