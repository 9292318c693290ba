package steps_test

import (
	"errors"
	"net"
	"net/http/httptest"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/providers/alibaba"
	"example.org/usher/simulator"
	"example.org/usher/worker/steps"
)

// TestFirewallOnTheCloud: the steps over the wire of the simulated Cloud Assistant, with
// scripts that really change a firewall.
func TestFirewallOnTheCloud(t *testing.T) {
	steps.OwnNetwork(t, func(t *testing.T) {
		cloud, err := simulator.New(simulator.Options{AccessKeyID: "id", AccessKeySecret: "secret", Exec: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cloud.Close() })
		server := httptest.NewServer(cloud)
		t.Cleanup(server.Close)
		assistant, err := alibaba.NewAssistant(alibaba.Options{
			Region: "cn-shenzhen", ECSEndpoint: server.URL, Credentials: alibaba.StaticCredentials("id", "secret"),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(assistant.Close)
		ins, ports := machines(t, server.URL)
		in, service := ins[0], netip.AddrPortFrom(ins[0].PrivateIP, ports[0]).String()
		// reach gives nil, or what became of a connection from an address.
		reach := func(from string, patience time.Duration) error {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
			c, err := d.DialContext(t.Context(), "tcp", service)
			if err == nil {
				c.Close()
			}
			return err
		}
		const probe, client, patience = "127.0.99.2", "127.0.99.9", 5 * time.Minute
		open := func() {
			t.Helper()
			for _, from := range []string{probe, client} {
				if err := reach(from, patience); err != nil {
					t.Errorf("from %s: %v", from, err)
				}
			}
		}

		fail := steps.FailHealthCheck{
			Ports: []uint16{ports[0]}, Probes: []netip.Prefix{netip.MustParsePrefix(probe + "/32")}, Expires: time.Hour, Watch: time.Second,
			Timeout: 10 * time.Minute, Commander: assistant,
		}
		block := steps.BlockConnections{Ports: fail.Ports, Expires: time.Hour, Timeout: 10 * time.Minute, Commander: assistant}
		undo := steps.Undo{Timeout: 10 * time.Minute, Commander: assistant}
		detail, err := fail.Run(t.Context(), in, 0)
		if err != nil || !strings.Contains(detail, "probes are dropped for 1h0m0s, method nft; before that 0 new connections") {
			t.Fatalf("got %q, %v", detail, err)
		}
		var timeout net.Error
		if err := reach(probe, time.Second); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("a probe: %v", err)
		}
		if err := reach(client, patience); err != nil {
			t.Errorf("a client: %v", err)
		}
		detail, err = block.Run(t.Context(), in, 0)
		if err != nil || detail != "new connections are refused for 1h0m0s, method nft" {
			t.Fatalf("got %q, %v", detail, err)
		}
		if err := reach(client, patience); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a client that comes late: %v", err)
		}
		detail, err = block.Undo(t.Context(), in)
		if err != nil || !strings.Contains(detail, "come through again") {
			t.Errorf("got %q, %v", detail, err)
		}
		open()
		// The same attempt again, as by a worker that takes over: it is not taken for done.
		if _, err := fail.Run(t.Context(), in, 0); err != nil {
			t.Error(err)
		}
		if err := reach(probe, time.Second); !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("a probe, after the takeover: %v", err)
		}
		if _, err := undo.Run(t.Context(), in, 0); err != nil {
			t.Error(err)
		}
		detail, err = fail.Undo(t.Context(), in)
		if err != nil || !strings.Contains(detail, "nothing was there to undo") {
			t.Errorf("got %q, %v", detail, err)
		}
		open()

		// Connections from the probes' network that stay are clients'. This service keeps them.
		listener, err := net.Listen("tcp", in.PrivateIP.String()+":0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		fail.Ports = []uint16{listener.Addr().(*net.TCPAddr).AddrPort().Port()}
		for range 3 {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(probe)}, KeepAlive: -1}
			c, err := d.DialContext(t.Context(), "tcp", listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		_, err = fail.Run(t.Context(), in, 1)
		if err == nil || !strings.Contains(err.Error(), "3 connections open, 3 of them all the time; name only addresses") {
			t.Errorf("got %v", err)
		}
		open()

		gone := in
		gone.ID = messages.InstanceID("i-wz9gone0000000000000")
		if _, err := fail.Run(t.Context(), gone, 0); !errors.Is(err, providers.ErrInstanceGone) {
			t.Errorf("an instance that is gone: %v", err)
		}
	})
}
