package badger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// logs keeps what is logged.
type logs struct {
	mu    sync.Mutex
	lines []string
}

func (l *logs) log(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *logs) has(t *testing.T, part string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.ContainsFunc(l.lines, func(s string) bool { return strings.Contains(s, part) }) {
		t.Errorf("nothing logged with %q, but: %q", part, l.lines)
	}
}

func (l *logs) empty(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.lines) > 0 {
		t.Errorf("logged: %q", l.lines)
	}
}

// recovered returns the journal in dir and the numbers of the records in it.
func recovered(t testing.TB, dir string, log func(string, ...any)) (*journal, []uint64) {
	t.Helper()
	j := newJournal(dir, log)
	var seqs []uint64
	ok(t, j.recover(0, 0, func(r *quota.Record) error {
		if want := sample(r.Seq); r.Account != want.Account || r.Amount != want.Amount {
			t.Fatalf("record %d is %+v", r.Seq, r)
		}
		seqs = append(seqs, r.Seq)
		return nil
	}))
	t.Cleanup(func() { j.close() })
	return j, seqs
}

func sample(n uint64) quota.Record {
	return quota.Record{Kind: quota.RecordGrant, Account: quota.ID(n * 7), Amount: int64(n * n)}
}

// write appends and flushes n records.
func write(t testing.TB, j *journal, n int) {
	t.Helper()
	for range n {
		r := sample(j.seq + 1)
		ok(t, j.flush(j.append(&r)))
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// upTo returns 1 to n.
func upTo(n int) (seqs []uint64) {
	for i := range n {
		seqs = append(seqs, uint64(i)+1)
	}
	return seqs
}

func equal(t testing.TB, what string, want, got []uint64) {
	t.Helper()
	if !slices.Equal(want, got) {
		t.Fatalf("%s: %v, want %v", what, got, want)
	}
}

// onlySegment returns the one segment in dir, and its content.
func onlySegment(t testing.TB, dir string) (path string, content []byte) {
	t.Helper()
	paths, _ := filepath.Glob(filepath.Join(dir, "*.log"))
	if len(paths) != 1 {
		t.Fatalf("segments: %v", paths)
	}
	b, err := os.ReadFile(paths[0])
	ok(t, err)
	return paths[0], b
}

func TestTornTailIsDropped(t *testing.T) {
	dir := t.TempDir()
	j, _ := recovered(t, dir, t.Logf)
	ends := []int64{headerSize}
	for range 5 {
		write(t, j, 1)
		ends = append(ends, j.segment.size)
	}
	ok(t, j.close())
	path, whole := onlySegment(t, dir)
	for n := range len(whole) + 1 { // torn after each byte
		dir := t.TempDir()
		ok(t, os.WriteFile(filepath.Join(dir, filepath.Base(path)), whole[:n], 0o600))
		records := 0
		for records+1 < len(ends) && ends[records+1] <= int64(n) {
			records++
		}
		var l logs
		j, seqs := recovered(t, dir, l.log)
		equal(t, fmt.Sprintf("records of the first %d bytes", n), upTo(records), seqs)
		if n <= headerSize || int64(n) == ends[records] {
			l.empty(t)
		} else {
			l.has(t, "torn record")
		}
		write(t, j, 2)
		ok(t, j.close())
		l = logs{}
		_, seqs = recovered(t, dir, l.log)
		equal(t, "records after that", upTo(records+2), seqs)
		l.empty(t) // the tail was cut off
	}
}

func TestZerosAtTheEndAreDropped(t *testing.T) {
	dir := t.TempDir()
	j, _ := recovered(t, dir, t.Logf)
	write(t, j, 3)
	ok(t, j.close())
	path, whole := onlySegment(t, dir)
	ok(t, os.WriteFile(path, append(whole, make([]byte, 2*windowSize)...), 0o600))
	var l logs
	_, seqs := recovered(t, dir, l.log)
	equal(t, "records", upTo(3), seqs)
	l.has(t, "dropping 524288 bytes")
}

func TestFlippedByteCostsOneRecord(t *testing.T) {
	dir := t.TempDir()
	j, _ := recovered(t, dir, t.Logf)
	const records = 8
	write(t, j, records)
	ok(t, j.close())
	path, whole := onlySegment(t, dir)
	for i := range whole {
		dir := t.TempDir()
		b := slices.Clone(whole)
		b[i] ^= 0x55
		ok(t, os.WriteFile(filepath.Join(dir, filepath.Base(path)), b, 0o600))
		var l logs
		j := newJournal(dir, l.log)
		var seqs []uint64
		ok(t, j.recover(0, records, func(r *quota.Record) error { seqs = append(seqs, r.Seq); return nil }))
		lost := records - len(seqs)
		if i < headerSize && lost != 0 || i >= headerSize && lost != 1 {
			t.Fatalf("flip at %d: records %v", i, seqs)
		}
		if lost > 0 && j.lost != 1 {
			t.Fatalf("flip at %d: %d records are reported missing", i, j.lost)
		}
		if lost > 0 {
			l.has(t, "1 records missing")
		}
		ok(t, j.close())
	}
}

func TestUnknownVersionIsRefused(t *testing.T) {
	dir := t.TempDir()
	h := newHeader(1)
	h[len(segmentMagic)]++
	sum := crc32.Checksum(h[:headerSize-4], castagnoli)
	binary.LittleEndian.PutUint32(h[headerSize-4:], sum)
	ok(t, os.WriteFile(filepath.Join(dir, "0000000001.log"), h, 0o600))
	err := newJournal(dir, t.Logf).recover(0, 0, func(*quota.Record) error { return nil })
	if err == nil || !strings.Contains(err.Error(), "version 2 is not known") {
		t.Fatalf("error is %v", err)
	}
}

func TestDamageInTheMiddleIsReported(t *testing.T) {
	for what, damage := range map[string]struct {
		do   func(path string) error
		want []uint64
		log  string
	}{
		"truncated": {func(p string) error {
			info, err := os.Stat(p)
			if err != nil {
				return err
			}
			return os.Truncate(p, info.Size()-3)
		}, []uint64{1, 2, 3, 4, 5, 7, 8, 9}, "1 records missing, 6 to 6"},
		"empty": {func(p string) error { return os.Truncate(p, 0) }, []uint64{1, 2, 3, 7, 8, 9}, "3 records missing, 4 to 6"},
		"gone":  {os.Remove, []uint64{1, 2, 3, 7, 8, 9}, "3 records missing, 4 to 6"},
		"noise": {func(p string) error { return os.WriteFile(p, []byte(strings.Repeat("noise", 1000)), 0o600) },
			[]uint64{1, 2, 3, 7, 8, 9}, "header is damaged"},
		"twice": {func(p string) error {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			return os.WriteFile(p, append(b, b[headerSize:]...), 0o600)
		}, upTo(9), "comes after record 6"},
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			j, _ := recovered(t, dir, t.Logf)
			j.rotateAt = 1 // each Cut begins a new file
			for range 3 {
				write(t, j, 3)
				_, _, err := j.cut()
				ok(t, err)
			}
			ok(t, j.close())
			paths, _ := filepath.Glob(filepath.Join(dir, "*.log"))
			ok(t, damage.do(paths[1]))
			var l logs
			j, seqs := recovered(t, dir, l.log)
			equal(t, "records", damage.want, seqs)
			l.has(t, damage.log)
			r := sample(10)
			if seq := j.append(&r); seq != 10 {
				t.Fatalf("the next number is %d", seq)
			}
		})
	}
}

func TestSegmentsAreTrimmed(t *testing.T) {
	dir := t.TempDir()
	j, _ := recovered(t, dir, t.Logf)
	j.rotateAt = 200
	count := func() int {
		paths, _ := filepath.Glob(filepath.Join(dir, "*.log"))
		return len(paths)
	}
	for range 50 {
		write(t, j, 3)
		_, through, err := j.cut()
		ok(t, err)
		j.trim(through - 10)
		if n := count(); n > 4 {
			t.Fatalf("%d segments", n)
		}
	}
	j.trim(j.cutThrough())
	if n := count(); n > 2 {
		t.Fatalf("%d segments after the last trim", n)
	}
	ok(t, j.close())
	l := &logs{}
	j = newJournal(dir, l.log)
	ok(t, j.recover(150, 150, func(*quota.Record) error { t.Error("a record is replayed"); return nil }))
	l.empty(t)
	ok(t, j.close())
}

// flaky is a file that fails as it is told.
type flaky struct {
	file
	room  int // bytes that can still be written; < 0: endless
	syncs []error
}

var errFull = errors.New("no space left on device")

func (f *flaky) WriteAt(b []byte, off int64) (int, error) {
	if f.room < 0 || len(b) <= f.room {
		f.room -= len(b)
		return f.file.WriteAt(b, off)
	}
	n, _ := f.file.WriteAt(b[:f.room], off)
	f.room = 0
	return n, errFull
}

func (f *flaky) Sync() error {
	if len(f.syncs) == 0 {
		return f.file.Sync()
	}
	err := f.syncs[0]
	f.syncs = f.syncs[1:]
	return err
}

func TestFailedWritesAreContinued(t *testing.T) {
	for room := range 100 { // torn after each byte
		dir := t.TempDir()
		j, _ := recovered(t, dir, t.Logf)
		f := &flaky{file: j.segment.f, room: room}
		j.segment.f = f
		failed := 0
		for range 5 {
			r := sample(j.seq + 1)
			if err := j.flush(j.append(&r)); errors.Is(err, errFull) {
				failed++
				if _, _, err := j.cut(); !errors.Is(err, errFull) {
					t.Fatalf("Cut: %v", err)
				}
			} else if err != nil {
				t.Fatal(err)
			}
		}
		f.room = 1 << 20
		ok(t, j.flush(5))
		records, through, err := j.cut()
		ok(t, err)
		var seqs []uint64
		for r := range records {
			seqs = append(seqs, r.Seq)
		}
		equal(t, "records of the Cut", upTo(5), seqs)
		equal(t, "through", []uint64{5}, []uint64{through})
		ok(t, j.close())
		var l logs
		_, seqs = recovered(t, dir, l.log)
		equal(t, "records", upTo(5), seqs)
		l.empty(t)
	}
}

func TestTooManyHeldRecordsAreDropped(t *testing.T) {
	dir := t.TempDir()
	var l logs
	j, _ := recovered(t, dir, l.log)
	write(t, j, 1)
	j.limit = 100
	f := &flaky{file: j.segment.f}
	j.segment.f = f
	for range 50 {
		r := sample(j.seq + 1)
		if err := j.flush(j.append(&r)); err == nil {
			t.Fatal("no error")
		}
	}
	if n := len(j.pending) + len(j.out); n > 100 {
		t.Fatalf("%d bytes are held", n)
	}
	l.has(t, "records are dropped from now on")
	f.room = 1 << 20
	if err := j.flush(51); !errors.Is(err, errLost) {
		t.Fatalf("a dropped record: %v", err)
	}
	ok(t, j.flush(2))
	write(t, j, 1)
	_, through, err := j.cut()
	ok(t, err)
	equal(t, "through", []uint64{52}, []uint64{through})
	l.has(t, "some were dropped")
	lost := j.lost
	ok(t, j.close())
	j, seqs := recovered(t, dir, l.log)
	equal(t, "the last record", []uint64{52}, seqs[len(seqs)-1:])
	if int(lost)+len(seqs) != 52 || j.lost != lost {
		t.Fatalf("%d dropped, %d kept, %d reported", lost, len(seqs), j.lost)
	}
}

func TestFailedSyncsAreMadeGood(t *testing.T) {
	for _, each := range []bool{false, true} {
		dir := t.TempDir()
		j, _ := recovered(t, dir, t.Logf)
		j.syncEach = each
		write(t, j, 2)
		_, err := j.sync()
		ok(t, err)
		end := j.segment.size
		f := &recorder{flaky: flaky{file: j.segment.f, room: -1, syncs: []error{errFull}}}
		j.segment.f = f
		r := sample(3)
		err = j.flush(j.append(&r))
		if !each {
			ok(t, err)
			_, err = j.sync()
		}
		if !errors.Is(err, errFull) {
			t.Fatalf("error is %v", err)
		}
		// The system may have forgotten what it could not write.
		f.offsets = nil
		ok(t, j.flush(3))
		_, err = j.sync()
		ok(t, err)
		if !slices.Equal(f.offsets, []int64{end}) {
			t.Fatalf("written again at %v, want %d", f.offsets, end)
		}
		if j.segment.synced != j.segment.size {
			t.Fatal("not all is synced")
		}
	}
}

type recorder struct {
	flaky
	offsets []int64
}

func (f *recorder) WriteAt(b []byte, off int64) (int, error) {
	f.offsets = append(f.offsets, off)
	return f.flaky.WriteAt(b, off)
}

func TestAppendAndFlushDoNotAllocate(t *testing.T) {
	j, _ := recovered(t, t.TempDir(), t.Logf)
	r := call()
	n := testing.AllocsPerRun(1000, func() { ok(t, j.flush(j.append(&r))) })
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// call is the settlement of an ordinary call.
func call() quota.Record {
	const now = 1_780_000_000_000_000_000
	return quota.Record{
		Kind: quota.RecordSettle, Time: now, Tick: now - 5e8, ID: 123456, Opened: now - 2e9, OpenTick: now - 25e8,
		Key: 420_000_000_000_000_002, Group: 420_000_000_000_000_001, Model: "gpt-4o-mini", Reserved: 1500,
		Shares: []quota.Share{
			{Account: 420_000_000_000_000_002, Quota: 3, Day: 40}, {Account: 420_000_000_000_000_001, Quota: 3, Day: 40},
		},
		Outcome: quota.Outcome{Tokens: quota.Tokens{Input: 500, Cached: 100, Output: 700, Reasoning: 300}},
	}
}
