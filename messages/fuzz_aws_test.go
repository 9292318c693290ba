package messages

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func FuzzDecodeAWS(f *testing.F) {
	names, err := filepath.Glob("testdata/aws/*.*")
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range names {
		f.Add(readAWS(f, filepath.Base(name)))
	}
	for _, seed := range []string{
		`{"Type":"Notification","Message":"Service: AWS Auto Scaling\nLifecycleHookName: x\n"}`, `{"Type":"Notification","Message":"e30="}`, `{"Type":"Notification"}`,
		`{"detail-type":"EC2 Instance-launch Lifecycle Action","source":"aws.autoscaling","detail":null}`, `{"detail-type":"AWS Health Event","source":"aws.health","detail":{"service":"EC2"}}`,
		`{"lifecyclehookname":null}`, `{"Event":"autoscaling:TEST_NOTIFICATION"}`, `{"Event":"autoscaling:EC2_INSTANCE_LAUNCH"}`, `{"Type":"SubscriptionConfirmation"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		n, err := Decode(body, AWS)
		o, openErr := openAWS(body)
		if n := len(o.layers); n > maxBase64Layers+maxSNS+1 || n != len(Layers(body, AWS)) {
			t.Fatalf("%d layers were taken off", n)
		}
		if err != nil {
			if errors.Is(err, ErrMalformed) == isOther(err) {
				t.Fatalf("refused with neither or both sentinels: %v", err)
			}
			if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r == utf8.RuneError }) || len(err.Error()) > 1000 {
				t.Fatalf("error text: %q", err)
			}
			var detail awsHookFields
			_ = json.Unmarshal(o.message.Detail, &detail)
			if isOther(err) && (o.message.Token != nil || detail.Token != nil) {
				t.Fatalf("%v, and it names a token: %s", err, o.text)
			}
		}
		if openErr == nil && len(o.text) < MaxBody/8 && o.inside == 0 {
			// Blanks around it, Base64, or an envelope make no difference.
			text := string(o.text)
			for _, again := range []string{" " + text + "\n", b64(text), b64(b64(text)), inSNS(t, text), b64(inSNS(t, b64(text))), inSNS(t, inSNS(t, text))} {
				m, againErr := Decode([]byte(again), AWS)
				if !reflect.DeepEqual(m, n) {
					t.Fatalf("%+v became %+v, %v in %s", n, m, againErr, again)
				}
				was, is := new(OtherError), new(OtherError)
				if errors.As(err, &was) != errors.As(againErr, &is) || *was != *is || (err == nil) != (againErr == nil) {
					t.Fatalf("error %v became %v in %s", err, againErr, again)
				}
			}
		}
		if err != nil {
			return
		}
		wantWhole(t, n)
	})
}

// wantWhole wants all that a notification needs, and nothing in its names that is more than a name.
func wantWhole(t *testing.T, n Notification) {
	t.Helper()
	switch {
	case n.Token == "" || len(n.Instances) == 0 || n.Activity != "" || n.Reannounced:
		t.Fatalf("accepted: %+v", n)
	case n.Event == "" && (n.Group == "" || n.Hook == "" || !n.Due.IsZero()):
		t.Fatalf("accepted without a name: %+v", n)
	case n.Event != "" && (n.Region == "" || n.Group != "" || n.Hook != "" || n.Transition != ScaleIn):
		t.Fatalf("accepted: %+v", n)
	}
	names := []string{n.Region, string(n.Group), string(n.Hook), n.HookName, string(n.Token), string(n.Transition), n.Origin, n.Destination}
	for i, id := range n.Instances {
		if !id.Valid() || slices.Contains(n.Instances[:i], id) {
			t.Fatalf("instance id %q", id)
		}
		names = append(names, string(id))
	}
	for _, name := range names {
		if strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_./") != "" || len(name) > 255 || strings.Contains(name, "/..") || strings.HasPrefix(name, ".") {
			t.Fatalf("name %q", name)
		}
	}
}
