import pytest
import torch
from torch import nn

from robustill.core.contexts import evaluating, frozen, full_float32


def mixed_network():
    """Modes and flags as fine-tuning leaves them: some layers frozen, one BatchNorm in eval mode."""
    shared = nn.Linear(3, 3)
    network = nn.Sequential(shared, nn.BatchNorm1d(3), nn.Sequential(nn.Dropout(), shared, nn.BatchNorm1d(3)))
    network.train()
    network[1].eval()
    network[2][2].weight.requires_grad_(False)
    return network


def modes(network):
    return [module.training for module in network.modules()]


def flags(network):
    return [parameter.requires_grad for parameter in network.parameters()]


@pytest.mark.parametrize("fails", [False, True])
def test_modes_and_flags_are_restored(fails):
    network, other = mixed_network(), mixed_network().eval()
    before = modes(network), flags(network), modes(other), flags(other)
    assert len(set(before[0])) == len(set(before[1])) == 2
    try:
        with evaluating(network, other), frozen(network, other):
            assert not any(modes(network) + modes(other) + flags(network) + flags(other))
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert (modes(network), flags(network), modes(other), flags(other)) == before


def test_nested_contexts_restore_the_outermost_state():
    network = mixed_network()
    before = modes(network), flags(network)
    with evaluating(network, network[2]), frozen(network, network):
        with evaluating(network), frozen(network[2]):
            pass
        assert not any(modes(network) + flags(network))
    assert (modes(network), flags(network)) == before


def test_buffers_are_restored_and_images_have_gradients():
    network = mixed_network()
    statistics = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.rand(5, 3, requires_grad=True)
    with evaluating(network), frozen(network):
        network(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, statistics[name]) for name, value in network.state_dict().items())


def test_float32_precision_is_restored_after_an_exception():
    places = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [place.fp32_precision for place in places]
    seen = []

    @full_float32()
    def fails():
        seen.extend(place.fp32_precision for place in places)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert seen == ["ieee", "ieee"]
    assert [place.fp32_precision for place in places] == before
