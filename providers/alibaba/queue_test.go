package alibaba

import (
	"bytes"
	"context"
	"crypto/md5"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/providers"
)

func message(id, receipt, body string, visible time.Time) string {
	return fmt.Sprintf(`<Message><MessageId>%s</MessageId><ReceiptHandle>%s</ReceiptHandle><MessageBodyMD5>%X</MessageBodyMD5><MessageBody>%s</MessageBody>`+
		`<EnqueueTime>1678276800000</EnqueueTime><NextVisibleTime>%d</NextVisibleTime><FirstDequeueTime>1678276800123</FirstDequeueTime>`+
		`<DequeueCount>3</DequeueCount><Priority>8</Priority></Message>`, id, receipt, md5.Sum([]byte(body)), body, visible.UnixMilli())
}

func batch(messages ...string) string {
	return response(200, "", xmlHead+`<Messages xmlns="http://mns.aliyuncs.com/doc/v1">`+strings.Join(messages, "\n")+`</Messages>`)
}

func TestReceiveReadsDeliveries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newPipes()
		serve(t, l, func(seen) string {
			time.Sleep(2500 * time.Millisecond) // a long poll, in the bubble's time
			return batch(message("m-1", "r+1==", "eyJ9", time.Now().Add(30*time.Second)), message("m-2", "", "no handle", time.Now()),
				strings.Replace(message("m-3", "r3", "body", time.Now()), "<MessageBody>body", "<MessageBody>bodi", 1))
		})
		var log bytes.Buffer
		o := options("http://mns.test")
		o.DialContext, o.Logger = l.dial, slog.New(slog.NewTextHandler(&log, nil))
		q := newQueue(t, o)
		sent := time.Now()
		got, err := q.Receive(t.Context(), 16, 20*time.Second)
		if err != nil || len(got) != 2 {
			t.Fatalf("%d deliveries, %v", len(got), err)
		}
		d := got[0]
		if d.MessageID != "m-1" || d.Receipt != "r+1==" || string(d.Body) != "eyJ9" || d.Receives != 3 || d.RequestID != "5DF07C9B31383790319F4D26" {
			t.Errorf("delivery %+v", d)
		}
		if !d.EnqueuedAt.Equal(time.UnixMilli(1678276800000)) || !d.CloudTime.Equal(sent.Add(2500*time.Millisecond).Truncate(time.Second)) {
			t.Errorf("times of the cloud: enqueued %v, answered %v", d.EnqueuedAt, d.CloudTime)
		}
		// The message is hidden until 32.5 s after the sending. What is surely so counts from
		// the sending, and must allow for a Date that is cut to seconds.
		if hidden := d.Until.Sub(sent); hidden != 29500*time.Millisecond {
			t.Errorf("surely hidden for %v", hidden)
		}
		if !d.ReceivedAt.Equal(sent.Add(2500 * time.Millisecond)) {
			t.Errorf("received at %v", d.ReceivedAt)
		}
		if string(got[1].Body) != "bodi" || !got[1].Garbled || got[0].Garbled {
			t.Errorf("a body that does not fit its MD5 came as %q, garbled %v; the one before garbled %v", got[1].Body, got[1].Garbled, got[0].Garbled)
		}
		for _, want := range []string{"does not fit its MD5", "m-3", "without a receipt handle", "m-2"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("log lacks %q: %s", want, log.String())
			}
		}
	})
}

func TestReceiveWithoutTheCloudsClock(t *testing.T) {
	t.Parallel()
	body := xmlHead + `<Message><MessageId>m</MessageId><ReceiptHandle>r</ReceiptHandle><MessageBody>b</MessageBody><DequeueCount>x</DequeueCount></Message>`
	s := loopback(t, func(seen) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	})
	got, err := newQueue(t, options(s.url())).Receive(t.Context(), 1, 0)
	if err != nil || len(got) != 1 {
		t.Fatalf("%v, %v", got, err)
	}
	if d := got[0]; !d.Until.Equal(d.ReceivedAt) || !d.CloudTime.IsZero() || !d.EnqueuedAt.IsZero() || d.Receives != 1 {
		t.Errorf("delivery %+v", d)
	}
}

func TestExtendedUntil(t *testing.T) {
	t.Parallel()
	sent := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	date := time.Date(2026, 1, 1, 11, 30, 0, 0, time.UTC) // their clock is another one
	for _, c := range []struct {
		name       string
		next, date time.Time
		want       time.Duration
	}{
		{"nothing told", time.Time{}, time.Time{}, time.Minute},
		{"no date", date.Add(time.Minute), time.Time{}, time.Minute},
		{"as asked", date.Add(60300 * time.Millisecond), date, time.Minute},
		{"more than asked", date.Add(2 * time.Minute), date, time.Minute},
		{"less than asked", date.Add(30 * time.Second), date, 29 * time.Second},
	} {
		if got := extendedUntil(sent, time.Minute, c.next, c.date).Sub(sent); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestQueueRefusals(t *testing.T) {
	t.Parallel()
	html := "<html><head><title>502 Bad Gateway</title></head>\n<body>nginx</body></html>"
	for _, c := range []struct {
		name, answer string
		kind         error
		status       int
		code, hint   string
	}{
		{"message gone", mnsRefusal(404, "MessageNotExist", emptyQueueText), providers.ErrReceiptStale, 404, "MessageNotExist", ""},
		{"handle used up", mnsRefusal(400, "ReceiptHandleError", "The receipt handle you provide is not valid."), providers.ErrReceiptStale, 400, "ReceiptHandleError", ""},
		{"no queue", mnsRefusal(404, "QueueNotExist", "The queue name you provided is not exist."), providers.ErrQueueGone, 404, "QueueNotExist", "no queue usher-hooks at http://"},
		{"clock", mnsRefusal(408, "TimeExpired", "The http request you sent is expired."), providers.ErrClock, 408, "TimeExpired", "set this host's clock"},
		{"clock, as one page has it", mnsRefusal(400, "TimeExpired", ""), providers.ErrClock, 400, "TimeExpired", "NTP"},
		{"unknown key", mnsRefusal(403, "InvalidAccessKeyId", "The AccessKey Id you provided is not exist."), providers.ErrDenied, 403, "InvalidAccessKeyId", "access key id is unknown"},
		{"wrong secret", mnsRefusal(403, "SignatureDoesNotMatch", ""), providers.ErrDenied, 403, "SignatureDoesNotMatch", "secret does not belong"},
		{"not allowed", mnsRefusal(403, "AccessDenied", ""), providers.ErrDenied, 403, "AccessDenied",
			"allow mns:ChangeMessageVisibility on acs:mns:*:*:/queues/usher-hooks/messages"},
		{"expired", mnsRefusal(403, "SecurityTokenExpired", ""), providers.ErrDenied, 403, "SecurityTokenExpired", "the temporary keys have expired"},
		{"unknown 403", mnsRefusal(403, "Forbidden", ""), providers.ErrDenied, 403, "Forbidden", "allow mns:ChangeMessageVisibility"},
		{"bad argument", mnsRefusal(400, "InvalidArgument", "The value of VisibilityTimeout should between 1 and 43200 seconds."), providers.ErrInvalid, 400, "InvalidArgument", ""},
		{"server error", mnsRefusal(500, "InternalError", "Interal error."), providers.ErrUnavailable, 500, "InternalError", ""},
		{"server error without code", response(500, "", ""), providers.ErrUnavailable, 500, "", ""},
		{"proxy page", response(502, "Content-Type: text/html\r\n", html), providers.ErrUnavailable, 502, "", ""},
		{"not found page", response(404, "", "404 page not found"), providers.ErrInvalid, 404, "", "the answer is not from MNS"},
		{"redirect", response(302, "Location: https://elsewhere.invalid/\r\n", ""), providers.ErrInvalid, 302, "", "proxy settings"},
		{"success that is a page", response(200, "", html), providers.ErrUnavailable, 200, "", ""},
		{"success that is cut", response(200, "", `<ChangeVisibility><ReceiptHandle>r`), providers.ErrUnavailable, 200, "", ""},
		{"success without a handle", response(200, "", `<ChangeVisibility/>`), providers.ErrUnavailable, 200, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := loopback(t, func(seen) string { return c.answer })
			_, err := newQueue(t, options(s.url())).Extend(t.Context(), "r", time.Minute)
			e := wantKind(t, err, c.kind)
			if e.Op != "ChangeMessageVisibility" || e.Status != c.status || e.Code != c.code || !strings.Contains(e.Hint, c.hint) {
				t.Errorf("error %+v", e)
			}
			if e.RequestID == "" {
				t.Errorf("no request id: %+v", e)
			}
			if n := len(s.requests()); n != 1 {
				t.Errorf("sent %d times; an extension that may have had its effect, or was refused for good, is sent once", n)
			}
		})
	}
}

func TestExtendRepeatsWhatSurelyHadNoEffect(t *testing.T) {
	t.Parallel()
	for name, refusal := range map[string]string{
		"429":     mnsRefusal(429, "TooManyRequests", ""),
		"old QPS": mnsRefusal(400, "QpsLimitExceeded", ""),
		"503":     response(503, "", "busy"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newPipes()
				s := serve(t, l, func(x seen) string {
					if x.number < 4 {
						return refusal
					}
					return response(200, "", `<ChangeVisibility><ReceiptHandle>new</ReceiptHandle></ChangeVisibility>`)
				})
				o := options("http://mns.test")
				o.DialContext = l.dial
				lease, err := newQueue(t, o).Extend(t.Context(), "r", time.Minute)
				if err != nil || lease.Receipt != "new" {
					t.Fatalf("%+v, %v", lease, err)
				}
				if n := len(s.requests()); n != 4 {
					t.Errorf("sent %d times, want 4", n)
				}
				if left := time.Until(lease.Until); left != time.Minute {
					t.Errorf("the lease counts from another attempt: %v left", left)
				}
			})
		})
	}
}

func TestExtendIsNotRepeatedAfterALostAnswer(t *testing.T) {
	t.Parallel()
	s := loopback(t, func(seen) string { return hangUp })
	_, err := newQueue(t, options(s.url())).Extend(t.Context(), "r", time.Minute)
	wantKind(t, err, providers.ErrUnavailable)
	if n := len(s.requests()); n != 1 || providers.Untouched(err) {
		t.Errorf("sent %d times, untouched %v", n, providers.Untouched(err))
	}
}

func TestAHangCostsOneTimeout(t *testing.T) {
	t.Parallel()
	calls := map[string]func(context.Context, *Queue) error{
		"extend":     func(ctx context.Context, q *Queue) error { _, err := q.Extend(ctx, "r", time.Minute); return err },
		"delete":     func(ctx context.Context, q *Queue) error { return q.Delete(ctx, []providers.Receipt{"r"})[0] },
		"batch":      func(ctx context.Context, q *Queue) error { return q.Delete(ctx, []providers.Receipt{"r", "s"})[1] },
		"attributes": func(ctx context.Context, q *Queue) error { _, err := q.Attributes(ctx); return err },
		"poll":       func(ctx context.Context, q *Queue) error { _, err := q.Receive(ctx, 16, 5*time.Second); return err },
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newPipes()
				s := serve(t, l, func(seen) string { return hang })
				o := options("http://mns.test")
				o.DialContext = l.dial
				q := newQueue(t, o)
				start := time.Now()
				err := call(t.Context(), q)
				wantKind(t, err, providers.ErrUnavailable)
				if errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("the call's own limit looks like the caller's: %v", err)
				}
				if took := time.Since(start); took != 10*time.Second { // DefaultCallTimeout, and 5 s + 5 s
					t.Errorf("took %v", took)
				}
				if n := len(s.requests()); n != 1 {
					t.Errorf("sent %d times", n)
				}
			})
		})
	}
}

func TestCallsEndWithTheirContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := newPipes()
		serve(t, l, func(seen) string { return hang })
		o := options("http://mns.test")
		o.DialContext = l.dial
		q := newQueue(t, o)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		_, err := q.Receive(ctx, 16, 30*time.Second)
		if !errors.Is(err, context.Canceled) || time.Since(start) != time.Second {
			t.Errorf("cancelled: %v after %v", err, time.Since(start))
		}
		ctx, cancel = context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		_, err = q.Attributes(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, providers.ErrUnavailable) {
			t.Errorf("deadline: %v", err)
		}
	})
}

func TestReceiveKeepsWhatABrokenBatchHas(t *testing.T) {
	t.Parallel()
	good := message("m-1", "r1", "b1", time.Now())
	for name, c := range map[string]struct {
		body string
		want int
	}{
		"a forbidden byte":      {`<Messages>` + strings.Replace(message("m-0", "r0", "b0", time.Now()), ">b0<", ">\x01\xff<", 1) + good + `</Messages>`, 2},
		"a forbidden reference": {`<Messages>` + strings.Replace(message("m-0", "r0", "b0", time.Now()), ">b0<", ">&#1;&#x1F;&#65;<", 1) + good + `</Messages>`, 2},
		"broken off":            {`<Messages>` + good + message("m-2", "r2", "b2", time.Now())[:40], 1},
		"foreign elements":      {`<m:Messages xmlns:m="urn:x"><m:Extra>x</m:Extra>` + good + `</m:Messages>`, 1},
		"unknown number":        {`<Messages>` + strings.Replace(good, "<DequeueCount>3", "<DequeueCount>many", 1) + `</Messages>`, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := loopback(t, func(seen) string { return response(200, "", c.body) })
			got, err := newQueue(t, options(s.url())).Receive(t.Context(), 16, 0)
			if err != nil || len(got) != c.want {
				t.Errorf("%d deliveries, want %d; %v", len(got), c.want, err)
			}
		})
	}
}

func TestReceiveOfNoDocument(t *testing.T) {
	t.Parallel()
	for _, body := range []string{"", "<html><p>welcome</html>", "{}", "<Messages><Mess"} {
		s := loopback(t, func(seen) string { return response(200, "", body) })
		_, err := newQueue(t, options(s.url())).Receive(t.Context(), 16, 0)
		if e := wantKind(t, err, providers.ErrUnavailable); e.Status != 200 {
			t.Errorf("%q: %v", body, err)
		}
	}
}

func TestAnswersAreBounded(t *testing.T) {
	t.Parallel()
	s := loopback(t, func(seen) string {
		return response(200, "", "<Messages>"+strings.Repeat(" ", mnsMaxAnswer)+"</Messages>")
	})
	_, err := newQueue(t, options(s.url())).Receive(t.Context(), 16, 0)
	if e := wantKind(t, err, providers.ErrUnavailable); !strings.Contains(err.Error(), "longer than") || e.Status != 200 {
		t.Errorf("error %v", err)
	}
	// The largest that is right: 16 messages of 64 KB, each byte escaped.
	body := strings.Repeat("&quot;", 64<<10)
	full := make([]string, 16)
	for i := range full {
		full[i] = message(fmt.Sprint(i), fmt.Sprint("r", i), body, time.Now())
	}
	s = loopback(t, func(seen) string { return batch(full...) })
	got, err := newQueue(t, options(s.url())).Receive(t.Context(), 16, 0)
	if err != nil || len(got) != 16 || len(got[15].Body) != 64<<10 {
		t.Errorf("%d deliveries, %v", len(got), err)
	}
}

func TestBatchDeleteFailsInPart(t *testing.T) {
	t.Parallel()
	item := func(code, handle string) string {
		return `<Error><ErrorCode>` + code + `</ErrorCode><ErrorMessage>words</ErrorMessage><ReceiptHandle>` + handle + `</ReceiptHandle></Error>`
	}
	errorsDoc := func(items ...string) string {
		return response(404, "", xmlHead+`<Errors xmlns="http://mns.aliyuncs.com/doc/v1/">`+strings.Join(items, "")+`</Errors>`)
	}
	rs := []providers.Receipt{"a+/=", "b", "c<d"}
	stale, unavailable := providers.ErrReceiptStale, providers.ErrUnavailable
	for name, c := range map[string]struct {
		answer string
		want   [3]error
		sent   int
	}{
		"all gone":            {response(204, "", ""), [3]error{}, 1},
		"one stale":           {errorsDoc(item("ReceiptHandleError", "b")), [3]error{nil, stale, nil}, 1},
		"two, in other order": {errorsDoc(item("InternalError", "c&lt;d"), item("MessageNotExist", "a+/=")), [3]error{stale, nil, unavailable}, 1},
		"partly, but 200":     {strings.Replace(errorsDoc(item("ReceiptHandleError", "b")), "404 Not Found", "200 OK", 1), [3]error{nil, stale, nil}, 1},
		"a stranger":          {errorsDoc(item("ReceiptHandleError", "zzz"), item("ReceiptHandleError", "b")), [3]error{unavailable, unavailable, unavailable}, 1},
		"nobody":              {errorsDoc(), [3]error{unavailable, unavailable, unavailable}, 1},
		"the whole call": {mnsRefusal(404, "QueueNotExist", ""),
			[3]error{providers.ErrQueueGone, providers.ErrQueueGone, providers.ErrQueueGone}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := loopback(t, func(seen) string { return c.answer })
			errs := newQueue(t, options(s.url())).Delete(t.Context(), rs)
			for i, want := range c.want {
				if (errs[i] == nil) != (want == nil) || !errors.Is(errs[i], want) {
					t.Errorf("%s: %v, want %v", rs[i], errs[i], want)
				}
			}
			if n := len(s.requests()); n != c.sent {
				t.Errorf("sent %d times, want %d", n, c.sent)
			}
		})
	}
}

func TestDeleteRepeats(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]string{"cut": hangUp, "503": response(503, "", ""), "429": mnsRefusal(429, "TooManyRequests", ""), "page": response(502, "", "<html>")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newPipes()
				s := serve(t, l, func(x seen) string {
					if x.number == 1 {
						return first
					}
					return response(204, "", "")
				})
				o := options("http://mns.test")
				o.DialContext = l.dial
				many := make([]providers.Receipt, 17)
				for i := range many {
					many[i] = providers.Receipt(fmt.Sprint("r", i))
				}
				if err := errors.Join(newQueue(t, o).Delete(t.Context(), many)...); err != nil {
					t.Fatal(err)
				}
				if n := len(s.requests()); n != 3 { // 16 twice, then the 17th
					t.Errorf("sent %d times", n)
				}
			})
		})
	}
}

func TestAttributes(t *testing.T) {
	t.Parallel()
	s := loopback(t, func(x seen) string {
		switch x.number {
		case 1:
			return response(200, "", xmlHead+`<Queue xmlns="http://mns.aliyuncs.com/doc/v1/"><QueueName>usher-hooks</QueueName><VisibilityTimeout>60</VisibilityTimeout><MessageRetentionPeriod>345600</MessageRetentionPeriod></Queue>`)
		case 2:
			return response(200, "", `<Queue><VisibilityTimeout>60</VisibilityTimeout></Queue>`)
		case 3:
			return response(200, "", `<Queue/>`)
		}
		return mnsRefusal(403, "AccessDenied", "")
	})
	q := newQueue(t, options(s.url()))
	a, err := q.Attributes(t.Context())
	if err != nil || a.VisibilityTimeout != time.Minute || a.Retention != 96*time.Hour {
		t.Errorf("%+v, %v", a, err)
	}
	for range 2 {
		_, err = q.Attributes(t.Context())
		wantKind(t, err, providers.ErrUnavailable)
	}
	_, err = q.Attributes(t.Context())
	if e := wantKind(t, err, providers.ErrDenied); !strings.Contains(e.Hint, "mns:GetQueueAttributes on acs:mns:*:*:/queues/usher-hooks ") {
		t.Errorf("hint %q", e.Hint)
	}
	if got := s.requests()[0].target; got != "/queues/usher-hooks" {
		t.Errorf("target %q", got)
	}
	if q.MaxBatch() != 16 || q.MaxWait() != 30*time.Second {
		t.Error("limits are not those of MNS")
	}
}

func TestConnectionRefused(t *testing.T) {
	t.Parallel()
	s := loopback(t, func(seen) string { return hangUp })
	s.listener.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err := newQueue(t, options(s.url())).Extend(ctx, "r", time.Minute)
	wantKind(t, err, providers.ErrUnavailable)
	if !strings.Contains(err.Error(), "refused") || !providers.Untouched(err) {
		t.Errorf("error %v", err)
	}
}

func TestManyGoroutinesShareAQueue(t *testing.T) {
	t.Parallel()
	s := loopback(t, func(x seen) string {
		if x.method() == "GET" {
			return batch(message("m", "r", "b", time.Now().Add(time.Minute)))
		}
		return response(204, "", "")
	})
	q := newQueue(t, options(s.url()))
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 20 {
				d, err := q.Receive(t.Context(), 16, 0)
				if err != nil || len(d) != 1 {
					t.Errorf("%v, %v", d, err)
					return
				}
				if err := q.Delete(t.Context(), []providers.Receipt{d[0].Receipt})[0]; err != nil {
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
	if conns > 2*16 { // the Transport may dial while another connection comes free
		t.Errorf("%d connections for 16 goroutines", conns)
	}
}

// A request with temporary keys carries the token beside the signature.
func TestQueueWithTemporaryKeys(t *testing.T) {
	t.Parallel()
	s := loopback(t, func(seen) string { return emptyQueue() })
	o := options(s.url())
	o.Credentials = static{ID: "STS.id", Secret: "secret", Token: "CAIS+/=token"}
	if _, err := newQueue(t, o).Receive(t.Context(), 1, 0); err != nil {
		t.Fatal(err)
	}
	x := s.requests()[0]
	if x.header.Get("security-token") != "CAIS+/=token" || !strings.HasPrefix(x.header.Get("Authorization"), "MNS STS.id:") {
		t.Errorf("headers %v", x.header)
	}
}

func FuzzDecodeMNS(f *testing.F) {
	f.Add([]byte(xmlHead + `<Messages>` + message("m", "r", "b", time.Unix(1, 0)) + `</Messages>`))
	f.Add([]byte(`<Error><Code>QueueNotExist</Code><RequestId>x</RequestId></Error>`))
	f.Add([]byte(`<Errors><Error><ErrorCode>E</ErrorCode><ReceiptHandle>h</ReceiptHandle></Error></Errors>`))
	f.Add([]byte(`<ChangeVisibility><ReceiptHandle>new</ReceiptHandle></ChangeVisibility>`))
	f.Add([]byte("<Queue><VisibilityTimeout>&#x1;\x00\xff</VisibilityTimeout></Queue>"))
	f.Add([]byte("<Messages><Message><MessageBody>&#99999999999;</MessageBody></Message>"))
	f.Fuzz(func(t *testing.T, body []byte) {
		doc, err := decodeMNS(body)
		if err != nil && !errors.Is(err, errNotMNS) {
			t.Errorf("error %v is none of ours", err)
		}
		if err == nil && doc.root == "" {
			t.Error("no error and no document")
		}
		if bytes.Count(body, []byte("<")) < len(doc.messages)+len(doc.itemErrors) {
			t.Errorf("%d messages of %d bytes", len(doc.messages), len(body))
		}
		if once := repairXML(body); !bytes.Equal(repairXML(once), once) {
			t.Error("what is repaired needs to be repaired again")
		}
		// What is made of it for the worker: bounded ids, and times that were told.
		q := &Queue{wire: &wire{logger: slog.New(slog.DiscardHandler)}}
		for _, d := range q.deliveries(t.Context(), time.Now(), answer{}, doc.messages) {
			if identifier(d.MessageID) == "" || d.Receipt == "" || len(d.Receipt) > mnsMaxHandle || d.Receives < 1 || d.Until.IsZero() {
				t.Errorf("delivery %+v", d)
			}
			target := "/x?ReceiptHandle=" + escapeReceipt(d.Receipt)
			if u, err := url.ParseRequestURI(target); err != nil || u.Query().Get("ReceiptHandle") != string(d.Receipt) {
				t.Errorf("receipt %q is not what %q says: %v", d.Receipt, target, err)
			}
		}
	})
}

func BenchmarkCancelledPoll(b *testing.B) {
	polling := make(chan struct{})
	srv := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		polling <- struct{}{}
		<-r.Context().Done()
	})}
	l := newPipes()
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(l) }()
	defer func() { srv.Close(); <-served }()
	o := options("http://mns.test")
	o.DialContext = l.dial
	q, err := NewQueue(o)
	if err != nil {
		b.Fatal(err)
	}
	var total time.Duration
	for b.Loop() {
		ctx, cancel := context.WithCancel(b.Context())
		done := make(chan struct{})
		go func() { defer close(done); _, _ = q.Receive(ctx, 16, 30*time.Second) }()
		<-polling
		start := time.Now()
		cancel()
		<-done
		total += time.Since(start)
	}
	b.ReportMetric(float64(total.Microseconds())/float64(b.N), "µs-to-end")
}
