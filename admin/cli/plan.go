package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// step is one change that an import makes.
type step struct {
	kind    quota.Kind
	name    string
	line    int
	was     *stored   // nil: it is made
	want    *settings // nil: it is deleted
	secret  string    // that a new key brings along
	changed []string  // the fields that differ
	before  map[string]json.RawMessage
	after   map[string]json.RawMessage
}

func (s *step) title() string { return titled(s.kind, s.name) }

// plan is what an import does, in this order.
type plan struct {
	groups  []*step // made or changed, parents first
	changes []*step // of keys
	keys    []*step // to be made
	deletes []*step // keys, then groups, children first

	unchanged int
}

func (p *plan) steps() []*step { return slices.Concat(p.groups, p.changes, p.keys, p.deletes) }

// planner compares a file with what the gate has.
type planner struct {
	file    *file
	dir     *directory
	prune   bool
	zone    func() (string, error) // the app's time zone
	groups  map[string]*entry
	parents map[string]string // of each group, as they will be
	*problems
}

// makePlan checks the whole of a file against the gate. The error names every
// line that the gate would refuse.
func makePlan(name string, f *file, d *directory, prune bool, zone func() (string, error)) (*plan, error) {
	p := &planner{
		file: f, dir: d, prune: prune, zone: zone,
		groups: map[string]*entry{}, parents: map[string]string{}, problems: &problems{file: name},
	}
	for _, g := range d.groups {
		p.parents[g.Name] = g.Parent
	}
	for _, e := range f.groups {
		p.groups[e.Name] = e
		p.parents[e.Name] = ""
	}
	for _, e := range f.groups {
		e.Parent = p.group(e, "parent", e.Parent)
		p.parents[e.Name] = e.Parent
	}
	for _, e := range f.groups {
		p.checkTree(e)
	}
	made := &plan{}
	if len(p.all) == 0 {
		for _, e := range p.parentsFirst() {
			made.add(p.step(e), &made.groups)
		}
		for _, e := range f.keys {
			e.Group = p.group(e, "group", e.Group)
			if err := p.expiry(e); err != nil {
				return nil, err
			}
			if p.dir.keys[e.Name] == nil {
				made.add(p.step(e), &made.keys)
			} else {
				made.add(p.step(e), &made.changes)
			}
		}
	}
	if prune {
		made.deletes = p.deletes()
	}
	return made, p.err()
}

func (p *plan) add(s *step, to *[]*step) {
	if s == nil {
		p.unchanged++
		return
	}
	*to = append(*to, s)
}

// group returns the name of the group that a field names, which must be there
// when the import has been done.
func (p *planner) group(e *entry, field, s string) string {
	if id, err := quota.ParseID(s); s != "" && err == nil && p.dir.byID[id] != nil {
		s = p.dir.byID[id].Name
	}
	there := p.dir.groups[s]
	switch {
	case s == "" || p.groups[s] != nil:
	case there == nil:
		p.add(e.lineOf(field), "%s: there is no group %q, neither in the file nor in the gate", field, s)
	case p.prune && !there.config:
		p.add(e.lineOf(field), "%s: group %q is not in the file, so --prune would delete it", field, s)
	}
	return s
}

// checkTree checks that the groups above one end, and are not too many.
func (p *planner) checkTree(e *entry) {
	depth := 1
	for up := p.parents[e.Name]; up != ""; up = p.parents[up] {
		if up == e.Name {
			p.add(e.lineOf("parent"), "parent: group %q would stand above itself", e.Name)
			return
		}
		if depth++; depth > quota.MaxDepth {
			p.add(e.lineOf("parent"), "parent: more than %d groups above one another", quota.MaxDepth)
			return
		}
	}
}

// parentsFirst returns the groups of the file so that each comes after the one
// above it: so no step of an import makes a circle.
func (p *planner) parentsFirst() []*entry {
	var all []*entry
	done := map[string]bool{}
	var visit func(e *entry)
	visit = func(e *entry) {
		if done[e.Name] {
			return
		}
		done[e.Name] = true
		if up := p.groups[e.Parent]; up != nil {
			visit(up)
		}
		all = append(all, e)
	}
	for _, e := range p.file.groups {
		visit(e)
	}
	return all
}

// expiry reads when a key expires; a date is meant in the zone in which the API
// would mean it.
func (p *planner) expiry(e *entry) error {
	if e.expiry == "" {
		return nil
	}
	zone := ""
	if e.Quota != nil {
		zone = e.Quota.TimeZone
	} else if g := p.member(e.Group); g != nil {
		zone = g.TimeZone
	}
	if _, err := time.Parse(time.DateOnly, e.expiry); err == nil && zone == "" {
		if zone, err = p.zone(); err != nil {
			return err
		}
	}
	t, err := quota.ParseExpiry(e.expiry, zone)
	if err != nil {
		p.add(e.lineOf("expires_at"), "expires_at: %v", err)
		return nil
	}
	t = t.Truncate(time.Microsecond) // as it is stored
	e.ExpiresAt = &t
	return nil
}

// member returns the quota that the members of a group inherit.
func (p *planner) member(group string) *quota.Quota {
	if e := p.groups[group]; e != nil {
		return e.Member.Quota
	}
	if g := p.dir.groups[group]; g != nil {
		return g.Member.Quota
	}
	return nil
}

// step returns what must be done for an account of the file; nil: nothing.
func (p *planner) step(e *entry) *step {
	s := &step{kind: e.kind, name: e.Name, line: e.line, was: p.dir.of(e.kind)[e.Name], want: &e.settings, secret: e.secret}
	if s.was != nil && !e.ableSet {
		e.Disabled = s.was.Disabled // to enable it, the file must say so
	}
	if err := s.compare(); err != nil {
		p.add(e.line, "%v", err)
		return nil
	}
	if s.was == nil {
		return s
	}
	if len(s.changed) == 0 {
		return nil
	}
	if s.was.config {
		for _, field := range s.changed {
			if field != "disabled" {
				p.add(e.lineOf(field), "%s: %s is set by the configuration, and changes there", field, e.title())
			}
		}
	}
	return s
}

// compare finds the fields that differ.
func (s *step) compare() (err error) {
	s.before, s.after = map[string]json.RawMessage{}, map[string]json.RawMessage{}
	if s.was != nil {
		if s.before, err = s.was.fields(); err != nil {
			return err
		}
	}
	if s.want != nil {
		if s.after, err = s.want.fields(); err != nil {
			return err
		}
	}
	names := maps.Clone(s.before)
	maps.Copy(names, s.after)
	for name := range names {
		if !bytes.Equal(s.before[name], s.after[name]) {
			s.changed = append(s.changed, name)
		}
	}
	slices.Sort(s.changed)
	return nil
}

// deletes returns what the file lacks, apart from what the configuration sets.
func (p *planner) deletes() (all []*step) {
	there := map[string]bool{}
	for _, e := range p.file.keys {
		there[e.Name] = true
	}
	for _, k := range p.dir.sorted(quota.KindKey) {
		if !there[k.Name] && !k.config {
			all = append(all, &step{kind: k.kind, name: k.Name, was: k})
		}
	}
	var groups []*step
	depth := func(s *step) (n int) {
		for up := s.was.Parent; up != "" && n <= quota.MaxDepth; up = p.dir.groups[up].Parent {
			n++
		}
		return n
	}
	for _, g := range p.dir.sorted(quota.KindGroup) {
		if p.groups[g.Name] == nil && !g.config {
			groups = append(groups, &step{kind: g.kind, name: g.Name, was: g})
		}
	}
	slices.SortStableFunc(groups, func(a, b *step) int { return depth(b) - depth(a) })
	return append(all, groups...)
}

// print shows what would be done.
func (p *plan) print(r *run) {
	for _, s := range p.steps() {
		switch {
		case s.want == nil:
			r.printf("%s\n", r.styled(red, "- "+clean(s.title())))
		case s.was == nil:
			r.printf("%s\n", r.styled(green, "+ "+clean(s.title())))
			settings := flat(s.after)
			for _, path := range slices.Sorted(maps.Keys(settings)) {
				r.printf("    %s: %s\n", clean(path), clean(settings[path]))
			}
		default:
			r.printf("%s\n", r.styled(yellow, "~ "+clean(s.title())))
			for _, line := range differences(s.before, s.after) {
				r.printf("    %s\n", clean(line))
			}
		}
	}
}

// summary tells in words what is done.
func (p *plan) summary() string {
	var parts []string
	for _, part := range []struct {
		steps []*step
		is    func(*step) bool
		what  string
	}{
		{p.groups, func(s *step) bool { return s.was == nil }, "groups new"},
		{p.keys, func(*step) bool { return true }, "keys new"},
		{slices.Concat(p.groups, p.changes), func(s *step) bool { return s.was != nil }, "changed"},
		{p.deletes, func(*step) bool { return true }, "deleted"},
	} {
		if n := count(part.steps, part.is); n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, part.what))
		}
	}
	if len(parts) == 0 {
		parts = []string{"nothing to change"}
	}
	return strings.Join(append(parts, fmt.Sprintf("%d as they should be", p.unchanged)), ", ")
}

func count(steps []*step, is func(*step) bool) (n int) {
	for _, s := range steps {
		if is(s) {
			n++
		}
	}
	return n
}
