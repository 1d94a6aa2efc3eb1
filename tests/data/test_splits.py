import pytest
import torch

from robustill.core.errors import DataError
from robustill.data.splits import flip_labels, holdout, random_fold, stratified_subset

LABELS = torch.tensor([0] * 50 + [1] * 30 + [3] * 20)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("size", [10, 0.1, 1, 33, 99, 0, 0.0])
def test_holdout_parts_are_disjoint_sorted_and_complete(size):
    train, validation = holdout(LABELS, size, seed=0)
    count = round(size * 100) if isinstance(size, float) else size
    assert len(validation) == count
    assert torch.equal(torch.cat([train, validation]).sort().values, torch.arange(100))
    assert torch.equal(train.sort().values, train)
    assert torch.equal(validation.sort().values, validation)


def test_holdout_is_proportional_to_class_sizes():
    _, ten = holdout(LABELS, 10, seed=0)
    assert torch.bincount(LABELS[ten]).tolist() == [5, 3, 0, 2]
    # 33 %: 16.5, 9.9, 6.6 images; 31 whole ones, then the remainders .9 and .6.
    _, third = holdout(LABELS, 0.33, seed=0)
    assert torch.bincount(LABELS[third]).tolist() == [16, 10, 0, 7]


def test_holdout_is_a_function_of_the_seed_and_uniform():
    assert torch.equal(holdout(LABELS, 10, seed=1)[1], holdout(LABELS, 10, seed=1)[1])
    chosen = torch.zeros(100)
    for seed in range(400):
        chosen[holdout(LABELS, 10, seed=seed)[1]] += 1
    # Binomial(400, 0.1): 40 ± 6; six deviations either way.
    assert chosen.min() > 4
    assert chosen.max() < 76


@pytest.mark.parametrize("size", [100, -1, 1.0, -0.5])
def test_holdout_of_all_images_is_refused(size):
    with pytest.raises(DataError, match="cannot hold out"):
        holdout(LABELS, size, seed=0)


@pytest.mark.parametrize(("count", "expected"), [(30, [10, 10, 0, 10]), (66, [23, 23, 0, 20]), (100, [50, 30, 0, 20])])
def test_subset_is_as_balanced_as_the_classes_allow(count, expected):
    ids = stratified_subset(LABELS, count, seed=0)
    assert torch.equal(ids.unique(), ids)
    assert torch.bincount(LABELS[ids]).tolist() == expected


def test_subset_sizes_differ_by_one_and_favour_no_class():
    favoured = torch.zeros(4)
    for seed in range(60):
        counts = torch.bincount(LABELS[stratified_subset(LABELS, 10, seed=seed)])
        assert sorted(counts.tolist()) == [0, 3, 3, 4]
        favoured += counts == 4
    assert favoured[[0, 1, 3]].min() >= 3


def test_smaller_subsets_are_part_of_larger_ones():
    small, large = (set(stratified_subset(LABELS, count, seed=5).tolist()) for count in (20, 55))
    assert small < large


@pytest.mark.parametrize("count", [0, 101])
def test_an_impossible_subset_is_refused(count):
    with pytest.raises(DataError, match="expected 1 to 100"):
        stratified_subset(LABELS, count, seed=0)


def test_folds_are_equal_parts_of_all_images():
    for partition in (0, 1, 5):
        parts = [random_fold(LABELS, 3 * partition + part, 3, seed=0) for part in range(3)]
        assert torch.equal(sum(part.long() for part in parts), torch.ones(100, dtype=torch.int64))
        assert sorted(int(part.sum()) for part in parts) == [33, 33, 34]
        for label in (0, 1, 3):
            sizes = [int((LABELS[part] == label).sum()) for part in parts]
            assert max(sizes) - min(sizes) <= 1


def test_partitions_are_independent_and_uniform():
    assert torch.equal(random_fold(LABELS, 4, 3, seed=1), random_fold(LABELS, 4, 3, seed=1))
    together = torch.zeros(100)
    for partition in range(400):
        fold = random_fold(LABELS, 3 * partition, 3, seed=0)
        together += (fold == fold[0]) if fold[0] else torch.zeros(100)
    # With image 0 in a third of 400: another one is there in about a third of those, 44 ± 6; never always, never not.
    assert together[1:].max() < 90
    assert together[1:].min() > 10


def test_exactly_the_returned_labels_are_wrong():
    before = LABELS.clone()
    noisy, flipped = flip_labels(LABELS, 0.4, 5, seed=0)
    assert torch.equal(LABELS, before)
    assert torch.equal(torch.nonzero(noisy != LABELS).flatten(), flipped)
    assert len(flipped) == 40
    assert noisy.min() >= 0
    assert noisy.max() <= 4
    assert torch.equal(noisy, flip_labels(LABELS, 0.4, 5, seed=0)[0])
    assert not torch.equal(noisy, flip_labels(LABELS, 0.4, 5, seed=1)[0])


def test_label_noise_is_uniform_over_other_classes():
    noisy, flipped = flip_labels(torch.full((30_000,), 2), 1.0, 4, seed=0)
    assert len(flipped) == 30_000
    counts = torch.bincount(noisy, minlength=4)
    assert counts[2] == 0
    # Binomial(30000, 1/3): 10000 ± 82.
    assert (counts[[0, 1, 3]] - 10_000).abs().max() < 500


@pytest.mark.parametrize(("fraction", "num_classes"), [(-0.1, 3), (1.1, 3), (0.5, 1)])
def test_impossible_label_noise_is_refused(fraction, num_classes):
    with pytest.raises(DataError):
        flip_labels(LABELS, fraction, num_classes, seed=0)
