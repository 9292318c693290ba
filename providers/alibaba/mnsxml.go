package alibaba

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The documents of MNS 2015-06-06. Names are matched without their namespace: the
// service and its clients write it with a last slash, without one, or not at all.
// Numbers are kept as text, so that an odd one in a message does not cost the batch.

type mnsMessage struct {
	MessageID       string `xml:"MessageId"`
	ReceiptHandle   string
	MessageBodyMD5  string
	MessageBody     string
	EnqueueTime     string
	NextVisibleTime string
	DequeueCount    string
}

type mnsError struct {
	Code      string
	Message   string
	RequestID string `xml:"RequestId"`
}

type mnsItemError struct {
	ErrorCode     string
	ErrorMessage  string
	ReceiptHandle string
}

type mnsVisibility struct {
	ReceiptHandle   string
	NextVisibleTime string
}

type mnsQueue struct {
	VisibilityTimeout      string
	MessageRetentionPeriod string
}

// mnsDocument is an answer, told apart by its root element: a whole refusal of a
// batch comes as <Error>, a partial one as <Errors>, with statuses that overlap.
type mnsDocument struct {
	root       string
	err        mnsError       // Error
	itemErrors []mnsItemError // Errors
	messages   []mnsMessage   // Messages, Message
	visibility mnsVisibility  // ChangeVisibility
	queue      mnsQueue       // Queue
}

var errNotMNS = errors.New("answer is not a document of MNS")

// decodeMNS reads an answer. When a batch of messages breaks off, those before the
// break are returned together with the error.
func decodeMNS(body []byte) (mnsDocument, error) {
	if err := checkTags(body); err != nil {
		return mnsDocument{}, fmt.Errorf("%w: %w", errNotMNS, err)
	}
	doc, err := readMNS(body)
	if err == nil {
		return doc, nil
	}
	// A message may hold what XML 1.0 forbids. One such message must not hide the other
	// fifteen, again and again, so the forbidden characters are replaced.
	if again, errAgain := readMNS(repairXML(body)); errAgain == nil || len(again.messages) > len(doc.messages) {
		return again, errAgain
	}
	return doc, err
}

// What a document may have: a batch of 16 messages has some 400 tags, each with hardly
// an attribute.
const (
	mnsMaxTags = 10_000
	mnsMaxTag  = 4 << 10
)

// checkTags refuses what would take many times its own size to read: elements without
// end, inside or behind each other, and elements with attributes without end.
func checkTags(body []byte) error {
	for tags := 0; ; tags++ {
		i := bytes.IndexByte(body, '<')
		switch {
		case i < 0:
			return nil
		case tags == mnsMaxTags:
			return fmt.Errorf("it has more than %d tags", mnsMaxTags)
		}
		body = body[i+1:]
		isTag := len(body) > 0 && body[0] != '!' // what else there is holds text
		if near := body[:min(len(body), mnsMaxTag)]; isTag && len(near) == mnsMaxTag && bytes.IndexByte(near, '>') < 0 {
			return fmt.Errorf("it has a tag of more than %d bytes", mnsMaxTag)
		}
	}
}

func readMNS(body []byte) (mnsDocument, error) {
	d := xml.NewDecoder(bytes.NewReader(body))
	root, err := nextElement(d)
	if err != nil {
		return mnsDocument{}, fmt.Errorf("%w: %w", errNotMNS, err)
	}
	doc := mnsDocument{root: root.Name.Local}
	switch doc.root {
	case "Error":
		err = d.DecodeElement(&doc.err, &root)
	case "Errors":
		var errs struct{ Error []mnsItemError }
		err = d.DecodeElement(&errs, &root)
		doc.itemErrors = errs.Error
	case "Message":
		var m mnsMessage
		err = d.DecodeElement(&m, &root)
		if err == nil {
			doc.messages = []mnsMessage{m}
		}
	case "Messages":
		doc.messages, err = readMessages(d)
	case "ChangeVisibility":
		err = d.DecodeElement(&doc.visibility, &root)
	case "Queue":
		err = d.DecodeElement(&doc.queue, &root)
	default:
		return mnsDocument{}, fmt.Errorf("%w: its root is <%.40s>", errNotMNS, doc.root)
	}
	if err != nil {
		return doc, fmt.Errorf("%w: %w", errNotMNS, err)
	}
	return doc, nil
}

// readMessages reads one message at a time, to keep those before a break.
func readMessages(d *xml.Decoder) ([]mnsMessage, error) {
	var messages []mnsMessage
	for {
		token, err := d.Token()
		if err != nil {
			return messages, err
		}
		switch t := token.(type) {
		case xml.EndElement:
			return messages, nil
		case xml.StartElement:
			if t.Name.Local != "Message" {
				if err := d.Skip(); err != nil {
					return messages, err
				}
				continue
			}
			var m mnsMessage
			if err := d.DecodeElement(&m, &t); err != nil {
				return messages, err
			}
			messages = append(messages, m)
		}
	}
}

func nextElement(d *xml.Decoder) (xml.StartElement, error) {
	for {
		token, err := d.Token()
		if err != nil {
			return xml.StartElement{}, err
		}
		if start, ok := token.(xml.StartElement); ok {
			return start, nil
		}
	}
}

var numericReference = regexp.MustCompile(`&#(x[0-9A-Fa-f]+|[0-9]+);`)

// repairXML replaces bytes and references that XML 1.0 forbids by U+FFFD.
func repairXML(body []byte) []byte {
	text := strings.ToValidUTF8(string(body), "\uFFFD")
	text = strings.Map(func(r rune) rune {
		if allowedInXML(r) {
			return r
		}
		return utf8.RuneError
	}, text)
	text = numericReference.ReplaceAllStringFunc(text, func(ref string) string {
		digits, base := ref[2:len(ref)-1], 10
		if strings.HasPrefix(digits, "x") {
			digits, base = digits[1:], 16
		}
		n, err := strconv.ParseInt(digits, base, 32)
		if err != nil || !allowedInXML(rune(n)) {
			return "\uFFFD"
		}
		return ref
	})
	return []byte(text)
}

func allowedInXML(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' || r >= ' ' && r <= 0xD7FF || r >= 0xE000 && r <= 0xFFFD || r >= 0x10000 && r <= 0x10FFFF
}

// mnsTime reads Unix milliseconds; the zero time when there are none.
func mnsTime(text string) time.Time {
	ms, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil || ms <= 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// mnsSeconds reads a length in seconds, at most a year.
func mnsSeconds(text string) (time.Duration, bool) {
	s, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil || s < 0 || s > 366*24*3600 {
		return 0, false
	}
	return time.Duration(s) * time.Second, true
}
