"""Job files: what they may say, and that everything impossible is refused with the key at fault."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.rounds.plan import JobSpec, Prune, Selection
from coordinator.rounds.secrecy import Secure
from shared.errors import ConfigError
from shared.secagg.graph import Rates
from shared.secagg.policy import Policy as DevicePolicy
from shared.secagg.private import Mechanism, Privacy
from shared.secagg.terms import GroupTerms

TOP = 'name = "nightly"\nmodel = "digits"\nclient_app = "image-classifier"\nrounds = 8\n'
SECURE = TOP + "[selection]\nmin_devices = 8\n"
PRIVATE = SECURE + '[privacy]\nmechanism = "distributed"\n'
SOFTMAX = (
    'name = "x"\nclient_app = "softmax"\nrounds = 1\nstart = { arrays_file = "/x" }\nselection = { min_devices = 3 }\n'
)


def test_a_whole_file_is_read() -> None:
    spec = JobSpec.parse(
        TOP
        + """
[start]
release = 3
[strategy]
name = "fedadam"
options = { eta = 0.1 }
[selection]
cohort = "site=lab"
min_devices = 8
fraction = 0.5
over_provision = 0.25
quorum = 0.75
wait_quantile = 0.9
grace_s = 5
round_timeout_s = 60
max_attempts = 2
[secure]
dropout = 0.3
corrupt = 0.1
bits = 6
error_feedback = false
key_rounds = 4
clip_range = 2.5
max_weight = 5000
[train]
epochs = 1
lr = 0.05
qat = true
replay-size = 100
[evaluate]
every = 2
[[prune]]
after_round = 4
ratio = 0.3
[public]
data = "/data/public"
[publish]
enabled = true
notes = "nightly"
"""
    )
    assert spec.strategy.options == {"eta": 0.1}
    assert spec.train == {"epochs": 1, "lr": 0.05, "qat": True, "replay-size": 100}
    assert (spec.prune_after(4), spec.prune_after(5)) == (Prune(4, 0.3), None)
    assert [number for number in range(1, 9) if spec.evaluate.due(number)] == [2, 4, 6, 8]
    assert spec.secure.rates == Rates(0.3, 0.1)
    assert (spec.secure.bits, spec.secure.error_feedback, spec.secure.key_rounds) == (6, False, 4)
    assert (spec.closing.timeout_s, spec.closing.quantile, spec.closing.grace_s) == (60.0, 0.9, 5.0)


def test_the_defaults_are_secure_and_average() -> None:
    spec = JobSpec.parse(SECURE)
    assert spec.secure.enabled
    assert spec.strategy.name == "fedavg"
    assert not spec.publish.enabled
    assert set(spec.secret_metrics) == {"train_loss", "eval_acc_before", "eval_loss_before"}


PLAIN = TOP + "[secure]\nenabled = false\n"


@pytest.mark.parametrize(
    ("text", "fewest"),
    {
        "in secret": (TOP, 3),
        "in secret, said": (TOP + "[secure]\nenabled = true\n", 3),
        "in secret, of a cohort": (TOP + '[selection]\ncohort = "site=lab"\n', 3),
        "plain": (PLAIN, 2),
        "plain, and said": (PLAIN + "[selection]\nmin_devices = 1\n", 1),
    }.values(),
)
def test_a_job_that_does_not_say_begins_rounds_with_as_few_devices_as_its_sums_may_be_over(
    text: str, fewest: int
) -> None:
    for read in (JobSpec.parse, JobSpec.accepted):
        assert read(text).selection.min_devices == fewest
        assert read(text).selection.how_many(50) == 50


def test_a_private_job_tells_no_metric_and_pays_for_spare_rounds_too() -> None:
    spec = JobSpec.parse(PRIVATE + "epsilon = 2\nspare_rounds = 3\n")
    assert spec.secret_metrics == {}
    assert spec.privacy.terms(spec.rounds) == Privacy(Mechanism.DISTRIBUTED, 2.0, 1e-6, 1.0, 11, 0.1)
    assert JobSpec.parse(SECURE).privacy.terms(8) is None


def test_an_app_that_is_not_known_shares_no_metrics_unless_the_job_names_them() -> None:
    assert JobSpec.parse(SECURE.replace("image-classifier", "echo")).secret_metrics == {}
    named = JobSpec.parse(SECURE.replace("image-classifier", "mine") + "[secure]\nmetrics = { loss = 9.0 }\n")
    assert named.secret_metrics == {"loss": 9.0}


def test_a_secret_sum_waits_for_all_that_may_not_drop_whatever_the_quorum_is() -> None:
    assert JobSpec.parse(SECURE + "quorum = 0.1\n").closing.quorum == pytest.approx(0.75)
    assert JobSpec.parse(SECURE + "quorum = 0.1\n[secure]\ndropout = 0.4\n").closing.quorum == pytest.approx(0.6)
    assert JobSpec.parse(SECURE + "quorum = 0.9\n").closing.quorum == pytest.approx(0.9)
    assert JobSpec.parse(SECURE + "quorum = 0.1\n[secure]\nenabled = false\n").closing.quorum == pytest.approx(0.1)


GROUPS = SECURE + "quorum = 0.1\nwait_quantile = 0.2\n[secure]\ngroups = 4\n"


def test_with_groups_an_exchange_is_not_given_up_with_one_of_them_nor_cut_short() -> None:
    spec = JobSpec.parse(GROUPS)
    assert (spec.secure.groups, spec.secure.min_group) == (4, 5)
    assert spec.closing.quorum == pytest.approx(0.1)
    assert spec.closing.quantile == pytest.approx(0.75)
    assert JobSpec.parse(GROUPS.replace("0.2", "0.9")).closing.quantile == pytest.approx(0.9)


@pytest.mark.parametrize("devices", range(3, 60))
def test_what_a_job_may_lose_by_default_is_borne_by_any_number_of_devices_and_its_devices_accept_it(
    devices: int,
) -> None:
    spec = JobSpec.parse(TOP + f"[selection]\nmin_devices = {devices}\n")
    terms = GroupTerms("g", devices, spec.secure.key_rounds, spec.secure.rates)
    DevicePolicy().check(terms)
    assert terms.fewest >= max(3, 0.75 * devices)


IMPOSSIBLE: dict[str, tuple[str, str]] = {
    "not TOML": ("name = ", "job"),
    "no name": (SECURE.replace('name = "nightly"\n', ""), "missing key name"),
    "an unknown key": (SECURE + "speed = 1\n", "unknown key speed"),
    "an unknown table": (SECURE + "[magic]\n", "unknown key magic"),
    "a name that is a path": (SECURE.replace("nightly", "../nightly"), "not a valid name"),
    "rounds as text": (SECURE.replace("rounds = 8", 'rounds = "8"'), "job.rounds"),
    "rounds as a yes": (SECURE.replace("rounds = 8", "rounds = true"), "job.rounds"),
    "no rounds": (SECURE.replace("rounds = 8", "rounds = 0"), "rounds is from 1"),
    "no model and no start": (SECURE.replace('model = "digits"\n', ""), "name the model"),
    "a negative release": (SECURE + "[start]\nrelease = -1\n", "job.start"),
    "two starts": (SECURE + '[start]\nrelease = 1\nfactory = "cnn"\n', "job.start"),
    "arguments of nothing": (SECURE + "[start]\narguments = { width = 1 }\n", "job.start"),
    "a model that starts from bare arrays": (SECURE + '[start]\narrays_file = "x"\n', "without a model"),
    "a fraction above one": (SECURE + "fraction = 1.5\n", "job.selection"),
    "a fraction of nothing": (SECURE + "fraction = 0.0\n", "job.selection"),
    "a quorum that is NaN": (SECURE + "quorum = nan\n", "job.selection"),
    "a timeout that is infinite": (SECURE + "round_timeout_s = inf\n", "job.selection"),
    "a negative grace": (SECURE + "grace_s = -1.0\n", "job.selection"),
    "no attempts": (SECURE + "max_attempts = 0\n", "job.selection"),
    "a negative over-provision": (SECURE + "over_provision = -0.1\n", "job.selection"),
    "a key of an older version": (SECURE + "[secure]\nthreshold = 0.75\n", "unknown key threshold"),
    "half that may drop out": (SECURE + "[secure]\ndropout = 0.5\n", "job.secure: dropout and corrupt are shares"),
    "less than none that may drop out": (SECURE + "[secure]\ndropout = -0.1\n", "job.secure"),
    "dropout that is NaN": (SECURE + "[secure]\ndropout = nan\n", "job.secure"),
    "half that are corrupt": (SECURE + "[secure]\ncorrupt = 0.5\n", "job.secure"),
    "five bits": (SECURE + "[secure]\nbits = 5\n", "job.secure: bits is one of 4, 6, 8, 12, 16"),
    "bits as text": (SECURE + '[secure]\nbits = "8"\n', "job.secure.bits"),
    "keys for no round": (SECURE + "[secure]\nkey_rounds = 0\n", "key_rounds from 1 to 64"),
    "keys for too many rounds": (SECURE + "[secure]\nkey_rounds = 65\n", "key_rounds from 1 to 64"),
    "no group": (SECURE + "[secure]\ngroups = 0\n", "groups is from 1 to 1000"),
    "groups of two": (SECURE + "[secure]\ngroups = 2\nmin_group = 2\n", "min_group at least 3"),
    "rates that the smallest group does not bear": (
        SECURE + "[secure]\ngroups = 2\nmin_group = 4\n",
        "of 4 clients, 1 may drop out and 1 may be corrupt",
    ),
    "rates that a round of min_devices does not bear": (
        SECURE + "[secure]\ndropout = 0.4\ncorrupt = 0.4\n",
        "job: of 8 clients, 3 may drop out and 3 may be corrupt: too many",
    ),
    "rates that three devices do not bear": (
        TOP + "[selection]\nmin_devices = 3\n[secure]\ndropout = 0.34\n",
        "of 3 clients, 1 may drop out",
    ),
    "a clip range of zero": (SECURE + "[secure]\nclip_range = 0.0\n", "job.secure"),
    "a metric without a range": (SECURE + "[secure]\nmetrics = { loss = 0.0 }\n", "job.secure"),
    "a secret sum over two": (TOP + "[selection]\nmin_devices = 2\n", "selection.min_devices of at least 3"),
    "no devices at all": (TOP + "[selection]\nmin_devices = 0\n", "job.selection: min_devices must be positive"),
    "fewer devices than none": (TOP + "[selection]\nmin_devices = -1\n", "job.selection"),
    "secure off and configured": (TOP + "[secure]\nenabled = false\nclip_range = 1.0\n", "remove one of the two"),
    "a training value that is a list": (SECURE + "[train]\nlr = [0.1]\n", "job.train"),
    "a training value that is not finite": (SECURE + "[train]\nlr = nan\n", "not finite"),
    "a training value of more than 64 bits": (SECURE + f"[train]\nseed = {1 << 63}\n", "64 bits"),
    "a round number of one's own": (SECURE + "[train]\nserver-round = 7\n", "server-round"),
    "a round number with an underscore": (SECURE + "[train]\nserver_round = 7\n", "server_round"),
    "what the strategy sets": (
        SECURE + '[strategy]\nname = "fedprox"\n[train]\nproximal-mu = 0.1\n',
        "strategy.options.proximal_mu",
    ),
    "a setting that the app does not have": (
        SECURE + "[train]\nlearning_rate = 0.1\n",
        "job.train.learning_rate: unknown key; there are batch_size, epochs, local_labels, lr, ",
    ),
    "a setting that another app has": (SOFTMAX + "[train]\nqat = true\n", "job.train.qat: unknown key"),
    "a setting given twice": (
        SECURE + "[train]\nbatch_size = 8\nbatch-size = 8\n",
        "job.train.batch-size: given twice",
    ),
    "a word for a learning rate": (SECURE + '[train]\nlr = "x"\n', "job.train.lr: expected a number, found str 'x'"),
    "a negative learning rate": (SECURE + "[train]\nlr = -5\n", "job.train: lr is positive"),
    "a learning rate of nothing for softmax": (SOFTMAX + "[train]\nlr = 0.0\n", "job.train: lr is positive"),
    "a negative seed": (SOFTMAX + "[train]\nseed = -1\n", "job.train: proximal_mu and seed"),
    "half an epoch": (SECURE + "[train]\nepochs = 0.5\n", "job.train.epochs: expected int"),
    "a yes for a number": (SECURE + "[train]\nepochs = true\n", "job.train.epochs: expected int"),
    "more spread than there may be": (
        SOFTMAX.replace("softmax", "echo") + "[train]\nspread = 2\n",
        "job.train: spread",
    ),
    "a network's app without a model": (SOFTMAX.replace("softmax", "image-classifier"), "job.model: "),
    "a secret metric that the app does not report": (
        SECURE + "[secure]\nmetrics = { accuracy = 1.0 }\n",
        "job.secure.metrics.accuracy: image-classifier reports confidence, ",
    ),
    "a measured metric that the app does not report": (
        SECURE + "[evaluate]\nevery = 1\nmetrics = { train_loss = 1.0 }\n",
        "job.evaluate.metrics.train_loss: image-classifier reports eval_acc, eval_loss",
    ),
    "privacy without secrecy": (
        PRIVATE + "[secure]\nenabled = false\n",
        "job: privacy is for secret sums",
    ),
    "privacy that is configured and off": (SECURE + "[privacy]\nepsilon = 1.0\n", "job: privacy is configured and off"),
    "a mechanism that nobody knows": (
        SECURE + '[privacy]\nmechanism = "local"\n',
        "job.privacy: mechanism is one of off",
    ),
    "epsilon zero": (PRIVATE + "epsilon = 0.0\n", "job.privacy: privacy needs a positive, finite epsilon"),
    "an infinite epsilon": (PRIVATE + "epsilon = inf\n", "job.privacy: privacy needs a positive, finite epsilon"),
    "delta one": (PRIVATE + "delta = 1.0\n", "job.privacy: privacy needs .* a delta between 0 and 1"),
    "a delta of one in as many as there are devices": (PRIVATE + "delta = 0.125\n", "far less than 1 / devices"),
    "a norm of nothing": (PRIVATE + "clip_norm = 0\n", "job.privacy: privacy needs a positive clip_norm"),
    "everybody missing": (PRIVATE + "missing = 1.0\n", "job.privacy: privacy needs .* missing"),
    "fewer missing than corrupt": (PRIVATE + "missing = 0.01\n", "job: devices that work with the coordinator"),
    "fewer rounds than none to spare": (PRIVATE + "spare_rounds = -1\n", "job.privacy: spare_rounds"),
    "privacy and exact measurements": (PRIVATE + "[evaluate]\nevery = 1\n", "job: a private job tells no metrics"),
    "privacy and exact metrics": (
        PRIVATE + "[secure]\nmetrics = { train_loss = 9.0 }\n",
        "job: a private job tells no metrics",
    ),
    "evaluation every minus two rounds": (SECURE + "[evaluate]\nevery = -2\n", "job.evaluate"),
    "pruning everything": (SECURE + "[[prune]]\nafter_round = 2\nratio = 1.0\n", "job.prune"),
    "pruning before the first round": (SECURE + "[[prune]]\nafter_round = 0\nratio = 0.5\n", "job.prune"),
    "pruning after the last round": (SECURE + "[[prune]]\nafter_round = 8\nratio = 0.5\n", "later round"),
    "pruning twice at once": (SECURE + "[[prune]]\nafter_round = 2\nratio = 0.5\n" * 2, "one pruning step"),
    "publishing without data": (SECURE + "[publish]\nenabled = true\n", "public.data"),
    "publishing bare arrays": (
        SECURE.replace('model = "digits"\n', "") + '[start]\narrays_file = "x"\n[publish]\nenabled = true\n',
        "need a model",
    ),
}


@pytest.mark.parametrize(("text", "says"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_file_is_refused_in_one_line_that_names_the_key(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=r"(?s)" + says.replace("[", r"\[")) as caught:
        JobSpec.parse(text)
    assert "\n" not in caught.value.message


def test_the_settings_of_an_app_that_is_not_ours_are_its_own_affair() -> None:
    spec = JobSpec.parse(
        SECURE.replace("image-classifier", "mine") + '[train]\nlearning_rate = "fast"\nproximal_mu = 1\n'
    )
    assert spec.train == {"learning_rate": "fast", "proximal_mu": 1}


def test_a_job_of_an_older_version_is_read_though_it_would_be_refused_now() -> None:
    text = SECURE + "[train]\nlearning_rate = 0.1\nserver_round = 1\n[secure]\nthreshold = 0.9\nmax_weight = 7\n"
    spec = JobSpec.accepted(text)
    assert spec.train == {"learning_rate": 0.1, "server_round": 1}
    assert spec.app_config == {}, "the app would refuse both, and the job has begun"
    assert spec.secure == Secure(max_weight=7)


@given(st.integers(1, 1000), st.integers(0, 2000), st.floats(0.01, 1.0), st.floats(0.0, 3.0), st.floats(0.01, 1.0))
def test_a_selection_is_never_more_than_is_there_nor_fewer_than_needed(
    needed: int, present: int, fraction: float, over: float, quorum: float
) -> None:
    selection = Selection(min_devices=needed, fraction=fraction, over_provision=over, quorum=quorum)
    selected = selection.how_many(present)
    assert selected <= present
    if present >= needed:
        assert selected >= max(needed, fraction * present - 1)
    assert 1 <= selection.enough(max(selected, 1)) <= max(selected, 1)


def test_over_provision_selects_so_many_more() -> None:
    assert Selection(min_devices=10, fraction=0.1, over_provision=0.3).how_many(50) == 13
    assert Selection(min_devices=2, fraction=0.3).how_many(10) == 3
