package aws

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// script is a server that answers what it is told to, for what the simulated cloud never says.
type script struct {
	mu      sync.Mutex
	answers map[string][]answer // guarded by mu; by operation, the last one stays
	asked   map[string]int      // guarded by mu
}

type answer struct {
	status int
	header map[string]string
	body   string
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_, name, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	if name == "" {
		name = r.FormValue("Action")
	}
	_, _ = io.Copy(io.Discard, r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[name]++
	list := s.answers[name]
	if len(list) > 1 {
		s.answers[name] = list[1:]
	}
	if len(list) == 0 {
		list = []answer{{status: 500}}
	}
	a := list[0]
	for name, value := range a.header {
		w.Header().Set(name, value)
	}
	w.Header().Set("X-Amzn-Requestid", "request-1")
	w.WriteHeader(max(a.status, 200))
	_, _ = io.WriteString(w, a.body)
}

func (s *script) count(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[name]
}

func serve(t *testing.T, answers map[string][]answer) (*script, Options) {
	t.Helper()
	s := &script{answers: answers, asked: map[string]int{}}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return s, Options{
		Region: simRegion, QueueName: simQueue, Credentials: StaticCredentials(testID, testSecret),
		SQSEndpoint: server.URL, AutoScalingEndpoint: server.URL, EC2Endpoint: server.URL,
	}
}

func ok(body string) answer { return answer{body: body} }

var queueURL = ok(`{"QueueUrl":"http://cloud.test/111122223333/drain-q"}`)

// refused is an error of SQS, in both spellings.
func refused(shape, query, message string) answer {
	a := answer{status: 400, body: fmt.Sprintf(`{"__type":"com.amazonaws.sqs#%s","message":%q}`, shape, message)}
	if query != "" {
		a.header = map[string]string{"X-Amzn-Query-Error": query + ";Sender"}
	}
	return a
}

// TestCodes: what the services refuse with, as usher takes it.
func TestCodes(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		answer answer
		kind   error
		hint   string
	}{
		"queue":               {refused("QueueDoesNotExist", "", "x"), providers.ErrQueueGone, "queue.name"},
		"queue, query":        {refused("QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue", "x"), providers.ErrQueueGone, "queue.name"},
		"deleted":             {refused("QueueDeletedRecently", "AWS.SimpleQueueService.QueueDeletedRecently", "x"), providers.ErrQueueGone, ""},
		"handle":              {refused("ReceiptHandleIsInvalid", "ReceiptHandleIsInvalid", "x"), providers.ErrReceiptStale, ""},
		"not in flight":       {refused("MessageNotInflight", "AWS.SimpleQueueService.MessageNotInflight", "x"), providers.ErrReceiptStale, ""},
		"no message":          {refused("InvalidParameterValueException", "InvalidParameterValue", "Value x for parameter ReceiptHandle is invalid."), providers.ErrReceiptStale, ""},
		"a value":             {refused("InvalidParameterValueException", "InvalidParameterValue", "Value 21 for parameter WaitTimeSeconds is invalid."), providers.ErrInvalid, ""},
		"denied":              {refused("AccessDeniedException", "AccessDenied", "x"), providers.ErrDenied, "allow sqs:ReceiveMessage on arn:aws:sqs:eu-west-1:*:drain-q"},
		"expired":             {refused("ExpiredTokenException", "", "x"), providers.ErrDenied, "expired"},
		"unknown key":         {refused("UnrecognizedClientException", "InvalidClientTokenId", "x"), providers.ErrDenied, "unknown"},
		"secret":              {refused("InvalidSignatureException", "", "The request signature we calculated does not match. The Canonical String was x-amz-security-token:hidden"), providers.ErrDenied, "secret key"},
		"region":              {refused("InvalidSignatureException", "", "Credential should be scoped to a valid region, not 'eu-west-1'."), providers.ErrDenied, "region eu-west-1"},
		"early":               {refused("InvalidSignatureException", "", "Signature not yet current: 20260921T101504Z"), providers.ErrClock, "clock"},
		"late":                {refused("InvalidSignatureException", "", "Signature expired: 20260921T101504Z"), providers.ErrClock, "clock"},
		"key of the queue":    {refused("KmsAccessDenied", "KMS.AccessDeniedException", "x"), providers.ErrDenied, "kms:Decrypt"},
		"throttled":           {refused("RequestThrottled", "RequestThrottled", "x"), providers.ErrThrottled, ""},
		"throttled key":       {refused("KmsThrottled", "KMS.ThrottlingException", "x"), providers.ErrThrottled, ""},
		"in flight":           {refused("OverLimit", "OverLimit", "x"), providers.ErrUnavailable, "120,000"},
		"not opted in":        {refused("OptInRequired", "", "x"), providers.ErrDenied, "opted in"},
		"a proxy's page":      {answer{status: 403, body: "<html>no</html>"}, providers.ErrDenied, ""},
		"another's page":      {answer{status: 404, body: "<html>no</html>"}, providers.ErrInvalid, "not from AWS"},
		"a gateway's":         {answer{status: 502, body: "<html>no</html>"}, providers.ErrUnavailable, ""},
		"a redirect":          {answer{status: 307, header: map[string]string{"Location": "http://127.0.0.1:1/"}}, providers.ErrInvalid, "not from AWS"},
		"half an answer":      {ok(`{"Messages":[`), providers.ErrUnavailable, ""},
		"another kind of one": {ok(`<html>`), providers.ErrUnavailable, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, o := serve(t, map[string][]answer{"GetQueueUrl": {queueURL}, "ReceiveMessage": {tt.answer}})
			_, err := newQueue(t, o).Receive(t.Context(), 10, 0)
			e := wantKind(t, err, tt.kind)
			if !strings.Contains(e.Hint, tt.hint) || strings.Contains(err.Error(), "hidden") || e.RequestID != "request-1" || e.Op != "ReceiveMessage" {
				t.Errorf("%+v", e)
			}
			if n := s.count("ReceiveMessage"); n != 1 {
				t.Errorf("%d attempts", n)
			}
		})
	}
}

// TestAQueueMadeAnew: its URL is asked for again.
func TestAQueueMadeAnew(t *testing.T) {
	t.Parallel()
	s, o := serve(t, map[string][]answer{
		"GetQueueUrl":    {queueURL},
		"ReceiveMessage": {ok(`{}`), refused("QueueDoesNotExist", "", "x"), ok(`{}`)},
	})
	q := newQueue(t, o)
	for i, want := range []error{nil, providers.ErrQueueGone, nil, nil} {
		if _, err := q.Receive(t.Context(), 10, 0); !errors.Is(err, want) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if n := s.count("GetQueueUrl"); n != 2 {
		t.Errorf("asked %d times", n)
	}
}

// TestABatchInParts: what fails for the service's reasons is sent again, alone.
func TestABatchInParts(t *testing.T) {
	t.Parallel()
	s, o := serve(t, map[string][]answer{"GetQueueUrl": {queueURL}, "DeleteMessageBatch": {
		ok(`{"Successful":[{"Id":"0"}],"Failed":[
			{"Id":"1","Code":"InternalError","SenderFault":false,"Message":"x"},
			{"Id":"2","Code":"ReceiptHandleIsInvalid","SenderFault":true,"Message":"x"}]}`),
		ok(`{"Successful":[{"Id":"1"}],"Failed":[{"Id":"3","Code":"AccessDenied","SenderFault":true,"Message":"x"}]}`),
	}})
	errs := newQueue(t, o).Delete(t.Context(), []providers.Receipt{"a", "b", "c", "d"})
	for i, want := range []error{nil, nil, providers.ErrReceiptStale, providers.ErrDenied} {
		if !errors.Is(errs[i], want) || (want == nil) != (errs[i] == nil) {
			t.Errorf("%d: %v, want %v", i, errs[i], want)
		}
	}
	if n := s.count("DeleteMessageBatch"); n != 2 {
		t.Errorf("%d calls", n)
	}
}

// TestOddMessages: what cannot be true of a message is left out, and a digest that does not
// fit is its own message's trouble.
func TestOddMessages(t *testing.T) {
	t.Parallel()
	_, o := serve(t, map[string][]answer{"GetQueueUrl": {queueURL}, "ReceiveMessage": {ok(`{"Messages":[
		{"MessageId":"m-1","ReceiptHandle":"h-1","Body":"hi usher","MD5OfBody":"258509fbea88dad9fdfc526e2d94e597","Attributes":{"SentTimestamp":"1790000000123","ApproximateReceiveCount":"3"}},
		{"MessageId":"m-2","ReceiptHandle":"h-2","Body":"hi other","MD5OfBody":"258509fbea88dad9fdfc526e2d94e597"},
		{"MessageId":"m-3","ReceiptHandle":"h-3","Body":"no digest","Unknown":{"Field":1},"Attributes":{"SentTimestamp":"-1","ApproximateReceiveCount":"x"}},
		{"MessageId":"m-4","Body":"no handle"}, {"MessageId":"a\nb","ReceiptHandle":"h-5","Body":"x"}]}`)}})
	ds, err := newQueue(t, o).Receive(t.Context(), 10, 0)
	if err != nil || len(ds) != 3 {
		t.Fatalf("%+v, %v", ds, err)
	}
	if d := ds[0]; d.Garbled || d.Receives != 3 || d.EnqueuedAt.UnixMilli() != 1790000000123 || d.Receipt != "h-1" {
		t.Errorf("%+v", d)
	}
	if d := ds[1]; !d.Garbled || d.Receives != 1 || !d.EnqueuedAt.IsZero() {
		t.Errorf("%+v", d)
	}
	if d := ds[2]; d.Garbled || d.Receives != 1 || !d.EnqueuedAt.IsZero() {
		t.Errorf("%+v", d)
	}
}

// listed is an answer of DescribeAutoScalingInstances.
func listed(group, state string) answer {
	member := "<member><InstanceId>i-1</InstanceId><AutoScalingGroupName>" + group + "</AutoScalingGroupName><LifecycleState>" + state + "</LifecycleState></member>"
	if group == "" {
		member = ""
	}
	return ok(`<DescribeAutoScalingInstancesResponse><DescribeAutoScalingInstancesResult><AutoScalingInstances>` + member +
		`</AutoScalingInstances></DescribeAutoScalingInstancesResult></DescribeAutoScalingInstancesResponse>`)
}

func hooked(names ...string) answer {
	text := ""
	for _, name := range names {
		text += "<member><LifecycleHookName>" + name + "</LifecycleHookName><LifecycleTransition>autoscaling:EC2_INSTANCE_TERMINATING</LifecycleTransition><HeartbeatTimeout>300</HeartbeatTimeout></member>"
	}
	return ok(`<DescribeLifecycleHooksResponse><DescribeLifecycleHooksResult><LifecycleHooks>` + text + `</LifecycleHooks></DescribeLifecycleHooksResult></DescribeLifecycleHooksResponse>`)
}

// onEC2 is an answer of DescribeInstances; "": it lists none.
func onEC2(state string) answer {
	item := "<item><instancesSet><item><instanceId>i-1</instanceId><instanceState><name>" + state + "</name></instanceState><privateIpAddress>10.0.1.23</privateIpAddress></item></instancesSet></item>"
	if state == "" {
		item = ""
	}
	return ok(`<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><reservationSet>` + item + `</reservationSet></DescribeInstancesResponse>`)
}

// TestStates: each state of an instance for each transition.
func TestStates(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		transition   messages.Transition
		group, state string
		ec2          string
		want         providers.State
		ended        providers.State
	}{
		{messages.ScaleIn, simGroup, "Terminating:Wait", "running", providers.Pending, providers.Pending},
		{messages.ScaleIn, simGroup, "Terminating:Wait", "terminated", providers.Pending, providers.Pending},
		{messages.ScaleIn, simGroup, "Terminating:Wait", "", providers.Unclear, providers.Pending},
		{messages.ScaleIn, simGroup, "Warmed:Pending:Wait", "running", providers.Pending, providers.Pending},
		{messages.ScaleIn, simGroup, "Warmed:Terminating:Wait", "stopped", providers.Pending, providers.Pending},
		{messages.ScaleIn, simGroup, "Terminating", "running", providers.Unclear, providers.Pending},
		{messages.ScaleIn, simGroup, "Terminating:Proceed", "running", providers.Over, providers.Over},
		{messages.ScaleIn, simGroup, "Terminating:Retained", "running", providers.Over, providers.Over},
		{messages.ScaleIn, simGroup, "Warmed:Stopped", "stopped", providers.Unlisted, providers.Unlisted},
		{messages.ScaleIn, simGroup, "InService", "running", providers.Unlisted, providers.Unlisted},
		{messages.ScaleIn, simGroup, "Pending:Wait", "running", providers.Unlisted, providers.Unlisted},
		{messages.ScaleIn, simGroup, "Standby", "running", providers.Unlisted, providers.Unlisted},
		{messages.ScaleIn, "other-asg", "Terminating:Wait", "running", providers.Mismatch, providers.Over},
		{messages.ScaleIn, "", "", "running", providers.Unclear, providers.Unlisted},
		{messages.ScaleIn, "", "", "shutting-down", providers.Unlisted, providers.Unlisted},
		{messages.ScaleIn, "", "", "", providers.Unlisted, providers.Unlisted},
		{messages.ScaleOut, simGroup, "Pending:Wait", "running", providers.Pending, providers.Pending},
		{messages.ScaleOut, simGroup, "Pending:Wait", "", providers.Unclear, providers.Pending},
		{messages.ScaleOut, simGroup, "Warmed:Pending:Wait", "running", providers.Pending, providers.Pending},
		{messages.ScaleOut, simGroup, "Pending", "running", providers.Unclear, providers.Pending},
		{messages.ScaleOut, simGroup, "Warmed:Stopped", "stopped", providers.Unlisted, providers.Unlisted},
		{messages.ScaleOut, simGroup, "Warmed:Hibernated", "stopped", providers.Unlisted, providers.Unlisted},
		{messages.ScaleOut, simGroup, "Standby", "running", providers.Unlisted, providers.Unlisted},
		{messages.ScaleOut, simGroup, "InService", "running", providers.Over, providers.Over},
		{messages.ScaleOut, simGroup, "Terminating:Wait", "running", providers.Over, providers.Over},
		{messages.ScaleOut, simGroup, "Quarantined", "running", providers.Mismatch, providers.Over},
	} {
		t.Run(fmt.Sprint(tt.transition, tt.group, tt.state, tt.ec2), func(t *testing.T) {
			t.Parallel()
			_, o := serve(t, map[string][]answer{
				"DescribeAutoScalingInstances": {listed(tt.group, tt.state)}, "DescribeLifecycleHooks": {hooked(simHook, "other")}, "DescribeInstances": {onEC2(tt.ec2)},
			})
			s := newScaling(t, o)
			a := messages.Action{Group: simGroup, Hook: simHook, Token: "t", Transition: tt.transition, Instances: []messages.InstanceID{"i-1"}}
			v := verify(t, s, a)
			if v.Err != nil || v.State != tt.want || v.Reason == "" {
				t.Errorf("%+v, want %s", v, tt.want)
			}
			if tt.want == providers.Pending && (v.Instances[0].Gone != (tt.ec2 == "terminated") || v.Shared != (tt.transition == messages.ScaleIn)) {
				t.Errorf("%+v", v)
			}
			if v := s.Ended(t.Context(), []messages.Action{a})[0]; v.Err != nil || v.State != tt.ended {
				t.Errorf("ended: %+v, want %s", v, tt.ended)
			}
		})
	}
}

// TestUnreadableHooks: an action is real whether its group's hooks can be read or not. That
// another hook shares the wait is assumed then.
func TestUnreadableHooks(t *testing.T) {
	t.Parallel()
	_, o := serve(t, map[string][]answer{
		"DescribeAutoScalingInstances": {listed(simGroup, "Terminating:Wait")}, "DescribeInstances": {onEC2("running")},
		"DescribeLifecycleHooks": {{status: 403, body: `<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error><RequestId>r-1</RequestId></ErrorResponse>`}},
	})
	s := newScaling(t, o)
	a := messages.Action{Group: simGroup, Hook: simHook, Token: "t", Transition: messages.ScaleIn, Instances: []messages.InstanceID{"i-1"}}
	for _, v := range []providers.Verification{verify(t, s, a), s.Ended(t.Context(), []messages.Action{a})[0]} {
		if v.Err != nil || v.State != providers.Pending || !v.Shared {
			t.Errorf("%+v", v)
		}
	}
}

// TestAnotherKindOfOver: only the words of the service tell an action that is over from a
// request that is wrong.
func TestAnotherKindOfOver(t *testing.T) {
	t.Parallel()
	refusal := func(message string) answer {
		return answer{status: 400, body: `<ErrorResponse><Error><Code>ValidationError</Code><Message>` + message + `</Message></Error><RequestId>r-1</RequestId></ErrorResponse>`}
	}
	for message, kind := range map[string]error{
		"No active Lifecycle Action found with token 3d9c1f7e":                                      providers.ErrActionGone,
		"No active Lifecycle Action found with instance ID i-0aa11bb22cc33dd44":                     providers.ErrActionGone,
		"AutoScalingGroup name not found - AutoScalingGroup 'web-asg' not found":                    providers.ErrNotFound,
		"1 validation error detected: Value 'x' at 'lifecycleActionToken' failed to satisfy a rule": providers.ErrInvalid,
	} {
		_, o := serve(t, map[string][]answer{"CompleteLifecycleAction": {refusal(message)}})
		_, err := newScaling(t, o).Complete(t.Context(), messages.Action{Group: simGroup, Hook: simHook, Token: "t"}, messages.Continue)
		if e := wantKind(t, err, kind); e.Status != 400 || !e.Untouched {
			t.Errorf("%s: %+v", message, e)
		}
	}
}

func TestBadOptions(t *testing.T) {
	t.Parallel()
	good := Options{Region: simRegion, QueueName: simQueue, Credentials: StaticCredentials(testID, testSecret)}
	for want, change := range map[string]func(*Options){
		"Credentials":       func(o *Options) { o.Credentials = nil },
		"Region":            func(o *Options) { o.Region = "Ireland" },
		"CallTimeout":       func(o *Options) { o.CallTimeout = -1 },
		"QueueName":         func(o *Options) { o.QueueName = "a/b" },
		"FIFO":              func(o *Options) { o.QueueName = "a.fifo" },
		"QueueAccount":      func(o *Options) { o.QueueAccount = "1234" },
		"VisibilityTimeout": func(o *Options) { o.VisibilityTimeout = MaxVisibility + 1 },
		"SQSEndpoint":       func(o *Options) { o.SQSEndpoint = "ftp://host" },
		"a scheme":          func(o *Options) { o.SQSEndpoint = "https://host/path" },
		"user":              func(o *Options) { o.SQSEndpoint = "https://user@host" },
		"names no host":     func(o *Options) { o.SQSEndpoint = "https://" },
	} {
		o := good
		change(&o)
		if _, err := NewQueue(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	q, err := NewQueue(good)
	if err != nil {
		t.Fatal(err)
	}
	q.Close()
}

// FuzzEC2: whatever comes as DescribeInstances, it is read or refused, and no address that
// is none gets through.
func FuzzEC2(f *testing.F) {
	f.Add(onEC2("running").body)
	f.Add(`<Response><Errors><Error><Code>InvalidInstanceID.NotFound</Code></Error></Errors><RequestID>r-9</RequestID></Response>`)
	f.Add(`<DescribeInstancesResponse><reservationSet><item><instancesSet><item><privateIpAddress>fe80::1%a</privateIpAddress></item></instancesSet></item></reservationSet></DescribeInstancesResponse>`)
	f.Fuzz(func(t *testing.T, body string) {
		var page machinesPage
		if err := xml.Unmarshal([]byte(body), &page); err == nil {
			for _, w := range page.Machines {
				for _, ip := range w.machine().addresses {
					if !ip.IsValid() || ip.Zone() != "" || ip.IsUnspecified() {
						t.Errorf("address %v", ip)
					}
				}
			}
		}
		err := refusal(&http.Response{StatusCode: 400, Header: http.Header{}}, []byte(body))
		w := &wire{service: "ec2", region: simRegion}
		if e := w.describe(w.carrier(operation{name: "DescribeInstances"}), err); e.Kind == nil || e.Error() == "" {
			t.Errorf("%+v", e)
		}
	})
}

// TestTheEndOfACaller: who gives up does not end the call of those who wait with him.
func TestTheEndOfACaller(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		_, actions := c.announced(t, 1)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if v := c.scaling.Verify(ctx, actions)[0]; !errors.Is(v.Err, context.Canceled) {
			t.Errorf("%+v", v)
		}
		if v := verify(t, c.scaling, actions[0]); v.Err != nil || v.State != providers.Pending {
			t.Errorf("%+v", v)
		}
	})
}
