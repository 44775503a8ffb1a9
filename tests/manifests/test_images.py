"""The images: their Dockerfiles pass the linter, their steps install what they should and no more."""

from __future__ import annotations

import json
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


def test_what_the_janitor_is_started_with_is_in_its_image():
    """As rendered: the command of the pod is that of the image, and a module that is copied into it."""
    (pod,) = (pod for pod in pods(objects("ha")) if pod.component == "janitor")
    (container,) = pod.containers
    assert instructions(ROOT / "services/janitor.Dockerfile", "CMD") == [json.dumps(container["command"])]
    assert container["command"][:2] == ["python", "-m"]
    assert (ROOT / container["command"][2].replace(".", "/") / "__main__.py").exists()


def passes(python: Path | str, folder: Path, *, without: str = "", **more: str) -> None:
    """A janitor makes its pass there: over a disk, a server that is missing, and a state on the disk."""
    env = {"X2L_STORE": f"tiers:valkey://a:b@127.0.0.1:1?cluster=false|disk:{folder / 'index'}"}
    env |= {"X2L_STATE": f"disk:{folder / 'state'}", "X2L_SOURCES": str(folder / "sources"), **more}
    blocked = f"import runpy, sys\nsys.modules |= dict.fromkeys({without.split()})\n"
    words = [python, "-c", f"{blocked}sys.argv = ['janitor', '--json']\nrunpy.run_module('services.janitor')"]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 5, done.stderr
    report = json.loads(done.stdout)
    assert set(report["problems"]) == {"orphans", "room in remote"} and report["due"] == 0


def test_the_janitor_needs_neither_torch_nor_ray(tmp_path):
    passes(sys.executable, tmp_path, without="torch ray transformers av decord fastapi", PYTHONPATH=str(ROOT))


@pytest.mark.soak
def test_the_steps_of_the_janitors_image_install_what_it_needs(tmp_path):
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
    subprocess.run([python, "-I", "-c", missing], cwd=tmp_path, check=True)
    app = tmp_path / "app"
    shutil.copytree(source / "services", app / "services")
    passes(python, tmp_path, PYTHONPATH=str(app))
