package cli_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/llm-quota/caddy-llm-quota/admin/cli"
)

// completions returns what a shell offers for the last word.
func completions(t *testing.T, line ...string) []string {
	t.Helper()
	w := &cli.World{}
	if code := w.Run(t.Context(), append([]string{"__complete", "llm-quota"}, line...)...); code != 0 {
		t.Fatalf("exit code %d: %s", code, w.Err.String())
	}
	all := strings.Split(strings.TrimSpace(w.Out.String()), "\n")
	all = all[:len(all)-1] // the directive
	for i := range all {
		all[i], _, _ = strings.Cut(all[i], "\t")
	}
	slices.Sort(all)
	return all
}

func TestCompletion(t *testing.T) {
	b := newBench(t)
	b.run("groups create engineering").ok()
	b.run("groups create sales").ok()
	for _, name := range []string{`"Ada Lovelace"`, "Alan", "bob"} {
		b.run("keys create " + name).ok()
	}
	for _, tt := range []struct{ line, want string }{
		{"keys show A", "Ada Lovelace,Alan"},
		{"keys show |", "Ada Lovelace,Alan,bob"},
		{"keys show Alan |", ""},
		{"keys move bob e", "engineering"},
		{"keys move bob |", "engineering,none,sales"},
		{"keys create |", ""},
		{"keys list --group s", "sales"},
		{"keys list --status d", "deleted,disabled"},
		{"keys list --sort l", "last_used"},
		{"groups delete |", "engineering,sales"},
		{"explain group:s", "group:sales"},
		{"explain bo", "bob"},
		{"usage --by k", "key"},
		{"usage --step |", "day,hour,minute,month"},
		{"tail --type r", "refusal"},
		{"refusals --key b", "bob"},
		{"keys r", "rotate"},
		{"keys show --address unix/" + filepath.Join(t.TempDir(), "none") + " |", ""}, // nobody there: silence
	} {
		got := strings.Join(completions(t, strings.Split(strings.ReplaceAll(tt.line, "|", ""), " ")...), ",")
		if got != tt.want {
			t.Errorf("%s: %s, want %s", tt.line, got, tt.want)
		}
	}
	id := b.key("bob").ID.String()
	if got := completions(t, "keys", "show", id[:6]); !slices.Contains(got, id) {
		t.Errorf("%s: %v", id[:6], got)
	}
}
