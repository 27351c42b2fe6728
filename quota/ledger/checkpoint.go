package ledger

import (
	"fmt"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// checkpointEvery is how much time Tick leaves between checkpoints. The journal
// makes calls durable, and a query for usage makes a checkpoint of its own, so
// that rows which change all the time need not be written every second.
const checkpointEvery = 10 * time.Second

// idleAfter is how long an unused key stays in memory.
const idleAfter = 10 * time.Minute

// Tick, called about once a second, does what is due: it writes a checkpoint,
// lets go of keys that are idle, fires alerts, and drops usage that is past its
// retention.
func (l *Ledger) Tick(now time.Time) error {
	var err error
	tick := l.tick(now)
	if tick-l.lastCheckpoint >= int64(checkpointEvery) {
		l.lastCheckpoint = tick
		err = l.Checkpoint(now)
	}
	if tick-l.lastSweep >= int64(time.Minute) {
		l.lastSweep = tick
		l.evict(now)
		l.sweep(now)
	}
	if ierr := l.inspect(now); err == nil {
		err = ierr
	}
	if tick-l.lastNotePrune >= int64(24*time.Hour) {
		l.lastNotePrune = tick
		if perr := l.pruneNotes(); err == nil {
			err = perr
		}
	}
	if t := now.Unix(); t-l.lastPrune >= 600 {
		l.lastPrune = t
		l.checkpointMu.Lock()
		defer l.checkpointMu.Unlock()
		var before [len(quota.Steps)]int64
		for i, keep := range l.retention {
			// A day more, so that the first step of a report is whole.
			before[i] = t - int64((keep+24*time.Hour)/time.Second)
		}
		if perr := l.store.Prune(before); perr != nil && err == nil {
			err = fmt.Errorf("dropping old usage: %w", perr)
		}
	}
	return err
}

// Checkpoint moves what the journal holds into the store's tables. After an
// error nothing is lost: the next one does the rest.
func (l *Ledger) Checkpoint(now time.Time) error {
	l.checkpointMu.Lock()
	defer l.checkpointMu.Unlock()
	_, err := l.checkpoint()
	return err
}

// checkpoint returns the record up to which the tables hold all usage.
// checkpointMu is held.
func (l *Ledger) checkpoint() (through uint64, err error) {
	if len(l.waiting) > 0 { // what failed before comes first, so that no more than that ever waits
		if err := l.writeWaiting(quota.Checkpoint{}, 0, false); err != nil {
			return 0, fmt.Errorf("writing a checkpoint that waits: %w", err)
		}
	}
	records, through, err := l.store.Cut()
	if err != nil {
		return 0, fmt.Errorf("cutting the journal: %w", err)
	}
	rows := rollup{ledger: l}
	for r := range records {
		rows.add(r)
	}
	last, seq := l.collect()
	written := l.collectLater(&last)
	if rows.seq == 0 && len(last.Accounts)+len(last.Resolved)+len(last.Corrected) == 0 {
		return through, nil // nothing happened
	}
	l.waiting = append(l.waiting, rows.checkpoints(through)...)
	if err := l.writeWaiting(last, seq, true); err != nil {
		return 0, fmt.Errorf("writing a checkpoint: %w", err)
	}
	written()
	return through, nil
}

// collect takes the accounts that changed, and the reservations that opened or
// ended, since the last checkpoint, and the last record that they include.
func (l *Ledger) collect() (last quota.Checkpoint, seq uint64) {
	l.dirtyMu.Lock()
	dirty := l.dirty
	l.dirty = nil
	l.uninspected = append(l.uninspected, dirty...)
	l.dirtyMu.Unlock()
	last.Accounts = make([]quota.AccountCounters, len(dirty))
	for i, a := range dirty {
		c := &last.Accounts[i]
		c.ID = a.id
		a.mu.Lock()
		a.dirty = false
		a.dump(&c.Counters)
		for r := a.opened; r != nil; r = r.next {
			if !r.kept {
				r.kept = true
				rec := r.record
				rec.Shares = append([]quota.Share(nil), rec.Shares...)
				last.Opened = append(last.Opened, rec)
			}
		}
		a.mu.Unlock()
		seq = max(seq, c.Seq)
	}
	l.dirtyMu.Lock() // after the accounts: whoever held one of them has noted what it resolved
	last.Resolved, l.resolved = l.resolved, nil
	seq = max(seq, l.resolvedBy)
	l.dirtyMu.Unlock()
	return last, seq
}

// writeWaiting writes the checkpoints that wait, and the accounts and
// reservations of last, which include all up to record seq, with the final one.
// trim says that last is all that there is to tell of the journal so far: as
// long as an account is not in, its records must be found by the next start.
func (l *Ledger) writeWaiting(last quota.Checkpoint, seq uint64, trim bool) error {
	n := len(l.waiting) - 1
	w := &l.waiting[n]
	w.Accounts = append(w.Accounts, last.Accounts...)
	w.Opened = append(w.Opened, last.Opened...)
	w.Resolved = append(w.Resolved, last.Resolved...)
	w.Provisional = append(w.Provisional, last.Provisional...)
	w.Corrected = append(w.Corrected, last.Corrected...)
	for i := range w.Accounts {
		seq = max(seq, w.Accounts[i].Seq)
	}
	if seq > 0 { // what the tables hold must never be ahead of the journal
		if err := l.store.Flush(seq); err != nil {
			return err
		}
	}
	for i := range l.waiting {
		cp := &l.waiting[i]
		cp.Trim = trim && i == n
		if err := l.store.Checkpoint(cp); err != nil {
			l.waiting = append([]quota.Checkpoint(nil), l.waiting[i:]...)
			return err
		}
	}
	l.waiting = nil
	return nil
}

// rollup turns records into rows of usage. Requests are counted when they are
// settled, in the slot in which they were admitted.
type rollup struct {
	ledger *Ledger
	rows   map[quota.Slot]*quota.Totals
	done   []quota.Checkpoint
	seq    uint64
}

func (u *rollup) add(r *quota.Record) {
	var t quota.Totals
	at := r.Time
	switch r.Kind {
	case quota.RecordSettle:
		t = r.Outcome.Settled()
		t.Requests = 1
		at = r.Opened
	case quota.RecordCorrect:
		before := r.Before.Settled()
		t = r.Outcome.Settled()
		t.Sub(&before)
		at = r.Opened
	case quota.RecordRefuse:
		t.Refused = 1
	default:
		return
	}
	if u.rows == nil {
		u.rows = make(map[quota.Slot]*quota.Totals)
	}
	u.count(quota.Slot{
		Key: r.Key, Group: r.Group,
		Model: u.ledger.models.name(r.Key, r.Model, r.Kind != quota.RecordRefuse && !r.Outcome.Failed),
	}, seconds(at), &t)
	for i := range r.Shares {
		if id := r.Shares[i].Account; id.Kind() == quota.KindGroup {
			u.count(quota.Slot{Account: id}, seconds(at), &t)
		}
	}
	u.seq = r.Seq
	if len(u.rows) > quota.MaxCheckpointRows-len(quota.Steps)*maxChain {
		u.end()
	}
}

// count adds t to the rows of a slot in every step, at a Unix second.
func (u *rollup) count(slot quota.Slot, at int64, t *quota.Totals) {
	for _, step := range quota.Steps {
		slot.Step, slot.Start = step, step.Start(at)
		sum := u.rows[slot]
		if sum == nil {
			sum = new(quota.Totals)
			u.rows[slot] = sum
		}
		sum.Add(t)
	}
}

// end makes a checkpoint of the rows so far.
func (u *rollup) end() {
	rows := make([]quota.Row, 0, len(u.rows))
	for slot, sum := range u.rows {
		rows = append(rows, quota.Row{Slot: slot, Totals: *sum})
	}
	u.done = append(u.done, quota.Checkpoint{Through: u.seq, Rows: rows})
	u.rows = nil
}

// checkpoints returns at least one, the last of which reaches through.
func (u *rollup) checkpoints(through uint64) []quota.Checkpoint {
	u.seq = through
	u.end()
	return u.done
}

// dump writes the account's counters to c. The account is locked.
func (a *Account) dump(c *quota.Counters) {
	*c = quota.Counters{
		Seq:         a.seq,
		QuotaNumber: a.quota.number, QuotaPeriod: a.quota.period,
		QuotaUsed: a.quota.used, QuotaGranted: a.quota.granted,
		DayNumber: a.day.number, DayPeriod: a.day.period,
		DayRequests: a.day.requests, DayTokens: a.day.tokens,
		MinuteNumber: a.minute, LastUsed: a.lastUsed, QuotaReset: a.resetAt,
		QuotaOffset: a.quota.offset, DayRequestsOffset: a.day.requestsOffset, DayTokensOffset: a.day.tokensOffset,
	}
	c.RequestsBucket, c.Requests = a.requests.Dump()
	c.TokensBucket, c.Tokens = a.tokens.Dump()
}

// restore sets the account to what was dumped. Buckets after tick's, as a clock
// that was set back leaves them, count from now.
func (a *Account) restore(c *quota.Counters, tick int64) {
	a.seq = c.Seq
	a.quota = quotaCounter{
		number: c.QuotaNumber, period: c.QuotaPeriod, used: c.QuotaUsed, granted: c.QuotaGranted, offset: c.QuotaOffset,
	}
	a.day = dayCounter{
		number: c.DayNumber, period: c.DayPeriod, requests: c.DayRequests, tokens: c.DayTokens,
		requestsOffset: c.DayRequestsOffset, tokensOffset: c.DayTokensOffset,
	}
	a.minute, a.lastUsed, a.resetAt = c.MinuteNumber, c.LastUsed, c.QuotaReset
	a.requests.Restore(tick, c.RequestsBucket, c.Requests)
	a.tokens.Restore(tick, c.TokensBucket, c.Tokens)
}

// evict lets go of keys that are idle. Nothing of them is lost: what they used
// is in the tables, and Account reads it again.
func (l *Ledger) evict(now time.Time) {
	l.directory.Lock()
	defer l.directory.Unlock()
	l.checkpointMu.Lock()
	defer l.checkpointMu.Unlock()
	if len(l.waiting) > 0 {
		return // the tables lack what is in memory
	}
	before := now.Add(-idleAfter).UnixNano()
	for a := range l.accounts.all {
		if a.id.Kind() != quota.KindKey {
			continue
		}
		a.mu.Lock()
		if !a.dirty && a.opened == nil && a.inFlight == 0 && a.lastUsed < before {
			a.gone = true
			l.accounts.remove(a.id)
		}
		a.mu.Unlock()
	}
	l.secrets.removeIf(func(in login) bool { return in.account.gone }) // only changed with the directory held
}

// forget drops secrets from memory.
func (l *Ledger) forget(secrets []quota.Secret) {
	for _, s := range secrets {
		l.secrets.remove(short(s.Hash))
	}
}
