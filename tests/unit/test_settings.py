"""TOML becomes one dataclass, strictly, and a mistake is named with its place."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.settings import Scalar, from_mapping, load_toml, parse_toml


@dataclass(frozen=True)
class Step:
    at: int
    ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.at < 1:
            raise ValueError("at counts from 1")


@dataclass(frozen=True)
class Settings:
    name: str
    secure: bool = False
    folder: Path = Path()
    step: tuple[Step, ...] = ()
    extra: dict[str, Scalar] = field(default_factory=dict)


def test_what_is_written_arrives() -> None:
    text = """
        name = "digits"
        secure = true
        folder = "/data"
        step = [{at = 1}, {at = 2, ratio = 1}]
        extra = {lr = 0.1, epochs = 2, optimizer = "sgd", nesterov = true}
    """
    settings = parse_toml(Settings, text)

    assert settings == Settings(
        "digits",
        True,
        Path("/data"),
        (Step(1), Step(2, 1.0)),
        {"lr": 0.1, "epochs": 2, "optimizer": "sgd", "nesterov": True},
    )
    assert type(settings.extra["epochs"]) is int
    assert type(settings.extra["nesterov"]) is bool


@pytest.mark.parametrize(
    ("text", "place", "complaint"),
    {
        "a key that is misspelt": (
            'name = "x"\nsecuer = true',
            "job.toml",
            "unknown key secuer (did you mean secure?)",
        ),
        "a key that is misspelt, and so missing too": ('nam = "x"', "job.toml", "unknown key nam (did you mean name?)"),
        "a misspelt key behind another mistake": (
            "name = 5\nsteps = []",
            "job.toml",
            "unknown key steps (did you mean",
        ),
        "an unknown key like no other": ('name = "x"\nzzz = 1', "job.toml", "unknown key zzz"),
        "a missing key": ("secure = true", "job.toml", "missing key name"),
        "a number for a text": ("name = 5", "name", "expected str, found int 5"),
        "a text for a bool": ('name = "x"\nsecure = "true"', "secure", "expected bool, found str"),
        "a number for a bool": ('name = "x"\nsecure = 1', "secure", "expected bool, found int"),
        "a bool for a number": ('name = "x"\nstep = [{at = true}]', "step[0].at", "expected int, found bool"),
        "a fraction for a count": ('name = "x"\nstep = [{at = 1.5}]', "step[0].at", "expected int, found float"),
        "an impossible value": ('name = "x"\nstep = [{at = 1}, {at = 0}]', "step[1]", "at counts from 1"),
        "an unknown key deep inside": ('name = "x"\nstep = [{at = 1, ration = 2}]', "step[0]", "unknown key ration"),
        "a table for a plain value": ('name = "x"\nextra = {lr = {a = 1}}', "extra", "expected a plain value"),
        "a number for a table": ('name = "x"\nstep = [5]', "step[0]", "expected a table"),
        "no TOML": ("name = ", "job.toml", "not valid TOML"),
    }.values(),
)
def test_a_mistake_is_named_with_its_place(text: str, place: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_toml(Settings, text, where="job.toml")

    assert complaint in str(refused.value)
    assert place in refused.value.path


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe4"')
    for path in (tmp_path / "missing.toml", tmp_path / "latin.toml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read") as refused:
            load_toml(Settings, path)
        assert refused.value.path == str(path)


def test_a_good_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('name = "x"', encoding="utf-8")
    assert load_toml(Settings, tmp_path / "a.toml") == Settings("x")


@pytest.mark.parametrize("values", [None, [], "name", 5])
def test_what_is_no_table_is_refused(values: object) -> None:
    with pytest.raises(ConfigError, match="expected a table"):
        from_mapping(Settings, values)
