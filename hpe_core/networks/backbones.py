"""Backbones that timm does not have by name: BotNet101, the second of EHPNet's three teachers, and MNN's encoder.

BotNet (Srinivas et al. 2021, "Bottleneck Transformers for Visual Recognition") is a ResNet whose last stage has
self-attention with relative positions in place of its 3 x 3 convolutions. EHPNet does not print its variant; this is
ResNet101's (3, 4, 23, 3) with stride 1 in the last stage, as BotNet's own S1: at 112 pixels that stage sees 7 x 7
positions, which cannot be halved. The positions are learnt for one image size, a multiple of 16.

MNN's encoder halves the picture from stage to stage by residual blocks, 160 pixels to 5 x 5. Its widths are not printed
where we could read them; these are ours.
"""

import dataclasses
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

BOTNET101 = ByoModelCfg(
    blocks=(
        ByoBlockCfg(type="bottle", d=3, c=256, s=1, gs=0, br=0.25),
        ByoBlockCfg(type="bottle", d=4, c=512, s=2, gs=0, br=0.25),
        ByoBlockCfg(type="bottle", d=23, c=1024, s=2, gs=0, br=0.25),
        ByoBlockCfg(type="self_attn", d=3, c=2048, s=1, gs=0, br=0.25),
    ),
    stem_type="7x7",
    stem_pool="maxpool",
    stem_chs=64,
    fixed_input_size=True,
    self_attn_layer="bottleneck",
    self_attn_kwargs={"num_heads": 4},
)
# The same blocks and stem with one bottleneck a stage: BotNet's code path in the time of a test.
TEST_BOTNET = dataclasses.replace(
    BOTNET101, blocks=tuple(dataclasses.replace(block, d=1, c=block.c // 8) for block in BOTNET101.blocks), stem_chs=16
)
MNN = ByoModelCfg(
    blocks=tuple(ByoBlockCfg(type="basic", d=2, c=c, s=2, gs=0, br=1.0) for c in (64, 128, 256, 256)),
    stem_type="3x3",
    stem_chs=64,
)


# Ours are trained from scratch, as EHPNet's teachers: no weights to fetch, ImageNet's normalisation.
default_cfgs = generate_default_cfgs(
    {
        name: {"input_size": (3, 224, 224), "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
        | {"first_conv": "stem.conv", "classifier": "head.fc", "fixed_input_size": True}
        for name in ("botnet101", "test_botnet")
    }
    | {"mnn": {"input_size": (3, 160, 160), "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}}
)


@register_model
def botnet101(pretrained: bool = False, **options: Any) -> Any:
    return build_model_with_cfg(ByobNet, "botnet101", pretrained, model_cfg=BOTNET101, **options)


@register_model
def test_botnet(pretrained: bool = False, **options: Any) -> Any:
    return build_model_with_cfg(ByobNet, "test_botnet", pretrained, model_cfg=TEST_BOTNET, **options)


@register_model
def mnn(pretrained: bool = False, **options: Any) -> Any:
    return build_model_with_cfg(ByobNet, "mnn", pretrained, model_cfg=MNN, **options)
