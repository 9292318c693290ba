package worker

import (
	"context"
	"sync"
	"time"

	"example.org/usher/providers"
)

const (
	// ackSenders is how many deletions one queue has under way.
	ackSenders = 4
	// ackLinger is how long a deletion waits for others to share its call.
	ackLinger = 20 * time.Millisecond
)

// acker deletes messages in batches.
type acker struct {
	queue providers.Queue
	// requests is written by delete and read by run.
	requests chan ackRequest
}

type ackRequest struct {
	receipt providers.Receipt
	done    chan error // has room for the one answer
}

func newAcker(q providers.Queue) *acker {
	return &acker{queue: q, requests: make(chan ackRequest)}
}

// delete deletes one message and returns when that is done or ctx has ended.
func (k *acker) delete(ctx context.Context, r providers.Receipt) error {
	req := ackRequest{receipt: r, done: make(chan error, 1)}
	select {
	case k.requests <- req:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-req.done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// run deletes until ctx ends, which is when nobody waits for a deletion any more. One
// loop collects, so that batches are as full as they can be, and a few senders send.
func (k *acker) run(ctx context.Context) {
	batches := make(chan []ackRequest) // written by this loop, read by the senders
	var senders sync.WaitGroup
	defer senders.Wait()
	defer close(batches)
	for range ackSenders {
		senders.Go(func() {
			for batch := range batches {
				k.send(ctx, batch)
			}
		})
	}
	for {
		batch := k.collect(ctx)
		if len(batch) == 0 {
			return
		}
		select {
		case batches <- batch:
		case <-ctx.Done():
			return
		}
	}
}

// collect waits for a first request, and then a little for more.
func (k *acker) collect(ctx context.Context) []ackRequest {
	var batch []ackRequest
	select {
	case req := <-k.requests:
		batch = append(batch, req)
	case <-ctx.Done():
		return nil
	}
	linger := time.NewTimer(ackLinger)
	defer linger.Stop()
	for len(batch) < k.queue.MaxBatch() {
		select {
		case req := <-k.requests:
			batch = append(batch, req)
		case <-linger.C:
			return batch
		case <-ctx.Done():
			return batch
		}
	}
	return batch
}

func (k *acker) send(ctx context.Context, batch []ackRequest) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	receipts := make([]providers.Receipt, len(batch))
	for i, req := range batch {
		receipts[i] = req.receipt
	}
	for i, err := range k.queue.Delete(ctx, receipts) {
		batch[i].done <- err
	}
}
