package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"example.org/usher/configs"
)

// What docs/setup.md tells operators to use is checked against the program.

const docs = "../../docs"

// afterGrace is what the worker has to have for its last answers and for handing back,
// after shutdown_grace.
const afterGrace = 15 * time.Second

func readDoc(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(docs, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// object is one document of a manifest, as far as it is checked here.
type object struct {
	Kind     string
	Metadata struct {
		Name, Namespace     string
		Labels, Annotations map[string]string
	}
	Data map[string]string
	Spec struct {
		Replicas     int
		MinAvailable int `yaml:"minAvailable"`
		Selector     struct {
			MatchLabels map[string]string `yaml:"matchLabels"`
		}
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     pod
		}
	}
}

type pod struct {
	ServiceAccountName string `yaml:"serviceAccountName"`
	AutomountToken     *bool  `yaml:"automountServiceAccountToken"`
	GracePeriod        int    `yaml:"terminationGracePeriodSeconds"`
	SecurityContext    struct {
		RunAsNonRoot bool `yaml:"runAsNonRoot"`
		RunAsUser    int  `yaml:"runAsUser"`
		FSGroup      int  `yaml:"fsGroup"`
	} `yaml:"securityContext"`
	Containers []container
	Volumes    []struct {
		Name      string
		ConfigMap struct{ Name string } `yaml:"configMap"`
	}
}

type container struct {
	Args  []string
	Env   []struct{ Name, Value string }
	Ports []struct {
		Name          string
		ContainerPort int `yaml:"containerPort"`
	}
	LivenessProbe   probe `yaml:"livenessProbe"`
	ReadinessProbe  probe `yaml:"readinessProbe"`
	Resources       struct{ Requests, Limits map[string]string }
	SecurityContext struct {
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
		Capabilities             struct{ Drop []string }
	} `yaml:"securityContext"`
	VolumeMounts []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
		ReadOnly  bool   `yaml:"readOnly"`
	} `yaml:"volumeMounts"`
}

type probe struct {
	HTTPGet struct{ Path, Port string } `yaml:"httpGet"`
}

func manifest(t *testing.T) map[string]object {
	t.Helper()
	objects := map[string]object{}
	for dec := yaml.NewDecoder(strings.NewReader(readDoc(t, "ack.yaml"))); ; {
		var o object
		err := dec.Decode(&o)
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := objects[o.Kind]; twice || o.Kind == "" {
			t.Fatalf("kind %q is there twice, or is none", o.Kind)
		}
		objects[o.Kind] = o
	}
}

// flags parses a command line as the program does, and gives the values of its flags.
func flags(t *testing.T, line []string) map[string]string {
	t.Helper()
	values := map[string]string{}
	cmd := runCommand(nil)
	switch line[0] {
	case "run":
	case "validate":
		cmd = validateCommand(nil)
	case "health":
		cmd = healthCommand()
	case "decode":
		cmd = decodeCommand()
	default:
		t.Fatalf("no such command: %q", line)
	}
	if err := cmd.ParseFlags(line[1:]); err != nil {
		t.Fatalf("usher %q: %v", line, err)
	}
	if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
		t.Fatalf("usher %q: %v", line, err)
	}
	for _, name := range []string{"config", "http"} {
		if f := cmd.Flags().Lookup(name); f != nil {
			values[name] = f.Value.String()
		}
	}
	return values
}

func TestManifest(t *testing.T) {
	t.Parallel()
	objects := manifest(t)
	namespace, account, config, deployment, budget := objects["Namespace"], objects["ServiceAccount"], objects["ConfigMap"], objects["Deployment"], objects["PodDisruptionBudget"]
	for _, o := range []object{account, config, deployment, budget} {
		if o.Metadata.Namespace != namespace.Metadata.Name || o.Metadata.Name == "" {
			t.Errorf("%s %q is in namespace %q", o.Kind, o.Metadata.Name, o.Metadata.Namespace)
		}
	}
	if namespace.Metadata.Labels["pod-identity.alibabacloud.com/injection"] != "on" || account.Metadata.Annotations["pod-identity.alibabacloud.com/role-name"] == "" {
		t.Error("RRSA needs the label of the namespace and the annotation of the service account")
	}

	dir := t.TempDir()
	for name, text := range config.Data {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	usher(t, "", "validate", dir, "--hook-timeout", "15m").want(t, 0, "no problem")
	c, err := configs.Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}

	p := deployment.Spec.Template.Spec
	if len(p.Containers) != 1 || len(p.Volumes) != 1 {
		t.Fatalf("%d containers, %d volumes", len(p.Containers), len(p.Volumes))
	}
	u := p.Containers[0]
	given := flags(t, u.Args)
	if m := u.VolumeMounts; len(m) != 1 || m[0].MountPath != given["config"] || !m[0].ReadOnly || m[0].Name != p.Volumes[0].Name || p.Volumes[0].ConfigMap.Name != config.Metadata.Name {
		t.Errorf("the config is mounted as %+v from %+v, and read from %s", m, p.Volumes, given["config"])
	}
	if len(u.Ports) != 1 || given["http"] != "0.0.0.0:"+strconv.Itoa(u.Ports[0].ContainerPort) {
		t.Errorf("health is served on %s, the ports are %+v", given["http"], u.Ports)
	}
	for path, probe := range map[string]probe{"/healthz": u.LivenessProbe, "/readyz": u.ReadinessProbe} {
		if probe.HTTPGet.Path != path || probe.HTTPGet.Port != u.Ports[0].Name {
			t.Errorf("probe %+v, want %s", probe, path)
		}
	}
	for _, e := range u.Env {
		if strings.HasPrefix(e.Name, "USHER_") || !strings.HasPrefix(e.Name, "ALIBABA_CLOUD_") || strings.Contains(e.Name, "SECRET") {
			t.Errorf("variable %s in the manifest", e.Name)
		}
	}
	if grace := time.Duration(p.GracePeriod) * time.Second; grace < c.Worker.ShutdownGrace+afterGrace {
		t.Errorf("the pod is killed %v after SIGTERM, with a shutdown_grace of %v", grace, c.Worker.ShutdownGrace)
	}
	if p.ServiceAccountName != account.Metadata.Name || p.AutomountToken == nil || *p.AutomountToken {
		t.Errorf("the pod is %q of the cluster", p.ServiceAccountName)
	}
	if deployment.Spec.Replicas < 2 || budget.Spec.MinAvailable != 1 {
		t.Errorf("%d replicas, of which %d stay", deployment.Spec.Replicas, budget.Spec.MinAvailable)
	}
	for _, labels := range []map[string]string{deployment.Spec.Selector.MatchLabels, budget.Spec.Selector.MatchLabels} {
		if len(labels) != 1 || labels["app"] != deployment.Spec.Template.Metadata.Labels["app"] {
			t.Errorf("selected are %v", labels)
		}
	}
	s := u.SecurityContext
	if !p.SecurityContext.RunAsNonRoot || p.SecurityContext.RunAsUser != 65532 || p.SecurityContext.FSGroup != 65532 || !s.ReadOnlyRootFilesystem ||
		s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation || !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) {
		t.Errorf("it may more than it needs: %+v, %+v", p.SecurityContext, s)
	}
	for _, amount := range []string{u.Resources.Requests["cpu"], u.Resources.Requests["memory"], u.Resources.Limits["memory"]} {
		if amount == "" {
			t.Errorf("resources %+v", u.Resources)
		}
	}
}

func TestSystemdUnit(t *testing.T) {
	t.Parallel()
	unit := map[string][]string{}
	for line := range strings.Lines(readDoc(t, "usher.service")) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(line, "#") {
			unit[key] = append(unit[key], value)
		}
	}
	one := func(key string) string {
		t.Helper()
		if len(unit[key]) != 1 {
			t.Fatalf("%s is there %d times", key, len(unit[key]))
		}
		return unit[key][0]
	}
	line := strings.Fields(one("ExecStart"))
	if line[0] != "/usr/local/bin/usher" || flags(t, line[1:])["config"] != "/etc/usher" {
		t.Errorf("it starts %q", line)
	}
	if stop, err := strconv.Atoi(one("TimeoutStopSec")); err != nil || time.Duration(stop)*time.Second < configs.DefaultShutdownGrace+afterGrace {
		t.Errorf("it is killed after %d s, %v", stop, err)
	}
	// A crash of a Go program has the exit status of a wrong config, and must be restarted.
	for key := range unit {
		if strings.HasPrefix(key, "RestartPrevent") || strings.HasPrefix(key, "SuccessExit") {
			t.Errorf("%s=%v", key, unit[key])
		}
	}
	if pause, err := strconv.Atoi(one("RestartSec")); err != nil || pause < 5 || pause > 30 || one("StartLimitIntervalSec") != "0" {
		t.Errorf("restarted after %s s, %v, with a limit of %s", one("RestartSec"), err, one("StartLimitIntervalSec"))
	}
	// A wrong config is told by the start itself: what validates is what runs.
	before := strings.Fields(one("ExecStartPre"))
	if flags(t, before[1:]); !slices.Equal(before, []string{line[0], "validate", flags(t, line[1:])["config"]}) {
		t.Errorf("before it starts: %q", before)
	}
	for key, want := range map[string]string{"Restart": "always", "ProtectSystem": "strict", "NoNewPrivileges": "yes", "DynamicUser": "yes", "CapabilityBoundingSet": "", "ExecReload": "/bin/kill -HUP $MAINPID"} {
		if one(key) != want {
			t.Errorf("%s=%s, want %s", key, one(key), want)
		}
	}
	logs := ""
	for _, e := range unit["Environment"] {
		if file, ok := strings.CutPrefix(e, "USHER_AUDIT_FILE="); ok {
			logs = file
		} else if !strings.HasPrefix(e, "ALIBABA_CLOUD_ECS_METADATA=") {
			t.Errorf("variable %s", e)
		}
	}
	if filepath.Dir(logs) != "/var/log/"+one("LogsDirectory") {
		t.Errorf("the audit log is %s, which it can't write", logs)
	}
	rotation := blocks(t, "setup.md", "logrotate")[0]
	if !strings.HasPrefix(rotation, logs+" {\n") || !strings.Contains(rotation, "\n    copytruncate\n") {
		t.Errorf("the audit log %s is rotated by %s", logs, rotation)
	}
	// The variable is one that the program knows.
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "web.yaml"), []byte(blocks(t, "setup.md", "yaml")[0]), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := configs.Load(dir, []string{"USHER_AUDIT_FILE=" + logs}); err != nil || c.Worker.Audit.File != logs {
		t.Errorf("%v, %v", c, err)
	}
}

// blocks gives the fenced blocks of a document in a language.
func blocks(t *testing.T, document, language string) []string {
	t.Helper()
	var found []string
	for _, m := range regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$").FindAllStringSubmatch(readDoc(t, document), -1) {
		if m[1] == language {
			found = append(found, m[2])
		}
	}
	if len(found) == 0 {
		t.Fatalf("docs/%s has no block in %q", document, language)
	}
	return found
}

func TestSetupDocument(t *testing.T) {
	t.Parallel()
	t.Run("AWS", func(t *testing.T) {
		t.Parallel()
		setupBlocks(t, "setup-aws.md")
	})
	setupBlocks(t, "setup.md")
	checked := 0
	for _, text := range blocks(t, "setup.md", "") {
		text = strings.ReplaceAll(text, "\\\n", " ")
		for line := range strings.Lines(text) {
			words := strings.Fields(line)
			switch {
			case len(words) > 1 && words[0] == "usher":
				flags(t, words[1:])
				checked++
			case len(words) > 1 && words[0] == "docker" && words[1] == "run":
				dockerRun(t, words)
				checked++
			}
		}
	}
	if checked < 2 {
		t.Errorf("only %d commands were checked", checked)
	}
}

// setupBlocks checks the files that a document shows, and that what it links to is there.
func setupBlocks(t *testing.T, document string) {
	t.Helper()
	for _, text := range blocks(t, document, "yaml") {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "web.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		usher(t, "", "validate", dir, "--hook-timeout", "15m").want(t, 0, "no problem")
	}
	for _, text := range blocks(t, document, "json") {
		var v any
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			t.Errorf("%v in %s", err, text)
		}
	}
	for _, m := range regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`).FindAllStringSubmatch(readDoc(t, document), -1) {
		if _, err := os.Stat(filepath.Join(docs, m[1])); err != nil {
			t.Errorf("link to %s: %v", m[1], err)
		}
	}
}

// dockerRun checks what a container is started with: the image's own command, a config
// that it can read, and time to stop.
func dockerRun(t *testing.T, words []string) {
	t.Helper()
	after := func(flag string) []string {
		var values []string
		for i, w := range words[:len(words)-1] {
			if w == flag {
				values = append(values, words[i+1])
			}
		}
		return values
	}
	if stop := after("--stop-timeout"); len(stop) != 1 || stop[0] != "60" {
		t.Errorf("stop timeout %v", stop)
	}
	if !slices.Contains(words, "--read-only") || !slices.Equal(after("--restart"), []string{"unless-stopped"}) || !slices.Equal(after("-v"), []string{"/etc/usher:/etc/usher:ro"}) {
		t.Errorf("docker run %q", words)
	}
	for _, e := range after("-e") {
		name, value, _ := strings.Cut(e, "=")
		if name == "USHER_HTTP" {
			if _, err := listenAddress(value); err != nil || value != configs.DefaultHTTP {
				t.Errorf("%s: %v; the health check asks %s", e, err, configs.DefaultHTTP)
			}
		}
	}
}

// TestTablesOfDocuments: a blank line in a table would show the rest of it as text.
func TestTablesOfDocuments(t *testing.T) {
	t.Parallel()
	names, err := filepath.Glob(filepath.Join(docs, "*.md"))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	tables := 0
	for _, name := range append(names, filepath.Join(docs, "../README.md")) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(string(text), "\n")
		for i, line := range lines {
			if !strings.HasPrefix(line, "|") || i > 0 && strings.HasPrefix(lines[i-1], "|") {
				continue
			}
			tables++
			if i+1 == len(lines) || !strings.HasPrefix(lines[i+1], "|-") {
				t.Errorf("%s:%d: rows without a head", filepath.Base(name), i+1)
			}
		}
	}
	if tables < 10 {
		t.Errorf("%d tables", tables)
	}
}
