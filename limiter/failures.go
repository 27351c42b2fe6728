package limiter

import (
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"sync"
)

// FailureBurst is how many attempts an address may fail in at once.
const FailureBurst = 100

// FailureRefill is after how many nanoseconds an address may fail once more:
// 100 ms, so 10 times a second.
const FailureRefill = 100_000_000

const (
	failureSets = 1 << 12
	failureWays = 4
)

// Failures holds each address to a number of failed attempts: a token bucket
// of FailureBurst, of which a failure takes one and into which one comes back
// every FailureRefill. Addresses are IPv4 addresses, and networks of 64 bits
// of IPv6, which is what one subscriber has; what is no address is one more.
//
// Whoever asks first and counts afterwards may find several at once that were
// let through on the same token. What they take beyond it is owed: in any span
// of t an address fails in no more than FailureBurst + t/FailureRefill
// attempts, and those that were under way.
//
// The table is fixed: 288 KiB for 16,384 addresses, 4 that may stand at each
// of 4096 places. Where all four have failed lately, the one that may fail
// most is forgotten for a fifth, and starts with a full bucket if it comes
// again. So who has many addresses can make the table forget others, and is
// then simply not held back; but nobody is held back for what another address
// did, who has failed more is not forgotten for those who failed less, and
// nobody can choose addresses that meet at one place, since the hash has a
// seed of its own in each table.
//
// Ticks are nanoseconds of a clock that does not go back; those below 0 count
// as 0. Failures has locks of its own: it is for many goroutines at once.
// Nothing allocates but NewFailures.
type Failures struct {
	seed maphash.Seed
	sets []failureSet
}

// failureSet is the place of the addresses that have one hash.
type failureSet struct {
	mu   sync.Mutex
	ways [failureWays]failure
}

// failure is an address and the tick at which its bucket is full again. One
// that is full says nothing: such an entry is free.
type failure struct {
	address uint64
	full    int64
}

// NewFailures returns a table in which nobody has failed.
func NewFailures() *Failures { return newFailures(failureSets) }

func newFailures(sets int) *Failures {
	return &Failures{seed: maphash.MakeSeed(), sets: make([]failureSet, sets)}
}

// Wait returns in how many nanoseconds after tick the address may try again;
// 0: at once.
func (f *Failures) Wait(tick int64, addr netip.Addr) int64 {
	address := addressOf(addr)
	set := f.set(address)
	set.mu.Lock()
	defer set.mu.Unlock()
	for i := range set.ways {
		if w := &set.ways[i]; w.address == address {
			return max(w.full-max(tick, 0)-(FailureBurst-1)*FailureRefill, 0)
		}
	}
	return 0
}

// Add counts an attempt of the address that failed.
func (f *Failures) Add(tick int64, addr netip.Addr) {
	address := addressOf(addr)
	set := f.set(address)
	set.mu.Lock()
	defer set.mu.Unlock()
	fullest := &set.ways[0]
	for i := range set.ways {
		w := &set.ways[i]
		if w.address == address {
			w.full = max(w.full, tick, 0) + FailureRefill
			return
		}
		if w.full < fullest.full {
			fullest = w
		}
	}
	*fullest = failure{address, max(tick, 0) + FailureRefill}
}

func (f *Failures) set(address uint64) *failureSet {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], address)
	return &f.sets[maphash.Bytes(f.seed, b[:])%uint64(len(f.sets))]
}

// addressOf returns what stands for an address: the upper half of its 16
// bytes, and an IPv4 address as the lower part of a network that is nobody's.
func addressOf(addr netip.Addr) uint64 {
	switch addr = addr.Unmap(); {
	case addr.Is4():
		b := addr.As4()
		return ipv4Network | uint64(binary.BigEndian.Uint32(b[:]))
	case addr.Is6():
		b := addr.As16()
		return binary.BigEndian.Uint64(b[:8])
	}
	return noAddress
}

// Networks that are neither given out nor routed, so that no caller comes from
// there: the first 64 bits of 0:ffff::/32 and of 0:fffe::/64.
const (
	ipv4Network = 0x0000_ffff << 32
	noAddress   = 0x0000_fffe << 32
)
