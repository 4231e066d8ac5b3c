"""What every network cost and reached, and its curves."""

from collections.abc import Iterator

from hpe_core.learning.metrics import deciding
from workflows.engine.results import Role
from workflows.report import figures
from workflows.report.material import Material, Section
from workflows.report.page import line


def training(material: Material) -> Iterator[Section]:
    networks = {**material.results.teachers.networks, **material.results.student.networks}
    curves = {name: network.history for name, network in networks.items()}
    key = deciding(networks[Role.DISTILLED].history[0], "val/")
    kind = "geodesic, degrees" if key.endswith("geodesic") else "MAE, degrees"
    errors = figures.training_curves(curves, key, "Validation error", kind)
    losses = figures.training_curves(curves, "train/loss", "Training loss", "loss")
    values = {
        "networks": [
            line(name, f"{net.val_error:.2f}", str(net.best_epoch), str(net.epochs), f"{net.seconds:,.0f} s")
            for name, net in networks.items()
        ],
        "errors": material.book.chart("training_validation", errors),
        "losses": material.book.chart("training_loss", losses),
    }
    yield Section("Training", "training", values)
