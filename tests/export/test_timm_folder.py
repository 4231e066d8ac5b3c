"""Laws of the timm folder: timm alone loads it, and decoding its logits gives the network's angles."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from hpe_core.networks.checkpoint import load_net, save_net
from hpe_core.networks.models import PoseNet
from hpe_core.spec.data import CropSpec
from hpe_core.spec.network import NetSpec
from workflows.export import timm_folder as hub

CROP = CropSpec(size=32, margin_px=4)


BINS = {"bin_widths": (9.0, 3.0), "regression_head": True}


def saved(folder: Path, backbone: str, **head: Any) -> Path:
    torch.manual_seed(0)
    net = PoseNet(NetSpec(backbone, **(head or BINS)), CROP.size)
    for head in net.heads:
        torch.nn.init.normal_(next(head.parameters()), std=0.3)
    save_net(folder, net.eval(), CROP, {})
    return folder


@pytest.mark.parametrize("head", ["sixd", "fisher"])
def test_the_readme_decodes_other_heads(tmp_path, head):
    assert hub.write_timm_folder(saved(tmp_path, "test_byobnet", head=head), tmp_path / "timm", "free for all").head
    angles, expected = decoded(tmp_path)
    torch.testing.assert_close(angles, expected, atol=1e-3, rtol=0)
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["head_pose"]["head"] == head


def decoded(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What the code of the README says of some windows, and what the network says."""
    readme = (folder / "timm" / "README.md").read_text()
    code = readme.split("```")[1].removeprefix("python").replace("FOLDER", str(folder / "timm"))
    crops = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    scope = {"crops": crops}
    with torch.inference_mode():
        exec(code, scope)
        return scope["angles"], load_net(folder).net.angles(crops)


@pytest.mark.parametrize(
    ("looks", "mirrored"), [((1.0,), False), ((1.0,), True), ((1, 0.75), False), ((0.75,), True), ((0.8, 1, 0.6), True)]
)
@pytest.mark.parametrize("backbone", ["test_byobnet", "test_vit"])  # a transformer has a grid of its own size
def test_timm_loads_backbone_and_head_and_the_readme_decodes_them(tmp_path, backbone, looks, mirrored):
    network = saved(tmp_path, backbone, **BINS, mirrored=mirrored, looks=looks)
    found = hub.write_timm_folder(network, tmp_path / "timm", "free for all")
    assert found.head
    readme = (tmp_path / "timm" / "README.md").read_text()
    assert "free for all" in readme and "2 head(s) that only regularised" in readme
    assert not any(word in readme.partition("What is lost")[2] for word in ("mirror", "looks", "landmarks"))
    enlarged = looks != (1.0,)  # by a size there, by a scale in our files: noise moves by thousandths of a degree
    torch.testing.assert_close(*decoded(tmp_path), atol=1e-2 if enlarged else 1e-3, rtol=0)
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["architecture"] == backbone and config["num_classes"] == 198
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32] and "url" not in config["pretrained_cfg"]
    assert config["head_pose"]["bins"] == {"width": 3.0, "count": 66}


def test_without_a_linear_classifier_the_backbone_alone_is_saved_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr(type(timm.create_model("test_byobnet")), "get_classifier", lambda self: (None, None))
    found = hub.write_timm_folder(saved(tmp_path, "test_byobnet"), tmp_path / "timm", "terms")
    assert not found.head and "the backbone alone" in (tmp_path / "timm" / "README.md").read_text()
    assert timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).num_classes == 0


def test_what_that_form_cannot_say_is_said(tmp_path):
    network = saved(
        tmp_path, "test_byobnet", head="sixd", mirrored=True, looks=(1, 0.75), landmarks=True, decoder_width=8
    )
    hub.write_timm_folder(network, tmp_path / "timm", "terms")
    lost = (tmp_path / "timm" / "README.md").read_text().partition("What is lost")[2]
    assert "the decoder of landmarks is left out" in lost and "a mean with that to the mirror image" in lost
    assert "a mean over looks at its centre, 1, 0.75 times as wide." in lost


def test_a_folder_that_loads_as_another_network_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_gap", lambda folder, images, expected: 0.5)
    with pytest.raises(ValueError, match="timm loads back differs by 0.5"):
        hub.write_timm_folder(saved(tmp_path, "test_byobnet"), tmp_path / "timm", "terms")
