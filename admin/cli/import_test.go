package cli_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/llm-quota/caddy-llm-quota/admin"
	"github.com/llm-quota/caddy-llm-quota/admin/cli"
)

const accounts = `groups:
  - name: backend
    parent: engineering
  - name: engineering
    quota: 5M monthly
    member:
      limits: {tokens_per_minute: 40k}
keys:
  - name: Ada
    group: backend
    quota: {tokens: 100k, reset: daily, time_zone: America/New_York, at: "06:00"}
    limits:
      requests_per_minute: 60
      tokens_per_day: unlimited
    models: [gpt-4o*, claude-*]
    allowed_ips: [10.0.0.0/8, 192.168.0.1]
    alert_at: [50%, 90]
    expires_at: 2099-01-01
    metadata: {team: platform, number: 7}
  - name: old
    secret: sk-an-existing-secret-0123456789
    disabled: true
`

func (b *bench) importing(text, flags string) *result {
	b.Helper()
	return b.runIn(&cli.World{In: text}, "import - "+flags)
}

func TestImportGolden(t *testing.T) {
	b := benchWith(t, `{"time_zone":"Europe/Berlin","keys":[{"name":"fixed","secret":"a-secret-of-the-config"}]}`)
	changed := strings.NewReplacer("tokens: 100k", "tokens: 200k", "requests_per_minute: 60", "requests_per_minute: 90",
		"number: 7", "floor: two", "    models: [gpt-4o*, claude-*]\n", "").Replace(accounts)
	golden(t, "import",
		b.importing(accounts, "--dry-run"), b.run("keys list"),
		b.importing(accounts, ""), b.importing(accounts, ""), b.run("export"),
		b.importing(changed, "--dry-run"), b.importing(changed, ""), b.run("keys show Ada"),
		b.importing("keys: []\ngroups: []\n", "--prune --dry-run"),
		b.importing("keys: []\ngroups: []\n", "--prune --dry-run --json"),
		b.importing("groups: [name: engineering]\n", "--prune"), b.run("keys list"), b.run("groups list"),
	)
}

// What is exported is what was imported, in both languages, also on another
// gate.
func TestExportIsImported(t *testing.T) {
	b := newBench(t)
	b.importing(accounts, "").ok()
	asYAML, asJSON := b.run("export").ok().out, b.run("export --json").ok().out
	for _, text := range []string{asYAML, asJSON, strings.ReplaceAll(asJSON, "  ", "\t")} {
		b.importing(text, "--prune --dry-run").ok().says("nothing to change, 4 as they should be")
	}
	other := newBench(t)
	other.importing(asYAML, "").ok()
	if diff := cmp.Diff(asYAML, other.run("export").ok().out); diff != "" {
		t.Error(diff)
	}
	if k := other.key("Ada"); k.ExpiresAt == nil || k.ExpiresAt.Year() != 2099 {
		t.Errorf("%+v", k)
	}
}

// No alerts are something else than those of the app.
func TestAlertsOff(t *testing.T) {
	b := newBench(t)
	b.run("keys create Ada --alert-at off").ok()
	b.run("keys show Ada").ok().prints("alert at   off")
	exported := b.run("export").ok().prints("alert_at: []").out
	b.importing(exported, "--dry-run").ok().says("nothing to change, 1 as they should be")
	b.run("keys edit Ada --alert-at none").ok()
	if k := b.key("Ada"); k.AlertAt != nil {
		t.Errorf("alerts at %v", k.AlertAt)
	}
	b.importing(exported, "").ok().says("1 changed")
	if k := b.key("Ada"); k.AlertAt == nil || len(k.AlertAt) != 0 {
		t.Errorf("alerts at %v", k.AlertAt)
	}
}

// What is wrong is told in the order of the lines.
func TestImportMistakesInOrder(t *testing.T) {
	b := newBench(t)
	r := b.importing("keys:\n  - name: a\n  - name: a\n    models: x\n    colour: red\n", "").exits(1)
	lines := regexp.MustCompile(`line \d: `).FindAllString(r.err, -1)
	if diff := cmp.Diff([]string{"line 3: ", "line 4: ", "line 5: "}, lines); diff != "" {
		t.Errorf("%s%s", r.err, diff)
	}
}

// Every mistake is told with its line, and then nothing is changed.
func TestImportMistakes(t *testing.T) {
	b := benchWith(t, `{"groups":[{"name":"fixed","quota":{"tokens":5,"reset":"daily"}}],"keys":[{"name":"fixed","secret":"a-secret-of-the-config"}]}`)
	b.run("groups create there").ok()
	for text, wants := range map[string][]string{
		"":                                      {"line 1: the file is empty"},
		"keys: [":                               {"line 1"},
		"keys: []\n---\nkeys: []\n":             {"more than one document"},
		"key: []\n":                             {"line 1: key is neither groups nor keys"},
		"keys: 5\n":                             {"line 1: keys is not a list"},
		"keys: [5]\n":                           {"line 1: a key is not a mapping"},
		"keys:\n  - group: there\n":             {"line 2: a key has no name"},
		"keys:\n  - name: a/b\n":                {"line 2: name: \"a/b\" is not"},
		"keys:\n  - name: a\n    name: b\n":     {"line 3: name is already in line 2"},
		"keys:\n  - name: a\n  - name: a\n":     {"line 3: key a is already in line 2"},
		"keys:\n  - name: a\n    colour: red\n": {"line 3: colour: is not a field"},
		"keys:\n  - name: a\n    group: nowhere\n":                                               {`line 3: group: there is no group "nowhere"`},
		"keys:\n  - name: a\n    disabled: maybe\n":                                              {"line 3: disabled: is not true or false"},
		"keys:\n  - name: a\n    expires_at: soon\n":                                             {"line 3: expires_at: "},
		"keys:\n  - name: a\n    models: [\"\"]\n":                                               {"line 3: models: "},
		"keys:\n  - name: a\n    allowed_ips: [10.0.0.0/99]\n":                                   {"line 3: allowed_ips: "},
		"keys:\n  - name: a\n    alert_at: [5000%]\n":                                            {"line 3: alert_at: "},
		"keys:\n  - name: a\n    secret: short\n":                                                {"line 3: secret: "},
		"keys:\n  - name: a\n    metadata: {a: [b]}\n":                                           {"line 3: metadata: a is not a text"},
		"keys:\n  - name: a\n    quota: 5M sometimes\n":                                          {`line 3: quota: "sometimes" is not daily`},
		"keys:\n  - name: a\n    quota: 5M\n":                                                    {"line 3: quota: reset is missing"},
		"keys:\n  - name: a\n    quota:\n      tokens: x\n":                                      {"line 4: quota.tokens: "},
		"keys:\n  - name: a\n    quota:\n      reset: daily\n":                                   {"line 3: quota: quota.tokens is missing"},
		"keys:\n  - name: a\n    quota: {tokens: 1, reset: daily, time_zone: Mars}\n":            {"line 3: quota: time_zone"},
		"keys:\n  - name: a\n    limits:\n      per_minute: 5\n":                                 {"line 4: limits.per_minute: is not a limit"},
		"keys:\n  - name: a\n    limits:\n      tokens_per_day: -5\n":                            {"line 4: limits.tokens_per_day: "},
		"keys:\n  - {name: a, secret: &s sk-0123456789-0123456789}\n  - {name: b, secret: *s}\n": {"line 3: secret: it is already in line 2"},
		"groups:\n  - name: a\n    member: {quota: 5}\n":                                         {"line 3: member: "},
		"groups:\n  - name: a\n    member:\n      models: []\n":                                  {"line 4: member.models: is not a field"},
		"groups:\n  - name: a\n    parent: b\n  - name: b\n    parent: a\n":                      {`line 3: parent: group "a" would stand above itself`, "line 5"},
		"groups:\n  - name: a\n    group: there\n":                                               {"line 3: group: is not a field"},
		"groups:\n  - name: fixed\n    quota: 6 daily\n":                                         {"line 3: quota: group fixed is set by the configuration"},
		"keys:\n  - name: fixed\n    models: [x]\n":                                              {"line 3: models: key fixed is set by the configuration"},
		"{\"keys\":[\n{\"name\":\"a\",\n\"colour\":1}]}":                                         {"line 3: colour: is not a field"},
		"keys:\n  - {name: a, colour: 1}\n  - {name: b, colour: 2}\n":                            {"line 2: colour", "line 3: colour"},
	} {
		// What is right in the file must not be done either.
		b.importing(text, "").exits(1).says(append(wants, "standard input")...)
	}
	b.importing("keys:\n  - name: a\n    group: there\n", "--prune").exits(1).says(`group "there" is not in the file, so --prune would delete it`)
	deep := "groups:\n"
	for i := range 9 {
		deep += "  - name: g" + string(rune('0'+i)) + "\n"
		if i > 0 {
			deep += "    parent: g" + string(rune('0'+i-1)) + "\n"
		}
	}
	b.importing(deep, "").exits(1).says("line 18: parent: more than 8 groups above one another")
	if list := read[admin.Keys](b.run("keys list --json")); len(list.Keys) != 1 {
		t.Errorf("there are %d keys", len(list.Keys))
	}
	b.importing("groups:\n  - name: fixed\n    quota: 5 daily\nkeys:\n  - name: fixed\n    disabled: true\n", "").ok()
	if !b.key("fixed").Disabled {
		t.Error("what may be changed of a key of the configuration was not")
	}
}

// A change that the gate refuses takes those before it back.
func TestImportUndoes(t *testing.T) {
	b := newBench(t)
	b.importing(accounts, "").ok()
	before := b.run("export").ok().out
	secrets := filepath.Join(t.TempDir(), "secrets.tsv")
	// The secret is the one of another key: only the gate can know.
	text := strings.NewReplacer("5M monthly", "6M monthly", "number: 7", "number: 8", "  - name: backend\n", "  - name: new\n  - name: backend\n").Replace(accounts) +
		"  - name: fresh\n  - name: thief\n    secret: sk-an-existing-secret-0123456789\n"
	text = strings.Replace(text, "  - name: old\n    secret: sk-an-existing-secret-0123456789\n", "  - name: old\n", 1)
	b.importing(text, "--secrets-to "+secrets).exits(1).says("Error: importing: creating 2 keys: key 2 of 2: another key has this secret", "the changes before it are undone")
	if diff := cmp.Diff(before, b.run("export").ok().out); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Stat(secrets); !os.IsNotExist(err) {
		t.Errorf("the file for secrets: %v", err)
	}
}

// An interruption ends it between two changes, and those are undone.
func TestImportInterrupted(t *testing.T) {
	b := newBench(t)
	for _, path := range []string{"/llm_quota/groups", "/llm_quota/keys"} {
		ctx, interrupt := context.WithCancel(t.Context())
		w := &cli.World{In: accounts, Shows: true}
		b.spy(func(r *http.Request) {
			if r.Method == http.MethodPost && r.URL.Path == path {
				interrupt()
			}
		}, func() {
			w.Run(ctx, "llm-quota", "import", "-", "--secrets-to", filepath.Join(t.TempDir(), "secrets"))
		})
		r := &result{t, "import", 1, w.Out.String(), w.Err.String()}
		if path == "/llm_quota/groups" {
			r.says("Error: interrupted: importing", "the changes before it are undone")
			if out := b.run("export").ok().out; out != "groups: []\nkeys: []\n" {
				t.Errorf("there are %s", out)
			}
			continue
		}
		r.says("Done: 2 groups new, 2 keys new") // nothing was left to do
		if !strings.Contains(w.Err.String(), "imported ") {
			t.Errorf("no progress in %q", w.Err.String())
		}
	}
}

// Lists that have more than a page, and more keys than one request makes.
func TestImportMany(t *testing.T) {
	const n = 10_050
	b := newBench(t)
	var text strings.Builder
	text.WriteString("keys:\n")
	for i := range n {
		fmt.Fprintf(&text, "  - {name: k%05d, limits: {requests_per_minute: 5}}\n", i)
	}
	if r := b.importing(text.String(), "").ok(); strings.Count(r.out, "\tlq_") != n {
		t.Errorf("%d secrets are printed", strings.Count(r.out, "\tlq_"))
	}
	b.importing(text.String(), "--prune").ok().says("nothing to change, 10050 as they should be")
	if keys := read[admin.Keys](b.run("keys list --limit 1005 --json")); len(keys.Keys) != 1005 || keys.NextCursor == nil {
		t.Errorf("%d keys", len(keys.Keys))
	}
}

// Groups that change places do not stand above themselves on the way.
func TestImportTurnsGroupsOver(t *testing.T) {
	b := newBench(t)
	b.importing("groups: [{name: a}, {name: b, parent: a}, {name: c, parent: b}]\n", "").ok()
	b.importing("groups: [{name: a, parent: b}, {name: b, parent: c}, {name: c}]\n", "").ok()
	if a, c := b.group("a"), b.group("c"); a.Parent == 0 || c.Parent != 0 || b.group("b").Parent != admin.Ref(c.ID) {
		t.Errorf("a is below %s, c below %s", a.Parent, c.Parent)
	}
	b.importing("groups: [{name: c}]\n", "--prune").ok().says("2 deleted")
}

func TestImportSecrets(t *testing.T) {
	b := newBench(t)
	file := filepath.Join(t.TempDir(), "secrets.tsv")
	const text = "keys: [{name: Ada Lovelace}, {name: old, secret: sk-an-existing-secret-0123456789}]\n"
	b.importing(text, "--secrets-to "+file).ok()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	name, secret, _ := strings.Cut(strings.TrimSuffix(string(data), "\n"), "\t")
	if name != "Ada Lovelace" || !strings.HasPrefix(secret, b.key("Ada Lovelace").Prefix+"_") {
		t.Errorf("the file holds %q", data)
	}
	b.importing("keys: [name: more]\n", "--secrets-to "+file).exits(1).says("file exists")
	b.importing(text, "--secrets-to "+file).ok().says("nothing to change")
	r := b.importing("keys: [name: more]\n", "--json").ok()
	var done struct {
		Keys    struct{ Created []string }
		Secrets map[string]string
	}
	if err := json.Unmarshal([]byte(r.out), &done); err != nil || len(done.Keys.Created) != 1 || !strings.HasPrefix(done.Secrets["more"], "lq_") {
		t.Errorf("printed %s (%v)", r.out, err)
	}
	if r := b.importing("keys: [name: last]\n", "").ok(); !strings.HasPrefix(r.out, "last\tlq_") || strings.Count(r.out, "\n") != 1 {
		t.Errorf("printed %q", r.out)
	}
}

// A key that somebody has disabled stays so unless the file says otherwise.
func TestImportLeavesDisabled(t *testing.T) {
	b := newBench(t)
	b.importing("keys: [name: Ada]\n", "").ok()
	b.run("keys disable Ada").ok()
	b.importing("keys: [name: Ada]\n", "").ok()
	if !b.key("Ada").Disabled {
		t.Error("it is enabled again")
	}
	b.importing("keys: [{name: Ada, disabled: false}]\n", "").ok()
	if b.key("Ada").Disabled {
		t.Error("it is still disabled")
	}
}
