"""The committed generated code is what the .proto files say."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTOS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("protos/**/*.proto"))
OUTPUTS = ("--python_out", "--pyi_out", "--grpc_python_out")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make protos` makes it, elsewhere."""
    folder = tmp_path_factory.mktemp("protos")
    options = [f"{option}={folder}" for option in OUTPUTS]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I.", *options, *PROTOS], cwd=ROOT, check=True)
    return folder


def generated_files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in (root / "protos").rglob("*_pb2*.py*") if path.suffix != ".pyc"}


def test_nothing_is_missing_and_nothing_is_left_over(generated: Path) -> None:
    assert PROTOS
    assert generated_files(ROOT) == generated_files(generated)


@pytest.mark.parametrize("proto", PROTOS)
def test_the_committed_code_is_the_generated_code(generated: Path, proto: str) -> None:
    stem = proto.removesuffix(".proto")
    for name in (f"{stem}_pb2.py", f"{stem}_pb2.pyi", f"{stem}_pb2_grpc.py"):
        assert (ROOT / name).read_text() == (generated / name).read_text(), f"{name}: run `make protos`"
