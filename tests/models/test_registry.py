"""Every network of MODELS meets one contract: names, shapes, initialisation, gradients, normalisation."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from robustill.core.errors import ModelError
from robustill.models import MODELS, Normalize, build
from robustill.models.loading import Shape, load_network

SMALL_OPTIONS: dict[str, dict[str, object]] = {
    "wideresnet": {"depth": 10, "width": 2},
    "wideresnet_silu": {"depth": 10, "width": 2},
    "mobilenetv2": {"width": 0.5},
}


def small(name: str, **arguments: object) -> nn.Module:
    return build(name, **{"num_classes": 10, "seed": 0, **SMALL_OPTIONS.get(name, {}), **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("channels", "size", "classes"), [(3, 32, 10), (1, 28, 7), (3, (24, 32), 3)])
def test_images_become_finite_logits(name: str, channels: int, size: int | tuple[int, int], classes: int) -> None:
    model = small(name, num_classes=classes, in_channels=channels, image_size=size)
    height, width = (size, size) if isinstance(size, int) else size
    logits = model(torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (2, classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_a_function_of_the_seed_alone(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = small(name, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    second, other = small(name, seed=3).state_dict(), small(name, seed=4).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    convolutions = [key for key in first if first[key].dim() == 4 and not key.startswith("normalize")]
    assert convolutions
    assert not any(torch.equal(first[key], other[key]) for key in convolutions)


@pytest.mark.parametrize("name", MODELS)
def test_gradient_reaches_every_parameter_and_the_image(name: str) -> None:
    model = small(name)
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 3])).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    without = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert without == []


@pytest.mark.parametrize("name", MODELS)
def test_normalisation_is_the_first_layer(name: str) -> None:
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.25, 2.0]
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain, inside = small(name).eval(), small(name, mean=mean, std=std).eval()
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(inside(x), plain(by_hand), rtol=1e-5, atol=1e-5)
    assert next(iter(inside.named_children()))[0] == "normalize"
    state = inside.state_dict()
    assert state["normalize.mean"].shape == state["normalize.std"].shape == (1, 3, 1, 1)
    assert state["normalize.std"].flatten().tolist() == std
    assert plain.state_dict().keys() == state.keys()


@pytest.mark.parametrize("name", ["resnet8", "lenet"])
def test_small_networks_take_images_of_8x8(name: str) -> None:
    model = build(name, num_classes=10, in_channels=1, image_size=8, seed=0).eval()
    assert model(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_a_row_gives_its_description_and_options() -> None:
    assert MODELS["resnet8"].options == {"width": 16}
    assert MODELS["resnet18"].options == {"width": 64}
    assert MODELS["resnet34"].options == {}
    assert MODELS["resnet18"].description.startswith("ResNet-18 with the CIFAR stem")
    assert all(entry.description.endswith(".") for entry in MODELS.values())


def test_an_unknown_name_or_option_names_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"unknown model 'mobilenetv3'; did you mean mobilenetv2"):
        build("mobilenetv3", num_classes=10)
    with pytest.raises(ModelError, match=r"model resnet8 has no option 'widht'; did you mean width\?.*options: width"):
        build("resnet8", num_classes=10, widht=8)
    with pytest.raises(ModelError, match=r"model resnet34 has no option 'width'; it takes none"):
        build("resnet34", num_classes=10, width=8)


def test_invalid_values_are_refused() -> None:
    with pytest.raises(ModelError, match="mean has 1 values; expected one per channel, 3"):
        build("resnet8", num_classes=10, mean=[0.5])
    with pytest.raises(ModelError, match="std has 3 values; expected one per channel, 1"):
        build("resnet8", num_classes=10, in_channels=1, std=[1.0, 1.0, 1.0])
    with pytest.raises(ModelError, match="positive"):
        build("resnet8", num_classes=10, std=[1.0, 0.0, 1.0])
    with pytest.raises(ModelError, match="num_classes is 1, expected a whole number of at least 2"):
        build("resnet8", num_classes=1)
    with pytest.raises(ModelError, match="images of 3x3 are too small"):
        build("lenet", num_classes=10, image_size=3)


def linear_model(*, num_classes: int, in_channels: int, image_size: int, scale: float = 1.0) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))
    nn.init.constant_(model[1].weight, scale)  # type: ignore[arg-type]
    return model


def not_a_model(**arguments: object) -> int:
    return 1


def test_a_users_model_is_built_by_import_path() -> None:
    model = build(f"{__name__}:linear_model", num_classes=4, in_channels=1, image_size=8, scale=2.0)
    assert model[1].weight.shape == (4, 64)  # type: ignore[index,union-attr]
    assert model[1].weight.unique().tolist() == [2.0]  # type: ignore[index,union-attr,operator]


def of_ten_classes(width: int = 3) -> nn.Module:
    """A user's network that takes neither the number of classes nor the shape of the images."""
    return nn.Sequential(nn.Flatten(), nn.Linear(48, width), nn.Linear(width, 10))


def test_a_function_is_given_the_arguments_that_it_accepts() -> None:
    assert build(f"{__name__}:of_ten_classes", num_classes=4)(torch.zeros(2, 3, 4, 4)).shape == (2, 10)
    assert build(f"{__name__}:of_ten_classes", num_classes=4, width=5)[1].weight.shape == (5, 48)
    with pytest.raises(ModelError, match="depth"):
        build(f"{__name__}:of_ten_classes", num_classes=4, depth=5)


def test_an_invalid_import_path_is_refused() -> None:
    with pytest.raises(ModelError, match="cannot import 'no_such_module'"):
        build("no_such_module:model", num_classes=4)
    with pytest.raises(ModelError, match="has no function 'no_such_function'"):
        build(f"{__name__}:no_such_function", num_classes=4)
    with pytest.raises(ModelError, match=r"returned int; expected a torch\.nn\.Module"):
        build(f"{__name__}:not_a_model", num_classes=4)
    with pytest.raises(ModelError, match="leave mean and std out"):
        build(f"{__name__}:linear_model", num_classes=4, in_channels=1, image_size=8, mean=[0.5])


def test_the_identity_normalisation_changes_nothing() -> None:
    x = torch.rand(2, 1, 3, 3)
    assert torch.equal(Normalize.identity(1)(x), x)


def test_an_import_path_may_name_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("users_networks")
    module.net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "users_networks", module)
    model = build("users_networks:net", num_classes=3, image_size=2, seed=1)
    assert torch.equal(model[1].weight, module.net[1].weight)  # type: ignore[index]
    with torch.no_grad():
        model[1].weight.zero_()  # type: ignore[index]
    assert module.net[1].weight.any()
    with pytest.raises(ModelError, match="width"):
        build("users_networks:net", num_classes=3, width=2)
    loaded = load_network("users_networks:net", shape=Shape(num_classes=3, in_channels=3, image_size=(2, 2)))
    assert torch.equal(loaded.module[1].weight, module.net[1].weight)  # type: ignore[index]
    assert module.net[1].weight.requires_grad


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("mynet.py:load", "names a file: write its module, mynet:load, and start in its folder"),
        ("nets/mynet.py:load", "names a file: write its module, mynet:load, and start in nets or add"),
        ("/home/me/mynet.py:net", "mynet:net, and start in /home/me or add that folder to PYTHONPATH"),
    ],
)
def test_the_path_of_a_file_is_explained(path: str, advice: str) -> None:
    with pytest.raises(ModelError, match=advice):
        build(path, num_classes=3)
    with pytest.raises(ModelError, match=advice):
        load_network(path, shape=Shape(num_classes=3, in_channels=3, image_size=(2, 2)))
