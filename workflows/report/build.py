"""The report: one HTML file that needs nothing else, and every figure as its own PNG beside it.

It shows what the finished stages left (results, predictions.parquet, shards, quarantine.parquet) and computes no score
that the evaluation did not, except the paired difference of the two students: whether distillation helped is the
question of the run, so its answer comes with an interval.

To add a section, write `sections/<name>.py`, a function that takes the `Material` and yields `Section`s: headings, and
the values that `templates/<name>.html.j2` names. Everything that is said stands in the template; Python picks the rows
and draws the charts. Then put the function into `SECTIONS` below.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from markupsafe import Markup

from workflows.engine.exported import Exported
from workflows.engine.stage import StageRun
from workflows.report.headline import headline
from workflows.report.material import Material, Section, read_predictions
from workflows.report.page import Book, render
from workflows.report.sections.accounts import accounts
from workflows.report.sections.landmarks import landmarks
from workflows.report.sections.latency import latency
from workflows.report.sections.papers import papers
from workflows.report.sections.provenance import provenance
from workflows.report.sections.samples import samples
from workflows.report.sections.search import search
from workflows.report.sections.soft_labels import soft_labels
from workflows.report.sections.sureness import sureness
from workflows.report.sections.test_sets import test_sets
from workflows.report.sections.training import training

PAGE = "report.html"
SECTIONS: tuple[Callable[[Material], Iterable[Section]], ...] = (
    test_sets,
    papers,
    landmarks,
    sureness,
    training,
    soft_labels,
    search,
    latency,
    samples,
    accounts,
    provenance,
)


def build_report(stage: StageRun, exported: Exported, origin: Mapping[str, str], folder: Path) -> Path:
    """Write `report.html` and its PNGs into `folder`; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    predictions = read_predictions(stage.inputs["evaluate"] / "predictions.parquet")
    material = Material(stage, exported, origin, predictions, Book(folder))
    sections = [section for make in SECTIONS for section in make(material)]
    (folder / PAGE).write_text(whole_page(stage.spec.name, headline(material), sections), encoding="utf-8")
    return folder / PAGE


def whole_page(name: str, opening: Section, sections: Iterable[Section]) -> str:
    """The page: the opening, links to the sections, and the sections."""
    bodies = [(section.heading, rendered(section)) for section in sections]
    return render("page.html.j2", name=name, opening=rendered(opening), sections=bodies)


def rendered(section: Section) -> Markup:
    """The section's body, which the page does not escape again."""
    return Markup(render(f"{section.template}.html.j2", **section.values))
