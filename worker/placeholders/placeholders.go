// Package placeholders fills in texts of the configuration: {{.InstanceID}} and the like are written
// as in text/template, and there is nothing else of it. A program inside a text could run for
// ever, or make text without end. And what executes templates calls methods by their names, for
// which the linker keeps each method of each client of both clouds.
package placeholders

import (
	"errors"
	"strings"
	"text/template/parse"
)

// Names are the fields that a text of the configuration can name.
var Names = []string{
	"InstanceID", "PrivateIP", "ScalingGroup", "Region", "Hook", "Token", "Transition", "Activity",
}

// Text is a text with fields to be filled in.
type Text []part

// part is a piece of the text as it stands, or the name of a field.
type part struct {
	text  string
	field bool
}

// ProgramError refuses what text/template would take, and is more than a field.
type ProgramError struct {
	// Got is what stands there, as it was written or like it. It may be long.
	Got string
}

func (e *ProgramError) Error() string {
	return "only fields such as {{.PrivateIP}} can stand in a template, got " + e.Got
}

// Parse reads a text. Whether there are fields of the names in it only Fill tells. The errors, a
// *ProgramError or one of the syntax, quote the text, and are not fit for a log as they are.
func Parse(text string) (Text, error) {
	const name = "text"
	tree, trees := parse.New(name), map[string]*parse.Tree{}
	tree.Mode = parse.SkipFuncCheck // what has functions in it is refused as a whole
	if _, err := tree.Parse(text, "", "", trees); err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "template: "+name+":"))
	}
	if len(trees) > 1 || trees[name] != tree {
		return nil, &ProgramError{Got: "{{define}}"}
	}
	var t Text
	for _, n := range tree.Root.Nodes {
		if n, ok := n.(*parse.TextNode); ok {
			t = append(t, part{text: string(n.Text)})
			continue
		}
		field, ok := fieldOf(n)
		if !ok {
			return nil, &ProgramError{Got: n.String()}
		}
		t = append(t, part{text: field, field: true})
	}
	return t, nil
}

// fieldOf is the name of the one field that n consists of.
func fieldOf(n parse.Node) (name string, ok bool) {
	action, ok := n.(*parse.ActionNode)
	if !ok || len(action.Pipe.Decl) > 0 || len(action.Pipe.Cmds) != 1 || len(action.Pipe.Cmds[0].Args) != 1 {
		return "", false
	}
	field, ok := action.Pipe.Cmds[0].Args[0].(*parse.FieldNode)
	if !ok || len(field.Ident) != 1 {
		return "", false
	}
	return field.Ident[0], true
}

// Fill gives the text with the value of each field in its place, or the first error of value.
func (t Text) Fill(value func(name string) (string, error)) (string, error) {
	var b strings.Builder
	for _, p := range t {
		text := p.text
		if p.field {
			var err error
			if text, err = value(p.text); err != nil {
				return "", err
			}
		}
		b.WriteString(text)
	}
	return b.String(), nil
}
