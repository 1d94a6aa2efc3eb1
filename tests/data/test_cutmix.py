import numpy as np
import torch

from robustill.data.augmentation import cutmix


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixed(count=2000, share=1.0, H=8, W=12):
    """Image i is i + 1 everywhere, so that every pixel tells whose it is."""
    x = torch.arange(1.0, count + 1).view(-1, 1, 1, 1).expand(-1, 2, H, W).contiguous()
    y = torch.arange(count) % 5
    return x, y, *cutmix(x, y, 5, generator(), share=share)


def test_a_label_is_mixed_by_the_pixels_that_each_image_shows():
    x, y, images, labels = mixed()
    for i in range(len(x)):
        own = (images[i] == x[i]).float().mean()
        expected = torch.zeros(5)
        expected[y[i]] += own
        expected[y[i - 1]] += 1 - own
        torch.testing.assert_close(labels[i], expected)
        assert ((images[i] == x[i]) | (images[i] == x[i - 1])).all()
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(len(x)))


def test_what_is_pasted_is_a_rectangle_of_the_images_proportions():
    x, _, images, _ = mixed(H=32, W=64)
    shares, middles = [], []
    for i in range(len(x)):
        hole = images[i, 0] == x[i - 1, 0, 0, 0]
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        shares.append(float(hole.float().mean()))
        if not len(rows):
            continue
        height, width = int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)
        assert int(hole.sum()) == height * width
        if rows[0] > 0 and rows[-1] < 31 and columns[0] > 0 and columns[-1] < 63:
            assert abs(width - 2 * height) <= 1
        middles.append((int(rows[0]) + height / 2) / 32)
    # Of an area uniform in [0,1], with sides s = sqrt(area): for a uniform centre, s − s²/4 of a side falls inside.
    s = np.sqrt(np.linspace(0, 1, 10001))
    assert abs(np.mean(shares) - np.mean((s - s**2 / 4) ** 2)) < 0.02
    assert abs(np.mean(middles) - 0.5) < 0.03


def test_the_share_of_images_that_are_changed():
    x, y, images, labels = mixed(share=0.3)
    touched = (images != x).flatten(1).any(1)
    assert 0.25 < touched.float().mean() < 0.32
    assert torch.equal(labels[~touched], torch.eye(5)[y[~touched]])
    x, y, images, labels = mixed(share=0.0)
    assert torch.equal(images, x)
    assert torch.equal(labels, torch.eye(5)[y])


def test_the_generator_alone_decides_and_the_input_is_left_alone():
    x, y = torch.rand(6, 3, 4, 4), torch.arange(6) % 2
    before, state = x.clone(), torch.get_rng_state()
    one, two, other = (cutmix(x, y, 2, generator(seed), share=1.0)[0] for seed in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
