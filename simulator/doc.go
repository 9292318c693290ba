// Package simulator is Alibaba Cloud in a box: the queue service MNS (SMQ) with its
// topics, Auto Scaling (ESS), ECS Cloud Assistant, the load balancers CLB, ALB and NLB,
// STS, the metadata of an instance and the lookups around them, as one http.Handler on
// their real wire protocols. Signatures are verified, long polls wait, receipt handles
// die, lifecycle hooks time out and heartbeats have a budget, so that clients and
// official SDKs work against it unmodified.
//
// Or it is AWS, if its scenario says so: SQS in both of its protocols, EC2 Auto Scaling,
// classic load balancers and target groups, Systems Manager, EC2, STS and the metadata of
// an instance, with signatures of version 4 and policies of IAM. Its own wire is in the
// files aws_*.go; clock, machines, balancers, faults, State and Events are the same.
//
// Its instances are real HTTP servers on loopback addresses and its balancers are
// real proxies, whose members are the ones that the balancers' APIs change. With
// Options.NoServers both are in the state only.
//
// The package imports nothing else of usher: it is a witness in usher's tests and
// must not share a bug with the client that it tests.
//
// # Model
//
// One mutex guards the whole state. All timers of the cloud (visibility, delay,
// retention, hook timeouts, booting, stopping, commands) are entries of one
// schedule, run under that mutex in the order of their times, so what happens is a
// plain sequence that Events records. Time comes from package time alone: inside a
// testing/synctest bubble six hours pass in milliseconds. Only what traffic needs of a
// balancer has a mutex of its own, which is taken after the other.
//
// A scaling group's instance goes
//
//	scale out: Pending -> Pending:Wait -> InService   (or released)
//	scale in:  Removing -> Removing:Wait -> released  (or InService again on ROLLBACK)
//
// and leaves the balancers that its group is attached to when it becomes Removing. The
// hooks fire when it is out of all of them.
package simulator
