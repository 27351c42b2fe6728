package ledger

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// NewKey is a key to be made. Without Secret and Digest a secret is made.
type NewKey struct {
	Name     string
	Group    quota.ID
	Disabled bool
	quota.KeyRules
	// Secret is an existing secret, brought along.
	Secret string
	// Digest is the SHA-256 of an existing secret.
	Digest *[sha256.Size]byte
}

// Created is a key that was made, with its secret unless only the digest of it
// is known.
type Created struct {
	Key    *quota.Key
	Secret string
}

// CreateKeys makes keys, all or none. The error says which one is wrong.
func (l *Ledger) CreateKeys(now time.Time, specs []NewKey) ([]Created, error) {
	l.directory.Lock()
	defer l.directory.Unlock()
	made := make([]Created, len(specs))
	keys := make([]*quota.Key, len(specs))
	names := make(map[string]bool, len(specs))
	hashes := make(map[quota.SecretHash]bool, len(specs))
	for i := range specs {
		k, secret, err := l.newKey(now, &specs[i], quota.SourceAPI)
		if err == nil && (names[k.Name] || hashes[k.Secrets[0].Hash]) {
			err = fmt.Errorf("name %q or its secret comes twice: %w", k.Name, quota.ErrConflict)
		}
		if err != nil {
			if len(specs) > 1 {
				err = fmt.Errorf("key %d of %d: %w", i+1, len(specs), err)
			}
			return nil, err
		}
		names[k.Name], hashes[k.Secrets[0].Hash] = true, true
		keys[i], made[i] = k, Created{k, secret}
	}
	entries := l.audit(now)
	for _, k := range keys {
		entries.key(quota.ActionCreate, nil, k)
	}
	if err := l.put(keys, nil, entries); err != nil {
		return nil, fmt.Errorf("storing keys: %w", err)
	}
	l.keys += int64(len(keys))
	return made, nil
}

// newKey makes a key's record. The directory is held.
func (l *Ledger) newKey(now time.Time, spec *NewKey, source quota.Source) (*quota.Key, string, error) {
	k := &quota.Key{
		Name: spec.Name, Group: spec.Group, Source: source, Disabled: spec.Disabled,
		KeyRules: spec.KeyRules, CreatedAt: stamp(now), UpdatedAt: stamp(now),
	}
	if err := l.validKey(k); err != nil {
		return nil, "", err
	}
	secret, made, prefix := spec.Secret, "", ""
	var hash quota.SecretHash
	switch {
	case spec.Digest != nil:
		hash = quota.HashDigest(l.store.HashKey(), *spec.Digest)
	case secret != "":
		var err error
		if prefix, err = quota.ImportedPrefix(secret); err != nil {
			return nil, "", err
		}
		made, hash = secret, quota.HashSecret(l.store.HashKey(), secret)
	default:
		secret, prefix = quota.NewSecret()
		made = secret
		hash = quota.HashSecret(l.store.HashKey(), secret)
	}
	if _, err := l.store.KeyBySecret(hash); !errors.Is(err, quota.ErrNotFound) {
		return nil, "", errors.Join(err, fmt.Errorf("another key has this secret, or had it before it was deleted: %w", quota.ErrConflict))
	}
	l.lastID = quota.NextID(quota.KindKey, l.lastID, now)
	k.ID, k.Prefix, k.Secrets = l.lastID, prefix, []quota.Secret{{Hash: hash}}
	return k, made, nil
}

// validKey checks a key's settings against its own rules and the rest of the
// directory, which is held.
func (l *Ledger) validKey(k *quota.Key) error {
	if err := quota.ValidName(k.Name); err != nil {
		return err
	}
	if err := k.KeyRules.Validate(l.Zone()); err != nil {
		return err
	}
	if k.Group != 0 {
		g, err := l.store.Group(k.Group)
		if err != nil || !g.Living() {
			return fmt.Errorf("group %s: %w", k.Group, errors.Join(err, quota.ErrInvalid))
		}
	}
	return l.freeName(quota.KindKey, k.Name, k.ID)
}

// freeName returns an error if another living account has the name.
func (l *Ledger) freeName(kind quota.Kind, name string, id quota.ID) error {
	switch holder, err := l.store.ByName(kind, name); {
	case errors.Is(err, quota.ErrNotFound) || (err == nil && holder == id):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%s name %q is taken: %w", kind, name, quota.ErrConflict)
}

// stamp is the time as it is stored: without a monotonic reading, in UTC, to
// the microsecond.
func stamp(now time.Time) time.Time { return now.UTC().Round(0).Truncate(time.Microsecond) }

// UpdateKey changes a living key as edit says, and returns it. The change
// decides the very next request. Moving a key leaves what it used where it was
// spent.
func (l *Ledger) UpdateKey(now time.Time, id quota.ID, edit func(*quota.Key) error) (*quota.Key, error) {
	return l.updateKey(now, id, "", edit, nil)
}

// updateKey changes a key, and calls changed with the records before and after,
// if there is one, before the directory is let go. The action is found out if
// it is empty.
func (l *Ledger) updateKey(now time.Time, id quota.ID, action quota.Action, edit func(*quota.Key) error, changed func(before, after *quota.Key) error) (*quota.Key, error) {
	l.directory.Lock()
	defer l.directory.Unlock()
	k, err := l.store.Key(id)
	if err == nil && !k.Living() {
		err = quota.ErrNotFound
	}
	if err != nil {
		return nil, err
	}
	before := *k
	before.Secrets = slices.Clone(k.Secrets)
	if err := edit(k); err != nil {
		return nil, err
	}
	if err := l.validKey(k); err != nil {
		return nil, err
	}
	k.UpdatedAt = stamp(now)
	if action == "" {
		action = actionOf(&before, k)
	}
	entries := l.audit(now)
	entries.key(action, &before, k)
	if err := l.put([]*quota.Key{k}, nil, entries); err != nil {
		return nil, fmt.Errorf("storing the key: %w", err)
	}
	l.forget(before.Secrets)
	err = l.changedKey(now, k)
	if err == nil && changed != nil {
		err = changed(&before, k)
	}
	return k, err
}

// changedKey brings what is in memory in accord with a key's new record.
func (l *Ledger) changedKey(now time.Time, k *quota.Key) error {
	a, ok := l.accounts.get(k.ID)
	if !ok {
		return nil
	}
	_, err := l.adopt(now, a, k, nil)
	return err
}

// DeleteKey leaves a tombstone: the secrets never work again, the name is
// free, the history stays. check may refuse.
func (l *Ledger) DeleteKey(now time.Time, id quota.ID, check func(*quota.Key) error) error {
	l.directory.Lock()
	defer l.directory.Unlock()
	k, err := l.store.Key(id)
	if err == nil && !k.Living() {
		err = quota.ErrNotFound
	}
	if err == nil && check != nil {
		err = check(k)
	}
	if err != nil {
		return err
	}
	entries := l.audit(now)
	entries.key(quota.ActionDelete, k, nil)
	k.DeletedAt, k.UpdatedAt, k.Disabled = stamp(now), stamp(now), true
	for i := range k.Secrets { // they stay, so that no other key can be given them
		k.Secrets[i].Until = stamp(now)
	}
	if err := l.put([]*quota.Key{k}, nil, entries); err != nil {
		return fmt.Errorf("storing the key: %w", err)
	}
	l.keys--
	l.forget(k.Secrets)
	return l.changedKey(now, k)
}

// Key returns a key, also a deleted one, or quota.ErrNotFound.
func (l *Ledger) Key(id quota.ID) (*quota.Key, error) { return l.store.Key(id) }

// Group returns a group, also a deleted one, or quota.ErrNotFound.
func (l *Ledger) Group(id quota.ID) (*quota.Group, error) { return l.store.Group(id) }

// Find returns the ID of the living account of that kind and name.
func (l *Ledger) Find(kind quota.Kind, name string) (quota.ID, error) {
	return l.store.ByName(kind, name)
}

// Keys calls fn for each key with an ID below the given one (0: all), the
// newest first, until fn returns false.
func (l *Ledger) Keys(below quota.ID, fn func(*quota.Key) bool) error {
	return l.store.Keys(below, fn)
}

// Groups does for groups what Keys does for keys.
func (l *Ledger) Groups(below quota.ID, fn func(*quota.Group) bool) error {
	return l.store.Groups(below, fn)
}

// NewGroup is a group to be made.
type NewGroup struct {
	Name   string
	Parent quota.ID
	quota.GroupRules
}

// CreateGroup makes a group.
func (l *Ledger) CreateGroup(now time.Time, spec NewGroup) (*quota.Group, error) {
	l.directory.Lock()
	defer l.directory.Unlock()
	g := l.newGroup(now, &spec, quota.SourceAPI)
	if err := l.validGroup(g); err != nil {
		return nil, err
	}
	entries := l.audit(now)
	entries.group(quota.ActionCreate, nil, g)
	if err := l.put(nil, []*quota.Group{g}, entries); err != nil {
		return nil, fmt.Errorf("storing the group: %w", err)
	}
	l.groups++
	return g, nil
}

func (l *Ledger) newGroup(now time.Time, spec *NewGroup, source quota.Source) *quota.Group {
	l.lastID = quota.NextID(quota.KindGroup, l.lastID, now)
	return &quota.Group{
		ID: l.lastID, Name: spec.Name, Parent: spec.Parent, Source: source,
		GroupRules: spec.GroupRules, CreatedAt: stamp(now), UpdatedAt: stamp(now),
	}
}

func (l *Ledger) validGroup(g *quota.Group) error {
	if err := quota.ValidName(g.Name); err != nil {
		return err
	}
	if err := g.GroupRules.Validate(l.Zone()); err != nil {
		return err
	}
	if err := l.freeName(quota.KindGroup, g.Name, g.ID); err != nil {
		return err
	}
	return l.validTree(g)
}

// validTree checks that the groups above g end, and that nothing below it
// stands deeper than quota.MaxDepth.
func (l *Ledger) validTree(g *quota.Group) error {
	parents := map[quota.ID]quota.ID{}
	if err := l.store.Groups(0, func(o *quota.Group) bool {
		if o.Living() {
			parents[o.ID] = o.Parent
		}
		return true
	}); err != nil {
		return err
	}
	if _, ok := parents[g.Parent]; g.Parent != 0 && !ok {
		return fmt.Errorf("parent %s is not a group: %w", g.Parent, quota.ErrInvalid)
	}
	parents[g.ID] = g.Parent
	for id := range parents {
		depth := 0
		for up := id; up != 0; up = parents[up] {
			if depth++; depth > quota.MaxDepth {
				if up == id || slices.Contains(path(parents, g.ID, quota.MaxDepth), g.ID) {
					return fmt.Errorf("group %q would stand above itself: %w", g.Name, quota.ErrInvalid)
				}
				return fmt.Errorf("more than %d groups above one another: %w", quota.MaxDepth, quota.ErrInvalid)
			}
		}
	}
	return nil
}

// path returns up to n groups above id.
func path(parents map[quota.ID]quota.ID, id quota.ID, n int) (ids []quota.ID) {
	for up := parents[id]; up != 0 && len(ids) < n; up = parents[up] {
		ids = append(ids, up)
	}
	return ids
}

// UpdateGroup changes a living group as edit says, and returns it.
func (l *Ledger) UpdateGroup(now time.Time, id quota.ID, edit func(*quota.Group) error) (*quota.Group, error) {
	l.directory.Lock()
	defer l.directory.Unlock()
	g, err := l.livingGroup(id)
	if err != nil {
		return nil, err
	}
	before := *g
	if err := edit(g); err != nil {
		return nil, err
	}
	if err := l.validGroup(g); err != nil {
		return nil, err
	}
	g.UpdatedAt = stamp(now)
	entries := l.audit(now)
	entries.group(quota.ActionUpdate, &before, g)
	if err := l.put(nil, []*quota.Group{g}, entries); err != nil {
		return nil, fmt.Errorf("storing the group: %w", err)
	}
	return g, l.changedGroup(now, g)
}

func (l *Ledger) livingGroup(id quota.ID) (*quota.Group, error) {
	g, err := l.store.Group(id)
	if err == nil && !g.Living() {
		err = quota.ErrNotFound
	}
	return g, err
}

func (l *Ledger) changedGroup(now time.Time, g *quota.Group) error {
	a, ok := l.accounts.get(g.ID)
	if !ok {
		return nil
	}
	_, err := l.adopt(now, a, nil, g)
	return err
}

// DeleteGroup leaves a tombstone. A group with keys or children is a conflict
// unless force is set: then they move to its parent. check may refuse.
func (l *Ledger) DeleteGroup(now time.Time, id quota.ID, force bool, check func(*quota.Group) error) error {
	l.directory.Lock()
	defer l.directory.Unlock()
	g, err := l.livingGroup(id)
	if err == nil && check != nil {
		err = check(g)
	}
	if err != nil {
		return err
	}
	keys, children, err := l.members(id)
	if err != nil {
		return err
	}
	if len(keys)+len(children) > 0 && !force {
		return fmt.Errorf("group %q is not empty (keys: %d, groups: %d): %w", g.Name, len(keys), len(children), quota.ErrConflict)
	}
	entries := l.audit(now)
	for _, k := range keys {
		was := *k
		k.Group, k.UpdatedAt = g.Parent, stamp(now)
		entries.key(quota.ActionMove, &was, k)
	}
	for _, c := range children {
		was := *c
		c.Parent, c.UpdatedAt = g.Parent, stamp(now)
		entries.group(quota.ActionUpdate, &was, c)
	}
	entries.group(quota.ActionDelete, g, nil)
	g.DeletedAt, g.UpdatedAt = stamp(now), stamp(now)
	if err := l.put(keys, append(children, g), entries); err != nil {
		return fmt.Errorf("storing the change: %w", err)
	}
	l.groups--
	for _, c := range children {
		err = errors.Join(err, l.changedGroup(now, c))
	}
	for _, k := range keys {
		err = errors.Join(err, l.changedKey(now, k))
	}
	return err
}

// members returns the living keys and groups directly in a group.
func (l *Ledger) members(id quota.ID) (keys []*quota.Key, children []*quota.Group, err error) {
	err = l.KeysOf(id, 0, func(k *quota.Key) bool {
		keys = append(keys, k)
		return true
	})
	return keys, children, errors.Join(err, l.store.Groups(0, func(c *quota.Group) bool {
		if c.Living() && c.Parent == id {
			children = append(children, c)
		}
		return true
	}))
}
