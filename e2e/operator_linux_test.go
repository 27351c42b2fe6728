package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOperatorTerminal shows what is different where a person looks on: colours,
// and questions.
func TestOperatorTerminal(t *testing.T) {
	g := newGate(t, "http://127.0.0.1:1", "", "")
	s := newTranscript(t, g, "UTC")
	s.quota(`keys create Ada --quota "1k manual"`)
	s.atTerminal("caddy llm-quota status", "")
	s.atTerminal("caddy llm-quota keys list", "")
	s.atTerminal("caddy llm-quota keys show Ada", "")
	s.atTerminal("caddy llm-quota explain Ada --input-tokens 5k", "")
	if s.atTerminal("caddy llm-quota keys delete Ada", "n") == 0 {
		t.Error("it is deleted after all")
	}
	if code := s.atTerminal("caddy llm-quota keys delete Ada", "y"); code != 0 {
		t.Errorf("exit code %d", code)
	}
	s.quota("keys list")
	s.chapter("15_terminal")
}

// atTerminal runs a command at a terminal of its own, on which somebody gives
// the answer when a question is asked. Escapes are written down as ␛.
func (s *transcript) atTerminal(line, answer string) (code int) {
	s.t.Helper()
	screen, keyboard := newTerminal(s.t)
	defer screen.Close()
	c := s.command(shellWords(line)[1:]...)
	c.Env = append(c.Env, "TERM=xterm", "NO_COLOR=")
	c.Stdin, c.Stdout, c.Stderr = keyboard, keyboard, keyboard
	if err := c.Start(); err != nil {
		s.t.Fatal(err)
	}
	keyboard.Close()
	var shown bytes.Buffer
	for piece := make([]byte, 4096); ; {
		n, err := screen.Read(piece)
		shown.Write(piece[:n])
		if answer != "" && strings.HasSuffix(shown.String(), "[y/N] ") {
			if _, err := io.WriteString(screen, answer+"\n"); err != nil {
				s.t.Fatal(err)
			}
			answer = ""
		}
		if errors.Is(err, syscall.EIO) || errors.Is(err, io.EOF) { // the command has ended
			break
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	c.Wait() //nolint:errcheck // the exit code says it
	s.add("$ %s\n%s", line, strings.NewReplacer("\r\n", "\n", "\x1b", "␛").Replace(shown.String()))
	if code = c.ProcessState.ExitCode(); code != 0 {
		s.add("exit code %d\n", code)
	}
	s.add("\n")
	return code
}

// newTerminal returns the two ends of a terminal.
func newTerminal(t *testing.T) (screen, keyboard *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		skip(t, "there are no terminals: %v", err)
	}
	var number int
	err = unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0)
	if err == nil {
		number, err = unix.IoctlGetInt(int(screen.Fd()), unix.TIOCGPTN)
	}
	if err == nil {
		keyboard, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return screen, keyboard
}
