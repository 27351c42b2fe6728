package ledger

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/llm-quota/caddy-llm-quota/limiter"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Account is a key or a group in memory. Its policy is what is set on it, its
// counters are what it used.
type Account struct {
	id     quota.ID
	policy atomic.Pointer[Policy]

	mu       sync.Mutex // guards all below; see chain for the order of locking
	gone     bool       // evicted: load it again
	dirty    bool       // in Ledger.dirty
	minute   uint32     // number of the windows' generation
	seq      uint64     // the last record that concerns it
	quota    quotaCounter
	day      dayCounter
	inFlight int64
	requests limiter.Window[uint32]
	tokens   limiter.Window[int64]
	lastUsed int64        // Unix nanoseconds
	resetAt  int64        // Unix seconds of the quota's last reset by hand
	opened   *Reservation // the open reservations of a key
}

// The counters of a period. An offset is by how much a counter differs from
// the history; see quota.Counters.
type quotaCounter struct {
	number                  uint32
	period                  quota.Period
	used, reserved, granted int64
	offset                  int64
}

type dayCounter struct {
	number                       uint32
	period                       quota.Period
	requests, tokens, reserved   int64
	requestsOffset, tokensOffset int64
}

// add counts n for a call. counts says that the call was admitted under the
// counter's number, so that it counts; within, that it was admitted within the
// bounds of the counter's period, so that it is in the history. Mostly both are
// so or neither is.
func add(counter, offset *int64, n int64, counts, within bool) {
	was := *counter
	if counts {
		*counter = max(was+n, 0)
	}
	differ := *counter - was
	if within {
		differ -= n
	}
	if differ != 0 {
		shift(offset, differ)
	}
}

// shift adds n to an offset, unless that is not known.
func shift(offset *int64, n int64) {
	if *offset != quota.OffsetUnknown {
		*offset += n
	}
}

// seconds returns the Unix second of a time in Unix nanoseconds, by which the
// history finds its slot.
func seconds(nanos int64) int64 { return nanos / int64(time.Second) }

// turnQuota begins a quota period, in which nothing is used yet.
func (a *Account) turnQuota(number uint32, p quota.Period) {
	a.quota = quotaCounter{number: number, period: p, offset: a.unused(p)}
}

// turnDay begins a day.
func (a *Account) turnDay(number uint32, p quota.Period) {
	offset := a.unused(p)
	a.day = dayCounter{number: number, period: p, requestsOffset: offset, tokensOffset: offset}
}

// unused returns the offset of a period that begins: 0 if no call was admitted
// in it before. One was if a clock was ahead.
func (a *Account) unused(p quota.Period) int64 {
	if a.lastUsed != 0 && seconds(a.lastUsed) >= p.Start {
		return quota.OffsetUnknown
	}
	return 0
}

// ID returns the account's ID.
func (a *Account) ID() quota.ID { return a.id }

// load returns the account of that ID with a policy. The directory is held.
func (l *Ledger) load(now time.Time, id quota.ID) (*Account, error) {
	a, ok := l.accounts.get(id)
	if !ok {
		a = &Account{id: id}
		var c quota.Counters
		if err := l.store.Counters(id, &c); err == nil {
			a.restore(&c, l.tick(now))
			l.saw(c.LastUsed, now)
		} else if !errors.Is(err, quota.ErrNotFound) {
			return nil, fmt.Errorf("reading the counters of %s: %w", id, err)
		}
		// There is one Account for each ID before anything is made of it: what
		// refreshing journals must not be of one that is thrown away.
		mine := a
		if a = l.accounts.add(id, a); a == mine {
			_, err := l.refresh(now, a)
			if errors.Is(err, quota.ErrNotFound) { // after any other error it stays: somebody may have it already
				l.accounts.remove(id)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	if a.policy.Load() == nil {
		if _, err := l.refresh(now, a); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// Account returns the key or group of that ID, or quota.ErrNotFound.
func (l *Ledger) Account(now time.Time, id quota.ID) (*Account, error) {
	if a, ok := l.accounts.get(id); ok && a.policy.Load() != nil {
		return a, nil
	}
	l.directory.RLock()
	defer l.directory.RUnlock()
	return l.load(now, id)
}

// ByName returns the living key of that name, or quota.ErrNotFound.
func (l *Ledger) ByName(now time.Time, name string) (*Account, error) {
	id, err := l.store.ByName(quota.KindKey, name)
	if err != nil {
		return nil, err
	}
	return l.Account(now, id)
}

// Authenticate returns the key that secret opens, or quota.ErrNotFound. An
// unknown secret leaves nothing behind in memory.
func (l *Ledger) Authenticate(now time.Time, secret string) (*Account, error) {
	a, hash := l.Recognize(now, secret)
	if a != nil {
		return a, nil
	}
	return l.LookUp(now, secret, hash)
}

// Recognize returns the key that secret opens if it is in memory, as that of
// every active key is: whoever presents it costs nothing. If not, it returns
// nil, and the hash by which LookUp finds the key.
func (l *Ledger) Recognize(now time.Time, secret string) (*Account, quota.SecretHash) {
	h := l.hasher.Hash(secret)
	in, _ := l.secrets.get(short(h))
	if in.ended(now) {
		return nil, h
	}
	return in.account, h
}

// LookUp returns the key that a secret opens which Recognize did not know, or
// quota.ErrNotFound. It asks the store.
func (l *Ledger) LookUp(now time.Time, secret string, h quota.SecretHash) (*Account, error) {
	if in, ok := l.secrets.get(short(h)); ok { // it has ended, or has just been looked up
		if in.ended(now) {
			return nil, quota.ErrNotFound
		}
		return in.account, nil
	}
	if quota.Mistyped(secret) {
		return nil, quota.ErrNotFound
	}
	l.directory.RLock()
	defer l.directory.RUnlock()
	id, err := l.store.KeyBySecret(h)
	if err != nil {
		return nil, err
	}
	a, err := l.load(now, id)
	if err != nil {
		return nil, err
	}
	k, err := l.store.Key(id)
	if err != nil {
		return nil, err
	}
	for _, s := range k.Secrets {
		if s.Hash != h {
			continue
		}
		in := login{account: a}
		if !s.Until.IsZero() {
			in.until = s.Until.UnixNano()
		}
		l.secrets.put(short(h), in)
		if in.ended(now) {
			break
		}
		return a, nil
	}
	return nil, quota.ErrNotFound
}

func (in login) ended(now time.Time) bool { return in.until != 0 && now.UnixNano() >= in.until }
