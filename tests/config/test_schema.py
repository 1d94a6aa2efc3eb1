"""Configurations read back equal; impossible ones are refused in one line that says how to mend them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import get_args

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from robustill.config.files import dump_config, load_config
from robustill.config.overrides import _PATHS, apply_overrides
from robustill.config.recipes import RECIPES
from robustill.config.schema import Config, make_config
from robustill.core.errors import ConfigError
from robustill.core.yaml import dump_yaml, parse_yaml
from robustill.data import DATASETS
from robustill.methods import METHODS, method_class
from robustill.methods.base import SELF
from robustill.models import MODELS

WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
POSITIVE = st.floats(1e-9, 1e9)
SHARE = st.floats(0.001, 0.999)
RADIUS = st.floats(0, 1) | st.integers(0, 255).map("{}/255".format)


def any_of(**fields: st.SearchStrategy) -> st.SearchStrategy:
    """Return a strategy for dictionaries with any of these keys."""
    return st.fixed_dictionaries({}, optional=fields)


@st.composite
def valid_values(draw: st.DrawFn) -> dict:
    name = draw(st.sampled_from(sorted(METHODS)))
    one = any_of(weight=st.floats(0.1, 10), model=st.none() | st.just({"name": "lenet", "mean": [0.5]}))
    teachers = [
        {**draw(one), "spec": draw(WORDS), "role": role}
        for role in method_class(name).roles
        if role != SELF
        for _ in range(draw(st.integers(1, 2)))
    ]
    groups = {
        "seed": st.integers(0, 2**64 - 1),
        "data": any_of(
            name=st.sampled_from(sorted(DATASETS)),
            root=WORDS,
            image_size=st.integers(1, 64),
            train_size=st.integers(1, 10**6),
            validation=SHARE | st.integers(1, 9999),
            augmentation=st.lists(st.sampled_from(["crop", "flip", {"crop": {"pad": 2}}]), max_size=2),
            label_noise=st.floats(0, 0.99),
            split_seed=st.integers(1 - 2**64, 2**64 - 1),
            download=st.booleans(),
        ),
        "model": st.sampled_from([{"name": each} for each in MODELS] + [{"name": "resnet8", "width": 3}]),
        "threat": any_of(norm=st.sampled_from(["linf", "l2", "l1"]), eps=RADIUS),
        "attack": any_of(
            steps=st.integers(0, 50),
            step_size=RADIUS,
            start=st.sampled_from([None, "uniform", "gaussian", "clean"]),
            batchnorm=st.sampled_from(["eval", "train"]),
        ),
        "optim": any_of(
            name=st.sampled_from(["sgd", "adamw"]),
            epochs=st.integers(1, 999),
            learning_rate=POSITIVE,
            weight_decay=st.floats(0, 1),
            schedule=st.sampled_from(["onecycle", "cosine", "multistep", "constant"]),
            milestones=st.lists(SHARE, max_size=3),
            clip_norm=st.none() | POSITIVE,
            ema=st.none() | SHARE,
        ),
        "validation": any_of(every=st.integers(1, 9), step_size=st.none() | RADIUS, patience=st.none() | st.just(3)),
        "keep_every": st.none() | st.integers(1, 9),
        "compute": any_of(device=WORDS, threads=st.none() | st.just(2), precision=st.sampled_from(["fp32", "bf16"])),
    }
    values = {**draw(any_of(**groups)), "method": {"name": name}, "teachers": teachers}
    if SELF in method_class(name).roles:
        values["optim"] = {**values.get("optim", {}), "ema": draw(SHARE)}
    return values


@settings(max_examples=60)
@given(valid_values())
def test_a_dumped_configuration_reads_back_equal(values: dict) -> None:
    config = make_config(values)
    again = make_config(parse_yaml(dump_config(config), "the dump"))
    assert again == config
    assert dump_config(again) == dump_config(config)


def test_a_file_reads_back_equal(tmp_path: Path) -> None:
    config = make_config({"method": {"name": "trades", "beta": 3}, "threat": {"eps": "8/255"}})
    (tmp_path / "a.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "a.yaml") == config


def test_every_option_is_written_out() -> None:
    values = parse_yaml(dump_config(make_config({"method": {"name": "trades"}, "model": {"name": "resnet8"}})), "dump")
    assert values["method"]["beta"] == 6.0
    assert values["model"]["width"] == MODELS["resnet8"].options["width"]
    assert set(values) == set(Config.model_fields)


@pytest.mark.parametrize("eps", ["8/255", " 8 / 255 ", 8 / 255, str(8 / 255)])
def test_a_radius_may_be_a_fraction(eps: object) -> None:
    assert make_config({"threat": {"eps": eps}}).threat.eps == 8 / 255


def test_a_teacher_may_be_given_by_its_spec() -> None:
    config = make_config({"method": {"name": "akd"}, "teachers": ["run:a@best", {"spec": "b.pt", "weight": 2}]})
    assert [(each.spec, each.weight, each.role) for each in config.teachers] == [
        ("run:a@best", 1.0, "robust"),
        ("b.pt", 2.0, "robust"),
    ]


# --- overrides


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["--method", "akd"], {"method": {"name": "akd"}}),
        (["--method.name", "at"], {"method": {"name": "at", "kept": 1}}),
        (["--method", "trades", "--method.beta", "2"], {"method": {"name": "trades", "beta": 2}}),
        (["--method.beta=2", "--method=trades"], {"method": {"name": "trades", "beta": 2}}),
        (["--model", "lenet"], {"model": {"name": "lenet"}}),
        (["--data", "cifar10"], {"data": {"name": "cifar10"}}),
        (["--threat", "linf:8/255"], {"threat": {"norm": "linf", "eps": 8 / 255}}),
        (["--threat.eps", "8/255"], {"threat": {"eps": "8/255"}}),
        (["--teachers", "run:DIR@best"], {"teachers": ["run:DIR@best"]}),
        (["--teachers", "[run:a@best, run:b@last]"], {"teachers": ["run:a@best", "run:b@last"]}),
        (["--teachers", "[]"], {"teachers": []}),
        (["--keep-every", "5"], {"keep_every": 5}),
        (["--optim.learning-rate", "1e-3"], {"optim": {"learning_rate": 0.001}}),
        (["--optim.clip_norm", "null"], {"optim": {"clip_norm": None}}),
        (["--data.split_seed", "-1"], {"data": {"split_seed": -1}}),
        (["--data.root", "null"], {"data": {"root": None}}),
        (["--data.root", ""], {"data": {"root": None}}),
        (["--data", "{name: npz, root: a}"], {"data": {"name": "npz", "root": "a"}}),
    ],
)
def test_overrides(tokens: list[str], expected: dict) -> None:
    before = {"method": {"name": "at", "kept": 1}}
    assert apply_overrides(before, tokens) == {**before, **expected}
    assert before == {"method": {"name": "at", "kept": 1}}


@pytest.mark.parametrize(
    "path", ["a #b", "#a", "a: b", "@a", "user@lab/a", "&a", "*a", "'a'", '"a', "2024", "a=b", "!a"]
)
def test_paths_are_taken_as_they_are(path: str) -> None:
    for group, key in (("data", "root"), ("data", "extra"), ("compute", "teacher_cache")):
        for tokens in ([f"--{group}.{key}", path], [f"--{group}.{key}={path}"]):
            assert getattr(getattr(make_config(apply_overrides({}, tokens)), group), key) == Path(path)
    assert apply_overrides({}, ["--initial", path]) == {"initial": path}
    assert apply_overrides({}, ["--data", path]) == {"data": {"name": path}}
    assert apply_overrides({}, ["--teachers", f"run:{path}@best"]) == {"teachers": [f"run:{path}@best"]}


def test_data_may_be_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("images/train/a", "arrays", "digits"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for name in ("images/._junk.npz", "arrays/train.npz", "one.npz", "hub/data/train.parquet", "one.tar"):
        (tmp_path / name).touch()
    formats = {"images": "folder", "arrays": "npz", "one.npz": "npz", str(tmp_path / "arrays"): "npz"}
    formats |= {"hub": "parquet", "hub/data/train.parquet": "parquet", "one.tar": "webdataset"}
    for path, name in formats.items():
        assert apply_overrides({}, ["--data", path]) == {"data": {"name": name, "root": path}}
    # The name of a data set comes first; what cannot be the name of a file is left to the configuration to refuse.
    for name in ("digits", "nowhere", "x" * 999):
        assert apply_overrides({}, ["--data", name]) == {"data": {"name": name}}


def test_every_path_of_a_configuration_is_known_as_one() -> None:
    paths = {
        (group, key)
        for group, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        for key, each in field.annotation.model_fields.items()
        if Path in (each.annotation, *get_args(each.annotation))
    }
    assert len(paths) == 3
    assert paths <= _PATHS


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (["alpha"], "an override is written --group.key VALUE"),
        (["--"], "an override is written"),
        (["-x", "1"], "an override is written"),
        (["--seed"], "--seed has no value"),
        (["--seed", "--data.root", "x"], "--seed has no value"),
        (["--seed", "["], "--seed '['"),
        (["--seed", "2001-13-45"], "month must be"),
        (["--seed", "*x"], "aliases"),
        (["--seed", "1", "--seed", "2"], "--seed is given twice"),
        (["--method", "at", "--method.name", "at"], "--method.name is given twice"),
        (["--teachers", "run:a", "--teachers", "run:b"], "several are written [A, B]"),
        (["--method.kept.deep", "1"], "method.kept is a value, not a group of keys"),
        (["--threat", "linf"], "expected NORM:EPS"),
        (["--threat", "linf:8"], "did you mean 8/255"),
    ],
)
def test_impossible_overrides_are_refused(tokens: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides({"method": {"name": "at", "kept": 1}}, tokens)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_overrides_change_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("method: {name: trades, beta: 2}\nseed: 3\n")
    config = load_config(tmp_path / "a.yaml", ["--method.beta", "4", "--optim.epochs", "7"])
    assert (config.method.options["beta"], config.optim.epochs, config.seed) == (4, 7, 3)


# --- what is refused

AKD = {"name": "akd"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        # Unknown keys, at every level, with the nearest known one.
        ({"metod": 1}, "unknown key metod: did you mean method"),
        ({"data": {"nmae": "digits"}}, "unknown key data.nmae: did you mean name?"),
        ({"optim": {"lerning_rate": 1}}, "did you mean learning_rate?"),
        ({"validation": {"evrey": 1}}, "did you mean every?"),
        ({"method": {"name": "akd", "alhpa": 1}}, "did you mean alpha?"),
        ({"model": {"name": "resnet8", "witdh": 1}}, "did you mean width?"),
        ({"method": AKD, "teachers": [{"spek": "a"}]}, "unknown key teachers.0.spek: did you mean spec?"),
        ({"method": AKD, "teachers": [{"spec": "a", "rolle": "robust"}]}, "did you mean role?"),
        ({"method": AKD, "teachers": [{"spec": "a", "model": {"widht": 1}}]}, "did you mean width?"),
        ({"data": {"augmentation": [{"crop": {"pda": 1}}]}}, "unexpected keyword argument 'pda'"),
        # Unknown names.
        ({"method": {"name": "trads"}}, "did you mean trades"),
        ({"model": {"name": "resnet81"}}, "did you mean resnet18"),
        ({"data": {"name": "cifar"}}, "did you mean cifar10"),
        (
            {"data": {"name": "some/images"}},
            "in a file: the path as data.root, and folder, npz, parquet or webdataset as data.name",
        ),
        ({"model": {"name": "mynet.py"}}, "an import path is written mynet:FUNCTION"),
        ({"model": {"name": "a/w.pth"}}, "give the name of the network as --model, and a file of its weights as"),
        ({"model": {"name": "a.b.net"}}, "an import path is written a.b:net"),
        # Settings of another group come before what is spelt alike.
        ({"threads": 1}, "unknown key threads: did you mean compute.threads?"),
        ({"out": "x"}, "unknown key out: known: attack, compute"),
        # Options of networks and methods in another group.
        ({"width": 4}, "unknown key width: did you mean model.width?"),
        ({"optim": {"tempreature": 4}}, "unknown key optim.tempreature: did you mean method.temperature?"),
        ({"pretrained": "a.pt"}, "did you mean initial?"),
        ({"data": {"augmentation": ["crpo"]}}, "did you mean crop?"),
        ({"method": {"name": ""}}, "is unknown"),
        ({"model": {"name": ""}}, "is unknown"),
        # Kinds.
        ({"method": "at"}, "method is 'at', expected keys and values, such as {name: ...}"),
        ({"data": [1]}, "data is [1], expected keys and values"),
        ({"optim": {"epochs": 2.5}}, "optim.epochs is 2.5, expected a whole number"),
        ({"optim": {"epochs": True}}, "epochs is true"),
        ({"threat": {"eps": True}}, "eps is true"),
        ({"threat": {"eps": None}}, "expected a number or a fraction"),
        ({"threat": {"eps": [1]}}, "expected a number or a fraction"),
        ({"model": {"width": "wide"}}, "width is 'wide', expected a whole number"),
        ({"model": {"width": 4.5}}, "width is 4.5, expected a whole number"),
        ({"method": {"name": "trades", "joint_forward": "maybe"}}, "expected true or false"),
        ({"teachers": "run:a"}, "expected a list"),
        ({"teachers": [3]}, "teachers.0 is 3, expected keys and values"),
        ({"data": {"augmentation": "crop"}}, "expected a list"),
        ({"data": {"augmentation": [3]}}, "expected a name, or {name: {option: value}}"),
        ({"data": {"augmentation": [{}]}}, "expected a name, or one {name: {option: value}}"),
        ({"data": {"augmentation": [{"crop": {}, "flip": {}}]}}, "expected a name, or one {name: {option: value}}"),
        ({1: 2}, "expected a word"),
        ({"data": {3: 4}}, "expected a word"),
        ({"model": {3: 4}}, "no option 3"),
        # Values.
        ({"threat": {"eps": 8}}, "did you mean 8/255?"),
        ({"attack": {"step_size": 2}}, "attack.step_size is 2, but images are in [0,1]: did you mean 2/255?"),
        ({"validation": {"step_size": 2}}, "validation.step_size is 2"),
        ({"threat": {"eps": -0.1}}, "greater than or equal to 0"),
        ({"threat": {"eps": "1/0"}}, "expected a number or a fraction"),
        ({"threat": {"norm": "l3"}}, "expected 'linf', 'l2' or 'l1'"),
        ({"optim": {"milestones": [75, 90]}}, "less than 1"),
        ({"optim": {"nesterov": True, "momentum": 0}}, "nesterov needs a momentum"),
        ({"data": {"validation": 1.5}}, "a share below 1 or a whole number"),
        ({"data": {"label_noise": 1}}, "less than 1"),
        ({"data": {"fold": 1}}, "folds is None and fold is 1: give both of them or neither"),
        ({"method": {"name": "akd", "alpha": 3}, "teachers": ["a"]}, "at most 1"),
        ({"method": AKD}, "needs a teacher of role robust"),
        ({"teachers": ["run:a"]}, "has no use for a teacher of role robust: remove it (--teachers [])"),
        (
            {"method": AKD, "teachers": ["a", {"spec": "b", "role": "natural"}]},
            "has no use for a teacher of role natural: give only those of role robust",
        ),
        ({"method": AKD, "teachers": [{"spec": "a", "weight": 0}]}, "has weight 0"),
        ({"compute": {"precision": "bf61"}}, "expected 'fp32' or 'bf16'"),
        ({"seed": "x" * 5000}, "expected a whole number"),
    ],
)
def test_impossible_configurations_are_refused_in_one_line(values: dict, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(values)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), "nan", "inf"])
@pytest.mark.parametrize(
    ("group", "key"),
    [
        ("threat", "eps"),
        ("optim", "learning_rate"),
        ("attack", "step_size"),
        ("data", "validation"),
        ("method", "beta"),
    ],
)
def test_numbers_must_be_finite(group: str, key: str, number: float | str) -> None:
    values: dict = {"method": {"name": "trades"}}
    with pytest.raises(ConfigError):
        make_config({**values, group: {**values.get(group, {}), key: number}})


# --- untrusted YAML

LAUGHS = "a0: &a0 [lol]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS, "aliases"),
        ("&a [*a]", "aliases"),
        ("seed: 1\nseed: 2", "key 'seed' is there twice"),
        ("data: {name: digits, name: cifar10}", "key 'name' is there twice"),
        ("[" * 100_000, "nested deeper"),
        ("{a: " * 20_000, "nested deeper"),
        ("- " * 50_000, "nested deeper"),
        ("seed: 1 #" + "x" * 10**6, "longer than 200,000 characters"),
        ("seed: " + "1" * 5000, "4300 digits"),
        ("seed: 2001-13-45", "month must be"),
        ("seed: !!timestamp x", "not YAML that can be read"),
        ("seed: !!int x", "not YAML that can be read"),
        ("seed: !!python/object/apply:os.system [touch evil]", "could not determine a constructor"),
        ("a: \x00", "special characters"),
        ("a: [", "not YAML that can be read"),
        ("a: 1\n--- \nb: 2", "a single document"),
        ("? [1]\n: 2", "unhashable"),
        ("- 1\n- 2", "holds [1, 2], expected keys and values"),
        ("", "holds None, expected keys and values"),
        ("digits", "holds 'digits', expected keys and values"),
    ],
)
def test_hostile_yaml_is_refused_in_one_short_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "a.yaml")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["a.yaml"]


@settings(max_examples=150)
@given(st.binary(max_size=200) | st.text("&*[]{}:,-?! \n\t'\"#|>%@<=0123456789abe.~", max_size=80).map(str.encode))
def test_any_file_is_a_config_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(content)
    try:
        found: object = load_config(file)
    except ConfigError as error:
        found = error
    assert "\n" not in str(found)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_bytes(b"\xff")])
def test_an_unreadable_file_is_refused(tmp_path: Path, make) -> None:
    make(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=r"a\.yaml cannot be read"):
        load_config(tmp_path / "a.yaml")


def test_exponents_are_numbers_and_strings_stay_strings() -> None:
    values = {"a": "1e-3", "b": 1e-3, "c": "yes", "d": None, "e": "0.1", "f": 1e300, "g": "", "h": "#"}
    assert parse_yaml(dump_yaml(values), "x") == values
    assert parse_yaml("[1e-3, -2E5, .5e1, 1.e-2, 1e5x]", "x") == [0.001, -2e5, 5.0, 0.01, "1e5x"]


@pytest.mark.parametrize("value", [True, False])
def test_a_retired_setting_of_a_stored_configuration_is_dropped(tmp_path: Path, value: bool) -> None:
    values = make_config({}).model_dump(mode="json")
    values["compute"]["cuda_graphs"] = value
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(values))
    with pytest.warns(UserWarning, match=r"config.yaml: compute.cuda_graphs no longer exists and is ignored"):
        assert load_config(path) == make_config({})
    with pytest.raises(ConfigError, match=r"unknown key compute\.cuda_graph: "):
        make_config({"compute": {"cuda_graph": value}})
    for refused in (
        lambda: make_config({"compute": {"cuda_graphs": value}}),
        lambda: apply_overrides({}, ["--compute.cuda-graphs", str(value)]),
    ):
        with pytest.raises(ConfigError, match=r"^compute\.cuda_graphs no longer exists: leave it out"):
            refused()


def test_an_import_path_that_is_no_method_is_refused() -> None:
    before = time.monotonic
    with pytest.raises(ConfigError, match=r"expected a subclass of robustill\.Method"):
        make_config({"method": {"name": "time:monotonic"}})
    assert time.monotonic is before


# --- the JSON schema

VALIDATOR = jsonschema.Draft202012Validator(Config.model_json_schema())


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_satisfies_the_json_schema(name: str) -> None:
    VALIDATOR.validate(yaml.safe_load(dump_config(RECIPES[name]())))


@pytest.mark.parametrize(
    "values",
    [
        {"threat": {"eps": "8/255"}, "attack": {"step_size": "2/255", "first_eps": 0}},
        {"teachers": ["run:a@best", {"spec": "weights.pt", "model": {"name": "resnet8"}}]},
        {"method": {"name": "trades", "beta": 5}},
    ],
)
def test_what_a_file_may_hold_satisfies_the_json_schema(values: dict) -> None:
    VALIDATOR.validate(values)


@pytest.mark.parametrize(
    "values",
    [{"threat": {"eps": "large"}}, {"threat": {"eps": -1}}, {"teachers": [3]}, {"optim": {"epoch": 3}}, {"lr": 0.1}],
)
def test_mistakes_do_not_satisfy_the_json_schema(values: dict) -> None:
    assert not VALIDATOR.is_valid(values)
