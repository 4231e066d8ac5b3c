"""Keys of `net`: the backbone and its heads."""

from dataclasses import dataclass

from hpe_core.errors import check


@dataclass(frozen=True)
class NetSpec:
    """A timm backbone with RvC heads; the narrowest head predicts, the others regularise (offsets 3.2)."""

    backbone: str = "resnet18"
    pretrained: str = "none"  # none | hub | path of a weights file
    bin_widths: tuple[float, ...] = (3.0,)
    limit_deg: float = 99.0
    regression_head: bool = False

    def __post_init__(self) -> None:
        check(bool(self.bin_widths), "net.bin_widths names no head")
        check(len(set(self.bin_widths)) == len(self.bin_widths), "net.bin_widths repeats a width")
        for width in self.bin_widths:
            check(0 < self.limit_deg <= 180, f"net.limit_deg must lie in (0, 180], got {self.limit_deg}")
            check(0 < width <= self.limit_deg, f"net.bin_widths: {width} does not fit +-{self.limit_deg} degrees")
