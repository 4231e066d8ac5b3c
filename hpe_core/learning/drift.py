"""How far moved soft labels lie from what the teachers say about the moved picture.

A stored soft label belongs to the crop as it lies in the shard. Under a flip its yaw and roll bins are reversed, under
a turn each distribution is shifted by the change of the hard label (`augment.move`); mean rotations are turned
themselves; a zoom leaves all as they are. All are exact only for a teacher that treats mirrored, turned and wider
faces alike; this measures the rest, on the faces and augmentation of a run (seen in the demo: docs/results.md).
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hpe_core.augment.moves import move, random_zooms
from hpe_core.data.batch import PoseBatch
from hpe_core.geometry.rotation import euler_error
from hpe_core.learning.ensemble import OnlineTeachers, ensemble_probs
from hpe_core.learning.losses import soft_label_kl
from hpe_core.networks.models import PoseNet
from hpe_core.spec.training import LabelSet


def label_drift(
    nets: Mapping[str, PoseNet],
    labels: LabelSet,
    batch: PoseBatch,
    size: int,
    *,
    flip: float = 0.0,
    turn_deg: float = 0.0,
    turn_gain: float = 0.0,
    zoom: float = 0.0,
) -> dict[str, float]:
    """Stored labels of `batch` (canonical crops) after a random flip, turn and zoom, against the teachers on that view.

    Returns mean absolute angle differences in degrees, `moved_deg` for labels moved along and `unmoved_deg` for labels
    left as they were, and of bins `kl`, the mean KL(teachers on the view || moved labels) summed over angles, in nats.
    """
    random, count = np.random.default_rng(0), len(batch)
    flips, turns = random.random(count) < flip, random.uniform(-turn_deg, turn_deg, count)
    zooms = random_zooms(zoom, count, random)
    online = OnlineTeachers(nets, size, labels)
    form = online.form
    stored = form.labels(ensemble_probs(nets, batch.images_BHWC, size, [labels])[labels].clone())
    still = np.zeros((count, 2), np.int64)
    moved = move(replace(batch, soft_B3N=stored), online.view_size, form, flips, turns, still, turn_gain, zooms)
    assert moved.soft_B3N is not None
    said = online(moved).soft_B3N
    assert said is not None
    angles, carried, unmoved = (
        form.decode(form.answers(each)).cpu().numpy() for each in (said, moved.soft_B3N, stored)
    )
    found = {
        "moved_deg": float(euler_error(carried, angles).mean()),
        "unmoved_deg": float(euler_error(unmoved, angles).mean()),
    }
    return found | ({"kl": float(soft_label_kl(moved.soft_B3N.float(), said))} if form.name == "bins" else {})
