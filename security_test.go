package llmquota

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"io/fs"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/certmagic"

	"github.com/llm-quota/caddy-llm-quota/admin"
)

// securityBlocks returns the blocks of code of a language that SECURITY.md shows.
func securityBlocks(t *testing.T, language string) (blocks []string) {
	t.Helper()
	b, err := os.ReadFile("SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(string(b), -1) {
		blocks = append(blocks, m[1])
	}
	if len(blocks) == 0 {
		t.Fatalf("SECURITY.md shows no %s", language)
	}
	return blocks
}

func TestSecurityPageWorks(t *testing.T) {
	for _, block := range securityBlocks(t, "caddyfile") {
		works(t, block)
	}
}

// remoteGate is a gate whose remote admin endpoint is as SECURITY.md has it.
type remoteGate struct {
	*gate
	remote string // its address
	admin  string // the object in JSON, without certificates
}

func startRemote(t *testing.T) *remoteGate {
	t.Helper()
	storage := caddy.DefaultStorage // identities are kept there, whatever is configured
	caddy.DefaultStorage = &certmagic.FileStorage{Path: t.TempDir()}
	t.Cleanup(func() { caddy.DefaultStorage = storage })
	g := &remoteGate{gate: newGate(t), remote: freeAddr(t)}
	text := strings.Replace(g.caddyfile("group team {\n}\n", "llm_quota\nrespond ok\n"), "\tmetrics\n", "\tmetrics\n\tskip_install_trust\n", 1)
	if err := g.loadText(text); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // stopping Caddy leaves the remote endpoint
		if err := g.loadText(text); err != nil {
			t.Error(err)
		}
	})
	blocks := securityBlocks(t, "json")
	if len(blocks) != 1 {
		t.Fatalf("%d blocks of JSON", len(blocks))
	}
	g.admin = g.replace(blocks[0])
	return g
}

// replace puts the gate's addresses in the place of those of SECURITY.md.
func (g *remoteGate) replace(s string) string {
	_, port, _ := strings.Cut(g.remote, ":")
	return strings.NewReplacer(
		"localhost:2019", strings.TrimPrefix(g.gate.admin, "http://"), `":2021"`, `"`+g.remote+`"`, ":2021", ":"+port, "gate.example.com", "localhost",
	).Replace(s)
}

// certificate makes one for a client, and returns it with its DER in base64.
func certificate(t *testing.T, name string) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, base64.StdEncoding.EncodeToString(der)
}

// as returns a function that makes a request to the remote endpoint with a
// certificate, and returns its status and body.
func (g *remoteGate) as(roots *x509.CertPool, certs ...tls.Certificate) func(method, path, body string) *reply {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: certs}}
	g.Cleanup(transport.CloseIdleConnections)
	client := &gate{TB: g.TB, admin: "https://" + g.remote, client: &http.Client{Transport: transport, Timeout: patience}}
	return client.api
}

// The remote endpoint of SECURITY.md gives each role what it says, and no more.
func TestRemoteAdminRoles(t *testing.T) {
	g := startRemote(t)
	readerCert, reader64 := certificate(t, "reader")
	writerCert, writer64 := certificate(t, "writer")
	strangerCert, _ := certificate(t, "stranger")
	object := strings.NewReplacer("READER_CERTIFICATE", reader64, "WRITER_CERTIFICATE", writer64).Replace(g.admin)
	g.api("POST", "/config/admin", object).ok(200)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(g.api("GET", "/pki/ca/local/certificates", "").ok(200).body)) {
		t.Fatal("no certificates of the authority")
	}
	g.until("the endpoint has its certificate", func() bool {
		c, err := tls.Dial("tcp", g.remote, &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: []tls.Certificate{readerCert}})
		if err == nil {
			c.Close()
		}
		return err == nil
	})

	write := g.as(roots, writerCert)
	key := decode[admin.Key](write("POST", "/llm_quota/keys", `{"name":"Grace"}`).ok(201))
	write("PATCH", "/llm_quota/keys/"+key.ID.String(), `{"disabled":true}`).ok(200)
	write("POST", "/llm_quota/keys/name:Grace/rotate", `{}`).ok(200)
	write("POST", "/llm_quota/groups", `{"name":"more"}`).ok(201)
	write("GET", "/llm_quota/status", "").ok(200)
	for _, denied := range [][2]string{{"POST", "/load"}, {"GET", "/config/"}, {"POST", "/stop"}, {"GET", "/metrics"}, {"GET", "/llm_quota/../config/"}, {"DELETE", "/llm_quotas"}} {
		write(denied[0], denied[1], `{}`).ok(403)
	}

	read := g.as(roots, readerCert)
	for _, path := range []string{
		"/llm_quota/keys", "/llm_quota/keys/" + key.ID.String(), "/llm_quota/keys?q=grace", "/llm_quota/groups", "/llm_quota/groups/name:team", "/llm_quota/usage", "/llm_quota/status",
	} {
		if r := read("GET", path, "").ok(200); strings.Contains(r.body, key.Secret) {
			t.Errorf("%s shows a secret", path)
		}
	}
	for _, denied := range [][2]string{
		{"POST", "/llm_quota/keys"}, {"PATCH", "/llm_quota/keys/" + key.ID.String()}, {"DELETE", "/llm_quota/keys/" + key.ID.String()},
		{"POST", "/llm_quota/keys/" + key.ID.String() + "/reset"}, {"POST", "/llm_quota/groups"}, {"GET", "/llm_quota/backup"}, {"POST", "/load"}, {"GET", "/config/"},
	} {
		read(denied[0], denied[1], `{}`).ok(403)
	}
	if got := decode[admin.Keys](g.api("GET", "/llm_quota/keys", "").ok(200)).Keys; len(got) != 1 || !got[0].Disabled {
		t.Errorf("the keys are %+v", got)
	}

	for name, certs := range map[string][]tls.Certificate{"a stranger": {strangerCert}, "nobody": nil} {
		c, err := tls.Dial("tcp", g.remote, &tls.Config{RootCAs: roots, ServerName: "localhost", Certificates: certs})
		if err == nil { // whether it is accepted is told after the handshake
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "tls: ") {
			t.Errorf("%s is let in: %v", name, err)
		}
	}
}

// The commands of SECURITY.md do what it says, one after the other.
func TestSecurityPageCommands(t *testing.T) {
	for _, tool := range []string{"sh", "curl", "openssl", "sed", "tr"} {
		if _, err := exec.LookPath(tool); err != nil {
			skip(t, "the commands need %s: %v", tool, err)
		}
	}
	g := startRemote(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "admin.json"), []byte(g.admin), 0o600); err != nil {
		t.Fatal(err)
	}
	// The endpoint gets its certificate a moment after it is configured.
	const strict = "set -eu\ncurl() { command curl -sS --fail-with-body --max-time 20 --retry 20 --retry-delay 1 --retry-all-errors \"$@\"; }\n"
	for i, block := range securityBlocks(t, "sh") {
		sh := exec.CommandContext(t.Context(), "sh", "-c", strict+g.replace(block))
		sh.Dir = dir
		out, err := sh.CombinedOutput()
		if err != nil {
			t.Fatalf("%s\n%v\n%s", block, err, out)
		}
		if i == 1 && (!bytes.Contains(out, []byte(`"healthy":true`)) || !bytes.Contains(out, []byte(`"name":"Grace"`))) {
			t.Errorf("%s\nprints %s", block, out)
		}
	}
	if k := g.key("Grace"); !k.Disabled {
		t.Errorf("the key is %+v", k)
	}
}

// Nobody but the owner can read what the gate keeps: files and directories are
// as the page says.
func TestFileModes(t *testing.T) {
	up := upstream(t, completes)
	g := startGate(t, keyK(), proxy(up))
	g.chat().ok(200)
	g.api("POST", "/llm_quota/keys", `{"name":"made"}`).ok(201)
	seen := 0
	err := filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		seen++
		name, mode := strings.TrimPrefix(path, g.dir), info.Mode().Perm()
		if d.IsDir() && mode != 0o700 || !d.IsDir() && mode != 0o600 && !strings.HasPrefix(name, "/badger/") {
			t.Errorf("%q has the mode %o", name, mode)
		}
		return nil
	})
	if err != nil || seen < 5 {
		t.Errorf("%d files: %v", seen, err)
	}
}
