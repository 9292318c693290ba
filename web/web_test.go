package web

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestServeAndCheck(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var sick atomic.Bool
	healthy := func() error {
		if sick.Load() {
			return errors.New("polling is stuck")
		}
		return nil
	}
	ready := func() error { return errors.New("queue q: not there") }
	var note atomic.Value
	note.Store("")
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- Serve(ctx, l, Handler(healthy, ready, func() string { return note.Load().(string) }))
	}()

	address := l.Addr().String()
	if err := Check(t.Context(), address, "/healthz"); err != nil {
		t.Errorf("healthy worker: %v", err)
	}
	if err := Check(t.Context(), address, "/readyz"); err == nil || !strings.Contains(err.Error(), "503") || !strings.Contains(err.Error(), "queue q: not there") {
		t.Errorf("worker that is not ready: %v", err)
	}
	note.Store("the config on disk is refused")
	if err := Check(t.Context(), address, "/readyz"); err == nil || !strings.HasSuffix(err.Error(), "queue q: not there\nthe config on disk is refused") {
		t.Errorf("worker that is not ready, with a note: %v", err)
	}
	if err := Check(t.Context(), address, "/healthz"); err != nil {
		t.Errorf("healthy worker, with a note: %v", err)
	}
	sick.Store(true)
	if err := Check(t.Context(), address, "/healthz"); err == nil || !strings.Contains(err.Error(), "polling is stuck") {
		t.Errorf("stuck worker: %v", err)
	}
	if err := Check(t.Context(), address, "/other"); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("unknown path: %v", err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	if err := Check(t.Context(), address, "/healthz"); err == nil {
		t.Error("still answered after the stop")
	}
}
