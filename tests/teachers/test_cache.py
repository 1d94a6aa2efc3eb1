"""Cached logits: bit for bit those of the teacher, and never those of another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.small_runs import lines, small_config, tree, weights
from robustill.core.errors import ConfigError
from robustill.teachers.cache import Cached, TeacherCache
from robustill.training.loop import train
from robustill.training.setup import set_up_training

WHO = {"teachers": [{"sha256": "ab"}], "mean": "probabilities"}


def open_cache(folder: Path, identity: dict[str, Any] = WHO, classes: int = 3) -> TeacherCache:
    return TeacherCache(folder, identity, classes)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


class Counting(nn.Module):
    """A teacher that counts its images."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.linear = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return self.linear(x.flatten(1))  # type: ignore[no-any-return]


def test_what_is_put_is_got_whatever_the_order_or_memory_format(tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "c")
    x, logits = images(6), torch.randn(6, 3)
    assert cache.get(x) is None
    cache.put(x, logits)
    order = torch.tensor([3, 0, 3, 5])
    again = x[order].contiguous(memory_format=torch.channels_last)
    found = cache.get(again)
    assert found is not None
    assert torch.equal(found, logits[order])
    assert cache.get(torch.cat([x, images(1, seed=9)])) is None
    assert (cache.hits, cache.misses) == (4, 13)


def test_one_bit_of_one_pixel_is_another_image(tmp_path: Path) -> None:
    cache = open_cache(tmp_path / "c")
    x = images(1)
    cache.put(x, torch.randn(1, 3))
    other = x.clone()
    other[0, 0, 0, 0] = torch.nextafter(x[0, 0, 0, 0], torch.tensor(2.0))
    assert cache.get(other) is None
    assert cache.get(x.flip(3)) is None


def test_it_grows_over_processes_and_keeps_each_image_once(tmp_path: Path) -> None:
    x, logits = images(6), torch.randn(6, 3)
    first = open_cache(tmp_path / "c")
    first.put(torch.cat([x[:2], x[:2]]), torch.cat([logits[:2], logits[:2]]))
    first.put(x[1:4], logits[1:4])
    del first
    second = open_cache(tmp_path / "c")
    second.put(x, logits)
    found = second.get(x)
    assert found is not None
    assert torch.equal(found, logits)
    assert (tmp_path / "c" / "logits").stat().st_size == 6 * 3 * 4


def test_while_one_writes_another_reads(tmp_path: Path) -> None:
    x, logits = images(4), torch.randn(4, 3)
    writer = open_cache(tmp_path / "c")
    writer.put(x[:2], logits[:2])
    reader = open_cache(tmp_path / "c")
    assert reader.get(x[:2]) is not None
    reader.put(x, logits)
    assert reader.get(x) is None
    assert (writer.writes, reader.writes) == (True, False)
    assert (tmp_path / "c" / "logits").stat().st_size == 2 * 3 * 4


@pytest.mark.parametrize("cut", [("keys", 5), ("logits", 5), ("keys", 24), ("logits", 12)])
def test_what_a_killed_process_left_half_written_is_cut_off(cut: tuple[str, int], tmp_path: Path) -> None:
    x, logits = images(4), torch.randn(4, 3)
    open_cache(tmp_path / "c").put(x, logits)
    file = tmp_path / "c" / cut[0]
    file.write_bytes(file.read_bytes()[: -cut[1]])
    cache = open_cache(tmp_path / "c")
    found = cache.get(x[:3])
    assert found is not None
    assert torch.equal(found, logits[:3])
    assert cache.get(x) is None
    cache.put(x, logits)
    del cache
    found = open_cache(tmp_path / "c").get(x)
    assert found is not None
    assert torch.equal(found, logits)


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
    found = cache.get(x)
    assert found is not None
    assert torch.equal(found, logits)


def test_others_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    open_cache(tmp_path / "c").put(images(1), torch.randn(1, 3))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match=r"holds the logits of others \(teachers differ from cache\.json\)"):
        open_cache(tmp_path / "c", {**WHO, "teachers": [{"sha256": "cd"}]})
    with pytest.raises(ConfigError, match=r"\(precision differ"):
        open_cache(tmp_path / "c", {**WHO, "precision": "bf16"})
    with pytest.raises(ConfigError, match="thesis is no teacher cache, nor empty"):
        open_cache(tmp_path / "thesis")
    open_cache(tmp_path / "new")
    assert tree(tmp_path) == before
    (tmp_path / "c" / "cache.json").write_text("[")
    with pytest.raises(ConfigError, match="of others"):
        open_cache(tmp_path / "c")


def test_only_clean_images_are_kept(tmp_path: Path) -> None:
    teacher = Counting()
    cached = Cached(teacher, open_cache(tmp_path / "c"))
    x = images(5)
    with torch.no_grad():
        first, again = cached.on_clean(x), cached.on_clean(x)
        assert teacher.seen == 5
        assert torch.equal(first, again)
        assert torch.equal(cached(x), first)
    assert teacher.seen == 10


# --- in training


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("teachers")
    train(small_config(), room / "robust", progress=False)
    train(small_config(seed=1, method={"name": "clean"}), room / "natural", progress=False)
    return room


METHODS = {"ard": ["robust"], "rslad": ["robust"], "kd": ["robust"], "mtard": ["robust", "natural"], "akd": ["robust"]}


def student(teachers: Path, method: str, cache: Path | None, **changes: Any):  # type: ignore[no-untyped-def]
    given = [{"spec": f"run:{teachers / role}@best", "role": role} for role in METHODS[method]]
    return small_config(
        method={"name": method},
        teachers=given,
        compute={"teacher_cache": None if cache is None else str(cache)},
        **changes,
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_bit_for_bit_the_same_without_with_a_cold_and_with_a_warm_cache(
    method: str, teachers: Path, tmp_path: Path
) -> None:
    changes = {"data": {"augmentation": ["shift"]}}
    for name, folder in (("without", None), ("cold", tmp_path / "cache"), ("warm", tmp_path / "cache")):
        train(student(teachers, method, folder, **changes), tmp_path / name, progress=False)
    for name in ("cold", "warm"):
        assert lines(tmp_path / name) == lines(tmp_path / "without")
        assert weights(tmp_path / name) == weights(tmp_path / "without")
    kept = sorted(each.name for each in (tmp_path / "cache").iterdir()) if (tmp_path / "cache").exists() else []
    # AKD's teacher looks at adversarial images alone, and so does MTARD's robust one: nothing of them is kept.
    assert kept == {"akd": [], "mtard": ["natural"]}.get(method, ["robust"])


def test_a_warm_cache_spares_the_teacher_also_for_another_method(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(student(teachers, "ard", tmp_path / "cache"), tmp_path / "first", progress=False)
    size = (tmp_path / "cache" / "robust" / "logits").stat().st_size
    # Without augmentation: every image once, whatever the number of epochs.
    assert size == 40 * 10 * 4
    asked: list[int] = []
    forward = Cached.on_clean

    def counted(self: Cached, x: Tensor) -> Tensor:
        self.network.register_forward_hook(lambda *_: asked.append(1))
        return forward(self, x)

    monkeypatch.setattr(Cached, "on_clean", counted)
    train(student(teachers, "kd", tmp_path / "cache"), tmp_path / "second", progress=False)
    assert asked == []


def test_extra_and_mixed_images_are_kept_like_any_other(
    teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = np.random.default_rng(0)
    images, labels = drawn.integers(0, 256, (50, 8, 8), dtype=np.uint8), drawn.integers(0, 10, 50)
    np.savez(tmp_path / "extra.npz", image=images, label=labels)
    data = {"extra": str(tmp_path / "extra.npz"), "cutmix": 0.5}
    for name, folder in (("without", None), ("cold", tmp_path / "cache")):
        train(student(teachers, "ard", folder, data=data), tmp_path / name, progress=False)
    assert weights(tmp_path / "cold") == weights(tmp_path / "without")
    # A run of another method sees the very same images, extra and mixed: its teacher is never asked about them.
    monkeypatch.setattr(TeacherCache, "put", lambda *_: pytest.fail("the teacher was asked"))
    train(student(teachers, "kd", tmp_path / "cache", data=data), tmp_path / "warm", progress=False)


def test_another_teacher_weight_or_precision_is_refused(teachers: Path, tmp_path: Path) -> None:
    config = student(teachers, "ard", tmp_path / "cache")
    train(config, tmp_path / "first", progress=False)
    spec = f"run:{teachers / 'robust'}@best"
    others = [
        {"teachers": [f"run:{teachers / 'natural'}@best"]},
        {"teachers": [spec, spec]},
        {"compute": {"teacher_cache": str(tmp_path / "cache"), "precision": "bf16"}},
    ]
    for change in others:
        values = {**config.model_dump(mode="json"), **change}
        values["compute"] = {**config.model_dump(mode="json")["compute"], **change.get("compute", {})}
        with pytest.raises(ConfigError, match="holds the logits of others"):
            set_up_training(type(config).model_validate(values), torch.device("cpu"))
    page = json.loads((tmp_path / "cache" / "robust" / "cache.json").read_text())
    assert page["teachers"][0]["sha256"] == weights(teachers / "robust", "best")


def test_a_run_may_go_on_with_and_without_a_cache(teachers: Path, tmp_path: Path) -> None:
    train(student(teachers, "ard", None), tmp_path / "run", progress=False)
    before = weights(tmp_path / "run")
    train(student(teachers, "ard", tmp_path / "cache"), tmp_path / "run", progress=False)
    assert weights(tmp_path / "run") == before
