package quota

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Source says where an account is managed.
type Source string

// The sources of accounts.
const (
	SourceConfig Source = "config" // Caddy's configuration: it sets all but resets, grants and Disabled
	SourceAPI    Source = "api"
)

// MaxDepth is how many groups may stand above one another. A call is charged
// to its key and to each of them.
const MaxDepth = 8

// KeyRules is what is set on a key besides its name, its group and its secret.
type KeyRules struct {
	// When the key stops working. Default: never.
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
	// The models that the key may call: case-sensitive patterns over the whole
	// name, in which * stands for any characters, "/" among them. Default: all.
	Models []string `json:"models,omitempty"`
	// The addresses from which the key may be used, as CIDR ranges. Default: all.
	AllowedIPs []netip.Prefix `json:"allowed_ips,omitempty"`
	// The shares of the quota, in percent, at which alerts fire; an empty list:
	// none. Default: the app's.
	AlertAt []float64 `json:"alert_at,omitzero"`
	// Free text by name, shown again in listings and placeholders.
	Metadata map[string]string `json:"metadata,omitempty"`
	// The token quota. Default: the group's member value, else none.
	Quota *Quota `json:"quota,omitempty"`
	// The other limits.
	Limits Limits `json:"limits,omitzero"`
}

// maxList is how many models and address ranges a key may name: every call of
// the key goes through them.
const maxList = 1000

// Validate returns an error that names the field that is wrong.
func (r *KeyRules) Validate(zone string) error {
	for name, n := range map[string]int{"models": len(r.Models), "allowed_ips": len(r.AllowedIPs)} {
		if n > maxList {
			return fmt.Errorf("%s has more than %d entries: %w", name, maxList, ErrInvalid)
		}
	}
	for _, p := range r.Models {
		if p == "" || len(p) > 256 || !Printable(p) {
			return fmt.Errorf("models: pattern %s is not 1 to 256 printable characters: %w", clip([]byte(p)), ErrInvalid)
		}
	}
	for _, p := range r.AllowedIPs {
		if !p.IsValid() {
			return fmt.Errorf("allowed_ips: not an address range: %w", ErrInvalid)
		}
	}
	return validateShared(r.Quota, r.AlertAt, r.Metadata, zone)
}

func validateShared(q *Quota, alertAt []float64, metadata map[string]string, zone string) error {
	if q != nil {
		if !q.Tokens.IsSet() {
			return fmt.Errorf("quota.tokens is missing: %w", ErrInvalid)
		}
		if _, err := q.Schedule(zone); err != nil {
			return fmt.Errorf("quota: %w", err)
		}
	}
	if err := ValidAlertAt(alertAt); err != nil {
		return err
	}
	if len(metadata) > 64 {
		return fmt.Errorf("metadata has more than 64 entries: %w", ErrInvalid)
	}
	for k, v := range metadata {
		if k == "" || len(k) > 128 || !Printable(k) || len(v) > 1024 || !Printable(v) {
			return fmt.Errorf("metadata %s: names take 1 to 128 bytes, values up to 1024, all of them printable: %w", clip([]byte(k)), ErrInvalid)
		}
	}
	return nil
}

// ValidAlertAt returns an error unless the percentages may be thresholds of
// alerts.
func ValidAlertAt(percent []float64) error {
	for _, p := range percent {
		if !(p > 0 && p <= 1000) { // true of NaN too
			return fmt.Errorf("alert_at: %v is not a percentage above 0 and up to 1000: %w", p, ErrInvalid)
		}
	}
	if len(percent) > 20 {
		return fmt.Errorf("alert_at has more than 20 percentages: %w", ErrInvalid)
	}
	return nil
}

// Secret is one secret of a key, as it is stored: never itself, only its
// keyed hash.
type Secret struct {
	Hash SecretHash `json:"hash"`
	// Until is when it stops working; zero: never.
	Until time.Time `json:"until,omitzero"`
}

// Key is an API key: whoever presents its secret is charged to it.
type Key struct {
	ID   ID     `json:"id"`
	Name string `json:"name"`
	// Group is the key's own group; zero: none.
	Group ID `json:"group"`
	// Prefix is the beginning of the secret, which may be shown.
	Prefix   string `json:"prefix"`
	Source   Source `json:"source"`
	Disabled bool   `json:"disabled"`
	// Removed says that the configuration which made the key no longer holds it.
	Removed bool `json:"removed,omitempty"`
	KeyRules
	// Secrets are the secrets that work, the newest first; of a deleted key
	// those that worked last, so that they never work again.
	Secrets   []Secret  `json:"secrets"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
	DeletedAt time.Time `json:"deleted_at,omitzero"`
}

// Living tells whether the key has not been deleted.
func (k *Key) Living() bool { return k.DeletedAt.IsZero() }

// Member is what the keys of a group inherit where they set nothing.
type Member struct {
	Quota  *Quota `json:"quota,omitempty"`
	Limits Limits `json:"limits,omitzero"`
}

// GroupRules is what is set on a group besides its name and parent.
type GroupRules struct {
	// The token quota that the whole group shares. Default: none.
	Quota *Quota `json:"quota,omitempty"`
	// The other limits that the whole group shares.
	Limits Limits `json:"limits,omitzero"`
	// The defaults of every key in the group that sets none itself.
	Member Member `json:"member,omitzero"`
	// The shares of the quota, in percent, at which alerts fire; an empty list:
	// none. Default: the app's.
	AlertAt []float64 `json:"alert_at,omitzero"`
	// Free text by name.
	Metadata map[string]string `json:"metadata,omitempty"`
}

// Validate returns an error that names the field that is wrong.
func (r *GroupRules) Validate(zone string) error {
	if err := validateShared(r.Quota, r.AlertAt, r.Metadata, zone); err != nil {
		return err
	}
	if err := validateShared(r.Member.Quota, nil, nil, zone); err != nil {
		return fmt.Errorf("member: %w", err)
	}
	return nil
}

// Group is a set of keys under one shared budget. Its use counts against its
// parent too.
type Group struct {
	ID     ID     `json:"id"`
	Name   string `json:"name"`
	Parent ID     `json:"parent"` // zero: none
	Source Source `json:"source"`
	// Removed says that the configuration which made the group no longer holds it.
	Removed bool `json:"removed,omitempty"`
	GroupRules
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
	DeletedAt time.Time `json:"deleted_at,omitzero"`
}

// Living tells whether the group has not been deleted.
func (g *Group) Living() bool { return g.DeletedAt.IsZero() }

// ValidName returns an error unless s may name a key or a group: 1 to 128
// printable characters without "/".
func ValidName(s string) error {
	if n := utf8.RuneCountInString(s); n < 1 || n > 128 || !Printable(s) || strings.Contains(s, "/") {
		return fmt.Errorf("name %s is not 1 to 128 printable characters without /: %w", clip([]byte(s)), ErrInvalid)
	}
	return nil
}

// Printable tells whether s is UTF-8 without control characters, line
// separators or invisible formatting.
func Printable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// ParseExpiry reads a time in RFC 3339, or a date, which is its day's first
// instant in the given time zone.
func ParseExpiry(s, zone string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil && t.UTC().Year() < 10000 { // JSON has no later ones
		return t.UTC(), nil
	}
	d, err := time.Parse(time.DateOnly, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%s is neither a date like 2027-01-31 nor a time in RFC 3339: %w", clip([]byte(s)), ErrInvalid)
	}
	loc, err := LoadZone(zone)
	if err != nil {
		return time.Time{}, err
	}
	return time.Unix(firstInstant(d.Unix(), loc), 0).UTC(), nil
}

// ParseRange reads an address range in CIDR notation, or a single address.
func ParseRange(s string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 { // callers' addresses are unmapped too
			p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
		}
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%s is not an address or a CIDR range: %w", clip([]byte(s)), ErrInvalid)
	}
	a = a.Unmap()
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// MatchModel tells whether model fits pattern, in which * stands for any
// characters.
func MatchModel(pattern, model string) bool {
	part, pattern, star := strings.Cut(pattern, "*")
	if !star {
		return part == model
	}
	rest, ok := strings.CutPrefix(model, part)
	for ok {
		if part, pattern, star = strings.Cut(pattern, "*"); !star {
			return strings.HasSuffix(rest, part)
		}
		_, rest, ok = strings.Cut(rest, part)
	}
	return false
}
