package configs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxFile is the largest file that is read. A hook with hundreds of steps is a few KB.
const maxFile = 1 << 20

// file is one YAML file while it is read; what is wrong with it gathers here.
type file struct {
	name string
	// of is the cloud whose group the file is about, and region its region when that is right;
	// nil: none.
	of       *cloud
	region   string
	problems Errors
}

// maxProblems bounds what one file can say; a file with more is no configuration.
const maxProblems = 100

// problem notes what is wrong with key, at the place of n.
func (f *file) problem(n *yaml.Node, key, format string, args ...any) {
	if len(f.problems) >= maxProblems {
		return
	}
	if len(f.problems) == maxProblems-1 {
		key, format, args = "", "here and below are more problems, not shown", nil
	}
	p := Problem{File: f.name, Line: max(1, n.Line), Column: max(1, n.Column), Key: key, Message: fmt.Sprintf(format, args...)}
	if len(f.problems) > 0 && f.problems[len(f.problems)-1].String() == p.String() {
		return
	}
	f.problems = append(f.problems, p)
}

// parse gives the mapping that the file consists of, or nil when it is not one.
func (f *file) parse(data []byte) *yaml.Node {
	if n, message := unreadable(data); message != "" {
		f.problem(n, "", "%s", message)
		return nil
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document, second yaml.Node
	err := decoder.Decode(&document)
	if errors.Is(err, io.EOF) {
		f.problem(&yaml.Node{}, "", "the file is empty")
		return nil
	}
	if err != nil {
		f.syntax(err)
		return nil
	}
	if err := decoder.Decode(&second); err == nil {
		f.problem(&second, "", "a second document: one file describes one thing, remove the --- line and what follows")
		return nil
	} else if !errors.Is(err, io.EOF) {
		f.syntax(err)
		return nil
	}
	if f.plain(&document); len(f.problems) > 0 {
		return nil
	}
	root := document.Content[0]
	if root.Kind != yaml.MappingNode {
		f.problem(root, "", "want keys and values, got %s", kind(root))
		return nil
	}
	return root
}

// unreadable finds what the YAML library refuses without saying where.
func unreadable(data []byte) (*yaml.Node, string) {
	if len(data) > maxFile {
		return &yaml.Node{}, "the file is larger than 1 MiB"
	}
	line := 1
	for rest := data; len(rest) > 0; {
		r, size := utf8.DecodeRune(rest)
		switch {
		case r == utf8.RuneError && size == 1:
			return &yaml.Node{Line: line}, "the file is not UTF-8 text"
		case r == '\n':
			line++
		case r < ' ' && r != '\t' && r != '\r', r == 0x7f:
			return &yaml.Node{Line: line}, fmt.Sprintf("control character %U", r)
		}
		rest = rest[size:]
	}
	return nil, ""
}

var syntaxLine = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+)(?:, column \d+)?: )?`)

// syntax notes the library's own complaint, at the line it names.
func (f *file) syntax(err error) {
	text := err.Error()
	found := syntaxLine.FindStringSubmatch(text)
	line, _ := strconv.Atoi(found[1])
	text = strings.ReplaceAll(strings.TrimPrefix(text, found[0]), "\n", " ")
	if strings.Contains(text, "cannot start any token") {
		text += " (YAML is indented with spaces, not tabs; text that begins with @, ` or % needs quotes)"
	}
	f.problem(&yaml.Node{Line: line}, "", "not valid YAML: %s", text)
}

// plain refuses what makes a file mean something else than it shows: aliases, which
// can also blow a small file up, and tags, which change types.
func (f *file) plain(n *yaml.Node) {
	switch {
	case n.Kind == yaml.AliasNode:
		f.problem(n, "", "aliases (*%s) are not supported, write the value out", n.Value)
	case n.Anchor != "":
		f.problem(n, "", "anchors (&%s) are not supported, write the value out", n.Anchor)
	case n.Style&yaml.TaggedStyle != 0:
		f.problem(n, "", "tags (%s) are not supported", clip(n.Tag))
	}
	for _, child := range n.Content {
		f.plain(child)
	}
}

// kind says in words what a node is.
func kind(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "keys and values"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.ShortTag() == "!!null":
		return "nothing"
	case n.ShortTag() == "!!str":
		return clip(n.Value)
	}
	return n.Value
}

// fields are the keys and values of one mapping. The reading methods give the default
// for a key that is absent, and note a problem for a value that is wrong.
type fields struct {
	*file
	node *yaml.Node
	path string
	// keys and values hold what is in the file and known.
	keys, values map[string]*yaml.Node
}

// fields checks that n is a mapping of known keys, each at most once. Where it is
// not, the answer is an empty mapping.
func (f *file) fields(n *yaml.Node, path string, known ...string) fields {
	m := fields{file: f, node: n, path: path, keys: map[string]*yaml.Node{}, values: map[string]*yaml.Node{}}
	if n.Kind != yaml.MappingNode {
		f.problem(n, path, "want keys and values (%s), got %s", strings.Join(known, ", "), kind(n))
		return m
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := key.Value
		switch {
		case key.Kind != yaml.ScalarNode:
			f.problem(key, path, "a key must be a word; allowed: %s", strings.Join(known, ", "))
		case m.keys[name] != nil:
			f.problem(key, m.at(name), "is there twice, first in line %d", m.keys[name].Line)
		case !slices.Contains(known, name) && f.foreign(m.at(name)) != "":
			f.problem(key, m.at(name), "is for provider: %s alone (allowed: %s)", f.foreign(m.at(name)), strings.Join(known, ", "))
		case !slices.Contains(known, name) && f.of == aws && m.at(name) == "endpoints.sqs":
			f.problem(key, m.at(name), "the address of SQS is queue.endpoint (allowed: %s)", strings.Join(known, ", "))
		case !slices.Contains(known, name):
			f.problem(key, m.at(name), "unknown key%s (allowed: %s)", suggest(name, known), strings.Join(known, ", "))
		default:
			m.keys[name], m.values[name] = key, value
		}
	}
	return m
}

// printable is a key that a problem can show without breaking its line.
func printable(name string) string {
	if text := clip(name); text != strconv.Quote(name) || strings.ContainsAny(name, "\"\\: \n") || name == "" || len(text) != len(name)+2 {
		return text
	}
	return name
}

// at is the path of a key of this mapping. A header or a tag may have any name.
func (m fields) at(key string) string {
	if m.path == "" {
		return printable(key)
	}
	return m.path + "." + printable(key)
}

// place is where a problem with key is shown: at the key, or at its mapping when it is absent.
func (m fields) place(key string) *yaml.Node {
	if n := m.keys[key]; n != nil {
		return n
	}
	return m.node
}

// refuse notes a problem with key.
func (m fields) refuse(key, format string, args ...any) {
	m.problem(m.place(key), m.at(key), format, args...)
}

// need says whether key is there, and notes a problem when it is not.
func (m fields) need(key, allowed string) bool {
	if m.keys[key] == nil {
		m.refuse(key, "is required: %s", allowed)
		return false
	}
	return true
}

// text reads a text. A number or a word like true needs quotes to be one.
func (m fields) text(key, absent string) (string, bool) {
	n := m.values[key]
	if n == nil {
		return absent, true
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		m.refuse(key, "want text%s, got %s", quotes(n), kind(n))
		return absent, false
	}
	return n.Value, true
}

// quotes is a hint for a scalar that only quotes make a text.
func quotes(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode && n.ShortTag() != "!!null" {
		return " in quotes"
	}
	return ""
}

func (m fields) choice(key, absent string, allowed ...string) string {
	text, ok := m.text(key, absent)
	if !ok || text == absent && m.keys[key] == nil {
		return absent
	}
	if _, err := parseChoice(text, allowed...); err != nil {
		m.refuse(key, "%s", err)
		return absent
	}
	return text
}

// flag reads true or false, false when absent.
func (m fields) flag(key string) bool {
	n := m.values[key]
	if n == nil {
		return false
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" {
		m.refuse(key, "want true or false, got %s", kind(n))
		return false
	}
	return strings.EqualFold(n.Value, "true")
}

func (m fields) duration(key string, absent, low, high time.Duration) time.Duration {
	n := m.values[key]
	if n == nil {
		return absent
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		m.refuse(key, "want a duration such as 30s, 5m or 1h30m, got %s", kind(n))
		return absent
	}
	d, err := parseDuration(n.Value, low, high)
	if err != nil {
		m.refuse(key, "%s", err)
		return absent
	}
	return d
}

func (m fields) count(key string, absent, low, high int) int {
	n := m.values[key]
	if n == nil {
		return absent
	}
	return m.element(n, m.at(key), absent, low, high)
}

// element reads a whole number that stands at n.
func (f *file) element(n *yaml.Node, path string, absent, low, high int) int {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" {
		f.problem(n, path, "want a whole number from %d to %d, got %s", low, high, kind(n))
		return absent
	}
	count, err := parseCount(n.Value, low, high)
	if err != nil {
		f.problem(n, path, "%s", err)
		return absent
	}
	return count
}

// maxList is far above any use, and keeps the search for doubles short.
const maxList = 1000

// list gives the elements of a list with their paths.
func (m fields) list(key string) (nodes []*yaml.Node, paths []string) {
	n := m.values[key]
	if n == nil {
		return nil, nil
	}
	if n.Kind != yaml.SequenceNode {
		m.refuse(key, "want a list, got %s", kind(n))
		return nil, nil
	}
	if len(n.Content) > maxList {
		m.refuse(key, "at most %d, got %d", maxList, len(n.Content))
		return nil, nil
	}
	for i := range n.Content {
		paths = append(paths, fmt.Sprintf("%s[%d]", m.at(key), i))
	}
	return n.Content, paths
}

// counts reads a list of whole numbers, each at most once.
func (m fields) counts(key string, absent []int, low, high int) []int {
	if m.keys[key] == nil {
		return absent
	}
	var out []int
	nodes, paths := m.list(key)
	for i, n := range nodes {
		count := m.element(n, paths[i], low-1, low, high)
		if slices.Contains(out, count) {
			m.problem(n, paths[i], "%d is in the list twice", count)
		} else if count >= low {
			out = append(out, count)
		}
	}
	if n := m.values[key]; n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		m.refuse(key, "the list is empty: want at least one number from %d to %d", low, high)
	}
	return out
}

// texts reads a list of texts.
func (m fields) texts(key string) (out []string, nodes []*yaml.Node, paths []string) {
	all, where := m.list(key)
	for i, n := range all {
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
			m.problem(n, where[i], "want text%s, got %s", quotes(n), kind(n))
			continue
		}
		out, nodes, paths = append(out, n.Value), append(nodes, n), append(paths, where[i])
	}
	return out, nodes, paths
}
