package cli

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/admin/client"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

// account tells the kind of what an argument names: a group is written
// group:<name> or as its ID, all else is a key.
func account(arg string) (quota.Kind, string) {
	if name, is := strings.CutPrefix(arg, "group:"); is {
		return quota.KindGroup, name
	}
	if id, err := quota.ParseID(arg); err == nil && id != 0 && id.Kind() == quota.KindGroup {
		return quota.KindGroup, arg
	}
	return quota.KindKey, arg
}

// titled returns an account's kind and name, as messages show it.
func titled(kind quota.Kind, name string) string {
	return kind.String() + " " + clean(strings.TrimPrefix(name, "name:"))
}

// name returns the name of an account, or its ID when the name cannot be found
// out; "" for none.
func (r *run) name(id quota.ID) string {
	if id == 0 {
		return ""
	}
	s := id.String()
	if name, known := r.names[s]; known {
		return name
	}
	var named struct{ Name string }
	if _, err := r.get(client.Request{Path: client.Path(id.Kind(), s)}, &named); err != nil || named.Name == "" {
		named.Name = s
	}
	r.names[s] = named.Name
	return named.Name
}

// page is a list as the API pages it.
type page struct {
	rows []json.RawMessage
	next *string
}

// pages reads a list: as many rows as limit, or all if it is 0.
func (r *run) pages(path, field string, query url.Values, limit int) (*page, error) {
	p := &page{rows: []json.RawMessage{}}
	query.Del("cursor")
	for {
		size := 1000
		if limit > 0 {
			size = min(size, limit-len(p.rows))
		}
		query.Set("limit", strconv.Itoa(size))
		var answer map[string]json.RawMessage
		if _, err := r.get(client.Request{Path: path, Query: query}, &answer); err != nil {
			return nil, err
		}
		var rows []json.RawMessage
		p.next = nil
		if err := json.Unmarshal(answer[field], &rows); err != nil {
			return nil, fmt.Errorf("reading the answer: %w", err)
		}
		if next := answer["next_cursor"]; next != nil {
			if err := json.Unmarshal(next, &p.next); err != nil {
				return nil, fmt.Errorf("reading the answer: %w", err)
			}
		}
		p.rows = append(p.rows, rows...)
		if p.next == nil || (limit > 0 && len(p.rows) >= limit) {
			return p, nil
		}
		query.Set("cursor", *p.next)
	}
}

// printPage prints a list as one answer of the API.
func (r *run) printPage(field string, p *page) error {
	rows, err := json.Marshal(p.rows)
	if err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	next, err := json.Marshal(p.next)
	if err != nil {
		return fmt.Errorf("writing the answer: %w", err)
	}
	r.printf("{%q:%s,\"next_cursor\":%s}\n", field, rows, next)
	return nil
}

// decoded reads the rows of a list.
func decoded[T any](p *page) ([]T, error) {
	all := make([]T, len(p.rows))
	for i, row := range p.rows {
		if err := json.Unmarshal(row, &all[i]); err != nil {
			return nil, fmt.Errorf("reading the answer: %w", err)
		}
	}
	return all, nil
}

// limit returns how many rows of a list are wanted; 0 is all.
func (r *run) limit() (int, error) {
	n := r.number("limit")
	switch {
	case n < 1:
		return 0, misused("--limit: %d is not a number from 1", n)
	case r.flag("all") && r.flags.Changed("limit"):
		return 0, misused("--all and --limit exclude one another")
	case r.flag("all"):
		return 0, nil
	}
	return n, nil
}

// status tells the state of a key in one word.
func (r *run) status(k *admin.Key) cell {
	switch {
	case k.DeletedAt != nil:
		return cell{"deleted", red}
	case k.Disabled:
		return cell{"disabled", red}
	case k.ExpiresAt != nil && !r.now().Before(*k.ExpiresAt):
		return cell{"expired", red}
	}
	return cell{"active", green}
}

// used returns how much of a quota is used, and its share.
func used(e admin.Effective, s admin.State) (string, cell) {
	if s.Quota == nil {
		return "", cell{}
	}
	share, style := share(e.Quota, s.Quota)
	return amount(s.Quota.Used), cell{strconv.Itoa(int(share*100)) + "%", style}
}

// share returns which part of a quota is used or held.
func share(q *quota.Quota, s *admin.QuotaState) (float64, string) {
	most := int64(0)
	if q != nil {
		most, _ = q.Tokens.Max()
	}
	part := 1.0
	if most += s.Granted; most > 0 {
		part = float64(s.Used+s.Reserved) / float64(most)
	}
	switch {
	case part >= 1:
		return part, red
	case part >= 0.8:
		return part, yellow
	}
	return part, green
}

// printState shows where an account stands with each of its limits.
func (r *run) printState(e admin.Effective, s admin.State) {
	if q := s.Quota; q != nil {
		part, style := share(e.Quota, q)
		r.printf("\nQuota  %s\n", quotaText(e.Quota))
		text := fmt.Sprintf("%s used, %s left", amount(q.Used), amount(q.Remaining))
		if q.Reserved > 0 {
			text += fmt.Sprintf(", %s held by calls under way", amount(q.Reserved))
		}
		switch {
		case q.Granted < 0:
			text += fmt.Sprintf(", %s taken back", amount(-q.Granted))
		case q.Granted > 0:
			text += fmt.Sprintf(", %s granted on top", amount(q.Granted))
		}
		resets := ""
		if q.ResetsAt != nil {
			resets = ", resets " + since(r.now(), q.ResetsAt)
		}
		r.printf("       %s %3d%%  %s%s\n", r.styled(style, bar(part, 24)), int(part*100), text, resets)
	}
	t := table{head: []string{"LIMIT", ">MAX", ">USED", ">LEFT", "RESETS"}}
	for _, name := range limitNames {
		l, holds := s.Limits[name]
		if !holds {
			continue
		}
		left := cell{text: amount(l.Remaining)}
		if l.Remaining == 0 {
			left.style = red
		}
		resets := ""
		if l.ResetsAt != nil {
			resets = since(r.now(), l.ResetsAt)
		}
		t.row(string(name), bound(*e.Limits.Bound(name)), amount(l.Used), left, resets)
	}
	if len(t.rows) > 0 {
		r.printf("\n")
		t.print(r.env)
	}
}

// facts prints what is known of an account, a line each; those without a text
// are left out.
func (r *run) facts(pairs ...string) {
	t := table{head: []string{"", ""}}
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			t.row(cell{pairs[i], faint}, pairs[i+1])
		}
	}
	t.print(r.env)
}

// limitsText writes limits as settings.
func limitsText(q *quota.Quota, l quota.Limits) string {
	var all []string
	if q != nil {
		all = append(all, "quota "+quotaText(q))
	}
	for _, name := range limitNames {
		if b := l.Bound(name); b.IsSet() {
			all = append(all, string(name)+" "+bound(*b))
		}
	}
	return strings.Join(all, "; ")
}

func alertsText(at []float64) string {
	if at != nil && len(at) == 0 {
		return "off"
	}
	var all []string
	for _, p := range at {
		all = append(all, strconv.FormatFloat(p, 'f', -1, 64)+"%")
	}
	return strings.Join(all, ", ")
}

func metadataText(m map[string]string) string {
	var all []string
	for name, text := range m {
		all = append(all, name+"="+text)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}
