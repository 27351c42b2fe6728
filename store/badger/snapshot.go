package badger

import (
	"errors"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Guard implements quota.Store.
func (s *Store) Guard(time.Time) error { return nil }

// SnapshotDue implements quota.Store.
func (s *Store) SnapshotDue(time.Time) bool { return false }

// Snapshot implements quota.Store.
func (s *Store) Snapshot() (quota.Snapshot, error) { return nil, errors.New("not built yet") }
