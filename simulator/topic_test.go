package simulator

import (
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// oneTopic is topic t with a subscription of queue q in each form, and the queues q and q2.
func oneTopic(subscriptions ...SubscriptionConfig) Scenario {
	sc := oneQueue()
	sc.Queues = append(sc.Queues, QueueConfig{Name: "q2"})
	sc.Topics = []TopicConfig{{Name: "t", Subscriptions: subscriptions}}
	return sc
}

func endpoint(queue string) string {
	return "<Endpoint>acs:mns:cn-shenzhen:" + DefaultAccountID + ":queues/" + queue + "</Endpoint>"
}

// xmlNotification is an envelope as the wire has it.
type xmlNotification struct {
	XMLName                                                                                                      xml.Name `xml:"http://mns.aliyuncs.com/doc/v1/ Notification"`
	TopicOwner, TopicName, Subscriber, SubscriptionName, MessageId, Message, MessageMD5, MessageTag, PublishTime string
}

func TestTopicOperations(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: oneQueue()})
	r := w.must(201, "PUT", "/topics/t1", "")
	if l := r.header.Get("Location"); !strings.HasSuffix(l, "/topics/t1") {
		t.Errorf("location %q", l)
	}
	w.must(204, "PUT", "/topics/t1", `<Topic xmlns="http://mns.aliyuncs.com/doc/v1/"><MaximumMessageSize>65536</MaximumMessageSize></Topic>`)
	w.refused(409, "TopicAlreadyExist", "PUT", "/topics/t1", "<Topic><MaximumMessageSize>2048</MaximumMessageSize></Topic>")
	w.refused(400, "InvalidArgument", "PUT", "/topics/t2", "<Topic><MaximumMessageSize>7</MaximumMessageSize></Topic>")
	w.refused(400, "MalformedXML", "PUT", "/topics/t2", "<Topic>")
	w.refused(400, "TopicNameInvalid", "PUT", "/topics/-t", "")
	w.refused(400, "TopicNameLengthError", "PUT", "/topics/"+strings.Repeat("t", 256), "")
	w.must(204, "PUT", "/topics/t1?metaoverride=true", "<Topic><MaximumMessageSize>1024</MaximumMessageSize><LoggingEnabled>True</LoggingEnabled></Topic>")
	w.refused(404, "TopicNotExist", "PUT", "/topics/none?metaoverride=true", "<Topic/>")
	w.refused(400, "InvalidArgument", "PUT", "/topics/t1?metaoverride=true", "<Topic><MaximumMessageSize>x</MaximumMessageSize></Topic>")
	w.refused(400, "InvalidArgument", "PUT", "/topics/t1?metaoverride=true", "<Queue/>")
	r = w.must(200, "GET", "/topics/t1", "")
	for _, want := range []string{"<Topic xmlns", "<TopicName>t1<", "<MaximumMessageSize>1024<", "<MessageRetentionPeriod>86400<", "<LoggingEnabled>true<", "<CreateTime>"} {
		if !strings.Contains(r.body, want) {
			t.Errorf("no %s in %s", want, r.body)
		}
	}
	w.refused(404, "TopicNotExist", "GET", "/topics/none", "")

	w.must(201, "PUT", "/topics/t2", "")
	w.must(201, "PUT", "/topics/u", "")
	page := func(path string, header ...string) string {
		t.Helper()
		return w.must(200, "GET", path, "", func(r *http.Request) {
			date := r.Header.Get("Date")
			for i := 0; i < len(header); i += 2 {
				r.Header.Set(header[i], header[i+1])
			}
			r.Header.Set("Authorization", "MNS "+w.id+":"+signMNS(w.secret, "GET", path, date, r.Header))
		}).body
	}
	if b := page("/topics", "x-mns-prefix", "t", "x-mns-ret-number", "1"); strings.Count(b, "<TopicURL>") != 1 || !strings.Contains(b, "<NextMarker>t2</NextMarker>") {
		t.Errorf("first page %s", b)
	}
	if b := page("/topics", "x-mns-prefix", "t", "x-mns-marker", "t2"); !strings.Contains(b, "/topics/t2</TopicURL>") || strings.Contains(b, "NextMarker") || strings.Contains(b, "/u<") {
		t.Errorf("second page %s", b)
	}
	w.must(204, "DELETE", "/topics/t2", "")
	w.must(204, "DELETE", "/topics/t2", "")
	w.refused(404, "TopicNotExist", "POST", "/topics/t2/messages", "<Message><MessageBody>x</MessageBody></Message>")
	for _, bad := range []string{"/topics/t1/x", "/topics/t1/subscriptions/s/x", "/topics/t1/messages/1", "/topics//messages/x/y"} {
		w.refused(400, "InvalidRequestURL", "GET", bad, "")
	}
	w.refused(400, "InvalidRequestURL", "POST", "/topics/t1", "")
	w.refused(400, "InvalidQueryString", "GET", "/topics/t1?x=1", "")
	w.refused(403, "SignatureDoesNotMatch", "PUT", "/topics/t3", "", func(r *http.Request) { r.URL.Path = "/topics/t4" })
	w.refused(400, "InvalidArgument", "GET", "/topics", "", func(r *http.Request) {
		r.Header.Set("x-mns-ret-number", "0")
		r.Header.Set("Authorization", "MNS "+w.id+":"+signMNS(w.secret, "GET", "/topics", r.Header.Get("Date"), r.Header))
	})
}

func TestSubscriptionOperations(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: oneTopic()})
	const path = "/topics/t/subscriptions/s"
	subscription := func(text string) string {
		return `<?xml version="1.0" encoding="UTF-8"?><Subscription xmlns="http://mns.aliyuncs.com/doc/v1/">` + text + "</Subscription>"
	}
	r := w.must(201, "PUT", path, subscription(endpoint("q")+"<FilterTag>drain</FilterTag>"))
	if l := r.header.Get("Location"); !strings.HasSuffix(l, path) {
		t.Errorf("location %q", l)
	}
	w.must(204, "PUT", path, subscription(endpoint("q")+"<FilterTag>drain</FilterTag><NotifyStrategy>BACKOFF_RETRY</NotifyStrategy><NotifyContentFormat>XML</NotifyContentFormat>"))
	w.refused(409, "SubscriptionAlreadyExist", "PUT", path, subscription(endpoint("q")))
	w.refused(404, "TopicNotExist", "PUT", "/topics/none/subscriptions/s", subscription(endpoint("q")))
	w.refused(400, "SubscriptionNameInvalid", "PUT", "/topics/t/subscriptions/_", subscription(endpoint("q")))
	w.refused(400, "SubscriptionNameLengthError", "PUT", "/topics/t/subscriptions/"+strings.Repeat("s", 256), subscription(endpoint("q")))
	for _, bad := range []string{
		"", "<Endpoint>http://example.test/</Endpoint>", "<Endpoint>mail:directmail:a@example.test</Endpoint>",
		"<Endpoint>acs:mns:cn-hangzhou:" + DefaultAccountID + ":queues/q</Endpoint>", "<Endpoint>acs:mns:cn-shenzhen:1:queues/q</Endpoint>",
		"<Endpoint>acs:mns:cn-shenzhen:" + DefaultAccountID + ":queue/q</Endpoint>", endpoint("a/b"),
	} {
		w.refused(400, "EndpointInvalid", "PUT", "/topics/t/subscriptions/x", subscription(bad))
	}
	for _, bad := range []string{"<NotifyContentFormat>YAML</NotifyContentFormat>", "<NotifyStrategy>NEVER</NotifyStrategy>", "<FilterTag>" + strings.Repeat("x", 17) + "</FilterTag>"} {
		w.refused(400, "InvalidArgument", "PUT", "/topics/t/subscriptions/x", subscription(endpoint("q")+bad))
		w.refused(400, "InvalidArgument", "PUT", path+"?metaoverride=true", subscription(bad))
	}
	w.refused(400, "MalformedXML", "PUT", path, "<Subscription>")
	w.refused(400, "MalformedXML", "PUT", path+"?metaoverride=true", "")
	w.refused(400, "EndpointInvalid", "PUT", path+"?metaoverride=true", subscription(endpoint("q2")))

	w.must(204, "PUT", path+"?metaoverride=true", subscription("<NotifyStrategy>EXPONENTIAL_DECAY_RETRY</NotifyStrategy><NotifyContentFormat>JSON</NotifyContentFormat>"))
	w.refused(404, "SubscriptionNotExist", "PUT", "/topics/t/subscriptions/x?metaoverride=true", subscription(""))
	w.refused(404, "TopicNotExist", "PUT", "/topics/x/subscriptions/x?metaoverride=true", subscription(""))
	r = w.must(200, "GET", path, "")
	for _, want := range []string{
		"<Subscription xmlns", "<TopicName>t<", "<SubscriptionName>s<", ":queues/q</Endpoint>", "<FilterTag>drain<", "<NotifyStrategy>EXPONENTIAL_DECAY_RETRY<",
		"<NotifyContentFormat>JSON<", "<TopicOwner>" + DefaultAccountID + "<", "<LastModifyTime>",
	} {
		if !strings.Contains(r.body, want) {
			t.Errorf("no %s in %s", want, r.body)
		}
	}
	w.refused(404, "SubscriptionNotExist", "GET", "/topics/t/subscriptions/x", "")
	w.must(201, "PUT", "/topics/t/subscriptions/s2", subscription(endpoint("q2")))
	if b := w.must(200, "GET", "/topics/t/subscriptions", "").body; strings.Count(b, "<SubscriptionURL>") != 2 || !strings.Contains(b, "<Subscriptions xmlns") {
		t.Errorf("listed %s", b)
	}
	w.refused(404, "TopicNotExist", "GET", "/topics/x/subscriptions", "")
	w.must(204, "DELETE", path, "")
	w.must(204, "DELETE", path, "")
	w.refused(404, "TopicNotExist", "DELETE", "/topics/x/subscriptions/s", "")
	for i := range maxSubscribers - 1 {
		w.must(201, "PUT", fmt.Sprintf("/topics/t/subscriptions/n%d", i), subscription(endpoint("q")))
	}
	w.refused(400, "InvalidArgument", "PUT", path, subscription(endpoint("q")))
}

// Each subscription gets what passes its filter, in its form.
func TestPublish(t *testing.T) {
	t.Parallel()
	sc := oneTopic(
		SubscriptionConfig{Name: "all", Queue: "q"},
		SubscriptionConfig{Name: "some", Queue: "q2", FilterTag: "drain", ContentFormat: "JSON"},
	)
	w := start(t, Options{Scenario: sc})
	const body = `{"a":"<&>"}`
	r := w.must(201, "POST", "/topics/t/messages", "<Message><MessageBody>"+strings.NewReplacer("<", "&lt;", "&", "&amp;").Replace(body)+"</MessageBody><MessageTag>drain</MessageTag></Message>")
	var sent struct{ MessageId, MessageBodyMD5 string }
	if err := xml.Unmarshal([]byte(r.body), &sent); err != nil || sent.MessageId == "" || len(sent.MessageBodyMD5) != 32 {
		t.Fatalf("answer %s, %v", r.body, err)
	}
	var x xmlNotification
	if err := xml.Unmarshal([]byte(w.receiveOne("q", "0").MessageBody), &x); err != nil {
		t.Fatal(err)
	}
	if x.Message != body || x.MessageId != sent.MessageId || x.MessageMD5 != sent.MessageBodyMD5 || x.TopicName != "t" || x.SubscriptionName != "all" || x.MessageTag != "drain" || x.TopicOwner != DefaultAccountID {
		t.Errorf("envelope %+v", x)
	}
	text := w.receiveOne("q2", "0").MessageBody
	var j map[string]string // all values are texts
	if err := json.Unmarshal([]byte(text), &j); err != nil || j["Message"] != body || j["MessageId"] != sent.MessageId || j["PublishTime"] != x.PublishTime || j["MessageTag"] != "drain" {
		t.Errorf("envelope %s, %v", text, err)
	}
	w.must(201, "POST", "/topics/t/messages", "<Message><MessageBody>x</MessageBody></Message>")
	w.refused(404, "MessageNotExist", "GET", "/queues/q2/messages", "")
	if b := w.receiveOne("q", "0").MessageBody; strings.Contains(b, "MessageTag") {
		t.Errorf("a tag in %s", b)
	}
	w.refused(400, "InvalidArgument", "POST", "/topics/t/messages", "<Message><MessageBody></MessageBody></Message>")
	w.refused(400, "InvalidArgument", "POST", "/topics/t/messages", "<Message><MessageBody>x</MessageBody><MessageTag>"+strings.Repeat("x", 17)+"</MessageTag></Message>")
	w.refused(400, "MalformedXML", "POST", "/topics/t/messages", "<Message>")

	st, ok := w.State().Topic("t")
	want := []SubscriptionState{
		{Name: "all", Queue: "q", ContentFormat: "XML", Strategy: "BACKOFF_RETRY", Pushed: 2},
		{Name: "some", Queue: "q2", ContentFormat: "JSON", FilterTag: "drain", Strategy: "BACKOFF_RETRY", Pushed: 1},
	}
	if !ok || st.Published != 2 || !slices.Equal(st.Subscriptions, want) {
		t.Errorf("state %+v", st)
	}
	if w.State().APICalls["mns.PublishMessage"] != 5 {
		t.Errorf("calls %v", w.State().APICalls)
	}
	if r := w.control("POST", "/simulator/topics/t/messages", `{"body": "by control", "tag": "drain"}`); r.status != 201 {
		t.Errorf("control: %v", r)
	}
	for body, status := range map[string]int{`{"body": ""}`: 400, `{"body": "x", "tag": "12345678901234567"}`: 400, `{"text": "x"}`: 400} {
		if r := w.control("POST", "/simulator/topics/t/messages", body); r.status != status {
			t.Errorf("control %s: %v", body, r)
		}
	}
	if r := w.control("POST", "/simulator/topics/none/messages", `{"body": "x"}`); r.status != 404 {
		t.Errorf("control: %v", r)
	}
}

// A message waits for its queue as long as the strategy says, and is dropped then.
func TestPushRetries(t *testing.T) {
	t.Parallel()
	sc := oneTopic(
		SubscriptionConfig{Name: "few", Queue: "q2"},
		SubscriptionConfig{Name: "many", Queue: "q2", Strategy: "EXPONENTIAL_DECAY_RETRY", ContentFormat: "SIMPLIFIED", Encoding: "base64"},
	)
	bubble(t, Options{Scenario: sc}, func(w *world) {
		w.must(204, "DELETE", "/queues/q2", "")
		if _, err := w.Publish("t", "hello", ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute + time.Second)
		if dropped := w.types(MessageDropped); len(dropped) != 1 {
			t.Errorf("%d messages dropped after a minute, want that of one subscription", len(dropped))
		}
		w.must(201, "PUT", "/queues/q2", "")
		if b := w.receiveOne("q2", "30").MessageBody; b != base64.StdEncoding.EncodeToString([]byte("hello")) {
			t.Errorf("the queue has %s", b)
		}
		w.must(204, "DELETE", "/queues/q2", "")
		w.Publish("t", "hello", "")
		time.Sleep(20 * time.Hour)
		if n := len(w.types(MessageDropped)); n != 2 {
			t.Errorf("%d messages dropped after a day less four hours, want two", n)
		}
		time.Sleep(6 * time.Hour)
		if n := len(w.types(MessageDropped)); n != 3 {
			t.Errorf("%d messages dropped after more than a day, want three", n)
		}
		// An end of the subscription, or the topic, is the end of its retries.
		w.Publish("t", "hello", "")
		w.must(204, "DELETE", "/topics/t/subscriptions/few", "")
		w.must(204, "DELETE", "/topics/t", "")
		time.Sleep(48 * time.Hour)
		if n := len(w.types(MessageDropped)); n != 3 {
			t.Errorf("%d messages dropped", n)
		}
	})
}

// What a hook and a group have to say, by each way.
func TestTargets(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		target, format, encoding string
		bus                      EventBridgeConfig
		arn                      string
	}{
		"queue":             {target: "queue/q", encoding: "base64", arn: "acs:mns:cn-shenzhen:" + DefaultAccountID + ":queue/q"},
		"topic, SIMPLIFIED": {target: "topic/t", format: "SIMPLIFIED", encoding: "plain", arn: "acs:mns:cn-shenzhen:" + DefaultAccountID + ":topic/t"},
		"topic, XML":        {target: "topic/t", format: "XML", encoding: "base64", arn: "acs:mns:cn-shenzhen:" + DefaultAccountID + ":topic/t"},
		"topic, JSON":       {target: "topic/t", format: "JSON", encoding: "base64", arn: "acs:mns:cn-shenzhen:" + DefaultAccountID + ":topic/t"},
		"bus":               {target: targetEventBus, bus: EventBridgeConfig{Queue: "q"}, arn: "acs:eventbridge:cn-shenzhen:" + DefaultAccountID + ":eventbus/default"},
		"bus, content":      {target: targetEventBus, bus: EventBridgeConfig{Queue: "q", Data: "content", Encoding: "base64"}, arn: "acs:eventbridge:cn-shenzhen:" + DefaultAccountID + ":eventbus/default"},
		"nobody":            {arn: "acs:ess:cn-shenzhen:" + DefaultAccountID + ":null/null"},
		"bus without rule":  {target: targetEventBus, arn: "acs:eventbridge:cn-shenzhen:" + DefaultAccountID + ":eventbus/default"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sc := oneTopic(SubscriptionConfig{Name: "s", Queue: "q", ContentFormat: c.format})
			sc.EventBridge = c.bus
			sc.ScalingGroups = []GroupConfig{{ID: "asg-1", Name: "web", Instances: 2, Events: c.target, Hooks: []HookConfig{
				{ID: "ash-1", Transition: scaleIn, Target: c.target, Encoding: c.encoding},
			}}}
			w := start(t, Options{Scenario: sc, NoServers: true})
			act, err := w.ScaleIn("asg-1", 1)
			if err != nil {
				t.Fatal(err)
			}
			hooks := w.call(essOld, "DescribeLifecycleHooks", "ScalingGroupId", "asg-1")
			if arn := hooks["LifecycleHooks"].(map[string]any)["LifecycleHook"].([]any)[0].(map[string]any)["NotificationArn"]; arn != c.arn {
				t.Errorf("the hook notifies %v, want %s", arn, c.arn)
			}
			if c.target == "" || c.target == targetEventBus && c.bus.Queue == "" {
				w.refused(404, "MessageNotExist", "GET", "/queues/q/messages", "")
				return
			}
			w.complete("ash-1", act.Tokens[0], "CONTINUE")
			var kinds []string
			for range 3 {
				kind, token := unwrapped(t, w.receiveOne("q", "0").MessageBody)
				kinds = append(kinds, kind)
				if token != "" && token != act.Tokens[0] {
					t.Errorf("token %s", token)
				}
			}
			want := []string{"AUTOSCALING:SCALE_IN_START", "ash-1", "AUTOSCALING:SCALE_IN_SUCCESS"}
			if c.target == targetEventBus {
				want = []string{"ess:ScalingActivity:ScaleInStart", "ess:LifecycleHook:ScaleIn ash-1", "ess:ScalingActivity:ScaleInSuccess"}
			}
			if !slices.Equal(kinds, want) {
				t.Errorf("the queue had %q, want %q", kinds, want)
			}
			w.refused(404, "MessageNotExist", "GET", "/queues/q/messages", "")
		})
	}
}

// unwrapped reads a message in whatever form, and gives its kind and token.
func unwrapped(t *testing.T, body string) (kind, token string) {
	t.Helper()
	switch {
	case strings.HasPrefix(body, "<"):
		var x xmlNotification
		if err := xml.Unmarshal([]byte(body), &x); err != nil {
			t.Fatal(err)
		}
		return unwrapped(t, x.Message)
	case !strings.HasPrefix(body, "{"):
		b, err := base64.StdEncoding.DecodeString(body)
		if err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		return unwrapped(t, string(b))
	}
	var m struct {
		Message, Event, Type, Aliyunpublishtime string
		Content                                 struct{ LifecycleHookId, LifecycleActionToken string }
		Data                                    struct {
			LifecycleHookId, LifecycleActionToken string
			Content                               struct{ LifecycleHookId, LifecycleActionToken string }
		}
	}
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	switch {
	case m.Message != "":
		return unwrapped(t, m.Message)
	case m.Type != "":
		if !strings.HasSuffix(m.Aliyunpublishtime, "PRC") {
			t.Errorf("published at %s", m.Aliyunpublishtime)
		}
		return strings.TrimSpace(m.Type + " " + m.Data.LifecycleHookId + m.Data.Content.LifecycleHookId), m.Data.LifecycleActionToken + m.Data.Content.LifecycleActionToken
	}
	return m.Event + m.Content.LifecycleHookId, m.Content.LifecycleActionToken
}

// Faults strike what the cloud publishes by itself too.
func TestTopicFaults(t *testing.T) {
	t.Parallel()
	sc := oneTopic(SubscriptionConfig{Name: "s", Queue: "q"})
	sc.Topics[0].Delay = 5 * time.Second
	sc.ScalingGroups = []GroupConfig{{ID: "asg-1", Instances: 9, Hooks: []HookConfig{{ID: "ash-1", Transition: scaleIn, Target: "topic/t"}}}}
	bubble(t, Options{Scenario: sc}, func(w *world) {
		inject := func(action string, kind FaultKind) {
			t.Helper()
			if _, err := w.InjectFault(Fault{Service: "mns", Action: action, Kind: kind, Count: 1}); err != nil {
				t.Fatal(err)
			}
		}
		scaleIn := func() {
			t.Helper()
			if _, err := w.ScaleIn("asg-1", 1); err != nil {
				t.Fatal(err)
			}
			w.refused(404, "MessageNotExist", "GET", "/queues/q/messages?waitseconds=0", "")
			time.Sleep(6 * time.Second)
		}
		inject("PublishMessage", FaultDuplicate)
		scaleIn()
		if got := w.receiveBatch("q", 16); len(got) != 2 || got[0].MessageBody == got[1].MessageBody {
			t.Errorf("published twice, %d messages", len(got))
		}
		inject("SendMessage", FaultDuplicate)
		scaleIn()
		if got := w.receiveBatch("q", 16); len(got) != 2 || got[0].MessageBody != got[1].MessageBody {
			t.Errorf("pushed twice, %d messages", len(got))
		}
		inject("PublishMessage", FaultCorrupt)
		scaleIn()
		var x xmlNotification
		if err := xml.Unmarshal([]byte(w.receiveOne("q", "0").MessageBody), &x); err != nil || !strings.HasPrefix(x.Message, "~") {
			t.Errorf("envelope %+v, %v", x, err)
		}
		inject("SendMessage", FaultCorrupt)
		scaleIn()
		if b := w.receiveOne("q", "0").MessageBody; !strings.HasPrefix(b, "~") {
			t.Errorf("body %s", b)
		}
		const publish = "<Message><MessageBody>x</MessageBody></Message>"
		inject("PublishMessage", FaultThrottle)
		w.refused(429, "TooManyRequests", "POST", "/topics/t/messages", publish)
		inject("PublishMessage", FaultDuplicate)
		w.must(201, "POST", "/topics/t/messages", publish)
		inject("PublishMessage", FaultCorrupt)
		w.must(201, "POST", "/topics/t/messages", publish)
		time.Sleep(6 * time.Second)
		got := w.receiveBatch("q", 16)
		if len(got) != 3 || !strings.Contains(got[2].MessageBody, "<Message>~") {
			t.Errorf("%d messages, %+v", len(got), got)
		}
	})
}

func TestBadTopics(t *testing.T) {
	t.Parallel()
	for want, change := range map[string]func(*Scenario){
		`topics[0].name: "-t" does not match`:                                          func(s *Scenario) { s.Topics[0].Name = "-t" },
		"topics[0].name: at most 255":                                                  func(s *Scenario) { s.Topics[0].Name = strings.Repeat("t", 256) },
		"topics[0].max_message_size: must be 1024 to 65536":                            func(s *Scenario) { s.Topics[0].MaxMessageSize = 7 },
		"topics[0].delay: must be 0s to 24h":                                           func(s *Scenario) { s.Topics[0].Delay = -1 },
		`topics[0].subscriptions[0].queue: no queue "x"`:                               func(s *Scenario) { s.Topics[0].Subscriptions[0].Queue = "x" },
		`topics[0].subscriptions[0].content_format: must be one of XML`:                func(s *Scenario) { s.Topics[0].Subscriptions[0].ContentFormat = "xml" },
		`topics[0].subscriptions[0].strategy: must be one of BACKOFF_RETRY`:            func(s *Scenario) { s.Topics[0].Subscriptions[0].Strategy = "x" },
		`topics[0].subscriptions[0].encoding: must be one of base64`:                   func(s *Scenario) { s.Topics[0].Subscriptions[0].Encoding = "x" },
		`topics[0].subscriptions[0].filter_tag: at most 16 characters`:                 func(s *Scenario) { s.Topics[0].Subscriptions[0].FilterTag = strings.Repeat("x", 17) },
		"topics[0].subscriptions: at most 100":                                         func(s *Scenario) { s.Topics[0].Subscriptions = make([]SubscriptionConfig, 101) },
		`eventbridge.queue: no queue "x"; there are q, q2`:                             func(s *Scenario) { s.EventBridge.Queue = "x" },
		`eventbridge.data: must be one of data, content`:                               func(s *Scenario) { s.EventBridge.Data = "x" },
		`eventbridge.encoding: must be one of base64`:                                  func(s *Scenario) { s.EventBridge.Encoding = "x" },
		`scaling_groups[0].hooks[0].target: no topic "x"; there are t`:                 func(s *Scenario) { s.ScalingGroups[0].Hooks[0].Target = "topic/x" },
		`scaling_groups[0].hooks[0].target: no queue "x"`:                              func(s *Scenario) { s.ScalingGroups[0].Hooks[0].Target = "queue/x" },
		`scaling_groups[0].hooks[0].target: must be queue/{name}, topic/{name} or`:     func(s *Scenario) { s.ScalingGroups[0].Hooks[0].Target = "mail/x" },
		`scaling_groups[0].hooks[0].target: the hook has queue already`:                func(s *Scenario) { s.ScalingGroups[0].Hooks[0].Queue = "q" },
		`scaling_groups[0].events: must be queue/{name}, topic/{name} or eventbus/def`: func(s *Scenario) { s.ScalingGroups[0].Events = "eventbus/other" },
	} {
		sc := oneTopic(SubscriptionConfig{Name: "s", Queue: "q"})
		sc.ScalingGroups = []GroupConfig{{ID: "asg-1", Hooks: []HookConfig{{ID: "ash-1", Transition: scaleIn, Target: "topic/t"}}}}
		change(&sc)
		if _, err := New(Options{AccessKeyID: testKey, AccessKeySecret: testSecret, Scenario: sc}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	_, err := parseScenario("f.yaml", []byte("queues: [{name: q}]\ntopics:\n- name: t\n  subscriptions:\n  - {name: s, queue: q, format: XML}\n"))
	if err == nil || !strings.Contains(err.Error(), `f.yaml:5: unknown key "format"; allowed are name, queue, filter_tag, content_format`) {
		t.Errorf("scenario: %v", err)
	}
}

func TestTopicPolicy(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: oneTopic(SubscriptionConfig{Name: "s", Queue: "q"}), AccountID: "1"})
	const publish = "<Message><MessageBody>x</MessageBody></Message>"
	for _, c := range []struct{ method, target, body, action, resource string }{
		{"POST", "/topics/t/messages", publish, "mns:PublishMessage", "/topics/t/messages"},
		{"GET", "/topics/t", "", "mns:GetTopicAttributes", "/topics/t"},
		{"GET", "/topics", "", "mns:ListTopic", "/topics"},
		{"GET", "/topics/t/subscriptions", "", "mns:ListSubscriptionByTopic", "/topics/t/subscriptions"},
		{"GET", "/topics/t/subscriptions/s", "", "mns:GetSubscriptionAttributes", "/topics/t/subscriptions/s"},
		{"DELETE", "/topics/t/subscriptions/none", "", "mns:Unsubscribe", "/topics/t/subscriptions/none"},
	} {
		only := func(action, resource string) {
			w.SetPolicy(policy(t, `{"Version":"1","Statement":[{"Effect":"Allow","Action":"`+action+`","Resource":"acs:mns:cn-shenzhen:1:`+resource+`"}]}`))
		}
		only(c.action, c.resource)
		if r, err := w.mns(c.method, c.target, c.body); err != nil || strings.Contains(r.body, "AccessDenied") {
			t.Errorf("%s %s with %s: %v, %v", c.method, c.target, c.action, r, err)
		}
		only(c.action, c.resource+"x")
		w.refused(403, "AccessDenied", c.method, c.target, c.body)
		only("mns:ReceiveMessage", c.resource)
		w.refused(403, "AccessDenied", c.method, c.target, c.body)
	}
}
