package ledger

import (
	"flag"
	"os"
	"testing"
)

// TestMain keeps the random lives few enough for every day, since each opens
// real stores; -rapid.checks asks for more.
func TestMain(m *testing.M) {
	flag.Parse()
	set := false
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == "rapid.checks" })
	if !set {
		if err := flag.Set("rapid.checks", "25"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}
