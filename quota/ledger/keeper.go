package ledger

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Keeper keeps one ledger for all the configurations that share it while they
// overlap, and does what is due once a second.
type Keeper struct {
	*Ledger
	quit   chan struct{}
	done   sync.WaitGroup
	saving atomic.Bool // a snapshot is being saved

	mu      sync.Mutex
	applied []applied // the newest last
}

// applied is a configuration that holds, or held before a newer one.
type applied struct {
	owner    any
	config   *Config
	replaced *replaced
}

// Keep takes charge of l, and syncs its store at the given interval; 0: never.
func Keep(l *Ledger, sync time.Duration) *Keeper {
	k := &Keeper{Ledger: l, quit: make(chan struct{})}
	k.done.Go(func() { k.run(sync) })
	k.done.Go(k.watch)
	return k
}

func (k *Keeper) run(every time.Duration) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var sync <-chan time.Time
	if every > 0 {
		t := time.NewTicker(every)
		defer t.Stop()
		sync = t.C
	}
	for {
		select {
		case <-k.quit:
			return
		case now := <-tick.C:
			k.try("checkpoint", k.Tick, now)
			k.save(now)
		case now := <-sync:
			k.try("sync", k.Sync, now)
		}
	}
}

// watch asks the store how it is, beside run, which may hang where the disk does.
func (k *Keeper) watch() {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-k.quit:
			return
		case now := <-tick.C:
			k.try("guard", k.examine, now)
		}
	}
}

// try does what is due. A store that panics, as a damaged one may, is one that
// fails.
func (k *Keeper) try(op string, do func(time.Time) error, now time.Time) {
	defer func() {
		if p := recover(); p != nil {
			k.failed(op, fmt.Errorf("panic: %v", p))
		}
	}()
	if err := do(now); err != nil {
		k.failed(op, err)
	}
}

// save saves a snapshot of the store when it is time for one. That may take
// long, and nothing else waits for it but Close. The store is no worse for a
// snapshot that fails: it is reported, and tried again later.
func (k *Keeper) save(now time.Time) {
	if !k.store.SnapshotDue(now) || !k.saving.CompareAndSwap(false, true) {
		return
	}
	k.done.Go(func() {
		defer k.saving.Store(false)
		defer func() {
			if p := recover(); p != nil {
				k.report("snapshot", fmt.Errorf("panic: %v", p))
			}
		}()
		snap, err := k.Snapshot(now)
		if err == nil {
			err = errors.Join(snap.Save(now), snap.Close())
		}
		if err != nil {
			k.report("snapshot", err)
		}
	})
}

// Apply makes c, which Resolve returned, the configuration that holds.
func (k *Keeper) Apply(now time.Time, owner any, c *Config) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	old, err := k.configure(now, c)
	if err != nil {
		return err
	}
	k.applied = append(k.applied, applied{owner, c, old})
	return nil
}

// Withdraw takes back what owner applied. If it was the newest, because what
// came with it failed to start, the configuration before it holds again.
func (k *Keeper) Withdraw(now time.Time, owner any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := slices.IndexFunc(k.applied, func(a applied) bool { return a.owner == owner })
	if i < 0 {
		return
	}
	newest, old := i == len(k.applied)-1, k.applied[i].replaced
	k.applied = slices.Delete(k.applied, i, i+1)
	if newest && i > 0 {
		err := k.restore(now, old)
		if _, again := k.configure(now, k.applied[i-1].config); again != nil || err != nil {
			k.failed("configure", errors.Join(err, again))
		}
	}
}

// Close ends the keeping and closes the ledger.
func (k *Keeper) Close(now time.Time) error {
	close(k.quit)
	k.done.Wait()
	return k.Ledger.Close(now)
}
