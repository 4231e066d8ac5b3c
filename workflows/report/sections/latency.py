"""What a call costs in each runtime, and what int8 costs in degrees."""

from collections.abc import Iterator

from workflows.report.material import Material, Section
from workflows.report.page import line
from workflows.report.text import int8_sentence


def latency(material: Material) -> Iterator[Section]:
    exported = material.exported
    values = {
        "batches": [f"{batch}, ms" for batch in next(iter(exported.latency_ms.values()))],
        "runtimes": [line(name, *(f"{ms:.2f}" for ms in row.values())) for name, row in exported.latency_ms.items()],
        "parameters": exported.traced.parameters,
        "int8": int8_sentence(exported.int8) if exported.int8 else "",
    }
    yield Section("Latency", "latency", values)
