package simulator

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// FaultKind is what goes wrong.
type FaultKind string

// The kinds of faults.
const (
	// FaultLatency answers late by Fault.Latency.
	FaultLatency FaultKind = "latency"
	// FaultHang never answers; it ends when the client goes away.
	FaultHang FaultKind = "hang"
	// Fault5xx answers 503 ServiceUnavailable, MNS 500 InternalError.
	Fault5xx FaultKind = "5xx"
	// FaultThrottle answers 400 Throttling.User, MNS 429 TooManyRequests.
	FaultThrottle FaultKind = "throttle"
	// FaultDrop cuts the connection before the call has any effect.
	FaultDrop FaultKind = "drop"
	// FaultDropAfterEffect cuts the connection when the call has had its effect.
	FaultDropAfterEffect FaultKind = "drop_after_effect"
	// FaultDuplicate (mns SendMessage, PublishMessage, ReceiveMessage) stores the messages a
	// second time under new ids. For the first two that goes for what the cloud itself sends
	// and publishes too.
	FaultDuplicate FaultKind = "duplicate"
	// FaultCorrupt (mns SendMessage, PublishMessage, ReceiveMessage) garbles message bodies,
	// of the cloud's own too. One that is published garbled is in a whole envelope. A garbled
	// receive keeps the digest of the true body, which the queue still has. For sts and
	// metadata: the answer is no JSON.
	FaultCorrupt FaultKind = "corrupt"
	// FaultDenied answers 403 as for a missing RAM permission.
	FaultDenied FaultKind = "denied"
	// FaultPartial (Describe and List calls, not mns) leaves every other item out of the lists, the
	// first one first, while TotalCount still counts them all.
	FaultPartial FaultKind = "partial"
	// FaultEmpty (Describe and List calls, not mns) answers as if there were nothing: empty lists,
	// and a TotalCount of 0.
	FaultEmpty FaultKind = "empty"
	// FaultError (not mns) refuses with Fault.Code and Fault.Status, such as slb's
	// ServiceIsConfiguring, 400.
	FaultError FaultKind = "error"
	// FaultJobFails (alb, nlb) lets the job that a call starts fail: no effect in the end.
	FaultJobFails FaultKind = "job_fails"
)

var faultKinds = []FaultKind{FaultLatency, FaultHang, Fault5xx, FaultThrottle, FaultDrop, FaultDropAfterEffect, FaultDuplicate, FaultCorrupt, FaultDenied, FaultPartial, FaultEmpty, FaultError, FaultJobFails}

// listServices are the services whose faults can be about lists and errors of their own.
var listServices = []string{"ess", "ecs", "slb", "alb", "nlb", "autoscaling", "elb", "elbv2", "ec2", "ssm"}

// faultServices are what faults can be about, by provider; the first has the queues.
var faultServices = map[string][]string{
	providerAlibaba: {"mns", "ess", "ecs", "slb", "alb", "nlb", "sts", "metadata"},
	providerAWS:     {"sqs", "autoscaling", "elb", "elbv2", "ec2", "ssm", "sts", "metadata"},
}

// maxFaults bounds how many faults may be set at once.
const maxFaults = 1000

// Fault is something that goes wrong on demand. Each call suffers the first fault
// that fits it and strikes.
type Fault struct {
	ID string `json:"id,omitempty"` // given by InjectFault
	// Service is mns, ess, ecs, slb, alb, nlb, sts or metadata; on AWS sqs, autoscaling, elb,
	// elbv2, ec2, ssm, sts or metadata.
	Service string `json:"service"`
	// Action is an API name, "" for any. ReceiveMessage means BatchReceiveMessage
	// too, and so on for the other batches.
	Action string    `json:"action,omitempty"`
	Kind   FaultKind `json:"kind"`
	// Count is how many calls it strikes before it is over, Rate the share of calls
	// that it strikes, 0..1. With neither it strikes every call until ClearFaults.
	Count int     `json:"count,omitempty"`
	Rate  float64 `json:"rate,omitempty"`
	// PerSecond, for kind throttle instead of Count and Rate, is a quota: a bucket of one
	// second's calls, at least one, filled at this rate. What finds it empty is struck.
	PerSecond float64 `json:"per_second,omitempty"`
	// Latency is a text such as "200ms" in JSON. Other kinds than latency take it
	// too: they strike after it.
	Latency time.Duration `json:"latency,omitzero"`
	// Code and Status (default 400) are what kind error answers.
	Code   string `json:"code,omitempty"`
	Status int    `json:"status,omitempty"`
	// Struck is how many calls it has struck so far, told by State.
	Struck int `json:"struck,omitempty"`
}

// faultText is Fault as JSON has it.
type faultText struct {
	faultAlias
	Latency string `json:"latency,omitempty"`
}

type faultAlias Fault

// MarshalJSON writes the latency as text.
func (f Fault) MarshalJSON() ([]byte, error) {
	t := faultText{faultAlias: faultAlias(f)}
	if f.Latency != 0 {
		t.Latency = f.Latency.String()
	}
	return json.Marshal(t)
}

// UnmarshalJSON refuses unknown keys.
func (f *Fault) UnmarshalJSON(data []byte) error {
	var t faultText
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&t); err != nil {
		return fmt.Errorf("decode fault: %w", err)
	}
	*f = Fault(t.faultAlias)
	if t.Latency == "" {
		return nil
	}
	var err error
	f.Latency, err = time.ParseDuration(t.Latency)
	return err
}

func (f Fault) check(provider string) error {
	there := faultServices[provider]
	queues := there[0]
	switch {
	case !slices.Contains(there, f.Service):
		return badInput("service must be one of %s, got %q", strings.Join(there, ", "), f.Service)
	case !slices.Contains(faultKinds, f.Kind):
		return badInput("kind must be one of %s, got %q", joinKinds(), f.Kind)
	case f.Action != "" && !knownAction(provider, f.Service, f.Action):
		return badInput("%s has no action %q here", f.Service, f.Action)
	case f.Count < 0 || f.Rate < 0 || f.Rate > 1:
		return badInput("count must be 0 or more and rate 0 to 1")
	case f.Count > 0 && f.Rate > 0:
		return badInput("either count or rate, not both")
	case f.PerSecond != 0 && (f.Kind != FaultThrottle || f.Count > 0 || f.Rate > 0):
		return badInput("per_second is for kind throttle, without count and rate")
	case f.PerSecond < 0 || f.PerSecond > 1e6:
		return badInput("per_second must be 0 to 1000000, got %v", f.PerSecond)
	case f.Struck != 0:
		return badInput("struck can't be set")
	case f.Latency < 0 || f.Latency > time.Hour:
		return badInput("latency must be 0 to 1h, got %v", f.Latency)
	case f.Kind == FaultLatency && f.Latency == 0:
		return badInput("kind latency needs a latency, such as \"200ms\"")
	case f.Kind == FaultDuplicate && f.Service != queues:
		return badInput("kind %s is for service %s only", f.Kind, queues)
	case f.Kind == FaultCorrupt && f.Service != queues && f.Service != "sts" && f.Service != "metadata":
		return badInput("kind %s is for services %s, sts and metadata only", f.Kind, queues)
	case (f.Kind == FaultPartial || f.Kind == FaultEmpty) && (!slices.Contains(listServices, f.Service) || !lists(cmp.Or(f.Action, describes))):
		return badInput("kind %s is for the calls that list of %s only", f.Kind, strings.Join(listServices, ", "))
	case f.Kind == FaultError && (!slices.Contains(listServices, f.Service) || !errorCode.MatchString(f.Code) || f.Status != 0 && (f.Status < 400 || f.Status > 599)):
		return badInput("kind error needs a code and a status of 400 to 599, and is for %s only", strings.Join(listServices, ", "))
	case f.Kind != FaultError && (f.Code != "" || f.Status != 0):
		return badInput("code and status are for kind error")
	case f.Kind == FaultJobFails && f.Service != "alb" && f.Service != "nlb":
		return badInput("kind %s is for alb and nlb only", f.Kind)
	}
	return nil
}

func joinKinds() string {
	var out []string
	for _, k := range faultKinds {
		out = append(out, string(k))
	}
	return strings.Join(out, ", ")
}

func knownAction(provider, service, action string) bool {
	switch {
	case service == "mns":
		return mnsOperations[action] != nil
	case service == "metadata":
		return slices.Contains(metadataActions, action)
	case provider == providerAWS:
		known := awsServices[service]
		return known != nil && known.operations[action] != nil
	}
	return operation(service+"."+action) != nil
}

// describes begins the names of the calls that list things; those of alb and nlb begin
// with List.
const describes = "Describe"

func lists(action string) bool {
	return strings.HasPrefix(action, describes) || strings.HasPrefix(action, "List")
}

var errorCode = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._-]{0,127}$`)

type armedFault struct {
	Fault
	left   int
	tokens float64   // in the bucket, with PerSecond
	filled time.Time // when they were counted
}

// spent takes a token out of the bucket; true: there is none.
func (f *armedFault) spent() bool {
	now := time.Now()
	f.tokens = min(max(1, f.PerSecond), f.tokens+f.PerSecond*now.Sub(f.filled).Seconds())
	f.filled = now
	if f.tokens < 1 {
		return true
	}
	f.tokens--
	return false
}

// InjectFault sets a fault and returns its id.
func (s *Simulator) InjectFault(f Fault) (id string, err error) {
	if err := f.check(s.scenario.Provider); err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.faults) >= maxFaults {
		return "", badInput("there are %d faults already; clear them first", maxFaults)
	}
	f.ID = "fault-" + randomText(10)
	s.faults = append(s.faults, &armedFault{Fault: f, left: f.Count, tokens: max(1, f.PerSecond), filled: time.Now()})
	return f.ID, nil
}

// ClearFaults ends all faults. A call that one has struck already, such as a hanging
// one, is not set free.
func (s *Simulator) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// effects is what a fault does to the call that it has struck.
type effects struct {
	kind               FaultKind
	duplicate, corrupt bool
	refusal            *rpcError // of kind error
}

// interfere counts the call and lets a fault strike it. It does not return when the
// fault has cut the connection.
func (s *Simulator) interfere(ctx context.Context, service, action string) effects {
	s.mu.Lock()
	s.clock.catchUp()
	s.countCall(service, action)
	f, struck := s.strike(service, action, nil)
	s.mu.Unlock()
	if !struck {
		return effects{}
	}
	if f.Latency > 0 {
		s.pause(ctx, f.Latency)
	}
	switch f.Kind {
	case FaultHang:
		s.pause(ctx, 0)
		panic(http.ErrAbortHandler)
	case FaultDrop:
		panic(http.ErrAbortHandler)
	}
	return effects{
		kind: f.Kind, duplicate: f.Kind == FaultDuplicate, corrupt: f.Kind == FaultCorrupt,
		refusal: &rpcError{status: cmp.Or(f.Status, 400), code: f.Code, message: "The request is refused for a test."},
	}
}

// countCall counts by "service.Action"; what is no action counts as one name, so that
// strangers cannot make the map grow.
func (s *Simulator) countCall(service, action string) {
	if !knownAction(s.scenario.Provider, service, action) {
		service, action = cmp.Or(service, "rpc"), "unknown"
	}
	s.calls[service+"."+action]++
}

// countRefusal counts by "service.Action Code".
func (s *Simulator) countRefusal(service, action, code string) {
	if !knownAction(s.scenario.Provider, service, action) {
		service, action = cmp.Or(service, "rpc"), "unknown"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refusals[service+"."+action+" "+code]++
}

// strike picks the fault that hits this call, of the given kinds or of any. The
// caller holds s.mu.
func (s *Simulator) strike(service, action string, kinds []FaultKind) (Fault, bool) {
	for i, f := range s.faults {
		fits := f.Service == service && (f.Action == "" || f.Action == action || "Batch"+f.Action == action || f.Action+"Batch" == action)
		if f.Kind == FaultPartial || f.Kind == FaultEmpty {
			fits = fits && lists(action)
		}
		if !fits || kinds != nil && !slices.Contains(kinds, f.Kind) || f.Rate > 0 && rand.Float64() >= f.Rate || f.PerSecond > 0 && !f.spent() {
			continue
		}
		f.Struck++
		if f.Count > 0 {
			if f.left--; f.left == 0 {
				s.faults = slices.Delete(slices.Clone(s.faults), i, i+1)
			}
		}
		return f.Fault, true
	}
	return Fault{}, false
}

// thin does to the lists of an answer what FaultPartial and FaultEmpty say.
func (fx effects) thin(answer object) {
	if fx.kind != FaultPartial && fx.kind != FaultEmpty {
		return
	}
	cut := func(items []any) []any {
		kept := []any{}
		for i, item := range items {
			if i%2 == 1 && fx.kind == FaultPartial {
				kept = append(kept, item)
			}
		}
		return kept
	}
	for name, value := range answer {
		switch v := value.(type) {
		case []any:
			answer[name] = cut(v)
		case object: // as ESS 2014 and ECS write a list
			for singular, inner := range v {
				if items, ok := inner.([]any); ok {
					v[singular] = cut(items)
				}
			}
		}
	}
	if fx.kind == FaultEmpty && answer["TotalCount"] != nil {
		answer["TotalCount"] = 0
	}
}

// pause waits for d, for ever if 0, unless the client or the simulator ends it.
func (s *Simulator) pause(ctx context.Context, d time.Duration) {
	var over <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		over = t.C
	}
	select {
	case <-over:
	case <-ctx.Done():
		panic(http.ErrAbortHandler)
	case <-s.done:
		panic(http.ErrAbortHandler)
	}
}
