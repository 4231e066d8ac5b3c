"""Rendered faces as shards, without Ray: the smallest real input for tests of the library and the stages."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hpe_core.data.batch import FaceData, PoseBatch, taken
from hpe_core.data.rows import read_shard, write_shard, write_soft_labels
from hpe_core.datasets.base import FaceRow
from hpe_core.detection.fit import DetectorFit
from hpe_core.geometry.crop import Image, canonical_crop, window
from hpe_core.geometry.rotation import CONVENTION
from hpe_core.learning.calibration import Calibration
from hpe_core.predictor import CALIBRATION_NOTE, FIT_NOTE, INPUT, OUTPUTS, contract_of
from hpe_core.render.scene import RenderedHead, render_head
from hpe_core.spec.data import CropSpec
from hpe_core.spec.serde import to_dict

CROP = CropSpec(size=32, margin_px=6)
NET_CROP = CropSpec(size=32, margin_px=6, box_scale=1.1)  # of `save_untrained`
FIT = DetectorFit(1.4, 1.2, 0.1)
CALIBRATION = Calibration((1.5, 0.5, 2.0), ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (3.0, 3.0, 3.0)), 77)
NOTES = {FIT_NOTE: to_dict(FIT), CALIBRATION_NOTE: to_dict(CALIBRATION)}


@cache
def head(index: int) -> RenderedHead:
    return render_head(7, index, size=64)


def face_row(index: int, crop: CropSpec = CROP) -> FaceRow:
    rendered = head(index)
    cut = canonical_crop(rendered.image, rendered.box, crop)
    marks = np.column_stack([cut.to_crop(rendered.landmarks), rendered.visible]).astype(np.float32)
    return FaceRow(rendered.sample_id, rendered.group, "", rendered.pose, cut, marks)


def windows(count: int, *, first: int = 0) -> Image:
    """Rendered heads as the network sees them, (count, size, size, 3) uint8."""
    return window(np.stack([face_row(first + i).crop.pixels for i in range(count)]), CROP.size)


def write_heads(folder: Path, count: int, *, split: str = "train", first: int = 0, per_shard: int = 24) -> list[Path]:
    """Rendered heads `first` ... as shards of dataset 'heads'; returns the files."""
    files = []
    for part, start in enumerate(range(first, first + count, per_shard)):
        rows = [face_row(i) for i in range(start, min(start + per_shard, first + count))]
        path = folder / f"heads.{split}" / f"part-{part:05d}.parquet"
        write_shard(path, rows, CROP, "raw")
        files.append(path)
    return files


def ordered(data: FaceData, batch_size: int, **who: int) -> Iterator[PoseBatch]:
    """Every row once, in file order; of several workers those of one."""
    rows = data.rows()
    return (taken(rows, index) for index in data.in_order(batch_size, **who))


def marked_labels(files: Sequence[Path], folder: Path, *, rotations: bool = False) -> list[Path]:
    """Soft labels that say whose they are: every bin, or every column of a rotation, holds the hard label."""
    folder.mkdir(exist_ok=True)
    for file in files:
        shard = read_shard(file)
        marks = np.repeat(shard.angles[:, :, None], 3 if rotations else 66, axis=2)
        marks = marks.astype(np.float32 if rotations else np.float16)
        write_soft_labels(folder / file.name, shard.sample_ids, marks, "test")
    return [folder / file.name for file in files]


def exchanged(labels: Sequence[Path], folder: Path) -> list[Path]:
    """The right names with the labels of two shards exchanged."""
    folder.mkdir(exist_ok=True)
    for label, other in zip(labels, [labels[1], labels[0], *labels[2:]], strict=True):
        (folder / label.name).write_bytes(other.read_bytes())
    return [folder / label.name for label in labels]


def write_onnx(path: Path) -> Path:
    """An ONNX file that the predictor loads: its angles are the mean red, green and blue of the window."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", [INPUT], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], [OUTPUTS[0]], axes=[1, 2], keepdims=0),
        helper.make_node("Identity", [OUTPUTS[0]], [OUTPUTS[1]]),
    ]
    images = helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["B", CROP.size, CROP.size, 3])
    answers = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 3]) for name in OUTPUTS]
    graph = helper.make_graph(nodes, "mean colour", [images], answers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, contract_of(CROP, CONVENTION))
    onnx.save(model, path)
    return path


def noise(count: int, size: int = CROP.size, seed: int = 1) -> Image:
    """(count, size, size, 3) uint8 that shows nothing."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def save_untrained(
    folder: Path, backbone: str = "test_resnet", notes: Mapping[str, object] | None = None, **more: Any
) -> Path:
    """Save a network whose answers differ from face to face, though it has learnt nothing; returns its folder. `more`
    are other keys of its spec."""
    import torch

    from hpe_core.networks.checkpoint import save_net
    from hpe_core.networks.models import PoseNet
    from hpe_core.spec.network import NetSpec

    torch.manual_seed(0)
    net = PoseNet(NetSpec(backbone, bin_widths=(3.0, 9.0), **more), NET_CROP.size)
    net.train()(torch.from_numpy(windows(24)))  # statistics of faces
    for head in net.heads:
        torch.nn.init.normal_(next(head.parameters()))
    if net.decoder is not None:
        torch.nn.init.normal_(net.decoder.regression[-1].weight, std=0.02)
    save_net(folder, net.eval(), NET_CROP, NOTES if notes is None else notes)
    return folder
