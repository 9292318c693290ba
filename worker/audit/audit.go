// Package audit is usher's append-only record of what was decided for each
// lifecycle action and why. It is a product with a stable schema, not a log level:
// one JSON object a line, no record dropped, no secret in it.
package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"example.org/usher/messages"
)

// Schema is the version of Record's fields. It grows when a field changes its meaning
// or goes away; new fields alone do not change it.
const Schema = 1

// Event says what a record is about.
type Event string

// The events. Each delivery of a message has one Received and, from the same worker,
// one closing record (see Event.Closes).
const (
	// Started and Stopped frame a worker's life.
	Started Event = "started"
	Stopped Event = "stopped"
	// Reloaded: the configuration was read again, and taken over or refused (Result).
	Reloaded Event = "reloaded"
	// Received: a delivery arrived. Every other record of a message follows one of these.
	Received Event = "received"
	// Announced: an action waits whose message this worker does not hold; a message about it was sent.
	Announced Event = "announced"
	// Adopted: such an action is begun without a message, which could not be sent. It opens a trail as Received does.
	Adopted Event = "adopted"
	// Admitted: the cloud confirmed the action (or policy did not ask), and it is held.
	Admitted Event = "admitted"
	// StepStarted and StepFinished frame one attempt at one step for one instance.
	StepStarted  Event = "step_started"
	StepFinished Event = "step_finished"
	// Heartbeat: the cloud was asked to wait longer.
	Heartbeat Event = "heartbeat"
	// Extended: the message was hidden for longer.
	Extended Event = "extended"
	// Completed: the cloud accepted our result. At most one a worker and action.
	Completed Event = "completed"

	// Acked closes: the message was deleted, its action is over.
	Acked Event = "acked"
	// Ignored closes: well-formed and no lifecycle action, or one more delivery of an action that is held already.
	Ignored Event = "ignored"
	// Rejected closes a delivery that can't be decoded; the message stays in the queue.
	Rejected Event = "rejected"
	// Quarantined closes: not decodable after the last allowed delivery; the body is in this record, the message deleted.
	Quarantined Event = "quarantined"
	// Unrouted closes: no config names the group or the hook; the message is left to other workers.
	Unrouted Event = "unrouted"
	// Stale closes: the cloud says that there is nothing to do; nothing was touched, the message is deleted.
	Stale Event = "stale"
	// Lost closes: the message belongs to another receiver now; nothing more was done.
	Lost Event = "lost"
	// Released closes: the message was handed back for another worker, or left to come back.
	Released Event = "released"
)

// Closes says whether e ends a delivery's trail.
func (e Event) Closes() bool {
	switch e {
	case Acked, Ignored, Rejected, Quarantined, Unrouted, Stale, Lost, Released:
		return true
	}
	return false
}

// Record is one line. Empty fields are left out.
type Record struct {
	Time       time.Time           `json:"time"`
	Schema     int                 `json:"schema"`
	Event      Event               `json:"event"`
	Worker     string              `json:"worker,omitempty"`
	Provider   string              `json:"provider,omitempty"`
	Region     string              `json:"region,omitempty"`
	Queue      string              `json:"queue,omitempty"`
	Group      messages.GroupID    `json:"scaling_group,omitempty"`
	Hook       messages.HookID     `json:"hook,omitempty"`
	Transition messages.Transition `json:"transition,omitempty"`
	Token      messages.Token      `json:"token,omitempty"`
	Activity   messages.ActivityID `json:"activity,omitempty"`
	// InstanceEvent is the event's kind, where it is none of a lifecycle hook.
	InstanceEvent messages.Event        `json:"instance_event,omitempty"`
	Instances     []messages.InstanceID `json:"instances,omitempty"`
	MessageID     string                `json:"message_id,omitempty"`
	ReceiveCount  int                   `json:"receive_count,omitempty"`
	Instance      messages.InstanceID   `json:"instance,omitempty"`
	Step          string                `json:"step,omitempty"`
	// Attempt counts from 1.
	Attempt int `json:"attempt,omitempty"`
	// DurationMS is how long the step took, or how long a wait was asked for, in milliseconds.
	DurationMS int64 `json:"duration_ms,omitempty"`
	// Result is CONTINUE, ABANDON or ROLLBACK; for step_finished ok, failed, ignored, gone,
	// cancelled, or skipped without having been started, with the reason; for reloaded ok or refused.
	Result string `json:"result,omitempty"`
	Reason string `json:"reason,omitempty"`
	Error  string `json:"error,omitempty"`
	// RequestID is the cloud's, to be matched with ActionTrail.
	RequestID string `json:"request_id,omitempty"`
	// Body is a quarantined message's body; BodyBase64 when it is no UTF-8.
	Body       string `json:"body,omitempty"`
	BodyBase64 []byte `json:"body_base64,omitempty"`
}

// maxPending is how much may wait in memory while the file can't be written, for
// instance because its disk is full. Above it Write waits.
const maxPending = 16 << 20

// Recorder writes records. The zero value discards them.
type Recorder struct {
	worker   string
	observer func(Record)

	// write admits one writer at a time. It is a channel and not a mutex, so that a
	// waiting goroutine can give up with its context.
	write   chan struct{}
	out     io.Writer
	pending []byte

	mu  sync.Mutex
	err error // guarded by mu; of the last attempt to write
}

// New gives a recorder that writes to w and puts the worker's name into each record.
// observer, if not nil, sees each record too, in order; it must return soon.
func New(w io.Writer, worker string, observer func(Record)) *Recorder {
	return &Recorder{worker: worker, observer: observer, write: make(chan struct{}, 1), out: w}
}

// Write appends a record, filling in time, schema and worker. What could not be
// written stays in memory and goes first next time; when too much has piled up,
// Write waits until the output takes it or ctx ends. The error, if any, is also Err's.
func (r *Recorder) Write(ctx context.Context, rec Record) error {
	if r == nil || r.out == nil {
		return nil
	}
	select {
	case r.write <- struct{}{}: // if it need not wait, the record is written whatever ctx says
	default:
		select {
		case r.write <- struct{}{}:
		case <-ctx.Done():
			return fmt.Errorf("write audit record %s: %w", rec.Event, context.Cause(ctx))
		}
	}
	defer func() { <-r.write }()

	rec.Time, rec.Schema, rec.Worker = time.Now().UTC(), Schema, r.worker
	line, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode audit record %s: %w", rec.Event, err)
	}
	if r.observer != nil {
		r.observer(rec)
	}
	r.pending = append(append(r.pending, line...), '\n')
	err = r.flush()
	for err != nil && len(r.pending) > maxPending {
		select {
		case <-time.After(time.Second):
			err = r.flush()
		case <-ctx.Done():
			return err
		}
	}
	return err
}

// EndLine puts the next record on a line of its own, where the output ends in half of one.
func (r *Recorder) EndLine() {
	r.write <- struct{}{}
	defer func() { <-r.write }()
	r.pending = append(r.pending, '\n')
}

// Flush tries to write what could not be written before.
func (r *Recorder) Flush(ctx context.Context) error {
	if r == nil || r.out == nil {
		return nil
	}
	select {
	case r.write <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("flush the audit log: %w", context.Cause(ctx))
	}
	defer func() { <-r.write }()
	return r.flush()
}

// flush writes what is pending. A short write keeps the rest, so that no line is
// torn or doubled when the disk has room again.
func (r *Recorder) flush() error {
	n, err := r.out.Write(r.pending)
	r.pending = r.pending[:copy(r.pending, r.pending[n:])]
	if err != nil {
		err = fmt.Errorf("write audit log: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
	return err
}

// Sync makes sure that what was written survives a crash of the machine, as far as the
// output can promise it: a file can, a pipe or a terminal can't and says so with EINVAL
// or ENOTSUP (fsync in POSIX.1-2017).
func (r *Recorder) Sync() error {
	if r == nil {
		return nil
	}
	f, ok := r.out.(interface{ Sync() error })
	if !ok {
		return nil
	}
	if err := f.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) {
		return fmt.Errorf("sync audit log: %w", err)
	}
	return nil
}

// Err is the error of the last write, nil when all is written. The worker is
// unhealthy while it is set.
func (r *Recorder) Err() error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}
