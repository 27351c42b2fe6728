package badger

import (
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/store/storetest"
)

func TestStore(t *testing.T) {
	for name, every := range map[string]time.Duration{"Interval": time.Second, "Always": 0} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t testing.TB, dir string) quota.Store {
				s, err := Open(Options{Dir: dir, SyncInterval: every, Logger: t.Logf})
				if err != nil {
					t.Fatal(err)
				}
				return s
			})
		})
	}
}
