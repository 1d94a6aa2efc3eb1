import hashlib

import pytest
import torch
from scipy.stats import kstest

from robustill.core.randomness import derive_seed, gaussian, generator, uniform


def test_a_seed_depends_on_every_argument_and_on_their_order():
    purposes = [(0,), (1,), (0, "a"), (0, "a", 1), (0, "a", 2), (0, 1, "a"), (0, "a1"), (1, "a", 1), (0, "a", 1, 0)]
    found = [derive_seed(*purpose) for purpose in purposes]
    assert len(set(found)) == len(found)
    assert all(0 <= seed < 2**63 for seed in found)


def test_a_seed_is_the_same_in_every_process():
    expected = int(hashlib.sha256(b"3\x1fattack\x1f7").hexdigest()[:16], 16) // 2
    assert derive_seed(3, "attack", 7) == expected


def test_draws_are_independent_of_the_global_generator():
    x = torch.zeros(2, 3)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = uniform(x, generator(0, "a")), gaussian(x, [generator(0, "b", i) for i in range(2)])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    second = uniform(x, generator(0, "a")), gaussian(x, [generator(0, "b", i) for i in range(2)])
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(("draw", "name"), [(uniform, "uniform"), (gaussian, "norm")])
def test_draws_have_the_right_distribution(draw, name):
    x = torch.zeros(50, 1, 10, 10)
    for generators in (generator(0, name), [generator(0, name, i) for i in range(50)]):
        drawn = draw(x, generators)
        assert (drawn.shape, drawn.dtype) == (x.shape, x.dtype)
        assert kstest(drawn.double().flatten(), name).pvalue > 0.01


def test_draws_of_a_sample_do_not_depend_on_its_batch():
    x = torch.zeros(4, 1, 3, 3)
    together = uniform(x, [generator(0, i) for i in range(4)])
    alone = uniform(x[:1], [generator(0, 2)])
    assert torch.equal(together[2], alone[0])


def test_the_number_of_generators_must_be_the_number_of_samples():
    with pytest.raises(AssertionError):
        uniform(torch.zeros(3, 1), [generator(0)])
