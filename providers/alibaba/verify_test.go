package alibaba

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/services/ess"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

func TestDecide(t *testing.T) {
	t.Parallel()
	in := testAction()
	in.Instances = []messages.InstanceID{"i-a", "i-b"}
	out := in
	out.Transition = messages.ScaleOut
	listed := func(status string, ids ...string) []ess.LifecycleAction {
		other := ess.LifecycleAction{LifecycleHookId: "ash-other", LifecycleActionToken: string(in.Token), LifecycleActionStatus: "Completed"}
		return []ess.LifecycleAction{other, {LifecycleHookId: string(in.Hook), LifecycleActionToken: string(in.Token), LifecycleActionStatus: status, InstanceIds: ess.InstanceIds{InstanceId: ids}}}
	}
	is := func(group, state string) record {
		return record{known: &ess.ScalingInstance{ScalingGroupId: group, LifecycleState: state}}
	}
	const group = "asg-bp1example"
	wait, gone := is(group, "Removing:Wait"), record{}
	broken := errors.New("broken")
	type records = map[messages.InstanceID]record
	for _, c := range []struct {
		name   string
		action messages.Action
		listed []ess.LifecycleAction
		found  records
		state  providers.State
		reason string
	}{
		{"not listed", in, nil, nil, providers.Unlisted, "does not list the action in activity asa-bp1example"},
		{"another hook's", in, listed("Pending", "i-a", "i-b")[:1], nil, providers.Unlisted, "does not list"},
		{"completed", in, listed("Completed", "i-a", "i-b"), nil, providers.Over, "as Completed"},
		{"timed out", in, listed("TIMEOUT", "i-a", "i-b"), nil, providers.Over, "as TIMEOUT"},
		{"over, though the instances cannot be read", in, listed("Completed"), records{"i-a": {err: broken}}, providers.Over, ""},
		{"unknown status", in, listed("Paused", "i-a", "i-b"), nil, providers.Unlisted, `"Paused"`},
		{"pending", in, listed("Pending", "i-a", "i-b"), records{"i-a": wait, "i-b": is(group, "terminating:wait")}, providers.Pending, "with 2 instances"},
		{"a message that names too much", in, listed("Pending", "i-a"), records{"i-a": wait, "i-b": wait}, providers.Mismatch, "i-b is not one of the action's"},
		{"a message that names too little", in, listed("Pending", "i-a", "i-b", "i-c"), records{"i-a": wait, "i-b": wait, "i-c": wait}, providers.Pending, "with 3 instances"},
		{"another group", in, listed("Pending", "i-a", "i-b"), records{"i-a": wait, "i-b": is("asg-other", "Removing:Wait")}, providers.Mismatch, "i-b is in group asg-other"},
		{"no group", in, listed("Pending", "i-a", "i-b"), records{"i-a": wait, "i-b": is("", "Removing:Wait")}, providers.Mismatch, "i-b is in group"},
		{"in service", in, listed("Pending", "i-a", "i-b"), records{"i-a": is(group, "InService"), "i-b": wait}, providers.Mismatch, "i-a is InService and does not wait"},
		{"the other transition", in, listed("Pending", "i-a", "i-b"), records{"i-a": is(group, "Pending:Wait"), "i-b": wait}, providers.Mismatch, "does not wait"},
		{"lagging", in, listed("Pending", "i-a", "i-b"), records{"i-a": is(group, "Removing"), "i-b": wait}, providers.Unclear, "i-a is Removing and does not wait yet"},
		{"lagging and wrong", in, listed("Pending", "i-a", "i-b"), records{"i-a": is(group, "Removing"), "i-b": is(group, "Protected")}, providers.Mismatch, "Protected"},
		{"one gone", in, listed("Pending", "i-a", "i-b"), records{"i-a": wait, "i-b": gone}, providers.Pending, "1 of them gone"},
		{"scale out", out, listed("Pending", "i-a", "i-b"), records{"i-a": is(group, "Pending:Wait"), "i-b": is(group, "Adding:Wait")}, providers.Pending, ""},
		{"scale out, lagging", out, listed("Pending", "i-a", "i-b"), records{"i-a": is(group, "Pending"), "i-b": is(group, "Pending:Wait")}, providers.Unclear, ""},
		{"scale out, leaving", out, listed("Pending", "i-a", "i-b"), records{"i-a": wait, "i-b": wait}, providers.Mismatch, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := decide(c.action, c.listed, func(id messages.InstanceID) record { return c.found[id] })
			if v.Err != nil || v.State != c.state || !strings.Contains(v.Reason, c.reason) || v.Reason == "" {
				t.Errorf("%+v, want %s with %q", v, c.state, c.reason)
			}
			if (len(v.Instances) > 0) != (v.State == providers.Pending) {
				t.Errorf("%s has %d instances", v.State, len(v.Instances))
			}
			for _, i := range v.Instances {
				if i.Gone != (c.found[i.ID].known == nil) || i.Action.Token != in.Token {
					t.Errorf("instance %+v", i)
				}
			}
		})
	}
	v := decide(in, listed("Pending", "i-a", "i-b"), func(messages.InstanceID) record { return record{err: broken} })
	if !errors.Is(v.Err, broken) || v.State != "" {
		t.Errorf("unreadable instances: %+v", v)
	}
}

// world answers the describing calls from tables.
type world struct {
	actions   map[string][]string // activity -> "hook token status ids"
	instances map[string]string   // id -> "group state ip", of ESS
	machines  map[string]string   // id -> "status ip", of ECS
	refuse    func(p seen) string // a refusal instead, if not ""
	page      int                 // size of a page of actions
	missing   int                 // how much more each answer counts than it lists
}

func (w world) answer(x seen) string {
	if w.refuse != nil {
		if out := w.refuse(x); out != "" {
			return out
		}
	}
	p := x.params()
	switch p.Get("Action") {
	case "DescribeLifecycleActions":
		return w.describeActions(p.Get("ScalingActivityId"), p.Get("NextToken"))
	case "DescribeScalingInstances":
		var items []string
		for i := 1; p.Get(fmt.Sprint("InstanceId.", i)) != ""; i++ {
			id := p.Get(fmt.Sprint("InstanceId.", i))
			if f := strings.Fields(w.instances[id]); len(f) == 3 {
				items = append(items, fmt.Sprintf(`{"InstanceId":%q,"ScalingGroupId":%q,"LifecycleState":%q,"PrivateIpAddress":%q,"ZoneId":"z"}`, id, f[0], f[1], f[2]))
			}
		}
		return rpcOK(fmt.Sprintf(`,"TotalCount":"%d","ScalingInstances":{"ScalingInstance":[%s]}`, len(items)+w.missing, strings.Join(items, ",")))
	case "DescribeInstances":
		var ids, items []string
		if err := json.Unmarshal([]byte(p.Get("InstanceIds")), &ids); err != nil || len(ids) > 100 {
			return rpcRefusal(400, "InvalidParameter", "")
		}
		for _, id := range ids {
			if f := strings.Fields(w.machines[id]); len(f) == 2 {
				items = append(items, fmt.Sprintf(`{"InstanceId":%q,"Status":%q,"ZoneId":"z","VpcAttributes":{"PrivateIpAddress":{"IpAddress":[%q]}}}`, id, f[0], f[1]))
			}
		}
		return rpcOK(fmt.Sprintf(`,"TotalCount":%d,"Instances":{"Instance":[%s]}`, len(items)+w.missing, strings.Join(items, ",")))
	}
	return rpcRefusal(404, "InvalidAction.NotFound", "")
}

func (w world) describeActions(activity, next string) string {
	from, size := 0, max(w.page, 1)
	_, _ = fmt.Sscan(next, &from)
	all := w.actions[activity]
	to := min(from+size, len(all))
	var items []string
	for _, line := range all[from:to] {
		f := strings.Fields(line)
		items = append(items, fmt.Sprintf(`{"LifecycleHookId":%q,"LifecycleActionToken":%q,"LifecycleActionStatus":%q,"InstanceIds":{"InstanceId":["%s"]}}`,
			f[0], f[1], f[2], strings.ReplaceAll(f[3], ",", `","`)))
	}
	token := ""
	if to < len(all) {
		token = fmt.Sprint(to)
	}
	return rpcOK(fmt.Sprintf(`,"TotalCount":%d,"NextToken":%q,"LifecycleActions":{"LifecycleAction":[%s]}`, len(all)+w.missing, token, strings.Join(items, ",")))
}

func countActions(s *scripted) map[string]int {
	n := map[string]int{}
	for _, x := range s.requests() {
		n[x.params().Get("Action")]++
	}
	return n
}

func TestVerifyCallsLittle(t *testing.T) {
	t.Parallel()
	w := world{actions: map[string][]string{}, instances: map[string]string{}}
	actions := make([]messages.Action, 16)
	for i := range actions {
		a := testAction()
		a.Token, a.Activity = messages.Token(fmt.Sprint("T", i)), messages.ActivityID(fmt.Sprint("asa-", i))
		a.Instances = []messages.InstanceID{messages.InstanceID(fmt.Sprint("i-", i))}
		w.actions[string(a.Activity)] = []string{fmt.Sprintf("ash-bp1example T%d Pending i-%d", i, i)}
		w.instances[fmt.Sprint("i-", i)] = "asg-bp1example Removing:Wait 10.0.0.7"
		actions[i] = a
	}
	delete(w.instances, "i-9")
	s := loopback(t, w.answer)
	got := newScaling(t, options(s.url())).Verify(t.Context(), actions)
	for i, v := range got {
		if v.Err != nil || v.State != providers.Pending || len(v.Instances) != 1 || v.Instances[0].ID != actions[i].Instances[0] {
			t.Fatalf("%d: %+v", i, v)
		}
		if in := v.Instances[0]; in.Gone != (i == 9) || i != 9 && (in.PrivateIP != netip.MustParseAddr("10.0.0.7") || in.Zone != "z" || in.State != "Removing:Wait") {
			t.Errorf("%d: instance %+v", i, in)
		}
	}
	if n := countActions(s); n["DescribeScalingInstances"] != 1 || n["DescribeLifecycleActions"] != 16 || n["DescribeInstances"] != 1 || len(n) != 3 {
		t.Errorf("calls %v", n)
	}
}

// TestForgedNotificationsCostOneCall: what a message names is not asked about before the
// cloud has listed it, however many it names.
func TestForgedNotificationsCostOneCall(t *testing.T) {
	t.Parallel()
	w := world{actions: map[string][]string{"asa-bp1example": {"ash-bp1example C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99 Pending i-0"}},
		instances: map[string]string{"i-0": "asg-bp1example Removing:Wait 10.0.0.7"}}
	s := loopback(t, w.answer)
	real, forged := testAction(), testAction()
	forged.Token = "00000000-0000-0000-0000-000000000000"
	for _, a := range []*messages.Action{&real, &forged} {
		a.Instances = nil
		for i := range 5000 {
			a.Instances = append(a.Instances, messages.InstanceID(fmt.Sprint("i-", i)))
		}
	}
	got := newScaling(t, options(s.url())).Verify(t.Context(), []messages.Action{forged, real})
	if got[0].State != providers.Unlisted || got[1].State != providers.Mismatch {
		t.Errorf("%+v", got)
	}
	if n := countActions(s); n["DescribeLifecycleActions"] != 1 || n["DescribeScalingInstances"] != 1 || len(n) != 2 {
		t.Errorf("calls %v", n)
	}
}

// TestAPageOfMoreThanWasAskedFor is no page of ESS.
func TestAPageOfMoreThanWasAskedFor(t *testing.T) {
	t.Parallel()
	var lines []string
	for i := range essPage + 1 {
		lines = append(lines, fmt.Sprintf("ash-bp1example T%d Completed i-1", i))
	}
	w := world{page: essPage + 1, actions: map[string][]string{"asa-bp1example": lines}}
	s := loopback(t, w.answer)
	v := newScaling(t, options(s.url())).Verify(t.Context(), []messages.Action{testAction()})[0]
	wantKind(t, v.Err, providers.ErrUnavailable)
}

func TestVerifyPagesAndUnnamedInstances(t *testing.T) {
	t.Parallel()
	w := world{page: 2, actions: map[string][]string{"asa-bp1example": {
		"ash-1 X Completed i-x", "ash-2 X Pending i-x", "ash-3 X Pending i-x",
		"ash-bp1example C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99 Pending i-bp1a,i-more",
	}}, instances: map[string]string{"i-bp1a": "asg-bp1example Removing:Wait -", "i-more": "asg-bp1example Removing:Wait 10.0.0.8"}}
	s := loopback(t, w.answer)
	a := testAction()
	nameless := a
	nameless.Activity = ""
	got := newScaling(t, options(s.url())).Verify(t.Context(), []messages.Action{a, nameless, a})
	for _, i := range []int{0, 2} {
		if got[i].State != providers.Pending || len(got[i].Instances) != 2 || got[i].Instances[1].PrivateIP.String() != "10.0.0.8" {
			t.Errorf("%d: %+v", i, got[i])
		}
	}
	if got[1].State != providers.Mismatch {
		t.Errorf("without activity: %+v", got[1])
	}
	if n := countActions(s); n["DescribeLifecycleActions"] != 2 || n["DescribeScalingInstances"] != 1 {
		t.Errorf("calls %v", n)
	}
	for _, x := range s.requests() {
		if p := x.params(); p.Get("Action") == "DescribeInstances" {
			continue // ECS has pages of its own
		} else if p.Get("ScalingGroupId") != "" || p.Get("PageSize") != "" && p.Get("PageSize") != "50" || p.Get("MaxResults") != "" && p.Get("MaxResults") != "50" {
			t.Errorf("parameters %v", p)
		}
	}
}

// An answer that counts more than it lists proves what is there and not what is missing;
// and an empty one is no proof against an instance that waits.
func TestListingsWithHoles(t *testing.T) {
	t.Parallel()
	const pending = "ash-bp1example C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99 Pending i-bp1a"
	other := []string{"ash-other T Pending i-bp1a"}
	waiting := map[string]string{"i-bp1a": "asg-bp1example Removing:Wait 10.0.0.8"}
	exists := map[string]string{"i-bp1a": "Running 10.0.0.8"}
	a := testAction()
	for name, c := range map[string]struct {
		world
		listed []string
		state  providers.State // "": no answer
	}{
		"all there":                       {world{instances: waiting}, []string{pending}, providers.Pending},
		"more is counted":                 {world{instances: waiting, missing: 1}, []string{pending}, providers.Pending},
		"the action is missing":           {world{instances: waiting, missing: 1}, other, ""},
		"all actions are missing":         {world{instances: waiting, missing: 1}, nil, ""},
		"the instance is missing":         {world{missing: 1}, []string{pending}, ""},
		"the instance is missing in ESS":  {world{machines: exists, missing: 1}, []string{pending}, ""},
		"nothing, and it waits":           {world{instances: waiting}, nil, providers.Unclear},
		"nothing, and it exists":          {world{machines: exists}, nil, providers.Unclear},
		"nothing, and it is in service":   {world{instances: map[string]string{"i-bp1a": "asg-bp1example InService 10.0.0.8"}}, nil, providers.Unlisted},
		"nothing, and it waits elsewhere": {world{instances: map[string]string{"i-bp1a": "asg-other Removing:Wait 10.0.0.8"}}, nil, providers.Unlisted},
		"nothing, and it is gone":         {world{}, nil, providers.Unlisted},
		"others, and it waits":            {world{instances: waiting}, other, providers.Unlisted},
	} {
		c.actions = map[string][]string{"asa-bp1example": c.listed}
		s := loopback(t, c.answer)
		v := newScaling(t, options(s.url())).Verify(t.Context(), []messages.Action{a})[0]
		if v.State != c.state || (v.Err == nil) != (c.state != "") || v.Err == nil && v.Reason == "" {
			t.Errorf("%s: %+v, want %q", name, v, c.state)
		}
		if inGroup := c.state == providers.Pending && c.instances != nil; v.InGroup != inGroup {
			t.Errorf("%s: in group: %v", name, v.InGroup)
		}
	}
}

func TestVerifyFailsOnlyWhereItMust(t *testing.T) {
	t.Parallel()
	w := world{actions: map[string][]string{}, instances: map[string]string{}, page: 1}
	var actions []messages.Action
	for i := range 30 {
		a := testAction()
		a.Token, a.Activity = messages.Token(fmt.Sprint("T", i)), messages.ActivityID(fmt.Sprintf("asa-%02d", i))
		id := fmt.Sprintf("i-%02d", i)
		a.Instances = []messages.InstanceID{messages.InstanceID(id)}
		w.actions[string(a.Activity)] = []string{fmt.Sprintf("ash-bp1example T%d Pending %s", i, id)}
		w.instances[id] = "asg-bp1example Removing:Wait 10.0.0.7"
		actions = append(actions, a)
	}
	w.actions["asa-28"] = []string{"ash-bp1example T28 Completed i-28"}
	w.refuse = func(x seen) string {
		switch p := x.params(); {
		case p.Get("InstanceId.1") == "i-22", p.Get("ScalingActivityId") == "asa-03":
			return rpcRefusal(403, "Forbidden.RAM", "")
		case p.Get("ScalingActivityId") == "asa-04":
			return rpcRefusal(404, "InvalidScalingActivityId.NotFound", "")
		}
		return ""
	}
	s := loopback(t, w.answer)
	for i, v := range newScaling(t, options(s.url())).Verify(t.Context(), actions) {
		switch {
		case i == 28: // it is over, whatever its instances do
			if v.State != providers.Over {
				t.Errorf("%d: %+v", i, v)
			}
		case i == 3, i >= 22: // the second 20 that are looked up: those of 3, 4 and 28 are not
			if !errors.Is(v.Err, providers.ErrDenied) || v.State != "" {
				t.Errorf("%d: %+v", i, v)
			}
		case i == 4:
			if v.State != providers.Unlisted {
				t.Errorf("%d: %+v", i, v)
			}
		default:
			if v.State != providers.Pending {
				t.Errorf("%d: %+v", i, v)
			}
		}
	}
	if n := countActions(s); n["DescribeScalingInstances"] != 2 {
		t.Errorf("calls %v", n)
	}
	if got := newScaling(t, options(s.url())).Verify(t.Context(), nil); len(got) != 0 {
		t.Errorf("nothing to verify gives %v", got)
	}
}

// Only a refusal that is about the activity says that there is none: ESS says not found of the
// region, too, when the endpoint is another region's, and the message was deleted for that.
func TestNotFoundIsNotAlwaysTheActivity(t *testing.T) {
	t.Parallel()
	for code, unknown := range map[string]bool{
		"InvalidScalingActivityId.NotFound": true, "InvalidScalingActivity.NotFound": true, "invalidscalingactivityid.notfound": true,
		"InvalidRegionId.NotFound": false, "InvalidScalingGroupId.NotFound": false, "ResourceNotFound.Region": false, "InvalidApi.NotFound": false,
	} {
		w := world{refuse: func(x seen) string {
			if x.params().Get("Action") == "DescribeScalingActivities" {
				return rpcOK(`,"TotalCount":1,"ScalingActivities":{"ScalingActivity":[{"ScalingActivityId":"asa-bp1example"}]}`)
			}
			return rpcRefusal(404, code, "")
		}}
		s := loopback(t, w.answer)
		e := newScaling(t, options(s.url()))
		a := []messages.Action{testAction()}
		for what, v := range map[string]providers.Verification{"Verify": e.Verify(t.Context(), a)[0], "Ended": e.Ended(t.Context(), a)[0]} {
			if (v.State == providers.Unlisted) != unknown || (v.Err == nil) != unknown || v.Err != nil && !strings.Contains(v.Err.Error(), code) {
				t.Errorf("%s: %s gives %+v", code, what, v)
			}
		}
		if got, err := e.Waiting(t.Context(), "asg-bp1example"); len(got) != 0 || (err == nil) != unknown {
			t.Errorf("%s: %v wait, %v", code, got, err)
		}
	}
	s := loopback(t, func(seen) string { return rpcRefusal(404, "InvalidRegionId.NotFound", "") })
	v := newScaling(t, options(s.url())).Verify(t.Context(), []messages.Action{testAction()})[0]
	if e := wantKind(t, v.Err, providers.ErrNotFound); !strings.Contains(e.Hint, "check the region") || !strings.Contains(e.Hint, s.url()) {
		t.Errorf("hint %q", e.Hint)
	}
}

func TestAListingInACircleEnds(t *testing.T) {
	t.Parallel()
	s := loopback(t, func(x seen) string {
		return rpcOK(fmt.Sprintf(`,"NextToken":"%d","LifecycleActions":{"LifecycleAction":[]}`, x.number%2))
	})
	e := newScaling(t, options(s.url()))
	if all, _, err := e.list(t.Context(), "cn-hangzhou", "asa-1"); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	if n := len(s.requests()); n != essMaxPages {
		t.Errorf("%d pages", n)
	}
}

func TestInstances(t *testing.T) {
	t.Parallel()
	w := world{instances: map[string]string{}}
	var ids []messages.InstanceID
	for i := range 45 {
		ids = append(ids, messages.InstanceID(fmt.Sprint("i-", i)))
		w.instances[fmt.Sprint("i-", i)] = "asg-1 InService 10.0.0." + fmt.Sprint(i)
	}
	ids = append(ids, "i-gone", "i-0")
	w.refuse = func(x seen) string {
		if x.params().Get("RegionId") == "cn-denied" {
			return rpcRefusal(403, "NoPermission", "")
		}
		return ""
	}
	s := loopback(t, w.answer)
	e := newScaling(t, options(s.url()))
	got, err := e.Instances(t.Context(), "", ids)
	if err != nil || len(got) != len(ids) {
		t.Fatalf("%d instances, %v", len(got), err)
	}
	for i, in := range got {
		if in.ID != ids[i] || in.Gone != (in.ID == "i-gone") || !in.Gone && in.State != "InService" {
			t.Errorf("%d: %+v", i, in)
		}
	}
	if n := countActions(s); n["DescribeScalingInstances"] != 3 || n["DescribeInstances"] != 1 {
		t.Errorf("%v calls for 46 instances, one of which ESS does not know", n)
	}
	_, err = e.Instances(t.Context(), "cn-denied", ids[:1])
	if e := wantKind(t, err, providers.ErrDenied); !strings.Contains(e.Hint, "ess:DescribeScalingInstances") {
		t.Errorf("hint %q", e.Hint)
	}
}

// What ESS does not tell of an instance, ECS does: where it is, or that it still exists.
func TestWhatESSDoesNotTell(t *testing.T) {
	t.Parallel()
	a := testAction()
	a.Instances = []messages.InstanceID{"i-bare", "i-unlisted", "i-gone"}
	w := world{
		actions:   map[string][]string{"asa-bp1example": {"ash-bp1example C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99 Pending i-bare,i-unlisted,i-gone"}},
		instances: map[string]string{"i-bare": "asg-bp1example Removing:Wait -"},
		machines:  map[string]string{"i-bare": "Running 10.0.0.1", "i-unlisted": "Running 10.0.0.2"},
	}
	s := loopback(t, w.answer)
	v := newScaling(t, options(s.url())).Verify(t.Context(), []messages.Action{a})[0]
	want := []messages.Instance{
		{ID: "i-bare", PrivateIP: netip.MustParseAddr("10.0.0.1"), Zone: "z", State: "Removing:Wait", Action: a},
		{ID: "i-unlisted", PrivateIP: netip.MustParseAddr("10.0.0.2"), Zone: "z", State: "Running", Action: a},
		{ID: "i-gone", Gone: true, Action: a},
	}
	if v.State != providers.Pending || !reflect.DeepEqual(v.Instances, want) {
		t.Errorf("got %+v, want %+v", v, want)
	}
	if n := countActions(s); n["DescribeInstances"] != 1 {
		t.Errorf("calls %v", n)
	}
}

// An action that is over, or a message that lies, is no reason to ask ECS. And where
// ECS gives no answer, nobody guesses.
func TestECSIsAskedOnlyForPendingActions(t *testing.T) {
	t.Parallel()
	a := testAction()
	a.Instances = []messages.InstanceID{"i-unlisted"}
	w := world{actions: map[string][]string{"asa-bp1example": {"ash-bp1example C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99 Completed i-unlisted"}}}
	s := loopback(t, w.answer)
	if v := newScaling(t, options(s.url())).Verify(t.Context(), []messages.Action{a})[0]; v.State != providers.Over {
		t.Errorf("over: %+v", v)
	}
	if n := countActions(s); n["DescribeInstances"] != 0 {
		t.Errorf("calls %v", n)
	}
	w.actions["asa-bp1example"] = []string{"ash-bp1example C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99 Pending i-unlisted"}
	w.refuse = func(x seen) string {
		if x.params().Get("Action") == "DescribeInstances" {
			return rpcRefusal(403, "Forbidden.RAM", "")
		}
		return ""
	}
	s = loopback(t, w.answer)
	v := newScaling(t, options(s.url())).Verify(t.Context(), []messages.Action{a})[0]
	if e := wantKind(t, v.Err, providers.ErrDenied); !strings.Contains(e.Hint, "ecs:DescribeInstances") {
		t.Errorf("hint %q", e.Hint)
	}
}

func TestMachineAddress(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		`{"VpcAttributes":{"PrivateIpAddress":{"IpAddress":["10.0.0.1"]}},"InnerIpAddress":{"IpAddress":["10.9.9.9"]}}`:                      "10.0.0.1",
		`{"VpcAttributes":{"PrivateIpAddress":{"IpAddress":[]}},"NetworkInterfaces":{"NetworkInterface":[{"PrimaryIpAddress":"10.0.0.2"}]}}`: "10.0.0.2",
		`{"InnerIpAddress":{"IpAddress":["10.0.0.3"]}}`:                       "10.0.0.3",
		`{"VpcAttributes":{"PrivateIpAddress":{"IpAddress":["no address"]}}}`: "invalid IP",
		`{}`: "invalid IP",
	} {
		var m machine
		if err := json.Unmarshal([]byte(body), &m); err != nil {
			t.Fatal(err)
		}
		if got := m.address().String(); got != want {
			t.Errorf("%s: %s, want %s", body, got, want)
		}
	}
}

func TestHook(t *testing.T) {
	t.Parallel()
	s := loopback(t, func(x seen) string {
		if x.number > 2 {
			return rpcRefusal(404, "InvalidScalingGroupId.NotFound", "The specified scaling group does not exist.")
		}
		return rpcOK(`,"LifecycleHooks":{"LifecycleHook":[{"LifecycleHookId":"ash-1","LifecycleHookName":"drain","ScalingGroupId":"asg-1",` +
			`"LifecycleTransition":"SCALE_IN","DefaultResult":"CONTINUE","HeartbeatTimeout":"600"}]}`)
	})
	e := newScaling(t, options(s.url()))
	h, err := e.Hook(t.Context(), "asg-1", "ash-1")
	want := providers.Hook{ID: "ash-1", Name: "drain", Group: "asg-1", Transition: messages.ScaleIn, Timeout: 10 * time.Minute, DefaultResult: messages.Continue}
	if err != nil || h != want {
		t.Errorf("%+v, %v", h, err)
	}
	if p := s.requests()[0].params(); p.Get("ScalingGroupId") != "asg-1" || p.Get("LifecycleHookId.1") != "ash-1" {
		t.Errorf("parameters %v", p)
	}
	for range 2 { // a hook of another name, then no such group
		_, err = e.Hook(t.Context(), "asg-1", "ash-2")
		wantKind(t, err, providers.ErrNotFound)
	}
}
