package messages

import (
	"encoding/json"
	"fmt"
	"strings"
)

// Reannounce writes the body of a message that announces a again, in ESS's own
// form and marked as a worker's. Decode reads it back as the same action. A value that
// Decode would refuse is an error here.
func Reannounce(a Action) (string, error) {
	ids := make([]string, len(a.Instances))
	for i, id := range a.Instances {
		ids[i] = string(id)
	}
	type content struct {
		Instances  []string   `json:"instanceIds"`
		Token      Token      `json:"lifecycleActionToken"`
		Hook       HookID     `json:"lifecycleHookId"`
		HookName   string     `json:"lifecycleHookName,omitempty"`
		Transition string     `json:"lifecycleTransition"`
		Activity   ActivityID `json:"scalingActivityId"`
		Group      GroupID    `json:"scalingGroupId"`
	}
	body, err := json.Marshal(struct {
		Product     string  `json:"product"`
		Region      string  `json:"regionId"`
		Reannounced bool    `json:"usherReannounced"`
		Content     content `json:"content"`
	}{"ESS", a.Region, true, content{ids, a.Token, a.Hook, a.HookName, strings.ToUpper(string(a.Transition)), a.Activity, a.Group}})
	if err == nil {
		_, err = Decode(body, Alibaba)
	}
	if err != nil {
		return "", fmt.Errorf("announce action %q again: %w", a.Token, err)
	}
	return string(body), nil
}
