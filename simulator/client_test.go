package simulator

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const (
	testKey    = "testid"
	testSecret = "testsecret"
)

// world is a simulator behind a real HTTP server, and a raw client of it.
type world struct {
	*Simulator
	t         testing.TB
	base      string
	http      *http.Client
	id        string // signs with these
	secret    string
	token     string
	skew      time.Duration
	transport *http.Transport
}

// start serves on loopback.
func start(t testing.TB, o Options) *world {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, o, l, &http.Transport{}, "http://"+l.Addr().String())
}

// startPiped serves over in-memory connections, for a synctest bubble.
func startPiped(t testing.TB, o Options) *world {
	t.Helper()
	o.NoServers = true
	l := NewPipeListener()
	return serve(t, o, l.Listen(), &http.Transport{DialContext: l.DialContext}, "http://cloud.test")
}

func serve(t testing.TB, o Options, l net.Listener, transport *http.Transport, base string) *world {
	t.Helper()
	set(&o.AccessKeyID, testKey)
	set(&o.AccessKeySecret, testSecret)
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: s}
	var served sync.WaitGroup
	served.Go(func() { server.Serve(l) })
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		server.Close()
		served.Wait()
	})
	return &world{Simulator: s, t: t, base: base, http: &http.Client{Transport: wholeRequests{transport}}, id: testKey, secret: testSecret, transport: transport}
}

// wholeRequests sends copies of requests. The SDK of AWS closes a request's body as soon as it
// has the answer's header. Where the answer comes so fast that the transport has not done with
// the body itself yet, the writing of the request ends with EOF, and with it the connection.
type wholeRequests struct{ *http.Transport }

func (t wholeRequests) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		return t.Transport.RoundTrip(r)
	}
	body, err := io.ReadAll(r.Body)
	r.Body.Close()
	if err != nil {
		return nil, err
	}
	own := r.Clone(r.Context())
	own.Body = io.NopCloser(bytes.NewReader(body))
	return t.Transport.RoundTrip(own)
}

// bubble runs f in a synctest bubble with a simulator over in-memory connections.
func bubble(t *testing.T, o Options, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(startPiped(t, o)) })
}

// reply is an answer, read to its end.
type reply struct {
	status int
	header http.Header
	body   string
}

// mns sends one signed request. edit, if any, may tamper with it after signing.
func (w *world) mns(method, target, body string, edit ...func(*http.Request)) (reply, error) {
	return w.mnsContext(context.Background(), method, target, body, edit...)
}

func (w *world) mnsContext(ctx context.Context, method, target, body string, edit ...func(*http.Request)) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, method, w.base+target, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	date := time.Now().Add(w.skew).UTC().Format(http.TimeFormat)
	req.Header.Set("Date", date)
	req.Header.Set("x-mns-version", "2015-06-06")
	req.Header.Set("Content-Type", "text/xml;charset=UTF-8")
	if w.token != "" {
		req.Header.Set("security-token", w.token)
	}
	req.Header.Set("Authorization", "MNS "+w.id+":"+signMNS(w.secret, method, target, date, req.Header))
	for _, e := range edit {
		e(req)
	}
	return w.do(req)
}

func (w *world) do(req *http.Request) (reply, error) {
	res, err := w.http.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return reply{res.StatusCode, res.Header, string(b)}, err
}

// must sends a request that has to be answered with status.
func (w *world) must(status int, method, target, body string, edit ...func(*http.Request)) reply {
	w.t.Helper()
	r, err := w.mns(method, target, body, edit...)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, target, err)
	}
	if r.status != status {
		w.t.Fatalf("%s %s: status %d, want %d: %s", method, target, r.status, status, r.body)
	}
	return r
}

// refused sends a request that has to be refused with that status and code.
func (w *world) refused(status int, code, method, target, body string, edit ...func(*http.Request)) {
	w.t.Helper()
	r := w.must(status, method, target, body, edit...)
	var e struct {
		XMLName                          xml.Name `xml:"http://mns.aliyuncs.com/doc/v1/ Error"`
		Code, Message, RequestId, HostId string
	}
	if err := xml.Unmarshal([]byte(r.body), &e); err != nil {
		w.t.Fatalf("%s %s: error body: %v: %s", method, target, err, r.body)
	}
	if e.Code != code || e.Message == "" || e.HostId == "" || len(r.header["X-Mns-Request-Id"]) != 1 || e.RequestId != r.header["X-Mns-Request-Id"][0] {
		w.t.Fatalf("%s %s: got %+v, want code %s", method, target, e, code)
	}
}

// received is one message as the wire has it.
type received struct {
	MessageId, ReceiptHandle, MessageBody, MessageBodyMD5    string
	EnqueueTime, NextVisibleTime, FirstDequeueTime, Priority int64
	DequeueCount                                             int
}

func (w *world) send(queue, body string) {
	w.t.Helper()
	w.must(201, "POST", "/queues/"+queue+"/messages", "<Message><MessageBody>"+body+"</MessageBody></Message>")
}

func (w *world) receiveOne(queue, wait string) received {
	w.t.Helper()
	r := w.must(200, "GET", "/queues/"+queue+"/messages?waitseconds="+wait, "")
	var m received
	if err := xml.Unmarshal([]byte(r.body), &m); err != nil {
		w.t.Fatalf("message: %v: %s", err, r.body)
	}
	return m
}

func (w *world) receiveBatch(queue string, n int) []received {
	w.t.Helper()
	r := w.must(200, "GET", fmt.Sprintf("/queues/%s/messages?numOfMessages=%d", queue, n), "")
	var doc struct {
		XMLName xml.Name   `xml:"Messages"`
		Message []received `xml:"Message"`
	}
	if err := xml.Unmarshal([]byte(r.body), &doc); err != nil {
		w.t.Fatalf("messages: %v: %s", err, r.body)
	}
	return doc.Message
}

func handleQuery(handle string) string { return "ReceiptHandle=" + url.QueryEscape(handle) }

// extend gives the new handle.
func (w *world) extend(queue, handle string, seconds int) string {
	w.t.Helper()
	r := w.must(200, "PUT", fmt.Sprintf("/queues/%s/messages?%s&VisibilityTimeout=%d", queue, handleQuery(handle), seconds), "")
	var v struct {
		XMLName         xml.Name `xml:"ChangeVisibility"`
		ReceiptHandle   string
		NextVisibleTime int64
	}
	if err := xml.Unmarshal([]byte(r.body), &v); err != nil {
		w.t.Fatalf("change visibility: %v: %s", err, r.body)
	}
	if want := time.Now().Add(time.Duration(seconds) * time.Second).UnixMilli(); v.NextVisibleTime > want || v.NextVisibleTime < want-5000 {
		w.t.Fatalf("next visible at %d, want about %d", v.NextVisibleTime, want)
	}
	return v.ReceiptHandle
}

// rpc signs and sends one call; parameters come in pairs and may override the common ones.
func (w *world) rpc(method, version, action string, pairs ...string) (reply, error) {
	form := w.rpcForm(version, action, pairs...)
	signature, _ := signRPC(w.secret, method, form)
	form.Set("Signature", signature)
	return w.sendRPC(method, form)
}

func (w *world) rpcForm(version, action string, pairs ...string) url.Values {
	form := url.Values{
		"Action": {action}, "Version": {version}, "Format": {"JSON"}, "AccessKeyId": {w.id}, "RegionId": {"cn-shenzhen"},
		"Timestamp":       {time.Now().Add(w.skew).UTC().Format("2006-01-02T15:04:05Z")},
		"SignatureMethod": {"HMAC-SHA1"}, "SignatureVersion": {"1.0"}, "SignatureNonce": {newUUID()}, "SignatureType": {""},
	}
	if w.token != "" {
		form.Set("SecurityToken", w.token)
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		form.Set(pairs[i], pairs[i+1])
	}
	return form
}

// sendRPC puts GET parameters into the query and half of POST's into the body.
func (w *world) sendRPC(method string, form url.Values) (reply, error) {
	query, body := url.Values{}, url.Values{}
	for name, v := range form {
		if method == "POST" && name[0]%2 == 0 {
			body[name] = v
		} else {
			query[name] = v
		}
	}
	req, err := http.NewRequest(method, w.base+"/?"+query.Encode(), strings.NewReader(body.Encode()))
	if err != nil {
		return reply{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return w.do(req)
}

// call makes a call that has to succeed.
func (w *world) call(version, action string, pairs ...string) map[string]any {
	w.t.Helper()
	r, err := w.rpc("POST", version, action, pairs...)
	if err != nil || r.status != 200 {
		w.t.Fatalf("%s: status %d, error %v: %s", action, r.status, err, r.body)
	}
	return decode(w.t, r.body)
}

func decode(t testing.TB, body string) map[string]any {
	t.Helper()
	var o map[string]any
	dec := json.NewDecoder(strings.NewReader(body))
	if err := dec.Decode(&o); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return o
}

// fails makes a call that has to be refused.
func (w *world) fails(status int, code, version, action string, pairs ...string) map[string]any {
	w.t.Helper()
	r, err := w.rpc("POST", version, action, pairs...)
	if err != nil {
		w.t.Fatalf("%s: %v", action, err)
	}
	o := decode(w.t, r.body)
	if r.status != status || o["Code"] != code || o["Message"] == "" || o["RequestId"] == "" {
		w.t.Fatalf("%s: status %d, %v; want %d %s", action, r.status, o, status, code)
	}
	return o
}

func (w *world) complete(hook, token, result string) {
	w.t.Helper()
	w.call(essOld, "CompleteLifecycleAction", "LifecycleHookId", hook, "LifecycleActionToken", token, "LifecycleActionResult", result)
}

func (w *world) action(token string) ActionState {
	w.t.Helper()
	a, ok := w.State().Action(token)
	if !ok {
		w.t.Fatalf("no action %s", token)
	}
	return a
}

// states lists the lifecycle states in a group, oldest instance first.
func (w *world) states(group string) string {
	w.t.Helper()
	g, ok := w.State().Group(group)
	if !ok {
		w.t.Fatalf("no group %s", group)
	}
	var out []string
	for _, in := range g.Instances {
		out = append(out, in.State)
	}
	return strings.Join(out, " ")
}

// wire decodes a hook notification's body.
func (w *world) wire(body string) notification {
	w.t.Helper()
	b := []byte(body)
	if !bytes.HasPrefix(b, []byte("{")) {
		var err error
		if b, err = base64.StdEncoding.DecodeString(body); err != nil {
			w.t.Fatalf("body: %v", err)
		}
	}
	var n notification
	if err := json.Unmarshal(b, &n); err != nil {
		w.t.Fatalf("body: %v: %s", err, b)
	}
	return n
}

// types lists what Events recorded of these types, in order.
func (w *world) types(of ...EventType) []EventType {
	var out []EventType
	for _, e := range w.Events() {
		for _, t := range of {
			if e.Type == t {
				out = append(out, t)
			}
		}
	}
	return out
}

func oneQueue() Scenario {
	return Scenario{Queues: []QueueConfig{{Name: "q", VisibilityTimeout: 30 * time.Second}}}
}

// oneGroup is a group of n instances with the given hooks, which notify queue q.
func oneGroup(n int, hooks ...HookConfig) Scenario {
	sc := oneQueue()
	sc.Balancers = []BalancerConfig{{ID: "lb"}}
	for i := range hooks {
		hooks[i].Queue = "q"
	}
	sc.ScalingGroups = []GroupConfig{{ID: "asg-1", Name: "web", Instances: n, Balancers: []string{"lb"}, Hooks: hooks}}
	return sc
}

// sendSplit signs all parameters and sends some in the query and the others in the form
// body. tamper changes the body after the signing.
func (w *world) sendSplit(query url.Values, body map[string]string, tamper func(url.Values)) (reply, error) {
	all, form := url.Values{}, url.Values{}
	for name, v := range query {
		all[name] = v
	}
	for name, v := range body {
		all.Set(name, v)
		form.Set(name, v)
	}
	signature, _ := signRPC(w.secret, "POST", all)
	query.Set("Signature", signature)
	if tamper != nil {
		tamper(form)
	}
	req, err := http.NewRequest("POST", w.base+"/?"+query.Encode(), strings.NewReader(form.Encode()))
	if err != nil {
		return reply{}, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return w.do(req)
}
