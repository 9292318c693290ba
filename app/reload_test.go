package app

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/configs"
	"example.org/usher/providers/alibaba"
	"example.org/usher/providers/aws"
	"example.org/usher/simulator"
	"example.org/usher/worker/audit"
)

// reloaded is a worker that is built from files, in a bubble, and the clouds that it works
// for: one a region. Everything has a region's name in its host: mns.REGION.test.
type reloaded struct {
	t      *testing.T
	dir    string
	app    *App
	sims   map[string]*simulator.Simulator
	signal chan os.Signal
	stop   func()

	journal
	seeing  sync.Mutex
	records []audit.Record // guarded by seeing
}

func (r *reloaded) see(rec audit.Record) {
	r.seeing.Lock()
	defer r.seeing.Unlock()
	r.records = append(r.records, rec)
}

// find gives the records of an event so far.
func (r *reloaded) find(e audit.Event) []audit.Record {
	r.seeing.Lock()
	defer r.seeing.Unlock()
	return slices.DeleteFunc(slices.Clone(r.records), func(rec audit.Record) bool { return rec.Event != e })
}

// groupText is the file of a group that drains by waiting.
func groupText(region, id, queue, wait string, more ...string) string {
	return fmt.Sprintf(`provider: alibaba
region: %[1]s
scaling_group: %[2]s
queue: {name: %[3]s, endpoint: "http://mns.%[1]s.test"}
endpoints: {ess: "http://ess.%[1]s.test", ecs: "http://ecs.%[1]s.test"}
%[5]shooks:
  - transition: scale_in
    deadline: 1h
    on_failure: ABANDON
    steps: [{wait: {for: %[4]s}}]
`, region, id, queue, wait, strings.Join(more, ""))
}

// write makes the folder hold these files and no others.
func (r *reloaded) write(files map[string]string) {
	r.t.Helper()
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range entries {
		if _, ok := files[e.Name()]; !ok {
			if err := os.Remove(filepath.Join(r.dir, e.Name())); err != nil {
				r.t.Fatal(err)
			}
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o600); err != nil {
			r.t.Fatal(err)
		}
	}
}

// reload writes the files and asks the worker to read them.
func (r *reloaded) reload(files map[string]string) {
	r.t.Helper()
	r.write(files)
	r.signal <- syscall.SIGHUP
	synctest.Wait()
}

// until lets simulated time pass, a second at a time, until ok.
func (r *reloaded) until(limit time.Duration, what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(time.Second) {
		synctest.Wait()
		if ok() {
			return
		}
		if time.Now().After(end) {
			text := r.logs()
			r.t.Fatalf("not within %v: %s\n%s", limit, what, text[max(0, len(text)-6000):])
		}
	}
}

// scaleIn removes n instances of a group, an action each where its scenario says so.
func (r *reloaded) scaleIn(region, group string, n int) {
	r.t.Helper()
	if _, err := r.sims[region].ScaleIn(group, n); err != nil {
		r.t.Fatal(err)
	}
}

// settled says whether n actions of all clouds are over and no message is left.
func (r *reloaded) settled(n int) bool {
	for _, sim := range r.sims {
		st := sim.State()
		for _, a := range st.Actions {
			if a.Status == "Pending" {
				return false
			}
		}
		n -= len(st.Actions)
		for _, q := range st.Queues {
			if q.Active+q.Inactive+q.Delayed > 0 {
				return false
			}
		}
	}
	return n == 0
}

// drained wants each action answered with CONTINUE by a call, no step that did not
// succeed, and each delivery and each action closed once.
func (r *reloaded) drained() {
	r.t.Helper()
	for region, sim := range r.sims {
		for _, a := range sim.State().Actions {
			if a.Status != "Completed" || a.EndedBy != "call" || a.Result != "CONTINUE" {
				r.t.Errorf("%s: action %s of %s: %s %s by %q", region, a.Token, a.Group, a.Status, a.Result, a.EndedBy)
			}
		}
		over := map[string]bool{}
		for _, e := range sim.Events() {
			switch {
			case e.Type == simulator.ActionCompleted:
				over[e.Token] = true
			case e.Type == simulator.MessageDeleted && !over[e.Token]:
				r.t.Errorf("%s: message %s was deleted before its action was over", region, e.MessageID)
			}
		}
	}
	open, completed := map[string]int{}, map[string]int{}
	for _, rec := range r.find(audit.Received) {
		open[fmt.Sprint(rec.MessageID, rec.ReceiveCount)]++
	}
	r.seeing.Lock()
	defer r.seeing.Unlock()
	for _, rec := range r.records {
		switch {
		case rec.Event.Closes():
			open[fmt.Sprint(rec.MessageID, rec.ReceiveCount)]--
		case rec.Event == audit.Completed:
			completed[string(rec.Token)]++
		case rec.Event == audit.StepFinished && rec.Result != "ok" && rec.Result != "skipped":
			r.t.Errorf("a step ended as %s: %s %s", rec.Result, rec.Reason, rec.Error)
		}
	}
	for id, n := range open {
		if n != 0 {
			r.t.Errorf("delivery %s: %+d closing records missing", id, n)
		}
	}
	for token, n := range completed {
		if n != 1 {
			r.t.Errorf("action %s was completed %d times", token, n)
		}
	}
}

// runReloaded starts a worker with the files, in a bubble, for these clouds.
func runReloaded(t *testing.T, files map[string]string, scenarios []simulator.Scenario, test func(r *reloaded)) {
	t.Helper()
	r := &reloaded{dir: t.TempDir(), sims: map[string]*simulator.Simulator{}}
	synctest.Test(t, func(t *testing.T) {
		r.t = t
		listeners := map[string]*simulator.PipeListener{}
		for _, s := range scenarios {
			sim, err := simulator.New(simulator.Options{AccessKeyID: mark + "Id", AccessKeySecret: mark + "Key", Scenario: s, NoServers: true, AccountID: cmp.Or(accountOf[s.Region], mixedAccounts[s.Region])})
			if err != nil {
				t.Fatal(err)
			}
			l, closeCloud := serve(sim)
			r.sims[s.Region], listeners[s.Region] = sim, l
			defer closeCloud()
		}
		dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
			region := strings.Split(addr, ".")[1]
			if l := listeners[region]; l != nil {
				return l.DialContext(ctx, network, addr)
			}
			return nil, fmt.Errorf("no cloud is at %s", addr)
		}
		r.write(files)
		load := func() (*configs.Config, error) { return configs.Load(r.dir, nil) }
		c, err := load()
		if err != nil {
			t.Fatal(err)
		}
		r.signal = make(chan os.Signal)
		r.app, err = New(Options{
			Config: c, Credentials: alibaba.StaticCredentials(mark+"Id", mark+"Key"), AWSCredentials: aws.StaticCredentials(mark+"Id", mark+"Key"), DialContext: dial,
			Audit: &bytes.Buffer{}, Observer: r.see, Logger: slog.New(slog.NewTextHandler(r, nil)),
			Load: load, Reload: r.signal,
		})
		if err != nil {
			t.Fatal(err)
		}
		r.stop = run(t, r.app, true)
		defer r.holdsNoKey(t)
		defer r.stop()
		test(r)
	})
}

// region is a cloud of groups, each of which sends to the queue that it is listed under.
func region(name string, instances int, queues map[string][]string) simulator.Scenario {
	s := simulator.Scenario{Region: name}
	for _, queue := range slices.Sorted(maps.Keys(queues)) {
		s.Queues = append(s.Queues, simulator.QueueConfig{Name: queue, VisibilityTimeout: 30 * time.Second})
		for _, id := range queues[queue] {
			s.ScalingGroups = append(s.ScalingGroups, simulator.GroupConfig{
				ID: id, Instances: instances, SplitActivity: true,
				Hooks: []simulator.HookConfig{{
					ID: "ash-" + id, Transition: "scale_in", Queue: queue, HeartbeatTimeout: 10 * time.Minute, DefaultResult: "ABANDON",
				}},
			})
		}
	}
	return s
}

const shenzhen, hangzhou = "cn-shenzhen", "cn-hangzhou"

// accountOf is the account whose cloud a region is.
var accountOf = map[string]string{shenzhen: simulator.DefaultAccountID, hangzhou: "6543210987654321"}

// A reload every second for two minutes: good ones, bad ones, a group taken out and put
// back, a queue with it, while four groups in two regions scale in. Nothing is dropped.
func TestReloadUnderLoad(t *testing.T) {
	t.Parallel()
	base := map[string]string{
		"usher.yaml": "http: \"off\"\nmax_jobs: 50\n",
		"a.yaml":     groupText(shenzhen, "asg-a", "first", "7s"),
		"b.yaml":     groupText(shenzhen, "asg-b", "first", "7s"),
		"c.yaml":     groupText(shenzhen, "asg-c", "second", "7s"),
		"d.yaml":     groupText(hangzhou, "asg-d", "third", "7s"),
	}
	with := func(changes map[string]string) map[string]string {
		files := maps.Clone(base)
		for name, text := range changes {
			if files[name] = text; text == "" {
				delete(files, name)
			}
		}
		return files
	}
	runReloaded(t, base, []simulator.Scenario{
		region(shenzhen, 130, map[string][]string{"first": {"asg-a", "asg-b"}, "second": {"asg-c"}}),
		region(hangzhou, 130, map[string][]string{"third": {"asg-d"}}),
	}, func(r *reloaded) {
		refused, actions := 0, 0
		for i := range 120 {
			switch i % 6 {
			case 0: // steps and bounds change
				r.reload(with(map[string]string{"a.yaml": groupText(shenzhen, "asg-a", "first", fmt.Sprint(3+i%7, "s"), "max_concurrent: 9\n")}))
			case 1: // one file of four can't be read
				refused++
				r.reload(with(map[string]string{"a.yaml": "", "b.yaml": groupText(shenzhen, "asg-b", "first", "soon")}))
			case 2: // a group is gone, and its queue with it
				r.reload(with(map[string]string{"c.yaml": "", "usher.yaml": "http: \"off\"\nmax_jobs: 30\n"}))
			case 3:
				r.reload(base)
			case 4: // one of the groups on a queue is gone, another is renamed
				r.reload(with(map[string]string{"a.yaml": "", "d.yaml": "", "dd.yaml": groupText(hangzhou, "asg-d", "third", "5s")}))
			case 5: // what only a start gives effect to
				refused++
				r.reload(with(map[string]string{"usher.yaml": "http: \"off\"\nvisibility_timeout: 90s\n"}))
			}
			if i%10 == 0 {
				for _, g := range []string{"asg-a", "asg-b", "asg-c"} {
					r.scaleIn(shenzhen, g, 10)
				}
				r.scaleIn(hangzhou, "asg-d", 10)
				actions += 40
			}
			time.Sleep(time.Second)
		}
		r.reload(base)
		r.until(30*time.Minute, "all is drained", func() bool { return r.settled(actions) })
		r.drained()
		results := map[string]int{}
		for _, rec := range r.find(audit.Reloaded) {
			results[rec.Result]++
		}
		if results["refused"] != refused || results["ok"] != 121-refused {
			t.Errorf("reloads: %v, want %d refused of 121", results, refused)
		}
		r.stop()
		t.Logf("%d actions, %v reloads, %d deliveries", actions, results, len(r.find(audit.Received)))
	})
}

// Groups of two accounts in two regions, each with keys that the other's cloud does not
// know. When a group gets another role, an action under way goes on with the one that it
// began with, over the ends of its session.
func TestReloadOfTwoAccounts(t *testing.T) {
	t.Parallel()
	other := func(role, wait string) string {
		text := groupText(hangzhou, "asg-d", "third", wait, "assume_role: {duration: 15m, arn: \"acs:ram::"+accountOf[hangzhou]+":role/"+role+"\"}\n")
		return strings.Replace(text, "endpoints: {", "endpoints: {sts: \"http://sts.cn-hangzhou.test\", ", 1)
	}
	files := map[string]string{
		"usher.yaml": "http: \"off\"\n", "a.yaml": groupText(shenzhen, "asg-a", "first", "40m"), "d.yaml": other("drains", "40m"),
	}
	away := region(hangzhou, 5, map[string][]string{"third": {"asg-d"}})
	away.Policy = policyOf("sts:AssumeRole", "*") // all that the worker's own keys may do there
	asks := "ess:DescribeLifecycleActions ess:DescribeLifecycleHooks ess:DescribeScalingInstances ess:DescribeScalingActivities ess:RecordLifecycleActionHeartbeat"
	away.Roles = []simulator.RoleConfig{
		{Name: "drains", Policy: policyOf(queueActions, "*", asks+" ess:CompleteLifecycleAction", "*")},
		{Name: "only-looks", Policy: policyOf(queueActions, "*", asks, "*")},
	}
	runReloaded(t, files, []simulator.Scenario{region(shenzhen, 5, map[string][]string{"first": {"asg-a"}}), away}, func(r *reloaded) {
		r.until(time.Minute, "it is ready", func() bool { return r.app.worker.Ready() == nil })
		r.scaleIn(shenzhen, "asg-a", 1)
		r.scaleIn(hangzhou, "asg-d", 1)
		r.until(time.Minute, "both run", func() bool { return len(r.find(audit.StepStarted)) == 2 })
		files["d.yaml"] = other("only-looks", "1s")
		r.reload(files)
		r.until(time.Hour, "both are over", func() bool { return r.settled(2) })
		if n := len(r.find(audit.Completed)); n != 2 {
			t.Errorf("%d were completed", n)
		}
		// The new role is what the next one has: it can't answer.
		r.scaleIn(hangzhou, "asg-d", 1)
		r.until(2*time.Minute, "the new role is refused", func() bool {
			err := r.app.worker.Ready()
			return err != nil && strings.Contains(err.Error(), "ess:CompleteLifecycleAction")
		})
		files["d.yaml"] = other("drains", "1s")
		r.reload(files)
		if err := r.app.worker.Ready(); err != nil && strings.Contains(err.Error(), "Complete") {
			t.Errorf("what another config is refused: %v", err)
		}
		// Its answer is tried for ten minutes; then it is begun again, under the config in force.
		r.until(20*time.Minute, "it is over", func() bool { return r.settled(3) })
		r.drained()
		for region, sim := range r.sims {
			for what, n := range sim.State().Refusals {
				if strings.HasPrefix(what, "ess.") && !strings.HasPrefix(what, "ess.CompleteLifecycleAction") {
					t.Errorf("%s refused %d: %s", region, n, what)
				}
			}
		}
	})
}

// A group of AWS gets another role and other steps: an action under way goes on with those that it
// began with, over the ends of its session. A file that can't be is refused, and what was in force
// before is worked by.
func TestReloadOnAWS(t *testing.T) {
	t.Parallel()
	text := func(role, wait string) string {
		return strings.NewReplacer("role/usher", "role/"+role, "for: 5s", "for: "+wait).Replace(awsGroupText(ireland))
	}
	files := map[string]string{"usher.yaml": "http: \"off\"\n", "web.yaml": text("drains", "40m")}
	cloud := simulator.DefaultAWSScenario()
	cloud.ScalingGroups[0].Instances = 8
	cloud.ScalingGroups[0].Hooks[0].HeartbeatTimeout = 10 * time.Minute
	const all, deny = `{"Effect":"Allow","Action":"*","Resource":"*"}`, `{"Effect":"Deny","Action":"autoscaling:CompleteLifecycleAction","Resource":"*"}`
	cloud.Roles = []simulator.RoleConfig{
		{Name: "drains", Policy: `{"Version":"2012-10-17","Statement":[` + all + `]}`},
		{Name: "only-looks", Policy: `{"Version":"2012-10-17","Statement":[` + all + `,` + deny + `]}`},
	}
	runReloaded(t, files, []simulator.Scenario{cloud}, func(r *reloaded) {
		r.until(time.Minute, "it is ready", func() bool { return r.app.worker.Ready() == nil })
		r.scaleIn(ireland, "web-asg", 2)
		r.until(time.Minute, "both run", func() bool { return len(r.find(audit.StepStarted)) == 2 })
		files["web.yaml"] = text("only-looks", "1s")
		r.reload(files)
		r.scaleIn(ireland, "web-asg", 1)
		r.until(2*time.Minute, "the new role is refused", func() bool {
			err := r.app.worker.Ready()
			return err != nil && strings.Contains(err.Error(), "autoscaling:CompleteLifecycleAction")
		})
		files["web.yaml"] = text("drains", "2s")
		r.reload(files)

		for problem, file := range map[string]string{
			"deadline: at most 11h59m on AWS": strings.Replace(files["web.yaml"], "50m", "13h", 1),
			"AWS has no ROLLBACK":             strings.Replace(files["web.yaml"], "deadline: 50m", "deadline: 50m, on_failure: ROLLBACK", 1),
			"region":                          strings.Replace(files["web.yaml"], "region: "+ireland+"\n", "", 1),
			"each heartbeat on AWS is worth":  strings.Replace(files["web.yaml"], "deadline: 50m", "deadline: 50m, heartbeat: {extension: 5m}", 1),
		} {
			r.reload(map[string]string{"usher.yaml": files["usher.yaml"], "web.yaml": file})
			recs := r.find(audit.Reloaded)
			if last := recs[len(recs)-1]; last.Result != "refused" || !strings.HasPrefix(last.Error, "web.yaml:") || !strings.Contains(last.Error, problem) {
				t.Errorf("recorded, for %s: %+v", problem, last)
			}
			if note := r.app.force.refusal(); !strings.Contains(note, "refused at") {
				t.Errorf("/readyz says %q", note)
			}
			begun := len(r.find(audit.Completed))
			r.scaleIn(ireland, "web-asg", 1)
			r.until(10*time.Second, "the one before is worked by", func() bool { return len(r.find(audit.Completed)) == begun+1 })
		}
		r.reload(files)
		if note := r.app.force.refusal(); note != "" {
			t.Errorf("/readyz says %q", note)
		}
		r.until(time.Hour, "all are over", func() bool { return r.settled(7) })
		r.drained()
		took := map[time.Duration]int{}
		for _, rec := range r.find(audit.StepFinished) {
			took[(time.Duration(rec.DurationMS)*time.Millisecond).Round(time.Second)]++
		}
		// The third is begun anew when its answer was tried for ten minutes.
		if want := (map[time.Duration]int{40 * time.Minute: 2, time.Second: 1, 2 * time.Second: 5}); !maps.Equal(took, want) {
			t.Errorf("the steps took %v, want %v", took, want)
		}
	})
}

// What a refused config says, and to whom.
func TestReloadRefused(t *testing.T) {
	t.Parallel()
	base := map[string]string{"usher.yaml": "http: \"off\"\n", "a.yaml": groupText(shenzhen, "asg-a", "first", "1s")}
	runReloaded(t, base, []simulator.Scenario{region(shenzhen, 5, map[string][]string{"first": {"asg-a"}})}, func(r *reloaded) {
		bad := maps.Clone(base)
		bad["a.yaml"] = strings.Replace(base["a.yaml"], "1h", "8h", 1) + "color: blue\n"
		bad["b.yaml"] = "[]\n"
		r.reload(bad)
		const want = "a.yaml:8: hooks[0].deadline: at most 6h on ESS, got 8h; a.yaml:11: color: unknown key"
		recs := r.find(audit.Reloaded)
		if len(recs) != 1 || recs[0].Result != "refused" || !strings.HasPrefix(recs[0].Error, want) || recs[0].Reason != "the config before stays in force: 3 problems" {
			t.Errorf("recorded: %+v", recs)
		}
		for _, text := range []string{"level=ERROR msg=\"config refused\" problem=\"a.yaml:8: ", "problem=\"a.yaml:11: ", "problem=\"b.yaml:1: "} {
			if !strings.Contains(r.logs(), text) {
				t.Errorf("the log lacks %s", text)
			}
		}
		if note := r.app.force.refusal(); !strings.Contains(note, "refused at") || !strings.Contains(note, "3 problems") {
			t.Errorf("/readyz says %q", note)
		}
		// What can't be taken over under way.
		r.reload(map[string]string{"usher.yaml": "http: \"off\"\nvisibility_timeout: 90s\naudit: {file: /tmp/x}\n", "a.yaml": groupText(shenzhen, "asg-a", "first", "2s")})
		recs = r.find(audit.Reloaded)
		if last := recs[len(recs)-1]; last.Result != "refused" || !strings.Contains(last.Error, "usher.yaml: visibility_timeout: takes effect at a start only") || !strings.Contains(last.Error, "usher.yaml: audit.file: ") {
			t.Errorf("recorded: %+v", last)
		}
		// The one before is still what is worked by.
		r.scaleIn(shenzhen, "asg-a", 1)
		r.until(5*time.Second, "it is drained in a second", func() bool { return r.settled(1) })
		r.reload(base)
		if note := r.app.force.refusal(); note != "" {
			t.Errorf("/readyz says %q", note)
		}
		r.reload(map[string]string{"usher.yaml": "http: \"off\"\n"})
		r.reload(map[string]string{"usher.yaml": "http: \"off\"\nmax_jobs: 7\n", "a.yaml": "# moves the steps to other lines\n" + base["a.yaml"]})
		recs = r.find(audit.Reloaded)
		if last := recs[len(recs)-1]; last.Result != "ok" || last.Reason != "usher.yaml: max_jobs" {
			t.Errorf("recorded: %+v", last)
		}
		var line bytes.Buffer
		if err := json.NewEncoder(&line).Encode(recs[0]); err != nil || strings.Count(line.String(), "\n") != 1 {
			t.Errorf("not one line: %v", err)
		}
	})
}
