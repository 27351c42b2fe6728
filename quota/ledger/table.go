package ledger

import (
	"encoding/binary"
	"strings"
	"sync"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// table is a map for many goroutines: cut into shards so that they seldom
// wait for one another, and without allocation on a look-up.
type table[K comparable, V any] struct {
	hash   func(K) uint64
	shards [64]struct {
		mu sync.RWMutex
		m  map[K]V
	}
}

func idHash(id quota.ID) uint64 { return uint64(id) * 0x9E3779B97F4A7C15 >> 58 }

// shortHash is the first half of a secret's keyed hash: 128 bits, of which no
// two are ever alike by chance, in half the memory.
type shortHash [16]byte

func short(h quota.SecretHash) shortHash { return shortHash(h[:16]) }

func (h shortHash) shard() uint64 { return binary.LittleEndian.Uint64(h[:]) >> 58 }

func (t *table[K, V]) init(hash func(K) uint64) {
	t.hash = hash
	for i := range t.shards {
		t.shards[i].m = make(map[K]V)
	}
}

func (t *table[K, V]) get(k K) (V, bool) {
	s := &t.shards[t.hash(k)]
	s.mu.RLock()
	v, ok := s.m[k]
	s.mu.RUnlock()
	return v, ok
}

func (t *table[K, V]) put(k K, v V) {
	s := &t.shards[t.hash(k)]
	s.mu.Lock()
	s.m[k] = v
	s.mu.Unlock()
}

// add puts v unless there is a value already, and returns the one that stays.
func (t *table[K, V]) add(k K, v V) V {
	s := &t.shards[t.hash(k)]
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.m[k]; ok {
		return old
	}
	s.m[k] = v
	return v
}

func (t *table[K, V]) remove(k K) {
	s := &t.shards[t.hash(k)]
	s.mu.Lock()
	delete(s.m, k)
	s.mu.Unlock()
}

// removeIf removes the entries whose value is to go.
func (t *table[K, V]) removeIf(gone func(V) bool) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for k, v := range s.m {
			if gone(v) {
				delete(s.m, k)
			}
		}
		s.mu.Unlock()
	}
}

// all returns the values of every shard, one shard's at a time.
func (t *table[K, V]) all(yield func(V) bool) {
	var vs []V
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.RLock()
		vs = vs[:0]
		for _, v := range s.m {
			vs = append(vs, v)
		}
		s.mu.RUnlock()
		for _, v := range vs {
			if !yield(v) {
				return
			}
		}
	}
}

// names is a bounded set of model names. Each key may bring a part of them, so
// that no caller can spoil the reports of the others.
type names struct {
	most, perKey, unproven int

	mu    sync.RWMutex
	m     map[string]struct{}
	byKey map[quota.ID]int // how many names each key brought
}

const (
	maxNameLen = 128
	otherName  = "other"
)

func newNames(most, perKey, unproven int) *names {
	return &names{most: most, perKey: perKey, unproven: unproven, m: map[string]struct{}{}, byKey: map[quota.ID]int{}}
}

// name returns the name under which a call of key is counted. proven says that
// the call ended well: any call may bring a new name only while there are few.
func (n *names) name(key quota.ID, s string, proven bool) string {
	if s == "" {
		return s
	}
	n.mu.RLock()
	_, ok := n.m[s]
	room := n.room(key, proven)
	n.mu.RUnlock()
	if ok {
		return s
	}
	if !room || len(s) > maxNameLen || !quota.Printable(s) {
		return otherName
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.m[s]; ok {
		return s
	}
	if !n.room(key, proven) { // another has taken it meanwhile
		return otherName
	}
	n.m[strings.Clone(s)] = struct{}{} // s may be a piece of something large
	n.byKey[key]++
	return s
}

// room tells whether a call of key may bring a new name. mu is held.
func (n *names) room(key quota.ID, proven bool) bool {
	return len(n.m) < n.most && n.byKey[key] < n.perKey && (proven || len(n.m) < n.unproven)
}
