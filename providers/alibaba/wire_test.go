package alibaba

import (
	"errors"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"example.org/usher/providers"
)

// Mistakes in an endpoint do not pass by themselves: they are said once, with a hint.
func TestMistakesInAnEndpoint(t *testing.T) {
	t.Parallel()
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	var connections atomic.Int32
	count := func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	plain := httptest.NewUnstartedServer(handler)
	plain.Config.ConnState = count
	plain.Start()
	defer plain.Close()
	secure := httptest.NewUnstartedServer(handler)
	secure.Config.ConnState = count
	secure.Config.ErrorLog = log.New(t.Output(), "", 0)
	secure.StartTLS()
	defer secure.Close()
	for at, hint := range map[string]string{
		strings.Replace(plain.URL, "http://", "https://", 1): "write it with http://",
		secure.URL: "certificate cannot be verified",
	} {
		o := options(at)
		connections.Store(0)
		_, err := newScaling(t, o).Heartbeat(t.Context(), testAction(), time.Minute)
		if e := wantKind(t, err, providers.ErrUnavailable); !strings.Contains(e.Hint, hint) {
			t.Errorf("%s: %v", at, err)
		}
		_, err = newQueue(t, o).Receive(t.Context(), 16, 0)
		if e := wantKind(t, err, providers.ErrUnavailable); !strings.Contains(e.Hint, hint) {
			t.Errorf("%s: %v", at, err)
		}
		if n := connections.Load(); n != 2 {
			t.Errorf("%s: two calls made %d connections", at, n)
		}
	}
}

// TestScrubBeforeCutting: a key that a cut goes through is not told by half.
func TestScrubBeforeCutting(t *testing.T) {
	t.Parallel()
	keys := Keys{ID: "LTAIid", Secret: "s3cret", Token: strings.Repeat("CAIS+token/", 90)}
	for _, before := range []int{0, 100, 700, 3900} {
		text := strings.Repeat("x", before) + strings.Repeat(keys.Token, 5)
		for what, got := range map[string]string{"told": told(text, keys, mostMessage), "snippet": snippet([]byte(text), keys)} {
			if strings.Contains(got, "CAIS") {
				t.Errorf("%s, %d bytes before: %q", what, before, got)
			}
		}
	}
}

func TestScrub(t *testing.T) {
	t.Parallel()
	keys := Keys{ID: "LTAIid", Secret: "s3cret", Token: "to+ken="}
	for in, want := range map[string]string{
		"nothing to hide": "nothing to hide",
		"key LTAIid of s3cret and to+ken= or to%2Bken%3D":         "key (removed) of (removed) and (removed) or (removed)",
		"server string to sign is:POST&x":                         "server (removed)",
		"GET /?Action=X&AccessKeyId=LTAIid&Signature=abc&Format=": "GET /?Action=X&(removed)",
		"Authorization: MNS LTAIid:abc=":                          "Authorization: (removed)",
	} {
		if got := scrub(in, keys); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
	inner := errors.New("dial failed")
	if got := scrubError(&url.Error{Op: "Post", URL: "http://x/?Signature=abc", Err: inner}, keys); got != inner {
		t.Errorf("the signed URL is still there: %v", got)
	}
	if got := scrubError(errors.New("odd answer s3cret"), keys); got.Error() != "odd answer (removed)" {
		t.Errorf("secret is still there: %v", got)
	}
	if got := snippet([]byte("<p>\n  "+strings.Repeat("ü", 500)), keys); len(got) > 210 || !strings.HasSuffix(got, "...") || !strings.HasPrefix(got, "<p> ü") {
		t.Errorf("snippet %q", got)
	}
}
