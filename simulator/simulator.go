package simulator

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// DefaultAccountID is the account when Options name none.
const DefaultAccountID = "1234567890123456"

// Options is how a Simulator is set up.
type Options struct {
	// Requests must be signed with these, or with keys that STS or the metadata gave out.
	AccessKeyID, AccessKeySecret string
	// SecurityToken, when set, makes the keys temporary ones: each request must carry it.
	SecurityToken string
	AccountID     string   // default DefaultAccountID, with AWS DefaultAWSAccountID
	Scenario      Scenario // zero: DefaultScenario()
	// Policy is what the keys may do. Nil: what Scenario.Policy says.
	Policy *Policy
	// Exec makes RunCommand run its script on this host, with sh. The caller sees to
	// it that only this host reaches the simulator.
	Exec bool
	// Commands, without Exec, is what the simulated machines do with a script. It is
	// called once for each instance of an invocation, from a goroutine of its own.
	// Nil: the instances have no agent.
	Commands func(instanceID, script string) CommandOutcome
	// Machines, if not nil, are what the instances run on, in place of servers on loopback
	// addresses; RunCommand runs its scripts there. Exec, Commands and NoServers are not
	// for a simulator that has them.
	Machines Machines
	// NoServers makes no backends and balancers: instances exist in the state only.
	// A synctest bubble needs it, since sockets hold up its clock.
	NoServers bool
	// NoEvents keeps no record of events.
	NoEvents bool
	Logger   *slog.Logger // nil: discard
}

// Simulator is the simulated cloud. Its methods are safe for concurrent use.
type Simulator struct {
	options   Options
	scenario  Scenario // with its defaults
	account   string
	log       *slog.Logger
	handleKey uint64
	keys      atomic.Pointer[accessKey]
	ahead     atomic.Int64           // how far the cloud's clock is ahead of ours, in nanoseconds
	policy    atomic.Pointer[Policy] // nil: everything is allowed
	done      chan struct{}          // closed by Close
	work      sync.WaitGroup         // commands

	mu           sync.Mutex // guards all below
	clock        schedule
	closed       bool
	queues       map[string]*queue
	sqs          map[string]*sqsQueue
	sqsDeleted   map[string]time.Time // when a queue of the name was deleted last
	sqsSeq       uint32               // numbers the queues
	topics       map[string]*topic
	messageSeq   uint64
	balancers    map[string]*balancer
	serverGroups map[string]*serverGroup
	jobs         *ledger[string, *serverJob] // of ALB and NLB
	groups       []*group
	hosts        hosts
	instances    map[string]*instance
	activities   *ledger[string, *activity]
	graves       *ledger[string, *instance] // terminated ones, of AWS
	actions      map[actionKey]*action
	invocations  *ledger[string, *invocation]
	answered     *ledger[string, answer] // what a ClientToken was answered with
	nonces       *ledger[string, struct{}]
	sessions     *ledger[string, *accessKey] // temporary keys, by their id
	metadata     metadata
	oidcTokens   *ledger[string, time.Time] // when each is over
	commands     int
	faults       []*armedFault
	calls        map[string]int
	refusals     map[string]int
	events       []Event
	eventSeq     int64
}

// New makes the cloud that o.Scenario describes, with its instances in service, and
// starts their backends and balancers unless o.NoServers. Call Close in the end.
func New(o Options) (*Simulator, error) {
	if o.AccessKeyID == "" || o.AccessKeySecret == "" {
		return nil, errors.New("simulator: an access key id and secret are needed")
	}
	if o.Machines != nil && (o.Exec || o.Commands != nil || o.NoServers) {
		return nil, errors.New("simulator: Machines run the instances and their scripts: leave out Exec, Commands and NoServers")
	}
	if reflect.ValueOf(o.Scenario).IsZero() {
		o.Scenario = DefaultScenario()
	}
	sc := o.Scenario.withDefaults()
	var problems []error
	for _, p := range sc.problems() {
		problems = append(problems, p)
	}
	if err := errors.Join(problems...); err != nil {
		return nil, fmt.Errorf("simulator: scenario: %w", err)
	}
	set(&o.AccountID, map[bool]string{false: DefaultAccountID, true: DefaultAWSAccountID}[sc.Provider == providerAWS])
	set(&o.Logger, slog.New(slog.DiscardHandler))
	s := &Simulator{
		options: o, scenario: sc, account: o.AccountID, log: o.Logger,
		handleKey:    newNonce(),
		done:         make(chan struct{}),
		queues:       map[string]*queue{},
		sqs:          map[string]*sqsQueue{},
		sqsDeleted:   map[string]time.Time{},
		topics:       map[string]*topic{},
		balancers:    map[string]*balancer{},
		serverGroups: map[string]*serverGroup{},
		jobs:         newLedger[string, *serverJob](100_000, 30*24*time.Hour),
		instances:    map[string]*instance{},
		actions:      map[actionKey]*action{},
		activities:   newLedger[string, *activity](100_000, 30*24*time.Hour),
		graves:       newLedger[string, *instance](100_000, terminatedKept),
		invocations:  newLedger[string, *invocation](50_000, 14*24*time.Hour),
		answered:     newLedger[string, answer](100_000, 24*time.Hour),
		nonces:       newLedger[string, struct{}](200_000, requestWindow),
		sessions:     newLedger[string, *accessKey](100_000, 24*time.Hour),
		metadata:     metadata{tokens: newLedger[string, time.Time](10_000, maxMetadataToken)},
		oidcTokens:   newLedger[string, time.Time](10_000, 24*time.Hour),
		calls:        map[string]int{},
		refusals:     map[string]int{},
	}
	s.clock.mu = &s.mu
	s.activities.forget = s.forgetActivity
	s.SetCredentials(o.AccessKeyID, o.AccessKeySecret, o.SecurityToken)
	if o.Policy == nil && sc.Policy != "" {
		o.Policy, _ = ParsePolicy([]byte(sc.Policy)) // it has been checked above
	}
	s.SetPolicy(o.Policy)
	if err := s.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("simulator: %w", err), s.Close())
	}
	return s, nil
}

// build makes what the scenario names.
func (s *Simulator) build() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, cfg := range s.scenario.Queues {
		if s.aws() {
			s.sqs[cfg.Name] = s.newSQSQueue(cfg)
			continue
		}
		s.queues[cfg.Name] = s.newQueue(cfg)
	}
	for _, cfg := range s.scenario.Topics {
		s.topics[cfg.Name] = s.newTopic(cfg)
	}
	if err := s.hosts.open(s.options.NoServers || s.options.Machines != nil); err != nil {
		return err
	}
	for _, cfg := range s.scenario.Balancers {
		b, err := newBalancer(cfg, s.options.NoServers, s.record, s.log)
		if err != nil {
			return fmt.Errorf("balancer %s: %w", cfg.ID, err)
		}
		s.balancers[cfg.ID] = b
		for _, g := range b.groups {
			s.serverGroups[g.cfg.ID] = g
			if cfg.hasTargets() {
				g.arn = s.targetGroupARN(g.cfg)
			}
		}
	}
	for i, cfg := range s.scenario.ScalingGroups {
		if err := s.newGroup(i, cfg); err != nil {
			return fmt.Errorf("scaling group %s: %w", cfg.ID, err)
		}
	}
	s.planCloudEvents()
	return nil
}

// SetClock sets how far the cloud's own clock is ahead of this machine's, or behind if
// negative: that of its queues' times, of the times in its notifications and answers, and of the
// window that a request's time must be in. State and Events keep this machine's time.
func (s *Simulator) SetClock(ahead time.Duration) { s.ahead.Store(int64(ahead)) }

// cloudTime is t on the cloud's clock.
func (s *Simulator) cloudTime(t time.Time) time.Time { return t.Add(time.Duration(s.ahead.Load())) }

// Close ends long polls and hanging requests, stops timers, commands, backends and
// balancers, and waits for all it started. It may be called again.
func (s *Simulator) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
		s.clock.close()
	}
	for _, q := range s.queues {
		q.wakeAll()
	}
	for _, q := range s.sqs {
		q.wakeAll()
	}
	for _, b := range s.balancers {
		b.stop()
	}
	for _, in := range s.instances {
		s.halt(in)
	}
	for _, v := range s.invocations.values() {
		v.interrupt()
	}
	s.mu.Unlock()

	s.clock.wait()
	s.work.Wait()
	for _, b := range s.balancers {
		b.wait()
	}
	s.hosts.wait()
	return nil
}

// ServeHTTP answers MNS, ESS, ECS, STS and balancer requests, told apart by path and version,
// or those of AWS, told apart by target and version; the metadata of an instance under
// /latest/, the control calls under /simulator/, and the health check.
func (s *Simulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case strings.HasPrefix(r.URL.Path, "/simulator/"):
		s.serveControl(w, r)
	case strings.HasPrefix(r.URL.Path, "/latest/"), s.aws() && strings.HasPrefix(r.URL.Path, awsContainerCredentials):
		s.serveMetadata(w, r)
	case r.URL.Path == "/healthz":
		s.serveHealth(w)
	case s.aws():
		s.serveAWS(w, r)
	case r.URL.Path == "/" || r.URL.Path == "":
		s.serveRPC(w, r)
	default:
		s.serveMNS(w, r)
	}
}

// response is an answer that is ready to be written.
type response struct {
	status int
	header http.Header
	body   []byte
}

func (res *response) write(w http.ResponseWriter) {
	for name, values := range res.header {
		w.Header()[name] = values
	}
	w.WriteHeader(res.status)
	w.Write(res.body) // an error here means that the client is gone
}

var errBodyTooLarge = errors.New("the request body is too large")

// readBody reads a whole body of at most limit bytes.
func readBody(r *http.Request, limit int64) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read request body: %w", err)
	}
	if int64(len(body)) > limit {
		return nil, errBodyTooLarge
	}
	return body, nil
}

// randomHex gives n upper-case hexadecimal digits.
func randomHex(n int) string {
	b := make([]byte, (n+1)/2)
	rand.Read(b) // never fails
	return strings.ToUpper(hex.EncodeToString(b))[:n]
}

// randomText gives n small letters and digits, as in instance ids.
func randomText(n int) string {
	return strings.ToLower(rand.Text())[:min(n, 26)]
}

// newUUID is upper case, as request ids and lifecycle action tokens are.
func newUUID() string {
	h := randomHex(32)
	return h[:8] + "-" + h[8:12] + "-4" + h[13:16] + "-A" + h[17:20] + "-" + h[20:]
}

// timePointer is nil for the zero time.
func timePointer(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
