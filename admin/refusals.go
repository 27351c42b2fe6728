package admin

import (
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

const (
	// maxRefusals is how many refusals are kept: some 500 KB, when all name long
	// models.
	maxRefusals = 1000
	// maxRefusalsOfKey is how many of them may be one key's, so that a client
	// which goes on trying does not push out those of all others.
	maxRefusalsOfKey = 100
)

// refusals are the latest refusals of known keys, in memory. Each is in two
// lists: that of all, and that of its key.
type refusals struct {
	mu             sync.Mutex
	since          time.Time // those of all keys that are later are kept, or their keys know
	last           quota.NoteID
	n              int
	oldest, newest *kept
	keys           map[quota.ID]*keptOfKey // those of which any is kept
}

// kept is a refusal that is kept.
type kept struct {
	Refusal      // without its ID
	id           quota.NoteID
	older, newer *kept
	next         *kept // the next newer one of the same key
}

// keptOfKey are the refusals of one key.
type keptOfKey struct {
	n              int
	oldest, newest *kept
	// lost is the time of the latest that gave way to others of the same key, and
	// lostOf the group that the key was in then. Zero: none has.
	lost   time.Time
	lostOf Ref
}

// add keeps a refusal. It may keep a copy of the model, and nothing else that
// callers have sent.
func (l *refusals) add(r Refusal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	it := l.room(r.Key)
	if r.Model = r.Model[:min(len(r.Model), maxModel)]; r.Model == it.Model {
		r.Model = it.Model // which is a copy already
	} else {
		r.Model = strings.Clone(r.Model)
	}
	l.last = quota.NextNoteID(l.last, r.Time)
	*it = kept{Refusal: r, id: l.last, older: l.newest}
	if l.newest != nil {
		l.newest.newer = it
	} else {
		l.oldest = it
	}
	l.newest = it
	l.n++
	k := l.keys[r.Key]
	if k == nil {
		k = new(keptOfKey)
		l.keys[r.Key] = k
	}
	if k.newest != nil {
		k.newest.next = it
	} else {
		k.oldest = it
	}
	k.newest = it
	k.n++
}

// room returns where one of that key is put: where one was that gives way to
// it, once there are enough.
func (l *refusals) room(key quota.ID) *kept {
	if k := l.keys[key]; k != nil && k.n == maxRefusalsOfKey {
		it := k.oldest
		if it.Group != k.lostOf { // one group is all that a key remembers
			l.since = later(l.since, k.lost)
		}
		k.lost, k.lostOf = it.Time, it.Group
		l.remove(it)
		return it
	}
	if l.n < maxRefusals {
		return new(kept)
	}
	it := l.oldest
	l.since = later(l.since, it.Time)
	l.remove(it)
	return it
}

// remove takes out one that is the oldest of its key.
func (l *refusals) remove(it *kept) {
	if it.older != nil {
		it.older.newer = it.newer
	} else {
		l.oldest = it.newer
	}
	if it.newer != nil {
		it.newer.older = it.older
	} else {
		l.newest = it.older
	}
	l.n--
	k := l.keys[it.Key]
	if k.oldest = it.next; k.oldest == nil {
		delete(l.keys, it.Key)
	}
	k.n--
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// refusalFilter says which refusals are asked for. The zero value: all.
type refusalFilter struct {
	key      quota.ID
	groups   map[quota.ID]bool // nil: all, and those of keys without a group
	decision string
}

func (f *refusalFilter) takes(r *Refusal) bool {
	return (f.key == 0 || f.key == r.Key) && (f.groups == nil || f.groups[quota.ID(r.Group)]) &&
		(f.decision == "" || f.decision == r.Decision)
}

// read returns a page of those that are kept, and the ID of the last one on it
// if there are more.
func (l *refusals) read(f refusalFilter, p page) (answer Refusals, more quota.NoteID) {
	answer = Refusals{Refusals: []Refusal{}, ByReason: map[quota.Reason]int{}}
	l.mu.Lock()
	defer l.mu.Unlock()
	answer.Since = l.since
	for id, k := range l.keys {
		if (f.key == 0 || f.key == id) && (f.groups == nil || f.groups[quota.ID(k.lostOf)]) {
			answer.Since = later(answer.Since, k.lost)
		}
	}
	var last quota.NoteID
	for it := l.newest; it != nil; it = it.older {
		if !f.takes(&it.Refusal) {
			continue
		}
		answer.ByReason[it.Reason]++
		switch {
		case p.below != 0 && it.id >= quota.NoteID(p.below):
		case len(answer.Refusals) == p.limit:
			more = last
		default:
			r := it.Refusal
			r.ID, last = it.id.String(), it.id
			answer.Refusals = append(answer.Refusals, r)
		}
	}
	return answer, more
}

// listRefusals answers with what was refused lately, or would have been.
func listRefusals(c *call) error {
	if err := c.params("key", "group", "decision", "limit", "cursor"); err != nil {
		return err
	}
	var f refusalFilter
	var err error
	if f.decision, err = c.oneOf("decision", Refuse, Observe); err != nil {
		return err
	}
	if f.key, err = c.account(quota.KindKey, "key"); err != nil {
		return err
	}
	group, err := c.account(quota.KindGroup, "group")
	if err != nil {
		return err
	}
	if group != 0 {
		if f.groups, err = c.ledger.Descendants(group); err != nil {
			return err
		}
	}
	p, err := c.page()
	if err != nil {
		return err
	}
	hub := c.gate.Hub()
	if hub == nil {
		return fail(http.StatusServiceUnavailable, "no refusals are kept")
	}
	answer, more := hub.refusals.read(f, p)
	if more != 0 {
		answer.NextCursor = cursor(quota.ID(more))
	}
	return c.json(http.StatusOK, answer)
}
