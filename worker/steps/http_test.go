package steps

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// backend is a real server on an address of its own, and the instance that has it.
func backend(t *testing.T, handler http.HandlerFunc) (*httptest.Server, string) {
	t.Helper()
	addr := loopback(1)
	l, err := net.Listen("tcp", at(addr, 0))
	if err != nil {
		t.Skipf("cannot listen on %v: %v", addr, err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: handler}}
	t.Cleanup(s.Close)
	return s, addr.String()
}

func TestHTTPRequest(t *testing.T) {
	t.Parallel()
	seen := make(chan string, 1)
	s, ip := backend(t, func(w http.ResponseWriter, r *http.Request) {
		body := make([]byte, r.ContentLength)
		_, _ = r.Body.Read(body)
		seen <- fmt.Sprint(r.Method, " ", r.URL, " ", r.Host, " ", r.Header.Get("X-Hook"), " ", string(body))
		w.WriteHeader(http.StatusNoContent)
	})
	s.Start()
	h := HTTP{
		Method: "PUT", URL: "http://{{.PrivateIP}}:" + port(s) + "/down?i={{.InstanceID}}",
		Headers: map[string]string{"X-Hook": "{{.Hook}} {{.Token}}", "Host": "{{.ScalingGroup}}.example"},
		Body:    "{{.Region}} {{.Transition}} {{.Activity}}", Expect: []int{204},
	}
	if err := h.Validate(); err != nil {
		t.Fatal(err)
	}
	detail, err := h.Run(t.Context(), instance(ip), 0)
	if err != nil {
		t.Fatal(err)
	}
	want := "PUT /down?i=i-bp1example1 asg-bp1example.example ash-bp1example token-1 cn-hangzhou scale_in asa-bp1example"
	if got := <-seen; got != want {
		t.Errorf("the instance saw %q, want %q", got, want)
	}
	if want := "PUT http://" + ip + ":" + port(s) + "/down answered 204"; detail != want {
		t.Errorf("detail %q, want %q", detail, want)
	}
}

func port(s *httptest.Server) string {
	_, p, _ := net.SplitHostPort(s.Listener.Addr().String())
	return p
}

// TestHTTPAnswers: what is not the answer that was expected is an error that says
// so and gives no secret away.
func TestHTTPAnswers(t *testing.T) {
	t.Parallel()
	var elsewhere atomic.Int32
	tests := map[string]struct {
		handler http.HandlerFunc
		want    string // "": no error
	}{
		"fine": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(201) }, ""},
		"503": {func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "busy\x1b[2J\nlevel=error", http.StatusServiceUnavailable)
		}, `status 503, expected 200 to 299; body starts with "busy\x1b[2J\nlevel=error"`},
		"redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, "status 302"},
		"huge": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			for range 200 {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}, "status 500"},
		"echo": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(500)
			fmt.Fprint(w, r.Header, strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
		}, "status 500"},
		"no answer": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
		"malformed head": {func(w http.ResponseWriter, r *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n%s \x1b[2J%s\r\n\r\n", r.Header.Get("X-Key"), strings.Repeat("a", 5000))
		}, "malformed"},
		"huge head": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Long", strings.Repeat("a", 1<<20))
		}, "exceeded"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, ip := backend(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/elsewhere" {
					elsewhere.Add(1)
				}
				tt.handler(w, r)
			})
			s.Start()
			h := HTTP{
				URL:     "http://user:pass-word@{{.PrivateIP}}:" + port(s) + "/x?key=query-secret",
				Headers: map[string]string{"Authorization": "Bearer very-secret-token", "X-Key": "header-secret"},
			}
			detail, err := h.Run(t.Context(), instance(ip), 0)
			said := detail + fmt.Sprint(err)
			for _, secret := range []string{"very-secret", "header-secret", "pass-word", "query-secret", "user"} {
				if strings.Contains(said, secret) {
					t.Errorf("%q is told: %s", secret, said)
				}
			}
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if len(said) > 1500 {
				t.Errorf("%d bytes are too many to say", len(said))
			}
		})
	}
	t.Cleanup(func() {
		if elsewhere.Load() != 0 {
			t.Error("a redirect was followed")
		}
	})
}

func TestHTTPConnection(t *testing.T) {
	t.Parallel()
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		ip := loopback(1).String()
		_, err := HTTP{URL: "http://{{.PrivateIP}}:9/?key=query-secret"}.Run(t.Context(), instance(ip), 0)
		if err == nil || !strings.Contains(err.Error(), "refused") || strings.Contains(err.Error(), "query-secret") {
			t.Errorf("got %v, want refused", err)
		}
	})
	t.Run("TLS", func(t *testing.T) {
		t.Parallel()
		s, ip := backend(t, func(http.ResponseWriter, *http.Request) {})
		s.Config.ErrorLog = log.New(io.Discard, "", 0) // the refusal is what we want
		s.StartTLS()
		h := HTTP{URL: "https://{{.PrivateIP}}:" + port(s)}
		_, err := h.Run(t.Context(), instance(ip), 0)
		if _, ok := errors.AsType[*tls.CertificateVerificationError](err); !ok {
			t.Errorf("got %v, want a refusal of the certificate", err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(s.Certificate())
		h.TLS = &tls.Config{RootCAs: roots, ServerName: "example.com"}
		if _, err := h.Run(t.Context(), instance(ip), 0); err != nil {
			t.Errorf("with the right root: %v", err)
		}
	})
	t.Run("fresh", func(t *testing.T) {
		t.Parallel()
		var peers sync.Map
		s, ip := backend(t, func(_ http.ResponseWriter, r *http.Request) { peers.Store(r.RemoteAddr, true) })
		s.Start()
		h := HTTP{URL: "http://{{.PrivateIP}}:" + port(s), Every: time.Millisecond, ClearChecks: 4}
		if _, err := h.Run(t.Context(), instance(ip), 0); err != nil {
			t.Fatal(err)
		}
		n := 0
		peers.Range(func(any, any) bool { n++; return true })
		if n != 4 {
			t.Errorf("4 polls used %d connections", n)
		}
	})
}

// TestHTTPHosts: only the instance is called, unless another host is allowed, and
// no proxy ever sees a call to the instance.
func TestHTTPHosts(t *testing.T) {
	t.Parallel()
	const refused = ""
	tests := map[string]struct {
		url    string
		allow  []string
		dialed string // refused: no connection is tried
	}{
		"own address":         {url: "http://{{.PrivateIP}}:8080/", dialed: "10.9.8.7:8080"},
		"own address, mapped": {url: "http://[::ffff:10.9.8.7]/", dialed: "[::ffff:10.9.8.7]:80"},
		"neighbour":           {url: "http://10.9.8.77/", dialed: refused},
		"metadata server":     {url: "http://100.100.100.200/latest/meta-data/", dialed: refused},
		"localhost":           {url: "http://localhost:9090/", dialed: refused},
		"name":                {url: "http://hooks.test/", dialed: refused},
		"user as a host":      {url: "http://10.9.8.7@hooks.test/", dialed: refused},
		"name allowed":        {url: "http://Hooks.test/", allow: []string{"hooks.test"}, dialed: "proxy.test:3128"},
		"name is no suffix":   {url: "http://evil.hooks.test/", allow: []string{"hooks.test"}, dialed: refused},
		"port allowed":        {url: "http://hooks.test:81/", allow: []string{"hooks.test:81"}, dialed: "proxy.test:3128"},
		"other port":          {url: "http://hooks.test:82/", allow: []string{"hooks.test:81"}, dialed: refused},
		"address allowed":     {url: "http://10.1.1.1/", allow: []string{"10.1.1.1"}, dialed: "proxy.test:3128"},
		"prefix allowed":      {url: "http://10.1.1.1/", allow: []string{"10.1.0.0/16"}, dialed: "proxy.test:3128"},
		"outside the prefix":  {url: "http://10.2.1.1/", allow: []string{"10.1.0.0/16"}, dialed: refused},
		"link-local":          {url: "http://169.254.1.1/", allow: []string{"169.254.0.0/16"}, dialed: refused},
		"link-local, mapped":  {url: "http://[::ffff:169.254.1.1]/", allow: []string{"::ffff:0:0/96", "169.254.0.0/16"}, dialed: refused},
		"link-local IPv6":     {url: "http://[fe80::1%25eth0]/", allow: []string{"fe80::/10"}, dialed: refused},
		"this host":           {url: "http://0.0.0.0/", allow: []string{"0.0.0.0/0"}, dialed: refused},
		"metadata by prefix":  {url: "http://100.100.100.200/", allow: []string{"100.64.0.0/10"}, dialed: refused},
		"metadata allowed":    {url: "http://100.100.100.200/", allow: []string{"100.100.100.200"}, dialed: "proxy.test:3128"},
		"neighbour of it":     {url: "http://100.100.100.201/", allow: []string{"100.64.0.0/10"}, dialed: "proxy.test:3128"},
		"own and allowed":     {url: "http://{{.PrivateIP}}/", allow: []string{"10.0.0.0/8"}, dialed: "10.9.8.7:80"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dialed := ""
			h := HTTP{URL: tt.url, AllowHosts: tt.allow, Dial: func(_ context.Context, _, address string) (net.Conn, error) {
				dialed = address
				return nil, errors.New("seen enough")
			}}
			if err := h.Validate(); err != nil {
				t.Fatal(err)
			}
			_, err := h.Run(t.Context(), instance("10.9.8.7"), 0)
			if dialed != tt.dialed {
				t.Errorf("dialed %q, want %q", dialed, tt.dialed)
			}
			if want := map[bool]string{true: "allow_hosts", false: "seen enough"}[tt.dialed == refused]; err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
		})
	}
}

// TestHTTPOwnMetadata: a cloud that says that the instance's address is that of a metadata
// server does not make the step call it.
func TestHTTPOwnMetadata(t *testing.T) {
	t.Parallel()
	for own, url := range map[string]string{
		"100.100.100.200": "http://{{.PrivateIP}}/", "169.254.169.254": "http://{{.PrivateIP}}/",
		"::ffff:100.100.100.200": "http://{{.PrivateIP}}/", "fd00:ec2::254": "http://[{{.PrivateIP}}]/",
	} {
		_, err := HTTP{URL: url}.Run(t.Context(), instance(own), 0)
		if err == nil || !strings.Contains(err.Error(), "metadata server") {
			t.Errorf("%s: got %v, want a refusal", own, err)
		}
	}
}

// TestHTTPResolved: what a name leads to counts, not the name.
func TestHTTPResolved(t *testing.T) {
	t.Parallel()
	s, ip := backend(t, func(http.ResponseWriter, *http.Request) {})
	s.Start()
	for name, tt := range map[string]struct {
		answer netip.Addr
		allow  []string
		want   string // "": it is called
	}{
		"loopback":           {netip.MustParseAddr(ip), nil, ""},
		"metadata server":    {netip.MustParseAddr("100.100.100.200"), nil, "metadata server"},
		"link-local":         {netip.MustParseAddr("169.254.169.254"), nil, "link-local"},
		"prefix of them":     {netip.MustParseAddr("169.254.169.254"), []string{"169.254.0.0/16"}, "link-local"},
		"this host":          {netip.MustParseAddr("0.0.0.0"), nil, "link-local"},
		"named as it stands": {netip.MustParseAddr("0.0.0.0"), []string{"0.0.0.0"}, "refused"}, // by the kernel: nobody listens
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := HTTP{
				URL: "http://hooks.direct.test:" + port(s) + "/", AllowHosts: append([]string{"hooks.direct.test"}, tt.allow...),
				Resolver: nameServer(t, tt.answer),
			}
			_, err := h.Run(t.Context(), instance("10.9.8.7"), 0)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// nameServer is a resolver whose server has one address for every name.
func nameServer(t *testing.T, answer netip.Addr) *net.Resolver {
	t.Helper()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { server.Close(); wg.Wait() })
	wg.Go(func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			// A header of 12 bytes, and the question: labels, a zero, type and class.
			end := 12 + bytes.IndexByte(buf[12:n], 0) + 5
			reply := append([]byte{}, buf[:end]...)
			copy(reply[2:12], []byte{0x84, 0, 0, 1, 0, 0, 0, 0, 0, 0})
			if buf[end-3] == 1 { // A; there is no AAAA
				reply[7] = 1
				ip := answer.As4()
				reply = append(reply, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4)
				reply = append(reply, ip[:]...)
			}
			if _, err := server.WriteTo(reply, from); err != nil {
				return
			}
		}
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", server.LocalAddr().String())
	}}
}

// TestHTTPAnswersThatDoNotEnd: whatever the instance does with its answer, the step ends
// with its timeout or before it, and takes no memory for it.
func TestHTTPAnswersThatDoNotEnd(t *testing.T) {
	t.Parallel()
	const head = "HTTP/1.1 200 OK\r\n"
	forever := func(part string) func(io.Writer, context.Context) {
		return func(w io.Writer, ctx context.Context) {
			for ctx.Err() == nil {
				if _, err := io.WriteString(w, part); err != nil {
					return
				}
				if len(part) == 1 {
					time.Sleep(time.Second)
				}
			}
		}
	}
	for name, tt := range map[string]struct {
		head string
		then func(io.Writer, context.Context)
		ok   bool // the status is what counts
	}{
		"nothing":            {head: "", then: nil},
		"head cut":           {head: "HTTP/1.1 2"},
		"head by drops":      {head: head + "X: ", then: forever("x")},
		"endless head":       {head: head, then: forever("X-Many: " + strings.Repeat("x", 1000) + "\r\n")},
		"endless hints":      {then: forever("HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n")},
		"body by drops":      {head: head + "Content-Length: 100000\r\n\r\n", then: forever("x"), ok: true},
		"endless body":       {head: head + "\r\n", then: forever(strings.Repeat("x", 10000)), ok: true},
		"endless chunks":     {head: head + "Transfer-Encoding: chunked\r\n\r\n", then: forever("3e8\r\n" + strings.Repeat("x", 1000) + "\r\n"), ok: true},
		"other protocol":     {head: "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"},
		"bad and by drops":   {head: "HTTP/1.1 500 Oops\r\n\r\n", then: forever("x")},
		"compressed, a bomb": {head: head + "Content-Encoding: gzip\r\n\r\n", then: forever(strings.Repeat("\x00", 10000)), ok: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var wg sync.WaitGroup
				over, end := context.WithCancel(context.Background())
				defer wg.Wait()
				defer end()
				dial := func(context.Context, string, string) (net.Conn, error) {
					client, server := net.Pipe()
					asked := make(chan struct{})
					wg.Go(func() {
						_, _ = server.Read(make([]byte, 1))
						close(asked)
						_, _ = io.Copy(io.Discard, server)
					})
					wg.Go(func() {
						defer server.Close()
						<-asked // an answer before the question breaks the connection
						if _, err := io.WriteString(server, tt.head); err != nil {
							return
						}
						if tt.then != nil {
							tt.then(server, over)
						} else {
							<-over.Done()
						}
					})
					return client, nil
				}
				for _, every := range []time.Duration{0, time.Second} {
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					start := time.Now()
					detail, err := HTTP{URL: "http://{{.PrivateIP}}/", Every: every, Dial: dial}.Run(ctx, instance("10.9.8.7"), 0)
					cancel()
					if took := time.Since(start); (err == nil) != tt.ok || took > time.Minute {
						t.Errorf("every %v: %q, %v after %v", every, detail, err, took)
					}
					if len(detail)+len(fmt.Sprint(err)) > 2000 {
						t.Errorf("every %v: %d bytes are told", every, len(detail)+len(fmt.Sprint(err)))
					}
				}
			})
		})
	}
}

func TestHTTPWithoutAddress(t *testing.T) {
	t.Parallel()
	_, err := HTTP{URL: "http://{{.PrivateIP}}/"}.Run(t.Context(), instance(""), 0)
	if !errors.Is(err, errNoPrivateIP) {
		t.Errorf("got %v, want %v", err, errNoPrivateIP)
	}
	_, err = HTTP{URL: "http://10.0.0.1/"}.Run(t.Context(), instance(""), 0)
	if err == nil || !strings.Contains(err.Error(), "allow_hosts") {
		t.Errorf("got %v, want a refusal", err)
	}
}

// pipes is a server in a bubble: sockets would hold its clock.
func pipes(t *testing.T, handler http.HandlerFunc) func(context.Context, string, string) (net.Conn, error) {
	l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	s := &http.Server{Handler: handler}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() { s.Close(); wg.Wait() })
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		client, server := net.Pipe()
		select {
		case l.conns <- server:
			return client, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

type pipeListener struct {
	conns  chan net.Conn // the dialer writes, Accept reads
	once   sync.Once
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error { l.once.Do(func() { close(l.closed) }); return nil }
func (l *pipeListener) Addr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort("10.9.8.7:80"))
}

// TestHTTPPolls: a flapping endpoint is good only when it was good often enough in a row.
func TestHTTPPolls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		answers := []int{503, 200, 200, 503, 200, 200, 200, 500}
		calls := 0
		dial := pipes(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(answers[calls]); calls++ })
		h := HTTP{URL: "http://{{.PrivateIP}}/healthz", Every: 3 * time.Second, ClearChecks: 3, Expect: []int{200}, Dial: dial}
		start := time.Now()
		detail, err := h.Run(t.Context(), instance("10.9.8.7"), 0)
		if err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); calls != 7 || took != 18*time.Second {
			t.Errorf("%d calls in %v, want 7 in 18s", calls, took)
		}
		if want := "GET http://10.9.8.7/healthz answered 200, 3 good in a row, 7 calls"; detail != want {
			t.Errorf("detail %q, want %q", detail, want)
		}
	})
}

// TestHTTPHang: an endpoint that hangs once costs one attempt, not the step.
func TestHTTPHang(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		dial := pipes(t, func(w http.ResponseWriter, r *http.Request) {
			if calls++; calls == 2 {
				<-r.Context().Done()
			}
		})
		h := HTTP{URL: "http://{{.PrivateIP}}/", Every: time.Second, ClearChecks: 2, Dial: dial}
		start := time.Now()
		if _, err := h.Run(t.Context(), instance("10.9.8.7"), 0); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); calls != 4 || took != 3*time.Second+DefaultCallTimeout {
			t.Errorf("%d calls in %v, want 4 in %v", calls, took, 3*time.Second+DefaultCallTimeout)
		}
	})
}

// TestHTTPTimeUp: at the step's timeout the last answer is told, and the context's error matches.
func TestHTTPTimeUp(t *testing.T) {
	t.Parallel()
	for _, every := range []time.Duration{0, time.Second} {
		synctest.Test(t, func(t *testing.T) {
			calls := 0
			dial := pipes(t, func(w http.ResponseWriter, r *http.Request) {
				if calls++; calls > 5 || every == 0 {
					<-r.Context().Done()
				}
				w.WriteHeader(503)
			})
			ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
			defer cancel()
			start := time.Now()
			_, err := HTTP{URL: "http://{{.PrivateIP}}/", Every: every, Dial: dial}.Run(ctx, instance("10.9.8.7"), 0)
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 12*time.Second {
				t.Errorf("got %v after %v, want the deadline after 12s", err, time.Since(start))
			}
			if every > 0 && !strings.Contains(err.Error(), "status 503") {
				t.Errorf("got %v, want the last answer in it", err)
			}
		})
	}
}

func TestHTTPValidate(t *testing.T) {
	t.Parallel()
	const good = "http://{{.PrivateIP}}/"
	tests := map[string]struct {
		h    HTTP
		want string
	}{
		"good":           {HTTP{URL: good}, ""},
		"no url":         {HTTP{}, "url is empty"},
		"scheme":         {HTTP{URL: "file:///etc/passwd"}, "http:// or https://"},
		"no host":        {HTTP{URL: "http:///x"}, "http:// or https://"},
		"not a template": {HTTP{URL: "http://{{.PrivateIP/"}, "url: not a template"},
		"unknown field":  {HTTP{URL: "http://{{.PublicIP}}/"}, "there are InstanceID, PrivateIP"},
		"header field":   {HTTP{URL: good, Headers: map[string]string{"X-A": "s3cret-{{.Nope}}"}}, "header X-A"},
		"header name":    {HTTP{URL: good, Headers: map[string]string{"X A": "s3cret"}}, "not a header name"},
		"header value":   {HTTP{URL: good, Headers: map[string]string{"X-A": "s3cret\r\nX-B: 1"}}, "control character"},
		"body":           {HTTP{URL: good, Body: "s3cret {{end}}"}, "body"},
		"method":         {HTTP{URL: good, Method: "GET /"}, "method"},
		"status":         {HTTP{URL: good, Expect: []int{2000}}, "status code"},
		"negative":       {HTTP{URL: good, Every: -1}, "negative"},
		"checks":         {HTTP{URL: good, ClearChecks: 3}, "need every"},
		"allow":          {HTTP{URL: good, AllowHosts: []string{"http://x"}}, "allow_hosts"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := tt.h.Validate()
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "s3cret") {
				t.Errorf("a secret is told: %v", err)
			}
		})
	}
}
