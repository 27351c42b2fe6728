package cli_test

import (
	"strings"
	"testing"
	"time"

	"github.com/llm-quota/caddy-llm-quota/admin/cli"
	"github.com/llm-quota/caddy-llm-quota/quota"
)

func clock() time.Time { return time.Now() }

func TestKeysGolden(t *testing.T) {
	b := newBench(t)
	all := []*result{
		b.run("keys list"),
		b.run(`groups create engineering --quota "5M monthly" --member-requests-per-minute 60`),
		b.run(`keys create Ada --group engineering --quota "100k manual" --tokens-per-minute 40k --models "gpt-4o*,claude-*" --allowed-ips 10.0.0.0/8 --metadata team=platform --alert-at 50%,90`),
		b.run("keys create ci --disabled"),
	}
	b.spend("Ada", "gpt-4o", 86_000)
	all = append(all,
		b.run("keys list"), b.run("keys show Ada"), b.run("keys show ci"),
		b.run("keys list --status disabled"), b.run("keys list --limit 1"), b.run("keys list --search nobody"),
		b.run("keys list --sort -name"), b.run("keys list --sort used --limit 1"), b.run("keys list --sort size"),
		b.run("keys edit Ada --requests-per-minute unlimited --models none --metadata owner=Ada --unset-metadata team"),
		b.run("keys enable ci"), b.run("keys disable ci"), b.run("keys move ci engineering"), b.run("keys move Ada none"),
		b.run("keys rotate ci --grace 1h"),
		b.run("keys show Ada"),
		b.run("keys delete ci --yes"), b.run("keys list"), b.run("keys list --status deleted"),
		b.run("keys create Ada"), b.run("keys show nobody"),
	)
	golden(t, "keys", all...)
}

func TestSecretAlone(t *testing.T) {
	b := newBench(t)
	for _, command := range []string{"keys create Ada", "keys rotate Ada"} {
		r := b.run(command).ok().says("shown this once")
		if secret := strings.TrimSuffix(r.out, "\n"); !quota.Printable(secret) || !strings.HasPrefix(secret, "lq_") || len(secret) != 50 {
			t.Errorf("%s: printed %q", command, r.out)
		}
	}
	const brought = "sk-an-existing-secret-0123456789"
	r := b.runIn(&cli.World{In: brought + "\n"}, "keys create old --secret-from -").ok()
	if r.out != brought+"\n" || b.key("old").Prefix != "sk-a" {
		t.Errorf("printed %q", r.out)
	}
}
