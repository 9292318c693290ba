package worker

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/worker/audit"
)

// Defaults of Options, for zero values.
const (
	DefaultMaxActions        = 1000
	DefaultMaxJobs           = 100
	DefaultMaxReceives       = 5
	DefaultVisibilityTimeout = 60 * time.Second
	DefaultShutdownGrace     = 25 * time.Second
)

// Step is one part of the job for one instance. Run may be called again for the same
// instance after a crash, and while another worker still runs it: it must be
// idempotent. attempt counts from 0. detail is a sentence for the audit log. An error
// that matches providers.ErrInstanceGone ends the job as a success.
type Step interface {
	// Name is the step's kind: lower case, never changed.
	Name() string
	Run(ctx context.Context, in messages.Instance, attempt int) (detail string, err error)
}

// Undoer is a step that changes something which must not outlast the action if the answer
// keeps the instance. Undo may find the step done, half done or hardly begun, is called again after a crash, and must be
// idempotent. detail is a sentence for the audit log.
type Undoer interface {
	Undo(ctx context.Context, in messages.Instance) (detail string, err error)
}

// DefaultUndoTimeout is PlannedStep.UndoTimeout's, for zero.
const DefaultUndoTimeout = 30 * time.Second

// PlannedStep is a step, or several at once, and how the job treats it.
type PlannedStep struct {
	// Step is nil with Parallel.
	Step
	// Parallel are steps that run at once; of what follows, only When counts then. The first
	// failure cancels the others. None of them has Parallel itself.
	Parallel []PlannedStep
	// When says whether the step runs at all.
	When Condition
	// Timeout bounds one attempt; 0: only the job's deadline does.
	Timeout time.Duration
	// Retries is how many more attempts a failure is given.
	Retries int
	// IgnoreError lets the job go on when the last attempt has failed.
	IgnoreError bool
	// UndoTimeout bounds the step's Undo, if it is an Undoer.
	UndoTimeout time.Duration
}

// Plan is what is done for the actions of one hook, or for the events of one kind.
type Plan struct {
	// Transition is messages.ScaleIn for an event.
	Transition messages.Transition
	// Event makes it the plan for such events, which have no hook: no wait is prolonged, and
	// nothing is completed. Hook, OnSuccess, OnFailure and the heartbeat fields mean nothing then.
	Event messages.Event
	// Hook is the id or the name of the hook; "" stands for every hook of the transition.
	Hook string
	// Deadline is how long after the hook fired the jobs may run. What undoing the steps may
	// take, and Always, is kept back from their time.
	Deadline time.Duration
	// OnSuccess and OnFailure end the wait.
	OnSuccess, OnFailure messages.Result
	// HeartbeatFloor is the shortest heartbeat, and so how long a dead cluster may hold an instance.
	HeartbeatFloor time.Duration
	// HeartbeatExtension, when set, is the length of every heartbeat instead.
	HeartbeatExtension time.Duration
	Steps              []PlannedStep
	// Always are steps for the end of each job that was not interrupted, and whose instance
	// is not gone. They change nothing about its outcome.
	Always []PlannedStep
}

// recordGrace is how long after the jobs were cut short a record may wait for its disk:
// longer than the last answer and the last deletion may take, whose records come then.
const recordGrace = answerGrace + settleTimeout + callTimeout

// Verify says when the cloud is asked whether a notification is true.
type Verify string

// The verify policies.
const (
	VerifyAlways      Verify = "always"
	VerifyRedelivered Verify = "redelivered"
	VerifyNever       Verify = "never"
)

// Group is a scaling group that the worker works for.
type Group struct {
	// Name is the config file's, for logs.
	Name     string
	Provider string
	Region   string
	ID       messages.GroupID
	// Account is the one that the group belongs to; "": it is not known. What names another
	// is about a group of the same name there.
	Account   string
	Lifecycle providers.Lifecycle
	Verify    Verify
	// MaxConcurrent bounds the group's jobs; 0: only Options.MaxJobs does.
	MaxConcurrent int
	Plans         []Plan
	// Close, if not nil, is called once when the worker needs Lifecycle and the plans no
	// more: the group was removed or replaced, and its last action has ended; or Run ends.
	Close func()
}

// Queue is a message queue and the groups whose notifications arrive there.
type Queue struct {
	Name string
	// Cloud says how the queue's messages are read; "" is messages.Alibaba.
	Cloud messages.Cloud
	// Region is that of the actions whose message does not name one (AWS, unless an event
	// bus brings it).
	Region string
	Queue  providers.Queue
	// Quarantine takes messages that can't be decoded; needed with QuarantineQueue.
	Quarantine Sender
	Groups     []Group
	// Close, if not nil, is called once when the worker needs Queue and Quarantine no more.
	Close func()
}

// Options is what a Worker is made of. Zero values mean the defaults above.
type Options struct {
	// Queues and MaxJobs can be changed by Apply.
	Queues []Queue
	// MaxActions bounds what one queue's consumer holds, waiting actions included.
	MaxActions int
	// MaxJobs bounds the jobs that run at once, over all queues.
	MaxJobs int
	// MaxReceives is the delivery at which an undecodable message is quarantined.
	MaxReceives int
	// Quarantine says what becomes of it then; "" means QuarantineAudit.
	Quarantine Quarantine
	// VisibilityTimeout is the lease on a held message, and so the longest time until a
	// killed worker's actions are taken over.
	VisibilityTimeout time.Duration
	// ShutdownGrace is how long jobs may go on after receiving has ended. Negative: none.
	ShutdownGrace time.Duration
	// ReconcileEvery is how often each group is asked for actions that wait and whose
	// message may be lost; 0: never.
	ReconcileEvery time.Duration
	Audit          *audit.Recorder
	Logger         *slog.Logger
}

// Why an action's contexts end. context.Cause gives one of these, or what the caller
// of Run put into its own contexts.
var (
	errShutdown = errors.New("the worker is stopping")
	errLost     = errors.New("the message belongs to another receiver")
	errOver     = errors.New("the cloud says that the lifecycle action is over")
	errDeadline = errors.New("the deadline has passed")
	errBudget   = errors.New("the heartbeat budget is spent")
	errClosed   = errors.New("the action is closed")
)

// errGarbled is why a delivery is not even decoded: its body is not what the queue holds.
var errGarbled = errors.New("the body arrived garbled: it does not fit its digest")

// Worker is made by New and runs once.
type Worker struct {
	o          Options
	log        *slog.Logger
	pool       *pool
	admissions admissions

	mu        sync.Mutex  // guards what follows; taken before any consumer's
	consumers []*consumer // those too whose queue no group names any more, until they hold nothing
	life      *life       // nil before Run
	stopping  bool        // Run waits for the consumers: no more may be started
	consuming sync.WaitGroup

	// recording is set by Run. It outlasts the last record by far, and ends: a disk
	// that stays full must not keep a worker from stopping.
	recording   context.Context
	auditErrors *repeated
	unwritten   chan struct{} // holds a token when a record could not be written
}

// New checks the options and builds a worker. It starts nothing.
func New(o Options) (*Worker, error) {
	o.MaxActions = cmp.Or(o.MaxActions, DefaultMaxActions)
	o.MaxJobs = cmp.Or(o.MaxJobs, DefaultMaxJobs)
	o.MaxReceives = cmp.Or(o.MaxReceives, DefaultMaxReceives)
	o.Quarantine = cmp.Or(o.Quarantine, QuarantineAudit)
	o.VisibilityTimeout = cmp.Or(o.VisibilityTimeout, DefaultVisibilityTimeout)
	o.ShutdownGrace = cmp.Or(o.ShutdownGrace, DefaultShutdownGrace)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	w := &Worker{
		o: o, log: o.Logger, pool: newPool(o.MaxJobs),
		auditErrors: &repeated{log: o.Logger, msg: "can't write the audit log"},
		unwritten:   make(chan struct{}, 1),
	}
	w.o.Queues = nil // Apply has them, and may have others soon
	if err := w.Apply(o.Queues, o.MaxJobs); err != nil {
		return nil, err
	}
	return w, nil
}

// Run receives until receiving ends, then lets jobs finish for ShutdownGrace or until
// working ends, hands back what is left, and returns when all that it started has
// ended. Stopping that way is no error.
func (w *Worker) Run(receiving, working context.Context) error {
	keeping, stopKeeping := context.WithCancel(context.WithoutCancel(working))
	defer stopKeeping()
	recording, stopRecording := context.WithCancel(keeping)
	defer stopRecording()
	w.recording = recording
	w.record(audit.Record{Event: audit.Started})

	working, cut := context.WithCancelCause(working)
	defer cut(errShutdown)
	// The caller may end working alone; then there is nothing to receive for either.
	receiving, stop := context.WithCancelCause(receiving)
	defer stop(errShutdown)
	defer context.AfterFunc(working, func() { stop(errShutdown) })()

	var flusher sync.WaitGroup
	flusher.Go(func() { w.flushAudit(keeping) })
	w.mu.Lock()
	w.life = &life{receiving, working, keeping}
	for _, c := range w.consumers {
		w.start(c)
	}
	w.mu.Unlock()
	settled := make(chan struct{}) // closed when the consumers have ended
	var grace sync.WaitGroup
	grace.Go(func() {
		<-receiving.Done()
		w.log.Info("receiving has ended", keyGrace, w.o.ShutdownGrace)
		timer := time.NewTimer(max(w.o.ShutdownGrace, 0))
		defer timer.Stop()
		select {
		case <-timer.C:
			cut(errShutdown)
		case <-working.Done():
		case <-settled:
			return
		}
		timer.Reset(recordGrace)
		select {
		case <-timer.C:
			stopRecording()
		case <-settled:
		}
	})
	<-receiving.Done()
	w.mu.Lock()
	w.stopping = true
	w.mu.Unlock()
	w.consuming.Wait()
	close(settled)
	grace.Wait()
	w.pool.wait()
	w.record(audit.Record{Event: audit.Stopped})
	stopKeeping()
	flusher.Wait()
	return w.o.Audit.Err()
}
