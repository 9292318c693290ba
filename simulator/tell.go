package simulator

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// The kinds of targets that ESS notifies: queue/{name}, topic/{name} and this.
const targetEventBus = "eventbus/default"

// target is what the hook notifies; empty: nobody.
func (h HookConfig) target() string {
	if h.Queue != "" {
		return "queue/" + h.Queue
	}
	return h.Target
}

// targetARN names a target as ESS does.
func (s *Simulator) targetARN(target string) string {
	switch target {
	case "":
		return s.arn("ess", "null/null")
	case targetEventBus:
		return s.arn("eventbridge", target)
	}
	return s.arn("mns", target)
}

// told is what ESS has to say of a scaling group.
type told struct {
	name    string    // the event's type on the event bus, such as ess:LifecycleHook:ScaleIn
	whole   any       // the message of a queue or a topic
	content any       // its content, which is an event's data
	at      time.Time // on this machine's clock
	group   *group
	action  *action // that it announces, if any
}

// tell sends a message to a target. When the queue or the topic is gone nothing is sent,
// and the scaling activity goes on all the same.
func (s *Simulator) tell(target, encoding string, m told) {
	body, _ := json.Marshal(m.whole) // texts only: cannot fail
	text := encode(encoding, string(body))
	if name, ok := strings.CutPrefix(target, "queue/"); ok {
		if q := s.queues[name]; q != nil {
			s.deliver(q, text, m.action)
		}
		return
	}
	if name, ok := strings.CutPrefix(target, "topic/"); ok {
		if t := s.topics[name]; t != nil {
			f, _ := s.strike("mns", "PublishMessage", []FaultKind{FaultDuplicate, FaultCorrupt})
			if f.Kind == FaultCorrupt {
				text = garble(text)
			}
			t.publish(text, "", m.action)
			if f.Kind == FaultDuplicate {
				t.publish(text, "", m.action)
			}
		}
		return
	}
	if target == targetEventBus {
		s.route(m)
	}
}

// route sends an event to the queue of the bus's rule.
func (s *Simulator) route(m told) {
	rule := s.scenario.EventBridge
	if rule.Queue == "" {
		return
	}
	data := m.content
	if rule.Data == "content" {
		data = m.whole
	}
	at := s.cloudTime(m.at).In(time.FixedZone("", 8*60*60))
	body, _ := json.Marshal(map[string]any{ // texts only: cannot fail
		"specversion": "1.0", "id": strings.ToLower(newUUID()), "source": "acs.ess", "type": m.name, "subject": s.groupARN(m.group),
		"time": at.Format(time.RFC3339), "datacontenttype": "application/json;charset=utf-8", "aliyunaccountid": s.account,
		"aliyunpublishtime":  at.Format("2006-01-02T15:04:05.000") + "PRC", // no valid zone, but what the service writes
		"aliyuneventbusname": "default", "aliyunregionid": s.scenario.Region, "data": data,
	})
	s.after(rule.Delay, func() {
		if q := s.queues[rule.Queue]; q != nil {
			s.deliver(q, encode(rule.Encoding, string(body)), m.action)
		}
	})
}

func (s *Simulator) groupARN(g *group) string {
	return fmt.Sprintf("acs:ess:%s:%s:scalingGroup/%s", s.scenario.Region, s.account, g.cfg.ID)
}

// eventNotification is the message about a scaling activity, which announces no lifecycle
// action. The vendor does not show it; this has what every message of ESS has.
type eventNotification struct {
	Content     eventContent `json:"content"`
	Event       string       `json:"event"`
	Product     string       `json:"product"`
	RegionID    string       `json:"regionId"`
	ResourceARN string       `json:"resourceArn"`
	Time        string       `json:"time"`
	UserID      string       `json:"userId"`
}

type eventContent struct {
	ActivityID  string   `json:"scalingActivityId"`
	GroupID     string   `json:"scalingGroupId"`
	InstanceIDs []string `json:"instanceIds"`
}

const messageTime = "2006-01-02T15:04:05.000Z"

// activityWords are what the events of an activity are called, in notifications and on the bus.
var activityWords = map[string]string{activityInProgress: "START Start", activitySuccessful: "SUCCESS Success", activityFailed: "ERROR Error"}

// tellActivity sends the event notification of an activity that has begun or ended, where
// the group's events go.
func (s *Simulator) tellActivity(act *activity) {
	if act.group.cfg.Events == "" {
		return
	}
	if s.aws() {
		s.tellActivityAWS(act)
		return
	}
	way := map[string]string{scaleIn: "ScaleIn", scaleOut: "ScaleOut"}[act.transition]
	loud, word, _ := strings.Cut(activityWords[act.status], " ")
	now := time.Now()
	content := eventContent{ActivityID: act.id, GroupID: act.group.cfg.ID, InstanceIDs: act.ids}
	s.tell(act.group.cfg.Events, "base64", told{
		name: "ess:ScalingActivity:" + way + word, content: content, at: now, group: act.group,
		whole: eventNotification{
			Content: content, Event: "AUTOSCALING:" + wireTransition[act.transition] + "_" + loud, Product: "ESS",
			RegionID: s.scenario.Region, ResourceARN: s.groupARN(act.group), Time: s.cloudTime(now).UTC().Format(messageTime), UserID: s.account,
		},
	})
}
