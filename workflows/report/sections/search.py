"""The trials, best first, their errors against what their networks cost, and who was trained to the end."""

from collections.abc import Iterator, Mapping
from typing import Any

from workflows.engine.results import short
from workflows.report import figures
from workflows.report.material import Material, Section
from workflows.report.page import line

SHOWN_TRIALS = 20


def search(material: Material) -> Iterator[Section]:
    found, rivals = material.results.search, material.results.student.finalists
    won = min(rivals, key=lambda rival: rival.val_error).changes if rivals else found.best
    shown = found.trials[:SHOWN_TRIALS]
    keys = list(dict.fromkeys(key for trial in shown for key in trial.changes))
    lines = []
    for place, trial in enumerate(shown, start=1):
        figures_of = (f"{trial.best_val_error:.2f}", f"{trial.latency_ms:.1f}", str(trial.epochs))
        changes = (short(trial.changes.get(key, "")) for key in keys)
        lines.append(line(str(place), *figures_of, *changes, ours=trial.changes == won))
    values = {
        "keys": [without_group(key) for key in keys],
        "lines": lines,
        "trials": len(found.trials),
        "failed": found.failed,
        "hidden": len(found.trials) - len(shown),
        "finalists": [(settings(rival.changes), rival.val_error) for rival in rivals],
        "pareto": material.book.chart("pareto", figures.pareto(found.trials)) if shown else None,
    }
    yield Section("Search", "search", values)


def settings(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{without_group(key)} {short(value)}" for key, value in changes.items())


def without_group(key: str) -> str:
    """'optim.lr' -> 'lr'."""
    return key.split(".", 1)[-1]
