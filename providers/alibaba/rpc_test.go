package alibaba

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// rpcSignature signs parameters as the services do: its own code, to check the SDK's.
func rpcSignature(secret string, params url.Values) string {
	enc := func(s string) string {
		return strings.NewReplacer("+", "%20", "*", "%2A", "%7E", "~").Replace(url.QueryEscape(s))
	}
	var pairs []string
	for name, values := range params {
		if name != "Signature" {
			pairs = append(pairs, enc(name)+"="+enc(values[0]))
		}
	}
	slices.Sort(pairs)
	mac := hmac.New(sha1.New, []byte(secret+"&"))
	mac.Write([]byte("POST&%2F&" + enc(strings.Join(pairs, "&"))))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

func TestRPCSignatureVectors(t *testing.T) {
	t.Parallel()
	base := url.Values{"AccessKeyId": {vectorID}, "Timestamp": {"2023-03-08T12:00:00Z"}, "SignatureNonce": {"0123456789abcdef0123456789abcdef"},
		"RegionId": {"cn-hangzhou"}, "Format": {"JSON"}, "SignatureType": {""}, "SignatureMethod": {"HMAC-SHA1"}, "SignatureVersion": {"1.0"}, "Version": {"2014-08-28"}}
	with := func(pairs ...string) url.Values {
		v := url.Values{}
		for name, values := range base {
			v[name] = values
		}
		for i := 0; i < len(pairs); i += 2 {
			v.Set(pairs[i], pairs[i+1])
		}
		return v
	}
	const token = "C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99"
	complete := []string{"Action", "CompleteLifecycleAction", "LifecycleHookId", "ash-bp1example", "LifecycleActionToken", token, "LifecycleActionResult", "CONTINUE"}
	for want, params := range map[string]url.Values{
		"FppyPQH4T0tveibtOcmfNwiLbgY=": with(complete...),
		"4s//jZ9DVVL7cYeZDMGyGDai+7w=": with("Action", "RecordLifecycleActionHeartbeat", "lifecycleHookId", "ash-bp1example", "lifecycleActionToken", token, "heartbeatTimeout", "600"),
		"vXBxlj795JGUJzMlqoYrni6NhFo=": with(append(complete, "SecurityToken", "CAIS+/=tok~*en x")...),
	} {
		if got := rpcSignature(vectorSecret, params); got != want {
			t.Errorf("signature %s, want %s", got, want)
		}
	}
}

func TestESSRequests(t *testing.T) {
	t.Parallel()
	s := loopback(t, func(seen) string { return rpcOK("") })
	e := newScaling(t, options(s.url()))
	a := testAction()
	a.Region = "cn-shenzhen"
	before := time.Now()
	grant, err := e.Heartbeat(t.Context(), a, 90100*time.Millisecond)
	if err != nil || grant.RequestID != "473469C7-AA6F-4DC5-B3DB-A3DC0DE3C83E" {
		t.Fatalf("%+v, %v", grant, err)
	}
	if d := grant.Until.Sub(before); d < 91*time.Second || d > 92*time.Second {
		t.Errorf("granted until %v from now", d)
	}
	for _, d := range []time.Duration{time.Second, 24 * time.Hour} {
		if _, err := e.Heartbeat(t.Context(), a, d); err != nil {
			t.Fatal(err)
		}
	}
	id, err := e.Complete(t.Context(), a, messages.Continue)
	if err != nil || id != "473469C7-AA6F-4DC5-B3DB-A3DC0DE3C83E" {
		t.Fatalf("%s, %v", id, err)
	}
	for _, r := range []messages.Result{messages.Continue, messages.Abandon} {
		if _, err := e.Complete(t.Context(), a, r); err != nil {
			t.Fatal(err)
		}
	}
	got := s.requests()
	for i, x := range got {
		p := x.params()
		if p.Get("Signature") != rpcSignature(testSecret, p) {
			t.Errorf("request %d is signed wrongly", i)
		}
		if p.Get("RegionId") != "cn-shenzhen" || p.Get("Version") != "2014-08-28" || p.Get("Format") != "JSON" {
			t.Errorf("request %d: %v", i, p)
		}
		if x.conn != 1 {
			t.Errorf("request %d came over connection %d", i, x.conn)
		}
	}
	beat := got[0].params()
	if beat.Get("lifecycleHookId") != "ash-bp1example" || beat.Get("lifecycleActionToken") != string(a.Token) || beat.Get("heartbeatTimeout") != "91" {
		t.Errorf("heartbeat %v", beat)
	}
	if got[1].params().Get("heartbeatTimeout") != "30" || got[2].params().Get("heartbeatTimeout") != "21600" {
		t.Error("heartbeats are not within 30 s and 6 h")
	}
	complete, again, abandon := got[3].params(), got[4].params(), got[5].params()
	if complete.Get("LifecycleHookId") != "ash-bp1example" || complete.Get("LifecycleActionToken") != string(a.Token) || complete.Get("LifecycleActionResult") != "CONTINUE" {
		t.Errorf("complete %v", complete)
	}
	if n := len(complete.Get("ClientToken")); n == 0 || n > 64 {
		t.Errorf("client token has %d characters", n)
	}
	if complete.Get("ClientToken") != again.Get("ClientToken") || complete.Get("ClientToken") == abandon.Get("ClientToken") {
		t.Error("the client token must be the same for the same answer, and another for another")
	}
	if complete.Get("SignatureNonce") == again.Get("SignatureNonce") {
		t.Error("a nonce was used twice")
	}
	if e.Limits(time.Hour) != (providers.HeartbeatLimits{Calls: 20, MaxWait: 6 * time.Hour, MinExtension: 30 * time.Second, MaxExtension: 6 * time.Hour}) {
		t.Errorf("limits %+v", e.Limits(time.Hour))
	}
}

func TestRPCRefusals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		answer     string
		kind       error
		code, hint string
	}{
		{rpcRefusal(400, "LifecycleHookIdAndLifecycleActionToken.Invalid", "x"), providers.ErrActionGone, "LifecycleHookIdAndLifecycleActionToken.Invalid", ""},
		{rpcRefusal(400, "lifecycleHOOKIdAndLifecycleActionToken.invalid", "x"), providers.ErrActionGone, "lifecycleHOOKIdAndLifecycleActionToken.invalid", ""},
		{rpcRefusal(400, "LifecycleAction.TimeExceeded", "x"), providers.ErrHeartbeatLimit, "LifecycleAction.TimeExceeded", ""},
		{rpcRefusal(400, "LifecycleAction.RecordTimesExceeded", "x"), providers.ErrHeartbeatLimit, "LifecycleAction.RecordTimesExceeded", ""},
		{rpcRefusal(400, "InvalidParamter", "x"), providers.ErrInvalid, "InvalidParamter", ""},
		{rpcRefusal(404, "InvalidScalingGroupId.NotFound", "x"), providers.ErrNotFound, "InvalidScalingGroupId.NotFound", ""},
		{rpcRefusal(400, "InvalidTimeStamp.Expired", "x"), providers.ErrClock, "InvalidTimeStamp.Expired", "set this host's clock"},
		{rpcRefusal(403, "Forbidden.RAM", "x"), providers.ErrDenied, "Forbidden.RAM", "allow ess:RecordLifecycleActionHeartbeat on acs:ess:cn-hangzhou:*:scalinggroup/asg-bp1example in a RAM policy"},
		{rpcRefusal(403, "NoPermission", "x"), providers.ErrDenied, "NoPermission", "allow ess:RecordLifecycleActionHeartbeat"},
		{response(403, "", `{"RequestId":"R","Code":"NoPermission","Message":"x","AccessDeniedDetail":{"AuthAction":"ess:Other"}}`), providers.ErrDenied, "NoPermission", "the service names ess:Other"},
		{rpcRefusal(404, "InvalidAccessKeyId.NotFound", "x"), providers.ErrDenied, "InvalidAccessKeyId.NotFound", "access key id is unknown"},
		{rpcRefusal(400, "SignatureDoesNotMatch", "x"), providers.ErrDenied, "SignatureDoesNotMatch", "secret does not belong"},
		{rpcRefusal(400, "InvalidSecurityToken.Expired", "x"), providers.ErrDenied, "InvalidSecurityToken.Expired", "temporary keys have expired"},
		{rpcRefusal(404, "InvalidAction.NotFound", "x"), providers.ErrInvalid, "InvalidAction.NotFound", ""},
		{rpcRefusal(400, "MissingLifecycleHookId", "x"), providers.ErrInvalid, "MissingLifecycleHookId", ""},
		{rpcRefusal(418, "Unheard", "x"), providers.ErrInvalid, "Unheard", ""},
		{response(404, "", "<html>no such page</html>"), providers.ErrInvalid, "", "the answer is not from ESS"},
		{response(302, "Location: http://127.0.0.1:1/\r\n", ""), providers.ErrInvalid, "", "proxy settings"},
		{response(403, "", `{"Code":17,"Message":{"a":1},"RequestId":["x"]}`), providers.ErrDenied, "", "allow ess:"},
		{response(400, "", `[]`), providers.ErrInvalid, "", ""},
	} {
		t.Run(c.code, func(t *testing.T) {
			t.Parallel()
			s := loopback(t, func(seen) string { return c.answer })
			_, err := newScaling(t, options(s.url())).Heartbeat(t.Context(), testAction(), time.Minute)
			e := wantKind(t, err, c.kind)
			if e.Op != "RecordLifecycleActionHeartbeat" || e.Code != c.code || !strings.Contains(e.Hint, c.hint) || e.Status == 0 {
				t.Errorf("error %+v", e)
			}
			if c.code != "" && e.RequestID == "" {
				t.Errorf("no request id: %+v", e)
			}
			if n := len(s.requests()); n != 1 {
				t.Errorf("sent %d times; a refusal for good is not repeated", n)
			}
		})
	}
}

func TestRPCRepeatsWhatPasses(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer string
		kind   error
	}{
		"throttled":           {rpcRefusal(400, "Throttling.User", "Request was denied due to user flow control."), providers.ErrThrottled},
		"throttled, odd case": {rpcRefusal(400, "throttling.api", ""), providers.ErrThrottled},
		"429":                 {response(429, "", ""), providers.ErrThrottled},
		"unavailable":         {rpcRefusal(503, "ServiceUnavailable", ""), providers.ErrUnavailable},
		"internal error":      {rpcRefusal(500, "InternalError.Dispatch", ""), providers.ErrUnavailable},
		"proxy page":          {response(502, "Content-Type: text/html\r\n", "<html>bad gateway</html>"), providers.ErrUnavailable},
		"page as success":     {response(200, "", "<html>welcome to the hotel</html>"), providers.ErrUnavailable},
		"nothing as success":  {response(200, "", ""), providers.ErrUnavailable},
		"no id as success":    {response(200, "", "{}"), providers.ErrUnavailable},
		"conflict":            {rpcRefusal(409, "OperationConflict", ""), providers.ErrUnavailable},
		"token in use":        {rpcRefusal(403, "LastTokenProcessing", ""), providers.ErrUnavailable},
		"nonce":               {rpcRefusal(400, "SignatureNonceUsed", ""), providers.ErrUnavailable},
		"cut":                 {hangUp, providers.ErrUnavailable},
		"cut body":            {"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{", providers.ErrUnavailable},
		"hang":                {hang, providers.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				for _, bad := range []int{3, MaxAttempts} {
					l := newPipes()
					s := serve(t, l, func(x seen) string {
						if x.number <= bad {
							return strings.Replace(c.answer, "Connection: close", "X: y", 1)
						}
						return rpcOK("")
					})
					o := options("http://ess.test")
					o.DialContext = l.dial
					var log bytes.Buffer
					o.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
					e := newScaling(t, o)
					start := time.Now()
					_, err := e.Complete(t.Context(), testAction(), messages.Continue)
					took := time.Since(start)
					got := s.requests()
					if bad == MaxAttempts {
						wantKind(t, err, c.kind)
						if len(got) != MaxAttempts {
							t.Errorf("sent %d times, want %d", len(got), MaxAttempts)
						}
						continue
					}
					if err != nil {
						t.Fatal(err)
					}
					if len(got) != bad+1 || took == 0 {
						t.Errorf("sent %d times in %v", len(got), took)
					}
					seenNonces := map[string]bool{}
					for _, x := range got {
						p := x.params()
						seenNonces[p.Get("SignatureNonce")] = true
						if p.Get("ClientToken") != got[0].params().Get("ClientToken") {
							t.Error("a repeat has another client token")
						}
					}
					if len(seenNonces) != len(got) {
						t.Error("a repeat has the nonce of another")
					}
					if !strings.Contains(log.String(), "op=CompleteLifecycleAction attempt=1") {
						t.Errorf("log %s", log.String())
					}
				}
			})
		})
	}
}

// The waits have full jitter: many workers that were refused together spread out.
func TestBackoff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for range 100 {
			b := newBackoff(t.Context())
			limit, total := backoffBase, time.Duration(0)
			for i := range MaxAttempts {
				d, stop := b.Next()
				if stop != (i == MaxAttempts-1) {
					t.Fatalf("stop is %v after %d waits", stop, i)
				}
				if d >= limit && !stop {
					t.Fatalf("wait %d is %v, at most %v", i, d, limit)
				}
				total += d
				limit = min(2*limit, backoffCap)
			}
			if total > 23*time.Second {
				t.Errorf("all waits take %v", total)
			}
		}
		first := map[time.Duration]bool{}
		for range 50 {
			d, _ := newBackoff(t.Context()).Next()
			first[d/(10*time.Millisecond)] = true
		}
		if len(first) < 5 {
			t.Errorf("50 first waits fall into %d of 20 parts of their range", len(first))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		b := newBackoff(ctx)
		if d, stop := b.Next(); d > 50*time.Millisecond || stop {
			t.Errorf("wait %v, stop %v with 50 ms left", d, stop)
		}
		if _, stop := b.Next(); !stop {
			t.Error("a second wait was cut to the deadline")
		}
		<-ctx.Done()
		if _, stop := newBackoff(ctx).Next(); !stop {
			t.Error("goes on after the deadline")
		}
	})
}

func TestRPCEndsWithItsContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newPipes()
		serve(t, l, func(x seen) string {
			switch {
			case x.number <= 3, x.number == 5:
				return hang
			case x.number == 4:
				return hangUp
			}
			return rpcRefusal(400, "Throttling", "x")
		})
		o := options("http://ess.test")
		o.DialContext = l.dial
		e := newScaling(t, o)

		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		start := time.Now()
		_, err := e.Complete(ctx, testAction(), messages.Continue)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 4*time.Second {
			t.Errorf("deadline: %v after %v", err, time.Since(start))
		}
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(12*time.Second, cancel) // in the second attempt
		start = time.Now()
		_, err = e.Complete(ctx, testAction(), messages.Continue)
		if !errors.Is(err, context.Canceled) || time.Since(start) != 12*time.Second {
			t.Errorf("cancelled: %v after %v", err, time.Since(start))
		}
		// What was wrong is told together with the end: here a cut, then a hang.
		ctx, cancel = context.WithTimeout(t.Context(), 2*time.Second)
		_, err = e.Complete(ctx, testAction(), messages.Continue)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, io.EOF) {
			t.Errorf("cut, then hung: %v", err)
		}
		ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		_, err = e.Complete(ctx, testAction(), messages.Continue)
		if !errors.Is(err, providers.ErrThrottled) {
			t.Errorf("throttled until the deadline: %v", err)
		}
		// An ended context sends nothing.
		<-ctx.Done()
		_, err = e.Complete(ctx, testAction(), messages.Continue)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("an ended context: %v", err)
		}
	})
}

// The SDK has a time limit of its own, 10 s, which must not cut a longer one of ours.
func TestCallTimeoutIsOurs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newPipes()
		s := serve(t, l, func(seen) string {
			time.Sleep(25 * time.Second)
			return rpcOK("")
		})
		o := options("http://ess.test")
		o.DialContext, o.CallTimeout = l.dial, 30*time.Second
		if _, err := newScaling(t, o).Complete(t.Context(), testAction(), messages.Continue); err != nil || len(s.requests()) != 1 {
			t.Errorf("sent %d times, %v", len(s.requests()), err)
		}
	})
}

// A refusal that came just before the context ended is still a refusal.
func TestAnAnswerOutweighsTheEndOfTheContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	f := &failure{cloudError: &providers.Error{Op: "X", Kind: providers.ErrDenied}}
	cancel()
	if err := conclude(ctx, "X", f, f); !errors.Is(err, providers.ErrDenied) {
		t.Errorf("error %v", err)
	}
	f = &failure{cloudError: &providers.Error{Op: "X", Kind: providers.ErrUnavailable, Cause: context.Canceled}}
	if err := conclude(ctx, "X", f, f); !errors.Is(err, context.Canceled) || errors.Is(err, providers.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
}

// A heartbeat counts against a budget, so that it is repeated, and called untouched,
// only when no attempt can have had its effect.
func TestHeartbeatIsRepeatedOnlyUntouched(t *testing.T) {
	t.Parallel()
	throttled := rpcRefusal(400, "Throttling", "x")
	for name, c := range map[string]struct {
		script    []string // the last answer goes on
		untouched bool
		sent      int
	}{
		"throttled":            {[]string{throttled}, true, MaxAttempts},
		"conflict":             {[]string{rpcRefusal(409, "OperationConflict", "x")}, true, MaxAttempts},
		"denied":               {[]string{rpcRefusal(403, "NoPermission", "x")}, true, 1},
		"server error":         {[]string{rpcRefusal(500, "InternalError", "x")}, false, 1},
		"proxy page":           {[]string{response(502, "", "<html>")}, false, 1},
		"page as success":      {[]string{response(200, "", "<html>")}, false, 1},
		"cut":                  {[]string{hangUp}, false, 1},
		"hang":                 {[]string{hang}, false, 1},
		"throttled, then cut":  {[]string{throttled, throttled, hangUp}, false, 3},
		"throttled, then hung": {[]string{throttled, hang}, false, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newPipes()
				s := serve(t, l, func(x seen) string { return c.script[min(x.number, len(c.script))-1] })
				o := options("http://ess.test")
				o.DialContext = l.dial
				for _, limit := range []time.Duration{time.Hour, 5 * time.Second} { // the shorter one ends a hang
					ctx, cancel := context.WithTimeout(t.Context(), limit)
					_, err := newScaling(t, o).Heartbeat(ctx, testAction(), time.Minute)
					cancel()
					if err == nil || providers.Untouched(err) != c.untouched {
						t.Errorf("within %v: untouched is %v, want %v: %v", limit, !c.untouched, c.untouched, err)
					}
					if limit == time.Hour && len(s.requests()) != c.sent {
						t.Errorf("sent %d times, want %d", len(s.requests()), c.sent)
					}
				}
			})
		})
	}
	// The deadline ends the second attempt; the first one's refusal is what is told.
	synctest.Test(t, func(t *testing.T) {
		l := newPipes()
		serve(t, l, func(x seen) string {
			if x.number == 1 {
				return throttled
			}
			return hang
		})
		o := options("http://ess.test")
		o.DialContext = l.dial
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := newScaling(t, o).Heartbeat(ctx, testAction(), time.Minute)
		if !errors.Is(err, providers.ErrThrottled) || !errors.Is(err, context.DeadlineExceeded) || providers.Untouched(err) {
			t.Errorf("untouched %v: %v", providers.Untouched(err), err)
		}
		_, err = newScaling(t, o).Heartbeat(ctx, testAction(), time.Minute)
		if !errors.Is(err, context.DeadlineExceeded) || !providers.Untouched(err) {
			t.Errorf("an ended context, untouched %v: %v", providers.Untouched(err), err)
		}
	})
}

func TestManyGoroutinesShareAScaling(t *testing.T) {
	t.Parallel()
	s := loopback(t, func(seen) string { return rpcOK("") })
	e := newScaling(t, options(s.url()))
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 10 {
				if _, err := e.Heartbeat(t.Context(), testAction(), time.Minute); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	conns := 0
	for _, x := range s.requests() {
		conns = max(conns, x.conn)
	}
	if conns > 4*16 {
		t.Errorf("%d connections for 16 goroutines", conns)
	}
}

// TestErrorsAreFreeOfSecrets makes all kinds of errors and looks for keys, tokens and
// signatures in what they and their causes say.
func TestErrorsAreFreeOfSecrets(t *testing.T) {
	t.Parallel()
	keys := static{ID: "LTAIexampleId", Secret: "exampleSecret0", Token: "CAIS+/=tok~en*x"}
	echo := func(x seen) string {
		p := x.params()
		body := "string to sign " + x.target + " " + x.body + " " + keys.Token + " " + keys.Secret + " " + x.header.Get("Authorization")
		switch x.number % 6 {
		case 0:
			return hangUp
		case 1:
			return rpcRefusal(400, "SignatureDoesNotMatch", "Specified signature is not matched with our calculation. server string to sign is:POST&%2F&"+url.QueryEscape(p.Encode()))
		case 2:
			return response(404, "", "<html>"+body)
		case 3:
			return response(200, "", "<html>"+body)
		case 4:
			return "HTTP/1.1 junk " + body + "\r\n\r\n"
		}
		return mnsRefusal(403, "SignatureDoesNotMatch", url.QueryEscape(body))
	}
	s := loopback(t, echo)
	o := options(s.url())
	o.Credentials = keys
	var log bytes.Buffer
	var mu sync.Mutex
	o.Logger = slog.New(slog.NewTextHandler(locked{&mu, &log}, &slog.HandlerOptions{Level: slog.LevelDebug}))
	e, q, as := newScaling(t, o), newQueue(t, o), newAssistant(t, o)
	var text strings.Builder
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	note := func(err error) {
		if err == nil {
			return
		}
		for err != nil {
			fmt.Fprintf(&text, "%v\n%+v\n", err, err)
			if e, ok := errors.AsType[*providers.Error](err); ok {
				fmt.Fprintf(&text, "%#v\n%v\n", *e, e.Cause)
			}
			err = errors.Unwrap(err)
		}
	}
	for range 6 {
		_, err := e.Heartbeat(ctx, testAction(), time.Minute)
		note(err)
		_, err = e.Hook(ctx, "asg-1", "ash-1")
		note(err)
		_, err = q.Receive(ctx, 16, 0)
		note(err)
		_, err = q.Extend(ctx, "r", time.Minute)
		note(err)
		_, err = as.RunCommand(ctx, providers.Command{Instance: "i-1", Script: "true", Key: "k"})
		note(err)
	}
	o.ESSEndpoint = "http://127.0.0.1:1"
	refused, cancel2 := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel2()
	_, err := newScaling(t, o).Heartbeat(refused, testAction(), time.Minute)
	note(err)
	fmt.Fprintf(&text, "%v %+v %#v %v %#v", keys, keys, keys, Keys(keys), Keys(keys))
	mu.Lock()
	fmt.Fprintf(&text, "%s", log.String())
	mu.Unlock()
	all := text.String()
	for _, secret := range []string{keys.ID, keys.Secret, keys.Token, url.QueryEscape(keys.Token), "Signature=", "SignatureNonce"} {
		if i := strings.Index(all, secret); i >= 0 {
			t.Errorf("%q is in the text of an error: ...%s...", secret, all[max(0, i-120):min(len(all), i+80)])
		}
	}
	if len(all) < 2000 {
		t.Errorf("too little text to judge: %s", all)
	}
}

// locked is a writer for several goroutines.
type locked struct {
	mu *sync.Mutex
	b  *bytes.Buffer
}

func (l locked) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func TestCredentials(t *testing.T) {
	for _, name := range []string{"ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_SECURITY_TOKEN"} {
		t.Setenv(name, "")
	}
	s := loopback(t, func(seen) string { return rpcOK("") })
	o := options(s.url())
	o.Credentials = EnvironmentCredentials()
	e, q := newScaling(t, o), newQueue(t, o)
	_, err := e.Heartbeat(t.Context(), testAction(), time.Minute)
	wantKind(t, err, providers.ErrCredentials)
	for _, name := range []string{"ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "ALIBABA_CLOUD_SECURITY_TOKEN"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("error does not name %s: %v", name, err)
		}
	}
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_ID", "id")
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "secret\n")
	_, err = q.Receive(t.Context(), 1, 0)
	if wantKind(t, err, providers.ErrCredentials); !strings.Contains(err.Error(), "white space") {
		t.Errorf("error %v", err)
	}
	if n := len(s.requests()); n != 0 {
		t.Errorf("%d requests were sent without keys", n)
	}
	t.Setenv("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "secret")
	t.Setenv("ALIBABA_CLOUD_SECURITY_TOKEN", "CAIS+/=tok~*en")
	if _, err := e.Heartbeat(t.Context(), testAction(), time.Minute); err != nil {
		t.Fatal(err)
	}
	p := s.requests()[0].params()
	if p.Get("AccessKeyId") != "id" || p.Get("SecurityToken") != "CAIS+/=tok~*en" || p.Get("Signature") != rpcSignature("secret", p) {
		t.Errorf("parameters %v", p)
	}
	o.Credentials = StaticCredentials("", "")
	_, err = newScaling(t, o).Heartbeat(t.Context(), testAction(), time.Minute)
	wantKind(t, err, providers.ErrCredentials)
}

func TestOptions(t *testing.T) {
	t.Parallel()
	_, err := NewQueue(Options{QueueName: "a/b", CallTimeout: -1})
	for _, want := range []string{"QueueName", `"a/b"`, "QueueEndpoint: missing", "no Credentials", "CallTimeout"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %s: %v", want, err)
		}
	}
	_, err = NewScaling(Options{ESSEndpoint: "ftp://x"})
	for _, want := range []string{"Region", "no Credentials", "ESSEndpoint", "scheme must be https"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error lacks %s: %v", want, err)
		}
	}
	if _, err := NewAssistant(Options{Region: "cn-hangzhou", Credentials: EnvironmentCredentials(), ECSEndpoint: "https://h/path"}); err == nil {
		t.Error("an endpoint with a path was taken")
	}
	if _, err := NewAssistant(options("http://ecs.test")); err != nil {
		t.Error(err)
	}
	for in, want := range map[string]string{
		"https://1.mns.cn-hangzhou.aliyuncs.com/": "https://1.mns.cn-hangzhou.aliyuncs.com",
		"127.0.0.1:9000":   "https://127.0.0.1:9000",
		"ess.aliyuncs.com": "https://ess.aliyuncs.com",
		"HTTP://[::1]:80":  "http://[::1]:80",
		"http://u:p@h":     "",
		"http://":          "",
		"http://h?x=1":     "",
		"http://h/a":       "",
		"ht tp://h":        "",
		"http://h:port":    "",
	} {
		got, err := parseEndpoint("E", in)
		if (err != nil) != (want == "") || err == nil && got.String() != want {
			t.Errorf("%s: %v, %v", in, got, err)
		}
	}
	for region, want := range map[string]string{"cn-hangzhou": "ess.aliyuncs.com", "eu-central-1": "ess.eu-central-1.aliyuncs.com"} {
		if got := essHost(region); got != want {
			t.Errorf("ESS of %s is at %s, want %s", region, got, want)
		}
	}
	o := options("")
	e, as := newScaling(t, o2(o)), newAssistant(t, o2(o))
	if got := e.at("cn-chengdu").String(); got != "https://ess.cn-chengdu.aliyuncs.com" {
		t.Errorf("ESS at %s", got)
	}
	if got := as.at("cn-chengdu").String(); got != "https://ecs.cn-chengdu.aliyuncs.com" {
		t.Errorf("ECS at %s", got)
	}
}

// o2 leaves the endpoints to the cloud.
func o2(o Options) Options {
	o.ESSEndpoint, o.ECSEndpoint = "", ""
	return o
}

func TestARegionFromOutsideIsChecked(t *testing.T) {
	t.Parallel()
	s := loopback(t, func(seen) string { return rpcOK("") })
	a := testAction()
	a.Region = "cn.evil/x"
	_, err := newScaling(t, options(s.url())).Heartbeat(t.Context(), a, time.Minute)
	wantKind(t, err, providers.ErrInvalid)
	if n := len(s.requests()); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}

// The SDK would send over plain http and read proxies by rules of its own.
func TestTransportSettings(t *testing.T) {
	t.Setenv("HTTP_PROXY", "127.0.0.1:1") // the SDK cannot parse this one
	t.Setenv("NO_PROXY", "+,127.0.0.1")   // nor this
	s := loopback(t, func(seen) string { return rpcOK("") })
	if _, err := newScaling(t, options(s.url())).Heartbeat(t.Context(), testAction(), time.Minute); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := newScaling(t, options(strings.TrimPrefix(s.url(), "http://"))).Heartbeat(ctx, testAction(), time.Minute)
	wantKind(t, err, providers.ErrUnavailable)
	if n := len(s.requests()); n != 1 {
		t.Errorf("%d requests; an endpoint without a scheme must be https", n)
	}
	tr := options("").transport()
	if tr.TLSClientConfig != nil || tr.Proxy == nil || tr.Protocols.HTTP2() {
		t.Error("TLS must be verified, the proxy read from the environment, and HTTP/1.1 spoken")
	}
}

func BenchmarkHeartbeat(b *testing.B) {
	l := newPipes()
	s := &scripted{listener: l, script: func(seen) string { return rpcOK("") }, done: make(chan struct{})}
	s.wg.Go(s.accept)
	defer s.stop()
	o := options("http://ess.test")
	o.DialContext = l.dial
	e, err := NewScaling(o)
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := e.Heartbeat(b.Context(), testAction(), time.Minute); err != nil {
			b.Fatal(err)
		}
	}
}
