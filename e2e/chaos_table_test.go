package e2e

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// The tests of chaos_*_test.go and TestKill do to a running gate what happens
// to servers: they kill, stop and reload it, fill its disk, damage its files
// and flood it, and compare what callers and the provider saw with what the
// ledger says. They are short as a rule; CHAOS=<n> makes them long, with n
// rounds of kills and reloads, and prints what came of it for each guarantee.

// chaosRounds returns how many rounds a test makes: short ones, or n.
func chaosRounds(short int) int {
	if n, err := strconv.Atoi(os.Getenv("CHAOS")); err == nil && n > 0 {
		return n
	}
	return short
}

// chaosLong tells whether the long forms were asked for.
func chaosLong() bool { return os.Getenv("CHAOS") != "" }

// A tally is what came of a guarantee. All but the first two must be 0.
type tally struct {
	rounds int64
	faults int64 // kills, reloads, damaged files, hostile calls: whatever was done to the gate
	// lost is what callers or the provider saw and the ledger does not have, or
	// what was refused or broken though it was due.
	lost int64
	// leaked is what got past, or stayed: tokens beyond a bound, reservations
	// of calls that are over, secrets, metric series.
	leaked int64
	// doubled is what was counted more than once.
	doubled int64
}

var chaosTallies = struct {
	mu sync.Mutex
	of map[string]tally
}{of: map[string]tally{}}

// kept adds to the tally of a guarantee, such as G5, and fails the test if it
// was broken.
func kept(t *testing.T, guarantee string, n tally) {
	t.Helper()
	if n.lost != 0 || n.leaked != 0 || n.doubled != 0 {
		t.Errorf("%s is broken: %d lost, %d leaked, %d doubled", guarantee, n.lost, n.leaked, n.doubled)
	}
	chaosTallies.mu.Lock()
	defer chaosTallies.mu.Unlock()
	sum := chaosTallies.of[guarantee]
	sum.rounds += n.rounds
	sum.faults += n.faults
	sum.lost += n.lost
	sum.leaked += n.leaked
	sum.doubled += n.doubled
	chaosTallies.of[guarantee] = sum
}

// chaosTable returns the tallies as a table, or nothing if there are none.
func chaosTable() string {
	chaosTallies.mu.Lock()
	defer chaosTallies.mu.Unlock()
	if len(chaosTallies.of) == 0 {
		return ""
	}
	var out strings.Builder
	fmt.Fprintf(&out, "\n%-10s %8s %8s %6s %7s %8s\n", "guarantee", "rounds", "faults", "lost", "leaked", "doubled")
	names := make([]string, 0, len(chaosTallies.of))
	for name := range chaosTallies.of {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) })
	for _, name := range names {
		n := chaosTallies.of[name]
		fmt.Fprintf(&out, "%-10s %8d %8d %6d %7d %8d\n", name, n.rounds, n.faults, n.lost, n.leaked, n.doubled)
	}
	return out.String()
}
