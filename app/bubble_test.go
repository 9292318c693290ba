package app

import (
	"bytes"
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"

	"example.org/usher/simulator"
)

// journal is all that a worker has said: a log that many may write.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) logs() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// holdsNoKey fails the test if a key was logged.
func (j *journal) holdsNoKey(t *testing.T) {
	t.Helper()
	if strings.Contains(j.logs(), mark) {
		t.Error("a key was logged")
	}
}

// serve serves a simulated cloud in memory until stop is called, which closes it.
func serve(sim *simulator.Simulator) (l *simulator.PipeListener, stop func()) {
	l = simulator.NewPipeListener()
	server := &http.Server{Handler: sim}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	return l, func() {
		_ = sim.Close()
		_ = server.Close()
		serving.Wait()
	}
}

// run runs a worker until stop is called, which waits for its end and fails the test if it
// failed. With grace it may finish what it does.
func run(t *testing.T, app *App, grace bool) (stop func()) {
	receiving, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	working := receiving
	if grace {
		working = context.WithoutCancel(receiving)
	}
	done := make(chan error, 1)
	go func() { done <- app.Run(receiving, working) }()
	return sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
