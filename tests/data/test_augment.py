"""Laws of the augmentation: pixels and labels move together, proved on rendered heads."""

import dataclasses

import cv2
import numpy as np
import pytest
import torch

from hpe_core.data.augment import Augment, move
from hpe_core.data.batch import PoseBatch
from hpe_core.geometry import rotation
from hpe_core.geometry.bins import AngleBins
from hpe_core.geometry.crop import Box, canonical_crop, window
from hpe_core.render.scene import RenderedHead, render_head
from hpe_core.spec.data import CropSpec
from hpe_core.spec.training import AugmentSpec
from tests.faces import CROP, head

BINS = AngleBins.covering(99, 3)
NO, NOTHING = np.zeros(4, bool), np.zeros((4, 2), int)


def batch_of(crop: CropSpec = CROP, soft: bool = False) -> PoseBatch:
    heads = [head(i) for i in range(4)]
    cuts = [canonical_crop(h.image, h.box, crop) for h in heads]
    angles = torch.tensor([h.pose for h in heads], dtype=torch.float32)
    logits = -((torch.as_tensor(BINS.centers, dtype=torch.float32) - angles[..., None]) ** 2) / 32
    return PoseBatch(
        torch.from_numpy(np.stack([c.pixels for c in cuts])),
        angles,
        torch.tensor([[c.scale_x, c.scale_y] for c in cuts], dtype=torch.float32),
        logits.log_softmax(-1).half() if soft else None,
    )


def test_nothing_is_the_central_window():
    batch = batch_of(soft=True)
    out = move(batch, CROP.size, BINS, NO, np.zeros(4), NOTHING)
    assert torch.equal(out.images_BHWC, window(batch.images_BHWC, CROP.size))
    assert torch.equal(out.angles_B3, batch.angles_B3) and torch.equal(out.soft_B3N, batch.soft_B3N)


def test_flip_mirrors_pixels_labels_and_soft_labels_exactly():
    batch = batch_of(soft=True)
    out = move(batch, CROP.size, BINS, ~NO, np.zeros(4), NOTHING)
    assert torch.equal(out.images_BHWC.flip(2), window(batch.images_BHWC, CROP.size))
    assert np.array_equal(out.angles_B3.numpy(), rotation.mirror(batch.angles_B3.numpy()).astype(np.float32))
    assert torch.equal(out.soft_B3N, BINS.mirror(batch.soft_B3N))


def test_jitter_is_a_window():
    batch = batch_of()
    jitter = np.array([[6, -6], [0, 3], [-5, 0], [1, 1]])
    out = move(batch, CROP.size, BINS, NO, np.zeros(4), jitter)
    for i, (dx, dy) in enumerate(jitter):
        assert torch.equal(out.images_BHWC[i], window(batch.images_BHWC[i], CROP.size, dx, dy))


@pytest.mark.parametrize("flip", [False, True])
def test_a_warp_by_nothing_equals_the_gather(flip):
    batch, flips, jitter = batch_of(), np.full(4, flip), np.array([[2, 1], [0, 0], [-3, 4], [5, -5]])
    gathered = move(batch, CROP.size, BINS, flips, np.zeros(4), jitter).images_BHWC
    warped = move(batch, CROP.size, BINS, flips, np.full(4, 1e-9), jitter).images_BHWC
    assert (gathered.int() - warped.int()).abs().max() <= 1


@pytest.mark.parametrize("shape", ["square", "stretch"])
@pytest.mark.parametrize("degrees", [14.0, -9.0])
def test_a_turned_crop_is_the_crop_of_a_turned_picture(shape, degrees):
    """Turn the whole picture clockwise about the box's centre, cut the same box: the same pixels, within resampling."""
    crop = CropSpec(size=48, margin_px=10, shape=shape)
    batch = batch_of(crop)
    out = move(batch, crop.size, BINS, NO, np.full(4, degrees), NOTHING)
    for i in range(4):
        rendered = head(i)
        x, y = rendered.box.center
        # cv2 turns counter-clockwise for a positive angle, about a pixel's centre
        spin = cv2.getRotationMatrix2D((x - 0.5, y - 0.5), -degrees, 1.0)
        turned = cv2.warpAffine(rendered.image, spin, rendered.image.shape[1::-1], flags=cv2.INTER_LINEAR)
        direct = window(canonical_crop(turned, rendered.box, crop).pixels, crop.size)
        difference = np.abs(direct.astype(int) - out.images_BHWC[i].numpy())[8:-8, 8:-8]
        plain = np.abs(direct.astype(int) - window(batch.images_BHWC[i].numpy(), crop.size))[8:-8, 8:-8]
        assert difference.mean() < 4 and difference.mean() < 0.5 * plain.mean()


def test_a_turned_picture_of_a_head_is_the_picture_of_the_turned_head():
    """The convention through renderer, crop and turn: turning pixels by delta and rendering Rz(delta) R agree."""
    crop, pose, delta = CropSpec(size=64, margin_px=16), (12.0, 35.0, -5.0), 20.0
    first = render_head(3, 5, size=192, pose=pose, plain=True)
    target = tuple(float(v) for v in rotation.turn(pose, delta))
    second = render_head(3, 5, size=192, pose=target, plain=True)
    # Both boxes are put around the picture of the head's origin, so the turn is about it.
    side = first.box.width

    def cut(rendered: RenderedHead) -> np.ndarray:
        x, y = rendered.camera.project(np.zeros((1, 3)))[0]
        return canonical_crop(rendered.image, Box.around((float(x), float(y)), side, side), crop).pixels

    batch = PoseBatch(torch.from_numpy(cut(first)[None]), torch.tensor([pose]), torch.ones(1, 2))
    direct = window(cut(second), crop.size).astype(float)

    def difference(degrees: float) -> float:
        out = move(batch, crop.size, BINS, np.array([False]), np.array([degrees]), np.zeros((1, 2), int))
        if degrees == delta:
            assert np.allclose(out.angles_B3.numpy(), [target], atol=1e-4)
        return float(np.abs(direct - out.images_BHWC[0].numpy())[8:-8, 8:-8].mean())

    assert difference(delta) < 0.7 * min(difference(0.0), difference(-delta))


def test_soft_labels_follow_a_turn():
    batch = batch_of(soft=True)
    out = move(batch, CROP.size, BINS, NO, np.array([12.0, -12.0, 5.0, 0.0]), NOTHING)
    decoded = BINS.decode(out.soft_B3N.float().softmax(-1))
    before = BINS.decode(batch.soft_B3N.float().softmax(-1)) - batch.angles_B3
    inside = (out.angles_B3.abs() < 80).all(1)
    assert inside.sum() >= 2
    assert ((decoded - out.angles_B3 - before)[inside].abs() < 0.3).all()


def test_a_face_near_the_lock_stays_and_others_turn():
    """At 85 degrees of yaw a turn by 10 changes pitch and roll by some 60: that face keeps its pixels and labels."""
    batch = batch_of(soft=True)
    angles = torch.tensor([[0.0, 0.0, 0.0], [10.0, 45.0, -5.0], [3.0, 85.0, 4.0], [-8.0, -86.0, 0.0]])
    batch = dataclasses.replace(batch, angles_B3=angles)
    turns = np.array([10.0, -10.0, 10.0, -10.0])
    change = rotation.angle_error(rotation.turn(angles.numpy(), turns), angles.numpy()).max(1)
    assert (change[:2] < 20).all() and (change[2:] > 20).all()
    free = move(batch, CROP.size, BINS, NO, turns, NOTHING)
    out = move(batch, CROP.size, BINS, NO, turns, NOTHING, turn_gain=2.0)
    for i in (0, 1):
        assert torch.equal(out.images_BHWC[i], free.images_BHWC[i])
        assert torch.equal(out.angles_B3[i], free.angles_B3[i]) and not torch.equal(out.angles_B3[i], angles[i])
    still = move(batch, CROP.size, BINS, NO, np.zeros(4), NOTHING)
    for i in (2, 3):
        assert torch.equal(out.angles_B3[i], angles[i])
        assert (out.images_BHWC[i].int() - still.images_BHWC[i].int()).abs().max() <= 1
        assert torch.allclose(out.soft_B3N[i].float().exp(), batch.soft_B3N[i].float().exp(), atol=1e-3)


@pytest.mark.parametrize("chain", ["light", "ehpnet", "offsets"])
def test_chains_change_pixels_reproducibly_and_never_labels(chain):
    batch = batch_of()
    augment = Augment(AugmentSpec(flip=0, photometric=chain), CROP.size, BINS)
    changed = 0
    for seed in range(4):
        out = augment(batch, np.random.default_rng(seed))
        again = augment(batch, np.random.default_rng(seed))
        assert torch.equal(out.images_BHWC, again.images_BHWC) and torch.equal(out.angles_B3, batch.angles_B3)
        assert out.images_BHWC.shape == (4, CROP.size, CROP.size, 3) and out.images_BHWC.dtype == torch.uint8
        changed += int((out.images_BHWC != window(batch.images_BHWC, CROP.size)).any())
    assert changed >= 2
