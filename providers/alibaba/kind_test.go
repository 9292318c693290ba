package alibaba

import (
	"errors"
	"strings"
	"testing"

	"example.org/usher/providers"
)

// wantKind checks an error's sentinel and gives the error's parts.
func wantKind(t *testing.T, err, kind error) *providers.Error {
	t.Helper()
	e, ok := errors.AsType[*providers.Error](err)
	if !ok || !errors.Is(err, kind) {
		t.Fatalf("error is %v, want %v", err, kind)
	}
	if strings.Contains(err.Error(), mark) {
		t.Error("a secret, or the id of a key, is in the error")
	}
	return e
}
