package limiter_test

import (
	"fmt"
	"time"

	"github.com/llm-quota/caddy-llm-quota/limiter"
)

// A limit of 100 a minute: ask for the sum, add what is admitted, and tell a
// caller who is refused when to come again.
func ExampleWindow() {
	const limit = 100
	var w limiter.Window[int64]
	admit := func(at time.Duration, n int64) {
		tick := int64(at)
		if w.Sum(tick)+n <= limit {
			w.Add(tick, n)
			fmt.Printf("%v: %d admitted\n", at, n)
			return
		}
		if wait, ok := w.Until(tick, limit-n); ok {
			fmt.Printf("%v: %d refused for %v\n", at, n, time.Duration(wait))
		} else {
			fmt.Printf("%v: %d can never fit\n", at, n)
		}
	}
	admit(2*time.Second, 60)
	admit(30*time.Second, 40)
	admit(50*time.Second, 1)
	admit(50*time.Second, 101)
	w.Return(int64(55*time.Second), int64(30*time.Second), 15) // not used after all
	admit(55*time.Second, 15)
	admit(65*time.Second, 60)
	// Output:
	// 2s: 60 admitted
	// 30s: 40 admitted
	// 50s: 1 refused for 15s
	// 50s: 101 can never fit
	// 55s: 15 admitted
	// 1m5s: 60 admitted
}
