package admin

import (
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// Timed returns st with the time that its writes take shown in the metrics.
func Timed(st quota.Store) quota.Store {
	return &timed{Store: st, engine: st.Info().Engine}
}

type timed struct {
	quota.Store
	engine string
}

func (t *timed) note(op string, start time.Time) { StoreOp(op, t.engine, time.Since(start)) }

func (t *timed) Flush(seq uint64) error {
	defer t.note("flush", time.Now())
	return t.Store.Flush(seq)
}

func (t *timed) Checkpoint(cp *quota.Checkpoint) error {
	defer t.note("checkpoint", time.Now())
	return t.Store.Checkpoint(cp)
}

func (t *timed) Put(keys []*quota.Key, groups []*quota.Group, audit ...quota.Note) error {
	defer t.note("put", time.Now())
	return t.Store.Put(keys, groups, audit...)
}

func (t *timed) Usage(q quota.RowQuery, fn func(*quota.Row) error) error {
	defer t.note("usage", time.Now())
	return t.Store.Usage(q, fn)
}

func (t *timed) Sync(now int64) error {
	defer t.note("sync", time.Now())
	return t.Store.Sync(now)
}
