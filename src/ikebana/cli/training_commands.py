"""The commands from photos to a run: audit, fit, sweep, and report and compare."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from ikebana.cli.app import (
    DEFAULT_OUTPUT,
    EXIT_DONE,
    EXIT_LEAKAGE,
    EXIT_REFUSED,
    SPLIT,
    Device,
    Integer,
    Output,
    Switch,
    app,
)
from ikebana.cli.options import RecipeName, RecipeOptions, parse_options
from ikebana.errors import UsageError
from ikebana.system import progress
from ikebana.system.launch import read_launch

Log = Annotated[tuple[Literal["tensorboard", "mlflow"], ...], Parameter(negative=(), show_default=False)]
Advise = Annotated[
    bool, Parameter(negative=(), help="also recommend how much of a network to train on these photos, and the command")
]


@app.command(sort_key=1)
def audit(
    photos: str,
    *,
    advise: Advise = False,
    out: Path | None = None,
    write: Path | None = None,
    drop: str = "",
    relabel: str = "",
    device: Device = "auto",
    backend: Literal["ray"] | None = None,
    output: Output = DEFAULT_OUTPUT,
) -> int:
    """Check a photo collection for problems before training.

    With --advise, also recommend how much of a network to train.

    Parameters
    ----------
    photos
        As for fit: a folder with one sub-folder per class, an archive of it, a table, or an address.
    out
        A folder for the report: index.html to look at, audit.json and findings.csv for programs.
    write
        A table of the photos for fit, such as cleaned.csv. Your photos are never changed.
    drop
        Findings whose photos are left out of that table, such as near_duplicate (one copy stays) or 'suspect_label>0.9'.
    relabel
        Findings whose photos get the suggested label, such as 'suspect_label>0.95'.
    backend
        Decode photos, compare them and extract features on the Ray cluster that this machine belongs to.
    """
    output.apply()
    progress.show_loading()
    if backend == "ray":
        from ikebana.cluster.audit import audit as run_audit
    else:
        from ikebana.commands.audit import audit as run_audit

    result = run_audit(
        photos, advise, out=out, write=write, drop=drop.split(","), relabel=relabel.split(","), device=device
    )
    command = result.recommendation.command if result.recommendation is not None else ""
    progress.event("done", leaks=len(result.leaks), command=command)
    if command or write is not None:
        progress.result(command or str(write))
    return EXIT_REFUSED if result.split_errors else EXIT_LEAKAGE if result.leaks else EXIT_DONE


@app.command(sort_key=2, usage="Usage: ikebana fit [OPTIONS] PHOTOS")
def fit(
    photos: str | None = None,
    *,
    recipe: RecipeName | Path | None = None,  # pyright: ignore[reportInvalidTypeForm]
    run: Path | None = None,
    resume: Path | None = None,
    split_seeds: Annotated[Integer | None, Parameter(group=SPLIT)] = None,
    split_from: Annotated[Path | None, Parameter(group=SPLIT)] = None,
    minutes: float | None = None,
    device: Device = "auto",
    robustness: Switch = False,
    watch: Switch = False,
    log: Log = (),
    options: Annotated[RecipeOptions, Parameter(name="*")] = RecipeOptions(),  # noqa: B008  # pyright: ignore[reportInvalidTypeForm]
    output: Output = DEFAULT_OUTPUT,
) -> None:
    """Train a classifier on labelled photos and score it on photos it has never seen.

    Parameters
    ----------
    photos
        A folder with one sub-folder per class (or with train, validation and test folders of these), a .zip or .tar
        archive of it, a .csv or .parquet table with the columns path and label, or an address such as
        s3://bucket/folder.
    recipe
        What to train and how: a name, or the recipe.json of a run to repeat it. Default: quick. The flags below
        change single options of it.
    run
        The folder to write. Default: runs/<recipe>-<short hash>.
    resume
        Continue this interrupted run, without flags that change the recipe. --photos gives the new place of photos that
        moved. With --robustness, measure it for this run, also if it is finished.
    split_seeds
        Repeat the run on this many splits, with split seeds 0, 1, ..., and report the mean and spread of the accuracy.
        --run is then a folder of runs.
    split_from
        An earlier run, whose photos stay in their split. New photos are for training and validation, so that compare can
        say whether they helped.
    minutes
        Instead of --recipe: choose the most accurate of quick, good and best that is expected to fit.
    robustness
        After scoring, also measure the accuracy on changed test photos: blurred, noisy, saved with low JPEG quality,
        darker, brighter and rotated, at five strengths. At most 200 photos are used.
    watch
        Show the training on a web page while it runs. Its address is printed; it works on this machine only.
    log
        Also log recipe, epochs and scores to TensorBoard or MLflow; repeat it for both.
    """
    output.apply()
    launch = read_launch()
    if not launch.is_leader:
        progress.set_reporter(progress.WorkerReporter(str(launch)))
    progress.show_loading()
    from ikebana.commands import fit as fit_command

    if resume is not None:
        if (
            recipe
            or run
            or device != "auto"
            or split_seeds is not None
            or split_from
            or minutes is not None
            or parse_options(options)
        ):
            raise UsageError("a resumed run has its own options", advice=f"ikebana fit --resume {resume}")
        folder = fit_command.resume(resume, photos=photos, robustness=robustness, watch=watch, log=log).folder
    elif photos is None:
        raise UsageError("no photos were given", advice="ikebana fit PHOTOS, or ikebana fit --resume RUN")
    elif split_seeds is not None and (split_from or minutes is not None):
        other = "--split-from" if split_from else "--minutes"
        raise UsageError(f"--split-seeds and {other} exclude each other", advice="one of them")
    elif split_seeds is not None:
        from ikebana.commands.fit_splits import fit_splits
        from ikebana.tracking.follow import follow

        given = parse_options(options)
        more = {"device": device, "robustness": robustness, **given}
        with follow(watch=watch, log=log):
            folder = fit_splits(photos, recipe, splits=split_seeds, run=run, **more).folder
    else:
        more = {"device": device, "robustness": robustness, "split_from": split_from, "minutes": minutes}
        more |= {"watch": watch, "log": log, **parse_options(options)}
        folder = fit_command.fit(photos, recipe, run=run, **more).folder
    progress.event("done", run=str(folder))
    progress.result(str(folder))


@app.command(sort_key=3)
def report(
    run: Path,
    *,
    out: Path | None = None,
    heat_maps: Switch = False,
    output: Output = DEFAULT_OUTPUT,
) -> None:
    """Write one page about a run: its scores, its mistakes and what to do next.

    fit writes it too. The page is one file that loads nothing from elsewhere.

    Parameters
    ----------
    run
        The folder that fit wrote. The photos are not needed.
    out
        The file to write. Default: report.html in the run's folder.
    heat_maps
        Also show which parts of the worst mistakes spoke for the predicted class. Takes about ten seconds.
    """
    output.apply()
    from ikebana.commands.report import report as write_report

    file = write_report(run, out, heat_maps=heat_maps)
    progress.event("done", report=str(file))
    progress.result(str(file))


@app.command(sort_key=4, usage="Usage: ikebana compare [OPTIONS] RUN RUN...")
def compare(
    *runs: Path,
    out: Path | None = None,
    output: Output = DEFAULT_OUTPUT,
) -> None:
    """Compare runs on the same test photos: better, worse, or a tie.

    Parameters
    ----------
    runs
        Run folders, or folders of runs.
    out
        A page to write, such as comparison.html, with the photos on which the runs differ.
    """
    output.apply()
    from ikebana.commands.compare import compare

    comparison = compare(*runs, out=out)
    progress.result(repr(comparison))
    progress.event("done", out=str(out or ""))


@app.command(sort_key=5)
def sweep(
    photos: str,
    *,
    recipes: str = "quick,good",
    seeds: Integer = 1,
    split_seeds: Annotated[Integer, Parameter(group=SPLIT)] = 1,
    out: Path | None = None,
    minutes: float | None = None,
    device: Device = "auto",
    watch: Switch = False,
    log: Log = (),
    backend: Literal["ray"] | None = None,
    options: Annotated[RecipeOptions, Parameter(name="*")] = RecipeOptions(),  # noqa: B008  # pyright: ignore[reportInvalidTypeForm]
    output: Output = DEFAULT_OUTPUT,
) -> int:
    """Train several recipes with several seeds on several splits, and compare them.

    After an interruption, the same command with --out resumes.

    Parameters
    ----------
    photos
        As for fit: a folder with one sub-folder per class, an archive of it, a table, or an address.
    recipes
        Names or recipe.json files, separated by commas.
    seeds
        Train each recipe with this many seeds: 0, 1, ...
    split_seeds
        Train each recipe on this many splits, with split seeds 0, 1, ...
    out
        The folder to write, with one run folder each, sweep.json and comparison.html. Default: runs/sweep-<short hash>.
    minutes
        Train as many rounds of one run per recipe as are expected to fit, and leave out recipes that do not fit.
    watch
        Show the current run on a web page. Its address is printed; it works on this machine only.
    log
        Also log recipe, epochs and scores of each run to TensorBoard or MLflow; repeat it for both.
    backend
        Train the runs on the Ray cluster that this machine belongs to, one per node or GPU at a time.
    """
    output.apply()
    progress.show_loading()
    if backend == "ray":
        from ikebana.cluster.sweep import sweep
    else:
        from ikebana.commands.sweep import sweep

    given = parse_options(options)
    names = [name.strip() for name in recipes.split(",") if name.strip()]
    given |= {"device": device, "watch": watch, "log": log}
    result = sweep(photos, names, seeds=seeds, split_seeds=split_seeds, out=out, minutes=minutes, **given)
    progress.event("done", out=str(result.folder), failures=len(result.failures))
    progress.result(str(result.folder))
    return EXIT_REFUSED if result.failures else EXIT_DONE
