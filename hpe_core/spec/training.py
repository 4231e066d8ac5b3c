"""Keys of one network's training: optimiser, augmentation, distillation, and the soft labels that it asks for."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from hpe_core.errors import check
from hpe_core.spec.network import NetSpec


@dataclass(frozen=True)
class OptimSpec:
    epochs: int = 10
    batch_size: int = 64  # over all workers
    lr: float = 1e-3
    weight_decay: float = 0.0
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    clip_norm: float = 0.0  # 0 is off
    ema_decay: float = 0.0  # 0 is off
    accumulate: int = 1  # each batch goes through the network in so many parts; batch statistics are those of a part
    amp: bool = False  # bfloat16 on a GPU; a CPU computes in float32 all the same (bfloat16 halves its speed)
    channels_last: bool = False
    compile: bool = False  # torch.compile; needs a C++ compiler on the worker

    def __post_init__(self) -> None:
        check(self.accumulate >= 1, f"optim.accumulate must be at least 1, got {self.accumulate}")
        check(
            self.batch_size >= 2 * self.accumulate,
            f"optim.accumulate {self.accumulate} leaves less than two faces of a batch of {self.batch_size}",
        )
        check(self.epochs >= 1, f"optim.epochs must be at least 1, got {self.epochs}")
        check(self.batch_size >= 2, f"optim.batch_size must be at least 2, got {self.batch_size}")
        check(self.lr > 0, f"optim.lr must be positive, got {self.lr}")
        check(0 <= self.ema_decay < 1, f"optim.ema_decay must lie in [0, 1), got {self.ema_decay}")
        check(0 <= self.warmup_epochs <= self.epochs, "optim.warmup_epochs must lie in 0 ... epochs")


@dataclass(frozen=True)
class AugmentSpec:
    """Pose-aware geometry first, then the papers' photometric chains (EHPNet 4.2, offsets 4.3)."""

    flip: float = 0.5
    turn_deg: float = 0.0  # in-plane turn drawn from +- this
    turn_gain: float = 2.0  # a face of which an angle would change by more than this times its turn stays; 0: none does
    jitter_px: int = 0  # window moved by up to this, inside the margin
    photometric: Literal["none", "light", "ehpnet", "offsets"] = "light"
    strength: float = 1.0  # scales the probability of the photometric chain

    def __post_init__(self) -> None:
        check(0 <= self.flip <= 1, f"augment.flip is a probability, got {self.flip}")
        check(0 <= self.turn_deg <= 45, f"augment.turn_deg must lie in 0 ... 45, got {self.turn_deg}")
        check(
            self.turn_gain == 0 or self.turn_gain >= 1,
            f"augment.turn_gain is 0 or at least 1 (roll itself changes by the turn), got {self.turn_gain}",
        )
        check(self.jitter_px >= 0, f"augment.jitter_px must not be negative, got {self.jitter_px}")
        check(0 <= self.strength <= 1, f"augment.strength must lie in [0, 1], got {self.strength}")


@dataclass(frozen=True)
class DistillSpec:
    """scale * (hard_weight * hard loss + T^2 KL(soft labels || student)); offsets eq. 7 is 0.05 and scale 0.5."""

    temperature: float = 1.0
    hard_weight: float = 0.05
    scale: float = 1.0
    offset_radius: int = 0  # K, network pixels
    offset_step: int = 1  # d, network pixels
    teachers: tuple[str, ...] = ()  # whose soft labels; empty is all
    labels: Literal["stored", "online"] = "stored"  # online: teachers see the augmented view in the training step

    def __post_init__(self) -> None:
        check(len(set(self.teachers)) == len(self.teachers), "distill.teachers repeats a name")
        check(self.temperature > 0, f"distill.temperature must be positive, got {self.temperature}")
        check(self.hard_weight >= 0, f"distill.hard_weight must not be negative, got {self.hard_weight}")
        check(self.scale > 0, f"distill.scale must be positive, got {self.scale}")
        check(self.offset_radius >= 0, f"distill.offset_radius (K) must not be negative, got {self.offset_radius}")
        check(self.offset_step >= 1, f"distill.offset_step (d) must be at least 1, got {self.offset_step}")


@dataclass(frozen=True)
class TrainSpec:
    """One network, from weights to the end of its training: a teacher, a trial or a student."""

    net: NetSpec = NetSpec()
    optim: OptimSpec = OptimSpec()
    augment: AugmentSpec = AugmentSpec()
    hard_loss: Literal["ehpnet", "offsets", "ce"] = "ehpnet"
    mse_weight: float = 1.0  # weight of EHPNet eq. 2 within eq. 3
    distill: DistillSpec | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.mse_weight >= 0, f"mse_weight must not be negative, got {self.mse_weight}")
        check(self.seed >= 0, f"seed must not be negative, got {self.seed}")


class LabelSet(NamedTuple):
    """Soft labels of one kind: which teachers, over which windows. Equal windows have one (radius, step)."""

    teachers: tuple[str, ...]
    radius: int
    step: int

    @property
    def offsets(self) -> tuple[int, int]:
        return self.radius, self.step

    @property
    def name(self) -> str:
        """Of its folder, e.g. resnet+regnet-K15-d5."""
        return f"{'+'.join(self.teachers)}-K{self.radius}-d{self.step}"


def canonical_offsets(radius: int, step: int) -> tuple[int, int]:
    """(K, d) pairs with the same windows share one name: K is cut to a multiple of d, K < d is (0, 1)."""
    reach = radius // step
    return (reach * step, step) if reach else (0, 1)
