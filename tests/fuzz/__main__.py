"""Coverage-guided fuzzing with atheris: `python -m tests.fuzz messages -max_total_time=60`. No target: all of them, one by one.

Options are libFuzzer's. The corpus begins with what `targets.seeds` makes and grows in `--corpus` (a temporary folder if not
given); an input that breaks a target is written to the working folder, and given in place of options it is run again.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["shared", "edge_agent"]):
    from tests.fuzz.targets import TARGETS, seeds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__, allow_abbrev=False)
    parser.add_argument("target", nargs="?", choices=list(TARGETS))
    parser.add_argument("--corpus", type=Path)
    options, rest = parser.parse_known_args()
    if options.target is None:
        here = [sys.executable, "-m", "tests.fuzz"]
        return max(subprocess.run([*here, name, *rest], check=False).returncode for name in TARGETS)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.corpus or Path(temporary)) / options.target
        folder.mkdir(parents=True, exist_ok=True)
        for place, seed in enumerate(seeds(options.target)):
            (folder / f"seed-{place}").write_bytes(seed)
        files = [item for item in rest if not item.startswith("-")]
        arguments = [sys.argv[0], *rest, *([] if files else [str(folder)])]
        atheris.Setup(arguments, TARGETS[options.target])
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
