"""`robustill difficulty`, `transfer` and `report`."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers.command_line import Call
from helpers.small_runs import small_config
from robustill.models import build as build_model
from robustill.models.example import FOLDER
from robustill.models.loading import load_network
from robustill.training.loop import train


def test_difficulty_is_compared_with_human_labels(call: Call, tmp_path: Path) -> None:
    labels = np.arange(30) % 3
    np.savez(tmp_path / "said.npz", clean_label=labels, worse_label=np.where(labels == 1, 2, labels))
    (tmp_path / "scores.csv").write_text(
        "id,label,hard\n" + "".join(f"{i},{i % 3},{i % 3 == 1:d}\n" for i in range(30))
    )
    words = ["difficulty", str(tmp_path / "scores.csv"), "--uncertainty", str(tmp_path / "said.npz")]
    code, out, _ = call(*words, "--out", str(tmp_path / "found.csv"))
    assert code == 0
    assert re.search(r"hard +1\.000 +1\.000–1\.000 +1\.000", out)
    assert "worse_label differs,scores.csv,hard,30,,,,10,1.0,1.0,1.0,1.0" in (tmp_path / "found.csv").read_text()
    (tmp_path / "said.npz").write_bytes(b"PK")
    code, out, err = call(*words)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "said.npz: damaged" in err
    assert call("difficulty", str(tmp_path), "--uncertainty", str(tmp_path / "nowhere.npz"))[0] == 2


def test_a_transfer_is_printed_and_shown_in_the_report(
    call: Call, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    words = ["--num-images", "20", "--suite", "pgd-20", "--out", str(tmp_path / "t"), "--threat", "linf:0.05"]
    code, out, _ = call("transfer", "run", "run:run@epoch-1", *words)
    assert code == 0
    assert re.search(r"2 run@epoch-1 +[01]\.[0-9]{3} +[01]\.[0-9]{3}", out)
    assert "20 images, a subset of 500; linf:0.05; suite pgd-20" in out
    # What was found about a network is said in this table, too.
    assert "! run is no better than guessing among 10 classes" in out
    code, _, _ = call("report", "run", "--transfer", str(tmp_path / "t"), "--out", str(tmp_path / "page.html"))
    assert code == 0
    assert "run@epoch-1" in (tmp_path / "page.html").read_text()


def test_a_calibrated_export_states_its_temperature(call: Call, tmp_path: Path) -> None:
    # It learns, so that its confidence means something.
    data, model = {"train_size": 300, "validation": 60}, {"width": 8}
    run = tmp_path / "run"
    train(small_config(data=data, model=model, threat={"eps": 0.02}, optim={"epochs": 4}), run, progress=False)
    code, out, _ = call("export", str(run), str(tmp_path / "net"), "--calibrated")
    assert code == 0
    found = re.search(r"^temperature ([0-9.]+), fitted on 60 clean validation images: ECE (.*) before", out, re.M)
    assert found is not None
    x = torch.rand(9, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    given, written = (load_network(spec).module(x) for spec in (f"run:{run}", f"hf:{tmp_path / 'net'}"))
    torch.testing.assert_close(written * float(found[1]), given, rtol=1e-3, atol=1e-3)
    assert f"ECE was {found[2]}" in (tmp_path / "net" / "README.md").read_text()
    code, out, err = call("export", str(run), str(tmp_path / "net"), "--calibrated")
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_a_file_is_exported_with_its_architecture_and_pushed_on_request_alone(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, pushed = tmp_path / "net.safetensors", []
    save_file(build_model("resnet8", num_classes=4, in_channels=1, image_size=8, seed=0, width=2).state_dict(), file)
    words = [str(file), "--model", "resnet8", "--model.width", "2"]
    size = ["--num-classes", "4", "--in-channels", "1", "--image-size", "8"]
    assert "give --num-classes and --image-size" in call("export", *words, "--out", str(tmp_path / "no"))[2]
    code, out, _ = call("export", str(file), str(tmp_path / "net"), *words[1:], *size)
    assert (code, f"wrote {tmp_path / 'net'}: resnet8 width=2" in out) == (0, True)
    monkeypatch.setattr("robustill.models.sharing._import_hub", lambda: None)
    monkeypatch.setattr(
        "robustill.models.sharing.push_folder",
        lambda folder, name: (
            pushed.append((folder.name, name, sorted(each.name for each in folder.iterdir()))) or "there"
        ),
    )
    code, out, _ = call("export", f"hf:{tmp_path / 'net'}", "--push", "owner/small")
    assert (code, "pushed to there" in out) == (0, True)
    assert pushed == [("small", "owner/small", ["README.md", "config.json", "model.safetensors"])]
    for more, message in (([], "or --push OWNER/NAME"), (["--push", "small"], "expected OWNER/NAME")):
        code, _, err = call("export", f"hf:{tmp_path / 'net'}", *more)
        assert (code, message in err) == (2, True)


@pytest.mark.slow
def test_an_int8_file_is_exported_attacked_and_compared(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FOLDER / "student", "student")
    code, out, _ = call("export", "hf:student", "small.onnx", "--int8", "--data", "digits")
    assert code == 0
    size = (tmp_path / "small.onnx").stat().st_size
    assert "int8, calibrated on 65 training images of digits, seed 0; on 65 others it predicts as float32 does" in out
    assert f"{size:,} bytes; " in out
    words = ["small.onnx", "--data", "digits", "--threat", "linf:0.15", "--suite", "deployed", "--num-images", "10"]
    code, out, _ = call("evaluate", *words, "--no-eps-curve")
    assert code == 0
    assert "attacked as shipped: small.onnx" in out
    # The file names the folder that it was exported from.
    assert "gradient of hf:student" in out
    code, out, _ = call("deploy-report", "evaluations", "--out", "deploy")
    assert code == 0
    assert "small.onnx" in out
    assert {each.name for each in (tmp_path / "deploy").iterdir()} == {"deploy.md", "deploy.csv", "deploy.svg"}
    for command, line in (
        (["export", "hf:student", "x.onnx", "--int8"], "does not say on which images to calibrate its int8 model"),
        (["export", "hf:student", "x.onnx", "--data", "digits"], "--data has no effect on an export without --int8"),
        (["export", "hf:student", "x", "--int8", "--data", "digits"], "x cannot be quantised to int8"),
        (["evaluate", *words[:5]], "small.onnx has no gradient, which suite pgd needs: take --suite deployed"),
        (["deploy-report", "student"], "student: no file was attacked as it is shipped there"),
    ):
        code, out, err = call(*command)
        assert (code, out, err.count("\n")) == (2, "", 1), command
        assert line in err
