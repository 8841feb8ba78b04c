"""Strategies by name, their options, and that what they remember survives a restart to the last bit."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg

from coordinator.rounds.plan import JobSpec
from coordinator.rounds.strategies import NAMES, build, load_state, restore_dtypes, save_state, secure_config
from shared.client_apps import BUILT_IN, read_settings
from shared.errors import ConfigError, Unsupported
from shared.flower import assume_identity, new_message, reply_with, to_numpy
from shared.secagg.graph import Rates
from shared.secagg.private import Mechanism, Privacy
from simulations.local_grid import Node
from tests.protocol.secagg.appgrid import AppGrid

NEEDED = {  # options, and groups
    "fedmedian": ("", 3),
    "fedtrimmedavg": ("beta = 0.25", 4),
    "krum": ("num_malicious_nodes = 1", 5),
    "multikrum": ("num_malicious_nodes = 1, num_nodes_to_select = 2", 7),
    "bulyan": ("num_malicious_nodes = 1", 7),
    "fedavg": ("", 1),
}
MEMORY = {"fedavgm": "server_momentum = 0.9", "fedadam": "eta = 0.2", "fedyogi": "eta = 0.2", "fedadagrad": "eta = 0.2"}


def spec(name: str, options: str = "", *, secure: bool = False, more: str = "") -> JobSpec:
    return JobSpec.parse(
        f'name = "x"\nclient_app = "echo"\nrounds = 1\n[start]\narrays_file = "x"\n[selection]\nmin_devices = 3\n'
        f'[secure]\nenabled = {str(secure).lower()}\n[strategy]\nname = "{name}"\noptions = {{ {options} }}\n{more}'
    )


def arrays(seed: int) -> ArrayRecord:
    rng = np.random.default_rng(seed)
    return ArrayRecord(
        {
            "layer.weight": Array(rng.standard_normal((3, 4)).astype(np.float32)),
            "layer.steps": Array(np.asarray(int(rng.integers(100)), dtype=np.int64)),
            "layer.half": Array(rng.standard_normal(5).astype(np.float16)),
        }
    )


def one_round(strategy: FedAvg, number: int, current: ArrayRecord, kept: bytes) -> tuple[ArrayRecord, bytes]:
    """As the job loop does it."""
    load_state(strategy, kept, current)
    if not isinstance(strategy, flower.FedAvgM):
        strategy.current_arrays = {key: array.numpy() for key, array in current.items()}  # type: ignore[attr-defined]
    replies = [_reply(node, arrays(100 * number + node)) for node in (1, 2, 3)]
    merged, _ = strategy.aggregate_train(number, replies)
    assert merged is not None
    return restore_dtypes(merged, current), save_state(strategy)


def _reply(node: int, update: ArrayRecord) -> Message:
    request = new_message(RecordDict(), run_id=1, node_id=node, message_type="train")
    return reply_with(request, RecordDict({"arrays": update, "metrics": MetricRecord({"num-examples": node})}))


def test_every_name_builds_its_flower_class() -> None:
    for name in NAMES:
        assert type(build(spec(name))).__name__.lower() == name


@pytest.mark.parametrize("name", NAMES)
def test_what_a_strategy_tells_the_app_is_a_setting_that_every_built_in_app_has_and_no_job_gives(name: str) -> None:
    assume_identity(run_id=1)
    grid = AppGrid({node: Node(ClientApp(), Context(1, node, {}, RecordDict(), {})) for node in (1, 2, 3)})
    (message, *_) = build(spec(name)).configure_train(1, arrays(1), ConfigRecord(), grid)
    told = dict(message.content.config_records["config"])
    for app in BUILT_IN.values():
        assert read_settings(app.config, told, where="config")
    for key in told:
        with pytest.raises(ConfigError, match=f"job.train.{key}: the (coordinator|strategy) sets it"):
            spec(name, more=f"[train]\n{key} = 1\n")


@pytest.mark.parametrize("name", NEEDED)
def test_a_job_whose_fewest_devices_make_too_few_groups_for_its_strategy_is_refused(name: str) -> None:
    options, needed = NEEDED[name]
    text = f"groups = {needed + 1}\nmin_group = 5"
    enough = grouped(name, options, text, 5 * needed)
    assert type(build(enough)).__name__.lower() == name
    config = secure_config(enough)
    assert (config.groups, config.least_groups, config.min_group) == (needed + 1, needed, 5)
    assert config.fewest(5 * needed) == 4 * needed
    with pytest.raises(ConfigError, match=rf"selection.min_devices.*set it to {5 * needed} or more"):
        build(grouped(name, options, text, 5 * needed - 1))


@pytest.mark.parametrize("name", [name for name, (_, needed) in NEEDED.items() if needed > 1])
def test_a_job_with_too_few_groups_for_its_strategy_is_told_how_many_it_takes(name: str) -> None:
    options, needed = NEEDED[name]
    for groups in (1, needed - 1):
        with pytest.raises(Unsupported, match=rf"set \[secure\] groups to {needed} or more"):
            build(grouped(name, options, f"groups = {groups}", 100))


def grouped(name: str, options: str, secure: str, devices: int) -> JobSpec:
    return JobSpec.parse(
        f'name = "x"\nclient_app = "echo"\nrounds = 1\n[start]\narrays_file = "x"\n[selection]\nmin_devices = {devices}\n'
        f'[secure]\n{secure}\n[strategy]\nname = "{name}"\noptions = {{ {options} }}\n'
    )


@pytest.mark.parametrize("name", MEMORY)
def test_six_rounds_are_three_rounds_a_restart_and_three_more(name: str) -> None:
    straight, restarted = build(spec(name, MEMORY[name])), build(spec(name, MEMORY[name]))
    states = [(arrays(0), b""), (arrays(0), b"")]
    for number in range(1, 7):
        if number == 4:
            restarted = build(spec(name, MEMORY[name]))
        states = [one_round(one, number, *state) for one, state in zip((straight, restarted), states, strict=True)]

    (one, kept), (other, kept_too) = states
    assert kept == kept_too != b""
    for key, array in one.items():
        assert (to_numpy(array) == to_numpy(other[key])).all()
        assert to_numpy(array).shape == to_numpy(arrays(0)[key]).shape


@pytest.mark.parametrize("name", MEMORY)
def test_what_a_failed_round_taught_a_strategy_is_forgotten(name: str) -> None:
    strategy = build(spec(name, MEMORY[name]))
    current, kept = one_round(strategy, 1, arrays(0), b"")
    expected, _ = one_round(build(spec(name, MEMORY[name])), 2, current, kept)

    one_round(strategy, 7, current, kept)  # it fails after aggregation: nothing of it is kept
    found, _ = one_round(strategy, 2, current, kept)

    assert all((to_numpy(found[key]) == to_numpy(expected[key])).all() for key in expected)


def test_memory_of_nothing_is_nothing() -> None:
    assert save_state(build(spec("fedavg"))) == b""
    strategy: Any = build(spec("fedadam"))
    one_round(strategy, 1, arrays(0), b"")
    load_state(strategy, b"", arrays(0))
    assert strategy.m_t is None
    assert strategy.v_t is None


def test_aggregates_come_back_in_the_models_dtypes_and_order() -> None:
    model = arrays(0)
    drifted = ArrayRecord(
        {key: Array(np.asarray(model[key].numpy() + np.float64(0.4))) for key in reversed(list(model))}
    )
    drifted["layer.steps"] = Array(np.asarray(6.6))

    back = restore_dtypes(drifted, model)

    assert list(back) == list(model)
    assert [array.dtype for array in back.values()] == ["float32", "int64", "float16"]
    assert to_numpy(back["layer.steps"]) == 7


BAD_OPTIONS: dict[str, tuple[str, str]] = {
    "unknown": ("fedavg", "speed = 1"),
    "one that jobs set themselves": ("fedavg", "fraction_train = 0.1"),
    "another that jobs set themselves": ("fedadam", 'weighted_by_key = "x"'),
    "text for a number": ("fedadam", 'eta = "fast"'),
    "a yes for a number": ("krum", "num_malicious_nodes = true"),
    "half a node": ("krum", "num_malicious_nodes = 0.5"),
    "NaN": ("fedadam", "eta = nan"),
}


@pytest.mark.parametrize(("name", "options"), BAD_OPTIONS.values(), ids=BAD_OPTIONS)
def test_a_bad_option_is_refused_with_its_key(name: str, options: str) -> None:
    with pytest.raises(ConfigError, match=r"job\.strategy\.options\."):
        build(spec(name, options))


def test_an_unknown_strategy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="fedavg, fedprox"):
        build(spec("fedsgd"))


def test_a_strategy_that_needs_single_updates_is_refused_with_secure_aggregation() -> None:
    with pytest.raises(Unsupported, match="Krum cannot run"):
        build(spec("krum", secure=True))
    assert isinstance(build(spec("fedyogi", secure=True)), flower.FedYogi)


def test_a_jobs_secure_section_is_the_grids_configuration() -> None:
    made = secure_config(JobSpec.parse(SECURE_JOB))
    assert (made.rates, made.bits, made.feedback, made.clip_range) == (Rates(0.3, 0.1), 6, False, 2.5)
    assert (made.min_clients, made.max_weight, made.train_metrics) == (3, 5000, {"loss": (0.0, 9.0)})
    assert made.evaluate_metrics == {"accuracy": (0.0, 1.0)}


SECURE_JOB = """
name = "x"
client_app = "mine"
rounds = 3
start = { arrays_file = "/x" }
selection = { min_devices = 10 }
[secure]
dropout = 0.3
corrupt = 0.1
bits = 6
error_feedback = false
clip_range = 2.5
max_weight = 5000
metrics = { loss = 9.0 }
[evaluate]
every = 2
metrics = { accuracy = 1.0 }
"""
KEYS = {(3, 2, 8): 6, (3, 0, 8): 3, (100, 0, 8): 8, (100, 1, 12): 12, (1, 0, 8): 1}


@pytest.mark.parametrize(("rounds", "every", "key_rounds"), KEYS)
def test_no_more_keys_are_made_than_a_job_has_exchanges(rounds: int, every: int, key_rounds: int) -> None:
    """Each of its rounds trains, and measures too if the job measures at all."""
    job = JobSpec.parse(
        f'name = "x"\nclient_app = "mine"\nrounds = {rounds}\nstart = {{ arrays_file = "/x" }}\n'
        f"selection = {{ min_devices = 3 }}\nsecure = {{ key_rounds = {key_rounds} }}\nevaluate = {{ every = {every} }}\n"
    )
    assert secure_config(job).group_rounds == KEYS[rounds, every, key_rounds]


def test_what_a_job_says_of_privacy_reaches_the_exchange_and_turns_off_what_would_break_it() -> None:
    config = secure_config(spec("fedavg", secure=True, more='[privacy]\nmechanism = "central"\nclip_norm = 3.0\n'))
    assert config.privacy == Privacy(Mechanism.CENTRAL, 8.0, 1e-6, 3.0, 3, 0.1)
    assert (config.feedback, config.train_metrics, config.evaluate_metrics) == (False, {}, {})
    assert secure_config(spec("fedavg", secure=True)).privacy is None
