package alibaba

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// FuzzSessions: whatever the metadata server, STS or a credential URI answers is whole
// keys with an end, or an error that quotes nothing of it.
func FuzzSessions(f *testing.F) {
	const keys = `"AccessKeyId":"STS.x","AccessKeySecret":"usherTESTsecret","SecurityToken":"usherTESTsecret","Expiration":"2030-01-01T00:00:00Z"`
	for _, body := range []string{
		`{"Code":"Success",` + keys + `}`, `{"RequestId":"1","Credentials":{` + keys + `}}`, `{` + keys + `}`, `{"Code":"Failed"}`, "", "null", "[]",
		`{"AccessKeySecret":{"usherTESTsecret":1}}`, `{"Expiration":7,"AccessKeySecret":"usherTESTsecret"}`, "usherTESTsecret",
	} {
		f.Add(200, []byte(body))
		f.Add(500, []byte(body))
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		if status < 200 || status > 999 {
			t.Skip("no status of an answer")
		}
		o := options("http://cloud.test")
		o.DialContext = func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			go answerOnce(server, status, body)
			return client, nil
		}
		o.MetadataEndpoint, o.STSEndpoint = "http://cloud.test", "http://cloud.test"
		m, err := newMetadata(o)
		if err != nil {
			t.Fatal(err)
		}
		defer m.close()
		client, err := newSTS(o)
		if err != nil {
			t.Fatal(err)
		}
		defer client.close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		check := func(got fetched, err error) {
			t.Helper()
			if (err == nil) != (got.Keys.ID != "" && got.Keys.Secret != "" && got.Keys.Token != "" && !got.Expires.IsZero()) {
				t.Errorf("%+v, %v", got, err)
			}
			if err != nil && strings.Contains(err.Error(), mark) {
				t.Errorf("a secret is told: %q", strings.ReplaceAll(err.Error(), mark, "***"))
			}
		}
		check(m.fetch(ctx, "role"))
		check(readSession("AssumeRole", answer{status: status, body: body}, time.Now()))
		var s session
		check(s.read(time.Time{}, time.Now()))
	})
}

// answerOnce answers one request and hangs up.
func answerOnce(conn net.Conn, status int, body []byte) {
	defer conn.Close()
	buffer := make([]byte, 8<<10)
	if _, err := conn.Read(buffer); err != nil {
		return
	}
	fmt.Fprintf(conn, "HTTP/1.1 %d x\r\nContent-Length: %d\r\nConnection: close\r\nDate: %s\r\n\r\n", status, len(body), time.Now().UTC().Format(http.TimeFormat))
	_, _ = conn.Write(body)
}

// FuzzProfiles: whatever stands in the two files is whole keys or an error. Nothing is
// called: all addresses refuse.
func FuzzProfiles(f *testing.F) {
	for _, text := range []string{
		cliKeys, iniKeys, `{"current":"p","profiles":[{"name":"p","mode":"RamRoleArn","access_key_id":"x","access_key_secret":"usherTESTsecret","ram_role_arn":"acs:ram::1:role/a"}]}`,
		`{"current":"p","profiles":[{"name":"p","mode":"ChainableRamRoleArn","source_profile":"p"}]}`, `{"current":"p","profiles":[{"name":"p","mode":"usherTESTsecret"}]}`,
		"[default]\ntype=ram_role_arn\nrole_arn=%(x)s\nx=usherTESTsecret", "usherTESTsecret", "[usherTESTsecret", "[default]\n\"\"\"usherTESTsecret", "{}", "null",
	} {
		f.Add([]byte(text))
	}
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "ALIBABA_CLOUD_") {
			f.Setenv(name, "")
		}
	}
	dir := f.TempDir()
	f.Setenv("ALIBABA_CLOUD_CONFIG_FILE", dir+"/cli")
	f.Setenv("ALIBABA_CLOUD_CREDENTIALS_FILE", dir+"/ini")
	o := options("http://cloud.test")
	o.DialContext = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("nothing here") }
	c, err := NewChain(o, "")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(c.Close)
	p := profiles{sts: c.sts, metadata: c.metadata, session: "s1"}
	ended, cancel := context.WithCancel(context.Background())
	cancel() // so that no call is repeated
	f.Fuzz(func(t *testing.T, text []byte) {
		for name, read := range map[string]func(context.Context) (fetched, error){"cli": p.fromCLI, "ini": p.fromINI} {
			if err := os.WriteFile(dir+"/"+name, text, 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := read(ended)
			if err == nil && (got.Keys.ID == "" || got.Keys.Secret == "") {
				t.Errorf("%s: half of keys", name)
			}
		}
	})
}
