package cli_test

import (
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/llm-quota/caddy-llm-quota/admin/cli"
	"github.com/llm-quota/caddy-llm-quota/store/badger"
)

// Every command has a help that reads well, and each line of its examples does
// what it says, on a gate that has what they speak of.
func TestExamples(t *testing.T) {
	n := 0
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			if sub.Name() != "help" && sub.Name() != "completion" {
				walk(sub)
			}
		}
		if c.Short == "" && c.HasParent() && c.Parent().HasParent() || c.Long == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: its help is not whole", c.CommandPath())
		}
		for line := range strings.Lines(c.Long) {
			if len(line) > 88 {
				t.Errorf("%s: a line of its help is long: %s", c.CommandPath(), line)
			}
		}
		if c.Example == "" && !c.HasSubCommands() {
			t.Errorf("%s has no example", c.CommandPath())
		}
		for line := range strings.Lines(c.Example) {
			n++
			t.Run(strings.TrimSpace(line), func(t *testing.T) { runExample(t, strings.TrimSpace(line)) })
		}
	}
	walk((&cli.World{}).Tree().Commands()[0])
	if n < 40 {
		t.Errorf("there are only %d examples", n)
	}
}

// runExample runs a line as a shell would, as far as examples go.
func runExample(t *testing.T, line string) {
	b := newBench(t)
	t.Chdir(t.TempDir())
	creates := strings.Contains(line, " create ")
	if !strings.Contains(line, "groups create engineering") {
		b.run(`groups create engineering --quota "5M monthly"`).ok()
	}
	if !creates {
		b.run("groups create backend").ok()
		b.run(`keys create Ada --quota "100k monthly"`).ok()
		b.spend("Ada", "gpt-4o", 100)
		b.run("backup ledger.backup").ok()
		if err := os.WriteFile("accounts.yaml", []byte(b.run("export").ok().out+"  - name: fresh\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	line = strings.NewReplacer("/var/lib/caddy/", t.TempDir()+"/", "2026-", clock().Format("2006-")).Replace(line)
	line, captured := strings.CutPrefix(line, "SECRET=$(")
	if captured {
		line = strings.TrimSuffix(line, ")")
	}
	in := ""
	for part := range strings.SplitSeq(line, " | ") {
		part, file, _ := strings.Cut(part, " > ")
		command, ours := strings.CutPrefix(part, "caddy llm-quota ")
		if !ours {
			t.Fatalf("%q is not ours", part)
		}
		if strings.HasPrefix(command, "tail") {
			tailExample(t, b, command)
			return
		}
		r := b.runIn(&cli.World{In: in, Restore: badger.Restore}, command)
		r.ok()
		if in = r.out; file != "" {
			if err := os.WriteFile(file, []byte(r.out), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	if captured && len(strings.TrimSpace(in)) != 50 {
		t.Errorf("the secret is %q", in)
	}
}

// tailExample runs tail until it has said something.
func tailExample(t *testing.T, b *bench, command string) {
	secret := b.run("keys rotate Ada").ok().out
	b.run("keys edit Ada --group engineering --models gpt-4o").ok()
	out, end := b.background(command)
	stop := b.busy(secret) // it may begin before tail listens, so it goes on
	line, err := out.ReadString('\n')
	stop()
	if !strings.Contains(line, "Ada") && !strings.Contains(line, "key_") {
		t.Errorf("printed %q (%v)", line, err)
	}
	if code := end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
