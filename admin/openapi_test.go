package admin

import (
	"encoding/json"
	"maps"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

// openAPIDocument is what these tests read of the document.
type openAPIDocument struct {
	Paths      map[string]map[string]json.RawMessage
	Components struct{ Schemas map[string]*openAPISchema }
}

type openAPISchema struct {
	Enum       []string
	Required   []string
	Properties map[string]*openAPISchema
	Items      *openAPISchema
	Parameters []struct {
		Name   string
		Schema openAPISchema
	}
}

func readOpenAPI(t *testing.T) *openAPIDocument {
	t.Helper()
	b := newBench(t)
	r := b.do("GET", "/llm_quota/openapi.json", "").ok(200)
	if kind := r.header.Get("Content-Type"); kind != "application/json" {
		t.Errorf("Content-Type %s", kind)
	}
	var d openAPIDocument
	if err := json.Unmarshal([]byte(r.body), &d); err != nil {
		t.Fatal(err)
	}
	b.do("GET", "/llm_quota/openapi.json?x=1", "").fails(400, "x is not a parameter")
	return &d
}

// Every route and every method of it is described, and no other.
func TestOpenAPIRoutes(t *testing.T) {
	served := map[string][]string{}
	for path, m := range routes {
		if m != nil {
			served[path] = slices.Sorted(maps.Keys(m))
		}
	}
	described := map[string][]string{}
	for path, item := range readOpenAPI(t).Paths {
		for name := range item {
			if name != "parameters" {
				described[path] = append(described[path], strings.ToUpper(name))
			}
		}
		slices.Sort(described[path])
	}
	if diff := cmp.Diff(served, described); diff != "" {
		t.Errorf("-served +described:\n%s", diff)
	}
}

// Every field of every answer is described, and no other; those that are always
// there are said to be.
func TestOpenAPITypes(t *testing.T) {
	schemas := readOpenAPI(t).Components.Schemas
	described := map[string]bool{}
	for name, v := range map[string]any{
		"Key": Key{}, "Group": Group{}, "Keys": Keys{}, "Groups": Groups{}, "Effective": Effective{},
		"State": State{}, "QuotaState": QuotaState{}, "LimitState": LimitState{},
		"Quota": quota.Quota{}, "Limits": quota.Limits{}, "Totals": quota.Totals{},
		"Usage": Usage{}, "UsageLine": UsageLine{}, "UsageStep": UsageStep{},
		"Alert": Alert{}, "Alerts": Alerts{}, "Delivery": quota.Delivery{}, "Refusal": Refusal{}, "Refusals": Refusals{}, "Change": AuditEntry{}, "Audit": Audit{},
		"Event": Event{}, "Explanation": Explanation{}, "ExplainedLimit": ExplainedLimit{},
		"Status": Status{}, "StoreStatus": StoreStatus{}, "AlertRules": AlertRules{}, "WebhookRule": WebhookRule{}, "Verification": Verification{}, "Difference": Difference{},
	} {
		described[name] = true
		s := schemas[name]
		if s == nil {
			t.Errorf("%s is not described", name)
			continue
		}
		all, always := jsonFields(reflect.TypeOf(v))
		if name == "Key" { // only self-service leaves it out
			always = append(always, "metadata")
		}
		compareNames(t, name, all, slices.Collect(maps.Keys(s.Properties)))
		compareNames(t, name+", required", always, s.Required)
	}
	for name, fields := range map[string][]string{
		"NewKey": {"secret"}, "KeySettings": slices.Collect(maps.Keys(keyFields)), "GroupSettings": slices.Collect(maps.Keys(groupFields)),
		"QuotaPatch": propertiesOf[quota.Quota](), "LimitsPatch": propertiesOf[quota.Limits](), "MemberPatch": propertiesOf[Effective](),
		"Reset": {"limits"}, "Grant": {"tokens"}, "Rotation": {"grace"}, "Error": {"error"},
	} {
		described[name] = true
		compareNames(t, name, fields, slices.Collect(maps.Keys(schemas[name].Properties)))
	}
	for name, s := range schemas {
		if s.Properties != nil && !described[name] {
			t.Errorf("no type is compared with %s", name)
		}
	}
}

func propertiesOf[T any]() []string {
	all, _ := jsonFields(reflect.TypeFor[T]())
	return all
}

// jsonFields returns the fields of a struct as JSON names them, and those that
// are never left out.
func jsonFields(t reflect.Type) (all, always []string) {
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-":
		case f.Anonymous && name == "":
			inner, innerAlways := jsonFields(f.Type)
			all, always = append(all, inner...), append(always, innerAlways...)
		default:
			all = append(all, name)
			if !strings.Contains(options, "omit") {
				always = append(always, name)
			}
		}
	}
	return all, always
}

// compareNames compares two sets of names.
func compareNames(t *testing.T, what string, served, described []string) {
	t.Helper()
	if diff := cmp.Diff(slices.Sorted(slices.Values(served)), slices.Sorted(slices.Values(described))); diff != "" {
		t.Errorf("%s: -served +described:\n%s", what, diff)
	}
}

// Every set of words is described with all of its words.
func TestOpenAPIEnums(t *testing.T) {
	d := readOpenAPI(t)
	parameter := func(path, name string) []string {
		var op openAPISchema
		if err := json.Unmarshal(d.Paths[path]["get"], &op); err != nil {
			t.Fatal(err)
		}
		for _, p := range op.Parameters {
			if p.Name == name && p.Schema.Items != nil {
				return p.Schema.Items.Enum
			} else if p.Name == name {
				return p.Schema.Enum
			}
		}
		return nil
	}
	schemas := d.Components.Schemas
	compareNames(t, "Action", auditActions, schemas["Action"].Enum)
	compareNames(t, "types of events", eventTypes, parameter("/llm_quota/events", "types"))
	compareNames(t, "states of keys", []string{active, disabled, expired, deleted}, parameter("/llm_quota/keys", "status"))
	var limits []string
	for _, name := range quota.LimitNames {
		limits = append(limits, string(name))
	}
	compareNames(t, "LimitName", limits, schemas["LimitName"].Enum)
	compareNames(t, "Explanation.limit", append(limits, ""), schemas["Explanation"].Properties["limit"].Enum)
	compareNames(t, "Refusal.limit", append(limits, ""), schemas["Refusal"].Properties["limit"].Enum)
	compareNames(t, "decisions on refusals", []string{Refuse, Observe}, parameter("/llm_quota/refusals", "decision"))
	compareNames(t, "Refusal.decision", []string{Refuse, Observe}, schemas["Refusal"].Properties["decision"].Enum)
	compareNames(t, "limits that are reset", resettable, schemas["Reset"].Properties["limits"].Items.Enum)
}

// What the API says of a parameter's values is what is described.
func TestOpenAPIWords(t *testing.T) {
	b, schemas := newBench(t), readOpenAPI(t).Components.Schemas
	for path, names := range map[string]map[string]string{
		"/llm_quota/alerts": {"kind": "AlertKind"},
		"/llm_quota/audit":  {"source": "ChangeSource", "action": "Action"},
	} {
		for name, schema := range names {
			for _, word := range schemas[schema].Enum {
				b.do(http.MethodGet, path+"?"+name+"="+word, "").ok(200)
			}
			r := b.do(http.MethodGet, path+"?"+name+"=gossip", "")
			r.fails(400, name)
			words := regexp.MustCompile(`[a-z_]+`).FindAllString(r.body[strings.Index(r.body, "is not")+len("is not"):], -1)
			compareNames(t, schema, slices.DeleteFunc(words, func(s string) bool { return s == "or" }), schemas[schema].Enum)
		}
	}
}
