package e2e

import (
	"testing"
	"time"
)

// TestChaosStop stops the gate under load as an operator does. Each call that
// was under way ends, and is charged what it used; the next start finds nothing
// to charge at what was reserved.
func TestChaosStop(t *testing.T) {
	rounds := 3
	if chaosLong() {
		rounds = 15
	}
	provider := newChaosProvider(t)
	g := newGate(t, provider.URL, stopKeys, "")
	loads := chaosLoads(g, "lq-secret-of-the-load")
	loads[1].wait = 30 * time.Millisecond
	sum := tally{rounds: int64(rounds), faults: int64(rounds)}
	books := sum
	for range rounds {
		stop := runAll(loads, 8)
		time.Sleep(300 * time.Millisecond)
		g.stop() // while calls begin and end
		stop()
		g.start()
		// A call that came when the gate was closing may find its connection
		// closed; whatever the provider saw has ended well.
		sum.add(exact(t, g.process, provider, loads))
		books.add(agree(t, g.process, "team", "load"))
	}
	for _, l := range loads {
		t.Log(l)
	}
	kept(t, "G4", sum)
	kept(t, "G3", books)
}

const stopKeys = `
	group team {
		quota 1G manual
	}
	key load {
		secret lq-secret-of-the-load
		group team
		quota 1G manual
	}`

// TestChaosStopAtOnce gives calls less time to end than they take. Those that
// are cut off are charged once at what was reserved, or at what was seen of
// them; those that had ended are charged what they used.
func TestChaosStopAtOnce(t *testing.T) {
	rounds := 2
	if chaosLong() {
		rounds = 15
	}
	provider := newChaosProvider(t)
	at := freeAddresses(t, 2)
	text := caddyfile(at[0], at[1], provider.URL, stopKeys, "llm_quota")
	g := &gate{newProcess(t, "{\n\tgrace_period 50ms\n"+text[len("{\n"):], at[0], at[1]), "http://" + at[1]}
	g.start()
	loads := chaosLoads(g, "lq-secret-of-the-load")
	loads[1].wait = 50 * time.Millisecond
	n := tally{rounds: int64(rounds), faults: int64(rounds)}
	books := n
	for range rounds {
		stop := runAll(loads, 8)
		time.Sleep(500 * time.Millisecond)
		g.stop()
		stop()
		g.start()
		g.settled()
		books.add(agree(t, g.process, "team", "load"))
	}
	u := g.usage("")
	var cut int64
	for _, l := range loads {
		saw, of := provider.of(l.model), u.model(l.model)
		arrived, ended := saw.arrived.Load(), l.ended.Load()
		cut += arrived - ended
		n.lost += max(arrived-of.Requests, 0)                     // every call that reached the provider is there
		n.doubled += max(of.Requests-l.began.Load(), 0)           // once
		n.lost += max(ended-(of.Requests-of.Failed), 0)           // what ended well is no failure
		n.lost += max(l.tokens.Load()-(of.Total-of.Estimated), 0) // and charged what it used
		n.doubled += max(of.Total-of.Estimated-saw.tokens.Load(), 0)
		t.Logf("%s; the ledger has %+v", l, of)
	}
	if cut == 0 {
		t.Error("no call was cut off: the test proves nothing")
	}
	kept(t, "G3", books)
	kept(t, "G4", n)
	kept(t, "G6", tally{rounds: int64(rounds), faults: cut, lost: n.lost, doubled: n.doubled})
}
