import torch

from robustill.acceleration.layers import global_average_pool


def test_the_gradient_of_global_average_pool_is_channels_last():
    x = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    means = global_average_pool(x)
    torch.testing.assert_close(means, x.mean((2, 3)))
    (grad,) = torch.autograd.grad(means.sum(), x)
    assert grad.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(grad, torch.full_like(x, 1 / 16))
