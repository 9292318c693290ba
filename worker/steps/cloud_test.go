package steps_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/providers/alibaba"
	"example.org/usher/simulator"
	"example.org/usher/worker/steps"
)

// TestOnTheCloud: the steps against the simulated Cloud Assistant, over its wire,
// with scripts that really run.
func TestOnTheCloud(t *testing.T) {
	t.Parallel()
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

	t.Run("command", func(t *testing.T) {
		t.Parallel()
		c := steps.Command{Script: "echo on $USHER_SIMULATOR_INSTANCE; exit 3", Timeout: 20 * time.Second, Commander: assistant}
		_, err := c.Run(t.Context(), ins[0], 0)
		if err == nil || !strings.Contains(err.Error(), `exit code 3, output ends with "on `+string(ins[0].ID)+`"`) {
			t.Errorf("got %v", err)
		}
	})
	wait := func(i int) steps.WaitConnections {
		return steps.WaitConnections{
			Ports: []uint16{ports[i]}, LocalAddress: "{{.PrivateIP}}", Every: 200 * time.Millisecond, QuietFor: time.Second,
			Timeout: time.Minute, Commander: assistant,
		}
	}
	t.Run("quiet", func(t *testing.T) {
		t.Parallel()
		w := wait(1)
		w.Exclude = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")} // the balancer's probes
		detail, err := w.Run(t.Context(), ins[1], 0)
		if err != nil || !strings.Contains(detail, "0 busy") {
			t.Errorf("got %q, %v", detail, err)
		}
	})
	t.Run("busy", func(t *testing.T) {
		t.Parallel()
		w := wait(2)
		w.Timeout = 6 * time.Second // the service waits for 10 for the rest of a request
		for attempt := range 10 {
			c, err := net.Dial("tcp", netip.AddrPortFrom(ins[2].PrivateIP, ports[2]).String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			fmt.Fprint(c, "GET / HTTP/1.1\r\n") // a request that has begun
			_, err = w.Run(t.Context(), ins[2], attempt)
			if errors.Is(err, providers.ErrCommandTimeout) {
				continue // the machine is too slow for a poll in the script's time
			}
			if err == nil || !strings.Contains(err.Error(), c.LocalAddr().String()) {
				t.Errorf("got %v, want what was left", err)
			}
			return
		}
		t.Error("the script had no time to say anything")
	})
}

// machines are the group's instances and the ports they serve.
func machines(t *testing.T, cloud string) ([]messages.Instance, []uint16) {
	t.Helper()
	resp, err := http.Get(cloud + "/simulator/state")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var state struct {
		Groups []struct {
			ID        messages.GroupID `json:"id"`
			Instances []struct {
				ID      messages.InstanceID `json:"id"`
				Address netip.Addr          `json:"address"`
				Port    uint16              `json:"port"`
			} `json:"instances"`
		} `json:"groups"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&state); err != nil {
		t.Fatal(err)
	}
	var ins []messages.Instance
	var ports []uint16
	for _, in := range state.Groups[0].Instances {
		ins = append(ins, messages.Instance{ID: in.ID, PrivateIP: in.Address, Action: messages.Action{
			Region: "cn-shenzhen", Group: state.Groups[0].ID, Hook: "ash-wz9example0001", Token: "token-1", Transition: messages.ScaleIn,
		}})
		ports = append(ports, in.Port)
	}
	return ins, ports
}
