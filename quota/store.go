package quota

import (
	"io"
	"iter"
	"math"
	"time"

	"github.com/llm-quota/caddy-llm-quota/limiter"
)

// Share is one account's part in a reservation: the account, and the numbers
// of its periods at admission. What is settled after a period has ended does
// not touch the next one.
type Share struct {
	Account ID
	Quota   uint32 // number of the account's quota period
	Day     uint32 // number of its day
	Minute  uint32 // grows when its per-minute windows are reset
}

// RecordKind says what a record tells.
type RecordKind uint8

// The kinds of record.
const (
	// RecordOpen: a call was admitted. ID is the record's own Seq. Uses Time,
	// Tick, Key, Group, Model, Shares, Reserved.
	RecordOpen RecordKind = iota + 1
	// RecordSettle: reservation ID ended. Uses all that Open has, with Opened
	// and OpenTick for the time of admission, and Outcome.
	RecordSettle
	// RecordRefuse: a call was refused. Uses Time, Key, Group, Model.
	RecordRefuse
	// RecordTurn: a period of Account ended; Limit (TokenQuota or
	// TokensPerDay, for the day) counts from nothing in period number Number,
	// which is Period.
	RecordTurn
	// RecordReset: Limit of Account was reset by hand to period number Number.
	RecordReset
	// RecordGrant: Account was granted Amount tokens (negative: taken back)
	// for the quota period Number.
	RecordGrant
	// RecordSet: the use of Limit of Account in its period Number became
	// Amount, Offset of it not of the history, and the period's bounds Period: a
	// key that was moved with what it used, or a quota whose schedule was changed.
	RecordSet
	// RecordCorrect: what was used by a call became known whose settlement,
	// with Outcome.Later, was provisional. Uses all that Settle has, and Before
	// for the outcome that Outcome replaces.
	RecordCorrect
)

// Record is one line of the journal. Every kind has Kind, Seq and Time.
type Record struct {
	Kind RecordKind
	Seq  uint64 // assigned by Append
	Time int64  // wall clock, Unix nanoseconds
	Tick int64  // clock of the per-minute windows, nanoseconds

	ID       uint64 // the reservation: the Seq of its RecordOpen
	Opened   int64  // Time of admission
	OpenTick int64  // Tick of admission
	Key      ID
	Group    ID // the key's own group at admission
	Model    string
	Shares   []Share
	Reserved int64
	Outcome  Outcome
	Before   Outcome

	Account ID
	Limit   LimitName
	Number  uint32
	Amount  int64
	Offset  int64
	Period  Period
}

// OffsetUnknown is an offset that is not known. It stays so until the period
// ends.
const OffsetUnknown = math.MinInt64

// WindowBuckets is the number of 5-second buckets that a per-minute limit
// counts: the current one and the twelve before it.
const WindowBuckets = limiter.Buckets

// Counters are the durable state of one account. What is reserved is not among
// them: it follows from the open reservations.
//
// The history of a period is what was settled of the calls admitted within its
// bounds, and a counter is the history and an offset, whatever happens: a reset
// by hand, or a period that was begun by a clock that was ahead, is in the
// offset. So the counters can be computed again and compared.
type Counters struct {
	Seq uint64 // every record up to this one that concerns the account is in

	QuotaNumber  uint32
	QuotaPeriod  Period
	QuotaUsed    int64
	QuotaGranted int64
	QuotaReset   int64 // Unix seconds of the last reset by hand; 0: none

	DayNumber   uint32
	DayPeriod   Period
	DayRequests int64
	DayTokens   int64

	MinuteNumber   uint32
	RequestsBucket int64 // number of the newest bucket, ticks / 5 s
	Requests       [WindowBuckets]uint32
	TokensBucket   int64
	Tokens         [WindowBuckets]int64

	LastUsed int64 // Unix nanoseconds of the last admission

	// By how much the counters differ from the history, or OffsetUnknown.
	QuotaOffset       int64 // of QuotaUsed
	DayRequestsOffset int64 // of DayRequests, where calls under way are of the history
	DayTokensOffset   int64 // of DayTokens
}

// AccountCounters is one account's counters.
type AccountCounters struct {
	ID ID
	Counters
}

// Later names a call whose outcome becomes known later.
type Later struct {
	Key  ID
	Name string
}

// Journal is the part of a store that keeps what happened, as it happens. A
// record that Flush has returned for survives the death of the process (kill
// -9); how much a power loss may take is the store's option.
type Journal interface {
	// Append puts r at the journal's end, sets r.Seq to its sequence number
	// (and, in a RecordOpen, r.ID), and returns it. Numbers grow by one for
	// the life of the store. Only memory is touched: it may be called with
	// locks held. It never fails; Flush tells.
	Append(r *Record) uint64
	// Flush returns nil once every record up to seq survives the death of the
	// process. Concurrent calls share one write. After an error the records
	// stay in memory and the next Flush tries again.
	Flush(seq uint64) error
	// Cut begins a new segment of the journal and returns what was appended
	// since the last Cut, in order, with the Seq of its last record (the Seq
	// of the last record ever, when there is none). The records are readable
	// until the next Cut, each one only until the next is yielded.
	Cut() (records iter.Seq[*Record], through uint64, err error)
	// Uncut calls fn for each record that was appended since the last Cut, in
	// order, until fn returns an error, which it returns. It writes nothing, and
	// works while nothing can be written. A record is fn's only until it returns.
	Uncut(fn func(*Record) error) error
}

// MaxCheckpointRows is the most rows that one Checkpoint may carry.
const MaxCheckpointRows = 8000

// Checkpoint moves part of the journal into the tables.
type Checkpoint struct {
	// Through: Rows holds the usage of every record after the last
	// checkpoint's Through up to this one.
	Through uint64
	// Rows are what is to be added to the rows of those slots.
	Rows []Row
	// Accounts replace the counters of those accounts. They may be ahead of
	// Through, never ahead of what was flushed.
	Accounts []AccountCounters
	// Opened are the RecordOpen of reservations that are still open and not
	// yet kept in the tables; Resolved are the IDs of kept ones that are open
	// no more.
	Opened   []Record
	Resolved []uint64
	// Provisional are the RecordSettle of calls whose outcome becomes known
	// later, to be found by Key and Outcome.Later; Corrected are those whose
	// outcome is known now. They may be written before the rest, in this order.
	Provisional []Record
	Corrected   []Later
	// Trim allows the store to drop the segments of the journal before the
	// last Cut: nothing in them is needed any more.
	Trim bool
}

// Directory is the part of a store that keeps keys and groups. What it returns
// belongs to the caller.
type Directory interface {
	// HashKey returns the key of the secrets' hashes: 32 random bytes made
	// once for the life of the store.
	HashKey() []byte
	// Key and Group return one account, also a deleted one, or ErrNotFound.
	Key(id ID) (*Key, error)
	Group(id ID) (*Group, error)
	// KeyBySecret returns the key of which h is among the Secrets, or
	// ErrNotFound.
	KeyBySecret(h SecretHash) (ID, error)
	// ByName returns the living account of that kind and name, or ErrNotFound.
	ByName(kind Kind, name string) (ID, error)
	// Keys calls fn for each key with an ID below the given one (all, if it is
	// zero), the newest first, deleted ones too, until fn returns false.
	Keys(below ID, fn func(*Key) bool) error
	// Groups does the same for groups.
	Groups(below ID, fn func(*Group) bool) error
	// KeysIn calls fn for each living key directly in a group with an ID below
	// the given one (all, if it is zero), the newest first, until fn returns
	// false. No other key is looked at.
	KeysIn(group, below ID, fn func(ID) bool) error
	// Configured returns the IDs of the living accounts of SourceConfig.
	Configured() ([]ID, error)
	// Put stores keys and groups, new or changed, with their names and secrets:
	// all or none. When it returns nil they survive a power loss. The names of
	// deleted accounts and the secrets no longer listed are freed. The entries
	// of the audit log that tell of the change are stored with it.
	Put(keys []*Key, groups []*Group, audit ...Note) error
}

// History is the part of a store that keeps counters and usage.
type History interface {
	// Checkpoint writes cp. Accounts, Opened and Resolved may be written
	// before the rest; Rows and Through are written together or not at all,
	// so that usage is counted once, however often a crash repeats the work.
	Checkpoint(cp *Checkpoint) error
	// Through returns the record up to which the usage in the tables holds all:
	// that of the last checkpoint that was written, of which Checkpoint may have
	// told an error nevertheless.
	Through() (uint64, error)
	// Counters reads an account's counters into c, or returns ErrNotFound.
	Counters(id ID, c *Counters) error
	// Provisional returns the record of a call whose outcome is not known yet,
	// or ErrNotFound.
	Provisional(l Later) (*Record, error)
	// Usage calls fn for each row that q selects, in any order, until fn
	// returns an error, which it returns. The row is fn's only until it returns.
	Usage(q RowQuery, fn func(*Row) error) error
	// Prune drops rows that start before the given Unix seconds, by Step, and
	// provisional records of calls admitted before that of StepQuarter.
	Prune(before [len(Steps)]int64) error
	// Pruned returns, by Step, the Unix second before which rows may have been
	// dropped ever since; math.MinInt64: none.
	Pruned() (before [len(Steps)]int64, err error)
}

// StoreInfo is what a store says of itself.
type StoreInfo struct {
	Engine    string
	SizeBytes int64
	LastSync  int64 // Unix nanoseconds of the last write known to be on disk; 0: none
}

// Snapshot is the store at one moment: its tables, and the records of the
// journal that the tables do not include yet. It stays as it is while the store
// goes on, and must be closed.
type Snapshot interface {
	// Through is that of the last checkpoint: the usage of later records is in
	// none of the rows.
	Through() uint64
	// Accounts calls fn for the counters of every account, in any order, until
	// fn returns an error, which it returns.
	Accounts(fn func(*AccountCounters) error) error
	// Open calls fn for each reservation that the tables keep.
	Open(fn func(*Record) error) error
	// Tail calls fn for each record after Through, in order of Seq, and maybe
	// some before it. A record is fn's only until it returns.
	Tail(fn func(*Record) error) error
	// Usage is History's.
	Usage(q RowQuery, fn func(*Row) error) error
	// WriterTo writes a backup, of which a store of the same engine can be made
	// anew. Reservations that are open in it will be charged as at a crash.
	io.WriterTo
	// Save keeps a backup where the store keeps its own, and drops old ones.
	Save(now time.Time) error
	Close() error
}

// Store is all that the ledger needs kept. Its methods may be called from
// several goroutines, but Cut, Checkpoint and Prune only by one at a time.
type Store interface {
	Journal
	Directory
	History
	Notes

	// Recover is called once, before anything else but HashKey and the
	// Directory. It calls open for each reservation that the tables keep, then
	// replay for each record that was appended after the last checkpoint's
	// Through, in order of Seq, and some before it. A torn last record, as a
	// crash leaves it, is dropped.
	Recover(open, replay func(*Record) error) (through uint64, err error)
	// Sync returns when all that was flushed or put survives a power loss.
	// now is kept as StoreInfo.LastSync.
	Sync(now int64) error
	// Guard, called about every second, does what the store needs for its own
	// safety, such as keeping room on its disk, and says what is wrong with it:
	// nil when it is well; ErrDamaged when it works, but has lost something that
	// nobody has looked into yet; any other error when it cannot be relied on to
	// write.
	Guard(now time.Time) error
	// Snapshot returns a view of all that was flushed or put before. No
	// Checkpoint may be under way.
	Snapshot() (Snapshot, error)
	// SnapshotDue tells whether it is time for a Snapshot to be saved.
	SnapshotDue(now time.Time) bool
	// Info describes the store.
	Info() StoreInfo
	// Close syncs and closes the store.
	Close() error
}
