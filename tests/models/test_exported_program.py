"""Exported programs: the file gives the same network or is refused, and no code of the file is run."""

from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from robustill.core.errors import CheckpointError, ModelError, RobustillError
from robustill.models import build
from robustill.models.exported_program import load_exported
from robustill.models.loading import Shape, load_network
from robustill.models.weights import file_sha256
from robustill.teachers.ensemble import Ensemble

SHAPE = (3, 8, 8)
IMAGES = Shape(num_classes=4, in_channels=3, image_size=(8, 8))


def network() -> nn.Module:
    return build("resnet8", num_classes=4, width=2, mean=[0.5] * 3, std=[0.2] * 3, seed=0).eval()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("exported") / "m.pt2"
    dynamic = ({0: torch.export.Dim("batch", min=1, max=1024)},)
    torch.export.save(torch.export.export(network(), (torch.zeros(2, *SHAPE),), dynamic_shapes=dynamic), file)
    return file


def test_a_program_gives_the_same_logits_and_gradients(program: Path) -> None:
    loaded = load_network(str(program), shape=IMAGES)
    assert loaded.sha256 == file_sha256(program)
    assert loaded.architecture == "exported program"
    for batch in (1, 5):
        x = torch.rand(batch, *SHAPE, requires_grad=True)
        assert torch.equal(loaded.module(x), network()(x))
        (actual,) = torch.autograd.grad(loaded.module(x).square().sum(), x)
        (expected,) = torch.autograd.grad(network()(x).square().sum(), x)
        torch.testing.assert_close(actual, expected)


def test_a_program_stays_in_eval_mode_in_an_ensemble(program: Path) -> None:
    ensemble = Ensemble([load_exported(program, SHAPE), network()]).eval().requires_grad_(False)
    x = torch.rand(3, *SHAPE)
    torch.testing.assert_close(ensemble(x), network()(x).log_softmax(dim=1))
    loaded = load_exported(program, SHAPE)
    assert torch.equal(loaded.train()(x), network()(x))
    assert not any(module.training for module in loaded.modules())


def test_images_of_another_shape_are_refused_or_resized(program: Path) -> None:
    with pytest.raises(ModelError, match=r"fails on 2 images of 3×16×16 .*: export it for such images"):
        load_exported(program, (3, 16, 16))
    with pytest.raises(ModelError, match="1×8×8"):
        load_exported(program, (1, 8, 8))
    larger = Shape(num_classes=4, in_channels=3, image_size=(16, 16))
    x = torch.full((2, 3, 16, 16), 0.25)
    adapted = load_network(str(program), shape=larger, image_size=8).module
    torch.testing.assert_close(adapted(x), network()(torch.full((2, *SHAPE), 0.25)))


def test_a_program_for_one_batch_size_is_refused(tmp_path: Path) -> None:
    torch.export.save(torch.export.export(nn.Flatten(), (torch.zeros(2, *SHAPE),)), tmp_path / "fixed.pt2")
    with pytest.raises(ModelError, match=r"dynamic_shapes=\(\{0: torch\.export\.Dim\('batch'\)\},\)"):
        load_exported(tmp_path / "fixed.pt2", SHAPE)


def test_a_program_with_the_name_of_a_network_is_refused(program: Path) -> None:
    with pytest.raises(ModelError, match="leave the model resnet8 out"):
        load_network(str(program), shape=IMAGES, name="resnet8")


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.attention, self.linear = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens)
        return self.linear(self.norm(tokens + mixed).mean(1))  # type: ignore[no-any-return]


class Antialiased(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = nn.functional.interpolate(x, (4, 4), mode="bicubic", antialias=True)
        return self.linear(small.flatten(1))  # type: ignore[no-any-return]


class WeightNorm(nn.Module):
    """Weight norm, an equation, a word as an option, BatchNorm and GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding="same"))
        self.norms = nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = nn.functional.gelu(self.norms(self.conv(x)), approximate="tanh")
        return torch.einsum("b c h w -> b c", h)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("network", [Attention, Antialiased, WeightNorm])
def test_operators_are_judged_by_their_schema(network: type[nn.Module], decomposed: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = network().eval(), torch.rand(5, *SHAPE, requires_grad=True)
    dynamic = ({0: torch.export.Dim("batch", min=1, max=1024)},)
    exported = torch.export.export(model, (torch.zeros(2, *SHAPE),), dynamic_shapes=dynamic)
    torch.export.save(exported.run_decompositions() if decomposed else exported, tmp_path / "m.pt2")
    loaded = load_exported(tmp_path / "m.pt2", SHAPE)
    torch.testing.assert_close(loaded(x), model(x), atol=1e-5, rtol=1e-4)
    (actual,), (expected,) = (torch.autograd.grad(each(x).square().sum(), x) for each in (loaded, model))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-3)


def test_an_operator_that_torch_does_not_have_is_named(program: Path, tmp_path: Path) -> None:
    change = replacing(b"torch.ops.aten.relu.default", b"torch.ops.aten._later.default")
    file = changed(program, tmp_path / "new.pt2", "models/model.json", change)
    with pytest.raises(CheckpointError, match=r"has no operator 'torch\.ops\.aten\._later\.default'; export"):
        load_exported(file, SHAPE)


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.aten.set_.source_Storage",
        "torch.ops.aten.record_stream.default",
        "torch.ops.aten.warn.default",
        "torch.ops.higher_order.wrap_with_set_grad_enabled",
        "torch.ops.profiler._record_function_enter.default",
        "torch.ops.aten.__class__",
        "torch.load",
        "_operator.attrgetter",
        "math.__loader__",
    ],
)
def test_operators_that_reach_beyond_tensors_are_refused(target: str, program: Path, tmp_path: Path) -> None:
    change = replacing(b"torch.ops.aten.relu.default", target.encode())
    file = changed(program, tmp_path / "evil.pt2", "models/model.json", change)
    with pytest.raises(CheckpointError, match=r"is refused: (the operator|torch .* has no operator)") as caught:
        load_exported(file, SHAPE)
    assert target in str(caught.value)


@pytest.mark.parametrize("text", ["/etc/passwd", "a');open('ran','w", "x\\ny"])
def test_texts_are_words_or_equations(text: str, program: Path, tmp_path: Path) -> None:
    change = replacing(b'"metadata": {', f'"extra": {{"as_string": "{text}"}}, "metadata": {{'.encode())
    with pytest.raises(CheckpointError, match="is refused: the text"):
        load_exported(changed(program, tmp_path / "evil.pt2", "models/model.json", change), SHAPE)


def changed(program: Path, file: Path, part: str, change: Callable[[bytes], bytes]) -> Path:
    """The same archive with one part changed; a missing part is added."""
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(file, "w") as new:
        names = old.namelist()
        for name in names:
            content = old.read(name)
            new.writestr(name, change(content) if name == f"m/{part}" else content)
        if f"m/{part}" not in names:
            new.writestr(f"m/{part}", change(b""))
    return file


def replacing(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new)

    return change


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return Path.touch, (self.marker,)


RAN = "open('ran','w')"
HOSTILE: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "an operator": ("models/model.json", replacing(b"torch.ops.aten.relu.default", b"torch.os.system"), "operator"),
    "an operator behind aten": (
        "models/model.json",
        replacing(b"torch.ops.aten.relu.default", b"torch.ops.aten.relu.__class__.mro"),
        "operator",
    ),
    "a size": (
        "models/model.json",
        replacing(b"Symbol('s77', positive=True, integer=True)", RAN.encode()),
        "size",
    ),
    "an input's name": ("models/model.json", replacing(b'"name": "x"', f'"name": "x={RAN}"'.encode()), "name"),
    "an argument's name": (
        "models/model.json",
        replacing(b'"forward_arg_names": ["x"]', f'"forward_arg_names": ["x={RAN}"]'.encode()),
        "name",
    ),
    "a container": ("models/model.json", replacing(b"builtins.tuple", b"collections.defaultdict"), "container"),
    "a pickled weight": (
        "data/weights/model_weights_config.json",
        replacing(b'"use_pickle": false', b'"use_pickle": true'),
        "pickle",
    ),
    "an object among the weights": (
        "data/weights/model_weights_config.json",
        replacing(b'"weight_0"', b'"custom_obj_0"'),
        "pickle",
    ),
    "old weights": ("data/weights/model.pt", lambda _: b"", "part"),
    "compiled code": ("data/aotinductor/model/code.so", lambda _: b"", "part"),
    "another program": ("models/other.json", lambda _: b"{}", "part"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_part_that_could_run_code_is_refused(
    case: str, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    part, change, kind = HOSTILE[case]
    file = changed(program, tmp_path / "evil.pt2", part, change)
    with pytest.raises(CheckpointError, match=f"is refused: the {kind}"):
        load_exported(file, SHAPE)
    assert [each.name for each in tmp_path.iterdir()] == ["evil.pt2"]


@pytest.mark.parametrize("whole", [True, False])
def test_sample_inputs_are_not_unpickled(whole: bool, program: Path, tmp_path: Path) -> None:
    """torch.export.load itself would run this file: the marker shows that the attack is real."""
    marker = tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save(((Payload(marker),), {}), buffer)
    content = buffer.getvalue() if whole else pickle.dumps(Payload(marker))
    file = changed(program, tmp_path / "evil.pt2", "data/sample_inputs/model.pt", lambda _: content)
    with pytest.raises(CheckpointError, match="a pickle as its sample inputs"):
        load_exported(file, SHAPE)
    assert not marker.exists()
    if whole:
        with contextlib.suppress(Exception):  # torch's own warning about this is malformed.
            torch.export.load(file)
        assert marker.exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(share: float, program: Path, tmp_path: Path) -> None:
    content = program.read_bytes()
    file = tmp_path / "cut.pt2"
    file.write_bytes(content[: int(share * len(content))])
    # Cut at the right place, the file ends with a complete archive, that of the sample inputs.
    with pytest.raises(CheckpointError, match=r"cut\.pt2 is (damaged|refused)"):
        load_exported(file, SHAPE)


@pytest.mark.parametrize(
    ("part", "content"),
    [
        ("models/model.json", b"{}"),
        ("models/model.json", b"[" * 100_000),
        ("models/model.json", b"\xff"),
        ("data/weights/model_weights_config.json", b"[]"),
        ("data/weights/weight_0", b"123"),
        ("archive_version", b"99"),
    ],
)
def test_a_damaged_part_is_an_error_of_one_line(part: str, content: bytes, program: Path, tmp_path: Path) -> None:
    file = changed(program, tmp_path / "damaged.pt2", part, lambda _: content)
    with pytest.raises(RobustillError, match="is damaged") as caught:
        load_exported(file, SHAPE)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        load_network(str(tmp_path / "nothing.pt2"), shape=IMAGES)
