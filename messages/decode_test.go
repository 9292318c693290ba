package messages

import (
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecodeNotification(t *testing.T) {
	t.Parallel()
	full := Notification{
		Action: Action{
			Region: "cn-shenzhen", Group: "asg-bp1example", Hook: "ash-bp1example", HookName: "drain-on-scale-in",
			Transition: ScaleIn, Token: "C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99", Activity: "asa-bp1example",
			Instances: []InstanceID{"i-bp1aaaaaaaaaaaaaaaa1", "i-bp1aaaaaaaaaaaaaaaa2"},
		},
		AccountID: "111111111111111", GroupName: "web", DefaultResult: Continue,
		Metadata:    "中文 metadata, 'quotes' & <tags>",
		RequestID:   "0F8A7A2B-8C1E-4E43-9C3D-0D7F3F1B2A11",
		ResourceARN: "acs:ess:cn-shenzhen:111111111111111:scalingGroup/asg-bp1example",
		ScalingRule: "asr-bp1example", ScheduledTask: "bp1task",
		Time: time.Date(2018, 6, 21, 3, 7, 57, 641e6, time.UTC),
	}
	minimal := Notification{Action: Action{
		Region: "cn-hangzhou", Group: "asg-b", Hook: "ash-b", Transition: ScaleOut,
		Token: "9C2E9DA7-F794-449A-ACF6-CEE24444F7BB", Activity: "asa-b", Instances: []InstanceID{"i-bp1b"},
	}}
	for name, want := range map[string]Notification{
		"hook.json": full, "hook.base64": full, "hook.base64-twice": full, "hook-minimal.json": minimal,
	} {
		got, err := Decode(read(t, name), Alibaba)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v\nwant %+v", name, got, err, want)
		}
	}
}

func TestDecodeUserIDAsNumber(t *testing.T) {
	t.Parallel()
	body := strings.Replace(string(read(t, "hook.json")), `"userId":"111111111111111"`, `"userId":111111111111111`, 1)
	n, err := Decode([]byte(body), Alibaba)
	if err != nil || n.AccountID != "111111111111111" {
		t.Errorf("account %q, error %v", n.AccountID, err)
	}
}

// A specversion of null is none: the notification beside it counts.
func TestDecodeWithoutSpecVersion(t *testing.T) {
	t.Parallel()
	good := string(read(t, "hook.json"))
	want, err := Decode([]byte(good), Alibaba)
	if err != nil {
		t.Fatal(err)
	}
	body := strings.Replace(good, `{`, `{"specversion":null,`, 1)
	if got, err := Decode([]byte(body), Alibaba); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	if layers := Layers([]byte(body), Alibaba); len(layers) != 0 {
		t.Errorf("layers %+v", layers)
	}
}

func TestDecodeOtherMessages(t *testing.T) {
	t.Parallel()
	for body, kind := range map[string]string{
		string(read(t, "event-scale-in-success.json")):                      "ESS AUTOSCALING:SCALE_IN_SUCCESS",
		string(read(t, "event-spot.json")):                                  "ECS Instance:PreemptibleInstanceInterruption",
		`{"product":"ESS","content":{"scalingGroupId":"asg-b"}}`:            "ESS",
		`{"specversion":"1.0","type":"ess:ScalingActivity:ScaleInSuccess"}`: "EventBridge ess:ScalingActivity:ScaleInSuccess",
		"{\"product\":\"E\\u001b[31mCS\"}":                                  `E\x1b[31mCS`,
		`{"product":"` + strings.Repeat("x", 300) + `"}`:                    strings.Repeat("x", 160),
		`{"product":"RDS","content":"no object"}`:                           "RDS",
		`{"product":"ECS","specversion":null}`:                              "ECS",
	} {
		for _, b := range []string{body, base64.StdEncoding.EncodeToString([]byte(body)), " \n" + body + "\n"} {
			_, err := Decode([]byte(b), Alibaba)
			other, ok := errors.AsType[*OtherError](err)
			if !ok || !errors.Is(err, ErrNotLifecycle) || errors.Is(err, ErrMalformed) || other.Kind != kind {
				t.Errorf("%.60q: got %v, want kind %q", b, err, kind)
			}
		}
	}
}

func TestDecodeMalformed(t *testing.T) {
	t.Parallel()
	good := string(read(t, "hook.json"))
	with := func(old, new string) string {
		t.Helper()
		if !strings.Contains(good, old) {
			t.Fatalf("testdata has no %s", old)
		}
		return strings.Replace(good, old, new, 1)
	}
	encoded := string(read(t, "hook.base64"))
	for _, c := range []struct{ name, body, where, reason string }{
		{"empty", "", "body", "empty"},
		{"blank", " \n\t", "body", "empty"},
		{"text", "hello, world", "body", "neither a JSON object, nor XML, nor Base64"},
		{"64 KB of one byte", strings.Repeat("\x00", 65536), "body", "neither"},
		{"64 KB of letters", strings.Repeat("A", 65536), "body", "neither"},
		{"array", "[1,2]", "body", "neither"},
		{"no UTF-8", with(`drain-on-scale-in`, "dr\xff"), "body", "no UTF-8"},
		{"longer than any queue's", strings.Repeat(" ", MaxBody+1), "body", "longer than"},
		{"time as number", with(`"2018-06-21T03:07:57.641Z"`, `7`), "time", "got \"7\""},
		{"Base64 cut", encoded[:len(encoded)-7], "base64", "cut short"},
		{"Base64 damaged late", encoded[:400] + "!" + encoded[401:], "base64", "damaged"},
		{"Base64 three times", b64(b64(b64(good))), "base64", "more than twice"},
		{"JSON cut", good[:200], "body", "cut short"},
		{"syntax", `{"product":}`, "body", "no JSON"},
		{"two objects", good + "{}", "body", "more text"},
		{"no product", `{"content":{}}`, "product", "missing"},
		{"content is no object", with(`"content":{`, `"content":[],"x":{`), "content", "array"},
		{"content missing", `{"product":"ESS","regionId":"cn-hangzhou"}`, "content", "cut short"},
		{"token only", `{"product":"ESS","content":{"lifecycleActionToken":"x"}}`, "content.lifecycleTransition", "SCALE_IN or SCALE_OUT"},
		{"number for text", with(`"lifecycleHookId":"ash-bp1example"`, `"lifecycleHookId":7`), "content.lifecycleHookId", "number"},
		{"ids no list", with(`["i-bp1aaaaaaaaaaaaaaaa1","i-bp1aaaaaaaaaaaaaaaa2"]`, `"i-bp1"`), "content.instanceIds", "string"},
		{"ids empty", with(`["i-bp1aaaaaaaaaaaaaaaa1","i-bp1aaaaaaaaaaaaaaaa2"]`, `[]`), "content.instanceIds", "at least one"},
		{"id for a shell", with(`i-bp1aaaaaaaaaaaaaaaa2`, `i-$(reboot)`), "content.instanceIds[1]", "must match"},
		{"id with a newline", with(`i-bp1aaaaaaaaaaaaaaaa2`, `i-a\n`), "content.instanceIds[1]", "must match"},
		{"region for a URL", with(`"regionId":"cn-shenzhen"`, `"regionId":"evil.example/"`), "regionId", "must match"},
		{"hook", with(`ash-bp1example`, `asg-bp1example`), "content.lifecycleHookId", "must match"},
		{"hook name", with(`drain-on-scale-in`, `drain; reboot`), "content.lifecycleHookName", "must match"},
		{"hook name in lines", with(`drain-on-scale-in`, `drain\nx`), "content.lifecycleHookName", "must match"},
		{"token", with(`C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99`, `{{.Secret}}`), "content.lifecycleActionToken", "must match"},
		{"transition", with(`SCALE_IN`, `SCALE_SIDEWAYS`), "content.lifecycleTransition", "SCALE_SIDEWAYS"},
		{"another product's", `{"product":"RDS","content":{"lifecycleActionToken":"not ours at all"}}`, "product", `must be ESS for a lifecycle action, got "RDS"`},
		{"product in small letters", with(`"product":"ESS"`, `"product":"ess"`), "product", `got "ess"`},
		{"product in small letters, no content", `{"product":"ess"}`, "product", `got "ess"`},
		{"another product's event", with(`"product":"ESS"`, `"product":"ECS","specversion":null,"type":"ess:LifecycleHook:ScaleIn"`), "product", `got "ECS"`},
		{"marks in the data", `{"product":"X","data":{"content":{"lifecycleHookId":"ash-1"}}}`, "product", `got "X"`},
		{"an event of no type", with(`"product":"ESS"`, `"product":"ESS","specversion":"1.0"`), "type", `must be ess:LifecycleHook:... for a lifecycle action, got ""`},
		{"an event of another type", `{"specversion":"1.0","type":"ess:Else","data":{"lifecycleTransition":"SCALE_IN"}}`, "type", `got "ess:Else"`},
		{"an event of another type, nested", `{"specversion":"1.0","type":"ess:Else","data":{"content":{"lifecycleHookId":null}}}`, "type", `got "ess:Else"`},
		{"an event's type in small letters", `{"specversion":"1.0","type":"ess:lifecyclehook:ScaleIn","data":{}}`, "type", `another kind: "ess:lifecyclehook:ScaleIn"`},
		{"time", with(`2018-06-21T03:07:57.641Z`, `yesterday`), "time", "yesterday"},
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
	}
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
