"""Published weights: read without running their code, and loaded exactly or refused.

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
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from robustill.core.archives import check_header, refuse_unpacking
from robustill.core.errors import CheckpointError, first_line

_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_MAX_DEPTH = 10
_PREFIXES = ("module.", "model.", "_model.", "net.")
# The names of the normalisation in published files: DeepMind's and RobustBench's.
_NORMALISATION = {"mean": "normalize.mean", "std": "normalize.std", "mu": "normalize.mean", "sigma": "normalize.std"}


def load_public_weights(model: nn.Module, source: Path | Mapping[str, Tensor]) -> None:
    """Copy published weights into a model of the same architecture; leave the model unchanged when they do not fit.

    Prefixes that most names have (`module.`, `model.`, `_model.`, `net.`) are stripped, unless the model's own names
    have them. Normalisation under the names mean and std, or mu and sigma, becomes `normalize.mean` and
    `normalize.std`. Where the file lacks its normalisation or `num_batches_tracked`, the model's own values remain.

    Args:
        model: made by `build` with the architecture, options and normalisation of the file.
        source: a file as for `read_state_dict`, or tensors by name.

    Raises:
        CheckpointError: a file that cannot be trusted or read, or tensors that do not fit exactly.
    """
    label = str(source) if isinstance(source, Path) else "the given weights"
    tensors = read_state_dict(source) if isinstance(source, Path) else dict(source)
    expected = model.state_dict()
    state = _rename(tensors, expected)
    for name, tensor in expected.items():
        if name.startswith("normalize.") or name.endswith("num_batches_tracked"):
            state.setdefault(name, tensor)
        if name.startswith("normalize.") and state[name].numel() == tensor.numel():
            state[name] = state[name].reshape(tensor.shape)
    mismatches = _mismatches(state, expected)
    if mismatches:
        raise CheckpointError(
            f"{label} cannot be loaded into the model: {'; '.join(mismatches)}. "
            "Build the model with the architecture, options, num_classes, in_channels and image_size of the file"
        )
    model.load_state_dict(state)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by the names they have there, on the CPU.

    Reads .safetensors, and .pt, .pth, .model ... of torch.save without unpickling code. Tensors under `state_dict`,
    `model_state_dict`, `model` or `net` are unwrapped; of a list of state dicts the first is read.

    Raises:
        CheckpointError: a file that is missing, damaged, would run code when read, or does not hold tensors by name.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected weights as .safetensors or a file of torch.save")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch_file(path)
    return _unwrap(content, path)


def check_beginning(path: Path) -> None:
    """Check the header of a file of weights or a program, see `check_header`; a link to it is followed.

    Raises:
        CheckpointError: it is none, or has bytes that its header does not describe.
    """
    try:
        check_header(path.resolve(), suffix=path.suffix)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        kind = "not a safetensors file" if path.suffix == ".safetensors" else "not a file of torch.save"
        raise CheckpointError(f"{path} is damaged, or {kind} ({first_line(error)}); fetch it again") from None


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(network: nn.Module) -> str:
    """Compute the SHA-256 of a network's tensors as a .safetensors file, for networks that do not come from one."""
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in network.state_dict().items()}
    return hashlib.sha256(save(state)).hexdigest()


# A malicious or truncated file can make a reader fail in any way, and each of them means the same to the user.


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        if not str(path).isprintable():
            # Its reader takes no name that is not UTF-8.
            return load(path.read_bytes())
        return load_file(path)
    except Exception as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file ({first_line(error)})") from error


def _read_torch_file(path: Path) -> object:
    try:
        with warnings.catch_warnings():
            # Warnings about pickle protocols that torch.save does not write: the errors below say it in one line.
            warnings.simplefilter("ignore")
            with path.open("rb") as file:
                refuse_unpacking(file, path.stat().st_size)
            with _BoundedReader(path) as file:
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
            f"{path} is damaged, or not a file of torch.save ({first_line(error)}); fetch it again"
        ) from error


class _BoundedReader(io.BufferedReader):
    """A file that never reads more than is left: Python would allocate as much memory as a damaged length states."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self.size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def _is_damage(error: pickle.UnpicklingError) -> bool:
    """Return whether torch could not read a file, rather than refused what is in it."""
    return any(text in str(error) for text in ("truncated", "Unsupported operand", "Invalid magic number"))


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    """Return the tensors by name inside the wrappers of a file."""
    # The number of levels is limited because a list can contain itself.
    for _ in range(_MAX_DEPTH):
        if isinstance(content, list | tuple) and content:
            content = content[0]
            continue
        values = [content[key] for key in _WRAPPERS if key in content] if isinstance(content, Mapping) else []
        nested = [each for each in values if isinstance(each, Mapping | list | tuple)]
        if not nested:
            break
        content = nested[0]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected tensors by name")
    others = [str(name) for name, value in content.items() if not (isinstance(name, str) and isinstance(value, Tensor))]
    if others or not content:
        names = _join_names(others) if others else "nothing"
        raise CheckpointError(
            f"{path} holds {names} where tensors by name were expected, alone or under {', '.join(_WRAPPERS)}"
        )
    return dict(content)


def _rename(tensors: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip prefixes, and give the normalisation its name in our networks."""
    changed = True
    while changed:
        changed = False
        for prefix in _PREFIXES:
            stripped = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            is_foreign = _most_have_prefix(tensors, prefix) and not _most_have_prefix(expected, prefix)
            if is_foreign and len(stripped) == len(tensors):
                tensors, changed = stripped, True
    renamed = dict(tensors)
    for theirs, ours in _NORMALISATION.items():
        if theirs in renamed and theirs not in expected and ours in expected and ours not in renamed:
            renamed[ours] = renamed.pop(theirs)
    return renamed


def _most_have_prefix(names: Iterable[str], prefix: str) -> bool:
    have_prefix = [name.startswith(prefix) for name in names]
    return 2 * sum(have_prefix) > len(have_prefix)


def _mismatches(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Describe the tensors that are missing, unexpected, or of another shape or type."""
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    different = [
        f"{name} {_describe(state[name])} instead of {_describe(expected[name])}"
        for name in expected
        if name in state and not _has_same_form(state[name], expected[name])
    ]
    groups = [(missing, "missing"), (unexpected, "unexpected"), (different, "of another shape or type")]
    return [f"{len(names)} {label} ({_join_names(names)})" for names, label in groups if names]


def _has_same_form(tensor: Tensor, expected: Tensor) -> bool:
    return tensor.shape == expected.shape and tensor.is_floating_point() == expected.is_floating_point()


def _describe(tensor: Tensor) -> str:
    dtype = "" if tensor.is_floating_point() else f" {tensor.dtype}".replace("torch.", "")
    return f"{list(tensor.shape)}{dtype}"


def _join_names(names: list[str], limit: int = 3) -> str:
    joined = ", ".join(names[:limit])
    return f"{joined}, ..." if len(names) > limit else joined
