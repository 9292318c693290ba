package configs

import (
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// DefaultExecTimeout is the timeout of an exec step that names none.
const DefaultExecTimeout = time.Minute

// ExecStep runs a program beside the worker.
type ExecStep struct {
	// Command is the program, an absolute path, and its arguments, which are templates.
	Command []string
	// Dir is where it runs; empty: /.
	Dir string
	// Env are variables for the program.
	Env map[string]string
	// Inherit names variables of the worker's environment that the program gets.
	Inherit []string
	// GoneCode is the exit code that says that the instance is gone; 0: none does.
	GoneCode int
}

// maxArguments is far below what execve takes (Linux: 128 KB an argument, 2 MB in all).
const maxArguments = 16 << 10

var patternVariable = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)

func (f *file) execStep(s *Step, n *yaml.Node, path string) {
	m := f.stepFields(n, path, "command", "dir", "env", "inherit", "gone_code")
	m.common(s, DefaultExecTimeout)
	e := &ExecStep{
		Command:  m.command(),
		Dir:      m.folder("dir"),
		Env:      m.variables("env"),
		Inherit:  m.variableNames("inherit"),
		GoneCode: m.count("gone_code", 0, 1, 255),
	}
	s.Exec = e
}

// command reads a program and its arguments. Whether the program is there is only known
// where the worker runs.
func (m fields) command() []string {
	const want = "a list: the absolute path of a program, and its arguments"
	if m.node.Kind != yaml.MappingNode || !m.need("command", want) {
		return nil
	}
	list, nodes, paths := m.texts("command")
	if n := m.values["command"]; n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		m.refuse("command", "the list is empty: want %s", want)
	}
	size := 0
	for i, text := range list {
		size += len(text)
		switch {
		case strings.ContainsRune(text, 0):
			m.problem(nodes[i], paths[i], "want text without zero bytes")
		case nodes[i] == m.values["command"].Content[0]:
			if !path.IsAbs(text) || strings.Contains(text, "{{") {
				m.problem(nodes[i], paths[i], "want the absolute path of a program, such as /usr/local/bin/drain, got %s", clip(text))
			}
		default:
			if _, err := try(text); err != nil {
				m.problem(nodes[i], paths[i], "%s", err)
			}
		}
	}
	if size > maxArguments {
		m.refuse("command", "at most %d bytes, got %d", maxArguments, size)
	}
	return list
}

func (m fields) folder(key string) string {
	text, ok := m.text(key, "")
	if ok && m.keys[key] != nil && (!path.IsAbs(text) || strings.ContainsRune(text, 0)) {
		m.refuse(key, "want the absolute path of a folder, got %s", clip(text))
	}
	return text
}

// variables reads names and values. The values are no templates: all facts are in the
// program's environment anyway.
func (m fields) variables(key string) map[string]string {
	n := m.values[key]
	if n == nil {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		m.refuse(key, "want names and values, got %s", kind(n))
		return nil
	}
	if len(n.Content) > 2*maxList {
		m.refuse(key, "at most %d, got %d", maxList, len(n.Content)/2)
		return nil
	}
	var names []string
	for i := 0; i < len(n.Content); i += 2 {
		names = append(names, n.Content[i].Value)
	}
	v := m.fields(n, m.at(key), names...)
	values := map[string]string{}
	for _, name := range names {
		value, ok := v.text(name, "")
		switch message := variableProblem(name); {
		case v.keys[name] == nil || !ok:
		case message != "":
			v.problem(v.keys[name], v.at(name), "%s", message)
		case strings.ContainsRune(value, 0):
			v.refuse(name, "want text without zero bytes")
		default:
			values[name] = value
		}
	}
	return values
}

func (m fields) variableNames(key string) []string {
	names, nodes, paths := m.texts(key)
	for i, name := range names {
		if message := variableProblem(name); message != "" {
			m.problem(nodes[i], paths[i], "%s", message)
		}
	}
	return names
}

// ownCredentials is how the variables begin by which the worker's own keys come, in either cloud.
var ownCredentials = []string{
	"ALIBABA_CLOUD_", "ALICLOUD_", "ALIBABACLOUD_",
	"AWS_ACCESS_KEY", "AWS_SECRET_", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AWS_WEB_IDENTITY_", "AWS_ROLE_", "AWS_CONTAINER_",
	"AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_PROFILE", "AWS_DEFAULT_PROFILE",
}

// variableProblem says why a program can't be given a variable of this name.
func variableProblem(name string) string {
	switch upper := strings.ToUpper(name); {
	case !patternVariable.MatchString(name):
		return "want a variable's name, such as LANG, got " + clip(name)
	case strings.HasPrefix(upper, envPrefix):
		return "names with " + envPrefix + " are usher's own: the program gets the facts by them"
	case slices.ContainsFunc(ownCredentials, func(beginning string) bool { return strings.HasPrefix(upper, beginning) }):
		return "the worker's own credentials are not for programs: give it others, by another name"
	}
	return ""
}
