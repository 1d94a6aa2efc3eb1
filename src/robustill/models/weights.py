"""Weights that others have published: read without running their code, fitted exactly or refused.

model = build("preactresnet18", num_classes=10, mean=mean, std=std)
load_public_weights(model, Path("model_best.pth"))
"""

from __future__ import annotations

import hashlib
import io
import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from robustill.core.archives import refuse_zip_bomb
from robustill.core.errors import CheckpointError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_DEEPEST = 10
_PREFIXES = ("module.", "model.", "_model.", "net.")
# Names under which published files hold the normalisation, DeepMind's and RobustBench's.
_NORMALISATION = {"mean": "normalize.mean", "std": "normalize.std", "mu": "normalize.mean", "sigma": "normalize.std"}


def load_public_weights(model: nn.Module, source: Path | Mapping[str, Tensor]) -> None:
    """Copy published weights into a model of the same architecture; the model is unchanged when they do not fit.

    Prefixes that most names carry (`module.`, `model.`, `_model.`, `net.`) are stripped, unless the model's own names
    carry them. Normalisation under the names mean and std, or mu and sigma, becomes `normalize.mean` and
    `normalize.std`. Where the file lacks its normalisation or `num_batches_tracked`, the model keeps its own.

    Args:
        model: made by `build` with the architecture, options and normalisation of the file.
        source: a file as in `read_state_dict`, or tensors by name.

    Raises:
        CheckpointError: a file that cannot be trusted or read, or tensors that do not fit exactly.
    """
    label = str(source) if isinstance(source, Path) else "the given weights"
    tensors = read_state_dict(source) if isinstance(source, Path) else dict(source)
    expected = model.state_dict()
    found = _renamed(tensors, expected)
    for name, tensor in expected.items():
        if name.startswith("normalize.") or name.endswith("num_batches_tracked"):
            found.setdefault(name, tensor)
        if name.startswith("normalize.") and found[name].numel() == tensor.numel():
            found[name] = found[name].reshape(tensor.shape)
    misfits = _misfits(found, expected)
    if misfits:
        raise CheckpointError(
            f"{label} cannot be loaded into the model: {'; '.join(misfits)}. "
            "Build the model with the architecture, options, num_classes, in_channels and image_size of the file"
        )
    model.load_state_dict(found)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by the names they have there, on the CPU.

    Reads .safetensors, and .pt, .pth, .model ... of torch.save without unpickling code. Tensors under `state_dict`,
    `model_state_dict`, `model` or `net` are unwrapped, and so is a list of one or more state dicts: its first.

    Raises:
        CheckpointError: a file that is missing, damaged, would run code when read, or holds no tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected weights as .safetensors or a file of torch.save")
    return _unwrapped(_read(path), path)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Bounded(io.BufferedReader):
    """A file of which no more is asked for than is left: Python makes room for as much as a damaged length says."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self.size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def _read(path: Path) -> object:
    # A hostile or cut file can make a reader fail in any way, and each of them means the same to the user.
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except Exception as error:
            raise CheckpointError(f"{path} is damaged or no safetensors file ({_first_line(error)})") from error
    try:
        with warnings.catch_warnings():
            # Of pickle protocols that torch.save does not write; what cannot be read is said below, in one line.
            warnings.simplefilter("ignore")
            with path.open("rb") as file:
                refuse_zip_bomb(file, path.stat().st_size)
            with _Bounded(path) as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if _is_damage(error):
            raise CheckpointError(
                f"{path} is damaged, or no plain file of torch.save; fetch it again, or ask for it as .safetensors"
            ) from error
        raise CheckpointError(
            f"{path} would run code when read, so it is refused; ask for a file that holds tensors only, or convert it "
            "where you trust it: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:
        raise CheckpointError(
            f"{path} is damaged, or no file of torch.save ({_first_line(error)}); fetch it again"
        ) from error


def _is_damage(error: pickle.UnpicklingError) -> bool:
    return any(sign in str(error) for sign in ("truncated", "Unsupported operand", "Invalid magic number"))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]


def _unwrapped(content: object, path: Path) -> dict[str, Tensor]:
    # Bounded: a list can hold itself.
    for _ in range(_DEEPEST):
        if isinstance(content, list | tuple) and content:
            content = content[0]
            continue
        inside = [content[key] for key in _WRAPPERS if key in content] if isinstance(content, Mapping) else []
        nested = [each for each in inside if isinstance(each, Mapping | list | tuple)]
        if not nested:
            break
        content = nested[0]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected tensors by name")
    others = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if others or not content:
        raise CheckpointError(
            f"{path} holds {_listed(others) if others else 'nothing'} where tensors by name were expected, "
            f"alone or under {', '.join(_WRAPPERS)}"
        )
    return dict(content)


def _renamed(tensors: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    changed = True
    while changed:
        changed = False
        for prefix in _PREFIXES:
            stripped = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            if _most_carry(prefix, tensors) and not _most_carry(prefix, expected) and len(stripped) == len(tensors):
                tensors, changed = stripped, True
    renamed = dict(tensors)
    for theirs, ours in _NORMALISATION.items():
        if theirs in renamed and theirs not in expected and ours in expected and ours not in renamed:
            renamed[ours] = renamed.pop(theirs)
    return renamed


def _most_carry(prefix: str, names: Iterable[str]) -> bool:
    carried = [name.startswith(prefix) for name in names]
    return 2 * sum(carried) > len(carried)


def _misfits(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    other = [
        f"{name} {_described(found[name])} instead of {_described(expected[name])}"
        for name in expected
        if name in found and not _same_kind(found[name], expected[name])
    ]
    counted = [(missing, "missing"), (unexpected, "unexpected"), (other, "of another shape or type")]
    return [f"{len(names)} {what} ({_listed(names)})" for names, what in counted if names]


def _same_kind(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and found.is_floating_point() == expected.is_floating_point()


def _described(tensor: Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" {tensor.dtype}".replace("torch.", "")
    return f"{list(tensor.shape)}{kind}"


def _listed(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def tensors_sha256(network: nn.Module) -> str:
    """The SHA-256 of a network's tensors as a .safetensors file, for what does not come from a single file."""
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in network.state_dict().items()}
    return hashlib.sha256(save(state)).hexdigest()
