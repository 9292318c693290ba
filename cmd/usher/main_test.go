package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

// asUsher makes the test's own executable be usher: what tests of real processes start.
const asUsher = "TEST_EXECUTABLE_IS_USHER"

func TestMain(m *testing.M) {
	if os.Getenv(asUsher) == "" {
		// The tests of real processes wait most of the time: more of them at once than there
		// are processors.
		flag.Parse()
		_ = flag.Set("test.parallel", "8")
		goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
			if err := os.RemoveAll(builtIn); err != nil { // "" is no folder and no error
				fmt.Fprintln(os.Stderr, err)
			}
			os.Exit(code)
		}))
		return
	}
	var orphaned sync.WaitGroup // never waited for: the process ends first
	orphaned.Go(func() {
		// Standard input is a pipe whose other end closes with the test's process.
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(99)
	})
	main()
}

// said is what a command has said and how it ended.
type said struct {
	code           int
	stdout, stderr string
}

// usher runs a command in this process, with nothing in the environment.
func usher(t *testing.T, stdin string, args ...string) said {
	t.Helper()
	return usherIn(t, t.Context(), nil, stdin, args...)
}

func usherIn(t *testing.T, ctx context.Context, env []string, stdin string, args ...string) said {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(ctx, args, strings.NewReader(stdin), &stdout, &stderr, env)
	return said{code, stdout.String(), stderr.String()}
}

// want checks the exit code and that each text stands on standard output or error.
func (s said) want(t *testing.T, code int, texts ...string) {
	t.Helper()
	if s.code != code {
		t.Errorf("exit code %d, want %d", s.code, code)
	}
	for _, text := range texts {
		if !strings.Contains(s.stdout+s.stderr, text) {
			t.Errorf("%q is nowhere", text)
		}
	}
	if t.Failed() {
		t.Logf("stdout:\n%s\nstderr:\n%s", s.stdout, s.stderr)
	}
}

// decodeJSON reads the one JSON value that out must be.
func decodeJSON[T any](t *testing.T, out string) T {
	t.Helper()
	var v T
	dec := json.NewDecoder(strings.NewReader(out))
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, out)
	}
	if _, err := dec.Token(); err != io.EOF {
		t.Fatalf("more than one JSON value:\n%s", out)
	}
	return v
}
