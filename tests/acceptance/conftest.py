"""Real ``x2l`` processes over a tiny random checkpoint, each test with a store of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-m", "x2l_cluster.cli"]
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class X2L:
    """Runs commands in an environment that knows nothing of this machine's settings."""

    env: dict[str, str]

    def __call__(self, *words: str, code: int = 0, **env: str) -> tuple[str, str]:
        """What the command wrote to stdout and stderr; it must end with ``code`` and never with a traceback."""
        done = subprocess.run(
            [*COMMAND, *words], env=self.env | env, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == code, done
        assert "Traceback" not in done.stderr
        return done.stdout, done.stderr

    def json(self, *words: str, code: int = 0, **env: str) -> Any:
        """The one value on stdout."""
        out, _ = self(*words, "--json", code=code, **env)
        return json.loads(out)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A running process whose lines on stderr can be read as they come; end it with ``communicate``."""
        return subprocess.Popen(
            [*COMMAND, *words], env=self.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as ``--model`` takes it: weights, tokenizer, our recipe, a calibration."""
    from tests.engines import SMALL, calibration
    from tests.tiny import byte_tokenizer, qwen3_vl_model
    from x2l_cluster.models.registry import load_model

    folder = tmp_path_factory.mktemp("checkpoint")
    qwen3_vl_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "x2l.json").write_text(json.dumps({"recipe": SMALL}))
    calibration(load_model(str(folder))).save(folder / "calibration.json")
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a minute; eight chunks."""
    return film(tmp_path_factory.mktemp("clip") / "clip.mp4", seconds=30)


def film(path: Path, seconds: int) -> Path:
    from tests.engines import mosaic

    return mosaic(path, seconds)


@pytest.fixture
def x2l(tmp_path: Path, checkpoint: Path) -> X2L:
    return at_home(tmp_path, checkpoint)


def at_home(home: Path, checkpoint: Path) -> X2L:
    """Commands of a user with this home."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("X2L_", "HF_"))}
    return X2L(
        env
        | {
            "HOME": str(home),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "X2L_MODEL": str(checkpoint),
            "X2L_STORE": f"disk:{home / 'store'}",
        }
    )
