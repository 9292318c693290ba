package configs

import (
	"errors"
	"fmt"
	"strings"

	"example.org/usher/worker/placeholders"
)

// sample is what templates are tried with when they are loaded.
var sample = map[string]string{
	"InstanceID":   "i-wz9example0001",
	"PrivateIP":    "10.0.0.1",
	"ScalingGroup": "asg-wz9example0001",
	"Region":       "cn-shenzhen",
	"Hook":         "ash-wz9example0001",
	"Token":        "C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99",
	"Transition":   "scale_in",
	"Activity":     "asa-wz9example0001",
}

// try gives what a text makes of the sample values. Its error is fit to be told.
func try(text string) (string, error) {
	t, err := placeholders.Parse(text)
	if program, ok := errors.AsType[*placeholders.ProgramError](err); ok {
		return "", fmt.Errorf("only fields such as {{.PrivateIP}} can stand in a template, got %s (allowed: %s)", clip(program.Got), strings.Join(placeholders.Names, ", "))
	}
	if err != nil {
		return "", fmt.Errorf("not a template: %s", visible(err.Error()))
	}
	return t.Fill(func(name string) (string, error) {
		if value, ok := sample[name]; ok {
			return value, nil
		}
		return "", fmt.Errorf("unknown field %s%s (allowed: %s)", clip("{{."+name+"}}"), suggest(name, placeholders.Names), strings.Join(placeholders.Names, ", "))
	})
}

// template reads a text that may name the fields, and gives the text and what it
// makes of the sample values.
func (m fields) template(key string) (text, example string, ok bool) {
	text, ok = m.text(key, "")
	if !ok {
		return "", "", false
	}
	example, err := try(text)
	if err != nil {
		m.refuse(key, "%s", err)
		return "", "", false
	}
	return text, example, true
}
