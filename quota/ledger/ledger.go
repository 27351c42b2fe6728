// Package ledger is the engine: it admits calls against the limits of a key
// and all its groups in one step, charges what they used, and keeps the books.
//
// Memory is the authority and the store the journal: admission and settlement
// touch memory alone and append a line to the journal, which is written (not
// synced) before they return, so that it survives the death of the process.
// Checkpoint, called every few seconds, moves the journal into tables. At
// start the tables are read lazily and what the journal has beyond them is
// applied again, once.
//
// Time is an argument everywhere. Periods follow the wall clock of now; the
// windows of per-minute limits follow its monotonic clock, where it has one, so
// that a step of the wall clock neither frees nor blocks anybody.
package ledger

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Ledger admits and charges calls. Its methods may be called from several
// goroutines.
type Ledger struct {
	*state
	author quota.Author // of the changes that are made through it
}

// state is what all that is made of one ledger by As shares.
type state struct {
	store  quota.Store
	hasher *quota.Hasher // of secrets
	report func(op string, err error)

	base     time.Time    // the origin of the windows' clock, with its monotonic reading
	seen     atomic.Int64 // the latest time there was, Unix nanoseconds; see wall
	ill      atomic.Pointer[Health]
	onHealth func(Health, bool)
	onChange func(quota.Change)
	onAlert  func(quota.Alert)
	onReset  func(ResetEvent)
	onPlan   func(*quota.Alert)
	settings atomic.Pointer[settings]
	accounts table[quota.ID, *Account]
	secrets  table[shortHash, login]
	models   *names       // of the history
	labels   *names       // of metrics
	open     atomic.Int64 // open reservations
	held     atomic.Int64 // tokens that they hold
	overage  atomic.Int64 // tokens settled beyond what was held

	// directory is held for writing while keys or groups change, and for
	// reading while one is loaded, so that none is loaded half changed.
	directory sync.RWMutex
	lastID    quota.ID
	counted   bool  // keys and groups hold, see Status
	keys      int64 // living keys
	groups    int64 // living groups

	dirtyMu    sync.Mutex
	dirty      []*Account // accounts changed since the last checkpoint
	resolved   []uint64   // kept reservations that are open no more
	resolvedBy uint64     // the last record that resolved one

	// Provisional settlements that the store does not have yet, and names of
	// those whose outcome is known that it may still have.
	laterMu     sync.Mutex
	provisional map[quota.Later]*quota.Record
	corrected   map[quota.Later]bool

	noting      atomic.Pointer[notes] // of the account that align reads the history of, or nil
	alignMu     sync.Mutex            // held by align while it reads the history; before checkpointMu
	alerts      atomic.Pointer[alertRules]
	alerted     map[alertKey]alerted // inspecting guards it
	inspecting  sync.Mutex           // held while alerts are looked for
	alertMu     sync.Mutex
	uninspected []*Account // collected for a checkpoint since the last inspection; dirtyMu guards it

	noteMu   sync.Mutex
	lastNote quota.NoteID

	checkpointMu   sync.Mutex
	waiting        []quota.Checkpoint // made, not yet written
	lastCheckpoint int64              // tick
	lastSweep      int64              // tick
	lastPrune      int64              // Unix seconds
	lastNotePrune  int64              // tick
	retention      [len(quota.Steps)]time.Duration
}

// login is what a secret opens, and until when (Unix nanoseconds; 0: no end).
type login struct {
	account *Account
	until   int64
}

// DefaultRetention is how long usage is kept in minutes, quarters of an hour
// and days.
var DefaultRetention = [len(quota.Steps)]time.Duration{
	quota.StepMinute:  48 * time.Hour,
	quota.StepQuarter: 90 * 24 * time.Hour,
	quota.StepDay:     1095 * 24 * time.Hour,
}

// Open returns the ledger that st holds. Reservations that were open when the
// process ended are charged at what they held, as estimated and failed calls.
// report is told of store errors that do not stop the gate; it must not block.
func Open(st quota.Store, now time.Time, report func(op string, err error)) (*Ledger, error) {
	l := &Ledger{state: &state{
		store: st, hasher: quota.NewHasher(st.HashKey()), report: report, base: now, retention: DefaultRetention,
		provisional: map[quota.Later]*quota.Record{}, corrected: map[quota.Later]bool{},
		alerted: map[alertKey]alerted{},
	}}
	l.settings.Store(&settings{zone: "UTC"})
	l.seen.Store(now.UnixNano())
	l.accounts.init(idHash)
	l.secrets.init(shortHash.shard)
	l.models, l.labels = newNames(10_000, 200, 1000), newNames(1000, 100, 100)
	if err := l.findLastID(); err != nil {
		return nil, fmt.Errorf("reading keys and groups: %w", err)
	}
	if err := l.findLastNote(); err != nil {
		return nil, fmt.Errorf("reading notes: %w", err)
	}
	if err := l.recover(now); err != nil {
		return nil, fmt.Errorf("recovering the ledger: %w", err)
	}
	return l, nil
}

// Close writes what is outstanding and closes the store.
func (l *Ledger) Close(now time.Time) error {
	err := l.Checkpoint(now)
	if err == nil {
		err = l.inspect(now) // the next start would not know whom
	}
	return errors.Join(err, l.store.Sync(now.UnixNano()), l.store.Close())
}

// Sync returns when everything settled so far survives a power loss.
func (l *Ledger) Sync(now time.Time) error { return l.store.Sync(now.UnixNano()) }

func (l *Ledger) setRetention(r [len(quota.Steps)]time.Duration) {
	l.checkpointMu.Lock()
	defer l.checkpointMu.Unlock()
	for i, d := range r {
		if d <= 0 {
			d = DefaultRetention[i]
		}
		l.retention[i] = d
	}
}

// Retention returns how long usage is kept in each step.
func (l *Ledger) Retention() [len(quota.Steps)]time.Duration {
	l.checkpointMu.Lock()
	defer l.checkpointMu.Unlock()
	return l.retention
}

// Zone returns the name of the time zone of accounts that name none.
func (l *Ledger) Zone() string { return l.settings.Load().zone }

// Model returns the name under which metrics count a model that a key has
// called: its own or, once too many different ones have been seen, "other".
// succeeded says that the call ended well.
func (l *Ledger) Model(key *Account, name string, succeeded bool) string {
	return l.labels.name(key.id, name, succeeded)
}

// Status is what the ledger says of itself.
type Status struct {
	Store            quota.StoreInfo
	OpenReservations int64
	ReservedTokens   int64
	OverageTokens    int64 // settled beyond what was reserved, since the start
	Keys, Groups     int64 // living
}

// Status returns the ledger's state. The first call counts the keys.
func (l *Ledger) Status() (Status, error) {
	l.directory.Lock()
	defer l.directory.Unlock()
	if !l.counted {
		if err := l.count(); err != nil {
			return Status{}, fmt.Errorf("counting keys and groups: %w", err)
		}
	}
	return Status{
		Store:            l.store.Info(),
		OpenReservations: l.open.Load(),
		ReservedTokens:   l.held.Load(),
		OverageTokens:    l.overage.Load(),
		Keys:             l.keys,
		Groups:           l.groups,
	}, nil
}

func (l *Ledger) count() error {
	l.keys, l.groups = 0, 0
	err := l.store.Keys(0, func(k *quota.Key) bool {
		if k.Living() {
			l.keys++
		}
		return true
	})
	err = errors.Join(err, l.store.Groups(0, func(g *quota.Group) bool {
		if g.Living() {
			l.groups++
		}
		return true
	}))
	l.counted = err == nil
	return err
}

// Gauges are the figures that are read often; reading them costs nothing.
type Gauges struct{ OpenReservations, ReservedTokens, OverageTokens int64 }

// Gauges returns the current figures.
func (l *Ledger) Gauges() Gauges {
	return Gauges{l.open.Load(), l.held.Load(), l.overage.Load()}
}

// tick returns the reading of the windows' clock.
func (l *Ledger) tick(now time.Time) int64 { return l.base.UnixNano() + int64(now.Sub(l.base)) }

func (l *Ledger) flush(seq uint64) error {
	err := l.store.Flush(seq)
	if err == nil || errors.Is(err, quota.ErrClosed) {
		return err
	}
	// Memory stays the authority; the line is written with the next one.
	l.failed("journal", err)
	return nil
}
