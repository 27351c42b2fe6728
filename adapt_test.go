package llmquota

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
)

var update = flag.Bool("update", false, "write what the Caddyfiles in testdata/adapt become")

const separator = "----------\n"

// Each file is a Caddyfile, a line of dashes, and what becomes of it: the
// configuration in JSON or, if it cannot be adapted or provisioned, the error.
func TestAdapt(t *testing.T) {
	files, err := filepath.Glob("testdata/adapt/*.caddyfiletest")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files: %v", err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".caddyfiletest")
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			text, want, ok := strings.Cut(string(b), separator)
			if !ok && !*update {
				t.Fatalf("%s has no line %s", file, separator)
			}
			got, failed := becomes(t, text)
			if failed != strings.HasPrefix(name, "err_") {
				t.Errorf("failed is %t: %s", failed, got)
			}
			if failed && !names(text, got) {
				t.Errorf("the error names neither line nor key: %s", got)
			}
			if !failed && string(caddyfile.Format([]byte(text))) != text {
				t.Error("not formatted as caddy fmt does")
			}
			if *update {
				if err := os.WriteFile(file, []byte(text+separator+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

// becomes adapts and provisions a Caddyfile; what was provisioned from the JSON
// must be what the JSON says.
func becomes(t *testing.T, text string) (result string, failed bool) {
	t.Helper()
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	if err == nil {
		err = validate(config)
	}
	if err != nil {
		return err.Error() + "\n", true
	}
	roundTrip(t, config)
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, config, "", "\t"); err != nil {
		t.Fatal(err)
	}
	return pretty.String() + "\n", false
}

// roundTrip sees that the app's configuration, read and written again, is the
// same: no option gets lost or is set by its own absence.
func roundTrip(t *testing.T, config []byte) {
	t.Helper()
	var c struct {
		Apps map[string]json.RawMessage
	}
	if err := json.Unmarshal(config, &c); err != nil {
		t.Fatal(err)
	}
	raw, ok := c.Apps["llm_quota"]
	if !ok {
		return
	}
	app := new(App)
	if err := caddy.StrictUnmarshalJSON(raw, app); err != nil {
		t.Fatalf("%v in %s", err, raw)
	}
	if again := caddyconfig.JSON(app, nil); !bytes.Equal(again, raw) {
		t.Errorf("read and written again:\n%s\nwas:\n%s", again, raw)
	}
}

var lineOrAccount = regexp.MustCompile(`Caddyfile:\d+|(key|keys|group) "`)

// names tells whether an error names a line, a key, a group, or an option of
// the text.
func names(text, err string) bool {
	if lineOrAccount.MatchString(err) {
		return true
	}
	for line := range strings.Lines(text) {
		option, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if regexp.MustCompile(`\b`+regexp.QuoteMeta(option)+`\b`).MatchString(err) && option != "" && option != "llm_quota" {
			return true
		}
	}
	return false
}

// Which of the groups in a circle is named is left open.
func TestParentCircle(t *testing.T) {
	result, failed := becomes(t, "{\n\tllm_quota {\n"+
		"group one {\nparent two\n}\ngroup two {\nparent three\n}\ngroup three {\nparent one\n}\n}\n}\n")
	if !failed || !regexp.MustCompile(`group "(one|two|three)" stands in a circle of parents`).MatchString(result) {
		t.Errorf("it becomes %s", result)
	}
}

// placeholder is one that has to be set for a configuration to be provisioned.
var placeholder = regexp.MustCompile(`\{env\.(\w+)\}`)

// works fails the test unless the Caddyfile is as `caddy fmt` writes it, and
// can be adapted and provisioned.
func works(t *testing.T, text string) {
	t.Helper()
	for _, m := range placeholder.FindAllStringSubmatch(text, -1) {
		value := "value-of-" + m[1] + "-in-the-test"
		if strings.HasSuffix(m[1], "_HASH") { // of a password, by bcrypt
			value = "$2a$10$CwTycUXWue0Thq9StjUM0uJ8hCB0rKqLg1v5o0eFqsIw5ODBXFHFe"
		}
		t.Setenv(m[1], value)
	}
	if formatted := string(caddyfile.Format([]byte(text))); formatted != text {
		t.Errorf("caddy fmt would write\n%s", formatted)
	}
	config, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range warnings {
		t.Errorf("warning: %s", w)
	}
	if err := validate(config); err != nil {
		t.Error(err)
	}
	roundTrip(t, config)
}

func TestExampleWorks(t *testing.T) {
	b, err := os.ReadFile("Caddyfile.example")
	if err != nil {
		t.Fatal(err)
	}
	works(t, string(b))
}

// The example runs as it is: its demo key has 300 tokens a day, of which each
// call uses 50, streamed or not.
func TestExampleServes(t *testing.T) {
	b, err := os.ReadFile("Caddyfile.example")
	if err != nil {
		t.Fatal(err)
	}
	g := newGate(t)
	standIn := freeAddr(t)
	text := strings.NewReplacer(
		"admin localhost:2019", "admin "+strings.TrimPrefix(g.admin, "http://")+"\n\tpersist_config off",
		"http://localhost:8080", g.url, "http://localhost:8081", "http://"+standIn, "localhost:8081", standIn,
		"store badger", "store badger "+g.dir,
	).Replace(string(b))
	if err := g.loadText(text); err != nil {
		t.Fatal(err)
	}
	demo := []string{"Authorization", "Bearer lq-demo-key-for-local-use"}
	call := func(stream string) *reply {
		return g.do("POST", "/v1/chat/completions", `{"model":"demo-small","messages":[{"role":"user","content":"Hi"}]`+stream+`}`, demo...)
	}
	for range 3 {
		if r := call("").ok(200); !strings.Contains(r.body, "Hello from the demo.") || r.header.Get("X-Llm-Quota-Remaining") == "" {
			t.Errorf("the demo answers %v %s", r.header, r.body)
		}
		g.usage("")
		if r := call(`,"stream":true`).ok(200); !strings.HasSuffix(r.body, "data: [DONE]\n\n") || strings.Contains(r.body, "prompt_tokens") {
			t.Errorf("the demo streams %s", r.body)
		}
		g.usage("")
	}
	call("").refused(429, "insufficient_quota")
	g.wants(used{requests: 6, refused: 1, input: 120, output: 180})
	g.do("GET", "/llm_quota/me", "", demo...).ok(200)
}

var caddyfileBlock = regexp.MustCompile("(?ms)^```caddyfile\n(.*?)^```$")

// What the README shows can be copied.
func TestReadmeWorks(t *testing.T) {
	b, err := os.ReadFile("README.md")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	blocks := caddyfileBlock.FindAllStringSubmatch(string(b), -1)
	if len(blocks) == 0 {
		skip(t, "the README shows no Caddyfile")
	}
	for _, block := range blocks {
		first, _, _ := strings.Cut(strings.TrimSpace(strings.Trim(block[1], "{\n")), "\n")
		t.Run(strings.TrimSpace(first), func(t *testing.T) { works(t, block[1]) })
	}
}

// No text makes the parsers panic, and what they take for an app is one.
func FuzzCaddyfile(f *testing.F) {
	files, _ := filepath.Glob("testdata/adapt/*.caddyfiletest")
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		text, _, _ := strings.Cut(string(b), separator)
		f.Add(text)
	}
	for _, text := range []string{"llm_quota", "llm_quota {", "llm_quota {\nkey k {\nquota", "llm_quota {\nstore", "llm_quota {\nstore badger {\n", "llm_quota }", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		tokens, err := caddyfile.Tokenize([]byte(text), "Caddyfile")
		if err != nil {
			return
		}
		// The options of an app or a handler may stand in a block of blocks, as
		// in a whole Caddyfile.
		for i := range tokens {
			if tokens[i].Text != "llm_quota" && i > 0 {
				continue
			}
			if v, err := parseApp(caddyfile.NewDispenser(tokens[i:]), nil); err == nil {
				app := new(App)
				if err := caddy.StrictUnmarshalJSON(v.(httpcaddyfile.App).Value, app); err != nil {
					t.Errorf("what was taken cannot be read: %v", err)
				}
			}
			parseHandler(httpcaddyfile.Helper{Dispenser: caddyfile.NewDispenser(tokens[i:])}) //nolint:errcheck // it must not panic
		}
	})
}
