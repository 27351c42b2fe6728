package ledger

import (
	"encoding/binary"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// forge changes the value of the one row in the tables of dir that begins with
// prefix. Nothing is deleted unless change returns nil.
func forge(t *testing.T, dir string, prefix []byte, change func([]byte) []byte) {
	t.Helper()
	db, err := badger.Open(badger.DefaultOptions(filepath.Join(dir, "badger")).WithLogger(nil).WithSyncWrites(true))
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(txn *badger.Txn) error {
		opts := badger.DefaultIteratorOptions
		opts.Prefix = prefix
		it := txn.NewIterator(opts)
		defer it.Close()
		n := 0
		for it.Rewind(); it.Valid(); it.Next() {
			n++
			key := it.Item().KeyCopy(nil)
			value, err := it.Item().ValueCopy(nil)
			if err != nil {
				return err
			}
			if value = change(value); value == nil {
				err = txn.Delete(key)
			} else {
				err = txn.Set(key, value)
			}
			if err != nil {
				return err
			}
		}
		if n != 1 {
			t.Fatalf("%d rows begin with %x", n, prefix)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// more adds 1000 to the total, the ninth number of a row.
func more(value []byte) (changed []byte) {
	for i := range 10 {
		n, size := binary.Varint(value)
		value = value[size:]
		if i == 8 {
			n += 1000
		}
		changed = binary.AppendVarint(changed, n)
	}
	return changed
}

func without([]byte) []byte { return nil }

// TestVerifyFinds falsifies one thing after the other in the store: Verify
// tells that, and nothing else.
func TestVerifyFinds(t *testing.T) {
	now := time.Date(2026, 5, 20, 12, 34, 56, 0, time.UTC)
	dir := t.TempDir()
	l := openLedger(t, dir, now)
	key, ids := makeKey(t, l, now, 1, quota.Limits{}, 1_000_000)
	group := ids[0]
	r := reserve(t, l, now, key, 100)
	if err := l.Settle(now, r, quota.Outcome{Tokens: quota.Tokens{Input: 100}}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(now); err != nil {
		t.Fatal(err)
	}
	counters := func(id quota.ID, change func(*quota.Counters)) func(string) {
		return func(dir string) {
			l := openLedger(t, dir, now)
			c := quota.AccountCounters{ID: id}
			if err := l.store.Counters(id, &c.Counters); err != nil {
				t.Fatal(err)
			}
			change(&c.Counters)
			if err := l.store.Checkpoint(&quota.Checkpoint{Accounts: []quota.AccountCounters{c}}); err != nil {
				t.Fatal(err)
			}
			if err := l.store.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	row := func(change func([]byte) []byte, table byte, step quota.Step, id quota.ID) func(string) {
		prefix := []byte{table, byte(step)}
		if id != 0 {
			prefix = binary.BigEndian.AppendUint64(prefix, uint64(id))
		}
		return func(dir string) { forge(t, dir, prefix, change) }
	}
	const (
		minute  = "by minute at 2026-05-20T12:34:00Z"
		quarter = "by quarter at 2026-05-20T12:30:00Z"
		day     = "by day at 2026-05-20T00:00:00Z"
		total   = " of m: total_tokens "
	)
	for _, c := range []struct {
		name   string
		change func(dir string)
		want   []string
	}{
		{"nothing", func(string) {}, nil},
		{"quota of the key", counters(key.id, func(c *quota.Counters) { c.QuotaUsed += 5 }), []string{"key quota 105 100"}},
		{"day's tokens of the key", counters(key.id, func(c *quota.Counters) { c.DayTokens = 0 }), []string{"key tokens_per_day 0 100"}},
		{"day's requests of the group", counters(group, func(c *quota.Counters) { c.DayRequests++ }), []string{"group requests_per_day 2 1"}},
		{"quota of the group", counters(group, func(c *quota.Counters) { c.QuotaUsed = 1 }), []string{"group quota 1 100"}},
		{"quota's offset", counters(group, func(c *quota.Counters) { c.QuotaOffset = -7 }), []string{"group quota 100 93"}},
		{"requests' offset", counters(key.id, func(c *quota.Counters) { c.DayRequestsOffset = 1 }), []string{"key requests_per_day 1 2"}},
		{"tokens' offset", counters(key.id, func(c *quota.Counters) { c.DayTokensOffset = 1 }), []string{"key tokens_per_day 100 101"}},
		{"unknown offset", counters(key.id, func(c *quota.Counters) { c.QuotaUsed, c.QuotaOffset = 5, quota.OffsetUnknown }), nil},
		{"minute of the key", row(more, 'u', quota.StepMinute, 0), []string{
			"group sum " + minute + total + "100 1100", "key usage " + quarter + total + "100 1100",
		}},
		{"quarter of the key", row(more, 'u', quota.StepQuarter, key.id), []string{
			"group sum " + quarter + total + "100 1100", "key usage " + day + total + "100 1100", "key usage " + quarter + total + "1100 100",
		}},
		{"day of the key", row(more, 'u', quota.StepDay, key.id), []string{
			"group sum " + day + total + "100 1100", "key quota 100 1100", "key tokens_per_day 100 1100", "key usage " + day + total + "1100 100",
		}},
		{"minute of the sums", row(more, 'v', quota.StepMinute, 0), []string{"group sum " + minute + total + "1100 100"}},
		{"quarter of the sums", row(more, 'v', quota.StepQuarter, 0), []string{"group sum " + quarter + total + "1100 100"}},
		{"day of the sums", row(more, 'v', quota.StepDay, 0), []string{"group sum " + day + total + "1100 100"}},
		{"no sum", row(without, 'v', quota.StepDay, 0), []string{
			"group sum " + day + " of m: input_tokens 0 100", "group sum " + day + " of m: requests 0 1", "group sum " + day + total + "0 100",
		}},
		{"minute of the group", row(more, 'w', quota.StepMinute, group), []string{"group usage " + quarter + ": total_tokens 100 1100"}},
		{"quarter of the group", row(more, 'w', quota.StepQuarter, group), []string{
			"group usage " + day + ": total_tokens 100 1100", "group usage " + quarter + ": total_tokens 1100 100",
		}},
		{"day of the group", row(more, 'w', quota.StepDay, group), []string{
			"group quota 100 1100", "group tokens_per_day 100 1100", "group usage " + day + ": total_tokens 1100 100",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := crashCopy(t, dir, t.TempDir())
			c.change(dir)
			l := openLedger(t, dir, now)
			defer l.store.Close()
			v, err := l.Verify(now)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			names := strings.NewReplacer(key.id.String(), "key", group.String(), "group")
			for _, d := range v.Differences {
				got = append(got, names.Replace(fmt.Sprint(d.Account, " ", d.Counter, " ", d.Stored, " ", d.Computed)))
			}
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("found\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
			// Three counters of two accounts, two rows of each made of finer ones,
			// and a sum by each step.
			want := 2*3 + 2*2 + 3
			if c.name == "unknown offset" {
				want--
			}
			if v.Checked != want {
				t.Errorf("%d numbers were compared, want %d", v.Checked, want)
			}
		})
	}
}
