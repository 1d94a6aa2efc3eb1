import shlex

from helpers.made_up_runs import make_run
from helpers.made_up_studies import make_network
from helpers.read_arms import read_runs
from robustill.analysis.runs import read_run
from robustill.report.commands import code_of, evaluate_command, like_main_command, missing_notes, repeat_commands
from robustill.report.views import condition_parts


def test_commands_repeat_a_run_and_its_evaluations(tmp_path):
    suite = {"name": "standard", "stages": [{"name": "apgd-ce", "steps": 100, "restarts": 1}]}
    path = make_run(tmp_path / "at", method={"name": "at"}, evaluations=("test-best-pgd", "test-last-pgd"))
    weaker = {"norm": "linf", "eps": 0.1, "text": "linf:0.1"}
    fast = "bf16 gradients, fp32 decisions"
    conditions = {"suite": suite, "threat": weaker, "of_images": 797, "precision": fast}
    other = make_run(tmp_path / "o", method={"name": "at"}, evaluations=("validation-best-pgd",), **conditions)
    (other / "evaluations/validation-best-pgd").rename(path / "evaluations/validation-best-standard")
    assert repeat_commands(read_run(path, "run")) == [
        f"robustill train {path}/config.yaml --run {path}-again",
        f"robustill evaluate {path}-again --checkpoint best last --suite pgd --seed 0",
        f"robustill evaluate {path}-again --checkpoint best --suite standard --split validation --num-images 500 "
        "--precision fast --seed 0 --threat linf:0.1",
        f"robustill report {path}-again --out report.html",
    ]


def test_paths_are_quoted_and_cannot_steer_a_terminal(tmp_path):
    path = make_run(tmp_path / "it's; a\x1b[31m $run", method={"name": "at"})
    commands = repeat_commands(read_run(path, "run"))
    assert "\x1b" not in "".join(commands)
    for line in commands:
        assert any("it's; a" in word for word in shlex.split(line))
        assert ";" not in shlex.split(line)


def test_commands_trust_the_code_that_the_files_name(tmp_path):
    own = {"model": {"name": "my_mod:teacher"}}
    teacher = make_run(tmp_path / "teacher", method={"name": "at"}, evaluations=(), config=own)
    config = {"model": {"name": "my_mod:net", "width": 3}, "initial": "run:a/b@best"}
    method = {"name": "my_pkg.my_mod:Mine"}
    path = make_run(tmp_path / "run", method=method, teachers=(f"run:{teacher}@best",), config=config)
    train, evaluate, show = repeat_commands(read_run(path, "run"))
    assert train.endswith("--trust-code my_mod:net,my_pkg.my_mod:Mine,my_mod:teacher")
    assert evaluate.endswith("--seed 0 --trust-code my_mod:net")
    assert "--trust-code" not in show
    assert evaluate_command(read_run(path, "run")) == f"robustill evaluate {path} --trust-code my_mod:net"
    teachers = [{"spec": "timm:net"}, {"spec": "my_mod:t"}]
    assert code_of({"threat": {"name": "a:b"}, "teachers": teachers}) == ["my_mod:t"]


def test_commands_trust_the_data_set_and_the_optimizer_of_the_user(tmp_path):
    config = {"data": {"name": "my_mod:images", "root": "a:b"}, "optim": {"name": "my_mod:Lion"}}
    path = make_run(tmp_path / "run", method={"name": "at"}, config=config)
    train, evaluate, _ = repeat_commands(read_run(path, "run"))
    assert train.endswith("--trust-code my_mod:images,my_mod:Lion")
    assert evaluate.endswith("--trust-code my_mod:images")
    assert code_of({"optim": {"name": "timm:lion"}}) == []


def test_the_command_for_a_network_names_what_is_recorded(tmp_path):
    folder = make_network(tmp_path / "test-resnet", model="resnet8", normalisation={"mean": [0.5, 0.4], "std": None})
    (run,) = read_runs([folder])
    assert repeat_commands(run) == [
        "robustill evaluate resnet.pth --model resnet8 --model.mean 0.5,0.4 --data digits --suite pgd --seed 0 "
        "--threat linf:0.2"
    ]


def test_another_run_is_evaluated_like_the_others(two_runs, tmp_path):
    teacher = read_run(make_run(tmp_path / "t", method={"name": "at"}, eps=0.15, evaluations=()), "teacher")
    main = read_run(two_runs[0], "akd").main
    command = like_main_command(teacher, main)
    assert command == f"robustill evaluate {tmp_path}/t --suite pgd --seed 0 --threat linf:0.2"


def test_what_is_missing_is_named_with_the_command_that_adds_it(tmp_path):
    path = make_run(tmp_path / "run", method={"name": "at"})
    assert list(missing_notes(read_run(path, "run"))) == []
    (path / "metrics.jsonl").unlink()
    assert [kind for kind, _ in missing_notes(read_run(path, "run"))] == ["metrics"]
    bare = make_run(tmp_path / "bare", method={"name": "at"}, evaluations=())
    note = f"run has not been evaluated: run robustill evaluate {bare}"
    assert list(missing_notes(read_run(bare, "run"))) == [("evaluation", note)]


def test_a_network_misses_no_training(tmp_path):
    (run,) = read_runs([make_network(tmp_path / "net")])
    assert list(missing_notes(run)) == []


def test_the_first_images_are_evaluated_again_as_the_first(tmp_path):
    path = make_run(
        tmp_path / "at",
        method={"name": "at"},
        evaluations=("test-best-pgd",),
        of_images=797,
        selection="first 500 of 797",
    )
    run = read_run(path, "run")
    assert run.main.images == "the first 500 test images"
    command = f"robustill evaluate {path}-again --checkpoint best --suite pgd --first 500 --seed 0"
    assert repeat_commands(run)[1] == command
    assert "the first 500 of 797 test images, a subset" in condition_parts(run.main)
