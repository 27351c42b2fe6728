package ledger

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// KeysIn counts the living keys directly in each of the groups.
func (l *Ledger) KeysIn(groups ...quota.ID) (map[quota.ID]int64, error) {
	counts := make(map[quota.ID]int64, len(groups))
	for _, id := range groups {
		n := int64(0)
		if err := l.store.KeysIn(id, 0, func(quota.ID) bool { n++; return true }); err != nil {
			return nil, fmt.Errorf("counting keys: %w", err)
		}
		counts[id] = n
	}
	return counts, nil
}

// KeysOf does what Keys does for the living keys directly in a group.
func (l *Ledger) KeysOf(group, below quota.ID, fn func(*quota.Key) bool) error {
	var failed error
	err := l.store.KeysIn(group, below, func(id quota.ID) bool {
		k, err := l.store.Key(id)
		if err != nil {
			failed = err
			return false
		}
		// It may have left since the list was begun.
		return k.Group != group || !k.Living() || fn(k)
	})
	return errors.Join(err, failed)
}

// LastUsed returns when a key or group was used last; zero: never. It brings
// nothing into memory, so that all can be asked for.
func (l *Ledger) LastUsed(id quota.ID) (time.Time, error) {
	var c quota.Counters
	if a, ok := l.accounts.get(id); ok {
		a.mu.Lock()
		c.LastUsed = a.lastUsed
		a.mu.Unlock()
	} else if err := l.store.Counters(id, &c); err != nil && !errors.Is(err, quota.ErrNotFound) {
		return time.Time{}, fmt.Errorf("reading the counters of %s: %w", id, err)
	}
	if c.LastUsed == 0 {
		return time.Time{}, nil
	}
	return stamp(time.Unix(0, c.LastUsed)), nil
}

// MaxSecrets is how many secrets of a key may work at one time.
const MaxSecrets = 5

// MaxGrace is the longest time for which an old secret may go on working.
const MaxGrace = 30 * 24 * time.Hour

// Rotate gives a living key a new secret and returns both. The secret before
// it works for grace longer; those before that one keep the time they were
// given. A key with MaxSecrets that work is a conflict. check may refuse.
func (l *Ledger) Rotate(now time.Time, id quota.ID, grace time.Duration, check func(*quota.Key) error) (*quota.Key, string, error) {
	if grace < 0 || grace > MaxGrace {
		return nil, "", fmt.Errorf("grace %s is not between 0 and 30d: %w", days(grace), quota.ErrInvalid)
	}
	secret, prefix := quota.NewSecret()
	k, err := l.updateKey(now, id, quota.ActionRotate, func(k *quota.Key) error {
		if check != nil {
			if err := check(k); err != nil {
				return err
			}
		}
		if len(k.Secrets) > 0 && (k.Secrets[0].Until.IsZero() || k.Secrets[0].Until.After(now.Add(grace))) {
			k.Secrets[0].Until = stamp(now.Add(grace))
		}
		k.Secrets = slices.DeleteFunc(k.Secrets, func(s quota.Secret) bool {
			return !s.Until.IsZero() && !s.Until.After(now)
		})
		if len(k.Secrets) >= MaxSecrets {
			return fmt.Errorf("%d secrets of this key work, and no more may: rotate it without grace, or wait until the grace of one ends: %w", MaxSecrets, quota.ErrConflict)
		}
		hash := quota.HashSecret(l.store.HashKey(), secret)
		k.Secrets = slices.Insert(k.Secrets, 0, quota.Secret{Hash: hash})
		k.Prefix = prefix
		return nil
	}, nil)
	if err != nil {
		return nil, "", err
	}
	return k, secret, nil
}

// UsedSince sums what a key used, or was charged to a group, of calls admitted
// since the given Unix second, as far as usage is kept.
func (l *Ledger) UsedSince(now time.Time, id quota.ID, start int64) (quota.Totals, error) {
	usage, done, err := l.usage()
	if err != nil {
		return quota.Totals{}, err
	}
	defer done()
	return charged(usage, id, quota.Period{Start: start})
}

// Descendants returns the group and every group below it, deleted ones too.
func (l *Ledger) Descendants(id quota.ID) (map[quota.ID]bool, error) {
	parent := map[quota.ID]quota.ID{}
	if err := l.store.Groups(0, func(g *quota.Group) bool {
		parent[g.ID] = g.Parent
		return true
	}); err != nil {
		return nil, err
	}
	in := map[quota.ID]bool{id: true}
	for g := range parent {
		for up, n := g, 0; up != 0 && n <= quota.MaxDepth; up, n = parent[up], n+1 {
			if in[up] {
				in[g] = true
				break
			}
		}
	}
	return in, nil
}
