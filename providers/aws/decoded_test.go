package aws

import (
	"encoding/json"
	"testing"

	"example.org/usher/messages"
)

// decoded reads what a hook sends straight to a queue.
func decoded(t *testing.T, body []byte) messages.Action {
	t.Helper()
	var m struct {
		AutoScalingGroupName, LifecycleHookName, LifecycleActionToken, LifecycleTransition, EC2InstanceId string
	}
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return messages.Action{
		Group: messages.GroupID(m.AutoScalingGroupName), Hook: messages.HookID(m.LifecycleHookName), Token: messages.Token(m.LifecycleActionToken),
		Transition: transitions[m.LifecycleTransition], Instances: []messages.InstanceID{messages.InstanceID(m.EC2InstanceId)},
	}
}
