package configs

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"example.org/usher/worker/heartbeats"
)

// WorkerFile is the one file of the folder that is no scaling group.
const WorkerFile = "usher.yaml"

// Examples are the files of the examples folder: usher.yaml, and one file each for
// some scaling groups.
//
//go:embed examples/*.yaml
var Examples embed.FS

const (
	envPrefix      = "USHER_"
	envGroupPrefix = "USHER_GROUP_"
	// envFolder is the command line's own variable: the folder to load.
	envFolder = "USHER_CONFIG"
)

// source is a group file while the folder is loaded.
type source struct {
	*file
	data  []byte
	group Group
	// scalingGroup is where the file names its scaling group, when the settings that
	// tell groups apart are right.
	scalingGroup *yaml.Node
	// queue is where the file names its queue, when all is right that says who reads it.
	queue *yaml.Node
}

// Load reads the folder dir and lays the USHER_ variables of env, which is as
// os.Environ gives it, over the values of the files. Hidden files and files that do
// not end in .yaml or .yml are left alone. The error is of type Errors when it is
// about what the files or the variables say.
func Load(dir string, env []string) (*Config, error) {
	worker, sources, problems, err := open(dir)
	if err != nil {
		return nil, err
	}
	overrides, unknown := assign(sources, env)
	problems = append(problems, unknown...)

	config := &Config{}
	at, good := loadWorker(worker, &config.Worker, overrides[WorkerFile])
	for _, s := range sources {
		s.load(overrides[s.name])
		config.Groups = append(config.Groups, s.group)
		problems = append(problems, s.problems...)
	}
	problems = append(problems, worker.problems...)
	problems = append(problems, twins(sources)...)
	problems = append(problems, disagreements(sources)...)
	if n := len(config.Groups); good["max_jobs"] && config.Worker.MaxJobs < n {
		problems = append(problems, at("max_jobs", fmt.Sprintf("at least %d, one for each scaling group, got %d", n, config.Worker.MaxJobs)))
	}
	if good["quarantine.to"] && good["quarantine.queue"] {
		if message := config.quarantine(); message != "" {
			problems = append(problems, at("quarantine.queue", message))
		}
	}
	if good["visibility_timeout"] {
		if message := config.hidden(); message != "" {
			problems = append(problems, at("visibility_timeout", message))
		}
	}
	if len(problems) > 0 {
		return nil, problems.sorted()
	}
	for _, g := range config.Groups {
		for i := range g.Hooks {
			if h := &g.Hooks[i].Heartbeat; g.Provider == ProviderAlibaba && h.Floor == 0 && h.Extension == 0 {
				h.Floor = heartbeatFloor(config.Worker.VisibilityTimeout)
			}
		}
	}
	return config, nil
}

// quarantine says what is wrong with where unreadable messages go.
func (c *Config) quarantine() string {
	q := c.Worker.Quarantine
	switch {
	case q.To == QuarantineQueue && q.Queue == "":
		return "is required with to: queue: the name of a queue at the same endpoint"
	case q.To != QuarantineQueue && q.Queue != "":
		return "only with to: queue, got to: " + q.To
	}
	for _, g := range c.Groups {
		switch of := cloudOf(g.Provider); {
		case q.Queue == "":
		case g.Queue.Name == q.Queue:
			return fmt.Sprintf("must not be a queue that is worked on, %s names it", g.File)
		case !of.queue.MatchString(q.Queue):
			return fmt.Sprintf("must be good for %s, too: want %s, got %s", g.File, of.wantQueue, clip(q.Queue))
		}
	}
	return ""
}

// hidden says which deadline on AWS a message could not stay hidden until: each renewal asks
// for the visibility timeout, and the worker makes none that would lead to the end of the cloud's
// 12 hours.
func (c *Config) hidden() string {
	for _, g := range c.Groups {
		for _, h := range g.Plans() {
			if most := awsMaxHidden - heartbeats.ReturnMargin - h.Deadline; g.Provider == ProviderAWS && c.Worker.VisibilityTimeout > most {
				return fmt.Sprintf("at most %s with the deadline of %s in %s: one receive of SQS hides a message for %s in all, and is given back %s before, got %s",
					show(most), show(h.Deadline), g.File, show(awsMaxHidden), show(heartbeats.ReturnMargin), show(c.Worker.VisibilityTimeout))
			}
		}
	}
	return ""
}

// heartbeatFloor is the floor of hooks that name none. A heartbeat falls due when a
// third of the wait is left, and a worker that takes over has the message one lease
// after its predecessor died: with less than three leases it could come too late.
func heartbeatFloor(lease time.Duration) time.Duration {
	return min(max(LeastHeartbeatFloor, 4*lease), essMaxExtension)
}

// open reads all files of the folder. A file that cannot be read is a problem of its own.
func open(dir string) (worker *source, groups []*source, problems Errors, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read the configuration folder: %w", err)
	}
	worker = &source{file: &file{name: WorkerFile}}
	for _, entry := range entries {
		name := entry.Name()
		if !isConfig(name) {
			continue
		}
		s := &source{file: &file{name: name}}
		s.data, err = read(filepath.Join(dir, name))
		stem := strings.TrimSuffix(name, filepath.Ext(name))
		switch {
		case err != nil:
			problems = append(problems, Problem{File: name, Message: err.Error()})
		case name == WorkerFile:
			worker = s
		case stem == "usher":
			problems = append(problems, Problem{File: name, Message: "the worker's own file is named " + WorkerFile})
		case !patternStem.MatchString(stem):
			problems = append(problems, Problem{File: name, Message: "want a file name of at most 64 letters, digits, dots, _ and - before its ending"})
		default:
			s.group.File, s.group.Name = name, stem
			groups = append(groups, s)
		}
	}
	if len(groups) == 0 && len(problems) == 0 {
		problems = append(problems, Problem{File: dir, Message: "no scaling group: want one .yaml file for each beside " + WorkerFile})
	}
	return worker, groups, append(problems, clashes(groups)...), nil
}

// isConfig says whether the folder's entry of that name is read at all.
func isConfig(name string) bool {
	ext := filepath.Ext(name)
	return !strings.HasPrefix(name, ".") && (ext == ".yaml" || ext == ".yml")
}

// read gives the file's content, cut just above what is accepted. What is no regular
// file is not opened: a pipe would block.
func read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, cause(err)
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("is no regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, cause(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	return data, cause(err)
}

// cause is the error without the operation and the path, which the problem names.
func cause(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("cannot be read: %w", e.Err)
	}
	return err
}

// clashes finds files whose groups would share a name or their variables.
func clashes(groups []*source) (problems Errors) {
	first := map[string]string{}
	for _, s := range groups {
		part := variable(s.group.Name)
		if other, ok := first[part]; ok {
			problems = append(problems, Problem{File: s.name, Message: fmt.Sprintf(
				"%s and this file would share the variables %s%s_...: rename one", other, envGroupPrefix, part)})
			continue
		}
		first[part] = s.name
	}
	return problems
}

// variable is a file stem or key path as it stands in a variable's name.
func variable(text string) string {
	return strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(text))
}

// linkVariable matches what Kubernetes puts into every pod of a namespace that has a
// service whose name begins with usher. None of usher's own variables looks so.
var linkVariable = regexp.MustCompile(`^USHER_(.+_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// target is the value that a variable overrides.
type target struct{ file, key string }

// assign sorts the USHER_ variables by file and key.
func assign(groups []*source, env []string) (byFile map[string]map[string]override, unknown Errors) {
	targets := map[string]target{}
	for _, s := range workerSettings() {
		targets[envPrefix+variable(s.key)] = target{WorkerFile, s.key}
	}
	for _, g := range groups {
		for _, key := range groupKeys() {
			targets[envGroupPrefix+variable(g.group.Name)+"_"+variable(key)] = target{g.name, key}
		}
	}
	byFile = map[string]map[string]override{}
	for _, entry := range env {
		name, value, _ := strings.Cut(entry, "=")
		t, ok := targets[name]
		switch {
		case ok:
			if byFile[t.file] == nil {
				byFile[t.file] = map[string]override{}
			}
			byFile[t.file][t.key] = override{name, value}
		case strings.HasPrefix(name, envPrefix) && name != envFolder && !linkVariable.MatchString(name):
			unknown = append(unknown, Problem{Key: onOneLine(name), Message: unknownVariable(name, slices.Sorted(maps.Keys(targets)))})
		}
	}
	return byFile, unknown
}

func unknownVariable(name string, known []string) string {
	hint := suggest(name, known)
	if strings.HasPrefix(name, envGroupPrefix) {
		var keys []string
		for _, key := range groupKeys() {
			keys = append(keys, variable(key))
		}
		return fmt.Sprintf("unknown variable%s (allowed: %s<FILE>_<KEY>, KEY one of %s)", hint, envGroupPrefix, strings.Join(keys, ", "))
	}
	var own []string
	for _, v := range known {
		if !strings.HasPrefix(v, envGroupPrefix) {
			own = append(own, v)
		}
	}
	return fmt.Sprintf("unknown variable%s (allowed: %s, %s, %s<FILE>_<KEY>)", hint, envFolder, strings.Join(own, ", "), envGroupPrefix)
}

// loadWorker sets w. It gives which keys are right, and a way to report a problem with
// one of them: for the checks that need all groups.
func loadWorker(s *source, w *Worker, env map[string]override) (at func(key, message string) Problem, good map[string]bool) {
	settings := workerSettings()
	root := &yaml.Node{Kind: yaml.MappingNode}
	if s.data != nil {
		if root = s.parse(s.data); root == nil {
			root = &yaml.Node{Kind: yaml.MappingNode}
		}
	}
	top := s.fields(root, "", topKeys(settings)...)
	good = apply(w, top, settings, env)
	at = func(key, message string) Problem {
		if o, ok := env[key]; ok {
			return Problem{Key: o.variable, Message: message}
		}
		p := Problem{File: s.name, Key: key, Message: message}
		name, _, _ := strings.Cut(key, ".")
		if top.keys[name] != nil {
			n := place(top, key)
			p.Line, p.Column = n.Line, n.Column
		}
		return p
	}
	return at, good
}

// load reads the source's group.
func (s *source) load(env map[string]override) {
	root := s.parse(s.data)
	if root == nil {
		return
	}
	s.of = s.provider(root, env)
	settings := groupSettings(s.of)
	known := append(topKeys(settings), "hooks")
	if s.of == aws {
		known = append(known, "events")
	}
	top := s.fields(root, "", known...)
	good := apply(&s.group, top, settings, env)
	s.settleRoles(top, good)
	if good["region"] {
		s.region = s.group.Region
	}
	s.group.Events = top.events()
	s.group.Hooks = top.hooks()
	if good["provider"] && good["region"] && good["scaling_group"] {
		s.scalingGroup = top.place("scaling_group")
	}
}

// provider finds the cloud that the file is about, and refuses variables that are for another.
func (s *source) provider(root *yaml.Node, env map[string]override) *cloud {
	name := env["provider"].value
	for i := 0; name == "" && i+1 < len(root.Content); i += 2 {
		if root.Content[i].Value == "provider" {
			name = root.Content[i+1].Value
		}
	}
	c := cloudOf(name)
	for _, key := range slices.Sorted(maps.Keys(env)) {
		if other := c.foreign(key); other != "" {
			s.problems = append(s.problems, Problem{Key: env[key].variable, Message: fmt.Sprintf("is for provider: %s alone, that of %s is %s", other, s.name, c.provider)})
		}
	}
	return c
}

// groupKeys are the keys of the plain values that a group's file may have, in either cloud.
func groupKeys() (keys []string) {
	for _, c := range clouds {
		for _, s := range groupSettings(c) {
			if !slices.Contains(keys, s.key) {
				keys = append(keys, s.key)
			}
		}
	}
	return keys
}

// twins finds files that name the same scaling group.
func twins(groups []*source) (problems Errors) {
	type id struct{ provider, region, group string }
	first := map[id]*source{}
	for _, s := range groups {
		if s.scalingGroup == nil {
			continue
		}
		key := id{s.group.Provider, s.group.Region, string(s.group.ScalingGroup)}
		if other, ok := first[key]; ok {
			problems = append(problems, Problem{
				File: s.name, Line: s.scalingGroup.Line, Column: s.scalingGroup.Column, Key: "scaling_group",
				Message: fmt.Sprintf("%s in %s is in %s:%d already: want one file for each scaling group",
					key.group, key.region, other.name, other.scalingGroup.Line),
			})
			continue
		}
		first[key] = s
	}
	return problems
}
