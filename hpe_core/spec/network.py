"""Keys of `net`: the backbone and its heads."""

from typing import Annotated, Literal

from hpe_core.errors import check
from hpe_core.spec.serde import Count, Positive, Text, at_most, checked

WEIGHTS, MEANING = "model.safetensors", "model.json"  # the two files of a saved network
CLOSEST = 0.5  # no look is narrower: that is a face without its outline
Degrees = Annotated[Positive, at_most(180)]
HeadName = Literal["bins", "sixd", "fisher"]  # each is a class of hpe_core/networks/heads.py
FormName = Literal["bins", "rotations"]  # what a network's answers and its soft labels are (hpe_core/geometry/forms.py)


@checked
class NetSpec:
    """A timm backbone with its head. `bins`: RvC heads, of which the narrowest predicts and the others regularise
    (offsets 3.2). `sixd`: two columns of a rotation (Zhou et al. 2019, 6DRepNet). `fisher`: a matrix Fisher density
    (Mohlin et al. 2020). The last two say any rotation; bin_widths and limit_deg mean nothing to them."""

    backbone: Text = "resnet18"
    pretrained: str = "none"  # none | hub | path of a weights file
    head: HeadName = "bins"
    bin_widths: tuple[float, ...] = (3.0,)
    limit_deg: Degrees = 99.0
    regression_head: bool = False
    mirrored: bool = False  # answers are means with those to the mirror image; a face costs twice as much
    looks: tuple[float, ...] = (1.0,)  # and over these: the window's centre, so many times as wide; each costs a pass
    landmarks: bool = False  # MNN: a decoder gives 68 landmarks and their visibility, too
    decoder_width: Count = 64
    decoder_stride: Count = 2  # a cell of its heat maps is at least so many pixels wide

    def __post_init__(self) -> None:
        check(bool(self.bin_widths), "bin_widths names no head")
        check(len(set(self.bin_widths)) == len(self.bin_widths), "bin_widths repeats a width")
        for width in self.bin_widths:
            check(0 < width <= self.limit_deg, f"bin_widths: {width} does not fit +-{self.limit_deg} degrees")
        check(bool(self.looks), "looks names none")
        check(len(set(self.looks)) == len(self.looks), "looks repeats one")
        for width in self.looks:
            check(CLOSEST <= width <= 1, f"looks: {width:g} is not between {CLOSEST} and 1, the whole window")
        said = f"regression_head regularises heads of bins; head {self.head} has none"
        check(self.head == "bins" or not self.regression_head, said)

    @property
    def form(self) -> FormName:
        """What this network's answers are."""
        return "bins" if self.head == "bins" else "rotations"

    def margins(self, size: int) -> tuple[int, ...]:
        """Pixels that each look leaves out on every side of a window of `size`."""
        return tuple(round(size * (1 - width) / 2) for width in self.looks)

    @property
    def farthest(self) -> float:
        """Degrees: no angle beyond +- this can be said."""
        return self.limit_deg if self.form == "bins" else 180.0
