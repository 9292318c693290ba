package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.org/usher/simulator"
	"example.org/usher/worker/audit"
)

// TestStopLetsJobsFinish: SIGTERM ends receiving; what runs is done and answered, what
// waits is handed back at once.
func TestStopLetsJobsFinish(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(3, true))
	goOn := make(chan struct{})
	job := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-goOn }))
	t.Cleanup(job.Close)
	finish := sync.OnceFunc(func() { close(goOn) })
	t.Cleanup(finish) // before the server waits for its requests
	w := startWorker(t, c, keys, `- http: {url: "`+job.URL+`", allow_hosts: [127.0.0.1], timeout: 2m}`, "max_jobs: 1\nshutdown_grace: 3m\n")
	c.scaleIn(t, 3)
	w.awaitRecords(t, 3, audit.Admitted)
	w.awaitRecords(t, 1, audit.StepStarted)
	stopped := w.signal(t, syscall.SIGTERM)
	released := w.awaitRecords(t, 2, audit.Released) // while the job runs
	finish()
	t.Logf("the stop took %v", w.wantExit(t).Sub(stopped))
	records := w.records(t)
	if count(records, audit.Completed) != 1 || count(records, audit.Acked) != 1 {
		t.Errorf("stopped with %v", eventsOf(records, ""))
	}
	// Another worker has the rest at once.
	second := startWorker(t, c, keys, "- wait: {for: 10ms}", "name: second\n")
	c.awaitCompleted(t, 3, "CONTINUE")
	second.awaitRecords(t, 2, audit.Received)
	for _, r := range released {
		c.wantHandedBack(t, r)
	}
}

// wantHandedBack looks in the cloud's record for how long a message was hidden when it was
// released: the shortest time there is, so that the next worker has it at once.
func (c *cloud) wantHandedBack(t *testing.T, released audit.Record) {
	t.Helper()
	var last simulator.Event
	for _, e := range c.events(t, simulator.MessageExtended) {
		if e.MessageID == released.MessageID && e.Receives == released.ReceiveCount {
			last = e
		}
	}
	if last.Until == nil || last.Until.Sub(last.Time) > time.Second {
		t.Errorf("message %s was released, and is hidden until %v in the last of its extensions, at %v", released.MessageID, last.Until, last.Time)
	}
}

// TestStopHandsBack: what is not done at the end of the grace, or at the second signal,
// goes back to the queue, and another worker has it at once.
func TestStopHandsBack(t *testing.T) {
	t.Parallel()
	for name, stop := range map[string]struct {
		settings string
		signals  []syscall.Signal
		least    time.Duration
	}{
		"grace":         {"shutdown_grace: 1s\n", []syscall.Signal{syscall.SIGTERM}, time.Second},
		"no grace":      {"shutdown_grace: 0s\n", []syscall.Signal{syscall.SIGTERM}, 0},
		"second signal": {"shutdown_grace: 1h\n", []syscall.Signal{syscall.SIGTERM, syscall.SIGINT}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startCloud(t, scenario(1, false))
			w := startWorker(t, c, keys, "- wait: {for: 4m}", stop.settings)
			c.scaleIn(t, 1)
			w.awaitRecords(t, 1, audit.StepStarted)
			second := startWorker(t, c, keys, "- wait: {for: 10ms}", "name: second\n")
			second.awaitReady(t)
			begin := time.Now()
			for i, s := range stop.signals {
				w.signal(t, s)
				w.await(t, &w.stderr, "that it is stopping", func(text string) bool { return strings.Count(text, "msg=stopping") > i })
			}
			took := w.wantExit(t).Sub(begin)
			t.Logf("the stop took %v", took)
			if took < stop.least { // the job would take 4 min, and the longest grace is an hour
				t.Errorf("the stop took %v, want %v and a little", took, stop.least)
			}
			released := w.awaitRecords(t, 1, audit.Released)[0]
			if count(w.records(t), audit.Completed) != 0 {
				t.Error("a job that was cut short was answered")
			}
			c.awaitCompleted(t, 1, "CONTINUE")
			c.wantHandedBack(t, released)
		})
	}
}

// simulated serves a cloud in this process and tells of each receive.
func simulated(tb testing.TB) (url string, received <-chan time.Time) {
	tb.Helper()
	sim, err := simulator.New(simulator.Options{AccessKeyID: keyID, AccessKeySecret: keySecret, NoServers: true, Scenario: simulator.Scenario{
		Queues:        []simulator.QueueConfig{{Name: "lifecycle"}},
		ScalingGroups: []simulator.GroupConfig{{ID: group}},
	}})
	if err != nil {
		tb.Fatal(err)
	}
	receives := make(chan time.Time, 100) // more than a test's worker makes
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/queues/lifecycle/messages") {
			receives <- time.Now()
		}
		sim.ServeHTTP(w, r)
	}))
	tb.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		if err := sim.Close(); err != nil {
			tb.Error(err)
		}
	})
	return server.URL, receives
}

// startAndStop runs an idle worker and gives how long it took to its first receive,
// and from SIGTERM, in the middle of a long poll, to its end.
func startAndStop(tb testing.TB, program string) (toStart, toStop time.Duration) {
	tb.Helper()
	url, received := simulated(tb)
	dir := configFor(tb, url, "- wait: {for: 1s}", "")
	begin := time.Now()
	p := start(tb, program, keys, "run", "--config", dir)
	late := time.After(patience)
	for polls := range 2 { // the first asks whether the queue answers, the second is the long poll
		select {
		case at := <-received:
			if polls == 0 {
				toStart = at.Sub(begin)
			}
		case <-p.ended:
			tb.Fatal("it has ended")
		case <-late:
			tb.Fatal("it does not poll")
		}
	}
	stopped := p.signal(tb, syscall.SIGTERM)
	return toStart, p.wantExit(tb).Sub(stopped)
}

func TestStartsAndStopsSoon(t *testing.T) {
	t.Parallel()
	toStart, toStop := startAndStop(t, os.Args[0])
	t.Logf("the first poll came %v after the start, the end %v after SIGTERM", toStart, toStop)
	// The machine may be busy; BenchmarkStart and BenchmarkStop have the figures.
	if toStop > soon {
		t.Errorf("stopped in %v: it has waited for the end of its poll", toStop)
	}
}

// TestStopsAmidRefusals: a worker that waits between two attempts stops as soon.
func TestStopsAmidRefusals(t *testing.T) {
	t.Parallel()
	w := start(t, os.Args[0], keys, "run", "--config", configFor(t, "http://127.0.0.1:1", "- wait: {for: 1s}", ""))
	w.await(t, &w.stderr, "that it can't receive", func(text string) bool { return strings.Contains(text, `msg="can't receive"`) })
	stopped := w.signal(t, syscall.SIGTERM)
	if took := w.wantExit(t).Sub(stopped); took > soon {
		t.Errorf("stopped in %v", took)
	}
}

// built is usher as it is shipped.
var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "usher-built")
	if err != nil {
		return "", err
	}
	builtIn = dir
	file := filepath.Join(dir, "usher")
	// As the image is built. What else is built so, before or after, may share what it compiles.
	cmd := exec.Command("go", "build", "-trimpath", "-tags", "timetzdata",
		"-gcflags=github.com/...=-l", "-gcflags=go.yaml.in/...=-l", "-gcflags=example.org/usher/simulator=-l", "-ldflags=-s -w", "-o", file, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	return file, cmd.Run()
})

// builtIn is the folder that TestMain takes away.
var builtIn string

func buildUsher(tb testing.TB) string {
	tb.Helper()
	file, err := built()
	if err != nil {
		tb.Fatalf("build usher: %v", err)
	}
	return file
}

// TestBinaryIsSmall: what is shipped has less than 20 MB.
func TestBinaryIsSmall(t *testing.T) {
	t.Parallel()
	info, err := os.Stat(buildUsher(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f MB", float64(info.Size())/1e6)
	if info.Size() >= 20e6 {
		t.Errorf("the binary has %d bytes, want less than 20 MB", info.Size())
	}
}

// BenchmarkStart is the time from the start of the process to its first receive.
func BenchmarkStart(b *testing.B) {
	program := buildUsher(b)
	var total time.Duration
	for b.Loop() {
		toStart, _ := startAndStop(b, program)
		total += toStart
	}
	b.ReportMetric(float64(total.Microseconds())/1000/float64(b.N), "ms/start")
}

// BenchmarkStop is the time from SIGTERM, in the middle of a long poll, to the end of
// the process.
func BenchmarkStop(b *testing.B) {
	program := buildUsher(b)
	var total time.Duration
	for b.Loop() {
		_, toStop := startAndStop(b, program)
		total += toStop
	}
	b.ReportMetric(float64(total.Microseconds())/1000/float64(b.N), "ms/stop")
}
