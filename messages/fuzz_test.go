package messages

import (
	"bytes"
	"crypto/md5"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"errors"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// digest is what a topic writes as MessageMD5.
func digest(text string) string {
	sum := md5.Sum([]byte(text))
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// inXML puts a message into a topic's XML envelope.
func inXML(message string) string {
	var b bytes.Buffer
	b.WriteString(xml.Header + `<Notification xmlns="http://mns.aliyuncs.com/doc/v1"><TopicOwner>1</TopicOwner><TopicName>t</TopicName><Message>`)
	xml.EscapeText(&b, []byte(message))
	b.WriteString("</Message><MessageMD5>" + digest(message) + "</MessageMD5><PublishTime>1449556920975</PublishTime></Notification>")
	return b.String()
}

// inJSON puts a message into a topic's JSON envelope.
func inJSON(t testing.TB, message string) string {
	t.Helper()
	return marshal(t, map[string]string{"TopicName": "t", "SubscriptionName": "s", "Message": message, "MessageMD5": digest(message), "PublishTime": "1449556920975"})
}

func marshal(t testing.TB, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// asEvent makes n, whose content is given, an event of EventBridge; nested says where the
// content stands in its data.
func asEvent(t testing.TB, n Notification, content json.RawMessage, nested bool) string {
	t.Helper()
	e := map[string]any{
		"specversion": "1.0", "source": "acs.ess", "aliyunregionid": n.Region, "data": content,
		"type": map[Transition]string{ScaleIn: "ess:LifecycleHook:ScaleIn", ScaleOut: "ess:LifecycleHook:ScaleOut"}[n.Transition],
	}
	if !n.Time.IsZero() {
		e["time"] = n.Time.Format(time.RFC3339Nano)
	}
	if nested {
		e["data"] = map[string]any{"content": content}
	}
	return marshal(t, e)
}

// fitsXML says whether XML 1.0 can carry the text as it is.
func fitsXML(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool {
		return r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0xfffe || r == 0xffff
	})
}

// wrapped gives text in every form that a topic can bring it in.
func wrapped(t testing.TB, text string) []string {
	t.Helper()
	var all []string
	for _, message := range []string{text, b64(text)} {
		forms := []string{inJSON(t, message)}
		if fitsXML(message) {
			forms = append(forms, inXML(message))
		}
		for _, f := range forms {
			all = append(all, f, b64(f))
		}
	}
	return append(all, inJSON(t, b64(b64(text))), b64(b64(inJSON(t, text))))
}

func FuzzDecode(f *testing.F) {
	names, err := filepath.Glob("testdata/*.*")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range names {
		f.Add(read(f, filepath.Base(name)))
	}
	for _, seed := range []string{
		`{"product":"ESS","content":null}`, `{"specversion":"1.0"}`, `{"TopicName":"t"}`, `{"TopicName":"t","Message":7}`,
		`{"specversion":"1.0","type":"ess:LifecycleHook:ScaleOut","data":{"content":null}}`,
		`{"specversion":null,"product":"ess","content":{"lifecycleHookId":"ash-1"}}`, `{"specversion":"1.0","type":"ESS:LIFECYCLEHOOK:SCALEIN","data":{"content":{}}}`,
		`<Notification/>`, `<Notification><Message>e30=</Message></Notification>`, `<!DOCTYPE x [<!ENTITY a "b">]><Notification/>`,
		`<Notification><Message><![CDATA[{"product":"ECS"}]]></Message><UserProperties><PropertyValue><Name>n</Name></PropertyValue></UserProperties></Notification>`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		n, err := Decode(body, Alibaba)
		o, openErr := open(body)
		if n := len(o.layers); n > maxBase64Layers+2 || n != len(Layers(body, Alibaba)) {
			t.Fatalf("%d layers were taken off", n)
		}
		if err != nil {
			if errors.Is(err, ErrMalformed) == errors.Is(err, ErrNotLifecycle) {
				t.Fatalf("refused with neither or both sentinels: %v", err)
			}
			for _, r := range err.Error() {
				if r < ' ' || r == utf8.RuneError {
					t.Fatalf("error text is not printable: %q", err)
				}
			}
			if len(err.Error()) > 1000 {
				t.Fatalf("error of %d bytes", len(err.Error()))
			}
		}
		if openErr != nil || len(o.text) > MaxBody/8 {
			return
		}
		// Blanks around it, Base64, or an envelope make no difference.
		for _, again := range append(wrapped(t, string(o.text)), " "+string(o.text)+"\n", b64(string(o.text))) {
			m, againErr := Decode([]byte(again), Alibaba)
			if !reflect.DeepEqual(m, n) {
				t.Fatalf("%+v became %+v, %v in %s", n, m, againErr, again)
			}
			was, isOther := errors.AsType[*OtherError](err)
			is, stillOther := errors.AsType[*OtherError](againErr)
			if (err == nil) != (againErr == nil) || isOther != stillOther || isOther && *was != *is {
				t.Fatalf("error %v became %v in %s", err, againErr, again)
			}
		}
		if err != nil {
			return
		}
		if n.Hook == "" || n.Token == "" || n.Group == "" || n.Region == "" || len(n.Instances) == 0 {
			t.Fatalf("accepted without an identifier: %+v", n)
		}
		texts := []string{n.Region, string(n.Group), string(n.Hook), string(n.Token), string(n.Activity), string(n.Transition)}
		for i, id := range n.Instances {
			if !id.Valid() || slices.Contains(n.Instances[:i], id) {
				t.Fatalf("instance id %q", id)
			}
			texts = append(texts, string(id))
		}
		for _, text := range texts {
			if strings.Trim(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" || len(text) > 90 {
				t.Fatalf("identifier %q", text)
			}
		}
		if strings.ContainsFunc(n.HookName, func(r rune) bool { return !unicode.IsPrint(r) || strings.ContainsRune(" \"'`$&|;<>(){}[]\\/%#", r) }) {
			t.Fatalf("hook name %q", n.HookName)
		}
		told, err := Reannounce(n.Action)
		if err != nil {
			t.Fatalf("%+v can't be announced again: %v", n.Action, err)
		}
		for _, again := range append(wrapped(t, told), told) {
			if m, err := Decode([]byte(again), Alibaba); err != nil || !m.Reannounced || !reflect.DeepEqual(m.Action, n.Action) {
				t.Fatalf("%+v was announced as %+v, %v", n.Action, m.Action, err)
			}
		}
		if content := o.message.Content; content != nil && o.message.SpecVersion == nil {
			for _, nested := range []bool{false, true} {
				e := asEvent(t, n, content, nested)
				for _, again := range append(wrapped(t, e), e) {
					if m, err := Decode([]byte(again), Alibaba); err != nil || !reflect.DeepEqual(m.Action, n.Action) || !m.Time.Equal(n.Time) {
						t.Fatalf("%+v became %+v, %v in %s", n, m, err, again)
					}
				}
			}
		}
	})
}
