"""Drives the simulated AWS with Debian's boto3, as it comes.

Usage: boto3_drive.py ENDPOINT PART, keys and region from the environment. Prints the name of
the part when all of it held, else fails with a traceback.
"""

import json
import sys
import threading

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

ENDPOINT, PART = sys.argv[1], sys.argv[2]
CONFIG = Config(retries={"total_max_attempts": 1}, read_timeout=60)


def client(service, **keys):
    return boto3.client(service, endpoint_url=ENDPOINT, config=CONFIG, **keys)


def same(got, want):
    if got != want:
        raise AssertionError(f"got {got!r}, want {want!r}")


def refused(code, call, **arguments):
    try:
        call(**arguments)
    except ClientError as e:
        same(e.response["Error"]["Code"], code)
        return e.response["Error"]["Message"]
    raise AssertionError(f"not refused with {code}")


def sqs():
    c = client("sqs")
    url = c.get_queue_url(QueueName="drain-q")["QueueUrl"]
    same(url, ENDPOINT + "/111122223333/drain-q")
    sent = c.send_message(
        QueueUrl=url,
        MessageBody='hi usher <&> "✓"',
        MessageAttributes={
            "a": {"DataType": "String", "StringValue": "b"},
            "raw": {"DataType": "Binary", "BinaryValue": b"\x00\xff"},
        },
    )
    (m,) = c.receive_message(QueueUrl=url, AttributeNames=["All"], MessageAttributeNames=["All"])["Messages"]
    same(m["Body"], 'hi usher <&> "✓"')
    same(m["MessageId"], sent["MessageId"])
    same((m["MD5OfBody"], m["MD5OfMessageAttributes"]), (sent["MD5OfMessageBody"], sent["MD5OfMessageAttributes"]))
    same(m["MessageAttributes"]["raw"]["BinaryValue"], b"\x00\xff")
    same(m["Attributes"]["ApproximateReceiveCount"], "1")
    same("Messages" in c.receive_message(QueueUrl=url, WaitTimeSeconds=0), False)

    c.change_message_visibility(QueueUrl=url, ReceiptHandle=m["ReceiptHandle"], VisibilityTimeout=0)
    (again,) = c.receive_message(QueueUrl=url, AttributeNames=["All"], VisibilityTimeout=600)["Messages"]
    same(again["Attributes"]["ApproximateReceiveCount"], "2")
    same(again["ReceiptHandle"] != m["ReceiptHandle"], True)
    text = refused(
        "InvalidParameterValue", c.change_message_visibility, QueueUrl=url, ReceiptHandle=again["ReceiptHandle"], VisibilityTimeout=43200
    )
    same("beyond the limit [43200 seconds]" in text, True)
    c.delete_message(QueueUrl=url, ReceiptHandle=m["ReceiptHandle"])
    same(counts(c, url), ("0", "1"))
    c.delete_message(QueueUrl=url, ReceiptHandle=again["ReceiptHandle"])
    same(counts(c, url), ("0", "0"))

    # A long poll that waits, or comes late.
    got = []
    poll = threading.Thread(target=lambda: got.extend(c.receive_message(QueueUrl=url, WaitTimeSeconds=20)["Messages"]))
    poll.start()
    client("sqs").send_message(QueueUrl=url, MessageBody="awaited")
    poll.join()
    same([m["Body"] for m in got], ["awaited"])
    c.delete_message(QueueUrl=url, ReceiptHandle=got[0]["ReceiptHandle"])

    out = c.send_message_batch(
        QueueUrl=url, Entries=[{"Id": "good", "MessageBody": "1"}, {"Id": "bad", "MessageBody": "2", "DelaySeconds": 901}]
    )
    same([e["Id"] for e in out["Successful"]], ["good"])
    same([(e["Id"], e["Code"], e["SenderFault"]) for e in out["Failed"]], [("bad", "InvalidParameterValue", True)])
    (m,) = c.receive_message(QueueUrl=url)["Messages"]
    out = c.change_message_visibility_batch(
        QueueUrl=url, Entries=[{"Id": "a", "ReceiptHandle": m["ReceiptHandle"], "VisibilityTimeout": 100}]
    )
    same([e["Id"] for e in out["Successful"]], ["a"])
    out = c.delete_message_batch(
        QueueUrl=url, Entries=[{"Id": "a", "ReceiptHandle": m["ReceiptHandle"]}, {"Id": "b", "ReceiptHandle": "none"}]
    )
    same([e["Id"] for e in out["Successful"]], ["a"])
    same([(e["Id"], e["Code"]) for e in out["Failed"]], [("b", "ReceiptHandleIsInvalid")])

    # A redrive, at the receive that would be one too many.
    dead = c.create_queue(QueueName="dead", tags={"team": "web"})["QueueUrl"]
    arn = c.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 1})
    c.set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": policy})
    same(json.loads(c.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]["RedrivePolicy"])["maxReceiveCount"], 1)
    c.send_message(QueueUrl=url, MessageBody="poison")
    (m,) = c.receive_message(QueueUrl=url)["Messages"]
    c.change_message_visibility(QueueUrl=url, ReceiptHandle=m["ReceiptHandle"], VisibilityTimeout=0)
    same("Messages" in c.receive_message(QueueUrl=url), False)
    (m,) = c.receive_message(QueueUrl=dead, AttributeNames=["All"])["Messages"]
    same(m["Body"], "poison")
    same(m["Attributes"]["DeadLetterQueueSourceArn"], "arn:aws:sqs:eu-west-1:111122223333:drain-q")

    same([u.rsplit("/")[-1] for u in c.list_queues()["QueueUrls"]], ["dead", "drain-q"])
    c.purge_queue(QueueUrl=dead)
    c.delete_queue(QueueUrl=dead)
    refused("AWS.SimpleQueueService.NonExistentQueue", c.receive_message, QueueUrl=dead)
    refused("AWS.SimpleQueueService.EmptyBatchRequest", c.delete_message_batch, QueueUrl=url, Entries=[])
    text = refused("InvalidParameterValue", c.receive_message, QueueUrl=url, WaitTimeSeconds=21)
    same(text, "Value 21 for parameter WaitTimeSeconds is invalid. Reason: Must be >= 0 and <= 20, if provided.")


def counts(c, url):
    a = c.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    return a["ApproximateNumberOfMessages"], a["ApproximateNumberOfMessagesNotVisible"]


def sts():
    c = client("sts")
    same(c.get_caller_identity()["Arn"], "arn:aws:iam::111122223333:user/usher")
    k = c.assume_role(RoleArn="arn:aws:iam::111122223333:role/drainer", RoleSessionName="boto")["Credentials"]
    keys = {
        "aws_access_key_id": k["AccessKeyId"],
        "aws_secret_access_key": k["SecretAccessKey"],
        "aws_session_token": k["SessionToken"],
    }
    same(client("sts", **keys).get_caller_identity()["Arn"], "arn:aws:sts::111122223333:assumed-role/drainer/boto")
    client("sqs", **keys).get_queue_url(QueueName="drain-q")
    text = refused("AccessDenied", client("sqs", **keys).list_queues)
    same("assumed-role/drainer/boto is not authorized to perform: sqs:listqueues on resource: " in text, True)
    keys["aws_secret_access_key"] += "x"
    refused("SignatureDoesNotMatch", client("sts", **keys).get_caller_identity)
    keys["aws_session_token"] = "x"
    refused("InvalidClientTokenId", client("sts", **keys).get_caller_identity)
    refused("AccessDenied", c.assume_role, RoleArn="arn:aws:iam::111122223333:role/none", RoleSessionName="boto")


def instances():
    """The group's instances, oldest first."""
    (group,) = client("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=["web-asg"])["AutoScalingGroups"]
    return [i["InstanceId"] for i in group["Instances"]]


def awaited(queue, kind):
    """The next hook notification of a kind; what else comes is passed over."""
    url = queue.get_queue_url(QueueName="drain-q")["QueueUrl"]
    while True:
        for m in queue.receive_message(QueueUrl=url, WaitTimeSeconds=20).get("Messages", []):
            queue.delete_message(QueueUrl=url, ReceiptHandle=m["ReceiptHandle"])
            body = json.loads(m["Body"])
            if body.get("LifecycleTransition") == kind:
                return body


def autoscaling():
    c, queue = client("autoscaling"), client("sqs")
    hooks = {h["LifecycleHookName"]: h for h in c.describe_lifecycle_hooks(AutoScalingGroupName="web-asg")["LifecycleHooks"]}
    same(sorted(hooks), ["usher-drain", "usher-prepare"])
    hook = hooks["usher-drain"]
    same((hook["HeartbeatTimeout"], hook["GlobalTimeout"]), (3600, 172800))
    same(hook["NotificationTargetARN"], "arn:aws:sqs:eu-west-1:111122223333:drain-q")
    leaving = instances()[0]
    activity = c.terminate_instance_in_auto_scaling_group(InstanceId=leaving, ShouldDecrementDesiredCapacity=True)["Activity"]
    same(activity["AutoScalingGroupName"], "web-asg")
    told = awaited(queue, "autoscaling:EC2_INSTANCE_TERMINATING")
    same((told["EC2InstanceId"], told["LifecycleHookName"]), (leaving, "usher-drain"))
    (state,) = c.describe_auto_scaling_instances(InstanceIds=[leaving])["AutoScalingInstances"]
    same(state["LifecycleState"], "Terminating:Wait")
    action = {
        "AutoScalingGroupName": "web-asg",
        "LifecycleHookName": "usher-drain",
        "LifecycleActionToken": told["LifecycleActionToken"],
        "InstanceId": leaving,
    }
    c.record_lifecycle_action_heartbeat(**action)
    c.complete_lifecycle_action(LifecycleActionResult="CONTINUE", **action)
    text = refused("ValidationError", c.record_lifecycle_action_heartbeat, **action)
    same(text, "No active Lifecycle Action found with token " + told["LifecycleActionToken"])
    same(leaving in instances(), False)
    refused("ValidationError", c.terminate_instance_in_auto_scaling_group, InstanceId=leaving, ShouldDecrementDesiredCapacity=True)

    c.set_desired_capacity(AutoScalingGroupName="web-asg", DesiredCapacity=4)
    told = awaited(queue, "autoscaling:EC2_INSTANCE_LAUNCHING")
    action["LifecycleHookName"] = "usher-prepare"
    action["InstanceId"] = told["EC2InstanceId"]
    del action["LifecycleActionToken"]
    c.complete_lifecycle_action(LifecycleActionResult="CONTINUE", **action)
    (state,) = c.describe_auto_scaling_instances(InstanceIds=[told["EC2InstanceId"]])["AutoScalingInstances"]
    same(state["LifecycleState"], "InService")


def ec2():
    c = client("ec2")
    ids = instances()
    found = [i for r in c.describe_instances(InstanceIds=ids)["Reservations"] for i in r["Instances"]]
    same(sorted(i["InstanceId"] for i in found), sorted(ids))
    for i in found:
        same((i["State"]["Name"], bool(i["PrivateIpAddress"])), ("running", True))
        same({t["Key"]: t["Value"] for t in i["Tags"]}["aws:autoscaling:groupName"], "web-asg")
    named = c.describe_instances(Filters=[{"Name": "tag:aws:autoscaling:groupName", "Values": ["web-asg"]}])
    same(sum(len(r["Instances"]) for r in named["Reservations"]), len(ids))
    refused("InvalidInstanceID.NotFound", c.describe_instances, InstanceIds=["i-0123456789abcdeff"])
    refused("InvalidInstanceID.Malformed", c.describe_instances, InstanceIds=["web-1"])


def elb():
    c, one = client("elb"), instances()[0]
    (lb,) = c.describe_load_balancers(LoadBalancerNames=["classic"])["LoadBalancerDescriptions"]
    same(sorted(i["InstanceId"] for i in lb["Instances"]), sorted(instances()))
    left = c.deregister_instances_from_load_balancer(LoadBalancerName="classic", Instances=[{"InstanceId": one}])["Instances"]
    same(one in [i["InstanceId"] for i in left], False)
    (state,) = c.describe_instance_health(LoadBalancerName="classic", Instances=[{"InstanceId": one}])["InstanceStates"]
    same(state["InstanceId"], one)
    c.register_instances_with_load_balancer(LoadBalancerName="classic", Instances=[{"InstanceId": one}])
    refused("LoadBalancerNotFound", c.describe_instance_health, LoadBalancerName="none")


def elbv2():
    c, one = client("elbv2"), instances()[0]
    (group,) = c.describe_target_groups(Names=["sgp"])["TargetGroups"]
    arn = group["TargetGroupArn"]
    attributes = {a["Key"]: a["Value"] for a in c.describe_target_group_attributes(TargetGroupArn=arn)["Attributes"]}
    same(attributes["deregistration_delay.timeout_seconds"], "300")
    health = c.describe_target_health(TargetGroupArn=arn)["TargetHealthDescriptions"]
    same(sorted(h["Target"]["Id"] for h in health), sorted(instances()))
    c.deregister_targets(TargetGroupArn=arn, Targets=[{"Id": one, "Port": 8080}])
    (state,) = c.describe_target_health(TargetGroupArn=arn, Targets=[{"Id": one, "Port": 8080}])["TargetHealthDescriptions"]
    same((state["TargetHealth"]["State"], state["TargetHealth"]["Reason"]), ("draining", "Target.DeregistrationInProgress"))
    c.register_targets(TargetGroupArn=arn, Targets=[{"Id": one, "Port": 8080}])
    refused("TargetGroupNotFound", c.describe_target_health, TargetGroupArn=arn[:-1] + "0")


def ssm():
    c, one = client("ssm"), instances()[0]
    sent = c.send_command(InstanceIds=[one], DocumentName="AWS-RunShellScript", Parameters={"commands": ["echo drained"]})["Command"]
    names = {"CommandId": sent["CommandId"], "InstanceId": one}
    while True:
        try:
            done = c.get_command_invocation(**names)
        except c.exceptions.InvocationDoesNotExist:
            continue
        if done["Status"] not in ("Pending", "InProgress", "Delayed"):
            break
    same((done["Status"], done["ResponseCode"], done["StandardOutputContent"]), ("Success", 0, "ran: echo drained\n"))
    refused("InvalidInstanceId", c.send_command, InstanceIds=["i-0123456789abcdeff"], DocumentName="AWS-RunShellScript", Parameters={"commands": ["true"]})
    refused("InvocationDoesNotExist", c.get_command_invocation, CommandId="7d1b0a52-3c6f-4e18-9b7a-5f2e8c4d1a06", InstanceId=one)


PARTS = {f.__name__: f for f in (sqs, sts, autoscaling, ec2, elb, elbv2, ssm)}
PARTS[PART]()
print(PART)
