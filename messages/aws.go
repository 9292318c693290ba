package messages

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The words of AWS that a message is told apart by (Auto Scaling 2011-01-01, SNS, EventBridge).
const (
	awsTransition   = "autoscaling:EC2_INSTANCE_"
	awsTerminating  = awsTransition + "TERMINATING"
	awsLaunching    = awsTransition + "LAUNCHING"
	awsTest         = "autoscaling:TEST_NOTIFICATION"
	awsNotification = "Notification"

	sourceScaling = "aws.autoscaling"
	sourceEC2     = "aws.ec2"
	sourceHealth  = "aws.health"

	detailLifecycle = " Lifecycle Action"
	detailTerminate = "EC2 Instance-terminate" + detailLifecycle
	detailLaunch    = "EC2 Instance-launch" + detailLifecycle
	detailSpot      = "EC2 Spot Instance Interruption Warning"
	detailRebalance = "EC2 Instance Rebalance Recommendation"
	detailState     = "EC2 Instance State-change Notification"
	detailHealth    = "AWS Health Event"
)

const (
	// maxSNS is two, because a topic may pass on what it got from another.
	maxSNS = 2
	// spotNotice is how long before it takes a spot instance EC2 says so.
	spotNotice = 2 * time.Minute
	// maxAffected bounds the instances of one event.
	maxAffected = 1000
)

// decodeAWS reads what a queue of SQS may hold of AWS: a lifecycle hook's notification,
// straight from Auto Scaling, through SNS in its envelope or raw, or as an event of
// EventBridge; and EventBridge's events about instances, which are none of a hook (Event).
// SNS's envelope may hold lines of "Key: value" instead of JSON, as its API has it for hooks.
//
// What it refuses with ErrNotLifecycle: a test notification, a group's ordinary notification,
// a topic's request to confirm a subscription, and events of other kinds. Whatever names a
// token, a hook or a transition is a hook's notification, and malformed if it is not whole.
func decodeAWS(body []byte) (Notification, error) {
	o, err := openAWS(body)
	var n Notification
	if err == nil {
		n, err = o.message.decode()
	}
	if err != nil {
		return Notification{}, o.place(err)
	}
	return n, nil
}

// awsMessage is what we read of an envelope of SNS, of Auto Scaling's own messages and of an
// event. Only what decides is decoded strictly.
type awsMessage struct {
	awsHookFields
	AccountID  json.RawMessage `json:"AccountId"`
	RequestID  json.RawMessage `json:"RequestId"`
	GroupARN   json.RawMessage `json:"AutoScalingGroupARN"`
	Event      json.RawMessage `json:"Event"`
	Time       json.RawMessage `json:"Time"`
	SNSType    json.RawMessage `json:"Type"`
	Message    json.RawMessage `json:"Message"`
	SNSID      json.RawMessage `json:"MessageId"`
	Topic      json.RawMessage `json:"TopicArn"`
	Published  json.RawMessage `json:"Timestamp"`
	DetailType json.RawMessage `json:"detail-type"`
	Detail     json.RawMessage `json:"detail"`
	Source     json.RawMessage `json:"source"`
	EventID    json.RawMessage `json:"id"`
	Account    json.RawMessage `json:"account"`
	Region     json.RawMessage `json:"region"`
	EventTime  json.RawMessage `json:"time"`
	Resources  json.RawMessage `json:"resources"`
}

// awsHookFields are a hook's: at the top of Auto Scaling's own message, and in an event's detail.
type awsHookFields struct {
	Token       json.RawMessage `json:"LifecycleActionToken"`
	Hook        json.RawMessage `json:"LifecycleHookName"`
	Transition  json.RawMessage `json:"LifecycleTransition"`
	Group       json.RawMessage `json:"AutoScalingGroupName"`
	Instance    json.RawMessage `json:"EC2InstanceId"`
	Metadata    json.RawMessage `json:"NotificationMetadata"`
	Origin      json.RawMessage `json:"Origin"`
	Destination json.RawMessage `json:"Destination"`
}

// openedAWS is a body without its wrappings.
type openedAWS struct {
	layers  []Layer
	text    []byte // the JSON object that was left, or the lines
	message awsMessage
	inside  int // so many envelopes
}

func (o openedAWS) place(err error) error {
	for range o.inside {
		err = opened{inside: true}.place(err)
	}
	return err
}

// openAWS takes off Base64 and SNS's envelopes until an object is left that is none.
func openAWS(body []byte) (o openedAWS, err error) {
	if len(body) > MaxBody {
		return o, malformed("body", fmt.Sprintf("longer than %d bytes", MaxBody))
	}
	encoded := 0
	for text := bytes.TrimSpace(body); ; text = bytes.TrimSpace(text) {
		switch {
		case len(text) == 0:
			return o, malformed("body", "empty")
		case text[0] == '{':
		case o.inside > 0 && bytes.ContainsRune(text, ':'): // which Base64 has not
			o.text = text
			if o.message, err = readLines(text); err == nil {
				o.layers = append(o.layers, Layer{Form: KeyValue})
			}
			return o, err
		default:
			if text, err = unwrapBase64(text, encoded); err != nil {
				return o, err
			}
			encoded++
			o.layers = append(o.layers, Layer{Form: Base64})
			continue
		}
		if err := checkUTF8(text); err != nil {
			return o, err
		}
		var m awsMessage
		if err := unmarshal(text, "", &m); err != nil {
			return o, err
		}
		if textOf(m.SNSType) != awsNotification {
			o.text, o.message = text, m
			if m.isEvent() {
				o.layers = append(o.layers, m.eventLayer())
			}
			return o, nil
		}
		if text, err = m.open(); err != nil {
			return o, err
		}
		if o.inside == maxSNS {
			return o, malformed("body", "an SNS envelope in more of them than two")
		}
		o.layers = append(o.layers, m.snsLayer())
		o.inside++
	}
}

// open gives what an envelope holds. Nothing of a hook may stand beside it: half a
// notification must not pass for the message of a topic.
func (m awsMessage) open() ([]byte, error) {
	var message string
	switch {
	case m.marked():
		return nil, malformed("Type", "must not be there in a lifecycle action's notification")
	case m.Message == nil || string(m.Message) == "null":
		return nil, malformed("Message", "missing or empty")
	case json.Unmarshal(m.Message, &message) != nil:
		return nil, malformed("Message", "must be text")
	case strings.TrimSpace(message) == "":
		return nil, malformed("Message", "missing or empty")
	}
	return []byte(message), nil
}

func (m awsMessage) snsLayer() Layer {
	published, _ := moment(m.Published) // of no use but to be read by people
	return Layer{Form: SNS, Topic: textOf(m.Topic), ID: textOf(m.SNSID), Published: published.UTC()}
}

func (m awsMessage) eventLayer() Layer {
	published, _ := moment(m.EventTime)
	return Layer{Form: EventBridge, Type: textOf(m.DetailType), ID: textOf(m.EventID), Published: published.UTC()}
}

func (m awsMessage) isEvent() bool { return given(m.DetailType) && given(m.Detail) }

func given(raw json.RawMessage) bool { return raw != nil && string(raw) != "null" }

// readLines reads the lines of "Key: value" that SNS may hold instead of JSON. Each key
// stands there once.
func readLines(text []byte) (m awsMessage, err error) {
	if err := checkUTF8(text); err != nil {
		return m, err
	}
	fields, at := map[string]string{}, int64(0)
	for line := range strings.Lines(string(text)) {
		key, value, ok := strings.Cut(line, ":")
		key = strings.TrimSpace(key)
		_, twice := fields[key]
		switch {
		case strings.TrimSpace(line) == "":
		case !ok || !patternKey.MatchString(key):
			return m, &MalformedError{Where: "body", Offset: at, Reason: "neither a JSON object, nor lines of Key: value, nor Base64"}
		case twice:
			return m, &MalformedError{Where: key, Offset: at, Reason: "there twice"}
		default:
			fields[key] = strings.TrimSpace(value)
		}
		at += int64(len(line))
	}
	object, err := json.Marshal(fields)
	if err != nil {
		return m, malformed("body", "no text")
	}
	return m, unmarshal(object, "", &m)
}

// marked says whether the message names a hook, a token or a transition, in whatever case,
// where its form may have them. See wireMessage.marked.
func (m awsMessage) marked() bool {
	var detail awsHookFields
	_ = json.Unmarshal(m.Detail, &detail) // what is no object has no marks
	return m.awsHookFields.marked() || detail.marked()
}

func (f awsHookFields) marked() bool {
	return f.Token != nil || f.Hook != nil || f.Transition != nil && textOf(f.Transition) != awsTest
}

// decode reads a message that is in no envelope any more.
func (m awsMessage) decode() (Notification, error) {
	event := textOf(m.Event)
	test := event == awsTest || textOf(m.Transition) == awsTest
	switch kindOf := textOf(m.SNSType); {
	case m.isEvent():
		return m.decodeEvent()
	case !m.marked() && (kindOf == "SubscriptionConfirmation" || kindOf == "UnsubscribeConfirmation"):
		return Notification{}, &OtherError{Kind: kind("SNS", kindOf, textOf(m.Topic))}
	case test && m.Token == nil && m.Instance == nil && m.Detail == nil:
		return Notification{}, &OtherError{Kind: kind("Auto Scaling", awsTest)}
	case m.marked():
		return m.hook(m.awsHookFields, "", textOf(m.Transition))
	case strings.HasPrefix(event, awsTransition):
		return Notification{}, &OtherError{Kind: kind("Auto Scaling", event)}
	}
	return Notification{}, malformed("body", "neither of Auto Scaling, nor an event, nor of SNS")
}

// hook checks what a notification says and puts it together. where stands in front of the
// keys of f in errors.
func (m awsMessage) hook(f awsHookFields, where, transition string) (Notification, error) {
	way, ok := map[string]Transition{awsTerminating: ScaleIn, awsLaunching: ScaleOut}[transition]
	if !ok {
		return Notification{}, malformed(where+"LifecycleTransition", awsTerminating+" or LAUNCHING, got "+quote(transition))
	}
	group, hook, token, instance := textOf(f.Group), textOf(f.Hook), textOf(f.Token), textOf(f.Instance)
	origin, destination := textOf(f.Origin), textOf(f.Destination)
	for _, id := range []struct {
		where, value string
		pattern      awsPattern
	}{
		{where + "AutoScalingGroupName", group, awsGroup},
		{where + "LifecycleHookName", hook, awsHook},
		{where + "LifecycleActionToken", token, awsToken},
		{where + "EC2InstanceId", instance, awsInstance},
		{where + "Origin", origin, awsPlace},
		{where + "Destination", destination, awsPlace},
	} {
		if err := id.pattern.check(id.where, id.value); err != nil {
			return Notification{}, err
		}
	}
	n := Notification{
		Action: Action{
			Group: GroupID(group), Hook: HookID(hook), HookName: hook, Transition: way,
			Token: Token(token), Instances: []InstanceID{InstanceID(instance)},
		},
		AccountID: textOf(m.AccountID), Metadata: textOf(f.Metadata), RequestID: textOf(m.RequestID), ResourceARN: textOf(m.GroupARN),
		Origin: origin, Destination: destination,
	}
	return m.finish(n)
}

// finish adds what is told in the same place for all messages: by an event around its
// detail, by Auto Scaling's own message among the rest.
func (m awsMessage) finish(n Notification) (Notification, error) {
	at := m.Time
	if m.isEvent() {
		n.Region, n.AccountID, n.RequestID, at = textOf(m.Region), textOf(m.Account), textOf(m.EventID), m.EventTime
		if err := awsRegion.check("region", n.Region); err != nil {
			return Notification{}, err
		}
		var resources []string
		if json.Unmarshal(m.Resources, &resources) == nil && len(resources) > 0 {
			n.ResourceARN = resources[0]
		}
	}
	if n.AccountID == "" {
		n.AccountID = number(cmp.Or(string(m.AccountID), string(m.Account)))
	}
	when, err := moment(at)
	n.Time = when.UTC()
	return n, err
}

// number gives the text of a JSON number: an account may be one.
func number(raw string) string {
	if strings.Trim(raw, "0123456789") != "" {
		return ""
	}
	return raw
}

// decodeEvent reads an event of EventBridge (version 0).
func (m awsMessage) decodeEvent() (Notification, error) {
	source, name := textOf(m.Source), textOf(m.DetailType)
	switch lifecycle := len(name) >= len(detailLifecycle) && strings.EqualFold(name[len(name)-len(detailLifecycle):], detailLifecycle); {
	case source == sourceScaling && (lifecycle || m.marked()):
		return m.hookEvent(name)
	case m.marked():
		return Notification{}, malformed("source", "must be "+sourceScaling+" for a lifecycle action, got "+quote(source))
	case source == sourceEC2 && slices.Contains([]string{detailSpot, detailRebalance, detailState}, name):
		return m.instanceEvent(name)
	case source == sourceHealth && name == detailHealth:
		return m.healthEvent()
	}
	return Notification{}, &OtherError{Kind: kind("EventBridge", source, name)}
}

func (m awsMessage) hookEvent(name string) (Notification, error) {
	transition, ok := map[string]string{detailTerminate: awsTerminating, detailLaunch: awsLaunching}[name]
	if !ok {
		return Notification{}, malformed("detail-type", "a lifecycle event of another kind: "+quote(name))
	}
	var f awsHookFields
	if err := unmarshal(m.Detail, "detail", &f); err != nil {
		return Notification{}, err
	}
	if told := textOf(f.Transition); f.Transition != nil && told != transition {
		return Notification{}, malformed("detail.LifecycleTransition", "contradicts the detail-type "+name+", got "+quote(told))
	}
	return m.hook(f, "detail.", transition)
}

// instanceEvent reads one of the events of EC2, which are about one instance each.
func (m awsMessage) instanceEvent(name string) (Notification, error) {
	var d struct {
		Instance json.RawMessage `json:"instance-id"`
		Action   json.RawMessage `json:"instance-action"`
		State    json.RawMessage `json:"state"`
	}
	if err := unmarshal(m.Detail, "detail", &d); err != nil {
		return Notification{}, err
	}
	instance := textOf(d.Instance)
	if err := awsInstance.check("detail.instance-id", instance); err != nil {
		return Notification{}, err
	}
	event := map[string]Event{detailSpot: SpotInterruption, detailRebalance: RebalanceRecommendation, detailState: StateChange}[name]
	// What is on its way up, or has arrived below already, is not leaving.
	if state := textOf(d.State); event == StateChange && state != "stopping" && state != "shutting-down" {
		return Notification{}, &OtherError{Kind: kind("EventBridge", sourceEC2, name, state)}
	}
	n, err := m.announce(event, []InstanceID{InstanceID(instance)})
	// An instance that hibernates is not given any notice: it begins at once.
	if event == SpotInterruption && textOf(d.Action) != "hibernate" && !n.Time.IsZero() {
		n.Due = n.Time.Add(spotNotice)
	}
	return n, err
}

// healthEvent reads an event of AWS Health. Only what EC2 has scheduled for instances is
// of concern, and not once it is over.
func (m awsMessage) healthEvent() (Notification, error) {
	var d struct {
		Service  json.RawMessage `json:"service"`
		Category json.RawMessage `json:"eventTypeCategory"`
		Code     json.RawMessage `json:"eventTypeCode"`
		Status   json.RawMessage `json:"statusCode"`
		Start    json.RawMessage `json:"startTime"`
		Affected json.RawMessage `json:"affectedEntities"`
	}
	if err := unmarshal(m.Detail, "detail", &d); err != nil {
		return Notification{}, err
	}
	other := &OtherError{Kind: kind("EventBridge", sourceHealth, textOf(d.Service), textOf(d.Category), textOf(d.Code), textOf(d.Status))}
	if textOf(d.Service) != "EC2" || textOf(d.Category) != "scheduledChange" || textOf(d.Status) == "closed" {
		return Notification{}, other
	}
	var affected []struct {
		ID string `json:"entityValue"`
	}
	if given(d.Affected) {
		if err := unmarshal(d.Affected, "detail.affectedEntities", &affected); err != nil {
			return Notification{}, err
		}
	}
	if len(affected) > maxAffected {
		return Notification{}, malformed("detail.affectedEntities", fmt.Sprintf("more than %d", maxAffected))
	}
	var instances []InstanceID
	for i, entity := range affected {
		if !strings.HasPrefix(entity.ID, "i-") || slices.Contains(instances, InstanceID(entity.ID)) {
			continue // a dedicated host, a reservation
		}
		if err := awsInstance.check(fmt.Sprintf("detail.affectedEntities[%d].entityValue", i), entity.ID); err != nil {
			return Notification{}, err
		}
		instances = append(instances, InstanceID(entity.ID))
	}
	if len(instances) == 0 {
		return Notification{}, other
	}
	n, err := m.announce(ScheduledChange, instances)
	if err == nil && given(d.Start) {
		n.Due, err = healthTime(textOf(d.Start))
	}
	return n, err
}

// healthTime reads a time of AWS Health, which is HTTP's, or one of RFC 3339.
func healthTime(text string) (time.Time, error) {
	at, err := time.Parse(http.TimeFormat, text)
	if err != nil {
		at, err = time.Parse(time.RFC3339Nano, text)
	}
	if err != nil {
		return time.Time{}, malformed("detail.startTime", "a time such as Mon, 05 Oct 2026 15:10:09 GMT, got "+quote(text))
	}
	return at.UTC(), nil
}

// announce makes the notification of an event that is none of a hook.
func (m awsMessage) announce(event Event, instances []InstanceID) (Notification, error) {
	token := textOf(m.EventID)
	if err := awsEventID.check("id", token); err != nil {
		return Notification{}, err
	}
	return m.finish(Notification{Action: Action{Event: event, Transition: ScaleIn, Token: Token(token), Instances: instances}})
}

// GuessCloud says which cloud a body looks like one of: the one whose decoder makes sense
// of it, or else whose words are in it; Alibaba where nothing tells.
func GuessCloud(body []byte) Cloud {
	_, alibaba := Decode(body, Alibaba)
	_, aws := Decode(body, AWS)
	switch {
	case alibaba == nil || isOther(alibaba):
		return Alibaba
	case aws == nil || isOther(aws):
		return AWS
	}
	o, _ := openAWS(body)
	text := cmp.Or(string(o.text), string(body))
	words := []string{`"EC2InstanceId"`, `"LifecycleHookName"`, `"AutoScalingGroupName"`, `"detail-type"`, `"TopicArn"`, `autoscaling:`}
	if o.inside > 0 || slices.ContainsFunc(words, func(word string) bool { return strings.Contains(text, word) }) {
		return AWS
	}
	return Alibaba
}

// awsPattern is what an identifier of AWS looks like, and how long it is at most.
type awsPattern struct {
	*regexp.Regexp
	most int
}

func (p awsPattern) fits(text string) bool { return len(text) <= p.most && p.MatchString(text) }

func (p awsPattern) check(where, text string) error {
	if !p.fits(text) {
		return malformed(where, fmt.Sprintf("must match %s and have at most %d bytes, got %s", p.Regexp, p.most, quote(text)))
	}
	return nil
}

// What the identifiers of AWS look like. AWS lets a group's name hold any printable character
// but a colon; here it holds letters, digits, _ . - and /, which is what its own tools make,
// and what can stand in a shell, a URL or a log as it is: no part of it between slashes is
// empty or begins with . or -. A hook's name is what PutLifecycleHook takes (2011-01-01),
// with the same care for slashes.
var (
	awsGroup    = awsPattern{regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$`), 255}
	awsHook     = awsPattern{regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_-]*(/[A-Za-z0-9_][A-Za-z0-9_-]*)*$`), 255}
	awsToken    = awsPattern{regexp.MustCompile(`^[A-Za-z0-9-]{36}$`), 36}
	awsEventID  = awsPattern{patternToken, 64}
	awsInstance = awsPattern{regexp.MustCompile(`^i-[0-9a-f]{8}([0-9a-f]{9})?$`), 19}
	awsRegion   = awsPattern{patternRegion, 64}
	awsPlace    = awsPattern{regexp.MustCompile(`^[A-Za-z0-9]*$`), 40}
	patternKey  = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9 _-]{0,63}$`)
)
