package storetest

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func testJournal(t *testing.T, open Opener) {
	for name, test := range map[string]func(*testing.T, *store){
		"Numbers":      numbersGrowByOne,
		"Kinds":        recordsOfEveryKind,
		"Cut":          cutReturnsWhatWasAppended,
		"Uncut":        uncutIsWhatCutHasYetToReturn,
		"CutMeanwhile": cutsPartWhatIsAppendedMeanwhile,
		"Flushed":      flushedRecordsSurvive,
		"Through":      replayBeginsAtTheCheckpoint,
		"Trimmed":      trimmedRecordsStayAway,
		"Restarts":     numbersGrowOverRestarts,
	} {
		t.Run(name, func(t *testing.T) { test(t, start(t, open)) })
	}
}

func numbersGrowByOne(t *testing.T, s *store) {
	same(t, "through of a new store", uint64(0), s.through)
	for n := uint64(1); n <= 100; n++ {
		r := quota.Record{Kind: quota.RecordOpen, Seq: 77, ID: 77}
		if seq := s.Append(&r); seq != n || r.Seq != n || r.ID != n {
			t.Fatalf("record %d got number %d, Seq %d, ID %d", n, seq, r.Seq, r.ID)
		}
		if n%10 == 0 {
			ok(t, s.Flush(n))
		}
		if n%25 == 0 {
			s.cut()
		}
	}
	settle := quota.Record{Kind: quota.RecordSettle, ID: 5}
	s.Append(&settle)
	same(t, "ID of a settlement", uint64(5), settle.ID)
	s = s.again()
	same(t, "number after a restart", uint64(102), s.Append(&quota.Record{Kind: quota.RecordRefuse}))
}

func uncutIsWhatCutHasYetToReturn(t *testing.T, s *store) {
	uncut := func(want ...quota.Record) {
		t.Helper()
		var got []quota.Record
		ok(t, s.Uncut(func(r *quota.Record) error { got = append(got, clone(r)); return nil }))
		same(t, "records since the last Cut", want, got)
	}
	uncut()
	want := extremes()
	for i := range want {
		s.Append(&want[i])
		if i == len(want)/2 {
			ok(t, s.Flush(want[i].Seq))
		}
	}
	for range 2 { // it takes nothing away
		uncut(want...)
	}
	enough := errors.New("enough")
	if err := s.Uncut(func(*quota.Record) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("Uncut returned %v in the place of what its function did", err)
	}
	got, _ := s.cut()
	same(t, "records of Cut", want, got)
	uncut()
	late := record(uint64(len(want) + 1))
	s.Append(&late)
	uncut(late)
}

// extremes are records at the ends of their fields' ranges.
func extremes() []quota.Record {
	shares := make([]quota.Share, quota.MaxDepth+1)
	for i := range shares {
		shares[i] = quota.Share{Account: math.MaxUint64, Quota: math.MaxUint32, Day: math.MaxUint32, Minute: math.MaxUint32}
	}
	usage := quota.Tokens{Input: math.MaxInt64, Cached: math.MinInt64, CacheWrite: -1, Output: 1, Reasoning: math.MaxInt64}
	list := []quota.Record{
		{Kind: quota.RecordOpen},
		{Kind: quota.RecordOpen, Time: math.MaxInt64, Tick: math.MinInt64, Key: math.MaxUint64, Group: math.MaxUint64,
			Model: strings.Repeat("é", 512), Shares: shares, Reserved: math.MaxInt64},
		{Kind: quota.RecordSettle},
		{Kind: quota.RecordSettle, Time: math.MinInt64, Tick: math.MaxInt64, ID: math.MaxUint64, Opened: math.MaxInt64,
			OpenTick: math.MinInt64, Key: 1, Model: "\x00\xff", Shares: shares[:1], Reserved: math.MinInt64,
			Outcome: quota.Outcome{Tokens: usage, Estimated: true, Failed: true}},
		{Kind: quota.RecordSettle, Time: 1, Opened: 2, Outcome: quota.Outcome{Failed: true}},
		{Kind: quota.RecordSettle, Outcome: quota.Outcome{Estimated: true}},
		{Kind: quota.RecordSettle, Key: 1, Outcome: quota.Outcome{Tokens: usage, Estimated: true, Later: "resp_1"}},
		{Kind: quota.RecordCorrect, Time: 9, Opened: 3, ID: 4, Key: 1, Shares: shares, Reserved: 5,
			Outcome: quota.Outcome{Tokens: usage, Later: strings.Repeat("x", quota.MaxLater)}, Before: quota.Outcome{Estimated: true, Later: "y"}},
		{Kind: quota.RecordRefuse},
		{Kind: quota.RecordRefuse, Time: -1, Key: 2, Group: 3, Model: "gpt-4o"},
	}
	for _, limit := range append([]quota.LimitName{""}, quota.LimitNames...) {
		list = append(list,
			quota.Record{Kind: quota.RecordTurn, Time: 5, Account: 6, Limit: limit, Number: math.MaxUint32,
				Period: quota.Period{Start: math.MinInt64, End: math.MaxInt64}},
			quota.Record{Kind: quota.RecordReset, Time: 5, Account: math.MaxUint64, Limit: limit, Number: 1},
			quota.Record{Kind: quota.RecordGrant, Time: 5, Account: 6, Limit: limit, Number: 2, Amount: math.MinInt64},
			quota.Record{Kind: quota.RecordSet, Time: 5, Account: 6, Limit: limit, Number: 3, Amount: math.MaxInt64, Offset: math.MinInt64,
				Period: quota.Period{Start: 1, End: 2}})
	}
	return list
}

func recordsOfEveryKind(t *testing.T, s *store) {
	want := extremes()
	for i := range want {
		s.Append(&want[i])
	}
	got, through := s.cut()
	same(t, "records of Cut", want, got)
	same(t, "through", uint64(len(want)), through)
	same(t, "replayed records after a crash", want, s.crashed().replay)
	same(t, "replayed records after a restart", want, s.again().replay)
}

func cutReturnsWhatWasAppended(t *testing.T, s *store) {
	got, through := s.cut()
	same(t, "records of an empty journal", 0, len(got))
	same(t, "through of an empty journal", uint64(0), through)
	ok(t, s.Flush(0)) // nothing is nothing to wait for
	seq := uint64(0)
	for _, n := range []int{1, 0, 3, 0, 0, 5000} {
		var want []quota.Record
		for range n {
			r := record(seq + 1)
			s.Append(&r)
			want = append(want, r)
			seq++
			if seq%7 == 0 {
				ok(t, s.Flush(seq))
			}
		}
		records, through, err := s.Cut()
		ok(t, err)
		same(t, "through", seq, through)
		late := record(seq + 1) // belongs to the next
		s.Append(&late)
		seq++
		for range 2 { // they are readable until the next Cut
			var got []quota.Record
			for r := range records {
				got = append(got, clone(r))
			}
			same(t, "records", want, got)
		}
		for range records { // a loop may end early
			break
		}
		got, through := s.cut()
		same(t, "through", seq, through)
		same(t, "records", []quota.Record{late}, got)
	}
	s = s.again()
	got, through = s.cut()
	same(t, "records after a restart", 0, len(got))
	same(t, "through after a restart", seq, through)
}

// record makes a record that tells its number.
func record(n uint64) quota.Record {
	r := quota.Record{
		Kind: quota.RecordSettle, Time: int64(n), Tick: int64(n) * 3, ID: n, Key: quota.ID(n << 1), Model: fmt.Sprint("model-", n%5),
		Shares: []quota.Share{{Account: quota.ID(n), Quota: uint32(n)}, {Account: 2, Day: 4}}, Reserved: int64(n) * 5,
	}
	r.Outcome.Tokens.Output = int64(n)
	return r
}

func cutsPartWhatIsAppendedMeanwhile(t *testing.T, s *store) {
	const writers, each = 4, 2000
	var appended sync.WaitGroup
	for w := range writers {
		appended.Go(func() {
			for i := range each {
				r := quota.Record{Kind: quota.RecordGrant, Account: quota.ID(w), Amount: int64(i)}
				seq := s.Append(&r)
				if i%3 == 0 {
					if err := s.Flush(seq); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { appended.Wait(); close(done) }()
	var next uint64
	var amounts [writers]int64
	for last := false; ; {
		records, through, err := s.Cut()
		ok(t, err)
		for r := range records {
			next++
			same(t, "number of the next record", next, r.Seq)
			same(t, "order of one writer", amounts[r.Account], r.Amount)
			amounts[r.Account]++
		}
		same(t, "through", next, through)
		ok(t, s.Checkpoint(&quota.Checkpoint{Through: through, Trim: rand.IntN(2) == 0}))
		if last {
			break
		}
		select {
		case <-done:
			last = true
		default:
		}
	}
	same(t, "records", uint64(writers*each), next)
}

func flushedRecordsSurvive(t *testing.T, s *store) {
	var want []quota.Record
	for n := uint64(1); n <= 20; n++ {
		r := record(n)
		s.Append(&r)
		want = append(want, r)
	}
	ok(t, s.Flush(20))
	for n := uint64(21); n <= 25; n++ { // these may be there, and may not
		r := record(n)
		s.Append(&r)
		want = append(want, r)
	}
	c := s.crashed()
	if n := len(c.replay); n < 20 || n > 25 {
		t.Fatalf("%d records after a crash, want 20 to 25", n)
	}
	same(t, "records after a crash", want[:len(c.replay)], c.replay)
	r := record(0)
	same(t, "the next number", uint64(len(c.replay))+1, c.Append(&r))
	ok(t, c.Flush(r.Seq))
	again := c.again()
	same(t, "records after a crash and a restart", len(c.replay)+1, len(again.replay))
}

func replayBeginsAtTheCheckpoint(t *testing.T, s *store) {
	for n := uint64(1); n <= 30; n++ {
		r := record(n)
		s.Append(&r)
		if n == 10 || n == 20 {
			_, through := s.cut()
			ok(t, s.Checkpoint(&quota.Checkpoint{Through: through}))
		}
	}
	ok(t, s.Flush(30))
	for _, s := range []*store{s.crashed(), s.again()} {
		same(t, "through", uint64(20), s.through)
		after := 0
		for i, r := range s.replay {
			if i > 0 {
				same(t, "next record", s.replay[i-1].Seq+1, r.Seq)
			}
			if r.Seq > 20 {
				after++
			}
		}
		same(t, "records after through", 10, after)
	}
}

func trimmedRecordsStayAway(t *testing.T, s *store) {
	seq := uint64(0)
	for range 5 {
		for range 10 {
			r := record(seq + 1)
			seq = s.Append(&r)
		}
		_, through := s.cut()
		r := record(seq + 1)
		seq = s.Append(&r)
		ok(t, s.Flush(seq))
		ok(t, s.Checkpoint(&quota.Checkpoint{Through: through, Trim: true}))
		c := s.crashed()
		same(t, "through", through, c.through)
		same(t, "records", []quota.Record{r}, c.replay)
	}
}

func numbersGrowOverRestarts(t *testing.T, s *store) {
	seq := uint64(0)
	for i := range 12 {
		for range i % 4 {
			r := record(seq + 1)
			same(t, "number", seq+1, s.Append(&r))
			seq++
		}
		if i%3 == 0 {
			_, through := s.cut()
			same(t, "through", seq, through)
			ok(t, s.Checkpoint(&quota.Checkpoint{Through: through, Trim: i%2 == 0}))
		}
		s = s.again()
	}
}
