package steps

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// secretMark is in every token and key of these tests, and in nothing that may be told.
const secretMark = "usherTESTsecret"

// authority is a CA of our own.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	a.cert, a.key = a.sign(t, template)
	return a
}

// sign makes a certificate and its key, of itself while a has none.
func (a *authority) sign(t *testing.T, template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// issue gives a certificate for a name and its key, in PEM.
func (a *authority) issue(t *testing.T, name string) (cert, key []byte) {
	t.Helper()
	c, k := a.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	})
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// put replaces a file as a rotation does: whole.
func put(t *testing.T, name string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(name+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestHTTPMutualTLS: the step shows its certificate, verifies the server's by a root and a name of the
// operator's, and goes on when both sides' authorities have been replaced.
func TestHTTPMutualTLS(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var current atomic.Pointer[tls.Config] // the server's
	var shown atomic.Value
	s, ip := backend(t, func(_ http.ResponseWriter, r *http.Request) {
		shown.Store(r.TLS.PeerCertificates[0].Subject.CommonName)
	})
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // refusals are what we want
	s.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return current.Load(), nil }}
	h := HTTP{
		URL: "https://{{.PrivateIP}}:" + port(s), ServerName: "{{.InstanceID}}.internal",
		CertFile: filepath.Join(dir, "cert"), KeyFile: filepath.Join(dir, "key"), CAFile: filepath.Join(dir, "ca"),
	}
	// rotate gives both sides certificates of one authority.
	rotate := func(a *authority, name string) {
		cert, key := a.issue(t, "i-bp1example1.internal")
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		current.Store(&tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: a.pool()})
		cert, key = a.issue(t, name)
		put(t, h.CertFile, cert)
		put(t, h.KeyFile, key)
		put(t, h.CAFile, a.pem())
	}
	first := newAuthority(t, "first")
	rotate(first, "usher-1")
	s.StartTLS()
	if err := h.Validate(); err != nil {
		t.Fatal(err)
	}
	run := func(want string) {
		t.Helper()
		shown.Store("")
		detail, err := h.Run(t.Context(), instance(ip), 0)
		if said := detail + fmt.Sprint(err); !strings.Contains(said, want) {
			t.Errorf("got %s, want %q", said, want)
		}
	}
	run("answered 200")
	if shown.Load() != "usher-1" {
		t.Errorf("the server saw %q", shown.Load())
	}
	second := newAuthority(t, "second")
	rotate(second, "usher-2")
	run("answered 200")
	if shown.Load() != "usher-2" {
		t.Errorf("after the rotation the server saw %q", shown.Load())
	}

	put(t, h.CAFile, first.pem())
	run("unknown authority")
	put(t, h.CAFile, second.pem())
	h.ServerName = "other.internal"
	run("i-bp1example1.internal, not other.internal")
	h.ServerName = ""
	run("doesn't contain any IP SANs")
	h.ServerName = "{{.InstanceID}}.internal"
	cert, key := first.issue(t, "usher-1")
	put(t, h.CertFile, cert)
	put(t, h.KeyFile, key)
	run("remote error: tls") // the server's own words, since the certificate was shown
	h.CertFile, h.KeyFile = "", ""
	run("remote error: tls")
}

// TestHTTPFiles: a file that can't be used is named, and nothing of what is in it is told.
func TestHTTPFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	a := newAuthority(t, "ours")
	cert, key := a.issue(t, "usher")
	_, otherKey := a.issue(t, "other")
	block := func(kind string) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: []byte(secretMark), Headers: map[string]string{"X": secretMark}})
	}
	for name, data := range map[string][]byte{
		"cert": cert, "key": key, "other-key": otherKey, "ca": a.pem(), "chain": append(append([]byte("Bag Attributes\n"), cert...), a.pem()...),
		"empty": nil, "text": []byte(secretMark), "odd": block(secretMark), "bad-cert": block("CERTIFICATE"), "bad-key": block("PRIVATE KEY"),
		"large": []byte(strings.Repeat(secretMark, pemRead/len(secretMark)+1)),
		"token": []byte(secretMark + "\n"), "token-crlf": []byte(secretMark + "\r\n"), "newline": []byte("\n"),
		"bearer": []byte("Bearer " + secretMark + "\n"), "lines": []byte(secretMark + "\n" + secretMark), "letters": []byte(secretMark + "ü"),
		"zero": []byte(secretMark + "\x00"), "large-token": []byte(strings.Repeat(secretMark, tokenRead/len(secretMark)+1)),
	} {
		put(t, in(name), data)
	}
	if err := syscall.Mkfifo(in("pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	pair := func(cert, key string) HTTP { return HTTP{CertFile: in(cert), KeyFile: in(key)} }
	for name, tt := range map[string]struct {
		h    HTTP
		want string // "": it is fine; DIR stands for the folder
	}{
		"token":            {HTTP{TokenFile: in("token")}, ""},
		"token, CRLF":      {HTTP{TokenFile: in("token-crlf")}, ""},
		"token missing":    {HTTP{TokenFile: in("none")}, "token_file: stat DIR/none: no such file"},
		"token folder":     {HTTP{TokenFile: dir}, "token_file DIR: is no regular file"},
		"token pipe":       {HTTP{TokenFile: in("pipe")}, "token_file DIR/pipe: is no regular file"},
		"token device":     {HTTP{TokenFile: "/dev/zero"}, "token_file /dev/zero: is no regular file"},
		"token empty":      {HTTP{TokenFile: in("empty")}, "token_file DIR/empty: is empty"},
		"token newline":    {HTTP{TokenFile: in("newline")}, "token_file DIR/newline: is empty"},
		"token and scheme": {HTTP{TokenFile: in("bearer")}, `token_file DIR/bearer: want the token alone, without "Bearer"`},
		"two tokens":       {HTTP{TokenFile: in("lines")}, "token_file DIR/lines: want the token alone"},
		"letters":          {HTTP{TokenFile: in("letters")}, "token_file DIR/letters: want the token alone"},
		"zero byte":        {HTTP{TokenFile: in("zero")}, "token_file DIR/zero: want the token alone"},
		"token large":      {HTTP{TokenFile: in("large-token")}, "token_file DIR/large-token: is larger than 16 KB"},
		"pair":             {pair("cert", "key"), ""},
		"chain":            {pair("chain", "key"), ""},
		"cert missing":     {pair("none", "key"), "cert_file: stat DIR/none: no such file"},
		"key missing":      {pair("cert", "none"), "key_file: stat DIR/none: no such file"},
		"key for cert":     {pair("key", "key"), "cert_file DIR/key: there is no certificate"},
		"cert for key":     {pair("cert", "cert"), "key_file DIR/cert: want the private key"},
		"another's key":    {pair("cert", "other-key"), "key_file DIR/other-key: want the private key, in PEM and not encrypted, of the certificate in DIR/cert"},
		"no PEM":           {pair("cert", "text"), "key_file DIR/text: want the private key"},
		"odd PEM":          {pair("odd", "odd"), "cert_file DIR/odd: there is no certificate"},
		"odd key":          {pair("cert", "odd"), "key_file DIR/odd: want the private key"},
		"broken cert":      {pair("bad-cert", "key"), "cert_file DIR/bad-cert: its first certificate can't be parsed"},
		"broken key":       {pair("cert", "bad-key"), "key_file DIR/bad-key: want the private key"},
		"large":            {pair("large", "key"), "cert_file DIR/large: is larger than 4096 KB"},
		"ca":               {HTTP{CAFile: in("ca")}, ""},
		"ca missing":       {HTTP{CAFile: in("none")}, "ca_file: stat DIR/none: no such file"},
		"ca no PEM":        {HTTP{CAFile: in("text")}, "ca_file DIR/text: there is no certificate"},
		"ca broken":        {HTTP{CAFile: in("bad-cert")}, "ca_file DIR/bad-cert: there is no certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tt.h.URL = "https://{{.PrivateIP}}:9/"
			if err := tt.h.Validate(); err != nil {
				t.Errorf("a file that is wrong now may be right when the step runs: %v", err)
			}
			err := tt.h.Unreadable()
			want := strings.ReplaceAll(tt.want, "DIR", dir)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %q", err, want)
			}
			if tt.want == "" {
				return
			}
			tt.h.Every, tt.h.Tries = time.Millisecond, 3
			_, runErr := tt.h.Run(t.Context(), instance("127.0.0.1"), 0)
			if runErr == nil || !strings.Contains(runErr.Error(), want) || errors.Is(runErr, errTries) {
				t.Errorf("Run: got %v, want %q before any call", runErr, want)
			}
			if said := fmt.Sprint(err, runErr); strings.Contains(said, secretMark) {
				t.Errorf("a secret is told: %s", said)
			}
		})
	}
}

// TestHTTPToken: the token is sent as it stands in its file, is read again for each call, and
// is told by no error, whatever the server makes of it.
func TestHTTPToken(t *testing.T) {
	t.Parallel()
	name := put(t, filepath.Join(t.TempDir(), "token"), []byte(secretMark+"-1\n"))
	var answered atomic.Int32
	s, ip := backend(t, func(w http.ResponseWriter, r *http.Request) {
		calls := answered.Add(1)
		got := r.Header.Get("Authorization")
		if want := fmt.Sprintf("Bearer %s-%d", secretMark, calls); got != want {
			t.Errorf("call %d has %q, want %q", calls, got, want)
		}
		put(t, name, fmt.Appendf(nil, "%s-%d\n", secretMark, calls+1))
		switch calls {
		case 1:
			http.Error(w, got, http.StatusUnauthorized)
		case 2:
			fmt.Fprintf(w, `{"you said": %q}`, strings.TrimPrefix(got, "Bearer "))
		case 3:
			if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n%s\r\n\r\n", got)
				c.Close()
			}
		case 4:
			os.Remove(name)
			io.WriteString(w, "0")
		}
	})
	s.Start()
	h := HTTP{URL: "http://{{.PrivateIP}}:" + port(s), TokenFile: name, InFlight: true, Field: "count", Every: time.Millisecond, CallTimeout: time.Minute}
	for _, want := range []string{"status 401", "the body has no count", "malformed", "the body has no count"} {
		h.Tries = 1
		_, err := h.Run(t.Context(), instance(ip), 0)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secretMark) {
			t.Errorf("got %v, want %q and no secret", err, want)
		}
	}
	h.Tries = 3
	if _, err := h.Run(t.Context(), instance(ip), 0); err == nil || !strings.Contains(err.Error(), "token_file: ") || answered.Load() != 4 {
		t.Errorf("without its file: %v after %d calls, want no further call", err, answered.Load())
	}
}

// TestHTTPTokenStaysAtItsServer: what goes to url is not told to another server by verify_url.
func TestHTTPTokenStaysAtItsServer(t *testing.T) {
	t.Parallel()
	name := put(t, filepath.Join(t.TempDir(), "token"), []byte(secretMark))
	seen := make(chan string, 2)
	handler := func(_ http.ResponseWriter, r *http.Request) {
		seen <- strings.Join([]string{r.Header.Get("Authorization"), r.Header.Get("X-Key"), r.Host}, " ")
	}
	s, ip := backend(t, handler)
	s.Start()
	other := &http.Server{Handler: http.HandlerFunc(handler)}
	l, err := net.Listen("tcp", net.JoinHostPort(ip, "0"))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { defer close(served); _ = other.Serve(l) }()
	t.Cleanup(func() { other.Close(); <-served })
	const all = "Bearer " + secretMark + " " + secretMark + "Key web.internal"
	for at, want := range map[string]string{
		"http://{{.PrivateIP}}:" + port(s) + "/health": all,
		"http://" + l.Addr().String() + "/health":      "  " + l.Addr().String(),
	} {
		h := HTTP{
			Method: "PUT", URL: "http://{{.PrivateIP}}:" + port(s) + "/down", VerifyURL: at, Every: time.Millisecond, CallTimeout: time.Minute,
			Headers: map[string]string{"X-Key": secretMark + "Key", "Host": "web.internal"}, TokenFile: name,
		}
		if _, err := h.Run(t.Context(), instance(ip), 0); err != nil {
			t.Fatal(err)
		}
		if got := <-seen; got != all {
			t.Errorf("url got %q, want %q", got, all)
		}
		if got := <-seen; got != want {
			t.Errorf("%s got %q, want %q", at, got, want)
		}
	}
	// A server elsewhere is called only if allow_hosts has it, by this URL too.
	h := HTTP{Method: "PUT", URL: "http://{{.PrivateIP}}:" + port(s) + "/down", VerifyURL: "http://100.100.100.200/", Every: time.Millisecond}
	if _, err := h.Run(t.Context(), instance(ip), 0); err == nil || !strings.Contains(err.Error(), "metadata server") || len(seen) > 0 {
		t.Errorf("got %v, want a refusal before the first call", err)
	}
}

// TestHTTPEchoes: what the request carried is told in no form in which a server repeats it.
func TestHTTPEchoes(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		url     string // behind the address
		headers map[string]string
		echo    func(r *http.Request) string
	}{
		"query":          {"/x?key=" + secretMark, nil, func(r *http.Request) string { return "Cannot GET " + r.URL.String() }},
		"query, plain":   {"/x?key=" + secretMark + "%20%2F", nil, func(r *http.Request) string { return r.URL.Query().Get("key") }},
		"query, as sent": {"/x?key=usherTEST%73ecret", nil, func(r *http.Request) string { return "no " + r.URL.RawQuery }},
		"quoted": {"/", map[string]string{"X-Key": `a"` + secretMark + `\`}, func(r *http.Request) string {
			return fmt.Sprintf("%q", r.Header.Get("X-Key"))
		}},
		"quoted end": {"/", map[string]string{"X-Key": secretMark + `"`}, func(r *http.Request) string {
			return fmt.Sprintf("%q", r.Header.Get("X-Key"))
		}},
		"escaped": {"/", map[string]string{"X-Key": secretMark + "/+="}, func(r *http.Request) string {
			return strings.NewReplacer("/", "%2F", "+", "%2B", "=", "%3D").Replace(r.Header.Get("X-Key"))
		}},
		"short token": {"/", map[string]string{"Authorization": "Bearer k3y"}, func(r *http.Request) string {
			return "no such token: " + strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, ip := backend(t, func(w http.ResponseWriter, r *http.Request) { http.Error(w, tt.echo(r), 404) })
			s.Start()
			_, err := HTTP{URL: "http://{{.PrivateIP}}:" + port(s) + tt.url, Headers: tt.headers}.Run(t.Context(), instance(ip), 0)
			if err == nil || !strings.Contains(err.Error(), "***") || strings.Contains(err.Error(), secretMark) || strings.Contains(err.Error(), "k3y") {
				t.Errorf("got %v, want *** for the secret", err)
			}
		})
	}
	t.Run("path of a webhook", func(t *testing.T) {
		t.Parallel()
		s, ip := backend(t, func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no such hook: "+r.URL.Path, 404) })
		s.Start()
		h := HTTP{URL: "http://" + ip + ":" + port(s) + "/services/" + secretMark, AllowHosts: []string{ip}}
		_, err := h.Run(t.Context(), instance("10.9.8.7"), 0)
		if err == nil || !strings.Contains(err.Error(), "no such hook: ") || strings.Contains(err.Error(), secretMark) {
			t.Errorf("got %v, want the answer without the path", err)
		}
	})
}
