package llmquota

import (
	"encoding/json"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/dustin/go-humanize"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// parseApp reads the global option:
//
//	llm_quota {
//		store badger [<dir>] {
//			sync_interval     <duration>
//			snapshot_interval <duration>
//			snapshots         <number>
//		}
//		time_zone <IANA zone>
//		retention {
//			minute <duration>
//			hour   <duration>
//			day    <duration>
//		}
//		on_store_error {
//			rate_limits allow|deny|local
//			quotas      allow|deny|local
//		}
//		alert_at <percent>...
//		alert_on quota|tokens_per_day|requests_per_day...
//		forecast on|off
//		webhook <url> {
//			secret <secret>
//			format json|slack
//		}
//		group <name> {
//			parent <group>
//			member {
//				<limits>
//			}
//			alert_at <percent>...
//			metadata <name> <value>
//			<limits>
//		}
//		key <name> {
//			secret        <secret>
//			secret_sha256 <hex>
//			group         <group>
//			models        <pattern>...
//			allowed_ips   <range>...
//			expires       <date or time>
//			alert_at      <percent>...
//			metadata      <name> <value>
//			<limits>
//		}
//	}
//
// where <limits> are:
//
//	quota <tokens> daily|weekly|monthly|manual {
//		time_zone  <IANA zone>
//		at         <HH:MM>
//		week_start <weekday>
//		month_day  <1..31>|last
//	}
//	quota unlimited
//	requests_per_minute | tokens_per_minute | requests_per_day |
//	tokens_per_day | concurrent_requests  <number>|unlimited
//
// Numbers take the suffixes k, M and G, powers of 1000.
func parseApp(d *caddyfile.Dispenser, existing any) (any, error) {
	d.Next()
	if existing != nil {
		return nil, d.Err("the option llm_quota is there twice")
	}
	if d.NextArg() {
		return nil, d.ArgErr()
	}
	app := new(App)
	err := eachOption(d, []string{"group", "key", "webhook"}, func(option string) error {
		switch option {
		case "store":
			return parseStore(d, &app.StoreRaw)
		case "time_zone":
			return oneArg(d, &app.TimeZone)
		case "retention":
			return parseRetention(d, &app.Retention)
		case "on_store_error":
			return parseOnStoreError(d, &app.OnStoreError)
		case "alert_at":
			return parsePercentages(d, &app.AlertAt)
		case "alert_on":
			return parseAlertOn(d, &app.AlertOn)
		case "forecast":
			app.Forecast = new(bool)
			return parseSwitch(d, app.Forecast)
		case "webhook":
			return parseWebhook(d, app)
		case "group":
			return parseGroup(d, app)
		case "key":
			return parseKey(d, app)
		}
		return unknown(d)
	})
	if err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: "llm_quota", Value: caddyconfig.JSON(app, nil)}, nil
}

func parseStore(d *caddyfile.Dispenser, raw *json.RawMessage) error {
	if !d.NextArg() {
		return d.ArgErr()
	}
	engine := d.Val()
	unm, err := caddyfile.UnmarshalModule(d, "llm_quota.stores."+engine)
	if err != nil {
		return err
	}
	*raw = caddyconfig.JSONModuleObject(unm, "engine", engine, nil)
	return nil
}

// UnmarshalCaddyfile reads
//
//	badger [<dir>] {
//		sync_interval     <duration>
//		snapshot_interval <duration>
//		snapshots         <number>
//	}
func (b *BadgerStore) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() {
		b.Dir = d.Val()
	}
	if d.NextArg() {
		return d.ArgErr()
	}
	return eachOption(d, nil, func(option string) error {
		switch option {
		case "sync_interval":
			b.SyncInterval = new(caddy.Duration)
			return parseDuration(d, b.SyncInterval)
		case "snapshot_interval":
			b.SnapshotInterval = new(caddy.Duration)
			return parseDuration(d, b.SnapshotInterval)
		case "snapshots":
			var n int64
			if err := parseNumber(d, &n); err != nil {
				return err
			}
			if n > maxSnapshots {
				return d.Errf("snapshots %d is more than %d", n, maxSnapshots)
			}
			b.Snapshots = new(int(n))
			return nil
		}
		return unknown(d)
	})
}

// maxSnapshots is how many snapshots may be kept.
const maxSnapshots = 1000

func parseRetention(d *caddyfile.Dispenser, r *Retention) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	return eachOption(d, nil, func(option string) error {
		steps := map[string]*caddy.Duration{"minute": &r.Minute, "hour": &r.Hour, "day": &r.Day}
		if steps[option] == nil {
			return unknown(d)
		}
		if err := parseDuration(d, steps[option]); err != nil || *steps[option] > 0 {
			return err
		}
		return d.Errf("retention %s is not above 0", option)
	})
}

func parseOnStoreError(d *caddyfile.Dispenser, o *ledger.OnStoreError) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	return eachOption(d, nil, func(option string) error {
		to := map[string]*ledger.StoreErrorPolicy{"rate_limits": &o.RateLimits, "quotas": &o.Quotas}[option]
		if to == nil {
			return unknown(d)
		}
		if err := oneArg(d, (*string)(to)); err != nil {
			return err
		}
		switch *to {
		case ledger.AllowOnError, ledger.DenyOnError, ledger.LocalOnError:
			return nil
		}
		return d.Errf("%q is not allow, deny or local", *to)
	})
}

func parseAlertOn(d *caddyfile.Dispenser, to *[]quota.LimitName) error {
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.ArgErr()
	}
	for _, s := range args {
		switch name := quota.LimitName(s); name {
		case quota.TokenQuota, quota.TokensPerDay, quota.RequestsPerDay:
			*to = append(*to, name)
		default:
			return d.Errf("%q is not quota, tokens_per_day or requests_per_day", s)
		}
	}
	return nil
}

func parseWebhook(d *caddyfile.Dispenser, app *App) error {
	var w admin.Webhook
	if err := oneArg(d, &w.URL); err != nil {
		return err
	}
	err := eachOption(d, nil, func(option string) error {
		switch option {
		case "secret":
			return oneArg(d, &w.Secret)
		case "format":
			if err := oneArg(d, &w.Format); err != nil {
				return err
			}
			if w.Format != admin.FormatJSON && w.Format != admin.FormatSlack {
				return d.Errf("format %q is not json or slack", w.Format)
			}
			return nil
		}
		return unknown(d)
	})
	app.Webhooks = append(app.Webhooks, w)
	return err
}

func parseGroup(d *caddyfile.Dispenser, app *App) error {
	var g ledger.ConfigGroup
	if err := oneArg(d, &g.Name); err != nil {
		return err
	}
	for _, other := range app.Groups {
		if other.Name == g.Name {
			return d.Errf("group %q is there twice", g.Name)
		}
	}
	err := eachOption(d, []string{"metadata"}, func(option string) error {
		switch option {
		case "parent":
			return oneArg(d, &g.Parent)
		case "member":
			if d.NextArg() {
				return d.ArgErr()
			}
			return eachOption(d, nil, func(option string) error {
				return parseLimit(d, option, &g.Member.Quota, &g.Member.Limits)
			})
		case "alert_at":
			return parsePercentages(d, &g.AlertAt)
		case "metadata":
			return parseMetadata(d, &g.Metadata)
		}
		return parseLimit(d, option, &g.Quota, &g.Limits)
	})
	app.Groups = append(app.Groups, g)
	return err
}

func parseKey(d *caddyfile.Dispenser, app *App) error {
	var k ledger.ConfigKey
	if err := oneArg(d, &k.Name); err != nil {
		return err
	}
	for _, other := range app.Keys {
		if other.Name == k.Name {
			return d.Errf("key %q is there twice", k.Name)
		}
	}
	err := eachOption(d, []string{"metadata"}, func(option string) error {
		switch option {
		case "secret":
			return oneArg(d, &k.Secret)
		case "secret_sha256":
			return oneArg(d, &k.SecretSHA256)
		case "group":
			return oneArg(d, &k.Group)
		case "models":
			if k.Models = d.RemainingArgs(); len(k.Models) == 0 {
				return d.ArgErr()
			}
			return nil
		case "allowed_ips":
			return parseRanges(d, &k.AllowedIPs)
		case "expires":
			return oneArg(d, &k.Expires)
		case "alert_at":
			return parsePercentages(d, &k.AlertAt)
		case "metadata":
			return parseMetadata(d, &k.Metadata)
		}
		return parseLimit(d, option, &k.Quota, &k.Limits)
	})
	app.Keys = append(app.Keys, k)
	return err
}

// parseLimit reads the quota or one of the other limits.
func parseLimit(d *caddyfile.Dispenser, option string, q **quota.Quota, limits *quota.Limits) error {
	if option == string(quota.TokenQuota) {
		*q = new(quota.Quota)
		return parseQuota(d, *q)
	}
	bound := limits.Bound(quota.LimitName(option))
	if bound == nil {
		return unknown(d)
	}
	var value string
	if err := oneArg(d, &value); err != nil {
		return err
	}
	return parseBound(d, value, bound)
}

func parseQuota(d *caddyfile.Dispenser, q *quota.Quota) error {
	args := d.RemainingArgs()
	if len(args) < 1 || len(args) > 2 {
		return d.ArgErr()
	}
	if err := parseBound(d, args[0], &q.Tokens); err != nil {
		return err
	}
	if len(args) == 2 {
		q.Reset = quota.Reset(args[1])
	}
	err := eachOption(d, nil, func(option string) error {
		switch option {
		case "time_zone":
			return oneArg(d, &q.TimeZone)
		case "at":
			return oneArg(d, &q.At)
		case "week_start":
			return oneArg(d, &q.WeekStart)
		case "month_day":
			var day string
			if err := oneArg(d, &day); err != nil {
				return err
			}
			var err error
			if q.MonthDay, err = quota.ParseMonthDay(day); err != nil {
				return d.WrapErr(err)
			}
			return nil
		}
		return unknown(d)
	})
	if err != nil {
		return err
	}
	if _, err := q.Schedule(""); err != nil {
		return d.WrapErr(err)
	}
	return nil
}

// parseHandler reads the directive:
//
//	llm_quota {
//		admission              estimate|strict|observe
//		credential             header <name>
//		identity               <placeholder>
//		anonymous              <key name>
//		default_output_reserve <tokens>
//		default_output_cap     <tokens>
//		unmetered              deny|allow
//		max_request_body       <size>
//		inject_usage           on|off
//		ietf_headers
//		forward_credential
//		self_service           <path>|off
//		otel_genai
//	}
func parseHandler(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	handler := new(Handler)
	return handler, handler.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile reads the directive; see parseHandler for its form.
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if d.NextArg() {
		return d.ArgErr()
	}
	return eachOption(d, nil, func(option string) error {
		switch option {
		case "admission":
			return oneArg(d, &h.Admission)
		case "credential":
			if !d.NextArg() || d.Val() != "header" {
				return d.Err("credential takes: header <name>")
			}
			return oneArg(d, &h.CredentialHeader)
		case "identity":
			return oneArg(d, &h.Identity)
		case "anonymous":
			return oneArg(d, &h.Anonymous)
		case "default_output_reserve":
			h.DefaultOutputReserve = new(int64)
			return parseNumber(d, h.DefaultOutputReserve)
		case "default_output_cap":
			h.DefaultOutputCap = new(int64)
			return parseNumber(d, h.DefaultOutputCap)
		case "unmetered":
			return oneArg(d, &h.Unmetered)
		case "max_request_body":
			return parseSize(d, &h.MaxRequestBody)
		case "inject_usage":
			h.InjectUsage = new(bool)
			return parseSwitch(d, h.InjectUsage)
		case "ietf_headers":
			return parseFlag(d, &h.IETFHeaders)
		case "forward_credential":
			return parseFlag(d, &h.ForwardCredential)
		case "self_service":
			return oneArg(d, &h.SelfService)
		case "otel_genai":
			return parseFlag(d, &h.OTelGenAI)
		}
		return unknown(d)
	})
}

// eachOption calls parse for each option of the block that follows, if one
// does. An option that comes twice is an error, unless it is among repeatable.
func eachOption(d *caddyfile.Dispenser, repeatable []string, parse func(option string) error) error {
	seen := make(map[string]bool)
	for _, r := range repeatable {
		seen[r] = false
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		option := d.Val()
		if seen[option] {
			return d.Errf("the option %s is there twice", option)
		}
		if _, ok := seen[option]; !ok {
			seen[option] = true
		}
		if err := parse(option); err != nil {
			return err
		}
	}
	return nil
}

func unknown(d *caddyfile.Dispenser) error { return d.Errf("unknown option %q", d.Val()) }

// oneArg reads the one argument that the option takes.
func oneArg(d *caddyfile.Dispenser, to *string) error {
	args := d.RemainingArgs()
	if len(args) != 1 {
		return d.ArgErr()
	}
	*to = args[0]
	return nil
}

func parseDuration(d *caddyfile.Dispenser, to *caddy.Duration) error {
	var s string
	if err := oneArg(d, &s); err != nil {
		return err
	}
	v, err := caddy.ParseDuration(s)
	if err != nil || v < 0 {
		return d.Errf("%q is not a duration", s)
	}
	*to = caddy.Duration(v)
	return nil
}

// parseFlag reads an option that takes no argument.
func parseFlag(d *caddyfile.Dispenser, to *bool) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	*to = true
	return nil
}

func parseSwitch(d *caddyfile.Dispenser, to *bool) error {
	var s string
	if err := oneArg(d, &s); err != nil {
		return err
	}
	if s != "on" && s != "off" {
		return d.Errf("%q is not on or off", s)
	}
	*to = s == "on"
	return nil
}

func parseSize(d *caddyfile.Dispenser, to *int64) error {
	var s string
	if err := oneArg(d, &s); err != nil {
		return err
	}
	n, err := humanize.ParseBytes(s)
	if err != nil || n == 0 || n > math.MaxInt64 {
		return d.Errf("%q is not a size such as 32MiB", s)
	}
	*to = int64(n)
	return nil
}

func parseNumber(d *caddyfile.Dispenser, to *int64) error {
	var s string
	if err := oneArg(d, &s); err != nil {
		return err
	}
	n, ok := number(s)
	if !ok {
		return d.Errf("%q is not a number from 0 to 2^53", s)
	}
	*to = n
	return nil
}

func parseBound(d *caddyfile.Dispenser, s string, to *quota.Bound) error {
	if s == "unlimited" {
		*to = quota.Unlimited
		return nil
	}
	n, ok := number(s)
	if !ok {
		return d.Errf("%q is neither a number from 0 to 2^53 nor unlimited", s)
	}
	*to = quota.At(n)
	return nil
}

// number reads a whole number with an optional suffix k, M or G.
func number(s string) (int64, bool) {
	unit := 1.0
	if n := len(s) - 1; n > 0 {
		if i := strings.IndexByte("kMG", s[n]); i >= 0 {
			unit, s = math.Pow(1000, float64(i+1)), s[:n]
		}
	}
	if strings.Trim(s, "0123456789.") != "" {
		return 0, false
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil && unit == 1 {
		return n, n <= quota.MaxAmount
	}
	f, err := strconv.ParseFloat(s, 64)
	f = math.Round(f*unit*1000) / 1000 // 1.1k is 1100, whatever binary makes of it
	return int64(f), err == nil && f == math.Trunc(f) && f <= quota.MaxAmount
}

func parsePercentages(d *caddyfile.Dispenser, to *[]float64) error {
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.ArgErr()
	}
	for _, s := range args {
		p, err := strconv.ParseFloat(strings.TrimSuffix(s, "%"), 64)
		if err != nil || !strings.HasSuffix(s, "%") || math.IsNaN(p) || math.IsInf(p, 0) {
			return d.Errf("%q is not a percentage such as 80%%", s)
		}
		*to = append(*to, p)
	}
	return nil
}

func parseMetadata(d *caddyfile.Dispenser, to *map[string]string) error {
	args := d.RemainingArgs()
	if len(args) != 2 {
		return d.ArgErr()
	}
	if *to == nil {
		*to = make(map[string]string)
	}
	if _, ok := (*to)[args[0]]; ok {
		return d.Errf("metadata %q is there twice", args[0])
	}
	(*to)[args[0]] = args[1]
	return nil
}

func parseRanges(d *caddyfile.Dispenser, to *[]netip.Prefix) error {
	args := d.RemainingArgs()
	if len(args) == 0 {
		return d.ArgErr()
	}
	for _, s := range args {
		p, err := quota.ParseRange(s)
		if err != nil {
			return d.WrapErr(err)
		}
		*to = append(*to, p)
	}
	return nil
}

// Interface guards.
var (
	_ caddyfile.Unmarshaler = (*BadgerStore)(nil)
	_ caddyfile.Unmarshaler = (*Handler)(nil)
)
