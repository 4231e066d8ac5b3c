"""The code that a stage's result depends on, as hashes.

"Code" is the syntax tree, without docstrings and comments, of the stage's module and of every project module that it
imports: editing a comment reruns nothing, editing a loss reruns what was trained with it. `__init__.py` files hold
nothing that a result depends on and are not read.
"""

import ast
import functools
import hashlib
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # the folder of both packages
PACKAGES = ("hpe_core", "workflows")
# Rooms, and modules, that carry things or show them: what they do changes no result.
CARRIERS = (
    "hpe_core.errors",
    "hpe_core.spec",
    "hpe_core.system",
    "workflows.engine",
    "workflows.storage",
    "workflows.tracking",
    "workflows.sharding.quarantine",
    "workflows.full_pipeline",
)


def python_path(*folders: Path) -> str:
    """PYTHONPATH for a process of ours: these folders first."""
    return os.pathsep.join(filter(None, [*map(str, folders), os.environ.get("PYTHONPATH", "")]))


def code_hashes(*modules: str) -> dict[str, str]:
    """Modules and every project module that they import, directly or not -> hash of its code without docstrings."""
    found: dict[str, str] = {}
    queue = [*modules]
    while queue:
        name = queue.pop()
        path = module_file(name)
        if name not in found and not is_carrier(name) and path is not None:
            found[name], imported = _read(path)
            queue += imported
    return found


@functools.cache
def _read(path: Path) -> tuple[str, tuple[str, ...]]:
    """(hash of a file's code, what it imports, wherever in it)."""
    tree = ast.parse(path.read_text())
    imported: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported += [node.module, *[f"{node.module}.{alias.name}" for alias in node.names]]
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _drop_docstring(node)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12], tuple(imported)


def is_carrier(name: str) -> bool:
    """Whether a module is one of `CARRIERS` or lies in a room of them."""
    return any(name == carrier or name.startswith(f"{carrier}.") for carrier in CARRIERS)


def module_file(name: str) -> Path | None:
    """The file of a project module, or None if it is a package or not the project's."""
    path = ROOT / (name.replace(".", "/") + ".py")
    return path if name.split(".")[0] in PACKAGES and path.is_file() else None


def _drop_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    if ast.get_docstring(node, clean=False) is not None:
        node.body = node.body[1:] or [ast.Pass()]
