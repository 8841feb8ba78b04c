"""What is sent is what arrives, and what the schema allows but the protocol does not is refused."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.fleet.v1 import metrics_pb2, session_pb2
from shared import session as s
from shared import wire
from shared.errors import Malformed
from shared.ids import CommandId, JobId, RolloutId, TaskId, digest_of

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
CLEAN = TEXT.filter(str.isprintable)
NAME = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,8}", fullmatch=True)
DIGEST = st.binary(max_size=4).map(digest_of)
PART = st.one_of(st.builds(s.Part, inline=st.binary(min_size=1, max_size=8)), st.builds(s.Part, digest=DIGEST))
PARTS = st.lists(PART, max_size=3).map(tuple)
SERVING = st.lists(st.builds(s.Serving, NAME, st.integers(0, 9), DIGEST, st.booleans()), max_size=2).map(tuple)
TASK_ID = CLEAN.map(TaskId)
BYTES = st.binary(max_size=9)
BYTES_BY_NAME = st.dictionaries(TEXT, st.binary(max_size=8), max_size=2)
SECONDS = st.floats(0, 1e6)
GATE = st.builds(s.Gate, st.floats(0, 1), st.floats(0.1, 5), st.floats(0, 1), st.integers(1, 99), st.booleans())
COUNT = st.integers(0, 2**32 - 1)

EVENTS = st.one_of(
    st.builds(s.Hello, CLEAN, TEXT, st.dictionaries(TEXT, TEXT, max_size=2), SERVING, st.lists(TASK_ID).map(tuple)),
    st.builds(s.Heartbeat, SERVING),
    st.builds(s.TaskResult, TASK_ID, PARTS, st.integers(-5, 900), CLEAN),
    st.builds(s.InstallReport, CLEAN.map(CommandId), CLEAN.map(RolloutId), BYTES, BYTES, BYTES),
)
ORDERS = st.one_of(
    st.builds(s.Welcome, SECONDS),
    st.builds(
        s.RunTask,
        task_id=TASK_ID,
        job_id=TEXT.map(JobId),
        run_id=st.integers(0, 2**63),
        node_id=st.integers(0, 2**63),
        round=COUNT,
        message_id=TEXT,
        message_type=TEXT,
        client_app=NAME,
        timeout_s=SECONDS,
        secure=st.booleans(),
        parts=PARTS,
    ),
    st.builds(s.CancelTask, TASK_ID),
    st.builds(s.Install, TEXT.map(RolloutId), NAME, st.integers(0, 99), BYTES_BY_NAME, GATE),
    st.builds(s.Withdraw, TEXT.map(RolloutId), NAME, st.integers(0, 99), BYTES_BY_NAME),
    st.builds(s.Acknowledged, TEXT),
    st.builds(s.Renew),
)
HISTOGRAM = st.lists(st.floats(-9, 9), max_size=3).map(
    lambda bounds: s.Histogram(tuple(sorted(bounds)), tuple(range(len(bounds) + 1)), 1.5)
)
SAMPLE = st.builds(
    s.Sample, NAME, st.one_of(st.floats(allow_nan=False), HISTOGRAM), st.dictionaries(CLEAN, CLEAN, max_size=2)
)


@settings(deadline=None)
@given(CLEAN, EVENTS)
def test_an_event_arrives_as_it_was_sent(event_id: str, event: s.Event) -> None:
    sent = s.AgentEvent(event_id, event)
    data = wire.event_to_proto(sent).SerializeToString()
    assert wire.event_from_proto(session_pb2.AgentEvent.FromString(data)) == sent


@settings(deadline=None)
@given(TEXT, ORDERS)
def test_a_command_arrives_as_it_was_sent(command_id: str, order: s.Order) -> None:
    sent = s.Command(CommandId(command_id), order)
    data = wire.command_to_proto(sent).SerializeToString()
    assert wire.command_from_proto(session_pb2.Command.FromString(data)) == sent


@settings(deadline=None)
@given(st.integers(1, 2**63 - 1), SECONDS, st.lists(SAMPLE, max_size=3).map(tuple), st.just("") | NAME)
def test_a_batch_arrives_as_it_was_sent(sequence: int, at: float, samples: tuple[s.Sample, ...], spool: str) -> None:
    sent = s.MetricBatch(sequence, at, samples, spool)
    data = wire.batch_to_proto(sent).SerializeToString()
    assert wire.batch_from_proto(metrics_pb2.Batch.FromString(data)) == sent


@given(SAMPLE)
def test_a_sample_comes_back_from_json(sample: s.Sample) -> None:
    assert s.Sample.from_plain(json.loads(json.dumps(sample.to_plain(), allow_nan=False))) == sample


def test_escape_sequences_in_what_a_device_writes_do_not_get_past_the_wire() -> None:
    owned = "\x1b]0;owned\x07\x00" + "x" * 10_000
    result = session_pb2.TaskResult(task_id="tsk-1", error_code=1, error_reason=owned)
    event = wire.event_from_proto(session_pb2.AgentEvent(task_result=result)).event
    assert isinstance(event, s.TaskResult)
    assert event.error_reason.startswith("\ufffd]0;owned\ufffd\ufffdxx")
    assert len(event.error_reason) == 500
    batch = metrics_pb2.Batch(sequence=1, samples=[metrics_pb2.Sample(name="x", number=1.0, labels={"\x1b": owned})])
    (sample,) = wire.batch_from_proto(batch).samples
    assert all(text.isprintable() and len(text) <= 128 for pair in sample.labels.items() for text in pair)


def test_a_loss_that_is_not_a_number_arrives() -> None:
    batch = s.MetricBatch(1, 0.0, (s.Sample("loss", math.nan),))
    (sample,) = wire.batch_from_proto(wire.batch_to_proto(batch)).samples
    assert isinstance(sample.value, float)
    assert math.isnan(sample.value)


BAD_SERVING = {
    "a model that is a path": session_pb2.Serving(model="../x", bundle_digest="0" * 64),
    "a digest that is none": session_pb2.Serving(model="digits", bundle_digest="0"),
    "a release that no release has": session_pb2.Serving(model="digits", bundle_digest="0" * 64, release=2**32),
}


@pytest.mark.parametrize(
    "event",
    {
        "nothing": session_pb2.AgentEvent(),
        "an id too long to send back": session_pb2.AgentEvent(event_id="x" * 129, heartbeat=session_pb2.Heartbeat()),
        "an id that a database refuses": session_pb2.AgentEvent(
            install_report=session_pb2.InstallReport(rollout_id="rol-\0")
        ),
        "an id that a terminal obeys": session_pb2.AgentEvent(task_result=session_pb2.TaskResult(task_id="\x1b[2J")),
        "an empty part": session_pb2.AgentEvent(task_result=session_pb2.TaskResult(parts=[session_pb2.Part()])),
        "a part by no digest": session_pb2.AgentEvent(
            task_result=session_pb2.TaskResult(parts=[session_pb2.Part(digest="../../etc/passwd")])
        ),
        "an inline part of nothing": session_pb2.AgentEvent(
            task_result=session_pb2.TaskResult(parts=[session_pb2.Part(inline=b"")])
        ),
        **{
            name: session_pb2.AgentEvent(heartbeat=session_pb2.Heartbeat(serving=[item]))
            for name, item in BAD_SERVING.items()
        },
    }.values(),
)
def test_a_malformed_event_is_refused(event: session_pb2.AgentEvent) -> None:
    with pytest.raises(Malformed):
        wire.event_from_proto(event)


@pytest.mark.parametrize(
    "command",
    {
        "nothing": session_pb2.Command(),
        "an app that is a path": session_pb2.Command(run_task=session_pb2.RunTask(client_app="../app")),
        "a gate that lets everything pass": session_pb2.Command(
            install=session_pb2.Install(model="digits", gate=session_pb2.Gate(accuracy_budget=7.0))
        ),
        "a gate without answers": session_pb2.Command(
            install=session_pb2.Install(model="digits", gate=session_pb2.Gate(max_logit_difference=1.0))
        ),
        "a model that is a path": session_pb2.Command(withdraw=session_pb2.Withdraw(model="a/b")),
    }.values(),
)
def test_a_malformed_command_is_refused(command: session_pb2.Command) -> None:
    with pytest.raises(Malformed):
        wire.command_from_proto(command)


def histogram(bounds: list[float], counts: list[int]) -> metrics_pb2.Batch:
    value = metrics_pb2.Histogram(bounds=bounds, counts=counts)
    return metrics_pb2.Batch(sequence=1, samples=[metrics_pb2.Sample(name="x", histogram=value)])


@pytest.mark.parametrize(
    "batch",
    {
        "number zero": metrics_pb2.Batch(),
        "a spool that is a path": metrics_pb2.Batch(sequence=1, spool="../x"),
        "a number that no database holds": metrics_pb2.Batch(sequence=2**63),
        "bounds that go down": histogram([2.0, 1.0], [1, 1, 1]),
        "a count too few": histogram([1.0, 2.0], [1, 1]),
        "a sample without a name": metrics_pb2.Batch(sequence=1, samples=[metrics_pb2.Sample(number=1.0)]),
    }.values(),
)
def test_a_malformed_batch_is_refused(batch: metrics_pb2.Batch) -> None:
    with pytest.raises(Malformed):
        wire.batch_from_proto(batch)
