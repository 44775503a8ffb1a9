"""The images: their Dockerfiles pass the linter, their steps install what they should and no more."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.manifests.kubectl import ROOT
from tests.manifests.rendered import objects, pods
from x2l_cluster import __version__

DOCKERFILES = sorted((ROOT / "services").glob("*.Dockerfile"))


def instructions(dockerfile: Path, word: str) -> list[str]:
    text = dockerfile.read_text().replace("\\\n", " ")
    return re.findall(rf"^{word} (.*)$", text, re.MULTILINE)


def test_the_linter_has_nothing_to_say():
    assert len(DOCKERFILES) == 2
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", *DOCKERFILES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_images_run_as_the_user_the_pods_ask_for(dockerfile):
    assert instructions(dockerfile, "USER")[-1] == "1000:1000"
    users = {pod.spec["securityContext"]["runAsUser"] for pod in pods(objects("ha")) if "valkey" not in pod.component}
    assert users == {1000}


def test_versions_agree():
    """Of the package, its images, and Ray in the image and in the cluster."""
    things = objects("ha")
    ours = {image for pod in pods(things) for c in pod.containers if "x2l-cluster" in (image := c["image"])}
    assert {image.rpartition(":")[2] for image in ours} == {__version__}
    (service,) = (thing for thing in things if thing["kind"] == "RayService")
    steps = " ".join(instructions(ROOT / "services/ray.Dockerfile", "RUN"))
    assert f"ray[default,serve]=={service['spec']['rayClusterConfig']['rayVersion']}" in steps


def copied(dockerfile: Path) -> list[str]:
    """What it copies from the repository."""
    parts = (line.split() for line in instructions(dockerfile, "COPY"))
    return [name for words in parts if not words[0].startswith("--from") for name in words[:-1]]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)
def test_what_is_copied_is_there(dockerfile):
    assert all((ROOT / name).exists() for name in copied(dockerfile))


OPENS = """
from x2l_cluster.kv.open import open_kv
from x2l_cluster.state.open import open_state
open_kv("tiers:valkey://a:b@127.0.0.1:1?cluster=false|disk:index").close()
open_state("valkey://a:b@127.0.0.1:1?db=0").close()
"""


def test_stores_open_without_torch_and_ray(tmp_path):
    """Which the janitor does; its image has neither."""
    program = f"import sys\nsys.modules |= dict.fromkeys(['torch', 'ray', 'transformers'])\n{OPENS}"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, check=True)


@pytest.mark.soak
def test_the_steps_of_the_janitors_image_install_what_opens_the_stores(tmp_path):
    """In an environment of their own, on what is copied and nothing else."""
    dockerfile, source = ROOT / "services/janitor.Dockerfile", tmp_path / "src"
    for name in copied(dockerfile):
        place = source / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(ROOT / name, place, dirs_exist_ok=True) if (ROOT / name).is_dir() else shutil.copy(
            ROOT / name, place
        )
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    for step in instructions(dockerfile, "RUN"):
        words = shlex.split(step)
        if words[0] == "pip":
            done = subprocess.run([python, "-m", *words], cwd=source, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
    missing = "import importlib.util as u\nassert not any(map(u.find_spec, ['torch', 'ray', 'transformers']))"
    subprocess.run([python, "-I", "-c", missing + OPENS], cwd=tmp_path, check=True)
