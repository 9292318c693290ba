package simulator

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// hookMessage is what Auto Scaling sends to a hook's target.
type hookMessage struct {
	Origin               string
	Destination          string
	LifecycleHookName    string
	AccountID            string `json:"AccountId"`
	RequestID            string `json:"RequestId"`
	LifecycleTransition  string
	AutoScalingGroupName string
	Service              string
	Time                 string
	EC2InstanceID        string `json:"EC2InstanceId"`
	NotificationMetadata string `json:",omitempty"`
	LifecycleActionToken string
}

// hookDetail is the detail of the event that tells the same.
type hookDetail struct {
	LifecycleActionToken string
	AutoScalingGroupName string
	LifecycleHookName    string
	EC2InstanceID        string `json:"EC2InstanceId"`
	LifecycleTransition  string
	NotificationMetadata string `json:",omitempty"`
	Origin               string
	Destination          string
}

// testMessage proves that a new target can be reached.
type testMessage struct {
	AccountID            string `json:"AccountId"`
	RequestID            string `json:"RequestId"`
	AutoScalingGroupARN  string
	AutoScalingGroupName string
	Service              string
	Event                string
	Time                 string
}

// groupMessage is a group's own notification (PutNotificationConfiguration, 2011-01-01), which
// no lifecycle action waits behind.
type groupMessage struct {
	Progress             int
	AccountID            string `json:"AccountId"`
	Description          string
	RequestID            string `json:"RequestId"`
	EndTime              string
	AutoScalingGroupARN  string
	ActivityID           string `json:"ActivityId"`
	StartTime            string
	Service              string
	Time                 string
	EC2InstanceID        string `json:"EC2InstanceId"`
	StatusCode           string
	StatusMessage        string
	Details              map[string]string
	AutoScalingGroupName string
	Cause                string
	Event                string
}

// envelope is what SNS puts around a message on its way into a queue.
type snsEnvelope struct {
	Type             string
	MessageID        string `json:"MessageId"`
	TopicARN         string `json:"TopicArn"`
	Subject          string
	Message          string
	Timestamp        string
	SignatureVersion string
	Signature        string
	SigningCertURL   string
	UnsubscribeURL   string
}

// busEvent is an event of EventBridge.
type busEvent struct {
	Version    string   `json:"version"`
	ID         string   `json:"id"`
	DetailType string   `json:"detail-type"`
	Source     string   `json:"source"`
	Account    string   `json:"account"`
	Time       string   `json:"time"`
	Region     string   `json:"region"`
	Resources  []string `json:"resources"`
	Detail     any      `json:"detail"`
}

const awsServiceText = "AWS Auto Scaling"

var (
	awsTransition = map[string]string{scaleIn: "autoscaling:EC2_INSTANCE_TERMINATING", scaleOut: "autoscaling:EC2_INSTANCE_LAUNCHING"}
	hookDetails   = map[string]string{scaleIn: "EC2 Instance-terminate Lifecycle Action", scaleOut: "EC2 Instance-launch Lifecycle Action"}
	hookSubjects  = map[string]string{scaleIn: "TERMINATING", scaleOut: "LAUNCHING"}
)

// autoScalingGroupARN names a group.
func (s *Simulator) autoScalingGroupARN(g *group) string {
	return s.awsARN("autoscaling", "autoScalingGroup:"+g.aws.uuid+":autoScalingGroupName/"+g.cfg.ID)
}

// The topics that lead into a queue are named after it.
const (
	topicSuffix    = "-topic"
	rawTopicSuffix = "-raw-topic"
)

// notificationARN names the target of a hook; one that only the bus tells of has none.
func (s *Simulator) notificationARN(h HookConfig) string {
	switch {
	case !h.direct():
		return ""
	case h.Delivery == deliverSNS:
		return s.awsARN("sns", h.Queue+topicSuffix)
	case h.Delivery == deliverSNSRaw:
		return s.awsARN("sns", h.Queue+rawTopicSuffix)
	}
	return s.awsARN("sqs", h.Queue)
}

// deliveryOf reads a target's ARN; ok is false if there is no such queue or topic.
func (s *Simulator) deliveryOf(arn string) (queue, delivery string, ok bool) {
	name, isQueue := strings.CutPrefix(arn, s.awsARN("sqs", ""))
	topic, isTopic := strings.CutPrefix(arn, s.awsARN("sns", ""))
	delivery = deliverDirect
	if isTopic {
		delivery = deliverSNS
		if name, ok = strings.CutSuffix(topic, rawTopicSuffix); ok {
			delivery = deliverSNSRaw
		} else if name, ok = strings.CutSuffix(topic, topicSuffix); !ok {
			return "", "", false
		}
	}
	return name, delivery, (isQueue || isTopic) && s.sqs[name] != nil
}

// milli writes a time as messages of Auto Scaling have it, on the cloud's clock.
func (s *Simulator) milli(t time.Time) string { return s.cloudTime(t).UTC().Format(messageTime) }

// notifyAWS tells of a lifecycle action that waits, in each of the hook's ways.
func (s *Simulator) notifyAWS(a *action) {
	h, act := a.hook.cfg, a.activity
	if h.direct() {
		s.sendToTarget(h, hookMessage{
			Origin: act.way.origin, Destination: act.way.destination, LifecycleHookName: h.ID, AccountID: s.account,
			RequestID: s.newToken(), LifecycleTransition: awsTransition[h.Transition], AutoScalingGroupName: act.group.cfg.ID,
			Service: awsServiceText, Time: s.milli(a.started), EC2InstanceID: act.ids[0], NotificationMetadata: h.Metadata, LifecycleActionToken: a.token,
		}, fmt.Sprintf("Auto Scaling:  Lifecycle action '%s' for instance %s in progress.", hookSubjects[h.Transition], act.ids[0]), a)
	}
	if h.bus() {
		s.sendToBus(cmp.Or(h.Queue, s.scenario.EventBridge.Queue), busEvent{
			DetailType: hookDetails[h.Transition], Source: "aws.autoscaling", Resources: []string{s.autoScalingGroupARN(act.group)},
			Detail: hookDetail{
				LifecycleActionToken: a.token, AutoScalingGroupName: act.group.cfg.ID, LifecycleHookName: h.ID, EC2InstanceID: act.ids[0],
				LifecycleTransition: awsTransition[h.Transition], NotificationMetadata: h.Metadata, Origin: act.way.origin, Destination: act.way.destination,
			},
		}, a)
	}
}

// sendToTarget sends a message to a hook's own target: a queue, or a topic that leads into it.
func (s *Simulator) sendToTarget(h HookConfig, message any, subject string, a *action) {
	body, _ := json.Marshal(message) // texts only: cannot fail
	text := string(body)
	if h.Delivery == deliverSNS {
		text = s.envelop(h.Queue+topicSuffix, subject, text)
	}
	s.deliverSQS(h.Queue, text, a)
}

// sendTest is the message that a new target gets.
func (s *Simulator) sendTest(h *hook) {
	if !h.cfg.direct() {
		return
	}
	s.sendToTarget(h.cfg, testMessage{
		AccountID: s.account, RequestID: s.newToken(), AutoScalingGroupARN: s.autoScalingGroupARN(h.group), AutoScalingGroupName: h.group.cfg.ID,
		Service: awsServiceText, Event: "autoscaling:TEST_NOTIFICATION", Time: s.milli(time.Now()),
	}, fmt.Sprintf("Auto Scaling: test notification for group %q", h.group.cfg.ID), nil)
}

// envelop wraps a message as SNS does for a queue.
func (s *Simulator) envelop(topic, subject, message string) string {
	host := "https://sns." + s.scenario.Region + ".amazonaws.com/"
	arn := s.awsARN("sns", topic)
	body, _ := json.Marshal(snsEnvelope{ // texts only: cannot fail
		Type: "Notification", MessageID: s.newToken(), TopicARN: arn, Subject: subject, Message: message, Timestamp: s.milli(time.Now()),
		SignatureVersion: "1", Signature: "c2ltdWxhdGVk", SigningCertURL: host + "SimpleNotificationService-0123.pem",
		UnsubscribeURL: host + "?Action=Unsubscribe&SubscriptionArn=" + arn + ":" + s.newToken()[:8],
	})
	return string(body)
}

// sendToBus sends an event on the bus to the queue of a rule. a is what it announces, if anything.
// It gives the event's id.
func (s *Simulator) sendToBus(queue string, e busEvent, a *action) string {
	e.Version, e.ID, e.Account, e.Region = "0", s.newToken(), s.account, s.scenario.Region
	e.Time = s.cloudTime(time.Now()).UTC().Format(time.RFC3339)
	body, _ := json.Marshal(e) // texts only: cannot fail
	s.after(s.scenario.EventBridge.Delay, func() { s.deliverSQS(queue, string(body), a) })
	return e.ID
}

var (
	groupEvents = map[string]map[string]string{
		scaleIn:  {activitySuccessful: "autoscaling:EC2_INSTANCE_TERMINATE", activityFailed: "autoscaling:EC2_INSTANCE_TERMINATE_ERROR"},
		scaleOut: {activitySuccessful: "autoscaling:EC2_INSTANCE_LAUNCH", activityFailed: "autoscaling:EC2_INSTANCE_LAUNCH_ERROR"},
	}
	groupDetails = map[string]string{
		"autoscaling:EC2_INSTANCE_TERMINATE": "EC2 Instance Terminate Successful", "autoscaling:EC2_INSTANCE_TERMINATE_ERROR": "EC2 Instance Terminate Unsuccessful",
		"autoscaling:EC2_INSTANCE_LAUNCH": "EC2 Instance Launch Successful", "autoscaling:EC2_INSTANCE_LAUNCH_ERROR": "EC2 Instance Launch Unsuccessful",
	}
)

// tellActivityAWS tells that an activity has ended, where the group's events go.
func (s *Simulator) tellActivityAWS(act *activity) {
	status := act.status
	switch status {
	case activityInProgress:
		return
	case activityCancelled:
		status = activityFailed
	}
	m := groupMessage{
		Progress: 100, AccountID: s.account, Description: act.description, RequestID: s.newToken(), EndTime: s.milli(act.end),
		AutoScalingGroupARN: s.autoScalingGroupARN(act.group), ActivityID: act.id, StartTime: s.milli(act.start), Service: awsServiceText,
		Time: s.milli(act.end), EC2InstanceID: act.ids[0], StatusCode: act.status, StatusMessage: act.message,
		Details: map[string]string{"Availability Zone": act.group.cfg.Zones[0], "Subnet ID": awsSubnet}, AutoScalingGroupName: act.group.cfg.ID,
		Cause: act.cause, Event: groupEvents[act.transition][status],
	}
	if act.group.cfg.Events == targetEventBus {
		detail := map[string]any{
			"StatusCode": m.StatusCode, "Description": m.Description, "AutoScalingGroupName": m.AutoScalingGroupName, "ActivityId": m.ActivityID,
			"Details": m.Details, "RequestId": m.ActivityID, "StatusMessage": m.StatusMessage, "EndTime": m.EndTime, "StartTime": m.StartTime,
			"EC2InstanceId": m.EC2InstanceID, "Cause": m.Cause, "Origin": act.way.origin, "Destination": act.way.destination,
		}
		s.sendToBus(s.scenario.EventBridge.Queue, busEvent{
			DetailType: groupDetails[m.Event], Source: "aws.autoscaling", Resources: []string{m.AutoScalingGroupARN, s.instanceARN(act.ids[0])}, Detail: detail,
		}, nil)
		return
	}
	queue := strings.TrimPrefix(act.group.cfg.Events, "queue/")
	body, _ := json.Marshal(m) // texts only: cannot fail
	word := map[string]string{scaleIn: "termination", scaleOut: "launch"}[act.transition]
	s.deliverSQS(queue, s.envelop(queue+topicSuffix, fmt.Sprintf("Auto Scaling: %s for group %q", word, act.group.cfg.ID), string(body)), nil)
}

// instanceARN names an instance.
func (s *Simulator) instanceARN(id string) string { return s.awsARN("ec2", "instance/"+id) }
