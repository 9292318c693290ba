package aws

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
)

const simAccount = simulator.DefaultAWSAccountID

func roleARN(name string) string { return "arn:aws:iam::" + simAccount + ":role/" + name }

// withRoles runs a test in a bubble with a cloud that has roles. It takes all settings of
// the SDK out of the environment, and gives it those of env and a home without files. Tests
// that use it are not parallel: the settings are the process's.
func withRoles(t *testing.T, env map[string]string, test func(t *testing.T, c *cloud, home string)) {
	t.Helper()
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "")
		}
	}
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://metadata.test")
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(home, ".aws/config"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(home, ".aws/credentials"))
	for name, value := range env {
		t.Setenv(name, strings.ReplaceAll(value, "HOME", home))
	}
	inBubble(t, func(so *simulator.Options) {
		so.Scenario.Roles = []simulator.RoleConfig{
			{Name: "worker", Trust: []string{"ec2", "oidc", "account"}, MaxSession: 12 * time.Hour},
			{Name: "group"}, {Name: "other", ExternalID: "external"},
		}
		so.Scenario.Metadata = simulator.MetadataConfig{Role: "worker", Session: 2 * time.Hour}
	}, func(t *testing.T, c *cloud) { test(t, c, home) })
}

func (c *cloud) chain(t *testing.T) *Chain {
	t.Helper()
	chain, err := NewChain(c.options, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(chain.Close)
	return chain
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}
}

// works makes a call with the chain's keys.
func works(t *testing.T, c *cloud, chain *Chain) {
	t.Helper()
	o := c.options
	o.Credentials = chain
	if _, err := newQueue(t, o).Attributes(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestTheSourcesOfKeys(t *testing.T) {
	keys := map[string]string{"AWS_ACCESS_KEY_ID": testID, "AWS_SECRET_ACCESS_KEY": testSecret}
	for source, env := range map[string]map[string]string{
		sourceEnvironment: keys,
		sourceMetadata:    nil,
		sourceIdentity:    {"AWS_WEB_IDENTITY_TOKEN_FILE": "HOME/token", "AWS_ROLE_ARN": roleARN("worker")},
		sourceProfile:     {"AWS_PROFILE": "drain"},
	} {
		t.Run(source, func(t *testing.T) {
			withRoles(t, env, func(t *testing.T, c *cloud, home string) {
				write(t, filepath.Join(home, "token"), c.sim.IssueOIDCToken(24*time.Hour))
				write(t, filepath.Join(home, ".aws/config"), "[profile drain]\nrole_arn = "+roleARN("group")+"\nsource_profile = base\n")
				write(t, filepath.Join(home, ".aws/credentials"), "[base]\naws_access_key_id = "+testID+"\naws_secret_access_key = "+testSecret+"\n")
				chain := c.chain(t)
				works(t, c, chain)
				if got := chain.Source(); got != source {
					t.Errorf("the source is %q", got)
				}
				if source == sourceProfile && c.calls("sts.AssumeRole") != 1 {
					t.Errorf("the role of the profile was not assumed: %v", c.sim.State().APICalls)
				}
			})
		})
	}
}

// TestKeysAreRenewedUnderWay: for a day, through a source that is away for a while, no call
// lacks keys.
func TestKeysAreRenewedUnderWay(t *testing.T) {
	withRoles(t, nil, func(t *testing.T, c *cloud, _ string) {
		chain := c.chain(t)
		o := c.options
		o.Credentials = chain
		q := newQueue(t, o)
		for i := range 24 * 12 {
			if i%24 == 20 { // for a quarter of an hour, from twenty minutes before the keys end on
				c.inject(t, simulator.Fault{Service: "metadata", Kind: simulator.Fault5xx})
			}
			if i%24 == 22 {
				c.sim.ClearFaults()
			}
			if _, err := q.Attributes(t.Context()); err != nil {
				t.Fatalf("after %d times 5 minutes: %v", i, err)
			}
			time.Sleep(5 * time.Minute)
		}
	})
}

// TestRefusedKeys: keys that the cloud refuses before their time are replaced within the call.
func TestRefusedKeys(t *testing.T) {
	withRoles(t, nil, func(t *testing.T, c *cloud, _ string) {
		o := c.options
		o.Credentials = c.chain(t)
		q, s := newQueue(t, o), newScaling(t, o)
		if _, err := q.Receive(t.Context(), 10, time.Second); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		c.sim.RevokeSessions("worker")
		if _, err := q.Receive(t.Context(), 10, time.Second); err != nil {
			t.Error(err)
		}
		time.Sleep(5 * time.Minute)
		c.sim.RevokeSessions("worker")
		if _, err := s.Hook(t.Context(), simGroup, simHook); err != nil {
			t.Error(err)
		}
	})
}

// TestExpiredKeys: those that nothing renews are refused with what to do.
func TestExpiredKeys(t *testing.T) {
	withRoles(t, nil, func(t *testing.T, c *cloud, _ string) {
		keys, err := c.chain(t).Retrieve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		o := c.options
		o.Credentials = static(keys)
		q, s := newQueue(t, o), newScaling(t, o)
		_, actions := c.announced(t, 1)
		time.Sleep(4 * time.Hour)
		_, receive := q.Receive(t.Context(), 10, time.Second)
		_, complete := s.Complete(t.Context(), actions[0], messages.Continue)
		_, tags := s.Tags(t.Context(), "", actions[0].Instances)
		for _, err := range []error{receive, complete, tags} {
			e := wantKind(t, err, providers.ErrDenied)
			if !strings.Contains(e.Hint, "expired") || strings.Contains(err.Error(), keys.SessionToken) || !e.Untouched {
				t.Errorf("%v", err)
			}
		}
	})
}

func TestRoles(t *testing.T) {
	withRoles(t, nil, func(t *testing.T, c *cloud, _ string) {
		assume := func(role Role) (*Queue, *AssumedRole) {
			r, err := NewAssumedRole(c.options, role)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(r.Close)
			o := c.options
			o.Credentials = r
			return newQueue(t, o), r
		}
		q, _ := assume(Role{ARN: roleARN("other"), ExternalID: "external", SessionName: "fleet"})
		for range 5 { // hours, each longer than a session
			if _, err := q.Attributes(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(61 * time.Minute)
		}
		for what, role := range map[string]Role{
			"trust policy": {ARN: roleARN("other")},
			"allows 1h":    {},
			"trust":        {ARN: roleARN("nobody")},
		} {
			if role.ARN == "" {
				role = Role{ARN: roleARN("group"), Duration: 12 * time.Hour}
				what = "lower the duration"
			}
			q, _ := assume(role)
			_, err := q.Attributes(t.Context())
			if !errors.Is(err, providers.ErrCredentials) || !strings.Contains(err.Error(), what) || !strings.Contains(err.Error(), role.ARN) {
				t.Errorf("%s: %v", what, err)
			}
		}
		for _, role := range []Role{
			{ARN: "worker"}, {ARN: roleARN("worker"), Duration: time.Minute}, {ARN: roleARN("worker"), SessionName: "a b"},
			{ARN: roleARN("worker"), ExternalID: "x"}, {ARN: roleARN("worker"), ExternalID: "a b"},
		} {
			if _, err := NewAssumedRole(c.options, role); err == nil {
				t.Errorf("%+v was taken", role)
			}
		}
	})
}

// TestNoKeys: the error names the source that was tried and what to do.
func TestNoKeys(t *testing.T) {
	for name, tt := range map[string]struct {
		env  map[string]string
		want []string
	}{
		"half":        {map[string]string{"AWS_ACCESS_KEY_ID": testID}, []string{"AWS_SECRET_ACCESS_KEY is not"}},
		"other half":  {map[string]string{"AWS_SECRET_ACCESS_KEY": testSecret}, []string{"AWS_ACCESS_KEY_ID is not"}},
		"no profile":  {map[string]string{"AWS_PROFILE": "nobody"}, []string{"nobody", "AWS_PROFILE"}},
		"no metadata": {map[string]string{"AWS_EC2_METADATA_DISABLED": "true"}, []string{sourceMetadata, "AWS_ACCESS_KEY_ID", "hop limit"}},
		"no file":     {map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": "HOME/none", "AWS_ROLE_ARN": roleARN("worker")}, []string{sourceIdentity, "is mounted"}},
		"no role":     {map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": "HOME/none"}, []string{"role ARN"}},
		"forged":      {map[string]string{"AWS_WEB_IDENTITY_TOKEN_FILE": "HOME/forged", "AWS_ROLE_ARN": roleARN("worker")}, []string{sourceIdentity, "trust policy"}},
		"container":   {map[string]string{"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1/none"}, []string{sourceContainer, "task's role"}},
	} {
		t.Run(name, func(t *testing.T) {
			withRoles(t, tt.env, func(t *testing.T, c *cloud, home string) {
				write(t, filepath.Join(home, "forged"), "a-token-of-nobody")
				o := c.options
				o.Credentials = c.chain(t)
				o.CallTimeout = time.Minute
				_, err := newQueue(t, o).Receive(t.Context(), 10, time.Second)
				if !errors.Is(err, providers.ErrCredentials) || strings.Contains(err.Error(), testSecret) || strings.Contains(err.Error(), "a-token-of-nobody") {
					t.Errorf("%v", err)
				}
				for _, want := range tt.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%q is not in %v", want, err)
					}
				}
			})
		})
	}
}

// TestTheSourceStays: when the one in use goes away, nobody else's keys take their place.
func TestTheSourceStays(t *testing.T) {
	withRoles(t, nil, func(t *testing.T, c *cloud, home string) {
		var log strings.Builder
		c.options.Logger = slog.New(slog.NewTextHandler(&log, nil))
		file := filepath.Join(home, ".aws/credentials")
		write(t, file, "[default]\naws_access_key_id = "+testID+"\naws_secret_access_key = "+testSecret+"\n")
		chain := c.chain(t)
		works(t, c, chain)
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		works(t, c, chain) // with the old keys, a renewal beginning
		time.Sleep(time.Minute)
		works(t, c, chain)
		chain.Close()
		if !strings.Contains(log.String(), "profile has given keys and is gone") || c.calls("metadata.Credentials") != 0 {
			t.Errorf("%s", log.String())
		}
	})
}

// TestTheEndOfAChain: Close ends a renewal whose source hangs.
func TestTheEndOfAChain(t *testing.T) {
	withRoles(t, nil, func(t *testing.T, c *cloud, _ string) {
		c.inject(t, simulator.Fault{Service: "metadata", Kind: simulator.FaultHang})
		chain := c.chain(t)
		o := c.options
		o.Credentials = chain
		begun := time.Now()
		_, err := newQueue(t, o).Receive(t.Context(), 10, time.Second)
		if !errors.Is(err, providers.ErrCredentials) || time.Since(begun) > DefaultCallTimeout {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		closed := time.Now()
		if chain.Close(); time.Since(closed) > time.Second {
			t.Errorf("it took %v to close", time.Since(closed))
		}
		if _, err := chain.Retrieve(t.Context()); err == nil {
			t.Error("there are keys after the end")
		}
	})
}
