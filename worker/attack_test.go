package worker_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

// besieged is a cloud with true actions of two groups that the worker knows, with two
// hooks on one of them, and one of a group that it does not know.
type besieged struct {
	*cloud
	r *running
	// web and backup are actions of the two hooks of groupID, db another group's, and
	// foreign one that nobody is configured for. Each hook has two on AWS, one an instance.
	web, backup, db, foreign simulator.ActionState
	// truth are all but the foreign ones.
	truth []simulator.ActionState
	// victim and dbVictim are in service.
	victim, dbVictim string
}

const (
	dbGroup, foreignGroup             = "asg-db", "asg-foreign"
	backupHook, dbHook, strangersHook = "ash-backup", "ash-db", "ash-strangers"
)

// besiege starts the worker behind the fault, and then lets the hooks fire.
func besiege(t *testing.T, on where, faults ...simulator.Fault) *besieged {
	t.Helper()
	return besiegeAt(t, on, queueName, faults...)
}

// besiegeAt lets the hooks notify that queue; "": nobody, so that a test can do it.
func besiegeAt(t *testing.T, on where, queue string, faults ...simulator.Fault) *besieged {
	t.Helper()
	s := scenario(8, false)
	hook := simulator.HookConfig{Transition: "scale_in", Queue: queue, HeartbeatTimeout: time.Hour, DefaultResult: "ROLLBACK"}
	with := func(id string) simulator.HookConfig { h := hook; h.ID = id; return h }
	out := with("ash-out")
	out.Transition = "scale_out"
	s.ScalingGroups[0].Hooks = []simulator.HookConfig{with(hookID), with(backupHook), out}
	silent := with(strangersHook)
	silent.Queue, silent.HeartbeatTimeout = "", 6*time.Hour
	s.ScalingGroups = append(s.ScalingGroups,
		simulator.GroupConfig{ID: dbGroup, Instances: 3, Hooks: []simulator.HookConfig{with(dbHook)}},
		simulator.GroupConfig{ID: foreignGroup, Instances: 3, Hooks: []simulator.HookConfig{silent}})
	b := &besieged{cloud: newCloud(t, on(s))}
	for _, f := range faults {
		b.inject(f)
	}
	toOut := plan(time.Hour, takes(time.Minute))
	toOut.Transition = messages.ScaleOut
	b.r = b.start(settings{
		groups: []string{groupID, dbGroup}, plans: []worker.Plan{plan(time.Hour, takes(3*time.Minute)), toOut},
		change: func(o *worker.Options) {
			o.MaxReceives = 1000
			if b.name == messages.AWS {
				o.Queues[0].Groups[0].Account = simulator.DefaultAWSAccountID
			}
		},
	})
	st := b.State()
	b.victim, b.dbVictim = st.Groups[0].Instances[7].ID, st.Groups[1].Instances[2].ID
	for _, g := range []string{groupID, dbGroup, foreignGroup} {
		if _, err := b.ScaleIn(g, 2); err != nil {
			t.Fatal(err)
		}
	}
	each := map[messages.Cloud]int{messages.Alibaba: 1, messages.AWS: 2}[b.name]
	b.until(time.Minute, "the hooks fire", func() bool { return len(b.State().Actions) == 4*each })
	for _, a := range b.State().Actions {
		*map[string]*simulator.ActionState{hookID: &b.web, backupHook: &b.backup, dbHook: &b.db, strangersHook: &b.foreign}[a.Hook] = a
		if a.Hook != strangersHook {
			b.truth = append(b.truth, a)
		}
	}
	return b
}

// telling is the notification of an action, as the cloud sends it.
func (c *cloud) telling(a simulator.ActionState) string {
	if c.name == messages.AWS {
		return hookTelling(a, nil)
	}
	return telling(a, nil)
}

// hookTelling is telling on AWS.
func hookTelling(a simulator.ActionState, change map[string]any) string {
	content := map[string]any{
		"LifecycleActionToken": a.Token, "LifecycleHookName": a.Hook, "AutoScalingGroupName": a.Group, "EC2InstanceId": a.Instances[0],
	}
	maps.Copy(content, change)
	return hookMessage(content)
}

// telling is the notification of an action, with changed fields.
func telling(a simulator.ActionState, change map[string]any) string {
	content := map[string]any{
		"lifecycleActionToken": a.Token, "lifecycleHookId": a.Hook, "scalingActivityId": a.Activity,
		"scalingGroupId": a.Group, "instanceIds": a.Instances,
	}
	for k, v := range change {
		content[k] = v
	}
	return notification(content)
}

// lie is one message that must not have an effect.
type lie struct {
	name string
	body string
	// event and reason are how its last delivery is closed; empty: acked or stale.
	event  audit.Event
	reason string
	// patient: it may be put off before, since it tells of an action that is under way.
	patient bool
}

func (l lie) closedBy(e audit.Event) bool {
	return e == l.event || l.event == "" && (e == audit.Acked || e == audit.Stale)
}

// lies are those that there are about the cloud's actions.
func (b *besieged) lies() []lie {
	if b.name == messages.AWS {
		return b.liesOnAWS()
	}
	const token = "C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99"
	shifted := func(a simulator.ActionState, at string) string {
		return strings.Replace(telling(a, map[string]any{"lifecycleHookName": "x"}), `"product"`, `"time":"`+at+`","product"`, 1)
	}
	region := strings.Replace(telling(b.web, nil), "cn-shenzhen", "cn-hangzhou", 1)
	return []lie{
		{"a token that was made up", telling(b.web, map[string]any{"lifecycleActionToken": token}), audit.Stale, "does not list the action", false},
		{"one for an instance in service", telling(b.web, map[string]any{"lifecycleActionToken": token, "instanceIds": []string{b.victim}}), audit.Stale, "does not list the action", false},
		{"all of it made up", notification(map[string]any{"instanceIds": []string{b.victim}}), audit.Stale, "does not list the action", false},
		{"an instance that never was", notification(nil), audit.Stale, "does not list the action", false},
		{"another instance", telling(b.web, map[string]any{"instanceIds": []string{b.victim}}), audit.Stale, b.victim + " is not one of the action's", false},
		{"an instance more", telling(b.web, map[string]any{"instanceIds": append(slices.Clone(b.web.Instances), b.victim)}), audit.Stale, b.victim + " is not one of the action's", false},
		{"an instance of another group", telling(b.web, map[string]any{"instanceIds": []string{b.dbVictim}}), audit.Stale, b.dbVictim + " is not one of the action's", false},
		{"waiting instances of another group", telling(b.web, map[string]any{"instanceIds": b.db.Instances}), audit.Stale, "is not one of the action's", false},
		{"another hook's token", telling(b.web, map[string]any{"lifecycleActionToken": b.backup.Token}), audit.Stale, "does not list the action", false},
		{"another hook of the token", telling(b.web, map[string]any{"lifecycleHookId": backupHook}), audit.Stale, "does not list the action", false},
		{"a hook that nobody has", telling(b.web, map[string]any{"lifecycleHookId": "ash-nobodys"}), audit.Stale, "does not list the action", false},
		{"another group's action under our name", telling(b.db, map[string]any{"scalingGroupId": groupID}), audit.Stale, "is in group asg-db, not asg-web", false},
		{"our action under another group's name", telling(b.web, map[string]any{"scalingGroupId": dbGroup}), audit.Stale, "is in group asg-web, not asg-db", false},
		{"a foreign action under our name", telling(b.foreign, map[string]any{"scalingGroupId": groupID}), audit.Stale, "is in group asg-foreign, not asg-web", false},
		{"another group's activity", telling(b.web, map[string]any{"scalingActivityId": b.db.Activity}), audit.Stale, "does not list the action", false},
		{"the other transition", telling(b.web, map[string]any{"lifecycleTransition": "SCALE_OUT"}), audit.Stale, "Removing:Wait and does not wait", false},
		// What the cloud can neither confirm nor rule out while the instance waits.
		{"an activity that never was", telling(b.web, map[string]any{"scalingActivityId": "asa-madeup"}), audit.Stale, "does not list the action", true},
		{"an instance fewer", telling(b.web, map[string]any{"instanceIds": b.web.Instances[:1]}), "", "", true},
		// These are the truth but for their time.
		{"a time long ago", shifted(b.db, "1970-01-01T00:00:00Z"), audit.Ignored, "a second message for an action that is held", false},
		{"a time to come", shifted(b.db, "2999-12-31T23:59:59Z"), audit.Ignored, "a second message for an action that is held", false},
		// Left to workers that know it.
		{"a foreign action", telling(b.foreign, nil), audit.Unrouted, "no config names the group asg-foreign", true},
		{"another region", region, audit.Unrouted, "no config names the group asg-web in cn-hangzhou", true},
	}
}

// liesOnAWS are those that can be told from the truth there: what waits is known of the
// instances alone, see TestAWSMadeUpTokens.
func (b *besieged) liesOnAWS() []lie {
	const token, launching = "4d9c1f7e-52b8-4a06-9e41-7c0d5b2a6f18", "autoscaling:EC2_INSTANCE_LAUNCHING"
	with := func(a simulator.ActionState, changes ...string) string {
		change := map[string]any{}
		for i := 0; i < len(changes); i += 2 {
			change[changes[i]] = changes[i+1]
		}
		return hookTelling(a, change)
	}
	detail := hookTelling(b.web, nil)
	region := fmt.Sprintf(`{"version":"0","id":"E","detail-type":"EC2 Instance-terminate Lifecycle Action","source":"aws.autoscaling","account":%q,"time":"2026-01-02T03:04:05Z","region":"us-east-1","resources":[],"detail":%s}`,
		simulator.DefaultAWSAccountID, detail)
	return []lie{
		{"one for an instance in service", with(b.web, "LifecycleActionToken", token, "EC2InstanceId", b.victim), audit.Stale, b.victim + " is InService and does not wait", false},
		{"another instance", with(b.web, "EC2InstanceId", b.victim), audit.Stale, b.victim + " is InService and does not wait", false},
		{"all of it made up", hookMessage(map[string]any{"EC2InstanceId": b.victim}), audit.Stale, b.victim + " is InService and does not wait", false},
		{"an instance that never was", hookMessage(nil), audit.Stale, "in no group", false},
		{"an instance of another group", with(b.web, "EC2InstanceId", b.dbVictim), audit.Stale, b.dbVictim + " is in group asg-db, not asg-web", false},
		{"a waiting instance of another group", with(b.web, "EC2InstanceId", b.db.Instances[0]), audit.Stale, "is in group asg-db, not asg-web", false},
		{"a foreign instance that waits", with(b.web, "EC2InstanceId", b.foreign.Instances[0]), audit.Stale, "is in group asg-foreign, not asg-web", false},
		{"a hook that nobody has, for an instance in service", with(b.web, "LifecycleHookName", "ash-nobodys", "EC2InstanceId", b.victim), audit.Stale, b.victim + " is InService and does not wait", false},
		{"another group's action under our name", with(b.db, "AutoScalingGroupName", groupID), audit.Stale, "is in group asg-db, not asg-web", false},
		{"our action under another group's name", with(b.web, "AutoScalingGroupName", dbGroup), audit.Stale, "is in group asg-web, not asg-db", false},
		{"a foreign action under our name", with(b.foreign, "AutoScalingGroupName", groupID), audit.Stale, "is in group asg-foreign, not asg-web", false},
		{"the other transition", with(b.web, "LifecycleTransition", launching), audit.Stale, "is Terminating:Wait: its wait is over", false},
		{"a launch of an instance in service", with(b.web, "LifecycleTransition", launching, "LifecycleHookName", "ash-out", "EC2InstanceId", b.victim), audit.Stale, b.victim + " is InService: its wait is over", false},
		// These are the truth but for their time.
		{"a time long ago", with(b.db, "Time", "1970-01-01T00:00:00.000Z"), audit.Ignored, "a second message for an action that is held", false},
		{"a time to come", with(b.db, "Time", "2999-12-31T23:59:59.999Z"), audit.Ignored, "a second message for an action that is held", false},
		// Left to workers that know it.
		{"a foreign action", with(b.foreign), audit.Unrouted, "no config names the group asg-foreign", true},
		{"another region", region, audit.Unrouted, "no config names the group asg-web in us-east-1", true},
		{"another account", with(b.web, "AccountId", "444455556666", "LifecycleActionToken", token), audit.Unrouted, "and the message of 444455556666", true},
	}
}

// judged checks, of a cloud that answers again, that every lie has come to its end and the
// truth to its own, and that nobody but the truth was ever touched.
func (b *besieged) judged(lies []lie, ids []string, limit time.Duration, once bool) {
	b.t.Helper()
	closings := func() map[string][]audit.Record {
		out := map[string][]audit.Record{}
		for _, rec := range b.r.records() {
			if rec.Event.Closes() {
				out[rec.MessageID] = append(out[rec.MessageID], rec)
			}
		}
		return out
	}
	open := map[string]string{}
	b.t.Cleanup(func() {
		if b.t.Failed() {
			b.t.Logf("not closed as they should be: %v", open)
		}
	})
	b.until(limit, "the true actions are answered and every lie is closed", func() bool {
		clear(open)
		if !b.isOver() {
			return false
		}
		closed := closings()
		for i, l := range lies {
			if recs := closed[ids[i]]; len(recs) == 0 || !l.closedBy(recs[len(recs)-1].Event) {
				open[l.name] = fmt.Sprintf("%+v", recs)
			}
		}
		return len(open) == 0
	})
	closed := closings()
	for i, l := range lies {
		recs := closed[ids[i]]
		if last := recs[len(recs)-1]; !strings.Contains(last.Reason+last.Error, l.reason) {
			b.t.Errorf("%s: closed as %s because of %q %q, want %q", l.name, last.Event, last.Reason, last.Error, l.reason)
		}
		if once && !l.patient && len(recs) != 1 {
			b.t.Errorf("%s: %d closing records, want 1: %+v", l.name, len(recs), recs)
		}
	}
	b.untouched()
	jobs := 0
	for _, want := range b.truth {
		jobs += len(want.Instances)
		a, _ := b.State().Action(want.Token)
		if a.Status != "Completed" || a.EndedBy != "call" || a.Result != "CONTINUE" {
			b.t.Errorf("the true action of %s is %s %s by %q", a.Hook, a.Status, a.Result, a.EndedBy)
		}
	}
	if n := len(b.r.find(audit.StepStarted)); n != jobs {
		b.t.Errorf("%d steps ran, want one for each instance of the true actions, %d", n, jobs)
	}
	b.ordered()
}

// isOver says whether all true actions have ended.
func (b *besieged) isOver() bool {
	return !slices.ContainsFunc(b.truth, func(a simulator.ActionState) bool {
		now, _ := b.State().Action(a.Token)
		return now.Status == "Pending"
	})
}

// untouched checks that nothing but the true actions was touched, by the cloud's own record.
func (b *besieged) untouched() {
	b.t.Helper()
	var tokens, instances []string
	for _, a := range b.truth {
		tokens, instances = append(tokens, a.Token), append(instances, a.Instances...)
	}
	for _, e := range b.Events() {
		switch e.Type {
		case simulator.ActionHeartbeat, simulator.ActionCompleted:
			if !slices.Contains(tokens, e.Token) {
				b.t.Errorf("%s of a foreign action: %+v", e.Type, e)
			}
		case simulator.CommandStarted:
			b.t.Errorf("a command ran: %+v", e)
		}
	}
	for _, rec := range b.r.find(audit.StepStarted) {
		if in := string(rec.Instance); !slices.Contains(instances, in) {
			b.t.Errorf("a step ran for %s", in)
		}
	}
	for _, id := range []string{b.victim, b.dbVictim} {
		if in, ok := b.State().Instance(id); !ok || in.State != "InService" {
			b.t.Errorf("the victim was touched: %+v", in)
		}
	}
}

// sendAll sends the bodies and gives their ids.
func (b *besieged) sendAll(lies []lie) (ids []string) {
	b.t.Helper()
	for _, l := range lies {
		id, err := b.SendMessage(queueName, l.body)
		if err != nil {
			b.t.Fatalf("%s: %v", l.name, err)
		}
		ids = append(ids, id)
	}
	return ids
}

// Every lie there is, among true actions that go on unharmed.
func TestForgedNotifications(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		b := besiege(t, on)
		lies := b.lies()
		ids := b.sendAll(lies)
		b.judged(lies, ids, 20*time.Minute, true)
		b.r.stop()
		b.r.balanced()
	})
}

// The same while the cloud gives no answer that could be trusted: for as long as that
// lasts nothing is begun and no message deleted, and afterwards all is as it should be.
func TestForgedNotificationsInTrouble(t *testing.T) {
	hours(t)
	t.Parallel()
	describes := []simulator.Fault{
		{Service: "ess", Action: "DescribeLifecycleActions"}, {Service: "ess", Action: "DescribeScalingInstances"},
		{Service: "ess", Action: "DescribeLifecycleHooks"}, {Service: "ecs", Action: "DescribeInstances"},
	}
	for _, c := range []struct {
		name string
		kind simulator.FaultKind
		on   []simulator.Fault
	}{
		{"slow", simulator.FaultLatency, describes},
		{"throttled", simulator.FaultThrottle, describes},
		{"failing", simulator.Fault5xx, describes},
		{"hanging", simulator.FaultHang, describes},
		{"dropping", simulator.FaultDrop, describes},
		{"half-empty", simulator.FaultPartial, describes},
		{"empty actions", simulator.FaultEmpty, describes[:1]},
		{"empty ESS", simulator.FaultEmpty, describes[:3]},
	} {
		for _, lasts := range []time.Duration{20 * time.Second, 5 * time.Minute} {
			t.Run(fmt.Sprintf("%s for %v", c.name, lasts), func(t *testing.T) {
				t.Parallel()
				eachCloud(t, func(t *testing.T, on where) {
					if c.kind == simulator.FaultPartial && on.isAWS() {
						return // its answers do not say how many there are: what half of one lists is the truth
					}
					var faults []simulator.Fault
					for _, f := range c.on {
						f.Kind = c.kind
						if f.Kind == simulator.FaultLatency {
							f.Latency = 30 * time.Second
						}
						faults = append(faults, f)
					}
					b := besiege(t, on, faults...)
					// An empty listing is an answer where nothing speaks against it: it rules some
					// lies out in words of its own. It is none on the truth.
					listed := c.kind == simulator.FaultEmpty || c.kind == simulator.FaultPartial
					lies := b.lies()
					if listed {
						for i := range lies {
							lies[i].reason = ""
						}
					}
					ids := b.sendAll(lies)
					time.Sleep(lasts)
					synctest.Wait()
					if n := len(b.r.find(audit.StepStarted)) + len(b.r.find(audit.Admitted)) + b.count(simulator.ActionHeartbeat) + b.count(simulator.ActionCompleted); n != 0 {
						t.Errorf("something was begun before the cloud has answered: %+v", b.r.find(audit.Admitted))
					}
					for _, e := range b.Events() {
						if e.Type == simulator.MessageDeleted && (!listed || e.Token != "") {
							t.Errorf("a message was deleted before the cloud has answered: %+v", e)
						}
					}
					b.ClearFaults()
					b.judged(lies, ids, 30*time.Minute, false)
					b.r.stop()
					b.r.balanced()
				})
			})
		}
	}
}

// Every lie arrives before the truth: the truth does not share the end of any.
func TestLiesComeFirst(t *testing.T) {
	t.Parallel()
	for _, kind := range []simulator.FaultKind{"", simulator.Fault5xx} {
		t.Run("kind "+string(kind), func(t *testing.T) {
			t.Parallel()
			eachCloud(t, func(t *testing.T, on where) {
				var faults []simulator.Fault
				if kind != "" {
					faults = []simulator.Fault{{Service: "ess", Kind: kind, Count: 20}}
				}
				b := besiegeAt(t, on, "", faults...)
				// But for the times, which are the truth.
				lies := slices.DeleteFunc(b.lies(), func(l lie) bool { return l.event == audit.Ignored })
				ids := b.sendAll(lies)
				for _, a := range b.truth {
					b.send(b.telling(a))
				}
				b.judged(lies, ids, 20*time.Minute, true)
				b.r.stop()
				b.r.balanced()
			})
		})
	}
}

// The name of a hook is in the message, and chooses the plan: it must be the cloud's.
func TestForgedHookName(t *testing.T) {
	t.Parallel()
	for _, trouble := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := scenario(3, false)
			s.ScalingGroups[0].Hooks[0].Name, s.ScalingGroups[0].Hooks[0].Queue = "drain", ""
			cloud := newCloud(t, s)
			if trouble {
				cloud.inject(simulator.Fault{Service: "ess", Action: "DescribeLifecycleHooks", Kind: simulator.Fault5xx})
			}
			drain, nothing := plan(time.Hour, takes(time.Minute)), plan(time.Hour)
			drain.Hook, nothing.Hook = "drain", "at-once"
			r := cloud.start(settings{plans: []worker.Plan{nothing, drain}})
			cloud.scaleIn(1)
			cloud.send(telling(cloud.State().Actions[0], map[string]any{"lifecycleHookName": "at-once"}))
			if time.Sleep(3 * time.Minute); trouble {
				synctest.Wait()
				if len(r.find(audit.Admitted)) != 0 {
					t.Error("admitted before the hook's name was known")
				}
				cloud.ClearFaults()
			}
			cloud.until(5*time.Minute, "answered", cloud.settled)
			cloud.answered(messages.Continue)
			if n := len(r.find(audit.StepStarted)); n != 1 {
				t.Errorf("%d steps, want the plan of the hook's own name", n)
			}
			r.stop()
			r.balanced()
		})
	}
}

// A token of AWS shows to be made up when it is used, and not before: what it says of an instance
// that waits has the steps run that are due there anyway. It prolongs and ends nothing, and the
// true action has its own job and its own answer, whichever comes first.
func TestAWSMadeUpTokens(t *testing.T) {
	t.Parallel()
	for _, liesFirst := range []bool{false, true} {
		t.Run(fmt.Sprintf("lies first: %v", liesFirst), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := besiegeAt(t, onAWS, "")
				var lies []string
				for i, a := range b.truth {
					lies = append(lies,
						hookTelling(a, map[string]any{"LifecycleActionToken": fmt.Sprintf("%08d-52b8-4a06-9e41-7c0d5b2a6f18", i)}),
						hookTelling(a, map[string]any{"LifecycleHookName": "ash-nobodys"}))
				}
				lies = append(lies, hookTelling(b.web, map[string]any{"LifecycleHookName": backupHook}), hookTelling(b.backup, map[string]any{"LifecycleHookName": hookID}))
				sent := map[string]bool{} // the lies, by the id of their message
				lie := func() {
					for _, body := range lies {
						id, err := b.SendMessage(queueName, body)
						if err != nil {
							t.Fatal(err)
						}
						sent[id] = true
					}
				}
				if liesFirst {
					lie()
					b.until(time.Minute, "the lies are held", func() bool { return len(b.r.find(audit.StepStarted)) == len(lies) })
				}
				for _, a := range b.truth {
					b.send(b.telling(a))
				}
				if !liesFirst {
					b.until(time.Minute, "the truth is held", func() bool { return len(b.r.find(audit.StepStarted)) == len(b.truth) })
					lie()
				}
				b.until(4*time.Minute, "the true actions are answered", b.isOver)
				b.answeredOnce()
				b.until(30*time.Minute, "all messages have their end", b.empty)
				b.untouched()
				b.ordered()
				ends := map[string]audit.Record{} // the last of each message
				for _, rec := range b.r.records() {
					if rec.Event.Closes() {
						ends[rec.MessageID] = rec
					}
				}
				for id := range sent {
					end := ends[id]
					over := end.Event == audit.Acked && strings.Contains(end.Reason, "No active Lifecycle Action found")
					gone := end.Event == audit.Stale && strings.Contains(end.Reason, "in no group")
					if end.Hook == "ash-nobodys" && !gone || end.Hook != "ash-nobodys" && !over && !gone {
						t.Errorf("a lie about %s and %s was closed as %s because of %q", end.Hook, end.Token, end.Event, end.Reason)
					}
				}
				b.r.stop()
				b.r.balanced()
			})
		})
	}
}

// answeredOnce checks that each true action was answered with CONTINUE, once, when its own instance's
// job had succeeded, and nothing else was.
func (b *besieged) answeredOnce() {
	b.t.Helper()
	type job struct {
		messages.ActionKey
		messages.InstanceID
	}
	of := map[messages.ActionKey]job{}
	for _, a := range b.truth {
		key := messages.ActionKey{Hook: messages.HookID(a.Hook), Token: messages.Token(a.Token)}
		of[key] = job{key, messages.InstanceID(a.Instances[0])}
	}
	done, completed := map[job]bool{}, map[messages.ActionKey]int{}
	for _, rec := range b.r.records() {
		key := messages.ActionKey{Hook: rec.Hook, Token: rec.Token}
		switch {
		case rec.Event == audit.StepFinished && rec.Result == "ok":
			done[job{key, rec.Instance}] = true
		case rec.Event == audit.Completed:
			if completed[key]++; !done[of[key]] {
				b.t.Errorf("answered before the job of %s had succeeded: %+v", of[key].InstanceID, rec)
			}
		}
	}
	for key := range of {
		now, _ := b.State().Action(string(key.Token))
		if n := completed[key]; n != 1 || now.EndedBy != "call" || now.Result != "CONTINUE" {
			b.t.Errorf("the true action %s of %s was completed %d times, and is %s %s by %q", key.Token, key.Hook, n, now.Status, now.Result, now.EndedBy)
		}
	}
	if n := b.count(simulator.ActionCompleted); n != len(of) || len(completed) != len(of) {
		b.t.Errorf("%d completions of %d actions, want %d", n, len(completed), len(of))
	}
}

// Where a drain is longer than the hook's wait, a made-up token shows at the first heartbeat: its
// job is cut, and the true one goes on.
func TestAWSMadeUpTokenShowsAtAHeartbeat(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := awsScenario(3)
		s.ScalingGroups[0].Hooks[0].HeartbeatTimeout = 5 * time.Minute
		cloud := newCloud(t, s)
		r := cloud.start(settings{plans: []worker.Plan{plan(2*time.Hour, takes(30*time.Minute))}})
		cloud.scaleIn(1)
		own := cloud.State().Actions[0]
		cloud.send(hookTelling(own, map[string]any{"LifecycleActionToken": "4d9c1f7e-52b8-4a06-9e41-7c0d5b2a6f18"}))
		cloud.until(5*time.Minute, "the lie is closed", func() bool { return len(r.find(audit.Acked)) == 1 })
		if rec := r.find(audit.Acked)[0]; string(rec.Token) == own.Token || !strings.Contains(rec.Reason, "No active Lifecycle Action found") {
			t.Errorf("closed: %+v", rec)
		}
		cloud.until(40*time.Minute, "the truth is answered", cloud.settled)
		cloud.answered(messages.Continue)
		for _, rec := range r.find(audit.StepFinished) {
			if want := map[bool]string{true: "ok", false: "cancelled"}[string(rec.Token) == own.Token]; rec.Result != want {
				t.Errorf("the job of %s ended as %s, want %s", rec.Token, rec.Result, want)
			}
		}
		r.stop()
		r.balanced()
	})
}

// A true token with another instance that waits, too, is a lie about both: each has its own job, and
// is answered when that has succeeded, whichever message comes first.
func TestAWSTokenOfAnotherInstance(t *testing.T) {
	t.Parallel()
	for _, liesFirst := range []bool{false, true} {
		t.Run(fmt.Sprintf("lies first: %v", liesFirst), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := besiegeAt(t, onAWS, "")
				var truth, lies []string
				for i, a := range b.truth {
					truth = append(truth, b.telling(a))
					for _, other := range b.truth[i+1:] {
						if other.Group == a.Group && other.Instances[0] != a.Instances[0] {
							lies = append(lies, hookTelling(a, map[string]any{"EC2InstanceId": other.Instances[0]}), hookTelling(other, map[string]any{"EC2InstanceId": a.Instances[0]}))
						}
					}
				}
				first, second := truth, lies
				if liesFirst {
					first, second = lies, truth
				}
				for _, body := range first {
					b.send(body)
				}
				b.until(time.Minute, "the first are held", func() bool { return len(b.r.find(audit.StepStarted)) >= len(b.truth) })
				for _, body := range second {
					b.send(body)
				}
				b.until(20*time.Minute, "all messages have their end", func() bool { return b.isOver() && b.empty() })
				b.answeredOnce()
				b.untouched()
				b.ordered()
				b.r.stop()
				b.r.balanced()
			})
		})
	}
}

// Slow, but within its time: nothing differs.
func TestForgedNotificationsSlowly(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		b := besiege(t, on, simulator.Fault{Service: "ess", Kind: simulator.FaultLatency, Latency: 9 * time.Second})
		lies := b.lies()
		b.judged(lies, b.sendAll(lies), 30*time.Minute, true)
		b.r.stop()
		b.r.balanced()
	})
}

// The hook's own listing is empty for a while, or the hook was deleted: an action that is
// pending with its instances in the group is no lie for that.
func TestHookIsNotListed(t *testing.T) {
	t.Parallel()
	for _, kind := range []simulator.FaultKind{simulator.FaultEmpty, simulator.FaultPartial} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			eachCloud(t, func(t *testing.T, on where) {
				b := besiege(t, on, simulator.Fault{Service: "ess", Action: "DescribeLifecycleHooks", Kind: kind})
				b.judged(nil, nil, 20*time.Minute, true)
				b.r.stop()
				b.r.balanced()
			})
		})
	}
}

// The endpoint is another region's, which ESS says is not found: no true message is deleted
// for it, /readyz names it, and all goes on once it is mended.
func TestAnotherRegionsEndpoint(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, scenario(3, false))
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(time.Second))}})
		cloud.inject(simulator.Fault{Service: "ess", Kind: simulator.FaultError, Code: "InvalidRegionId.NotFound", Status: 404})
		cloud.scaleIn(1)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if n := len(r.find(audit.Stale)); n != 0 || cloud.empty() {
			t.Errorf("%d messages were deleted as stale; the queue is empty: %v", n, cloud.empty())
		}
		if err := r.w.Ready(); err == nil || !strings.Contains(err.Error(), "verify") || !strings.Contains(err.Error(), "check the region") {
			t.Errorf("ready: %v", err)
		}
		cloud.ClearFaults()
		cloud.until(5*time.Minute, "answered", cloud.settled)
		cloud.answered(messages.Continue)
		if err := r.w.Ready(); err != nil {
			t.Errorf("ready after all: %v", err)
		}
		r.stop()
		r.balanced()
	})
}

// No service lists the instances for a moment: they are not taken for gone, and their
// action is not answered as if nothing was left to do.
func TestInstancesAreNotListed(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		b := besiege(t, on, simulator.Fault{Service: "ess", Action: "DescribeScalingInstances", Kind: simulator.FaultEmpty},
			simulator.Fault{Service: "ecs", Action: "DescribeInstances", Kind: simulator.FaultEmpty})
		time.Sleep(8 * time.Second)
		synctest.Wait()
		b.ClearFaults()
		b.judged(nil, nil, 20*time.Minute, true)
		b.r.stop()
		b.r.balanced()
	})
}

// A second message about an action is confirmed by an answer of the cloud that is older
// than the end of the action: it is asked again, and nothing is done twice.
func TestVerifiedBeforeTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, scenario(4, false))
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(20*time.Second))}})
		cloud.scaleIn(2)
		cloud.until(5*time.Second, "begun", func() bool { return len(r.find(audit.StepStarted)) == 2 })
		// The next receive looks at the queue when it has two messages, so that they are asked
		// about together, and ECS keeps the answer about both waiting.
		time.Sleep(9 * time.Second)
		cloud.inject(simulator.Fault{Service: "mns", Action: "ReceiveMessage", Kind: simulator.FaultLatency, Latency: 5 * time.Second})
		cloud.send(`{"product":"ECS","name":"Instance:StateChange","content":{}}`)
		time.Sleep(2 * time.Second)
		cloud.ClearFaults()
		cloud.inject(simulator.Fault{Service: "ecs", Action: "DescribeInstances", Kind: simulator.FaultLatency, Latency: 9 * time.Second})
		own := cloud.State().Actions[0]
		cloud.send(notification(nil))
		cloud.send(telling(own, map[string]any{"instanceIds": own.Instances[:1]}))
		cloud.until(2*time.Minute, "the other messages are closed", func() bool { return cloud.empty() && cloud.over() })
		if n := len(r.find(audit.StepStarted)); n != 2 {
			t.Errorf("%d steps, want one for each of two instances", n)
		}
		cloud.answered(messages.Continue)
		r.stop()
		r.balanced()
	})
}

// Replays of a true notification under many ids, while its action is held and when it is
// over: one job, one answer, one record each.
func TestReplays(t *testing.T) {
	t.Parallel()
	for _, copies := range []int{1, 200} {
		t.Run(fmt.Sprint(copies), func(t *testing.T) {
			t.Parallel()
			eachCloud(t, func(t *testing.T, on where) {
				b := besiege(t, on)
				// When the action is over the others may share the end of one of the copies.
				replay := func(reason string, others string) {
					sent := map[string]bool{}
					for range copies {
						id, err := b.SendMessage(queueName, base64.StdEncoding.EncodeToString([]byte(b.telling(b.web))))
						if err != nil {
							t.Fatal(err)
						}
						sent[id] = true
					}
					b.until(time.Minute, "the copies are closed", func() bool {
						n := 0
						for _, rec := range b.r.records() {
							if sent[rec.MessageID] && rec.Event.Closes() {
								if n++; !strings.Contains(rec.Reason, reason) && (others == "" || !strings.Contains(rec.Reason, others)) {
									t.Fatalf("%s because of %q, want %q", rec.Event, rec.Reason, reason)
								}
							}
						}
						return n == copies
					})
				}
				const second = "a second message for an action that is held"
				replay(second, "")
				b.until(20*time.Minute, "settled", func() bool { return b.isOver() && b.empty() })
				replay("this worker has answered it before", second)
				b.until(10*time.Second, "the copies are gone", b.empty)
				b.judged(nil, nil, time.Minute, true)
				if n := b.count(simulator.ActionCompleted); n != len(b.truth) {
					t.Errorf("%d completions, want %d", n, len(b.truth))
				}
				b.r.stop()
				b.r.balanced()
			})
		})
	}
}

// Notifications that arrive when their action has timed out or was cancelled by another
// hook's answer.
func TestStaleNotifications(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		s := scenario(6, false)
		s.ScalingGroups[0].Hooks[0].Queue = ""
		s.ScalingGroups[0].Hooks = append(s.ScalingGroups[0].Hooks, simulator.HookConfig{ID: backupHook, Transition: "scale_in", HeartbeatTimeout: 5 * time.Minute, DefaultResult: "ABANDON"})
		cloud := newCloud(t, on(s))
		// The second hook's wait runs out first, its result cancels the other's.
		cloud.scaleIn(2)
		cloud.until(20*time.Minute, "the default strikes", cloud.over)
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}})
		var ended []string
		for _, a := range cloud.State().Actions {
			ended = append(ended, a.EndedBy)
			cloud.send(cloud.telling(a))
		}
		want := map[messages.Cloud]struct{ ended, reason string }{
			messages.Alibaba: {"[other_hook timeout]", "the cloud lists the action as "},
			messages.AWS:     {"[timeout timeout timeout timeout]", " in no group"}, // two of each hook, with CONTINUE
		}[cloud.name]
		if slices.Sort(ended); fmt.Sprint(ended) != want.ended {
			t.Fatalf("the actions ended by %v", ended)
		}
		cloud.until(time.Minute, "all are closed", func() bool { return len(r.find(audit.Stale)) == len(ended) && cloud.empty() })
		for _, rec := range r.find(audit.Stale) {
			if !strings.Contains(rec.Reason, want.reason) {
				t.Errorf("reason %q", rec.Reason)
			}
		}
		if n := len(r.find(audit.StepStarted)) + cloud.count(simulator.ActionHeartbeat) + cloud.count(simulator.ActionCompleted); n != 0 {
			t.Errorf("something was touched")
		}
		r.stop()
		r.balanced()
	})
}

// Text that could mean more than a name is refused before anything is asked of the cloud,
// in every field that could reach a URL, a shell, a template or a log.
func TestHostileText(t *testing.T) {
	t.Parallel()
	hostile := map[string]string{
		"command substitution": "i-$(reboot)", "backticks": "i-`id`", "separator": "i-a;rm -rf /", "pipe": "i-a|sh", "redirection": "i-a>/etc/passwd",
		"quote": `i-a"b`, "single quote": "i-a'b", "newline": "i-a\nb", "trailing newline": "i-abc\n", "carriage return": "i-a\rb", "NUL": "i-a\x00b",
		"template": "i-{{.Token}}", "variable": "i-${HOME}", "glob": "i-*", "space": "i-a b", "tab": "i-a\tb", "query": "i-a&Action=DeleteScalingGroup", "fragment": "i-a#b",
		"percent": "i-%2e%2e%2f", "path": "i-../../etc/passwd", "absolute path": "/etc/passwd", "host": "i-a@example.org", "look-alike": "і-abc", "full width": "i－abc",
		"joiner": "i-a\u200db", "right to left": "i-a\u202eb", "60 KB": "i-" + strings.Repeat("a", 60_000), "empty": "", "escape": "i-\x1b[2J", "option": "-rf",
	}
	fields := map[messages.Cloud]map[string]string{messages.Alibaba: {
		"instanceIds": "content.instanceIds[0]", "lifecycleActionToken": "content.lifecycleActionToken", "lifecycleHookId": "content.lifecycleHookId",
		"scalingActivityId": "content.scalingActivityId", "scalingGroupId": "content.scalingGroupId", "lifecycleTransition": "content.lifecycleTransition",
	}, messages.AWS: {
		"EC2InstanceId": "EC2InstanceId", "LifecycleActionToken": "LifecycleActionToken", "LifecycleHookName": "LifecycleHookName",
		"AutoScalingGroupName": "AutoScalingGroupName", "LifecycleTransition": "LifecycleTransition",
	}}
	eachCloud(t, func(t *testing.T, on where) {
		b := besiege(t, on)
		wrong := map[string]string{} // by message id
		for _, text := range hostile {
			for field, where := range fields[b.name] {
				var value any = text
				if field == "instanceIds" {
					value = []string{text}
				}
				body := telling(b.web, map[string]any{field: value})
				if b.name == messages.AWS {
					body = hookTelling(b.web, map[string]any{field: value})
				}
				id, err := b.SendMessage(queueName, body)
				if err != nil {
					t.Fatal(err)
				}
				wrong[id] = where
			}
		}
		calls := b.State().APICalls
		b.until(time.Minute, "all are rejected", func() bool { return len(b.r.find(audit.Rejected)) >= len(wrong) })
		for _, rec := range b.r.find(audit.Rejected) {
			if where := wrong[rec.MessageID]; where == "" || !strings.Contains(rec.Error, where) {
				t.Errorf("rejected because of %q, want %q", rec.Error, where)
			}
			if len(rec.Error) > 400 || strings.ContainsAny(rec.Error, "\n\x00\x1b\u202e") {
				t.Errorf("the reason is no line for a log: %.500q", rec.Error)
			}
		}
		for _, name := range []string{"ess.DescribeLifecycleActions", "ess.DescribeScalingInstances", "ecs.DescribeInstances", "autoscaling.DescribeAutoScalingInstances", "ec2.DescribeInstances"} {
			if before, after := calls[name], b.State().APICalls[name]; after > max(before, 3) {
				t.Errorf("%d calls of %s, of which the rejected cost some", after, name)
			}
		}
		b.judged(nil, nil, 20*time.Minute, true)
		b.r.stop()
		b.r.balanced()
	})
}

// Free text that is no name goes nowhere, whatever it is.
func TestHostileFreeText(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, scenario(3, false))
		token := cloud.scaleIn(1)[0]
		own, _ := cloud.State().Action(token)
		if err := cloud.drainQueue(); err != nil {
			t.Fatal(err)
		}
		cloud.send(telling(own, map[string]any{
			"lifecycleHookName": "$(reboot)\n{{.Token}}", "notificationMetadata": strings.Repeat("`id`;\x00", 5000), "scalingGroupName": "../..",
			"requestId": "\x1b[2J", "defaultResult": "{{.}}", "scalingRuleId": "a&b", "scheduledTaskId": "'",
		}))
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, worker.PlannedStep{Step: stepFunc(func(_ context.Context, in messages.Instance, _ int) (string, error) {
			return "", nil
		})})}})
		cloud.until(5*time.Minute, "answered", cloud.settled)
		cloud.answered(messages.Continue)
		r.stop()
		r.balanced()
	})
}

// drainQueue deletes what is in the queue, so that a test can send its own words instead.
func (c *cloud) drainQueue() error {
	r := c.start(settings{groups: []string{"asg-nobody"}, plans: []worker.Plan{plan(time.Hour)}})
	defer r.kill()
	c.until(time.Minute, "received", func() bool { return len(r.find(audit.Unrouted)) > 0 })
	return nil
}
