package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// disk is an output that can be full: it takes part of a write and then fails.
type disk struct {
	mu   sync.Mutex
	room int // bytes it still takes, guarded by mu
	got  bytes.Buffer
}

var errFull = errors.New("no space left on device")

func (d *disk) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := min(len(p), d.room)
	d.room -= n
	d.got.Write(p[:n])
	if n < len(p) {
		return n, errFull
	}
	return n, nil
}

func (d *disk) grow(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.room += n
}

func TestWriteKeepsTheSchema(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	r := New(&out, "w1", nil)
	if err := r.Write(t.Context(), Record{Event: Heartbeat, Group: "asg-1", DurationMS: 120000, RequestID: "R"}); err != nil {
		t.Fatal(err)
	}
	var line map[string]any
	if err := json.Unmarshal(out.Bytes(), &line); err != nil {
		t.Fatal(err)
	}
	if _, err := time.Parse(time.RFC3339Nano, fmt.Sprint(line["time"])); err != nil {
		t.Error(err)
	}
	delete(line, "time")
	want := map[string]any{"schema": 1.0, "event": "heartbeat", "worker": "w1", "scaling_group": "asg-1", "duration_ms": 120000.0, "request_id": "R"}
	if fmt.Sprint(line) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", line, want)
	}
}

func TestZeroRecorderDiscards(t *testing.T) {
	t.Parallel()
	var none *Recorder
	for _, r := range []*Recorder{none, {}} {
		if err := r.Write(t.Context(), Record{Event: Started}); err != nil || r.Err() != nil {
			t.Errorf("got %v, %v", err, r.Err())
		}
	}
}

func TestFullDiskTearsAndLosesNothing(t *testing.T) {
	t.Parallel()
	d := &disk{room: 150}
	r := New(d, "w1", nil)
	const n = 20
	failed := 0
	for i := range n {
		if err := r.Write(t.Context(), Record{Event: Received, MessageID: fmt.Sprint(i)}); err != nil {
			if !errors.Is(err, errFull) || !errors.Is(r.Err(), errFull) {
				t.Fatalf("got %v and Err %v, want %v", err, r.Err(), errFull)
			}
			failed++
		}
		d.grow(20)
	}
	if failed == 0 {
		t.Fatal("the disk was never full")
	}
	d.grow(1 << 20)
	if err := r.Write(t.Context(), Record{Event: Stopped}); err != nil || r.Err() != nil {
		t.Fatalf("after the disk had room: %v, %v", err, r.Err())
	}
	lines := bufio.NewScanner(&d.got)
	for i := range n {
		var rec Record
		if !lines.Scan() || json.Unmarshal(lines.Bytes(), &rec) != nil || rec.MessageID != fmt.Sprint(i) {
			t.Fatalf("line %d: %s", i, lines.Bytes())
		}
	}
	if !lines.Scan() || !strings.Contains(lines.Text(), `"stopped"`) || lines.Scan() {
		t.Errorf("last line %s", lines.Text())
	}
}

func TestWriteWaitsWhenTooMuchIsPending(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d := &disk{}
		r := New(d, "w1", nil)
		big := Record{Event: Quarantined, Body: strings.Repeat("x", maxPending)}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		begin := time.Now()
		if err := r.Write(ctx, big); !errors.Is(err, errFull) || time.Since(begin) != 10*time.Second {
			t.Fatalf("got %v after %v, want it to wait 10 s", err, time.Since(begin))
		}
		time.AfterFunc(5*time.Second, func() { d.grow(64 << 20) })
		if err := r.Write(t.Context(), Record{Event: Stopped}); err != nil {
			t.Fatal(err)
		}
		if got := bytes.Count(d.got.Bytes(), []byte("\n")); got != 2 {
			t.Errorf("%d lines, want both", got)
		}
	})
}

func TestConcurrentWritesKeepLinesWhole(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	seen := 0
	r := New(&out, "w1", func(Record) { seen++ })
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range 20 {
				if err := r.Write(t.Context(), Record{Event: Extended, Reason: strings.Repeat("y", 100)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	lines := bytes.Split(bytes.TrimSpace(out.Bytes()), []byte("\n"))
	for _, l := range lines {
		if !json.Valid(l) {
			t.Fatalf("torn line %s", l)
		}
	}
	if len(lines) != 1000 || seen != 1000 {
		t.Errorf("%d lines, %d observed, want 1000", len(lines), seen)
	}
}

// TestSync: a pipe, which standard output is in a container, has nothing to sync, and
// that is no failure; a file that is closed is one.
func TestSync(t *testing.T) {
	t.Parallel()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer write.Close()
	if err := New(write, "w", nil).Sync(); err != nil {
		t.Errorf("a pipe: %v", err)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	r := New(file, "w", nil)
	if err := r.Sync(); err != nil {
		t.Errorf("a file: %v", err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.Sync(); err == nil {
		t.Error("a closed file was synced")
	}
}

// TestCloses: exactly these events end a delivery's trail.
func TestCloses(t *testing.T) {
	t.Parallel()
	for e, want := range map[Event]bool{
		Started: false, Stopped: false, Received: false, Admitted: false, StepStarted: false, StepFinished: false, Heartbeat: false, Extended: false, Completed: false,
		Acked: true, Ignored: true, Rejected: true, Quarantined: true, Unrouted: true, Stale: true, Lost: true, Released: true,
	} {
		if e.Closes() != want {
			t.Errorf("%s closes: %v", e, e.Closes())
		}
	}
}

// stuck is an output that takes nothing until it is let go.
type stuck struct{ entered, free chan struct{} }

func (s stuck) Write(p []byte) (int, error) {
	s.entered <- struct{}{}
	<-s.free
	return len(p), nil
}

// TestWriteEndsWithItsContext: who waits for another's write that hangs can give up.
func TestWriteEndsWithItsContext(t *testing.T) {
	t.Parallel()
	out := stuck{make(chan struct{}), make(chan struct{})}
	r := New(out, "w", nil)
	first := make(chan error, 1)
	go func() { first <- r.Write(context.Background(), Record{Event: Received}) }()
	<-out.entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Write(ctx, Record{Event: Acked}); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "acked") {
		t.Errorf("got %v", err)
	}
	close(out.free)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// TestNothingToWriteTo: the zero value and nil discard.
func TestNothingToWriteTo(t *testing.T) {
	t.Parallel()
	for _, r := range []*Recorder{nil, {}, New(&bytes.Buffer{}, "w", nil)} {
		if err := errors.Join(r.Write(t.Context(), Record{Event: Received}), r.Sync(), r.Err()); err != nil {
			t.Error(err)
		}
	}
}

// TestFlush: what a full disk kept back is written without waiting for another record,
// and behind half a line of somebody who died there begins a new one.
func TestFlush(t *testing.T) {
	t.Parallel()
	d := &disk{}
	r := New(d, "w", nil)
	r.EndLine()
	if err := r.Write(t.Context(), Record{Event: Received}); !errors.Is(err, errFull) {
		t.Fatalf("got %v", err)
	}
	if err := r.Flush(t.Context()); !errors.Is(err, errFull) || !errors.Is(r.Err(), errFull) {
		t.Errorf("a full disk: %v, %v", err, r.Err())
	}
	d.grow(1 << 20)
	if err := r.Flush(t.Context()); err != nil || r.Err() != nil {
		t.Errorf("with room again: %v, %v", err, r.Err())
	}
	if got := d.got.String(); !strings.HasPrefix(got, "\n{") || strings.Count(got, "\n") != 2 {
		t.Errorf("written: %q", got)
	}
	for _, none := range []*Recorder{nil, {}} {
		if err := none.Flush(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
