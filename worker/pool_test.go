package worker

import (
	"fmt"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"example.org/usher/messages"
)

// gate is work that runs until it is opened.
type gate struct {
	running bool
	open    chan struct{}
}

func (g *gate) start(release func()) {
	g.running = true
	<-g.open
	release()
}

// The pool is driven by random moves; after each, what runs is compared with the bounds.
func TestPoolKeepsItsBounds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		groups := rapid.IntRange(1, 4).Draw(rt, "groups")
		size := rapid.IntRange(groups, 16).Draw(rt, "size")
		limits := rapid.SliceOfN(rapid.IntRange(0, 3), groups, groups).Draw(rt, "limits")
		moves := rapid.SliceOfN(rapid.IntRange(0, 99), 1, 60).Draw(rt, "moves")
		synctest.Test(t, func(t *testing.T) {
			p := newPool(size)
			shares := make([]*share, groups)
			for i := range shares {
				shares[i] = p.share(groupKey{id: messages.GroupID(fmt.Sprint(i))}, limits[i])
			}
			type job struct {
				*gate
				*ticket
				group           int
				ended, withdrew bool
			}
			var jobs []*job
			check := func() {
				synctest.Wait()
				total, running, waiting := 0, make([]int, groups), make([]int, groups)
				for _, j := range jobs {
					switch {
					case j.ended || j.withdrew:
					case j.running:
						running[j.group]++
						total++
					default:
						waiting[j.group]++
					}
				}
				if total > size {
					t.Fatalf("%d jobs run, the pool has %d slots", total, size)
				}
				idle := 0
				for g := range groups {
					if limits[g] > 0 && running[g] > limits[g] {
						t.Fatalf("group %d runs %d jobs, its limit is %d", g, running[g], limits[g])
					}
					if running[g] == 0 {
						idle++
					}
				}
				for g := range groups {
					if waiting[g] == 0 || limits[g] > 0 && running[g] == limits[g] {
						continue
					}
					if running[g] == 0 {
						t.Fatalf("group %d has work and no job, with %d of %d slots taken", g, total, size)
					}
					quarter := size / 4
					if groups == 1 {
						quarter = 0
					}
					if running[g] > size-quarter {
						t.Fatalf("group %d runs %d jobs of %d slots, the last quarter included", g, running[g], size)
					}
					if total+idle < size && (total < size-quarter || running[g] < max(1, quarter/groups)) {
						t.Fatalf("group %d waits although %d of %d slots are taken and %d groups idle", g, total, size, idle)
					}
				}
			}
			for _, m := range moves {
				switch {
				case m < 60 || len(jobs) == 0:
					j := &job{gate: &gate{open: make(chan struct{})}, group: m % groups}
					j.ticket = shares[j.group].submit(j.gate.start)
					jobs = append(jobs, j)
				case m < 85:
					if j := jobs[m%len(jobs)]; j.running && !j.ended {
						j.ended = true
						close(j.open)
					}
				default:
					j := jobs[m%len(jobs)]
					was := j.withdrew
					if got, want := j.withdraw(), !j.running && !was; got != want {
						t.Fatalf("withdraw gives %v, want %v", got, want)
					}
					j.withdrew = j.withdrew || !j.running
				}
				check()
			}
			for _, j := range jobs {
				if !j.ended && !j.withdrew {
					j.ended = true
					close(j.open)
				}
			}
			p.wait()
			for i, j := range jobs {
				if j.withdrew == j.running {
					t.Fatalf("job %d: withdrawn %v, ran %v", i, j.withdrew, j.running)
				}
			}
		})
	})
}
