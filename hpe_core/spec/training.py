"""Keys of one network's training: optimiser, augmentation, distillation, and the soft labels that it asks for."""

import math
from dataclasses import replace
from typing import Annotated, Literal, NamedTuple

from hpe_core.errors import check
from hpe_core.spec.data import CropSpec
from hpe_core.spec.network import FormName, NetSpec
from hpe_core.spec.serde import Count, Natural, NotNegative, Positive, Share, at_least, at_most, below, checked
from hpe_core.system.files import json_sha256

LONGEST = 200  # bytes of teachers' names in a folder's; a disk takes 255, and MLflow 250 letters
HARD_LOSSES = {"bins": ("ehpnet", "offsets", "dldl", "ce"), "sixd": ("geodesic",), "fisher": ("fisher",)}


@checked
class OptimSpec:
    epochs: Count = 10
    batch_size: Annotated[int, at_least(2)] = 64
    batch_scaling: Literal["cut", "scale"] = "cut"  # batch_size is that of all workers, cut among them, or of each
    lr: Positive = 1e-3
    lr_scaling: Literal["linear", "sqrt", "none"] = "sqrt"  # batch_scaling scale: what lr does with the workers' number
    weight_decay: NotNegative = 0.0
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: NotNegative = 0.0
    clip_norm: NotNegative = 0.0  # 0 is off
    ema_decay: Annotated[NotNegative, below(1)] = 0.0  # 0 is off
    accumulate: Count = 1  # each batch goes through the network in so many parts; batch statistics are those of a part
    amp: bool = True  # bfloat16 on a GPU; a CPU computes in float32 all the same (bfloat16 halves its speed)
    channels_last: bool = True
    step: Literal["auto", "eager", "compiled", "graph"] = "auto"  # auto: a CUDA graph on one GPU, else eager
    deterministic: bool = False  # on a GPU the same weights to the last bit, at its price; a CPU makes them anyway

    def __post_init__(self) -> None:
        said = f"accumulate {self.accumulate} leaves less than two faces of a batch of {self.batch_size}"
        check(self.batch_size >= 2 * self.accumulate, said)
        check(self.warmup_epochs <= self.epochs, f"warmup_epochs {self.warmup_epochs:g} exceeds epochs {self.epochs}")

    def over(self, workers: int) -> "OptimSpec":
        """The same for so many workers: batch_size over all of them, and the learning rate that such a batch wants."""
        if self.batch_scaling == "cut":
            return self
        factor = {"linear": float(workers), "sqrt": math.sqrt(workers), "none": 1.0}[self.lr_scaling]
        return replace(self, batch_size=self.batch_size * workers, lr=self.lr * factor)


@checked
class AugmentSpec:
    """Pose-aware geometry first, then the papers' photometric chains (EHPNet 4.2, offsets 4.3)."""

    flip: Share = 0.5
    turn_deg: Annotated[NotNegative, at_most(45)] = 0.0  # in-plane turn drawn from +- this
    turn_gain: float = 2.0  # a face of which an angle would change by more than this times its turn stays; 0: none does
    jitter_px: Natural = 0  # window moved by up to this, inside the margin
    zoom: Annotated[NotNegative, at_most(0.5)] = 0.0  # window grown by a factor of 1 / (1 + this) to 1 + this
    photometric: Literal["none", "light", "ehpnet", "offsets"] = "light"
    strength: Share = 1.0  # scales the probability of the photometric chain
    backend: Literal["auto", "device", "albumentations"] = "auto"  # who recolours: batches on the device, or each face

    def __post_init__(self) -> None:
        said = f"turn_gain is 0 or at least 1 (roll itself changes by the turn), got {self.turn_gain}"
        check(self.turn_gain == 0 or self.turn_gain >= 1, said)


@checked
class DistillSpec:
    """scale * (hard_weight * hard loss + T^2 KL(soft labels || student)); offsets eq. 7 is 0.05 and scale 0.5.

    With head sixd the angle to the labels' rotation stands for the divergence, with head fisher that of matrix Fisher
    densities, but for the teachers' entropy; labels of both are mean rotations, by teachers of any head.
    """

    temperature: Positive = 1.0  # of bins alone
    hard_weight: NotNegative = 0.05
    scale: Positive = 1.0
    offset_radius: Natural = 0  # K, network pixels
    offset_step: Count = 1  # d, network pixels
    mirrored: bool = False  # the mean over each window's mirror image, too, with its answer mirrored back
    teachers: tuple[str, ...] = ()  # whose soft labels; empty is all
    labels: Literal["stored", "online"] = "stored"  # online: teachers see the augmented view in the training step
    distrust: NotNegative = 0.0  # k: a face whose labels scatter by v rad^2 (teachers, windows) counts 1 / (1 + k v)

    def __post_init__(self) -> None:
        check(len(set(self.teachers)) == len(self.teachers), "teachers repeats a name")


@checked
class TrainSpec:
    """One network, from weights to the end of its training: a teacher, a trial or a student."""

    net: NetSpec = NetSpec()
    optim: OptimSpec = OptimSpec()
    augment: AugmentSpec = AugmentSpec()
    hard_loss: Literal["ehpnet", "offsets", "dldl", "ce", "geodesic", "fisher"] = "ehpnet"  # the last two: sixd, fisher
    mse_weight: NotNegative = 1.0  # weight of EHPNet eq. 2 within eq. 3
    label_sd: Positive = 4.0  # dldl: of the normal distribution that stands for a label, degrees
    mae_weight: NotNegative = 0.02  # dldl: weight of the expectation's absolute error
    heatmap_weight: NotNegative = 1.0  # net.landmarks: weights of the cross-entropy of heat maps,
    landmark_weight: NotNegative = 0.1  # of the landmarks' mean error in percent of the window's side,
    visibility_weight: NotNegative = 1.0  # and of the cross-entropy of their visibility, beside the pose's loss
    distill: DistillSpec | None = None
    start: str = ""  # a saved network of this backbone and crop to begin with: a folder, shipped/NAME, or models:/...
    seed: Natural = 0

    def __post_init__(self) -> None:
        check(not self.start or self.net.pretrained == "none", "start and net.pretrained both give weights; drop one")
        fitting = HARD_LOSSES[self.net.head]
        said = f"hard_loss {self.hard_loss} does not fit net.head {self.net.head}; it takes {' or '.join(fitting)}"
        check(self.hard_loss in fitting, said)
        softened = self.distill is not None and self.distill.temperature != 1
        said = f"distill.temperature softens bins; net.head {self.net.head} takes 1"
        check(self.net.form == "bins" or not softened, said)


def no_start(net: NetSpec, crop: CropSpec, saved_net: NetSpec, saved_crop: CropSpec) -> str:
    """Why a network cannot begin with the weights of a saved one, or '': features of another backbone or of faces cut
    otherwise mean something else."""
    ours, saved = {"backbone": net.backbone} | crop.seen, {"backbone": saved_net.backbone} | saved_crop.seen
    return "; ".join(f"its {key} is {saved[key]}, not {ours[key]}" for key in ours if ours[key] != saved[key])


class LabelSet(NamedTuple):
    """Soft labels of one kind: whose, over which windows, in which form. Equal windows have one (radius, step)."""

    teachers: tuple[str, ...]
    radius: int
    step: int
    mirrored: bool = False
    form: FormName = "bins"

    @property
    def offsets(self) -> tuple[int, int]:
        return self.radius, self.step

    @property
    def name(self) -> str:
        """Of its folder, e.g. resnet+regnet-K15-d5, or resnet-K4-d4-mirrored-rotations. Of more teachers than a name
        can hold their number and a hash."""
        marks = ["mirrored"] * self.mirrored + [self.form] * (self.form != "bins")
        who = "+".join(self.teachers)
        if len(who.encode()) > LONGEST:
            who = f"{len(self.teachers)}-teachers-{json_sha256(self.teachers)[:12]}"
        return "-".join([who, f"K{self.radius}", f"d{self.step}", *marks])


def canonical_offsets(radius: int, step: int) -> tuple[int, int]:
    """(K, d) pairs with the same windows share one name: K is cut to a multiple of d, K < d is (0, 1)."""
    reach = radius // step
    return (reach * step, step) if reach else (0, 1)
