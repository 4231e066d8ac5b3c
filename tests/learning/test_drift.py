"""Moved soft labels against teachers whose answer to a moved picture is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hpe_core.data.batch import PoseBatch
from hpe_core.geometry.bins import AngleBins
from hpe_core.geometry.forms import Form
from hpe_core.geometry.rotations import Rotations, to_matrix
from hpe_core.learning.drift import label_drift
from hpe_core.learning.ensemble import ensemble_probs
from hpe_core.spec.training import LabelSet
from tests.faces import CROP, face_row

BINS = AngleBins.covering(99, 3)
LABELS = LabelSet(("oracle",), 2, 2)


class Oracle:
    """A teacher that looks at one thing: how much brighter the left half of a window is than the right."""

    form: Form = BINS

    def eval(self) -> "Oracle":
        return self

    def angles(self, view: torch.Tensor) -> torch.Tensor:
        gray = view.float().mean((1, 3))
        half = view.shape[2] // 2
        lean = (gray[:, :half].mean(1) - gray[:, half:].mean(1)).clamp(-60, 60)
        return torch.stack([torch.full_like(lean, 10.0), lean, -lean], 1)

    def predict(self, view: torch.Tensor) -> torch.Tensor:
        means = self.angles(view)
        return (-((BINS.centers_like(means) - means[..., None]) ** 2) / 50).softmax(-1)


class Moody(Oracle):
    """The same teacher, but surer of faces whose left half is the brighter one."""

    def predict(self, view: torch.Tensor) -> torch.Tensor:
        means = self.angles(view)
        sd = torch.where(means[:, 1] > 0, 4.0, 9.0)[:, None, None]
        return (-((BINS.centers_like(means) - means[..., None]) ** 2) / (2 * sd**2)).softmax(-1)


class Compass(Oracle):
    """The same teacher, with rotations for an answer."""

    form = Rotations()

    def predict(self, view: torch.Tensor) -> torch.Tensor:
        return to_matrix(self.angles(view))


def faces() -> PoseBatch:
    rows = [face_row(i) for i in range(12)]
    pixels, poses = np.stack([row.crop.pixels for row in rows]), np.array([row.pose for row in rows], np.float32)
    return PoseBatch(torch.from_numpy(pixels), torch.from_numpy(poses), torch.ones(len(rows), 2))


def test_a_teacher_that_mirrors_with_the_picture_has_no_drift_under_a_flip():
    found = label_drift({"oracle": Oracle()}, LABELS, faces(), CROP.size, flip=1.0)
    assert found["moved_deg"] < 0.01 and abs(found["kl"]) < 1e-3
    assert found["unmoved_deg"] > 3, "labels left as they were are wrong for a mirrored face"


def test_the_divergence_is_that_of_the_moved_labels_from_what_the_teachers_say():
    """Not the other way round: a label that is too broad costs less than one that is too sharp."""
    batch, nets = faces(), {"oracle": Moody()}
    stored, said = (
        ensemble_probs(nets, images, CROP.size, [LABELS])[LABELS].double()
        for images in (batch.images_BHWC, batch.images_BHWC.flip(2))
    )
    moved = BINS.mirror(stored)
    kl = [
        float((p * (p.clamp_min(1e-7) / q.clamp_min(1e-7)).log()).sum((1, 2)).mean())
        for p, q in ((said, moved), (moved, said))
    ]
    assert label_drift(nets, LABELS, batch, CROP.size, flip=1.0)["kl"] == pytest.approx(kl[0], rel=0.02)
    assert abs(kl[0] - kl[1]) > 0.1 * kl[0]


def test_a_teacher_that_does_not_see_a_turn_drifts_by_what_the_labels_moved():
    still = label_drift({"oracle": Oracle()}, LABELS, faces(), CROP.size)
    turned = label_drift({"oracle": Oracle()}, LABELS, faces(), CROP.size, turn_deg=20.0)
    assert still["moved_deg"] < 1e-3 and still["unmoved_deg"] < 1e-3
    assert turned["moved_deg"] > 2 and turned["kl"] > still["kl"]


def test_a_face_that_training_would_not_turn_drifts_nowhere():
    """Near 90 degrees of yaw, where a turn swaps pitch for roll."""
    batch = replace(faces(), angles_B3=torch.tensor([[0.0, 87.0, 0.0]]).repeat(12, 1))
    held, free = (
        label_drift({"oracle": Oracle()}, LABELS, batch, CROP.size, turn_deg=20.0, turn_gain=gain) for gain in (2.0, 0)
    )
    assert held["moved_deg"] < 0.01 and free["moved_deg"] > 5


def test_a_zoom_leaves_the_labels_and_shows_a_teacher_what_is_further_out():
    batch, teachers = faces(), {"oracle": Oracle()}
    zoomed = label_drift(teachers, LABELS, batch, CROP.size, zoom=0.5)
    assert zoomed["moved_deg"] == zoomed["unmoved_deg"] > 0.1
    even = replace(batch, images_BHWC=torch.full_like(batch.images_BHWC, 90))
    assert label_drift(teachers, LABELS, even, CROP.size, zoom=0.1)["moved_deg"] < 1e-3, "nothing else is moved"


def test_labels_of_rotations_move_with_the_picture_and_drift_is_told_without_bins():
    labels = LabelSet(("compass",), 2, 2, form="rotations")
    flipped = label_drift({"compass": Compass()}, labels, faces(), CROP.size, flip=1.0)
    assert flipped["moved_deg"] < 0.01 and flipped["unmoved_deg"] > 3 and "kl" not in flipped
    turned = label_drift({"compass": Compass()}, labels, faces(), CROP.size, turn_deg=20.0)
    assert turned["moved_deg"] > 2, "it does not see a turn"
