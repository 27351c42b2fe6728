package ledger

import (
	"encoding/binary"
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

// names is a bounded set of model names.
type names struct {
	mu sync.RWMutex
	m  map[string]struct{}
}

const (
	maxNames       = 1000 // names that calls which ended well may take
	maxUnproven    = 100  // up to here any call may bring a new name
	maxNameLen     = 128
	otherName      = "other"
	unreadableName = ""
)

func (n *names) init() { n.m = make(map[string]struct{}) }

func (n *names) name(s string, proven bool) string {
	if s == unreadableName {
		return s
	}
	n.mu.RLock()
	_, ok := n.m[s]
	size := len(n.m)
	n.mu.RUnlock()
	if ok {
		return s
	}
	if size >= maxNames || (!proven && size >= maxUnproven) || len(s) > maxNameLen || !quota.Printable(s) {
		return otherName
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.m) >= maxNames {
		return otherName
	}
	n.m[s] = struct{}{}
	return s
}
