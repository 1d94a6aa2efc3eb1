import importlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.evaluation_cases import THREAT, K, N, made_up, placement, trained, viewing
from helpers.records_by_hand import save_records
from robustill.attacks.suites import SUITES, Suite
from robustill.core import device, formatting
from robustill.core.errors import ConfigError, DataError, ModelError
from robustill.core.progress import Progress
from robustill.data import ImageDataset
from robustill.runs.records import ROBUST, WRONG_ON_CLEAN, Records
from robustill.threat import Threat

# By its full name: the package may offer a function of the same name.
evaluation = importlib.import_module("robustill.evaluation.evaluate")
evaluate = evaluation.evaluate


@pytest.fixture(scope="module")
def dataset():
    return made_up()


@pytest.fixture(scope="module")
def model():
    return trained()


@pytest.fixture
def all_pictures(monkeypatch):
    """Store every adversarial image, so that the rows can be recomputed."""
    monkeypatch.setattr(evaluation, "_MAX_PICTURES", 10**6)


def logits_of(model, x):
    model.eval()
    with torch.no_grad():
        return model(torch.as_tensor(x))


@pytest.mark.parametrize("threat", [THREAT, Threat(norm="l2", eps=0.5), Threat(norm="l1", eps=2.0)])
def test_columns_are_recomputed_from_the_adversarial_images(model, dataset, threat, all_pictures):
    records = evaluate(model, dataset, threat=threat)
    x, x_adv, y = records.example_clean, records.example_adversarial, torch.tensor(records.label)
    assert np.array_equal(records.example_index, np.arange(N))
    assert np.array_equal(records.index, np.arange(N))
    assert np.array_equal(x, dataset.read(torch.arange(N)).numpy() / np.float32(255))
    assert np.array_equal(records.label, dataset.labels)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    order = {"linf": np.inf, "l2": 2, "l1": 1}[threat.norm]
    distance = np.linalg.norm((x_adv.astype(np.float64) - x).reshape(N, -1), ord=order, axis=1)
    np.testing.assert_allclose(records.distance, distance, atol=1e-5)
    assert (distance <= threat.eps * (1 + 1e-4)).all()

    clean, adversarial = logits_of(model, x), logits_of(model, x_adv)
    np.testing.assert_allclose(records.clean_probabilities, clean.softmax(dim=1), atol=1e-5)
    np.testing.assert_allclose(records.adversarial_probabilities, adversarial.softmax(dim=1), atol=1e-5)
    of_label = adversarial.gather(1, y[:, None])[:, 0]
    best_other = adversarial.masked_fill(F.one_hot(y, K).bool(), -np.inf).amax(dim=1)
    np.testing.assert_allclose(records.margin, of_label - best_other, atol=1e-4)

    right, withstood = (clean.argmax(dim=1) == y).numpy(), (adversarial.argmax(dim=1) == y).numpy()
    assert np.array_equal(records.broken_by == WRONG_ON_CLEAN, ~right)
    assert np.array_equal(records.robust, right & withstood)
    assert np.array_equal(records.broken_by == ROBUST, records.robust)
    assert 0.05 < records.robust.mean() < right.mean() < 1.0


@pytest.mark.slow
def test_the_eps_curve_falls_and_is_of_one_attack_at_all_radii(model, dataset):
    records = evaluate(model, dataset, threat=THREAT)
    of_other_suite = evaluate(model, dataset, threat=THREAT, suite="apgd-ce,square")
    assert np.array_equal(records.robust_at_eps, of_other_suite.robust_at_eps)
    assert records.conditions["curve"] == {"attack": "pgd-ce", "steps": 20, "restarts": 1}
    assert np.allclose(records.eps_grid, np.array(evaluation.EPS_GRID) * THREAT.eps)
    assert (np.diff(records.robust_at_eps.astype(int), axis=1) <= 0).all()
    at_eps = records.robust_at_eps[:, list(evaluation.EPS_GRID).index(1.0)]
    assert at_eps.mean() >= records.robust.mean()
    assert (records.robust_at_eps <= (records.broken_by != WRONG_ON_CLEAN)[:, None]).all()
    assert records.robust_at_eps[:, 0].mean() > records.robust.mean() > records.robust_at_eps[:, -1].mean()


@pytest.mark.parametrize(("batch_size", "suite"), [(1, "pgd-20"), (7, "pgd"), (64, "pgd")])
def test_the_batch_size_changes_nothing(model, dataset, batch_size, suite):
    whole = evaluate(model, dataset, threat=THREAT, num_images=30, suite=suite, batch_size=N)
    parts = evaluate(model, dataset, threat=THREAT, num_images=30, suite=suite, batch_size=batch_size)
    for name in ("index", "robust", "broken_by", "robust_at_eps", "example_index"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name)), name
    for name in ("adversarial_probabilities", "margin", "distance", "example_adversarial"):
        np.testing.assert_allclose(getattr(whole, name), getattr(parts, name), rtol=1e-3, atol=1e-3, err_msg=name)


def test_the_attack_on_an_image_is_independent_of_the_others(model, dataset):
    whole = evaluate(model, dataset, threat=THREAT)
    part = evaluate(model, dataset, threat=THREAT, num_images=31)
    assert len(part) == 31
    assert np.array_equal(np.bincount(part.label).clip(10, 11), np.bincount(part.label))
    for name in ("label", "robust", "broken_by", "robust_at_eps"):
        assert np.array_equal(getattr(whole, name)[part.index], getattr(part, name)), name
    np.testing.assert_allclose(whole.margin[part.index], part.margin, atol=1e-3)
    assert (part.conditions["num_images"], part.conditions["of_images"]) == (31, N)


def test_the_progress_names_the_attack_that_runs(model, dataset, capsys, monkeypatch):
    monkeypatch.setattr(Progress, "_log_interval", 0.0)
    evaluate(model, dataset, threat=THREAT, suite="pgd", num_images=20, progress="net")
    # The others, which begin with "net:", are warnings.
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("net ")]
    shares = [int(line.split()[1].removesuffix("%")) for line in lines]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    notes = [line.split(" · ")[3] for line in lines if line.count(" · ") >= 3]
    assert list(dict.fromkeys(notes))[:3] == ["pgd-ce", "pgd-margin", "curve"]


def test_the_first_images_are_those_of_the_data_set_in_its_order(model, dataset):
    whole = evaluate(model, dataset, threat=THREAT, suite="pgd-20", eps_curve=False)
    part = evaluate(model, dataset, threat=THREAT, suite="pgd-20", eps_curve=False, first=31)
    assert part.index.tolist() == list(range(31))
    assert np.array_equal(whole.robust[:31], part.robust)
    assert part.conditions["selection"] == f"first 31 of {N}"
    assert "selection" not in whole.conditions
    assert f"the first 31 images, a subset of {N}" in formatting.conditions(part.conditions)
    balanced = evaluate(model, dataset, threat=THREAT, suite="pgd-20", eps_curve=False, num_images=31)
    assert "the first" not in formatting.conditions(balanced.conditions)


def test_the_same_seed_repeats_and_another_one_differs(model, dataset):
    one, again, other = (evaluate(model, dataset, threat=THREAT, eps_curve=False, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one.adversarial_probabilities, again.adversarial_probabilities)
    assert not np.array_equal(one.adversarial_probabilities, other.adversarial_probabilities)


def test_more_attacks_or_restarts_never_raise_robustness(model, dataset, monkeypatch):
    first, second = SUITES["pgd"].stages
    weak = replace(first, restarts=1, steps=2)
    suites = {
        "short": (weak,),
        "restarted": (replace(weak, restarts=6),),
        "both": (replace(weak, restarts=6), replace(second, restarts=2)),
    }
    records_by_name = {}
    for name, stages in suites.items():
        monkeypatch.setitem(SUITES, name, Suite(stages=stages))
        records_by_name[name] = evaluate(model, dataset, threat=THREAT, suite=name, eps_curve=False)
    assert (records_by_name["both"].robust <= records_by_name["restarted"].robust).all()
    assert (records_by_name["restarted"].robust <= records_by_name["short"].robust).all()
    assert records_by_name["both"].robust.sum() < records_by_name["short"].robust.sum()
    assert records_by_name["both"].stages == ("pgd-ce", "pgd-margin")
    assert set(records_by_name["both"].broken_by) <= {WRONG_ON_CLEAN, ROBUST, 0, 1}


class TwoClasses(nn.Module):
    """A linear network with logits (w·x + b, 0)."""

    def __init__(self, weight, bias):
        super().__init__()
        self.head = nn.Linear(len(weight), 1)
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.fill_(bias)

    def forward(self, x):
        score = self.head(x.flatten(1))
        return torch.cat([score, torch.zeros_like(score)], dim=1)


@pytest.mark.parametrize(("norm", "eps", "dual"), [("linf", 0.05, 1), ("l2", 0.15, 2), ("l1", 0.09, float("inf"))])
def test_linear_model_is_robust_iff_margin_exceeds_dual_norm(norm, eps, dual):
    drawn = torch.Generator().manual_seed(3)
    # No pixel can reach 0 or 1 within twice eps, so the largest change of the score is eps times the dual norm of w.
    images = torch.randint(55, 201, (150, 1, 4, 4), generator=drawn).to(torch.uint8)
    labels = torch.randint(2, (150,), generator=drawn)
    weight = torch.randn(16, generator=drawn)
    weight[5] = 3.0
    score = (images.double() / 255).flatten(1) @ weight.double()
    bias = -score.mean()
    signed = (score + bias) * (1 - 2 * labels)
    reach = eps * weight.double().norm(p=dual)
    # Leave out images that rounding decides, or the last per mille that the search misses.
    is_clear = ((signed / reach - 1).abs() > 5e-3) & (signed.abs() > 1e-3)
    assert is_clear.sum() > 120
    data = ImageDataset(
        name="linear", split="test", images=images[is_clear], labels=labels[is_clear], classes=("a", "b")
    )
    records = evaluate(TwoClasses(weight, bias), data, threat=Threat(norm=norm, eps=eps))
    assert np.array_equal(records.robust, (signed > reach)[is_clear])
    assert np.array_equal(records.broken_by != WRONG_ON_CLEAN, (signed > 0)[is_clear])
    assert 0 < records.robust.sum() < len(records)
    for column, factor in enumerate((0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)):
        assert records.eps_grid[column] == pytest.approx(factor * eps)
        left = signed[is_clear] / (factor * reach)
        decided = (left - 1).abs() > 5e-3
        assert np.array_equal(records.robust_at_eps[decided, column], (left > 1)[decided])


def test_a_constant_classifier_is_as_robust_as_accurate(dataset):
    constant = nn.Sequential(nn.Flatten(), nn.Linear(36, K))
    with torch.no_grad():
        constant[1].weight.zero_()
        constant[1].bias.copy_(torch.tensor([0.0, 1.0, 0.5]))
    records = evaluate(constant, dataset, threat=THREAT)
    assert np.array_equal(records.robust, records.label == 1)
    assert np.array_equal(records.robust_at_eps, np.repeat(records.robust[:, None], 7, axis=1))
    assert (records.distance <= THREAT.eps + 1e-6).all()


class _Stepped(nn.Module):
    """A network most confident in class 1 on the clean images, with a gradient of zero."""

    def __init__(self, clean: torch.Tensor) -> None:
        super().__init__()
        self.clean = clean

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        nearest = (x[:, None] - self.clean[None]).flatten(2).abs().amax(2).amin(1).detach()
        sure = 3.0 - (nearest > 1e-6).float() + 0 * x.flatten(1).sum(1)
        return torch.stack([0 * sure, sure, 0 * sure], 1)


def test_the_clean_image_is_strongest_if_no_loss_is_higher(dataset):
    model = _Stepped(dataset.read(torch.arange(N)).float() / 255)
    records = evaluate(model, dataset, threat=THREAT, suite="pgd-20", eps_curve=False)
    wrong = records.label != 1
    assert (records.distance[wrong] == 0).all()
    assert np.array_equal(records.adversarial_probabilities[wrong], records.clean_probabilities[wrong])
    # On correctly classified images any change raises the loss.
    assert (records.distance[~wrong] > 0).all()


@pytest.mark.parametrize(("eps", "radii"), [(0.0, 7), (0.6, 6), (1.0, 4)])
def test_extreme_radii(model, dataset, eps, radii):
    records = evaluate(model, dataset, threat=Threat(norm="linf", eps=eps), suite="pgd-20")
    assert len(records.eps_grid) == radii
    if eps == 0:
        assert np.array_equal(records.robust, records.clean_correct)
        assert (records.distance == 0).all()


def test_the_model_and_random_state_are_restored(model, dataset):
    network = model.train()
    network[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(network, dataset, threat=THREAT, suite="pgd-20", eps_curve=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in network.modules())
    assert [parameter.requires_grad for parameter in network.parameters()] == [False] + [True] * 7
    network[0].weight.requires_grad_(True)
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_records_contain_their_conditions(model, dataset):
    records = evaluate(
        model, dataset, threat=THREAT, num_images=9, seed=4, suite="pgd-20", conditions={"checkpoint_sha256": "abc"}
    )
    conditions = records.conditions
    assert conditions["checkpoint_sha256"] == "abc"
    assert (conditions["data"], conditions["split"], conditions["seed"]) == ("made-up", "test", 4)
    assert (conditions["num_images"], conditions["of_images"]) == (9, N)
    assert conditions["threat"] == {"norm": "linf", "eps": 0.1, "text": "linf:0.1"}
    (stage,) = conditions["suite"]["stages"]
    assert stage == {"name": "pgd-ce", "loss": "ce", "steps": 20, "restarts": 1, "step_size": 0.025}
    assert conditions["data_fingerprint"] == dataset.fingerprint
    assert conditions["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert conditions["versions"]["torch"] == torch.__version__
    # What conftest.py calls today.
    assert conditions["date"] == "2026-11-23"


@pytest.mark.parametrize(("name", "limit"), [("_MAX_PICTURES", 12), ("_MAX_PICTURE_BYTES", 12 * 2 * 4 * 36 + 1)])
def test_pictures_are_limited_and_class_balanced(model, dataset, name, limit, monkeypatch):
    monkeypatch.setattr(evaluation, name, limit)
    records = evaluate(model, dataset, threat=THREAT, suite="pgd-20", eps_curve=False, batch_size=17)
    assert len(records.example_index) == len(records.example_clean) == 12
    assert np.array_equal(np.bincount(records.label[records.example_index]), [4, 4, 4])
    clean = dataset.read(torch.tensor(records.example_index)).numpy() / np.float32(255)
    assert np.array_equal(records.example_clean, clean)


def test_leaving_out_pictures_changes_nothing_else(model, dataset, tmp_path):
    settings = {"threat": THREAT, "suite": "pgd-20", "eps_curve": False}
    complete, bare = (evaluate(model, dataset, **settings, pictures=pictures) for pictures in (True, False))
    assert (complete.has_pictures, bare.has_pictures) == (True, False)
    assert np.array_equal(complete.adversarial_probabilities, bare.adversarial_probabilities)
    save_records(bare, tmp_path)
    assert not Records.load(tmp_path).has_pictures


class NanOffTheGrid(nn.Module):
    """A network that gives logits for pixels that are multiples of 1/255, and NaN for all others."""

    def forward(self, x):
        steps = x * 255
        whole = (steps - steps.round()).abs().amax(dim=(1, 2, 3)) < 1e-3
        return torch.where(whole[:, None], x.flatten(1)[:, :K], torch.nan)


class Rounded(nn.Module):
    """A network whose gradient with respect to the image is zero."""

    def forward(self, x):
        return (x.detach().flatten(1)[:, :K] * 8).round()


@pytest.mark.parametrize(
    ("settings", "error", "line"),
    [
        ({"suite": "pdg"}, ConfigError, r"suite 'pdg' is unknown: did you mean pgd"),
        ({"batch_size": 0}, ConfigError, "batch_size is 0, expected a whole number of at least 1"),
        ({"num_images": N + 1}, DataError, r"91 images requested of made-up \(test\): expected 1 to 90"),
        ({"num_images": 0}, DataError, "0 images requested"),
        ({"first": N + 1}, DataError, r"91 images requested of made-up \(test\): expected 1 to 90"),
        ({"first": 0}, DataError, "0 images requested"),
        ({"first": "9"}, ConfigError, "first is '9', expected a whole number"),
        ({"first": 9, "num_images": 9}, ConfigError, "num_images is 9 and first is 9: give one of them"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(36, 10))}, ModelError, "gives 10 logits, but the data has"),
        ({"precision": "fats"}, ConfigError, "precision 'fats' is unknown: did you mean fast"),
        ({"suite": "square,square"}, ConfigError, "names an attack twice"),
        ({"model": NanOffTheGrid()}, ModelError, "NaN or infinite logits on images of the attack pgd-ce"),
        ({"model": Rounded()}, ModelError, "no gradient towards the images"),
    ],
)
def test_invalid_arguments_raise_one_line(model, dataset, settings, error, line):
    with pytest.raises(error, match=line) as caught:
        evaluate(**{"model": model, "dataset": dataset, "threat": THREAT, **settings})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrap", [viewing, pytest.param(lambda network: network, marks=pytest.mark.slow)])
def test_a_network_that_views_feature_maps_is_evaluated_and_given_back(model, dataset, wrap):
    own, surrogate = wrap(trained()), wrap(trained())
    before = placement(own), placement(surrogate)
    few = {"threat": THREAT, "num_images": 12, "eps_curve": False}
    for more in ({"masking": True, "surrogate": surrogate}, {"suite": "apgd-ce"}):
        found, expected = evaluate(own, dataset, **few, **more), evaluate(model, dataset, **few, **more)
        np.testing.assert_allclose(found.clean_probabilities, expected.clean_probabilities, atol=1e-5)
        assert abs(found.robust.mean() - expected.robust.mean()) <= 1 / 12
    assert (placement(own), placement(surrogate)) == before


def test_the_version_of_the_package_of_a_network_is_recorded(monkeypatch, dataset):
    monkeypatch.setattr(device, "installed_version", lambda name: f"{name} 1.0")
    threat = Threat.parse(THREAT)
    known = evaluation.evaluation_conditions(dataset, 5, threat, "pgd", 0, architecture="timm:resnet18")
    assert known["versions"]["timm"] == "timm 1.0"
    assert "timm" not in evaluation.evaluation_conditions(dataset, 5, threat, "pgd", 0)["versions"]
