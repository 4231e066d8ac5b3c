"""Networks: any timm backbone under pose heads, ours beside the paper's architecture, and weights from a file."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save, save_file
from torch import nn

from hpe_core.errors import SpecError
from hpe_core.networks.backbones import BOTNET101
from hpe_core.networks.checkpoint import load_net, save_net, start_from
from hpe_core.networks.models import PoseNet, check_backbone, closer, create_backbone
from hpe_core.spec.network import MEANING, WEIGHTS, NetSpec
from tests.faces import CROP, windows

SIZES = (112, 224)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_botnet101_is_resnet101_with_attention_in_its_last_stage(size):
    """Three 3x3 convolutions of 512 channels become query, key and value of 512 channels and relative positions."""
    side, head_width = size // 16, 512 // 4
    with torch.device("meta"):
        resnet = timm.create_model("resnet101", num_classes=0)
        botnet = create_backbone(NetSpec("botnet101"), size)
    positions = 2 * (2 * side - 1) * head_width
    assert count(botnet) == count(resnet) + 3 * (3 * 512**2 - 9 * 512**2 + positions)
    attention = [module for module in botnet.modules() if type(module).__name__ == "BottleneckAttn"]
    assert len(attention) == 3 and [block.d for block in BOTNET101.blocks] == [3, 4, 23, 3]
    assert all((a.pos_embed.height, a.pos_embed.width) == (side, side) for a in attention)


@pytest.mark.parametrize("size", SIZES)
def test_the_small_botnet_learns_at_both_sizes(size):
    net = PoseNet(NetSpec("test_botnet", bin_widths=(1, 3), regression_head=True), size)
    logits = net(torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8))
    assert [head.shape for head in logits.heads] == [(2, 3, 198), (2, 3, 66)] and logits.regression_B3.shape == (2, 3)
    for name, value in net.backbone.named_parameters():
        if name.endswith("bn.weight"):
            nn.init.ones_(value)  # timm begins with residual branches that say nothing
    net(torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8)).heads[0].square().mean().backward()
    attention = next(module for module in net.modules() if type(module).__name__ == "BottleneckAttn")
    assert attention.qkv.weight.grad.abs().sum() > 0 and attention.pos_embed.height_rel.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet34", "resnet50", "resnet152", "res2net101_26w_4s", "mobilenetv3_small_100"]
)
def test_the_papers_backbones_and_others_have_a_pooled_width(name):
    check_backbone(name)
    with torch.device("meta"):
        backbone = create_backbone(NetSpec(name), 112)
        assert backbone.eval()(torch.zeros(1, 3, 112, 112)).ndim == 2


@pytest.mark.parametrize(
    ("backbone", "mean", "std"),
    [("test_resnet", [0.5] * 3, [0.5] * 3), ("test_botnet", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])],
)
def test_the_narrowest_head_predicts_from_pixels_as_the_backbone_knows_them(backbone, mean, std):
    """By hand: RGB channels before rows and columns, in 0 ... 1, minus the backbone's mean, over its deviation."""
    torch.manual_seed(0)
    net = PoseNet(NetSpec(backbone, bin_widths=(3.0, 1.0, 2.0), limit_deg=93, regression_head=True), 64).eval()
    images = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    scaled = (images.double() / 255 - torch.tensor(mean)) / torch.tensor(std)
    with torch.no_grad():
        features = net.backbone(torch.einsum("bhwc->bchw", scaled).float())
        torch.testing.assert_close(net.features(images), features, rtol=1e-3, atol=1e-4)
        logits, probs, angles = net(images), net.predict(images), net.angles(images)
        assert [tuple(head.shape) for head in logits.heads] == [(3, 3, 62), (3, 3, 186), (3, 3, 93)]
        torch.testing.assert_close(probs, logits.heads[1].softmax(-1))
        torch.testing.assert_close(logits.heads[1].flatten(1), net.heads[1](features), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(logits.regression_B3, net.regression(features), rtol=1e-3, atol=1e-4)
        centers = torch.arange(186) - 92.5
        torch.testing.assert_close(angles, (probs * centers).sum(-1), rtol=1e-4, atol=1e-4)
        assert net.form.width == 1 and net.parameter_count() == count(net.backbone) + count(net.heads[1])


@pytest.mark.parametrize("head", ["bins", "sixd", "fisher"])
def test_a_mirrored_network_says_of_a_mirrored_face_the_mirrored_pose(head):
    """Yaw and roll change their signs; and what it answers is the mean over both pictures."""
    faces, nets = torch.from_numpy(windows(5)), list[PoseNet]()
    for mirrored in (False, True):
        torch.manual_seed(0)
        net = PoseNet(NetSpec("test_byobnet", head=head, mirrored=mirrored), CROP.size).eval()
        nn.init.normal_(net.heads[0].weight, std=1.0, generator=torch.manual_seed(1))
        nets.append(net)
    plain, net = nets
    with torch.inference_mode():
        said, flipped, alone = net.angles(faces), net.angles(faces.flip(2)), plain.angles(faces)
        torch.testing.assert_close(flipped, said * torch.tensor([1.0, -1.0, -1.0]), atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(net(faces).heads[0], plain(faces).heads[0])
        if head == "bins":
            mean = (alone + plain.angles(faces.flip(2)) * torch.tensor([1.0, -1.0, -1.0])) / 2
            torch.testing.assert_close(said, mean, atol=1e-4, rtol=1e-4)
        else:
            one, other = (plain.predict(each) for each in (faces, faces.flip(2)))
            signs = torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, 1.0], [-1.0, 1.0, 1.0]])
            torch.testing.assert_close(net.predict(faces), (one + other * signs) / 2)
    assert (said - alone).abs().max() > 1


LOOKS = (1.0, 0.75)


def nets_of(head, *specs):
    """Networks of the same weights."""
    for changes in specs:
        torch.manual_seed(0)
        net = PoseNet(NetSpec("test_byobnet", head=head, **changes), CROP.size).eval()
        nn.init.normal_(net.heads[0].weight, std=1.0, generator=torch.manual_seed(1))
        yield net


@pytest.mark.parametrize("head", ["bins", "sixd", "fisher"])
def test_a_network_of_several_looks_answers_their_mean(head):
    """By hand: the same middle of the window, enlarged by OpenCV; with mirror images a mirrored face is mirrored."""
    faces = torch.from_numpy(windows(5))
    plain, looks, near, both = nets_of(
        head, {}, {"looks": LOOKS}, {"looks": LOOKS[1:]}, {"looks": LOOKS, "mirrored": True}
    )
    side = CROP.size
    margin = round(side * (1 - LOOKS[1]) / 2)
    middles = [face[margin : side - margin, margin : side - margin].numpy().astype(np.float32) for face in faces]
    enlarged = np.stack([cv2.resize(middle, (side, side), interpolation=cv2.INTER_LINEAR) for middle in middles])
    with torch.inference_mode():
        far, close = plain.predict(faces), plain.predict(torch.from_numpy(enlarged))
        torch.testing.assert_close(near.predict(faces), close, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(looks.predict(faces), (far + close) / 2, atol=1e-4, rtol=1e-4)
        assert (far - close).abs().max() > 0.01
        torch.testing.assert_close(looks(faces).heads[0], plain(faces).heads[0], msg="training looks once")
        torch.testing.assert_close(
            both.predict(faces.flip(2)), both.form.mirror(both.predict(faces)), atol=1e-4, rtol=1e-4
        )
        back = both.form.mirror(looks.predict(faces.flip(2)))
        torch.testing.assert_close(both.predict(faces), (looks.predict(faces) + back) / 2, atol=1e-4, rtol=1e-4)


@given(st.integers(16, 320), st.data())
def test_a_closer_look_is_as_large_as_the_window_and_its_mirror_image_is_mirrored(side, data):
    margin = data.draw(st.integers(1, side // 4))
    images = torch.randint(0, 256, (1, side, side, 3), generator=torch.Generator().manual_seed(side))
    near = closer(images, margin)
    assert near.shape == images.shape
    torch.testing.assert_close(closer(images.flip(2), margin), near.flip(2), atol=0.05, rtol=0)


def test_looks_that_are_the_same_pixels_are_one_sentence():
    assert NetSpec(looks=(1, 0.85)).margins(64) == (0, 5) and NetSpec(looks=(0.85, 0.84)).margins(224) == (17, 18)
    with pytest.raises(SpecError, match=r"net.looks: two are the same at 32 pixels"):
        PoseNet(NetSpec("test_byobnet", looks=(0.86, 0.85)), 32)


@pytest.mark.parametrize(
    ("looks", "said"),
    [((), "names none"), ((1, 1), "repeats one"), ((1.1,), "1.1 is not between 0.5 and 1"), ((0.4,), "0.4 is not")],
)
def test_looks_that_mean_nothing_are_refused(looks, said):
    with pytest.raises(SpecError, match=f"looks.*{said}"):
        NetSpec(looks=looks)


def test_weights_come_from_a_file(tmp_path):
    torch.manual_seed(0)
    source = timm.create_model("test_resnet", num_classes=0)
    for value in source.parameters():
        nn.init.normal_(value)
    path = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), path)
    torch.manual_seed(1)
    net = PoseNet(NetSpec("test_resnet", pretrained=str(path)), 64)
    for name, value in net.backbone.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (NetSpec("resnet19"), "'resnet19' is no timm model; near: .*resnet1"),
        (NetSpec("botnet100"), "near: .*botnet101"),
        (NetSpec("botnet101", pretrained="hub"), "no published weights of botnet101; name a file or none"),
        (NetSpec("resnet18", pretrained="/no/such.safetensors"), "there is no weights file /no/such.safetensors"),
        (NetSpec("resnet18", pretrained="hub"), "needs the network, and HF_HUB_OFFLINE is set"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.backbone,
)
def test_a_network_that_cannot_be_made_is_one_sentence(spec, said, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SpecError, match=said):
        create_backbone(spec, 64)


def saved(folder, crop=CROP, **spec):
    torch.manual_seed(3)
    net = PoseNet(NetSpec("test_resnet", **spec), crop.size)
    for head in net.heads:
        nn.init.normal_(head.weight)
    save_net(folder, net, crop, {})
    return net.eval()


def logits(net):
    pixels = torch.randint(0, 256, (4, CROP.size, CROP.size, 3), generator=torch.Generator().manual_seed(1))
    return net.eval()(pixels.to(torch.uint8)).heads


def test_a_saved_network_that_is_none_is_one_sentence_that_names_its_folder(tmp_path):
    """Files that broke off, of other programs, of other networks, and pickles, which nobody opens."""
    saved(tmp_path, bin_widths=(3.0,))
    weights, meaning = (tmp_path / WEIGHTS).read_bytes(), json.loads((tmp_path / MEANING).read_text())
    spoiled: list[tuple[str, bytes]] = [
        *((WEIGHTS, data) for data in (b"", bytes(500), b"PK\3\4" + bytes(99), weights[:4000], b"\xff" * 300)),
        (WEIGHTS, save({"a": torch.zeros(3)})),
        (WEIGHTS, save({name: torch.zeros(3, 3) for name in load(weights)})),
        *((MEANING, text.encode()) for text in ("", "[]", "{}", "3", "no JSON")),
        (MEANING, b"\xff\xfe{"),
        *(
            (MEANING, json.dumps({**meaning, **change}).encode())
            for change in (
                {"net": None},
                {"net": {"backbone": "nobody"}},
                {"crop": []},
                {"crop": {"size": "x"}},
                {"notes": 3},
                {"convention": 1},
            )
        ),
    ]
    for name, data in spoiled:
        (tmp_path / WEIGHTS).write_bytes(weights)
        (tmp_path / MEANING).write_text(json.dumps(meaning))
        load_net(tmp_path)
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SpecError) as caught:
            load_net(tmp_path)
        assert str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value), data[:40]
        assert len(str(caught.value)) < 330 + len(str(tmp_path))


@torch.no_grad()
@pytest.mark.parametrize("width", [1.0, 2.0, 3.0, 7.0])
def test_a_network_that_starts_from_a_saved_one_says_the_same(tmp_path, width):
    """The same backbone, and at a new bin's centre what the nearest head says there: linear between its centres."""
    old = saved(tmp_path, bin_widths=(3.0, 9.0))
    new = PoseNet(NetSpec("test_resnet", bin_widths=(width,), limit_deg=93), CROP.size)
    start_from(new, CROP, tmp_path)
    (got,), told = logits(new), logits(old)
    nearest = 1 if width == 7 else 0
    for rows, wanted in zip(got.flatten(0, 1), told[nearest].flatten(0, 1), strict=True):
        expected = np.interp(new.bins[0].centers, old.bins[nearest].centers, wanted)
        np.testing.assert_allclose(rows, expected, atol=1e-4)


@torch.no_grad()
def test_equal_bins_start_as_an_equal_network(tmp_path):
    old = saved(tmp_path, regression_head=True)
    new = PoseNet(old.spec, CROP.size)
    start_from(new, dataclasses.replace(CROP, margin_px=9), tmp_path)
    for name, value in old.state_dict().items():
        torch.testing.assert_close(new.state_dict()[name], value, msg=name)


@torch.no_grad()
@pytest.mark.parametrize(("before", "after"), [("fisher", "fisher"), ("bins", "fisher"), ("sixd", "bins")])
def test_an_equal_head_of_rotations_is_kept_and_another_begins_anew(tmp_path, before, after):
    old = saved(tmp_path, head=before)
    new = PoseNet(NetSpec("test_resnet", head=after), CROP.size)
    untaught = new.heads[0].weight.clone()
    start_from(new, CROP, tmp_path)
    assert torch.equal(new.heads[0].weight, old.heads[0].weight if before == after else untaught)
    torch.testing.assert_close(new.backbone.state_dict(), old.backbone.state_dict())


@pytest.mark.parametrize(
    ("net", "crop", "said"),
    [
        (NetSpec("test_byobnet"), CROP, "its backbone is test_resnet, not test_byobnet"),
        (NetSpec("test_resnet"), dataclasses.replace(CROP, shape="stretch"), "its shape is square, not stretch"),
        (NetSpec("test_resnet"), dataclasses.replace(CROP, box_scale=1.2), "its box_scale is 1.0, not 1.2"),
    ],
)
def test_another_crop_or_backbone_is_no_start(tmp_path, net, crop, said):
    saved(tmp_path)
    with pytest.raises(SpecError, match=f"start: .* cannot be begun with: {said}"):
        start_from(PoseNet(net, crop.size), crop, tmp_path)
