"""Published weights: what is unwrapped, renamed and filled in, and what is refused in one line."""

from __future__ import annotations

import argparse
import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robustill.core.errors import CheckpointError
from robustill.models import build
from robustill.models.weights import file_sha256, load_public_weights, read_state_dict, tensors_sha256


def resnet8(seed: int = 0, **options: Any) -> nn.Module:
    return build("resnet8", num_classes=10, width=8, seed=seed, **options)


def public_weights(seed: int = 1) -> dict[str, Tensor]:
    """Weights as published files hold them: without normalisation."""
    return {key: value for key, value in resnet8(seed).state_dict().items() if not key.startswith("normalize.")}


def assert_loaded(model: nn.Module, weights: dict[str, Tensor]) -> None:
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in weights.items())


WRAPPED = {
    "bare": lambda weights: weights,
    "state_dict": lambda weights: {"state_dict": weights, "epoch": 3},
    "model": lambda weights: {"model": weights},
    "net": lambda weights: {"net": weights, "acc": 91.0},
    "model_state_dict": lambda weights: {"model_state_dict": weights, "optimizer": {"lr": 0.1}},
    "list in state_dict": lambda weights: {"state_dict": [weights], "err": 0.5},
    "list": lambda weights: [weights],
    "twice": lambda weights: {"model": {"state_dict": weights}},
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_wrappers_are_unwrapped(wrapping: str, tmp_path: Path) -> None:
    weights = public_weights()
    torch.save(WRAPPED[wrapping](weights), tmp_path / "weights.pth")
    assert read_state_dict(tmp_path / "weights.pth").keys() == weights.keys()
    model = resnet8()
    load_public_weights(model, tmp_path / "weights.pth")
    assert_loaded(model, weights)


@pytest.mark.parametrize(
    "prefix",
    [
        "module.", "model.", "_model.", "net.", "module.model.", "_orig_mod.", "module._orig_mod.", "1.", "backbone.",
        "student.", "_fsdp_wrapped_module.", "a.b.c.",
    ],
)  # fmt: skip
def test_prefixes_are_stripped(prefix: str) -> None:
    weights, model = public_weights(), resnet8()
    load_public_weights(model, {prefix + key: value for key, value in weights.items()})
    assert_loaded(model, weights)


def test_a_prefix_of_most_names_is_stripped() -> None:
    weights, model = public_weights(), resnet8()
    mean, std = torch.full((1, 3, 1, 1), 0.25), torch.full((1, 3, 1, 1), 0.5)
    named = {f"model.{key}": value for key, value in weights.items()}
    load_public_weights(model, {"normalize.mean": mean, "normalize.std": std, **named})
    assert_loaded(model, {**weights, "normalize.mean": mean, "normalize.std": std})


def test_a_prefix_of_the_models_own_names_is_not_stripped() -> None:
    inner, target = nn.ModuleDict({"net": nn.Linear(2, 3)}), nn.ModuleDict({"net": nn.Linear(2, 3)})
    load_public_weights(target, inner.state_dict())
    assert torch.equal(target["net"].weight, inner["net"].weight)


@pytest.mark.parametrize(("mean_name", "std_name"), [("mean", "std"), ("mu", "sigma")])
@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1, 3, 1, 1)])
def test_normalisation_is_read_under_other_names_and_shapes(
    mean_name: str, std_name: str, shape: tuple[int, ...]
) -> None:
    model = resnet8(mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
    mean, std = torch.tensor([0.1, 0.2, 0.3]).reshape(shape), torch.tensor([0.4, 0.5, 0.6]).reshape(shape)
    load_public_weights(model, {**public_weights(), mean_name: mean, std_name: std})
    state = model.state_dict()
    assert state["normalize.mean"].flatten().tolist() == mean.flatten().tolist()
    assert state["normalize.std"].flatten().tolist() == std.flatten().tolist()
    assert state["normalize.std"].shape == (1, 3, 1, 1)


def test_what_a_file_lacks_is_left_unchanged() -> None:
    weights = {key: value for key, value in public_weights().items() if not key.endswith("num_batches_tracked")}
    model = resnet8(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    load_public_weights(model, weights)
    assert_loaded(model, weights)
    assert model.state_dict()["normalize.mean"].flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_a_safetensors_file_is_loaded(tmp_path: Path) -> None:
    weights, model = public_weights(), resnet8()
    save_file(weights, tmp_path / "weights.safetensors")
    load_public_weights(model, tmp_path / "weights.safetensors")
    assert_loaded(model, weights)


def assert_refused(model: nn.Module, source: Any, match: str) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=match) as caught:
        load_public_weights(model, source)
    assert "\n" not in str(caught.value)
    assert_loaded(model, before)


def test_mismatches_are_counted_and_named() -> None:
    weights = public_weights()
    missing = {key: value for key, value in weights.items() if not key.startswith("layer1.")}
    assert_refused(
        resnet8(), missing, r"10 missing \(layer1\.0\.conv1\.weight, layer1\.0\.bn1\.weight, .*, \.\.\.\)\. Build"
    )
    assert_refused(resnet8(), {**weights, "extra": torch.zeros(1)}, r"model: 1 unexpected \(extra\)\.")
    assert_refused(
        resnet8(),
        {**weights, "linear.weight": torch.zeros(100, 32), "linear.bias": torch.zeros(100)},
        r"2 of another shape or type \(linear\.weight \[100, 32\] instead of \[10, 32\], linear\.bias \[100\]",
    )
    assert_refused(
        resnet8(), {**weights, "linear.bias": torch.zeros(10, dtype=torch.int32)}, r"linear\.bias \[10\] int32 inst"
    )
    assert_refused(resnet8(), {**weights, "mean": torch.zeros(1)}, r"normalize\.mean \[1\] instead of \[1, 3, 1, 1\]")


def shifted(weights: dict[str, Tensor], prefix: str = "", by: int = 1) -> dict[str, Tensor]:
    """Other weights of the same network, with a prefix."""
    return {f"{prefix}{name}": tensor + by for name, tensor in weights.items()}


def prefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return shifted(weights, prefix, by=0)


def test_names_inserted_between_those_of_modules_are_removed() -> None:
    weights, model = public_weights(), resnet8()
    inserted = {name.replace("conv1.", "_orig_mod.conv1."): tensor for name, tensor in weights.items()}
    load_public_weights(model, inserted)
    assert_loaded(model, weights)


def test_an_average_of_torch_is_loaded(tmp_path: Path) -> None:
    weights, model = public_weights(), resnet8()
    average = torch.optim.swa_utils.AveragedModel(resnet8(1))
    load_public_weights(model, average.state_dict())
    assert_loaded(model, weights)
    torch.save({"model_ema": average.state_dict(), "epoch": 3}, tmp_path / "ema.pth")
    load_public_weights(model, tmp_path / "ema.pth")
    assert_loaded(model, weights)


def test_the_copy_inside_an_attacker_is_no_second_network() -> None:
    weights, model = public_weights(), resnet8()
    mean, std = torch.full((3, 1, 1), 0.25), torch.full((3, 1, 1), 0.5)
    names = {}
    for outer, normalisation in (("module.", "normalizer."), ("module.attacker.", "normalize.")):
        names |= prefixed(weights, f"{outer}model.")
        names |= {f"{outer}{normalisation}new_mean": mean, f"{outer}{normalisation}new_std": std}
    load_public_weights(model, names)
    assert_loaded(model, {**weights, "normalize.mean": mean[None], "normalize.std": std[None]})


def test_the_normalisation_of_a_sequential_is_taken() -> None:
    weights, model = public_weights(), resnet8()
    mean, std = torch.full((1, 3, 1, 1), 0.25), torch.full((1, 3, 1, 1), 0.5)
    load_public_weights(model, {"0.mean": mean, "0.std": std, **prefixed(weights, "1.")})
    assert_loaded(model, {**weights, "normalize.mean": mean, "normalize.std": std})


@pytest.mark.parametrize(
    ("others", "taken", "how"),
    [
        (lambda w: {"state_dict": w, "state_dict_ema": shifted(w)}, "state_dict", "wrapper='state_dict_ema'"),
        (lambda w: {"state_dict_ema": shifted(w), "state_dict": w}, "state_dict", "wrapper='state_dict_ema'"),
        (lambda w: {"model": prefixed(w, "module."), "ema": shifted(w)}, "model", "wrapper='ema'"),
        (
            lambda w: {"state_dict": {**prefixed(w, "student."), **shifted(w, "teacher.")}},
            "the names that begin with 'student.' under state_dict",
            "prefix='teacher.'",
        ),
        (lambda w: {**prefixed(w, "model."), **shifted(w, "ema_model.")}, "'model.'", "prefix='ema_model.'"),
    ],
)
def test_of_weights_and_their_average_it_is_said_which_is_taken(
    others: Any, taken: str, how: str, tmp_path: Path
) -> None:
    weights, model = public_weights(), resnet8()
    file = tmp_path / "both.pth"
    torch.save(others(weights), file)
    with pytest.warns(UserWarning, match=f"holds several sets of weights that fit: .*{taken} taken, not") as caught:
        load_public_weights(model, file)
    assert_loaded(model, weights)
    (line,) = [str(each.message) for each in caught]
    assert "\n" not in line
    assert how in line
    # The advice is followed to the letter.
    command = line.partition("`")[2].rstrip("`").replace("'weights.pth'", repr(str(tmp_path / "weights.pth")))
    exec(command, {})
    load_public_weights(model, tmp_path / "weights.pth")
    assert_loaded(model, shifted(weights))


def test_equal_weights_under_two_names_are_one_network(tmp_path: Path) -> None:
    weights, model = public_weights(), resnet8()
    torch.save({"state_dict": weights, "state_dict_ema": weights}, tmp_path / "same.pth")
    load_public_weights(model, tmp_path / "same.pth")
    assert_loaded(model, weights)


def test_two_networks_without_a_known_name_are_refused() -> None:
    weights = public_weights()
    both = {**prefixed(weights, "encoder_q."), **shifted(weights, "encoder_k.")}
    assert_refused(resnet8(), both, r"several sets of weights that fit, the names that begin with 'encoder_[kq]\.' and")


def test_tensors_that_are_left_out_are_named() -> None:
    weights, model = public_weights(), resnet8()
    with pytest.warns(UserWarning, match=r"1 other tensors are left out \(projector\.weight\)"):
        load_public_weights(model, {**prefixed(weights, "backbone."), "projector.weight": torch.zeros(2, 2)})
    assert_loaded(model, weights)


def test_prefixes_that_do_not_help_are_named() -> None:
    weights = prefixed(public_weights(), "encoder.")
    del weights["encoder.conv1.weight"]
    assert_refused(
        resnet8(), {**weights, "head.weight": torch.zeros(1)}, r"its names begin with encoder\. \(\d+\), head\. \(1\)\."
    )


BESIDE = {
    "a float": np.float64(0.9), "an integer": np.int64(3), "a small float": np.float32(1.5), "a truth": np.bool_(True),
    "an array": np.arange(6.0).reshape(2, 3), "a state of draws": np.random.RandomState(0).get_state(),
    "options": argparse.Namespace(lr=0.1, data=["a"]), "no array": np.zeros(0),
}  # fmt: skip


@pytest.mark.parametrize("kind", BESIDE)
def test_numbers_of_numpy_beside_the_weights_are_data(kind: str, tmp_path: Path) -> None:
    weights, model = public_weights(), resnet8()
    for content in ({"state_dict": weights, "beside": BESIDE[kind]}, {**weights, "beside": BESIDE[kind]}):
        torch.save(content, tmp_path / "weights.pth")
        load_public_weights(model, tmp_path / "weights.pth")
        assert_loaded(model, weights)


def test_what_is_named_like_numpy_calls_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = public_weights()
    torch.save({"state_dict": weights, "array": np.array([RunsCode()], dtype=object)}, tmp_path / "objects.pth")
    assert_refused(resnet8(), tmp_path / "objects.pth", "would run code when read, so it is refused")
    name = "numpy.core.multiarray.scalar" if np.__version__ < "2" else "numpy._core.multiarray.scalar"
    module, _, function = name.rpartition(".")
    content = f"\x80\x02}}X\x01\x00\x00\x00ac{module}\n{function}\nX\x01\x00\x00\x00x\x85Rs.".encode("latin1")
    (tmp_path / "scalar.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"scalar\.pth"):
        read_state_dict(tmp_path / "scalar.pth")
    assert not (tmp_path / "ran").exists()


class RunsCode:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path("ran"),))  # type: ignore[return-value]


def test_a_file_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": public_weights(), "args": RunsCode()}, tmp_path / "zip.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"state_dict": RunsCode()}, protocol=2))
    torch.save(resnet8(), tmp_path / "whole_model.pt")
    for name in ("zip.pth", "plain.pth", "whole_model.pt"):
        assert_refused(resnet8(), tmp_path / name, f"{name} would run code when read, so it is refused")
    # torch refuses pickles of later protocols, whatever is in them, and warns about them first.
    for protocol in (3, 4, 5):
        (tmp_path / "later.pth").write_bytes(pickle.dumps({"state_dict": RunsCode()}, protocol=protocol))
        assert_refused(resnet8(), tmp_path / "later.pth", r"later\.pth (is damaged, or no plain|would run code)")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
def test_a_truncated_file_is_refused(zipped: bool, share: float, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(public_weights(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_refused(resnet8(), path, r"weights\.pth is damaged")


@pytest.mark.parametrize("name", ["noise.pth", "noise.safetensors"])
def test_noise_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"<!DOCTYPE html><html><body>404 Not Found</body></html>")
    assert_refused(resnet8(), tmp_path / name, "noise.* is damaged")


def test_a_truncated_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(public_weights(), path)
    path.write_bytes(path.read_bytes()[:-100])
    assert_refused(resnet8(), path, r"weights\.safetensors is damaged")


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    assert_refused(resnet8(), tmp_path / "absent.pth", "no such file")
    torch.save({"epoch": 3, "loss": 0.5}, tmp_path / "progress.pth")
    assert_refused(resnet8(), tmp_path / "progress.pth", "holds epoch, loss where tensors by name were expected")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    assert_refused(resnet8(), tmp_path / "tensor.pth", "holds a Tensor; expected tensors by name")
    torch.save([], tmp_path / "empty.pth")
    assert_refused(resnet8(), tmp_path / "empty.pth", "holds a list; expected tensors by name")
    torch.save({}, tmp_path / "nothing.pth")
    assert_refused(resnet8(), tmp_path / "nothing.pth", "holds nothing where tensors")


def test_file_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def test_the_checksum_of_tensors_leaves_an_extra_state_out() -> None:
    class Counting(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

    plain, counting = nn.Linear(3, 2), Counting(3, 2)
    for name, parameter in plain.named_parameters():
        counting.get_parameter(name).data = parameter.data.clone()
    assert "_extra_state" in counting.state_dict()
    assert tensors_sha256(counting) == tensors_sha256(plain)
    counting.bias.data += 1
    assert tensors_sha256(counting) != tensors_sha256(plain)
