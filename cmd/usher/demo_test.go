package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"example.org/usher/app/demo"
)

func demoResult(failed int) *demo.Result {
	return &demo.Result{
		Without:  demo.Counts{Requests: 525, Failed: 12},
		With:     demo.Drained{Counts: demo.Counts{Requests: 1243, Failed: failed}, Drained: 3, Result: "CONTINUE"},
		AuditLog: []byte("{\"event\":\"completed\"}\n"),
	}
}

func TestDemoTellsHowItEnded(t *testing.T) {
	t.Parallel()
	unexpected := fmt.Errorf("%w: with usher 1 requests failed", demo.ErrUnexpected)
	for _, tt := range []struct {
		format, stdout, stderr string
		failed                 int
		err                    error
	}{
		{"json", `{"without_usher":{"requests":525,"failed":12},"with_usher":{"requests":1243,"failed":0,"drained":3,"result":"CONTINUE"}}` + "\n", "", 0, nil},
		{"json", `{"without_usher":{"requests":525,"failed":12},"with_usher":{"requests":1243,"failed":1,"drained":3,"result":"CONTINUE"}}` + "\n", "completed", 1, unexpected},
		{"text", "without usher     with usher", "", 0, nil},
		{"text", "without usher     with usher", "completed", 1, unexpected},
	} {
		var stdout, stderr bytes.Buffer
		err := tell(&stdout, &stderr, tt.format, demoResult(tt.failed), tt.err, false)
		if !errors.Is(err, tt.err) || tt.err == nil && err != nil {
			t.Errorf("%s: got %v, want %v", tt.format, err, tt.err)
		}
		if tt.format == "json" && stdout.String() != tt.stdout || !strings.Contains(stdout.String(), tt.stdout) {
			t.Errorf("%s: got %s", tt.format, stdout.String())
		}
		if !strings.Contains(stderr.String(), tt.stderr) || tt.stderr == "" && stderr.Len() > 0 {
			t.Errorf("%s: on standard error: %s", tt.format, stderr.String())
		}
	}
}

// interrupting ends a context with the first thing that is written to it.
type interrupting struct {
	bytes.Buffer
	cancel func()
}

func (i *interrupting) Write(b []byte) (int, error) {
	i.cancel()
	return i.Buffer.Write(b)
}

func TestInterruptedDemoPrintsNoResult(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var stdout bytes.Buffer
	stderr := &interrupting{cancel: cancel}
	if code := run(ctx, []string{"demo", "--output", "json"}, strings.NewReader(""), &stdout, stderr, nil); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	if stdout.Len() > 0 {
		t.Errorf("on standard output: %s", stdout.String())
	}
	if text := stderr.String(); !strings.Contains(text, "the fleet: 6 instances") || !strings.Contains(text, "usher: context canceled") {
		t.Errorf("on standard error: %s", text)
	}
}

func TestScreenIsForTerminalsOnly(t *testing.T) {
	t.Parallel()
	getenv := func(string) string { return "xterm" }
	file, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if s := screen(file, getenv); s != nil {
		t.Error("a file is taken for a terminal")
	}
	if s := screen(&bytes.Buffer{}, getenv); s != nil {
		t.Error("a buffer is taken for a terminal")
	}
}

func TestScreenFollowsTheEnvironment(t *testing.T) {
	t.Parallel()
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no pseudo-terminals here: ", err)
	}
	defer terminal.Close()
	for _, tt := range []struct {
		name                    string
		env                     map[string]string
		drawn, coloured, beyond bool
	}{
		{"plain", map[string]string{"TERM": "xterm"}, true, true, false},
		{"no colour", map[string]string{"TERM": "xterm", "NO_COLOR": "1"}, true, false, false},
		{"dumb", map[string]string{"TERM": "dumb"}, false, false, false},
		{"no TERM", nil, false, false, false},
		{"LANG", map[string]string{"TERM": "xterm", "LANG": "en_US.UTF-8"}, true, true, true},
		{"LC_ALL wins", map[string]string{"TERM": "xterm", "LANG": "en_US.UTF-8", "LC_ALL": "C"}, true, true, false},
		{"utf8", map[string]string{"TERM": "xterm", "LC_CTYPE": "C.utf8"}, true, true, true},
	} {
		s := screen(terminal, func(name string) string { return tt.env[name] })
		if (s != nil) != tt.drawn {
			t.Errorf("%s: drawn %v, want %v", tt.name, s != nil, tt.drawn)
		} else if s != nil && (s.Colour != tt.coloured || s.Unicode != tt.beyond) {
			t.Errorf("%s: got colour %v, unicode %v", tt.name, s.Colour, s.Unicode)
		}
		if s != nil {
			if width, height := s.Size(); width < 1 || height < 1 {
				t.Errorf("%s: %d x %d", tt.name, width, height)
			}
		}
	}
}
