package admin

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// courier sends alerts to one target: what it has not tried yet in the order in
// which it fired, and before what it has to try again. It has one request under
// way at a time. post.mu guards it.
type courier struct {
	post    *post
	target  Target
	waiting []*errand // by the alert's ID
	loaded  bool      // what waited in the store before is there
	more    bool      // there may be more in the store
	gone    bool
	wake    chan struct{}
	ctx     context.Context
	cancel  context.CancelFunc
	after   chan struct{} // closed when the one before it for this target has ended
	ended   chan struct{}
}

// errand is one delivery of a courier.
type errand struct {
	letter *letter
	due    time.Time // of what is to be tried again
}

// give hands over a new alert. If too many wait, it has to be fetched from the
// store.
func (c *courier) give(l *letter) {
	switch {
	case len(c.waiting) >= maxHeld:
		c.more = true
	case l.kept && (c.more || c.untried() >= maxWaiting):
		c.more = true
	default:
		c.take(l)
		c.poke()
	}
}

func (c *courier) take(l *letter) {
	i, _ := slices.BinarySearchFunc(c.waiting, l.alert.ID, func(e *errand, id string) int { return strings.Compare(e.letter.alert.ID, id) })
	e := &errand{letter: l}
	if l.delivery(c.target.name).Attempts > 0 { // before a restart
		e.due = time.Now()
	}
	c.waiting = slices.Insert(c.waiting, i, e)
	l.holders++
}

// untried is how many alerts wait for their first attempt.
func (c *courier) untried() (n int) {
	for _, e := range c.waiting {
		if e.due.IsZero() {
			n++
		}
	}
	return n
}

func (c *courier) has(l *letter) bool {
	return slices.ContainsFunc(c.waiting, func(e *errand) bool { return e.letter == l })
}

func (c *courier) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *courier) run() {
	defer close(c.ended)
	if c.after != nil {
		<-c.after
	}
	for {
		e, wait := c.next(time.Now())
		if e != nil {
			c.post.mu.Lock()
			target := c.target
			c.post.mu.Unlock()
			after, err := target.attempt(c.ctx, c.post.client, c.post.agent, e.letter.alert)
			c.settle(e, after, err)
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-c.wake:
		case <-c.ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// next returns what is to be sent now; nil: nothing, for so long.
func (c *courier) next(now time.Time) (*errand, time.Duration) {
	c.post.mu.Lock()
	defer c.post.mu.Unlock()
	wait := time.Hour
	if !c.loaded || c.ctx.Err() != nil {
		return nil, wait
	}
	c.waiting = slices.DeleteFunc(c.waiting, func(e *errand) bool { // the courier before this one was faster
		done := e.letter.delivery(c.target.name).State != quota.DeliveryPending
		if done {
			e.letter.holders--
			c.post.file(e.letter)
		}
		return done
	})
	var first *errand
	for _, e := range c.waiting {
		if e.due.IsZero() {
			return e, 0
		}
		if first == nil || e.due.Before(first.due) {
			first = e
		}
	}
	if first == nil {
		return nil, wait
	}
	if wait = first.due.Sub(now); wait > 0 {
		return nil, wait
	}
	return first, 0
}

// settle notes what came of an attempt.
func (c *courier) settle(e *errand, after time.Duration, err error) {
	p := c.post
	p.mu.Lock()
	defer p.mu.Unlock()
	d := e.letter.delivery(c.target.name)
	if (err != nil && c.ctx.Err() != nil) || d.State != quota.DeliveryPending {
		return // it was broken off
	}
	d.Attempts++
	fields := []zap.Field{zap.String("target", d.Target), zap.String("alert", e.letter.alert.ID), zap.Int("attempts", d.Attempts)}
	switch {
	case err == nil:
		d.State, d.Error = quota.DeliveryDelivered, ""
		p.logger.Debug("a webhook was told of an alert", fields...)
	case d.Attempts > len(p.retries):
		d.State, d.Error = quota.DeliveryDead, err.Error()
		p.logger.Error("a webhook could not be told of an alert", append(fields, zap.Error(err))...)
	default:
		d.Error = err.Error()
		e.due = time.Now().Add(pause(p.retries, d.Attempts, after))
		p.logger.Warn("telling a webhook of an alert", append(fields, zap.Error(err))...)
	}
	if d.State != quota.DeliveryPending && !c.gone {
		c.waiting = slices.DeleteFunc(c.waiting, func(o *errand) bool { return o == e })
		e.letter.holders--
	}
	e.letter.dirty = true
	p.file(e.letter)
	p.notify()
}

// pause returns how long to wait after that many attempts: as the schedule
// says or, if it is longer, as the receiver does, up to the longest pause of
// the schedule.
func pause(schedule []time.Duration, attempts int, after time.Duration) time.Duration {
	d := schedule[attempts-1]
	d += time.Duration((rand.Float64()*0.4 - 0.2) * float64(d))
	return max(d, min(after, slices.Max(schedule)))
}
