package admin

import (
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// Names of the events that the gate emits through Caddy's events app.
const (
	EventThreshold      = "llm_quota.threshold"
	EventExceeded       = "llm_quota.exceeded"
	EventReset          = "llm_quota.reset"
	EventStoreDegraded  = "llm_quota.store_degraded"
	EventStoreRecovered = "llm_quota.store_recovered"
)

// Announcer tells Caddy's events app what happens to a gate. It has a goroutine
// of its own, since handlers of events run in the one that emits, and it
// outlives the configuration, as the open ledger does.
type Announcer struct {
	logger *zap.Logger
	gate   func() (Gate, error)
	queue  chan announcement
	quit   chan struct{}
	done   sync.WaitGroup
}

type announcement struct {
	event string
	data  map[string]any
}

// maxAnnouncements is how many events may wait; what comes on top is dropped.
const maxAnnouncements = 256

// NewAnnouncer starts one, until Close.
func NewAnnouncer(logger *zap.Logger) *Announcer {
	a := &Announcer{
		logger: logger, gate: running,
		queue: make(chan announcement, maxAnnouncements), quit: make(chan struct{}),
	}
	a.done.Go(a.run)
	return a
}

// Emit passes on an event. It never blocks.
func (a *Announcer) Emit(event string, data map[string]any) {
	select {
	case a.queue <- announcement{event, data}:
	default:
		a.logger.Warn("too many events wait: one is dropped", zap.String("event", event))
	}
}

// Close passes on what waits, if there is a gate to emit it, and ends.
func (a *Announcer) Close() {
	close(a.quit)
	a.done.Wait()
}

func (a *Announcer) run() {
	for {
		select {
		case e := <-a.queue:
			a.emit(e)
		case <-a.quit:
			for len(a.queue) > 0 {
				a.emit(<-a.queue)
			}
			return
		}
	}
}

// emit waits a little for the gate, which is not running yet while Caddy starts.
func (a *Announcer) emit(e announcement) {
	for range 50 {
		gate, err := a.gate()
		if err == nil {
			gate.Emit(e.event, e.data)
			return
		}
		select {
		case <-a.quit:
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
	a.logger.Warn("an event has nobody to emit it", zap.String("event", e.event))
}

// Health tells how the store does: in the log, and as an event.
func (a *Announcer) Health(h ledger.Health, well bool) {
	data := map[string]any{"op": h.Op, "error": h.Err.Error(), "since": h.Since}
	switch {
	case well:
		a.logger.Info("the store works again", zap.String("op", h.Op), zap.Time("since", h.Since))
		a.Emit(EventStoreRecovered, data)
		return
	case h.Damaged:
		a.logger.Error("the store has lost something; see to it, and remove what it names", zap.Error(h.Err))
	default:
		a.logger.Error("the store fails; limits do as on_store_error says", zap.String("op", h.Op), zap.Error(h.Err))
	}
	a.Emit(EventStoreDegraded, data)
}
