"""Forecast what a run would cost on a named GPU that is not here: counted operations, at an assumed share of its peak.

Nothing is measured, so this is a guess of the right order of magnitude. What is known of the share is the
published rate of one network: NVIDIA's ResNet-50 v1.5 in PyTorch with mixed precision trains on 2,470 images/s on one
A100 (80 GB), and on 1,156 on one V100 (32 GB; DeepLearningExamples, container 21.03). At 3·8.2·10⁹ operations an image
(4.1·10⁹ multiply-adds forward, and twice as many back) that is 19 % and 23 % of their peaks.
"""

from __future__ import annotations

from dataclasses import dataclass

from robustill.config.files import named_code
from robustill.config.schema import Config
from robustill.config.split import load_split, make_split
from robustill.core.errors import ConfigError, did_you_mean
from robustill.core.user_code import TrustCode, only_named
from robustill.methods import build_method
from robustill.methods.base import SELF
from robustill.models.loading import Shape
from robustill.training.cost import Passes, count_passes, model_gflops, step_gflops, teacher_gflops, training_gflops


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """What is known of a GPU.

    Args:
        name: its full name.
        peak_tflops: 10¹² dense operations a second with BF16 or FP16 inputs and FP32 sums, as its maker states them.
        source: where that number is from.
        share: the assumed share of the peak that a training reaches.
        share_source: where that share is from.
    """

    name: str
    peak_tflops: float
    source: str
    share: float = 0.2
    share_source: str = "assumed, about that of ResNet-50 on A100 and V100"


DEVICE_PROFILES: dict[str, DeviceProfile] = {
    "v100": DeviceProfile(
        name="NVIDIA V100 SXM2",
        peak_tflops=125,
        source="NVIDIA's data sheet of the V100, FP16",
        share=0.23,
        share_source="that of ResNet-50 there, 1,156 images/s",
    ),
    "a100": DeviceProfile(
        name="NVIDIA A100 SXM 80 GB",
        peak_tflops=312,
        source="NVIDIA's data sheet of the A100, BF16",
        share=0.19,
        share_source="that of ResNet-50 there, 2,470 images/s",
    ),
    "h100": DeviceProfile(
        name="NVIDIA H100 SXM",
        peak_tflops=989,
        source="NVIDIA's data sheet of the H100, BF16: half of the 1,979 that it states with sparsity",
    ),
    "h200": DeviceProfile(
        name="NVIDIA H200 SXM",
        peak_tflops=989,
        source="NVIDIA's data sheet of the H200, BF16: half of the 1,979 that it states with sparsity",
    ),
    "rtx4090": DeviceProfile(
        name="NVIDIA GeForce RTX 4090",
        peak_tflops=165,
        source="NVIDIA's white paper of the Ada architecture, FP16 with FP32 sums",
    ),
}
"""The GPUs by the name that `robustill plan --device-profile` takes."""


@dataclass(frozen=True, kw_only=True)
class ProfileForecast:
    """The forecast of one training on a GPU that was not measured.

    Args:
        profile: the GPU.
        images: number of images of an epoch.
        epochs: number of epochs, if the run is not stopped early.
        step: passes of a training step.
        student_gflops: 10⁹ floating-point operations of the student for one image forward.
        teacher_gflops: the same for all teachers together.
        step_gflops: the same for one image in a whole training step.
        total_gflops: the same for the whole training with its validation.
        stand_ins: specifications of the teachers that do not exist yet: each is counted as a network like the student.
    """

    profile: DeviceProfile
    images: int
    epochs: int
    step: Passes
    student_gflops: float
    teacher_gflops: float
    step_gflops: float
    total_gflops: float
    stand_ins: tuple[str, ...]

    def seconds(self, share: float | None = None) -> float:
        """Return the time of the training at a share of the peak; None for that of the profile."""
        return self.total_gflops / (1e3 * self.profile.peak_tflops * (self.profile.share if share is None else share))


def forecast_on(config: Config, profile: str, *, trust_code: TrustCode = False) -> ProfileForecast:
    """Forecast the training of a run on a GPU; only its labels are read, neither generated images nor zoo weights.

    Args:
        config: the configuration of the run.
        profile: a key of DEVICE_PROFILES.
        trust_code: as for `train`.

    Raises:
        RobustillError: the GPU is unknown, the data set does not exist, or the precision is not that of the profile.
    """
    if profile not in DEVICE_PROFILES:
        raise ConfigError(f"device profile {profile!r} is unknown: {did_you_mean(profile, DEVICE_PROFILES)}")
    if config.compute.precision != "bf16":
        raise ConfigError(
            f"compute.precision is {config.compute.precision}, and the profiles are of bf16: add --compute.precision "
            "bf16"
        )
    with only_named(*named_code(config), trust=trust_code):
        return _forecast_on(config, DEVICE_PROFILES[profile])


def _forecast_on(config: Config, profile: DeviceProfile) -> ProfileForecast:
    train = load_split(config, "train")
    split, shape = make_split(config, train.labels, train.num_classes), Shape.of(train)
    method = build_method(config.method.name, **config.method.options)
    step, student = (
        count_passes(method, config.attack.steps),
        model_gflops(config.model.name, config.model.options, shape),
    )
    by_role = dict.fromkeys(method.roles, 0.0)
    if SELF in by_role:
        by_role[SELF] = student
    stand_ins = []
    for teacher in config.teachers:
        known = teacher_gflops(teacher, shape)
        if known is None:
            stand_ins.append(teacher.spec)
        by_role[teacher.role] += student if known is None else known
    of_step = step_gflops(step, config.attack.steps, student, list(by_role.values()))
    total = training_gflops(
        config,
        train=len(split.train),
        validation=len(split.validation),
        student=student,
        teachers=list(by_role.values()),
    )
    return ProfileForecast(
        profile=profile,
        images=len(split.train),
        epochs=config.optim.epochs,
        step=step,
        student_gflops=student,
        teacher_gflops=sum(by_role.values()),
        step_gflops=of_step,
        total_gflops=total,
        stand_ins=tuple(stand_ins),
    )
