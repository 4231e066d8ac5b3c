"""Our rows and the papers' in one table, where a protocol was asked for."""

from collections.abc import Iterator

from workflows.report.material import Material, Section
from workflows.report.page import Entry, Line, decimals, line
from workflows.report.published import OURS, TableRow, beside


def papers(material: Material) -> Iterator[Section]:
    """Every test set that a paper has figures of, and in what this run deviates from the protocol."""
    evaluated, data = material.results.evaluate, material.spec.data
    asked = evaluated.protocol
    if asked is None:
        return
    readers = {name: data.datasets[name].reader for name in data.test}
    together = beside(evaluated.rows, asked.name, readers, asked.deviations)
    tables = {
        test: [paper_line(row) for row in together if row.test == test]
        for test in dict.fromkeys(row.test for row in together if row.source != OURS)
    }
    if tables:
        yield Section("Beside the papers", "papers", {"tables": tables, "protocol": asked, "boxes": evaluated.boxes})


def paper_line(row: TableRow) -> Line:
    """One line, ours or published; a telephone has its source, with a dagger for the mark, below the name."""
    name = Entry(row.name, phone=row.source + " †" * bool(row.mark))
    numbers = (decimals(value) for value in (row.mae, row.pitch, row.yaw, row.roll))
    return line(name, *numbers, row.source, row.mark, ours=row.source == OURS)
