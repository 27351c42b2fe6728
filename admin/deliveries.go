package admin

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

// retries are the pauses before an alert is sent again, each of them up to a
// fifth shorter or longer.
var retries = []time.Duration{5 * time.Second, 25 * time.Second, time.Minute, 150 * time.Second, 6 * time.Minute}

const (
	// maxWaiting is how many alerts wait in memory for their first attempt at one
	// target, and maxHeld with those that are to be tried again. More wait in the
	// store.
	maxWaiting = 256
	maxHeld    = 4096
	// maxFinished is how many alerts are remembered of which all is stored.
	maxFinished = 128
	// maxDead is how many deliveries are given up in one go.
	maxDead = 256
)

const noTarget = "no longer configured"

// post delivers alerts to webhooks. Who is to be told of an alert, and how far
// that has come, is stored with the alert. One goroutine for each target, its
// courier, sends; one more, the clerk, reads and writes the store, so that a
// store that hangs holds up no courier and a target that hangs no store.
type post struct {
	ledger  *ledger.Ledger
	logger  *zap.Logger
	client  *http.Client
	agent   string
	retries []time.Duration
	again   time.Duration // after which a store that failed is tried again

	ctx    context.Context
	cancel context.CancelFunc
	done   sync.WaitGroup
	wake   chan struct{} // there is work for the clerk

	mu       sync.Mutex
	applied  []appliedTargets // the newest last
	names    []string         // of the targets that hold, or held last, when the gate ends
	couriers []*courier       // in the order of the configuration
	leaving  map[string]chan struct{}
	letters  map[string]*letter // by the alert's ID: those that a courier has, or that are not stored as they are
	finished []string           // IDs of the letters that were needed no more last
	orphans  bool               // there may be deliveries to nobody
	closed   bool
}

// appliedTargets are those of a configuration that holds, or held before a
// newer one.
type appliedTargets struct {
	owner   any
	targets []Target
}

// letter is an alert on its way. Its Deliveries change; the rest does not.
type letter struct {
	alert   quota.Alert
	holders int  // couriers that have it
	kept    bool // it is in the store
	dirty   bool // the store has it otherwise
}

// delivery returns how far the target of that name has been told; nil: it is
// not to be.
func (l *letter) delivery(target string) *quota.Delivery {
	for i := range l.alert.Deliveries {
		if d := &l.alert.Deliveries[i]; d.Target == target {
			return d
		}
	}
	return nil
}

func newPost(l *ledger.Ledger, logger *zap.Logger) *post {
	p := &post{
		ledger: l, logger: logger, client: newWebhookClient(), retries: retries, again: 5 * time.Second,
		agent: "caddy-llm-quota/" + strings.Trim(Version(), "()"),
		wake:  make(chan struct{}, 1), leaving: map[string]chan struct{}{}, letters: map[string]*letter{},
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

func (p *post) start() { p.done.Go(p.clerk) }

// close ends all deliveries. What is under way is broken off and made again
// after the next start.
func (p *post) close() {
	p.mu.Lock()
	p.closed = true
	p.setTargets(nil)
	p.mu.Unlock()
	p.cancel()
	p.done.Wait()
	if err := p.save(); err != nil { // what couriers have done last
		p.logger.Warn("storing how far webhooks were told; some may be told again", zap.Error(err))
	}
	p.client.CloseIdleConnections()
}

// plan adds to an alert the deliveries that it is to have.
func (p *post) plan(alert *quota.Alert) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range p.names {
		alert.Deliveries = append(alert.Deliveries, quota.Delivery{Target: name, State: quota.DeliveryPending})
	}
}

// add takes an alert that was planned. One that is not kept yet is stored, too.
func (p *post) add(alert quota.Alert, kept bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	if slices.Contains(p.finished, alert.ID) { // the clerk has found it in the store before
		return
	}
	l := p.letters[alert.ID]
	if l == nil {
		l = &letter{alert: alert, kept: kept, dirty: !kept}
		l.alert.Deliveries = slices.Clone(alert.Deliveries)
	}
	for _, d := range alert.Deliveries {
		switch c := p.courier(d.Target); {
		case c == nil:
			p.orphans = true // the configuration has changed meanwhile
		case !c.has(l) && l.delivery(d.Target).State == quota.DeliveryPending:
			c.give(l)
		}
	}
	p.file(l)
	p.notify()
}

// file keeps a letter as long as it is needed.
func (p *post) file(l *letter) {
	if l.holders > 0 || l.dirty {
		p.letters[l.alert.ID] = l
	} else if p.letters[l.alert.ID] != nil {
		delete(p.letters, l.alert.ID)
		p.finished = append(p.finished, l.alert.ID)
		p.finished = p.finished[max(0, len(p.finished)-maxFinished):]
	}
}

func (p *post) notify() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *post) courier(target string) *courier {
	i := slices.IndexFunc(p.couriers, func(c *courier) bool { return c.target.name == target })
	if i < 0 {
		return nil
	}
	return p.couriers[i]
}

// apply makes targets those that hold.
func (p *post) apply(owner any, targets []Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.applied = append(p.applied, appliedTargets{owner, targets})
	p.changed()
}

// withdraw takes back what owner applied.
func (p *post) withdraw(owner any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.applied)
	p.applied = slices.DeleteFunc(p.applied, func(a appliedTargets) bool { return a.owner == owner })
	if len(p.applied) < n {
		p.changed()
	}
}

// changed brings the couriers in accord with the newest configuration. Only
// once there is no other, to which there might be a way back, are deliveries to
// targets that it lacks given up.
func (p *post) changed() {
	if p.closed {
		return
	}
	var targets []Target
	if n := len(p.applied); n > 0 {
		targets = p.applied[n-1].targets
		p.names = nil
		for _, t := range targets {
			p.names = append(p.names, t.name)
		}
	}
	p.setTargets(targets)
	p.orphans = p.orphans || len(p.applied) == 1
	p.notify()
}

func (p *post) setTargets(targets []Target) {
	maps.DeleteFunc(p.leaving, func(_ string, ended chan struct{}) bool {
		select {
		case <-ended:
			return true
		default:
			return false
		}
	})
	was := p.couriers
	p.couriers = nil
	for _, t := range targets {
		i := slices.IndexFunc(was, func(c *courier) bool { return c.target.name == t.name })
		if i >= 0 {
			was[i].target = t // its query, secret or format may be others
			p.couriers = append(p.couriers, was[i])
			was = slices.Delete(was, i, i+1)
			continue
		}
		c := &courier{post: p, target: t, more: true, wake: make(chan struct{}, 1), ended: make(chan struct{}), after: p.leaving[t.name]}
		c.ctx, c.cancel = context.WithCancel(p.ctx)
		p.couriers = append(p.couriers, c)
		p.done.Go(c.run)
	}
	for _, c := range was {
		c.cancel()
		c.gone = true
		p.leaving[c.target.name] = c.ended
		for _, e := range c.waiting {
			e.letter.holders--
			p.file(e.letter)
		}
		c.waiting = nil
	}
}

// clerk reads what is to be delivered from the store, and writes how far it has
// come.
func (p *post) clerk() {
	for {
		var again <-chan time.Time
		if err := errors.Join(p.save(), p.refill(), p.bury()); err != nil {
			again = time.After(p.again) // the ledger tells of a store that fails
		}
		select {
		case <-p.wake:
		case <-again:
		case <-p.ctx.Done():
			return
		}
	}
}

// save stores the letters that have changed.
func (p *post) save() error {
	p.mu.Lock()
	var dirty []*letter
	for _, l := range p.letters {
		if l.dirty {
			dirty = append(dirty, l)
		}
	}
	p.mu.Unlock()
	slices.SortFunc(dirty, func(a, b *letter) int { return strings.Compare(a.alert.ID, b.alert.ID) })
	for _, l := range dirty {
		p.mu.Lock()
		l.dirty = false
		now := l.alert
		now.Deliveries = slices.Clone(l.alert.Deliveries)
		p.mu.Unlock()
		err := p.store(&now, l.kept)
		p.mu.Lock()
		if err == nil {
			l.kept = true
		} else {
			l.dirty = true
		}
		p.file(l)
		p.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *post) store(alert *quota.Alert, kept bool) error {
	if !kept {
		return p.ledger.KeepAlert(*alert)
	}
	id, err := quota.ParseNoteID(alert.ID)
	if err == nil {
		err = p.ledger.UpdateAlert(id, func(a *quota.Alert) { a.Deliveries = alert.Deliveries })
	}
	if errors.Is(err, quota.ErrNotFound) {
		return nil // it is so old that it was dropped
	}
	return err
}

// refill gives couriers what waits for them in the store, the oldest first.
func (p *post) refill() error {
	p.mu.Lock()
	want := map[string][]*quota.Alert{}
	held := map[string]map[string]bool{}
	for _, c := range p.couriers {
		if c.more && c.untried() <= maxWaiting/2 && len(c.waiting) < maxHeld {
			want[c.target.name] = nil
			c.more = false // what comes from now on is not in what is read
			ids := make(map[string]bool, len(c.waiting))
			for _, e := range c.waiting {
				ids[e.letter.alert.ID] = true
			}
			held[c.target.name] = ids
		}
	}
	p.mu.Unlock()
	if len(want) == 0 {
		return nil
	}
	over := map[string]bool{}
	err := p.ledger.Alerts(0, func(a *quota.Alert) bool {
		for _, d := range a.Deliveries {
			if list, ok := want[d.Target]; ok && d.State == quota.DeliveryPending && !held[d.Target][a.ID] {
				if len(list) == maxWaiting {
					list, over[d.Target] = list[1:], true // there are older ones
				}
				want[d.Target] = append(list, a)
			}
		}
		return p.ctx.Err() == nil
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	for target, list := range want {
		c := p.courier(target)
		if c == nil {
			continue
		}
		c.more = c.more || over[target] || err != nil
		c.loaded = true // a store that cannot be read holds nothing up
		for _, a := range slices.Backward(list) {
			p.resume(c, a)
		}
		c.poke()
	}
	return err
}

// resume gives a courier an alert that the store has, unless it has it already
// or memory knows better.
func (p *post) resume(c *courier, a *quota.Alert) {
	l := p.letters[a.ID]
	if l == nil {
		l = &letter{alert: *a, kept: true}
	}
	if d := l.delivery(c.target.name); d == nil || d.State != quota.DeliveryPending || c.has(l) {
		return
	}
	c.take(l)
	p.file(l)
}

// bury gives up the deliveries to targets that are no longer configured.
func (p *post) bury() error {
	for p.ctx.Err() == nil {
		p.mu.Lock()
		if !p.orphans || len(p.applied) != 1 {
			p.mu.Unlock()
			return nil
		}
		names := map[string]bool{}
		for _, c := range p.couriers {
			names[c.target.name] = true
		}
		p.orphans = false
		for _, l := range p.letters { // those in memory are written by save
			if giveUp(&l.alert, names) {
				l.dirty = true
				p.notify()
			}
		}
		p.mu.Unlock()
		var dead []string
		err := p.ledger.Alerts(0, func(a *quota.Alert) bool {
			if giveUp(a, names) {
				dead = append(dead, a.ID)
			}
			return len(dead) < maxDead && p.ctx.Err() == nil
		})
		for _, s := range dead {
			id, bad := quota.ParseNoteID(s)
			if err = errors.Join(err, bad); err == nil {
				err = p.ledger.UpdateAlert(id, func(a *quota.Alert) { giveUp(a, names) })
			}
		}
		p.mu.Lock()
		p.orphans = p.orphans || err != nil || len(dead) == maxDead
		p.mu.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// giveUp makes the pending deliveries of an alert dead whose targets are not
// among names, and tells whether there were any.
func giveUp(a *quota.Alert, names map[string]bool) (any bool) {
	for i := range a.Deliveries {
		if d := &a.Deliveries[i]; d.State == quota.DeliveryPending && !names[d.Target] {
			d.State, d.Error, any = quota.DeliveryDead, noTarget, true
		}
	}
	return any
}
