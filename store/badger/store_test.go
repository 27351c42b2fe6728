package badger

import (
	"slices"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/store/storetest"
)

func TestStore(t *testing.T) {
	for name, every := range map[string]time.Duration{"Interval": time.Second, "Always": 0} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t testing.TB, dir string) quota.Store {
				s, err := Open(Options{Dir: dir, SyncInterval: every, Logger: t.Logf})
				if err != nil {
					t.Fatal(err)
				}
				return s
			})
		})
	}
}

// Counters of a version that knew no offsets are read, and say so.
func TestCountersOfVersion1(t *testing.T) {
	old := quota.Counters{Seq: 7, QuotaUsed: 5, DayRequests: 3, LastUsed: 9}
	b := appendCounters(nil, &old)
	b[0] = 1
	b = b[:len(b)-3] // three zeros
	got := quota.Counters{QuotaOffset: 1}
	if err := decodeCounters(b, &got); err != nil {
		t.Fatal(err)
	}
	old.QuotaOffset, old.DayRequestsOffset, old.DayTokensOffset = quota.OffsetUnknown, quota.OffsetUnknown, quota.OffsetUnknown
	if got != old {
		t.Errorf("read %+v, want %+v", got, old)
	}
	if b[0] = 3; decodeCounters(b, &got) == nil {
		t.Error("counters of a later version are read")
	}
}

// A store of before the index by group is given it.
func TestMembersOfVersion1(t *testing.T) {
	dir, now := t.TempDir(), migrations
	migrations = nil
	defer func() { migrations = now }()
	s := ready(t, dir, t.Logf)
	group := &quota.Group{ID: 1<<40 | 1, Name: "group"}
	list := keys(5)
	list[1].Group, list[2].Group, list[3].Group = group.ID, group.ID, group.ID
	list[2].DeletedAt = time.Unix(1, 0)
	ok(t, s.Put(list, []*quota.Group{group}))
	var rows change // as it was
	for _, k := range list {
		rows.delete(memberRow(group.ID, k.ID))
	}
	ok(t, s.tables.update(func(*meta) (change, error) { return rows, nil }))
	ok(t, s.Close())
	migrations = now
	for range 2 { // it is made once, and stays
		s = ready(t, dir, t.Logf)
		var got []quota.ID
		ok(t, s.KeysIn(group.ID, 0, func(id quota.ID) bool { got = append(got, id); return true }))
		if want := []quota.ID{list[3].ID, list[1].ID}; !slices.Equal(got, want) {
			t.Errorf("the group has the keys %v, want %v", got, want)
		}
		ok(t, s.Close())
	}
}
