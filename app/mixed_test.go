package app

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/configs"
	"example.org/usher/providers/alibaba"
	"example.org/usher/providers/aws"
	"example.org/usher/simulator"
)

const ireland, virginia = "eu-west-1", "us-east-1"

// mixedAccounts is whose cloud a region is.
var mixedAccounts = map[string]string{shenzhen: simulator.DefaultAccountID, ireland: simulator.DefaultAWSAccountID, virginia: "444455556666"}

// awsGroupText is a group of AWS whose calls a role of its account makes.
func awsGroupText(region string) string {
	return strings.NewReplacer("REGION", region, "ACCOUNT", mixedAccounts[region]).Replace(`provider: aws
region: REGION
scaling_group: web-asg
queue: {name: drain-q, endpoint: "http://sqs.REGION.test"}
endpoints: {autoscaling: "http://autoscaling.REGION.test", elb: "http://elb.REGION.test", ssm: "http://ssm.REGION.test", ec2: "http://ec2.REGION.test", sts: "http://sts.REGION.test"}
assume_role: {arn: "arn:aws:iam::ACCOUNT:role/usher", duration: 15m}
hooks: [{transition: scale_in, deadline: 50m, steps: [{wait: {for: 5s}}]}]
`)
}

// mixed is a worker with a group on Alibaba Cloud and two on AWS, in regions and accounts of
// their own, and their clouds.
type mixed struct {
	t    *testing.T
	app  *App
	sims map[string]*simulator.Simulator
	journal
}

func runMixed(t *testing.T, test func(m *mixed)) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"usher.yaml": "http: \"off\"\n", "shenzhen.yaml": groupText(shenzhen, "asg-a", "first", "5s"),
		"ireland.yaml": awsGroupText(ireland), "virginia.yaml": awsGroupText(virginia),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, err := configs.Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		m := &mixed{t: t, sims: map[string]*simulator.Simulator{}}
		listeners := map[string]*simulator.PipeListener{}
		for name, account := range mixedAccounts {
			scenario := region(name, 40, map[string][]string{"first": {"asg-a"}})
			if name != shenzhen {
				scenario = simulator.DefaultAWSScenario()
				scenario.Region, scenario.ScalingGroups[0].Instances = name, 40
				scenario.ScalingGroups[0].Hooks[0].HeartbeatTimeout = time.Hour
				scenario.Roles = []simulator.RoleConfig{{Name: "usher"}}
			}
			sim, err := simulator.New(simulator.Options{AccessKeyID: mark + "Id", AccessKeySecret: mark + "Key", Scenario: scenario, NoServers: true, AccountID: account})
			if err != nil {
				t.Fatal(err)
			}
			l, closeCloud := serve(sim)
			m.sims[name], listeners[name] = sim, l
			defer closeCloud()
		}
		m.app, err = New(Options{
			Config: config, Audit: &bytes.Buffer{}, Logger: slog.New(slog.NewTextHandler(m, nil)),
			Credentials: alibaba.StaticCredentials(mark+"Id", mark+"Key"), AWSCredentials: aws.StaticCredentials(mark+"Id", mark+"Key"),
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				if l := listeners[strings.Split(addr, ".")[1]]; l != nil {
					return l.DialContext(ctx, network, addr)
				}
				return nil, fmt.Errorf("no cloud is at %s", addr)
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer m.holdsNoKey(t)
		defer run(t, m.app, true)()
		test(m)
	})
}

// scaleIn takes two instances out of the region's group.
func (m *mixed) scaleIn(regions ...string) {
	m.t.Helper()
	for _, name := range regions {
		group := "web-asg"
		if name == shenzhen {
			group = "asg-a"
		}
		if _, err := m.sims[name].ScaleIn(group, 2); err != nil {
			m.t.Fatal(err)
		}
	}
}

// pending is how many actions wait in a region, and fails the test for one that was lost.
func (m *mixed) pending(name string) (n int) {
	for _, a := range m.sims[name].State().Actions {
		switch {
		case a.Status == "Pending":
			n++
		case a.EndedBy != "call" || a.Result != "CONTINUE":
			m.t.Errorf("%s: action %s: %s %s by %q", name, a.Token, a.Status, a.Result, a.EndedBy)
		}
	}
	return n
}

// until lets simulated time pass until ok.
func (m *mixed) until(limit time.Duration, what string, ok func() bool) {
	m.t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(time.Second) {
		if synctest.Wait(); time.Now().After(end) {
			text := m.logs()
			m.t.Fatalf("not within %v: %s\n%s", limit, what, text[max(0, len(text)-3000):])
		}
	}
}

// TestMixedFleet: what goes wrong in one region of one account of one cloud, every call to it
// throttled, denied, failing or hanging, holds up nothing elsewhere, is told where it is, and
// is made up for when it is over.
func TestMixedFleet(t *testing.T) {
	t.Parallel()
	for _, kind := range []simulator.FaultKind{simulator.FaultThrottle, simulator.FaultDenied, simulator.Fault5xx, simulator.FaultHang} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			runMixed(t, func(m *mixed) {
				m.scaleIn(shenzhen, ireland, virginia)
				for name := range m.sims {
					m.until(time.Minute, name+" is done", func() bool { return m.pending(name) == 0 })
				}
				for _, service := range []string{"sqs", "autoscaling", "ec2"} {
					if _, err := m.sims[virginia].InjectFault(simulator.Fault{Service: service, Kind: kind}); err != nil {
						t.Fatal(err)
					}
				}
				m.scaleIn(shenzhen, ireland, virginia)
				begun := time.Now()
				for _, name := range []string{shenzhen, ireland} {
					m.until(time.Minute, name+" goes on", func() bool { return m.pending(name) == 0 })
				}
				t.Logf("the others took %v", time.Since(begun))
				if n := m.pending(virginia); n != 2 {
					t.Errorf("%d actions wait in virginia, want 2", n)
				}
				m.until(10*time.Minute, "it is told", func() bool {
					err := m.app.worker.Ready()
					return err != nil && strings.Contains(err.Error(), "drain-q")
				})
				m.scaleIn(ireland)
				m.until(time.Minute, "ireland goes on", func() bool { return m.pending(ireland) == 0 })
				m.sims[virginia].ClearFaults()
				m.until(20*time.Minute, "virginia is done", func() bool { return m.pending(virginia) == 0 })
				m.until(20*time.Minute, "ready again", func() bool { return m.app.worker.Ready() == nil })
			})
		})
	}
}

// TestMixedFleetRenewsKeys: each account's sessions are got from its own STS and renewed, those
// that the cloud ends early too, and a day of work needs no more of them than that.
func TestMixedFleetRenewsKeys(t *testing.T) {
	t.Parallel()
	runMixed(t, func(m *mixed) {
		for hour := range 6 {
			m.scaleIn(shenzhen, ireland, virginia)
			for name := range m.sims {
				m.until(2*time.Minute, fmt.Sprintf("%s is done in hour %d", name, hour), func() bool { return m.pending(name) == 0 })
			}
			m.sims[ireland].RevokeSessions("usher")
			time.Sleep(time.Hour)
		}
		for _, name := range []string{ireland, virginia} {
			if n := m.sims[name].State().APICalls["sts.AssumeRole"]; n < 6*4 || n > 6*10 {
				t.Errorf("%s: %d sessions of 15 min in 6 h", name, n)
			}
		}
		if n := m.sims[shenzhen].State().APICalls["sts.AssumeRole"]; n != 0 {
			t.Errorf("%d sessions on Alibaba Cloud, whose group assumes no role", n)
		}
	})
}
