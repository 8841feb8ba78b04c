"""The builder's child: reads a request folder, does the torch work, writes the result beside it. `builder.py` starts it."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from coordinator.builder import (
    FAILED,
    KINDS,
    REQUEST,
    RESULT,
    WEIGHTS,
    Ask,
    CheckBundle,
    Initial,
    MakeBundle,
    Prune,
    Result,
)
from coordinator.rounds.inputs import require_fit
from shared.bundle import Bundle, Report, read_bundle, write_bundle
from shared.errors import Malformed, ShoalError, Unsupported, UpdateRejected
from shared.files import write_atomic
from shared.learning.examples import Outline, Split, load_file, split_examples
from shared.learning.graph import INPUT
from shared.learning.hyperparameters import TrainSettings
from shared.learning.measure import agreement, choose_probe, judge, probe_candidates
from shared.learning.models import build, factory_names, load_state, starting_point
from shared.learning.prune import prune, size_of
from shared.learning.spec import InputSchema, ModelSpec
from shared.learning.state import State, pack_state, unpack_state
from shared.learning.train import FloatLearner, Images, evaluate, fit, learning_rate, refresh_statistics
from shared.settings import from_mapping

_CALIBRATION = 512
_MAX_DIFFERENCE = 1.0  # logits; more means that the export went wrong
_NICENESS = 5


def main(folder: Path) -> int:
    """0, or 1 when `result.json` says what went wrong."""
    os.nice(_NICENESS)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))  # the coordinator and its database need the rest
    try:
        result = answer(_read_request(folder), folder)
    except ShoalError as error:
        print(str(error), file=sys.stderr, flush=True)
        _write(folder, {"error": type(error).__name__, "message": str(error)})
        return FAILED
    _write(folder, asdict(result))
    return 0


def answer(ask: Ask, folder: Path) -> Result:
    """Raises any `ShoalError` that fits."""
    match ask:
        case Initial():
            return _initial(ask, folder)
        case Prune():
            return _prune(ask, folder)
        case MakeBundle():
            return _bundle(ask, folder)
        case CheckBundle():
            return _check(ask)


def _initial(ask: Initial, folder: Path) -> Result:
    rng = np.random.default_rng(ask.seed)
    spec, state = starting_point(ask.factory, ask.arguments, rng)
    accuracy = None
    if ask.data and ask.epochs:
        split = _examples(ask.data, spec.schema)
        learner = FloatLearner(spec)
        for epoch in range(ask.epochs):
            settings = TrainSettings(lr=learning_rate(ask.lr, epoch, ask.epochs))
            fitted = fit(learner, state, split.train_x, split.train_y, settings=settings, rng=rng)
            state = fitted.state
            _say(f"epoch {epoch + 1} of {ask.epochs}: loss {fitted.loss:.4f}")
        if len(split.held_y):
            accuracy = evaluate(learner.module, split.held_x, split.held_y).accuracy
            _say(f"{accuracy:.1%} of {len(split.held_y)} held-out examples right")
    write_atomic(folder / WEIGHTS, pack_state(state))
    return Result(spec.to_json(), accuracy)


def _prune(ask: Prune, folder: Path) -> Result:
    spec, state = ModelSpec.from_json(ask.model_json), _weights(folder)
    smaller, kept = prune(spec, state, ask.ratio, round_to=ask.round_to)
    if ask.data:
        examples = _examples(ask.data, spec.schema).train_x
        kept = refresh_statistics(FloatLearner(smaller), kept, examples)
    before, after = size_of(spec), size_of(smaller)
    _say(f"{before.parameters} parameters became {after.parameters}, {before.macs} MACs {after.macs}")
    write_atomic(folder / WEIGHTS, pack_state(kept))
    return Result(smaller.to_json())


def _bundle(ask: MakeBundle, folder: Path) -> Result:
    from shared.learning.compress import Recovery, quantize  # torchao: 4 s that training and pruning do without

    spec, state = ModelSpec.from_json(ask.model_json), _weights(folder)
    split = _examples(ask.data, spec.schema)
    rng = np.random.default_rng(ask.seed)
    chosen = rng.permutation(len(split.train_y))[:_CALIBRATION]
    candidates = probe_candidates(spec.schema)
    questions = np.concatenate([candidates, split.held_x])
    _say("quantizing and exporting")
    made = quantize(
        spec,
        state,
        split.train_x[chosen],
        questions,
        recipe=spec.recipe,
        recovery=Recovery(ask.recovery_batches),
        rng=rng,
    )
    answers = _run_graph(made.onnx, questions)
    held = slice(len(candidates), None)
    found = agreement(made.reference[held], answers[held]) if len(split.held_y) else agreement(made.reference, answers)
    if found.max_logit_difference > _MAX_DIFFERENCE:
        raise Unsupported(
            f"the int8 graph differs from the network it was made from by {found.max_logit_difference:.3g} logits: "
            "set weight_bits = 7 in the model's recipe"
        )
    size = size_of(spec)
    report = Report(
        accuracy=_accuracy(answers[held], split),
        accuracy_float=_accuracy(made.float_logits[held], split),
        examples=len(split.held_y),
        parameters=size.parameters,
        macs=size.macs,
        graph_bytes=len(made.onnx),
        weights_bytes=len(pack_state(state)),
        weight_bits=spec.recipe.weight_bits,
        max_logit_difference=found.max_logit_difference,
        top1_agreement=found.top1_agreement,
        probe=choose_probe(made.reference[: len(candidates)]),
        lineage=ask.lineage,
    )
    write_bundle(Path(ask.out), Bundle(spec, state, made.onnx, report))
    return Result(report=report)


def _check(ask: CheckBundle) -> Result:
    """Weights of a network that is not installed here cannot be judged here; a device that has it judges them."""
    bundle = read_bundle(Path(ask.path), ask.files)
    if bundle.spec.factory in factory_names():
        try:
            load_state(build(bundle.spec), bundle.state)
        except UpdateRejected as error:
            raise Malformed(f"{WEIGHTS}: {error.message}", detail=error.detail) from error
    return Result()


def _accuracy(logits: Images, split: Split) -> float | None:
    return judge(logits, split.held_y).accuracy if len(split.held_y) else None


def _run_graph(graph: bytes, x: Images) -> Images:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    logits: Images = session.run(None, {INPUT: x})[0]
    return logits


def _examples(path: str, schema: InputSchema) -> Split:
    """Raises `NotFound` and `Malformed` for the file, `ConfigError` when it is not what the model takes."""
    x, y = load_file(Path(path))
    require_fit(Outline(x.shape[1:], int(y.max())), schema, path)
    return split_examples(x, y)


def _weights(folder: Path) -> State:
    return unpack_state((folder / WEIGHTS).read_bytes())


def _read_request(folder: Path) -> Ask:
    value = json.loads((folder / REQUEST).read_bytes())
    return from_mapping(KINDS[value["kind"]], value["ask"], where=value["kind"])


def _say(line: str) -> None:
    print(line, flush=True)


def _write(folder: Path, value: object) -> None:
    write_atomic(folder / RESULT, json.dumps(value, allow_nan=False).encode())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
