"""Offset ensemble and teachers' ensemble (offsets eqs. 5, 6; EHPNet eq. 4), many label sets from one pass.

Each offset is a window of the canonical crop, a strided view of it, so the windows of all asked-for grids are visited
once, each network sees a window once, its softmax is added in place to every set that holds both, and nothing of size
S x batch is ever kept. The mean over teachers of means over windows is one mean, because both are plain averages of
probabilities: ensemble and offsets combine freely. So it is with mean rotations, the answers of other heads
(`geometry/forms.py`); teachers of bins give such to a set that holds rotations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpe_core.data.batch import PoseBatch
from hpe_core.geometry.crop import Image, offset_grid, window
from hpe_core.geometry.forms import Form, handed_on
from hpe_core.geometry.rotations import Rotations
from hpe_core.networks.models import PoseNet
from hpe_core.spec.training import LabelSet

Offsets = tuple[int, int]  # (K, d) in network pixels
GPU_ROWS, CPU_ROWS = 512, 64


def forward_rows(device: torch.device) -> int:
    """Rows of a forward pass. On a CPU more are no faster (docs/cluster.md); on a GPU nobody has measured."""
    return GPU_ROWS if device.type == "cuda" else CPU_ROWS


def folded(crops: Tensor) -> int:
    """Windows of these crops that a GPU sees in one forward pass. A CPU sees each alone: labels keep their bytes."""
    return max(1, GPU_ROWS // max(1, len(crops))) if crops.device.type == "cuda" else 1


def on_device(images: Image, device: torch.device) -> Tensor:
    """Pictures copied to the device; a GPU takes them from pinned memory, while it works on what came before."""
    host = torch.empty(images.shape, dtype=torch.uint8, pin_memory=device.type == "cuda")
    host.numpy()[:] = images
    return host.to(device, non_blocking=True)


@torch.inference_mode()
def ensemble_probs(
    nets: Mapping[str, PoseNet], crops_BHWC: Tensor, size: int, sets: Sequence[LabelSet], fold: int | None = None
) -> dict[LabelSet, Tensor]:
    """{set: (B, 3, N) mean answer over its teachers and windows, and their mirror images where the set says so} of
    uint8 canonical crops, in the set's form. `fold` windows go through a network together; None is what suits the
    device. Memory grows with `fold`, not with the number of windows. Raises ValueError."""
    grids = {labels: set(offset_grid(*labels.offsets)) for labels in sets}
    means: dict[LabelSet, Tensor] = {}

    def add(to: list[LabelSet], form: Form, answers: Tensor) -> None:
        for labels in to:
            part = handed_on(form, answers, labels.form)
            if labels not in means:
                means[labels] = torch.zeros_like(part)
            means[labels].add_(part, alpha=1.0 / (len(grids[labels]) * (1 + labels.mirrored) * len(labels.teachers)))

    windows, fold = sorted(set().union(*grids.values())), fold or folded(crops_BHWC)
    for start in range(0, len(windows), fold):
        part = windows[start : start + fold]
        for name, net in nets.items():
            wanted = {at: [labels for labels in sets if at in grids[labels] and name in labels.teachers] for at in part}
            seen = [at for at in part if wanted[at]]
            for at, probs in zip(seen, _predicted(net, crops_BHWC, size, seen), strict=True):
                add(wanted[at], net.form, probs)
            # The mirror images of these windows; the grid is symmetric, so all windows are those of the mirror.
            both = {at: [labels for labels in wanted[at] if labels.mirrored] for at in seen}
            twice = [at for at in seen if both[at]]
            for at, probs in zip(twice, _predicted(net, crops_BHWC, size, twice, flip=True), strict=True):
                add(both[at], net.form, net.form.mirror(probs))
    return means


def _predicted(
    net: PoseNet, crops_BHWC: Tensor, size: int, at: Sequence[tuple[int, int]], *, flip: bool = False
) -> Sequence[Tensor]:
    """(B, 3, N) answers in each of some windows, or of their mirror images, from one forward pass."""
    views = [window(crops_BHWC, size, dx, dy) for dx, dy in at]
    views = [view.flip(2) for view in views] if flip else views
    if len(views) < 2:
        return [net.predict(view) for view in views]
    return net.predict(torch.cat(views)).unflatten(0, (len(views), -1)).unbind()


def form_of(nets: Mapping[str, PoseNet], labels: LabelSet) -> Form:
    """What the soft labels of a set are that these teachers make."""
    form = nets[labels.teachers[0]].form
    return form if form.name == labels.form else Rotations()


class OnlineTeachers:
    """Soft labels of the very view that the student is shown (flipped, turned, recoloured), made in the step."""

    def __init__(self, nets: Mapping[str, PoseNet], size: int, labels: LabelSet) -> None:
        self.nets = {name: nets[name].eval() for name in labels.teachers}
        self.size, self.labels, self.form = size, labels, form_of(nets, labels)

    @property
    def view_size(self) -> int:
        """Side of the augmented view: the network's window and the reach of the offsets on every side."""
        return self.size + 2 * self.labels.radius

    def __call__(self, batch: PoseBatch) -> PoseBatch:
        """Augmented views (B, view_size, view_size, 3) -> windows with soft labels (B, 3, N)."""
        probs = ensemble_probs(self.nets, batch.images_BHWC, self.size, [self.labels])[self.labels]
        # `inference_mode` tensors cannot enter a loss's graph; a clone made outside of it can.
        soft = self.form.labels(probs.clone())
        return replace(batch, images_BHWC=window(batch.images_BHWC, self.size), soft_B3N=soft)


@torch.inference_mode()
def window_answers(
    net: PoseNet, crops_BHWC: Tensor, size: int, radius: int, fold: int | None = None
) -> NDArray[np.floating]:
    """What may be averaged over windows, of every window with |dx|, |dy| <= radius: (2 radius + 1, 2 radius + 1, B, 3)
    angles, or mean rotations (..., 3, 3), indexed [dy, dx].

    `fold` is that of `ensemble_probs`.
    """
    side, windows, fold = 2 * radius + 1, offset_grid(radius, 1), fold or folded(crops_BHWC)
    seen = []
    for start in range(0, len(windows), fold):
        part = _predicted(net, crops_BHWC, size, windows[start : start + fold])
        seen.append(net.form.averaged(torch.stack(list(part))))
    return torch.cat(seen).unflatten(0, (side, side)).cpu().numpy()


def offset_table(windows_YXB: NDArray[np.floating], form: Form) -> Mapping[Offsets, NDArray[np.float64]]:
    """The offset ensemble's angles for every (K, d) up to the radius, from one pass over the d = 1 windows.

    The angle decoded of bins is linear in the probabilities, so the ensemble's angle is the mean of the windows' angles
    (offsets tables 2-4 and figure 7); of rotations it is decoded from their mean.
    Returns {(K, d): (B, 3) degrees} for 0 <= K <= radius, 1 <= d <= max(1, radius).
    """
    radius = windows_YXB.shape[0] // 2
    table = {}
    for k in range(radius + 1):
        for d in range(1, max(1, radius) + 1):
            reach = k // d * d
            picked = slice(radius - reach, radius + reach + 1, d)
            mean = windows_YXB[picked, picked].astype(np.float64).mean(axis=(0, 1))
            table[k, d] = form.angles_of(torch.from_numpy(mean)).double().numpy()
    return table
