package admin

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// params reads the query, which may hold each of the named parameters once and
// nothing else: a misspelt filter must not show everything.
func (c *call) params(names ...string) error {
	query, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return bad("the query is malformed")
	}
	for name, values := range query {
		if !slices.Contains(names, name) {
			return bad("%s is not a parameter that is known here", shown(name))
		}
		if len(values) > 1 {
			return bad("%s comes twice", name)
		}
	}
	c.query = query
	return nil
}

// oneOf returns a parameter that has a set of values; "" if it is absent.
func (c *call) oneOf(name string, values ...string) (string, error) {
	v := c.query.Get(name)
	if v == "" || slices.Contains(values, v) {
		return v, nil
	}
	last := len(values) - 1
	return "", bad("%s: %s is not %s or %s", name, shown(v), strings.Join(values[:last], ", "), values[last])
}

// flag returns a parameter that is true or false.
func (c *call) flag(name string) (bool, error) {
	v, err := c.oneOf(name, "true", "false")
	return v == "true", err
}

// account returns the ID of the key or group that a parameter names; zero if
// it is absent.
func (c *call) account(kind quota.Kind, name string) (quota.ID, error) {
	v := c.query.Get(name)
	if v == "" {
		return 0, nil
	}
	return reference(c.ledger, kind, name, v)
}

// id returns the ID of the key or group in the path. It may be a deleted one.
func (c *call) id(kind quota.Kind) (quota.ID, error) {
	return find(c.ledger, kind, c.r.PathValue("id"))
}

// living is id for changes, which a deleted account does not take.
func (c *call) living(kind quota.Kind) (quota.ID, error) {
	id, err := c.id(kind)
	if err != nil {
		return 0, err
	}
	var lives bool
	if kind == quota.KindKey {
		var k *quota.Key
		if k, err = c.ledger.Key(id); err == nil {
			lives = k.Living()
		}
	} else {
		var g *quota.Group
		if g, err = c.ledger.Group(id); err == nil {
			lives = g.Living()
		}
	}
	if err == nil && !lives {
		err = fmt.Errorf("the %s %s has been deleted: %w", kind, id, quota.ErrNotFound)
	}
	return id, err
}

// find returns the account that s names: an ID, or "name:" and the name of a
// living one.
func find(l *ledger.Ledger, kind quota.Kind, s string) (quota.ID, error) {
	none := fmt.Errorf("there is no %s %s: %w", kind, shown(s), quota.ErrNotFound)
	var id quota.ID
	name, byName := strings.CutPrefix(s, "name:")
	var err error
	switch {
	case byName:
		id, err = l.Find(kind, name)
	default:
		if id, err = quota.ParseID(s); err != nil || id == 0 || id.Kind() != kind {
			return 0, none
		}
		if kind == quota.KindKey {
			_, err = l.Key(id)
		} else {
			_, err = l.Group(id)
		}
	}
	if errors.Is(err, quota.ErrNotFound) {
		return 0, none
	}
	return id, err
}

// reference is find for what a field or parameter names: that it does not
// exist is a mistake in the request.
func reference(l *ledger.Ledger, kind quota.Kind, path, s string) (quota.ID, error) {
	id, err := find(l, kind, s)
	if errors.Is(err, quota.ErrNotFound) {
		return 0, invalid(path+":", "there is no %s %s", kind, shown(s))
	}
	return id, err
}

// page is which part of a list is asked for.
type page struct {
	below quota.ID
	limit int
}

func (c *call) page() (p page, err error) {
	if p.limit, err = c.limit(); err != nil {
		return p, err
	}
	if s := c.query.Get("cursor"); s != "" {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil || len(b) != 8 || binary.BigEndian.Uint64(b) == 0 {
			return p, bad("cursor: %s is not one that a list has given", shown(s))
		}
		p.below = quota.ID(binary.BigEndian.Uint64(b))
	}
	return p, nil
}

// limit returns how many a page holds at most.
func (c *call) limit() (int, error) {
	s := c.query.Get("limit")
	if s == "" {
		return 50, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > 1000 {
		return 0, bad("limit: %s is not a number from 1 to 1000", shown(s))
	}
	return n, nil
}

// cursor continues a list after last. It holds wherever the list has changed
// meanwhile, since lists are in the order of IDs.
func cursor(last quota.ID) *string {
	b := last.Bytes()
	s := base64.RawURLEncoding.EncodeToString(b[:])
	return &s
}

// collect gathers the page of what each calls back with, newest first, as far
// as match lets it.
func collect[T any](p page, each func(quota.ID, func(*T) bool) error, match func(*T) bool) (all []*T, more bool, err error) {
	err = each(p.below, func(t *T) bool {
		if !match(t) {
			return true
		}
		if len(all) == p.limit {
			more = true
			return false
		}
		all = append(all, t)
		return true
	})
	return all, more, err
}
