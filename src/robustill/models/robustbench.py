"""RobustBench's model zoo by ID: the architecture, options and normalisation of each network.

A file of weights does not state which shortcut a PreAct ResNet was trained with, nor, in some files, its
normalisation; this table does. It follows the zoo's own loaders and its leaderboard of March 2025; networks that none
of our architectures covers are left out. The zoo publishes no checksums, so this package does not download its files:
the user puts them into the cache folder.

Reference: Croce et al. 2021, RobustBench: a standardized adversarial robustness benchmark.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustill.core.errors import CheckpointError, did_you_mean

Stats = tuple[tuple[float, ...], tuple[float, ...]]
Architecture = tuple[str, dict[str, Any]]
CIFAR10: Stats = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
CIFAR100: Stats = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
# Mean and standard deviation of the training set with 16 digits.
_EXACT10: Stats = (
    (0.4913997551666284, 0.48215855929893703, 0.4465309133731618),
    (0.24703225141799082, 0.24348516474564, 0.26158783926049628),
)
_EXACT100: Stats = (
    (0.5070751592371323, 0.48654887331495095, 0.4409178433670343),
    (0.2673342858792401, 0.2564384629170883, 0.27615047132568404),
)
_ROUNDED: Stats = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
_HALVES: Stats = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """One network of the zoo.

    Args:
        data: "cifar10" or "cifar100".
        norm: of its leaderboard, "Linf" or "L2"; also the name of a folder.
        name: its ID.
        model: a key of MODELS.
        options: of the architecture, with mean and std if the network normalises its input.
        clean: clean accuracy in percent, as the leaderboard states it.
        autoattack: accuracy in percent under AutoAttack at 8/255 (Linf) or 0.5 (L2), as the leaderboard states it.
    """

    data: str
    norm: str
    name: str
    model: str
    options: dict[str, Any]
    clean: float
    autoattack: float

    @property
    def num_classes(self) -> int:
        """The number of classes K of its data set."""
        return 10 if self.data == "cifar10" else 100

    @property
    def cache_path(self) -> Path:
        """The path of its file: robustbench/cifar10/Linf/ID.pt in $ROBUSTILL_CACHE or ~/.cache/robustill."""
        cache = os.environ.get("ROBUSTILL_CACHE")
        root = Path(cache) if cache else Path.home() / ".cache" / "robustill"
        return root / "robustbench" / self.data / self.norm / f"{self.name}.pt"

    def __str__(self) -> str:
        stated = f"stated clean {self.clean:g} %, AutoAttack {self.autoattack:g} %"
        return f"RobustBench {self.data}/{self.norm}/{self.name}, {stated}"


def find_entry(identifier: str, num_classes: int | None = None) -> ZooEntry:
    """Return a network by its ID.

    Of an ID on several leaderboards, the one with the given number of classes is returned, and Linf before L2, as in
    RobustBench itself; "L2/ID", "cifar100/ID" and "cifar10/L2/ID" select another.

    Args:
        identifier: the ID, alone or behind a data set, a norm or both.
        num_classes: the preferred K, 10 or 100.

    Raises:
        CheckpointError: an unknown ID; the message names the nearest ones.

    Example:
        >>> find_entry("Wong2020Fast").options["activated_shortcut"]
        False
    """
    *qualifiers, name = identifier.split("/")
    required = {part.lower() for part in qualifiers}
    entries = [entry for entry in ZOO if entry.name == name and required <= {entry.data, entry.norm.lower()}]
    if not entries:
        raise CheckpointError(f"robustbench:{identifier} is unknown: {_hint(name)}")
    for entry in entries:
        if entry.num_classes == num_classes:
            return entry
    return entries[0]


def _hint(name: str) -> str:
    """Return the end of the error line for an ID that is unknown, alone or on the given leaderboard."""
    leaderboards = [f"{entry.data}/{entry.norm}" for entry in ZOO if entry.name == name]
    if leaderboards:
        return f"{name} is on {', '.join(leaderboards)}"
    ids = {entry.name for entry in ZOO}
    hint = did_you_mean(name, ids)
    if hint.startswith("did"):
        return hint
    examples = ", ".join(sorted(ids)[:3])
    return f"{len(ids)} IDs are known, such as {examples}; see `robustill list robustbench`"


def _normalisation(stats: Stats | None) -> dict[str, Any]:
    return {} if stats is None else {"mean": stats[0], "std": stats[1]}


def _wide(depth: int, width: int, *, sub_block1: bool = False, stats: Stats | None = None) -> Architecture:
    return "wideresnet", {"depth": depth, "width": width, "sub_block1": sub_block1, **_normalisation(stats)}


def _silu(depth: int, width: int, stats: Stats) -> Architecture:
    return "wideresnet_silu", {"depth": depth, "width": width, **_normalisation(stats)}


def _silu18(stats: Stats) -> Architecture:
    return "preactresnet18_silu", _normalisation(stats)


def _preact(*, final_bn: bool, activated_shortcut: bool, stats: Stats | None = None) -> Architecture:
    return "preactresnet18", {"final_bn": final_bn, "activated_shortcut": activated_shortcut, **_normalisation(stats)}


_R18: Architecture = ("resnet18", {})
# (data set, norm) -> ID -> architecture, clean and AutoAttack accuracy in percent
_LEADERBOARDS: dict[tuple[str, str], dict[str, tuple[Architecture, float, float]]] = {
    ("cifar10", "Linf"): {
        "Carmon2019Unlabeled": (_wide(28, 10, sub_block1=True), 89.69, 59.53),
        "Sehwag2020Hydra": (_wide(28, 10, sub_block1=True), 88.98, 57.14),
        "Wang2020Improving": (_wide(28, 10, sub_block1=True), 87.5, 56.29),
        "Hendrycks2019Using": (_wide(28, 10, stats=_HALVES), 87.11, 54.92),
        "Rice2020Overfitting": (_wide(34, 20, stats=CIFAR10), 85.34, 53.42),
        "Zhang2019Theoretically": (_wide(34, 10, sub_block1=True), 84.92, 53.08),
        "Huang2020Self": (_wide(34, 10, sub_block1=True), 83.48, 53.34),
        "Wong2020Fast": (_preact(final_bn=False, activated_shortcut=False, stats=CIFAR10), 83.34, 43.21),
        "Zhang2019You": (_wide(34, 10, sub_block1=True), 87.2, 44.83),
        "Zhang2020Attacks": (_wide(34, 10, sub_block1=True), 84.52, 53.51),
        "Wu2020Adversarial_extra": (_wide(28, 10, sub_block1=True), 88.25, 60.04),
        "Wu2020Adversarial": (_wide(34, 10), 85.36, 56.17),
        "Gowal2020Uncovering_70_16": (_silu(70, 16, CIFAR10), 85.29, 57.2),
        "Gowal2020Uncovering_70_16_extra": (_silu(70, 16, CIFAR10), 91.1, 65.88),
        "Gowal2020Uncovering_34_20": (_silu(34, 20, CIFAR10), 85.64, 56.86),
        "Gowal2020Uncovering_28_10_extra": (_silu(28, 10, CIFAR10), 89.48, 62.8),
        "Sehwag2021Proxy": (_wide(34, 10), 86.68, 60.27),
        "Sehwag2021Proxy_R18": (_R18, 84.59, 55.54),
        "Sitawarin2020Improving": (_wide(34, 10, sub_block1=True), 86.84, 50.72),
        "Cui2020Learnable_34_20": (_wide(34, 20, sub_block1=True), 88.7, 53.57),
        "Cui2020Learnable_34_10": (_wide(34, 10, sub_block1=True), 88.22, 52.86),
        "Zhang2020Geometry": (_wide(28, 10, sub_block1=True), 89.36, 59.64),
        "Rebuffi2021Fixing_28_10_cutmix_ddpm": (_silu(28, 10, CIFAR10), 87.33, 60.75),
        "Rebuffi2021Fixing_106_16_cutmix_ddpm": (_silu(106, 16, CIFAR10), 88.5, 64.64),
        "Rebuffi2021Fixing_70_16_cutmix_ddpm": (_silu(70, 16, CIFAR10), 88.54, 64.25),
        "Rebuffi2021Fixing_70_16_cutmix_extra": (_silu(70, 16, CIFAR10), 92.23, 66.58),
        "Sridhar2021Robust": (_wide(28, 10, sub_block1=True), 89.46, 59.66),
        "Sridhar2021Robust_34_15": (_wide(34, 15, sub_block1=True), 86.53, 60.41),
        "Rebuffi2021Fixing_R18_ddpm": (_silu18(CIFAR10), 83.53, 56.66),
        "Rade2021Helper_R18_extra": (_silu18(CIFAR10), 89.02, 57.67),
        "Rade2021Helper_R18_ddpm": (_silu18(CIFAR10), 86.86, 57.09),
        "Rade2021Helper_extra": (_silu(34, 10, CIFAR10), 91.47, 62.83),
        "Rade2021Helper_ddpm": (_silu(28, 10, CIFAR10), 88.16, 60.97),
        "Addepalli2021Towards_RN18": (_R18, 80.24, 51.06),
        "Addepalli2021Towards_WRN34": (_wide(34, 10, sub_block1=True), 85.32, 58.04),
        "Gowal2021Improving_70_16_ddpm_100m": (_silu(70, 16, CIFAR10), 88.74, 66.11),
        "Gowal2021Improving_28_10_ddpm_100m": (_silu(28, 10, CIFAR10), 87.5, 63.44),
        "Gowal2021Improving_R18_ddpm_100m": (_silu18(CIFAR10), 87.35, 58.63),
        "Chen2021LTD_WRN34_10": (_wide(34, 10), 85.21, 56.94),
        "Chen2021LTD_WRN34_20": (_wide(34, 20), 86.03, 57.71),
        "Standard": (_wide(28, 10), 94.78, 0.0),
        "Jia2022LAS-AT_34_10": (_wide(34, 10), 84.98, 56.26),
        "Jia2022LAS-AT_70_16": (_wide(70, 16), 85.66, 57.61),
        "Pang2022Robustness_WRN28_10": (_silu(28, 10, CIFAR10), 88.61, 61.04),
        "Pang2022Robustness_WRN70_16": (_silu(70, 16, CIFAR10), 89.01, 63.35),
        "Addepalli2022Efficient_RN18": (_R18, 85.71, 52.48),
        "Addepalli2022Efficient_WRN_34_10": (_wide(34, 10), 88.71, 57.81),
        "Wang2023Better_WRN-28-10": (_silu(28, 10, CIFAR10), 92.44, 67.31),
        "Wang2023Better_WRN-70-16": (_silu(70, 16, CIFAR10), 93.25, 70.69),
        "Xu2023Exploring_WRN-28-10": (_silu(28, 10, CIFAR10), 93.69, 63.89),
        "Cui2023Decoupled_WRN-28-10": (_silu(28, 10, CIFAR10), 92.16, 67.73),
        "Cui2023Decoupled_WRN-34-10": (_wide(34, 10), 85.31, 57.09),
        "Chen2024Data_WRN_34_10": (_wide(34, 10), 86.54, 57.3),
        "Chen2024Data_WRN_34_20": (_wide(34, 20), 86.1, 58.09),
        "Bartoldson2024Adversarial_WRN-94-16": (_silu(94, 16, CIFAR10), 93.68, 73.71),
        "Bartoldson2024Adversarial_WRN-82-8": (_silu(82, 8, CIFAR10), 93.11, 71.59),
    },
    ("cifar10", "L2"): {
        "Rice2020Overfitting": (_preact(final_bn=True, activated_shortcut=True, stats=CIFAR10), 88.67, 67.68),
        "Rony2019Decoupling": (_wide(28, 10, stats=_ROUNDED), 89.05, 66.44),
        "Standard": (_wide(28, 10), 94.78, 0.0),
        "Wu2020Adversarial": (_wide(34, 10), 88.51, 73.66),
        "Gowal2020Uncovering": (_silu(70, 16, CIFAR10), 90.9, 74.5),
        "Gowal2020Uncovering_extra": (_silu(70, 16, CIFAR10), 94.74, 80.53),
        "Sehwag2021Proxy": (_wide(34, 10), 90.93, 77.24),
        "Sehwag2021Proxy_R18": (_R18, 89.76, 74.41),
        "Rebuffi2021Fixing_70_16_cutmix_ddpm": (_silu(70, 16, CIFAR10), 92.41, 80.42),
        "Rebuffi2021Fixing_28_10_cutmix_ddpm": (_silu(28, 10, CIFAR10), 91.79, 78.8),
        "Rebuffi2021Fixing_70_16_cutmix_extra": (_silu(70, 16, CIFAR10), 95.74, 82.32),
        "Augustin2020Adversarial_34_10": (_wide(34, 10, stats=_EXACT10), 92.23, 76.25),
        "Augustin2020Adversarial_34_10_extra": (_wide(34, 10, stats=_EXACT10), 93.96, 78.79),
        "Rebuffi2021Fixing_R18_cutmix_ddpm": (_silu18(CIFAR10), 90.33, 75.86),
        "Rade2021Helper_R18_ddpm": (_silu18(CIFAR10), 90.57, 76.15),
        "Wang2023Better_WRN-28-10": (_silu(28, 10, CIFAR10), 95.16, 83.68),
        "Wang2023Better_WRN-70-16": (_silu(70, 16, CIFAR10), 95.54, 84.97),
    },
    ("cifar100", "Linf"): {
        "Gowal2020Uncovering": (_silu(70, 16, CIFAR100), 60.86, 30.03),
        "Gowal2020Uncovering_extra": (_silu(70, 16, CIFAR100), 69.15, 36.88),
        "Cui2020Learnable_34_20_LBGAT6": (_wide(34, 20, sub_block1=True), 62.55, 30.2),
        "Cui2020Learnable_34_10_LBGAT0": (_wide(34, 10, sub_block1=True), 70.25, 27.16),
        "Cui2020Learnable_34_10_LBGAT6": (_wide(34, 10, sub_block1=True), 60.64, 29.33),
        "Wu2020Adversarial": (_wide(34, 10, stats=_EXACT100), 60.38, 28.86),
        "Sehwag2021Proxy": (_wide(34, 10), 65.93, 31.15),
        "Sitawarin2020Improving": (_wide(34, 10, sub_block1=True), 62.82, 24.57),
        "Hendrycks2019Using": (_wide(28, 10, stats=_HALVES), 59.23, 28.42),
        "Rice2020Overfitting": (_preact(final_bn=True, activated_shortcut=True, stats=_EXACT100), 53.83, 18.95),
        "Rebuffi2021Fixing_70_16_cutmix_ddpm": (_silu(70, 16, CIFAR100), 63.56, 34.64),
        "Rebuffi2021Fixing_28_10_cutmix_ddpm": (_silu(28, 10, CIFAR100), 62.41, 32.06),
        "Rebuffi2021Fixing_R18_ddpm": (_silu18(CIFAR100), 56.87, 28.5),
        "Rade2021Helper_R18_ddpm": (_silu18(CIFAR100), 61.5, 28.88),
        "Addepalli2021Towards_PARN18": (_preact(final_bn=True, activated_shortcut=True), 62.02, 27.14),
        "Addepalli2021Towards_WRN34": (_wide(34, 10, sub_block1=True), 65.73, 30.35),
        "Chen2021LTD_WRN34_10": (_wide(34, 10, sub_block1=True), 64.07, 30.59),
        "Pang2022Robustness_WRN28_10": (_silu(28, 10, CIFAR100), 63.66, 31.08),
        "Pang2022Robustness_WRN70_16": (_silu(70, 16, CIFAR100), 65.56, 33.05),
        "Jia2022LAS-AT_34_10": (_wide(34, 10, sub_block1=True), 64.89, 30.77),
        "Jia2022LAS-AT_34_20": (_wide(34, 20), 67.31, 31.91),
        "Addepalli2022Efficient_RN18": (_R18, 65.45, 27.67),
        "Addepalli2022Efficient_WRN_34_10": (_wide(34, 10), 68.75, 31.85),
        "Cui2020Learnable_34_10_LBGAT9_eps_8_255": (_wide(34, 10), 62.99, 31.2),
        "Wang2023Better_WRN-28-10": (_silu(28, 10, CIFAR100), 72.58, 38.83),
        "Wang2023Better_WRN-70-16": (_silu(70, 16, CIFAR100), 75.22, 42.67),
        "Cui2023Decoupled_WRN-28-10": (_silu(28, 10, CIFAR100), 73.85, 39.18),
        "Cui2023Decoupled_WRN-34-10": (_wide(34, 10), 65.76, 31.91),
        "Cui2023Decoupled_WRN-34-10_autoaug": (_wide(34, 10), 65.93, 32.52),
        "Chen2024Data_WRN_34_10": (_wide(34, 10), 64.32, 31.13),
    },
}
ZOO: tuple[ZooEntry, ...] = tuple(
    ZooEntry(data=data, norm=norm, name=name, model=model, options=options, clean=clean, autoattack=autoattack)
    for (data, norm), leaderboard in _LEADERBOARDS.items()
    for name, ((model, options), clean, autoattack) in leaderboard.items()
)
