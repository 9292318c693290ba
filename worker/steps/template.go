package steps

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"example.org/usher/messages"
	"example.org/usher/worker/placeholders"
)

// facts is what a template can name. All of it has passed the strict patterns of
// package messages, so that it can stand in a URL as it is.
type facts struct {
	InstanceID   messages.InstanceID
	ScalingGroup messages.GroupID
	Region       string
	Hook         messages.HookID
	Token        messages.Token
	Transition   messages.Transition
	Activity     messages.ActivityID

	privateIP netip.Addr
}

func factsOf(in messages.Instance) facts {
	return facts{
		InstanceID:   in.ID,
		ScalingGroup: in.Action.Group,
		Region:       in.Action.Region,
		Hook:         in.Action.Hook,
		Token:        in.Action.Token,
		Transition:   in.Action.Transition,
		Activity:     in.Action.Activity,
		privateIP:    in.PrivateIP.Unmap(),
	}
}

// errNoPrivateIP is told when a template needs an address that the cloud did not give.
var errNoPrivateIP = errors.New("the cloud does not tell this instance's private address, which the template uses")

// field is the value of a field. A missing address is an error, so that no hole is left in a URL.
func (f facts) field(name string) (string, error) {
	switch name {
	case "InstanceID":
		return string(f.InstanceID), nil
	case "PrivateIP":
		if !f.privateIP.IsValid() {
			return "", errNoPrivateIP
		}
		return f.privateIP.String(), nil
	case "ScalingGroup":
		return string(f.ScalingGroup), nil
	case "Region":
		return f.Region, nil
	case "Hook":
		return string(f.Hook), nil
	case "Token":
		return string(f.Token), nil
	case "Transition":
		return string(f.Transition), nil
	case "Activity":
		return string(f.Activity), nil
	}
	return "", errors.New("not a field; there are " + strings.Join(placeholders.Names, ", "))
}

// sample stands in for a real instance when a template is checked.
var sample = facts{
	InstanceID: "i-sample", ScalingGroup: "asg-sample", Region: "cn-sample", Hook: "ash-sample",
	Token: "sample", Transition: messages.ScaleIn, Activity: "asa-sample",
	privateIP: netip.AddrFrom4([4]byte{192, 0, 2, 1}),
}

// render fills in one template. what names it in errors; its text is never
// quoted there, as it may hold a secret.
func render(what, text string, f facts) (string, error) {
	t, err := placeholders.Parse(text)
	if err != nil {
		return "", fmt.Errorf("%s: not a template of fields; there are %s", what, strings.Join(placeholders.Names, ", "))
	}
	out, err := t.Fill(f.field)
	if err != nil {
		return "", fmt.Errorf("%s: %w", what, err)
	}
	return out, nil
}
