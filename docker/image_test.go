// Package docker tests the container image: what is in it, and that the worker, the
// simulator and the demo do their work in it.
package docker

import (
	"archive/tar"
	"bytes"
	"crypto/x509"
	"debug/elf"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	maxImage  = 21_000_000
	maxBinary = 20_000_000
	user      = "65532:65532"
)

func TestImageConfig(t *testing.T) {
	t.Parallel()
	image := testImage(t)
	var found []struct {
		Size   int64
		Config struct {
			User        string
			Entrypoint  []string
			Cmd         []string
			StopSignal  string
			Labels      map[string]string
			Healthcheck struct{ Test []string }
		}
	}
	decode(t, []byte(docker(t, "image", "inspect", image)), &found)
	if len(found) != 1 {
		t.Fatalf("docker image inspect %s: %d images", image, len(found))
	}
	got := found[0]
	if got.Size <= 0 || got.Size >= maxImage {
		t.Errorf("the image has %d bytes, want less than %d", got.Size, maxImage)
	}
	c := got.Config
	if c.User != user {
		t.Errorf("User is %q, want %q", c.User, user)
	}
	if c.StopSignal != "SIGTERM" {
		t.Errorf("StopSignal is %q", c.StopSignal)
	}
	if command := strings.Join(slices.Concat(c.Entrypoint, c.Cmd), " "); command != "/usher run --config /etc/usher" {
		t.Errorf("the image runs %q", command)
	}
	if !slices.Equal(c.Healthcheck.Test, []string{"CMD", "/usher", "health"}) {
		t.Errorf("the health check is %q, which needs no shell only as CMD /usher health", c.Healthcheck.Test)
	}
	version := c.Labels["org.opencontainers.image.version"]
	if out := docker(t, runFlags("--rm", image, "--version")...); version == "" || !strings.HasSuffix(strings.TrimSpace(out), " "+version) {
		t.Errorf("usher --version says %q, the image's label %q", out, version)
	}
}

// TestImageFiles: nothing is in the image but what the worker needs.
func TestImageFiles(t *testing.T) {
	t.Parallel()
	files := export(t, testImage(t))
	want := []string{"etc/group", "etc/passwd", "etc/ssl/certs/ca-certificates.crt", "usher"}
	// The engine puts these into each container.
	engine := []string{".dockerenv", "dev/console", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf"}
	for name, f := range files {
		if !slices.Contains(want, name) && !slices.Contains(engine, name) {
			t.Errorf("/%s is in the image", name)
		}
		if slices.Contains(want, name) && (f.header.Uid != 0 || f.header.Mode&0o6022 != 0) {
			t.Errorf("/%s has owner %d and mode %o: only root may write it, and it may raise nobody's rights", name, f.header.Uid, f.header.Mode)
		}
	}
	for _, name := range want {
		if files[name].header == nil {
			t.Fatalf("/%s is missing", name)
		}
	}

	binary := files["usher"].content
	if len(binary) >= maxBinary {
		t.Errorf("/usher has %d bytes, want less than %d", len(binary), maxBinary)
	}
	program, err := elf.NewFile(bytes.NewReader(binary))
	if err != nil {
		t.Fatalf("/usher: %v", err)
	}
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("/usher is not static: it has %s", p.Type)
		}
	}
	if n := certificates(t, files["etc/ssl/certs/ca-certificates.crt"].content); n < 100 {
		t.Errorf("%d CA certificates, want the whole bundle", n)
	}
	if line := "usher:x:65532:65532:"; !strings.Contains(string(files["etc/passwd"].content), line) {
		t.Errorf("/etc/passwd has no %s", line)
	}
}

// TestNoConfig: without its config folder the worker says so and exits with 2.
func TestNoConfig(t *testing.T) {
	t.Parallel()
	out, err := command(t, runFlags("--rm", "--network", "none", testImage(t))...).CombinedOutput()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.ExitCode() != 2 || !strings.Contains(string(out), "/etc/usher") {
		t.Errorf("got %v and %q, want exit code 2 and the folder's name", err, out)
	}
}

// TestDemo: the demo needs neither a network nor a file to write, and on the image
// with a shell it really runs the script that watches the connections.
func TestDemo(t *testing.T) {
	t.Parallel() // its traffic is light, and it takes half a minute
	for _, c := range []struct{ name, image, want string }{
		{"scratch", testImage(t), "cannot run the script"},
		{"shell", shellImage(t), "wait_connections ok"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cmd := command(t, runFlags("--rm", "--network", "none", c.image, "demo", "--output", "json")...)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			began := time.Now()
			err := cmd.Run()
			if err != nil {
				t.Fatalf("demo: %v\n%s%s", err, stdout.Bytes(), stderr.Bytes())
			}
			t.Logf("the demo took %v", time.Since(began))
			type side struct {
				Requests, Failed, Drained int
				Result                    string
			}
			var got struct {
				Without side `json:"without_usher"`
				With    side `json:"with_usher"`
			}
			lines := bytes.Split(bytes.TrimSpace(stdout.Bytes()), []byte("\n"))
			decode(t, lines[len(lines)-1], &got)
			if got.With.Failed != 0 || got.With.Requests == 0 || got.With.Drained != 3 || got.With.Result != "CONTINUE" {
				t.Errorf("with usher: %+v", got.With)
			}
			if got.Without.Failed == 0 || got.Without.Requests == 0 {
				t.Errorf("without usher: %+v", got.Without)
			}
			if !strings.Contains(stderr.String(), c.want) {
				t.Errorf("the demo does not say %q:\n%s", c.want, stderr.Bytes())
			}
		})
	}
}

// file is one of an image.
type file struct {
	header  *tar.Header
	content []byte
}

// export gives the files of an image, without the folders, by their path.
func export(t *testing.T, image string) map[string]file {
	t.Helper()
	id := strings.TrimSpace(docker(t, "create", image))
	removed(t, "rm", "--force", "--volumes", id)
	files := map[string]file{}
	for r := tar.NewReader(strings.NewReader(docker(t, "export", id))); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatalf("docker export: %v", err)
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatalf("docker export: %s: %v", h.Name, err)
		}
		files[path.Clean(h.Name)] = file{h, content}
	}
}

// certificates counts those of a PEM bundle; each must be one.
func certificates(t *testing.T, bundle []byte) int {
	t.Helper()
	n := 0
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			t.Errorf("a CA certificate: %v", err)
		}
		n++
	}
	return n
}

func decode(t *testing.T, data []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatalf("%v in %.1000s", err, data)
	}
}
