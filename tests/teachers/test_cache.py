"""The cache of a teacher's logits: they equal the teacher's bit for bit, and never come from another teacher."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.small_runs import lines, small_config, tree, weights
from robustill.core.errors import ConfigError
from robustill.teachers.cache import CachedTeacher, TeacherCache
from robustill.training.loop import train
from robustill.training.setup import set_up_training

IDENTITY = {"teachers": [{"sha256": "ab"}], "mean": "probabilities"}


def open_cache(folder: Path, identity: dict[str, Any] = IDENTITY, classes: int = 3) -> TeacherCache:
    return TeacherCache(folder, identity, classes)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


class Counting(nn.Module):
    """A teacher that counts the images it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0
        self.linear = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return self.linear(x.flatten(1))  # type: ignore[no-any-return]


def test_get_returns_what_was_put_in_any_order_and_layout(tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "c")
    x, logits = images(6), torch.randn(6, 3)
    assert cache.get(x) is None
    cache.put(x, logits)
    order = torch.tensor([3, 0, 3, 5])
    again = x[order].contiguous(memory_format=torch.channels_last)
    cached = cache.get(again)
    assert cached is not None
    assert torch.equal(cached, logits[order])
    assert cache.get(torch.cat([x, images(1, seed=9)])) is None


def test_an_image_that_differs_in_one_bit_is_another_entry(tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "c")
    x = images(1)
    cache.put(x, torch.randn(1, 3))
    other = x.clone()
    other[0, 0, 0, 0] = torch.nextafter(x[0, 0, 0, 0], torch.tensor(2.0))
    assert cache.get(other) is None
    assert cache.get(x.flip(3)) is None


def test_the_cache_grows_and_stores_each_image_once(tmp_path: Path) -> None:
    x, logits = images(6), torch.randn(6, 3)
    first = open_cache(tmp_path / "c")
    first.put(torch.cat([x[:2], x[:2]]), torch.cat([logits[:2], logits[:2]]))
    first.put(x[1:4], logits[1:4])
    del first
    second = open_cache(tmp_path / "c")
    second.put(x, logits)
    cached = second.get(x)
    assert cached is not None
    assert torch.equal(cached, logits)
    assert (tmp_path / "c" / "logits").stat().st_size == 6 * 3 * 4


def test_a_second_process_reads_while_the_first_writes(tmp_path: Path) -> None:
    x, logits = images(4), torch.randn(4, 3)
    writer = open_cache(tmp_path / "c")
    writer.put(x[:2], logits[:2])
    reader = open_cache(tmp_path / "c")
    assert reader.get(x[:2]) is not None
    reader.put(x, logits)
    assert reader.get(x) is None
    assert (writer.is_writer, reader.is_writer) == (True, False)
    assert (tmp_path / "c" / "logits").stat().st_size == 2 * 3 * 4


@pytest.mark.parametrize("cut", [("keys", 5), ("logits", 5), ("keys", 24), ("logits", 12)])
def test_the_incomplete_end_of_a_killed_process_is_cut_off(cut: tuple[str, int], tmp_path: Path) -> None:
    x, logits = images(4), torch.randn(4, 3)
    open_cache(tmp_path / "c").put(x, logits)
    file = tmp_path / "c" / cut[0]
    file.write_bytes(file.read_bytes()[: -cut[1]])
    cache = open_cache(tmp_path / "c")
    cached = cache.get(x[:3])
    assert cached is not None
    assert torch.equal(cached, logits[:3])
    assert cache.get(x) is None
    cache.put(x, logits)
    del cache
    cached = open_cache(tmp_path / "c").get(x)
    assert cached is not None
    assert torch.equal(cached, logits)


@pytest.mark.parametrize("name", ["keys", "logits"])
def test_a_damaged_row_is_computed_again(name: str, tmp_path: Path) -> None:
    x, logits = images(4), torch.randn(4, 3)
    open_cache(tmp_path / "c").put(x, logits)
    file = tmp_path / "c" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2 + 1] ^= 1
    file.write_bytes(content)
    cache = open_cache(tmp_path / "c")
    assert cache.get(x) is None
    cache.put(x, logits)
    cached = cache.get(x)
    assert cached is not None
    assert torch.equal(cached, logits)


@pytest.mark.parametrize("size", [0, 5, 3 * 12])
def test_a_file_that_is_truncated_while_it_is_open_is_computed_again(tmp_path: Path, size: int) -> None:
    x, logits = images(6), torch.randn(6, 3)
    cache = open_cache(tmp_path / "c")
    cache.put(x, logits)
    os.truncate(tmp_path / "c" / "logits", size)
    assert cache.get(x) is None
    kept = cache.get(x[:3])
    assert kept is None if size < 3 * 12 else torch.equal(kept, logits[:3])
    cache.put(x, logits)
    # Where it was cut inside a row, the rows behind it are computed again each time, and never wrong.
    for again in (cache, open_cache(tmp_path / "c")):
        cached = again.get(x)
        assert cached is None or torch.equal(cached, logits)


def test_another_identity_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    open_cache(tmp_path / "c").put(images(1), torch.randn(1, 3))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match=r"holds the logits of other teachers \(teachers differ from cache\.json\)"):
        open_cache(tmp_path / "c", {**IDENTITY, "teachers": [{"sha256": "cd"}]})
    with pytest.raises(ConfigError, match=r"\(precision differ"):
        open_cache(tmp_path / "c", {**IDENTITY, "precision": "bf16"})
    with pytest.raises(ConfigError, match="thesis is neither a teacher cache nor empty"):
        open_cache(tmp_path / "thesis")
    open_cache(tmp_path / "new")
    assert tree(tmp_path) == before
    (tmp_path / "c" / "cache.json").write_text("[")
    with pytest.raises(ConfigError, match="of other teachers"):
        open_cache(tmp_path / "c")


def test_only_clean_images_are_cached(tmp_path: Path) -> None:
    teacher = Counting()
    cached = CachedTeacher(teacher, open_cache(tmp_path / "c"))
    x = images(5)
    with torch.no_grad():
        first, again = cached.clean_logits(x), cached.clean_logits(x)
        assert teacher.images == 5
        assert torch.equal(first, again)
        assert torch.equal(cached(x), first)
    assert teacher.images == 10


# --- in training


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("teachers")
    train(small_config(), room / "robust", progress=False)
    train(small_config(seed=1, method={"name": "clean"}), room / "natural", progress=False)
    return room


def only(folder: Path) -> Path:
    """Return the only folder in a folder."""
    (found,) = folder.iterdir()
    return found


METHODS = {"ard": ["robust"], "rslad": ["robust"], "kd": ["robust"], "mtard": ["robust", "natural"], "akd": ["robust"]}


def student(teachers: Path, method: str, cache: Path | None, **changes: Any):  # type: ignore[no-untyped-def]
    specs = [{"spec": f"run:{teachers / role}@best", "role": role} for role in METHODS[method]]
    return small_config(
        method={"name": method},
        teachers=specs,
        compute={"teacher_cache": None if cache is None else str(cache)},
        **changes,
    )


# MTARD has two roles, and the attack of RSLAD asks the teacher, too; the others ask it as one of these does.
@pytest.mark.parametrize(
    "method", [name if name in ("mtard", "rslad") else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]
)
def test_a_cache_leaves_a_run_bit_for_bit_unchanged(method: str, teachers: Path, tmp_path: Path) -> None:
    changes = {"data": {"augmentation": ["shift"]}}
    for name, folder in (("without", None), ("cold", tmp_path / "cache"), ("warm", tmp_path / "cache")):
        train(student(teachers, method, folder, **changes), tmp_path / name, progress=False)
    for name in ("cold", "warm"):
        assert lines(tmp_path / name) == lines(tmp_path / "without")
        assert weights(tmp_path / name) == weights(tmp_path / "without")
    roles = (
        sorted(each.name.partition("-")[0] for each in (tmp_path / "cache").iterdir())
        if (tmp_path / "cache").exists()
        else []
    )
    # AKD's teacher sees adversarial images only, and so does MTARD's robust teacher: their logits are not cached.
    assert roles == {"akd": [], "mtard": ["natural"]}.get(method, ["robust"])


def test_a_run_of_another_method_uses_the_same_cache(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(student(teachers, "ard", tmp_path / "cache"), tmp_path / "first", progress=False)
    size = (only(tmp_path / "cache") / "logits").stat().st_size
    # Without augmentation every image is stored once, whatever the number of epochs.
    assert size == 40 * 10 * 4
    calls: list[int] = []
    clean_logits = CachedTeacher.clean_logits

    def counted(self: CachedTeacher, x: Tensor) -> Tensor:
        self.network.register_forward_hook(lambda *_: calls.append(1))
        return clean_logits(self, x)

    monkeypatch.setattr(CachedTeacher, "clean_logits", counted)
    train(student(teachers, "kd", tmp_path / "cache"), tmp_path / "second", progress=False)
    assert calls == []


def test_extra_and_mixed_images_are_cached(teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (50, 8, 8), dtype=np.uint8), rng.integers(0, 10, 50)
    np.savez(tmp_path / "extra.npz", image=images, label=labels)
    data = {"extra": str(tmp_path / "extra.npz"), "cutmix": 0.5}
    for name, folder in (("without", None), ("cold", tmp_path / "cache")):
        train(student(teachers, "ard", folder, data=data), tmp_path / name, progress=False)
    assert weights(tmp_path / "cold") == weights(tmp_path / "without")
    # A run of another method has the same extra and mixed images, so its teacher is never computed on clean images.
    monkeypatch.setattr(TeacherCache, "put", lambda *_: pytest.fail("the teacher was computed on clean images"))
    train(student(teachers, "kd", tmp_path / "cache", data=data), tmp_path / "warm", progress=False)


def test_other_teachers_weights_and_precisions_have_a_cache_of_their_own(teachers: Path, tmp_path: Path) -> None:
    config = student(teachers, "ard", tmp_path / "cache")
    train(config, tmp_path / "first", progress=False)
    page = json.loads((only(tmp_path / "cache") / "cache.json").read_text())
    assert page["teachers"][0]["sha256"] == weights(teachers / "robust", "best")
    before = tree(tmp_path / "cache")
    spec = f"run:{teachers / 'robust'}@best"
    others = [
        {"teachers": [f"run:{teachers / 'natural'}@best"]},
        {"teachers": [spec, spec]},
        {"compute": {"teacher_cache": str(tmp_path / "cache"), "precision": "bf16"}},
    ]
    folders = {only(tmp_path / "cache")}
    for change in others:
        values = {**config.model_dump(mode="json"), **change}
        values["compute"] = {**config.model_dump(mode="json")["compute"], **change.get("compute", {})}
        teacher = set_up_training(type(config).model_validate(values), torch.device("cpu")).teacher
        assert isinstance(teacher, CachedTeacher)
        folders.add(teacher.cache.folder)
    assert len(folders) == 4
    train(config, tmp_path / "again", progress=False)
    assert before.items() <= tree(tmp_path / "cache").items()


def test_a_run_resumes_with_a_cache_that_it_began_without(teachers: Path, tmp_path: Path) -> None:
    train(student(teachers, "ard", None), tmp_path / "run", progress=False)
    before = weights(tmp_path / "run")
    train(student(teachers, "ard", tmp_path / "cache"), tmp_path / "run", progress=False)
    assert weights(tmp_path / "run") == before


# --- the teacher's code


FACTOR = 1.0


class Scaled(nn.Module):
    """A teacher whose code depends on a number of this module."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.linear, self.noise = nn.Linear(64, 10), noise
        with torch.no_grad():
            self.linear.weight.copy_(torch.linspace(-1, 1, 640).reshape(10, 64).sin())
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(FACTOR * x.flatten(1) + self.noise * torch.randn_like(x.flatten(1)))
        return logits


def scaled(num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    return Scaled()


def random(num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
    return Scaled(noise=0.1)


def with_scaled_teacher(cache: Path, name: str = "scaled"):  # type: ignore[no-untyped-def]
    teacher = {"spec": f"{__name__}:{name}", "role": "robust"}
    return small_config(method={"name": "rslad"}, teachers=[teacher], compute={"teacher_cache": str(cache)})


def test_a_teacher_whose_code_has_changed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(with_scaled_teacher(tmp_path / "cache"), tmp_path / "one", progress=False)
    train(with_scaled_teacher(tmp_path / "cache"), tmp_path / "two", progress=False)
    before = tree(tmp_path)
    monkeypatch.setattr(f"{__name__}.FACTOR", 0.5)
    with pytest.raises(
        ConfigError, match=r"robust-[0-9a-f]{16} holds the logits of these weights in other code \(its logits"
    ) as caught:
        train(with_scaled_teacher(tmp_path / "cache"), tmp_path / "three", progress=False)
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before


def test_a_cache_of_earlier_versions_has_no_fingerprint_and_is_used(tmp_path: Path) -> None:
    config = with_scaled_teacher(tmp_path / "cache")
    train(config, tmp_path / "one", progress=False)
    file = only(tmp_path / "cache") / "cache.json"
    page = json.loads(file.read_text())
    del page["fingerprint"]
    file.write_text(json.dumps(page))
    before = tree(tmp_path / "cache")
    train(config, tmp_path / "two", progress=False)
    assert tree(tmp_path / "cache") == before
    assert weights(tmp_path / "one") == weights(tmp_path / "two")


def test_a_randomised_teacher_is_named(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"robust teacher draws random numbers: .* answers with its first draw"):
            set_up_training(with_scaled_teacher(tmp_path / "cache", "random"), torch.device("cpu"))
