from __future__ import annotations

import pytest
import torch
from torch import nn

from robustill.attacks import windows
from robustill.attacks.canvas import PlainCanvas
from robustill.attacks.folding import light_copy
from robustill.attacks.reach import Interval, Reach
from robustill.attacks.search import Search
from robustill.attacks.windows import WindowedCanvas, WindowedNetwork
from robustill.models import build
from robustill.threat import Threat

THREAT = Threat(norm="linf", eps=0.1)


class Awkward(nn.Module):
    """Strides that jump over pixels, dilation, pooling, several paths of different reach, an odd size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 5, stride=3, padding=2)
        self.wide = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=2)
        self.pool = nn.MaxPool2d(2)
        self.one = nn.Conv2d(6, 8, 1, stride=2)
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = self.pool(x + torch.sigmoid(self.wide(x)) * 0.5)
        return self.linear(self.one(x).mean((2, 3)))


def networks():
    names = ["resnet8", "preactresnet18", "mobilenetv2", "cnn_a", "resnet_2b2", "wideresnet"]
    options = {"wideresnet": {"depth": 10, "width": 1}}
    for name in names:
        yield pytest.param(lambda name=name: build(name, num_classes=10, seed=0, **options.get(name, {})), 32, id=name)
    yield pytest.param(Awkward, 31, id="awkward")


@pytest.mark.parametrize(("make", "size"), list(networks()))
def test_windows_compute_what_the_whole_network_computes(make, size, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    model = make()
    with torch.no_grad():
        model(images)
    model.eval().requires_grad_(False)
    light = light_copy(model, images)
    assert light is not None
    search = Search(model, THREAT, light=light)
    plain = PlainCanvas(search, images.clone())
    windowed = WindowedCanvas(search, WindowedNetwork(light, images[:1]), images.clone())
    # All patches take the windows, those that hardly gain as well, in corners and in the middle.
    monkeypatch.setattr(windows, "_WORTH_IT", 2.0)
    corners = [(3, 0, 0), (3, size - 3, size - 3), (4, 0, size - 4), (1, 7, 0)]
    inside = [
        (side, *torch.randint(size - side + 1, (2,), generator=generator).tolist()) for side in (1, 3, 4, 7, 10, 29)
    ]
    for number, (side, top, left) in enumerate(corners + inside + inside):
        # Every image gets two patches, the second at a place of its own; some of the first are accepted.
        rows = torch.arange(len(plain.images)).repeat(2)
        patch = torch.rand(len(rows), 3, side, side, generator=generator)
        places = torch.randint(size - side + 1, (2, len(rows)), generator=generator)
        places[:, : len(rows) // 2] = torch.tensor([[top], [left]])
        before = windowed.images.clone()
        found = windowed.try_patches(rows, (places[0], places[1]), patch)
        accepted = torch.rand(len(plain.images), generator=generator) < 0.6
        windowed.accept_patches(accepted.nonzero().squeeze(1))
        for row in range(len(rows)):
            y, x = places[:, row].tolist()
            whole = plain.images[rows[row] :][:1].clone()
            whole[:, :, y : y + side, x : x + side] = patch[row]
            expected = light(whole)
            torch.testing.assert_close(found[row : row + 1], expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
        first = patch[: len(plain.images)]
        if number % 2:
            # The same once more, with all images at one place.
            apart = windowed.images.clone()
            windowed.plain.images[:] = before
            windowed.maps = None
            together = windowed.try_patch(top, left, first)
            torch.testing.assert_close(together, found[: len(first)], atol=1e-5 * float(found.abs().max()), rtol=0)
            windowed.accept(accepted)
            assert torch.equal(apart, windowed.images)
        plain.try_patch(top, left, first)
        plain.accept(accepted)
        assert torch.equal(plain.images, windowed.images)
        if number == len(corners):
            for canvas in (plain, windowed):
                canvas.keep(torch.tensor([True, False, True]))


def test_a_window_covers_every_pixel_that_a_patch_can_change():
    generator = torch.Generator().manual_seed(0)
    for kernel, stride, padding in [(3, 1, 1), (3, 2, 1), (1, 2, 0), (4, 2, 1), (5, 3, 0), (7, 2, 3)]:
        layer = nn.Conv2d(1, 1, kernel, stride=stride, padding=padding)
        reach = Reach((kernel,) * 2, (stride,) * 2, (padding,) * 2, layer, 1)
        for side in (1, 2, 5):
            before = torch.rand(1, 1, 17, 17, generator=generator)
            output = layer(before)
            for start in range(17 - side + 1):
                after = before.clone()
                after[:, :, start : start + side, start : start + side] += 1
                changed = (layer(after) != output)[0, 0]
                rows, columns = (reach.changed(axis, Interval(start, side), len(changed)) for axis in (0, 1))
                changed[rows.within(0), columns.within(0)] = False
                assert not changed.any()
                assert rows.length == reach.changed(0, Interval(0, side), len(changed)).length
                # What is read for it holds the patch, and gives that part of the output and no more.
                read = reach.needed(0, rows, 17, len(changed))
                assert read.start <= start
                assert read.end >= start + side
                assert -reach.margin() <= read.start
                assert read.end <= 17 + reach.margin()
                assert (read.length - kernel) // stride + 1 == rows.length


def test_small_patches_cost_a_part_of_the_network():
    model = build("resnet8", num_classes=10, seed=0).eval().requires_grad_(False)
    network = WindowedNetwork(light_copy(model, torch.rand(2, 3, 32, 32)), torch.rand(1, 3, 32, 32))
    shares = [network.share(side) for side in (1, 3, 7, 14, 32)]
    assert shares == sorted(shares)
    assert shares[1] < 0.35
    assert shares[-1] == 1
