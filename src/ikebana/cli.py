"""The command line; the flags of `fit` and `serve` come from Recipe and Limits."""

import csv
import signal
import sys
from dataclasses import asdict, dataclass, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import App, Group, Parameter
from cyclopts.exceptions import CycloptsError

from ikebana.errors import IkebanaError, UsageError
from ikebana.recipe import list_options
from ikebana.recipes import RECIPES
from ikebana.serving.limits import Limits
from ikebana.system import process, progress
from ikebana.system.usage import translate_parser_error, unwrap_descriptions

EXIT_DONE, EXIT_REFUSED, EXIT_WRONG_USAGE, EXIT_LEAKAGE = 0, 1, 2, 3
EXIT_INTERRUPTED, EXIT_BROKEN_PIPE, EXIT_TERMINATED = 130, 141, 143

app = App(
    name="ikebana",
    help="From a folder of labelled photos to an image classifier that its owner can trust and ship.",
    version_flags=["--version"],
    help_format="plaintext",
    result_action="return_value",
    # `main` distinguishes Ctrl-C from SIGTERM.
    suppress_keyboard_interrupt=False,
)
RecipeName = Literal[tuple(RECIPES)]  # type: ignore[valid-type]
Switch = Annotated[bool, Parameter(negative=())]
TRAINING, NETWORK, SPLIT, CONFIDENCE, SECURITY, LIMITS, OUTPUT = (
    Group(name, sort_key=number)
    for number, name in enumerate(
        ("Training", "Network and images", "Split", "Confidence", "Security", "Limits", "Output"), 1
    )
)
OPTION_GROUPS = {
    **dict.fromkeys(("network", "weights", "truncate_at", "image_size", "resize", "dropout"), NETWORK),
    **dict.fromkeys(("split", "split_seed", "split_fractions", "class_order"), SPLIT),
    **dict.fromkeys(("coverage", "at_most_wrong"), CONFIDENCE),
}
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    Parameter(help="where to compute: auto uses a GPU if torch can use one", group=TRAINING),
]


@dataclass(frozen=True)
class OutputOptions:
    """Flags that every command has."""

    quiet: Annotated[
        bool,
        Parameter(negative=(), group=OUTPUT, show_default=False, help="print only warnings, errors and the result"),
    ] = False
    json: Annotated[
        bool,
        Parameter(
            negative=(), group=OUTPUT, show_default=False, help="print one JSON event per line on standard output"
        ),
    ] = False

    def apply(self) -> None:
        """Choose the reporter."""
        if self.quiet and self.json:
            raise UsageError("--quiet and --json exclude each other", advice="one of them")
        if self.json:
            progress.set_reporter(progress.JsonReporter())
        elif self.quiet:
            progress.set_reporter(progress.QuietReporter())


Output = Annotated[OutputOptions, Parameter(name="*")]
DEFAULT_OUTPUT = OutputOptions()
Advise = Annotated[
    bool, Parameter(negative=(), help="also recommend how much of a network to train on these photos, and the command")
]


def _flag_type(field: Any) -> Any:
    """Return the type of a recipe field's flag.

    Tuples and percentages are parsed from text; None keeps the recipe's value.
    """
    flag_type = _get_plain_type(field)
    return (str if get_origin(flag_type) is tuple or field.metadata["is_text"] else flag_type) | None


def _get_plain_type(field: Any) -> Any:
    """Return a field's type without pydantic's constraints."""
    return get_args(field.type)[0] if get_origin(field.type) is Annotated else field.type


def _make_flags_class(name: str, flags: list[tuple[str, Any, Any]]) -> type[Any]:
    """Make a dataclass for cyclopts from (name, type, default) per flag."""
    flags_class = make_dataclass(name, flags, frozen=True)
    # Otherwise cyclopts takes it for a class of Python's own and does not expand it.
    flags_class.__module__ = __name__
    return flags_class


def _annotate(flag_type: Any, field: Any, group: Group, **settings: Any) -> Any:
    return Annotated[flag_type, Parameter(help=field.metadata["explanation"], group=group, **settings)]


_OPTION_FIELDS = list(list_options().values())
RecipeOptions = _make_flags_class(
    "RecipeOptions",
    [
        (field.name, _annotate(_flag_type(field), field, OPTION_GROUPS.get(field.name, TRAINING), negative=()), None)
        for field in _OPTION_FIELDS
    ],
)
LimitOptions = _make_flags_class(
    "LimitOptions",
    [(field.name, _annotate(_get_plain_type(field), field, LIMITS), field.default) for field in fields(Limits)],
)


def _parse_options(options: Any) -> dict[str, Any]:
    """Return the flags that were given, with the recipe's types."""
    values = {field.name: getattr(options, field.name) for field in _OPTION_FIELDS}
    types = {field.name: _get_plain_type(field) for field in _OPTION_FIELDS}
    tuples = {name: declared for name, declared in types.items() if get_origin(declared) is tuple}
    given = {name: value for name, value in values.items() if value is not None}
    return {name: _parse_tuple(name, value, tuples[name]) if name in tuples else value for name, value in given.items()}


def _parse_tuple(name: str, text: str, declared: Any) -> tuple[Any, ...]:
    """Parse A,B,C as a CSV row, so an entry with a comma can be quoted."""
    try:
        [entries] = csv.reader([text], skipinitialspace=True)
        return tuple(declared.__args__[0](entry.strip()) for entry in entries)
    except ValueError:
        raise UsageError(
            f"--{name.replace('_', '-')} {text!r} is not a list of numbers", advice="0.6,0.2,0.2"
        ) from None


@app.command(sort_key=2)
def fit(
    photos: str | None = None,
    *,
    recipe: RecipeName | Path | None = None,  # pyright: ignore[reportInvalidTypeForm]
    run: Path | None = None,
    resume: Path | None = None,
    split_seeds: Annotated[int | None, Parameter(group=SPLIT)] = None,
    split_from: Annotated[Path | None, Parameter(group=SPLIT)] = None,
    minutes: float | None = None,
    device: Device = "auto",
    robustness: Switch = False,
    watch: Switch = False,
    log: Annotated[tuple[Literal["tensorboard", "mlflow"], ...], Parameter(negative=(), show_default=False)] = (),
    options: Annotated[RecipeOptions, Parameter(name="*")] = RecipeOptions(),  # noqa: B008  # pyright: ignore[reportInvalidTypeForm]
    output: Output = DEFAULT_OUTPUT,
) -> None:
    """Train a classifier on labelled photos and score it on photos it has never seen.

    Parameters
    ----------
    photos
        A folder with one sub-folder per class (or with train, validation and test folders of these), a .zip or .tar
        archive of it, or a .csv or .parquet table with the columns path and label.
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
            or _parse_options(options)
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

        given = _parse_options(options)
        more = {"device": device, "robustness": robustness, **given}
        with follow(watch=watch, log=log):
            folder = fit_splits(photos, recipe, splits=split_seeds, run=run, **more).folder
    else:
        more = {"device": device, "robustness": robustness, "split_from": split_from, "minutes": minutes}
        more |= {"watch": watch, "log": log, **_parse_options(options)}
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
        Also show which parts of the worst mistakes spoke for the predicted class. Takes about half a minute.
    """
    output.apply()
    from ikebana.commands.report import report as write_report

    file = write_report(run, out, heat_maps=heat_maps)
    progress.event("done", report=str(file))
    progress.result(str(file))


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
    output: Output = DEFAULT_OUTPUT,
) -> int:
    """Check a photo collection for problems before training.

    With --advise, also recommend how much of a network to train.

    Parameters
    ----------
    photos
        As for fit: a folder with one sub-folder per class, an archive of it, or a table.
    out
        A folder for the report: index.html to look at, audit.json and findings.csv for programs.
    write
        A table of the photos for fit, such as cleaned.csv. Your photos are never changed.
    drop
        Findings whose photos are left out of that table, such as near_duplicate (one copy stays) or 'suspect_label>0.9'.
    relabel
        Findings whose photos get the suggested label, such as 'suspect_label>0.95'.
    """
    output.apply()
    progress.show_loading()
    from ikebana.commands import audit as audit_command

    result = audit_command.audit(
        photos, advise, out=out, write=write, drop=drop.split(","), relabel=relabel.split(","), device=device
    )
    command = result.recommendation.command if result.recommendation is not None else ""
    progress.event("done", leaks=len(result.leaks), command=command)
    if command or write is not None:
        progress.result(command or str(write))
    return EXIT_REFUSED if result.split_errors else EXIT_LEAKAGE if result.leaks else EXIT_DONE


@app.command(sort_key=4)
def export(
    run: Path,
    file: Path | None = None,
    *,
    web: Path | None = None,
    int8: Switch = False,
    photos: str | None = None,
    at_most_wrong: str | None = None,
    with_neighbours: Switch = False,
    output: Output = DEFAULT_OUTPUT,
) -> None:
    """Export a run to one ONNX file that predicts the same everywhere.

    The file is compared with the run on all test photos before it is written.

    Parameters
    ----------
    run
        The folder that fit wrote.
    file
        The file to write, such as flowers.onnx.
    web
        A folder to write instead: a page that classifies photos in the browser and sends them nowhere.
    int8
        Quantise to 8 bits: a quarter of the size, often faster. Refused if it costs accuracy.
    photos
        Where the run's photos are, if they have moved.
    at_most_wrong
        Choose the threshold of 'not sure' so that at most this share of the answers is wrong, such as 5%. Refused if the
        run cannot guarantee it.
    with_neighbours
        Put small copies of the training photos into the file or the folder, for explain and for the page. Anyone who
        has it can see them.
    """
    output.apply()
    if file is not None and web is None:
        from ikebana.commands.export import export

        export(run, file, int8=int8, photos=photos, at_most_wrong=at_most_wrong, with_neighbours=with_neighbours)
        progress.event("done", file=str(file))
        progress.result(str(file))
    elif web is not None and file is None:
        from ikebana.commands.export import export_web

        export_web(run, web, int8=int8, photos=photos, at_most_wrong=at_most_wrong, with_neighbours=with_neighbours)
        progress.event("done", web=str(web))
        progress.result(str(web))
    else:
        what = "no output was given" if file is None else "a file and --web exclude each other"
        raise UsageError(what, advice=f"ikebana export {run} flowers.onnx, or ikebana export {run} --web DIR")


@app.command(sort_key=3)
def predict(
    model: Path,
    *photos: Annotated[str, Parameter(allow_leading_hyphen=True)],
    out: Path | None = None,
    copy_to: Path | None = None,
    link_to: Path | None = None,
    output: Output = DEFAULT_OUTPUT,
) -> None:
    """Classify new photos: one table row per photo.

    After an interruption, the same command resumes.

    Parameters
    ----------
    model
        A file that export wrote, or the folder of a run.
    photos
        Files, folders, globs or archives; - reads a list from standard input, one path per line.
    out
        The table to write: .csv, .jsonl or .parquet. Default: CSV on standard output.
    copy_to
        A folder: each photo is copied into a sub-folder named after its class.
    link_to
        The same with links instead of copies.
    """
    output.apply()
    from ikebana.commands import predict as predict_command

    # `-` is standard input; any other argument with a leading hyphen is a misspelt flag.
    for photo in photos:
        if photo.startswith("-") and photo != "-":
            raise UsageError(
                f"there is no option {photo}", advice="ikebana predict --help; a photo of that name: ./" + photo
            )
    if not photos:
        raise UsageError("no photos were given", advice="ikebana predict MODEL PHOTOS")
    if copy_to is not None and link_to is not None:
        raise UsageError("--copy-to and --link-to exclude each other", advice="one of them")
    if output.json and out is None:
        raise UsageError("--json needs --out: both would write to standard output", advice="--out predictions.jsonl")
    path_lines = sys.stdin if "-" in photos else None
    paths = [photo for photo in photos if photo != "-"]
    predict_command.predict_to_table(model, paths, path_lines, out, copy_to or link_to, link=link_to is not None)
    progress.event("done", out=str(out or ""))
    if out is not None:
        progress.result(str(out))


@app.command(sort_key=4)
def explain(
    model: Path,
    *photos: str,
    out: Path | None = None,
    count: int = 5,
    output: Output = DEFAULT_OUTPUT,
) -> None:
    """Show why new photos get their class: nearest training photos and heat maps.

    Parameters
    ----------
    model
        The folder of a run, or a file that export wrote. A file has training photos if it was exported with
        --with-neighbours.
    photos
        Files, folders, globs or archives.
    out
        A new folder for a page, index.html, and the heat maps as PNG files. Without it, no heat maps are drawn.
    count
        The number of training photos to show per photo.
    """
    output.apply()
    from ikebana.commands.explain import explain

    if not photos:
        raise UsageError("no photos were given", advice="ikebana explain MODEL PHOTOS")
    explanations = explain(model, photos, count=count, out=out, draws_heat_maps=out is not None)
    progress.event("done", photos=len(explanations), out=str(out or ""))
    progress.result("\n".join([*map(repr, explanations), *([str(out)] if out is not None else [])]))


@app.command(sort_key=4)
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


@app.command(sort_key=2)
def sweep(
    photos: str,
    *,
    recipes: str = "quick,good",
    seeds: int = 1,
    split_seeds: Annotated[int, Parameter(group=SPLIT)] = 1,
    out: Path | None = None,
    minutes: float | None = None,
    device: Device = "auto",
    options: Annotated[RecipeOptions, Parameter(name="*")] = RecipeOptions(),  # noqa: B008  # pyright: ignore[reportInvalidTypeForm]
    output: Output = DEFAULT_OUTPUT,
) -> int:
    """Train several recipes with several seeds on several splits, and compare them.

    After an interruption, the same command with --out resumes.

    Parameters
    ----------
    photos
        As for fit: a folder with one sub-folder per class, an archive of it, or a table.
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
    """
    output.apply()
    progress.show_loading()
    from ikebana.commands.sweep import sweep

    given = _parse_options(options)
    names = [name.strip() for name in recipes.split(",") if name.strip()]
    result = sweep(
        photos, names, seeds=seeds, split_seeds=split_seeds, out=out, minutes=minutes, device=device, **given
    )
    progress.event("done", out=str(result.folder), failures=len(result.failures))
    progress.result(str(result.folder))
    return EXIT_REFUSED if result.failures else EXIT_DONE


@app.command(sort_key=5)
def serve(
    file: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: Annotated[str | None, Parameter(env_var="IKEBANA_TOKEN", group=SECURITY)] = None,
    allow_origin: Annotated[tuple[str, ...], Parameter(group=SECURITY, negative=(), show_default=False)] = (),
    limits: Annotated[LimitOptions, Parameter(name="*")] = LimitOptions(),  # noqa: B008  # pyright: ignore[reportInvalidTypeForm]
    output: Output = DEFAULT_OUTPUT,
) -> None:
    """Serve predictions over HTTP: a web page for people, a REST API for programs.

    Stop it with Ctrl-C.

    Parameters
    ----------
    file
        The file that export wrote.
    host
        The address to listen on: 127.0.0.1 for this machine only, 0.0.0.0 for other machines too.
    port
        The port; 0 for any free one.
    token
        A secret that every request must send. The page asks for it.
    allow_origin
        The origin of a web page that may use the server, such as https://example.org; repeat it for several. '*'
        allows any page.
    """
    from ikebana.commands import serve

    output.apply()
    bounds = Limits(**asdict(limits))
    serve.serve(file, host, port, token=token, limits=bounds, allow_origins=allow_origin, background=False)
    progress.event("done")


@app.command(sort_key=7)
def doctor(*, device: Device = "auto", output: Output = DEFAULT_OUTPUT) -> None:
    """Show this machine's hardware, how ikebana will use it, and why."""
    from ikebana.commands import doctor as doctor_command

    output.apply()
    facts = doctor_command.doctor(device=device)
    progress.result("\n".join(f"{name:<14} {value}" for name, value in facts.items()))
    progress.event("done", **facts)


@app.command(sort_key=8)
def cache(*, clear: Switch = False, output: Output = DEFAULT_OUTPUT) -> None:
    """Show what the cache contains and how large it is, or clear it.

    It contains decoded photos, features, unpacked archives and weights.

    Parameters
    ----------
    clear
        Delete the cache. What is needed again is computed again.
    """
    from ikebana.commands import cache as cache_command

    output.apply()
    contents = cache_command.cache(clear)
    progress.result(repr(contents))
    progress.event("done", folder=str(contents.folder), bytes={usage.kind: usage.bytes for usage in contents.kinds})


@app.command(sort_key=6)
def demo(*, out: Path | None = None, output: Output = DEFAULT_OUTPUT) -> None:
    """Draw photos of paper flowers, train on them and predict new ones.

    This takes about half a minute.

    Parameters
    ----------
    out
        The folder to write. Default: ikebana-demo.
    """
    output.apply()
    from ikebana.demo_data import demo

    folder = demo.demo(out).folder
    progress.event("done", folder=str(folder))
    progress.result(str(folder))


for _name in app:
    if not _name.startswith("-"):
        unwrap_descriptions(app[_name].default_command)


def _report_error(error: Any) -> int:
    """Report an IkebanaError and return the exit status; raise any other error."""
    if not isinstance(error, IkebanaError):
        raise error
    progress.error(f"{type(error).__name__}: {error}")
    details = {"what": error.what, "where": str(error.where or ""), "advice": error.advice or ""}
    progress.event("error", kind=type(error).__name__, **details)
    return EXIT_WRONG_USAGE if isinstance(error, UsageError) else EXIT_REFUSED


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and end the process.

    The exit status is 0 done, 1 refused, 2 wrong usage, 3 leakage, 130 interrupted (Ctrl-C), 141
    broken pipe, 143 interrupted (SIGTERM).
    """
    process.set_up()
    previous_reporter = progress.set_reporter(progress.TerminalReporter())
    try:
        status = _run(arguments)
    finally:
        # A program that calls `main` gets back what it reported with.
        progress.set_reporter(previous_reporter)
    sys.exit(status)


def _run(arguments: list[str] | None) -> int:
    """Run a command and return the exit status."""
    try:
        process.check_working_directory()
        status = app(arguments, exit_on_error=False, print_error=False) or EXIT_DONE
    except CycloptsError as error:
        status = _report_error(translate_parser_error(error))
    # The reader of the output has ended, as in `ikebana predict … | head`.
    except BrokenPipeError:
        sys.stderr.close()
        status = EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    except Exception as error:
        status = EXIT_INTERRUPTED if process.received_signals else _report_error(process.translate_output_error(error))
    if status == EXIT_INTERRUPTED and process.received_signals[:1] == [signal.SIGTERM]:
        status = EXIT_TERMINATED
    return status
