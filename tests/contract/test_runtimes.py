"""One suite for every runtime adapter, on models made into whatever that adapter loads."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edge_agent.runtimes import Artifact, Runtime, Session, TensorSpec, available, file_name, find, measure, skipped
from edge_agent.runtimes.catalog import Known
from edge_agent.runtimes.port import Array
from shared.errors import Malformed, NotFound, Unsupported
from tests.contract.runtime_artifacts import BAD, MODELS, Models
from tests.unit.inference.onnx_models import ones

RUNTIMES = available()


@pytest.fixture(params=RUNTIMES, ids=str)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return RUNTIMES[request.param]


@pytest.fixture
def models(runtime: Runtime) -> Models:
    return MODELS[runtime.artifact]


@pytest.fixture
def session(runtime: Runtime, models: Models, tmp_path: Path) -> Iterator[Session]:
    session = _loaded(runtime, tmp_path, models.scaling(3.0))
    yield session
    session.close()


def _loaded(runtime: Runtime, folder: Path, data: bytes) -> Session:
    path = folder / file_name(runtime.artifact)
    path.write_bytes(data)
    return runtime.load(path, threads=1)


def test_every_known_runtime_is_either_usable_or_skipped_with_a_reason() -> None:
    assert {"onnxruntime", "openvino"} == RUNTIMES.keys() | skipped().keys()
    assert not RUNTIMES.keys() & skipped().keys()
    assert all(RUNTIMES[name].name == name for name in RUNTIMES)
    assert all(skipped().values())


class Absent:
    """An adapter that says itself why it cannot be used."""

    artifact: Artifact = "pte"
    version = ""

    def __init__(self, name: str, obstacle: str) -> None:
        self.name, self._obstacle = name, obstacle

    def obstacle(self) -> str:
        return self._obstacle

    def load(self, path: Path, *, threads: int) -> Session:
        raise AssertionError("it was told that this runtime is of no use")


def test_a_runtime_is_skipped_for_its_missing_package_or_for_the_reason_that_it_gives_itself() -> None:
    known = (
        Known(Absent("here", ""), "json"),
        Known(Absent("elsewhere", "never asked"), "no_such_package"),
        Known(Absent("fast", "this processor has no AMX"), "json"),
    )
    assert available(known).keys() == {"here"}
    assert skipped(known) == {
        "elsewhere": "the package no_such_package is not installed",
        "fast": "this processor has no AMX",
    }
    assert find("here", known) is known[0].runtime
    with pytest.raises(Unsupported, match=r"'fast' is not usable here \(this processor has no AMX\); there is here"):
        find("fast", known)
    with pytest.raises(Unsupported, match=r"'abacus' is not usable here \(unknown\); there is here"):
        find("abacus", known)
    with pytest.raises(Unsupported, match="there is none"):
        find("fast", known[1:])


@pytest.mark.usefixtures("session")  # the adapter has imported its package, in its own careful way
def test_it_tells_the_version_of_its_package_without_importing_it(runtime: Runtime) -> None:
    code = (
        "import sys; from edge_agent.runtimes import find; one = find(sys.argv[1]); print(one.version);"
        "sys.exit(not one.version or sys.argv[1] in sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", code, runtime.name], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == runtime.version
    assert sys.modules[runtime.name].__version__.startswith(runtime.version)


def test_it_answers_what_the_graph_says(session: Session) -> None:
    assert session.run({"x": ones(2)})["logits"].tolist() == [[3.0] * 4] * 2


def test_it_tells_its_inputs_and_outputs(session: Session) -> None:
    assert session.inputs == (TensorSpec("x", (-1, 4), "float32"),)
    assert session.outputs == (TensorSpec("logits", (-1, 4), "float32"),)


def test_a_fixed_batch_size_is_told_as_it_is(runtime: Runtime, models: Models, tmp_path: Path) -> None:
    session = _loaded(runtime, tmp_path, models.scaling(1.0, rows=2))
    assert session.inputs[0].shape == (2, 4)
    with pytest.raises(Malformed, match="shape"):
        session.run({"x": ones(3)})


def test_several_inputs_of_several_types(runtime: Runtime, models: Models, tmp_path: Path) -> None:
    session = _loaded(runtime, tmp_path, models.two_inputs())
    answer = session.run({"a": np.full((2, 3), 0.5, np.float32), "b": np.full((2, 3), 2, np.int64)})
    assert answer["sum"].tolist() == [[2.5] * 3] * 2
    assert {spec.name: spec.dtype for spec in session.inputs} == {"a": "float32", "b": "int64"}


def test_an_answer_is_the_callers_to_keep(session: Session) -> None:
    first = session.run({"x": ones()})["logits"]
    session.run({"x": ones() * 5})
    assert first.tolist() == [[3.0] * 4]


def test_answers_are_written_where_the_caller_says(session: Session) -> None:
    whole = np.zeros((8, 4), np.float32)
    session.run({"x": ones(3)}, {"logits": whole[:3]})
    assert whole[:3].tolist() == [[3.0] * 4] * 3
    assert not whole[3:].any()


def test_a_buffer_of_the_wrong_size_is_refused_and_left_alone(session: Session) -> None:
    small = np.zeros((1, 4), np.float32)
    with pytest.raises(Malformed):
        session.run({"x": ones(3)}, {"logits": small})
    assert not small.any()


def test_read_only_and_strided_inputs_are_taken(session: Session) -> None:
    frozen = np.frombuffer(ones(2).tobytes(), np.float32).reshape(2, 4)
    strided = np.ones((2, 8), np.float32)[:, ::2]
    assert session.run({"x": frozen})["logits"].tolist() == [[3.0] * 4] * 2
    assert session.run({"x": strided})["logits"].tolist() == [[3.0] * 4] * 2


def _frozen(value: int) -> Array:
    return np.frombuffer((ones() * value).tobytes(), np.float32).reshape(1, 4)


def _strided(value: int) -> Array:
    return np.full((1, 8), value, np.float32)[:, ::2]


@pytest.mark.parametrize("make", [_frozen, _strided])
@pytest.mark.parametrize("pooled", [False, True])
def test_inputs_that_had_to_be_copied_stay_alive_until_the_answer(
    session: Session, make: Callable[[int], Array], pooled: bool
) -> None:
    """A runtime that borrows a copy which is freed too early answers from whatever was written there next."""
    ended = threading.Event()

    def reuse_freed_memory() -> None:
        while not ended.is_set():
            [np.zeros(4, np.float32) for _ in range(50)]

    with ThreadPoolExecutor(1) as pool:
        pool.submit(reuse_freed_memory)
        out = {"logits": np.empty((1, 4), np.float32)} if pooled else None
        wrong = [n for n in range(1000) if (session.run({"x": make(n)}, out)["logits"] != 3 * n).any()]
        ended.set()
    assert wrong == []


WRONG_INPUTS: dict[str, dict[str, Array]] = {
    "another name": {"image": ones()},
    "one too many": {"x": ones(), "y": ones()},
    "none": {},
    "another type": {"x": ones().astype(np.float64)},
    "another width": {"x": ones(1, 5)},
    "another rank": {"x": ones()[0]},
    "no rows": {"x": ones(0)},
}


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_inputs_that_do_not_fit_are_refused_and_the_next_ones_answered(session: Session, case: str) -> None:
    with pytest.raises(Malformed):
        session.run(WRONG_INPUTS[case])
    assert session.run({"x": ones()})["logits"].tolist() == [[3.0] * 4]


BAD_FILES = [(name, case) for name, one in RUNTIMES.items() for case in (*BAD, *MODELS[one.artifact].bad)]


@pytest.mark.parametrize(("name", "case"), BAD_FILES)
def test_a_file_that_is_no_model_is_malformed(tmp_path: Path, name: str, case: str) -> None:
    models = MODELS[RUNTIMES[name].artifact]
    data = BAD[case](models) if case in BAD else models.bad[case]()
    with pytest.raises(Malformed):
        _loaded(RUNTIMES[name], tmp_path, data)


def test_a_missing_file_is_not_found(runtime: Runtime, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        runtime.load(tmp_path / file_name(runtime.artifact), threads=1)


def test_several_threads_may_ask_at_once(runtime: Runtime, models: Models, tmp_path: Path) -> None:
    session = _loaded(runtime, tmp_path, models.slow(4, size=64))

    def ask(value: int) -> bool:
        return bool((session.run({"x": ones() * value})["logits"] == value).all())

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(200)))


def test_a_closed_session_refuses_and_may_be_closed_again(session: Session) -> None:
    session.close()
    session.close()
    with pytest.raises(Malformed, match="closed"):
        session.run({"x": ones()})


def test_measuring_gives_ordered_positive_times(session: Session) -> None:
    latency = measure(session, {"x": ones()}, 20)
    assert 0 < latency.p50_ms <= latency.p99_ms
    with pytest.raises(ValueError, match="at least one"):
        measure(session, {"x": ones()}, 0)
