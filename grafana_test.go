package llmquota

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// promised are the metrics by name, with their labels.
var promised = map[string]string{
	"alerts_total":   "kind",
	"requests_total": "decision dialect group reason", "tokens_total": "dialect group model type",
	"reserved_tokens": "", "overage_tokens_total": "", "open_reservations": "", "store_up": "",
	"decision_duration_seconds": "", "store_op_duration_seconds": "engine op", "store_errors_total": "op",
	"quota_used_ratio": "group",
}

// shown is what a scrape shows of one name: the values of each label.
type shown map[string]map[string]bool

var (
	sampleLine  = regexp.MustCompile(`^([a-z_]+)(?:\{(.*)\})? \S+$`)
	sampleLabel = regexp.MustCompile(`([a-z_]+)="((?:[^"\\]|\\.)*)"`)
)

// scraped reads the metrics of a gate by name.
func (g *gate) scraped() map[string]shown {
	g.Helper()
	all := map[string]shown{}
	for line := range strings.Lines(g.api("GET", "/metrics", "").ok(200).body) {
		m := sampleLine.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		if all[m[1]] == nil {
			all[m[1]] = shown{}
		}
		for _, l := range sampleLabel.FindAllStringSubmatch(m[2], -1) {
			if all[m[1]][l[1]] == nil {
				all[m[1]][l[1]] = map[string]bool{}
			}
			all[m[1]][l[1]][l[2]] = true
		}
	}
	return all
}

// busyGate is a gate that has seen some traffic of each sort.
func busyGate(t *testing.T) *gate {
	up := upstream(t, completes)
	g := startGate(t, "group team {\nquota 60 monthly\n}\n"+keyK("group team"), proxy(up))
	g.chat().ok(200)
	g.chat().ok(200)
	g.usage("")
	for range 3 {
		g.chat()
		g.usage("")
	}
	g.chat().refused(429, "insufficient_quota")
	g.chat("Authorization", "Bearer wrong-secret-of-nobody").refused(401, "invalid_api_key")
	exhaust(g.app(), "127.0.0.1")
	g.chat("Authorization", "Bearer wrong-secret-of-nobody").throttled()
	return g
}

// Every metric that is promised is there, with just the labels that are.
func TestMetricsAreThere(t *testing.T) {
	all := busyGate(t).scraped()
	for name, labels := range promised {
		of, ok := all["caddy_llm_quota_"+name]
		if hist, is := all["caddy_llm_quota_"+name+"_count"]; is {
			of, ok = hist, true
		}
		if got := strings.Join(slices.Sorted(maps.Keys(of)), " "); !ok || got != labels {
			t.Errorf("%s is there: %t, with the labels %q, want %q", name, ok, got, labels)
		}
	}
	for op := range all["caddy_llm_quota_store_errors_total"]["op"] {
		if op == "journal" {
			return
		}
	}
	t.Error("errors of the journal are not counted from 0")
}

// query is an expression of PromQL, and where it stands.
type query struct {
	where, expr string
	legend      string // of the dashboard: it names labels
}

// dashboardQueries reads all that the dashboard asks of Prometheus.
func dashboardQueries(t *testing.T) (all []query) {
	t.Helper()
	b, err := os.ReadFile("grafana/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Title, UID    string
		SchemaVersion int
		Panels        []struct {
			ID          int
			Type, Title string
			GridPos     struct{ H, W, X, Y int }
			Datasource  struct{ UID string }
			Targets     []struct{ Expr, LegendFormat, RefID string }
		}
		Templating struct {
			List []struct{ Name, Type, Definition string }
		}
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	if d.Title == "" || d.UID == "" || d.SchemaVersion < 41 || len(d.Templating.List) == 0 || d.Templating.List[0].Type != "datasource" {
		t.Errorf("the dashboard is called %q, %q, of schema %d, with the variables %v", d.Title, d.UID, d.SchemaVersion, d.Templating.List)
	}
	ids, taken := map[int]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("two panels have the id %d", p.ID)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other, is := taken[[2]int{x, y}]; is || x >= 24 {
					t.Errorf("%q lies over %q or the edge", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("%q asks %q for %d things", p.Title, p.Datasource.UID, len(p.Targets))
		}
		for _, q := range p.Targets {
			all = append(all, query{"panel " + p.Title, q.Expr, q.LegendFormat})
		}
	}
	for _, v := range d.Templating.List[1:] {
		inner, ok := strings.CutPrefix(strings.TrimSuffix(v.Definition, ")"), "label_values(")
		metric, label, both := cutLast(inner, ", ")
		if !ok || !both {
			t.Errorf("the variable %s is %s", v.Name, v.Definition)
			continue
		}
		all = append(all, query{"variable " + v.Name, "sum by (" + label + ") (" + metric + ")", ""})
	}
	return all
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// alertQueries reads the conditions of the alerts.
func alertQueries(t *testing.T) (all []query) {
	t.Helper()
	b, err := os.ReadFile("grafana/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	var f struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal(b, &f); err != nil {
		t.Fatal(err)
	}
	for _, g := range f.Groups {
		for _, r := range g.Rules {
			legend := ""
			for _, text := range r.Annotations {
				for _, m := range annotated.FindAllStringSubmatch(text, -1) {
					legend += "{{" + m[1] + "}}"
				}
			}
			all = append(all, query{"alert " + r.Alert, r.Expr, legend})
		}
	}
	return all
}

var (
	annotated = regexp.MustCompile(`\$labels\.(\w+)`)
	selector  = regexp.MustCompile(`\b(caddy_\w+)(?:\{([^}]*)\})?`)
	matcher   = regexp.MustCompile(`(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"`)
	grouping  = regexp.MustCompile(`\b(?:by|without|on|ignoring)\s*\(([^)]*)\)`)
	legendRef = regexp.MustCompile(`\{\{\s*(\w+)\s*\}\}`)
	plainWord = regexp.MustCompile(`[A-Za-z_:][A-Za-z0-9_:]*`)
	duration  = regexp.MustCompile(`\[[^\]]*\]|\boffset \d+[smhd]\b|\b\d+(\.\d+)?\b`)
)

// ofPromQL are the words of the language that the queries use. Any other word
// would be the name of a metric that is not ours.
var ofPromQL = []string{"sum", "min", "max", "by", "rate", "increase", "histogram_quantile", "topk", "sort_desc", "absent", "or", "and", "unless"}

// Whatever the dashboard and the alerts ask for is in the metrics of a real
// gate: names, labels, and the values of labels that they look for.
func TestDashboardAndAlertsAskForWhatIsThere(t *testing.T) {
	metrics := busyGate(t).scraped()
	byPrometheus := []string{"job", "instance"}
	used := map[string]bool{}
	for _, q := range append(dashboardQueries(t), alertQueries(t)...) {
		labels := slices.Clone(byPrometheus)
		found := selector.FindAllStringSubmatch(q.expr, -1)
		if len(found) == 0 {
			t.Errorf("%s asks for nothing of ours: %s", q.where, q.expr)
		}
		for _, m := range found {
			of, ok := metrics[m[1]]
			if !ok {
				t.Errorf("%s asks for %s, which is not there", q.where, m[1])
				continue
			}
			used[m[1]] = true
			labels = append(labels, slices.Collect(maps.Keys(of))...)
			for _, sel := range matcher.FindAllStringSubmatch(m[2], -1) {
				label, value := sel[1], sel[3]
				if slices.Contains(byPrometheus, label) {
					continue
				}
				if of[label] == nil {
					t.Errorf("%s asks for the label %s of %s", q.where, label, m[1])
				}
				for v := range strings.SplitSeq(value, "|") {
					if !strings.HasPrefix(v, "$") && v != "" && !of[label][v] {
						t.Errorf("%s asks for %s=%q, of which there is none in %s", q.where, label, v, m[1])
					}
				}
			}
		}
		var kept []string
		for _, m := range grouping.FindAllStringSubmatch(q.expr, -1) {
			for label := range strings.SplitSeq(m[1], ",") {
				kept = append(kept, strings.TrimSpace(label))
			}
		}
		for _, label := range kept {
			if !slices.Contains(labels, label) {
				t.Errorf("%s groups by %s: %s", q.where, label, q.expr)
			}
		}
		if len(kept) == 0 && !strings.HasPrefix(q.expr, "sum(") && !strings.HasPrefix(q.expr, "min(") {
			kept = labels
		}
		for _, m := range legendRef.FindAllStringSubmatch(q.legend, -1) {
			if !slices.Contains(kept, m[1]) {
				t.Errorf("%s names %s, which the result has not: %s", q.where, m[1], q.expr)
			}
		}
		rest := q.expr
		for _, pattern := range []*regexp.Regexp{selector, grouping, duration} {
			rest = pattern.ReplaceAllString(rest, " ")
		}
		for _, word := range plainWord.FindAllString(rest, -1) {
			if !slices.Contains(ofPromQL, word) {
				t.Errorf("%s has the word %s: %s", q.where, word, q.expr)
			}
		}
	}
	for name := range promised {
		name = "caddy_llm_quota_" + name
		if !used[name] && !used[name+"_bucket"] {
			t.Errorf("nothing shows %s", name)
		}
	}
}

func needPromtool(t *testing.T) string {
	t.Helper()
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		skip(t, "there is no promtool (Debian: the package prometheus): %v", err)
	}
	return promtool
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// The rules are such that Prometheus takes them, each fires when it should, and
// none while all is well.
func TestAlertRules(t *testing.T) {
	promtool := needPromtool(t)
	run(t, promtool, "check", "rules", "grafana/alerts.yml")
	run(t, promtool, "test", "rules", "testdata/alerts_test.yml")
	tested, err := os.ReadFile("testdata/alerts_test.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range alertQueries(t) {
		name := strings.TrimPrefix(q.where, "alert ")
		if !regexp.MustCompile(`alertname: ` + name + "\n +exp_alerts").Match(tested) {
			t.Errorf("no test lets %s fire", name)
		}
	}
}

// All that the dashboard asks is PromQL, once Grafana has put in its variables.
func TestDashboardIsPromQL(t *testing.T) {
	promtool := needPromtool(t)
	fill := strings.NewReplacer("$__rate_interval", "5m", "$__range", "6h", "$job", ".*", "$instance", ".*", "$group", ".*")
	var rules strings.Builder
	rules.WriteString("groups:\n- name: dashboard\n  rules:\n")
	for i, q := range dashboardQueries(t) {
		fmt.Fprintf(&rules, "  - record: query_%d\n    expr: %q\n", i, fill.Replace(q.expr))
	}
	file := filepath.Join(t.TempDir(), "dashboard.yml")
	if err := os.WriteFile(file, []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, promtool, "check", "rules", file)
}
