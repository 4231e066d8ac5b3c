"""The table of a comparison over seeds: mean ± standard deviation, what distillation gained, its place in a page."""

import dataclasses
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpe_core.errors import SpecError
from hpe_core.geometry.rotation import ANGLE_NAMES
from hpe_core.spec.pipeline import VARIANT
from workflows.engine.results import DEGREES
from workflows.report.markdown import markdown_table

HEAD = ("network", "what", *ANGLE_NAMES, "MAE", "geodesic", "parameters", "CPU ms")
DISTILLED, HARD = "distilled", "hard"  # names of rows; of variants, "distilled: KIND"


@dataclass(frozen=True)
class Compared:
    """A network on a test set of `n` faces. `values` has one value a seed: of DEGREES, and of "latency_ms"."""

    test: str
    name: str
    role: str
    n: float
    parameters: float
    values: dict[str, list[float]]

    @property
    def latency_ms(self) -> float:
        return statistics.median(self.values["latency_ms"])

    def as_json(self) -> dict[str, Any]:
        known = {name: getattr(self, name) for name in ("test", "name", "role", "n", "parameters", "latency_ms")}
        return known | {name: self.values[name] for name in DEGREES}


def joined(seeds: Sequence[Compared]) -> Compared:
    """The same row of several seeds as one."""
    assert len({(row.test, row.name) for row in seeds}) == 1, "every seed has the same rows"
    values = {key: [value for row in seeds for value in row.values[key]] for key in seeds[0].values}
    return dataclasses.replace(seeds[0], values=values)


def markdown(rows: Sequence[Compared], seeds: Sequence[int], kinds: Mapping[str, str]) -> str:
    """A table a test set, and what distillation gained, seed by seed. `kinds` describes the variants."""
    parts, taught = [], {DISTILLED, *(f"{VARIANT} {kind}" for kind in kinds)}  # a teacher may be called distilled-2
    for test in dict.fromkeys(row.test for row in rows):
        block = [row for row in rows if row.test == test]
        parts.append(f"Test set `{test}`, {block[0].n:.0f} faces, seeds {', '.join(map(str, seeds))}, degrees:")
        students = [row for row in block if row.name in taught]
        lines = []
        for row in block:
            name = f"**{row.name}**" if row in students else row.name
            degrees = [spread(row.values[key]) for key in DEGREES]
            lines.append([name, row.role, *degrees, f"{row.parameters / 1e6:.2f} M", f"{row.latency_ms:.1f}"])
        parts.append(markdown_table("ll" + "r" * 7, HEAD, lines))
        twin = next(row for row in block if row.name == HARD)
        parts += [gain(twin, row, kinds) for row in students]
    return "\n\n".join(parts)


def spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def gain(twin: Compared, student: Compared, kinds: Mapping[str, str]) -> str:
    """One sentence; it says so if distillation lost."""
    pairs = zip(twin.values["mae"], student.values["mae"], strict=True)
    shares = [100 * (before - after) / before for before, after in pairs]
    verb = "lowers" if statistics.mean(shares) > 0 else "raises"
    each = ", ".join(f"{share:+.1f} %" for share in shares)
    kind = student.name.partition(": ")[2]
    who = f"Distillation from {kinds[kind]}" if kind else "Distillation"
    return f"{who} {verb} the student's MAE by {abs(statistics.mean(shares)):.1f} % (gain by seed: {each})."


def place_in(page: Path, name: str) -> re.Match[str]:
    """Where the table goes in a page: between its markers. Raises SpecError that names the page or the markers."""
    opening, closing = markers(name)
    if not page.is_file():
        raise SpecError(f"readme={page}: there is no such file")
    found = re.search(re.escape(opening) + ".*?" + re.escape(closing), page.read_text(), re.S)
    if found is None:
        raise SpecError(f"{page} has no place for this table: the markers {opening} and {closing}")
    return found


def into_page(page: Path, name: str, table: str) -> None:
    """Replaces what stands between the markers."""
    (opening, closing), found = markers(name), place_in(page, name)
    page.write_text(f"{found.string[: found.start()]}{opening}\n{table}\n{closing}{found.string[found.end() :]}")


def markers(name: str) -> tuple[str, str]:
    """`seeds:demo` -> the comments that open and close its place."""
    return f"<!-- {name} -->", f"<!-- /{name.partition(':')[0]} -->"
