package messages

import (
	"cmp"
	"encoding/json"
	"strings"
)

// wireEvent is what we read of an event of EventBridge, which is a CloudEvent 1.0 with
// attributes of Alibaba Cloud's own.
type wireEvent struct {
	SpecVersion json.RawMessage `json:"specversion"`
	EventID     json.RawMessage `json:"id"`
	Type        json.RawMessage `json:"type"`
	Source      json.RawMessage `json:"source"`
	Subject     json.RawMessage `json:"subject"`
	Account     json.RawMessage `json:"aliyunaccountid"`
	Region      json.RawMessage `json:"aliyunregionid"`
	Bus         json.RawMessage `json:"aliyuneventbusname"`
	Published   json.RawMessage `json:"aliyunpublishtime"`
	Data        json.RawMessage `json:"data"`
}

func (w wireEvent) layer() Layer {
	published, _ := moment(w.Published) // of no use but to be read by people
	return Layer{Form: EventBridge, Bus: textOf(w.Bus), Type: textOf(w.Type), ID: textOf(w.EventID), Published: published.UTC()}
}

const (
	eventSource    = "acs.ess"
	eventLifecycle = "ess:LifecycleHook:"
	// eventTest is sent when somebody tries out a rule. It announces nothing.
	eventTest = eventLifecycle + "Test"
)

var eventTransitions = map[string]string{eventLifecycle + "ScaleIn": "SCALE_IN", eventLifecycle + "ScaleOut": "SCALE_OUT"}

// decodeEvent reads a lifecycle event in EventBridge's form. Its documentation names the
// types and the attributes, but does not show the data of these events. They are taken to be
// what the content of a hook's notification is; whether as the data, or as content in it, makes
// no difference here. An event of a lifecycle hook that has neither is malformed: it must
// not pass for an event of no concern.
func (m wireMessage) decodeEvent() (Notification, error) {
	name := textOf(m.Type)
	switch lifecycle := len(name) >= len(eventLifecycle) && strings.EqualFold(name[:len(eventLifecycle)], eventLifecycle); {
	case name == eventTest, !lifecycle && !m.marked():
		return Notification{}, &OtherError{Kind: kind("EventBridge", name)}
	case !lifecycle:
		return Notification{}, malformed("type", "must be "+eventLifecycle+"... for a lifecycle action, got "+quote(name))
	}
	transition, ok := eventTransitions[name]
	if !ok {
		return Notification{}, malformed("type", "a lifecycle event of another kind: "+quote(name))
	}
	if source := textOf(m.Source); m.Source != nil && source != eventSource {
		return Notification{}, malformed("source", "must be "+eventSource+", got "+quote(source))
	}
	if m.Data == nil {
		return Notification{}, malformed("data", "missing")
	}
	var d struct {
		Content     json.RawMessage `json:"content"`
		RegionID    string          `json:"regionId"`
		ResourceARN string          `json:"resourceArn"`
		Time        json.RawMessage `json:"time"`
		UserID      json.RawMessage `json:"userId"`
	}
	if err := unmarshal(m.Data, "data", &d); err != nil {
		return Notification{}, err
	}
	content, where := m.Data, "data"
	if d.Content != nil {
		content, where = d.Content, "data.content"
	}
	var c wireContent
	if err := unmarshal(content, where, &c); err != nil {
		return Notification{}, err
	}
	if c.LifecycleTransition == "" {
		c.LifecycleTransition = transition
	} else if c.LifecycleTransition != transition {
		return Notification{}, malformed(where+".lifecycleTransition", "contradicts the type "+name+", got "+quote(c.LifecycleTransition))
	}
	region := textOf(m.Region)
	if d.RegionID != "" && region != "" && d.RegionID != region {
		return Notification{}, malformed("data.regionId", "contradicts aliyunregionid, got "+quote(d.RegionID))
	}
	told := wireMessage{
		RegionID: cmp.Or(d.RegionID, region), ResourceARN: cmp.Or(d.ResourceARN, textOf(m.Subject)),
		Time: m.Time, UserID: m.Account,
	}
	if d.Time != nil {
		told.Time = d.Time // when the hook fired, not when the event was made of it
	}
	if d.UserID != nil {
		told.UserID = d.UserID
	}
	return notification(told, c, where+".", "aliyunregionid")
}
