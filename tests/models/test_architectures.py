"""Each architecture against published parameter counts, published names of weights, and forward passes by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from robustill.core.errors import ModelError
from robustill.models import build

# Published counts for 10 classes of 32x32 RGB images, unless the arguments say otherwise.
COUNTS = [
    ("resnet18", {}, 11_173_962),
    ("resnet34", {}, 21_282_122),
    ("preactresnet18", {}, 11_172_170),
    ("preactresnet18", {"final_bn": False}, 11_171_146),
    # The variant with ReLU, plus eight more weights per pair of channels in the three shortcuts.
    ("preactresnet18_silu", {}, 11_172_170 + 8 * (64 * 128 + 128 * 256 + 256 * 512)),
    ("wideresnet", {"depth": 28, "width": 10}, 36_479_194),
    ("wideresnet", {"depth": 34, "width": 10}, 46_160_474),
    ("wideresnet_silu", {"depth": 28, "width": 10}, 36_479_194),
    ("wideresnet_silu", {"depth": 70, "width": 16}, 266_796_506),
    ("mobilenetv2", {}, 2_296_922),
    ("mobilenetv2", {"num_classes": 100}, 2_296_922 + 90 * 1281),
    ("cnn_a", {}, 214_918),
    ("cnn_a", {"in_channels": 1, "image_size": 28}, 166_406),
    ("cnn_deep", {}, 54_902),
    ("resnet_2b", {}, 112_006),
    ("resnet_2b2", {}, 176_230),
    ("trades_smallcnn", {"in_channels": 1, "image_size": 28}, 312_202),
    ("madry_cnn_tiny", {"in_channels": 1, "image_size": 28}, 52_506),
]


@pytest.mark.parametrize(("name", "arguments", "expected"), COUNTS)
def test_numbers_of_parameters_are_as_published(name: str, arguments: dict[str, int], expected: int) -> None:
    with torch.device("meta"):
        model = build(name, **{"num_classes": 10, **arguments})  # type: ignore[arg-type]
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def basic_block(before: int, after: int) -> int:
    convolutions = 9 * before * after + 9 * after * after
    shortcut = before * after + 2 * after if before != after else 0
    return convolutions + 2 * 2 * after + shortcut


@pytest.mark.parametrize("w", [8, 16])
def test_resnet8_has_the_parameters_counted_by_hand(w: int) -> None:
    stem = 9 * 3 * w + 2 * w
    blocks = basic_block(w, w) + basic_block(w, 2 * w) + basic_block(2 * w, 4 * w)
    model = build("resnet8", num_classes=10, width=w)
    assert sum(parameter.numel() for parameter in model.parameters()) == stem + blocks + (4 * w + 1) * 10


@pytest.mark.parametrize("w", [16, 32, 64])
def test_every_stage_of_resnet18_has_the_parameters_counted_by_hand(w: int) -> None:
    with torch.device("meta"):
        model = build("resnet18", num_classes=10, width=w)
    counted = {name: sum(each.numel() for each in child.parameters()) for name, child in model.named_children()}
    stages = {f"layer{number}": 2**number * w // 2 for number in (1, 2, 3, 4)}
    befores = {"layer1": w, "layer2": w, "layer3": 2 * w, "layer4": 4 * w}
    assert counted == {
        "normalize": 0,
        "conv1": 9 * 3 * w,
        "bn1": 2 * w,
        **{name: basic_block(befores[name], width) + basic_block(width, width) for name, width in stages.items()},
        "linear": (8 * w + 1) * 10,
    }
    with torch.device("meta"):
        assert model.state_dict().keys() == build("resnet18", num_classes=10).state_dict().keys()


def test_lenet_has_the_parameters_counted_by_hand() -> None:
    model = build("lenet", num_classes=10, in_channels=1, image_size=28)
    expected = (25 + 1) * 6 + (25 * 6 + 1) * 16 + (16 * 7 * 7 + 1) * 120 + 121 * 84 + 85 * 10
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


NAMES = [
    ("resnet18", {}, {"conv1.weight": (64, 3, 3, 3), "bn1.running_var": (64,), "layer1.0.conv1.weight": (64, 64, 3, 3),
                      "layer2.0.shortcut.0.weight": (128, 64, 1, 1), "layer2.0.shortcut.1.bias": (128,),
                      "layer4.1.bn2.weight": (512,), "linear.bias": (10,)}, ["layer1.0.shortcut.0.weight"]),
    ("preactresnet18", {}, {"conv1.weight": (64, 3, 3, 3), "layer1.0.bn1.weight": (64,),
                            "layer3.0.shortcut.0.weight": (256, 128, 1, 1), "bn.running_mean": (512,),
                            "linear.weight": (10, 512)}, ["layer3.0.shortcut.1.weight", "bn1.weight"]),
    ("preactresnet18_silu", {}, {"conv_2d.weight": (64, 3, 3, 3), "layer_0.0.batchnorm_0.weight": (64,),
                                 "layer_1.0.conv_2d_1.weight": (128, 64, 3, 3),
                                 "layer_1.0.shortcut.weight": (128, 64, 3, 3), "batchnorm.bias": (512,),
                                 "logits.weight": (10, 512)}, ["layer_0.0.shortcut.weight"]),
    ("wideresnet", {}, {"conv1.weight": (16, 3, 3, 3), "block1.layer.0.bn1.weight": (16,),
                        "block1.layer.0.convShortcut.weight": (160, 16, 1, 1),
                        "block3.layer.3.conv2.weight": (640, 640, 3, 3), "bn1.weight": (640,), "fc.weight": (10, 640)},
     ["sub_block1.layer.0.bn1.weight", "block1.layer.1.convShortcut.weight"]),
    ("wideresnet", {"sub_block1": True}, {"sub_block1.layer.0.convShortcut.weight": (160, 16, 1, 1)}, []),
    ("wideresnet_silu", {}, {"init_conv.weight": (16, 3, 3, 3), "layer.0.block.0.batchnorm_0.weight": (16,),
                             "layer.0.block.0.shortcut.weight": (160, 16, 1, 1),
                             "layer.2.block.3.conv_1.weight": (640, 640, 3, 3), "batchnorm.weight": (640,),
                             "logits.bias": (10,)}, ["layer.0.block.1.shortcut.weight"]),
    ("mobilenetv2", {}, {"conv1.weight": (32, 3, 3, 3), "layers.0.conv2.weight": (32, 1, 3, 3),
                         "layers.0.shortcut.0.weight": (16, 32, 1, 1), "layers.16.bn3.weight": (320,),
                         "conv2.weight": (1280, 320, 1, 1), "linear.weight": (10, 1280)},
     ["layers.3.shortcut.0.weight", "layers.17.conv1.weight"]),
    ("cnn_a", {}, {"0.weight": (16, 3, 4, 4), "2.weight": (32, 16, 4, 4), "5.weight": (100, 2048),
                   "7.weight": (10, 100)}, []),
    ("cnn_deep", {}, {"6.weight": (8, 8, 4, 4), "9.weight": (100, 512), "11.bias": (10,)}, []),
    ("resnet_2b", {}, {"layer1.0.shortcut.0.bias": (16,), "linear1.weight": (100, 1024)}, ["bn1.weight"]),
    ("resnet_2b2", {}, {"1.running_mean": (16,), "3.0.path_b.3.weight": (32, 32, 3, 3),
                        "4.0.path_a.1.weight": (64, 32, 1, 1), "6.weight": (100, 1024), "8.bias": (10,)}, ["0.bias"]),
    ("trades_smallcnn", {"in_channels": 1, "image_size": 28}, {"feature_extractor.conv4.weight": (64, 64, 3, 3),
                                                               "classifier.fc1.weight": (200, 1024)}, []),
    ("madry_cnn_tiny", {"in_channels": 1, "image_size": 28}, {"2.weight": (8, 4, 5, 5), "5.weight": (128, 392)}, []),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "present", "absent"), NAMES)
def test_weights_have_the_names_of_public_checkpoints(
    name: str, arguments: dict[str, int], present: dict[str, tuple[int, ...]], absent: list[str]
) -> None:
    with torch.device("meta"):
        state = build(name, **{"num_classes": 10, **arguments}).state_dict()  # type: ignore[arg-type]
    assert {key: tuple(state[key].shape) for key in present} == present
    assert not set(absent) & set(state)


def batch_norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    statistics = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    mean, var, weight, bias = (
        value[None, :, None, None] for value in (*statistics, state[f"{name}.weight"], state[f"{name}.bias"])
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def with_random_statistics(name: str, **options: object) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """A network in float64 with random BatchNorm parameters: with initial ones a swapped layer would go unnoticed."""
    model = build(name, num_classes=10, seed=0, **options).eval().double()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5)
    return model, model.state_dict()


X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_resnet18_matches_a_forward_pass_by_hand() -> None:
    model, s = with_random_statistics("resnet18")
    out = batch_norm(F.conv2d(X, s["conv1.weight"], padding=1), s, "bn1").relu()
    for stage, block in [(i, j) for i in (1, 2, 3, 4) for j in (0, 1)]:
        at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
        inner = batch_norm(F.conv2d(out, s[f"{at}.conv1.weight"], stride=stride, padding=1), s, f"{at}.bn1").relu()
        inner = batch_norm(F.conv2d(inner, s[f"{at}.conv2.weight"], padding=1), s, f"{at}.bn2")
        if stride == 2:
            out = batch_norm(F.conv2d(out, s[f"{at}.shortcut.0.weight"], stride=2), s, f"{at}.shortcut.1")
        out = (inner + out).relu()
    out = F.avg_pool2d(out, 4).flatten(1)
    torch.testing.assert_close(model(X), F.linear(out, s["linear.weight"], s["linear.bias"]))


def test_mobilenetv2_matches_a_forward_pass_by_hand() -> None:
    model, s = with_random_statistics("mobilenetv2")
    out = batch_norm(F.conv2d(X, s["conv1.weight"], padding=1), s, "bn1").relu()
    for block in range(17):
        at, stride = f"layers.{block}", 2 if block in (3, 6, 13) else 1
        inner = batch_norm(F.conv2d(out, s[f"{at}.conv1.weight"]), s, f"{at}.bn1").relu()
        depthwise = F.conv2d(inner, s[f"{at}.conv2.weight"], stride=stride, padding=1, groups=inner.shape[1])
        inner = batch_norm(depthwise, s, f"{at}.bn2").relu()
        inner = batch_norm(F.conv2d(inner, s[f"{at}.conv3.weight"]), s, f"{at}.bn3")
        if block in (0, 1, 10, 16):
            out = batch_norm(F.conv2d(out, s[f"{at}.shortcut.0.weight"]), s, f"{at}.shortcut.1")
        out = inner if stride == 2 else inner + out
    out = batch_norm(F.conv2d(out, s["conv2.weight"]), s, "bn2").relu()
    out = F.avg_pool2d(out, 4).flatten(1)
    torch.testing.assert_close(model(X), F.linear(out, s["linear.weight"], s["linear.bias"]))


@pytest.mark.parametrize(("activated_shortcut", "final_bn"), [(True, True), (False, True), (False, False)])
def test_preactresnet18_matches_a_forward_pass_by_hand(activated_shortcut: bool, final_bn: bool) -> None:
    model, s = with_random_statistics("preactresnet18", activated_shortcut=activated_shortcut, final_bn=final_bn)
    out = F.conv2d(X, s["conv1.weight"], padding=1)
    for stage, block in [(i, j) for i in (1, 2, 3, 4) for j in (0, 1)]:
        at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
        active = batch_norm(out, s, f"{at}.bn1").relu()
        side = out
        if stride == 2:
            side = F.conv2d(active if activated_shortcut else out, s[f"{at}.shortcut.0.weight"], stride=2)
        inner = batch_norm(F.conv2d(active, s[f"{at}.conv1.weight"], stride=stride, padding=1), s, f"{at}.bn2").relu()
        out = F.conv2d(inner, s[f"{at}.conv2.weight"], padding=1) + side
    if final_bn:
        out = batch_norm(out, s, "bn").relu()
    out = F.avg_pool2d(out, 4).flatten(1)
    torch.testing.assert_close(model(X), F.linear(out, s["linear.weight"], s["linear.bias"]))


def test_wideresnet_matches_a_forward_pass_by_hand() -> None:
    model, s = with_random_statistics("wideresnet", depth=16, width=1)
    out = F.conv2d(X, s["conv1.weight"], padding=1)
    for stage, block in [(i, j) for i in (1, 2, 3) for j in (0, 1)]:
        at, stride = f"block{stage}.layer.{block}", 2 if stage > 1 and block == 0 else 1
        active = batch_norm(out, s, f"{at}.bn1").relu()
        side = F.conv2d(active, s[f"{at}.convShortcut.weight"], stride=2) if stride == 2 else out
        inner = batch_norm(F.conv2d(active, s[f"{at}.conv1.weight"], stride=stride, padding=1), s, f"{at}.bn2").relu()
        out = F.conv2d(inner, s[f"{at}.conv2.weight"], padding=1) + side
    out = F.avg_pool2d(batch_norm(out, s, "bn1").relu(), 8).flatten(1)
    torch.testing.assert_close(model(X), F.linear(out, s["fc.weight"], s["fc.bias"]))


def same_convolution(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)), weight, stride=stride)


def test_preactresnet18_silu_matches_a_forward_pass_by_hand() -> None:
    model, s = with_random_statistics("preactresnet18_silu")
    out = F.conv2d(X, s["conv_2d.weight"], padding=1)
    for stage, block in [(i, j) for i in (0, 1, 2, 3) for j in (0, 1)]:
        at, stride = f"layer_{stage}.{block}", 2 if stage > 0 and block == 0 else 1
        side = same_convolution(out, s[f"{at}.shortcut.weight"], 2) if stride == 2 else out
        inner = F.silu(batch_norm(out, s, f"{at}.batchnorm_0"))
        inner = F.silu(batch_norm(same_convolution(inner, s[f"{at}.conv_2d_1.weight"], stride), s, f"{at}.batchnorm_1"))
        out = F.conv2d(inner, s[f"{at}.conv_2d_2.weight"], padding=1) + side
    out = F.avg_pool2d(F.silu(batch_norm(out, s, "batchnorm")), 4).flatten(1)
    torch.testing.assert_close(model(X), F.linear(out, s["logits.weight"], s["logits.bias"]))


def test_wideresnet_silu_matches_a_forward_pass_by_hand() -> None:
    model, s = with_random_statistics("wideresnet_silu", depth=16, width=2)
    out = F.conv2d(X, s["init_conv.weight"], padding=1)
    for stage, block in [(i, j) for i in (0, 1, 2) for j in (0, 1)]:
        at, stride = f"layer.{stage}.block.{block}", 2 if stage > 0 and block == 0 else 1
        active = F.silu(batch_norm(out, s, f"{at}.batchnorm_0"))
        side = F.conv2d(active, s[f"{at}.shortcut.weight"], stride=stride) if block == 0 else out
        inner = F.silu(batch_norm(same_convolution(active, s[f"{at}.conv_0.weight"], stride), s, f"{at}.batchnorm_1"))
        out = F.conv2d(inner, s[f"{at}.conv_1.weight"], padding=1) + side
    out = F.avg_pool2d(F.silu(batch_norm(out, s, "batchnorm")), 8).flatten(1)
    torch.testing.assert_close(model(X), F.linear(out, s["logits.weight"], s["logits.bias"]))


def test_deepmind_networks_take_odd_feature_maps() -> None:
    for name, options in (("wideresnet_silu", {"depth": 10, "width": 1}), ("preactresnet18_silu", {})):
        model = build(name, num_classes=3, seed=0, **options).eval()  # type: ignore[arg-type]
        assert model(torch.zeros(1, 3, 30, 27)).shape == (1, 3)


def test_the_unused_stage_of_trades_is_frozen() -> None:
    plain = build("wideresnet", num_classes=10, depth=10, width=1, seed=0).eval()
    with_stage = build("wideresnet", num_classes=10, depth=10, width=1, sub_block1=True, seed=1).eval()
    with_stage.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(with_stage(X.float()), plain(X.float()))
    frozen = {name for name, parameter in with_stage.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in dict(with_stage.named_parameters()) if name.startswith("sub_block1.")} != set()


def test_scaled_mobilenetv2_has_multiples_of_8_channels() -> None:
    state = build("mobilenetv2", num_classes=10, width=0.5, seed=0).state_dict()
    assert state["conv1.weight"].shape[0] == 16
    assert state["layers.0.conv3.weight"].shape[0] == 8
    # Half of 24 is 12, rounded up to 16; half of 96 is 48.
    assert state["layers.1.conv3.weight"].shape[0] == 16
    assert state["layers.10.conv3.weight"].shape[0] == 48
    assert state["linear.weight"].shape[1] == 1280
    assert build("mobilenetv2", num_classes=10, width=1.5, seed=0).state_dict()["linear.weight"].shape[1] == 1920


def test_invalid_sizes_of_networks_are_refused() -> None:
    with pytest.raises(ModelError, match="WideResNet of depth 27 does not exist; expected 6n \\+ 4"):
        build("wideresnet", num_classes=10, depth=27)
    with pytest.raises(ModelError, match="of width 0 has no channels"):
        build("wideresnet_silu", num_classes=10, width=0)
    with pytest.raises(ModelError, match="mobilenetv2 of width 0 has no channels"):
        build("mobilenetv2", num_classes=10, width=0)
    with pytest.raises(ModelError, match="images of 4x4 are too small"):
        build("trades_smallcnn", num_classes=10, image_size=4)
