"""Keys of `net`: the backbone and its heads."""

from typing import Annotated

from hpe_core.errors import check
from hpe_core.spec.serde import Count, Positive, Text, at_most, checked

WEIGHTS, MEANING = "model.safetensors", "model.json"  # the two files of a saved network
Degrees = Annotated[Positive, at_most(180)]


@checked
class NetSpec:
    """A timm backbone with RvC heads; the narrowest head predicts, the others regularise (offsets 3.2)."""

    backbone: Text = "resnet18"
    pretrained: str = "none"  # none | hub | path of a weights file
    bin_widths: tuple[float, ...] = (3.0,)
    limit_deg: Degrees = 99.0
    regression_head: bool = False
    landmarks: bool = False  # MNN: a decoder gives 68 landmarks and their visibility, too
    decoder_width: Count = 64
    decoder_stride: Count = 2  # a cell of its heat maps is at least so many pixels wide

    def __post_init__(self) -> None:
        check(bool(self.bin_widths), "bin_widths names no head")
        check(len(set(self.bin_widths)) == len(self.bin_widths), "bin_widths repeats a width")
        for width in self.bin_widths:
            check(0 < width <= self.limit_deg, f"bin_widths: {width} does not fit +-{self.limit_deg} degrees")
