"""The weights of one network among all that a published file holds, under whatever names.

Files wrap the tensors in dictionaries (`state_dict`, `model`, `state_dict_ema`) and prefix their names (`module.`,
`_orig_mod.`, `backbone.`, `attacker.model.`); some hold several networks. The weights of a network are those that have
exactly its names once a prefix is stripped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
MAX_DEPTH = 10
"""The number of levels is limited because a list can contain itself."""
StateDict = dict[str, Tensor]
_Mappings = Iterator[tuple[str, Mapping[object, object]]]
NORMALISATION = {
    "mean": "normalize.mean", "std": "normalize.std", "mu": "normalize.mean", "sigma": "normalize.std",
    "new_mean": "normalize.mean", "new_std": "normalize.std",
}  # fmt: skip
"""The last part of the names of the normalisation in published files."""
# Names that torch puts between those of modules: torch.compile, FSDP and activation checkpointing.
_INSERTED = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_NOT_WEIGHTS = ("n_averaged",)
# Of wrappers and prefixes: those of the network that was trained itself, and those of one derived from it.
_OWN = {*WRAPPERS, "", "module", "network", "_model", "backbone", "student", "weights", "params"}
_DERIVED = re.compile(r"ema|swa|average|teacher|momentum|target|attacker|best", re.IGNORECASE)


@dataclass(frozen=True)
class Candidate:
    """Weights in a file that have exactly the names of a network.

    Args:
        wrapper: the keys that lead to them in the file, joined by dots; empty for the file itself.
        prefix: what is stripped from their names.
        state: the tensors by the names of the network.
        used: their names in the file, with those of the normalisation.
    """

    wrapper: str
    prefix: str
    state: StateDict
    used: frozenset[str]

    @property
    def rank(self) -> int:
        """0 for the network that was trained, 2 for an average of it, a teacher or a copy, 1 where that is unknown."""
        parts = [part for part in (*self.wrapper.split("."), *self.prefix.split(".")) if part not in _OWN]
        return 2 if any(_DERIVED.search(part) for part in parts) else min(len(parts), 1)

    def equals(self, other: Candidate) -> bool:
        """Return whether both have the same tensors, as two names of one network have."""
        pairs = ((value, other.state.get(name)) for name, value in self.state.items())
        return all(theirs is None or torch.equal(mine, theirs) for mine, theirs in pairs)

    def __str__(self) -> str:
        names = f"the names that begin with {self.prefix!r}" if self.prefix else ""
        return f"{names} under {self.wrapper}" if names and self.wrapper else names or self.wrapper or "its own names"


def collect_state_dicts(content: object) -> dict[str, StateDict]:
    """Return every dictionary of tensors by name inside a file's content, by the keys that lead to it.

    The one under the usual wrappers comes first. Of a list the first item is read, and what lies beside tensors, such
    as an epoch or an accuracy, is left out.

    Example:
        >>> collect_state_dicts({"epoch": 3, "state_dict_ema": {"w": torch.zeros(1)}})
        {'state_dict_ema': {'w': tensor([0.])}}
    """
    found: dict[str, StateDict] = {}
    seen: set[int] = set()
    for wrapper, mapping in _mappings(content, "", seen, MAX_DEPTH):
        tensors = {name: value for name, value in mapping.items() if isinstance(name, str) and _is_tensor(value)}
        if tensors:
            found.setdefault(wrapper, tensors)  # type: ignore[arg-type]
    return found


def _mappings(
    content: object, wrapper: str, seen: set[int], depth: int
) -> Iterator[tuple[str, Mapping[object, object]]]:
    """Yield every mapping inside a content with the keys that lead to it; those under the usual wrappers first."""
    while isinstance(content, list | tuple) and content and depth > 0:
        content, depth = content[0], depth - 1
    if not isinstance(content, Mapping) or id(content) in seen or depth <= 0:
        return
    seen.add(id(content))
    usual = [key for key in WRAPPERS if key in content]
    for key in usual:
        yield from _mappings(content[key], f"{wrapper}.{key}".lstrip("."), seen, depth - 1)
    yield wrapper, content
    for key, value in content.items():
        if key not in usual and isinstance(key, str):
            yield from _mappings(value, f"{wrapper}.{key}".lstrip("."), seen, depth - 1)


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def find_candidates(wrapper: str, tensors: StateDict, expected: Mapping[str, Tensor]) -> list[Candidate]:
    """Return the weights among tensors that have exactly the expected names once a prefix is stripped.

    Args:
        wrapper: of the tensors.
        tensors: by the names of the file.
        expected: the state of the network; its normalisation and `num_batches_tracked` may be missing.
    """
    plain = {_without_inserted(name): name for name in tensors}
    required = {name for name in expected if not _is_optional(name)}
    if not required or len(plain) < len(tensors):
        return []
    probe = max(required, key=len)
    prefixes = sorted({name[: -len(probe)] for name in plain if f".{name}".endswith(f".{probe}")})
    found = []
    for prefix in prefixes:
        inner = {name.removeprefix(prefix): name for name in plain if name.startswith(prefix)}
        names = {name for name in inner if name not in _NOT_WEIGHTS}
        if required <= names and all(name in expected or name in NORMALISATION for name in names):
            state = {name: tensors[plain[inner[name]]] for name in names if name in expected}
            used = {plain[inner[name]] for name in inner}
            used |= _add_normalisation(state, tensors, expected, prefix)
            found.append(Candidate(wrapper, prefix, state, frozenset(used)))
    return found


def left_out(candidate: Candidate, tensors: StateDict, others: list[Candidate]) -> list[str]:
    """Return the names of the tensors in the same dictionary that belong to no candidate."""
    used = candidate.used.union(*(other.used for other in others if other.wrapper == candidate.wrapper))
    return [name for name in tensors if name not in used and name.rpartition(".")[2] not in _NOT_WEIGHTS]


def describe_prefixes(names: list[str], expected: Mapping[str, Tensor], limit: int = 4) -> str:
    """Describe how names begin whose first part no expected name has, e.g. "encoder. (60), head. (2)"; or nothing."""
    known = {name.partition(".")[0] for name in expected}
    counts: dict[str, int] = {}
    for name in names:
        first, dot, _ = name.partition(".")
        if dot and first not in known:
            counts[first] = counts.get(first, 0) + 1
    parts = [f"{first}. ({count})" for first, count in sorted(counts.items(), key=lambda item: -item[1])]
    return ", ".join(parts[:limit]) + (", ..." if len(parts) > limit else "")


def _without_inserted(name: str) -> str:
    return _INSERTED.sub("", name)


def _is_optional(name: str) -> bool:
    return name.startswith("normalize.") or name.endswith("num_batches_tracked")


def _add_normalisation(state: StateDict, tensors: StateDict, expected: Mapping[str, Tensor], prefix: str) -> set[str]:
    """Add the normalisation that the file has anywhere under its usual names; return these names in the file.

    What is ambiguous, two means that differ, is left alone.
    """
    used: set[str] = set()
    for ours in ("normalize.mean", "normalize.std"):
        if ours not in expected or ours in state:
            continue
        names = [
            name
            for name, tensor in tensors.items()
            if NORMALISATION.get(name.rpartition(".")[2]) == ours
            # Beside the weights, one of another size is a mismatch; elsewhere it is something else.
            and (tensor.numel() == expected[ours].numel() or name.rpartition(".")[0] == prefix.rstrip("."))
        ]
        values = [tensors[name].flatten() for name in names]
        if values and all(torch.equal(value, values[0]) for value in values):
            state[ours] = values[0]
            used |= set(names)
    return used
