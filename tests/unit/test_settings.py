"""Every setting is read by somebody: one that is not promises what nothing does."""

from __future__ import annotations

import ast
from pathlib import Path

from x2l_cluster.settings import Settings

ROOT = Path(__file__).parents[2]
HOLDERS = {"settings", "wanted"}
"""What variables and functions that hold settings are called."""


def read_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in HOLDERS:
                found.add(attribute)
            case ast.Attribute(value=ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)), attr=attribute) if (
                name in HOLDERS
            ):
                found.add(attribute)
            case ast.ClassDef(name="Place", body=body):  # which takes all its fields from there
                found |= {
                    field.target.id
                    for field in body
                    if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
                }
    return found


def test_every_setting_is_read() -> None:
    files = [path for room in ("x2l_cluster", "services") for path in sorted((ROOT / room).rglob("*.py"))]
    read = set().union(*(read_in(path) for path in files))
    assert set(Settings.model_fields) <= read, f"nobody reads {sorted(set(Settings.model_fields) - read)}"
