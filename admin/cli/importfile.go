package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// entry is an account that a file holds.
type entry struct {
	kind  quota.Kind
	line  int
	lines map[string]int // of its fields
	settings
	expiry string // as it is written: a date needs a time zone
	secret string
	// ableSet tells that the file says whether a key is disabled.
	ableSet bool
}

func (e *entry) title() string { return titled(e.kind, e.Name) }

// lineOf returns the line of a field.
func (e *entry) lineOf(field string) int {
	if n := e.lines[field]; n > 0 {
		return n
	}
	return e.line
}

// file is a file to import.
type file struct {
	groups, keys []*entry
}

// readFile reads what a file holds, and checks what can be checked without the
// gate. The error names every line that is wrong.
func readFile(name string, data []byte) (*file, error) {
	p := &problems{file: name}
	root, err := readNodes(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	f := &file{}
	for _, part := range p.mapping(root, "the file") {
		switch part.name {
		case "groups":
			f.groups = p.entries(part.value, quota.KindGroup)
		case "keys":
			f.keys = p.entries(part.value, quota.KindKey)
		default:
			p.add(part.line, "%s is neither groups nor keys", part.name)
		}
	}
	return f, p.err()
}

func (p *problems) entries(n *yaml.Node, kind quota.Kind) (all []*entry) {
	names, secrets := map[string]int{}, map[string]int{}
	for _, item := range p.items(n, kind.String()+"s") {
		e := p.entry(resolved(item), kind)
		if e == nil {
			continue
		}
		if first := names[e.Name]; first > 0 {
			p.add(e.lineOf("name"), "%s is already in line %d", e.title(), first)
		}
		if first := secrets[e.secret]; first > 0 && e.secret != "" {
			p.add(e.lineOf("secret"), "secret: it is already in line %d", first)
		}
		names[e.Name], secrets[e.secret] = e.lineOf("name"), e.lineOf("secret")
		all = append(all, e)
	}
	return all
}

func (p *problems) entry(n *yaml.Node, kind quota.Kind) *entry {
	e := &entry{kind: kind, line: n.Line, lines: map[string]int{}}
	for _, f := range p.mapping(n, "a "+kind.String()) {
		e.lines[f.name] = f.line
		if err := p.field(e, f); err != nil {
			text := strings.TrimSuffix(err.Error(), ": "+quota.ErrInvalid.Error())
			text = strings.TrimPrefix(strings.TrimPrefix(text, f.name+": "), f.name+" ") // it may begin with the field as well
			p.add(f.line, "%s: %s", f.name, text)
		}
	}
	if e.Name == "" {
		if e.lines["name"] == 0 {
			p.add(n.Line, "a %s has no name", kind)
		}
		return nil
	}
	return e
}

// field reads a field of an account.
func (p *problems) field(e *entry, f pair) (err error) {
	isKey := e.kind == quota.KindKey
	switch {
	case f.name == "name":
		if e.Name, err = scalar(f.value); err == nil {
			err = quota.ValidName(e.Name)
		}
	case f.name == "group" && isKey:
		e.Group, err = scalar(f.value)
	case f.name == "parent" && !isKey:
		e.Parent, err = scalar(f.value)
	case f.name == "disabled" && isKey:
		e.ableSet = true
		if f.value.Decode(&e.Disabled) != nil {
			err = errors.New("is not true or false")
		}
	case f.name == "expires_at" && isKey:
		if e.expiry, err = scalar(f.value); err == nil {
			_, err = quota.ParseExpiry(e.expiry, "UTC")
		}
	case f.name == "models" && isKey:
		if e.Models, err = p.texts(f); err == nil {
			err = (&quota.KeyRules{Models: e.Models}).Validate("UTC")
		}
	case f.name == "allowed_ips" && isKey:
		e.AllowedIPs, err = p.ranges(f)
	case f.name == "secret" && isKey:
		if e.secret, err = scalar(f.value); err == nil {
			_, err = quota.ImportedPrefix(e.secret)
		}
	case f.name == "member" && !isKey:
		err = p.member(&e.Member, f)
	default:
		return p.sharedField(e, f)
	}
	return err
}

// sharedField reads a field that keys and groups have.
func (p *problems) sharedField(e *entry, f pair) (err error) {
	rules := quota.KeyRules{}
	switch f.name {
	case "alert_at":
		e.AlertAt, err = p.percentages(f)
		rules.AlertAt = e.AlertAt
	case "metadata":
		e.Metadata, err = p.metadata(f)
		rules.Metadata = e.Metadata
	case "quota":
		e.Quota, err = p.quota(f)
		rules.Quota = e.Quota
	case "limits":
		p.limits(&e.Limits, f)
	default:
		return errors.New("is not a field that is known here")
	}
	if err == nil {
		err = rules.Validate("UTC")
	}
	return err
}

// texts reads a list of texts.
func (p *problems) texts(f pair) (all []string, err error) {
	for _, n := range p.items(f.value, f.name) {
		s, err := scalar(n)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

func (p *problems) ranges(f pair) (all []netip.Prefix, err error) {
	texts, err := p.texts(f)
	for _, s := range texts {
		r, err := quota.ParseRange(s)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, err
}

func (p *problems) percentages(f pair) (all []float64, err error) {
	texts, err := p.texts(f)
	all = []float64{} // an empty list says something else than none
	for _, s := range texts {
		x, err := parsePercent(s)
		if err != nil {
			return nil, err
		}
		all = append(all, x)
	}
	return all, err
}

func (p *problems) metadata(f pair) (map[string]string, error) {
	m := map[string]string{}
	for _, t := range p.mapping(f.value, f.name) {
		s, err := scalar(t.value)
		if err != nil {
			return nil, fmt.Errorf("%s %w", t.name, err)
		}
		m[t.name] = s
	}
	return m, nil
}

// quota reads a quota: a mapping, or a text like "5M monthly".
func (p *problems) quota(f pair) (*quota.Quota, error) {
	q, before := new(quota.Quota), len(p.all)
	if f.value.Kind == yaml.ScalarNode {
		tokens, reset, err := parseQuota(f.value.Value)
		q.Tokens, q.Reset = tokens, quota.Reset(reset)
		return q, err
	}
	for _, part := range p.mapping(f.value, f.name) {
		s, err := scalar(part.value)
		if err != nil {
			return nil, fmt.Errorf("%s %w", part.name, err)
		}
		switch part.name {
		case "tokens":
			q.Tokens, err = fileBound(s)
		case "reset":
			q.Reset = quota.Reset(s)
		case "time_zone":
			q.TimeZone = s
		case "at":
			q.At = s
		case "week_start":
			q.WeekStart = s
		case "month_day":
			q.MonthDay, err = quota.ParseMonthDay(s)
		default:
			err = errors.New("is not a field that is known here")
		}
		if err != nil {
			p.add(part.line, "%s.%s: %v", f.name, part.name, err)
		}
	}
	if len(p.all) > before {
		return nil, nil // what is wrong has been said
	}
	return q, nil
}

func (p *problems) limits(to *quota.Limits, f pair) {
	for _, part := range p.mapping(f.value, f.name) {
		b := to.Bound(quota.LimitName(part.name))
		s, err := scalar(part.value)
		switch {
		case b == nil:
			err = errors.New("is not a limit that is known here")
		case err == nil:
			*b, err = fileBound(s)
		}
		if err != nil {
			p.add(part.line, "%s.%s: %v", f.name, part.name, err)
		}
	}
}

func (p *problems) member(to *quota.Member, f pair) error {
	for _, part := range p.mapping(f.value, f.name) {
		switch part.name {
		case "quota":
			q, err := p.quota(part)
			if err == nil {
				err = (&quota.KeyRules{Quota: q}).Validate("UTC")
			}
			if err != nil {
				return err
			}
			to.Quota = q
		case "limits":
			p.limits(&to.Limits, part)
		default:
			p.add(part.line, "member.%s: is not a field that is known here", part.name)
		}
	}
	return nil
}

// fileBound reads a limit as flags take it, or as any number of JSON.
func fileBound(s string) (b quota.Bound, err error) {
	if b, err = parseBound(strings.ReplaceAll(s, "_", "")); err == nil {
		return b, nil
	}
	if _, isNumber := strconv.ParseFloat(s, 64); isNumber == nil {
		if b.UnmarshalJSON([]byte(s)) == nil {
			return b, nil
		}
	}
	return b, err
}
