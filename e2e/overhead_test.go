//go:build linux

package e2e

import (
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestOverhead measures what the gate adds to Caddy: CPU for each request, and
// throughput. It runs with BENCH=1 only, and asserts no time: speeds are the
// machine's. BENCH_ROUNDS is the number of rounds, PROFILE a folder for CPU
// profiles of the gate.
//
// A machine's speed changes from second to second, so nothing is measured one
// after another: bare Caddy, Caddy with a handler that does nothing, and the
// gate are three processes of the same binary that take the same load at the
// same time, on one core, with the load generator and the upstream on another.
// What counts is the difference within a round, over many short rounds. The
// handler that does nothing shows how far such a difference can be trusted.
func TestOverhead(t *testing.T) {
	if os.Getenv("BENCH") == "" {
		t.Skip("a benchmark: run it with BENCH=1")
	}
	rounds := 30
	if s := os.Getenv("BENCH_ROUNDS"); s != "" {
		var err error
		if rounds, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	pinned := pin(t)
	u := newLoadUpstream()
	defer u.Close()
	start := func(name, global, handlers string) *loadTarget {
		at := freeAddresses(t, 2)
		p := newProcess(t, caddyfile(at[0], at[1], u.URL, global, handlers), at[0], at[1])
		pinned(p.start)
		return newLoadTarget(name, at[1], p)
	}
	bare := start("bare Caddy", "", "")
	noop := start("+ no-op", "", "vars nothing 1")
	gate := start("+ gate", "", "llm_quota")
	targets := []*loadTarget{bare, noop, gate}
	secrets := loadKeys(gate.process, 1000)

	var out strings.Builder
	fmt.Fprintf(&out, "\nCPU for each request, all three loaded at the same time; %d rounds; mean difference to bare Caddy ± standard error, median ratio (min–max)\n\n", rounds)
	fmt.Fprintf(&out, "%-22s %-12s %12s %20s %24s\n", "", "", "CPU µs", "added µs", "ratio")
	for _, load := range []struct {
		name      string
		stream    bool
		perSecond int
		during    time.Duration
	}{{"JSON, 700/s each", false, 700, time.Second}, {"SSE, 70/s each", true, 70, time.Second}} {
		requests := loadRequests(secrets, load.stream, load.stream)
		openLoop(targets, requests, load.perSecond, 3*time.Second) // to warm up
		cpu := make([][]float64, len(targets))
		for range rounds {
			before := make([]time.Duration, len(targets))
			answered := make([]int64, len(targets))
			for i, l := range targets {
				before[i], answered[i] = l.process.cpu(), l.requests.Load()
			}
			openLoop(targets, requests, load.perSecond, load.during)
			for i, l := range targets {
				used := l.process.cpu() - before[i]
				cpu[i] = append(cpu[i], float64(used.Nanoseconds())/1000/float64(l.requests.Load()-answered[i]))
			}
		}
		for i, l := range targets {
			mean, _ := meanAndError(cpu[i])
			fmt.Fprintf(&out, "%-22s %-12s %12.1f", load.name, l.name, mean)
			if i > 0 {
				added, e := meanAndError(differences(cpu[i], cpu[0]))
				fmt.Fprintf(&out, " %20s %24s", fmt.Sprintf("%+.1f ± %.1f", added, e), spread(ratios(cpu[i], cpu[0])))
			}
			out.WriteByte('\n')
		}
	}

	fmt.Fprintf(&out, "\nClosed loop, one after another in changing order; ratio to bare Caddy of the same round, median (min–max)\n\n")
	fmt.Fprintf(&out, "%-22s %-12s %10s %24s %24s %24s\n", "", "", "per second", "throughput", "p50", "p99")
	for _, load := range []struct {
		name    string
		stream  bool
		workers int
	}{{"JSON, 16 at a time", false, 16}, {"SSE, 16 at a time", true, 16}} {
		requests := loadRequests(secrets, load.stream, false)
		speed, half, tail := make([][]float64, len(targets)), make([][]float64, len(targets)), make([][]float64, len(targets))
		for range rounds {
			for _, i := range rand.Perm(len(targets)) {
				n, p50, p99 := closedLoop(targets[i], requests, load.workers, 300*time.Millisecond)
				speed[i], half[i], tail[i] = append(speed[i], n), append(half[i], p50.Seconds()), append(tail[i], p99.Seconds())
			}
		}
		for i, l := range targets {
			fmt.Fprintf(&out, "%-22s %-12s %10.0f", load.name, l.name, median(speed[i]))
			if i > 0 {
				fmt.Fprintf(&out, " %24s %24s %24s", spread(ratios(speed[i], speed[0])), spread(ratios(half[i], half[0])), spread(ratios(tail[i], tail[0])))
			}
			out.WriteByte('\n')
		}
	}

	fmt.Fprintf(&out, "\nIdle for 5 s: ")
	before := []time.Duration{bare.process.cpu(), noop.process.cpu(), gate.process.cpu()}
	time.Sleep(5 * time.Second)
	for i, l := range targets {
		fmt.Fprintf(&out, "%s %.2f ms CPU per second; ", l.name, (l.process.cpu()-before[i]).Seconds()*1000/5)
	}
	t.Log(out.String())

	var sent int64
	for _, l := range targets {
		if n := l.failed.Load(); n > 0 {
			t.Errorf("%s failed %d requests", l.name, n)
		}
		sent = l.requests.Load()
	}
	gate.process.settled()
	if got := gate.process.usage("").Totals; got.Requests != sent || got.Failed != 0 || got.Refused != 0 {
		t.Errorf("the ledger has %+v, want %d requests", got, sent)
	}
	if dir := os.Getenv("PROFILE"); dir != "" {
		profile(t, gate, filepath.Join(dir, "json.pprof"), loadRequests(secrets, false, false), 700)
		profile(t, gate, filepath.Join(dir, "sse.pprof"), loadRequests(secrets, true, true), 70)
	}
}

// loadKeys makes keys whose limits, and those of their group, are all set and
// far above the load, and returns their secrets.
func loadKeys(p *process, n int) []string {
	far := map[string]any{
		"requests_per_minute": 1_000_000_000, "tokens_per_minute": 1_000_000_000_000, "requests_per_day": 1_000_000_000,
		"tokens_per_day": 1_000_000_000_000, "concurrent_requests": 1_000_000,
	}
	quota := map[string]any{"tokens": 1_000_000_000_000, "reset": "monthly"}
	var group keyObject
	p.api(http.MethodPost, "/groups", map[string]any{"name": "load", "limits": far, "quota": quota}, &group)
	all := make([]map[string]any, n)
	for i := range all {
		all[i] = map[string]any{"name": fmt.Sprintf("load %d", i), "group": "name:load", "limits": far, "quota": quota}
	}
	var keys []keyObject
	p.api(http.MethodPost, "/keys", all, &keys)
	secrets := make([]string, n)
	for i, k := range keys {
		secrets[i] = k.Secret
	}
	return secrets
}

// profile loads the target alone for twenty seconds and writes its CPU profile.
func profile(t *testing.T, l *loadTarget, file string, requests [][]byte, perSecond int) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		openLoop([]*loadTarget{l}, requests, perSecond, 21*time.Second)
	}()
	resp, err := http.Get("http://" + l.process.admin + "/debug/pprof/profile?seconds=20")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	<-done
}

// pin moves this process to the second core, where there is one, and returns a
// function that starts others on the first.
func pin(t *testing.T) func(start func()) {
	var all, first, second unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil || all.Count() < 2 {
		t.Log("all run on one core: expect more noise")
		return func(start func()) { start() }
	}
	cores := make([]int, 0, 2)
	for i := 0; len(cores) < 2; i++ {
		if all.IsSet(i) {
			cores = append(cores, i)
		}
	}
	first.Set(cores[0])
	second.Set(cores[1])
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks { // threads that come later inherit it
		if id, err := strconv.Atoi(task.Name()); err == nil {
			unix.SchedSetaffinity(id, &second) //nolint:errcheck // the thread may be gone
		}
	}
	runtime.GOMAXPROCS(1)
	return func(start func()) {
		runtime.LockOSThread() // a child inherits from the thread that makes it
		defer runtime.UnlockOSThread()
		if err := unix.SchedSetaffinity(0, &first); err != nil {
			t.Fatal(err)
		}
		start()
		if err := unix.SchedSetaffinity(0, &second); err != nil {
			t.Fatal(err)
		}
	}
}

// cpu returns the time that the process has spent on a CPU, of all its threads,
// by its own clock, which counts nanoseconds.
func (p *process) cpu() time.Duration {
	p.t.Helper()
	var at unix.Timespec
	// clock_getcpuclockid(3): the CPU clock of a process, as Linux numbers it.
	if err := unix.ClockGettime(int32(^p.cmd.Process.Pid<<3|2), &at); err != nil {
		p.t.Fatal(err)
	}
	return time.Duration(at.Nano())
}

func differences(a, base []float64) []float64 {
	d := make([]float64, len(a))
	for i := range a {
		d[i] = a[i] - base[i]
	}
	return d
}

func ratios(a, base []float64) []float64 {
	r := make([]float64, len(a))
	for i := range a {
		r[i] = a[i] / base[i]
	}
	return r
}

func meanAndError(v []float64) (mean, e float64) {
	n := float64(len(v))
	for _, x := range v {
		mean += x / n
	}
	for _, x := range v {
		e += (x - mean) * (x - mean)
	}
	return mean, math.Sqrt(e / (n - 1) / n)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func spread(v []float64) string {
	return fmt.Sprintf("%.3f (%.2f–%.2f)", median(v), slices.Min(v), slices.Max(v))
}
