package worker_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/providers/alibaba"
	"example.org/usher/providers/aws"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

// BenchmarkQueue has notifications of one instance each received, verified, drained with a
// step that does nothing, completed and deleted, over real sockets. The simulator shares the
// processors, so the rate is a lower bound.
func BenchmarkQueue(b *testing.B) {
	for name, on := range clouds {
		for _, actions := range []int{1_000, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", name, actions), func(b *testing.B) { benchmarkQueue(b, on, actions) })
		}
	}
}

func benchmarkQueue(b *testing.B, on where, actions int) {
	for b.Loop() {
		b.StopTimer()
		bench := newBench(b, on, actions, worker.DefaultVisibilityTimeout)
		p := plan(time.Hour, worker.PlannedStep{Step: stepFunc(func(context.Context, messages.Instance, int) (string, error) { return "", nil })})
		run, wait := bench.worker(b, p, worker.Options{})
		before := allCalls(bench.sim)
		b.StartTimer()
		begin := time.Now()
		most := run(func() bool { return bench.answered.Load() == int64(actions) })
		took := time.Since(begin)
		b.StopTimer()
		wait()
		b.ReportMetric(float64(actions)/took.Seconds(), "actions/s")
		b.ReportMetric(float64(allCalls(bench.sim)-before)/float64(actions), "calls/action")
		b.ReportMetric(float64(most), "goroutines")
		bench.close(b)
		b.StartTimer()
	}
	b.ReportMetric(0, "ns/op") // of no use here
}

// BenchmarkHeldAction holds actions that wait for a slot, and reports what one costs.
func BenchmarkHeldAction(b *testing.B) {
	for name, on := range clouds {
		b.Run(string(name), func(b *testing.B) { benchmarkHeldAction(b, on) })
	}
}

func benchmarkHeldAction(b *testing.B, on where) {
	const actions = 5_000
	for b.Loop() {
		b.StopTimer()
		bench := newBench(b, on, actions, time.Hour)
		release := make(chan struct{})
		p := plan(time.Hour, worker.PlannedStep{Step: stepFunc(func(ctx context.Context, _ messages.Instance, _ int) (string, error) {
			select {
			case <-release:
			case <-ctx.Done():
			}
			return "", nil
		})})
		heap, goroutines := memory()
		run, wait := bench.worker(b, p, worker.Options{MaxActions: actions, MaxJobs: 1, VisibilityTimeout: time.Hour, ShutdownGrace: -1})
		b.StartTimer()
		run(func() bool { return bench.admitted.Load() == actions })
		b.StopTimer()
		heapHeld, goroutinesHeld := memory()
		b.ReportMetric(float64(heapHeld-heap)/actions, "B/held-action")
		b.ReportMetric(float64(goroutinesHeld-goroutines)/actions, "goroutines/held-action")
		close(release)
		wait()
		bench.close(b)
		b.StartTimer()
	}
	b.ReportMetric(0, "ns/op")
}

// memory is what is in use after a collection. The simulator's part is in it, the same
// before and after as far as it goes.
func memory() (heap, goroutines int64) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc), int64(runtime.NumGoroutine())
}

type bench struct {
	cloud              messages.Cloud
	sim                *simulator.Simulator
	server             *http.Server
	url                string
	served             chan error
	answered, admitted atomic.Int64
	changed            chan struct{}
}

func newBench(b *testing.B, on where, actions int, visibility time.Duration) *bench {
	b.Helper()
	s := on(scenario(actions+1, true))
	s.Queues[0].VisibilityTimeout = visibility
	sim, err := simulator.New(simulator.Options{AccessKeyID: keyID, AccessKeySecret: keySecret, Scenario: s, NoServers: true, NoEvents: true})
	if err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	x := &bench{cloud: cmp.Or(messages.Cloud(s.Provider), messages.Alibaba), sim: sim, server: &http.Server{Handler: sim}, url: "http://" + l.Addr().String(), served: make(chan error, 1), changed: make(chan struct{}, 1)}
	go func() { x.served <- x.server.Serve(l) }()
	if _, err := sim.ScaleIn(groupID, actions); err != nil {
		b.Fatal(err)
	}
	for n := 0; n < actions; {
		q, _ := sim.State().Queue(queueName)
		n = q.Active
	}
	return x
}

// worker gives a function that runs a worker until a condition holds, which is asked
// after each audit record that may change it, and one that stops it.
func (x *bench) worker(b *testing.B, p worker.Plan, o worker.Options) (run func(until func() bool) (goroutines int), wait func()) {
	b.Helper()
	clients := x.alibaba
	if x.cloud == messages.AWS {
		clients = x.aws
	}
	q, l, err := clients(o.VisibilityTimeout)
	if err != nil {
		b.Fatal(err)
	}
	region := x.sim.State().Region
	o.Queues = []worker.Queue{{Name: queueName, Cloud: x.cloud, Region: region, Queue: q, Groups: []worker.Group{
		{Provider: string(x.cloud), Region: region, ID: groupID, Lifecycle: l, Verify: worker.VerifyAlways, Plans: []worker.Plan{p}},
	}}}
	o.Logger = slog.New(slog.DiscardHandler)
	o.Audit = audit.New(io.Discard, "bench", func(r audit.Record) {
		switch r.Event {
		case audit.Acked:
			x.answered.Add(1)
		case audit.Admitted:
			x.admitted.Add(1)
		default:
			return
		}
		select {
		case x.changed <- struct{}{}:
		default:
		}
	})
	w, err := worker.New(o)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	run = func(until func() bool) (most int) {
		go func() { done <- w.Run(ctx, context.Background()) }()
		for !until() {
			<-x.changed
			most = max(most, runtime.NumGoroutine())
		}
		return most
	}
	wait = func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
		q.Close()
		l.Close()
	}
	return run, wait
}

// The clients of a cloud, which hold connections.
type (
	queueClient interface {
		providers.Queue
		Close()
	}
	lifecycleClient interface {
		providers.Lifecycle
		Close()
	}
)

func (x *bench) alibaba(time.Duration) (queueClient, lifecycleClient, error) {
	o := alibaba.Options{
		Region: x.sim.State().Region, QueueName: queueName, QueueEndpoint: x.url, ESSEndpoint: x.url,
		Credentials: alibaba.StaticCredentials(keyID, keySecret),
	}
	q, err1 := alibaba.NewQueue(o)
	l, err2 := alibaba.NewScaling(o)
	return q, l, errors.Join(err1, err2)
}

func (x *bench) aws(lease time.Duration) (queueClient, lifecycleClient, error) {
	o := aws.Options{
		Region: x.sim.State().Region, QueueName: queueName, VisibilityTimeout: lease, SQSEndpoint: x.url, AutoScalingEndpoint: x.url, EC2Endpoint: x.url,
		Credentials: aws.StaticCredentials(keyID, keySecret),
	}
	q, err1 := aws.NewQueue(o)
	l, err2 := aws.NewScaling(o)
	return q, l, errors.Join(err1, err2)
}

func (x *bench) close(b *testing.B) {
	if err := x.server.Close(); err != nil {
		b.Error(err)
	}
	<-x.served
	if err := x.sim.Close(); err != nil {
		b.Error(err)
	}
}
