"""The table of RobustBench's networks: it agrees with itself and with the names, and what it says is what is loaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from robustill.core.errors import CheckpointError, ModelError, RobustillError
from robustill.models import MODELS, build, robustbench
from robustill.models.loading import Shape, build_network, load_network
from robustill.models.robustbench import ZOO, ZooEntry, find_entry
from robustill.models.weights import file_sha256

CIFAR10 = Shape(num_classes=10, in_channels=3, image_size=(32, 32))


def parameters(entry: ZooEntry) -> int:
    with torch.device("meta"):
        network = build(entry.model, num_classes=entry.num_classes, **entry.options)
    return sum(parameter.numel() for parameter in network.parameters())


def test_ids_are_unique_on_each_leaderboard() -> None:
    assert len(ZOO) >= 100
    assert len({(entry.data, entry.norm, entry.name) for entry in ZOO}) == len(ZOO)
    assert {(entry.data, entry.norm) for entry in ZOO} == {("cifar10", "Linf"), ("cifar10", "L2"), ("cifar100", "Linf")}


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: f"{entry.data}-{entry.norm}-{entry.name}")
def test_options_fit_the_architecture_and_the_name(entry: ZooEntry) -> None:
    assert set(entry.options) - {"mean", "std"} <= set(MODELS[entry.model].options)
    assert ("mean" in entry.options) == ("std" in entry.options)
    sizes = re.search(r"(\d{2,3})[_-](\d{1,2})(?!\d)", entry.name)
    if sizes:
        assert [entry.options["depth"], entry.options["width"]] == [int(sizes[1]), int(sizes[2])]
    if re.search(r"_(PA)?RN?18", entry.name):
        assert "18" in entry.model
    assert 0 <= entry.autoattack < entry.clean < 100
    # A network trained without attacks is not robust; every other network on these leaderboards has at least 18 %.
    assert (entry.autoattack < 18) == (entry.name == "Standard")


@pytest.mark.parametrize(
    ("identifier", "classes", "millions"),
    [
        ("Standard", 10, 36.48),
        ("Sehwag2021Proxy", 10, 46.16),
        ("Rebuffi2021Fixing_70_16_cutmix_extra", 10, 266.80),
        ("Rade2021Helper_R18_ddpm", 10, 12.55),
        ("L2/Rice2020Overfitting", 10, 11.17),
        ("Addepalli2022Efficient_RN18", 100, 11.22),
    ],
)
def test_numbers_of_parameters_are_as_published(identifier: str, classes: int, millions: float) -> None:
    assert parameters(find_entry(identifier, classes)) / 1e6 == pytest.approx(millions, abs=0.01)


def test_a_leaderboard_is_chosen_by_classes_then_linf() -> None:
    assert (find_entry("Rice2020Overfitting").data, find_entry("Rice2020Overfitting").norm) == ("cifar10", "Linf")
    assert find_entry("Rice2020Overfitting", 100).data == "cifar100"
    assert find_entry("L2/Rice2020Overfitting", 100).norm == "L2"
    assert find_entry("cifar100/linf/Rice2020Overfitting").data == "cifar100"


def test_variants_that_weights_do_not_show_are_in_the_table() -> None:
    """Three networks of one layout that the zoo distinguishes."""
    variants = {
        name: (find_entry(name, classes).options["final_bn"], find_entry(name, classes).options["activated_shortcut"])
        for name, classes in (("Wong2020Fast", 10), ("L2/Rice2020Overfitting", 10), ("Rice2020Overfitting", 100))
    }
    assert variants == {
        "Wong2020Fast": (False, False),
        "L2/Rice2020Overfitting": (True, True),
        "Rice2020Overfitting": (True, True),
    }


@pytest.mark.parametrize(
    ("identifier", "message"),
    [
        ("Carmon2019Unlabelled", "did you mean Carmon2019Unlabeled"),
        ("nothing_like_it", "IDs are known, such as"),
        ("", "IDs are known"),
        ("L2/Carmon2019Unlabeled", "is on cifar10/Linf"),
        ("imagenet/Standard", "is on cifar10/Linf, cifar10/L2"),
    ],
)
def test_an_unknown_id_names_the_nearest(identifier: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        find_entry(identifier)
    assert "\n" not in str(caught.value)


# --- through load_network


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ZooEntry:
    """An additional entry with few weights; the cache folder is empty."""
    options = {"depth": 10, "width": 1, "sub_block1": True, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    entry = ZooEntry(
        data="cifar10", norm="Linf", name="Tiny2026", model="wideresnet", options=options, clean=50.0, autoattack=20.0
    )
    monkeypatch.setattr(robustbench, "ZOO", (*ZOO, entry))
    monkeypatch.setenv("ROBUSTILL_CACHE", str(tmp_path / "cache"))
    return entry


def publish(file: Path, entry: ZooEntry) -> torch.nn.Module:
    """Write weights as in the zoo's files: under state_dict, with the prefix of DataParallel, without normalisation."""
    network = build_network(entry.model, CIFAR10, entry.options, seed=5).eval()
    tensors = {f"module.{k}": v for k, v in network.state_dict().items() if not k.startswith("normalize.")}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": tensors, "epoch": 7}, file)
    return network


def test_weights_come_from_the_cache_folder_or_a_file(tiny: ZooEntry, tmp_path: Path) -> None:
    assert tiny.cache_path == tmp_path / "cache" / "robustbench" / "cifar10" / "Linf" / "Tiny2026.pt"
    network = publish(tiny.cache_path, tiny)
    x = torch.rand(2, 3, 32, 32)
    for spec in ("robustbench:Tiny2026", f"robustbench:cifar10/Linf/Tiny2026={tiny.cache_path}"):
        loaded = load_network(spec, shape=CIFAR10)
        assert torch.equal(loaded.module(x), network(x))
        assert loaded.sha256 == file_sha256(tiny.cache_path)
        assert loaded.architecture == "wideresnet depth=10 width=1 sub_block1=True"
        assert loaded.trained == "RobustBench cifar10/Linf/Tiny2026, stated clean 50 %, AutoAttack 20 %"
        assert not loaded.module.training
        assert not any(parameter.requires_grad for parameter in loaded.module.parameters())


def test_images_of_another_size_need_the_option(tiny: ZooEntry) -> None:
    network = publish(tiny.cache_path, tiny)
    small = Shape(num_classes=10, in_channels=3, image_size=(16, 16))
    with pytest.raises(ModelError, match="or image_size: 32"):
        load_network("robustbench:Tiny2026", shape=small)
    adapted = load_network("robustbench:Tiny2026", shape=small, image_size=32).module
    x = torch.rand(2, 3, 16, 16)
    larger = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear")
    torch.testing.assert_close(adapted(x), network(larger), rtol=1e-4, atol=1e-5)


def assert_refused(spec: str, match: str, shape: Shape = CIFAR10, **more: object) -> None:
    with pytest.raises(RobustillError, match=match) as caught:
        load_network(spec, shape=shape, **more)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_missing_or_unsuitable_file_is_refused(tiny: ZooEntry) -> None:
    assert_refused(
        "robustbench:Tiny2026", "Tiny2026.pt not found: no checksum is known .* give robustbench:Tiny2026=FILE"
    )
    assert_refused("robustbench:Tiny2026", "not found", download=True)
    publish(tiny.cache_path, tiny)
    for shape in (
        Shape(num_classes=7, in_channels=3, image_size=(32, 32)),
        Shape(num_classes=10, in_channels=1, image_size=(32, 32)),
    ):
        assert_refused("robustbench:Tiny2026", "was trained on 3×32×32 images, 10 classes; here are", shape)
    assert_refused("robustbench:Tiny2026", "has sha256 .*, expected 0000", sha256="0" * 64)
    assert_refused("robustbench:Tiny2026", "names its own network: leave the model resnet8 out", name="resnet8")
    assert_refused(f"robustbench:Rade2021Helper_R18_ddpm={tiny.cache_path}", "missing .* unexpected")
    content = tiny.cache_path.read_bytes()
    tiny.cache_path.write_bytes(content[: len(content) // 2])
    assert_refused("robustbench:Tiny2026", "is damaged")
    assert_refused("robustbench:Tiny", "did you mean Tiny2026")


def test_a_pickle_is_not_run(tiny: ZooEntry, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return Path.touch, (tmp_path / "ran",)

    tiny.cache_path.parent.mkdir(parents=True)
    torch.save({"state_dict": Payload()}, tiny.cache_path)
    assert_refused("robustbench:Tiny2026", "would run code when read")
    assert not (tmp_path / "ran").exists()
