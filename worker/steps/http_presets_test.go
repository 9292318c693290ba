package steps

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestHTTPVerifies: the call is made until it is answered well, once; then another URL is
// asked until it has shown the effect often enough in a row.
func TestHTTPVerifies(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		puts, gets := []int{500, 204}, []int{200, 503, 200, 503, 503, 503, 503}
		var asked []string
		dial := pipes(t, func(w http.ResponseWriter, r *http.Request) {
			asked = append(asked, r.Method+r.URL.Path)
			if r.Method == http.MethodPut {
				w.WriteHeader(puts[0])
				puts = puts[1:]
				return
			}
			w.WriteHeader(gets[0])
			gets = gets[1:]
		})
		h := HTTP{
			Method: "PUT", URL: "http://{{.PrivateIP}}/down", VerifyURL: "http://{{.PrivateIP}}/health", VerifyExpect: []int{503},
			Every: time.Second, ClearChecks: 2, Gap: 3 * time.Second, Dial: dial,
		}
		if err := h.Validate(); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		detail, err := h.Run(t.Context(), instance("10.9.8.7"), 0)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := strings.Join(asked, " "), "PUT/down PUT/down"+strings.Repeat(" GET/health", 7); got != want {
			t.Errorf("asked %s, want %s", got, want)
		}
		if took := time.Since(start); took != 7*time.Second {
			t.Errorf("took %v, want 7s: one between the calls, three until it stays down, three of gap", took)
		}
		want := "PUT http://10.9.8.7/down answered 204, 1 good in a row, 2 calls; then GET http://10.9.8.7/health answered 503, 4 good in a row, 7 calls"
		if detail != want {
			t.Errorf("detail %q, want %q", detail, want)
		}
	})
}

// TestHTTPTries: calls that are used up end the step, and the error has the last answer.
func TestHTTPTries(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		h     HTTP
		calls int // of GET
		want  string
	}{
		"url":        {HTTP{URL: "http://{{.PrivateIP}}/", ClearChecks: 2, Tries: 5}, 5, "1 of 2 good answers in a row after 5 calls (last: answered 200): no more tries"},
		"gap":        {HTTP{URL: "http://{{.PrivateIP}}/", Gap: time.Minute, Tries: 5}, 5, "1 of 1 good answers in a row, 0s of 1m0s long, after 5 calls"},
		"verify_url": {HTTP{Method: "PUT", URL: "http://{{.PrivateIP}}/", VerifyURL: "http://{{.PrivateIP}}/", ClearChecks: 2, Tries: 3}, 3, "answered 200, 1 good in a row, 1 calls; then GET http://10.9.8.7/: 1 of 2"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				calls := 0
				h := tt.h
				h.Every = time.Second
				h.Dial = pipes(t, func(w http.ResponseWriter, r *http.Request) {
					if r.Method == http.MethodGet {
						if calls++; calls%2 == 0 {
							w.WriteHeader(503)
						}
					}
				})
				start := time.Now()
				_, err := h.Run(t.Context(), instance("10.9.8.7"), 0)
				if err == nil || !errors.Is(err, errTries) || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, want %q", err, tt.want)
				}
				if took := time.Since(start); calls != tt.calls || took != time.Duration(tt.calls-1)*time.Second {
					t.Errorf("%d calls in %v, want %d, a second apart", calls, took, tt.calls)
				}
			})
		})
	}
}

// TestHTTPTimeUpIsNoSuccess: answers that were good for a while, and a gap that is over when
// the step's time is, are no success without a last good answer.
func TestHTTPTimeUpIsNoSuccess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		h := HTTP{URL: "http://{{.PrivateIP}}/", Every: time.Second, Gap: 10 * time.Second, CallTimeout: time.Minute, Dial: pipes(t, func(_ http.ResponseWriter, r *http.Request) {
			if calls++; calls == 8 {
				<-r.Context().Done()
			}
		})}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		detail, err := h.Run(ctx, instance("10.9.8.7"), 0)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %q, %v, want the deadline", detail, err)
		}
	})
}

// TestHTTPClose: an answer ends its connection because the server says so to everybody, not
// because it was asked to; and an error page that does is none.
func TestHTTPClose(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		want   string // "": good
	}{
		"keeps":    {func(http.ResponseWriter, *http.Request) {}, "status 200 without Connection: close"},
		"closes":   {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "close") }, ""},
		"in words": {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "X-Hop, Close") }, ""},
		"error page": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "close")
			w.WriteHeader(500)
		}, "status 500, expected 200 to 299"},
		"HTTP/1.0": {func(w http.ResponseWriter, _ *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				io.WriteString(c, "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n")
				c.Close()
			}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			var peers sync.Map
			s, ip := backend(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPut {
					return
				}
				asked.Add(1)
				peers.Store(r.RemoteAddr, true)
				if r.Close {
					t.Error("the answer was asked to end its connection")
				}
				tt.answer(w, r)
			})
			s.Start()
			at := "http://{{.PrivateIP}}:" + port(s)
			h := HTTP{Method: "PUT", URL: at + "/drain", VerifyURL: at + "/", VerifyClose: true, Headers: map[string]string{"Connection": "close"}, Every: time.Millisecond, ClearChecks: 3, Tries: 4, CallTimeout: time.Minute}
			_, err := h.Run(t.Context(), instance(ip), 0)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			connections := int32(0)
			peers.Range(func(any, any) bool { connections++; return true })
			if want := map[bool]int32{true: 3, false: 4}[tt.want == ""]; asked.Load() != want || connections != want {
				t.Errorf("asked %d times on %d connections, want %d", asked.Load(), connections, want)
			}
		})
	}
}

// TestHTTPInFlight: only a whole answer with a whole number that is no larger than allowed
// counts, and everything else is told as it was found.
func TestHTTPInFlight(t *testing.T) {
	t.Parallel()
	const actuator = `{"name":"http.server.requests.active","measurements":[{"statistic":"ACTIVE_TASKS","value":%s},{"statistic":"DURATION","value":0.5}]}`
	deep := strings.Repeat(`[`, 20000)
	for name, tt := range map[string]struct {
		body, field string
		atMost      int
		want        string // "": good
	}{
		"none":              {body: "0\n"},
		"some":              {body: "3", want: "3 in flight, at most 0 wanted"},
		"ourselves":         {body: "1", atMost: 1},
		"too many":          {body: "2", atMost: 1, want: "2 in flight, at most 1 wanted"},
		"field":             {body: `{"in_flight": 0}`, field: "in_flight"},
		"fraction of zeros": {body: `{"value": 0.000}`, field: "value"},
		"path":              {body: fmt.Sprintf(actuator, "0.0"), field: "measurements.0.value"},
		"path, some":        {body: fmt.Sprintf(actuator, "2.0"), field: "measurements.0.value", want: "2 in flight"},
		"large":             {body: "1e6", want: "1000000 in flight"},
		"empty":             {body: "", want: `it starts with ""`},
		"spaces":            {body: " \n ", want: "neither a number nor JSON"},
		"words":             {body: "no requests", want: `neither a number nor JSON, it starts with "no requests"`},
		"page":              {body: "<html>\x1b[2J0", want: `it starts with "<html>\x1b[2J0"`},
		"NaN":               {body: "NaN", want: `it starts with "NaN"`},
		"NaN in JSON":       {body: `{"value": NaN}`, field: "value", want: "neither a number nor JSON"},
		"negative":          {body: "-1", want: `no count of requests: it is "-1"`},
		"half":              {body: "0.5", want: `no count of requests: it is "0.5"`},
		"infinite":          {body: "1e999", want: "no count of requests"},
		"nearly zero":       {body: "1e-999", want: "no count of requests"},
		"huge":              {body: strings.Repeat("9", 60000), want: "no count of requests"},
		"as text":           {body: `{"in_flight": "0"}`, field: "in_flight", want: `in_flight is no number: it is the text "0"`},
		"null":              {body: `{"in_flight": null}`, field: "in_flight", want: "in_flight is no number: it is null"},
		"false":             {body: `false`, want: "the body is no number: it is false"},
		"object, no field":  {body: `{"in_flight": 0, "active": 1}`, want: `the body is no number: it is an object with "active, in_flight"`},
		"no such key":       {body: `{"active": 0}`, field: "in_flight", want: `the body has no in_flight: it is an object with "active"`},
		"key of a number":   {body: `{"a": 0}`, field: "a.b", want: `a has no b: it is the number "0"`},
		"no such index":     {body: fmt.Sprintf(actuator, "0"), field: "measurements.2.value", want: "measurements has no 2: it is a list of 2"},
		"negative index":    {body: fmt.Sprintf(actuator, "0"), field: "measurements.-1", want: "measurements has no -1"},
		"other case":        {body: `{"In_Flight": 0}`, field: "in_flight", want: "has no in_flight"},
		"two numbers":       {body: "0 7", want: "goes on behind its first value"},
		"two objects":       {body: `{"a":0}{"a":7}`, field: "a", want: "goes on behind its first value"},
		"cut JSON":          {body: `{"in_flight": 0`, field: "in_flight", want: "neither a number nor JSON"},
		"deep":              {body: deep, field: "0.0", want: "neither a number nor JSON"},
		"longer":            {body: "0" + strings.Repeat(" ", bodyRead), want: "longer than a count"},
		"control key":       {body: `{"\u001b[2J` + strings.Repeat("k", 5000) + `":1}`, field: "a", want: `\x1b[2Jkkk`},
		"secret, echoed":    {body: `{"usherTESTsecret": "usherTESTsecret"}`, field: "a", want: `an object with "***"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, ip := backend(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, tt.body) })
			s.Start()
			h := HTTP{
				URL: "http://{{.PrivateIP}}:" + port(s), Headers: map[string]string{"X-Key": "usherTESTsecret"},
				InFlight: true, Field: tt.field, AtMost: tt.atMost,
			}
			detail, err := h.Run(t.Context(), instance(ip), 0)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %q, %v, want %q", detail, err, tt.want)
			}
			if said := detail + fmt.Sprint(err); len(said) > 1000 || strings.ContainsAny(said, "\x1b\n") || strings.Contains(said, "usherTESTsecret") {
				t.Errorf("%d bytes are told: %.500q", len(said), said)
			}
		})
	}
}

// TestHTTPInFlightCut: an answer that breaks off, or does not end, is none.
func TestHTTPInFlightCut(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"less than said":  "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n0",
		"half a chunk":    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n0\r\n",
		"endless":         "HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat(" ", 1<<20) + "0",
		"slow head":       "HTTP/1.1 200 O",
		"other protocols": "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n0",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var wg sync.WaitGroup
				defer wg.Wait()
				h := HTTP{URL: "http://{{.PrivateIP}}/", InFlight: true, Every: time.Second, Tries: 2, Dial: func(context.Context, string, string) (net.Conn, error) {
					client, server := net.Pipe()
					wg.Go(func() {
						defer server.Close()
						_, _ = server.Read(make([]byte, 4096))
						_, _ = io.WriteString(server, answer)
						if name == "slow head" {
							_, _ = io.Copy(io.Discard, server) // until the call is given up
						}
					})
					return client, nil
				}}
				detail, err := h.Run(t.Context(), instance("10.9.8.7"), 0)
				if !errors.Is(err, errTries) {
					t.Errorf("got %q, %v, want no success", detail, err)
				}
			})
		})
	}
}

// TestHTTPWaitsForInFlight: the count must stay down, and what comes in between starts it anew.
func TestHTTPWaitsForInFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		counts := []string{"7", "0", "0", "1", "nothing", "0", "0", "0"}
		h := HTTP{URL: "http://{{.PrivateIP}}/in_flight", InFlight: true, Every: time.Second, ClearChecks: 3, Dial: pipes(t, func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, counts[0])
			counts = counts[1:]
		})}
		detail, err := h.Run(t.Context(), instance("10.9.8.7"), 0)
		if want := "GET http://10.9.8.7/in_flight answered 200, 0 in flight, 3 good in a row, 8 calls"; err != nil || detail != want {
			t.Errorf("got %q, %v, want %q", detail, err, want)
		}
	})
}

// TestHTTPRefused: a refused connection is a good answer only where the operator says so, of
// the instance itself, and only as often in a row as any other.
func TestHTTPRefused(t *testing.T) {
	t.Parallel()
	refused := &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	for name, tt := range map[string]struct {
		h    HTTP
		errs []error // of dials
		want string  // "": an error
	}{
		"not said":  {HTTP{URL: "http://{{.PrivateIP}}/"}, []error{refused}, ""},
		"one call":  {HTTP{URL: "http://{{.PrivateIP}}/", RefusedIsGood: true}, []error{refused}, "GET http://10.9.8.7/ refused the connection"},
		"elsewhere": {HTTP{URL: "http://10.9.8.6/", AllowHosts: []string{"10.9.8.6"}, RefusedIsGood: true}, []error{refused}, ""},
		"timed out": {HTTP{URL: "http://{{.PrivateIP}}/", RefusedIsGood: true}, []error{&net.OpError{Op: "dial", Net: "tcp", Err: syscall.ETIMEDOUT}}, ""},
		"in a row": {HTTP{URL: "http://{{.PrivateIP}}/", RefusedIsGood: true, Every: time.Millisecond, ClearChecks: 2},
			[]error{refused, errors.New("no route"), refused, refused}, "refused the connection, 2 good in a row, 4 calls"},
		"both": {HTTP{Method: "PUT", URL: "http://{{.PrivateIP}}/", VerifyURL: "http://{{.PrivateIP}}/", RefusedIsGood: true, Every: time.Millisecond, ClearChecks: 2},
			[]error{refused, refused, refused}, "PUT http://10.9.8.7/ refused the connection, 1 good in a row, 1 calls; then GET http://10.9.8.7/ refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt.h.Dial = func(context.Context, string, string) (net.Conn, error) {
				err := tt.errs[0]
				tt.errs = tt.errs[1:]
				return nil, err
			}
			detail, err := tt.h.Run(t.Context(), instance("10.9.8.7"), 0)
			if (err == nil) != (tt.want != "") || !strings.Contains(detail, tt.want) {
				t.Errorf("got %q, %v, want %q", detail, err, tt.want)
			}
		})
	}
}
