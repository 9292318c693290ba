package messages

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The two ways in which a body is not a notification. A body that Decode refuses
// always matches exactly one of them.
var (
	// ErrMalformed: the body can't be read. See *MalformedError.
	ErrMalformed = errors.New("malformed message")
	// ErrNotLifecycle: the body is well-formed, and announces no lifecycle action. See *OtherError.
	ErrNotLifecycle = errors.New("not a lifecycle notification")
)

// MalformedError says where a body stopped making sense, and why.
type MalformedError struct {
	// Where is the path of the value, "body" for the whole, or "base64". "Message > " in
	// front of it says that it is in the message that a topic's envelope holds.
	Where string
	// Offset is the position in the decoded text of what Where is in, in bytes; -1 when it
	// is not known.
	Offset int64
	Reason string
}

func (e *MalformedError) Error() string {
	if e.Offset >= 0 {
		return fmt.Sprintf("%v: %s, byte %d: %s", ErrMalformed, e.Where, e.Offset, e.Reason)
	}
	return fmt.Sprintf("%v: %s: %s", ErrMalformed, e.Where, e.Reason)
}

// Unwrap gives ErrMalformed.
func (e *MalformedError) Unwrap() error { return ErrMalformed }

// OtherError says what kind of message it is that announces no lifecycle action.
type OtherError struct {
	// Kind is the product and, where the message has one, the name of the event, such as
	// "ESS AUTOSCALING:SCALE_IN_SUCCESS" or "ECS Instance:StateChange". Printable, at most 160 bytes.
	Kind string
}

func (e *OtherError) Error() string { return fmt.Sprintf("%v: %s", ErrNotLifecycle, e.Kind) }

// Unwrap gives ErrNotLifecycle.
func (e *OtherError) Unwrap() error { return ErrNotLifecycle }

// MaxBody is the longest body that Decode reads, in bytes: more than any queue carries
// (MNS and SQS: 64 and 256 KB, with room for Base64 of Base64).
const MaxBody = 1 << 20

// maxBase64Layers is two, because a topic's envelope may be encoded like any body, and
// holds a message that ESS has encoded already. More would be an invitation to nest.
const maxBase64Layers = 2

// Decode reads the body of a queue message as the cloud writes it: the notification of a
// lifecycle hook, or on AWS an event about instances. Each body may be in standard Base64
// (ESS sends Base64, SDKs and forwarders may not), twice in all at the most. Every identifier
// in the notification it returns matches a strict pattern. Unknown fields are ignored.
//
// Of Alibaba Cloud it reads what ESS writes, and the same as an event of EventBridge; either
// may stand in the envelope of an MNS topic, XML or JSON. Of AWS, see decodeAWS.
//
// Errors match ErrMalformed (*MalformedError) or ErrNotLifecycle (*OtherError).
func Decode(body []byte, from Cloud) (Notification, error) {
	if from == AWS {
		return decodeAWS(body)
	}
	o, err := open(body)
	var n Notification
	if err == nil {
		n, err = o.message.decode()
	}
	if err != nil {
		return Notification{}, o.place(err)
	}
	return n, nil
}

// unwrapBase64 takes off one layer, of which there were some before.
func unwrapBase64(text []byte, before int) ([]byte, error) {
	if before == maxBase64Layers {
		return nil, malformed("base64", "encoded more than twice")
	}
	decoded, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil {
		return nil, notBase64(text, err)
	}
	return decoded, nil
}

// notBase64 tells the two mistakes apart that look alike here: text that was never
// encoded, and an encoding that was cut or damaged.
func notBase64(text []byte, err error) error {
	at := int64(-1)
	if corrupt, ok := errors.AsType[base64.CorruptInputError](err); ok {
		at = int64(corrupt)
	}
	if at >= 0 && at < 16 {
		return &MalformedError{Where: "body", Offset: at, Reason: "neither a JSON object, nor XML, nor Base64"}
	}
	return &MalformedError{Where: "base64", Offset: at, Reason: fmt.Sprintf("damaged or cut short after %d bytes", len(text))}
}

// wireMessage is what we read of a message of ESS (lifecycle hook notification, event
// notification), of CloudMonitor, of EventBridge (CloudEvents 1.0) and of a topic's JSON
// envelope (MNS 2015-06-06). Only what decides is decoded strictly: a key of one may mean
// something else in another.
type wireMessage struct {
	Product     string          `json:"product"`
	RegionID    string          `json:"regionId"`
	ResourceARN string          `json:"resourceArn"`
	Time        json.RawMessage `json:"time"`
	UserID      json.RawMessage `json:"userId"`
	Event       json.RawMessage `json:"event"`
	Name        json.RawMessage `json:"name"`
	Content     json.RawMessage `json:"content"`
	Reannounced bool            `json:"usherReannounced"` // a worker's own mark

	wireEvent
	wireEnvelope
}

type wireContent struct {
	DefaultResult        string   `json:"defaultResult"`
	InstanceIDs          []string `json:"instanceIds"`
	LifecycleActionToken string   `json:"lifecycleActionToken"`
	LifecycleHookID      string   `json:"lifecycleHookId"`
	LifecycleHookName    string   `json:"lifecycleHookName"`
	LifecycleTransition  string   `json:"lifecycleTransition"`
	NotificationMetadata string   `json:"notificationMetadata"`
	RequestID            string   `json:"requestId"`
	ScalingActivityID    string   `json:"scalingActivityId"`
	ScalingGroupID       string   `json:"scalingGroupId"`
	ScalingGroupName     string   `json:"scalingGroupName"`
	ScalingRuleID        string   `json:"scalingRuleId"`
	ScheduledTaskID      string   `json:"scheduledTaskId"`
}

// decode reads a message that is in no envelope any more.
func (m wireMessage) decode() (Notification, error) {
	switch {
	case m.SpecVersion != nil:
		return m.decodeEvent()
	case m.Product == "":
		return Notification{}, malformed("product", "missing: neither ESS nor any other sender")
	}

	// Half a notification must not pass for another event.
	var object map[string]json.RawMessage
	switch isESS, isObject := strings.EqualFold(m.Product, "ESS"), json.Unmarshal(m.Content, &object) == nil; {
	case !m.marked() && (!isESS || isObject):
		return Notification{}, &OtherError{Kind: kind(m.Product, textOf(m.Event), textOf(m.Name))}
	case m.Product != "ESS":
		return Notification{}, malformed("product", "must be ESS for a lifecycle action, got "+quote(m.Product))
	}
	var c wireContent
	if err := unmarshal(m.Content, "content", &c); err != nil {
		return Notification{}, err
	}
	return notification(m, c, "content.", "regionId")
}

// marked says whether the message names a hook, a token or a transition, wherever its form
// may have them. Only a hook's notification does, so whatever names one of them is one, and
// malformed if it is not whole: it must not be deleted as a message of no concern.
func (m wireMessage) marked() bool {
	type marks struct {
		Token      json.RawMessage `json:"lifecycleActionToken"`
		Hook       json.RawMessage `json:"lifecycleHookId"`
		Transition json.RawMessage `json:"lifecycleTransition"`
	}
	var data struct {
		Content json.RawMessage `json:"content"`
	}
	_ = json.Unmarshal(m.Data, &data) // what is no object has no marks
	return slices.ContainsFunc([]json.RawMessage{m.Content, m.Data, data.Content}, func(part json.RawMessage) bool {
		var found marks
		return json.Unmarshal(part, &found) == nil && (found.Token != nil || found.Hook != nil || found.Transition != nil)
	})
}

// notification checks what a message says and puts it together. The keys of c are told
// with content in front of them in errors, the region is called region.
func notification(m wireMessage, c wireContent, content, region string) (Notification, error) {
	if len(m.UserID) > 0 && string(m.UserID) != "null" {
		// A string by the documentation; a bare number is the same account.
		if unquoted, err := strconv.Unquote(string(m.UserID)); err == nil {
			m.UserID = json.RawMessage(unquoted)
		}
	}
	transition, ok := map[string]Transition{"SCALE_IN": ScaleIn, "SCALE_OUT": ScaleOut}[c.LifecycleTransition]
	if !ok {
		return Notification{}, malformed(content+"lifecycleTransition", "SCALE_IN or SCALE_OUT, got "+quote(c.LifecycleTransition))
	}
	for _, id := range []struct {
		where, value string
		pattern      *regexp.Regexp
	}{
		{region, m.RegionID, patternRegion},
		{content + "scalingGroupId", c.ScalingGroupID, patternGroup},
		{content + "lifecycleHookId", c.LifecycleHookID, patternHook},
		{content + "lifecycleHookName", c.LifecycleHookName, patternHookName},
		{content + "lifecycleActionToken", c.LifecycleActionToken, patternToken},
		{content + "scalingActivityId", c.ScalingActivityID, patternActivity},
	} {
		if !id.pattern.MatchString(id.value) {
			return Notification{}, malformed(id.where, fmt.Sprintf("must match %s, got %s", id.pattern, quote(id.value)))
		}
	}
	instances := make([]InstanceID, 0, len(c.InstanceIDs))
	seen := make(map[string]bool, len(c.InstanceIDs))
	for i, id := range c.InstanceIDs {
		if !patternInstance.MatchString(id) {
			where := fmt.Sprintf("%sinstanceIds[%d]", content, i)
			return Notification{}, malformed(where, fmt.Sprintf("must match %s, got %s", patternInstance, quote(id)))
		}
		if !seen[id] {
			seen[id] = true
			instances = append(instances, InstanceID(id))
		}
	}
	if len(instances) == 0 {
		return Notification{}, malformed(content+"instanceIds", "at least one instance")
	}
	at, err := moment(m.Time)
	if err != nil {
		return Notification{}, err
	}
	return Notification{
		Action: Action{
			Region:     m.RegionID,
			Group:      GroupID(c.ScalingGroupID),
			Hook:       HookID(c.LifecycleHookID),
			HookName:   c.LifecycleHookName,
			Transition: transition,
			Token:      Token(c.LifecycleActionToken),
			Activity:   ActivityID(c.ScalingActivityID),
			Instances:  instances,
		},
		AccountID:     string(m.UserID),
		GroupName:     c.ScalingGroupName,
		DefaultResult: Result(c.DefaultResult),
		Metadata:      c.NotificationMetadata,
		RequestID:     c.RequestID,
		ResourceARN:   m.ResourceARN,
		ScalingRule:   c.ScalingRuleID,
		ScheduledTask: c.ScheduledTaskID,
		Time:          at.UTC(),
		Reannounced:   m.Reannounced,
	}, nil
}

// moment reads a time of RFC 3339. EventBridge ends some in PRC, which is the time in
// Beijing. Zero: there is none.
func moment(raw json.RawMessage) (time.Time, error) {
	text := textOf(raw)
	if text == "" && (raw == nil || string(raw) == `""` || string(raw) == "null") {
		return time.Time{}, nil
	}
	if beijing, ok := strings.CutSuffix(text, "PRC"); ok {
		text = beijing + "+08:00"
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, malformed("time", "a time such as 2018-06-21T03:07:57.641Z, got "+quote(cmp.Or(textOf(raw), string(raw))))
	}
	return at, nil
}

// textOf reads a JSON string; what is none is empty.
func textOf(raw json.RawMessage) string {
	var s string
	_ = json.Unmarshal(raw, &s)
	return s
}

// unmarshal decodes one JSON value and nothing behind it, and says where it failed.
func unmarshal(text []byte, where string, into any) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	err := dec.Decode(into)
	if err == nil {
		if _, err := dec.Token(); !errors.Is(err, io.EOF) {
			return &MalformedError{Where: path(where, ""), Offset: dec.InputOffset(), Reason: "more text behind the JSON object"}
		}
		return nil
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return &MalformedError{Where: path(where, e.Field), Offset: e.Offset, Reason: fmt.Sprintf("must not be a JSON %s", e.Value)}
	}
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		return &MalformedError{Where: path(where, ""), Offset: e.Offset, Reason: "no JSON: " + e.Error()}
	}
	return &MalformedError{Where: path(where, ""), Offset: int64(len(text)), Reason: "JSON cut short"}
}

func path(parent, field string) string {
	switch {
	case parent == "" && field == "":
		return "body"
	case parent == "":
		return field
	case field == "":
		return parent
	}
	return parent + "." + field
}

// What the identifiers look like. The patterns leave room for what the cloud may
// invent, and none for anything that a shell, a URL or a template would read as more
// than a name. (2014-08-28: asg-, ash-, asa- and a token in the form of a UUID; a hook's name
// has 2 to 64 letters, digits, _ . and -.)
var (
	patternRegion   = regexp.MustCompile(`^[a-z]{2}(-[a-z0-9]{1,20}){1,4}$`)
	patternGroup    = regexp.MustCompile(`^asg-[A-Za-z0-9-]{1,60}$`)
	patternHook     = regexp.MustCompile(`^ash-[A-Za-z0-9-]{1,60}$`)
	patternHookName = regexp.MustCompile(`^([\p{L}\p{N}][\p{L}\p{N}_.-]{0,127})?$`)
	patternActivity = regexp.MustCompile(`^asa-[A-Za-z0-9-]{1,60}$`)
	patternToken    = regexp.MustCompile(`^[A-Za-z0-9-]{8,64}$`)
	patternInstance = regexp.MustCompile(`^(i|eci)-[A-Za-z0-9-]{1,60}$`)
)

func malformed(where, reason string) *MalformedError {
	return &MalformedError{Where: where, Offset: -1, Reason: reason}
}

// quote shows a value of a message in an error, short and with nothing that could
// upset a terminal or a log.
func quote(s string) string {
	const most = 40
	if len(s) > most {
		return strconv.QuoteToASCII(s[:most]) + "..."
	}
	return strconv.QuoteToASCII(s)
}

func kind(parts ...string) string {
	const most = 160
	parts = slices.DeleteFunc(parts, func(s string) bool { return s == "" })
	k := strings.Trim(strconv.QuoteToASCII(strings.Join(parts, " ")), `"`)
	return k[:min(len(k), most)]
}

func isOther(err error) bool { return errors.Is(err, ErrNotLifecycle) }
