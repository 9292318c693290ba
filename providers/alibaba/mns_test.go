package alibaba

import (
	"bytes"
	"net/http"
	"testing"
	"time"

	"example.org/usher/providers"
)

// What the vectors of signatures were made with.
const (
	vectorDate   = "Wed, 08 Mar 2023 12:00:00 GMT"
	vectorID     = "testid"
	vectorSecret = "testsecret"
)

func TestMNSSignature(t *testing.T) {
	t.Parallel()
	const version = "x-mns-version"
	utf8 := "text/xml;charset=UTF-8"
	for _, c := range []struct {
		name, secret, method, target string
		header                       map[string]string
		want                         string
	}{
		{"receive", vectorSecret, "GET", "/queues/usher-hooks/messages?waitseconds=20",
			map[string]string{"Content-Type": utf8, "Date": vectorDate, version: mnsVersion}, "DRZJRnaFJc2zZqvAkegnFWwuSTs="},
		{"no content type", vectorSecret, "GET", "/queues/usher-hooks/messages?waitseconds=20",
			map[string]string{"Date": vectorDate, version: mnsVersion}, "u6Wyd4x1PJiEc7vMSOnLhaPbiyU="},
		{"batch receive", vectorSecret, "GET", "/queues/usher-hooks/messages?numOfMessages=16&waitseconds=20",
			map[string]string{"Content-Type": utf8, "Date": vectorDate, version: mnsVersion}, "AApky4f9okw4EjOdLn0CrDCEOsk="},
		{"delete", vectorSecret, "DELETE", "/queues/usher-hooks/messages?ReceiptHandle=1-ODU4OTkzNDU5My0xNDM1MTk3NjAwLTItNg%3D%3D",
			map[string]string{"Content-Type": utf8, "Date": vectorDate, version: mnsVersion}, "vV+iFaC/1HIH1XI51u2vfVSKuNc="},
		{"delete, raw handle", vectorSecret, "DELETE", "/queues/usher-hooks/messages?ReceiptHandle=1-ODU4OTkzNDU5My0xNDM1MTk3NjAwLTItNg==",
			map[string]string{"Content-Type": utf8, "Date": vectorDate, version: mnsVersion}, "XHzJcRd9aK/WBw5KYLLzLniihIg="},
		{"extend", vectorSecret, "PUT", "/queues/usher-hooks/messages?ReceiptHandle=1-ODU4OTkzNDU5My0xNDM1MTk3NjAwLTItNg%3D%3D&VisibilityTimeout=120",
			map[string]string{"Content-Type": utf8, "Date": vectorDate, version: mnsVersion}, "kICFWbTzzXew8LwQkXpWP3xoEAU="},
		{"send with MD5", vectorSecret, "POST", "/queues/usher-hooks/messages",
			map[string]string{"Content-Type": utf8, "Date": vectorDate, version: mnsVersion, "Content-MD5": "ZDQ4ZmIxYWJmM2M3ODdkMDFhYjViOGU3NTM2YjMyYjk="}, "0bLdQ7stBqc1DlH8oD6F1nuv/Hs="},
		{"x-mns-date", vectorSecret, "GET", "/queues/usher-hooks",
			map[string]string{"Date": vectorDate, version: mnsVersion, "x-mns-date": vectorDate}, "neS8/mlvmvnCUmT7nBIA7OgvxwE="},
		{"a value in capitals", "sk1", "POST", "/queues/TestQueue",
			map[string]string{"Date": "Tue, 03 Jun 2025 11:23:48 GMT", "x-mns-abcdef": "abcDEF"}, "cAThPWnbphg3hDe3ZHDADTgkgyE="},
		{"no own header", "testSk", "GET", "/queues/TestQueue",
			map[string]string{"Date": "Tue, 03 Jun 2025 11:23:48 GMT"}, "uDJQXbk2xOhH95MDXmgbAGdtyE4="},
		{"root", "ACCESS_KEY_SECRET", "PUT", "/",
			map[string]string{"Date": "Tue, 11 Apr 2017 10:09:19 GMT", version: mnsVersion, "Content-Type": "text/xml", "Content-MD5": "574683b3684e3cff610afa155cc2506d"}, "A9zehggaYHHujmuRMxGIDrhWwx8="},
		{"the token is not signed", vectorSecret, "GET", "/queues/usher-hooks/messages?waitseconds=20",
			map[string]string{"Content-Type": utf8, "Date": vectorDate, version: mnsVersion, "security-token": "any"}, "DRZJRnaFJc2zZqvAkegnFWwuSTs="},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			header := http.Header{}
			for name, value := range c.header {
				header.Set(name, value)
			}
			if got := mnsSignature(c.secret, c.method, c.target, header); got != c.want {
				t.Errorf("signature is %s, want %s", got, c.want)
			}
		})
	}
}

func TestQueueSendsWhatItSigns(t *testing.T) {
	t.Parallel()
	s := loopback(t, func(x seen) string {
		switch x.method() {
		case "GET":
			return emptyQueue()
		case "PUT":
			return response(200, "", xmlHead+`<ChangeVisibility xmlns="http://mns.aliyuncs.com/doc/v1/"><ReceiptHandle>new+/=</ReceiptHandle><NextVisibleTime>1678276920000</NextVisibleTime></ChangeVisibility>`)
		}
		return response(204, "", "")
	})
	o := options(s.url() + "/") // the slash must not double
	o.Credentials = StaticCredentials(vectorID, vectorSecret)
	q := newQueue(t, o)
	q.date = func() time.Time { return time.Date(2023, 3, 8, 12, 0, 0, 0, time.UTC) }
	ctx := t.Context()
	const handle = "1-ODU4OTkzNDU5My0xNDM1MTk3NjAwLTItNg=="
	if d, err := q.Receive(ctx, 99, 20*time.Second+300*time.Millisecond); d != nil || err != nil {
		t.Fatalf("receive from an empty queue: %v, %v", d, err)
	}
	lease, err := q.Extend(ctx, handle, 119*time.Second+time.Millisecond)
	if err != nil || lease.Receipt != "new+/=" {
		t.Fatalf("extend: %+v, %v", lease, err)
	}
	if errs := q.Delete(ctx, []providers.Receipt{handle}); errs[0] != nil {
		t.Fatal(errs[0])
	}
	if errs := q.Delete(ctx, []providers.Receipt{"a+b", "c<&>d"}); errs[0] != nil || errs[1] != nil {
		t.Fatal(errs)
	}
	want := []struct{ line, auth, body string }{
		{"GET /queues/usher-hooks/messages?numOfMessages=16&waitseconds=20 HTTP/1.1", "AApky4f9okw4EjOdLn0CrDCEOsk=", ""},
		{"PUT /queues/usher-hooks/messages?ReceiptHandle=1-ODU4OTkzNDU5My0xNDM1MTk3NjAwLTItNg%3D%3D&VisibilityTimeout=120 HTTP/1.1", "kICFWbTzzXew8LwQkXpWP3xoEAU=", ""},
		{"DELETE /queues/usher-hooks/messages?ReceiptHandle=1-ODU4OTkzNDU5My0xNDM1MTk3NjAwLTItNg%3D%3D HTTP/1.1", "vV+iFaC/1HIH1XI51u2vfVSKuNc=", ""},
		{"DELETE /queues/usher-hooks/messages HTTP/1.1", "", xmlHead + `<ReceiptHandles xmlns="http://mns.aliyuncs.com/doc/v1/"><ReceiptHandle>a+b</ReceiptHandle><ReceiptHandle>c&lt;&amp;&gt;d</ReceiptHandle></ReceiptHandles>`},
	}
	got := s.requests()
	if len(got) != len(want) {
		t.Fatalf("%d requests, want %d", len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		if line := g.head[:len(w.line)]; line != w.line {
			t.Errorf("request line %q, want %q", line, w.line)
		}
		if auth := g.header.Get("Authorization"); w.auth != "" && auth != "MNS testid:"+w.auth {
			t.Errorf("%s: Authorization %q, want %q", w.line, auth, w.auth)
		}
		if g.body != w.body {
			t.Errorf("%s: body %q, want %q", w.line, g.body, w.body)
		}
		if g.header.Get("Accept-Encoding") != "" || g.header.Get("x-mns-version") != mnsVersion || g.header.Get("security-token") != "" {
			t.Errorf("%s: headers %v", w.line, g.header)
		}
		if g.conn != 1 {
			t.Errorf("%s: came over connection %d; one is enough", w.line, g.conn)
		}
	}
	if _, sent := got[0].header["Content-Length"]; sent || got[0].header.Get("Transfer-Encoding") != "" {
		t.Errorf("a receive announces a body: %q", got[0].head)
	}
}

// The Transport of net/http repeats a GET whose used connection dies without an
// answer, unless it is kept from it: the messages of the first would be hidden in vain.
func TestReceiveIsNeverRepeated(t *testing.T) {
	t.Parallel()
	s := loopback(t, func(x seen) string {
		if x.number == 1 {
			return emptyQueue()
		}
		return hangUp
	})
	q := newQueue(t, options(s.url()))
	if _, err := q.Receive(t.Context(), 16, 0); err != nil {
		t.Fatal(err)
	}
	_, err := q.Receive(t.Context(), 16, 0)
	wantKind(t, err, providers.ErrUnavailable)
	got := s.requests()
	if len(got) != 2 || got[1].conn != 1 {
		t.Errorf("the server saw %d requests, the second over connection %d; want 2 over 1", len(got), got[1].conn)
	}
}

func TestMNSDigest(t *testing.T) {
	t.Parallel()
	// The vendor's client sends this for an empty body.
	if got, err := mnsDigest(bytes.NewReader(nil)); err != nil || got != "ZDQxZDhjZDk4ZjAwYjIwNGU5ODAwOTk4ZWNmODQyN2U=" {
		t.Errorf("%s, %v", got, err)
	}
}
