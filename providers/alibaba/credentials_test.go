package alibaba

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/providers"
	"example.org/usher/providers/internal/renewal"
	"example.org/usher/simulator"
)

const (
	simAccount  = simulator.DefaultAccountID
	workerRole  = "usher-worker"
	groupRole   = "usher-group"
	otherRole   = "usher-other"
	oidcARN     = "acs:ram::" + simAccount + ":oidc-provider/ack-rrsa"
	metadataURL = "http://metadata.test"
	stsURL      = "http://sts.test"
)

func roleARN(name string) string { return "acs:ram::" + simAccount + ":role/" + name }

// bare takes all settings of the vendor's libraries out of the environment, and gives it
// those of env and a home without files. Tests that use it are not parallel: the settings
// are the process's.
func bare(t *testing.T, env map[string]string) (home string) {
	t.Helper()
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "ALIBABA_CLOUD_") {
			t.Setenv(name, "")
		}
	}
	home = t.TempDir()
	t.Setenv("HOME", home)
	for name, value := range env {
		t.Setenv(name, value)
	}
	return home
}

// credentialCloud is a simulated cloud with roles, which gives out keys that expire.
type credentialCloud struct {
	t      *testing.T
	sim    *simulator.Simulator
	listen *simulator.PipeListener
	log    *lockedBuffer
	home   string

	mu   sync.Mutex
	dead map[string]bool // hosts that do not answer
}

// lockedBuffer is a log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// roles are what the clouds of these tests have.
func roles() []simulator.RoleConfig {
	return []simulator.RoleConfig{
		{Name: workerRole, Trust: []string{"ecs", "oidc", "account"}, MaxSession: 12 * time.Hour},
		{Name: groupRole}, {Name: otherRole, ExternalID: "external"},
	}
}

// withRoles runs a test in a bubble with such a cloud.
func withRoles(t *testing.T, env map[string]string, change func(*simulator.Scenario), test func(t *testing.T, c *credentialCloud)) {
	t.Helper()
	home := bare(t, env)
	synctest.Test(t, func(t *testing.T) {
		scenario := simulator.DefaultScenario()
		scenario.Roles = roles()
		scenario.Metadata = simulator.MetadataConfig{Role: workerRole, Session: 2 * time.Hour}
		if change != nil {
			change(&scenario)
		}
		sim, err := simulator.New(simulator.Options{AccessKeyID: testID, AccessKeySecret: testSecret, NoServers: true, Scenario: scenario})
		if err != nil {
			t.Fatal(err)
		}
		l := simulator.NewPipeListener()
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Host != "uri.test" {
				sim.ServeHTTP(w, r)
				return
			}
			serveURI(w, r)
		})}
		served := make(chan struct{})
		go func() { defer close(served); _ = srv.Serve(l) }()
		c := &credentialCloud{t: t, sim: sim, listen: l, log: &lockedBuffer{}, home: home, dead: map[string]bool{}}
		t.Cleanup(func() {
			_ = sim.Close()
			_ = srv.Close()
			<-served
			if strings.Contains(c.log.String(), mark) {
				t.Error("a key was logged")
			}
		})
		test(t, c)
	})
}

// serveURI is the server of a credential URI.
func serveURI(w http.ResponseWriter, r *http.Request) {
	expires := time.Now().Add(time.Hour)
	body := map[string]string{"AccessKeyId": "uriId", "AccessKeySecret": mark + "URI", "SecurityToken": mark + "Token"}
	switch r.URL.Path {
	case "/403":
		w.WriteHeader(http.StatusForbidden)
	case "/half":
		delete(body, "SecurityToken")
	case "/garbage":
		_, _ = w.Write([]byte(mark))
		return
	case "/old":
		expires = time.Now().Add(-time.Hour)
	}
	body["Expiration"] = expires.UTC().Format(time.RFC3339)
	_ = json.NewEncoder(w).Encode(body)
}

// options are those of clients of the cloud.
func (c *credentialCloud) options() Options {
	return Options{
		Region: "cn-shenzhen", QueueName: simQueue, QueueEndpoint: "http://mns.test", ESSEndpoint: "http://ess.test", ECSEndpoint: "http://ecs.test",
		STSEndpoint: stsURL, MetadataEndpoint: metadataURL,
		Credentials: StaticCredentials(testID, testSecret),
		DialContext: c.dial,
		Logger:      slog.New(slog.NewTextHandler(c.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

func (c *credentialCloud) chain() *Chain {
	c.t.Helper()
	chain, err := NewChain(c.options(), "usher-test")
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(chain.Close)
	return chain
}

func (c *credentialCloud) assumed(base Credentials, role Role) *AssumedRole {
	c.t.Helper()
	o := c.options()
	o.Credentials = base
	a, err := NewAssumedRole(o, role)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(a.Close)
	return a
}

// clients sign with keys.
func (c *credentialCloud) clients(keys Credentials) (*Queue, *Scaling) {
	o := c.options()
	o.Credentials = keys
	return newQueue(c.t, o), newScaling(c.t, o)
}

func (c *credentialCloud) inject(f simulator.Fault) {
	c.t.Helper()
	if _, err := c.sim.InjectFault(f); err != nil {
		c.t.Fatal(err)
	}
}

// refused is what the cloud has refused, but for polls of an empty queue.
func (c *credentialCloud) refused() map[string]int {
	refused := c.sim.State().Refusals
	delete(refused, "mns.BatchReceiveMessage MessageNotExist")
	return refused
}

func (c *credentialCloud) calls(names ...string) int {
	n := 0
	for _, name := range names {
		n += c.sim.State().APICalls[name]
	}
	return n
}

// traffic calls MNS and ESS for d, as a worker does.
func (c *credentialCloud) traffic(keys Credentials, d time.Duration) {
	c.t.Helper()
	q, s := c.clients(keys)
	for end := time.Now().Add(d); time.Now().Before(end); {
		if _, err := q.Receive(c.t.Context(), 16, 20*time.Second); err != nil {
			c.t.Fatalf("%v before the end: %v", time.Until(end), err)
		}
		if _, err := s.Hook(c.t.Context(), simGroup, "ash-wz9example0001"); err != nil {
			c.t.Fatalf("%v before the end: %v", time.Until(end), err)
		}
	}
}

// dial reaches the cloud, unless the host does not answer.
func (c *credentialCloud) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	c.mu.Lock()
	dead := c.dead[addr]
	c.mu.Unlock()
	if dead {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return c.listen.DialContext(ctx, network, addr)
}

// rotate writes the pod's token anew, some time before the old one ends, until the test is over.
func (c *credentialCloud) rotate(every time.Duration) (file string) {
	file = filepath.Join(c.home, "token")
	write := func() { // at once, as the kubelet does: never half a token
		err := os.WriteFile(file+".new", []byte(c.sim.IssueOIDCToken(every+5*time.Minute)+"\n"), 0o600)
		if err = errors.Join(err, os.Rename(file+".new", file)); err != nil {
			c.t.Error(err)
		}
	}
	write()
	done := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		for {
			select {
			case <-time.After(every):
				write()
			case <-done:
				return
			}
		}
	})
	c.t.Cleanup(func() { close(done); work.Wait() })
	return file
}

// TestKeysThatExpire: for every source whose keys expire, hours of calls over several
// expiries without one refusal, and with few calls to get the keys.
func TestKeysThatExpire(t *testing.T) {
	hours(t)
	oidc := map[string]string{
		"ALIBABA_CLOUD_ROLE_ARN": roleARN(workerRole), "ALIBABA_CLOUD_OIDC_PROVIDER_ARN": oidcARN, "ALIBABA_CLOUD_OIDC_TOKEN_FILE": "set below",
	}
	for name, row := range map[string]struct {
		env    map[string]string
		change func(*simulator.Scenario)
		role   *Role // assumed on top
		source string
		most   map[string]int // calls that get keys
	}{
		"ECS role": {source: "ECS metadata", most: map[string]int{"metadata.Credentials": 8, "metadata.Token": 8, "metadata.Role": 8}},
		"ECS role of metadata v1": {
			source: "ECS metadata", change: func(s *simulator.Scenario) { s.Metadata.Mode = "v1" }, most: map[string]int{"metadata.Credentials": 8, "metadata.Token": 8},
		},
		"ECS role of metadata v2": {
			env:    map[string]string{"ALIBABA_CLOUD_IMDSV1_DISABLED": "true", "ALIBABA_CLOUD_ECS_METADATA": workerRole},
			source: "ECS metadata", change: func(s *simulator.Scenario) { s.Metadata.Mode = "v2" }, most: map[string]int{"metadata.Credentials": 8, "metadata.Role": 0},
		},
		"ECS role whose new keys come late": {
			source: "ECS metadata", change: func(s *simulator.Scenario) { s.Metadata.Early = 90 * time.Second }, most: map[string]int{"metadata.Credentials": 40},
		},
		"OIDC":                    {env: oidc, source: "OIDC", most: map[string]int{"sts.AssumeRoleWithOIDC": 8}},
		"AssumeRole on ECS role":  {role: &Role{ARN: roleARN(groupRole)}, source: "ECS metadata", most: map[string]int{"sts.AssumeRole": 8, "metadata.Credentials": 8}},
		"short AssumeRole on ECS": {role: &Role{ARN: roleARN(groupRole), Duration: 15 * time.Minute}, source: "ECS metadata", most: map[string]int{"sts.AssumeRole": 42}},
		"AssumeRole on OIDC":      {env: oidc, role: &Role{ARN: roleARN(otherRole), ExternalID: "external"}, source: "OIDC", most: map[string]int{"sts.AssumeRole": 8, "sts.AssumeRoleWithOIDC": 8}},
	} {
		t.Run(name, func(t *testing.T) {
			withRoles(t, row.env, row.change, func(t *testing.T, c *credentialCloud) {
				if row.env["ALIBABA_CLOUD_OIDC_TOKEN_FILE"] != "" {
					os.Setenv("ALIBABA_CLOUD_OIDC_TOKEN_FILE", c.rotate(20*time.Minute)) // t.Setenv puts it back
				}
				chain := c.chain()
				var keys Credentials = chain
				if row.role != nil {
					keys = c.assumed(chain, *row.role)
				}
				c.traffic(keys, 6*time.Hour+10*time.Minute)
				if refused := c.refused(); len(refused) > 0 && !maps.Equal(refused, map[string]int{"metadata.Token 404": refused["metadata.Token 404"]}) {
					t.Errorf("refused: %v", refused)
				}
				for call, most := range row.most {
					if n := c.calls(call); n > most || n < min(3, most) {
						t.Errorf("%d calls of %s, want at most %d", n, call, most)
					}
				}
				if got := chain.Source(); got != row.source {
					t.Errorf("the source is %q", got)
				}
			})
		})
	}
}

func keysOf(t *testing.T, c Credentials) Keys {
	t.Helper()
	keys, err := c.Credentials(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// TestOneRenewalForAll: a thousand callers that come while there are no keys, when keys
// are due and when keys were refused make one call to get new ones.
func TestOneRenewalForAll(t *testing.T) {
	withRoles(t, nil, nil, func(t *testing.T, c *credentialCloud) {
		chain := c.chain()
		_, scaling := c.clients(chain)
		storm := func(what string, want int) {
			c.t.Helper()
			before := c.calls("metadata.Credentials")
			var work sync.WaitGroup
			for range 1000 {
				work.Go(func() {
					if _, err := scaling.Hook(c.t.Context(), simGroup, "ash-wz9example0001"); err != nil {
						c.t.Error(err)
					}
				})
			}
			work.Wait()
			synctest.Wait()
			if n := c.calls("metadata.Credentials") - before; n != want {
				c.t.Errorf("%s: %d calls for keys, want %d", what, n, want)
			}
		}
		storm("at first", 1)
		storm("with keys", 0)
		time.Sleep(2*time.Hour - 4*time.Minute)
		storm("when they are due", 1)
		time.Sleep(time.Minute)
		c.sim.RevokeSessions(workerRole)
		storm("when they were refused", 1)
		if n := c.refused()["ess.DescribeLifecycleHooks InvalidAccessKeyId.NotFound"]; n == 0 {
			c.t.Error("none was refused")
		}
	})
}

// TestRefusedKeys: the codes for expired and revoked keys lead to one renewal and one
// repeat; a missing permission to none.
func TestRefusedKeys(t *testing.T) {
	for name, change := range map[string]func(*simulator.Scenario){
		"as documented":     nil,
		"key not found":     func(s *simulator.Scenario) { s.STS.ExpiredRPC = "InvalidAccessKeyId.NotFound" },
		"another MNS code":  func(s *simulator.Scenario) { s.STS.ExpiredMNS = "SecurityTokenExpired" },
		"one more MNS code": func(s *simulator.Scenario) { s.STS.ExpiredMNS = "InvalidAccessKeyId" },
	} {
		t.Run(name, func(t *testing.T) {
			withRoles(t, nil, change, func(t *testing.T, c *credentialCloud) {
				// Keys that are over without their owner knowing: it believes in another clock.
				chain := c.chain()
				late := newRenewing("late", chain.sts.logger, func(ctx context.Context) (fetched, error) {
					got, err := chain.find(ctx)
					if !got.Expires.IsZero() {
						got.Expires = got.Expires.Add(time.Hour)
					}
					return got, err
				})
				defer late.close()
				q, s := c.clients(late)
				if _, err := q.Receive(t.Context(), 1, 0); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					time.Sleep(2*time.Hour + time.Minute)
					if _, err := q.Receive(t.Context(), 1, 0); err != nil {
						t.Error(err)
					}
					time.Sleep(2*time.Hour + time.Minute)
					if _, err := s.Hook(t.Context(), simGroup, "ash-wz9example0001"); err != nil {
						t.Error(err)
					}
				}
				late.close()
				if n := c.calls("metadata.Credentials"); n != 5 {
					t.Errorf("%d calls for keys", n)
				}
				refused := 0
				for _, n := range c.refused() {
					refused += n
				}
				if refused != 4 {
					t.Errorf("refused: %v", c.refused())
				}
			})
		})
	}
	t.Run("permission", func(t *testing.T) {
		withRoles(t, nil, func(s *simulator.Scenario) {
			s.Roles[0].Policy = `{"Version":"1","Statement":[{"Effect":"Deny","Action":"*","Resource":"*"}]}`
		}, func(t *testing.T, c *credentialCloud) {
			q, s := c.clients(c.chain())
			for range 3 {
				time.Sleep(time.Minute)
				_, err := q.Receive(t.Context(), 1, 0)
				wantKind(t, err, providers.ErrDenied)
				_, err = s.Hook(t.Context(), simGroup, "ash-wz9example0001")
				wantKind(t, err, providers.ErrDenied)
			}
			if n := c.calls("metadata.Credentials"); n != 1 {
				t.Errorf("%d calls for keys", n)
			}
		})
	})
	t.Run("base keys of a role", func(t *testing.T) {
		withRoles(t, nil, nil, func(t *testing.T, c *credentialCloud) {
			role := c.assumed(c.chain(), Role{ARN: roleARN(groupRole)})
			c.traffic(role, 10*time.Minute)
			c.sim.RevokeSessions(workerRole)
			c.sim.RevokeSessions(groupRole)
			c.traffic(role, 10*time.Minute) // the role's keys are renewed, and for that the instance's
			if n := c.refused()["sts.AssumeRole InvalidAccessKeyId.NotFound"]; n != 1 || c.calls("sts.AssumeRole") != 3 || c.calls("metadata.Credentials") != 2 {
				t.Errorf("refused: %v, calls: %v", c.refused(), c.sim.State().APICalls)
			}
		})
	})
	t.Run("and none to be had", func(t *testing.T) {
		withRoles(t, nil, nil, func(t *testing.T, c *credentialCloud) {
			role := c.assumed(c.chain(), Role{ARN: roleARN(groupRole)})
			c.traffic(role, 10*time.Minute)
			c.sim.RevokeSessions(groupRole)
			c.inject(simulator.Fault{Service: "sts", Kind: simulator.FaultDenied})
			q, _ := c.clients(role)
			_, err := q.Receive(t.Context(), 1, 0)
			if wantKind(t, err, providers.ErrDenied); !strings.Contains(err.Error(), "new keys could not be had: assume "+roleARN(groupRole)) || !strings.Contains(err.Error(), "allow sts:AssumeRole on "+roleARN(groupRole)) {
				t.Errorf("%v", err)
			}
			c.sim.ClearFaults()
			time.Sleep(time.Minute)
			c.traffic(role, 10*time.Minute)
		})
	})
}

// TestTroubleWithTheSource: while the old keys are good, whatever is wrong with their
// source holds up no call for a moment, and fails none; and when they are over, calls say
// what is wrong, soon, and work again once it is mended.
func TestTroubleWithTheSource(t *testing.T) {
	const session = 2 * time.Hour
	for _, fault := range []struct {
		name  string
		fault simulator.Fault // of the metadata server; kind "": it is unreachable
		says  string
	}{
		{"hangs", simulator.Fault{Kind: simulator.FaultHang}, "no answer in time"},
		{"500s", simulator.Fault{Kind: simulator.Fault5xx}, "HTTP 503"},
		{"throttles", simulator.Fault{Kind: simulator.FaultThrottle}, "HTTP 429"},
		{"denies", simulator.Fault{Kind: simulator.FaultDenied}, "HTTP 403"},
		{"garbage", simulator.Fault{Kind: simulator.FaultCorrupt}, "does not look like one"},
		{"garbage for keys", simulator.Fault{Kind: simulator.FaultCorrupt, Action: "Credentials"}, "no AccessKeyId"},
		{"cuts connections", simulator.Fault{Kind: simulator.FaultDrop}, "EOF"},
		{"unreachable", simulator.Fault{}, "there is no metadata server"},
	} {
		t.Run(fault.name, func(t *testing.T) {
			withRoles(t, nil, nil, func(t *testing.T, c *credentialCloud) {
				begin := func() {
					if fault.fault.Kind == "" {
						c.cut("metadata.test:80", true)
						return
					}
					fault.fault.Service = "metadata"
					c.inject(fault.fault)
				}
				end := func() { c.cut("metadata.test:80", false); c.sim.ClearFaults() }
				chain := c.chain()
				first := keysOf(t, chain)
				time.Sleep(session - 6*time.Minute)
				begin()
				for range 5*60 + 50 { // each second of the last six minutes
					at := time.Now()
					if got := keysOf(t, chain); got != first || time.Since(at) != 0 {
						t.Fatalf("other keys, or after %v", time.Since(at))
					}
					time.Sleep(time.Second)
				}
				if n := c.calls("metadata.Token"); n > 1+30 {
					t.Errorf("%d attempts at a renewal", n)
				}
				for range 50 { // past the end, and on until it was tried once more
					time.Sleep(time.Second)
					_, _ = chain.Credentials(t.Context())
				}
				at := time.Now()
				_, err := chain.Credentials(t.Context())
				if err == nil || !strings.Contains(err.Error(), fault.says) || !strings.HasPrefix(err.Error(), "ECS metadata: ") {
					t.Errorf("with nothing left: %v", err)
				}
				if took := time.Since(at); took > 5*time.Second {
					t.Errorf("said after %v", took)
				}
				q, _ := c.clients(chain)
				_, err = q.Receive(t.Context(), 1, 0)
				wantKind(t, err, providers.ErrCredentials)
				end()
				time.Sleep(renewal.PauseMax)
				if keysOf(t, chain) == first {
					t.Error("the same keys")
				}
				c.traffic(chain, time.Minute)
				if text := c.log.String(); !strings.Contains(text, "credentials could not be renewed, the old ones are in use") || !strings.Contains(text, "no credentials") ||
					strings.Count(text, "could not be renewed") > 8 {
					t.Errorf("the log does not tell, or too often:\n%s", text)
				}
			})
		})
	}
}

// cut makes a host silent, or lets it speak again.
func (c *credentialCloud) cut(addr string, dead bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead[addr] = dead
}

// TestSTSHangs: a renewal that hangs delays nobody, and Close does not wait for it.
func TestSTSHangs(t *testing.T) {
	withRoles(t, nil, nil, func(t *testing.T, c *credentialCloud) {
		role := c.assumed(c.chain(), Role{ARN: roleARN(groupRole)})
		first := keysOf(t, role)
		time.Sleep(55 * time.Minute)
		c.inject(simulator.Fault{Service: "sts", Kind: simulator.FaultHang})
		at := time.Now()
		for range 100 {
			if keysOf(t, role) != first {
				t.Error("other keys")
			}
		}
		if time.Since(at) != 0 {
			t.Errorf("it took %v", time.Since(at))
		}
		time.Sleep(10 * time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		at = time.Now()
		if _, err := role.Credentials(ctx); err == nil || time.Since(at) > time.Second {
			t.Errorf("after %v: %v", time.Since(at), err)
		}
		time.Sleep(renewal.PauseMax)
		go role.Close()
		if _, err := role.Credentials(t.Context()); err == nil {
			t.Error("keys after the end")
		}
		synctest.Wait()
		if _, err := role.Credentials(t.Context()); err == nil {
			t.Error("keys after the end")
		}
	})
}

// TestKeysThatDoNotCome: a call waits for keys no longer than for an answer, and says so;
// the renewal goes on meanwhile, and what comes of it is used.
func TestKeysThatDoNotCome(t *testing.T) {
	hang := simulator.Fault{Service: "sts", Kind: simulator.FaultHang}
	withRoles(t, nil, nil, func(t *testing.T, c *credentialCloud) {
		q, s := c.clients(c.assumed(c.chain(), Role{ARN: roleARN(groupRole)}))
		late := func(err error, at time.Time, kind error, says string) {
			t.Helper()
			if took := time.Since(at); took != DefaultCallTimeout {
				t.Errorf("said after %v", took)
			}
			if wantKind(t, err, kind); !strings.Contains(err.Error(), says) || errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v", err)
			}
		}
		const says = "no keys came in time, the renewal goes on (10s)"
		c.inject(hang)
		at := time.Now()
		_, err := q.Receive(t.Context(), 16, 0)
		late(err, at, providers.ErrCredentials, "wait for role "+roleARN(groupRole)+": "+says)
		if text := c.log.String(); strings.Count(text, "level=ERROR") != 1 || !strings.Contains(text, `msg="no credentials"`) || !strings.Contains(text, says) {
			t.Errorf("the log does not tell, or too often:\n%s", text)
		}
		at = time.Now()
		_, err = s.Hook(t.Context(), simGroup, "ash-wz9example0001")
		late(err, at, providers.ErrCredentials, says)
		if n := strings.Count(c.log.String(), `msg="no credentials"`); n != 1 {
			t.Errorf("logged %d times for one renewal", n)
		}
		// A caller whose own time is shorter is told that it is over.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err = q.Receive(ctx, 16, 0); !errors.Is(err, context.DeadlineExceeded) || strings.Contains(err.Error(), says) {
			t.Errorf("%v", err)
		}
		// A second renewal that takes long tells why the first has failed.
		time.Sleep(renewal.Limit)
		at = time.Now()
		_, err = q.Receive(t.Context(), 16, 0)
		late(err, at, providers.ErrCredentials, "; the last one failed: assume "+roleARN(groupRole)+": ")
		// The renewal that nobody waits for gets the keys.
		calls := c.calls("sts.AssumeRole")
		c.sim.ClearFaults()
		time.Sleep(15 * time.Second)
		if n := c.calls("sts.AssumeRole"); n <= calls {
			t.Errorf("%d calls of STS, %d before", n, calls)
		}
		c.traffic(q.credentials, time.Minute)
		// And so with keys that were refused.
		time.Sleep(renewal.RefusedAge)
		c.sim.RevokeSessions(groupRole)
		c.inject(hang)
		at = time.Now()
		_, err = q.Receive(t.Context(), 16, 0)
		late(err, at, providers.ErrDenied, "new keys could not be had: "+says)
		c.sim.ClearFaults()
		time.Sleep(15 * time.Second)
		c.traffic(q.credentials, time.Minute)
	})
}

// TestClocksThatDisagree: with a clock up to a quarter of an hour wrong, which is what the
// services bear, keys are renewed in time all the same.
func TestClocksThatDisagree(t *testing.T) {
	hours(t)
	for _, ahead := range []time.Duration{-14 * time.Minute, 14 * time.Minute} {
		for name, role := range map[string]*Role{"ECS role": nil, "AssumeRole": {ARN: roleARN(groupRole), Duration: 15 * time.Minute}} {
			t.Run(name+" "+ahead.String(), func(t *testing.T) {
				withRoles(t, nil, func(s *simulator.Scenario) { s.Metadata.Session = time.Hour }, func(t *testing.T, c *credentialCloud) {
					c.sim.SetClock(ahead)
					var keys Credentials = c.chain()
					if role != nil {
						keys = c.assumed(keys, *role)
					}
					c.traffic(keys, 4*time.Hour)
					if refused := c.refused(); len(refused) > 0 {
						t.Errorf("refused: %v", refused)
					}
				})
			})
		}
	}
	t.Run("too far", func(t *testing.T) {
		withRoles(t, nil, nil, func(t *testing.T, c *credentialCloud) {
			c.sim.SetClock(16 * time.Minute)
			_, err := c.assumed(c.chain(), Role{ARN: roleARN(groupRole)}).Credentials(t.Context())
			if !errors.Is(err, providers.ErrClock) || !strings.Contains(err.Error(), "NTP") {
				t.Errorf("%v", err)
			}
		})
	})
}

// TestKeysThatRotateInFiles: keys that change in a file are used soon, and at once when
// the cloud refuses the old ones; a file that is half written, or gone, costs nothing
// while the old keys are good.
func TestKeysThatRotateInFiles(t *testing.T) {
	withRoles(t, nil, nil, func(t *testing.T, c *credentialCloud) {
		file := c.home + "/.alibabacloud/credentials"
		put := func(id, secret string) {
			write(t, file, "[default]\ntype=access_key\naccess_key_id="+id+"\naccess_key_secret="+secret+"\n")
		}
		put(testID, testSecret)
		chain := c.chain()
		c.traffic(chain, time.Minute)
		c.sim.SetCredentials("rotated", mark+"Two", "")
		put("rotated", mark+"Two")
		time.Sleep(time.Minute)
		c.traffic(chain, time.Minute)
		for i, broken := range []string{"[default", "", "[default]\ntype=access_key\n"} {
			write(t, file, broken)
			c.traffic(chain, 5*time.Minute)
			if !strings.Contains(c.log.String(), "INI file") {
				t.Errorf("%d: the log does not tell", i)
			}
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		c.traffic(chain, 5*time.Minute)
		put("third", mark+"Three")
		time.Sleep(time.Minute)
		c.sim.SetCredentials("third", mark+"Three", "")
		c.traffic(chain, time.Minute)
		if n := c.refused()["mns.BatchReceiveMessage InvalidAccessKeyId"] + c.refused()["ess.DescribeLifecycleHooks InvalidAccessKeyId.NotFound"]; n > 2 {
			t.Errorf("refused: %v", c.refused())
		}
	})
}
