package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

// settings is what can be set of a key or a group, as files of import and
// export hold it: accounts are named, not numbered.
type settings struct {
	Name       string            `json:"name"`
	Group      string            `json:"group,omitempty"`  // of a key
	Parent     string            `json:"parent,omitempty"` // of a group
	Disabled   bool              `json:"disabled,omitempty"`
	ExpiresAt  *time.Time        `json:"expires_at,omitempty"`
	Models     []string          `json:"models,omitempty"`
	AllowedIPs []netip.Prefix    `json:"allowed_ips,omitempty"`
	AlertAt    []float64         `json:"alert_at,omitzero"` // an empty one is none
	Metadata   map[string]string `json:"metadata,omitempty"`
	Quota      *quota.Quota      `json:"quota,omitempty"`
	Limits     quota.Limits      `json:"limits,omitzero"`
	Member     quota.Member      `json:"member,omitzero"` // of a group
}

// above returns the name of the group above.
func (s *settings) above() string { return cmp.Or(s.Group, s.Parent) }

// fields returns the settings by the API's names, without the name and what is
// not set.
func (s *settings) fields() (map[string]json.RawMessage, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("writing settings: %w", err)
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(b, &fields); err != nil {
		return nil, fmt.Errorf("writing settings: %w", err)
	}
	delete(fields, "name")
	return fields, nil
}

// stored is an account as the gate has it.
type stored struct {
	kind   quota.Kind
	id     quota.ID
	config bool // the configuration sets it
	settings
}

// directory is all living accounts of a gate.
type directory struct {
	groups, keys map[string]*stored // by name
	byID         map[quota.ID]*stored
}

func (d *directory) of(kind quota.Kind) map[string]*stored {
	if kind == quota.KindGroup {
		return d.groups
	}
	return d.keys
}

// sorted returns the accounts of a kind by name.
func (d *directory) sorted(kind quota.Kind) []*stored {
	var all []*stored
	for _, s := range d.of(kind) {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *stored) int { return strings.Compare(a.Name, b.Name) })
	return all
}

func (d *directory) nameOf(id admin.Ref) string {
	if s := d.byID[quota.ID(id)]; s != nil {
		return s.Name
	}
	return ""
}

// readDirectory reads every account of the gate.
func (r *run) readDirectory() (*directory, error) {
	d := &directory{groups: map[string]*stored{}, keys: map[string]*stored{}, byID: map[quota.ID]*stored{}}
	p, err := r.pages("/groups", "groups", map[string][]string{}, 0)
	if err != nil {
		return nil, fmt.Errorf("listing groups: %w", err)
	}
	groups, err := decoded[admin.Group](p)
	if err != nil {
		return nil, err
	}
	for i := range groups {
		g := &groups[i]
		s := &stored{kind: quota.KindGroup, id: g.ID, config: g.Source == quota.SourceConfig}
		d.groups[g.Name], d.byID[g.ID] = s, s
		s.Name = g.Name
	}
	for i := range groups { // once all names are known
		d.groups[groups[i].Name].settings = groupSettings(d, &groups[i])
	}
	if p, err = r.pages("/keys", "keys", map[string][]string{}, 0); err != nil {
		return nil, fmt.Errorf("listing keys: %w", err)
	}
	keys, err := decoded[admin.Key](p)
	if err != nil {
		return nil, err
	}
	for i := range keys {
		k := &keys[i]
		s := &stored{kind: quota.KindKey, id: k.ID, config: k.Source == quota.SourceConfig, settings: keySettings(d, k)}
		d.keys[k.Name], d.byID[k.ID] = s, s
	}
	return d, nil
}

func keySettings(d *directory, k *admin.Key) settings {
	s := settings{
		Name: k.Name, Group: d.nameOf(k.Group), Disabled: k.Disabled, ExpiresAt: k.ExpiresAt, Models: k.Models,
		AllowedIPs: k.AllowedIPs, AlertAt: k.AlertAt, Metadata: k.Metadata, Quota: k.Quota, Limits: k.Limits,
	}
	if s.ExpiresAt != nil {
		t := s.ExpiresAt.UTC()
		s.ExpiresAt = &t
	}
	return s
}

func groupSettings(d *directory, g *admin.Group) settings {
	return settings{
		Name: g.Name, Parent: d.nameOf(g.Parent), AlertAt: g.AlertAt, Metadata: g.Metadata,
		Quota: g.Quota, Limits: g.Limits, Member: quota.Member(g.Member),
	}
}
