package admin

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// A setter puts a field of a request into t, as a JSON merge patch (RFC 7396)
// says: null clears, an object is merged, all else replaces.
type setter[T any] func(t *T, f field, l *ledger.Ledger) error

// keyFields are the fields of a key that a request may set. A new key is a
// patch of an empty one.
var keyFields = map[string]setter[ledger.NewKey]{
	"name":  func(k *ledger.NewKey, f field, _ *ledger.Ledger) error { return into(&k.Name, str, f) },
	"group": func(k *ledger.NewKey, f field, l *ledger.Ledger) error { return groupRef(&k.Group, f, l) },
	"disabled": func(k *ledger.NewKey, f field, _ *ledger.Ledger) error {
		return into(&k.Disabled, boolean, f)
	},
	"expires_at":  expiry,
	"models":      func(k *ledger.NewKey, f field, _ *ledger.Ledger) error { return into(&k.Models, stringList, f) },
	"allowed_ips": func(k *ledger.NewKey, f field, _ *ledger.Ledger) error { return into(&k.AllowedIPs, ranges, f) },
	"alert_at":    func(k *ledger.NewKey, f field, _ *ledger.Ledger) error { return into(&k.AlertAt, percentages, f) },
	"metadata":    func(k *ledger.NewKey, f field, _ *ledger.Ledger) error { return mergeText(&k.Metadata, f) },
	"quota":       func(k *ledger.NewKey, f field, _ *ledger.Ledger) error { return mergeQuota(&k.Quota, f) },
	"limits":      func(k *ledger.NewKey, f field, _ *ledger.Ledger) error { return mergeLimits(&k.Limits, f) },
}

// newKeyFields are those of a key that is made.
var newKeyFields = with(keyFields, "secret", func(k *ledger.NewKey, f field, _ *ledger.Ledger) error {
	err := into(&k.Secret, str, f)
	if err == nil && k.Secret == "" && !isNull(f.value) {
		// A variable that was not set would otherwise make a key that nobody expects.
		_, err = quota.ImportedPrefix("")
	}
	return err
})

// groupFields are the fields of a group that a request may set.
var groupFields = map[string]setter[ledger.NewGroup]{
	"name":     func(g *ledger.NewGroup, f field, _ *ledger.Ledger) error { return into(&g.Name, str, f) },
	"parent":   func(g *ledger.NewGroup, f field, l *ledger.Ledger) error { return groupRef(&g.Parent, f, l) },
	"alert_at": func(g *ledger.NewGroup, f field, _ *ledger.Ledger) error { return into(&g.AlertAt, percentages, f) },
	"metadata": func(g *ledger.NewGroup, f field, _ *ledger.Ledger) error { return mergeText(&g.Metadata, f) },
	"quota":    func(g *ledger.NewGroup, f field, _ *ledger.Ledger) error { return mergeQuota(&g.Quota, f) },
	"limits":   func(g *ledger.NewGroup, f field, _ *ledger.Ledger) error { return mergeLimits(&g.Limits, f) },
	"member":   func(g *ledger.NewGroup, f field, _ *ledger.Ledger) error { return mergeMember(&g.Member, f) },
}

// shownFields are the fields of a key or a group that no request may set.
var shownFields = []string{
	"id", "prefix", "source", "effective", "created_at", "updated_at", "last_used_at", "state", "deleted_at",
	"keys", "secret",
}

func with[T any](m map[string]setter[T], name string, s setter[T]) map[string]setter[T] {
	n := map[string]setter[T]{name: s}
	for k, v := range m {
		n[k] = v
	}
	return n
}

// set puts the fields of a request into t.
func set[T any](t *T, fields []field, known map[string]setter[T], l *ledger.Ledger) error {
	if err := check(fields, known); err != nil {
		return err
	}
	// The time zone in which a date is meant may come after it.
	slices.SortStableFunc(fields, func(a, b field) int { return after(a) - after(b) })
	for _, f := range fields {
		if err := known[f.name](t, f, l); err != nil {
			return err
		}
	}
	return nil
}

func after(f field) int {
	if f.name == "expires_at" {
		return 1
	}
	return 0
}

// check returns an error that names a field which is not among the known.
func check[T any](fields []field, known map[string]setter[T]) error {
	for _, f := range fields {
		if known[f.name] != nil {
			continue
		}
		if slices.Contains(shownFields, f.name) {
			return invalid(f.path, "cannot be set")
		}
		return invalid(shown(f.path), "is not a field that is known here")
	}
	return nil
}

func into[V any](dst *V, read func(field) (V, error), f field) error {
	v, err := read(f)
	if err == nil {
		*dst = v
	}
	return err
}

func groupRef(dst *quota.ID, f field, l *ledger.Ledger) error {
	*dst = 0
	if isNull(f.value) {
		return nil
	}
	s, err := str(f)
	if err != nil {
		return err
	}
	*dst, err = reference(l, quota.KindGroup, f.path, s)
	return err
}

func expiry(k *ledger.NewKey, f field, l *ledger.Ledger) error {
	k.ExpiresAt = nil
	if isNull(f.value) {
		return nil
	}
	s, err := str(f)
	if err != nil {
		return err
	}
	zone, err := keyZone(k, l)
	if err != nil {
		return err
	}
	t, err := quota.ParseExpiry(s, zone)
	if err != nil || t.Year() < 1 || t.Year() > 9999 { // in UTC it may be a year that JSON cannot write
		return invalid(f.path, "is neither a time in RFC 3339 nor a date")
	}
	t = t.Truncate(time.Microsecond)
	k.ExpiresAt = &t
	return nil
}

// keyZone returns the time zone in which dates of a key are meant.
func keyZone(k *ledger.NewKey, l *ledger.Ledger) (string, error) {
	if k.Quota == nil && k.Group != 0 {
		g, err := l.Group(k.Group)
		if err != nil && !errors.Is(err, quota.ErrNotFound) {
			return "", err
		}
		if err == nil && g.Member.Quota != nil && g.Member.Quota.TimeZone != "" {
			return g.Member.Quota.TimeZone, nil
		}
	}
	if k.Quota != nil && k.Quota.TimeZone != "" {
		return k.Quota.TimeZone, nil
	}
	return l.Zone(), nil
}

func ranges(f field) ([]netip.Prefix, error) {
	items, err := stringList(f)
	if err != nil {
		return nil, err
	}
	var all []netip.Prefix
	for _, s := range items {
		p, err := quota.ParseRange(s)
		if err != nil {
			return nil, invalid(f.path+": "+shown(s), "is not an address or a range in CIDR notation")
		}
		all = append(all, p)
	}
	return all, nil
}

func percentages(f field) (all []float64, err error) {
	var items []*float64
	if json.Unmarshal(f.value, &items) != nil {
		return nil, invalid(f.path, "is not an array of percentages")
	}
	if items != nil { // an empty one says something else than null
		all = []float64{}
	}
	for _, p := range items {
		if p == nil {
			return nil, invalid(f.path, "is not an array of percentages")
		}
		all = append(all, *p)
	}
	return all, nil
}

func mergeText(dst *map[string]string, f field) error {
	if isNull(f.value) {
		*dst = nil
		return nil
	}
	fields, err := object(f.path, f.value)
	if err != nil {
		return err
	}
	next := make(map[string]string, len(*dst)+len(fields))
	for k, v := range *dst {
		next[k] = v
	}
	for _, f := range fields {
		if isNull(f.value) {
			delete(next, f.name)
			continue
		}
		f.path = shown(f.path)
		if next[f.name], err = str(f); err != nil {
			return err
		}
	}
	*dst = next
	return nil
}

func mergeQuota(dst **quota.Quota, f field) error {
	if isNull(f.value) {
		*dst = nil
		return nil
	}
	fields, err := object(f.path, f.value)
	if err != nil {
		return err
	}
	var q quota.Quota
	if *dst != nil {
		q = **dst
	}
	for _, f := range fields {
		if err := setQuota(&q, f); err != nil {
			return err
		}
	}
	*dst = &q
	return nil
}

func setQuota(q *quota.Quota, f field) error {
	switch f.name {
	case "tokens":
		return decode(&q.Tokens, f)
	case "reset":
		s, err := str(f)
		q.Reset = quota.Reset(s)
		return err
	case "time_zone":
		return into(&q.TimeZone, str, f)
	case "at":
		return into(&q.At, str, f)
	case "week_start":
		return into(&q.WeekStart, str, f)
	case "month_day":
		return decode(&q.MonthDay, f)
	}
	return invalid(shown(f.path), "is not a field that is known here")
}

func mergeLimits(dst *quota.Limits, f field) error {
	if isNull(f.value) {
		*dst = quota.Limits{}
		return nil
	}
	fields, err := object(f.path, f.value)
	if err != nil {
		return err
	}
	for _, f := range fields {
		b := dst.Bound(quota.LimitName(f.name))
		if b == nil {
			return invalid(shown(f.path), "is not a limit that is known here")
		}
		if err := decode(b, f); err != nil {
			return err
		}
	}
	return nil
}

func mergeMember(dst *quota.Member, f field) error {
	if isNull(f.value) {
		*dst = quota.Member{}
		return nil
	}
	fields, err := object(f.path, f.value)
	if err != nil {
		return err
	}
	for _, f := range fields {
		switch f.name {
		case "quota":
			err = mergeQuota(&dst.Quota, f)
		case "limits":
			err = mergeLimits(&dst.Limits, f)
		default:
			err = invalid(shown(f.path), "is not a field that is known here")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// decode reads a value whose own reader says what is wrong with it.
func decode(v json.Unmarshaler, f field) error {
	if err := v.UnmarshalJSON(f.value); err != nil {
		return prefixed(f.path, err)
	}
	return nil
}
