"""Protobuf ↔ the values of `shared.session`. The only place where the session's generated code is read.

Every `…_from_proto` raises `Malformed` for what the schema allows but the protocol does not (an unset oneof, a bad digest).
"""

from protos.fleet.v1 import metrics_pb2, session_pb2
from shared import session as s
from shared.errors import Malformed
from shared.ids import CommandId, JobId, RolloutId, TaskId, parse_digest, parse_name
from shared.text import clean_text, is_clean

_MAX_INT32, _MAX_INT64 = (1 << 31) - 1, (1 << 63) - 1  # what SQL's integers hold
_MAX_ID = 128  # characters of an id that an agent gives: it is sent back as it is
_MAX_LABEL = 128  # characters of a label of a metric sample


def part_to_proto(part: s.Part) -> session_pb2.Part:
    return session_pb2.Part(digest=part.digest) if part.digest else session_pb2.Part(inline=part.inline)


def part_from_proto(part: session_pb2.Part) -> s.Part:
    match part.WhichOneof("content"):
        case "digest":
            return s.Part(digest=parse_digest(part.digest))
        case "inline" if part.inline:
            return s.Part(inline=part.inline)
    raise Malformed("an empty part")


def _serving_to_proto(serving: s.Serving) -> session_pb2.Serving:
    return session_pb2.Serving(
        model=serving.model,
        release=serving.release,
        bundle_digest=serving.bundle_digest,
        proven=serving.proven,
    )


def _serving_from_proto(serving: session_pb2.Serving) -> s.Serving:
    if serving.release > _MAX_INT32:
        raise Malformed("a release number that no release has")
    return s.Serving(
        model=parse_name(serving.model),
        release=serving.release,
        bundle_digest=parse_digest(serving.bundle_digest),
        proven=serving.proven,
    )


def event_to_proto(message: s.AgentEvent) -> session_pb2.AgentEvent:
    out = session_pb2.AgentEvent(event_id=message.event_id)
    match message.event:
        case s.Hello() as hello:
            out.hello.agent_version = hello.agent_version
            out.hello.profile_json = hello.profile_json
            out.hello.labels.update(hello.labels)
            out.hello.serving.extend(_serving_to_proto(item) for item in hello.serving)
            out.hello.running_tasks.extend(hello.running_tasks)
        case s.Heartbeat() as beat:
            out.heartbeat.SetInParent()
            out.heartbeat.serving.extend(_serving_to_proto(item) for item in beat.serving)
        case s.TaskResult() as result:
            out.task_result.task_id = result.task_id
            out.task_result.parts.extend(part_to_proto(part) for part in result.parts)
            out.task_result.error_code = result.error_code
            out.task_result.error_reason = result.error_reason
        case s.InstallReport() as report:
            out.install_report.command_id = report.command_id
            out.install_report.rollout_id = report.rollout_id
            out.install_report.receipt_json = report.receipt_json
            out.install_report.signature = report.signature
            out.install_report.certificate_der = report.certificate
    return out


def _id(text: str) -> str:
    """An id as an agent gives it: the database is asked for it, logs show it. Raises `Malformed`."""
    if not is_clean(text, _MAX_ID):
        raise Malformed(f"an id has at most {_MAX_ID} characters, all of them printable")
    return text


def event_from_proto(message: session_pb2.AgentEvent) -> s.AgentEvent:
    return s.AgentEvent(_id(message.event_id), _event_from_proto(message))


def _event_from_proto(message: session_pb2.AgentEvent) -> s.Event:
    match message.WhichOneof("event"):
        case "hello":
            hello = message.hello
            return s.Hello(
                agent_version=clean_text(hello.agent_version),
                profile_json=hello.profile_json,
                labels=dict(hello.labels),
                serving=tuple(_serving_from_proto(item) for item in hello.serving),
                running_tasks=tuple(TaskId(_id(item)) for item in hello.running_tasks),
            )
        case "heartbeat":
            return s.Heartbeat(tuple(_serving_from_proto(item) for item in message.heartbeat.serving))
        case "task_result":
            result = message.task_result
            return s.TaskResult(
                task_id=TaskId(_id(result.task_id)),
                parts=tuple(part_from_proto(part) for part in result.parts),
                error_code=result.error_code,
                error_reason=clean_text(result.error_reason),
            )
        case "install_report":
            report = message.install_report
            return s.InstallReport(
                command_id=CommandId(_id(report.command_id)),
                rollout_id=RolloutId(_id(report.rollout_id)),
                receipt_json=report.receipt_json,
                signature=report.signature,
                certificate=report.certificate_der,
            )
    raise Malformed("an agent event without content")


def command_to_proto(message: s.Command) -> session_pb2.Command:
    out = session_pb2.Command(command_id=message.command_id)
    match message.order:
        case s.Welcome() as welcome:
            out.welcome.heartbeat_s = welcome.heartbeat_s
        case s.RunTask() as task:
            out.run_task.CopyFrom(_run_task_to_proto(task))
        case s.CancelTask() as cancel:
            out.cancel_task.task_id = cancel.task_id
        case s.Install() as install:
            out.install.CopyFrom(_install_to_proto(install))
        case s.Withdraw() as withdraw:
            out.withdraw.rollout_id = withdraw.rollout_id
            out.withdraw.model = withdraw.model
            out.withdraw.release = withdraw.release
            out.withdraw.metadata.update(withdraw.metadata)
        case s.Acknowledged() as acknowledged:
            out.acknowledged = acknowledged.event_id
        case s.Renew():
            out.renew.SetInParent()
    return out


def _run_task_to_proto(task: s.RunTask) -> session_pb2.RunTask:
    return session_pb2.RunTask(
        task_id=task.task_id,
        job_id=task.job_id,
        run_id=task.run_id,
        node_id=task.node_id,
        round=task.round,
        message_id=task.message_id,
        message_type=task.message_type,
        client_app=task.client_app,
        timeout_s=task.timeout_s,
        secure=task.secure,
        parts=[part_to_proto(part) for part in task.parts],
    )


def _install_to_proto(install: s.Install) -> session_pb2.Install:
    gate = install.gate
    return session_pb2.Install(
        rollout_id=install.rollout_id,
        model=install.model,
        release=install.release,
        metadata=dict(install.metadata),
        gate=session_pb2.Gate(
            accuracy_budget=gate.accuracy_budget,
            max_logit_difference=gate.max_logit_difference,
            min_top1_agreement=gate.min_top1_agreement,
            min_answers=gate.min_answers,
            requantize=gate.requantize,
        ),
    )


def command_from_proto(message: session_pb2.Command) -> s.Command:
    try:
        return s.Command(CommandId(message.command_id), _order_from_proto(message))
    except ValueError as error:
        raise Malformed("a command with impossible values", detail=str(error)) from error


def _order_from_proto(message: session_pb2.Command) -> s.Order:
    match message.WhichOneof("command"):
        case "welcome":
            return s.Welcome(message.welcome.heartbeat_s)
        case "run_task":
            return _run_task_from_proto(message.run_task)
        case "cancel_task":
            return s.CancelTask(TaskId(message.cancel_task.task_id))
        case "install":
            return _install_from_proto(message.install)
        case "withdraw":
            withdraw = message.withdraw
            return s.Withdraw(
                rollout_id=RolloutId(withdraw.rollout_id),
                model=parse_name(withdraw.model),
                release=withdraw.release,
                metadata=dict(withdraw.metadata),
            )
        case "acknowledged":
            return s.Acknowledged(message.acknowledged)
        case "renew":
            return s.Renew()
    raise Malformed("a command without content")


def _run_task_from_proto(task: session_pb2.RunTask) -> s.RunTask:
    return s.RunTask(
        task_id=TaskId(task.task_id),
        job_id=JobId(task.job_id),
        run_id=task.run_id,
        node_id=task.node_id,
        round=task.round,
        message_id=task.message_id,
        message_type=task.message_type,
        client_app=parse_name(task.client_app),
        timeout_s=task.timeout_s,
        secure=task.secure,
        parts=tuple(part_from_proto(part) for part in task.parts),
    )


def _install_from_proto(install: session_pb2.Install) -> s.Install:
    gate = install.gate
    return s.Install(
        rollout_id=RolloutId(install.rollout_id),
        model=parse_name(install.model),
        release=install.release,
        metadata=dict(install.metadata),
        gate=s.Gate(
            accuracy_budget=gate.accuracy_budget,
            max_logit_difference=gate.max_logit_difference,
            min_top1_agreement=gate.min_top1_agreement,
            min_answers=gate.min_answers,
            requantize=gate.requantize,
        ),
    )


def batch_to_proto(batch: s.MetricBatch) -> metrics_pb2.Batch:
    return metrics_pb2.Batch(
        sequence=batch.sequence,
        created_at=batch.created_at,
        samples=[_sample_to_proto(sample) for sample in batch.samples],
        spool=batch.spool,
    )


def _sample_to_proto(sample: s.Sample) -> metrics_pb2.Sample:
    if isinstance(sample.value, s.Histogram):
        histogram = metrics_pb2.Histogram(bounds=sample.value.bounds, counts=sample.value.counts, sum=sample.value.sum)
        return metrics_pb2.Sample(name=sample.name, labels=dict(sample.labels), histogram=histogram)
    return metrics_pb2.Sample(name=sample.name, labels=dict(sample.labels), number=sample.value)


def batch_from_proto(batch: metrics_pb2.Batch) -> s.MetricBatch:
    if not 1 <= batch.sequence <= _MAX_INT64:
        raise Malformed("metric batches are numbered from 1 to 2^63 - 1")
    try:
        samples = tuple(_sample_from_proto(sample) for sample in batch.samples)
    except ValueError as error:
        raise Malformed("a metric sample with impossible values", detail=str(error)) from error
    return s.MetricBatch(batch.sequence, batch.created_at, samples, parse_name(batch.spool) if batch.spool else "")


def _sample_from_proto(sample: metrics_pb2.Sample) -> s.Sample:
    name = parse_name(sample.name)
    labels = {clean_text(key, _MAX_LABEL): clean_text(value, _MAX_LABEL) for key, value in sample.labels.items()}
    if sample.WhichOneof("value") == "histogram":
        histogram = sample.histogram
        return s.Sample(name, s.Histogram(tuple(histogram.bounds), tuple(histogram.counts), histogram.sum), labels)
    return s.Sample(name, sample.number, labels)
