"""The trials, best first, their errors against what their networks cost, and who was trained to the end."""

from collections.abc import Iterator, Mapping
from typing import Any

from workflows.engine.results import short
from workflows.report import figures
from workflows.report.material import Material, Section
from workflows.report.page import line

SHOWN_TRIALS = 20


def search(material: Material) -> Iterator[Section]:
    found = material.results.search
    shown = found.trials[:SHOWN_TRIALS]
    keys = list(dict.fromkeys(key for trial in shown for key in trial.changes))
    lines = []
    for place, trial in enumerate(shown, start=1):
        figures_of = (f"{trial.best_val_error:.2f}", f"{trial.latency_ms:.1f}", str(trial.epochs))
        changes = (short(trial.changes.get(key, "")) for key in keys)
        lines.append(line(str(place), *figures_of, *changes, ours=place == 1))
    values = {
        "keys": [without_group(key) for key in keys],
        "lines": lines,
        "trials": len(found.trials),
        "failed": found.failed,
        "hidden": len(found.trials) - len(shown),
        "finalists": [(settings(rival.changes), rival.val_error) for rival in material.results.student.finalists],
        "pareto": material.book.chart("pareto", figures.pareto(found.trials)) if shown else None,
    }
    yield Section("Search", "search", values)


def settings(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{without_group(key)} {short(value)}" for key, value in changes.items())


def without_group(key: str) -> str:
    """'optim.lr' -> 'lr'."""
    return key.split(".", 1)[-1]
