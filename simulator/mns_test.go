package simulator

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestSendReceiveDelete(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: oneQueue()})
	body := "eyJwcm9kdWN0IjoiRVNTIn0="
	r := w.must(201, "POST", "/queues/q/messages", `<?xml version="1.0" encoding="UTF-8"?><Message xmlns="http://mns.aliyuncs.com/doc/v1/"><MessageBody>`+body+`</MessageBody><Priority>3</Priority></Message>`)
	if !strings.Contains(r.body, "<MessageBodyMD5>44E64B625A9D89523CB77DFCC5D284E3</MessageBodyMD5>") || strings.Contains(r.body, "ReceiptHandle") {
		t.Errorf("send answered %s", r.body)
	}
	for name, want := range map[string]string{"Server": "AliyunMQS", "X-Mns-Version": "2015-06-06", "Content-Type": "text/xml;charset=utf-8"} {
		if got := r.header.Get(name); got != want {
			t.Errorf("header %s is %q, want %q", name, got, want)
		}
	}
	if id := r.header.Get("x-mns-request-id"); len(id) != 24 || r.header.Get("Date") == "" {
		t.Errorf("request id %q, date %q", id, r.header.Get("Date"))
	}

	p := w.must(200, "GET", "/queues/q/messages?peekonly=true", "")
	if strings.Contains(p.body, "ReceiptHandle") || strings.Contains(p.body, "NextVisibleTime") || !strings.Contains(p.body, body) {
		t.Errorf("peek answered %s", p.body)
	}
	m := w.receiveOne("q", "0")
	if m.MessageBody != body || m.DequeueCount != 1 || m.Priority != 3 || m.NextVisibleTime-m.FirstDequeueTime != 30_000 || m.EnqueueTime > m.FirstDequeueTime {
		t.Errorf("received %+v", m)
	}
	w.refused(404, "MessageNotExist", "GET", "/queues/q/messages", "")
	r = w.must(204, "DELETE", "/queues/q/messages?"+handleQuery(m.ReceiptHandle), "")
	if r.body != "" {
		t.Errorf("delete answered a body: %s", r.body)
	}
	w.refused(404, "MessageNotExist", "DELETE", "/queues/q/messages?"+handleQuery(m.ReceiptHandle), "")
	want := []EventType{MessageSent, MessageReceived, MessageDeleted}
	if got := w.types(MessageSent, MessageReceived, MessageDeleted); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

func TestReceiptHandleIsRawInTheQuery(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: oneQueue()})
	plus, slash := false, false
	for range 200 { // both signs come up soon
		w.send("q", "x")
		m := w.receiveOne("q", "0")
		plus, slash = plus || strings.Contains(m.ReceiptHandle, "+"), slash || strings.Contains(m.ReceiptHandle, "/")
		w.must(204, "DELETE", "/queues/q/messages?receiptHandle="+m.ReceiptHandle, "") // not encoded: + stays +
		if plus && slash {
			return
		}
	}
	t.Errorf("no handle held + (%v) and / (%v)", plus, slash)
}

func TestBatches(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: oneQueue()})
	w.must(201, "POST", "/queues/q/messages", "<Messages>"+strings.Repeat("<Message><MessageBody>a&amp;b</MessageBody></Message>", 16)+"</Messages>")
	w.refused(400, "InvalidArgument", "POST", "/queues/q/messages", "<Messages>"+strings.Repeat("<Message><MessageBody>a</MessageBody></Message>", 17)+"</Messages>")
	w.refused(400, "InvalidArgument", "POST", "/queues/q/messages", "<Messages>"+strings.Repeat("<Message><MessageBody>"+strings.Repeat("a", 33_000)+"</MessageBody></Message>", 2)+"</Messages>")
	if r := w.must(200, "GET", "/queues/q/messages?peekonly=true&numOfMessages=16", ""); strings.Count(r.body, "<Message>") != 16 {
		t.Errorf("peek answered %s", r.body)
	}
	first, rest := w.receiveBatch("q", 10), w.receiveBatch("q", 16)
	if len(first) != 10 || len(rest) != 6 || first[0].MessageBody != "a&b" {
		t.Fatalf("received %d and %d messages, body %q", len(first), len(rest), first[0].MessageBody)
	}
	dead := first[0].ReceiptHandle
	w.extend("q", dead, 60)
	w.must(204, "DELETE", "/queues/q/messages", "<ReceiptHandles><ReceiptHandle>"+first[1].ReceiptHandle+"</ReceiptHandle><ReceiptHandle>"+first[2].ReceiptHandle+"</ReceiptHandle></ReceiptHandles>")
	r := w.must(404, "DELETE", "/queues/q/messages", "<ReceiptHandles><ReceiptHandle>"+dead+"</ReceiptHandle><ReceiptHandle>"+rest[0].ReceiptHandle+"</ReceiptHandle><ReceiptHandle>"+first[1].ReceiptHandle+"</ReceiptHandle></ReceiptHandles>")
	var doc struct {
		XMLName xml.Name `xml:"http://mns.aliyuncs.com/doc/v1/ Errors"`
		Error   []struct{ ErrorCode, ErrorMessage, ReceiptHandle string }
	}
	if err := xml.Unmarshal([]byte(r.body), &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Error) != 2 || doc.Error[0].ErrorCode != "ReceiptHandleError" || doc.Error[0].ReceiptHandle != dead || doc.Error[1].ErrorCode != "MessageNotExist" {
		t.Errorf("batch delete listed %+v", doc.Error)
	}
	if q, _ := w.State().Queue("q"); q.Inactive != 13 || q.Active != 0 {
		t.Errorf("the queue holds %+v, want 13 hidden", q)
	}
	partial := w.must(500, "POST", "/queues/q/messages", "<Messages><Message><MessageBody>ok</MessageBody></Message><Message><MessageBody>x</MessageBody><Priority>17</Priority></Message></Messages>")
	if !strings.Contains(partial.body, "<ErrorCode>InvalidArgument</ErrorCode>") || !strings.Contains(partial.body, "<MessageId>") {
		t.Errorf("partial failure answered %s", partial.body)
	}
}

func TestMNSRefusals(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: oneQueue()})
	w.send("q", "x")
	held := handleQuery(w.receiveOne("q", "0").ReceiptHandle)
	const q = "/queues/q/messages"
	for _, c := range []struct {
		status               int
		code, method, target string
		body                 string
	}{
		{404, "QueueNotExist", "GET", "/queues/none/messages", ""},
		{404, "QueueNotExist", "POST", "/queues/none/messages", "<Message><MessageBody>x</MessageBody></Message>"},
		{404, "QueueNotExist", "DELETE", "/queues/none/messages?" + held, ""},
		{404, "QueueNotExist", "GET", "/queues/none", ""},
		{404, "TopicNotExist", "GET", "/topics/none", ""},
		{400, "InvalidRequestURL", "GET", "/elsewhere", ""},
		{400, "InvalidRequestURL", "PATCH", q, ""},
		{400, "InvalidQueryString", "GET", q + "?colour=red", ""},
		{500, "InternalError", "GET", q + "?WaitSeconds=3", ""},
		{400, "InvalidArgument", "GET", q + "?waitseconds=31", ""},
		{400, "InvalidArgument", "GET", q + "?waitseconds=-1", ""},
		{400, "InvalidArgument", "GET", q + "?numOfMessages=17", ""},
		{400, "InvalidArgument", "GET", q + "?numOfMessages=0", ""},
		{400, "MalformedXML", "POST", q, "<Message><MessageBody>x"},
		{400, "MalformedXML", "POST", q, ""},
		{400, "InvalidArgument", "POST", q, "<Note><MessageBody>x</MessageBody></Note>"},
		{400, "InvalidArgument", "POST", q, "<Message></Message>"},
		{400, "InvalidArgument", "POST", q, "<Message><MessageBody>" + strings.Repeat("x", 65537) + "</MessageBody></Message>"},
		{400, "InvalidArgument", "POST", q, "<Message><MessageBody>x</MessageBody><DelaySeconds>604801</DelaySeconds></Message>"},
		{400, "MissingReceiptHandle", "DELETE", q, ""},
		{400, "ReceiptHandleError", "DELETE", q + "?ReceiptHandle=1-ODU4OTkzNDU5My0xNDM1MTk3NjAwLTItNg%3D%3D", ""},
		{400, "ReceiptHandleError", "PUT", q + "?ReceiptHandle=nonsense&VisibilityTimeout=5", ""},
		{400, "MissingReceiptHandle", "PUT", q + "?VisibilityTimeout=5", ""},
		{400, "MissingVisibilityTimeout", "PUT", q + "?" + held, ""},
		{400, "InvalidArgument", "PUT", q + "?" + held + "&VisibilityTimeout=0", ""},
		{400, "InvalidArgument", "PUT", q + "?" + held + "&visibilityTimeout=43201", ""},
		{400, "InvalidArgument", "DELETE", q, "<ReceiptHandles></ReceiptHandles>"},
		{400, "InvalidQueueName", "PUT", "/queues/-q", ""},
		{400, "QueueNameLengthError", "PUT", "/queues/" + strings.Repeat("q", 121), ""},
		{409, "QueueAlreadyExist", "PUT", "/queues/q", "<Queue><VisibilityTimeout>31</VisibilityTimeout></Queue>"},
		{400, "InvalidArgument", "PUT", "/queues/q2", "<Queue><PollingWaitSeconds>31</PollingWaitSeconds></Queue>"},
	} {
		w.refused(c.status, c.code, c.method, c.target, c.body)
	}
}

func TestMNSAuthentication(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: oneQueue()})
	const q = "/queues/q/messages"
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Del(name)
			if value != "" {
				r.Header.Set(name, value)
			}
		}
	}
	w.refused(400, "MissingAuthorizationHeader", "GET", q, "", header("Authorization", ""))
	w.refused(400, "InvalidAuthorizationHeader", "GET", q, "", header("Authorization", "Basic dGVzdA=="))
	w.refused(400, "InvalidAuthorizationHeader", "GET", q, "", header("Authorization", "MNS nothing"))
	w.refused(400, "MissingDateHeader", "GET", q, "", header("Date", ""))
	w.refused(400, "InvalidDateHeader", "GET", q, "", header("Date", "yesterday"))
	w.refused(400, "MissingVersionHeader", "GET", q, "", header("x-mns-version", ""))
	w.refused(403, "SignatureDoesNotMatch", "GET", q, "", header("Content-Type", "text/xml"))
	w.refused(403, "SignatureDoesNotMatch", "GET", q, "", header("x-mns-extra", "1"))
	w.refused(403, "SignatureDoesNotMatch", "GET", q+"?waitseconds=1", "", func(r *http.Request) { r.URL.RawQuery = "waitseconds=2" })
	w.refused(403, "InvalidSecurityToken", "GET", q, "", header("security-token", "x"))

	stranger := *w
	stranger.id = "somebody"
	stranger.refused(403, "InvalidAccessKeyId", "GET", q, "")
	wrong := *w
	wrong.secret = "wrong"
	wrong.refused(403, "SignatureDoesNotMatch", "GET", q, "")
	for _, skew := range []time.Duration{-16 * time.Minute, 16 * time.Minute} {
		off := *w
		off.skew = skew
		off.refused(408, "TimeExpired", "GET", q, "")
	}
	nearly := *w
	nearly.skew = -14 * time.Minute
	nearly.refused(404, "MessageNotExist", "GET", q, "")

	// x-mns-date stands in for Date and is signed twice over.
	date := time.Now().UTC().Format(http.TimeFormat)
	w.refused(404, "MessageNotExist", "GET", q, "", func(r *http.Request) {
		r.Header.Del("Date")
		r.Header.Set("x-mns-date", date)
		r.Header.Set("Authorization", "MNS "+testKey+":"+signMNS(testSecret, "GET", q, date, r.Header))
	})
	scope := time.Now().UTC().Format("20060102") + "/cn-shenzhen/mns/aliyun_v4_request"
	w.refused(404, "MessageNotExist", "GET", q, "", func(r *http.Request) {
		sent, _ := http.ParseTime(r.Header.Get("Date"))
		r.Header.Set("Authorization", "MNS4-HMAC-SHA256 Credential="+testKey+"/"+scope+",Signature="+signMNSV4(testSecret, scope, "GET", q, sent, r.Header))
	})
	w.refused(403, "SignatureDoesNotMatch", "GET", q, "", header("Authorization", "MNS4-HMAC-SHA256 Credential="+testKey+"/"+scope+",Signature=00"))

	w.SetCredentials("STS.new", "other", "token")
	w.refused(403, "InvalidAccessKeyId", "GET", q, "")
	rotated := *w
	rotated.id, rotated.secret, rotated.token = "STS.new", "other", "token"
	rotated.refused(404, "MessageNotExist", "GET", q, "")
}

func TestContentMD5(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: oneQueue()})
	const body = "<Message><MessageBody>x</MessageBody></Message>"
	sum := md5.Sum([]byte(body))
	resign := func(digest string) func(*http.Request) {
		return func(r *http.Request) {
			r.Header.Set("Content-MD5", digest)
			r.Header.Set("Authorization", "MNS "+testKey+":"+signMNS(testSecret, "POST", "/queues/q/messages", r.Header.Get("Date"), r.Header))
		}
	}
	w.must(201, "POST", "/queues/q/messages", body, resign(base64.StdEncoding.EncodeToString(sum[:])))
	w.must(201, "POST", "/queues/q/messages", body, resign(base64.StdEncoding.EncodeToString([]byte(hex.EncodeToString(sum[:])))))
	w.refused(400, "InvalidDegist", "POST", "/queues/q/messages", body, resign("AAAA"))
}

func TestQueueOperations(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: oneQueue()})
	r := w.must(201, "PUT", "/queues/jobs", "<Queue><VisibilityTimeout>45</VisibilityTimeout><LoggingEnabled>True</LoggingEnabled></Queue>")
	if got, want := r.header.Get("Location"), "http://1234567890123456.mns.cn-shenzhen.aliyuncs.com/queues/jobs"; got != want {
		t.Errorf("location %s, want %s", got, want)
	}
	w.must(204, "PUT", "/queues/jobs", "<Queue><VisibilityTimeout>45</VisibilityTimeout><LoggingEnabled>true</LoggingEnabled></Queue>")
	w.must(204, "PUT", "/queues/jobs?metaoverride=true", "<Queue><VisibilityTimeout>50</VisibilityTimeout></Queue>")
	w.refused(404, "QueueNotExist", "PUT", "/queues/none?metaoverride=true", "<Queue></Queue>")
	attributes := w.must(200, "GET", "/queues/jobs", "").body
	for _, want := range []string{"<QueueName>jobs<", "<VisibilityTimeout>50<", "<MessageRetentionPeriod>345600<", "<LoggingEnabled>true<", "<ActiveMessages>0<", "<MaximumMessageSize>65536<"} {
		if !strings.Contains(attributes, want) {
			t.Errorf("attributes lack %s: %s", want, attributes)
		}
	}
	if r := w.must(200, "GET", "/queues", ""); strings.Count(r.body, "<QueueURL>") != 2 {
		t.Errorf("list answered %s", r.body)
	}
	w.must(204, "DELETE", "/queues/jobs", "")
	w.refused(404, "QueueNotExist", "GET", "/queues/jobs", "")
	w.must(204, "DELETE", "/queues/jobs", "")
}

func TestHandleDiesAtVisibilityExtendAndReceive(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: oneQueue()}, func(w *world) {
		w.send("q", "x")
		first := w.receiveOne("q", "0").ReceiptHandle
		second := w.extend("q", first, 60)
		w.refused(400, "ReceiptHandleError", "DELETE", "/queues/q/messages?"+handleQuery(first), "")
		w.refused(400, "ReceiptHandleError", "PUT", "/queues/q/messages?VisibilityTimeout=9&"+handleQuery(first), "")
		time.Sleep(59 * time.Second) // the extension counts from the call, not from the receive
		w.refused(404, "MessageNotExist", "GET", "/queues/q/messages", "")
		third := w.extend("q", second, 10)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		w.refused(404, "MessageNotExist", "DELETE", "/queues/q/messages?"+handleQuery(third), "")
		w.refused(404, "MessageNotExist", "PUT", "/queues/q/messages?VisibilityTimeout=9&"+handleQuery(third), "")
		again := w.receiveOne("q", "0")
		if again.DequeueCount != 2 {
			t.Errorf("received %d times, want 2", again.DequeueCount)
		}
		w.refused(400, "ReceiptHandleError", "DELETE", "/queues/q/messages?"+handleQuery(third), "")
		w.must(204, "DELETE", "/queues/q/messages?"+handleQuery(again.ReceiptHandle), "")
	})
}

func TestLongPollWakes(t *testing.T) {
	t.Parallel()
	// waited polls and says how long that took on the bubble's clock.
	waited := func(w *world, wait string) (time.Duration, reply) {
		from := time.Now()
		r, err := w.mns("GET", "/queues/q/messages?waitseconds="+wait, "")
		if err != nil {
			w.t.Fatal(err)
		}
		return time.Since(from), r
	}
	check := func(w *world, what, wait string, want time.Duration, status int) {
		w.t.Helper()
		if d, r := waited(w, wait); d != want || r.status != status {
			w.t.Errorf("%s: %v and status %d, want %v and %d", what, d, r.status, want, status)
		}
	}
	bubble(t, Options{Scenario: oneQueue()}, func(w *world) {
		check(w, "empty queue", "20", 20*time.Second, 404)
		time.AfterFunc(7*time.Second, func() { w.SendMessage("q", "x") })
		check(w, "send", "20", 7*time.Second, 200)
		time.Sleep(5 * time.Second)
		check(w, "visibility expiry", "30", 25*time.Second, 200)
		w.must(201, "POST", "/queues/q/messages", "<Message><MessageBody>x</MessageBody><DelaySeconds>5</DelaySeconds></Message>")
		check(w, "delay end", "20", 5*time.Second, 200)
		deleted := make(chan error, 1)
		time.AfterFunc(3*time.Second, func() {
			r, err := w.mns("DELETE", "/queues/q", "")
			if err == nil && r.status != 204 {
				err = fmt.Errorf("status %d: %s", r.status, r.body)
			}
			deleted <- err
		})
		check(w, "deleted queue", "20", 3*time.Second, 404)
		// The poll's answer can overtake that of the deletion, which the world's end would cut off.
		if err := <-deleted; err != nil {
			t.Errorf("deleting the queue: %v", err)
		}
	})
	sc := oneQueue()
	sc.Queues[0].PollingWait = 12 * time.Second
	bubble(t, Options{Scenario: sc}, func(w *world) {
		check(w, "the caller's 0 wins over the queue's wait", "0", 0, 404)
		from := time.Now()
		w.refused(404, "MessageNotExist", "GET", "/queues/q/messages", "")
		if d := time.Since(from); d != 12*time.Second {
			t.Errorf("the queue's own wait took %v, want 12s", d)
		}
		time.AfterFunc(time.Second, func() { w.Close() })
		check(w, "closed simulator", "30", time.Second, 404)
	})
}

func TestLongPollEndsWithItsClient(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: oneQueue()}, func(w *world) {
		ctx, cancel := context.WithCancel(w.t.Context())
		time.AfterFunc(time.Second, cancel)
		_, err := w.mnsContext(ctx, "GET", "/queues/q/messages?waitseconds=30", "")
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
		synctest.Wait()
		// Nobody waits any more: the message goes to the next receive, with its first count.
		w.send("q", "x")
		if m := w.receiveOne("q", "0"); m.DequeueCount != 1 {
			t.Errorf("received %d times, want 1", m.DequeueCount)
		}
	})
}

func TestOneSendWakesOneOfManyPolls(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: oneQueue()}, func(w *world) {
		got := make(chan int, 5)
		for range 5 {
			go func() {
				r, err := w.mns("GET", "/queues/q/messages?waitseconds=30", "")
				if err != nil {
					t.Error(err)
				}
				got <- r.status
			}()
		}
		synctest.Wait()
		for range 3 {
			w.SendMessage("q", "x")
		}
		counts := map[int]int{}
		for range 5 {
			counts[<-got]++
		}
		// The visibility of 30 s ends as the last polls do; all that counts is that no message was lost or doubled before.
		if counts[200] < 3 {
			t.Errorf("statuses %v, want at least three 200", counts)
		}
	})
}

func TestPriorityDelayAndRetention(t *testing.T) {
	t.Parallel()
	sc := oneQueue()
	sc.Queues[0].Retention = 2 * time.Minute
	bubble(t, Options{Scenario: sc}, func(w *world) {
		for _, p := range []int{9, 1, 16, 1} {
			w.must(201, "POST", "/queues/q/messages", fmt.Sprintf("<Message><MessageBody>p%d</MessageBody><Priority>%d</Priority></Message>", p, p))
		}
		var order []string
		for _, m := range w.receiveBatch("q", 16) {
			order = append(order, m.MessageBody)
		}
		if want := []string{"p1", "p1", "p9", "p16"}; !slices.Equal(order, want) {
			t.Errorf("order %v, want %v", order, want)
		}
		r := w.must(201, "POST", "/queues/q/messages", "<Message><MessageBody>late</MessageBody><DelaySeconds>50</DelaySeconds></Message>")
		var sent struct{ ReceiptHandle string }
		if err := xml.Unmarshal([]byte(r.body), &sent); err != nil || sent.ReceiptHandle == "" {
			t.Fatalf("delayed send answered %s (%v)", r.body, err)
		}
		if q, _ := w.State().Queue("q"); q.Delayed != 1 || q.Inactive != 4 {
			t.Errorf("queue %+v", q)
		}
		w.must(204, "DELETE", "/queues/q/messages?"+handleQuery(sent.ReceiptHandle), "")
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if q, _ := w.State().Queue("q"); q.Active+q.Inactive+q.Delayed != 0 {
			t.Errorf("after the retention the queue holds %+v", q)
		}
		if n := len(w.types(MessageExpired)); n != 4 {
			t.Errorf("%d messages expired, want 4", n)
		}
	})
}

// A cloud whose clock is ahead stamps by it, answers by it, and refuses requests that
// are too old for it; how long things last is no matter of the clock.
func TestClockAhead(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: oneQueue()})
	w.SetClock(10 * time.Minute)
	w.send("q", "x")
	m := w.receiveOne("q", "0")
	if ahead := time.Until(time.UnixMilli(m.EnqueueTime)); ahead < 9*time.Minute || ahead > 10*time.Minute {
		t.Errorf("the message's time is %v ahead, want 10m", ahead)
	}
	if m.NextVisibleTime-m.FirstDequeueTime != 30_000 {
		t.Errorf("it is hidden for %d ms, want 30 s", m.NextVisibleTime-m.FirstDequeueTime)
	}
	r := w.must(204, "DELETE", "/queues/q/messages?"+handleQuery(m.ReceiptHandle), "")
	if date, err := http.ParseTime(r.header.Get("Date")); err != nil || time.Until(date) < 9*time.Minute {
		t.Errorf("the answer's date is %v, %v", date, err)
	}
	w.SetClock(16 * time.Minute)
	w.refused(408, "TimeExpired", "GET", "/queues/q/messages", "")
	w.fails(400, "InvalidTimeStamp.Expired", essOld, "DescribeLifecycleHooks")
	w.SetClock(-14 * time.Minute)
	w.call(essOld, "DescribeLifecycleHooks")
}
