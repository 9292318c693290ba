package alibaba

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"

	"example.org/usher/simulator"
)

// tamperer changes the form body of a request that has been signed.
type tamperer struct {
	change func(url.Values)
}

func (x *tamperer) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, err
	}
	if x.change != nil {
		x.change(form)
	}
	r = r.Clone(r.Context())
	text := form.Encode()
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(text)), int64(len(text))
	return http.DefaultTransport.RoundTrip(r)
}

// TestSDKCallsBalancers: the official SDK's requests are accepted by the simulator's
// balancers, and each field of one that is changed on the way is refused.
func TestSDKCallsBalancers(t *testing.T) {
	t.Parallel()
	sim, err := simulator.New(simulator.Options{AccessKeyID: testID, AccessKeySecret: testSecret, NoServers: true, Scenario: simulator.Scenario{
		Region: "cn-shenzhen",
		Balancers: []simulator.BalancerConfig{
			{ID: "lb-1", Type: "clb"},
			{ID: "alb-1", Type: "alb", ServerGroups: []simulator.ServerGroupConfig{{ID: "sgp-a"}}, JobDuration: time.Hour},
			{ID: "nlb-1", Type: "nlb", ServerGroups: []simulator.ServerGroupConfig{{ID: "sgp-n"}}, JobDuration: time.Hour},
		},
		ScalingGroups: []simulator.GroupConfig{{ID: simGroup, Instances: 2, ServerGroups: []simulator.MembershipConfig{
			{ID: "lb-1"}, {ID: "sgp-a", Ports: []int{80}}, {ID: "sgp-n", Ports: []int{80}},
		}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(sim)
	t.Cleanup(func() { _ = sim.Close(); srv.Close() })
	id := sim.State().Groups[0].Instances[0].ID

	client, err := sdk.NewClientWithOptions("cn-shenzhen", sdk.NewConfig(), credentials.NewAccessKeyCredential(testID, testSecret))
	if err != nil {
		t.Fatal(err)
	}
	wire := &tamperer{}
	client.SetTransport(wire)
	call := func(version, action string, query, form map[string]string) (status int, answer map[string]any) {
		t.Helper()
		r := requests.NewCommonRequest()
		r.Method, r.Scheme, r.Domain = "POST", "http", strings.TrimPrefix(srv.URL, "http://")
		r.Version, r.ApiName = version, action
		maps.Copy(r.QueryParams, query)
		maps.Copy(r.FormParams, form)
		res, err := client.ProcessCommonRequest(r)
		if res == nil {
			t.Fatalf("%s: %v", action, err)
		}
		if err := json.Unmarshal(res.GetHttpContentBytes(), &answer); err != nil {
			t.Fatalf("%s: %v", action, err)
		}
		return res.GetHttpStatus(), answer
	}

	server := map[string]string{"ServerGroupId": "sgp-a", "Servers.1.ServerId": id, "Servers.1.ServerType": "Ecs", "Servers.1.Port": "80"}
	if status, o := call("2014-05-15", "RemoveBackendServers", map[string]string{"LoadBalancerId": "lb-1", "BackendServers": `[{"ServerId":"` + id + `","Type":"ecs"}]`}, nil); status != 200 {
		t.Errorf("CLB: %d, %v", status, o)
	}
	if status, o := call("2020-06-16", "RemoveServersFromServerGroup", server, nil); status != 200 || o["JobId"] == "" {
		t.Errorf("ALB: %d, %v", status, o)
	}
	server["ServerGroupId"], server["Servers.1.Weight"], server["Servers.1.Description"] = "sgp-n", "0", "a b*c+d~e/f:g"
	const update = "UpdateServerGroupServersAttribute"
	for name := range server {
		for what, change := range map[string]func(url.Values){
			"changed":    func(form url.Values) { form.Set(name, form.Get(name)+"0") },
			"taken away": func(form url.Values) { form.Del(name) },
			"renamed":    func(form url.Values) { form.Set(name+"x", form.Get(name)); form.Del(name) },
		} {
			wire.change = change
			if status, o := call("2022-04-30", update, nil, server); status != 400 || o["Code"] != "SignatureDoesNotMatch" {
				t.Errorf("NLB with %s %s: %d, %v", name, what, status, o)
			}
		}
	}
	wire.change = nil
	status, o := call("2022-04-30", update, nil, server)
	if status != 200 || o["JobId"] == "" {
		t.Errorf("NLB: %d, %v", status, o)
	}
	if status, o := call("2022-04-30", "GetJobStatus", map[string]string{"JobId": o["JobId"].(string)}, nil); status != 200 || o["Status"] != "processing" {
		t.Errorf("NLB's job: %d, %v", status, o)
	}
	for _, m := range sim.State().Members(id) {
		if want := map[string]string{"sgp-a": "Removing", "sgp-n": "Configuring"}[m.ServerGroup]; m.Status != want {
			t.Errorf("%s is %s, want %s", m.ServerGroup, m.Status, want)
		}
	}
}
