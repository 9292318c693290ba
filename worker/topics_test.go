package worker_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

const topicName = "scaling"

// byTopic is a group whose hook, and whose event notifications, go to a topic that the
// queue is subscribed to.
func byTopic(instances int, format string) simulator.Scenario {
	s := scenario(instances, true)
	s.Topics = []simulator.TopicConfig{{Name: topicName, Subscriptions: []simulator.SubscriptionConfig{{Name: "usher", Queue: queueName, ContentFormat: format}}}}
	return tells(s, "topic/"+topicName)
}

// byEvent is a group whose hook, and whose events, go to EventBridge, which has a rule for
// the queue.
func byEvent(instances int, data string) simulator.Scenario {
	s := scenario(instances, true)
	s.EventBridge = simulator.EventBridgeConfig{Queue: queueName, Data: data}
	return tells(s, "eventbus/default")
}

func tells(s simulator.Scenario, target string) simulator.Scenario {
	g := &s.ScalingGroups[0]
	g.Events, g.Hooks[0].Queue, g.Hooks[0].Target = target, "", target
	return s
}

// A scale-in is drained and answered whichever way its notifications come. Event
// notifications in between are deleted, and what can't be read is quarantined, envelope and
// all, and in nobody's way.
func TestNotificationsByEachWay(t *testing.T) {
	hours(t)
	t.Parallel()
	plain := func(s simulator.Scenario) simulator.Scenario {
		s.ScalingGroups[0].Hooks[0].Encoding = "plain"
		return s
	}
	coded := byTopic(4, "XML")
	coded.Topics[0].Subscriptions[0].Encoding = "base64"
	codedEvent := byEvent(4, "content")
	codedEvent.EventBridge.Encoding = "base64"
	for name, s := range map[string]simulator.Scenario{
		"queue":                             tells(scenario(4, true), "queue/"+queueName),
		"topic, XML":                        byTopic(4, "XML"),
		"topic, XML, not encoded":           plain(byTopic(4, "XML")),
		"topic, XML, encoded twice":         coded,
		"topic, JSON":                       byTopic(4, "JSON"),
		"topic, JSON, not encoded":          plain(byTopic(4, "JSON")),
		"topic, SIMPLIFIED":                 byTopic(4, "SIMPLIFIED"),
		"topic, SIMPLIFIED, not encoded":    plain(byTopic(4, "SIMPLIFIED")),
		"EventBridge, data":                 byEvent(4, "data"),
		"EventBridge, content, and encoded": codedEvent,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cloud := newCloud(t, s)
				r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(25*time.Minute))}})
				garbage := []string{
					"hello",
					notification(map[string]any{"instanceIds": []string{"i-$(reboot)"}}),
					base64.StdEncoding.EncodeToString([]byte(notification(nil)))[:121],
					`{"specversion":"1.0","type":"ess:LifecycleHook:ScaleIn","data":{}}`,
				}
				for _, g := range garbage {
					if len(s.Topics) == 0 {
						cloud.send(g)
					} else if _, err := cloud.Publish(topicName, g, "tag"); err != nil {
						t.Fatal(err)
					}
				}
				damaged := []string{
					"<Notification><Message>aGVsbG8=</Message><MessageMD5>00</MessageMD5></Notification>",
					"<Notification><TopicName>t</TopicName>",
					`<!DOCTYPE x [<!ENTITY a "b">]><Notification><Message>&a;</Message></Notification>`,
					`{"TopicName":"t"}`,
				}
				for _, d := range damaged {
					cloud.send(d)
				}
				cloud.scaleIn(3)
				cloud.until(2*time.Hour, "settled", cloud.settled)
				cloud.answered(messages.Continue)
				if n := len(r.find(audit.Completed)); n != 3 {
					t.Errorf("%d actions were answered, want 3", n)
				}
				// Three activities have begun and ended.
				ignored := map[string]int{}
				for _, rec := range r.find(audit.Ignored) {
					ignored[rec.Reason]++
				}
				kinds := []string{"ESS AUTOSCALING:SCALE_IN_START", "ESS AUTOSCALING:SCALE_IN_SUCCESS"}
				if s.EventBridge.Queue != "" {
					kinds = []string{"EventBridge ess:ScalingActivity:ScaleInStart", "EventBridge ess:ScalingActivity:ScaleInSuccess"}
				}
				for _, kind := range kinds {
					if len(ignored) != 2 || ignored[kind] != 3 {
						t.Errorf("ignored were %v, want three of each of %v", ignored, kinds)
					}
				}
				quarantined := r.find(audit.Quarantined)
				for _, want := range append(damaged, garbage...) {
					n := 0
					for _, rec := range quarantined {
						if strings.Contains(inner(t, rec.Body), want) {
							n++
						}
					}
					if n != 1 {
						t.Errorf("%.40q was quarantined %d times", want, n)
					}
				}
				for _, rec := range quarantined {
					if !strings.Contains(rec.Error, "malformed message: ") {
						t.Errorf("quarantined for %q", rec.Error)
					}
				}
				if n := len(quarantined); n != len(garbage)+len(damaged) {
					t.Errorf("%d messages were quarantined", n)
				}
				r.stop()
				r.balanced()
			})
		})
	}
}

// inner gives the text of a body as a person would look for it.
func inner(t *testing.T, body string) string {
	t.Helper()
	if text, err := base64.StdEncoding.DecodeString(body); err == nil {
		body = string(text)
	}
	var e struct{ Message string }
	if json.Unmarshal([]byte(body), &e) == nil && e.Message != "" {
		return e.Message
	}
	if strings.Contains(body, "<!ENTITY") {
		return body
	}
	return strings.NewReplacer("&#34;", `"`, "&#39;", "'").Replace(body)
}

// A topic that is late costs nothing: times count from when the hook fired.
func TestLateTopic(t *testing.T) {
	t.Parallel()
	t.Run("deadline", func(t *testing.T) {
		t.Parallel()
		for name, s := range map[string]simulator.Scenario{"topic": byTopic(2, "JSON"), "EventBridge": byEvent(2, "data")} {
			synctest.Test(t, func(t *testing.T) {
				if len(s.Topics) > 0 {
					s.Topics[0].Delay = 4 * time.Minute
				}
				s.EventBridge.Delay = 4 * time.Minute
				cloud := newCloud(t, s)
				r := cloud.start(settings{plans: []worker.Plan{plan(15*time.Minute, takes(time.Hour))}})
				cloud.scaleIn(1)
				cloud.until(time.Hour, "settled", cloud.settled)
				cloud.answered(messages.Abandon)
				a := cloud.State().Actions[0]
				if took := a.Completed.Sub(a.Started).Round(10 * time.Second); took != 15*time.Minute {
					t.Errorf("%s: answered %v after the hook fired, want the deadline of 15m", name, took)
				}
				r.stop()
				r.balanced()
			})
		}
	})
	t.Run("almost too late", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			s := byTopic(4, "XML")
			s.Topics[0].Delay = 9*time.Minute + 30*time.Second // of the hook's ten
			cloud := newCloud(t, s)
			r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(20*time.Minute))}})
			cloud.scaleIn(3)
			cloud.until(2*time.Hour, "settled", cloud.settled)
			cloud.answered(messages.Continue)
			r.stop()
			r.balanced()
		})
	})
	t.Run("too late", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			s := byTopic(2, "XML")
			s.Topics[0].Delay = 11 * time.Minute
			s.ScalingGroups[0].Hooks[0].DefaultResult = "CONTINUE"
			cloud := newCloud(t, s)
			r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(20*time.Minute))}})
			cloud.scaleIn(1)
			cloud.until(time.Hour, "the message is closed", func() bool { return len(r.find(audit.Stale)) == 1 && cloud.empty() })
			if n := len(r.find(audit.StepStarted)); n != 0 {
				t.Errorf("%d steps ran for an action that is over", n)
			}
			r.stop()
			r.balanced()
		})
	})
}

// Two subscriptions tell the queue of each action twice, in two forms. They are one action.
func TestTwoSubscriptions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := byTopic(4, "XML")
		s.ScalingGroups[0].Events = ""
		s.Topics[0].Subscriptions = append(s.Topics[0].Subscriptions, simulator.SubscriptionConfig{Name: "again", Queue: queueName, ContentFormat: "JSON"})
		cloud := newCloud(t, s)
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(20*time.Minute))}})
		cloud.scaleIn(3)
		cloud.until(2*time.Hour, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		if steps, done := len(r.find(audit.StepStarted)), len(r.find(audit.Completed)); steps != 3 || done != 3 {
			t.Errorf("%d steps ran and %d answers were sent, want 3 of each", steps, done)
		}
		r.stop()
		r.balanced()
	})
}

// An action whose topic is late is found by its wait and announced again. The notification
// that comes in its envelope in the end is about the same action.
func TestAnnouncedBeforeItsTopic(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]simulator.Scenario{"XML": byTopic(4, "XML"), "JSON": byTopic(4, "JSON"), "EventBridge": byEvent(4, "content")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s.ScalingGroups[0].Events = ""
				s.ScalingGroups[0].Hooks[0].HeartbeatTimeout = time.Hour
				if len(s.Topics) > 0 {
					s.Topics[0].Delay = 25 * time.Minute
				}
				s.EventBridge.Delay = 25 * time.Minute
				cloud := newCloud(t, s)
				f := newFleet(cloud, 1, 40*time.Minute, nil)
				cloud.scaleIn(3)
				cloud.until(3*time.Hour, "settled", func() bool { return cloud.settled() && time.Since(cloud.State().Actions[0].Started) > 30*time.Minute })
				cloud.answered(messages.Continue)
				announced, known := 0, 0
				for _, r := range f.workers {
					announced += len(r.find(audit.Announced))
					for _, rec := range r.find(audit.Ignored) {
						if strings.Contains(rec.Reason, "second message") {
							known++
						}
					}
				}
				if announced < 3 || known != 3 {
					t.Errorf("%d actions were announced, %d notifications were known, want 3 each", announced, known)
				}
				for token, n := range f.runs {
					if n != 1 {
						t.Errorf("the job of %s was begun %d times", token, n)
					}
				}
				if len(f.runs) != 3 {
					t.Errorf("%d actions were begun", len(f.runs))
				}
				for _, r := range f.workers {
					r.stop()
					r.balanced()
				}
			})
		})
	}
}

// A worker that dies leaves the envelope in the queue; the next one decodes it anew.
func TestTakeoverOfAnEnvelope(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := byTopic(3, "XML")
		cloud := newCloud(t, s)
		begun := worker.PlannedStep{Step: stepFunc(func(ctx context.Context, _ messages.Instance, _ int) (string, error) {
			select {
			case <-time.After(20 * time.Minute):
				return "", nil
			case <-ctx.Done():
				return "", errors.New("cut short")
			}
		})}
		p := settings{plans: []worker.Plan{plan(time.Hour, begun)}}
		a := cloud.start(p)
		cloud.scaleIn(2)
		cloud.until(5*time.Minute, "both jobs run", func() bool { return len(a.find(audit.StepStarted)) == 2 })
		a.kill()
		b := cloud.start(p)
		cloud.until(2*time.Hour, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		if n := len(b.find(audit.Completed)); n != 2 {
			t.Errorf("the second worker answered %d actions", n)
		}
		b.stop()
		b.balanced()
	})
}
