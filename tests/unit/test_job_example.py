"""`coordinator job example`: a file that is accepted as it is, and that keeps up with what a job can say."""

import dataclasses
import re
import tomllib
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
from click.testing import CliRunner

from coordinator.cli.root import cli
from coordinator.rounds import plan, strategies
from coordinator.rounds.plan import JobSpec
from shared.client_apps import BUILT_IN, app_names
from shared.errors import InputError

_OFF = re.compile(
    r"^#(?=[a-z_]+ = |\[)", re.MULTILINE
)  # a setting that is commented out; prose has a blank after the #


def example(*options: str) -> str:
    shown = CliRunner().invoke(cli, ["job", "example", *options], catch_exceptions=False)
    assert shown.exit_code == 0
    return shown.output


def uncommented(text: str, section: str) -> dict[str, object]:
    """The settings under `[section]`, commented out or not."""
    found = tomllib.loads(_OFF.sub("", text)).get(section, {})
    table: dict[str, object] = found[0] if isinstance(found, list) else found
    return table


@pytest.mark.parametrize("model", ["digits", "signs"])
def test_the_example_is_a_job_about_the_model(model: str) -> None:
    spec = JobSpec.parse(example("--model", model))
    assert (spec.name, spec.model) == (model, model)
    assert spec.secure.enabled
    assert spec.publish.enabled
    strategies.build(spec)


def test_what_is_commented_out_is_what_holds_anyway() -> None:
    text = example()
    shown = JobSpec.parse(_OFF.sub("", text))
    assert shown.prune, "a table that is commented out is an example, not a default"
    app = BUILT_IN[shown.client_app].config
    assert app(**shown.train) == app()
    assert replace(shown, prune=(), train={}) == JobSpec.parse(text)


def test_every_setting_that_a_job_has_is_in_the_example() -> None:
    text = example()
    tables = _tables()
    assert {"start", "selection", "secure", "prune"} < set(tables)
    for name, kind in tables.items():
        assert set(uncommented(text, name)) == {field.name for field in dataclasses.fields(kind)}, name
    app = BUILT_IN["image-classifier"].config
    assert set(uncommented(text, "train")) == {field.name for field in dataclasses.fields(app)} - {"server_round"}


def test_every_strategy_and_every_app_is_named_in_the_example() -> None:
    text = example()
    assert [name for name in (*strategies.NAMES, *BUILT_IN) if name not in text] == []
    assert set(BUILT_IN) <= set(app_names())


def test_a_name_that_no_model_can_have_is_refused() -> None:
    outcome = CliRunner().invoke(cli, ["job", "example", "--model", 'x"\nrounds = 9'])
    assert isinstance(outcome.exception, InputError)


def _tables() -> dict[str, type]:
    """The job's tables by name: what is a dataclass, or a tuple of one."""
    hints = get_type_hints(JobSpec, vars(plan))
    kinds = {name: next(iter(get_args(hint)), hint) for name, hint in hints.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, type) and dataclasses.is_dataclass(kind)}
