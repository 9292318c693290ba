package messages

import (
	"errors"
	"reflect"
	"testing"
)

func TestReannounce(t *testing.T) {
	t.Parallel()
	action := Action{
		Region: "cn-shenzhen", Group: "asg-wz9example0001", Hook: "ash-wz9example0001", HookName: "排空_drain.1", Transition: ScaleOut,
		Token: "9C2E9DA7-F794-449A-ACF6-CEE24444F7BB", Activity: "asa-wz9example0001", Instances: []InstanceID{"i-wz9a", "eci-wz9b"},
	}
	body, err := Reannounce(action)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Decode([]byte(body), Alibaba)
	if err != nil || !got.Reannounced || !reflect.DeepEqual(got.Action, action) {
		t.Errorf("read back as %+v, %v", got, err)
	}

	for name, spoil := range map[string]func(a *Action){
		"token":      func(a *Action) { a.Token = "$(reboot)" },
		"group":      func(a *Action) { a.Group = "" },
		"instance":   func(a *Action) { a.Instances = []InstanceID{"i-wz9a; reboot"} },
		"instances":  func(a *Action) { a.Instances = nil },
		"transition": func(a *Action) { a.Transition = "sideways" },
	} {
		bad := action
		spoil(&bad)
		if body, err := Reannounce(bad); !errors.Is(err, ErrMalformed) || body != "" {
			t.Errorf("%s: %q, %v, want a refusal", name, body, err)
		}
	}
}
