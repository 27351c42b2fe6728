package llmquota

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	ours         = "github.com/llm-quota/caddy-llm-quota"
	caddyProject = "github.com/caddyserver/"
)

// listed is a package as go list tells of it.
type listed struct {
	path  string   // below the module's
	deps  []string // all it needs
	tests []string // what its tests import
}

func listPackages(t *testing.T) (all []listed) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	c := exec.CommandContext(ctx, "go", "list", "-f",
		"{{.ImportPath}}|{{join .Deps \" \"}}|{{join .TestImports \" \"}} {{join .XTestImports \" \"}}", "./...")
	out, err := c.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSpace(line), "|")
		path := strings.TrimPrefix(strings.TrimPrefix(f[0], ours), "/")
		all = append(all, listed{path, strings.Fields(f[1]), strings.Fields(f[2])})
	}
	return all
}

// own returns the package's path below the module's, if it is one of ours.
func own(path string) (string, bool) {
	if path == ours {
		return "", true
	}
	return strings.CutPrefix(path, ours+"/")
}

func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// Who may need whom: everything points to quota, and Caddy is known to the
// outermost rooms alone.
func TestArrows(t *testing.T) {
	type room struct {
		room       string
		may        []string // of our packages
		thirdParty bool
		without    []string // of the standard library
	}
	arrows := []room{
		{"limiter", nil, false, []string{"net/http", "os"}},
		{"quota/ledger", []string{"quota", "limiter"}, false, []string{"net/http"}},
		{"quota", []string{"limiter"}, false, []string{"net/http"}},
		{"dialect", []string{"quota", "limiter"}, true, nil},
		{"store", []string{"quota", "limiter", "store/storetest"}, true, nil},
		{"admin", []string{"quota", "quota/ledger", "limiter"}, true, nil},
		{"cmd", []string{"", "admin", "admin/cli", "admin/client", "admin/dashboard", "dialect", "quota", "quota/ledger", "limiter", "store/badger", "store/redis"}, true, nil},
		{"", []string{"admin", "admin/cli", "admin/client", "admin/dashboard", "dialect", "quota", "quota/ledger", "limiter", "store/badger", "store/redis"}, true, nil},
	}
	seen := map[string]bool{}
	for _, p := range listPackages(t) {
		i := slices.IndexFunc(arrows, func(a room) bool {
			return within(p.path, a.room) && (a.room != "" || p.path == "")
		})
		if i < 0 {
			t.Errorf("%s is in none of the rooms", p.path)
			continue
		}
		a := arrows[i]
		seen[a.room] = true
		knowsCaddy := slices.Contains([]string{"", "admin", "cmd"}, a.room)
		for _, dep := range p.deps {
			if slices.Contains(a.without, dep) {
				t.Errorf("%s needs %s", p.path, dep)
			}
			if name, is := own(dep); is {
				if !slices.Contains(a.may, name) && !(a.room != "" && within(name, a.room) && name != "quota/ledger") {
					t.Errorf("%q needs %q", p.path, name)
				}
				continue
			}
			first, _, _ := strings.Cut(dep, "/")
			if strings.Contains(first, ".") && !a.thirdParty {
				t.Errorf("%s needs %s", p.path, dep)
			}
			if strings.HasPrefix(dep, caddyProject) && !knowsCaddy {
				t.Errorf("%s needs %s", p.path, dep)
			}
		}
		for _, dep := range p.tests {
			if (strings.HasPrefix(dep, caddyProject) || dep == ours) && !knowsCaddy {
				t.Errorf("the tests of %s need %s", p.path, dep)
			}
		}
	}
	for _, a := range arrows {
		if !seen[a.room] {
			t.Errorf("there is no package in %q", a.room)
		}
	}
}

// The root holds two files of code, and nothing that is not known to belong
// there.
func TestRootDirectory(t *testing.T) {
	known := []string{
		"module.go", "caddyfile.go",
		"limiter", "quota", "dialect", "store", "admin", "cmd", "testdata", "e2e", "grafana", "docs",
		"Caddyfile.example", "README.md", "SECURITY.md", "go.mod", "go.sum", "Makefile", "LICENSE", "CHANGELOG.md", ".golangci.yml", ".ci", ".gitignore",
	}
	var there []string
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "git", "ls-files").Output(); err == nil && len(out) > 0 {
		for line := range strings.Lines(string(out)) {
			first, _, _ := strings.Cut(strings.TrimSpace(line), "/")
			there = append(there, first)
		}
	} else { // not a checkout: what is here is what was delivered
		entries, err := os.ReadDir(".")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != ".git" && e.Name() != "build" && e.Name() != "data" {
				there = append(there, e.Name())
			}
		}
	}
	slices.Sort(there)
	for _, name := range slices.Compact(there) {
		if !slices.Contains(known, name) && !strings.HasSuffix(name, "_test.go") {
			t.Errorf("%s does not belong at the root", name)
		}
	}
	for _, name := range []string{"module.go", "caddyfile.go", "Caddyfile.example", "go.mod", "LICENSE"} {
		if !slices.Contains(there, name) {
			t.Errorf("%s is missing", name)
		}
	}
}

// The README names tests for each of the twelve guarantees, and each of them is
// there.
func TestGuaranteesAreTested(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	err = filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllStringSubmatch(string(b), -1) {
			tests[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 12; n++ {
		row := regexp.MustCompile(fmt.Sprintf(`(?m)^\| G%d \|.*$`, n)).FindString(string(readme))
		names := regexp.MustCompile("`(Test\\w+)`").FindAllStringSubmatch(row, -1)
		if len(names) == 0 {
			t.Errorf("G%d names no test", n)
		}
		for _, name := range names {
			if !tests[name[1]] {
				t.Errorf("G%d names %s, which is not there", n, name[1])
			}
		}
	}
}
