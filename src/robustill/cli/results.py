"""The commands for what has been trained: `report`, `difficulty`, `transfer` and `export`."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import cyclopts

from robustill.cli.parameters import TrustCode, check_options, completing
from robustill.core.errors import RobustillError, printable

DifficultyTarget = Annotated[
    Path,
    cyclopts.Parameter(
        help="A run directory, whose training and evaluations give the scores of difficulty; the folder of one "
        "evaluation; or a table of scores (.csv with the columns id, label and one for each score)."
    ),
]
UncertaintyFiles = Annotated[
    list[Path],
    cyclopts.Parameter(
        consume_multiple=True,
        help="Files of human annotations, in the order of the data set's images: CIFAR-10H (.npz with counts) or "
        "verified label errors (.json) for the test images, CIFAR-10N (.npz with clean_label, aggre_label ...) for the "
        "training images.",
    ),
]
TransferNetworks = Annotated[
    str,
    cyclopts.Parameter(
        allow_leading_hyphen=True,
        help="At least two networks: run directories (their best epoch), run:DIR@last, robustbench:ID ... The first "
        "run gives the data and the threat; settings of data, threat and compute that replace them may follow: "
        "--threat linf:4/255 ...",
    ),
]
TransferFolder = Annotated[
    Path,
    cyclopts.Parameter(
        help="Folder for the records, the matrix of accuracies as Markdown, CSV and SVG, and the agreement of each "
        "pair; `robustill report --transfer` shows them."
    ),
]
ExportPath = Annotated[
    Path,
    cyclopts.Parameter(
        help="NAME.pt2; NAME.onnx (with the extra `export`); or a new folder for model.safetensors, config.json and "
        "README.md, which hf:FOLDER loads."
    ),
]
ModelOverrides = Annotated[
    str,
    cyclopts.Parameter(
        allow_leading_hyphen=True, help="The architecture of a file of weights: --model resnet18 --model.width 16 ..."
    ),
]


def report(
    *runs: Path,
    out: Path = Path("report.html"),
    figures: Path | None = None,
    transfer: Path | None = None,
    teachers: Path | None = None,
) -> None:
    """Write one self-contained HTML page from runs, studies and evaluations of networks without a run.

    Students are compared with the runs without teachers or, if there are
    none, with the first run. Runs that differ in their seed alone are one
    row of the ranked table.

    Parameters
    ----------
    runs
        Run directories; folders of evaluations, such as evaluations/NAME of `robustill evaluate WEIGHTS`; folders of
        studies; or folders that hold any of these.
    out
        File for the page.
    figures
        Folder for every figure of the page as SVG and PDF for a paper, with its data as CSV, and for the ranked table
        as ranking.csv and ranking.tex.
    transfer
        Folder written by `robustill transfer`, to be shown on the page as well.
    teachers
        Folder written by `robustill teachers rank`, to be shown on the page as well.
    """
    from robustill.report import report as write_report
    from robustill.runs.tracking import tracked

    page = write_report(runs, out, figures=figures, transfer=transfer, teachers=teachers)
    print(f"wrote {printable(str(page))}")
    if figures is not None:
        print(f"wrote {printable(str(figures))}")
    for run in runs:
        with tracked(run) as followed:
            if followed is not None:
                followed.add_page(page)


def difficulty(target: DifficultyTarget, *, uncertainty: UncertaintyFiles, out: Path | None = None) -> None:
    """Compare which images a run finds difficult with human annotations: their uncertainty and label errors.

    Parameters
    ----------
    out
        File for the numbers as .csv.
    """
    from robustill.analysis.human_agreement import agreement_rows, check_difficulty
    from robustill.cli.tables import difficulty_table
    from robustill.core.files import write_text
    from robustill.core.formatting import csv_text
    from robustill.core.outputs import check_output_file

    header = csv_text(itertools.islice(agreement_rows([]), 1)).encode()
    if out is not None:
        check_output_file(out, lambda head: head.startswith(header), "table of `robustill difficulty`", "--out")
    agreements = check_difficulty(target, uncertainty)
    difficulty_table(agreements)
    if out is not None:
        write_text(out, csv_text(agreement_rows(agreements)))
        print(f"wrote {printable(str(out))}")


def transfer(
    *networks: TransferNetworks,
    suite: Annotated[str, cyclopts.Parameter(completer=completing("suites"))] = "pgd",
    split: Literal["train", "test"] = "test",
    num_images: int = 500,
    batch_size: int = 256,
    seed: int = 0,
    out: TransferFolder = Path("transfer"),
    trust_code: TrustCode = None,
) -> None:
    """Evaluate every network on the adversarial images of every other one, and measure how often they agree.

    Parameters
    ----------
    suite
        Attacks; see `robustill list suites`.
    split
        Images to attack.
    num_images
        Largest number of images, class-balanced. A subset is named as such in every result.
    batch_size
        Number of images at a time.
    seed
        Random seed of the attacks and of the choice of images.
    """
    check_options(networks, ["suite", "split", "num_images", "batch_size", "seed", "out"])
    from robustill.cli.tables import transfer_table
    from robustill.evaluation.transfer import transfer_specs
    from robustill.report.transfer import check_output_folder, write_transfer

    check_output_folder(out)
    num_specs = next((index for index, word in enumerate(networks) if word.startswith("--")), len(networks))
    records = transfer_specs(
        networks[:num_specs],
        overrides=networks[num_specs:],
        split=split,
        suite=suite,
        num_images=num_images,
        batch_size=batch_size,
        seed=seed,
        trust_code=trust_code or (),
    )
    write_transfer(records, out)
    transfer_table(records)
    print(f"wrote {printable(str(out))}")


def deploy_report(*evaluations: Path, out: Path = Path("deploy")) -> None:
    """Compare files that were attacked as they are shipped: robust accuracy against bytes and milliseconds.

    Parameters
    ----------
    evaluations
        Folders of records of `robustill evaluate FILE.onnx --suite deployed`, or folders that hold some.
    out
        Folder for the table as Markdown and CSV, and for the figure as SVG.
    """
    from robustill.cli.tables import shipped_table
    from robustill.report.deployment import check_output_folder, read_shipped, write_deployment

    check_output_folder(out)
    files = read_shipped(evaluations)
    write_deployment(files, out)
    shipped_table(files)
    print(f"wrote {printable(str(out))}")


@cyclopts.Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The options of `export`; the text of a field is its help on the command line."""

    calibrated: bool = False
    """Divide the logits by a temperature that is fitted on the validation images of the run. Predictions stay the same,
    and confidences come closer to the share of right ones."""
    int8: Annotated[
        bool,
        cyclopts.Parameter(
            negative="",
            help="For NAME.onnx: int8 weights and activations, calibrated on held-out training images of the run, or "
            "of --data NAME for another network. Attack the file: `robustill evaluate NAME.onnx --suite deployed`.",
        ),
    ] = False
    push: Annotated[
        str | None,
        cyclopts.Parameter(
            help="OWNER/NAME on the Hugging Face hub: upload the folder there (with the extra `hub`), after its card "
            "and its metadata were checked. robustill.from_pretrained reads it back."
        ),
    ] = None
    num_classes: int | None = None
    """For timm:NAME=FILE, files of weights and import paths: the number of classes."""
    in_channels: int = 3
    """For these: the number of channels of an image."""
    image_size: int | None = None
    """For these: the side of an image in pixels."""
    download: bool = False
    """Allow hf:OWNER/NAME and timm:NAME to be downloaded."""
    trust_code: TrustCode = None


def export(
    network: str,
    out: ExportPath | None = None,
    *overrides: ModelOverrides,
    options: ExportOptions = ExportOptions(),
) -> None:
    """Export a network: as a folder with a model card, as a torch.export program, or as ONNX.

    The export is read back and compared with the network before it is kept.
    `robustill evaluate` attacks it: hf:FOLDER, NAME.pt2 or NAME.onnx.

    Parameters
    ----------
    network
        A run directory (its best epoch), run:DIR@last, run:DIR@epoch-20 ...; hf:FOLDER, robustbench:ID, timm:NAME=FILE,
        a file of weights with --model NAME, a .pt2 file, or my_pkg.my_mod:build.
    """
    check_options(overrides, [each.name for each in fields(ExportOptions)])
    if options.push is None:
        if out is None:
            raise RobustillError("export needs a file or a folder to write, or --push OWNER/NAME")
        _export(network, out, overrides, options)
        return
    from robustill.models.sharing import check_repository, push_folder

    repository = check_repository(options.push)
    if out is not None and out.suffix in (".pt2", ".onnx"):
        raise RobustillError(f"--push uploads a folder, and {out} is a file: give a name without {out.suffix}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / repository.rpartition("/")[2] if out is None else out
        _export(network, folder, overrides, options)
        print(f"pushed to {push_folder(folder, repository)}")


def _export(network: str, out: Path, overrides: Sequence[str], options: ExportOptions) -> None:
    """Write the export, and print what it is."""
    from robustill.config.overrides import apply_overrides
    from robustill.evaluation.export import export as export_file
    from robustill.evaluation.targets import is_network_spec
    from robustill.models.loading import Shape
    from robustill.models.weights import refuse_other_format

    is_run = network.startswith("run:") or not is_network_spec(network)
    spec = f"run:{network}" if is_run and not network.startswith("run:") else network
    trust = options.trust_code or ()
    settings = apply_overrides({"model": {"name": None}}, overrides)
    used = ("model", "data") if options.int8 else ("model",)
    if others := [key for key in settings if key not in used]:
        needs = " without --int8" if others[0] == "data" else ""
        raise RobustillError(
            f"--{others[0]} has no effect on an export{needs}: expected --model NAME or --model.OPTION"
        )
    model_options = settings["model"]
    name = model_options.pop("name")
    shape = None
    if options.num_classes is not None and options.image_size is not None:
        size = (options.image_size, options.image_size)
        shape = Shape(num_classes=options.num_classes, in_channels=options.in_channels, image_size=size)
    elif not is_run and network.partition(":")[0] not in ("hf", "robustbench"):
        refuse_other_format(Path(network))
        raise RobustillError(f"{network} does not say which images it takes: give --num-classes and --image-size")
    exported, calibration = export_file(
        spec,
        out,
        calibrated=options.calibrated,
        int8=options.int8,
        data=settings.get("data"),
        shape=shape,
        name=name,
        options=model_options or None,
        download=options.download,
        progress=True,
        trust_code=trust,
    )
    print(f"wrote {printable(str(out))}: {exported.architecture}, sha256 {exported.sha256}")
    if out.suffix == ".onnx":
        _print_model(out)
    if calibration is not None:
        before, after = calibration.ece
        print(
            f"temperature {calibration.temperature:.4g}, fitted on {calibration.images}: ECE {before:.3f} before, "
            f"{after:.3f} after"
        )


def _print_model(file: Path) -> None:
    """Print how an exported ONNX model differs from the network in float32, its size and its latency."""
    from robustill.core.formatting import describe_deployment
    from robustill.models.card import Quantisation
    from robustill.models.onnx import exported_facts

    facts = exported_facts(file.read_bytes())
    if facts["quantisation"] is not None:
        print(f"int8, {Quantisation(**facts['quantisation'])}")
        print(f"its robust accuracy is its own: robustill evaluate {printable(str(file))} --suite deployed ...")
    print(describe_deployment({**facts["deployment"], "bytes": file.stat().st_size}))
