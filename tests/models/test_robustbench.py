"""The table of RobustBench's networks: it agrees with itself and with the names, and what it says is what is loaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from robustill.core.errors import CheckpointError, ModelError, RobustillError
from robustill.models import MODELS, build, robustbench
from robustill.models.loading import Shape, build_network, load_network
from robustill.models.robustbench import ZOO, ZooEntry, find
from robustill.models.weights import file_sha256

CIFAR10 = Shape(num_classes=10, in_channels=3, image_size=(32, 32))


def parameters(entry: ZooEntry) -> int:
    with torch.device("meta"):
        network = build(entry.model, num_classes=entry.num_classes, **entry.options)
    return sum(parameter.numel() for parameter in network.parameters())


def test_ids_are_unique_on_their_boards_and_many() -> None:
    assert len(ZOO) >= 100
    assert len({(entry.data, entry.norm, entry.name) for entry in ZOO}) == len(ZOO)
    assert {(entry.data, entry.norm) for entry in ZOO} == {("cifar10", "Linf"), ("cifar10", "L2"), ("cifar100", "Linf")}


@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: f"{entry.data}-{entry.norm}-{entry.name}")
def test_options_are_those_of_the_architecture_and_of_the_name(entry: ZooEntry) -> None:
    assert set(entry.options) - {"mean", "std"} <= set(MODELS[entry.model].options)
    assert ("mean" in entry.options) == ("std" in entry.options)
    sizes = re.search(r"(\d{2,3})[_-](\d{1,2})(?!\d)", entry.name)
    if sizes:
        assert [entry.options["depth"], entry.options["width"]] == [int(sizes[1]), int(sizes[2])]
    if re.search(r"_(PA)?RN?18", entry.name):
        assert "18" in entry.model
    assert 0 <= entry.autoattack < entry.clean < 100
    # Clean training is robust to nothing; nobody on these boards has less than 18 %.
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
def test_sizes_as_published(identifier: str, classes: int, millions: float) -> None:
    assert parameters(find(identifier, classes)) / 1e6 == pytest.approx(millions, abs=0.01)


def test_a_board_is_chosen_by_classes_then_linf() -> None:
    assert (find("Rice2020Overfitting").data, find("Rice2020Overfitting").norm) == ("cifar10", "Linf")
    assert find("Rice2020Overfitting", 100).data == "cifar100"
    assert find("L2/Rice2020Overfitting", 100).norm == "L2"
    assert find("cifar100/linf/Rice2020Overfitting").data == "cifar100"


def test_variants_that_weights_do_not_show() -> None:
    """The three networks of one layout that the zoo tells apart."""
    variants = {
        name: (find(name, classes).options["final_bn"], find(name, classes).options["activated_shortcut"])
        for name, classes in (("Wong2020Fast", 10), ("L2/Rice2020Overfitting", 10), ("Rice2020Overfitting", 100))
    }
    assert variants == {
        "Wong2020Fast": (False, False),
        "L2/Rice2020Overfitting": (True, True),
        "Rice2020Overfitting": (True, True),
    }


@pytest.mark.parametrize(
    ("identifier", "said"),
    [
        ("Carmon2019Unlabelled", "did you mean Carmon2019Unlabeled"),
        ("nothing_like_it", "IDs are known, such as"),
        ("", "IDs are known"),
        ("L2/Carmon2019Unlabeled", "stands on cifar10/Linf"),
        ("imagenet/Standard", "stands on cifar10/Linf, cifar10/L2"),
    ],
)
def test_an_unknown_id_names_the_nearest(identifier: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        find(identifier)
    assert "\n" not in str(caught.value)


# --- through load_network


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ZooEntry:
    """An entry of few weights beside the real ones; nothing is in the cache folder."""
    options = {"depth": 10, "width": 1, "sub_block1": True, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    entry = ZooEntry(
        data="cifar10", norm="Linf", name="Tiny2026", model="wideresnet", options=options, clean=50.0, autoattack=20.0
    )
    monkeypatch.setattr(robustbench, "ZOO", (*ZOO, entry))
    monkeypatch.setenv("ROBUSTILL_CACHE", str(tmp_path / "cache"))
    return entry


def publish(file: Path, entry: ZooEntry) -> torch.nn.Module:
    """As that zoo's files are: under state_dict, with the prefix of data parallelism, without normalisation."""
    network = build_network(entry.model, CIFAR10, entry.options, seed=5).eval()
    tensors = {f"module.{k}": v for k, v in network.state_dict().items() if not k.startswith("normalize.")}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": tensors, "epoch": 7}, file)
    return network


def test_from_the_cache_folder_and_from_a_file(tiny: ZooEntry, tmp_path: Path) -> None:
    assert tiny.cached == tmp_path / "cache" / "robustbench" / "cifar10" / "Linf" / "Tiny2026.pt"
    network = publish(tiny.cached, tiny)
    x = torch.rand(2, 3, 32, 32)
    for spec in ("robustbench:Tiny2026", f"robustbench:cifar10/Linf/Tiny2026={tiny.cached}"):
        loaded = load_network(spec, shape=CIFAR10)
        assert torch.equal(loaded.module(x), network(x))
        assert loaded.sha256 == file_sha256(tiny.cached)
        assert loaded.architecture == "wideresnet depth=10 width=1 sub_block1=True"
        assert loaded.trained == "RobustBench cifar10/Linf/Tiny2026, stated clean 50 %, AutoAttack 20 %"
        assert not loaded.module.training
        assert not any(parameter.requires_grad for parameter in loaded.module.parameters())


def test_images_of_another_size_need_the_option(tiny: ZooEntry) -> None:
    network = publish(tiny.cached, tiny)
    small = Shape(num_classes=10, in_channels=3, image_size=(16, 16))
    with pytest.raises(ModelError, match="or image_size: 32"):
        load_network("robustbench:Tiny2026", shape=small)
    adapted = load_network("robustbench:Tiny2026", shape=small, image_size=32).module
    x = torch.rand(2, 3, 16, 16)
    larger = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear")
    torch.testing.assert_close(adapted(x), network(larger), rtol=1e-4, atol=1e-5)


def refused(spec: str, match: str, shape: Shape = CIFAR10, **more: object) -> None:
    with pytest.raises(RobustillError, match=match) as caught:
        load_network(spec, shape=shape, **more)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_or_is_not_there(tiny: ZooEntry) -> None:
    refused("robustbench:Tiny2026", "Tiny2026.pt not found: no checksum is known .* give robustbench:Tiny2026=FILE")
    refused("robustbench:Tiny2026", "not found", download=True)
    publish(tiny.cached, tiny)
    for shape in (
        Shape(num_classes=7, in_channels=3, image_size=(32, 32)),
        Shape(num_classes=10, in_channels=1, image_size=(32, 32)),
    ):
        refused("robustbench:Tiny2026", "was trained on 3×32×32 images, 10 classes; here are", shape)
    refused("robustbench:Tiny2026", "has sha256 .*, expected 0000", sha256="0" * 64)
    refused("robustbench:Tiny2026", "names its own network: leave the model resnet8 out", name="resnet8")
    refused(f"robustbench:Rade2021Helper_R18_ddpm={tiny.cached}", "missing .* unexpected")
    content = tiny.cached.read_bytes()
    tiny.cached.write_bytes(content[: len(content) // 2])
    refused("robustbench:Tiny2026", "is damaged")
    refused("robustbench:Tiny", "did you mean Tiny2026")


def test_a_pickle_does_not_run(tiny: ZooEntry, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return Path.touch, (tmp_path / "ran",)

    tiny.cached.parent.mkdir(parents=True)
    torch.save({"state_dict": Payload()}, tiny.cached)
    refused("robustbench:Tiny2026", "would run code when read")
    assert not (tmp_path / "ran").exists()
