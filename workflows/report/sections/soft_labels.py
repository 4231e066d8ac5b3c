"""How good the soft labels are, and what is lost when they are moved with the picture."""

from collections.abc import Iterator

from workflows.report.material import Material, Section
from workflows.report.page import line


def soft_labels(material: Material) -> Iterator[Section]:
    sets, drift = material.results.labels.train_mae, material.results.evaluate.drift
    values = {
        "sets": [line(name, f"{mae:.2f}") for name, mae in sets.items()],
        "moved": [
            line(
                motion,
                f"{row['moved_deg']:.2f}",
                f"{row['unmoved_deg']:.2f}",
                f"{row['kl']:.3f}" if "kl" in row else "",
                f"{row['faces']:.0f}",
            )
            for motion, row in drift.items()
        ],
    }
    yield Section("Soft labels", "soft_labels", values)
