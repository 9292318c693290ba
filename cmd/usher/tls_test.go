package main

import (
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.org/usher/worker/audit"
)

// front puts TLS with a certificate that nobody knows in front of a cloud, and answers
// /drain itself.
func front(t *testing.T, c *cloud) (address, ca string) {
	t.Helper()
	at, err := url.Parse(c.url)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(at)
	transport := &http.Transport{DisableKeepAlives: true}
	proxy.Transport, proxy.ErrorLog = transport, log.New(io.Discard, "", 0)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/drain" {
			proxy.ServeHTTP(w, r)
		}
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are what we want
	s.StartTLS()
	t.Cleanup(s.Close)
	ca = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return s.URL, ca
}

// TestTLSIsVerified: no part of the worker speaks to a server whose certificate it
// cannot verify. SSL_CERT_FILE names the authorities, as for any program in Go.
func TestTLSIsVerified(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(3, false), "--exec")
	secure, ca := front(t, c)
	drain := `- http: {url: "` + secure + `/drain", allow_hosts: [127.0.0.1], timeout: 1m}` + "\n"
	command := "- command: {script: 'true', timeout: 20s}"

	t.Run("queue", func(t *testing.T) {
		t.Parallel()
		w := startWorker(t, &cloud{url: secure}, keys, drain, "")
		w.wantUpNotReady(t, "queue lifecycle: ", "certificate cannot be verified")
	})
	t.Run("authority known", func(t *testing.T) {
		c.scaleIn(t, 1)
		w := startWorker(t, &cloud{url: secure}, append([]string{"SSL_CERT_FILE=" + ca}, keys...), drain+command, "")
		c.awaitCompleted(t, 1, "CONTINUE")
		w.awaitRecords(t, 1, audit.Acked)
	})
	t.Run("step", func(t *testing.T) {
		c.scaleIn(t, 1)
		w := startWorker(t, c, keys, drain, "")
		finished := w.awaitRecords(t, 1, audit.StepFinished)[0]
		if finished.Result != "failed" || !strings.Contains(finished.Error, "certificate") {
			t.Errorf("%+v", finished)
		}
		w.awaitRecords(t, 1, audit.Acked)
	})
	t.Run("ESS and ECS", func(t *testing.T) {
		c.scaleIn(t, 1)
		dir := configFor(t, c.url, command, "")
		group := filepath.Join(dir, "web.yaml")
		text, err := os.ReadFile(group)
		if err != nil {
			t.Fatal(err)
		}
		for _, way := range []struct{ name, old, new string }{
			{"ESS", `ess: "` + c.url, `ess: "` + secure},
			{"ECS", `ecs: "` + c.url, `ecs: "` + secure},
		} {
			changed := strings.Replace(string(text), way.old, way.new, 1)
			if changed == string(text) {
				t.Fatalf("the config has no %s", way.old)
			}
			if err := os.WriteFile(group, []byte(changed), 0o600); err != nil {
				t.Fatal(err)
			}
			p := start(t, os.Args[0], keys, "run", "--config", dir)
			p.await(t, &p.stderr, "that "+way.name+" can't be verified", func(text string) bool {
				return strings.Contains(text, "certificate cannot be verified")
			})
			_ = p.Process.Kill()
			<-p.ended
		}
	})
}
