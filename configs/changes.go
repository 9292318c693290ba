package configs

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
)

// Digest stands for all that Load would read of the folder dir: equal digests, equal
// files. What can't be read counts with the reason.
func Digest(dir string) string {
	sum := sha256.New()
	entries, err := os.ReadDir(dir)
	if err != nil {
		fmt.Fprintf(sum, "%v", cause(err))
	}
	for _, entry := range entries {
		name := entry.Name()
		if !isConfig(name) {
			continue
		}
		data, err := read(filepath.Join(dir, name))
		fmt.Fprintf(sum, "%d:%s %v %d:", len(name), name, err, len(data))
		sum.Write(data)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// WorkerChanges names the keys of usher.yaml in which a and b differ.
func WorkerChanges(a, b Worker) (keys []string) {
	for _, s := range []struct {
		key       string
		different bool
	}{
		{"name", a.Name != b.Name},
		{"max_actions", a.MaxActions != b.MaxActions},
		{"max_jobs", a.MaxJobs != b.MaxJobs},
		{"max_receives", a.MaxReceives != b.MaxReceives},
		{"quarantine", a.Quarantine != b.Quarantine},
		{"visibility_timeout", a.VisibilityTimeout != b.VisibilityTimeout},
		{"shutdown_grace", a.ShutdownGrace != b.ShutdownGrace},
		{"reconcile.every", a.Reconcile != b.Reconcile},
		{"http", a.HTTP != b.HTTP},
		{"log.level", a.Log.Level != b.Log.Level},
		{"log.format", a.Log.Format != b.Log.Format},
		{"audit.file", a.Audit != b.Audit},
		{"endpoints.sts", a.Endpoints.STS != b.Endpoints.STS},
		{"endpoints.metadata", a.Endpoints.Metadata != b.Endpoints.Metadata},
	} {
		if s.different {
			keys = append(keys, s.key)
		}
	}
	return keys
}
