"""What a network costs: its arithmetic, and the faces a second that it learns from, or answers, on a device."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import chain

import cv2
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from hpe_core.augment.augment import Augment
from hpe_core.data.batch import FaceData, PoseBatch, taken
from hpe_core.data.shares import FaceArrays
from hpe_core.geometry.crop import window
from hpe_core.geometry.landmarks import LANDMARKS
from hpe_core.networks.models import PoseNet
from hpe_core.spec.data import CropSpec
from hpe_core.spec.network import NetSpec
from hpe_core.spec.training import TrainSpec
from hpe_core.training.place import Place
from hpe_core.training.step import begin
from hpe_core.training.views import Views

DISTINCT = 48  # pictures that are made; the others are copies
ENDLESS = 1_000_000_000  # epochs


class HeldFaces(FaceData):
    """Rows in memory, of no shards."""

    def __init__(self, held: FaceArrays) -> None:
        self.held = held

    def __len__(self) -> int:
        return len(self.held)

    def rows(self, rank: int = 0, world: int = 1) -> FaceArrays:
        return self.held


def noise(crop: CropSpec, count: int, bins: int = 0) -> FaceArrays:
    """So many pictures of smooth noise, which cost what faces cost; with `bins` also soft labels."""
    random, side = np.random.default_rng(0), crop.stored_size
    rough = random.uniform(0, 255, (DISTINCT, 8, 8, 3)).astype(np.float32)
    distinct = np.stack([cv2.resize(each, (side, side), interpolation=cv2.INTER_CUBIC) for each in rough])
    distinct += random.normal(0, 8, distinct.shape)
    images = distinct.clip(0, 255).astype(np.uint8)[np.arange(count) % DISTINCT]
    angles = random.uniform(-60, 60, (count, 3)).astype(np.float32)
    soft = np.full((count, 3, bins), -np.log(bins), np.float16) if bins else None
    marks = np.ones((count, LANDMARKS, 3), np.float32)
    return FaceArrays(images, angles, np.ones((count, 2), np.float32), soft, marks)


@cache
def flops(net: NetSpec, size: int, *, backward: bool) -> int:
    """Floating-point operations of a face's pose, a multiply-add as two; with `backward`, of a whole training step."""
    model = PoseNet(replace(net, pretrained="none"), size).train(backward)
    faces = torch.zeros(2, size, size, 3, dtype=torch.uint8)  # one alone has no batch statistics
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        if backward:
            out = model(faces)
            sum(part.sum() for part in (*out.heads, *(out.landmarks or ()))).backward()
        else:
            model.predict(faces)
    return int(counter.get_total_flops()) // len(faces)


def views_of(spec: TrainSpec, net: PoseNet, rows: FaceArrays, place: Place, epochs: int = 1) -> Iterator[PoseBatch]:
    """Augmented views for the network of so many epochs of these rows."""
    views = Views(HeldFaces(rows), Augment(spec.augment, net.size, net.form), spec.optim.batch_size, spec.seed, place)
    return chain.from_iterable(views.epochs(0, epochs))


def step_rate(spec: TrainSpec, crop: CropSpec, rows: FaceArrays, place: Place, seconds: float) -> float:
    """Faces a second of training steps, augmentation in."""
    step = begin(spec, crop, place)
    step.model.train()
    batches = views_of(spec, step.state.net, rows, place, ENDLESS)

    def one() -> int:
        batch = next(batches)
        step(batch)
        return len(batch)

    return rate(one, place, seconds)


def forward_rate(net: PoseNet, rows: FaceArrays, place: Place, seconds: float) -> float:
    """Faces a second of passes forward."""
    net = net.to(place.device).to(memory_format=torch.channels_last).eval()
    images = window(taken(rows, np.arange(min(64, len(rows)))).images_BHWC, net.size).to(place.device)

    @torch.inference_mode()
    def one() -> int:
        with torch.autocast(place.device.type, torch.bfloat16, enabled=place.device.type == "cuda"):
            net.predict(images)
        return len(images)

    return rate(one, place, seconds)


def rate(work: Callable[[], int], place: Place, seconds: float) -> float:
    """Whatever `work` counts, a second, over so many seconds and after a few uncounted calls."""
    for _ in range(3):
        work()
    wait(place)
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        done += work()
        wait(place)
    return done / (time.perf_counter() - began)


def wait(place: Place) -> None:
    """Until the device has done what it was given."""
    if place.device.type == "cuda":
        torch.cuda.synchronize(place.device)
