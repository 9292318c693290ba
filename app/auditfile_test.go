package app

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/configs"
	"example.org/usher/providers/alibaba"
)

// TestAuditFileIsTruncated: the audit file may be cut to nothing under way, as logrotate's
// copytruncate does; what follows begins at its new end.
func TestAuditFileIsTruncated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "audit.log")
	for name, text := range map[string]string{
		"usher.yaml": "name: w1\nhttp: \"off\"\naudit: {file: " + file + "}\n",
		"web.yaml":   withRole("asg-wz9example0001", "", ""),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, err := configs.Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	written := func() string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	synctest.Test(t, func(t *testing.T) {
		app, err := New(Options{
			Config: config, Credentials: alibaba.StaticCredentials(mark+"Id", mark+"Key"), Logger: slog.New(slog.DiscardHandler),
			DialContext: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("no network") },
		})
		if err != nil {
			t.Fatal(err)
		}
		receiving, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- app.Run(receiving, context.WithoutCancel(receiving)) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		if text := written(); !strings.Contains(text, `"event":"started"`) {
			t.Errorf("written: %q", text)
		}
		if err := os.Truncate(file, 0); err != nil {
			t.Error(err)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if text := written(); !strings.HasPrefix(text, "{") || strings.Contains(text, "started") || !strings.Contains(text, `"event":"stopped"`) {
		t.Errorf("after it was truncated: %q", text)
	}
}
