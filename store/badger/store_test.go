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

// Counters of a version that knew no offsets are read, and say so.
func TestCountersOfVersion1(t *testing.T) {
	old := quota.Counters{Seq: 7, QuotaUsed: 5, DayRequests: 3, LastUsed: 9}
	b := appendCounters(nil, &old)
	b[0] = 1
	b = b[:len(b)-3] // three zeros
	got := quota.Counters{QuotaOffset: 1}
	if err := decodeCounters(b, &got); err != nil {
		t.Fatal(err)
	}
	old.QuotaOffset, old.DayRequestsOffset, old.DayTokensOffset = quota.OffsetUnknown, quota.OffsetUnknown, quota.OffsetUnknown
	if got != old {
		t.Errorf("read %+v, want %+v", got, old)
	}
	if b[0] = 3; decodeCounters(b, &got) == nil {
		t.Error("counters of a later version are read")
	}
}
