package admin

import (
	"net/http"
	"strings"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// maxKeys is how many keys one request may make.
const maxKeys = 10_000

// The states of a key by which a list is filtered.
const (
	active   = "active"
	disabled = "disabled"
	expired  = "expired"
	deleted  = "deleted"
)

// statusOf returns the state of a key: the one that refuses its calls first.
func statusOf(k *quota.Key, now time.Time) string {
	switch {
	case !k.Living():
		return deleted
	case k.Disabled || k.Removed:
		return disabled
	case k.ExpiresAt != nil && !now.Before(*k.ExpiresAt):
		return expired
	}
	return active
}

func listKeys(c *call) error {
	if err := c.params("group", "q", "status", "sort", "limit", "cursor"); err != nil {
		return err
	}
	group, err := c.account(quota.KindGroup, "group")
	if err != nil {
		return err
	}
	status, err := c.oneOf("status", active, disabled, expired, deleted)
	if err != nil {
		return err
	}
	o, err := c.order()
	if err != nil {
		return err
	}
	limit, err := c.limit()
	if err != nil {
		return err
	}
	after, err := c.after(o)
	if err != nil {
		return err
	}
	q := strings.ToLower(c.query.Get("q"))
	list := c.ledger.Keys
	if group != 0 && status != deleted {
		list = func(below quota.ID, fn func(*quota.Key) bool) error { return c.ledger.KeysOf(group, below, fn) }
	}
	keys, next, err := c.listed(o, after, limit, list, func(k *quota.Key) bool {
		is := statusOf(k, c.now)
		return (is == status || (status == "" && is != deleted)) &&
			(group == 0 || k.Group == group) &&
			(strings.Contains(strings.ToLower(k.Name), q) || strings.Contains(strings.ToLower(k.Prefix), q))
	})
	if err != nil {
		return err
	}
	answer := Keys{Keys: make([]Key, len(keys)), NextCursor: next}
	for i, k := range keys {
		if answer.Keys[i], err = c.key(k); err != nil {
			return err
		}
	}
	return c.json(http.StatusOK, answer)
}

// key returns what is shown of k.
func (c *call) key(k *quota.Key) (Key, error) {
	s, err := c.ledger.State(c.now, k.ID)
	if err != nil {
		return Key{}, err
	}
	return KeyOf(k, s), nil
}

// answerKey answers with a key, and its secret if that is new.
func (c *call) answerKey(status int, k *quota.Key, secret string) error {
	shown, err := c.key(k)
	if err != nil {
		return err
	}
	shown.Secret = secret
	c.w.Header().Set("ETag", keyTag(k))
	return c.json(status, shown)
}

func createKeys(c *call) error {
	if err := c.params(); err != nil {
		return err
	}
	data, err := c.body(maxBody, maxArray)
	if err != nil {
		return err
	}
	many := isArray(data)
	var all [][]field
	if many {
		all, err = array(data, maxKeys)
	} else {
		all = make([][]field, 1)
		all[0], err = object("", data)
	}
	if err != nil {
		return err
	}
	specs := make([]ledger.NewKey, len(all))
	for i, fields := range all {
		if err := set(&specs[i], fields, newKeyFields, c.ledger); err != nil {
			return err
		}
	}
	made, err := c.ledger.CreateKeys(c.now, specs)
	if err != nil {
		return err
	}
	if !many {
		c.w.Header().Set("Location", "/llm_quota/keys/"+made[0].Key.ID.String())
		return c.answerKey(http.StatusCreated, made[0].Key, made[0].Secret)
	}
	keys := make([]Key, len(made))
	for i := range made {
		if keys[i], err = c.key(made[i].Key); err != nil {
			return err
		}
		keys[i].Secret = made[i].Secret
	}
	return c.json(http.StatusCreated, keys)
}

func showKey(c *call) error {
	if err := c.params(); err != nil {
		return err
	}
	id, err := c.id(quota.KindKey)
	if err != nil {
		return err
	}
	return c.answerID(id)
}

// answerID answers with the key or group of that ID, as it is now.
func (c *call) answerID(id quota.ID) error {
	if id.Kind() == quota.KindGroup {
		g, err := c.ledger.Group(id)
		if err != nil {
			return err
		}
		return c.answerGroup(http.StatusOK, g)
	}
	k, err := c.ledger.Key(id)
	if err != nil {
		return err
	}
	return c.answerKey(http.StatusOK, k, "")
}

func patchKey(c *call) error {
	if err := c.params("carry"); err != nil {
		return err
	}
	carry, err := c.flag("carry")
	if err != nil {
		return err
	}
	change := c.ledger.UpdateKey
	if carry {
		change = c.ledger.CarryKey
	}
	id, err := c.living(quota.KindKey)
	if err != nil {
		return err
	}
	fields, err := c.patch()
	if err != nil {
		return err
	}
	// The edit runs while the directory is held, so that of two changes at the
	// same time neither is lost.
	k, err := change(c.now, id, func(k *quota.Key) error {
		if err := c.matches(keyTag(k)); err != nil {
			return err
		}
		if err := configKeeps(k, fields); err != nil {
			return err
		}
		next := ledger.NewKey{Name: k.Name, Group: k.Group, Disabled: k.Disabled, KeyRules: k.KeyRules}
		if err := set(&next, fields, keyFields, c.ledger); err != nil {
			return err
		}
		k.Name, k.Group, k.Disabled, k.KeyRules = next.Name, next.Group, next.Disabled, next.KeyRules
		return nil
	})
	if err != nil {
		return err
	}
	return c.answerKey(http.StatusOK, k, "")
}

// configKeeps returns a conflict if k is the configuration's and a field that
// it sets would be changed.
func configKeeps(k *quota.Key, fields []field) error {
	if k.Source != quota.SourceConfig {
		return nil
	}
	if err := check(fields, keyFields); err != nil {
		return err
	}
	for _, f := range fields {
		if f.name != "disabled" {
			return fail(http.StatusConflict, "%s is set by the configuration, and changes there", f.name)
		}
		if k.Removed {
			return fail(http.StatusConflict, "disabled: the configuration no longer holds this key; it works again once it is back there")
		}
	}
	return nil
}

func deleteKey(c *call) error {
	if err := c.params(); err != nil {
		return err
	}
	id, err := c.living(quota.KindKey)
	if err != nil {
		return err
	}
	if err := c.ledger.DeleteKey(c.now, id, func(k *quota.Key) error {
		if err := c.matches(keyTag(k)); err != nil {
			return err
		}
		if k.Source == quota.SourceConfig && !k.Removed {
			return fail(http.StatusConflict, "this key is set by the configuration, and is deleted there")
		}
		return nil
	}); err != nil {
		return err
	}
	return c.noContent()
}
