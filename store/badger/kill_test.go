package badger

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// childDir names the directory in which this binary, started anew, is to be
// the process that is killed.
const childDir = "LLM_QUOTA_TEST_KILL_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		child(dir)
		return
	}
	os.Exit(m.Run())
}

// child appends and puts as fast as it can, and prints what was promised: "r"
// and a record's number, "k" and the number of keys.
func child(dir string) {
	s, err := Open(Options{Dir: dir, SyncInterval: time.Second, Logger: func(f string, a ...any) { fmt.Printf("log "+f+"\n", a...) }})
	check(err)
	s.journal.rotateAt = 10_000
	nothing := func(*quota.Record) error { return nil }
	last, err := s.Recover(nothing, func(r *quota.Record) error { return nil })
	check(err)
	fmt.Println("open", last)
	for n := 1; ; n++ {
		r := sample(uint64(n))
		r.Account = quota.ID(n)
		seq := s.Append(&r)
		check(s.Flush(seq))
		fmt.Println("r", seq)
		if n%20 == 0 {
			checkpoint(s)
		}
		if n%50 == 0 {
			check(s.Put(keys(n/50), nil))
			fmt.Println("k", n/50)
		}
	}
}

// checkpoint writes a row in which each record counts as one request.
func checkpoint(s *Store) {
	records, through, err := s.Cut()
	check(err)
	row := quota.Row{Slot: quota.Slot{Key: 2, Model: "m"}}
	for range records {
		row.Requests++
	}
	check(s.Checkpoint(&quota.Checkpoint{Through: through, Rows: []quota.Row{row}, Trim: true}))
}

func check(err error) {
	if err != nil {
		fmt.Println("failed", err)
		os.Exit(3)
	}
}

func TestKill(t *testing.T) {
	rounds := 20
	if testing.Short() {
		rounds = 5
	}
	dir := t.TempDir()
	acked, put := uint64(0), 0
	for range rounds {
		acked, put = killOne(t, dir, acked, put)
		total, names := countAll(t, dir)
		if total < acked || total > acked+1 { // the one that was under way may be there
			t.Fatalf("%d records are kept, %d were acknowledged", total, acked)
		}
		if names < put || names > put+1 {
			t.Fatalf("%d keys are kept, %d were acknowledged", names, put)
		}
		acked = total
	}
	t.Logf("%d records over %d kills", acked, rounds)
}

// killOne starts a child, kills it at some moment, and returns what it was
// promised.
func killOne(t *testing.T, dir string, acked uint64, put int) (uint64, int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	out, err := cmd.StdoutPipe()
	ok(t, err)
	ok(t, cmd.Start())
	lines := bufio.NewScanner(out)
	timer := (*time.Timer)(nil)
	for lines.Scan() {
		what, n, _ := strings.Cut(lines.Text(), " ")
		switch what {
		case "open": // kill it somewhere in the midst of what follows
			timer = time.AfterFunc(time.Duration(rand.Int64N(int64(150*time.Millisecond))), func() { cmd.Process.Kill() })
		case "r":
			acked, _ = strconv.ParseUint(n, 10, 64)
		case "k":
			n, _ := strconv.Atoi(n)
			put = max(put, n)
		case "log":
			if !strings.Contains(n, "torn record") {
				t.Errorf("child logs: %s", n)
			}
		default:
			t.Fatalf("child: %s", lines.Text())
		}
	}
	cmd.Wait()
	if timer == nil {
		t.Fatal("the child did not open the store")
	}
	timer.Stop()
	return acked, put
}

// countAll returns how many records and keys the store holds.
func countAll(t *testing.T, dir string) (records uint64, names int) {
	t.Helper()
	s, err := Open(Options{Dir: dir, SyncInterval: time.Second, Logger: func(f string, a ...any) {
		if !strings.Contains(f, "torn record") {
			t.Errorf(f, a...)
		}
	}})
	ok(t, err)
	var waiting, last uint64
	var replayed []uint64
	nothing := func(*quota.Record) error { return nil }
	through, err := s.Recover(nothing, func(r *quota.Record) error { replayed = append(replayed, r.Seq); return nil })
	ok(t, err)
	for _, seq := range replayed {
		if seq > through {
			waiting, last = waiting+1, seq
		}
	}
	var counted int64
	ok(t, s.Usage(quota.RowQuery{To: 1, ByKey: true}, func(r *quota.Row) error { counted += r.Requests; return nil }))
	if uint64(counted) != through {
		t.Fatalf("the rows hold %d records through number %d", counted, through)
	}
	ok(t, s.Keys(0, func(*quota.Key) bool { names++; return true }))
	if waiting > 0 { // bring them into the rows, so that the next round begins even
		ok(t, s.Checkpoint(&quota.Checkpoint{Through: last, Rows: []quota.Row{{
			Slot: quota.Slot{Key: 2, Model: "m"}, Totals: quota.Totals{Requests: int64(waiting)},
		}}, Trim: true}))
	}
	ok(t, s.Close())
	return through + waiting, names
}
