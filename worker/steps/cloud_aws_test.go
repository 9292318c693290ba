package steps_test

import (
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"example.org/usher/providers/aws"
	"example.org/usher/simulator"
	"example.org/usher/worker/steps"
)

// TestOnSystemsManager: the steps that run scripts, against the simulated Run Command over its
// wire, with scripts that really run.
func TestOnSystemsManager(t *testing.T) {
	t.Parallel()
	cloud, err := simulator.New(simulator.Options{AccessKeyID: "id", AccessKeySecret: "secret", Exec: true, Scenario: simulator.DefaultAWSScenario()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cloud.Close() })
	server := httptest.NewServer(cloud)
	t.Cleanup(server.Close)
	commander, err := aws.NewCommander(aws.Options{
		Region: "eu-west-1", SSMEndpoint: server.URL, EC2Endpoint: server.URL, Credentials: aws.StaticCredentials("id", "secret"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(commander.Close)
	ins, ports := machines(t, server.URL)

	t.Run("command", func(t *testing.T) {
		t.Parallel()
		c := steps.Command{Script: "echo on $USHER_SIMULATOR_INSTANCE >&2; exit 3", Timeout: 5 * time.Minute, Commander: commander}
		_, err := c.Run(t.Context(), ins[0], 0)
		if err == nil || !strings.Contains(err.Error(), `exit code 3, output ends with "on `+string(ins[0].ID)+`"`) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("wait_connections", func(t *testing.T) {
		t.Parallel()
		w := steps.WaitConnections{
			Ports: []uint16{ports[1]}, LocalAddress: "{{.PrivateIP}}", Every: 200 * time.Millisecond, QuietFor: time.Second, Timeout: 5 * time.Minute,
			Exclude:   []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}, // the balancer's probes
			Commander: commander,
		}
		detail, err := w.Run(t.Context(), ins[1], 0)
		if err != nil || !strings.Contains(detail, "0 busy") {
			t.Errorf("got %q, %v", detail, err)
		}
	})
}
