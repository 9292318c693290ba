package providers

import "testing"

// A balancer is told as the config files write it.
func TestBalancerString(t *testing.T) {
	t.Parallel()
	for b, want := range map[Balancer]string{
		{Kind: CLB, ID: "lb-1"}:       "clb:lb-1",
		{Kind: CLBGroup, ID: "rsp-1"}: "clb-vserver-group:rsp-1",
		{Kind: ALB}:                   "alb:auto",
	} {
		if got := b.String(); got != want {
			t.Errorf("%+v is told as %q, want %q", b, got, want)
		}
	}
}
