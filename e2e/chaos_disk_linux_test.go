package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A smallDisk is a file system of its own, in memory.
type smallDisk struct {
	t   *testing.T
	dir string
}

// newSmallDisk mounts one of that many megabytes, or skips the test where that
// is not allowed. A helper process holds it, and unmounts it also when the
// tests are killed.
func newSmallDisk(t *testing.T, megabytes int) *smallDisk {
	t.Helper()
	d := &smallDisk{t, t.TempDir()}
	if err := unix.Mount("llm-quota-e2e", d.dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0700", megabytes)); err != nil {
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			// Also with REQUIRE_ALL: a privilege cannot be installed.
			fmt.Printf("%s is skipped: mounting a small disk: %v\n", t.Name(), err)
			t.Skipf("mounting a small disk: %v", err)
		}
		t.Fatal("mounting a small disk: ", err)
	}
	holder := exec.Command("sh", "-c", `cat >/dev/null; umount -l "$0"`, d.dir)
	holder.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is not for it
	until, err := holder.StdinPipe()                         // which ends with this process
	if err == nil {
		err = holder.Start()
	}
	if err != nil {
		unix.Unmount(d.dir, unix.MNT_DETACH)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		until.Close()
		if err := holder.Wait(); err != nil {
			t.Errorf("unmounting a small disk: %v", err)
		}
	})
	return d
}

// fill takes the room that is left, to the last byte, over about the time given.
// A disk that fills in an instant may take from Badger the room for a table
// that it is just writing, which no process survives that writes to a map.
func (d *smallDisk) fill(over time.Duration) {
	d.t.Helper()
	f, err := os.OpenFile(filepath.Join(d.dir, "filler"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	whole := make([]byte, 1<<20)
	pause := over / time.Duration(d.free()>>20+1)
	for step := len(whole); step > 0; time.Sleep(pause) {
		switch _, err := f.Write(whole[:step]); {
		case errors.Is(err, unix.ENOSPC):
			step /= 2
		case err != nil:
			d.t.Fatal(err)
		default: // the store may have given room back meanwhile
			step = min(2*step, len(whole))
		}
	}
}

// empty gives the room back.
func (d *smallDisk) empty() {
	d.t.Helper()
	if err := os.Remove(filepath.Join(d.dir, "filler")); err != nil {
		d.t.Fatal(err)
	}
}

func (d *smallDisk) free() int64 {
	d.t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(d.dir, &st); err != nil {
		d.t.Fatal(err)
	}
	return int64(st.Bavail) * st.Bsize
}

// healthy waits until the status and the metric say so of the store.
func (p *process) healthy(want bool) {
	p.t.Helper()
	up := 0.0
	if want {
		up = 1
	}
	p.until(fmt.Sprintf("the store's health is %t", want), func() bool {
		shown, _ := p.metric("caddy_llm_quota_store_up")
		return p.status().Store.Healthy == want && shown == up
	})
}

// some makes calls one after another and returns how many of them ended well,
// and the status and code of the last that did not. A call whose connection was
// dropped, as by a reload, is made again.
func (l *chaosLoad) some(calls int) (good int, status int, code string) {
	for range calls {
		l.began.Add(1)
		e := l.make()
		for tries := 0; e.status == 0 && tries < 100; tries++ {
			e = l.make()
		}
		if e.whole {
			good++
			l.ended.Add(1)
			l.tokens.Add(e.tokens)
			continue
		}
		status, code = e.status, e.code
	}
	return good, status, code
}

// TestChaosDiskFull fills the store's disk while calls are under way: quickly,
// slowly, and again and again. The gate goes on from memory, as it was told to,
// and says so; once there is room, each call is counted, once.
func TestChaosDiskFull(t *testing.T) {
	disk := newSmallDisk(t, 256)
	rounds := 1
	if chaosLong() {
		rounds = 12
	}
	provider := newChaosProvider(t)
	var keys strings.Builder
	for i := range rounds {
		fmt.Fprintf(&keys, "key spent-%d {\nsecret lq-secret-of-the-spent-%d\nquota 300 manual\n}\nkey rate-%d {\nsecret lq-secret-of-the-rate-%d\nrequests_per_minute 2\n}\n", i, i, i, i)
	}
	g := newGate(t, provider.URL, "store badger "+filepath.Join(disk.dir, "store")+"\n"+stopKeys+"\n"+keys.String(), "")
	loads := chaosLoads(g, "lq-secret-of-the-load")
	spent := &chaosLoad{chaosCall: chaosCall{url: g.url, model: "chaos-spent"}}
	rate := &chaosLoad{chaosCall: chaosCall{url: g.url, model: "chaos-rate"}}
	all := append(loads[:len(loads):len(loads)], spent, rate)
	n, books := tally{rounds: int64(rounds)}, tally{}
	for i := range rounds {
		spent.secret, rate.secret = fmt.Sprintf("lq-secret-of-the-spent-%d", i), fmt.Sprintf("lq-secret-of-the-rate-%d", i)
		g.healthy(true)
		logged := len(g.log())
		stop := runAll(loads, 4)
		switch i % 3 {
		case 1:
			for range 3 {
				disk.fill(time.Second)
				disk.empty()
				n.faults++
			}
			disk.fill(time.Second)
		case 2:
			disk.fill(4 * time.Second)
		default:
			disk.fill(time.Second)
		}
		n.faults++
		g.healthy(false)
		if g.complaints(logged) == nil {
			t.Error("nothing is logged of a disk that is full")
			n.lost++
		}
		// Without on_store_error, quotas hold as memory knows them, and limits
		// per minute let all through.
		if good, status, code := spent.some(40); good == 0 || good == 40 || status != 429 {
			t.Errorf("of a quota for a few calls %d were admitted, then %d %s", good, status, code)
			n.leaked++
		}
		// What they used is told meanwhile, though it cannot be written.
		u := g.usage("")
		if saw, of := provider.of(spent.model), u.model(spent.model); of.Requests != saw.arrived.Load() || of.Total != saw.tokens.Load() {
			t.Errorf("while the disk is full the usage of %d calls is told as %+v", saw.arrived.Load(), of)
			n.lost++
		}
		if good, status, code := rate.some(5); good != 5 {
			t.Errorf("%d calls were admitted of 5 beyond a limit per minute, then %d %s", good, status, code)
			n.lost++
		}
		for _, l := range loads { // and calls are answered all the while
			before := l.ended.Load()
			g.until("calls are answered while the disk is full", func() bool { return l.ended.Load() > before+20 })
		}
		disk.empty()
		g.healthy(true)
		if good, status, _ := rate.some(1); good != 0 || status != 429 {
			t.Errorf("with room on the disk a call beyond a limit per minute is answered %d", status)
			n.leaked++
		}
		stop()
		n.add(exact(t, g.process, provider, all))
		books.add(agree(t, g.process, "team", "load"))
		if i%2 == 0 {
			g.kill()
		} else {
			g.stop()
		}
		g.start()
		n.add(exact(t, g.process, provider, all))
		books.add(agree(t, g.process, "team", "load"))
	}
	for _, l := range loads {
		t.Log(l)
	}
	kept(t, "G8", n)
	books.rounds, books.faults = n.rounds, n.faults
	kept(t, "G3", books)
}
