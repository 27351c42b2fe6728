package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
)

// TestExample follows a newcomer: Caddyfile.example as `make run` starts it,
// the demo key's calls until its quota is spent, the numbers that are shown
// then, and the same numbers after a crash.
func TestExample(t *testing.T) {
	curl := needCurl(t)
	x := startExample(t)

	head, body := x.curl(curl, "-d", `{"model":"demo-small","messages":[{"role":"user","content":"Hello"}]}`)
	if !strings.HasPrefix(head, "HTTP/1.1 200") || gjson.Get(body, "choices.0.message.content").String() != "Hello from the demo." {
		t.Fatalf("the first call was answered\n%s%s", head, body)
	}
	exampleHeaders(t, head)
	head, body = x.curl(curl, "-N", "-d", `{"model":"demo-small","stream":true,"messages":[{"role":"user","content":"Hello"}]}`)
	if !strings.HasPrefix(head, "HTTP/1.1 200") || !strings.HasSuffix(strings.TrimSpace(body), "data: [DONE]") {
		t.Fatalf("the stream was answered\n%s%s", head, body)
	}
	if strings.Contains(body, `"choices":[]`) {
		t.Errorf("the stream reports usage that the caller did not ask for:\n%s", body)
	}
	exampleHeaders(t, head)

	// 300 tokens a day are six answers of 50.
	for range 4 {
		if head, body = x.curl(curl, "-d", `{"model":"demo-large","messages":[{"role":"user","content":"Hello"}]}`); !strings.HasPrefix(head, "HTTP/1.1 200") {
			t.Fatalf("a call within the quota was answered\n%s%s", head, body)
		}
	}
	head, body = x.curl(curl, "-d", `{"model":"demo-large","messages":[{"role":"user","content":"Hello"}]}`)
	if !strings.HasPrefix(head, "HTTP/1.1 429") || gjson.Get(body, "error.code").String() != "insufficient_quota" {
		t.Fatalf("the call beyond the quota was answered\n%s%s", head, body)
	}
	if !strings.Contains(head, "X-Should-Retry: false") {
		t.Errorf("the refusal's headers are\n%s", head)
	}

	before := x.shown()
	if u := before.usage; u.Totals.Requests != 6 || u.Totals.Refused != 1 || u.Totals.Total != 300 ||
		u.model("demo-small").Total != 100 || u.model("demo-large").Total != 200 {
		t.Errorf("the usage is %+v", u)
	}
	if before.used != 300 {
		t.Errorf("the quota has %d used, want 300", before.used)
	}
	x.kill()
	x.start()
	if after := x.shown(); after.used != before.used || after.usage.Totals != before.usage.Totals ||
		after.usage.model("demo-small") != before.usage.model("demo-small") {
		t.Errorf("after a crash the gate shows\n%+v, before it\n%+v", after, before)
	}
	if head, body = x.curl(curl, "-d", `{"model":"demo-small","messages":[]}`); !strings.HasPrefix(head, "HTTP/1.1 429") {
		t.Errorf("after a crash a call was answered\n%s%s", head, body)
	}
}

// TestReadme runs the commands that README.md shows, in their order, against
// the example: each curl and each command of the gate's command line in a block
// of sh, with the variables set before it.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if errors.Is(err, os.ErrNotExist) {
		skip(t, "there is no README.md")
	}
	if err != nil {
		t.Fatal(err)
	}
	needCurl(t)
	commands := shownCommands(string(readme))
	if len(commands) == 0 {
		skip(t, "README.md shows no command")
	}
	x := startExample(t)
	folder := t.TempDir()
	for _, command := range commands {
		sh := exec.CommandContext(t.Context(), "sh", "-c", strictCurl+x.ports.Replace(command))
		sh.Dir = folder
		sh.Env = append(os.Environ(), "CADDY="+caddy, "CADDY_ADMIN="+x.ports.Replace("localhost:2019"))
		out, err := sh.CombinedOutput()
		if err != nil || len(bytes.TrimSpace(out)) == 0 {
			t.Errorf("%s\n%v\n%s", command, err, out)
		}
		t.Logf("%s\n%s", command, out)
	}
	x.settled()
	if u := x.usage(""); u.Totals.Requests == 0 || u.Totals.Failed != 0 || u.Totals.Refused != 0 {
		t.Errorf("after README's commands the usage is %+v", u.Totals)
	}
}

// strictCurl makes curl fail where a call is refused, and caddy the binary under
// test.
const strictCurl = `curl() { command curl -sS --fail-with-body --max-time 20 "$@"; }
caddy() { "$CADDY" "$@"; }
`

var (
	shellBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```")
	assignment = regexp.MustCompile(`^[A-Z_]+=`)
)

// shownCommands returns each curl, and each command of the gate's command line,
// that a document shows in a block of sh, after
// the assignments that precede it in the block. A "$ " before a command marks
// it as one among the lines that it prints.
func shownCommands(document string) (commands []string) {
	for _, block := range shellBlock.FindAllStringSubmatch(document, -1) {
		set := ""
		lines := strings.Split(block[1], "\n")
		for i := 0; i < len(lines); i++ {
			command := strings.TrimPrefix(lines[i], "$ ")
			for strings.HasSuffix(command, "\\") && i+1 < len(lines) {
				i++
				command += "\n" + lines[i]
			}
			switch {
			case assignment.MatchString(command):
				set += command + "\n"
			case strings.HasPrefix(command, "curl "), strings.HasPrefix(command, "caddy llm-quota "):
				commands = append(commands, set+command)
			}
		}
	}
	return commands
}

func TestShownCommands(t *testing.T) {
	got := shownCommands("```sh\n$ curl a \\\n    -d b\nanswer\n$ make run\n```\n\n```json\ncurl no\n```\n```sh\n# set\nKEY=x\ncurl c $KEY | jq\n```\n")
	if want := []string{"curl a \\\n    -d b", "KEY=x\ncurl c $KEY | jq"}; strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("found %q, want %q", got, want)
	}
}

// An example is a process with Caddyfile.example, on ports of its own.
type example struct {
	*process
	site  string
	ports *strings.Replacer // from those of the file
}

func startExample(t *testing.T) *example {
	t.Helper()
	config, err := os.ReadFile("../Caddyfile.example")
	if err != nil {
		t.Fatal(err)
	}
	var all, ports []string
	for i, a := range freeAddresses(t, 3) {
		_, port, _ := strings.Cut(a, ":")
		ports = append(ports, []string{"8080", "8081", "2019"}[i], port)
		all = append(all, "localhost:"+port)
	}
	x := &example{site: all[0], ports: strings.NewReplacer(ports...)}
	x.process = newProcess(t, x.ports.Replace(string(config)), all[2], all[0], all[1])
	x.start()
	return x
}

func needCurl(t *testing.T) string {
	t.Helper()
	curl, err := exec.LookPath("curl")
	if err != nil {
		skip(t, "there is no curl: %v", err)
	}
	return curl
}

// curl makes a call with the demo key and returns what came, the headers apart.
func (x *example) curl(curl string, args ...string) (head, body string) {
	x.t.Helper()
	out, err := exec.CommandContext(x.t.Context(), curl, append([]string{
		"-sS", "-i", "--max-time", "20", "http://" + x.site + "/v1/chat/completions",
		"-H", "Authorization: Bearer lq-demo-key-for-local-use", "-H", "Content-Type: application/json",
	}, args...)...).CombinedOutput()
	if err != nil {
		x.t.Fatalf("curl: %v\n%s", err, out)
	}
	head, body, _ = strings.Cut(string(out), "\r\n\r\n")
	return head + "\r\n", body
}

// exampleHeaders checks that an answer tells the caller where it stands.
func exampleHeaders(t *testing.T, head string) {
	t.Helper()
	for _, name := range []string{
		"X-Ratelimit-Limit-Requests: 60", "X-Ratelimit-Remaining-Requests: ", "X-Ratelimit-Reset-Requests: ",
		"X-Ratelimit-Limit-Tokens: 20000", "X-Ratelimit-Remaining-Tokens: ", "X-Ratelimit-Reset-Tokens: ", "X-Llm-Quota-Remaining: ",
	} {
		if !strings.Contains(head, "\n"+name) {
			t.Errorf("the answer lacks %q:\n%s", name, head)
		}
	}
}

type shown struct {
	used  int64
	usage usage
}

// shown returns what the gate shows of the demo key.
func (x *example) shown() (s shown) {
	x.t.Helper()
	x.settled()
	s.usage = x.usage("name:demo")
	s.used = x.key("name:demo").State.Quota.Used
	return s
}

// TestExampleIsFormatted checks that the file is as `caddy fmt` writes it.
func TestExampleIsFormatted(t *testing.T) {
	file, err := filepath.Abs("../Caddyfile.example")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(caddy, "fmt", "--diff", file).CombinedOutput(); err != nil {
		t.Errorf("caddy fmt: %v\n%s", err, out)
	}
	out, err := exec.Command(caddy, "adapt", "--adapter", "caddyfile", "--config", file).Output()
	if err != nil || !json.Valid(out) {
		t.Errorf("caddy adapt: %v\n%s", err, out)
	}
}
