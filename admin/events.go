package admin

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// maxWrite is how long a client may take for what it is sent.
const maxWrite = 15 * time.Second

// showEvents answers with what happens, as server-sent events, until the client
// leaves or the configuration does. Whoever connects again with Last-Event-ID
// has missed nothing that is still kept.
func showEvents(c *call) error {
	f, err := c.eventFilter()
	if err != nil {
		return err
	}
	hub := c.gate.Hub()
	if hub == nil {
		return fail(http.StatusServiceUnavailable, "there are no live events")
	}
	var last uint64 // 0 if it is not one of ours
	last, _ = strconv.ParseUint(c.r.Header.Get("Last-Event-ID"), 10, 64)
	r, err := hub.join(f, last)
	if err != nil {
		return fail(http.StatusServiceUnavailable, "%w", err)
	}
	defer r.leave()
	h := c.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // a proxy before us must not collect events
	if c.r.Method == http.MethodHead {
		return nil
	}
	s := &eventStream{w: c.w, rc: http.NewResponseController(c.w)}
	// A deadline for reading would end the watch for the client's leaving, and
	// with it the request.
	s.rc.SetReadDeadline(time.Time{})        //nolint:errcheck // a writer that has none
	defer s.rc.SetWriteDeadline(time.Time{}) //nolint:errcheck // a writer that has none
	s.printf("retry: 2000\n\n")
	s.follow(c, r)
	return nil
}

func (c *call) eventFilter() (f eventFilter, err error) {
	if err = c.params("types", "key", "group"); err != nil {
		return f, err
	}
	if s := c.query.Get("types"); s != "" {
		f.types = strings.Split(s, ",")
		for _, t := range f.types {
			if !slices.Contains(eventTypes, t) {
				return f, bad("types: %s is not one of %s", shown(t), strings.Join(eventTypes, ", "))
			}
		}
	}
	key, err := c.account(quota.KindKey, "key")
	if err != nil {
		return f, err
	}
	group, err := c.account(quota.KindGroup, "group")
	f.key, f.group = Ref(key), Ref(group)
	return f, err
}

// eventStream is an answer of which each piece is sent at once.
type eventStream struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	err error // that ended it
}

func (s *eventStream) printf(format string, args ...any) {
	if s.err != nil {
		return
	}
	s.rc.SetWriteDeadline(time.Now().Add(maxWrite)) //nolint:errcheck // a writer that has none
	if _, s.err = fmt.Fprintf(s.w, format, args...); s.err == nil {
		s.err = s.rc.Flush()
	}
}

func (s *eventStream) send(items []*item) {
	var b strings.Builder
	for _, it := range items {
		fmt.Fprintf(&b, "id: %d\nevent: %s\ndata: %s\n\n", it.id, it.kind, it.data)
	}
	s.printf("%s", b.String())
}

// follow sends what the reader gets.
func (s *eventStream) follow(c *call, r *reader) {
	beat := time.NewTicker(r.hub.beat)
	defer beat.Stop()
	// Caddy's admin endpoint waits for its requests when the process ends, and
	// says nothing to them.
	exit := time.NewTicker(time.Second)
	defer exit.Stop()
	for s.err == nil {
		items, more, ok := r.take()
		if !ok {
			s.printf(": too slow\n\n")
			return
		}
		if len(items) > 0 {
			s.send(items)
		}
		if more {
			continue
		}
		select {
		case <-r.wake:
		case <-beat.C:
			s.printf(":\n\n")
		case <-exit.C:
			if caddy.Exiting() {
				return
			}
		case <-r.hub.done:
			return
		case <-c.gate.Done():
			return
		case <-c.r.Context().Done():
			return
		}
	}
}
