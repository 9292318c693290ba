package alibaba

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/aliyun/alibaba-cloud-sdk-go/services/ess"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// sentinels are all that the worker tells apart.
var sentinels = []error{
	providers.ErrThrottled, providers.ErrUnavailable, providers.ErrDenied, providers.ErrCredentials, providers.ErrClock,
	providers.ErrQueueGone, providers.ErrReceiptStale, providers.ErrActionGone, providers.ErrHeartbeatLimit, providers.ErrNotFound,
	providers.ErrInstanceGone, providers.ErrAgentUnavailable, providers.ErrCommandTimeout, providers.ErrCommandFailed, providers.ErrInvalid,
	providers.ErrBusy, providers.ErrChangeFailed,
}

// wantTold checks an error of this package: its kind is known, and its text is short,
// printable and free of keys.
func wantTold(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		return
	}
	if !slices.ContainsFunc(sentinels, func(kind error) bool { return errors.Is(err, kind) }) {
		t.Errorf("%v has no kind", err)
	}
	text := err.Error()
	if len(text) > 3000 || strings.Contains(text, mark) || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
		t.Errorf("%d bytes are told: %.500q", len(text), text)
	}
}

// FuzzAnswers: whatever ESS or ECS answers, from the wire to what the worker is given.
func FuzzAnswers(f *testing.F) {
	for _, body := range []string{
		`{"RequestId":"1","LifecycleActions":{"LifecycleAction":[{"LifecycleHookId":"ash-bp1example","LifecycleActionStatus":"Pending","LifecycleActionToken":"C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99","InstanceIds":{"InstanceId":["i-bp1a","i-2"]}}]},` +
			`"ScalingInstances":{"ScalingInstance":[{"InstanceId":"i-bp1a","ScalingGroupId":"asg-bp1example","LifecycleState":"Removing:Wait","PrivateIpAddress":"10.0.0.1","ZoneId":"z"}]},` +
			`"Instances":{"Instance":[{"InstanceId":"i-2","Status":"Running","VpcAttributes":{"PrivateIpAddress":{"IpAddress":["fe80::1%x"]}}}]}}`,
		`{"RequestId":"1","Invocation":{"InvocationResults":{"InvocationResult":[{"InvokeId":"t-1","InstanceId":"i-bp1a","InvocationStatus":"Failed","ExitCode":"3","Output":"b29wcw==","Dropped":7,"ErrorCode":"x","ErrorInfo":"y"}]}}}`,
		`{"RequestId":"1","LifecycleHooks":{"LifecycleHook":[{"LifecycleHookId":"ash-bp1example","ScalingGroupId":"asg-bp1example","HeartbeatTimeout":600}]}}`,
		`{"RequestId":"1","Code":"Forbidden.RAM","Message":"x","AccessDeniedDetail":{"AuthAction":"ess:X"}}`,
		`{"RequestId":["1"],"Code":17,"HeartbeatTimeout":"x"}`,
		"<html>" + strings.Repeat("x", 300), "", "null", "[[[[",
	} {
		f.Add(200, []byte(body))
		f.Add(403, []byte(body))
	}
	current := make(chan func(net.Conn), 1)
	o := options("http://cloud.test")
	o.CallTimeout = 10 * time.Second
	o.DialContext = func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		go (<-current)(server)
		return client, nil
	}
	s, err := NewScaling(o)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(s.Close)
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		if status < 200 || status > 599 {
			t.Skip()
		}
		once := func(attempt func() *failure) *failure {
			current <- func(c net.Conn) {
				defer c.Close()
				buf := make([]byte, 64<<10)
				if _, err := c.Read(buf); err != nil { // the whole request: it is one write
					return
				}
				fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", status, http.StatusText(status), len(body), body)
			}
			f := attempt()
			select {
			case <-current: // it was not sent
			default:
			}
			if f != nil {
				wantTold(t, f.cloudError)
			}
			return f
		}
		list := ess.CreateDescribeLifecycleActionsResponse()
		request := ess.CreateDescribeLifecycleActionsRequest()
		if f := once(func() *failure {
			return s.attempt(t.Context(), looks("DescribeLifecycleActions"), "cn-hangzhou", request, list)
		}); f != nil {
			return
		}
		instances := ess.CreateDescribeScalingInstancesResponse()
		look := ess.CreateDescribeScalingInstancesRequest()
		if f := once(func() *failure {
			return s.attempt(t.Context(), looks("DescribeScalingInstances"), "cn-hangzhou", look, instances)
		}); f != nil {
			return
		}
		a := testAction()
		var machines struct{ Instances struct{ Instance []machine } }
		_ = json.Unmarshal(body, &machines)
		v := decide(a, list.LifecycleActions.LifecycleAction, func(id messages.InstanceID) record {
			r := record{asked: true}
			for _, in := range instances.ScalingInstances.ScalingInstance {
				if in.InstanceId == string(id) {
					r.known = &in
				}
			}
			for _, m := range machines.Instances.Instance {
				if m.ID == string(id) {
					r.machine = &m
				}
			}
			return r
		})
		wantTold(t, v.Err)
		if (v.State == providers.Pending) != (len(v.Instances) > 0) && v.State == providers.Pending && len(a.Instances) > 0 {
			t.Errorf("pending without instances: %+v", v)
		}
		for _, in := range v.Instances {
			if !in.ID.Valid() || in.PrivateIP.Zone() != "" || in.PrivateIP.IsUnspecified() {
				t.Errorf("instance %+v", in)
			}
		}
		var results invocationAnswer
		if json.Unmarshal(body, &results) == nil {
			for _, r := range results.Invocation.InvocationResults.InvocationResult {
				res := r.result("1")
				wantTold(t, res.Err)
				if !res.Done && (res.Err != nil || res.ExitCode != 0) || res.Err != nil && res.ExitCode != 0 {
					t.Errorf("result %+v of %+v", res, r)
				}
			}
		}
	})
}

// FuzzKeys: whatever keys are found, those that cannot be right are refused, and of those
// that are used nothing is left in a text that is told, however it quotes them.
func FuzzKeys(f *testing.F) {
	f.Add("LTAIexampleId", "exampleSecret0", "CAIS+/=tok~*en", "before ", " after", byte(0))
	f.Add("STS.NUgYrLnoC37mZZCNnAbez", "CVwjCkNzTMupZ8NbTCxCBRq3K16jtcWFTJAyBEv2", strings.Repeat("CAIS", 300), "<html>", "", byte(1))
	f.Add("id", "secret\n", "", "x", "y", byte(2))
	f.Add("LTAIexampleId", "exampleSecret0", "", strings.Repeat("x", 495), strings.Repeat("y", 4000), byte(3))
	f.Fuzz(func(t *testing.T, id, secret, token, before, after string, how byte) {
		keys, refused := keysFor(t.Context(), "Test", static{ID: id, Secret: secret, Token: token}, DefaultCallTimeout)
		if refused != nil {
			for _, key := range []string{id, secret, token} {
				if len(key) >= 8 && strings.Contains(refused.Error(), key) {
					t.Errorf("a refused key is told: %v", refused)
				}
			}
			return
		}
		for _, key := range []string{id, secret, token} {
			// What is left out is told by a word, and what can't be printed by a question mark, which
			// must not make a key; and a key of few characters may be a part of any text.
			if strings.ContainsAny(key, "()?") || key != "" && len(key) < 8 || strings.Contains(before+after, key) {
				t.Skip()
			}
		}
		for _, key := range []string{secret, token, id} {
			if key == "" {
				continue
			}
			forms := []string{key, url.QueryEscape(key), url.QueryEscape(url.QueryEscape(key)), "AccessKeyId=" + key}
			text := before + forms[int(how)%len(forms)] + after
			for what, got := range map[string]string{
				"scrub": scrub(text, keys), "told": told(text, keys, mostMessage), "snippet": snippet([]byte(text), keys),
				"error": scrubError(errors.New(text), keys).Error(),
			} {
				if strings.Contains(got, key) || strings.Contains(got, url.QueryEscape(key)) {
					t.Errorf("%s of %q has the key %q: %q", what, text, key, got)
				}
			}
			if got := told(text, keys, mostMessage); len(got) > mostMessage+3 || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("told %q", got)
			}
		}
	})
}
