"""Verbs of the command line for what is trained already: pages, comparisons, files for others."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Literal

import cyclopts

from robustill.cli.parameters import TargetOverrides, TrustCode
from robustill.core.errors import printable


def report(
    *runs: Path, out: Path = Path("report.html"), figures: Path | None = None, transfer: Path | None = None
) -> None:
    """Write one self-contained page from one or many run directories.

    Parameters
    ----------
    runs
        Run directories; the page compares students with the runs without teachers, or, without these, with the first.
    out
        The page.
    figures
        A folder for every figure of the page as SVG and PDF for a paper, with the data behind it as CSV.
    transfer
        A folder that `robustill transfer` made, to be shown too.
    """
    from robustill.report import report as write_report

    print(f"wrote {printable(str(write_report(runs, out, figures=figures, transfer=transfer)))}")
    if figures is not None:
        print(f"wrote {printable(str(figures))}")


def difficulty(
    target: Path,
    *,
    uncertainty: Annotated[list[Path], cyclopts.Parameter(consume_multiple=True)],
    out: Path | None = None,
) -> None:
    """Say whether what a run finds hard is what people find hard, and whether it finds label errors.

    Parameters
    ----------
    target
        A run directory, whose training and evaluations give the scores; the folder of one evaluation; or a table of
        scores (.csv: id, label, scores).
    uncertainty
        Files of what people said, in the data set's own order of images: CIFAR-10H (.npz with counts) and checked label
        errors (.json) of the test images, CIFAR-10N (.npz with clean_label, aggre_label ...) of the training images.
    out
        Also write the numbers as a .csv here.
    """
    from robustill.analysis.human_agreement import agreement_rows, check_difficulty
    from robustill.cli.tables import difficulty_table
    from robustill.core.files import write_text
    from robustill.core.formatting import csv_text
    from robustill.core.outputs import check_output_file

    header = csv_text(itertools.islice(agreement_rows([]), 1)).encode()
    if out is not None:
        check_output_file(out, lambda head: head.startswith(header), "table of `robustill difficulty`", "--out")
    found = check_difficulty(target, uncertainty)
    difficulty_table(found)
    if out is not None:
        write_text(out, csv_text(agreement_rows(found)))
        print(f"wrote {printable(str(out))}")


def transfer(
    *networks: TargetOverrides,
    suite: str = "pgd",
    split: Literal["train", "test"] = "test",
    num_images: int = 500,
    batch_size: int = 256,
    seed: int = 0,
    out: Path = Path("transfer"),
    trust_code: TrustCode = None,
) -> None:
    """Show the adversarial images made against each network to all of them, and say how alike they answer.

    Parameters
    ----------
    networks
        Run directories (their best epoch), run:DIR@last, robustbench:ID ...; data and threat are of the first run,
        and settings of data, threat and compute may follow: --threat linf:4/255 ...
    suite
        The attacks, see `robustill list suites`.
    split
        Which images.
    num_images
        At most so many, class-balanced; always labelled as such.
    batch_size
        Images at a time.
    seed
        Of the random starts and of the part.
    out
        A folder for the records, the matrix as Markdown, CSV and SVG, and how alike each pair is; `report --transfer`
        shows them.
    """
    from robustill.cli.tables import transfer_table
    from robustill.evaluation.transfer import transfer_specs
    from robustill.report.transfer import check_place, write_transfer

    check_place(out)
    first = next((place for place, word in enumerate(networks) if word.startswith("--")), len(networks))
    records = transfer_specs(
        networks[:first],
        overrides=networks[first:],
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


def export(run: str, out: Path, *, trust_code: TrustCode = None) -> None:
    """Write a trained network for others: a folder with a card of its robustness, a program of torch.export, or ONNX.

    It is read back and compared before it is kept; `robustill evaluate hf:OUT ...` (or NAME.pt2) attacks it.

    Parameters
    ----------
    run
        A run directory (its best epoch), or run:DIR@last, run:DIR@epoch-20 ...
    out
        NAME.pt2, NAME.onnx (with the extra `export`), or a folder that is not there yet: model.safetensors, config.json
        and README.md, for hf:FOLDER.
    """
    from robustill.models.export import export_network

    written = export_network(run if run.startswith("run:") else f"run:{run}", out, trust_code=trust_code or ())
    print(f"wrote {printable(str(out))}: {written.architecture}, sha256 {written.sha256}")
