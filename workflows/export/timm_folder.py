"""A saved network as a folder in timm's hub layout, for whoever has timm and not this project.

    timm.create_model("local-dir:FOLDER", pretrained=True)      (or "hf-hub:user/name" once it is uploaded)

gives backbone and predicting head as one timm classifier of 3 x K numbers. What that form cannot hold is said in the
folder's README: normalisation and decoding are the caller's, and heads that only regularise the training, the
regression head, and the crop are gone. A backbone whose classifier is no single linear layer is saved without a head.
The folder is loaded back and compared before it is called done.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from hpe_core.geometry.rotation import ANGLE_NAMES, CONVENTION
from hpe_core.spec.serde import to_dict
from workflows.engine.exported import TimmFolder

README = Path(__file__).with_name("timm.md.j2")
LOGIT_GAP = 1e-4  # largest difference that float32 sums in another order may make
KEPT = ("architecture", "classifier", "first_conv", "fixed_input_size", "pool_size")  # the rest tells of other weights


def write_timm_folder(net_folder: Path, out: Path, terms: str) -> TimmFolder:
    """Write the network in `net_folder` into the folder `out`, anew; returns architecture and whether the head is in.
    `terms` is the weights' licence in a sentence.

    Raises ValueError where timm loads another network than was saved.
    """
    import torch
    from timm.models import save_for_hf

    from hpe_core.networks.checkpoint import load_net

    saved = load_net(net_folder)
    net, crop = saved.net, saved.crop
    images = np.random.default_rng(0).integers(0, 256, (2, crop.size, crop.size, 3), dtype=np.uint8)
    with torch.inference_mode():
        features = net.features(torch.from_numpy(images))
        logits = net.heads[net.predicting](features)
    has_head = _attach_head(net)
    expected = logits if has_head else features
    mean, std = ([value / 255 for value in buffer.flatten().tolist()] for buffer in (net.mean_C11, net.std_C11))
    model: Any = net.backbone
    before = dict(model.pretrained_cfg)
    model.pretrained_cfg = {key: before[key] for key in KEPT if key in before} | {
        "input_size": (3, crop.size, crop.size),
        "mean": mean,
        "std": std,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "num_classes": model.num_classes,
    }
    bins = {"bins": to_dict(net.form)} if net.bins else {}
    meaning = {"angles": ANGLE_NAMES, "head": net.spec.head, **bins, "convention": CONVENTION, "crop": to_dict(crop)}
    arguments = {"img_size": crop.size} if before.get("fixed_input_size") else None
    if out.exists():
        shutil.rmtree(out)
    save_for_hf(model, str(out), model_config={"head_pose": meaning}, model_args=arguments, safe_serialization=True)
    gap = _gap(out, images, expected)
    if not gap <= LOGIT_GAP * max(1.0, float(expected.abs().max())):
        raise ValueError(f"{out}: what timm loads back differs by {gap:.2g} from the network that was saved")
    found = TimmFolder(net.spec.backbone, has_head)
    (out / "README.md").write_text(_readme(net, found, meaning, terms))
    return found


def _attach_head(net: Any) -> bool:
    """Give the backbone the predicting head as its classifier; False, and no classifier, where it takes none."""
    from torch import nn

    head, model = net.heads[net.predicting], net.backbone
    model.reset_classifier(head.out_features)
    classifier = model.get_classifier()
    if not isinstance(classifier, nn.Linear) or classifier.weight.shape != head.weight.shape:
        model.reset_classifier(0)
        return False
    classifier.load_state_dict(head.state_dict())
    return True


def _gap(folder: Path, images: Any, expected: Any) -> float:
    """Largest difference of the loaded model's output, fed as timm's own transforms would feed it."""
    import timm
    import torch

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    x_BCHW = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        return float((model((x_BCHW - mean) / std) - expected).abs().max())


def _readme(net: Any, found: TimmFolder, meaning: dict[str, Any], terms: str) -> str:
    import timm
    from jinja2 import StrictUndefined, Template

    exact: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    normalised = {key: net.backbone.pretrained_cfg[key] for key in ("mean", "std")}
    return Template(README.read_text(encoding="utf-8"), undefined=StrictUndefined, **exact).render(
        **meaning,
        **{key: f"[{', '.join(f'{value:.6g}' for value in values)}]" for key, values in normalised.items()},
        found=found,
        ours=timm.model_entrypoint(found.architecture).__module__.startswith("hpe_core"),
        others=len(net.heads) - 1 + (net.regression is not None),
        mirrored=net.spec.mirrored,
        looks=", ".join(f"{width:g}" for width in net.spec.looks),
        margins=net.margins,
        means=found.head and bool(net.bins),
        landmarks=net.spec.landmarks,
        terms=terms,
    )
