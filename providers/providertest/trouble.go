package providertest

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"example.org/usher/providers"
	"example.org/usher/simulator"
)

// troubles are the cases that every call of the contract is put through.
var troubles = map[string]func(*world, exercise){
	"throttled": throttled, "denied": denied, "expired": expired, "slow": slow, "cancelled": cancelled,
}

// patience is what the suite gives a call that repeats until its context ends.
const patience = 2 * time.Minute

// throttled: a call that is refused for its rate is sent again by the provider, and by it
// alone, MaxAttempts times at most; a receive, which may hide messages, is sent once, and a
// change of a balancer until its context ends. The other calls go on meanwhile.
func throttled(w *world, x exercise) {
	s, api := w.staged(), x.apis[0]
	before := w.record()
	most := w.MaxAttempts
	if x.call == Receive {
		most = 1
	}
	w.fault(api, simulator.FaultThrottle, 0)
	sent := w.count(api)
	ctx, cancel := context.WithTimeout(w.ctx(), patience)
	defer cancel()
	var others sync.WaitGroup
	others.Go(func() { w.goesOn(x, s) })
	err := x.do(ctx, w, s)
	others.Wait()
	if !x.changes() || !errors.Is(err, context.DeadlineExceeded) { // whoever waits in a queue of changes ends so
		w.is("throttled", err, providers.ErrThrottled)
	}
	if n := w.count(api) - sent; n != most && !x.changes() || n < most {
		w.t.Errorf("sent %d times, want %d", n, most)
	}
	if ended := errors.Is(err, context.DeadlineExceeded); ended && !x.changes() {
		w.t.Errorf("it has not given up before its context: %v", err)
	}
	if !x.changes() && !providers.Untouched(err) {
		w.t.Errorf("a refusal is said to have had an effect: %v", err)
	}
	if w.record() != before {
		w.t.Errorf("something has changed: %s\nwas %s", w.record(), before)
	}
	w.sim.ClearFaults()
	if most == 1 {
		return
	}
	// It succeeds with the last attempt, which no other layer adds to.
	s = w.restaged(s)
	w.fault(api, simulator.FaultThrottle, most-1)
	sent = w.count(api)
	w.is("after some refusals", x.do(w.ctx(), w, s), nil)
	if n := w.count(api) - sent; n < most {
		w.t.Errorf("sent %d times for %d refusals", n, most-1)
	}
}

// restaged gives the stage with deliveries that are held again: a call that was repeated for
// long has used the time that they were hidden for.
func (w *world) restaged(s stage) stage {
	w.t.Helper()
	time.Sleep(5 * time.Minute)
	for _, d := range w.receive(2) {
		switch d.MessageID {
		case s.MessageID:
			s.Delivery = d
		default:
			s.spare = d
		}
	}
	return s
}

// goesOn: while calls of x are in trouble, the calls that keep an action go on.
func (w *world) goesOn(x exercise, s stage) {
	w.t.Helper()
	time.Sleep(5 * time.Second)
	began := time.Now()
	for _, call := range []Call{Attributes, Ended} {
		if call == x.call || shared(w.APIs[call], x.apis) {
			continue
		}
		for _, other := range onClients {
			if other.call == call {
				w.is(string(call)+" meanwhile", other.do(w.ctx(), w, s), nil)
			}
		}
	}
	if took := time.Since(began); took > w.CallTimeout {
		w.t.Errorf("the other calls took %v", took)
	}
}

func shared(a, b []API) bool {
	for _, x := range a {
		for _, y := range b {
			if x == y {
				return true
			}
		}
	}
	return false
}

// denied: without one of its permissions a call fails, names it, and has changed nothing. It
// is sent once, and works as soon as it is allowed.
func denied(w *world, x exercise) {
	s := w.staged()
	for _, api := range x.apis {
		w.deny(api.Permission)
		before, sent := w.record(), w.count(api)
		err := x.do(w.ctx(), w, s)
		w.is("without "+api.Permission, err, providers.ErrDenied)
		if e := w.told("without "+api.Permission, err); !strings.Contains(e.Hint, api.Permission) {
			w.t.Errorf("the permission %s is not named: %v", api.Permission, err)
		}
		if n := w.count(api) - sent; n != 1 {
			w.t.Errorf("sent %d times without %s", n, api.Permission)
		}
		if w.record() != before {
			w.t.Errorf("something has changed: %s\nwas %s", w.record(), before)
		}
		w.sim.SetPolicy(nil)
	}
	w.is("allowed", x.do(w.ctx(), w, s), nil)
}

// expired: with temporary keys that are over, and no way to renew them, a call is denied and
// says so; nothing has changed.
func expired(w *world, x exercise) {
	s := w.staged()
	w.Clients = w.others(func(a *Access) { a.Role = w.Role })
	w.is("before", x.do(w.ctx(), w, s), nil)
	time.Sleep(90 * time.Minute)
	before := w.record()
	err := x.do(w.ctx(), w, s)
	w.is("expired", err, providers.ErrDenied)
	if e := w.told("expired", err); !strings.Contains(e.Hint, "expired") {
		w.t.Errorf("that the keys have expired is not told: %v", err)
	}
	if w.record() != before {
		w.t.Errorf("something has changed: %s\nwas %s", w.record(), before)
	}
}

// slow: a call that hangs ends with its own time limit, which is not that of its caller, or
// goes on as long as it may be sent again; the other calls go on meanwhile.
func slow(w *world, x exercise) {
	s, api := w.staged(), x.apis[0]
	w.fault(api, simulator.FaultHang, 0)
	ctx, cancel := context.WithTimeout(w.ctx(), time.Hour)
	defer cancel()
	if x.changes() {
		ctx, cancel = context.WithTimeout(w.ctx(), patience)
		defer cancel()
	}
	sent, began := w.count(api), time.Now()
	var others sync.WaitGroup
	others.Go(func() { w.goesOn(x, s) })
	err := x.do(ctx, w, s)
	took := time.Since(began)
	others.Wait()
	if !x.changes() || !errors.Is(err, context.DeadlineExceeded) {
		w.is("hanging", err, providers.ErrUnavailable)
	}
	n := w.count(api) - sent
	if n > w.MaxAttempts && !x.changes() || x.call == Receive && n != 1 {
		w.t.Errorf("sent %d times", n)
	}
	switch {
	case x.changes():
		if took > patience {
			w.t.Errorf("took %v", took)
		}
	case errors.Is(err, context.DeadlineExceeded):
		w.t.Errorf("its own limit looks like the caller's: %v", err)
	case took > time.Duration(n)*w.CallTimeout+patience:
		w.t.Errorf("took %v for %d attempts", took, n)
	}
	w.sim.ClearFaults()
	if x.call == Extend || x.call == Delete || x.call == DeleteBatch {
		s = w.restaged(s)
	}
	w.is("afterwards", x.do(w.ctx(), w, s), nil)
}

// cancelled: when its context ends, a call returns at once with the context's error.
func cancelled(w *world, x exercise) {
	s, api := w.staged(), x.apis[0]
	w.fault(api, simulator.FaultHang, 0)
	ctx, cancel := context.WithCancel(w.ctx())
	time.AfterFunc(time.Second, cancel)
	began := time.Now()
	err := x.do(ctx, w, s)
	w.is("cancelled", err, context.Canceled)
	if took := time.Since(began); took != time.Second {
		w.t.Errorf("returned after %v, want at once", took)
	}
	err = x.do(ctx, w, s)
	w.is("with a context that is over", err, context.Canceled)
	if took := time.Since(began); took != time.Second {
		w.t.Errorf("with a context that is over: returned after %v, want at once", took-time.Second)
	}
}

// unsupported: what the cloud has no operation for says so, and makes no call.
func unsupported(w *world, x exercise) {
	s := w.staged()
	before, record := sum(w.sim.State().APICalls), w.record()
	w.is(x.name(), x.do(w.ctx(), w, s), providers.ErrUnsupported)
	if n := sum(w.sim.State().APICalls) - before; n != 0 || w.record() != record {
		w.t.Errorf("%d calls were made", n)
	}
}

func sum(counts map[string]int) int {
	n := 0
	for _, c := range counts {
		n += c
	}
	return n
}

// keys are the cases of keys that the cloud does not take.
var keys = map[string]func(*world){
	"wrong": func(w *world) {
		for name, change := range map[string]func(*Access){
			"wrong secret": func(a *Access) { a.Secret = mark + "Other" },
			"unknown id":   func(a *Access) { a.KeyID = mark + "Nobody" },
		} {
			clients := w.others(change)
			_, receive := clients.Queue.Receive(w.ctx(), w.MaxBatch, time.Second)
			_, hook := clients.Lifecycle.Hook(w.ctx(), hookGroup(w), hookIn(w))
			_, run := clients.Commander.RunCommand(w.ctx(), providers.Command{Instance: w.members(w.Group)[0], Script: "true", Timeout: time.Minute, Key: "k"})
			for call, err := range map[string]error{"receive": receive, "hook": hook, "run": run} {
				w.is(name+", "+call, err, providers.ErrDenied)
				if e := w.told(name, err); e.Hint == "" || strings.Contains(strings.ToLower(err.Error()), "stringtosign") {
					w.t.Errorf("%s, %s: %v", name, call, err)
				}
			}
		}
	},
	"rotated": func(w *world) {
		w.sim.SetCredentials(mark+"New", mark+"NewKey", "")
		_, err := w.Queue.Attributes(w.ctx())
		w.is("with the old keys", err, providers.ErrDenied)
		fresh := w.others(func(a *Access) { a.KeyID, a.Secret = mark+"New", mark+"NewKey" })
		_, err = fresh.Queue.Attributes(w.ctx())
		w.is("with the new ones", err, nil)
	},
}
