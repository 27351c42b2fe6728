package admin

import (
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// The orders in which keys are listed. A "-" before one turns it around.
const (
	byCreated  = "created"   // the newest first
	byName     = "name"      // from A to Z, in any case
	byLastUsed = "last_used" // the latest first, those that were never used last
	byUsed     = "used"      // those first that have used most of their quota
)

// order is how a list of keys is sorted.
type order struct {
	sort   string // as it is asked for
	place  func(*quota.Key) (place, error)
	around bool
}

// place is where a key stands in an order: by its text, then by its number,
// the greatest first, then by its ID, the newest first. It is what a cursor
// holds, so that a page begins after the last one whatever has changed
// meanwhile.
type place struct {
	text   string
	number int64
	id     quota.ID
}

// order reads the parameter sort.
func (c *call) order() (*order, error) {
	o := &order{sort: cmp.Or(c.query.Get("sort"), byCreated)}
	name, around := strings.CutPrefix(o.sort, "-")
	o.around = around
	switch name {
	case byCreated:
		o.place = func(k *quota.Key) (place, error) { return place{id: k.ID}, nil }
	case byName:
		o.place = func(k *quota.Key) (place, error) { return place{text: strings.ToLower(k.Name), id: k.ID}, nil }
	case byLastUsed:
		o.place = func(k *quota.Key) (place, error) {
			at, err := c.ledger.LastUsed(k.ID)
			if err != nil || at.IsZero() {
				return place{id: k.ID}, err
			}
			return place{number: at.UnixNano(), id: k.ID}, nil
		}
	case byUsed:
		o.place = func(k *quota.Key) (place, error) {
			share, err := c.shareUsed(k.ID)
			return place{number: int64(math.Float64bits(share)), id: k.ID}, err //nolint:gosec // positive floats are in the order of their bits
		}
	default:
		return nil, bad("sort: %s is not created, name, last_used or used, nor one of them after a -", shown(o.sort))
	}
	return o, nil
}

// shareUsed returns the share of its quota that a key has used; 0 if it has
// none. Of a key that was never used nothing is brought into memory.
func (c *call) shareUsed(id quota.ID) (float64, error) {
	if at, err := c.ledger.LastUsed(id); err != nil || at.IsZero() {
		return 0, err
	}
	s, err := c.ledger.State(c.now, id)
	if err != nil {
		return 0, err
	}
	for _, l := range s.Limits {
		if l.Limit == quota.TokenQuota {
			return float64(max(l.Used, 0)) / float64(max(l.Max, 1)), nil
		}
	}
	return 0, nil
}

// compare returns which of two places comes first.
func (o *order) compare(a, b place) int {
	if o.around {
		a, b = b, a
	}
	return cmp.Or(cmp.Compare(a.text, b.text), cmp.Compare(b.number, a.number), cmp.Compare(b.id, a.id))
}

// cursor continues a list after a place.
func (o *order) cursor(at place) *string {
	if o.sort == byCreated {
		return cursor(at.id)
	}
	id := at.id.Bytes()
	b := binary.BigEndian.AppendUint64(id[:], uint64(at.number)) //nolint:gosec // the bits alone matter
	b = append(append(append(b, o.sort...), 0), at.text...)
	s := base64.RawURLEncoding.EncodeToString(b)
	return &s
}

// after returns the place after which the page begins that is asked for; zero
// if it is the first.
func (c *call) after(o *order) (at place, err error) {
	s := c.query.Get("cursor")
	if s == "" {
		return at, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) < 8 || binary.BigEndian.Uint64(b) == 0 {
		return at, bad("cursor: %s is not one that a list has given", shown(s))
	}
	at.id = quota.ID(binary.BigEndian.Uint64(b))
	sort := byCreated
	if b = b[8:]; len(b) > 0 {
		var whole bool
		if len(b) > 8 {
			at.number = int64(binary.BigEndian.Uint64(b)) //nolint:gosec // the bits alone matter
			sort, at.text, whole = strings.Cut(string(b[8:]), "\x00")
		}
		if !whole {
			return at, bad("cursor: %s is not one that a list has given", shown(s))
		}
	}
	if sort != o.sort {
		return at, bad("cursor: %s continues a list with sort=%s, not %s", shown(s), shown(sort), o.sort)
	}
	return at, nil
}

// listed gathers the page of limit keys after a place, and the cursor of the
// next. In all orders but that of the store it looks at every key that
// matches, and keeps hardly more of them than it returns.
func (c *call) listed(o *order, after place, limit int, each func(quota.ID, func(*quota.Key) bool) error, match func(*quota.Key) bool) (keys []*quota.Key, next *string, err error) {
	if o.sort == byCreated {
		keys, more, err := collect(page{after.id, limit}, each, match)
		if err == nil && more {
			next = cursor(keys[limit-1].ID)
		}
		return keys, next, err
	}
	type row struct {
		place
		key *quota.Key
	}
	var rows []row
	cut := func() {
		slices.SortFunc(rows, func(a, b row) int { return o.compare(a.place, b.place) })
		clear(rows[min(len(rows), limit+1):])
		rows = rows[:min(len(rows), limit+1)]
	}
	var failed error
	err = each(0, func(k *quota.Key) bool {
		if !match(k) {
			return true
		}
		r := row{key: k}
		if r.place, failed = o.place(k); failed != nil || c.r.Context().Err() != nil { // or nobody waits any more
			return false
		}
		if after.id == 0 || o.compare(r.place, after) > 0 {
			if rows = append(rows, r); len(rows) > 2*limit+1 {
				cut()
			}
		}
		return true
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, nil, err
	}
	if cut(); len(rows) > limit {
		rows = rows[:limit]
		next = o.cursor(rows[limit-1].place)
	}
	keys = make([]*quota.Key, len(rows))
	for i, r := range rows {
		keys[i] = r.key
	}
	return keys, next, nil
}
