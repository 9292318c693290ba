package simulator

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// threeBalancers has a group of n instances behind a CLB (default and vServer group), an
// ALB and an NLB, which Auto Scaling knows of or not.
func threeBalancers(n int, unattached bool, hooks ...HookConfig) Scenario {
	sc := oneGroup(n, hooks...)
	sc.Balancers = []BalancerConfig{
		{
			ID: "lb-1", Type: typeCLB, ServerGroups: []ServerGroupConfig{{ID: "rsp-1", Name: "web"}},
			Listeners: []ListenerConfig{
				{Port: 80, Protocol: protocolHTTP, BackendPort: 8080},
				{Port: 443, ServerGroup: "rsp-1", ConnectionDrainTimeout: 30 * time.Second},
			},
		},
		{ID: "alb-1", Type: typeALB, ServerGroups: []ServerGroupConfig{{ID: "sgp-a", ConnectionDrainTimeout: 20 * time.Second}}, JobDuration: 3 * time.Second},
		{ID: "nlb-1", Type: typeNLB, ServerGroups: []ServerGroupConfig{{ID: "sgp-n"}}, ConnectionDrainTimeout: 10 * time.Second, JobDuration: 5 * time.Second},
	}
	g := &sc.ScalingGroups[0]
	g.Balancers = nil
	g.Zones = []string{"cn-shenzhen-a", "cn-shenzhen-b"}
	g.ServerGroups = []MembershipConfig{
		{ID: "lb-1", Unattached: unattached},
		{ID: "rsp-1", Ports: []int{8443, 9443}, Unattached: unattached},
		{ID: "sgp-a", Ports: []int{8080, 8081}, Unattached: unattached},
		{ID: "sgp-n", Ports: []int{8080}, Weight: 50, Unattached: unattached},
	}
	return sc
}

// nlb signs and sends a call of NLB the way the official SDK does: common parameters in
// the query, its own in the form body.
func (w *world) nlb(action string, pairs ...string) (reply, error) {
	query := w.rpcForm(nlbVersion, action)
	body := map[string]string{}
	for i := 0; i+1 < len(pairs); i += 2 {
		body[pairs[i]] = pairs[i+1]
	}
	return w.sendSplit(query, body, nil)
}

func flat(t testing.TB, o map[string]any, name string) []map[string]any {
	t.Helper()
	items, ok := o[name].([]any)
	if !ok {
		t.Fatalf("no list %s in %v", name, o)
	}
	var out []map[string]any
	for _, item := range items {
		out = append(out, item.(map[string]any))
	}
	return out
}

// brief is how a listed server stands: port, weight and status.
func brief(servers []map[string]any, id string) string {
	var out []string
	for _, x := range servers {
		if x["ServerId"] == id {
			out = append(out, strings.TrimSpace(fmt.Sprint(x["Port"], " ", x["Weight"], " ", x["Status"])))
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func TestALBJobs(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: threeBalancers(3, true)}, func(w *world) {
		id := w.firstInstance().ID
		servers := func() []map[string]any {
			return flat(t, w.call(albVersion, "ListServerGroupServers", "ServerGroupId", "sgp-a"), "Servers")
		}
		status := func() any {
			return flat(t, w.call(albVersion, "ListServerGroups", "ServerGroupIds.1", "sgp-a"), "ServerGroups")[0]["ServerGroupStatus"]
		}
		if got := brief(servers(), id); got != "8080 100 Available, 8081 100 Available" || status() != "Available" {
			t.Fatalf("at first: %s, %v", got, status())
		}
		remove := []string{"ServerGroupId", "sgp-a", "Servers.1.ServerId", id, "Servers.1.ServerType", "Ecs", "Servers.1.Port", "8080"}
		job := w.call(albVersion, "RemoveServersFromServerGroup", remove...)["JobId"].(string)
		if got := brief(servers(), id); got != "8080 100 Removing, 8081 100 Available" || status() != "Configuring" {
			t.Errorf("during the job: %s, %v", got, status())
		}
		jobs := func() map[string]any {
			return flat(t, w.call(albVersion, "ListAsynJobs", "JobIds.1", job), "Jobs")[0]
		}
		if j := jobs(); j["Status"] != "Processing" || j["ApiName"] != "RemoveServersFromServerGroup" || j["ResourceId"] != "sgp-a" {
			t.Errorf("job %v", j)
		}
		w.fails(400, "IncorrectStatus.ServerGroup", albVersion, "RemoveServersFromServerGroup", remove...)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if got := brief(servers(), id); got != "8081 100 Available" || status() != "Available" || jobs()["Status"] != "Succeeded" {
			t.Errorf("after the job: %s, %v, %v", got, status(), jobs())
		}
		w.fails(404, "ResourceNotFound.BackendServer", albVersion, "RemoveServersFromServerGroup", remove...)

		// The removed one drains for its 20 s, which began with the removal.
		draining := func() bool {
			b, _ := w.State().Balancer("alb-1")
			return slices.ContainsFunc(b.Members, func(m MemberState) bool { return m.Draining })
		}
		if !draining() {
			t.Error("does not drain")
		}
		time.Sleep(17 * time.Second)
		if draining() {
			t.Error("drains on after its timeout")
		}

		// Weight, then back in: healthy one check after the job began.
		w.call(albVersion, "UpdateServerGroupServersAttribute", "ServerGroupId", "sgp-a", "Servers.1.ServerId", id, "Servers.1.ServerType", "Ecs", "Servers.1.Port", "8081", "Servers.1.Weight", "0")
		if got := brief(servers(), id); got != "8081 100 Configuring" {
			t.Errorf("while the weight changes: %s", got)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		w.call(albVersion, "AddServersToServerGroup", "ServerGroupId", "sgp-a", "Servers.1.ServerId", id, "Servers.1.ServerType", "Ecs", "Servers.1.Port", "8080", "Servers.1.Weight", "10")
		if got := brief(servers(), id); got != "8080 10 Adding, 8081 0 Available" {
			t.Errorf("while it is added: %s", got)
		}
		sick := func() string {
			o := flat(t, w.call(albVersion, "GetListenerHealthStatus", "ListenerId", "lsn-alb-1-80"), "ListenerHealthStatus")[0]
			var out []string
			for _, x := range flat(t, flat(t, o, "ServerGroupInfos")[0], "NonNormalServers") {
				out = append(out, fmt.Sprint(x["Port"], x["Status"]))
			}
			slices.Sort(out)
			return strings.Join(out, " ")
		}
		if got := sick(); got != "8080Initial 8081Unused" {
			t.Errorf("health %s", got)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if got := brief(servers(), id); got != "8080 10 Available, 8081 0 Available" || sick() != "8081Unused" {
			t.Errorf("in the end: %s, %s", got, sick())
		}
	})
}

func TestScaleInDetaches(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: threeBalancers(4, false, hookIn("ash-1", ""))}, func(w *world) {
		act, err := w.ScaleIn("asg-1", 2)
		if err != nil || len(act.Tokens) != 0 {
			t.Fatalf("%+v, %v", act, err)
		}
		left := func() (out []string) {
			for _, id := range act.Instances[:1] {
				for _, m := range w.State().Members(id) {
					out = append(out, m.ServerGroup+" "+m.Status)
				}
			}
			return out
		}
		if got, want := fmt.Sprint(left()), "[sgp-a Removing sgp-a Removing sgp-n Removing]"; got != want {
			t.Errorf("at once %s, want %s", got, want)
		}
		if got := w.states("asg-1"); got != "Removing Removing InService InService" {
			t.Errorf("states %s", got)
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := left(); len(got) != 0 {
			t.Errorf("still there: %v", got)
		}
		if got := w.states("asg-1"); got != "Removing:Wait Removing:Wait InService InService" {
			t.Errorf("states %s", got)
		}
		w.complete("ash-1", w.State().Actions[0].Token, "ROLLBACK")
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if got := w.states("asg-1"); got != "InService InService InService InService" {
			t.Errorf("states %s", got)
		}
		if got := w.State().Members(act.Instances[0]); len(got) != 6 || slices.ContainsFunc(got, func(m MemberState) bool { return !m.Healthy || !m.InService }) {
			t.Errorf("members %+v", got)
		}
	})
}

func TestCLBAtOnce(t *testing.T) {
	t.Parallel()
	sc := threeBalancers(3, true)
	sc.Balancers[0].JobDuration = 200 * time.Millisecond
	bubble(t, Options{Scenario: sc}, func(w *world) {
		id := w.firstInstance().ID
		entry := func(fields string) string { return `[{"ServerId":"` + id + `",` + fields + `}]` }
		o := w.call(slbVersion, "SetBackendServers", "LoadBalancerId", "lb-1", "BackendServers", entry(`"Type":"ecs","Weight":"0"`))
		if got := items(t, o, "BackendServers", "BackendServer"); len(got) != 3 || got[0].(map[string]any)["Weight"] != "0" {
			t.Errorf("set: %v", got)
		}
		remove := []string{"LoadBalancerId", "lb-1", "BackendServers", entry(`"Type":"ecs"`)}
		w.fails(409, "BackendServer.configuring", slbVersion, "RemoveBackendServers", remove...)
		for range 2 { // the second time there is nothing left to remove
			time.Sleep(200 * time.Millisecond)
			if got := items(t, w.call(slbVersion, "RemoveBackendServers", remove...), "BackendServers", "BackendServer"); len(got) != 2 || got[0].(map[string]any)["Weight"] != 100.0 {
				t.Errorf("removed: %v", got)
			}
		}
		time.Sleep(200 * time.Millisecond)
		w.call(slbVersion, "RemoveVServerGroupBackendServers", "VServerGroupId", "rsp-1", "BackendServers", entry(`"Port":8443`))
		group := w.call(slbVersion, "DescribeVServerGroupAttribute", "VServerGroupId", "rsp-1")
		if got := items(t, group, "BackendServers", "BackendServer"); len(got) != 5 || group["LoadBalancerId"] != "lb-1" {
			t.Errorf("group: %v", group)
		}
		found := items(t, w.call(slbVersion, "DescribeLoadBalancers", "ServerId", id), "LoadBalancers", "LoadBalancer")
		if len(found) != 1 {
			t.Errorf("balancers of %s: %v", id, found)
		}
		time.Sleep(200 * time.Millisecond)
		w.call(slbVersion, "SetVServerGroupAttribute", "VServerGroupId", "rsp-1", "VServerGroupName", "other", "BackendServers", entry(`"Port":"9443","Weight":7`))
		groups := items(t, w.call(slbVersion, "DescribeVServerGroups", "LoadBalancerId", "lb-1", "IncludeListener", "true"), "VServerGroups", "VServerGroup")
		if g := groups[0].(map[string]any); len(groups) != 1 || g["VServerGroupName"] != "other" || g["ServerCount"] != 5.0 {
			t.Errorf("groups %v", groups)
		}
		time.Sleep(200 * time.Millisecond)
		o = w.call(slbVersion, "ModifyVServerGroupBackendServers", "VServerGroupId", "rsp-1", "OldBackendServers", entry(`"Port":9443`), "NewBackendServers", entry(`"Port":8443,"Weight":20`))
		if got := items(t, o, "BackendServers", "BackendServer"); len(got) != 5 || got[4].(map[string]any)["Port"] != 8443.0 || got[4].(map[string]any)["Weight"] != 20.0 {
			t.Errorf("modified: %v", got)
		}
		health := func(port string) (out []any) {
			for _, x := range items(t, w.call(slbVersion, "DescribeHealthStatus", "LoadBalancerId", "lb-1", "ListenerPort", port), "BackendServers", "BackendServer") {
				if x := x.(map[string]any); x["ServerId"] == id {
					out = append(out, x["ServerHealthStatus"], x["Port"])
				}
			}
			return out
		}
		if got := fmt.Sprint(health("443")); got != "[unavailable 8443]" {
			t.Errorf("health of a new server: %s", got)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got := fmt.Sprint(health("443")); got != "[normal 8443]" {
			t.Errorf("health after a check: %s", got)
		}
		if err := w.SetHealth(id, false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := fmt.Sprint(health("443")); got != "[abnormal 8443]" {
			t.Errorf("health of a sick server: %s", got)
		}
		w.call(slbVersion, "AddBackendServers", "LoadBalancerId", "lb-1", "BackendServers", entry(`"Weight":5`))
		if got := items(t, w.call(slbVersion, "DescribeLoadBalancerAttribute", "LoadBalancerId", "lb-1"), "BackendServers", "BackendServer"); len(got) != 3 || got[2].(map[string]any)["Weight"] != 5.0 {
			t.Errorf("attribute: %v", got)
		}
		listener := w.call(slbVersion, "DescribeLoadBalancerTCPListenerAttribute", "LoadBalancerId", "lb-1", "ListenerPort", "443")
		if listener["ConnectionDrain"] != "on" || listener["ConnectionDrainTimeout"] != 30.0 || listener["VServerGroupId"] != "rsp-1" {
			t.Errorf("listener %v", listener)
		}
		all := flat(t, w.call(slbVersion, "DescribeLoadBalancerListeners", "LoadBalancerId.1", "lb-1"), "Listeners")
		if len(all) != 2 || all[0]["BackendServerPort"] != 8080.0 || all[1]["TCPListenerConfig"].(map[string]any)["ConnectionDrainTimeout"] != 30.0 {
			t.Errorf("listeners %v", all)
		}
	})
}

func TestNLBJobs(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: threeBalancers(3, true)}, func(w *world) {
		id := w.firstInstance().ID
		call := func(action string, pairs ...string) map[string]any {
			t.Helper()
			r, err := w.nlb(action, pairs...)
			if err != nil || r.status != 200 {
				t.Fatalf("%s: %v, %v", action, r, err)
			}
			return decode(t, r.body)
		}
		refused := func(status int, code, action string, pairs ...string) {
			t.Helper()
			if r, err := w.nlb(action, pairs...); err != nil || r.status != status || decode(t, r.body)["Code"] != code {
				t.Errorf("%s: %v, %v, want %d %s", action, r, err, status, code)
			}
		}
		servers := flat(t, call("ListServerGroupServers", "ServerIds.1", id), "Servers") // in all groups
		if len(servers) != 1 || brief(servers, id) != "8080 50 Available" || servers[0]["ZoneId"] != "cn-shenzhen-a" || servers[0]["ServerGroupId"] != "sgp-n" {
			t.Errorf("servers %v", servers)
		}
		group := flat(t, call("ListServerGroups", "ServerGroupIds.1", "sgp-n"), "ServerGroups")[0]
		if group["ConnectionDrainEnabled"] != true || group["ConnectionDrainTimeout"] != 10.0 || group["ServerCount"] != 3.0 {
			t.Errorf("group %v", group)
		}
		remove := []string{"ServerGroupId", "sgp-n", "Servers.1.ServerId", id, "Servers.1.ServerType", "Ecs", "Servers.1.Port", "8080"}
		refused(400, "DryRunOperation", "RemoveServersFromServerGroup", append(remove, "DryRun", "true")...)
		withToken := append(remove, "ClientToken", "token-1")
		first := call("RemoveServersFromServerGroup", withToken...)
		if again := call("RemoveServersFromServerGroup", withToken...); again["JobId"] != first["JobId"] || first["Success"] != true || first["ServerGroupId"] != "sgp-n" {
			t.Errorf("%v, repeated %v", first, again)
		}
		refused(400, "IdempotenceSignatureMismatch", "RemoveServersFromServerGroup", append(withToken, "Servers.1.ServerId", "i-other")...)
		refused(400, "IncorrectStatus.serverGroup", "RemoveServersFromServerGroup", remove...)
		job := func() any { return w.call(nlbVersion, "GetJobStatus", "JobId", first["JobId"].(string))["Status"] }
		if job() != "processing" {
			t.Errorf("job %v", job())
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if job() != "Succeeded" || len(flat(t, call("ListServerGroupServers", "ServerGroupId", "sgp-n", "ServerIds.1", id), "Servers")) != 0 {
			t.Errorf("job %v", job())
		}
		refused(404, "ResourceNotFound.BackendServer", "RemoveServersFromServerGroup", remove...)
		refused(404, "ResourceNotFound.serverGroup", "RemoveServersFromServerGroup", append(remove, "ServerGroupId", "sgp-a")...)

		// What stands in the query alone is not read.
		query := w.rpcForm(nlbVersion, "RemoveServersFromServerGroup", remove...)
		if r, err := w.sendSplit(query, nil, nil); err != nil || decode(t, r.body)["Code"] != "MissingServers" {
			t.Errorf("in the query: %v, %v", r, err)
		}
	})
}

// Each parameter of a form body is signed: one that was changed, added or taken away on
// the way is found out.
func TestTamperedBodyIsRefused(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: threeBalancers(2, true), NoServers: true})
	body := map[string]string{
		"ServerGroupId": "sgp-n", "Servers.1.ServerId": w.firstInstance().ID, "Servers.1.ServerType": "Ecs", "Servers.1.Port": "8080",
		"Servers.1.Weight": "0", "Servers.1.Description": "web server", "ClientToken": "token", "DryRun": "false",
	}
	const action = "UpdateServerGroupServersAttribute"
	refused := func(what string, tamper func(url.Values)) {
		t.Helper()
		r, err := w.sendSplit(w.rpcForm(nlbVersion, action), body, tamper)
		if err != nil || r.status != 400 || decode(t, r.body)["Code"] != "SignatureDoesNotMatch" {
			t.Errorf("%s: %v, %v", what, r, err)
		}
	}
	for name := range body {
		refused(name+" changed", func(form url.Values) { form.Set(name, form.Get(name)+"1") })
		refused(name+" taken away", func(form url.Values) { form.Del(name) })
	}
	refused("a second server", func(form url.Values) { form.Set("Servers.2.ServerId", "i-2") })
	for name := range w.rpcForm(nlbVersion, action) {
		query := w.rpcForm(nlbVersion, action)
		r, err := w.sendSplit(query, body, func(url.Values) { query.Set(name, query.Get(name)+"x") })
		if err != nil || r.status == 200 {
			t.Errorf("%s of the query changed: %v, %v", name, r, err)
		}
	}
	if r, err := w.sendSplit(w.rpcForm(nlbVersion, action), body, nil); err != nil || r.status != 200 {
		t.Errorf("untouched: %v, %v", r, err)
	}
}

func TestBalancerLimits(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: threeBalancers(120, true)}, func(w *world) {
		g, _ := w.State().Group("asg-1")
		alb := func(n int) []string {
			pairs := []string{"ServerGroupId", "sgp-a"}
			for i := range n {
				at := fmt.Sprintf("Servers.%d.", i+1)
				pairs = append(pairs, at+"ServerId", g.Instances[i%120].ID, at+"ServerType", "Ecs", at+"Port", fmt.Sprint(8080+i/120))
			}
			return pairs
		}
		w.fails(400, "IllegalParam.Servers", albVersion, "RemoveServersFromServerGroup", alb(201)...)
		if n := len(flat(t, w.call(albVersion, "ListServerGroupServers", "ServerGroupId", "sgp-a"), "Servers")); n != 20 {
			t.Errorf("%d servers by default, want 20", n)
		}
		w.fails(400, "IllegalParam.MaxResults", albVersion, "ListServerGroupServers", "MaxResults", "101")
		w.fails(400, "IllegalParam.NextToken", albVersion, "ListServerGroupServers", "NextToken", "!")
		w.fails(400, "IllegalParam.MaxResults", albVersion, "GetListenerHealthStatus", "ListenerId", "lsn-alb-1-80", "MaxResults", "31")
		many := []string{}
		for i := range 41 {
			many = append(many, fmt.Sprintf("ServerIds.%d", i+1), g.Instances[i].ID)
		}
		w.fails(400, "IllegalParam.ServerIds", albVersion, "ListServerGroupServers", many...)

		// Between two pages some of the first leave; none of the others is missed.
		seen, next := map[string]bool{}, ""
		for page := 1; page == 1 || next != ""; page++ {
			o := w.call(albVersion, "ListServerGroupServers", "ServerGroupId", "sgp-a", "MaxResults", "100", "NextToken", next)
			for _, x := range flat(t, o, "Servers") {
				seen[fmt.Sprint(x["ServerId"], x["Port"])] = true
			}
			next = o["NextToken"].(string)
			if page == 1 {
				w.call(albVersion, "RemoveServersFromServerGroup", alb(50)...)
				time.Sleep(3 * time.Second)
				synctest.Wait()
			}
		}
		if len(seen) != 240 {
			t.Errorf("%d servers seen, want 240", len(seen))
		}

		clb := func(n int, fields string) string {
			var entries []string
			for i := range n {
				entries = append(entries, `{"ServerId":"`+g.Instances[i].ID+`"`+fields+`}`)
			}
			return "[" + strings.Join(entries, ",") + "]"
		}
		w.call(slbVersion, "RemoveBackendServers", "LoadBalancerId", "lb-1", "BackendServers", clb(20, ""))
		for name, bad := range map[string]string{
			"21 entries": clb(21, ""), "none": "[]", "no list": `{"ServerId":"i-1"}`, "no id": `[{"Type":"ecs"}]`, "a kind": clb(1, `,"Type":"ip"`),
			"a weight": clb(1, `,"Weight":101`), "a number": clb(1, `,"Weight":"many"`),
		} {
			if code := w.fails(400, "InvalidParameter", slbVersion, "SetBackendServers", "LoadBalancerId", "lb-1", "BackendServers", bad)["Code"]; code == nil {
				t.Errorf("%s is accepted", name)
			}
		}
		w.fails(400, "InvalidParameter", slbVersion, "RemoveVServerGroupBackendServers", "VServerGroupId", "rsp-1", "BackendServers", clb(1, `,"Port":"65536"`))
		w.fails(400, "InvalidParameter", slbVersion, "RemoveVServerGroupBackendServers", "VServerGroupId", "rsp-1", "BackendServers", clb(1, ""))
		w.fails(400, "InvalidParameter", slbVersion, "DescribeLoadBalancers", "PageSize", "101")
		w.fails(400, "InvalidParameter", slbVersion, "DescribeLoadBalancers", "PageNumber", "0")
	})
}

func TestBalancerRefusals(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: threeBalancers(2, true), NoServers: true})
	id := w.firstInstance().ID
	entry := func(id, fields string) string { return `[{"ServerId":"` + id + `"` + fields + `}]` }
	srv := func(group, id, kind, port string) []string {
		return []string{"ServerGroupId", group, "Servers.1.ServerId", id, "Servers.1.ServerType", kind, "Servers.1.Port", port}
	}
	for _, c := range []struct {
		version, action string
		pairs           []string
		status          int
		code            string
	}{
		{slbVersion, "RemoveBackendServers", []string{"LoadBalancerId", "lb-9", "BackendServers", entry(id, "")}, 404, "InvalidLoadBalancerId.NotFound"},
		{slbVersion, "RemoveBackendServers", []string{"LoadBalancerId", "rsp-1", "BackendServers", entry(id, "")}, 404, "InvalidLoadBalancerId.NotFound"},
		{slbVersion, "RemoveBackendServers", []string{"LoadBalancerId", "alb-1", "BackendServers", entry(id, "")}, 404, "InvalidLoadBalancerId.NotFound"},
		{slbVersion, "RemoveBackendServers", []string{"BackendServers", entry(id, "")}, 400, "MissingLoadBalancerId"},
		{slbVersion, "RemoveBackendServers", []string{"LoadBalancerId", "lb-1"}, 400, "MissingBackendServers"},
		{slbVersion, "RemoveVServerGroupBackendServers", []string{"VServerGroupId", "lb-1", "BackendServers", entry(id, `,"Port":80`)}, 404, "InvalidVServerGroupId.NotFound"},
		{slbVersion, "DescribeVServerGroupAttribute", []string{"VServerGroupId", "sgp-a"}, 404, "InvalidVServerGroupId.NotFound"},
		{slbVersion, "DescribeVServerGroups", []string{"LoadBalancerId", "nlb-1"}, 404, "InvalidLoadBalancerId.NotFound"},
		{slbVersion, "DescribeLoadBalancerAttribute", nil, 400, "MissingLoadBalancerId"},
		{slbVersion, "AddBackendServers", []string{"LoadBalancerId", "lb-1", "BackendServers", entry("i-none", "")}, 400, "ObtainIpFail"},
		{slbVersion, "AddBackendServers", []string{"LoadBalancerId", "lb-1", "BackendServers", entry(id, "")}, 400, "InvalidBackendServers.Duplicated"},
		{slbVersion, "AddBackendServers", []string{"LoadBalancerId", "lb-1"}, 400, "MissingBackendServers"},
		{slbVersion, "SetBackendServers", []string{"LoadBalancerId", "lb-1", "BackendServers", entry("i-none", "")}, 400, "InvalidBackendServers.Inconsistent"},
		{slbVersion, "SetVServerGroupAttribute", []string{"VServerGroupId", "rsp-1", "BackendServers", entry(id, `,"Port":1`)}, 400, "InvalidBackendServers.Inconsistent"},
		{slbVersion, "SetVServerGroupAttribute", []string{"VServerGroupId", "rsp-1", "BackendServers", "x"}, 400, "InvalidParameter"},
		{slbVersion, "AddVServerGroupBackendServers", []string{"VServerGroupId", "rsp-1", "BackendServers", entry(id, `,"Port":8443`)}, 400, "InvalidBackendServers.Duplicated"},
		{slbVersion, "AddVServerGroupBackendServers", []string{"VServerGroupId", "rsp-1", "BackendServers", "x"}, 400, "InvalidParameter"},
		{slbVersion, "RemoveVServerGroupBackendServers", []string{"VServerGroupId", "rsp-1"}, 400, "MissingBackendServers"},
		{slbVersion, "ModifyVServerGroupBackendServers", []string{"VServerGroupId", "rsp-1", "NewBackendServers", entry(id, `,"Port":1`)}, 400, "MissingOldBackendServers"},
		{slbVersion, "ModifyVServerGroupBackendServers", []string{"VServerGroupId", "rsp-1", "OldBackendServers", entry(id, `,"Port":1`)}, 400, "MissingNewBackendServers"},
		{slbVersion, "ModifyVServerGroupBackendServers", []string{"VServerGroupId", "rsp-1", "OldBackendServers", entry(id, `,"Port":8443`), "NewBackendServers", entry("i-none", `,"Port":1`)}, 400, "ObtainIpFail"},
		{slbVersion, "DescribeHealthStatus", []string{"LoadBalancerId", "lb-1", "ListenerPort", "81"}, 404, "InvalidListenerPort.NotFound"},
		{slbVersion, "DescribeHealthStatus", []string{"LoadBalancerId", "lb-1", "ListenerPort", "x"}, 400, "InvalidParameter"},
		{slbVersion, "DescribeHealthStatus", []string{"LoadBalancerId", "lb-9"}, 404, "InvalidLoadBalancerId.NotFound"},
		{slbVersion, "DescribeLoadBalancerTCPListenerAttribute", []string{"LoadBalancerId", "lb-1", "ListenerPort", "80"}, 404, "InvalidListenerPort.NotFound"},
		{slbVersion, "DescribeLoadBalancerTCPListenerAttribute", []string{"LoadBalancerId", "lb-1"}, 400, "MissingListenerPort"},
		{slbVersion, "DescribeLoadBalancerTCPListenerAttribute", []string{"LoadBalancerId", "lb-1", "ListenerPort", "0"}, 400, "InvalidParameter"},
		{slbVersion, "DescribeLoadBalancerHTTPListenerAttribute", []string{"LoadBalancerId", "lb-9", "ListenerPort", "80"}, 404, "InvalidLoadBalancerId.NotFound"},
		{slbVersion, "DescribeLoadBalancerListeners", []string{"ListenerPort", "70000"}, 400, "InvalidParameter"},
		{slbVersion, "DescribeLoadBalancerListeners", []string{"RegionId", ""}, 400, "MissingRegionId"},
		{slbVersion, "DescribeLoadBalancers", []string{"RegionId", ""}, 400, "MissingRegionId"},
		{albVersion, "RemoveServersFromServerGroup", srv("sgp-n", id, "Ecs", "8080"), 404, "ResourceNotFound.ServerGroup"},
		{albVersion, "RemoveServersFromServerGroup", srv("", id, "Ecs", "8080"), 400, "MissingServerGroupId"},
		{albVersion, "RemoveServersFromServerGroup", srv("sgp-a", "", "Ecs", "8080"), 400, "MissingServerId"},
		{albVersion, "RemoveServersFromServerGroup", srv("sgp-a", id, "", "8080"), 400, "MissingServerType"},
		{albVersion, "RemoveServersFromServerGroup", srv("sgp-a", id, "ecs", "8080"), 400, "IllegalParam.ServerType"},
		{albVersion, "RemoveServersFromServerGroup", srv("sgp-a", id, "Ecs", ""), 400, "MissingPort"},
		{albVersion, "RemoveServersFromServerGroup", srv("sgp-a", id, "Ecs", "0"), 400, "IllegalParam.Port"},
		{albVersion, "RemoveServersFromServerGroup", []string{"ServerGroupId", "sgp-a"}, 400, "MissingServers"},
		{albVersion, "AddServersToServerGroup", srv("sgp-a", id, "Ecs", "8080"), 400, "ResourceAlreadyExist.BackendServer"},
		{albVersion, "AddServersToServerGroup", srv("sgp-a", "i-none", "Ecs", "8080"), 404, "ResourceNotFound.BackendServer"},
		{albVersion, "AddServersToServerGroup", append(srv("sgp-a", id, "Ecs", "1"), "Servers.1.Weight", "101"), 400, "IllegalParam.Weight"},
		{albVersion, "UpdateServerGroupServersAttribute", srv("sgp-a", id, "Ecs", "1"), 404, "ResourceNotFound.BackendServer"},
		{albVersion, "ListServerGroupServers", []string{"ServerGroupId", "sgp-9"}, 404, "ResourceNotFound.ServerGroup"},
		{albVersion, "GetListenerHealthStatus", nil, 400, "MissingListenerId"},
		{albVersion, "GetListenerHealthStatus", []string{"ListenerId", "lsn-nlb-1@80"}, 404, "ResourceNotFound.Listener"},
		{albVersion, "GetListenerAttribute", []string{"ListenerId", "lsn-9"}, 404, "ResourceNotFound.Listener"},
		{albVersion, "ListListeners", []string{"MaxResults", "0"}, 400, "IllegalParam.MaxResults"},
		{albVersion, "ListLoadBalancers", []string{"MaxResults", "0"}, 400, "IllegalParam.MaxResults"},
		{albVersion, "ListServerGroups", []string{"MaxResults", "0"}, 400, "IllegalParam.MaxResults"},
		{albVersion, "ListAsynJobs", []string{"MaxResults", "0"}, 400, "IllegalParam.MaxResults"},
		{albVersion, "GetJobStatus", []string{"JobId", "x"}, 404, "InvalidAction.NotFound"},
		{nlbVersion, "ListAsynJobs", nil, 404, "InvalidAction.NotFound"},
		{nlbVersion, "GetJobStatus", nil, 400, "MissingJobId"},
		{nlbVersion, "GetJobStatus", []string{"JobId", "x"}, 404, "ResourceNotFound.Job"},
	} {
		r, err := w.rpc("POST", c.version, c.action, c.pairs...)
		if err != nil || r.status != c.status || decode(t, r.body)["Code"] != c.code {
			t.Errorf("%s %v: %v, %v, want %d %s", c.action, c.pairs, r, err, c.status, c.code)
		}
	}
}

func TestBalancerListings(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: threeBalancers(2, false), NoServers: true})
	for _, version := range []string{essOld, essNew} {
		o := w.call(version, "DescribeScalingGroups", "ScalingGroupId.1", "asg-1")
		inner := func(o map[string]any, plural, singular string) []any {
			if version == essNew {
				return o[plural].([]any)
			}
			return items(t, o, plural, singular)
		}
		g := inner(o, "ScalingGroups", "ScalingGroup")[0].(map[string]any)
		if got := inner(g, "LoadBalancerIds", "LoadBalancerId"); fmt.Sprint(got) != "[lb-1]" {
			t.Errorf("%s: balancers %v", version, got)
		}
		virtual := inner(g, "VServerGroups", "VServerGroup")[0].(map[string]any)
		ports := inner(virtual, "VServerGroupAttributes", "VServerGroupAttribute")
		if virtual["LoadBalancerId"] != "lb-1" || fmt.Sprint(ports) != "[map[Port:8443 VServerGroupId:rsp-1 Weight:100] map[Port:9443 VServerGroupId:rsp-1 Weight:100]]" {
			t.Errorf("%s: vServer groups %v", version, virtual)
		}
		if got := fmt.Sprint(inner(g, "AlbServerGroups", "AlbServerGroup")); got != "[map[AlbServerGroupId:sgp-a Port:8080 Weight:100] map[AlbServerGroupId:sgp-a Port:8081 Weight:100]]" {
			t.Errorf("%s: ALB %s", version, got)
		}
		if got := fmt.Sprint(inner(g, "ServerGroups", "ServerGroup")); !strings.HasSuffix(got, "map[Port:8080 ServerGroupId:sgp-n Type:NLB Weight:50]]") {
			t.Errorf("%s: server groups %s", version, got)
		}
	}
	zones := []any{}
	for _, in := range items(t, w.call(essOld, "DescribeScalingInstances"), "ScalingInstances", "ScalingInstance") {
		zones = append(zones, in.(map[string]any)["ZoneId"])
	}
	if fmt.Sprint(zones) != "[cn-shenzhen-a cn-shenzhen-b]" {
		t.Errorf("zones %v", zones)
	}
	for _, version := range []string{albVersion, nlbVersion} {
		kind := map[string]string{albVersion: "alb", nlbVersion: "nlb"}[version]
		if b := flat(t, w.call(version, "ListLoadBalancers"), "LoadBalancers"); len(b) != 1 || b[0]["LoadBalancerId"] != kind+"-1" {
			t.Errorf("%s: balancers %v", kind, b)
		}
		l := flat(t, w.call(version, "ListListeners", "LoadBalancerIds.1", kind+"-1"), "Listeners")
		if len(l) != 1 || fmt.Sprint(w.call(version, "GetListenerAttribute", "ListenerId", l[0]["ListenerId"].(string))["ListenerPort"]) != "80" {
			t.Errorf("%s: listeners %v", kind, l)
		}
		if h := flat(t, w.call(version, "GetListenerHealthStatus", "ListenerId", l[0]["ListenerId"].(string)), "ListenerHealthStatus"); len(h) != 1 {
			t.Errorf("%s: health %v", kind, h)
		}
	}
	if r, err := w.rpc("GET", slbVersion, "DescribeLoadBalancerAttribute", "LoadBalancerId", "lb-1", "Format", "XML"); err != nil || !strings.Contains(r.body, "<BackendServers><BackendServer><Description></Description>") {
		t.Errorf("XML: %v, %v", r, err)
	}
	if h := w.call(slbVersion, "DescribeLoadBalancerHTTPListenerAttribute", "LoadBalancerId", "lb-1", "ListenerPort", "80"); h["BackendServerPort"] != 8080.0 || h["ConnectionDrain"] != nil {
		t.Errorf("listener %v", h)
	}
	calls := w.State().APICalls
	if calls["nlb.ListListeners"] != 1 || calls["alb.GetListenerHealthStatus"] != 1 || calls["slb.DescribeLoadBalancerAttribute"] != 1 {
		t.Errorf("calls %v", calls)
	}
}

// A policy allows a call of a balancer on that balancer or server group.
func TestBalancerPolicy(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: threeBalancers(2, true), NoServers: true, AccountID: "1"})
	id := w.firstInstance().ID
	servers := `[{"ServerId":"` + id + `","Port":8443}]`
	srv := func(group string) []string {
		return []string{"ServerGroupId", group, "Servers.1.ServerId", id, "Servers.1.ServerType", "Ecs", "Servers.1.Port", "8080"}
	}
	for _, c := range []struct {
		version, action, resource string
		pairs                     []string
	}{
		{slbVersion, "slb:RemoveBackendServers", "loadbalancer/lb-1", []string{"LoadBalancerId", "lb-1", "BackendServers", servers}},
		{slbVersion, "slb:RemoveVServerGroupBackendServers", "loadbalancer/lb-1", []string{"VServerGroupId", "rsp-1", "BackendServers", servers}},
		{slbVersion, "slb:DescribeVServerGroupAttribute", "loadbalancer/lb-1", []string{"VServerGroupId", "rsp-1"}},
		{slbVersion, "slb:DescribeLoadBalancerListeners", "loadbalancer/lb-1", []string{"LoadBalancerId.1", "lb-1"}},
		{slbVersion, "slb:DescribeLoadBalancers", "loadbalancer/*", nil},
		{albVersion, "alb:RemoveServersFromServerGroup", "servergroup/sgp-a", srv("sgp-a")},
		{albVersion, "alb:ListServerGroupServers", "servergroup/sgp-a", []string{"ServerGroupId", "sgp-a"}},
		{albVersion, "alb:ListServerGroupServers", "servergroup/*", []string{"ServerIds.1", id}},
		{albVersion, "alb:ListServerGroups", "servergroup/*", nil},
		{albVersion, "alb:ListServerGroups", "servergroup/sgp-a", []string{"ServerGroupIds.1", "sgp-a"}},
		{albVersion, "alb:ListAsynJobs", "*", nil},
		{albVersion, "alb:ListListeners", "loadbalancer/alb-1", []string{"LoadBalancerIds.1", "alb-1"}},
		{albVersion, "alb:GetListenerHealthStatus", "loadbalancer/alb-1", []string{"ListenerId", "lsn-alb-1-80"}},
		{nlbVersion, "nlb:UpdateServerGroupServersAttribute", "servergroup/sgp-n", srv("sgp-n")},
	} {
		service, name, _ := strings.Cut(c.action, ":")
		call := func() (reply, error) {
			if service == "nlb" {
				return w.nlb(name, c.pairs...)
			}
			return w.rpc("POST", c.version, name, c.pairs...)
		}
		arn := "acs:" + service + ":cn-shenzhen:1:" + c.resource
		for resource, status := range map[string]int{arn: 200, arn + "x": 403, "acs:ecs:*": 403} {
			w.SetPolicy(policy(t, `{"Version":"1","Statement":[{"Effect":"Allow","Action":"`+c.action+`","Resource":"`+resource+`"}]}`))
			if strings.HasSuffix(arn, "*") && resource == arn+"x" {
				continue
			}
			r, err := call()
			if err != nil || r.status != status {
				t.Errorf("%s on %s: %v, %v, want %d", c.action, resource, r, err, status)
			} else if detail, _ := decode(t, r.body)["AccessDeniedDetail"].(map[string]any); status == 403 && detail["AuthAction"] != c.action {
				t.Errorf("%s on %s: %v", c.action, resource, r)
			}
		}
	}
	w.SetPolicy(policy(t, `{"Version":"1","Statement":[]}`))
	for _, pairs := range [][]string{{"GetListenerAttribute", "ListenerId", "none"}, {"AddServersToServerGroup"}} {
		w.fails(403, "Forbidden.RAM", albVersion, pairs[0], pairs[1:]...)
	}
}

func TestBalancerFaults(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: threeBalancers(4, true)}, func(w *world) {
		id := w.firstInstance().ID
		servers := []string{"LoadBalancerId", "lb-1", "BackendServers", `[{"ServerId":"` + id + `"}]`}
		w.fault(Fault{Service: "slb", Action: "RemoveBackendServers", Kind: FaultError, Code: "ServiceIsConfiguring", Count: 1})
		w.fails(400, "ServiceIsConfiguring", slbVersion, "RemoveBackendServers", servers...)
		w.fault(Fault{Service: "slb", Kind: FaultError, Code: "ServiceIsStopping", Status: 409, Count: 1})
		w.fails(409, "ServiceIsStopping", slbVersion, "RemoveBackendServers", servers...)
		w.fault(Fault{Service: "slb", Kind: FaultThrottle, Count: 1})
		w.fails(400, "Throttling.User", slbVersion, "RemoveBackendServers", servers...)
		w.call(slbVersion, "RemoveBackendServers", servers...)

		w.fault(Fault{Service: "alb", Action: "ListServerGroupServers", Kind: FaultPartial, Count: 1})
		for _, want := range []int{4, 8} {
			if n := len(flat(t, w.call(albVersion, "ListServerGroupServers", "ServerGroupId", "sgp-a"), "Servers")); n != want {
				t.Errorf("%d listed, want %d", n, want)
			}
		}

		// A job that fails leaves all as it was.
		at := []string{"ServerGroupId", "sgp-a", "Servers.1.ServerId", id, "Servers.1.ServerType", "Ecs", "Servers.1.Port"}
		before := w.State().Members(id)
		for _, c := range [][]string{{"RemoveServersFromServerGroup", "8080"}, {"UpdateServerGroupServersAttribute", "8080", "Servers.1.Weight", "0"}, {"AddServersToServerGroup", "1"}} {
			w.fault(Fault{Service: "alb", Kind: FaultJobFails, Count: 1})
			job := w.call(albVersion, c[0], append(append(slices.Clone(at), c[1]), c[2:]...)...)["JobId"].(string)
			if fmt.Sprint(w.State().Members(id)) == fmt.Sprint(before) {
				t.Errorf("%s has not begun", c[0])
			}
			time.Sleep(3 * time.Second)
			synctest.Wait()
			j := flat(t, w.call(albVersion, "ListAsynJobs", "JobIds.1", job), "Jobs")[0]
			if after := w.State().Members(id); j["Status"] != "Failed" || j["ErrorCode"] == "" || fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("%s: %v, members %+v", c[0], j, after)
			}
		}
		for _, f := range []Fault{
			{Service: "slb", Kind: FaultError}, {Service: "slb", Kind: FaultError, Code: "X", Status: 200}, {Service: "mns", Kind: FaultError, Code: "X"},
			{Service: "slb", Kind: FaultDrop, Code: "X"}, {Service: "slb", Kind: FaultJobFails}, {Service: "slb", Action: "ListServerGroups", Kind: FaultDrop},
			{Service: "alb", Action: "AddServersToServerGroup", Kind: FaultEmpty},
		} {
			if _, err := w.InjectFault(f); err == nil {
				t.Errorf("accepted %+v", f)
			}
		}
	})
}

// The record tells in what order a server was taken out and the wait of its hook ended.
func TestServerEvents(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: threeBalancers(1, true, hookIn("ash-1", ""))}, func(w *world) {
		act, err := w.ScaleIn("asg-1", 1)
		if err != nil {
			t.Fatal(err)
		}
		id := act.Instances[0]
		at := []string{"ServerGroupId", "sgp-a", "Servers.1.ServerId", id, "Servers.1.ServerType", "Ecs", "Servers.1.Port", "8080"}
		w.call(albVersion, "UpdateServerGroupServersAttribute", append(slices.Clone(at), "Servers.1.Weight", "0")...)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		w.call(albVersion, "RemoveServersFromServerGroup", at...)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		w.complete("ash-1", act.Tokens[0], "CONTINUE")
		var got []string
		for _, e := range w.Events() {
			switch {
			case e.Type == ServerChanged && e.ServerGroup == "sgp-a" && e.Port == 8080 && e.Instance == id:
				got = append(got, fmt.Sprint(e.State, " ", *e.Weight))
			case e.Type == ActionCompleted:
				got = append(got, string(e.Type))
			}
		}
		if want := "Available 100, Configuring 100, Available 0, Removing 0, Removed 0, action_completed"; strings.Join(got, ", ") != want {
			t.Errorf("recorded %v, want %s", got, want)
		}
	})
}

// While a job of another's runs, Auto Scaling's own change waits for its turn, and the
// hooks for the change.
func TestDetachWaitsForAJob(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: threeBalancers(3, false, hookIn("ash-1", ""))}, func(w *world) {
		other := w.State().Groups[0].Instances[2].ID
		w.call(albVersion, "UpdateServerGroupServersAttribute", "ServerGroupId", "sgp-a", "Servers.1.ServerId", other, "Servers.1.ServerType", "Ecs", "Servers.1.Port", "8080", "Servers.1.Weight", "1")
		time.Sleep(time.Second)
		act, err := w.ScaleIn("asg-1", 1)
		if err != nil {
			t.Fatal(err)
		}
		statuses := func() (out []string) {
			for _, m := range w.State().Members(act.Instances[0]) {
				if m.ServerGroup == "sgp-a" {
					out = append(out, m.Status)
				}
			}
			return out
		}
		if got := fmt.Sprint(statuses()); got != "[Available Available]" {
			t.Errorf("at once: %s", got)
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := fmt.Sprint(statuses()); got != "[Removing Removing]" {
			t.Errorf("after the other job: %s", got)
		}
		if got := w.states("asg-1"); !strings.HasPrefix(got, "Removing ") {
			t.Errorf("states %s", got)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if got := w.states("asg-1"); !strings.HasPrefix(got, "Removing:Wait ") || len(statuses()) != 0 {
			t.Errorf("states %s", got)
		}
	})
}

// With drain_in_job the servers are listed as Removing for as long as they drain.
func TestDrainInJob(t *testing.T) {
	t.Parallel()
	sc := threeBalancers(2, true)
	sc.Balancers[1].DrainInJob = true
	bubble(t, Options{Scenario: sc}, func(w *world) {
		id := w.firstInstance().ID
		w.call(albVersion, "RemoveServersFromServerGroup", "ServerGroupId", "sgp-a", "Servers.1.ServerId", id, "Servers.1.ServerType", "Ecs", "Servers.1.Port", "8080")
		time.Sleep(20*time.Second - time.Millisecond)
		listed := func() string {
			return brief(flat(t, w.call(albVersion, "ListServerGroupServers", "ServerGroupId", "sgp-a"), "Servers"), id)
		}
		if got := listed(); got != "8080 100 Removing, 8081 100 Available" {
			t.Errorf("shortly before the timeout: %s", got)
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if got := listed(); got != "8081 100 Available" {
			t.Errorf("after the timeout: %s", got)
		}
	})
}

// Once an instance is released it is nowhere any more, not even where Auto Scaling does
// not know of it.
func TestReleasedInstanceIsNoMember(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: threeBalancers(2, true, hookIn("ash-1", ""))}, func(w *world) {
		act, err := w.ScaleIn("asg-1", 1)
		if err != nil {
			t.Fatal(err)
		}
		id := act.Instances[0]
		if got := w.State().Members(id); len(got) != 6 {
			t.Errorf("%d memberships while the hook waits, want all 6", len(got))
		}
		w.complete("ash-1", act.Tokens[0], "CONTINUE")
		if got := w.State().Members(id); len(got) != 0 {
			t.Errorf("a released instance is a member: %+v", got)
		}
		if err := w.SetHealth(id, true); err == nil {
			t.Error("a released instance has its health set")
		}
	})
}
