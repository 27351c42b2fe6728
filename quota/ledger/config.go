package ledger

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Config is the part of the ledger that a configuration sets.
type Config struct {
	// Zone is the time zone of accounts that name none; empty: UTC.
	Zone string
	// Retention is how long usage is kept in each step; 0: DefaultRetention.
	Retention [len(quota.Steps)]time.Duration
	// AlertAt are the shares of a limit, in percent, at which alerts fire; nil:
	// DefaultAlertAt.
	AlertAt []float64
	// AlertOn are the limits on which alerts fire: quota, tokens_per_day,
	// requests_per_day; none: quota.
	AlertOn []quota.LimitName
	// NoForecast switches the alerts off that tell when a limit will be used up.
	NoForecast bool
	// OnStoreError is what limits do while the store fails.
	OnStoreError OnStoreError
	Groups       []ConfigGroup
	Keys         []ConfigKey
}

// ConfigGroup is a group of keys under a shared budget.
type ConfigGroup struct {
	// The name, unique among groups: 1 to 128 printable characters without "/".
	Name string `json:"name"`
	// The name of the group whose budget this one's use counts against too.
	// Default: none.
	Parent string `json:"parent,omitempty"`
	quota.GroupRules
}

// ConfigKey is an API key.
type ConfigKey struct {
	// The name, unique among keys: 1 to 128 printable characters without "/".
	Name string `json:"name"`
	// The secret that callers present: 20 to 512 visible ASCII characters.
	// Placeholders such as {env.CI_KEY} are replaced.
	Secret string `json:"secret,omitempty"`
	// The SHA-256 of the secret in hexadecimal digits, instead of the secret.
	SecretSHA256 string `json:"secret_sha256,omitempty"`
	// The name of the key's group. Default: none.
	Group string `json:"group,omitempty"`
	// When the key stops working: a time in RFC 3339, or a date, which is that
	// day's first instant in the time zone of the key's quota (its group's
	// member quota, if it has none itself), else the app's. Default: never.
	Expires string `json:"expires,omitempty"`
	quota.KeyRules
}

// Resolve returns the configuration with placeholders in secrets replaced and
// every field checked, without a store. The error names the key or group that
// is wrong.
func (c Config) Resolve(replace func(string) (string, error)) (*Config, error) {
	c.Keys = slices.Clone(c.Keys)
	members := make(map[string]*quota.Quota, len(c.Groups))
	for i := range c.Groups {
		members[c.Groups[i].Name] = c.Groups[i].Member.Quota
	}
	for i := range c.Keys {
		if err := c.Keys[i].resolve(c.Zone, members[c.Keys[i].Group], replace); err != nil {
			return nil, fmt.Errorf("key %q: %w", c.Keys[i].Name, err)
		}
	}
	return &c, c.validate()
}

func (k *ConfigKey) resolve(zone string, member *quota.Quota, replace func(string) (string, error)) (err error) {
	if k.Secret, err = replace(k.Secret); err != nil {
		return fmt.Errorf("secret: %w", err)
	}
	if digest, err := hex.DecodeString(k.SecretSHA256); err != nil || (k.SecretSHA256 != "" && len(digest) != sha256.Size) {
		return fmt.Errorf("secret_sha256 is not 64 hexadecimal digits: %w", quota.ErrInvalid)
	}
	if k.Expires == "" {
		return nil
	}
	q := k.Quota
	if q == nil {
		q = member
	}
	if q != nil && q.TimeZone != "" {
		zone = q.TimeZone
	}
	t, err := quota.ParseExpiry(k.Expires, zone)
	k.ExpiresAt = &t
	return err
}

func (c *Config) validate() error {
	if _, err := quota.LoadZone(c.Zone); err != nil {
		return err
	}
	if err := errors.Join(c.OnStoreError.validate(), c.validateAlerts()); err != nil {
		return err
	}
	parents := make(map[string]string, len(c.Groups))
	for i := range c.Groups {
		g := &c.Groups[i]
		if _, ok := parents[g.Name]; ok {
			return fmt.Errorf("group %q is there twice: %w", g.Name, quota.ErrInvalid)
		}
		if err := errors.Join(quota.ValidName(g.Name), g.Validate(c.Zone)); err != nil {
			return fmt.Errorf("group %q: %w", g.Name, err)
		}
		parents[g.Name] = g.Parent
	}
	for name := range parents {
		depth := 0
		for up := name; up != ""; up = parents[up] {
			if _, ok := parents[up]; !ok {
				return fmt.Errorf("group %q: there is no group %q: %w", name, up, quota.ErrInvalid)
			}
			if depth++; depth > quota.MaxDepth {
				return fmt.Errorf("group %q stands in a circle of parents, or under more than %d groups: %w", name, quota.MaxDepth-1, quota.ErrInvalid)
			}
		}
	}
	names := make(map[string]bool, len(c.Keys))
	secrets := make(map[[sha256.Size]byte]string, len(c.Keys))
	for i := range c.Keys {
		k := &c.Keys[i]
		if names[k.Name] {
			return fmt.Errorf("key %q is there twice: %w", k.Name, quota.ErrInvalid)
		}
		names[k.Name] = true
		if err := k.validate(c.Zone); err != nil {
			return fmt.Errorf("key %q: %w", k.Name, err)
		}
		if _, ok := parents[k.Group]; k.Group != "" && !ok {
			return fmt.Errorf("key %q: there is no group %q: %w", k.Name, k.Group, quota.ErrInvalid)
		}
		d := k.digest()
		if other, ok := secrets[d]; ok {
			return fmt.Errorf("keys %q and %q have the same secret: %w", other, k.Name, quota.ErrInvalid)
		}
		secrets[d] = k.Name
	}
	return nil
}

func (k *ConfigKey) validate(zone string) error {
	if err := errors.Join(quota.ValidName(k.Name), k.KeyRules.Validate(zone)); err != nil {
		return err
	}
	switch {
	case k.Secret == "" && k.SecretSHA256 == "":
		return fmt.Errorf("the secret is missing or empty: %w", quota.ErrInvalid)
	case k.Secret != "" && k.SecretSHA256 != "":
		return fmt.Errorf("secret and secret_sha256 exclude one another: %w", quota.ErrInvalid)
	case k.Secret != "":
		_, err := quota.ImportedPrefix(k.Secret)
		return err
	}
	return nil
}

func (k *ConfigKey) digest() (d [sha256.Size]byte) {
	if k.Secret != "" {
		return sha256.Sum256([]byte(k.Secret))
	}
	hex.Decode(d[:], []byte(k.SecretSHA256)) //nolint:errcheck // Resolve has read it
	return d
}

// Configure makes the directory hold what c, which Resolve returned, says: it makes what is missing,
// takes over what the API made under the same name, and disables what a
// configuration made before and c lacks. Disabled, grants and counters stay.
func (l *Ledger) Configure(now time.Time, c *Config) error {
	_, err := l.configure(now, c)
	return err
}

// configure returns the records that it replaced, as they were.
func (l *Ledger) configure(now time.Time, c *Config) (*replaced, error) {
	zone := c.Zone
	if zone == "" {
		zone = "UTC"
	}
	l.directory.Lock()
	defer l.directory.Unlock()
	before := l.settings.Load()
	if before.zone != zone || before.onError != c.OnStoreError {
		l.settings.Store(&settings{zone: zone, onError: c.OnStoreError})
	}
	l = l.As(quota.Author{Source: quota.ByConfig})
	ch := changes{ledger: l, now: now, entries: l.audit(now), replaced: replaced{at: stamp(now)}, present: map[quota.ID]bool{}, groupIDs: map[string]quota.ID{"": 0}}
	err := ch.setGroups(c.Groups)
	if err == nil {
		err = errors.Join(ch.setKeys(c.Keys), ch.remove())
	}
	if err == nil && len(ch.keys)+len(ch.groups) > 0 {
		err = l.put(ch.keys, ch.groups, ch.entries)
	}
	if err != nil {
		l.settings.Store(before)
		return nil, fmt.Errorf("applying the configured keys and groups: %w", err)
	}
	l.counted = false
	l.setRetention(c.Retention)
	l.alerts.Store(newAlertRules(c))
	for _, g := range ch.groups {
		err = errors.Join(err, l.changedGroup(now, g))
	}
	for _, k := range ch.keys {
		err = errors.Join(err, l.changedKey(now, k))
	}
	return &ch.replaced, err
}

// replaced are the records that a configuration changed, as they were before
// it, and when it did.
type replaced struct {
	at     time.Time
	keys   []*quota.Key
	groups []*quota.Group
}

// restore puts back what a configuration replaced, where nothing has changed
// it since.
func (l *Ledger) restore(now time.Time, old *replaced) error {
	l.directory.Lock()
	defer l.directory.Unlock()
	l = l.As(quota.Author{Source: quota.ByConfig})
	entries := l.audit(now)
	var keys []*quota.Key
	var groups []*quota.Group
	for _, k := range old.keys {
		if is, err := l.store.Key(k.ID); err == nil && is.UpdatedAt.Equal(old.at) {
			l.forget(is.Secrets)
			keys = append(keys, k)
			entries.key(quota.ActionUpdate, is, k)
		}
	}
	for _, g := range old.groups {
		if is, err := l.store.Group(g.ID); err == nil && is.UpdatedAt.Equal(old.at) {
			groups = append(groups, g)
			entries.group(quota.ActionUpdate, is, g)
		}
	}
	if len(keys)+len(groups) == 0 {
		return nil
	}
	err := l.put(keys, groups, entries)
	for _, g := range groups {
		err = errors.Join(err, l.changedGroup(now, g))
	}
	for _, k := range keys {
		err = errors.Join(err, l.changedKey(now, k))
	}
	return err
}

// changes collects what a configuration changes in the directory.
type changes struct {
	ledger   *Ledger
	now      time.Time
	keys     []*quota.Key
	groups   []*quota.Group
	groupIDs map[string]quota.ID
	present  map[quota.ID]bool
	holders  map[quota.SecretHash]string // the names of the keys with these secrets
	replaced replaced
	entries  *audit
}

func (ch *changes) setGroups(groups []ConfigGroup) error {
	records := make([]*quota.Group, len(groups))
	before := make([][]byte, len(groups))
	olds := make([]*quota.Group, len(groups))
	for i := range groups {
		id, err := ch.ledger.store.ByName(quota.KindGroup, groups[i].Name)
		switch {
		case err == nil:
			if records[i], err = ch.ledger.store.Group(id); err != nil {
				return err
			}
			before[i] = image(records[i])
			old := *records[i]
			olds[i] = &old
		case errors.Is(err, quota.ErrNotFound):
			records[i] = ch.ledger.newGroup(ch.now, &NewGroup{Name: groups[i].Name}, quota.SourceConfig)
		default:
			return err
		}
		ch.groupIDs[groups[i].Name] = records[i].ID
		ch.present[records[i].ID] = true
	}
	for i, g := range records {
		g.Source, g.Removed, g.Parent, g.GroupRules = quota.SourceConfig, false, ch.groupIDs[groups[i].Parent], groups[i].GroupRules
		if string(before[i]) != string(image(g)) {
			g.UpdatedAt = stamp(ch.now)
			ch.groups = append(ch.groups, g)
			if old := olds[i]; old != nil {
				ch.replaced.groups = append(ch.replaced.groups, old)
				ch.entries.group(configured(old.Source, old.Removed), old, g)
			} else {
				ch.entries.group(quota.ActionCreate, nil, g)
			}
		}
	}
	return nil
}

func (ch *changes) setKeys(keys []ConfigKey) error {
	l := ch.ledger
	holders := make(map[quota.SecretHash]string, len(keys))
	for i := range keys {
		spec := &keys[i]
		hash := quota.HashDigest(l.store.HashKey(), spec.digest())
		holders[hash] = spec.Name
		var k, old *quota.Key
		var before []byte
		id, err := l.store.ByName(quota.KindKey, spec.Name)
		switch {
		case err == nil:
			if k, err = l.store.Key(id); err != nil {
				return err
			}
			before = image(k)
			was := *k
			was.Secrets = slices.Clone(k.Secrets)
			old = &was
		case errors.Is(err, quota.ErrNotFound):
			l.lastID = quota.NextID(quota.KindKey, l.lastID, ch.now)
			k = &quota.Key{ID: l.lastID, Name: spec.Name, CreatedAt: stamp(ch.now), UpdatedAt: stamp(ch.now)}
		default:
			return err
		}
		ch.present[k.ID] = true
		k.Source, k.Removed, k.Group, k.KeyRules = quota.SourceConfig, false, ch.groupIDs[spec.Group], spec.KeyRules
		if len(k.Secrets) != 1 || k.Secrets[0].Hash != hash {
			l.forget(k.Secrets)
			k.Secrets = []quota.Secret{{Hash: hash}}
			k.Prefix = ""
			if spec.Secret != "" {
				k.Prefix, _ = quota.ImportedPrefix(spec.Secret)
			}
		}
		if string(before) != string(image(k)) {
			k.UpdatedAt = stamp(ch.now)
			ch.keys = append(ch.keys, k)
			if old != nil {
				ch.replaced.keys = append(ch.replaced.keys, old)
				ch.entries.key(configured(old.Source, old.Removed), old, k)
			} else {
				ch.entries.key(quota.ActionCreate, nil, k)
			}
		}
	}
	ch.holders = holders
	return ch.secretsFree()
}

// secretsFree returns an error if a key outside the configuration has one of
// the configured secrets. A key that an earlier configuration made, and this
// one lacks, gives its secret up: it was renamed.
func (ch *changes) secretsFree() error {
	for hash, name := range ch.holders {
		id, err := ch.ledger.store.KeyBySecret(hash)
		if errors.Is(err, quota.ErrNotFound) || (err == nil && ch.present[id]) {
			continue
		}
		if err != nil {
			return err
		}
		other, err := ch.ledger.store.Key(id)
		if err != nil {
			return err
		}
		if other.Source == quota.SourceConfig && other.Living() {
			continue
		}
		if !other.Living() {
			return fmt.Errorf("key %q: its secret is that of a deleted key, which never works again; give it another: %w", name, quota.ErrConflict)
		}
		return fmt.Errorf("key %q: key %q has this secret already: %w", name, other.Name, quota.ErrConflict)
	}
	return nil
}

// remove marks what an earlier configuration made and this one lacks.
func (ch *changes) remove() error {
	ids, err := ch.ledger.store.Configured()
	if err != nil {
		return err
	}
	for _, id := range ids {
		switch {
		case ch.present[id]:
		case id.Kind() == quota.KindKey:
			k, err := ch.ledger.store.Key(id)
			if err != nil {
				return err
			}
			was := *k
			k.Secrets = slices.DeleteFunc(slices.Clone(k.Secrets), func(s quota.Secret) bool { return ch.holders[s.Hash] != "" })
			if k.Living() && (!k.Removed || len(k.Secrets) < len(was.Secrets)) {
				ch.ledger.forget(was.Secrets)
				k.Removed, k.UpdatedAt = true, stamp(ch.now)
				ch.keys, ch.replaced.keys = append(ch.keys, k), append(ch.replaced.keys, &was)
				ch.entries.key(quota.ActionRemove, &was, k)
			}
		default:
			g, err := ch.ledger.store.Group(id)
			if err != nil {
				return err
			}
			if was := *g; !g.Removed && g.Living() {
				g.Removed, g.UpdatedAt = true, stamp(ch.now)
				ch.groups, ch.replaced.groups = append(ch.groups, g), append(ch.replaced.groups, &was)
				ch.entries.group(quota.ActionRemove, &was, g)
			}
		}
	}
	return nil
}

// image is a record as it is stored, to see whether it was changed.
func image(record any) []byte {
	b, err := json.Marshal(record)
	if err != nil { // records hold nothing that JSON cannot
		panic(err)
	}
	return b
}
