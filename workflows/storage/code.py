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
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
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
    queue = [name for name in modules if _counts(ROOT, name)]
    while queue:
        name = queue.pop()
        if name not in found:
            found[name], imported = _read(ROOT, name)
            queue += imported
    return found


def _counts(root: Path, name: str) -> bool:
    """Whether it is a module of the project that no carrier holds; else it is a package, or not the project's."""
    ours = name.split(".")[0] in PACKAGES and not f"{name}.".startswith(tuple(f"{carrier}." for carrier in CARRIERS))
    return ours and _file(root, name).is_file()


def _file(root: Path, name: str) -> Path:
    return root / f"{name.replace('.', '/')}.py"


@functools.cache
def _read(root: Path, name: str) -> tuple[str, tuple[str, ...]]:
    """(hash of a module's code, the modules that count of those that it imports, wherever in it)."""
    tree = ast.parse(_file(root, name).read_text())
    imported: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported += [node.module, *[f"{node.module}.{alias.name}" for alias in node.names]]
        elif isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    code = hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]
    return code, tuple(other for other in imported if _counts(root, other))
