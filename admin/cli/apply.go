package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/admin/client"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

// maxNewKeys is how many keys one request makes.
const maxNewKeys = 10_000

// applier carries a plan out. What it has done it undoes when something fails,
// up to the deletions, which come last and cannot be undone. A plan whose
// deletions fail keeps those that were made.
type applier struct {
	*run
	interrupted func() error
	dir         *directory
	undo        []func() error // empty: nothing is done, or all is undone
	bar         *progress
	// keep keeps the secrets of keys that were just made.
	keep func(keys []admin.Key) error
}

func (a *applier) apply(p *plan) error {
	// An interruption ends it between two requests, so that what each of them
	// has done is known.
	whole := *a.run
	whole.ctx = context.WithoutCancel(a.ctx)
	a.run, a.interrupted = &whole, a.ctx.Err
	if err := a.changes(p); err != nil {
		return a.undone(err)
	}
	for i, s := range p.deletes {
		err := a.interrupted()
		if err == nil {
			err = a.delete(s)
		}
		if err != nil {
			all := len(p.deletes)
			p.deletes = p.deletes[:i]
			return fmt.Errorf("deleting %s (%d of %d deletions were made, and all else is done): %w", s.title(), i, all, err)
		}
	}
	return nil
}

// changes does what can be undone.
func (a *applier) changes(p *plan) error {
	for _, s := range append(slices.Clone(p.groups), p.changes...) {
		do, doing := a.change, "changing"
		if s.was == nil {
			do, doing = a.createGroup, "creating"
		}
		err := a.interrupted()
		if err == nil {
			err = do(s)
		}
		if err != nil {
			return fmt.Errorf("%s %s (line %d): %w", doing, s.title(), s.line, err)
		}
		a.bar.add(1)
	}
	for chunk := range slices.Chunk(p.keys, maxNewKeys) {
		if err := a.interrupted(); err != nil {
			return err
		}
		if err := a.createKeys(chunk); err != nil {
			return err
		}
		a.bar.add(int64(len(chunk)))
	}
	return nil
}

// undone takes back what was done, and returns why with how that went.
func (a *applier) undone(why error) error {
	if len(a.undo) == 0 {
		return why
	}
	var left []error
	for _, f := range slices.Backward(a.undo) {
		if err := f(); err != nil {
			left = append(left, err)
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("%w; undoing the changes before it: %w", why, errors.Join(left...))
	}
	a.undo = nil
	return fmt.Errorf("%w; the changes before it are undone", why)
}

func (a *applier) createGroup(s *step) error {
	body := patchOf(s.want, &settings{}, s.changed)
	body["name"] = s.name
	var g admin.Group
	if _, err := a.get(client.Request{Method: http.MethodPost, Path: "/groups", Body: body}, &g); err != nil {
		return err
	}
	a.dropLater(g.ID)
	return nil
}

// dropLater notes that undoing deletes an account.
func (a *applier) dropLater(id quota.ID) {
	a.undo = append(a.undo, func() error {
		if _, err := a.api.Do(a.ctx, client.Request{Method: http.MethodDelete, Path: client.Path(id.Kind(), id.String())}); err != nil {
			return fmt.Errorf("deleting %s again: %w", id, err)
		}
		return nil
	})
}

// current returns the ETag of an account, which must be as it was when the plan
// was made.
func (a *applier) current(s *step) (string, error) {
	answer, err := a.api.Do(a.ctx, client.Request{Path: client.Path(s.kind, s.was.id.String())})
	if err != nil {
		return "", err
	}
	var now settings
	if s.kind == quota.KindGroup {
		var g admin.Group
		err = json.Unmarshal(answer.Body, &g)
		now = groupSettings(a.dir, &g)
	} else {
		var k admin.Key
		err = json.Unmarshal(answer.Body, &k)
		now = keySettings(a.dir, &k)
	}
	if err != nil {
		return "", fmt.Errorf("reading the answer: %w", err)
	}
	again := &step{was: s.was, want: &now}
	if err := again.compare(); err != nil {
		return "", err
	}
	if len(again.changed) > 0 || now.Name != s.was.Name {
		return "", &client.Error{Status: http.StatusPreconditionFailed, Message: "it has changed since the import has begun"}
	}
	return answer.ETag, nil
}

func (a *applier) change(s *step) error {
	etag, err := a.current(s)
	if err != nil {
		return err
	}
	q := client.Request{
		Method: http.MethodPatch, Path: client.Path(s.kind, s.was.id.String()), IfMatch: etag,
		Body: patchOf(s.want, &s.was.settings, s.changed),
	}
	answer, err := a.get(q, nil)
	if err != nil {
		return err
	}
	q.IfMatch, q.Body = answer.ETag, patchOf(&s.was.settings, s.want, s.changed)
	a.undo = append(a.undo, func() error {
		if _, err := a.api.Do(a.ctx, q); err != nil {
			return fmt.Errorf("changing %s back: %w", s.title(), err)
		}
		return nil
	})
	return nil
}

// createKeys makes keys, all or none.
func (a *applier) createKeys(steps []*step) error {
	bodies := make([]patch, len(steps))
	for i, s := range steps {
		bodies[i] = patchOf(s.want, &settings{}, s.changed)
		bodies[i]["name"] = s.name
		if s.secret != "" {
			bodies[i]["secret"] = s.secret
		}
	}
	var keys []admin.Key
	if _, err := a.get(client.Request{Method: http.MethodPost, Path: "/keys", Body: bodies}, &keys); err != nil {
		return fmt.Errorf("creating %s: %w", plural(int64(len(steps)), "key"), err)
	}
	if len(keys) != len(steps) {
		return fmt.Errorf("creating keys: the answer has %d of %d", len(keys), len(steps))
	}
	made := keys[:0]
	for i := range keys {
		a.dropLater(keys[i].ID)
		if steps[i].secret == "" {
			made = append(made, keys[i])
		}
	}
	if len(made) == 0 {
		return nil
	}
	return a.keep(made)
}

func (a *applier) delete(s *step) error {
	etag, err := a.current(s)
	if err == nil {
		// What was in a group has been moved or deleted by now.
		_, err = a.get(client.Request{Method: http.MethodDelete, Path: client.Path(s.kind, s.was.id.String()), IfMatch: etag}, nil)
	}
	a.bar.add(1)
	return err
}

// patchOf returns the merge patch that makes fields of was those of want.
func patchOf(want, was *settings, fields []string) patch {
	p := patch{}
	for _, field := range fields {
		switch field {
		case "group", "parent":
			p[field] = nil
			if name := want.above(); name != "" {
				p[field] = "name:" + name
			}
		case "disabled":
			p[field] = want.Disabled
		case "expires_at":
			p[field] = want.ExpiresAt
		case "models":
			p[field] = want.Models
		case "allowed_ips":
			p[field] = want.AllowedIPs
		case "alert_at":
			p[field] = want.AlertAt
		case "metadata":
			m := patch{}
			for name := range was.Metadata {
				m[name] = nil
			}
			for name, text := range want.Metadata {
				m[name] = text
			}
			p[field] = m
		case "quota":
			p[field] = wholeQuota(want.Quota)
		case "limits":
			p[field] = want.Limits
		case "member":
			p[field] = patch{"quota": wholeQuota(want.Member.Quota), "limits": want.Member.Limits}
		}
	}
	return p
}

// wholeQuota returns the patch that leaves nothing of another quota.
func wholeQuota(q *quota.Quota) any {
	if q == nil {
		return nil
	}
	p := patch{"tokens": q.Tokens, "reset": nil, "time_zone": nil, "at": nil, "week_start": nil, "month_day": nil}
	for field, s := range map[string]string{"reset": string(q.Reset), "time_zone": q.TimeZone, "at": q.At, "week_start": q.WeekStart} {
		if s != "" {
			p[field] = s
		}
	}
	if q.MonthDay != 0 {
		p["month_day"] = q.MonthDay
	}
	return p
}
