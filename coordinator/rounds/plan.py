"""A job file: one federated training run, described by TOML and checked whole before anything starts.

What can be known from the text alone is checked here; `service` checks the rest when a job is submitted: the strategy's options,
that devices have the client app, and what is read on the coordinator's machine (`inputs`).

name = "digits-nightly"
model = "digits"
client_app = "image-classifier"
rounds = 8

[start]                 # where the weights come from: a release (0: the newest), a factory, or a file
release = 0

[strategy]
name = "fedavg"         # any of coordinator.rounds.strategies.NAMES
options = {}

[selection]
min_devices = 8
quorum = 0.75

[secure]
enabled = true

[privacy]               # differential privacy of what a round's sum says of any one device
mechanism = "distributed"
epsilon = 8.0
clip_norm = 0.5

[train]                 # the client app's settings: `shared.client_apps` has those of echo, image-classifier and softmax
epochs = 1
lr = 0.02

[[prune]]
after_round = 4
ratio = 0.3

[public]                # examples x and y, .npz or .safetensors, on the coordinator's machine
data = "public.npz"     # `coordinator job submit` means it from the job file's folder; arrays_file too

[publish]
enabled = true
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from coordinator.rounds.closing import Policy
from coordinator.rounds.grouping import bearing_one
from coordinator.rounds.secrecy import MIN_CLIENTS, PrivacyChoice, Secure, check_metrics
from shared.client_apps import BUILT_IN, BuiltIn, read_settings
from shared.errors import ConfigError, Malformed, Unsupported
from shared.ids import parse_name
from shared.secagg.graph import derive
from shared.settings import Scalar, from_mapping, parse_table
from shared.shares import share_of

MIN_DEVICES = 2  # of a round, where the job does not say and sums are no secret
_INTEGERS = range(-(1 << 63), 1 << 63)  # as TOML has them; Python reads larger ones too
_SET_BY_STRATEGY: Mapping[str, str] = {"fedprox": "proximal_mu"}  # what it adds to what the client app is told


@dataclass(frozen=True)
class Start:
    """A release of the job's model (0: the newest), unless a registered `factory` or a safetensors file is named."""

    release: int = 0
    factory: str = ""
    arguments: dict[str, Scalar] = field(default_factory=dict)  # of the factory
    arrays_file: str = ""

    def __post_init__(self) -> None:
        if self.release < 0:
            raise ValueError("release is a number from 1, or 0 for the newest")
        if sum(map(bool, (self.release, self.factory, self.arrays_file))) > 1:
            raise ValueError("start from one of release, factory and arrays_file")
        if self.arguments and not self.factory:
            raise ValueError("arguments are for a factory: name one")


@dataclass(frozen=True)
class StrategyChoice:
    name: str = "fedavg"
    options: dict[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Selection:
    """Shares are between 0 and 1. A round takes `fraction` of the cohort's connected devices, at least `min_devices`."""

    cohort: str = ""
    min_devices: int = 0  # 0: as few as the job's sums may be over, 2 or, in secret, 3: `JobSpec` puts it here
    fraction: float = 1.0
    over_provision: float = 0.0  # so much more, as a share, for those who will drop out
    quorum: float = 0.5  # of the selected devices; their updates must be counted
    wait_quantile: float = 1.0  # once so many have answered, the others get `grace_s` more
    grace_s: float = 10.0
    round_timeout_s: float = 600.0
    wait_for_devices_s: float = 600.0
    max_attempts: int = 5

    def __post_init__(self) -> None:
        for name in ("fraction", "quorum", "wait_quantile"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share between 0 and 1")
        for name in ("round_timeout_s", "wait_for_devices_s", "max_attempts"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive")
        for name in ("min_devices", "grace_s", "over_provision"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative")

    def how_many(self, present: int) -> int:
        """How many of the devices present a round takes."""
        wanted = max(self.min_devices, share_of(self.fraction, present))
        return min(present, share_of(1 + self.over_provision, wanted))

    def enough(self, selected: int) -> int:
        """How many of the selected must be counted, one at least."""
        return max(1, share_of(self.quorum, selected))


@dataclass(frozen=True)
class Evaluate:
    """After every so many rounds the devices measure the new global model on their own data. 0: never."""

    every: int = 0
    metrics: dict[str, float] = field(default_factory=dict)  # for secure jobs: name → largest value

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError("every is a number of rounds, 0 for never")
        check_metrics(self.metrics)

    def due(self, round_number: int) -> bool:
        return bool(self.every) and round_number % self.every == 0


@dataclass(frozen=True)
class Prune:
    """After round `after_round` is aggregated, `ratio` of the present channels go; later rounds train what is left."""

    after_round: int
    ratio: float

    def __post_init__(self) -> None:
        if self.after_round < 1 or not 0 < self.ratio < 1:
            raise ValueError("after_round is at least 1 and ratio is a share between 0 and 1")


@dataclass(frozen=True)
class Public:
    """A small labelled file on the coordinator's machine, for pruning, calibration and the release's report."""

    data: str = ""


@dataclass(frozen=True)
class Publish:
    enabled: bool = False
    notes: str = ""


@dataclass(frozen=True)
class JobSpec:
    name: str
    client_app: str
    rounds: int
    model: str = ""
    start: Start = field(default_factory=Start)
    strategy: StrategyChoice = field(default_factory=StrategyChoice)
    selection: Selection = field(default_factory=Selection)
    secure: Secure = field(default_factory=Secure)
    privacy: PrivacyChoice = field(default_factory=PrivacyChoice)
    train: dict[str, Scalar] = field(default_factory=dict)
    evaluate: Evaluate = field(default_factory=Evaluate)
    prune: tuple[Prune, ...] = ()
    public: Public = field(default_factory=Public)
    publish: Publish = field(default_factory=Publish)

    def __post_init__(self) -> None:
        try:
            for name in filter(None, (self.name, self.client_app, self.model)):
                parse_name(name)
        except Malformed as error:
            raise ValueError(error.message) from error
        if not 1 <= self.rounds <= 100_000:
            raise ValueError("rounds is from 1 to 100000")
        if not self.selection.min_devices:
            fewest = MIN_CLIENTS if self.secure.enabled else MIN_DEVICES
            object.__setattr__(self, "selection", replace(self.selection, min_devices=fewest))
        self._check_model()
        if self.secure.enabled and self.selection.min_devices < MIN_CLIENTS:
            raise ValueError(
                f"secure aggregation needs selection.min_devices of at least {MIN_CLIENTS}: a sum over two hides nothing"
            )
        if self.secure.enabled:
            self._check_rates()
        if not self.secure.enabled and self.secure != Secure(enabled=False):
            raise ValueError("the job turns secure aggregation off and configures it: remove one of the two")
        if self.privacy.enabled:
            self._check_privacy()
        elif self.privacy != PrivacyChoice():
            raise ValueError("privacy is configured and off: name a mechanism, or remove the table")

    def _check_privacy(self) -> None:
        if not self.secure.enabled:
            raise ValueError("privacy is for secret sums: leave secure aggregation on")
        if self.secure.metrics or self.evaluate.every:
            raise ValueError(
                "a private job tells no metrics, which would have no noise: remove secure.metrics, set evaluate.every = 0, "
                "and judge the model on public data"
            )
        if self.secure.groups > 1 or self.secure.subsample < 1:
            raise ValueError(
                "a private job sums all devices and all elements at once: remove secure.groups and secure.subsample"
            )
        if self.privacy.delta * self.selection.min_devices >= 1:
            raise ValueError("privacy.delta is the chance that the promise fails: state far less than 1 / devices")
        if self.privacy.missing < self.secure.corrupt:
            raise ValueError(
                "devices that work with the coordinator add no noise: privacy.missing is at least secure.corrupt"
            )

    def _check_rates(self) -> None:
        """Whether a round of the fewest devices, or the smallest of its groups, bears what the job says may go wrong."""
        try:
            if (secure := self.secure).groups > 1:
                derive(secure.min_group, bearing_one(secure.rates, secure.min_group))
            else:
                derive(self.selection.min_devices, secure.rates)
        except Unsupported as error:
            raise ValueError(error.message) from error

    def _check_model(self) -> None:
        if not self.model and not self.start.arrays_file:
            raise ValueError("name the model to improve, or start from arrays_file")
        if self.model and self.start.arrays_file:
            raise ValueError("arrays_file is for jobs without a model: a model starts from a release or a factory")
        if not self.model and (self.prune or self.publish.enabled):
            raise ValueError("pruning and publishing need a model")
        if any(step.after_round >= self.rounds for step in self.prune):
            raise ValueError("a pruning step needs a later round that trains what is left")
        if len({step.after_round for step in self.prune}) != len(self.prune):
            raise ValueError("one pruning step a round")
        if self.publish.enabled and not self.public.data:
            raise ValueError("publishing needs public.data to calibrate the int8 graph")

    @classmethod
    def parse(cls, text: str) -> "JobSpec":
        """A job to be submitted. Raises `ConfigError`, which names the key at fault."""
        values = parse_table(text, where="job")
        said = values.get("selection")
        if (
            isinstance(said, dict) and said.get("min_devices", 1) == 0
        ):  # what stands for "not said" is not for people to say
            raise ConfigError("min_devices must be positive", path="job.selection")
        spec = from_mapping(cls, values, where="job")
        spec._check_train()
        if (app := BUILT_IN.get(spec.client_app)) is not None:
            spec._check_app(app)
        return spec

    @classmethod
    def accepted(cls, text: str) -> "JobSpec":
        """A job that was submitted, perhaps to an older version, which checked less and had `secure.threshold`. Raises
        `ConfigError`.
        """
        values = parse_table(text, where="job")
        if isinstance(secure := values.get("secure"), dict):
            secure.pop("threshold", None)
        return from_mapping(cls, values, where="job")

    def _check_train(self) -> None:
        """What no client app can be told. Raises `ConfigError`."""
        for key, value in self.train.items():
            name, where = key.replace("-", "_"), f"job.train.{key}"
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError("the number is not finite", path=where)
            if isinstance(value, int) and value not in _INTEGERS:
                raise ConfigError("the number has more than 64 bits", path=where)
            if name == "server_round":
                raise ConfigError("the coordinator sets it: leave it out", path=where)
            if name == _SET_BY_STRATEGY.get(self.strategy.name):
                raise ConfigError(f"the strategy sets it: give strategy.options.{name}", path=where)

    def _check_app(self, app: BuiltIn) -> None:
        """Whether the job asks its client app for what it does. Raises `ConfigError`."""
        read_settings(app.config, self.train, where="job.train")
        if app.needs_model and not self.model:
            raise ConfigError(f"{self.client_app} trains a model: name it", path="job.model")
        asked = (("secure", self.secure.metrics, app.trained), ("evaluate", self.evaluate.metrics, app.evaluated))
        for table, metrics, reported in asked:
            for name in sorted(metrics.keys() - reported):
                choices = ", ".join(sorted(reported)) or "none"
                raise ConfigError(f"{self.client_app} reports {choices} then", path=f"job.{table}.metrics.{name}")

    @property
    def closing(self) -> Policy:
        """When an exchange of this job closes. A secret sum bears no more dropout than it was laid out for; of several, one may be
        lost, so they are not given up together, nor cut short.
        """
        chosen, least = self.selection, 1 - self.secure.dropout if self.secure.enabled else 0.0
        if self.secure.groups > 1:
            return Policy(chosen.round_timeout_s, chosen.quorum, max(chosen.wait_quantile, least), chosen.grace_s)
        return Policy(chosen.round_timeout_s, max(chosen.quorum, least), chosen.wait_quantile, chosen.grace_s)

    @property
    def secret_metrics(self) -> Mapping[str, float]:
        if self.privacy.enabled:
            return {}
        known = BUILT_IN.get(self.client_app)
        return self.secure.metrics or (known.bounds if known else {})

    @property
    def app_config(self) -> dict[str, Scalar]:
        """`train` as the client app gets it. What an older version let through, and the app would refuse, is left out."""
        ours = {"server_round", _SET_BY_STRATEGY.get(self.strategy.name, "")}
        app = BUILT_IN.get(self.client_app)
        known = {item.name for item in fields(app.config)} if app else None
        named = {key: key.replace("-", "_") for key in self.train}
        return {
            key: value
            for key, value in self.train.items()
            if named[key] not in ours and (known is None or named[key] in known)
        }

    def prune_after(self, round_number: int) -> Prune | None:
        return next((step for step in self.prune if step.after_round == round_number), None)
