"""Published weights: read without running their code, and loaded exactly or refused.

model = build("preactresnet18", num_classes=10, mean=mean, std=std)
load_public_weights(model, Path("model_best.pth"))
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from robustill.core.archives import check_header, refuse_zip_bomb
from robustill.core.errors import CheckpointError, first_line
from robustill.core.files import BoundedReader
from robustill.models.state_dicts import (
    MAX_DEPTH,
    NORMALISATION,
    WRAPPERS,
    Candidate,
    StateDict,
    collect_state_dicts,
    describe_prefixes,
    find_candidates,
    left_out,
)

_PREFIXES = ("module.", "model.", "_model.", "net.")
# What lies beside weights and is no code: numbers and arrays of numpy, options of a command line. None of it is read.
_IGNORED = (
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "argparse.Namespace",
    "builtins.bytes",
)


def load_public_weights(model: nn.Module, source: Path | Mapping[str, Tensor]) -> None:
    """Copy published weights into a model of the same architecture; leave the model unchanged when they do not fit.

    Any prefix is stripped that leaves exactly the names of the model (`module.`, `_orig_mod.`, `backbone.`,
    `attacker.model.`). Normalisation under the names mean and std, mu and sigma, or new_mean and new_std, becomes
    `normalize.mean` and `normalize.std`. Where the file lacks its normalisation or `num_batches_tracked`, the model's
    own values remain. Of several weights that fit, such as those of training and their average (EMA), the former are
    taken, and a warning names the others.

    Args:
        model: made by `build` with the architecture, options and normalisation of the file.
        source: a file as for `read_state_dict`, or tensors by name.

    Raises:
        CheckpointError: a file that cannot be trusted or read, or tensors that do not fit exactly.
    """
    label = str(source) if isinstance(source, Path) else "the given weights"
    file = source if isinstance(source, Path) else None
    collections = {"": dict(source)} if file is None else _read_collections(file)  # type: ignore[arg-type]
    expected = model.state_dict()
    first_wrapper, first = next(iter(collections.items()))
    state = _complete(_rename(first, expected), expected)
    mismatches = _mismatches(state, expected)
    used = None if mismatches else Candidate(first_wrapper, "", state, frozenset(first))
    chosen = _choose(used, collections, expected, file, label)
    if chosen is None:
        prefixes = describe_prefixes(list(first), expected)
        begin = f"; its names begin with {prefixes}" if prefixes and "missing" in mismatches[0] else ""
        raise CheckpointError(
            f"{label} cannot be loaded into the model: {'; '.join(mismatches)}{begin}. "
            "Build the model with the architecture, options, num_classes, in_channels and image_size of the file"
        )
    model.load_state_dict(chosen.state)


def fits(model: nn.Module, file: Path) -> bool:
    """Return whether `load_public_weights` could copy the weights of a file into a model, which may be on no device."""
    expected = model.state_dict()
    for wrapper, tensors in _read_collections(file).items():
        state = _complete(_rename(tensors, expected), expected)
        found = [state, *(_complete(each.state, expected) for each in find_candidates(wrapper, tensors, expected))]
        if any(not _mismatches(each, expected) for each in found):
            return True
    return False


def _choose(
    used: Candidate | None,
    collections: Mapping[str, StateDict],
    expected: Mapping[str, Tensor],
    file: Path | None,
    label: str,
) -> Candidate | None:
    """Return the weights to load, and warn about others that fit as well; None where none fit.

    Args:
        used: all tensors of the first collection, where they fit under the usual prefixes; they are preferred.
        collections: the dictionaries of tensors in the file.
        expected: the state of the network.
        file: the file; None for tensors that were given.
        label: how warnings and errors name it.

    Raises:
        CheckpointError: several fit and none of them is known to be that of the trained network.
    """
    candidates = []
    for wrapper, tensors in collections.items():
        if used is not None and wrapper == used.wrapper:
            candidates.append(used)
            continue
        for each in find_candidates(wrapper, tensors, expected):
            state = _complete(each.state, expected)
            if not _mismatches(state, expected):
                candidates.append(replace(each, state=state))
    if not candidates:
        return None
    chosen = used or min(candidates, key=lambda each: each.rank)
    others = [each for each in candidates if each is not chosen and not each.equals(chosen)]
    rivals = [str(each) for each in others if each.rank == chosen.rank]
    if used is None and rivals:
        raise CheckpointError(
            f"{label} holds several sets of weights that fit, {chosen} and {_join_names(rivals)}: "
            f"expected one; {_how_to_take(chosen, file)}"
        )
    if others:
        warnings.warn(
            f"{label} holds several sets of weights that fit: {chosen} taken, not "
            f"{_join_names([str(each) for each in others])}; {_how_to_take(others[0], file)}",
            stacklevel=3,
        )
    beside = left_out(chosen, collections[chosen.wrapper], candidates)
    if beside:
        warnings.warn(
            f"{label}: {chosen} taken; {len(beside)} other tensors are left out ({_join_names(beside)})", stacklevel=3
        )
    return chosen


def _how_to_take(candidate: Candidate, file: Path | None) -> str:
    """Return how to make a file of one of several sets of weights."""
    if file is None:
        return f"give {candidate} alone"
    arguments = [f"{key}={value!r}" for key, value in (("wrapper", candidate.wrapper), ("prefix", candidate.prefix))]
    call = f"read_state_dict(Path({str(file)!r}), {', '.join(arguments)})"
    return (
        f"to take {candidate}: `from pathlib import Path; import torch; from robustill.models.weights import "
        f"read_state_dict; torch.save({call}, 'weights.pth')`"
    )


def _complete(state: StateDict, expected: Mapping[str, Tensor]) -> StateDict:
    """Return a state with the model's own normalisation and `num_batches_tracked` where it has none."""
    state = dict(state)
    for name, tensor in expected.items():
        if name.startswith("normalize.") or name.endswith("num_batches_tracked"):
            state.setdefault(name, tensor)
        if name.startswith("normalize.") and state[name].numel() == tensor.numel():
            state[name] = state[name].reshape(tensor.shape)
    return state


def read_state_dict(path: Path, *, wrapper: str | None = None, prefix: str = "") -> StateDict:
    """Read the tensors of a file by the names they have there, on the CPU.

    Reads .safetensors, and .pt, .pth, .model ... of torch.save without unpickling code. Tensors under `state_dict`,
    `model_state_dict`, `model` or `net` are unwrapped; of a list of state dicts the first is read.

    Args:
        path: the file.
        wrapper: the keys that lead to the tensors, joined by dots, e.g. "state_dict_ema"; None for the usual ones.
        prefix: only the names that begin with it are read, and it is stripped from them.

    Raises:
        CheckpointError: a file that is missing, damaged, would run code when read, or does not hold tensors by name.
    """
    collections = _read_collections(Path(path))
    if wrapper is None:
        wrapper = next(iter(collections))
    tensors = collections.get(wrapper, {})
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not tensors:
        names = ", ".join(repr(name) for name in collections)
        raise CheckpointError(f"{path} has no tensors under {wrapper!r} with the prefix {prefix!r}: it has {names}")
    return tensors


def _read_collections(path: Path) -> dict[str, StateDict]:
    """Return every dictionary of tensors in a file, by the keys that lead to it; that of the usual keys first."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected weights as .safetensors or a file of torch.save")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch_file(path)
    collections = collect_state_dicts(content)
    if collections:
        return collections
    depth = MAX_DEPTH
    while isinstance(content, list | tuple) and content and depth > 0:
        content, depth = content[0], depth - 1
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected tensors by name")
    names = _join_names([str(name) for name in content]) if content else "nothing"
    raise CheckpointError(
        f"{path} holds {names} where tensors by name were expected, alone or under {', '.join(WRAPPERS)}"
    )


# By the suffix of the file; none of them can be read, or has a gradient.
_OTHER_FORMATS = {
    ".onnx": "an ONNX model",
    ".tflite": "a TensorFlow Lite model",
    ".h5": "a Keras model",
    ".keras": "a Keras model",
    ".pb": "a TensorFlow graph",
    ".mlmodel": "a Core ML model",
    ".engine": "a TensorRT engine",
    ".pte": "an ExecuTorch program",
}


def refuse_other_format(path: Path) -> None:
    """Check that a file is not a model of another format, which no weights can be read from.

    Raises:
        CheckpointError: it is; the message says what to give in its place.
    """
    found = _OTHER_FORMATS.get(path.suffix.lower())
    if found is None and path.is_file() and _is_torchscript(path):
        found = "a TorchScript program, which could run code when read"
    if found is not None:
        raise CheckpointError(
            f"{path} is {found}: give the network that it was made from, as a run directory, as a file of weights "
            "with the name of its model, or as a .pt2 program of torch.export.save"
            + ("; `robustill evaluate FILE.onnx --suite deployed` attacks the file itself" if "ONNX" in found else "")
        )


def _is_torchscript(path: Path) -> bool:
    """Return whether a file is an archive of torch.jit.save."""
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            return any(name.count("/") == 1 and name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return False


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
    """Compute the SHA-256 of a network's tensors as a .safetensors file, for networks that do not come from one.

    The state of a network may hold other values (`get_extra_state`), which are left out: its fingerprint shows what
    they change.
    """
    state = {
        name: value.detach().cpu().clone().contiguous()
        for name, value in network.state_dict().items()
        if isinstance(value, Tensor)
    }
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
                refuse_zip_bomb(file, path.stat().st_size)
            with (
                BoundedReader(path) as file,
                torch.serialization.safe_globals([(_Ignored, name) for name in _IGNORED]),
            ):
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


class _Ignored:
    """What a file holds in place of something that is not read: nothing of it is called or kept."""

    def __init__(self, *values: object) -> None:
        del values

    def __new__(cls, *values: object) -> _Ignored:
        """Return an object without contents, whatever it is made from."""
        del values
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Do nothing."""


def _is_damage(error: pickle.UnpicklingError) -> bool:
    """Return whether torch could not read a file, rather than refused what is in it."""
    return any(text in str(error) for text in ("truncated", "Unsupported operand", "Invalid magic number"))


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
    for theirs, ours in NORMALISATION.items():
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
