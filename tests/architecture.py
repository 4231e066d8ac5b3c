"""The walls of the house, read off the syntax trees: every breach is a sentence.

Imports count wherever they stand: at the top, in a function, under TYPE_CHECKING.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# Rooms from the ground up. A room imports from those below it and from itself; rooms in one row do not see each other.
# The first name that fits counts: a room inside another, but lower, stands further up in the list.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("hpe_core.errors",),
    ("hpe_core.system", "hpe_core.shipped"),
    ("hpe_core.spec",),
    ("hpe_core.geometry",),
    ("hpe_core.render", "hpe_core.detection", "hpe_core.networks"),
    ("hpe_core.datasets",),
    ("hpe_core.data",),
    ("hpe_core.augment",),
    ("hpe_core.learning",),
    ("hpe_core.training",),
    ("hpe_core.predictor",),
    ("hpe_core.pyfunc",),
    ("workflows.tracking", "workflows.storage", "workflows.prediction.media"),
    ("workflows.engine",),
    ("workflows.training", "workflows.sharding", "workflows.searching", "workflows.scoring"),
    ("workflows.export",),
    ("workflows.report",),
    ("workflows.checks", "workflows.prediction", "workflows.stages"),
    ("workflows.full_pipeline",),
    ("workflows.bench", "workflows.reproduction"),
    ("workflows.survival",),
    ("workflows.predict", "workflows.doctor", "workflows.benchmark", "workflows.compare_seeds"),
    ("workflows.reproduce", "workflows.survive"),
    ("workflows.cli",),
)
PACKAGES = ("hpe_core", "workflows")
NOT_IN_THE_LIBRARY = ("ray", "mlflow", "omegaconf", "jinja2", "optuna", "workflows")
HEAVY = ("torch", "torchvision", "timm", "ray", "mlflow", "matplotlib", "albumentations", "onnxruntime")
PRIVATE = ("ray._private", "ray._raylet", "ray.train.v2", "ray.train.torch.config", "mlflow.store", "mlflow.utils")
# The files that look into others' rooms.
WINDOWS = (
    "workflows.engine.cluster.ray_private",
    "workflows.engine.cluster.torch_group",
    "workflows.engine.cluster.trainer",
    "workflows.tracking.server",
)
STAGES = "workflows.stages"
MODULES, LINES = 11, 400  # of a folder, of a module


@dataclass(frozen=True)
class Import:
    """One imported name in a module; `inside` says that it stands in a function or under TYPE_CHECKING."""

    module: str
    line: int
    inside: bool


@dataclass(frozen=True)
class House:
    """Every module of a checkout, with its imports."""

    files: Mapping[str, Path]
    imports: Mapping[str, tuple[Import, ...]]

    @classmethod
    def read(cls, root: Path) -> "House":
        files = {name_of(path, root): path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))}
        return cls(files, {name: tuple(imports_of(path)) for name, path in files.items()})

    def project(self, name: str) -> Iterator[Import]:
        """A module's imports of other modules of the project; a name that is no module stands for the one it is in."""
        for found in self.imports[name]:
            module = found.module if found.module in self.files else found.module.rpartition(".")[0]
            if module in self.files and module != name and self.files[module].name != "__init__.py":
                yield Import(module, found.line, found.inside)

    def heavy(self) -> set[str]:
        """The modules whose import loads what takes seconds, or imports one that does."""
        top = {name: [found for found in self.imports[name] if not found.inside] for name in self.files}
        found = {name for name in top if any(entry.module.split(".")[0] in HEAVY for entry in top[name])}
        below = {name: {entry.module for entry in self.project(name) if not entry.inside} for name in self.files}
        while more := {name for name in self.files if below[name] & found} - found:
            found |= more
        return found


def name_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[Import]:
    def walk(node: ast.AST, inside: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            typing_only = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
            within = inside or typing_only or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                yield from (Import(f"{child.module}.{alias.name}", child.lineno, inside) for alias in child.names)
            else:
                yield from walk(child, within)

    yield from walk(ast.parse(path.read_text()), False)


def floor_of(name: str) -> int | None:
    """Where a module's room lies; None for the packages' own `__init__`."""
    for number, rooms in enumerate(FLOORS):
        if any(name == room or name.startswith(f"{room}.") for room in rooms):
            return number
    return None


def room_of(name: str) -> str:
    return next(room for rooms in FLOORS for room in rooms if name == room or name.startswith(f"{room}."))


def breaches(root: Path) -> list[str]:
    """A sentence for everything that the walls do not allow."""
    house = House.read(root)
    rules = (homeless, upward, circles, between_stages, foreign, hidden, private, large)
    return [sentence for rule in rules for sentence in rule(house)]


def homeless(house: House) -> Iterator[str]:
    for name, path in house.files.items():
        if floor_of(name) is None and path.name != "__init__.py":
            yield f"{name} lies in no room"


def upward(house: House) -> Iterator[str]:
    for name in house.files:
        for found in house.project(name):
            mine, theirs = floor_of(name), floor_of(found.module)
            if mine is None or theirs is None or room_of(name) == room_of(found.module):
                continue
            if theirs >= mine:
                yield f"{name}:{found.line} imports {found.module}, which does not lie below it"


def circles(house: House) -> Iterator[str]:
    """Modules that import each other, directly or not (Tarjan's components, by reachability: the house is small)."""
    below = {name: {found.module for found in house.project(name)} for name in house.files}
    reach: dict[str, set[str]] = {}
    for name in below:
        seen, queue = set[str](), [*below[name]]
        while queue:
            module = queue.pop()
            if module not in seen:
                seen.add(module)
                queue += below[module]
        reach[name] = seen
    for name, seen in reach.items():
        if name in seen:
            others = sorted(module for module in seen if name in reach[module] and module != name)
            yield f"{name} imports itself by way of {', '.join(others)}"


def between_stages(house: House) -> Iterator[str]:
    for name in house.files:
        for found in house.project(name):
            if name.startswith(f"{STAGES}.") and found.module.startswith(f"{STAGES}."):
                yield f"{name}:{found.line} is a stage and imports the stage {found.module}"


def foreign(house: House) -> Iterator[str]:
    for name, imports in house.imports.items():
        for found in imports:
            if name.startswith("hpe_core") and found.module.split(".")[0] in NOT_IN_THE_LIBRARY:
                yield f"{name}:{found.line} imports {found.module}: not in the library"


def hidden(house: House) -> Iterator[str]:
    """A project import that does not stand at the top has one excuse: it loads what takes seconds."""
    heavy = house.heavy()
    for name in house.files:
        for found in house.project(name):
            if found.inside and found.module not in heavy:
                yield f"{name}:{found.line} imports {found.module} in a function or for types, and it is light"


def private(house: House) -> Iterator[str]:
    for name, imports in house.imports.items():
        for found in imports:
            if name not in WINDOWS and any(found.module.startswith(part) for part in PRIVATE):
                yield f"{name}:{found.line} uses {found.module}, which is private"


def large(house: House) -> Iterator[str]:
    folders: dict[Path, int] = {}
    for name, path in house.files.items():
        if path.name == "__init__.py":
            continue
        folders[path.parent] = folders.get(path.parent, 0) + 1
        lines = len(path.read_text().splitlines())
        if lines > LINES:
            yield f"{name} has {lines} lines, more than {LINES}"
    for folder, count in folders.items():
        if count > MODULES:
            yield f"{folder.name} holds {count} modules, more than {MODULES}"
