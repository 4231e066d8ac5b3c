"""Laws of MNN: the decoder costs a pose nothing, losses are their definitions, and it learns where landmarks are."""

import dataclasses

import numpy as np
import pytest
import torch

from hpe_core.data.batch import FaceData
from hpe_core.data.rows import write_shard
from hpe_core.errors import SpecError
from hpe_core.geometry.crop import window
from hpe_core.geometry.landmarks import MIRROR_68, landmark_errors, mirror_landmarks
from hpe_core.learning.task import PoseTask
from hpe_core.networks.checkpoint import load_net, save_net, start_from
from hpe_core.networks.models import PoseNet, closer
from hpe_core.networks.multitask import HEAT_SD, LandmarkAnswer, landmark_parts
from hpe_core.spec.network import NetSpec
from hpe_core.spec.training import AugmentSpec, DistillSpec, OptimSpec, TrainSpec
from hpe_core.training.loop import fit, validate
from tests.faces import CROP, face_row, ordered, windows, write_heads

NET = NetSpec(backbone="test_byobnet", landmarks=True, decoder_width=16)
SPEC = TrainSpec(
    net=NET,
    optim=OptimSpec(epochs=24, batch_size=16, lr=1e-2, warmup_epochs=0.5),
    augment=AugmentSpec(turn_deg=8, jitter_px=2, photometric="none"),
    mse_weight=0.01,
)


def net_of(spec: NetSpec = NET) -> PoseNet:
    torch.manual_seed(0)
    return PoseNet(spec, CROP.size).eval()


@pytest.mark.parametrize("backbone", ["test_byobnet", "test_resnet", "mnn", "mobilenetv3_small_050"])
def test_the_pose_is_the_pose_of_the_network_without_landmarks(backbone):
    with_them = net_of(dataclasses.replace(NET, backbone=backbone))
    without = net_of(dataclasses.replace(NET, backbone=backbone, landmarks=False))
    without.load_state_dict({k: v for k, v in with_them.state_dict().items() if not k.startswith("decoder")})
    faces = torch.from_numpy(windows(3))
    with torch.inference_mode():
        answer, plain = with_them(faces), without(faces)
        torch.testing.assert_close(answer.heads, plain.heads, atol=1e-5, rtol=1e-5)
        assert torch.equal(with_them.angles(faces), without.angles(faces)), "and the decoder is not asked"
    assert plain.landmarks is None and with_them.parameter_count() == without.parameter_count()
    assert answer.landmarks.points_BL2.shape == (3, 68, 2) and answer.landmarks.heat_BLHW.shape[1] == 68
    assert answer.landmarks.heat_BLHW.shape[-1] == CROP.size // 2, "the last layer is as fine as the encoder's first"


def test_a_mirrored_network_says_of_a_mirrored_face_the_mirrored_landmarks():
    """By hand: x changes its sign, left points are right ones; and what it says is the mean over both pictures."""
    faces, nets = torch.from_numpy(windows(3)), [net_of(), net_of(dataclasses.replace(NET, mirrored=True))]
    for net in nets:
        torch.nn.init.normal_(net.decoder.regression[-1].weight, std=0.02, generator=torch.manual_seed(1))
        torch.nn.init.normal_(net.decoder.seen, generator=torch.manual_seed(2))  # who has learnt nothing sees all alike
    with torch.inference_mode():
        one, said = (net.answered(faces)[1] for net in nets)
        other, flipped = (net.answered(faces.flip(2))[1] for net in nets)
        assert torch.equal(nets[1].answered(faces)[0], nets[1].predict(faces))
    assert (one.points_BL2 - said.points_BL2).abs().max() > 0.1
    a, b, mean, back = (answer.points_BL2.numpy() for answer in (one, other, said, flipped))
    np.testing.assert_allclose(mean, (a + mirror_landmarks(b, 0)) / 2, atol=1e-4)
    np.testing.assert_allclose(back, mirror_landmarks(mean, 0), atol=1e-4)
    torch.testing.assert_close(said.seen_BL, (one.seen_BL + other.seen_BL[:, MIRROR_68]) / 2)


def test_landmarks_of_a_closer_look_are_places_of_the_window():
    """A landmark so many pixels from the middle of an enlarged centre is nearer to it in the window."""
    plain, near, both = (net_of(dataclasses.replace(NET, looks=looks)) for looks in ((1,), (0.75,), (1, 0.75)))
    faces = torch.from_numpy(windows(3))
    margin = near.spec.margins(CROP.size)[0]
    for net in (plain, near, both):
        torch.nn.init.normal_(net.decoder.regression[-1].weight, std=0.02, generator=torch.manual_seed(1))
        torch.nn.init.normal_(net.decoder.seen, generator=torch.manual_seed(2))
    with torch.inference_mode():
        far, said = plain.landmarks(faces), both.landmarks(faces)
        enlarged, close = plain.landmarks(closer(faces, margin)), near.landmarks(faces)
    width = 1 - 2 * margin / CROP.size
    torch.testing.assert_close(close.points_BL2, enlarged.points_BL2 * width)
    torch.testing.assert_close(said.points_BL2, (far.points_BL2 + close.points_BL2) / 2)
    torch.testing.assert_close(said.seen_BL, (far.seen_BL + enlarged.seen_BL) / 2)
    assert torch.equal(said.heat_BLHW, far.heat_BLHW) and (close.points_BL2 - far.points_BL2).abs().max() > 0.1


def test_a_heat_maps_peak_is_the_landmark_at_the_middle_of_its_cell_and_seen_a_probability():
    """x from the columns, y from the rows; the regression step begins as none."""
    net, cells, at = net_of(), CROP.size // 2, np.arange(68)
    peaks = torch.full((68, cells, cells), -100.0)
    peaks[at, at % 13, at % 16] = 100.0
    net.decoder.heat.register_forward_hook(lambda module, inputs, output: peaks.expand_as(output))
    with torch.inference_mode():
        said = net.landmarks(torch.from_numpy(windows(2)))
    middles = (np.stack([at % 16, at % 13], -1) + 0.5) * 2 - CROP.size / 2
    for points in (said.rough_BL2, said.points_BL2):
        np.testing.assert_allclose(points.numpy(), np.stack([middles] * 2), atol=1e-4)
    torch.testing.assert_close(said.marks_BL3[..., :2], said.points_BL2)
    torch.testing.assert_close(said.marks_BL3[..., 2], 1 / (1 + torch.exp(-said.seen_BL)))


def test_validation_measures_landmarks_in_the_picture_in_which_a_stretched_crop_is_not_square(tmp_path):
    crop = dataclasses.replace(CROP, shape="stretch")
    write_shard(tmp_path / "part-00000.parquet", [face_row(i, crop) for i in range(12)], crop, "raw")
    data, net = FaceData([tmp_path / "part-00000.parquet"], landmarks=True), net_of()
    (batch,) = ordered(data, 12)
    with torch.inference_mode():
        said = net.landmarks(window(batch.images_BHWC, crop.size)).points_BL2
    scales = batch.scales_B2[:, None].numpy()
    assert (scales[..., 0] / scales[..., 1]).std() > 0.01
    pairs = said.numpy() * scales, batch.landmarks_BL3[..., :2].numpy() * scales
    found = validate(net, data, crop, 5).summary()["nme"]
    assert found == pytest.approx(landmark_errors(*pairs, "box").mean(), rel=1e-4)


def test_a_backbone_without_levels_is_refused_by_name():
    with pytest.raises(SpecError, match=r"net\.landmarks needs .*; test_vit has none"):
        PoseNet(dataclasses.replace(NET, backbone="test_vit"), 160)


def answer_of(seed: int, faces: int = 4, cells: int = 16) -> LandmarkAnswer:
    rng = np.random.default_rng(seed)
    shapes = ((faces, 68, cells, cells), (faces, 68, 2), (faces, 68, 2), (faces, 68))
    return LandmarkAnswer(*(torch.from_numpy(rng.normal(0, 2, shape)).float() for shape in shapes))


def labels_of(seed: int, faces: int = 4) -> torch.Tensor:
    rng = np.random.default_rng([seed, 7])
    where = rng.uniform(-20, 20, (faces, 68, 2))  # some lie outside of the window
    return torch.from_numpy(np.concatenate([where, rng.integers(0, 2, (faces, 68, 1))], -1)).float()


def test_the_losses_are_their_definitions_over_what_is_known():
    answer, labels = answer_of(1), labels_of(2)
    labels[0] = torch.nan  # a face without landmarks
    labels[1, :30, :2] = torch.nan  # hidden, nobody knows where
    labels[2, :, 2] = torch.nan  # nobody knows whether
    parts = landmark_parts(answer, labels, 32, dataclasses.replace(SPEC, landmark_weight=1.0))
    heat, marks, seen = [], [], []
    cells = (np.arange(16) + 0.5) * 2 - 16
    for face in range(4):
        for one in range(68):
            x, y, is_seen = labels[face, one].tolist()
            if np.isfinite(is_seen):
                p = 1 / (1 + np.exp(-float(answer.seen_BL[face, one])))
                seen.append(-np.log(p if is_seen else 1 - p))
            if np.isfinite(x):
                marks.append(np.hypot(*(answer.points_BL2[face, one].numpy() - [x, y])) * 100 / 32)
                if max(abs(x), abs(y)) < 16:
                    logits = answer.heat_BLHW[face, one].numpy()
                    log_p = logits - np.log(np.exp(logits).sum())
                    bell = np.exp(-((cells[:, None] - y) ** 2 + (cells - x) ** 2) / 2 / (2 * HEAT_SD) ** 2)
                    heat.append(-(bell / bell.sum() * log_p).sum())
    assert len(heat) < len(marks) < len(seen) + 68
    by_hand = {name: sum(each) / (4 * 68) for name, each in (("heat", heat), ("marks", marks), ("seen", seen))}
    assert {name: float(value) for name, value in parts.items()} == pytest.approx(by_hand, rel=1e-4)


def test_parts_of_a_batch_add_up_to_the_batch():
    """Whatever each of them knows: a part with one known face must not give it the weight of all."""
    answer, labels = answer_of(4), labels_of(5)
    labels[2:, 1:] = torch.nan
    whole = landmark_parts(answer, labels, 32, SPEC)
    halves = [
        landmark_parts(LandmarkAnswer(*(part[rows] for part in answer)), labels[rows], 32, SPEC)
        for rows in (slice(0, 2), slice(2, 4))
    ]
    for name, value in whole.items():
        assert float(value) == pytest.approx(sum(float(half[name]) for half in halves) / 2, rel=1e-5)


def test_a_batch_that_knows_nothing_moves_nothing():
    answer = LandmarkAnswer(*(part.requires_grad_() for part in answer_of(3)))
    parts = landmark_parts(answer, torch.full((4, 68, 3), torch.nan), 32, SPEC)
    torch.stack(list(parts.values())).sum().backward()
    assert all(float(value.detach()) == 0 for value in parts.values())
    assert all(part.grad is None or not part.grad.any() for part in answer)


def test_the_weights_are_those_of_the_spec_and_a_student_learns_landmarks_too(tmp_path):
    (batch,) = ordered(FaceData(write_heads(tmp_path, 8), landmarks=True), 8)
    batch = dataclasses.replace(batch, images_BHWC=batch.images_BHWC[:, 6:-6, 6:-6].contiguous())
    net = net_of()
    names = {"heatmap_weight": "heat", "landmark_weight": "marks", "visibility_weight": "seen"}
    plain = PoseTask(SPEC, net)(net, batch)
    assert {"ce", "mse", *names.values()} == set(plain.parts)
    assert float(plain.loss.detach()) == pytest.approx(sum(map(float, plain.parts.values())), rel=1e-5)
    for key, name in names.items():
        doubled = PoseTask(dataclasses.replace(SPEC, **{key: 2 * getattr(SPEC, key)}), net)(net, batch).parts
        changed = {part for part in doubled if float(doubled[part]) != pytest.approx(float(plain.parts[part]))}
        assert changed == {name} and float(doubled[name]) == pytest.approx(2 * float(plain.parts[name]))
    soft = dataclasses.replace(batch, soft_B3N=torch.full((8, 3, 66), -np.log(66)).half())
    student = PoseTask(dataclasses.replace(SPEC, distill=DistillSpec(hard_weight=0)), net)(net, soft)
    assert set(student.parts) == {"kl", *names.values()}
    assert "heat" not in PoseTask(SPEC, net)(net, dataclasses.replace(batch, landmarks_BL3=None)).parts


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """(A network that learnt 96 heads, its figures, the validation files)."""
    folder, told = tmp_path_factory.mktemp("heads"), []
    train, val = write_heads(folder, 96), write_heads(folder, 24, split="val", first=96)
    net = fit(
        SPEC,
        CROP,
        FaceData(train, landmarks=True),
        FaceData(val, landmarks=True),
        on_epoch=lambda end: told.append(end.metrics),
    )
    return net, told, val


def test_it_learns_where_landmarks_are(learnt):
    """Better than the best guess that does not look: the mean place of each landmark."""
    _, told, val = learnt
    (batch,) = ordered(FaceData(val, landmarks=True), 24)
    marks = batch.landmarks_BL3[..., :2]
    sides = marks.amax(1) - marks.amin(1)
    guess = (marks - marks.mean(0)).norm(dim=-1).mean(1) * 100 / sides.prod(1).sqrt()
    assert told[-1]["val/nme"] < 0.95 * float(guess.mean()) and told[-1]["val/nme"] < 0.85 * told[0]["val/nme"]
    assert told[-1]["train/seen"] < told[0]["train/seen"]


def test_it_is_saved_read_back_and_begun_with(learnt, tmp_path):
    net, _, _ = learnt
    save_net(tmp_path / "mnn", net, CROP, {})
    saved, faces = load_net(tmp_path / "mnn").net, torch.from_numpy(windows(4))
    with torch.inference_mode():
        for name, values in net.state_dict().items():
            assert torch.equal(values, saved.state_dict()[name]), name
        for ours, theirs in zip(net.eval().landmarks(faces), saved.landmarks(faces), strict=True):
            # The trained one's weights lie in another order in memory, and not every processor sums alike in both.
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        pose_alone = net_of(dataclasses.replace(NET, landmarks=False))
        start_from(pose_alone, CROP, tmp_path / "mnn")
        assert torch.equal(pose_alone.angles(faces), saved.angles(faces)), "a network for poses takes its encoder"
        again = net_of()
        start_from(again, CROP, tmp_path / "mnn")
        assert torch.equal(again.landmarks(faces).points_BL2, saved.landmarks(faces).points_BL2)
