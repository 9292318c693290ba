// Package demo shows on this machine what usher is for: the same scale-in of a fleet
// under live traffic, once without usher and once with it, with the failed requests
// of both counted by the clients.
//
// The cloud is the simulator, on real sockets; the worker is the one of usher run,
// started from config files. Two scaling groups of three stand behind one balancer.
// They differ in one thing: the second has a lifecycle hook, which usher answers.
package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"example.org/usher/configs"
	"example.org/usher/messages"
	"example.org/usher/simulator"
	"example.org/usher/worker/audit"
)

// Timings is how long the parts of the demo take.
type Timings struct {
	// WarmUp is for how long traffic flows before a scale-in.
	WarmUp time.Duration
	// After is for how long traffic goes on when the instances are gone.
	After time.Duration
	// Slow is how long the slowest requests take.
	Slow time.Duration
	// Limit bounds the whole demo.
	Limit time.Duration
}

// DefaultTimings end within a minute, even where something hangs.
var DefaultTimings = Timings{WarmUp: 4 * time.Second, After: 2 * time.Second, Slow: 4 * time.Second, Limit: 55 * time.Second}

// Options is where and how the demo tells what happens.
type Options struct {
	// Progress gets a line for each thing that happens, or frames when Screen is set.
	Progress io.Writer
	// Screen says that Progress is a terminal to draw on; nil: it is not.
	Screen *Screen
	// Provider is the cloud that is simulated: alibaba or aws; "": alibaba.
	Provider string
	// Timings that are zero are DefaultTimings.
	Timings Timings

	// blind behaves as on a host that cannot run the connection script.
	blind bool
	// hurry has usher wait for too short, so that requests fail.
	hurry bool
}

// Counts is what the clients of one phase saw.
type Counts struct {
	Requests int `json:"requests"`
	// Failed requests got no complete answer with status 200.
	Failed int `json:"failed"`
	// Took is from the scale-in until its instances were gone.
	Took    time.Duration `json:"-"`
	reasons string
}

// Drained is the phase with usher.
type Drained struct {
	Counts
	// Drained is how many instances went through all steps.
	Drained int `json:"drained"`
	// Result is what the cloud accepted as the lifecycle action's, "" if nothing.
	Result messages.Result `json:"result"`
}

// Result is the demo's outcome. As JSON it is what usher demo --output json prints.
type Result struct {
	Without Counts  `json:"without_usher"`
	With    Drained `json:"with_usher"`
	// AuditLog is what the worker wrote.
	AuditLog []byte `json:"-"`
}

// ErrUnexpected is matched by the error of a demo that ran to its end and did not
// show what it is to show.
var ErrUnexpected = errors.New("the demo did not show what it should")

// Run runs the demo. A Result is there whenever both phases came to their end, also
// with an error that matches ErrUnexpected.
func Run(ctx context.Context, o Options) (result *Result, err error) {
	o.Timings = o.Timings.withDefaults()
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timings.Limit, fmt.Errorf("the demo was not over after %v", o.Timings.Limit))
	defer cancel()
	stage, ok := stages[cmp.Or(o.Provider, configs.ProviderAlibaba)]
	if !ok {
		return nil, fmt.Errorf("no cloud is called %q", o.Provider)
	}
	f, err := newFleet(stage)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.close()) }()
	d := &demo{options: o, fleet: f}
	d.board = newBoard(o, f.sim.State)
	defer d.board.close()
	return d.run(ctx)
}

func (t Timings) withDefaults() Timings {
	return Timings{
		WarmUp: cmp.Or(t.WarmUp, DefaultTimings.WarmUp), After: cmp.Or(t.After, DefaultTimings.After),
		Slow: cmp.Or(t.Slow, DefaultTimings.Slow), Limit: cmp.Or(t.Limit, DefaultTimings.Limit),
	}
}

type demo struct {
	options Options
	fleet   *fleet
	board   *board
}

// run tells the story from its first line to its last.
func (d *demo) run(ctx context.Context) (*Result, error) {
	d.board.say("the fleet: %d instances on 127.0.0.0/8 in two scaling groups of %d, behind one balancer at %s", fleetSize, groupSize, d.fleet.balancer)
	d.board.say("the clients: %d short requests a second, %d connections that are kept, %d slow requests (up to %v) and %d downloads a second; no request is repeated",
		time.Second/shortEvery, keepAlive, (time.Second+slowEvery/2)/slowEvery, d.options.Timings.Slow, time.Second/downloadEvery)

	without, err := d.withoutUsher(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.restore(ctx); err != nil {
		return nil, err
	}
	result, problems, err := d.withUsher(ctx)
	if err != nil {
		return nil, err
	}
	result.Without = without
	problems = append(result.problems(), problems...)
	if len(problems) > 0 {
		return result, fmt.Errorf("%w: %s", ErrUnexpected, strings.Join(problems, "; "))
	}
	return result, nil
}

// withoutUsher scales in the group without a hook: today's way.
func (d *demo) withoutUsher(ctx context.Context) (Counts, error) {
	d.board.heading(1, "Without usher: a scaling group without a lifecycle hook "+d.fleet.without)
	took, err := d.phase(ctx, &d.board.without, plainGroup, func(ctx context.Context, ids []string) error {
		return d.fleet.until(ctx, "the instances are gone", released(plainGroup, ids))
	})
	counts := d.board.without.counts()
	counts.Took = took
	if err == nil {
		d.board.say("without usher: %s", counts)
	}
	return counts, err
}

// restore brings the fleet back to its size.
func (d *demo) restore(ctx context.Context) error {
	d.board.heading(2, "Restoring the fleet: 3 new instances start and join the balancer")
	activity, err := d.fleet.sim.ScaleOut(plainGroup, groupSize)
	if err != nil {
		return fmt.Errorf("scale out: %w", err)
	}
	d.board.replace(activity.Instances)
	if err := d.fleet.until(ctx, "the new instances serve", serving(plainGroup, activity.Instances)); err != nil {
		return err
	}
	if err := d.fleet.register(ctx, activity.Instances); err != nil {
		return err
	}
	if err := d.fleet.until(ctx, "the fleet is whole again", whole); err != nil {
		return err
	}
	d.board.say("the fleet is whole again: %d instances in service", fleetSize)
	return nil
}

// withUsher scales in the group with a hook, which a worker answers.
func (d *demo) withUsher(ctx context.Context) (result *Result, problems []string, err error) {
	d.board.heading(3, "With usher: its lifecycle hook lets each instance finish its work before it is stopped")
	p := newPlan(ctx, d.fleet, d.options.Timings.Slow, d.options.blind)
	if d.options.hurry {
		p.Wait = time.Millisecond
	}
	if p.why != "" {
		d.board.say("%s: usher waits a fixed time instead", p.why)
	}
	d.board.say("usher's steps for each instance: %s", p.steps())
	h, err := startHelper(ctx, d.fleet, p, d.board.observe)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, h.stop()) }()
	took, err := d.phase(ctx, &d.board.with, hookedGroup, func(ctx context.Context, ids []string) error {
		if err := h.answered(ctx); err != nil {
			return err
		}
		return d.fleet.until(ctx, "the instances are gone", released(hookedGroup, ids))
	})
	if err != nil {
		return nil, nil, err
	}
	if err := h.stop(); err != nil {
		return nil, nil, fmt.Errorf("stop the worker: %w", err)
	}
	result = &Result{AuditLog: h.auditLog()}
	result.With.Counts = d.board.with.counts()
	result.With.Took = took
	result.With.Drained, result.With.Result = h.outcome(p.count())
	d.board.say("with usher: %s", result.With.Counts)
	return result, doubts(d.fleet.sim.State(), d.fleet.actions, result.With.Result), nil
}

// phase scales in 3 of a group under traffic and says how long that took. gone waits
// for the end of the instances.
func (d *demo) phase(ctx context.Context, count *tally, group string, gone func(ctx context.Context, ids []string) error) (took time.Duration, err error) {
	t := startTraffic(ctx, d.fleet.balancer, d.options.Timings.Slow, count)
	defer t.settle()
	if err := d.warmUp(ctx); err != nil {
		return 0, err
	}
	begin := time.Now()
	activity, err := d.fleet.sim.ScaleIn(group, groupSize)
	if err != nil {
		return 0, fmt.Errorf("scale in: %w", err)
	}
	d.board.say("scale-in: %s", strings.Join(activity.Instances, ", "))
	if err := gone(ctx, activity.Instances); err != nil {
		return 0, err
	}
	took = time.Since(begin)
	d.board.say("the instances are stopped and released; traffic goes on")
	if !rest(ctx, d.options.Timings.After) {
		return 0, context.Cause(ctx)
	}
	t.settle()
	if ctx.Err() != nil {
		return 0, context.Cause(ctx) // what was in flight did not count
	}
	return took, nil
}

// warmUp lets the traffic flow until each instance has work in flight.
func (d *demo) warmUp(ctx context.Context) error {
	if !rest(ctx, d.options.Timings.WarmUp) {
		return context.Cause(ctx)
	}
	waiting, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err := d.fleet.until(waiting, "each instance is busy", busy)
	if ctx.Err() != nil {
		return err
	}
	return nil // too little traffic shows in the counts
}

// problems says what the clients' counts do not show.
func (r *Result) problems() []string {
	var out []string
	if r.Without.Failed == 0 {
		out = append(out, "without usher no request failed: was there too little traffic, is the machine overloaded?")
	}
	if r.With.Failed > 0 {
		out = append(out, fmt.Sprintf("with usher %d requests failed (%s): see in the audit log when each step ended", r.With.Failed, r.With.reasons))
	}
	if r.With.Drained != groupSize || r.With.Result != messages.Continue {
		out = append(out, fmt.Sprintf("usher drained %d of %d instances, result %s: the audit log names the step that failed", r.With.Drained, groupSize, cmp.Or(string(r.With.Result), "none")))
	}
	return out
}

// doubts compares what the worker says with what the cloud has.
func doubts(st simulator.State, actions int, result messages.Result) []string {
	if len(st.Actions) != actions {
		return []string{fmt.Sprintf("the cloud knows %d lifecycle actions, not %d", len(st.Actions), actions)}
	}
	for _, a := range st.Actions {
		if a.Status != "Completed" || a.EndedBy != "call" || a.Result != string(result) {
			return []string{fmt.Sprintf("the cloud has the lifecycle action as %s, %s, ended by %s", a.Status, a.Result, a.EndedBy)}
		}
	}
	return nil
}

// String is for a person: "412 requests, 9 failed (7 answered 502, 2 cut off)".
func (c Counts) String() string {
	s := fmt.Sprintf("%d requests, %d failed", c.Requests, c.Failed)
	if c.reasons != "" {
		s += " (" + c.reasons + ")"
	}
	return s
}

// Summary is both counts side by side, and what to do next. colour allows ANSI colours.
func (r *Result) Summary(colour bool) string {
	c := palette(colour)
	var b strings.Builder
	row := func(name, left, right, paintLeft, paintRight string) {
		fmt.Fprintf(&b, "  %-10s%s%s\n", name, c.paint(paintLeft, fmt.Sprintf("%15s", left)), c.paint(paintRight, fmt.Sprintf("%15s", right)))
	}
	good := func(ok bool) string {
		if ok {
			return green
		}
		return red
	}
	row("", "without usher", "with usher", bold, bold)
	row("requests", fmt.Sprint(r.Without.Requests), fmt.Sprint(r.With.Requests), "", "")
	row("failed", fmt.Sprint(r.Without.Failed), fmt.Sprint(r.With.Failed), good(r.Without.Failed == 0), good(r.With.Failed == 0))
	row("took", fmt.Sprintf("%.1f s", r.Without.Took.Seconds()), fmt.Sprintf("%.1f s", r.With.Took.Seconds()), "", "")
	row("drained", "-", fmt.Sprintf("%d of %d", r.With.Drained, groupSize), "", good(r.With.Drained == groupSize))
	row("result", "-", cmp.Or(string(r.With.Result), "none"), "", good(r.With.Result == messages.Continue))
	for _, p := range []struct{ name, reasons string }{{"without usher", r.Without.reasons}, {"with usher", r.With.reasons}} {
		if p.reasons != "" {
			fmt.Fprintf(&b, "\n  Failed %s: %s.\n", p.name, p.reasons)
		}
	}
	b.WriteString("\n  Next: write a file for your scaling group (README.md shows how), check it with\n  usher validate DIR, and start the worker with usher run --config DIR.\n")
	return b.String()
}

// observe tells what the worker does.
func (b *board) observe(r audit.Record) {
	took := time.Duration(r.DurationMS) * time.Millisecond
	switch r.Event {
	case audit.Admitted:
		b.say("usher: verified with the cloud, holds the lifecycle action of %s", instances(len(r.Instances)))
	case audit.Heartbeat:
		b.say("usher: heartbeat, the hook waits %v more", took)
	case audit.StepStarted:
		b.step(string(r.Instance), r.Step, "")
	case audit.StepFinished:
		b.step(string(r.Instance), r.Step, r.Result)
		b.say("usher: %s %s %s after %.1f s: %s", r.Instance, r.Step, r.Result, took.Seconds(), cmp.Or(r.Error, r.Reason))
	case audit.Completed:
		b.say("usher: completed with %s, %s", r.Result, r.Reason)
	case audit.Acked:
		b.say("usher: deleted the message, last of all")
	case audit.Stale, audit.Rejected, audit.Unrouted, audit.Lost, audit.Released:
		b.say("usher: %s: %s", r.Event, cmp.Or(r.Error, r.Reason))
	}
}

func instances(n int) string {
	if n == 1 {
		return "1 instance"
	}
	return fmt.Sprintf("%d instances", n)
}
