package e2e

import (
	"bytes"
	"cmp"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// damages are what may happen to a file, of which so many bytes are in use.
var damages = []struct {
	name string
	do   func(f *os.File, used int64) error
}{
	{"flipped at the head", func(f *os.File, _ int64) error { return flip(f, 0) }},
	{"cut to half", func(f *os.File, used int64) error { return f.Truncate(used / 2) }},
	{"flipped in the middle", func(f *os.File, used int64) error { return flip(f, used/2) }},
	{"cut at the tail", func(f *os.File, used int64) error { return f.Truncate(used - min(100, (used+1)/2)) }},
	{"flipped at the tail", func(f *os.File, used int64) error { return flip(f, max(used-8, 0)) }},
	{"emptied", func(f *os.File, _ int64) error { return f.Truncate(0) }},
	{"removed", func(f *os.File, _ int64) error { return os.Remove(f.Name()) }},
}

// flip changes every bit of eight bytes, or of as many as there are.
func flip(f *os.File, at int64) error {
	b := make([]byte, 8)
	n, err := f.ReadAt(b, at)
	if n == 0 {
		return err
	}
	for i := range b[:n] {
		b[i] ^= 0xff
	}
	_, err = f.WriteAt(b[:n], at)
	return err
}

// damage does one thing to a file.
func damage(t *testing.T, path string, do func(f *os.File, used int64) error) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := do(f, used(t, path)); err != nil {
		t.Fatalf("damaging %s: %v", path, err)
	}
}

// used returns how many bytes of a file are in use: Badger's logs are longer
// than what is in them.
func used(t *testing.T, path ...string) int64 {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(bytes.TrimRight(b, "\x00")); n > 0 {
		return int64(n)
	}
	return int64(len(b))
}

// kindOf names the kind of a file of the store, as tables are all of one kind.
func kindOf(path string) string {
	dir, name := filepath.Split(path)
	if ext := filepath.Ext(name); ext != "" && strings.ContainsAny(name, "0123456789") {
		return dir + "*" + ext
	}
	return path
}

// damageable returns the files of a store by their kind, the longest first.
func damageable(t *testing.T, dir string) map[string][]string {
	t.Helper()
	kinds := map[string][]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		kinds[kindOf(rel)] = append(kinds[kindOf(rel)], rel)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, files := range kinds {
		slices.SortStableFunc(files, func(a, b string) int { return cmp.Compare(used(t, dir, b), used(t, dir, a)) })
	}
	for _, kind := range []string{
		"badger/*.sst", "badger/*.mem", "badger/*.vlog", "badger/MANIFEST", "badger/DISCARD", "badger/KEYREGISTRY",
		"journal/*.log", "tables.mark", "hash.key", "snapshots/*.lqsnap",
	} {
		if kinds[kind] == nil {
			t.Errorf("the store has no %s, only %v", kind, slices.Sorted(maps.Keys(kinds)))
		}
	}
	return kinds
}

// A damagedStore is a gate whose store is damaged again and again.
type damagedStore struct {
	*gate
	t        *testing.T
	store    string // the directory
	sound    string // a copy of it as a kill has left it
	config   *chaosLoad
	made     *chaosLoad // of a key that was made through the API
	expected knowledge
}

// knowledge is what the gate knows of what was used.
type knowledge struct {
	config, made  totals
	used, useMade int64
	group         int64
}

// exceeded says what of have was counted more than once. A call of which the end
// is lost was open, and is charged what was reserved for it.
func (k *knowledge) exceeded(have *knowledge) string {
	estimated := have.config.Estimated + have.made.Estimated
	switch {
	case have.config.Requests > k.config.Requests || have.made.Requests > k.made.Requests:
		return "there are more requests than before"
	case have.config.Total-have.config.Estimated > k.config.Total || have.made.Total-have.made.Estimated > k.made.Total:
		return "more tokens are charged than before"
	case have.used-estimated > k.used || have.useMade-estimated > k.useMade || have.group-estimated > k.group:
		return "the quotas have more used than before"
	}
	return ""
}

func (d *damagedStore) knowledge() (k knowledge) {
	d.t.Helper()
	d.settled()
	k.config, k.made = d.use("name:config", &k.used), d.use("name:made", &k.useMade)
	var group keyObject
	d.api(http.MethodGet, "/groups/name:team", nil, &group)
	k.group = group.State.Quota.Used
	return k
}

// use returns what a key has used; nothing, if it is not there.
func (d *damagedStore) use(name string, used *int64) totals {
	d.t.Helper()
	resp, err := http.Get("http://" + d.admin + "/llm_quota/keys/" + name)
	if err != nil {
		d.t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode == http.StatusNotFound {
		return totals{}
	}
	k := d.key(name)
	*used = k.State.Quota.Used
	return d.usage(k.ID).Totals
}

// newDamagedStore makes a store with something in every kind of file: tables,
// what Badger has not made tables of, a journal that the tables lack, and a
// snapshot from before most of it.
func newDamagedStore(t *testing.T) *damagedStore {
	provider := newChaosProvider(t)
	dir := t.TempDir()
	d := &damagedStore{t: t, store: filepath.Join(dir, "store"), sound: filepath.Join(dir, "sound")}
	d.gate = newGate(t, provider.URL, "store badger "+d.store+" {\nsync_interval 100ms\n}"+strings.ReplaceAll(stopKeys, "key load", "key config"), "")
	d.config = &chaosLoad{chaosCall: chaosCall{url: d.url, secret: "lq-secret-of-the-load", model: "chaos-config"}}
	d.made = &chaosLoad{chaosCall: chaosCall{url: d.url, secret: "lq-secret-of-the-made", model: "chaos-made"}}
	d.makeKey("made", map[string]any{"secret": d.made.secret, "quota": map[string]any{"tokens": 1_000_000_000, "reset": "manual"}})
	spend := func() {
		d.config.some(30)
		d.made.some(10)
	}
	for range 3 {
		spend()
		d.until("there is a snapshot", func() bool {
			found, err := filepath.Glob(filepath.Join(d.store, "snapshots", "*.lqsnap"))
			return err == nil && len(found) > 0
		})
		d.stop()
		d.start()
	}
	spend()
	d.knowledge() // which brings the journal into the tables
	spend()
	d.until("all is settled", func() bool { // the status, too, would bring it into the tables
		open, _ := d.metric("caddy_llm_quota_open_reservations")
		return open == 0
	})
	const ops = "caddy_llm_quota_store_op_duration_seconds_count"
	before, _ := d.metric(ops)
	d.until("all is synced", func() bool { // before that, what is missing looks like what a power loss takes
		now, _ := d.metric(ops)
		return now >= before+3
	})
	d.kill()
	os.Remove(filepath.Join(d.store, "ballast")) // takes room, and holds nothing
	d.replace(d.sound, d.store)
	d.start()
	d.expected = d.knowledge()
	d.kill()
	saw := [2]int64{provider.of(d.config.model).tokens.Load(), provider.of(d.made.model).tokens.Load()}
	if got := [2]int64{d.expected.used, d.expected.useMade}; got != saw || saw[0] == 0 || saw[1] == 0 {
		t.Fatalf("before any damage the ledger has %v, the provider told %v", got, saw)
	}
	return d
}

// replace makes one directory a copy of another.
func (d *damagedStore) replace(to, from string) {
	d.t.Helper()
	if err := os.RemoveAll(to); err != nil {
		d.t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", "--sparse=always", from, to).CombinedOutput(); err != nil {
		d.t.Fatalf("%v: %s", err, out)
	}
}

// survives starts the gate on the damaged store, twice, and tells what it has
// lost and whether it says so.
func (d *damagedStore) survives(what string) (n tally, lossy bool) {
	t := d.t
	t.Helper()
	logged := len(d.log())
	if err := d.tryStart(); err != nil {
		t.Errorf("%s: %v\n%s", what, err, lastLine(d.log()))
		d.kill()
		return tally{lost: 1}, true
	}
	defer d.kill()
	have := d.knowledge()
	if good, status, code := d.config.some(1); good != 1 {
		t.Errorf("%s: a call of a key of the configuration is answered %d %s", what, status, code)
		n.lost++
	}
	good, _, _ := d.made.some(1)
	lossy = have != d.expected || good != 1
	if more := d.expected.exceeded(&have); more != "" {
		t.Errorf("%s: %s:\n%+v\n%+v", what, more, have, d.expected)
		n.doubled++
	}
	if lossy {
		damaged, _ := filepath.Glob(filepath.Join(d.store, "damaged", "*"))
		if d.complaints(logged) == nil || len(damaged) == 0 {
			t.Errorf("%s: a loss is not told; %d files are kept; the ledger has\n%+v, had\n%+v", what, len(damaged), have, d.expected)
			n.lost++
		}
		d.until("the status tells of a loss: "+what, func() bool { return !d.status().Store.Healthy })
	}
	// The next start is no worse, be it after a kill.
	then := d.knowledge()
	d.kill()
	if err := d.tryStart(); err != nil {
		t.Errorf("%s: at the second start: %v\n%s", what, err, lastLine(d.log()))
		n.lost++
		return n, lossy
	}
	if again := d.knowledge(); again != then {
		t.Errorf("%s: after another start the ledger has\n%+v, had\n%+v", what, again, then)
		n.lost++
	}
	if lossy {
		d.until("the status still tells of a loss: "+what, func() bool { return !d.status().Store.Healthy })
	}
	return n, lossy
}

// refuses checks that the gate does not start without a file that only an
// operator can bring back, and says which, and starts when it is back.
func (d *damagedStore) refuses(what, file string) {
	d.t.Helper()
	if d.tryStart() == nil { // sites may be open for a moment before the store is
		select {
		case <-d.done:
		case <-time.After(30 * time.Second):
			d.t.Errorf("%s: it starts", what)
		}
	}
	d.kill()
	if line := lastLine(d.log()); !bytes.Contains(line, []byte(file+" ")) || !bytes.Contains(line, []byte("restore it")) {
		d.t.Errorf("%s: the error is\n%s", what, line)
	}
	d.replace(filepath.Join(d.store, file), filepath.Join(d.sound, file))
}

func lastLine(log []byte) []byte {
	lines := bytes.Split(bytes.TrimSpace(log), []byte("\n"))
	return lines[len(lines)-1]
}

// TestChaosDamage flips and cuts off bytes in every kind of file of a store, at
// its head, in its middle and at its tail, with the store's own snapshots and
// without. The gate starts, keys of the configuration work, and if anything is
// lost it says so.
func TestChaosDamage(t *testing.T) {
	d := newDamagedStore(t)
	kinds := damageable(t, d.sound)
	var sum tally
	var lossy int64
	for pass, snapshots := range []bool{true, false} {
		for i, kind := range slices.Sorted(maps.Keys(kinds)) {
			if !chaosLong() && i%2 != pass {
				continue
			}
			came := "" // what each damage came to
			for _, file := range kinds[kind][:min(len(kinds[kind]), 4)] {
				for j, c := range damages {
					if !chaosLong() && (j != i%len(damages) || file != kinds[kind][0]) {
						continue
					}
					d.replace(d.store, d.sound)
					damage(t, filepath.Join(d.store, file), c.do)
					if !snapshots {
						if err := os.RemoveAll(filepath.Join(d.store, "snapshots")); err != nil {
							t.Fatal(err)
						}
					}
					what := fmt.Sprintf("%s %s, snapshots: %t", file, c.name, snapshots)
					if kind == "hash.key" && !snapshots {
						d.refuses(what, file)
					}
					n, lost := d.survives(what)
					sum.add(n)
					sum.rounds++
					if lost {
						lossy++
						came += "L"
					} else {
						came += "."
					}
				}
			}
			t.Logf("%-20s snapshots: %-5t %s", kind, snapshots, came)
		}
	}
	t.Logf("%d damages, of which %d cost something, and were told", sum.rounds, lossy)
	if lossy == 0 {
		t.Error("no damage cost anything: the test proves nothing")
	}
	sum.faults = sum.rounds
	kept(t, "G8", sum)
}
