"""A timm backbone with pose heads. The model carries its preprocessing: input size, mean, std, and what it answers.

Each head is one linear layer to 3 x K numbers (`heads.py`). Of RvC heads the narrowest predicts, the others and the
tanh regression head (offsets eq. 3) only regularise the training (offsets 3.2), as do the landmarks of MNN
(`multitask.py`). Input is uint8 RGB, so that nothing outside the model can normalise differently.
"""

import difflib
import os
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpe_core.errors import SpecError, check
from hpe_core.geometry.bins import AngleBins
from hpe_core.geometry.forms import Form
from hpe_core.networks.heads import heads_of, predicting
from hpe_core.networks.multitask import LandmarkAnswer, LandmarkDecoder, decoder_for, encoded, mean_of
from hpe_core.spec.network import NetSpec

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PoseLogits(NamedTuple):
    """Raw outputs: one (B, 3, K) tensor a head in the order of `NetSpec.bin_widths`, and what else was asked for."""

    heads: tuple[Tensor, ...]
    regression_B3: Tensor | None
    landmarks: LandmarkAnswer | None = None


class View(NamedTuple):
    """What one pass is asked about: how wide it is, in window widths, and whether it is a mirror image."""

    images_BHWC: Tensor
    width: float
    flipped: bool


class PoseNet(nn.Module):
    """(B, H, W, 3) uint8 windows -> PoseLogits; `predict` -> (B, 3, N) answers, whose meaning is `form`."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, spec: NetSpec, size: int) -> None:
        super().__init__()
        self.spec, self.size, self.margins = spec, size, spec.margins(size)
        check(len(set(self.margins)) == len(self.margins), f"net.looks: two are the same at {size} pixels")
        self.kinds = heads_of(spec)
        self.predicting = predicting(self.kinds)
        self.backbone = create_backbone(spec, size)
        config = getattr(self.backbone, "pretrained_cfg", {}) or {}
        mean, std = config.get("mean", IMAGENET_MEAN), config.get("std", IMAGENET_STD)
        self.register_buffer("mean_C11", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std_C11", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)
        width = _feature_width(self.backbone, size)
        heads = [nn.Linear(width, 3 * kind.columns) for kind in self.kinds]
        self.heads = nn.ModuleList(heads)
        self.regression = nn.Linear(width, 3) if spec.regression_head else None
        self.decoder: LandmarkDecoder | None = None
        if spec.landmarks:
            self.decoder = decoder_for(self.backbone, spec, size, width)
        for head in [*heads, *([self.regression] if self.regression is not None else [])]:
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
        with torch.no_grad():
            for head, kind in zip(heads, self.kinds, strict=True):
                head.bias.copy_(kind.start().flatten())

    def normalized(self, images_BHWC: Tensor) -> Tensor:
        """uint8 windows -> (B, 3, H, W), as the backbone wants them."""
        x_BCHW = images_BHWC.permute(0, 3, 1, 2).to(self.mean_C11.dtype)  # a channels-last view
        return (x_BCHW - self.mean_C11) / self.std_C11

    def features(self, images_BHWC: Tensor) -> Tensor:
        """uint8 windows -> (B, F) pooled features."""
        return self.backbone(self.normalized(images_BHWC))

    def forward(self, images_BHWC: Tensor) -> PoseLogits:
        landmarks = None
        if self.decoder is None:
            features = self.features(images_BHWC).float()
        else:
            features, levels = encoded(self.backbone, self.normalized(images_BHWC), self.spec.decoder_stride)
            landmarks = self.decoder(levels, features, self.size)
        with torch.autocast(features.device.type, enabled=False):  # the heads are small, and angles need their digits
            heads = tuple(
                head(features).unflatten(1, (3, kind.columns))
                for head, kind in zip(self.heads, self.kinds, strict=True)
            )
            regression = None if self.regression is None else self.regression(features)
        return PoseLogits(heads, regression, landmarks)

    @property
    def form(self) -> Form:
        """What answers are."""
        return self.kinds[self.predicting].form

    @property
    def bins(self) -> tuple[AngleBins, ...]:
        """Of the RvC heads; none where there is another head."""
        return tuple(kind.form for kind in self.kinds if isinstance(kind.form, AngleBins))

    def predict(self, images_BHWC: Tensor) -> Tensor:
        """(B, 3, N) answers of the predicting head, means over the spec's looks; the other heads are not computed.
        With `spec.mirrored` a mirrored face has a mirrored pose, exactly."""
        return mean_of([self._predict(view) for view in self._views(images_BHWC)])

    def _views(self, images_BHWC: Tensor) -> list[View]:
        looks = [View(closer(images_BHWC, margin), 1 - 2 * margin / self.size, False) for margin in self.margins]
        return looks + [View(look.images_BHWC.flip(2), look.width, True) for look in looks if self.spec.mirrored]

    def _predict(self, view: View) -> Tensor:
        features = self.features(view.images_BHWC).float()
        with torch.autocast(features.device.type, enabled=False):
            logits = self.heads[self.predicting](features)
            return self._answer(view, logits.unflatten(1, (3, self.kinds[self.predicting].columns)))

    def _answer(self, view: View, logits_B3K: Tensor) -> Tensor:
        answers = self.kinds[self.predicting].answer(logits_B3K)
        return self.form.mirror(answers) if view.flipped else answers

    def angles(self, images_BHWC: Tensor) -> Tensor:
        """(B, 3) degrees (pitch, yaw, roll)."""
        return self.form.decode(self.predict(images_BHWC))

    def answered(self, images_BHWC: Tensor) -> tuple[Tensor, LandmarkAnswer | None]:
        """`predict`, and the landmarks of a network that has them: the encoder is asked once a look."""
        if self.decoder is None:
            return self.predict(images_BHWC), None
        answers, landmarks = zip(*map(self._answered, self._views(images_BHWC)), strict=True)
        return mean_of(answers), LandmarkAnswer.mean(landmarks)

    def _answered(self, view: View) -> tuple[Tensor, LandmarkAnswer]:
        said = self(view.images_BHWC)
        assert said.landmarks is not None
        return self._answer(view, said.heads[self.predicting]), said.landmarks.told(view.width, view.flipped)

    def landmarks(self, images_BHWC: Tensor) -> LandmarkAnswer:
        """68 landmarks and their visibility, of a network with `spec.landmarks`."""
        _, landmarks = self.answered(images_BHWC)
        assert landmarks is not None, "a network without a decoder"
        return landmarks

    def parameter_count(self) -> int:
        """Parameters that prediction uses: backbone and predicting head."""
        used = [*self.backbone.parameters(), *self.heads[self.predicting].parameters()]
        return sum(p.numel() for p in used)


def closer(images_BHWC: Tensor, margin: int) -> Tensor:
    """The centre of windows, without `margin` pixels on each side, enlarged to the whole.

    A scale says how large, for with a size the ONNX file would count the batch's rows. It is a little too large, since
    what comes out is rounded down to whole pixels, and in float32 one would be lost.
    """
    if not margin:
        return images_BHWC
    centre_BCHW = images_BHWC[:, margin:-margin, margin:-margin].permute(0, 3, 1, 2).float()
    scale = (images_BHWC.shape[1] + 1e-4) / centre_BCHW.shape[2]
    return F.interpolate(centre_BCHW, scale_factor=scale, mode="bilinear").permute(0, 2, 3, 1)


def create_backbone(spec: NetSpec, size: int) -> nn.Module:
    """A timm model without classifier for size^2 pictures. Raises SpecError for an unknown name or absent weights."""
    import timm

    check_backbone(spec.backbone)
    if spec.pretrained == "hub" and not timm.is_model_pretrained(spec.backbone):
        raise SpecError(f"net.pretrained=hub: there are no published weights of {spec.backbone}; name a file or none")
    options: dict[str, object] = {"num_classes": 0, "pretrained": spec.pretrained != "none"}
    if spec.pretrained not in ("none", "hub"):
        if not Path(spec.pretrained).is_file():
            raise SpecError(f"net.pretrained: there is no weights file {spec.pretrained}")
        options["pretrained_cfg_overlay"] = {"file": spec.pretrained}
    elif spec.pretrained == "hub" and os.environ.get("HF_HUB_OFFLINE"):
        raise SpecError("net.pretrained=hub needs the network, and HF_HUB_OFFLINE is set; name a weights file or none")
    try:
        try:
            return timm.create_model(spec.backbone, img_size=size, **options)  # transformers fix their grid
        except TypeError:
            return timm.create_model(spec.backbone, **options)
    except OSError as error:
        said = "could not be fetched (offline?): name a local file in net.pretrained, or none"
        why = str(error).splitlines()[0][:120]
        raise SpecError(f"pretrained weights of {spec.backbone} {said} ({why})") from None


def check_backbone(name: str) -> None:
    """Raises SpecError that names near backbones where neither timm nor `backbones` has one of this name."""
    import timm

    import hpe_core.networks.backbones  # noqa: F401  # registers ours

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        raise SpecError(f"net.backbone '{name}' is no timm model" + (f"; near: {', '.join(close)}" if close else ""))


@torch.no_grad()
def _feature_width(backbone: nn.Module, size: int) -> int:
    """Asked of the network itself: timm's num_features is not the pooled width for every family."""
    was_training = backbone.training
    width = int(backbone.eval()(torch.zeros(1, 3, size, size)).shape[-1])
    backbone.train(was_training)
    return width
