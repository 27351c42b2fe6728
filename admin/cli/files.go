package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// output remembers that it could not be written to, so that what is printed in
// many places is checked in one.
type output struct {
	w      io.Writer
	failed error
}

// Write writes, and keeps the first error.
func (o *output) Write(b []byte) (int, error) {
	n, err := o.w.Write(b)
	if o.failed == nil {
		o.failed = err
	}
	return n, err
}

func (o *output) printf(format string, args ...any) {
	fmt.Fprintf(o, format, args...) //nolint:errcheck // the error is kept
}

// input opens a file to be read or, for "-", the standard input. size is -1 if
// it is not known.
func (r *run) input(name string) (in io.ReadCloser, size int64, err error) {
	if name == "-" {
		return io.NopCloser(r.in), -1, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, 0, err
	}
	size = -1
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		size = info.Size()
	}
	return f, size, nil
}

// readInput reads a whole file, or the standard input.
func (r *run) readInput(name string) ([]byte, error) {
	in, _, err := r.input(name)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	return io.ReadAll(in)
}

// readSecret reads an existing secret. A line's end after it is no part of it.
func (r *run) readSecret(name string) (string, error) {
	data, err := r.readInput(name)
	if err != nil {
		return "", fmt.Errorf("reading the secret: %w", err)
	}
	secret := strings.TrimRight(string(data), "\r\n")
	if secret == "" {
		return "", fmt.Errorf("reading the secret: %s is empty", name)
	}
	return secret, nil
}

// writeFile writes what in holds into a file with mode 0600, which replaces the
// one that was there when all has been written, and returns its size.
func writeFile(name string, in io.Reader) (n int64, err error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*") // mode 0600
	if err != nil {
		return 0, err
	}
	n, err = io.Copy(f, in)
	if err == nil {
		err = f.Sync()
	}
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return 0, errors.Join(err, os.Remove(f.Name()))
	}
	return n, nil
}

// confirm asks whether to go on. Where nobody can be asked, or with --yes, it
// does not ask.
func (r *run) confirm(question string) error {
	if r.flag("yes") {
		return nil
	}
	if !r.asks {
		return misused("without a terminal this needs --yes")
	}
	r.notef("%s [y/N] ", clean(question))
	line, err := bufio.NewReader(r.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading the answer: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	r.notef("Nothing was changed.\n")
	return errFailed
}

// progress shows how far long work is, on a terminal alone.
type progress struct {
	r     *run
	what  string
	total int64 // -1: not known
	done  int64
	bytes bool
	drawn time.Time
}

func (p *progress) add(n int64) {
	p.done += n
	if !p.r.shows || time.Since(p.drawn) < 100*time.Millisecond {
		return
	}
	p.drawn = time.Now()
	write := amount
	if p.bytes {
		write = func(n int64) string { return humanize.Bytes(uint64(n)) }
	}
	text := p.what + " " + write(p.done)
	if p.total > 0 {
		share := float64(p.done) / float64(p.total)
		text = fmt.Sprintf("%s %s %3.0f%% of %s", p.what, bar(share, 20), share*100, write(p.total))
	}
	p.r.notef("\r\x1b[K%s", text)
}

// end takes the progress away.
func (p *progress) end() {
	if !p.drawn.IsZero() {
		p.r.notef("\r\x1b[K")
	}
}

// reader returns in, with the progress as far as it is read.
func (p *progress) reader(in io.Reader) io.Reader { return &measured{in, p} }

type measured struct {
	in io.Reader
	p  *progress
}

func (m *measured) Read(b []byte) (int, error) {
	if err := m.p.r.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := m.in.Read(b)
	m.p.add(int64(n))
	return n, err
}
