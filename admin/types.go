package admin

import (
	"net/netip"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// Ref is an ID that is null in JSON when it names nothing.
type Ref quota.ID

// MarshalJSON writes null or the ID.
func (r Ref) MarshalJSON() ([]byte, error) {
	if r == 0 {
		return []byte("null"), nil
	}
	return []byte(`"` + quota.ID(r).String() + `"`), nil
}

// UnmarshalJSON reads null or an ID.
func (r *Ref) UnmarshalJSON(b []byte) error {
	*r = 0
	if string(b) == "null" {
		return nil
	}
	if len(b) < 2 || b[0] != '"' {
		return quota.ErrInvalid
	}
	return (*quota.ID)(r).UnmarshalText(b[1 : len(b)-1])
}

// String returns the ID, or "".
func (r Ref) String() string { return quota.ID(r).String() }

// Key is a key as the API shows it.
type Key struct {
	ID     quota.ID     `json:"id"`
	Name   string       `json:"name"`
	Group  Ref          `json:"group"`
	Prefix string       `json:"prefix"`
	Source quota.Source `json:"source"`
	// Disabled is true also for a key that the configuration no longer holds.
	Disabled   bool              `json:"disabled"`
	ExpiresAt  *time.Time        `json:"expires_at"`
	Models     []string          `json:"models"`
	AllowedIPs []netip.Prefix    `json:"allowed_ips"`
	AlertAt    []float64         `json:"alert_at"`          // null: the app's
	Metadata   map[string]string `json:"metadata,omitzero"` // absent in self-service
	Quota      *quota.Quota      `json:"quota"`
	Limits     quota.Limits      `json:"limits"`
	Effective  Effective         `json:"effective"`
	CreatedAt  time.Time         `json:"created_at"`
	UpdatedAt  time.Time         `json:"updated_at"`
	LastUsedAt *time.Time        `json:"last_used_at"`
	State      State             `json:"state"`
	DeletedAt  *time.Time        `json:"deleted_at,omitempty"`
	// Secret is there once, in the answer to POST keys and rotate.
	Secret string `json:"secret,omitempty"`
}

// Group is a group as the API shows it.
type Group struct {
	ID         quota.ID          `json:"id"`
	Name       string            `json:"name"`
	Parent     Ref               `json:"parent"`
	Quota      *quota.Quota      `json:"quota"`
	Limits     quota.Limits      `json:"limits"`
	Member     Effective         `json:"member"` // what members inherit
	AlertAt    []float64         `json:"alert_at"`
	Metadata   map[string]string `json:"metadata"`
	Source     quota.Source      `json:"source"`
	Effective  Effective         `json:"effective"`
	CreatedAt  time.Time         `json:"created_at"`
	UpdatedAt  time.Time         `json:"updated_at"`
	LastUsedAt *time.Time        `json:"last_used_at"`
	State      State             `json:"state"`
	Keys       int64             `json:"keys"` // living ones, directly in it
	DeletedAt  *time.Time        `json:"deleted_at,omitempty"`
}

// Effective is a quota, or null, and the other limits.
type Effective struct {
	Quota  *quota.Quota `json:"quota"`
	Limits quota.Limits `json:"limits"`
}

// State is where an account stands: an entry for each limit that holds.
type State struct {
	Quota  *QuotaState                    `json:"quota"` // null: no quota
	Limits map[quota.LimitName]LimitState `json:"limits"`
}

// QuotaState is where a quota stands.
type QuotaState struct {
	Used      int64      `json:"used"`
	Reserved  int64      `json:"reserved"`
	Granted   int64      `json:"granted"`
	Remaining int64      `json:"remaining"`
	ResetsAt  *time.Time `json:"resets_at"` // null: never by itself
}

// LimitState is where another limit stands.
type LimitState struct {
	Used      int64      `json:"used"`
	Remaining int64      `json:"remaining"`
	ResetsAt  *time.Time `json:"resets_at"` // null: never, or nothing is used
}

// Keys is a page of keys.
type Keys struct {
	Keys       []Key   `json:"keys"`
	NextCursor *string `json:"next_cursor"` // null: this is the last page
}

// Groups is a page of groups.
type Groups struct {
	Groups     []Group `json:"groups"`
	NextCursor *string `json:"next_cursor"`
}

// Usage is a report. Times are in its time zone.
type Usage struct {
	From     time.Time `json:"from"`
	To       time.Time `json:"to"`
	Step     string    `json:"step"`
	TimeZone string    `json:"time_zone"`
	// The time before which days of UTC stand for those of the time zone.
	RoughBefore *time.Time   `json:"rough_before,omitempty"`
	Totals      quota.Totals `json:"totals"`
	Breakdown   []UsageLine  `json:"breakdown"`
	Series      []UsageStep  `json:"series"`
}

// UsageLine is the usage of one value of what was asked by. Only that is there.
type UsageLine struct {
	Model  *string      `json:"model,omitempty"`
	Key    *Ref         `json:"key,omitempty"`
	Group  *Ref         `json:"group,omitempty"` // null: keys without a group
	Totals quota.Totals `json:"totals"`
}

// UsageStep is the usage of one step.
type UsageStep struct {
	Start  time.Time    `json:"start"`
	Totals quota.Totals `json:"totals"`
}

// Status is the state of the gate.
type Status struct {
	Version          string        `json:"version"`
	Store            StoreStatus   `json:"store"`
	OpenReservations int64         `json:"open_reservations"`
	Keys             int64         `json:"keys"`
	Groups           int64         `json:"groups"`
	Totals           *quota.Totals `json:"totals"` // of today, in the app's time zone; null: they cannot be read
	Alerts           AlertRules    `json:"alerts"`
}

// AlertRules are when alerts fire, and who is told of them.
type AlertRules struct {
	At       []float64         `json:"at"`       // shares in percent, where a key or group sets none
	On       []quota.LimitName `json:"on"`       // the limits that they are about
	Forecast bool              `json:"forecast"` // also when a limit is expected to be used up early
	Webhooks []WebhookRule     `json:"webhooks"`
}

// WebhookRule is a webhook that is told of alerts.
type WebhookRule struct {
	Target string `json:"target"` // its URL without user, password and query
	Format string `json:"format"`
	Signed bool   `json:"signed"`
}

// StoreStatus is the state of the store.
type StoreStatus struct {
	Engine    string     `json:"engine"`
	Healthy   bool       `json:"healthy"`
	SizeBytes int64      `json:"size_bytes"`
	LastSync  *time.Time `json:"last_sync"`
	Problem   string     `json:"problem,omitempty"` // what is wrong, while it is not healthy
	Since     *time.Time `json:"since,omitempty"`   // and since when
}

// KeyOf returns what is shown of a key.
func KeyOf(k *quota.Key, s *ledger.State) Key {
	return Key{
		ID: k.ID, Name: k.Name, Group: Ref(k.Group), Prefix: k.Prefix, Source: k.Source,
		Disabled: k.Disabled || k.Removed, ExpiresAt: k.ExpiresAt,
		Models: list(k.Models), AllowedIPs: list(k.AllowedIPs), AlertAt: k.AlertAt, Metadata: text(k.Metadata),
		Quota: k.Quota, Limits: k.Limits, Effective: Effective{s.Policy.Quota, s.Policy.Limits},
		CreatedAt: k.CreatedAt.UTC(), UpdatedAt: k.UpdatedAt.UTC(), DeletedAt: moment(k.DeletedAt),
		LastUsedAt: moment(s.LastUsed), State: stateOf(s),
	}
}

// GroupOf returns what is shown of a group with that many keys.
func GroupOf(g *quota.Group, s *ledger.State, keys int64) Group {
	return Group{
		ID: g.ID, Name: g.Name, Parent: Ref(g.Parent), Source: g.Source,
		Quota: g.Quota, Limits: g.Limits, Member: Effective(g.Member),
		AlertAt: g.AlertAt, Metadata: text(g.Metadata), Effective: Effective{s.Policy.Quota, s.Policy.Limits},
		CreatedAt: g.CreatedAt.UTC(), UpdatedAt: g.UpdatedAt.UTC(), DeletedAt: moment(g.DeletedAt),
		LastUsedAt: moment(s.LastUsed), State: stateOf(s), Keys: keys,
	}
}

func stateOf(s *ledger.State) State {
	shown := State{Limits: map[quota.LimitName]LimitState{}}
	for _, l := range s.Limits {
		if l.Limit == quota.TokenQuota {
			shown.Quota = &QuotaState{l.Used, l.Reserved, l.Granted, l.Remaining, moment(l.ResetsAt)}
			continue
		}
		shown.Limits[l.Limit] = LimitState{l.Used, l.Remaining, moment(l.ResetsAt)}
	}
	return shown
}

// moment returns a time as it is shown; nil if there is none.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// list returns l, never nil: an empty list is [].
func list[T any](l []T) []T {
	if l == nil {
		return []T{}
	}
	return l
}

// text returns m, never nil.
func text(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

// Alert is an alert that was fired.
type Alert = quota.Alert

// Alerts is a page of alerts, the newest first.
type Alerts struct {
	Alerts     []Alert `json:"alerts"`
	NextCursor *string `json:"next_cursor"`
}

// AuditEntry is a change that was made.
type AuditEntry = quota.Change

// Audit is a page of the audit log, the newest first.
type Audit struct {
	Entries    []AuditEntry `json:"entries"`
	NextCursor *string      `json:"next_cursor"`
}

// Refusal is a call of a known key that was refused, or would have been.
type Refusal struct {
	ID        string          `json:"id"`
	Time      time.Time       `json:"time"`
	Key       quota.ID        `json:"key"`
	Group     Ref             `json:"group"` // the key's own then
	Model     string          `json:"model"`
	Reason    quota.Reason    `json:"reason"`
	Limit     quota.LimitName `json:"limit"`     // that refused; "": none did
	Account   Ref             `json:"account"`   // whose limit or rule it was
	Requested int64           `json:"requested"` // of that limit, at the least
	Decision  string          `json:"decision"`  // refused or observed
}

// Refusals is a page of the refusals that are kept, the newest first.
type Refusals struct {
	Refusals []Refusal `json:"refusals"`
	// ByReason counts all that are asked for and kept, on this page or not.
	ByReason   map[quota.Reason]int `json:"by_reason"`
	Since      time.Time            `json:"since"` // all that are later are kept
	NextCursor *string              `json:"next_cursor"`
}

// Explanation is what admission would decide now.
type Explanation struct {
	Admitted bool            `json:"admitted"`
	Reason   string          `json:"reason"`  // "" when admitted
	Account  Ref             `json:"account"` // the one whose limit decides
	Limit    quota.LimitName `json:"limit"`   // that limit
	Message  string          `json:"message"` // what refuses, in one line
	Reserve  struct {
		Input  int64 `json:"input"`
		Output int64 `json:"output"`
	} `json:"reserve"`
	Limits []ExplainedLimit `json:"limits"`
}

// ExplainedLimit is a limit that admission considers.
type ExplainedLimit struct {
	Account   quota.ID        `json:"account"`
	Name      string          `json:"name"` // of the account
	Limit     quota.LimitName `json:"limit"`
	Max       int64           `json:"max"`
	Used      int64           `json:"used"`
	Reserved  int64           `json:"reserved"`
	Remaining int64           `json:"remaining"`
	ResetsAt  *time.Time      `json:"resets_at"`
	Fits      bool            `json:"fits"`
}

// Verification is what recomputing the counters has shown.
type Verification struct {
	OK          bool         `json:"ok"`
	Checked     int          `json:"checked"`
	Differences []Difference `json:"differences"`
}

// Difference is a counter that is not what the ledger makes it.
type Difference struct {
	Account  Ref    `json:"account"` // null: the keys that are in no group
	Counter  string `json:"counter"` // a limit, or a row of usage
	Stored   int64  `json:"stored"`
	Computed int64  `json:"computed"`
}

// Event is one line of the events stream.
type Event struct {
	ID     uint64    `json:"-"`
	Type   string    `json:"-"` // admission, settlement, refusal, alert or change
	Time   time.Time `json:"time"`
	Key    Ref       `json:"key"`
	Group  Ref       `json:"group"`
	Model  string    `json:"model"`
	Reason string    `json:"reason"` // of an alert its kind, of a change its action
	Tokens int64     `json:"tokens"`
	// Of an alert or a change, the whole of it.
	Alert  *Alert      `json:"alert,omitempty"`
	Change *AuditEntry `json:"change,omitempty"`
}
