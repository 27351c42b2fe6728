package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/llm-quota/caddy-llm-quota/quota"
)

func (e *env) addExport(parent *cobra.Command) {
	e.add(parent, command{
		use: "export", short: "Prints all keys and groups as a file that import reads",
		long: `Prints the settings of all keys and groups as YAML, or as JSON with --json, sorted
by name. import reads it. There are no secrets in it, and nothing of what was used.
What the configuration sets is left out unless --all is given.`,
		example: "caddy llm-quota export > accounts.yaml\ncaddy llm-quota export --all --json",
		flags:   func(fs *pflag.FlagSet) { fs.Bool("all", false, "also what the configuration sets") },
		run:     export,
	})
}

func export(r *run, _ []string) error {
	dir, err := r.readDirectory()
	if err != nil {
		return fmt.Errorf("exporting: %w", err)
	}
	var out struct {
		Groups []*settings `json:"groups"`
		Keys   []*settings `json:"keys"`
	}
	out.Groups, out.Keys = []*settings{}, []*settings{}
	left := 0
	for _, kind := range []quota.Kind{quota.KindGroup, quota.KindKey} {
		to := &out.Keys
		if kind == quota.KindGroup {
			to = &out.Groups
		}
		for _, s := range dir.sorted(kind) {
			if s.config && !r.flag("all") {
				left++
				continue
			}
			*to = append(*to, &s.settings)
		}
	}
	if left > 0 {
		r.notef("%d that the configuration sets are left out: --all shows them.\n", left)
	}
	data, err := json.Marshal(out)
	if err != nil {
		return fmt.Errorf("exporting: %w", err)
	}
	root, err := jsonNode(data)
	if err != nil {
		return fmt.Errorf("exporting: %w", err)
	}
	tidy(root)
	if r.json {
		return r.exportJSON(data)
	}
	enc := yaml.NewEncoder(r.out)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return fmt.Errorf("exporting: %w", err)
	}
	return enc.Close()
}

func (r *run) exportJSON(data []byte) error {
	var b bytes.Buffer
	if err := json.Indent(&b, data, "", "  "); err != nil {
		return fmt.Errorf("exporting: %w", err)
	}
	b.WriteByte('\n')
	if _, err := r.out.Write(b.Bytes()); err != nil {
		return fmt.Errorf("exporting: %w", err)
	}
	return nil
}

// tidy takes fields away that are null, and quotes times of day, which old
// readers of YAML take for numbers.
func tidy(n *yaml.Node) {
	if n.Kind == yaml.MappingNode {
		kept := n.Content[:0]
		for i := 0; i < len(n.Content); i += 2 {
			if n.Content[i+1].Tag != "!!null" {
				kept = append(kept, n.Content[i], n.Content[i+1])
			}
		}
		n.Content = kept
	}
	if n.Tag == "!!str" && strings.Contains(n.Value, ":") {
		n.Style = yaml.DoubleQuotedStyle
	}
	for _, c := range n.Content {
		tidy(c)
	}
}
