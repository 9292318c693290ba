package alibaba

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"example.org/usher/providers"
)

// TestNotice reads health checks as the services write them, numbers as numbers or as text.
func TestNotice(t *testing.T) {
	t.Parallel()
	const check = `"HealthCheckInterval": 2, "HealthyThreshold": 9, "UnhealthyThreshold": 3`
	clb, vgroup := providers.Balancer{Kind: providers.CLB, ID: "lb-1"}, providers.Balancer{Kind: providers.CLBGroup, ID: "rsp-1"}
	alb, nlb := providers.Balancer{Kind: providers.ALB, ID: "sgp-1"}, providers.Balancer{Kind: providers.NLB, ID: "sgp-1"}
	listeners := func(list ...string) string {
		return `{"RequestId": "r-1", "Listeners": [` + strings.Join(list, ",") + `]}`
	}
	group := func(settings string) string {
		return `{"RequestId": "r-1", "ServerGroups": [{"ServerGroupId": "sgp-1", ` + settings + `}]}`
	}
	tests := map[string]struct {
		of     providers.Balancer
		answer string
		want   time.Duration
	}{
		"TCP":              {clb, listeners(`{"ListenerPort": 80, "ListenerProtocol": "tcp", "TCPListenerConfig": {"HealthCheckConnectTimeout": 5, ` + check + `}}`), 21 * time.Second},
		"HTTP":             {clb, listeners(`{"ListenerPort": 80, "ListenerProtocol": "http", "HTTPListenerConfig": {"HealthCheck": "on", "HealthCheckTimeout": "4", ` + check + `}}`), 18 * time.Second},
		"the slowest":      {clb, listeners(`{"HTTPListenerConfig": {`+check+`}}`, `{"TCPListenerConfig": {"HealthCheckConnectTimeout": 10, `+check+`}}`, `{"UDPListenerConfig": {`+check+`}}`), 36 * time.Second},
		"off":              {clb, listeners(`{"HTTPListenerConfig": {"HealthCheck": "off", ` + check + `}}`), 0},
		"switched off":     {clb, listeners(`{"TCPListenerConfig": {"HealthCheckSwitch": "off", ` + check + `}}`), 0},
		"of another group": {vgroup, listeners(`{"VServerGroupId": "rsp-2", "HTTPListenerConfig": {` + check + `}}`), 0},
		"of the group":     {vgroup, listeners(`{"VServerGroupId": "rsp-1", "HTTPListenerConfig": {` + check + `}}`), 6 * time.Second},
		"no listener":      {clb, listeners(), 0},
		"ALB":              {alb, group(`"HealthCheckConfig": {"HealthCheckEnabled": true, "HealthCheckTimeout": 5, ` + check + `}`), 21 * time.Second},
		"ALB, off":         {alb, group(`"HealthCheckConfig": {"HealthCheckEnabled": false, "HealthCheckTimeout": 5, ` + check + `}`), 0},
		"ALB, none":        {alb, group(`"Protocol": "HTTP"`), 0},
		"NLB":              {nlb, group(`"HealthCheck": {"HealthCheckEnabled": true, "HealthCheckConnectTimeout": 1, ` + check + `}`), 9 * time.Second},
		"absurd":           {nlb, group(`"HealthCheck": {"HealthCheckEnabled": true, "HealthCheckInterval": 9223372036854775807, "UnhealthyThreshold": 9223372036854775807}`), time.Hour},
		"negative":         {nlb, group(`"HealthCheck": {"HealthCheckEnabled": true, "HealthCheckInterval": 2, "HealthCheckConnectTimeout": -9, "UnhealthyThreshold": 3}`), 6 * time.Second},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.FormValue("Action") == "DescribeVServerGroupAttribute" {
					_, _ = w.Write([]byte(`{"RequestId": "r-1", "LoadBalancerId": "lb-1"}`))
					return
				}
				_, _ = w.Write([]byte(tt.answer))
			}))
			t.Cleanup(server.Close)
			o := options(server.URL)
			o.SLBEndpoint, o.ALBEndpoint, o.NLBEndpoint = server.URL, server.URL, server.URL
			b, err := NewBalancers(o)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(b.Close)
			if d, err := b.Notice(t.Context(), tt.of); err != nil || d != tt.want {
				t.Errorf("got %v, %v; want %v", d, err, tt.want)
			}
		})
	}
}
