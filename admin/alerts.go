package admin

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func listAlerts(c *call) error {
	if err := c.params("account", "kind", "limit", "cursor"); err != nil {
		return err
	}
	kind, err := c.oneOf("kind", string(quota.AlertThreshold), string(quota.AlertExceeded), string(quota.AlertForecast),
		string(quota.AlertStoreDegraded), string(quota.AlertStoreRecovered))
	if err != nil {
		return err
	}
	accounts, err := c.accounts("account")
	if err != nil {
		return err
	}
	p, err := c.page()
	if err != nil {
		return err
	}
	all, more, err := collect(p, func(below quota.ID, fn func(*quota.Alert) bool) error {
		return c.ledger.Alerts(quota.NoteID(below), fn)
	}, func(a *quota.Alert) bool {
		return (kind == "" || string(a.Kind) == kind) && (accounts == nil || slices.Contains(accounts, a.Account))
	})
	if err != nil {
		return err
	}
	answer := Alerts{Alerts: values(all)}
	if more {
		if answer.NextCursor, err = noteCursor(all[len(all)-1].ID); err != nil {
			return err
		}
	}
	return c.json(http.StatusOK, answer)
}

// auditActions are the actions by which the audit log is filtered.
var auditActions = []string{
	string(quota.ActionCreate), string(quota.ActionUpdate), string(quota.ActionDisable), string(quota.ActionEnable),
	string(quota.ActionMove), string(quota.ActionDelete), string(quota.ActionRotate), string(quota.ActionReset),
	string(quota.ActionGrant), string(quota.ActionTakeOver), string(quota.ActionRemove), string(quota.ActionPutBack),
}

func listAudit(c *call) error {
	if err := c.params("account", "action", "source", "limit", "cursor"); err != nil {
		return err
	}
	action, err := c.oneOf("action", auditActions...)
	if err != nil {
		return err
	}
	source, err := c.oneOf("source", quota.ByAPI, quota.ByDashboard, quota.ByCLI, quota.ByConfig)
	if err != nil {
		return err
	}
	accounts, err := c.accounts("account")
	if err != nil {
		return err
	}
	p, err := c.page()
	if err != nil {
		return err
	}
	all, more, err := collect(p, func(below quota.ID, fn func(*quota.Change) bool) error {
		return c.ledger.Changes(quota.NoteID(below), fn)
	}, func(e *quota.Change) bool {
		return (action == "" || string(e.Action) == action) && (source == "" || e.Source == source) &&
			(accounts == nil || slices.Contains(accounts, e.Object))
	})
	if err != nil {
		return err
	}
	answer := Audit{Entries: values(all)}
	if more {
		if answer.NextCursor, err = noteCursor(all[len(all)-1].ID); err != nil {
			return err
		}
	}
	return c.json(http.StatusOK, answer)
}

// accounts returns the accounts that a parameter names, nil if it is absent: the
// key or group of an ID, or whatever has the name after "name:".
func (c *call) accounts(name string) (ids []quota.ID, err error) {
	v := c.query.Get(name)
	if v == "" {
		return nil, nil
	}
	kinds := []quota.Kind{quota.KindKey, quota.KindGroup}
	if !strings.HasPrefix(v, "name:") {
		id, err := quota.ParseID(v)
		if err != nil {
			return nil, bad("%s: %s is neither an id nor name: and a name", name, shown(v))
		}
		kinds = []quota.Kind{id.Kind()}
	}
	for _, kind := range kinds {
		id, err := find(c.ledger, kind, v)
		if err == nil {
			ids = append(ids, id)
		} else if !errors.Is(err, quota.ErrNotFound) {
			return nil, err
		}
	}
	if ids == nil {
		return nil, bad("%s: there is no key or group %s", name, shown(v))
	}
	return ids, nil
}

// noteCursor continues a list of notes after the one of that ID.
func noteCursor(id string) (*string, error) {
	n, err := quota.ParseNoteID(id)
	if err != nil {
		return nil, fmt.Errorf("reading a list: %w", err)
	}
	return cursor(quota.ID(n)), nil
}

// values returns what the pointers point to; never nil.
func values[T any](of []*T) []T {
	all := make([]T, len(of))
	for i, p := range of {
		all[i] = *p
	}
	return all
}
