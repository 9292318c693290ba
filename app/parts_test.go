package app

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.org/usher/configs"
	"example.org/usher/providers/alibaba"
	"example.org/usher/providers/aws"
)

// A queue whose last action ends while a configuration is built that names it again is
// not closed under that one; if that one is not taken over, it is closed then.
func TestQueueIsNamedAgainWhileItIsLetGo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(groupText(shenzhen, "asg-a", "first", "1s")), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := configs.Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := newParts(Options{Config: c, Credentials: alibaba.StaticCredentials(mark, mark), Logger: slog.New(slog.DiscardHandler)})
	defer p.close()
	first, err := p.build(c)
	if err != nil {
		t.Fatal(err)
	}
	p.take(first)
	closed := 0
	var part *queuePart
	for _, part = range p.queues {
		closing := part.closeClients
		part.closeClients = func() { closed++; closing() }
	}
	for _, taken := range []bool{true, false} {
		next, err := p.build(c)
		if err != nil {
			t.Fatal(err)
		}
		if next.queues[0].Queue != first.queues[0].Queue || len(next.newGroups) != 0 {
			t.Error("what is unchanged was built anew")
		}
		part.Close()
		if closed != 0 {
			t.Error("closed while it is needed")
		}
		if taken {
			p.take(next)
		} else {
			p.discard(next)
		}
	}
	if closed != 1 || len(p.queues) != 0 {
		t.Errorf("closed %d times, %d queues are left", closed, len(p.queues))
	}
}

// A group that nothing has changed of comes to a queue with other clients, because a file
// before it says where the queue's keys are got: it gets clients of its own there, since the
// worker closes those that it had with the former queue.
func TestUnchangedGroupComesToAnotherQueue(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	const role = "assume_role: {arn: \"acs:ram::1234567890123456:role/usher\"}\n"
	load := func(sts string) *configs.Config {
		for _, id := range []string{"a", "b"} {
			text := groupText(shenzhen, "asg-"+id, "first", "1s", role)
			if id == "a" {
				text = strings.Replace(text, "endpoints: {", "endpoints: {"+sts, 1)
			}
			if err := os.WriteFile(filepath.Join(dir, id+".yaml"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c, err := configs.Load(dir, nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	before := load("")
	p := newParts(Options{Config: before, Credentials: alibaba.StaticCredentials(mark, mark), Logger: slog.New(slog.DiscardHandler)})
	sessions := func() map[assumed]*share[*alibaba.AssumedRole] {
		return p.clouds["alibaba"].(*alibabaCloud).keys.sessions.all
	}
	defer p.close()
	first, err := p.build(before)
	if err != nil {
		t.Fatal(err)
	}
	p.take(first)
	b := groupKey{"alibaba", shenzhen, "asg-b"}
	session := assumed{Role: before.Groups[1].AssumeRole}
	if sessions()[session] == nil {
		t.Fatal("no session of the group's role")
	}
	next, err := p.build(load(`sts: "http://sts.vpc.test", `))
	if err != nil {
		t.Fatal(err)
	}
	p.take(next)
	for _, g := range first.groupParts { // as the worker does when the groups leave the former queue
		g.Close()
	}
	first.queueParts[queueKey{before.Groups[0].Queue, session}].Close()
	if first.groupParts[b].Lifecycle == next.groupParts[b].Lifecycle {
		t.Error("it came with the clients that are closed with the former queue")
	}
	if sessions()[session] == nil {
		t.Error("its session was closed")
	}
}

// The account of a group is known by its role on AWS, where messages name it.
func TestAccountOfGroups(t *testing.T) {
	t.Parallel()
	c, err := configs.Load("../configs/examples/mixed", nil)
	if err != nil {
		t.Fatal(err)
	}
	p := newParts(Options{
		Config: c, Logger: slog.New(slog.DiscardHandler), Credentials: alibaba.StaticCredentials(mark, mark), AWSCredentials: aws.StaticCredentials(mark, mark),
	})
	defer p.close()
	b, err := p.build(c)
	if err != nil {
		t.Fatal(err)
	}
	p.take(b)
	for _, g := range b.groupParts {
		defer g.Close()
		want := ""
		if g.Provider == "aws" {
			want = g.config.AssumeRole.Account()
		}
		if g.Account != want {
			t.Errorf("group %s is of account %q, want %q", g.Name, g.Account, want)
		}
	}
	for _, q := range b.queueParts {
		defer q.Close()
	}
}
