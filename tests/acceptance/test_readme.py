"""A newcomer's transcript in the README: its commands are run as they stand, and print what stands there."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.acceptance.conftest import ROOT

HEADING = "## From nothing to an answer"
LEFT_OUT = "…"
PORT = "8421"


@dataclass(frozen=True)
class Step:
    """A command and the lines it is said to print; ``…`` for any."""

    command: str
    printed: tuple[str, ...]


def terminals() -> list[list[Step]]:
    """The commands of each code block under the heading."""
    section = (ROOT / "README.md").read_text().partition(HEADING)[2].partition("\n## ")[0]
    blocks = re.findall(r"^```console\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    return [[_step(part) for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]] for block in blocks]


def _step(part: str) -> Step:
    command, *printed = part.rstrip("\n").split("\n")
    return Step(command, tuple(printed))


def assert_as_written(step: Step, printed: str) -> None:
    """Every line that is written is printed; between two that are not said to leave out anything, nothing else is."""
    lines = [line.rstrip() for line in printed.splitlines()]
    at, gap = 0, False
    for want in step.printed:
        if want == LEFT_OUT:
            gap = True
            continue
        found = next((number for number in range(at, len(lines)) if _same(want, lines[number])), None)
        assert found is not None and (gap or found == at), (step.command, want, printed)
        at, gap = found + 1, False
    assert gap or at == len(lines), (step.command, printed)


def _same(want: str, line: str) -> bool:
    """Whether the lines are the same, but for scores, which another processor may round otherwise."""
    score = r"[+-]\d+\.\d\d"
    a, b = re.findall(score, want), re.findall(score, line)
    close = all(abs(float(x) - float(y)) < 0.1 for x, y in zip(a, b, strict=False))
    return close and re.sub(score, "", want) == re.sub(score, "", line)


@pytest.mark.parametrize(
    "written",
    [
        ("a ring",),
        ("…", "a ring"),
        ("a heart", "a ring", "…"),
        ("…", "score +3.99", "…"),
        ("a star", "…", "a ring", "…"),
    ],
)
def test_what_is_not_printed_so_is_found_out(written: tuple[str, ...]) -> None:
    printed = "a ring\n  at 0:12\nscore +3.35\n"
    assert_as_written(Step("ask", ("a ring", "…", "score +3.36")), printed)
    with pytest.raises(AssertionError):
        assert_as_written(Step("ask", written), printed)


@pytest.fixture
def newcomer(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody with a clone and an empty virtual environment that has only what we depend on."""
    shutil.copytree(
        ROOT,
        tmp_path / "clone",
        ignore=shutil.ignore_patterns(".*", "tests", "build", "*.egg-info", "__pycache__", "demo-data", "k8s"),
    )
    venv.create(tmp_path / "venv", with_pip=True)
    packages = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    (packages / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    home = tmp_path / "home"
    home.mkdir()
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("X2L_", "HF_", "PYTHON", "VIRTUAL_ENV"))
    }
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    return env | {
        "PATH": f"{tmp_path / 'venv' / 'bin'}:{os.environ['PATH']}",
        "HOME": str(home),
        "PIP_CACHE_DIR": str(home / "pip"),
        "OMP_NUM_THREADS": "1",
        "X2L_PORT": port,
    }


def test_what_the_readme_tells_a_newcomer_to_do_works(newcomer: dict[str, str], tmp_path: Path) -> None:
    clone, port = tmp_path / "clone", newcomer["X2L_PORT"]
    (install, up), commands = terminals()
    subprocess.run(["bash", "-ec", install.command], env=newcomer, cwd=clone, check=True, timeout=280)
    found = subprocess.run(["bash", "-c", "command -v x2l"], env=newcomer, capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()) == tmp_path / "venv" / "bin" / "x2l"

    first = subprocess.Popen(["bash", "-c", f"exec {up.command}"], env=newcomer, cwd=clone, stderr=-1, text=True)
    try:
        assert first.stderr is not None
        (listening,) = up.printed
        assert first.stderr.readline().rstrip() == listening.replace(PORT, port)
        # One shell for the other terminal: what it exports is there for the next command.
        marks = [f"echo '--- {number}'\n{step.command}" for number, step in enumerate(commands)]
        script = "\n".join(marks).replace(PORT, port)
        second = subprocess.run(
            ["bash", "-e"],
            input=script,
            env=newcomer,
            cwd=clone,
            stdout=subprocess.PIPE,
            text=True,
            timeout=280,
            check=True,
        )
        printed = re.split(r"^--- \d+\n", second.stdout, flags=re.MULTILINE)[1:]
        for step, text in zip(commands, printed, strict=True):
            assert_as_written(step, text)
        first.send_signal(signal.SIGINT)
        first.stderr.read()
        assert first.wait(60) == 0
    finally:
        first.kill()
        first.communicate()
    kinds = " ".join(step.command for step in (install, up, *commands))
    assert all(word in kinds for word in ("pip install", "x2l up", "x2l index", "x2l ask", "x2l explain"))
