package messages

import (
	"bytes"
	"cmp"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// Form is a way to wrap a message.
type Form string

// The forms that Decode takes off. SNS is a topic's of AWS, and KeyValue the text of lines
// that SNS may hold instead of JSON. Any other topic's subscription chooses one of XML, JSON and
// SIMPLIFIED (MNS Subscribe, 2015-06-06, NotifyContentFormat); the last is no wrapping.
const (
	Base64      Form = "base64"
	TopicXML    Form = "topic_xml"
	TopicJSON   Form = "topic_json"
	EventBridge Form = "eventbridge"
	SNS         Form = "sns"
	KeyValue    Form = "key_value"
)

// Layer is one wrapping of a message and what it tells of its way. All of it is text of
// the message, unchecked: for people to read.
type Layer struct {
	Form Form
	// Of a topic's envelope.
	Topic        string `json:",omitzero"`
	Subscription string `json:",omitzero"`
	Tag          string `json:",omitzero"`
	// Of an event.
	Bus  string `json:",omitzero"`
	Type string `json:",omitzero"`
	// ID is the topic's for its message, or the event's.
	ID string `json:",omitzero"`
	// Published is when the topic or the event bus had it; zero when that can't be read.
	Published time.Time `json:",omitzero"`
}

// Layers says what Decode takes off a body, the outermost first. Of a body that is refused
// it gives those that could be taken off.
func Layers(body []byte, from Cloud) []Layer {
	if from == AWS {
		o, _ := openAWS(body)
		return o.layers
	}
	o, _ := open(body)
	return o.layers
}

// opened is a body without its wrappings.
type opened struct {
	layers  []Layer
	text    []byte // the JSON object that was left
	message wireMessage
	inside  bool // of a topic's envelope
}

// place says of an error in the message of an envelope that it is there.
func (o opened) place(err error) error {
	if e, ok := errors.AsType[*MalformedError](err); ok && o.inside {
		return &MalformedError{Where: "Message > " + e.Where, Offset: e.Offset, Reason: e.Reason}
	}
	return err
}

// open takes off Base64, a topic's envelope and Base64 again, until a JSON object is left
// that is no envelope.
func open(body []byte) (o opened, err error) {
	if len(body) > MaxBody {
		return o, malformed("body", fmt.Sprintf("longer than %d bytes", MaxBody))
	}
	encoded := 0
	for text := bytes.TrimSpace(body); ; text = bytes.TrimSpace(text) {
		var e envelope
		switch {
		case len(text) == 0:
			return o, malformed("body", "empty")
		case text[0] == '{':
			m, err := readJSON(text)
			if err != nil {
				return o, err
			}
			if !m.isEnvelope() {
				o.text, o.message = text, m
				if m.SpecVersion != nil {
					o.layers = append(o.layers, m.wireEvent.layer())
				}
				return o, nil
			}
			if e, err = m.wireEnvelope.read(); err != nil {
				return o, err
			}
		case text[0] == '<':
			if e, err = readXML(text); err != nil {
				return o, err
			}
		default:
			decoded, err := unwrapBase64(text, encoded)
			if err != nil {
				return o, err
			}
			encoded++
			o.layers = append(o.layers, Layer{Form: Base64})
			text = decoded
			continue
		}
		if o.inside {
			return o, malformed("body", "a topic envelope in a topic envelope")
		}
		if err := e.check(); err != nil {
			return o, err
		}
		o.layers = append(o.layers, e.layer)
		o.inside = true
		text = []byte(e.message)
	}
}

func readJSON(text []byte) (m wireMessage, err error) {
	if err := checkUTF8(text); err != nil {
		return m, err
	}
	err = unmarshal(text, "", &m)
	if string(m.SpecVersion) == "null" {
		m.SpecVersion = nil // as if it were not there
	}
	return m, err
}

func checkUTF8(text []byte) error {
	for at := 0; at < len(text); {
		r, size := utf8.DecodeRune(text[at:])
		if r == utf8.RuneError && size == 1 {
			return &MalformedError{Where: "body", Offset: int64(at), Reason: "no UTF-8"}
		}
		at += size
	}
	return nil
}

// envelope is what a topic puts around a message.
type envelope struct {
	layer   Layer
	message string
	md5     string // "" is not given
}

// check wants the message to be there, as it was published. MessageMD5 is the digest of the
// text in the envelope, Base64 and all.
func (e envelope) check() error {
	if strings.TrimSpace(e.message) == "" {
		return malformed("Message", "missing or empty")
	}
	want := strings.TrimSpace(e.md5)
	fits := func(text string) bool {
		sum := md5.Sum([]byte(text))
		return strings.EqualFold(hex.EncodeToString(sum[:]), want)
	}
	if want != "" && !fits(e.message) && !fits(strings.TrimSpace(e.message)) {
		return malformed("MessageMD5", "is another message's: Message was damaged or changed on its way")
	}
	return nil
}

// wireEnvelope is the JSON form. All its values are texts; PublishTime may be a number.
type wireEnvelope struct {
	TopicName        json.RawMessage `json:"TopicName"`
	SubscriptionName json.RawMessage `json:"SubscriptionName"`
	MessageID        json.RawMessage `json:"MessageId"`
	Message          json.RawMessage `json:"Message"`
	MessageMD5       json.RawMessage `json:"MessageMD5"`
	MessageTag       json.RawMessage `json:"MessageTag"`
	PublishTime      json.RawMessage `json:"PublishTime"`
}

// isEnvelope: what names a topic, and neither a product nor itself an event.
func (m wireMessage) isEnvelope() bool {
	return textOf(m.TopicName) != "" && m.Product == "" && m.SpecVersion == nil
}

func (w wireEnvelope) read() (envelope, error) {
	e := envelope{layer: Layer{
		Form: TopicJSON, Topic: textOf(w.TopicName), Subscription: textOf(w.SubscriptionName), Tag: textOf(w.MessageTag), ID: textOf(w.MessageID),
		Published: milliseconds(cmp.Or(textOf(w.PublishTime), string(w.PublishTime))),
	}}
	for _, field := range []struct {
		name string
		raw  json.RawMessage
		to   *string
	}{{"Message", w.Message, &e.message}, {"MessageMD5", w.MessageMD5, &e.md5}} {
		if field.raw == nil {
			continue
		}
		if err := json.Unmarshal(field.raw, field.to); err != nil {
			return envelope{}, malformed(field.name, "must be text")
		}
	}
	return e, nil
}

func milliseconds(text string) time.Time {
	ms, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil || ms <= 0 || ms > 1<<48 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

const (
	// maxDepth bounds how deep the elements of an envelope nest. Those that we read are in the
	// root; newer ones that we don't (UserProperties) have some of their own.
	maxDepth = 8
	// xmlRoot is matched without its namespace, which senders write with and without its
	// last slash.
	xmlRoot = "Notification"
)

// xmlFields are the elements that are read, each at most once and with text alone in it.
var xmlFields = []string{"TopicName", "SubscriptionName", "MessageId", "Message", "MessageMD5", "MessageTag", "PublishTime"}

// readXML reads the XML form: one element called Notification with elements in it. It wants
// less than XML allows. There are no comments, directives (which would declare entities) or
// processing instructions, and nothing stands behind the root.
func readXML(text []byte) (envelope, error) {
	if err := checkUTF8(text); err != nil {
		return envelope{}, err
	}
	dec := xml.NewDecoder(bytes.NewReader(text))
	refuse := func(where, reason string) (envelope, error) {
		return envelope{}, &MalformedError{Where: where, Offset: dec.InputOffset(), Reason: reason}
	}
	fields := map[string]string{}
	var name string // of the element in the root
	var value strings.Builder
	for depth, seen := 0, false; ; {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) && seen {
			break
		}
		if err != nil {
			return refuse("body", "no XML: "+brief(err.Error()))
		}
		known := depth >= 2 && slices.Contains(xmlFields, name)
		switch t := token.(type) {
		case xml.ProcInst:
			if seen || t.Target != "xml" {
				return refuse("body", "a processing instruction in a topic envelope")
			}
		case xml.Comment, xml.Directive:
			return refuse("body", "a comment or a directive in a topic envelope")
		case xml.StartElement:
			depth++
			switch {
			case depth == 1 && seen:
				return refuse("body", "more text behind the topic envelope")
			case depth == 1 && t.Name.Local != xmlRoot:
				return refuse("body", "XML, but no topic envelope: its root is "+quote(t.Name.Local)+", not "+xmlRoot)
			case depth == 2:
				name = t.Name.Local
				value.Reset()
				if _, twice := fields[name]; twice {
					return refuse(name, "there twice")
				}
			case known:
				return refuse(name, "must be text, has an element "+quote(t.Name.Local))
			case depth > maxDepth:
				return refuse("body", fmt.Sprintf("elements nest deeper than %d", maxDepth))
			}
			seen = true
		case xml.EndElement:
			if depth == 2 && known {
				fields[name] = value.String()
			}
			depth--
		case xml.CharData:
			if known {
				value.Write(t)
			} else if depth < 2 && len(bytes.TrimSpace(t)) > 0 {
				if depth == 0 {
					return refuse("body", "more text behind the topic envelope")
				}
				return refuse("body", "text between the elements of a topic envelope")
			}
		}
	}
	return envelope{
		layer: Layer{
			Form: TopicXML, Topic: fields["TopicName"], Subscription: fields["SubscriptionName"], Tag: fields["MessageTag"], ID: fields["MessageId"],
			Published: milliseconds(fields["PublishTime"]),
		},
		message: fields["Message"], md5: fields["MessageMD5"],
	}, nil
}

// brief cuts the text of an error that may repeat a part of the message.
func brief(s string) string {
	const most = 120
	if s = strings.Trim(strconv.QuoteToASCII(s), `"`); len(s) > most {
		return s[:most] + "..."
	}
	return s
}
