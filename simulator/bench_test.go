package simulator

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkNotifications fires 10,000 notifications and lets eight clients receive
// them in batches, complete each action and delete the messages: what the simulator
// itself costs a worker that is measured against it.
func BenchmarkNotifications(b *testing.B) {
	const n = 10_000
	for b.Loop() {
		b.StopTimer()
		sc := oneGroup(n, hookIn("ash-1", ""))
		sc.ScalingGroups[0].SplitActivity = true
		w := start(b, Options{Scenario: sc, NoServers: true, NoEvents: true})
		w.transport.MaxIdleConnsPerHost = 16
		b.StartTimer()
		if _, err := w.ScaleIn("asg-1", n); err != nil {
			b.Fatal(err)
		}
		var left atomic.Int64
		left.Store(n)
		var clients sync.WaitGroup
		for range 8 {
			clients.Go(func() {
				for left.Load() > 0 {
					left.Add(-w.work(b))
				}
			})
		}
		clients.Wait()
		if st := w.State(); len(st.Groups[0].Instances) != 0 || st.Queues[0].Active+st.Queues[0].Inactive != 0 {
			b.Fatalf("left over: %d instances, %+v", len(st.Groups[0].Instances), st.Queues)
		}
	}
	b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "actions/s")
}

// work handles one batch and gives its size; 0 when the queue was empty.
func (w *world) work(b *testing.B) int64 {
	r, err := w.mns("GET", "/queues/q/messages?numOfMessages=16", "")
	if err != nil {
		b.Error(err)
		return 1 << 40
	}
	if r.status == http.StatusNotFound {
		return 0
	}
	parts := strings.Split(r.body, "<Message>")[1:]
	var handles strings.Builder
	for _, part := range parts {
		_, handle, _ := strings.Cut(part, "<ReceiptHandle>")
		handle, _, _ = strings.Cut(handle, "</ReceiptHandle>")
		handles.WriteString("<ReceiptHandle>" + handle + "</ReceiptHandle>")
		_, body, _ := strings.Cut(part, "<MessageBody>")
		body, _, _ = strings.Cut(body, "</MessageBody>")
		w.complete("ash-1", w.wire(body).Content.Token, "CONTINUE")
	}
	w.must(204, "DELETE", "/queues/q/messages", "<ReceiptHandles>"+handles.String()+"</ReceiptHandles>")
	return int64(len(parts))
}
