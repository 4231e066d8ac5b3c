"""What every network cost and reached, and its curves."""

from collections.abc import Iterator

from workflows.report import figures
from workflows.report.material import Material, Section
from workflows.report.page import line


def training(material: Material) -> Iterator[Section]:
    networks = {**material.results.teachers.networks, **material.results.student.networks}
    curves = {name: network.history for name, network in networks.items()}
    errors = figures.training_curves(curves, "val/mae", "Validation error", "MAE, degrees")
    losses = figures.training_curves(curves, "train/loss", "Training loss", "loss")
    values = {
        "networks": [
            line(name, f"{net.val_mae:.2f}", str(net.best_epoch), str(net.epochs), f"{net.seconds:,.0f} s")
            for name, net in networks.items()
        ],
        "errors": material.book.chart("training_validation", errors),
        "losses": material.book.chart("training_loss", losses),
    }
    yield Section("Training", "training", values)
