package worker_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/providers/alibaba"
	"example.org/usher/providers/aws"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

// mark is in every key and secret of these tests, so that it can be looked for in what a
// worker says. The gate looks for it in what the tests themselves print.
const (
	mark      = "usherTESTsecret"
	keyID     = mark + "Id"
	keySecret = mark + "Key"
)

const (
	groupID   = "asg-web"
	hookID    = "ash-in"
	queueName = "hooks"
	awsRegion = "eu-west-1"
)

// cloud is a simulated cloud inside a synctest bubble, reached over connections in memory.
type cloud struct {
	*simulator.Simulator
	t        *testing.T
	name     messages.Cloud
	listener *simulator.PipeListener
	// front, if set before a worker starts, may answer a request instead of the simulator.
	front func(http.ResponseWriter, *http.Request) bool
}

func (c *cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if c.front == nil || !c.front(w, r) {
		c.Simulator.ServeHTTP(w, r)
	}
}

// scenario is one group with one scale-in hook.
func scenario(instances int, split bool) simulator.Scenario {
	return simulator.Scenario{
		Region: "cn-shenzhen",
		Queues: []simulator.QueueConfig{{Name: queueName, VisibilityTimeout: 30 * time.Second}},
		ScalingGroups: []simulator.GroupConfig{{
			ID: groupID, Instances: instances, SplitActivity: split,
			Hooks: []simulator.HookConfig{{ID: hookID, Transition: "scale_in", Queue: queueName, HeartbeatTimeout: 10 * time.Minute, DefaultResult: "ROLLBACK"}},
		}},
	}
}

// onAWS is the same on AWS, where a hook can't keep its instances, and waits for two hours at
// the most until it is asked to wait on.
func onAWS(s simulator.Scenario) simulator.Scenario {
	s.Provider, s.Region = string(messages.AWS), awsRegion
	for i := range s.ScalingGroups {
		for n := range s.ScalingGroups[i].Hooks {
			h := &s.ScalingGroups[i].Hooks[n]
			h.ID, h.Name, h.DefaultResult = cmp.Or(h.Name, h.ID), "", "CONTINUE"
			h.HeartbeatTimeout = min(h.HeartbeatTimeout, 2*time.Hour)
		}
	}
	return s
}

// where moves a scenario to a cloud.
type where func(simulator.Scenario) simulator.Scenario

func (on where) isAWS() bool { return on(simulator.Scenario{}).Provider == string(messages.AWS) }

// clouds are those that there are. Scenarios are written for the first.
var clouds = map[messages.Cloud]where{
	messages.Alibaba: func(s simulator.Scenario) simulator.Scenario { return s }, messages.AWS: onAWS,
}

// eachCloud runs a test in a bubble on both clouds.
func eachCloud(t *testing.T, test func(t *testing.T, on where)) {
	t.Helper()
	for name, on := range clouds {
		t.Run(string(name), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { test(t, on) })
		})
	}
}

func newCloud(t *testing.T, s simulator.Scenario) *cloud {
	t.Helper()
	return newCloudWith(t, simulator.Options{Scenario: s})
}

func newCloudWith(t *testing.T, o simulator.Options) *cloud {
	t.Helper()
	o.AccessKeyID, o.AccessKeySecret, o.NoServers = keyID, keySecret, true
	sim, err := simulator.New(o)
	if err != nil {
		t.Fatal(err)
	}
	c := &cloud{Simulator: sim, t: t, name: cmp.Or(messages.Cloud(o.Scenario.Provider), messages.Alibaba), listener: simulator.NewPipeListener()}
	server := &http.Server{Handler: c, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	served := make(chan error, 1)
	go func() { served <- server.Serve(c.listener) }()
	t.Cleanup(func() {
		if err := errors.Join(server.Close(), sim.Close()); err != nil {
			t.Error(err)
		}
		<-served
	})
	return c
}

// stepFunc lets a test say what a step does.
type stepFunc func(ctx context.Context, in messages.Instance, attempt int) (string, error)

func (stepFunc) Name() string { return "test" }
func (f stepFunc) Run(ctx context.Context, in messages.Instance, attempt int) (string, error) {
	return f(ctx, in, attempt)
}

// takes is a step that only takes time.
func takes(d time.Duration) worker.PlannedStep {
	return worker.PlannedStep{Step: stepFunc(func(ctx context.Context, _ messages.Instance, _ int) (string, error) {
		select {
		case <-time.After(d):
			return "", nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	})}
}

// plan is a scale-in plan with the policies that tell success and failure apart.
func plan(deadline time.Duration, steps ...worker.PlannedStep) worker.Plan {
	return worker.Plan{
		Transition: messages.ScaleIn, Deadline: deadline, OnSuccess: messages.Continue, OnFailure: messages.Abandon,
		HeartbeatFloor: 2 * time.Minute, Steps: steps,
	}
}

// settings are what a test changes about a worker.
type settings struct {
	name    string
	plans   []worker.Plan
	groups  []string // default groupID
	verify  worker.Verify
	lease   time.Duration // default worker.DefaultVisibilityTimeout
	change  func(*worker.Options)
	keyID   string
	logs    *bytes.Buffer
	timeout time.Duration
	running func(*running) // is told of the worker before it starts
	// endpoint is where a group's calls to Auto Scaling go; default one host for all.
	endpoint func(group string) string
}

// dialled is a connection and where it goes.
type dialled struct {
	net.Conn
	addr string
}

// running is a worker under test.
type running struct {
	t        *testing.T
	w        *worker.Worker
	endRecv  context.CancelFunc
	endWork  context.CancelFunc
	done     chan struct{}
	err      error
	mu       sync.Mutex
	audit    bytes.Buffer // guarded by mu
	logged   bytes.Buffer // guarded by mu; the operational log, debug level and all
	severed  bool         // guarded by mu
	only     string       // guarded by mu; the one host that is cut off, "": all
	conns    []dialled    // guarded by mu
	listener *simulator.PipeListener
	cloud    messages.Cloud
	// lifecycle makes a client for a group, as the worker's own were made.
	lifecycle func(group string) providers.Lifecycle
}

func (r *running) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.audit.Write(p)
}

// logWriter is where the worker's operational log goes.
type logWriter struct{ *running }

func (w logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.logged.Write(p)
}

// saysNoSecret wants no key in what the worker has logged and recorded.
func (r *running) saysNoSecret() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, text := range []string{r.audit.String(), r.logged.String()} {
		if strings.Contains(text, mark) {
			r.t.Error("a secret, or the id of a key, was logged")
		}
	}
}

var errSevered = errors.New("network is cut")

// dial connects to the simulator unless the network is cut.
func (r *running) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	r.mu.Lock()
	severed := r.severed && strings.HasPrefix(addr, r.only)
	r.mu.Unlock()
	if severed {
		return nil, &net.OpError{Op: "dial", Net: network, Err: errSevered}
	}
	conn, err := r.listener.DialContext(ctx, network, addr)
	if err == nil {
		r.mu.Lock()
		r.conns = append(r.conns, dialled{conn, addr})
		r.mu.Unlock()
	}
	return conn, err
}

// sever cuts the worker off the cloud; mend ends that.
func (r *running) sever() { r.severFrom("") }

// severQueue cuts it off the queue alone.
func (r *running) severQueue() {
	r.severFrom(map[messages.Cloud]string{messages.Alibaba: "mns.", messages.AWS: "sqs."}[r.cloud])
}

func (r *running) severFrom(host string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.severed, r.only = true, host
	for _, c := range r.conns {
		if strings.HasPrefix(c.addr, host) {
			c.Close()
		}
	}
}

func (r *running) mend() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.severed = false
}

// kill ends the worker as SIGKILL does: nothing of it reaches the cloud any more.
func (r *running) kill() {
	r.sever()
	r.endWork()
	r.wait()
}

// stop ends it as SIGTERM does.
func (r *running) stop() {
	r.endRecv()
	r.wait()
}

func (r *running) wait() {
	r.t.Helper()
	<-r.done
	if r.err != nil {
		r.t.Errorf("worker: %v", r.err)
	}
}

func (c *cloud) start(s settings) *running {
	c.t.Helper()
	r := &running{t: c.t, done: make(chan struct{}), listener: c.listener, cloud: c.name}
	log := slog.New(slog.NewTextHandler(logWriter{r}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if s.groups == nil {
		s.groups = []string{groupID}
	}
	var queue func(name string) queueOf
	queue, r.lifecycle = c.clients(s, r, log)
	q := queue(queueName)
	region := c.State().Region
	var groups []worker.Group
	for _, id := range s.groups {
		groups = append(groups, worker.Group{
			Name: id, Provider: string(c.name), Region: region, ID: messages.GroupID(id), Lifecycle: r.lifecycle(id), Verify: s.verify, Plans: s.plans,
		})
	}
	options := worker.Options{
		Queues: []worker.Queue{{Name: queueName, Cloud: c.name, Region: region, Queue: q, Groups: groups}},
		Audit:  audit.New(r, s.name, nil),
		Logger: log,

		VisibilityTimeout: s.lease,
	}
	if s.logs != nil {
		options.Logger = slog.New(slog.NewMultiHandler(log.Handler(), slog.NewTextHandler(s.logs, nil)))
	}
	if s.running != nil {
		s.running(r)
	}
	if s.change != nil {
		s.change(&options)
	}
	var err error
	if r.w, err = worker.New(options); err != nil {
		c.t.Fatal(err)
	}
	var receiving, working context.Context
	working, r.endWork = context.WithCancel(context.WithoutCancel(c.t.Context()))
	receiving, r.endRecv = context.WithCancel(working)
	go func() {
		defer close(r.done)
		r.err = r.w.Run(receiving, working)
	}()
	c.t.Cleanup(func() { r.endWork(); <-r.done; r.saysNoSecret() })
	return r
}

// queueOf is a client of a queue that can be sent to, too.
type queueOf interface {
	providers.Queue
	worker.Sender
}

// clients makes the clients of a worker: of a queue by its name, and one for each group.
func (c *cloud) clients(s settings, r *running, log *slog.Logger) (func(queue string) queueOf, func(group string) providers.Lifecycle) {
	if c.name == messages.AWS {
		return c.aws(s, r, log)
	}
	return c.alibaba(s, r, log)
}

// alibaba is clients on Alibaba Cloud.
func (c *cloud) alibaba(s settings, r *running, log *slog.Logger) (func(queue string) queueOf, func(group string) providers.Lifecycle) {
	o := alibaba.Options{
		Region: "cn-shenzhen", QueueEndpoint: "http://mns.test", ESSEndpoint: "http://ess.test", ECSEndpoint: "http://ecs.test",
		Credentials: alibaba.StaticCredentials(keyID, keySecret), DialContext: r.dial, Pacer: new(alibaba.Pacer), CallTimeout: s.timeout, Logger: log,
	}
	if s.keyID != "" {
		o.Credentials = alibaba.StaticCredentials(s.keyID, mark+"Wrong")
	}
	queue := func(name string) queueOf {
		o := o
		o.QueueName = name
		q, err := alibaba.NewQueue(o)
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(q.Close)
		return q
	}
	return queue, func(group string) providers.Lifecycle {
		o := o
		if s.endpoint != nil {
			o.ESSEndpoint = s.endpoint(group)
		}
		l, err := alibaba.NewScaling(o)
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(l.Close)
		return l
	}
}

// aws is clients on AWS.
func (c *cloud) aws(s settings, r *running, log *slog.Logger) (func(queue string) queueOf, func(group string) providers.Lifecycle) {
	o := aws.Options{
		Region: awsRegion, VisibilityTimeout: cmp.Or(s.lease, worker.DefaultVisibilityTimeout),
		SQSEndpoint: "http://sqs.test", AutoScalingEndpoint: "http://autoscaling.test", EC2Endpoint: "http://ec2.test",
		Credentials: aws.StaticCredentials(keyID, keySecret), DialContext: r.dial, CallTimeout: s.timeout, Logger: log,
	}
	if s.keyID != "" {
		o.Credentials = aws.StaticCredentials(s.keyID, mark+"Wrong")
	}
	queue := func(name string) queueOf {
		o := o
		o.QueueName = name
		q, err := aws.NewQueue(o)
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(q.Close)
		return q
	}
	return queue, func(group string) providers.Lifecycle {
		o := o
		if s.endpoint != nil {
			o.AutoScalingEndpoint = s.endpoint(group)
		}
		l, err := aws.NewScaling(o)
		if err != nil {
			c.t.Fatal(err)
		}
		c.t.Cleanup(l.Close)
		return l
	}
}

// records gives the audit log.
func (r *running) records() []audit.Record {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []audit.Record
	for line := range bytes.Lines(r.audit.Bytes()) {
		var rec audit.Record
		if err := json.Unmarshal(line, &rec); err != nil {
			r.t.Fatalf("audit line %s: %v", line, err)
		}
		list = append(list, rec)
	}
	return list
}

// find gives the records of an event.
func (r *running) find(e audit.Event) []audit.Record {
	return slices.DeleteFunc(r.records(), func(rec audit.Record) bool { return rec.Event != e })
}

// balanced checks that each delivery that was received has exactly one closing record.
func (r *running) balanced() {
	r.t.Helper()
	open := map[string]int{}
	for _, rec := range r.records() {
		id := fmt.Sprintf("%s #%d", rec.MessageID, rec.ReceiveCount)
		switch {
		case rec.Event == audit.Received, rec.Event == audit.Adopted:
			open[id]++
		case rec.Event.Closes():
			open[id]--
		}
	}
	for id, n := range open {
		if n != 0 {
			r.t.Errorf("delivery %s: %+d closing records missing", id, n)
		}
	}
}

// until lets simulated time pass, a second at a time, until ok; it fails after the limit.
func (c *cloud) until(limit time.Duration, what string, ok func() bool) {
	c.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(time.Second) {
		synctest.Wait()
		if ok() {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("not within %v: %s\n%s", limit, what, c.describe())
		}
	}
}

func (c *cloud) describe() string {
	var b strings.Builder
	st := c.State()
	for i, a := range st.Actions {
		if i == 20 {
			fmt.Fprintf(&b, "and %d actions more\n", len(st.Actions)-i)
			break
		}
		fmt.Fprintf(&b, "action %s %s %s by %q, %d beats\n", a.Token, a.Status, a.Result, a.EndedBy, a.HeartbeatsUsed)
	}
	for _, q := range st.Queues {
		fmt.Fprintf(&b, "queue %+v\n", q)
	}
	return b.String()
}

// scaleIn removes n instances of the group and gives the tokens of the actions.
func (c *cloud) scaleIn(n int) []string {
	c.t.Helper()
	known := len(c.State().Actions)
	if _, err := c.ScaleIn(groupID, n); err != nil {
		c.t.Fatal(err)
	}
	var tokens []string
	c.until(time.Minute, "the hook fires", func() bool {
		tokens = nil
		for _, a := range c.State().Actions[known:] {
			tokens = append(tokens, a.Token)
		}
		return len(tokens) > 0
	})
	return tokens
}

// over says whether all actions have ended.
func (c *cloud) over() bool {
	st := c.State()
	for _, a := range st.Actions {
		if a.Status == "Pending" {
			return false
		}
	}
	return len(st.Actions) > 0
}

// empty says whether the queue has no message left.
func (c *cloud) empty() bool {
	q, ok := c.State().Queue(queueName)
	return ok && q.Active+q.Inactive+q.Delayed == 0
}

// settled says whether all actions have ended and all messages are deleted.
func (c *cloud) settled() bool { return c.over() && c.empty() }

// answered checks that every action was ended by a call with the result, and that no
// message was deleted before its action had ended.
func (c *cloud) answered(result messages.Result) {
	c.t.Helper()
	for _, a := range c.State().Actions {
		if a.Status != "Completed" || a.EndedBy != "call" || a.Result != string(result) {
			c.t.Errorf("action %s is %s %s by %q, want %s by a call", a.Token, a.Status, a.Result, a.EndedBy, result)
		}
		if a.HeartbeatsUsed > 20 && c.name == messages.Alibaba {
			c.t.Errorf("action %s had %d heartbeats", a.Token, a.HeartbeatsUsed)
		}
	}
	c.ordered()
}

// ordered checks that no message was deleted before its action had ended.
func (c *cloud) ordered() {
	c.t.Helper()
	over := map[string]bool{}
	for _, e := range c.Events() {
		switch e.Type {
		case simulator.ActionCompleted, simulator.ActionTimedOut, simulator.ActionCancelled:
			over[e.Token] = true
		case simulator.MessageDeleted:
			if e.Token != "" && !over[e.Token] {
				c.t.Errorf("message %s deleted before its action %s had ended", e.MessageID, e.Token)
			}
		}
	}
}

// count counts the events of a type.
func (c *cloud) count(typ simulator.EventType) int {
	n := 0
	for _, e := range c.Events() {
		if e.Type == typ {
			n++
		}
	}
	return n
}

// deleteQueue deletes the queue as an operator would, and createQueue makes it anew.
func (c *cloud) deleteQueue() { c.operate(http.MethodDelete, "", http.StatusNoContent) }
func (c *cloud) createQueue() {
	c.operate(http.MethodPut, `<Queue xmlns="http://mns.aliyuncs.com/doc/v1/"></Queue>`, http.StatusCreated)
}

// delay makes the queue hide what is sent from now on for d, in whole seconds.
func (c *cloud) delay(d time.Duration) {
	c.t.Helper()
	if err := c.DelayMessages(queueName, d); err != nil {
		c.t.Fatal(err)
	}
}

// operate sends a signed request about the queue.
func (c *cloud) operate(method, body string, want int) {
	c.t.Helper()
	target := "/queues/" + queueName
	date := time.Now().UTC().Format(http.TimeFormat)
	mac := hmac.New(sha1.New, []byte(keySecret))
	fmt.Fprintf(mac, "%s\n\n\n%s\nx-mns-version:2015-06-06\n%s", method, date, target)
	req, err := http.NewRequestWithContext(c.t.Context(), method, "http://mns.test"+target, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Date", date)
	req.Header.Set("x-mns-version", "2015-06-06")
	req.Header.Set("Authorization", "MNS "+keyID+":"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	client := &http.Client{Transport: &http.Transport{DialContext: c.listener.DialContext, DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != want {
		c.t.Fatalf("%s %s: %s", method, target, res.Status)
	}
}
