package steps

import (
	"flag"
	"net/netip"
	"os"
	"testing"

	"go.uber.org/goleak"

	"example.org/usher/messages"
)

func TestMain(m *testing.M) {
	// ProxyFromEnvironment reads these once a process: a company's proxy that no test may reach.
	os.Setenv("HTTP_PROXY", "http://proxy.test:3128")
	os.Setenv("HTTPS_PROXY", "http://proxy.test:3128")
	os.Setenv("NO_PROXY", "direct.test")
	// The script's tests watch real connections for real seconds and leave the processor
	// alone: more of them at a time than there are processors.
	flag.Parse()
	_ = flag.Set("test.parallel", "24")
	goleak.VerifyTestMain(m)
}

// instance is a server of a scale-in at the address.
func instance(ip string) messages.Instance {
	in := messages.Instance{
		ID: "i-bp1example1",
		Action: messages.Action{
			Region: "cn-hangzhou", Group: "asg-bp1example", Hook: "ash-bp1example", Token: "token-1",
			Transition: messages.ScaleIn, Activity: "asa-bp1example", Instances: []messages.InstanceID{"i-bp1example1"},
		},
	}
	if ip != "" {
		in.PrivateIP = netip.MustParseAddr(ip)
	}
	return in
}
