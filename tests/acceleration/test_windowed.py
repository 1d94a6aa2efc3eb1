from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from robustill.acceleration.folding import folded_copy
from robustill.acceleration.windowed import WindowedNetwork, windowed_network
from robustill.attacks import canvas as canvas_module
from robustill.attacks.canvas import PlainCanvas, WindowedCanvas
from robustill.attacks.search import Search
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


class Exciting(nn.Module):
    """Squeeze and excitation: each pixel counts for as much as the whole image says."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.excite, self.linear = nn.Conv2d(6, 6, 1), nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x * torch.sigmoid(9 * self.excite(x.mean((2, 3), keepdim=True)))
        return self.linear(self.last(x).mean((2, 3)))


class Written(nn.Module):
    """Layers to write networks with; `body` is the network."""

    def __init__(self, body) -> None:
        super().__init__()
        self.conv, self.strided, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1, stride=2), nn.ReLU()
        self.column, self.map = nn.Parameter(torch.rand(3, 1, 1)), nn.Parameter(torch.rand(3, 8, 8))
        self.one, self.instance = nn.Parameter(torch.rand(())), nn.InstanceNorm2d(3)
        self.tall = nn.Conv2d(3, 3, (8, 1))
        self.batch, self.activation = nn.BatchNorm2d(3, track_running_stats=False), nn.Hardswish(inplace=True)
        self.body = body

    def forward(self, x):
        return self.body(self, x).flatten(1)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (lambda m, x: m.relu(m.conv(x)), "pointwise"),
        (lambda m, x: torch.sigmoid(m.conv(x)), "pointwise"),
        *((lambda m, x, name=name: getattr(m.conv(x), name)(), "pointwise") for name in ("relu", "sigmoid", "tanh")),
        *((lambda m, x, name=name: getattr(m.conv(x), name)(2), "pointwise") for name in ("add", "sub", "mul", "div")),
        (lambda m, x: m.conv(x) * m.column, "pointwise"),
        (lambda m, x: m.column - m.conv(x), "pointwise"),
        (lambda m, x: m.conv(x) * torch.sigmoid(m.column), "pointwise"),
        (lambda m, x: m.conv(x) * m.one, "pointwise"),
        (lambda m, x: m.conv(x) / 2, "pointwise"),
        (lambda m, x: m.conv(x) - x, "pointwise"),
        (lambda m, x: m.conv(x) * m.map, "global"),
        (lambda m, x: torch.mul(m.map, m.conv(x)), "global"),
        (lambda m, x: m.conv(x) * m.conv(x).mean((2, 3), keepdim=True), "global"),
        (lambda m, x: m.conv(x) * m.conv(x).sum(), "global"),
        (lambda m, x: m.conv(x) - m.strided(x).amax((2, 3), keepdim=True), "global"),
        (lambda m, x: m.instance(m.conv(x)), "global"),
        (lambda m, x: m.batch(m.conv(x)), "global"),
        (lambda m, x: torch.flip(m.conv(x), (2,)), "global"),
        (lambda m, x: m.conv(x).flip((3,)), "global"),
        (lambda m, x: m.conv(x).abs().relu(), "global"),
        (lambda m, x: m.conv(x)[:, :, :1] + x, "global"),
        (lambda m, x: m.conv(x) + m.tall(x), "global"),
    ],
)
def test_kinds_of_nodes(body, kind):
    model = Written(body).eval().requires_grad_(False)
    x = torch.rand(2, 3, 8, 8)
    network = WindowedNetwork(torch.fx.symbolic_trace(model), x[:1])
    (last,) = network.output.all_input_nodes
    assert network.kinds[last] == kind
    canvas = WindowedCanvas(Search(model, THREAT, folded=network.graph), network, x.clone())
    rows, place, patch = torch.tensor([1, 0]), (torch.tensor([2, 5]), torch.tensor([6, 0])), torch.rand(2, 3, 2, 2)
    patched = x.flip(0).clone()
    patched[0, :, 2:4, 6:8], patched[1, :, 5:7, 0:2] = patch
    torch.testing.assert_close(canvas.try_patches(rows, place, patch), model(patched), atol=1e-5, rtol=1e-5)


def add_without_its_result(m, x):
    h = m.conv(x)
    h.add_(x)
    return m.conv(h)


def activate_after_the_mean(m, x):
    h = m.conv(x)
    mean = h.mean((2, 3), keepdim=True)
    return m.conv(m.activation(h) * mean)


@pytest.mark.parametrize(
    ("body", "matches"),
    [
        (lambda m, x: m.conv(m.conv(x) + x), True),
        (lambda m, x: m.conv(m.activation(m.conv(x))), True),
        (lambda m, x: m.conv(m.conv(x).relu_()), True),
        (lambda m, x: m.conv(m.conv(x).add_(x)), False),
        (add_without_its_result, False),
        (activate_after_the_mean, False),
    ],
)
def test_maps_that_others_read_are_not_overwritten(body, matches):
    model = Written(body).eval().requires_grad_(False)
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    before = image.clone()
    assert (windowed_network(torch.fx.symbolic_trace(model), image) is not None) == matches
    assert torch.equal(image, before)


def networks():
    names = ["resnet8", "preactresnet18", "mobilenetv2", "cnn_a", "resnet_2b2", "wideresnet"]
    options = {"wideresnet": {"depth": 10, "width": 1}}
    for name in names:
        marks = [pytest.mark.slow] if name in ("preactresnet18", "mobilenetv2") else []
        make = partial(build, name, num_classes=10, seed=0, **options.get(name, {}))
        yield pytest.param(make, 32, id=name, marks=marks)
    yield pytest.param(Awkward, 31, id="awkward")
    yield pytest.param(Exciting, 32, id="exciting")


@pytest.mark.parametrize(("make", "size"), list(networks()))
def test_windows_match_the_whole_network(make, size, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    model = make()
    with torch.no_grad():
        model(images)
    model.eval().requires_grad_(False)
    folded = folded_copy(model, images)
    assert folded is not None
    assert windowed_network(folded, images[:1]) is not None
    search = Search(model, THREAT, folded=folded)
    plain = PlainCanvas(search, images.clone())
    windowed = WindowedCanvas(search, WindowedNetwork(folded, images[:1]), images.clone())
    # All patches take the windows, those that hardly gain as well, in corners and in the middle.
    monkeypatch.setattr(canvas_module, "_MAX_COST_SHARE", 2.0)
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
            expected = folded(whole)
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
        if number == len(corners) - 1:
            # The next patches are as large as these, so the maps are kept with the images.
            for canvas in (plain, windowed):
                canvas.select(torch.tensor([True, False, True]))


def test_small_and_large_patches_alternate():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 32, 32, generator=generator).contiguous(memory_format=torch.channels_last)
    model = build("resnet8", num_classes=10, seed=0).eval().requires_grad_(False)
    folded = folded_copy(model, images)
    search = Search(model, THREAT, folded=folded)
    canvases = [
        PlainCanvas(search, images.clone()),
        WindowedCanvas(search, WindowedNetwork(folded, images[:1]), images.clone()),
    ]
    assert [canvases[1].is_cheaper(side) for side in (3, 4, 18, 29)] == [True, True, False, False]
    assert [canvases[1].is_cheaper(side, ahead=True) for side in (3, 18, 29)] == [True, True, False]
    for side in (3, 29, 3, 4, 29, 4):
        patch, which = torch.rand(3, 3, side, side, generator=generator), torch.tensor([True, side > 3, False])
        found = []
        for canvas in canvases:
            found.append(canvas.try_patch(2, 1, patch))
            canvas.accept(which)
        assert (canvases[1].maps is None) == (side == 29)
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
        assert torch.equal(canvases[0].images, canvases[1].images)
    assert search.passes == 2 * 6 * 3


def test_small_patches_cost_a_part_of_the_network():
    model = build("resnet8", num_classes=10, seed=0).eval().requires_grad_(False)
    network = WindowedNetwork(folded_copy(model, torch.rand(2, 3, 32, 32)), torch.rand(1, 3, 32, 32))
    shares = [network.cost_share(side) for side in (1, 3, 7, 14, 32)]
    assert shares == sorted(shares)
    assert shares[1] < 0.35
    assert shares[-1] == 1


class Uneven(nn.Module):
    """Two paths of unlike reach to the left and to the right: the rows that differ are not always equally many."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.pool, self.conv = nn.Conv2d(3, 3, 1), nn.MaxPool2d(2), nn.Conv2d(3, 3, 3, stride=2)
        self.last = nn.Conv2d(3, 2, (3, 1), padding=(1, 0))

    def forward(self, x):
        x = self.first(x)
        return self.last(self.pool(x) + self.conv(x)).flatten(1)


@pytest.mark.parametrize("make", [Awkward, Uneven])
@pytest.mark.parametrize("side", [1, 2, 3, 5, 9])
def test_every_position_in_an_oblong_image(make, side, monkeypatch):
    monkeypatch.setattr(canvas_module, "_MAX_COST_SHARE", 2.0)
    model = make().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(side)
    images = torch.rand(2, 3, 9, 13, generator=generator).contiguous(memory_format=torch.channels_last)
    network = WindowedNetwork(torch.fx.symbolic_trace(model), images[:1])
    canvas = WindowedCanvas(Search(model, THREAT, folded=network.graph), network, images.clone())
    places = [(top, left) for top in range(10 - side) for left in range(14 - side)]
    assert [len(axis[network.input]) for axis in network.plan(side).changed] == [10 - side, 14 - side]
    rows = torch.arange(len(places)) % 2
    patch = torch.rand(len(places), 3, side, side, generator=generator)
    whole = images[rows]
    for row, (top, left) in enumerate(places):
        whole[row, :, top : top + side, left : left + side] = patch[row]
    tops, lefts = torch.tensor(places).t()
    torch.testing.assert_close(canvas.try_patches(rows, (tops, lefts), patch), model(whole), atol=1e-5, rtol=1e-5)
    assert canvas.search.passes == 0
    which = torch.tensor([len(places) - 2, len(places) - 1])
    canvas.accept_patches(which)
    assert torch.equal(canvas.images, whole[which][rows[which].argsort()])
    assert_maps_are_those_of_the_images(canvas, side)
    for row in torch.randperm(len(places), generator=generator)[:12].tolist():
        top, left = places[row]
        both, one = patch[row].repeat(2, 1, 1, 1), torch.tensor([row % 2 == 0, row % 2 == 1])
        whole = canvas.images.clone()
        whole[:, :, top : top + side, left : left + side] = both
        torch.testing.assert_close(canvas.try_patch(top, left, both), model(whole), atol=1e-5, rtol=1e-5)
        canvas.accept(one)
        assert_maps_are_those_of_the_images(canvas, side)


def assert_maps_are_those_of_the_images(canvas, side):
    afresh = canvas.network.cache_maps(canvas.images, side)
    assert canvas.maps.keys() == afresh.keys()
    for node, held in canvas.maps.items():
        torch.testing.assert_close(held.maps, afresh[node].maps, atol=1e-5, rtol=1e-5)


def test_maps_are_padded_by_the_margins_of_their_readers():
    network = WindowedNetwork(torch.fx.symbolic_trace(Awkward().eval()), torch.rand(1, 3, 31, 31))
    margins = {node.name: margin for node, margin in network.margins.items() if margin}
    # The padding of the first and of the dilated layer; a stride that jumps over one pixel looks one further.
    assert margins == {"x": 2, "relu": 2, "pool": 1}


def test_the_cost_share_counts_multiplications():
    body = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(5, 2, 1), nn.Flatten())
    network = WindowedNetwork(torch.fx.symbolic_trace(body), torch.rand(1, 3, 8, 12))
    everything = 8 * 12 * 135 + 4 * 6 * (1 + 10)
    assert network.cost_share(2) == (4 * 4 * 135 + 3 * 3 * (1 + 10)) / everything
    assert network.cost_share(7) == (8 * 9 * 135 + 4 * 5 * (1 + 10)) / everything
    flat = WindowedNetwork(torch.fx.symbolic_trace(nn.Flatten()), torch.rand(1, 3, 8, 8))
    # A patch as large as the image leaves nothing to read around it.
    assert [flat.cost_share(side) for side in (2, 8)] == [1, 1]


def test_logits_of_windows_are_float32():
    model = Written(lambda m, x: m.conv(x).bfloat16()).requires_grad_(False)
    x = torch.rand(2, 3, 8, 8)
    network = WindowedNetwork(torch.fx.symbolic_trace(model), x[:1])
    canvas = WindowedCanvas(Search(model, THREAT, folded=network.graph), network, x)
    patch, place = torch.rand(2, 3, 1, 1), torch.tensor([3, 4])
    assert canvas.is_cheaper(1)
    assert canvas.try_patch(3, 4, patch).dtype == torch.float32
    assert canvas.try_patches(torch.tensor([0, 1]), (place, place), patch).dtype == torch.float32
