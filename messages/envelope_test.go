package messages

import (
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// The same notification, whichever way it came.
func TestDecodeEnvelopes(t *testing.T) {
	t.Parallel()
	want, err := Decode(read(t, "hook.json"), Alibaba)
	if err != nil {
		t.Fatal(err)
	}
	published := time.UnixMilli(1529550478000).UTC()
	topic := func(f Form, tag string) Layer {
		return Layer{Form: f, Topic: "ess-events", Subscription: "usher", Tag: tag, ID: "6CC4D900CA59A2CD-1-15180534A8F-20000002", Published: published}
	}
	encoded := Layer{Form: Base64}
	event := Layer{
		Form: EventBridge, Bus: "default", Type: "ess:LifecycleHook:ScaleIn", ID: "45ef4dew-7c35-447a-bd93-fab1",
		Published: time.Date(2018, 6, 21, 3, 7, 58, 179e6, time.UTC), // written with PRC for a zone
	}
	for name, layers := range map[string][]Layer{
		"hook.json":                nil,
		"hook.base64":              {encoded},
		"hook.base64-twice":        {encoded, encoded},
		"topic.xml":                {topic(TopicXML, "drain"), encoded},
		"topic-plain.xml":          {topic(TopicXML, "")},
		"topic-xml.base64":         {encoded, topic(TopicXML, "drain"), encoded},
		"topic.json":               {topic(TopicJSON, ""), encoded},
		"topic-plain.json":         {topic(TopicJSON, "")},
		"topic-json.base64":        {encoded, topic(TopicJSON, ""), encoded},
		"eventbridge.json":         {event},
		"eventbridge-content.json": {event},
		"topic-eventbridge.xml":    {topic(TopicXML, "drain"), event},
	} {
		body := read(t, name)
		got, err := Decode(body, Alibaba)
		if err != nil || !reflect.DeepEqual(got, want) {
			if event := slices.ContainsFunc(layers, func(l Layer) bool { return l.Form == EventBridge }); err != nil || !event || !reflect.DeepEqual(got.Action, want.Action) {
				t.Errorf("%s: got %+v, %v\nwant %+v", name, got, err, want)
			}
		}
		if got := Layers(body, Alibaba); !reflect.DeepEqual(got, layers) {
			t.Errorf("%s: layers %+v\nwant %+v", name, got, layers)
		}
	}
}

func TestDecodeOtherEnvelopes(t *testing.T) {
	t.Parallel()
	for name, kind := range map[string]string{
		"topic-event.xml":              "ESS AUTOSCALING:SCALE_IN_SUCCESS",
		"topic-event.json":             "ESS AUTOSCALING:SCALE_IN_SUCCESS",
		"topic-spot.xml":               "ECS Instance:PreemptibleInstanceInterruption",
		"eventbridge-test.json":        "EventBridge ess:LifecycleHook:Test",
		"eventbridge-activity.json":    "EventBridge ess:ScalingActivity:ScaleInSuccess",
		"eventbridge-actiontrail.json": "EventBridge ess:ActionTrail:ApiCall",
	} {
		text := string(read(t, name))
		bodies := []string{text, b64(text)}
		if strings.HasPrefix(name, "eventbridge") {
			bodies = append(bodies, wrapped(t, text)...)
		}
		for _, body := range bodies {
			_, err := Decode([]byte(body), Alibaba)
			if other, ok := errors.AsType[*OtherError](err); !ok || other.Kind != kind {
				t.Errorf("%s: got %v, want kind %q", name, err, kind)
			}
		}
	}
	// What is no text decides nothing, and does not make an event of no concern a malformed one.
	for _, body := range []string{
		`{"product":"ECS","time":5,"event":{},"name":["x"],"type":1,"id":2,"source":{},"TopicName":"t","Message":{},"data":1}`,
		`{"product":"ECS","TopicName":7}`, `{"specversion":1.0,"type":"x","time":7,"aliyunregionid":[]}`,
	} {
		if _, err := Decode([]byte(body), Alibaba); !errors.Is(err, ErrNotLifecycle) {
			t.Errorf("%s: %v", body, err)
		}
	}
}

func TestDecodeMalformedEnvelopes(t *testing.T) {
	t.Parallel()
	hook := string(read(t, "hook.json"))
	bad := strings.Replace(hook, "i-bp1aaaaaaaaaaaaaaaa2", "i-$(reboot)", 1)
	replaced := func(text, old, new string) string {
		t.Helper()
		if !strings.Contains(text, old) {
			t.Fatalf("no %s in %s", old, text)
		}
		return strings.Replace(text, old, new, 1)
	}
	xmlOf, jsonOf := inXML(b64(hook)), inJSON(t, b64(hook))
	event := string(read(t, "eventbridge.json"))
	nested := string(read(t, "eventbridge-content.json"))
	const message = "<Message>"
	deep := strings.Repeat("<a>", maxDepth) + strings.Repeat("</a>", maxDepth)
	for _, c := range []struct{ name, body, where, reason string }{
		{"no message", "<Notification/>", "Message", "missing"},
		{"blank message", "<Notification><Message> </Message></Notification>", "Message", "missing"},
		{"no message in JSON", `{"TopicName":"t"}`, "Message", "missing"},
		{"message is null", `{"TopicName":"t","Message":null}`, "Message", "missing"},
		{"message is an object", `{"TopicName":"t","Message":{"product":"ESS"}}`, "Message", "must be text"},
		{"digest is a number", `{"TopicName":"t","Message":"e30=","MessageMD5":7}`, "MessageMD5", "must be text"},
		{"another digest in XML", replaced(xmlOf, digest(b64(hook)), digest("x")), "MessageMD5", "damaged"},
		{"another digest in JSON", replaced(jsonOf, digest(b64(hook)), digest("x")), "MessageMD5", "damaged"},
		{"no digest at all", `{"TopicName":"t","Message":"e30=","MessageMD5":"none"}`, "MessageMD5", "damaged"},
		{"HTML", "<!doctype html><html></html>", "body", "a comment or a directive"},
		{"another root", "<html><body>502</body></html>", "body", `its root is "html"`},
		{"a root that goes on", "<" + strings.Repeat("x", 5000) + "/>", "body", "its root is"},
		{"entities", `<!DOCTYPE n [<!ENTITY a "aaaa">]><Notification><Message>&a;</Message></Notification>`, "body", "directive"},
		{"unknown entity", replaced(xmlOf, message, message+"&a;"), "body", "no XML: XML syntax error"},
		{"external entity", `<?xml version="1.0"?><!DOCTYPE n SYSTEM "http://169.254.169.254/"><Notification/>`, "body", "directive"},
		{"another encoding", replaced(xmlOf, "UTF-8", "GBK"), "body", "no XML: xml: encoding"},
		{"processing instruction", `<?php x?>` + "<Notification/>", "body", "processing instruction"},
		{"declaration in the middle", replaced(xmlOf, message, `<?xml version="1.0"?>`+message), "body", "processing instruction"},
		{"comment", replaced(xmlOf, message, message+"<!-- x -->"), "body", "comment"},
		{"element in the message", replaced(xmlOf, message, message+"<b/>"), "Message", `has an element "b"`},
		{"message twice", replaced(xmlOf, message, message+"</Message>"+message), "Message", "twice"},
		{"text in the root", replaced(xmlOf, message, "x"+message), "body", "text between"},
		{"text behind", xmlOf + "x", "body", "more text behind"},
		{"root behind", xmlOf + "<Notification/>", "body", "more text behind"},
		{"text before the root", `<?xml version="1.0"?>x<Notification/>`, "body", "more text"},
		{"depth", replaced(xmlOf, message, deep+message), "body", "deeper than"},
		{"XML cut", xmlOf[:len(xmlOf)-20], "body", "no XML"},
		{"declaration alone", `<?xml version="1.0"?>`, "body", "no XML"},
		{"control character", "<Notification><Message>\x01</Message></Notification>", "body", "no XML"},
		{"no UTF-8", "<Notification><Message>\xff</Message></Notification>", "body", "no UTF-8"},
		{"Base64 of XML that is cut", b64(xmlOf[:100]), "body", "no XML"},
		{"text in an envelope", inXML("hello, world"), "Message > body", "neither"},
		{"blank in an envelope", inJSON(t, b64("   ")), "Message > body", "empty"},
		{"envelope in an envelope", inXML(xmlOf), "Message > body", "in a topic envelope"},
		{"JSON envelope in an envelope", inXML(b64(jsonOf)), "Message > body", "in a topic envelope"},
		{"three times Base64 in all", b64(inXML(b64(b64(hook)))), "Message > base64", "more than twice"},
		{"Base64 cut in an envelope", inXML(b64(hook)[:401]), "Message > base64", "cut short"},
		{"bad id in XML", inXML(b64(bad)), "Message > content.instanceIds[1]", "must match"},
		{"bad id in JSON", inJSON(t, bad), "Message > content.instanceIds[1]", "must match"},
		{"no UTF-8 in an envelope", inXML(b64("{\"a\":\"\xff\"}")), "Message > body", "no UTF-8"},
		{"half a notification", inJSON(t, `{"product":"ESS","content":{"lifecycleHookId":"ash-b"}}`), "Message > content.lifecycleTransition", "SCALE_IN or SCALE_OUT"},

		{"event without data", `{"specversion":"1.0","type":"ess:LifecycleHook:ScaleIn"}`, "data", "missing"},
		{"event with empty data", `{"specversion":"1.0","type":"ess:LifecycleHook:ScaleIn","aliyunregionid":"cn-shenzhen","data":{}}`, "data.scalingGroupId", "must match"},
		{"event with data in text", `{"specversion":"1.0","type":"ess:LifecycleHook:ScaleIn","data":"{}"}`, "data", "string"},
		{"event with content in text", `{"specversion":"1.0","type":"ess:LifecycleHook:ScaleIn","data":{"content":"x"}}`, "data.content", "string"},
		{"lifecycle event of another kind", replaced(event, "ess:LifecycleHook:ScaleIn", "ess:LifecycleHook:Sideways"), "type", "Sideways"},
		{"another source", replaced(event, `"acs.ess"`, `"my.own"`), "source", "my.own"},
		{"type and transition", replaced(event, "ess:LifecycleHook:ScaleIn", "ess:LifecycleHook:ScaleOut"), "data.lifecycleTransition", "contradicts"},
		{"bad id in an event", replaced(event, "i-bp1aaaaaaaaaaaaaaaa2", "i-$(reboot)"), "data.instanceIds[1]", "must match"},
		{"bad id in an event's content", replaced(nested, "i-bp1aaaaaaaaaaaaaaaa2", "i-$(reboot)"), "data.content.instanceIds[1]", "must match"},
		{"two regions", replaced(nested, `"aliyunregionid": "cn-shenzhen"`, `"aliyunregionid": "cn-hangzhou"`), "data.regionId", "contradicts"},
		{"no region", replaced(event, `"aliyunregionid": "cn-shenzhen"`, `"aliyunregionid": 7`), "aliyunregionid", "must match"},
		{"time of an event", replaced(event, `"2018-06-21T11:07:57.641+08:00"`, `"soon"`), "time", "soon"},
		{"bad id in an event in an envelope", inXML(replaced(event, `"scalingGroupId": "asg-`, `"scalingGroupId": "x-`)), "Message > data.scalingGroupId", "must match"},
	} {
		_, err := Decode([]byte(c.body), Alibaba)
		m, ok := errors.AsType[*MalformedError](err)
		if !ok || !errors.Is(err, ErrMalformed) || errors.Is(err, ErrNotLifecycle) {
			t.Errorf("%s: got %v, want a *MalformedError", c.name, err)
			continue
		}
		if m.Where != c.where || !strings.Contains(m.Reason, c.reason) {
			t.Errorf("%s: got %v, want %s: ...%s...", c.name, err, c.where, c.reason)
		}
		if len(m.Reason) > 400 {
			t.Errorf("%s: a reason of %d bytes", c.name, len(m.Reason))
		}
	}
}

// What is not confirmed of EventBridge's form is read in each way that it could be.
func TestDecodeEventVariants(t *testing.T) {
	t.Parallel()
	var e map[string]any
	if err := json.Unmarshal(read(t, "eventbridge.json"), &e); err != nil {
		t.Fatal(err)
	}
	want, err := Decode(read(t, "hook.json"), Alibaba)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(){
		"no publish time":             func() { delete(e, "aliyunpublishtime") },
		"publish time of no form":     func() { e["aliyunpublishtime"] = 7 },
		"time in Beijing":             func() { e["time"] = "2018-06-21T11:07:57.641PRC" },
		"account as number":           func() { e["aliyunaccountid"] = 111111111111111 },
		"no transition but in a type": func() { delete(e["data"].(map[string]any), "lifecycleTransition") },
		"no source":                   func() { delete(e, "source") },
		"unknown attributes":          func() { e["traceparent"] = []int{1} },
	} {
		change()
		got, err := Decode([]byte(marshal(t, e)), Alibaba)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v\nwant %+v", name, got, err, want)
		}
	}
	delete(e, "time")
	if n, err := Decode([]byte(marshal(t, e)), Alibaba); err != nil || !n.Time.IsZero() {
		t.Errorf("without a time: %+v, %v", n, err)
	}
}

// A pretty-printed envelope has blanks around its values; newer ones have parts of their own.
func TestDecodeEnvelopeVariants(t *testing.T) {
	t.Parallel()
	want, err := Decode(read(t, "hook.json"), Alibaba)
	if err != nil {
		t.Fatal(err)
	}
	coded := b64(string(read(t, "hook.json")))
	for name, body := range map[string]string{
		"blanks":         "<Notification>\n <Message>\n  " + coded + "\n </Message>\n <MessageMD5> " + strings.ToLower(digest(coded)) + " </MessageMD5>\n</Notification>",
		"no digest":      "<Notification><Message>" + coded + "</Message></Notification>",
		"empty digest":   `{"TopicName":"t","Message":"` + coded + `","MessageMD5":""}`,
		"prefix":         `<m:Notification xmlns:m="http://mns.aliyuncs.com/doc/v1/"><m:Message>` + coded + `</m:Message></m:Notification>`,
		"CDATA":          "<Notification><Message><![CDATA[" + string(read(t, "hook.json")) + "]]></Message></Notification>",
		"newer parts":    "<Notification><Message>" + coded + "</Message><UserProperties><PropertyValue><Name>Message</Name></PropertyValue></UserProperties></Notification>",
		"odd times":      `{"TopicName":"t","Message":"` + coded + `","PublishTime":{}}`,
		"as in a pretty": strings.ReplaceAll(inXML(coded), "><", ">\r\n<"),
	} {
		if got, err := Decode([]byte(body), Alibaba); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v\nwant %+v", name, got, err, want)
		}
	}
}
