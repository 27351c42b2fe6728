package admin

import (
	"net/http"
	"strings"
	"time"
)

// verify computes every counter again and tells what differs.
func verify(c *call) error {
	if err := c.params(); err != nil {
		return err
	}
	v, err := c.ledger.Verify(c.now)
	if err != nil {
		return err
	}
	answer := Verification{OK: len(v.Differences) == 0, Checked: v.Checked, Differences: make([]Difference, len(v.Differences))}
	for i, d := range v.Differences {
		answer.Differences[i] = Difference{Account: Ref(d.Account), Counter: d.Counter, Stored: d.Stored, Computed: d.Computed}
	}
	return c.json(http.StatusOK, answer)
}

// backup streams the store as it is now, while calls go on.
func backup(c *call) error {
	if err := c.params(); err != nil {
		return err
	}
	s, err := c.ledger.Snapshot(c.now)
	if err != nil {
		return err
	}
	defer s.Close() //nolint:errcheck // it was only read
	h := c.w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", `attachment; filename="llm_quota-`+strings.ReplaceAll(c.now.UTC().Format(time.RFC3339), ":", "")+`.lqsnap"`)
	h.Set("Cache-Control", "no-store")
	if c.r.Method == http.MethodHead {
		return nil
	}
	if _, err := s.WriteTo(c.w); err != nil {
		// Part of it may be out already: only a broken connection tells that it is
		// not whole. So does the missing end of the file.
		panic(http.ErrAbortHandler)
	}
	return nil
}
