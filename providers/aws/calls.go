package aws

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/elasticloadbalancing"
	"github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
)

// The clients of the SDK are kept as the operations that are used, and never whole: the
// linker keeps all methods of what can be reached from a value in an interface, and those of
// a client are all operations of its service. It makes 15 MB of the binary.

// sdkCall is an operation with its input I and output O, of a service with options P.
type sdkCall[I, O, P any] = func(context.Context, *I, ...func(*P)) (*O, error)

type autoscalingCalls struct {
	DescribeLifecycleHooks         sdkCall[autoscaling.DescribeLifecycleHooksInput, autoscaling.DescribeLifecycleHooksOutput, autoscaling.Options]
	RecordLifecycleActionHeartbeat sdkCall[autoscaling.RecordLifecycleActionHeartbeatInput, autoscaling.RecordLifecycleActionHeartbeatOutput, autoscaling.Options]
	CompleteLifecycleAction        sdkCall[autoscaling.CompleteLifecycleActionInput, autoscaling.CompleteLifecycleActionOutput, autoscaling.Options]
	DescribeAutoScalingInstances   sdkCall[autoscaling.DescribeAutoScalingInstancesInput, autoscaling.DescribeAutoScalingInstancesOutput, autoscaling.Options]
	DescribeAutoScalingGroups      sdkCall[autoscaling.DescribeAutoScalingGroupsInput, autoscaling.DescribeAutoScalingGroupsOutput, autoscaling.Options]
}

func newAutoScalingCalls(c *autoscaling.Client) autoscalingCalls {
	return autoscalingCalls{
		DescribeLifecycleHooks:         c.DescribeLifecycleHooks,
		RecordLifecycleActionHeartbeat: c.RecordLifecycleActionHeartbeat,
		CompleteLifecycleAction:        c.CompleteLifecycleAction,
		DescribeAutoScalingInstances:   c.DescribeAutoScalingInstances,
		DescribeAutoScalingGroups:      c.DescribeAutoScalingGroups,
	}
}

type classicCalls struct {
	DescribeLoadBalancers               sdkCall[elasticloadbalancing.DescribeLoadBalancersInput, elasticloadbalancing.DescribeLoadBalancersOutput, elasticloadbalancing.Options]
	DescribeInstanceHealth              sdkCall[elasticloadbalancing.DescribeInstanceHealthInput, elasticloadbalancing.DescribeInstanceHealthOutput, elasticloadbalancing.Options]
	DescribeLoadBalancerAttributes      sdkCall[elasticloadbalancing.DescribeLoadBalancerAttributesInput, elasticloadbalancing.DescribeLoadBalancerAttributesOutput, elasticloadbalancing.Options]
	DeregisterInstancesFromLoadBalancer sdkCall[elasticloadbalancing.DeregisterInstancesFromLoadBalancerInput, elasticloadbalancing.DeregisterInstancesFromLoadBalancerOutput, elasticloadbalancing.Options]
	RegisterInstancesWithLoadBalancer   sdkCall[elasticloadbalancing.RegisterInstancesWithLoadBalancerInput, elasticloadbalancing.RegisterInstancesWithLoadBalancerOutput, elasticloadbalancing.Options]
}

func newClassicCalls(c *elasticloadbalancing.Client) classicCalls {
	return classicCalls{
		DescribeLoadBalancers:               c.DescribeLoadBalancers,
		DescribeInstanceHealth:              c.DescribeInstanceHealth,
		DescribeLoadBalancerAttributes:      c.DescribeLoadBalancerAttributes,
		DeregisterInstancesFromLoadBalancer: c.DeregisterInstancesFromLoadBalancer,
		RegisterInstancesWithLoadBalancer:   c.RegisterInstancesWithLoadBalancer,
	}
}

type elbv2Calls struct {
	DescribeTargetGroups           sdkCall[elasticloadbalancingv2.DescribeTargetGroupsInput, elasticloadbalancingv2.DescribeTargetGroupsOutput, elasticloadbalancingv2.Options]
	DescribeTargetHealth           sdkCall[elasticloadbalancingv2.DescribeTargetHealthInput, elasticloadbalancingv2.DescribeTargetHealthOutput, elasticloadbalancingv2.Options]
	DescribeLoadBalancerAttributes sdkCall[elasticloadbalancingv2.DescribeLoadBalancerAttributesInput, elasticloadbalancingv2.DescribeLoadBalancerAttributesOutput, elasticloadbalancingv2.Options]
	DescribeTargetGroupAttributes  sdkCall[elasticloadbalancingv2.DescribeTargetGroupAttributesInput, elasticloadbalancingv2.DescribeTargetGroupAttributesOutput, elasticloadbalancingv2.Options]
	DeregisterTargets              sdkCall[elasticloadbalancingv2.DeregisterTargetsInput, elasticloadbalancingv2.DeregisterTargetsOutput, elasticloadbalancingv2.Options]
	RegisterTargets                sdkCall[elasticloadbalancingv2.RegisterTargetsInput, elasticloadbalancingv2.RegisterTargetsOutput, elasticloadbalancingv2.Options]
}

func newELBv2Calls(c *elasticloadbalancingv2.Client) elbv2Calls {
	return elbv2Calls{
		DescribeTargetGroups:           c.DescribeTargetGroups,
		DescribeTargetHealth:           c.DescribeTargetHealth,
		DescribeLoadBalancerAttributes: c.DescribeLoadBalancerAttributes,
		DescribeTargetGroupAttributes:  c.DescribeTargetGroupAttributes,
		DeregisterTargets:              c.DeregisterTargets,
		RegisterTargets:                c.RegisterTargets,
	}
}

type sqsCalls struct {
	GetQueueUrl                  sdkCall[sqs.GetQueueUrlInput, sqs.GetQueueUrlOutput, sqs.Options]
	ReceiveMessage               sdkCall[sqs.ReceiveMessageInput, sqs.ReceiveMessageOutput, sqs.Options]
	ChangeMessageVisibilityBatch sdkCall[sqs.ChangeMessageVisibilityBatchInput, sqs.ChangeMessageVisibilityBatchOutput, sqs.Options]
	DeleteMessageBatch           sdkCall[sqs.DeleteMessageBatchInput, sqs.DeleteMessageBatchOutput, sqs.Options]
	SendMessage                  sdkCall[sqs.SendMessageInput, sqs.SendMessageOutput, sqs.Options]
	GetQueueAttributes           sdkCall[sqs.GetQueueAttributesInput, sqs.GetQueueAttributesOutput, sqs.Options]
}

func newSQSCalls(c *sqs.Client) sqsCalls {
	return sqsCalls{
		GetQueueUrl:                  c.GetQueueUrl,
		ReceiveMessage:               c.ReceiveMessage,
		ChangeMessageVisibilityBatch: c.ChangeMessageVisibilityBatch,
		DeleteMessageBatch:           c.DeleteMessageBatch,
		SendMessage:                  c.SendMessage,
		GetQueueAttributes:           c.GetQueueAttributes,
	}
}

type ssmCalls struct {
	ListCommands         sdkCall[ssm.ListCommandsInput, ssm.ListCommandsOutput, ssm.Options]
	SendCommand          sdkCall[ssm.SendCommandInput, ssm.SendCommandOutput, ssm.Options]
	GetCommandInvocation sdkCall[ssm.GetCommandInvocationInput, ssm.GetCommandInvocationOutput, ssm.Options]
}

func newSSMCalls(c *ssm.Client) ssmCalls {
	return ssmCalls{
		ListCommands:         c.ListCommands,
		SendCommand:          c.SendCommand,
		GetCommandInvocation: c.GetCommandInvocation,
	}
}
