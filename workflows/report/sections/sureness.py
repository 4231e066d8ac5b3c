"""What the student's spreads are worth: how often its intervals hold, and how much surer faces err less."""

from collections.abc import Iterator

from workflows.report import figures
from workflows.report.material import Material, Section
from workflows.report.page import decimals, line


def sureness(material: Material) -> Iterator[Section]:
    found = material.results.evaluate.sureness
    if found is None:
        return
    lines = [
        line(row.test, f"{100 * row.level:g} %", *(f"{100 * share:.1f}" for share in (*row.calibrated, *row.raw)))
        for row in found.intervals
    ]
    values = {
        "lines": lines,
        "faces": found.calibration.faces,
        "factors": [decimals(factor) for factor in found.calibration.one_sd],
        "risk": material.book.chart("risk_coverage", figures.risk_curves(found.risk)),
    }
    yield Section("How sure it is", "sureness", values)
