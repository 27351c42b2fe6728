package admin

import (
	"net/http"
	"strings"

	"github.com/llm-quota/caddy-llm-quota/quota"
	"github.com/llm-quota/caddy-llm-quota/quota/ledger"
)

func listGroups(c *call) error {
	if err := c.params("parent", "q", "status", "limit", "cursor"); err != nil {
		return err
	}
	parent, err := c.account(quota.KindGroup, "parent")
	if err != nil {
		return err
	}
	status, err := c.oneOf("status", active, deleted)
	if err != nil {
		return err
	}
	p, err := c.page()
	if err != nil {
		return err
	}
	q := strings.ToLower(c.query.Get("q"))
	groups, more, err := collect(p, c.ledger.Groups, func(g *quota.Group) bool {
		return g.Living() == (status != deleted) && (parent == 0 || g.Parent == parent) &&
			strings.Contains(strings.ToLower(g.Name), q)
	})
	if err != nil {
		return err
	}
	answer := Groups{}
	if answer.Groups, err = c.groups(groups...); err != nil {
		return err
	}
	if more {
		answer.NextCursor = cursor(groups[len(groups)-1].ID)
	}
	return c.json(http.StatusOK, answer)
}

// groups returns what is shown of the groups.
func (c *call) groups(groups ...*quota.Group) ([]Group, error) {
	ids := make([]quota.ID, len(groups))
	for i, g := range groups {
		ids[i] = g.ID
	}
	keys, err := c.ledger.KeysIn(ids...)
	if err != nil {
		return nil, err
	}
	all := make([]Group, len(groups))
	for i, g := range groups {
		s, err := c.ledger.State(c.now, g.ID)
		if err != nil {
			return nil, err
		}
		all[i] = GroupOf(g, s, keys[g.ID])
	}
	return all, nil
}

func (c *call) answerGroup(status int, g *quota.Group) error {
	all, err := c.groups(g)
	if err != nil {
		return err
	}
	c.w.Header().Set("ETag", groupTag(g))
	return c.json(status, all[0])
}

func createGroup(c *call) error {
	if err := c.params(); err != nil {
		return err
	}
	fields, err := c.patch()
	if err != nil {
		return err
	}
	var spec ledger.NewGroup
	if err := set(&spec, fields, groupFields, c.ledger); err != nil {
		return err
	}
	g, err := c.ledger.CreateGroup(c.now, spec)
	if err != nil {
		return err
	}
	c.w.Header().Set("Location", "/llm_quota/groups/"+g.ID.String())
	return c.answerGroup(http.StatusCreated, g)
}

func showGroup(c *call) error {
	if err := c.params(); err != nil {
		return err
	}
	id, err := c.id(quota.KindGroup)
	if err != nil {
		return err
	}
	return c.answerID(id)
}

func patchGroup(c *call) error {
	if err := c.params(); err != nil {
		return err
	}
	id, err := c.living(quota.KindGroup)
	if err != nil {
		return err
	}
	fields, err := c.patch()
	if err != nil {
		return err
	}
	g, err := c.ledger.UpdateGroup(c.now, id, func(g *quota.Group) error {
		if err := c.matches(groupTag(g)); err != nil {
			return err
		}
		if err := check(fields, groupFields); err != nil {
			return err
		}
		if g.Source == quota.SourceConfig && len(fields) > 0 {
			return fail(http.StatusConflict, "%s is set by the configuration, and changes there", fields[0].name)
		}
		next := ledger.NewGroup{Name: g.Name, Parent: g.Parent, GroupRules: g.GroupRules}
		if err := set(&next, fields, groupFields, c.ledger); err != nil {
			return err
		}
		g.Name, g.Parent, g.GroupRules = next.Name, next.Parent, next.GroupRules
		return nil
	})
	if err != nil {
		return err
	}
	return c.answerGroup(http.StatusOK, g)
}

func deleteGroup(c *call) error {
	if err := c.params("force"); err != nil {
		return err
	}
	force, err := c.flag("force")
	if err != nil {
		return err
	}
	id, err := c.living(quota.KindGroup)
	if err != nil {
		return err
	}
	if err := c.ledger.DeleteGroup(c.now, id, force, func(g *quota.Group) error {
		if err := c.matches(groupTag(g)); err != nil {
			return err
		}
		if g.Source == quota.SourceConfig && !g.Removed {
			return fail(http.StatusConflict, "this group is set by the configuration, and is deleted there")
		}
		return nil
	}); err != nil {
		return err
	}
	return c.noContent()
}
