// Package configs holds what an operator writes: one folder with one YAML file a
// scaling group, and usher.yaml for the worker itself. Load reads it, lays the
// USHER_ variables of the environment over it, and gives either plain values that
// are complete and checked, or every problem of every file at once.
package configs

import (
	"net/netip"
	"slices"
	"time"

	"example.org/usher/messages"
)

// The defaults of what a file may leave out.
const (
	DefaultMaxActions        = 1000
	DefaultMaxJobs           = 100
	DefaultMaxReceives       = 5
	DefaultVisibilityTimeout = time.Minute
	DefaultShutdownGrace     = 25 * time.Second
	DefaultReconcileEvery    = 5 * time.Minute
	DefaultHTTP              = "127.0.0.1:9090"
	DefaultLogLevel          = "info"
	DefaultLogFormat         = "text"
	DefaultVerify            = VerifyAlways
	// LeastHeartbeatFloor is the floor of hooks that name none, unless the worker's
	// visibility_timeout asks for more: four times that.
	LeastHeartbeatFloor = 2 * time.Minute

	DefaultHTTPTimeout            = 30 * time.Second
	DefaultCommandTimeout         = time.Minute
	DefaultWaitConnectionsTimeout = 10 * time.Minute
	// WaitSlack is what a wait step's timeout allows beyond the wait itself.
	WaitSlack = 5 * time.Second

	DefaultQuietFor       = 3 * time.Second
	DefaultLongestRequest = 10 * time.Second
	DefaultEvery          = time.Second
	DefaultClearChecks    = 3
	DefaultBackground     = 2
	DefaultGap            = 10 * time.Second
)

// What Group.Verify can be.
const (
	// VerifyAlways asks the cloud about each action before it is touched.
	VerifyAlways = "always"
	// VerifyRedelivered asks only when the message was delivered before.
	VerifyRedelivered = "redelivered"
	// VerifyNever trusts every notification in the queue.
	VerifyNever = "never"
)

// What Quarantine.To can be.
const (
	// QuarantineAudit deletes the message: the audit log alone has it.
	QuarantineAudit = "audit"
	// QuarantineDeadLetter leaves it to the queue's own dead-letter policy.
	QuarantineDeadLetter = "dead_letter"
	// QuarantineQueue sends it to another queue and deletes it.
	QuarantineQueue = "queue"
)

// What Step.OnError can be.
const (
	// OnErrorFail ends the job as failed.
	OnErrorFail = "fail"
	// OnErrorIgnore goes on with the next step.
	OnErrorIgnore = "ignore"
)

// What WaitConnectionsStep.Until can be.
const (
	UntilQuiet = "quiet"
	UntilZero  = "zero"
)

// What HTTPStep.Preset can be.
const (
	// PresetDown makes an application's health check fail, and waits until it does.
	PresetDown = "down"
	// PresetUp makes it answer well again.
	PresetUp = "up"
	// PresetAskClose makes an application end its connections: its answers say
	// "Connection: close".
	PresetAskClose = "ask_close"
	// PresetInFlight waits until an application works on no request.
	PresetInFlight = "in_flight"
)

// What HTTPStep.OnRefused can be.
const (
	// OnRefusedFail takes a refused connection for an answer that is not as expected.
	OnRefusedFail = "fail"
	// OnRefusedDone takes it for one that is: the application has stopped.
	OnRefusedDone = "done"
)

// The kinds of step, as the files write them and as Step.Kind holds them.
const (
	KindHTTP            = "http"
	KindWaitConnections = "wait_connections"
	KindCommand         = "command"
	KindExec            = "exec"
	KindWait            = "wait"
	KindDeregister      = "deregister"
	KindRegister        = "register"
	KindParallel        = "parallel"
	KindNotify          = "notify"

	KindFailHealthCheck  = "fail_health_check"
	KindBlockConnections = "block_connections"
	KindUndo             = "undo"
)

// Config is one folder of files, complete with defaults and checked.
type Config struct {
	Worker Worker
	// Groups are in the order of their file names.
	Groups []Group
}

// Worker is usher.yaml: how this worker runs, whatever its groups.
type Worker struct {
	// Name is how this worker signs its audit records; the host's name by default.
	Name string
	// MaxActions is how many lifecycle actions are held at once for each queue.
	MaxActions int
	// MaxJobs is how many jobs run at once, over all groups.
	MaxJobs int
	// MaxReceives is after how many deliveries a message that cannot be decoded is quarantined.
	MaxReceives int
	Quarantine  Quarantine
	// VisibilityTimeout is how long one renewal hides a held message: the time after
	// which another worker takes over from one that died. Whole seconds.
	VisibilityTimeout time.Duration
	// ShutdownGrace is how long jobs may go on after the first SIGTERM.
	ShutdownGrace time.Duration
	Reconcile     Reconcile
	// HTTP is where /healthz and /readyz are served; empty: nowhere.
	HTTP  string
	Log   Log
	Audit Audit
	// Endpoints are where the worker's own credentials come from.
	Endpoints WorkerEndpoints
}

// Quarantine is what becomes of a message that can't be decoded at delivery MaxReceives.
// In each case its body is written to the audit log.
type Quarantine struct {
	// To is QuarantineAudit, QuarantineDeadLetter or QuarantineQueue.
	To string
	// Queue is the name of a queue at the endpoint of the one that the message came from;
	// set with QuarantineQueue only.
	Queue string
}

// Reconcile is the search for lifecycle actions whose message is lost.
type Reconcile struct {
	// Every is how often each group is asked; 0: never.
	Every time.Duration
}

// Log is the operational log.
type Log struct {
	// Level is debug, info, warn or error.
	Level string
	// Format is text or json.
	Format string
}

// Audit is the audit log.
type Audit struct {
	// File is appended to; empty: standard output.
	File string
}

// Group is one scaling group: one file.
type Group struct {
	// File is the file's name inside the folder, and Name that name without its ending.
	File string
	Name string
	// Provider is the cloud: ProviderAlibaba or ProviderAWS.
	Provider string
	Region   string
	// ScalingGroup is the group's id; on AWS that is its name.
	ScalingGroup messages.GroupID
	// AssumeRole is the role whose keys make the group's calls; none: the worker's own do.
	AssumeRole Role
	// Queue is where the group's notifications arrive. Groups may share one.
	Queue Queue
	// Endpoints replace the cloud's own addresses where they are set.
	Endpoints Endpoints
	// Verify is VerifyAlways, VerifyRedelivered or VerifyNever.
	Verify string
	// MaxConcurrent bounds the group's own jobs; 0: only the worker's MaxJobs does.
	MaxConcurrent int
	Hooks         []Hook
	// Events are warnings about instances that no hook holds, on AWS only: their On is set.
	Events []Hook
}

// Plans are the group's Hooks and Events.
func (g Group) Plans() []Hook { return slices.Concat(g.Hooks, g.Events) }

// Queue names a message queue. Two groups with equal values share one consumer.
type Queue struct {
	// Provider is the group's.
	Provider string
	// Region is the group's on AWS; else empty, Endpoint says it.
	Region string
	Name   string
	// Account owns the queue, on AWS: what the file says, or Role's; empty: that of the
	// worker's own keys.
	Account string
	// Endpoint is an http or https URL without a path and without a slash at its end. On AWS
	// it may be empty: the cloud's own address for the region.
	Endpoint string
	// Role is whose keys read the queue: the group's AssumeRole unless the file says
	// otherwise. Groups that share a queue agree on it.
	Role Role
}

// Endpoints are http or https URLs; empty: the cloud's own address for the region.
type Endpoints struct {
	ESS string
	ECS string
	// SLB is CLB's.
	SLB, ALB, NLB string
	// ELB is that of both generations.
	AutoScaling, ELB, SSM, EC2 string
	// STS is either cloud's.
	STS string
}

// Hook is what to do when a lifecycle hook pauses an instance, or when an event warns of one.
type Hook struct {
	// On are the events; none: it is a hook's. Then Transition is ScaleIn, and the selectors,
	// results and heartbeats are empty: nothing waits for an answer.
	On         []messages.Event
	Transition messages.Transition
	// HookID and HookName select one hook of the group; at most one of them is set.
	// Both empty: every hook of the transition. Hooks of AWS have names alone.
	HookID   messages.HookID
	HookName string
	// Deadline is how long after the hook fired the job must have ended.
	Deadline time.Duration
	// OnSuccess and OnFailure are the results that end the wait. On scale-in only
	// ROLLBACK keeps the instance.
	OnSuccess messages.Result
	OnFailure messages.Result
	Heartbeat Heartbeat
	// Steps run in order; none: the action is answered at once.
	Steps []Step
	// Always are the steps for the end of each job, however it ends.
	Always []Step
}

// Heartbeat is how the hook's wait is prolonged. One of its fields is set; on AWS none is:
// each heartbeat is worth the hook's own timeout.
type Heartbeat struct {
	// Floor is the shortest extension that is asked for while lengths are planned:
	// how long a cluster that died may hold an instance.
	Floor time.Duration
	// Extension is the operator's own length for each heartbeat; 0: planned.
	Extension time.Duration
}

// Step is one thing a job does. The field that Kind names is set, the others are nil.
type Step struct {
	Kind string
	// Line is where the step stands in its file.
	Line int
	// Timeout bounds one attempt, and Retries is how many more there may be.
	Timeout time.Duration
	Retries int
	// OnError is OnErrorFail or OnErrorIgnore.
	OnError string
	// When says whether the step runs at all.
	When Condition
	// UndoTimeout is how long undoing the step may take where an answer keeps the instance;
	// 0: it needs none.
	UndoTimeout time.Duration
	// Parallel are the steps that run at once. Timeout, Retries and OnError are theirs then.
	Parallel        []Step
	HTTP            *HTTPStep
	WaitConnections *WaitConnectionsStep
	Command         *CommandStep
	Exec            *ExecStep
	Wait            *WaitStep
	Deregister      *DeregisterStep
	Register        *RegisterStep
	Notify          *NotifyStep

	FailHealthCheck  *FailHealthCheckStep
	BlockConnections *BlockConnectionsStep
	Undo             *UndoStep
}

// HTTPStep makes a call, or repeats it until the answer is as expected, or makes one and
// asks another URL until that shows its effect.
type HTTPStep struct {
	// Preset is PresetDown, PresetUp, PresetAskClose, PresetInFlight or empty. The other
	// fields hold what it stands for.
	Preset string
	Method string
	// URL, VerifyURL, the values of Headers, Body and ServerName are templates; see placeholders.Names.
	URL     string
	Headers map[string]string
	Body    string
	// Expect are the status codes that count as success; none: 200 to 299.
	Expect []int
	// Field is where the count of PresetInFlight is in a JSON answer; empty: the answer is a
	// number. AtMost is how many requests may be in flight.
	Field  string
	AtMost int
	// VerifyURL is polled with GET after the call; empty: nothing is. VerifyExpect is to it
	// what Expect is to URL.
	VerifyURL    string
	VerifyExpect []int
	// Every is the pause between polls; 0: one call, whose answer decides.
	Every time.Duration
	// ClearChecks is how many expected answers in a row end the polling.
	ClearChecks int
	// Gap is how long the answers must have been as expected at least.
	Gap time.Duration
	// Tries is how often each URL is called at most; 0: as often as Timeout allows.
	Tries int
	// CallTimeout bounds one call; 0: 10 s when polling, else only Timeout does.
	CallTimeout time.Duration
	// OnRefused is OnRefusedFail or OnRefusedDone.
	OnRefused string
	// TokenFile, CertFile, KeyFile and CAFile are absolute paths where the worker runs.
	TokenFile, CertFile, KeyFile, CAFile string
	ServerName                           string
	// AllowHosts are the host names, addresses and prefixes that the URLs may name
	// besides the instance's own address. Redirects are never followed.
	AllowHosts []string
}

// WaitConnectionsStep waits until the TCP connections on the ports have ended.
type WaitConnectionsStep struct {
	Ports []int
	// Exclude are networks whose connections do not count: the balancer's probes.
	Exclude []netip.Prefix
	// Until is UntilQuiet (nothing new and nothing busy) or UntilZero (nothing established).
	Until string
	// ClearChecks is how many polls in a row, Every apart, must be clear.
	ClearChecks int
	Every       time.Duration
	// QuietFor is how long no connection may have arrived. Only with UntilQuiet.
	QuietFor time.Duration
	// LongestRequest is how long a request may take whose first bytes came right behind
	// an answer, in the same clock tick: such a connection looks idle, and counts as busy
	// until it was silent for so long. Only with UntilQuiet.
	LongestRequest time.Duration
	// Tries is the most polls, once the gap is over; 0: any number. Only with UntilZero.
	Tries int
	// Gap is how long after it was told, or its health check was made to fail, a balancer
	// may go on sending.
	Gap time.Duration
	// GapFrom are balancers whose health checks say that; Gap is for when they don't. None
	// where the file gives the gap itself.
	GapFrom []Balancer
	// gapMeant: the file says how the gap is known. It is false once the file is read.
	gapMeant bool
	// Background is how many new connections a second do not count as arrivals: probes
	// and other ports. Only with UntilQuiet.
	Background int
	// LocalAddress is a template; set, only connections to that address count.
	LocalAddress string
}

// CommandStep runs a script on the instance.
type CommandStep struct {
	// Script is a path on the instance, or the lines of a shell script.
	Script string
}

// WaitStep lets a fixed time go by.
type WaitStep struct {
	For time.Duration
}

// Matches says whether the hook's steps are meant for the action.
func (h Hook) Matches(a messages.Action) bool {
	return len(h.On) == 0 && a.Event == "" && h.Transition == a.Transition &&
		(h.HookID == "" || h.HookID == a.Hook) &&
		(h.HookName == "" || h.HookName == a.HookName)
}
