package admin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func resetKey(c *call) error   { return c.reset(quota.KindKey) }
func resetGroup(c *call) error { return c.reset(quota.KindGroup) }
func grantKey(c *call) error   { return c.grant(quota.KindKey) }
func grantGroup(c *call) error { return c.grant(quota.KindGroup) }

// action reads what an action is asked: the account, and the body, whose one
// field may be the named one.
func (c *call) action(kind quota.Kind, name string) (quota.ID, *field, error) {
	if err := c.params(); err != nil {
		return 0, nil, err
	}
	id, err := c.living(kind)
	if err != nil {
		return 0, nil, err
	}
	if err := c.matchesNow(id); err != nil {
		return 0, nil, err
	}
	fields, err := c.options()
	if err != nil {
		return 0, nil, err
	}
	for _, f := range fields {
		if f.name != name {
			return 0, nil, invalid(shown(f.path), "is not a field that is known here")
		}
	}
	if len(fields) == 0 || isNull(fields[0].value) {
		return id, nil, nil
	}
	return id, &fields[0], nil
}

// resettable are the limits that can be reset.
var resettable = []string{
	string(quota.TokenQuota), string(quota.RequestsPerMinute), string(quota.TokensPerMinute),
	string(quota.RequestsPerDay), string(quota.TokensPerDay),
}

func (c *call) reset(kind quota.Kind) error {
	id, f, err := c.action(kind, "limits")
	if err != nil {
		return err
	}
	limits := []quota.LimitName{quota.TokenQuota}
	if f != nil {
		names, err := stringList(*f)
		if err != nil {
			return err
		}
		if len(names) == 0 {
			return invalid("limits", "names none")
		}
		limits = limits[:0]
		for _, s := range names {
			name := quota.LimitName(s)
			if !slices.Contains(resettable, s) {
				return invalid("limits:", "%s is not one of %s", shown(s), strings.Join(resettable, ", "))
			}
			if !slices.Contains(limits, name) {
				limits = append(limits, name)
			}
		}
	}
	if err := c.ledger.Reset(c.now, id, limits); err != nil {
		return err
	}
	return c.answerID(id)
}

func (c *call) grant(kind quota.Kind) error {
	id, f, err := c.action(kind, "tokens")
	if err != nil {
		return err
	}
	if f == nil {
		return invalid("tokens", "is missing")
	}
	tokens, err := integer(*f)
	if err != nil {
		return err
	}
	if err := c.ledger.Grant(c.now, id, tokens); err != nil {
		return err
	}
	return c.answerID(id)
}

func rotateKey(c *call) error {
	id, f, err := c.action(quota.KindKey, "grace")
	if err != nil {
		return err
	}
	var grace time.Duration
	if f != nil {
		if grace, err = duration(*f); err != nil {
			return err
		}
	}
	k, secret, err := c.ledger.Rotate(c.now, id, grace, func(k *quota.Key) error {
		if err := c.matches(keyTag(k)); err != nil {
			return err
		}
		if k.Source == quota.SourceConfig {
			return fail(http.StatusConflict, "the secret is set by the configuration, and changes there")
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.answerKey(http.StatusOK, k, secret)
}

// duration reads a duration like "24h" or "7d".
func duration(f field) (time.Duration, error) {
	var s string
	if json.Unmarshal(f.value, &s) == nil {
		if d, err := caddy.ParseDuration(s); err == nil {
			return d, nil
		}
	}
	return 0, fmt.Errorf("%s is not a duration like \"24h\" or \"7d\": %w", f.path, quota.ErrInvalid)
}
