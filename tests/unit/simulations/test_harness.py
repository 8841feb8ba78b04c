import json
from pathlib import Path

import pytest

from simulations.benchmarks.harness import figure, line, publish


def test_less_is_better_unless_said_otherwise() -> None:
    faster = figure("a round", 0.05, "s", peer=("Flower", 10.0), aim=100)
    assert faster.ratio == pytest.approx(200)
    assert faster.met
    slower = figure("requests", 500, "/s", peer=("Triton", 1000), aim=1, better="more")
    assert slower.ratio == 0.5
    assert slower.met is False


def test_without_a_peer_the_aim_is_for_the_value() -> None:
    assert figure("size", 90, "kB", aim=100).met
    assert figure("accuracy", 0.9, "share", aim=0.95, better="more").met is False
    assert figure("memory", 5, "MB").met is None


def test_a_ratio_to_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        figure("a round", 0, "s", peer=("Flower", 10.0))


def test_results_are_printed_written_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = [figure("a round", 0.05, "s", peer=("Flower", 10.0), aim=100), figure("bytes up", 4.0, "MB")]
    path = publish("rounds", figures, folder=tmp_path / "results")
    content = json.loads(path.read_text())
    assert content["name"] == "rounds"
    assert content["machine"]["cores"] >= 1
    keys = {"name", "value", "unit", "peer", "peer_value", "ratio", "aim", "met"}
    assert all(set(one) == keys for one in content["figures"])
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert line(figures[0]) in capsys.readouterr().out
    assert "200 times better (aim 100 times, met)" in line(figures[0])
