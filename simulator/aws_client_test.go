package simulator

import (
	"encoding/xml"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// awsWorld is a world of AWS, with a raw client that signs by Signature Version 4.
type awsWorld struct{ *world }

// bubbleAWS runs f in a synctest bubble with a simulated AWS over in-memory connections.
func bubbleAWS(t *testing.T, o Options, f func(w awsWorld)) {
	t.Helper()
	if o.Scenario.Provider == "" {
		o.Scenario.Provider = providerAWS
	}
	bubble(t, o, func(w *world) { f(awsWorld{w}) })
}

// request makes a signed request. edit, if any, may tamper with it after the signing.
func (w awsWorld) request(service, target, body string, header http.Header, edit ...func(*http.Request)) *http.Request {
	w.t.Helper()
	req, err := http.NewRequestWithContext(w.t.Context(), "POST", w.base+target, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	req.Header.Set("X-Amz-Date", time.Now().Add(w.skew).UTC().Format(awsTime))
	if w.token != "" {
		req.Header.Set("X-Amz-Security-Token", w.token)
	}
	req.Host = req.URL.Host
	a := awsSignature{
		key: w.id, day: req.Header.Get("X-Amz-Date")[:8], region: w.State().Region, service: awsServices[service].signing, end: "aws4_request",
		headers: []string{"host"},
	}
	for name := range req.Header {
		a.headers = append(a.headers, strings.ToLower(name))
	}
	slices.Sort(a.headers)
	signature := signAWS(w.secret, a, req, []byte(body))
	req.Header.Set("Authorization", awsAlgorithm+" Credential="+strings.Join([]string{a.key, a.day, a.region, a.service, a.end}, "/")+
		", SignedHeaders="+strings.Join(a.headers, ";")+", Signature="+signature)
	for _, e := range edit {
		e(req)
	}
	return req
}

// query sends one call of a service that speaks Query or EC2's dialect.
func (w awsWorld) query(service, action string, pairs ...string) reply {
	w.t.Helper()
	form := url.Values{"Action": {action}, "Version": {awsServices[service].version}}
	for i := 0; i < len(pairs); i += 2 {
		form.Add(pairs[i], pairs[i+1])
	}
	return w.sent(w.request(service, "/", form.Encode(), http.Header{"Content-Type": {"application/x-www-form-urlencoded; charset=utf-8"}}))
}

// json sends one call of a service that speaks AWS JSON.
func (w awsWorld) json(service, action, body string) reply {
	w.t.Helper()
	version := map[awsProtocol]string{awsQuery: "1.0", awsJSON11: "1.1"}[awsServices[service].protocol]
	return w.sent(w.request(service, "/", body, http.Header{
		"Content-Type": {"application/x-amz-json-" + version}, "X-Amz-Target": {awsServices[service].target + action},
	}))
}

func (w awsWorld) sent(req *http.Request) reply {
	w.t.Helper()
	r, err := w.do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// into reads an XML answer with status 200.
func (w awsWorld) into(r reply, v any) {
	w.t.Helper()
	if err := xml.Unmarshal([]byte(r.body), v); err != nil || r.status != 200 {
		w.t.Fatalf("status %d, %v: %s", r.status, err, r.body)
	}
}

// refusedWith checks the status and the code of an answer.
func (w awsWorld) refusedWith(r reply, status int, code string) {
	w.t.Helper()
	if r.status != status || !strings.Contains(r.body, code) {
		w.t.Fatalf("status %d, want %d %s: %s", r.status, status, code, r.body)
	}
}
