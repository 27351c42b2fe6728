package storetest

import (
	"bytes"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func testDirectory(t *testing.T, open Opener) {
	for name, test := range map[string]func(*testing.T, *store){
		"HashKey":         hashKeyIsKept,
		"Accounts":        accountsAreKept,
		"NotFound":        unknownIsNotFound,
		"Names":           namesFollowAccounts,
		"Secrets":         secretsFollowKeys,
		"Tombstone":       deletedKeysRemain,
		"Swap":            namesCanBeSwapped,
		"AllOrNone":       refusedPutsChangeNothing,
		"Order":           newestComesFirst,
		"Members":         membersFollow,
		"Configured":      configuredAreListed,
		"TenThousandKeys": tenThousandKeysAtOnce,
		"Parallel":        directoryInParallel,
	} {
		t.Run(name, func(t *testing.T) { test(t, start(t, open)) })
	}
}

func hashKeyIsKept(t *testing.T, s *store) {
	h := s.HashKey()
	if len(h) != 32 || bytes.Equal(h, make([]byte, 32)) {
		t.Fatalf("key of the hashes is %x, want 32 random bytes", h)
	}
	want := bytes.Clone(h)
	clear(h) // what is returned belongs to the caller
	same(t, "key of the hashes", want, s.HashKey())
	same(t, "key of the hashes after a restart", want, s.again().HashKey())
	if bytes.Equal(want, start(t, s.open).HashKey()) {
		t.Fatal("two stores have the same key of the hashes")
	}
}

func accountsAreKept(t *testing.T, s *store) {
	var g ids
	expires := epoch.Add(time.Hour)
	group := g.group("Größe – 部門")
	group.Parent = g.group("parent").ID
	group.Quota = &quota.Quota{Tokens: quota.At(quota.MaxAmount), Reset: quota.ResetMonthly, MonthDay: quota.LastDay, TimeZone: "Asia/Tokyo"}
	group.Limits.ConcurrentRequests = quota.Unlimited
	group.Member.Quota = &quota.Quota{Tokens: quota.At(0), Reset: quota.ResetManual}
	group.Metadata = map[string]string{"a": ""}
	group.AlertAt = []float64{0.5, 100}
	key := g.key("name", 1, 2)
	key.Group = group.ID
	key.Disabled = true
	key.ExpiresAt = &expires
	key.Models = []string{"gpt-*", "<&>\u2028"}
	key.AllowedIPs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}
	key.Limits = quota.Limits{RequestsPerMinute: quota.At(0), TokensPerDay: quota.At(7)}
	key.Secrets[1].Until = expires
	ok(t, s.Put([]*quota.Key{key}, []*quota.Group{group}))
	check := func(s *store) {
		gotKey, err := s.Key(key.ID)
		ok(t, err)
		same(t, "key", key, gotKey)
		gotGroup, err := s.Group(group.ID)
		ok(t, err)
		same(t, "group", group, gotGroup)
	}
	check(s)
	got, err := s.Key(key.ID)
	ok(t, err)
	got.Name, got.Models[0], got.Secrets[0].Hash = "changed", "changed", hash(9)
	check(s) // what is returned belongs to the caller
	check(s.crashed())
	check(s.again())
}

func unknownIsNotFound(t *testing.T, s *store) {
	var g ids
	key, group := g.key("name", 1), g.group("group")
	for range 2 {
		_, err := s.Key(g.next(quota.KindKey))
		is(t, err, quota.ErrNotFound)
		_, err = s.Group(g.next(quota.KindGroup))
		is(t, err, quota.ErrNotFound)
		_, err = s.KeyBySecret(hash(7))
		is(t, err, quota.ErrNotFound)
		_, err = s.ByName(quota.KindKey, "group")
		is(t, err, quota.ErrNotFound)
		_, err = s.ByName(quota.KindGroup, "name")
		is(t, err, quota.ErrNotFound)
		is(t, s.Counters(g.next(quota.KindKey), &quota.Counters{}), quota.ErrNotFound)
		ok(t, s.Put([]*quota.Key{key}, []*quota.Group{group}))
	}
	ok(t, s.Put(nil, nil))
}

// byName checks that the living account of that name is id; 0: none.
func (s *store) byName(kind quota.Kind, name string, id quota.ID) {
	s.t.Helper()
	got, err := s.ByName(kind, name)
	if id == 0 {
		is(s.t, err, quota.ErrNotFound)
		return
	}
	ok(s.t, err)
	same(s.t, "id of "+name, id, got)
}

// bySecret checks that secret n is that of id; 0: of none.
func (s *store) bySecret(n uint32, id quota.ID) {
	s.t.Helper()
	got, err := s.KeyBySecret(hash(n))
	if id == 0 {
		is(s.t, err, quota.ErrNotFound)
		return
	}
	ok(s.t, err)
	same(s.t, fmt.Sprintf("key of secret %d", n), id, got)
}

func namesFollowAccounts(t *testing.T, s *store) {
	var g ids
	key, group := g.key("same"), g.group("same")
	ok(t, s.Put([]*quota.Key{key}, []*quota.Group{group}))
	s.byName(quota.KindKey, "same", key.ID)
	s.byName(quota.KindGroup, "same", group.ID)
	key.Name, group.Name = "key", "group"
	ok(t, s.Put([]*quota.Key{key}, []*quota.Group{group}))
	check := func(s *store) {
		s.byName(quota.KindKey, "same", 0)
		s.byName(quota.KindGroup, "same", 0)
		s.byName(quota.KindKey, "key", key.ID)
		s.byName(quota.KindGroup, "group", group.ID)
	}
	check(s)
	check(s.again())
}

func secretsFollowKeys(t *testing.T, s *store) {
	var g ids
	key, other := g.key("a", 1, 2, 3), g.key("b", 4)
	ok(t, s.Put([]*quota.Key{key, other}, nil))
	key.Secrets = []quota.Secret{{Hash: hash(5)}, {Hash: hash(1), Until: epoch}}
	ok(t, s.Put([]*quota.Key{key}, nil))
	s = s.again()
	for n, id := range map[uint32]quota.ID{1: key.ID, 2: 0, 3: 0, 4: other.ID, 5: key.ID} {
		s.bySecret(n, id)
	}
}

func deletedKeysRemain(t *testing.T, s *store) {
	var g ids
	key, group := g.key("name", 1), g.group("name")
	ok(t, s.Put([]*quota.Key{key}, []*quota.Group{group}))
	key.DeletedAt, key.Secrets, group.DeletedAt = epoch, nil, epoch
	ok(t, s.Put([]*quota.Key{key}, []*quota.Group{group}))
	s.byName(quota.KindKey, "name", 0)
	s.byName(quota.KindGroup, "name", 0)
	s.bySecret(1, 0)
	heir := g.key("name", 1)
	ok(t, s.Put([]*quota.Key{heir}, nil))
	s = s.again()
	s.byName(quota.KindKey, "name", heir.ID)
	s.bySecret(1, heir.ID)
	// A tombstone that is written again does not take the name back.
	ok(t, s.Put([]*quota.Key{key}, nil))
	s.byName(quota.KindKey, "name", heir.ID)
	got, err := s.Key(key.ID)
	ok(t, err)
	same(t, "tombstone", key, got)
}

func namesCanBeSwapped(t *testing.T, s *store) {
	var g ids
	a, b := g.key("a", 1), g.key("b", 2)
	ok(t, s.Put([]*quota.Key{a, b}, nil))
	a.Name, b.Name = b.Name, a.Name
	a.Secrets, b.Secrets = b.Secrets, a.Secrets
	ok(t, s.Put([]*quota.Key{a, b}, nil))
	s.byName(quota.KindKey, "a", b.ID)
	s.byName(quota.KindKey, "b", a.ID)
	s.bySecret(1, b.ID)
	s.bySecret(2, a.ID)
	b.DeletedAt, b.Secrets = epoch, nil
	c := g.key("a", 1)
	ok(t, s.Put([]*quota.Key{c, b}, nil))
	s.byName(quota.KindKey, "a", c.ID)
	s.bySecret(1, c.ID)
}

func refusedPutsChangeNothing(t *testing.T, s *store) {
	var g ids
	a, group := g.key("a", 1), g.group("g")
	ok(t, s.Put([]*quota.Key{a}, []*quota.Group{group}))
	for what, put := range map[string]struct {
		keys   []*quota.Key
		groups []*quota.Group
		err    error
	}{
		"a name that is taken":      {[]*quota.Key{g.key("new", 7), g.key("a", 8)}, nil, quota.ErrConflict},
		"a secret that is taken":    {[]*quota.Key{g.key("new", 7), g.key("b", 1)}, nil, quota.ErrConflict},
		"one name twice":            {[]*quota.Key{g.key("new", 7), g.key("new", 8)}, nil, quota.ErrConflict},
		"one secret twice":          {[]*quota.Key{g.key("new", 7), g.key("b", 7)}, nil, quota.ErrConflict},
		"a group's name is taken":   {[]*quota.Key{g.key("new", 7)}, []*quota.Group{g.group("g")}, quota.ErrConflict},
		"one key twice":             {[]*quota.Key{a, a}, nil, quota.ErrInvalid},
		"a key with a group's ID":   {[]*quota.Key{g.key("new", 7), {ID: group.ID, Name: "x"}}, nil, quota.ErrInvalid},
		"a group with a key's ID":   {[]*quota.Key{g.key("new", 7)}, []*quota.Group{{ID: a.ID, Name: "x"}}, quota.ErrInvalid},
		"a key without an ID":       {[]*quota.Key{g.key("new", 7), {Name: "x"}}, nil, quota.ErrInvalid},
		"a key with a zero ID only": {[]*quota.Key{{}}, nil, quota.ErrInvalid},
	} {
		t.Run(what, func(t *testing.T) {
			is(t, s.Put(put.keys, put.groups), put.err)
			for _, k := range put.keys {
				if k.ID != 0 && k.ID != a.ID && k.ID.Kind() == quota.KindKey {
					_, err := s.Key(k.ID)
					is(t, err, quota.ErrNotFound)
				}
			}
			s.byName(quota.KindKey, "new", 0)
			s.bySecret(7, 0)
			s.byName(quota.KindKey, "a", a.ID)
			s.bySecret(1, a.ID)
			s.byName(quota.KindGroup, "g", group.ID)
		})
	}
}

// membersFollow puts keys into groups, moves, renames and deletes them: the
// list of each group's keys follows.
func membersFollow(t *testing.T, s *store) {
	var g ids
	first, second := g.group("first"), g.group("second")
	a, b, c, alone := g.key("a", 1), g.key("b", 2), g.key("c", 3), g.key("alone", 4)
	a.Group, b.Group, c.Group = first.ID, first.ID, second.ID
	ok(t, s.Put([]*quota.Key{a, b, c, alone}, []*quota.Group{first, second}))
	check := func(what string, firsts, seconds []quota.ID) {
		t.Helper()
		for _, s := range []*store{s, s.crashed()} {
			for group, want := range map[quota.ID][]quota.ID{first.ID: firsts, second.ID: seconds, alone.ID: nil, 0: nil} {
				var got []quota.ID
				ok(t, s.KeysIn(group, 0, func(id quota.ID) bool { got = append(got, id); return true }))
				same(t, what, want, got)
			}
		}
	}
	check("at first", []quota.ID{b.ID, a.ID}, []quota.ID{c.ID})
	a.Group, b.Name = second.ID, "renamed"
	ok(t, s.Put([]*quota.Key{a, b}, nil))
	check("after a move", []quota.ID{b.ID}, []quota.ID{c.ID, a.ID})
	c.DeletedAt, b.Group = epoch, 0
	ok(t, s.Put([]*quota.Key{b, c}, nil))
	check("after a deletion", nil, []quota.ID{a.ID})
	b.Group, c.DeletedAt = second.ID, time.Time{}
	ok(t, s.Put([]*quota.Key{b, c}, nil))
	for below, want := range map[quota.ID][]quota.ID{0: {c.ID, b.ID}, c.ID: {b.ID, a.ID}, b.ID: {a.ID}, a.ID: nil} {
		var got []quota.ID
		ok(t, s.KeysIn(second.ID, below, func(id quota.ID) bool { got = append(got, id); return len(got) < 2 }))
		same(t, "two keys below", want, got)
	}
}

func newestComesFirst(t *testing.T, s *store) {
	var g ids
	var keys []*quota.Key
	var groups []*quota.Group
	for n := range 300 { // over a byte's carry
		keys = append(keys, g.key(fmt.Sprint(n)))
		groups = append(groups, g.group(fmt.Sprint(n)))
	}
	keys[7].DeletedAt, groups[7].DeletedAt = epoch, epoch
	ok(t, s.Put(keys, groups))
	list := func(below quota.ID, most int) (got []quota.ID) {
		ok(t, s.Keys(below, func(k *quota.Key) bool {
			got = append(got, k.ID)
			return len(got) < most
		}))
		return got
	}
	want := func(from, n int) (ids []quota.ID) {
		for i := from - 1; i >= from-n; i-- {
			ids = append(ids, keys[i].ID)
		}
		return ids
	}
	same(t, "all keys", want(300, 300), list(0, 1000))
	same(t, "the first page", want(300, 10), list(0, 10))
	same(t, "the next page", want(290, 10), list(keys[290].ID, 10))
	same(t, "keys below an ID that is none", want(290, 10), list(keys[290].ID-1, 10))
	same(t, "the last page", want(5, 5), list(keys[5].ID, 10))
	same(t, "below the first", []quota.ID(nil), list(keys[0].ID, 10))
	var got []quota.ID
	ok(t, s.Groups(groups[100].ID, func(g *quota.Group) bool {
		got = append(got, g.ID)
		return true
	}))
	same(t, "number of groups", 100, len(got))
	same(t, "the first group", groups[99].ID, got[0])
}

func configuredAreListed(t *testing.T, s *store) {
	var g ids
	a, b, c, group := g.key("a"), g.key("b"), g.key("c"), g.group("g")
	a.Source, b.Source, group.Source = quota.SourceConfig, quota.SourceConfig, quota.SourceConfig
	check := func(want ...quota.ID) {
		t.Helper()
		got, err := s.Configured()
		ok(t, err)
		set := map[quota.ID]bool{}
		for _, id := range got {
			set[id] = true
		}
		wanted := map[quota.ID]bool{}
		for _, id := range want {
			wanted[id] = true
		}
		same(t, "configured", wanted, set)
		same(t, "number of configured", len(want), len(got))
	}
	check()
	ok(t, s.Put([]*quota.Key{a, b, c}, []*quota.Group{group}))
	check(a.ID, b.ID, group.ID)
	a.DeletedAt, b.Removed, c.Source = epoch, true, quota.SourceConfig
	ok(t, s.Put([]*quota.Key{a, b, c}, nil))
	check(b.ID, c.ID, group.ID)
	b.Source = quota.SourceAPI
	ok(t, s.Put([]*quota.Key{b}, nil))
	s = s.again()
	check(c.ID, group.ID)
}

func tenThousandKeysAtOnce(t *testing.T, s *store) {
	var g ids
	const n = 10000
	keys := make([]*quota.Key, n)
	for i := range keys {
		keys[i] = g.key(fmt.Sprintf("key number %d", i), uint32(i)+1)
		keys[i].Metadata = map[string]string{"team": "platform", "purpose": "a text of some length, as people write them"}
		keys[i].Quota = &quota.Quota{Tokens: quota.At(1e6), Reset: quota.ResetMonthly}
	}
	ok(t, s.Put(keys, nil))
	check := func(s *store) {
		t.Helper()
		i := n
		ok(t, s.Keys(0, func(k *quota.Key) bool { i--; return k.ID == keys[i].ID }))
		same(t, "keys not seen", 0, i)
		for i := 0; i < n; i += 997 {
			s.byName(quota.KindKey, keys[i].Name, keys[i].ID)
			s.bySecret(uint32(i)+1, keys[i].ID)
		}
	}
	check(s)
	last := g.key(keys[0].Name, n+1)
	is(t, s.Put(append(keys[1:n:n], last), nil), quota.ErrConflict)
	s.bySecret(n+1, 0)
	check(s.crashed())
	check(s.again())
}

func directoryInParallel(t *testing.T, s *store) {
	var g ids
	shared := g.key("shared", 1)
	ok(t, s.Put([]*quota.Key{shared}, nil))
	keys := make([]*quota.Key, 40)
	for i := range keys {
		keys[i] = g.key(fmt.Sprint(i), uint32(i)+100)
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := w; i < len(keys); i += 4 {
				if err := s.Put(keys[i:i+1], nil); err != nil {
					t.Error(err)
				}
				if id, err := s.KeyBySecret(hash(uint32(i) + 100)); err != nil || id != keys[i].ID {
					t.Errorf("secret %d: %v, %v", i, id, err)
				}
			}
		})
		wg.Go(func() {
			for range 100 {
				if _, err := s.Key(shared.ID); err != nil {
					t.Error(err)
				}
				if err := s.Keys(0, func(*quota.Key) bool { return true }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 20 {
			if err := s.Checkpoint(&quota.Checkpoint{Accounts: []quota.AccountCounters{{ID: shared.ID}}}); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	n := 0
	ok(t, s.Keys(0, func(*quota.Key) bool { n++; return true }))
	same(t, "number of keys", len(keys)+1, n)
}
