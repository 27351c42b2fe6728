package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/tidwall/gjson"
)

var update = flag.Bool("update", false, "write the golden files anew")

// A transcript is what an operator at a gate types and sees, chapter by chapter.
// Each chapter is compared with a file of testdata/operator.
type transcript struct {
	t     *testing.T
	gate  *gate
	dir   string // in which commands run
	zone  string // of the gate and of the operator
	admin string // where commands look for the gate, if that is not its address
	named map[string]string
	text  strings.Builder
}

// newTranscript returns a transcript of the gate, for an operator in a time zone.
func newTranscript(t *testing.T, g *gate, zone string) *transcript {
	return &transcript{t: t, gate: g, dir: t.TempDir(), zone: zone, named: map[string]string{}}
}

// noonZone returns a time zone in which it is about noon, so that no day ends
// while a test runs.
func noonZone() string {
	west := time.Now().UTC().Hour() - 12 // the sign of these names is that of POSIX
	if west == 0 {
		return "Etc/GMT"
	}
	return fmt.Sprintf("Etc/GMT%+d", west)
}

// ran is what a command has done.
type ran struct {
	out, err string
	code     int
}

// command prepares `caddy` with these arguments.
func (s *transcript) command(args ...string) *exec.Cmd {
	c := exec.CommandContext(s.t.Context(), caddy, args...)
	c.Dir = s.dir
	c.Env = append(os.Environ(), "HOME="+s.gate.dir, "XDG_DATA_HOME="+s.gate.dir, "XDG_CONFIG_HOME="+s.gate.dir,
		"CADDY_ADMIN="+cmp.Or(s.admin, s.gate.admin), "TZ="+s.zone)
	c.SysProcAttr = dieWithParent
	return c
}

// run runs a command line as a shell would, as far as quotes go, and writes
// down what it has printed: the standard error with "! " before each line.
func (s *transcript) run(line string) ran { s.t.Helper(); return s.runIn("", line) }

// runIn is run with an input.
func (s *transcript) runIn(in, line string) ran {
	s.t.Helper()
	words := shellWords(line)
	c := s.command(words[1:]...)
	var out, err bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = strings.NewReader(in), &out, &err
	if failed := c.Run(); failed != nil && c.ProcessState == nil {
		s.t.Fatal(failed)
	}
	r := ran{out.String(), err.String(), c.ProcessState.ExitCode()}
	s.add("$ %s\n%s", line, r.out)
	for l := range strings.Lines(r.err) {
		s.add("! %s", l)
	}
	if r.code != 0 {
		s.add("exit code %d\n", r.code)
	}
	s.add("\n")
	return r
}

// shellWords splits a line at spaces outside quotes.
func shellWords(line string) (all []string) {
	for _, w := range regexp.MustCompile(`(?:"[^"]*"|'[^']*'|[^\s"']+)+`).FindAllString(line, -1) {
		all = append(all, strings.NewReplacer(`"`, "", `'`, "").Replace(w))
	}
	return all
}

// quota runs a command below `caddy llm-quota`.
func (s *transcript) quota(line string, args ...any) ran {
	s.t.Helper()
	if len(args) > 0 {
		line = fmt.Sprintf(line, args...)
	}
	return s.run("caddy llm-quota " + line)
}

// curl makes a request to the admin API, and writes down the answer: its status,
// the headers that matter, and its body. Headers are given as "Name: value".
func (s *transcript) curl(method, path, body string, headers ...string) string {
	s.t.Helper()
	r, err := http.NewRequest(method, "http://"+s.gate.admin+"/llm_quota"+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	s.add("$ curl -X %s 'localhost:2019/llm_quota%s'", method, path)
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
		s.add(" -H '%s'", h)
	}
	if body != "" {
		s.add(" -d '%s'", shortened(body))
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	s.add("\n< %s\n", resp.Status)
	for _, name := range []string{"Allow", "ETag", "Location"} {
		if v := resp.Header.Get(name); v != "" {
			s.add("< %s: %s\n", name, v)
		}
	}
	var b bytes.Buffer
	if json.Indent(&b, answer, "", "  ") == nil {
		answer = b.Bytes()
	}
	s.add("%s\n\n", bytes.TrimSpace(answer))
	return string(answer)
}

func shortened(s string) string {
	if len(s) > 200 {
		return s[:100] + "…"
	}
	return s
}

// call calls a model as a key of that name, and writes down how it ended. It
// returns the status when the call is settled.
func (s *transcript) call(name, secret, model string) int {
	s.t.Helper()
	body := fmt.Sprintf(`{"model":%q,"max_tokens":200,"messages":[{"role":"user","content":"Hello"}]}`, model)
	r, err := http.NewRequest(http.MethodPost, s.gate.url+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+secret)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	s.gate.settled()
	said := gjson.GetBytes(answer, "error.message").String()
	if said == "" {
		said = gjson.GetBytes(answer, "usage.total_tokens").String() + " tokens"
	}
	s.add("(%s calls %s: %s, %s)\n\n", name, model, resp.Status, said)
	return resp.StatusCode
}

// name lets a text that is another one each time be shown as a name.
func (s *transcript) name(text, name string) {
	if text != "" {
		s.named[text] = name
	}
}

// file writes a file into the folder in which commands run, and shows it.
func (s *transcript) file(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.add("$ cat %s\n%s\n", name, text)
}

func (s *transcript) add(format string, args ...any) { fmt.Fprintf(&s.text, format, args...) }

// say writes down what is done where no command shows it.
func (s *transcript) say(format string, args ...any) { s.add("("+format+")\n\n", args...) }

// expect fails the test unless a command has ended with that exit code.
func (s *transcript) expect(r ran, code int) ran {
	s.t.Helper()
	if r.code != code {
		s.t.Errorf("exit code %d, want %d: %s%s", r.code, code, r.out, r.err)
	}
	return r
}

// masks hide what is new each time.
var masks = []struct {
	is   *regexp.Regexp
	mask string
}{
	{regexp.MustCompile(`lq_[0-9A-Za-z]{8}_[0-9A-Za-z]{38}`), "<secret>"},
	{regexp.MustCompile(`lq_[0-9A-Za-z]{8}\b`), "lq_xxxxxxxx"},
	{regexp.MustCompile(`key_[0-9a-z]{13}`), "key_xxxxxxxxxxxxx"},
	{regexp.MustCompile(`grp_[0-9a-z]{13}`), "grp_xxxxxxxxxxxxx"},
	{regexp.MustCompile(`"id": ?"[0-9a-z]{13}"`), `"id":"<id>"`},
	{regexp.MustCompile(`"next_cursor": ?"[^"]+"`), `"next_cursor":"<cursor>"`},
	{regexp.MustCompile(`\\?"[0-9a-f]{24}\\?"`), `"<etag>"`},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)`), "<time>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d( UTC|Z)?`), "<date and time>"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d`), "<date and hour>"},
	{regexp.MustCompile(`\b20[23]\d-\d\d-\d\d\b`), "<date>"},
	{regexp.MustCompile(`\b\d\d:\d\d:\d\d\b`), "<time>"},
	{regexp.MustCompile(`\b\d+[smhd] ago\b|\bin \d+[smhd]\b`), "<when>"},
	{regexp.MustCompile(`(?m)\bnow$`), "<when>"},
	{regexp.MustCompile(`(?m)^(last sync +).*$`), "$1<when>"},
	{regexp.MustCompile(`"last_sync": ?(null|"<time>")`), `"last_sync":<when>`},
	{regexp.MustCompile(`\b(\d+h)?(\d+m)?\d+(\.\d+)?s\b`), "<span>"},
	{regexp.MustCompile(`(Etc/GMT)([+-]\d+)?`), "<zone>"},
	{regexp.MustCompile(`\b\d+(\.\d+)? [kM]?B\b`), "<size>"},
	{regexp.MustCompile(`"size_bytes": ?\d+`), `"size_bytes":<size>`},
	{regexp.MustCompile(`\b\d+ counters\b`), "<n> counters"},
	{regexp.MustCompile(`"checked": ?\d+`), `"checked":<n>`},
	{regexp.MustCompile(`\(devel\)|\bv\d+\.\d+\.\d+[-+.0-9a-z]*`), "<version>"},
}

// masked hides what is new each time in a text.
func (s *transcript) masked(text string) string {
	names := make([]string, 0, len(s.named))
	for name := range s.named {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return len(b) - len(a) }) // of two, one may begin with the other
	for _, name := range names {
		text = strings.ReplaceAll(text, name, s.named[name])
	}
	text = strings.NewReplacer(s.gate.admin, "localhost:2019", s.dir, "<dir>", s.gate.dir, "<data>").Replace(text)
	if u, err := user.Current(); err == nil { // whose name makes columns wider
		name := regexp.QuoteMeta(u.Username)
		text = regexp.MustCompile(`\b`+name+` +(cli|\(cli\))`).ReplaceAllString(text, "<user>  $1")
		text = regexp.MustCompile(`"actor": ?"`+name+`"`).ReplaceAllString(text, `"actor":"<user>"`)
		text = regexp.MustCompile(`\b(ACTOR|ada|-) +(SOURCE|api|config)\b`).ReplaceAllString(text, "$1  $2")
	}
	for _, m := range masks {
		text = m.is.ReplaceAllString(text, m.mask)
	}
	return text
}

// chapter ends a chapter: what was written down since the last one is compared
// with a golden file.
func (s *transcript) chapter(name string) {
	s.t.Helper()
	s.compare(name, s.masked(s.text.String()))
	s.text.Reset()
}

func (s *transcript) compare(name, text string) {
	s.t.Helper()
	file := filepath.Join("testdata", "operator", name+".golden")
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			s.t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		s.t.Fatal(err)
	}
	if diff := gocmp.Diff(strings.Split(string(want), "\n"), strings.Split(text, "\n")); diff != "" {
		s.t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}
