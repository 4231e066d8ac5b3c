"""Benchmarks of pictures in memory: rendered heads, offset windows, and the ensemble over them."""

import torch

from hpe_core.geometry.crop import FaceCrop, Image, canonical_crop, offset_grid, window
from hpe_core.learning.ensemble import ensemble_probs
from hpe_core.networks.models import PoseNet
from hpe_core.render.scene import RenderedHead, render_head
from hpe_core.spec.data import CropSpec
from hpe_core.spec.network import NetSpec
from hpe_core.spec.training import LabelSet
from workflows.bench.shared.children import read_rgb
from workflows.bench.shared.common import Row, compared, must_agree
from workflows.bench.shared.lab import CROP, PICTURE_PX, Lab, jpeg

SIZES, RENDERED = (64, 128, 192), 48  # eight persons of six pictures
GRIDS = [(size, radius, step) for radius, step in ((15, 5), (8, 1)) for size in (224, 112)]
WARPS = "one warpAffine an offset and face"


def render(lab: Lab) -> list[Row]:
    """Heads rendered from their number, against reading the same pictures from JPEG files."""
    return [rendered(lab, size) for size in SIZES]


def rendered(lab: Lab, size: int) -> Row:
    def heads(first: int) -> list[Image]:
        return [render_head(11, first + i, size=size, heads_per_person=6).image for i in range(RENDERED)]

    folder = lab.scratch()
    stored = [folder / f"{i}.jpg" for i in range(RENDERED)]
    for path, image in zip(stored, heads(0), strict=True):
        path.write_bytes(jpeg(image))
    must_agree({read_rgb(path).shape for path in stored} == {(size, size, 3)}, "sizes of the rendered pictures")
    counted = f"{RENDERED} heads a repeat, eight persons made anew; the rival reads {RENDERED} files of the same size"

    def ours(turn: int) -> int:
        return len(heads((turn + 1) * RENDERED))  # new persons each time: the renderer keeps the last ones

    def rival(turn: int) -> int:
        return len([read_rgb(path) for path in stored])

    return compared(f"render {size} px", "heads/s", ours, rival, lab.repeat, "imread of JPEG", counted)


def windows(lab: Lab) -> list[Row]:
    """Windows of the canonical crop, against one warp of the 450 px picture for each offset.

    We cut the canonical crop, and each offset is a view of it, which the network's first operation reads as it lies
    (the row of the ensemble shows that this costs nothing).
    """
    return [from_picture(lab, *grid) for grid in GRIDS]


def from_picture(lab: Lab, size: int, radius: int, step: int) -> Row:
    offsets, heads = offset_grid(radius, step), lab.heads[:2]
    spec, bare = CropSpec(size, radius), CropSpec(size, 0)

    def views(head: RenderedHead) -> list[Image]:
        pixels = canonical_crop(head.image, head.box, spec).pixels
        return [window(pixels, size, dx, dy) for dx, dy in offsets]

    def warps(head: RenderedHead) -> list[Image]:
        crop = canonical_crop(head.image, head.box, bare)
        return [warp(head, crop, bare, dx, dy) for dx, dy in offsets]

    def ours(turn: int) -> int:  # twenty times, for a time that a clock can tell
        return sum(len(views(head)) for _ in range(20) for head in heads)

    counted = (
        f"picture of {PICTURE_PX} px in memory to the {len(offsets)} windows of a face that the network reads: one "
        f"warp to {spec.stored_size} px and {len(offsets)} views of it, against {len(offsets)} warps to {size} px"
    )
    name = f"crop stage K={radius}, d={step}, {size} px"
    return compared(name, "windows/s", ours, lambda _: sum(map(len, map(warps, heads))), lab.repeat, WARPS, counted)


def warp(head: RenderedHead, crop: FaceCrop, bare: CropSpec, dx: int, dy: int) -> Image:
    """The head's window at an offset in pixels of the crop, cut from the picture itself."""
    return canonical_crop(head.image, head.box.moved(dx * crop.scale_x, dy * crop.scale_y), bare).pixels


def ensemble(lab: Lab) -> list[Row]:
    """The whole offset ensemble, against as many bare forwards of batches that lie ready."""
    radius, step = 15, 5
    labels = LabelSet(("",), radius, step)
    torch.manual_seed(0)
    net = PoseNet(NetSpec("resnet18"), CROP.size).eval()
    crops = torch.stack([torch.from_numpy(canonical_crop(h.image, h.box, CROP).pixels) for h in lab.heads[:4]])
    ready = [window(crops, CROP.size, dx, dy).contiguous() for dx, dy in offset_grid(radius, step)]

    def ours() -> torch.Tensor:
        return ensemble_probs({"": net}, crops, CROP.size, [labels])[labels]

    @torch.inference_mode()
    def rival() -> list[torch.Tensor]:
        return [net.predict(batch) for batch in ready]

    must_agree(torch.allclose(ours(), torch.stack(rival()).mean(0), atol=1e-5), "the ensemble's probabilities")
    counted = f"ResNet18, {len(crops)} faces x {len(ready)} windows of 112 px: slicing, forward, softmax, running mean"
    name, bare = f"offset ensemble K={radius}, d={step}", "forwards of ready batches"
    mine, theirs = (lambda _: len(ours()) * len(ready)), (lambda _: sum(map(len, rival())))
    return [compared(name, "windows/s", mine, theirs, lab.few, bare, counted)]
