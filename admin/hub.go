package admin

import (
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// The types of events.
const (
	EventAdmission  = "admission"
	EventSettlement = "settlement"
	EventRefusal    = "refusal"
	EventAlert      = "alert"
	EventChange     = "change"
)

var eventTypes = []string{EventAdmission, EventSettlement, EventRefusal, EventAlert, EventChange}

const (
	// maxReaders is how many may read events at a time.
	maxReaders = 64
	// maxRing is how many events are kept, and maxRingBytes how many bytes of
	// them: how far a reader may be behind, and how far back it may resume.
	maxRing      = 1024
	maxRingBytes = 4 << 20
	// warm is how long events are kept after the last reader has left, for it to
	// come back.
	warm = time.Minute
	// maxModel is the longest name of a model in an event; callers give it.
	maxModel = 256
)

var (
	errManyReaders = errors.New("as many clients as may read events already do; try again later")
	errHubClosed   = errors.New("the gate is being closed")
)

// Hub passes on what happens at a gate to whoever reads it live. While nobody
// does, an event costs one look at a flag. Of refusals it keeps the latest,
// for whoever comes later. It outlives the configuration, as the open ledger
// does. A nil Hub has no readers, and keeps nothing.
type Hub struct {
	on       atomic.Bool // somebody reads, or has lately
	beat     time.Duration
	refusals refusals

	mu      sync.Mutex
	ring    []*item // the last events, without gaps in their IDs
	bytes   int     // of the ring
	last    uint64  // ID of the last event
	readers map[*reader]struct{}
	cool    *time.Timer
	closed  bool
	done    chan struct{}
}

// item is an event as readers get it.
type item struct {
	id         uint64
	kind       string
	key, group Ref
	data       []byte
}

// eventFilter says which events a reader wants. The zero value: all.
type eventFilter struct {
	types      []string
	key, group Ref
}

func (f *eventFilter) takes(it *item) bool {
	return (len(f.types) == 0 || slices.Contains(f.types, it.kind)) &&
		(f.key == 0 || f.key == it.key) && (f.group == 0 || f.group == it.group)
}

// reader is one who reads. What it has yet to read is in the ring; who falls
// behind the ring is dropped.
type reader struct {
	hub    *Hub
	filter eventFilter
	pos    uint64        // ID of the last event that it has been given, or does not want
	wake   chan struct{} // there may be more
}

// NewHub returns a hub. The IDs of its events are greater than those of one
// that was made at least a second before.
func NewHub(now time.Time) *Hub {
	return &Hub{
		beat: 15 * time.Second, last: uint64(max(now.Unix(), 0)) << 20, // below 2^53 for a long time
		readers: map[*reader]struct{}{}, done: make(chan struct{}),
		refusals: refusals{since: now.UTC(), keys: map[quota.ID]*keptOfKey{}},
	}
}

// Listened tells whether it is worth while to make an event.
func (h *Hub) Listened() bool { return h != nil && h.on.Load() }

// Publish passes on an event, to which it gives its ID. It never blocks.
func (h *Hub) Publish(e Event) {
	if !h.Listened() {
		return
	}
	e.Model = e.Model[:min(len(e.Model), maxModel)]
	data, err := json.Marshal(&e)
	if err != nil { // an event holds nothing that JSON cannot
		panic(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || !h.on.Load() {
		return
	}
	h.last++
	it := &item{h.last, e.Type, e.Key, e.Group, data}
	h.ring = append(h.ring, it)
	h.bytes += len(data)
	for len(h.ring) > maxRing || (h.bytes > maxRingBytes && len(h.ring) > 1) {
		h.bytes -= len(h.ring[0].data)
		h.ring[0] = nil
		h.ring = h.ring[1:]
	}
	for r := range h.readers {
		if !r.filter.takes(it) {
			if r.pos == it.id-1 {
				r.pos = it.id
			}
			continue
		}
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// join adds a reader, which is given what comes after the event with ID last,
// as far as it is still there; 0: what comes from now on.
func (h *Hub) join(f eventFilter, last uint64) (*reader, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, errHubClosed
	}
	if len(h.readers) >= maxReaders {
		return nil, errManyReaders
	}
	if h.cool != nil {
		h.cool.Stop()
	}
	r := &reader{hub: h, filter: f, pos: h.last, wake: make(chan struct{}, 1)}
	if last > 0 && len(h.ring) > 0 {
		r.pos = min(max(last, h.ring[0].id-1), h.last)
	}
	h.readers[r] = struct{}{}
	h.on.Store(true)
	return r, nil
}

// leave ends what join began.
func (r *reader) leave() {
	h := r.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.readers, r)
	if len(h.readers) > 0 || h.closed {
		return
	}
	h.cool = time.AfterFunc(warm, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.readers) == 0 {
			h.on.Store(false)
			h.ring, h.bytes = nil, 0
		}
	})
}

// maxTake is how many events a reader is given at once.
const maxTake = 128

// take returns what r has to read, oldest first, and whether there may be more.
// ok is false when it has fallen too far behind.
func (r *reader) take() (items []*item, more, ok bool) {
	h := r.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.ring) == 0 || r.pos >= h.last {
		return nil, false, true
	}
	oldest := h.ring[0].id
	if r.pos+1 < oldest {
		return nil, false, false
	}
	for _, it := range h.ring[r.pos+1-oldest:] {
		if len(items) == maxTake {
			return items, true, true
		}
		if r.pos = it.id; r.filter.takes(it) {
			items = append(items, it)
		}
	}
	return items, false, true
}

// Close ends all readers.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	h.closed = true
	h.on.Store(false)
	if h.cool != nil {
		h.cool.Stop()
	}
	close(h.done)
}
