"""The verbs on the command line; flags are made from Recipe."""

import csv
import signal
import sys
from dataclasses import asdict, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError

from ikebana import process, progress
from ikebana.errors import IkebanaError, UsageError
from ikebana.recipe import DEFAULT, RECIPES, Recipe
from ikebana.shipping.limits import Limits

DONE, REFUSED, WRONG_USAGE, LEAK, INTERRUPTED, UNHEARD, TERMINATED = 0, 1, 2, 3, 130, 141, 143

app = App(
    name="ikebana",
    help="From a folder of labelled photos to an image classifier that its owner can trust and ship.",
    version_flags=["--version"],
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # `main` tells Ctrl-C from SIGTERM
)
RecipeName = Literal[tuple(RECIPES)]  # type: ignore[valid-type]
Switch = Annotated[bool, Parameter(negative=())]
Json = Annotated[bool, Parameter(name="--json", negative=(), help="one JSON event a line on standard output")]
Advise = Annotated[
    bool,
    Parameter(
        negative=(), help="also advise whether a network's head, its tail or all of it should learn from the photos"
    ),
]


def _flag(declared: Any) -> Any:
    """A recipe's field as a flag: tuples are written A,B,C; None means as the recipe has it."""
    return (str if get_origin(declared.type) is tuple else declared.type) | None


def _flags(name: str, flags: list[tuple[str, Any, Any]]) -> type[Any]:
    """A class that cyclopts makes flags of: names, types, defaults."""
    made = make_dataclass(name, flags, frozen=True)
    made.__module__ = __name__  # else it counts as Python's own, which cyclopts does not look into
    return made


def _explained(kind: Any, field: Any, **more: Any) -> Any:
    return Annotated[kind, Parameter(help=field.metadata["explanation"], **more)]


_FLAGS = [each for each in fields(Recipe) if "explanation" in each.metadata]
Choices = _flags("Choices", [(each.name, _explained(_flag(each), each, negative=()), None) for each in _FLAGS])
Bounds = _flags("Bounds", [(each.name, _explained(each.type, each), each.default) for each in fields(Limits)])


def _chosen(choices: Any) -> dict[str, Any]:
    """The flags that were given, in the recipe's own types."""
    given = {each.name: getattr(choices, each.name) for each in _FLAGS}
    tuples = {each.name: each.type for each in _FLAGS if get_origin(each.type) is tuple}
    chosen = {name: value for name, value in given.items() if value is not None}
    return {name: _listed(name, value, tuples[name]) if name in tuples else value for name, value in chosen.items()}


def _listed(name: str, text: str, declared: Any) -> tuple[Any, ...]:
    """A,B,C in the type of the field's entries; one with a comma in it is quoted, as in a CSV file."""
    try:
        [entries] = csv.reader([text], skipinitialspace=True)
        return tuple(declared.__args__[0](entry.strip()) for entry in entries)
    except ValueError:
        raise UsageError(
            f"--{name.replace('_', '-')} {text!r} is not a list of numbers", advice="0.6,0.2,0.2"
        ) from None


@app.command
def fit(
    photos: str | None = None,
    *,
    recipe: RecipeName | Path | None = None,  # pyright: ignore[reportInvalidTypeForm]
    run: Path | None = None,
    resume: Path | None = None,
    choices: Annotated[Choices, Parameter(name="*")] = Choices(),  # noqa: B008  # pyright: ignore[reportInvalidTypeForm]
    json: Json = False,
) -> None:
    """Train a classifier on labelled photos and score it on photos it has never seen.

    Parameters
    ----------
    photos
        A folder with a sub-folder for each class (or train, validation and test folders of these), a .zip or .tar of it,
        or a .csv or .parquet table with the columns path and label.
    recipe
        What to train, and how; quick if it is not said. Or a run's recipe.json, to make that run again. The flags below change
        single choices of it.
    run
        The folder to make; runs/<recipe>-<short hash> if none is given.
    resume
        Go on with this interrupted run instead; it needs neither photos nor flags.
    """
    _listen(json)
    progress.loading()
    from ikebana import pipeline

    if resume is not None:
        if photos is not None or recipe is not None or run is not None or _chosen(choices):
            raise UsageError(
                "a resumed run has its photos and choices already", advice=f"ikebana fit --resume {resume}"
            )
        made = pipeline.resume(resume)
    elif photos is None:
        raise UsageError("no photos were given", advice="ikebana fit PHOTOS, or ikebana fit --resume RUN")
    else:
        made = pipeline.fit(photos, recipe or DEFAULT, run=run, **_chosen(choices))
    progress.event("done", run=str(made.folder))
    progress.result(str(made.folder))


@app.command
def audit(
    photos: str,
    *,
    advise: Advise = False,
    out: Path | None = None,
    write: Path | None = None,
    drop: str = "",
    relabel: str = "",
    json: Json = False,
) -> int:
    """Say what is wrong with the photos, before an hour is spent; and, if asked, how much of a network should learn from them.

    Parameters
    ----------
    photos
        As for fit: a folder with a sub-folder for each class, an archive of it, or a table.
    out
        A folder for all that was found: a page to look at, audit.json and findings.csv.
    write
        A table to make of the photos, cleaned.csv say, for fit; your files stay as they are.
    drop
        What to leave out of that table: twins (one stays), contradictions, unreadable, doubtful, or a finding's kind.
    relabel
        What to relabel in it: 'doubtful>0.95', those surer than that.
    """
    _listen(json)
    progress.loading()
    from ikebana import inspection

    looked = inspection.audit(photos, advise, out=out, write=write, drop=drop.split(","), relabel=relabel.split(","))
    command = looked.advice.command if looked.advice is not None else ""
    progress.event("done", leaks=len(looked.leaks), command=command)
    if command or write is not None:
        progress.result(command or str(write))
    return REFUSED if looked.refused else LEAK if looked.leaks else DONE


@app.command
def export(
    run: Path,
    file: Path | None = None,
    *,
    web: Path | None = None,
    int8: Switch = False,
    photos: str | None = None,
) -> None:
    """Make one ONNX file of a run, which predicts the same everywhere; it is tried on all test photos before it is written.

    Parameters
    ----------
    run
        The folder that fit made.
    file
        The file to write, flowers.onnx say.
    web
        A folder to make instead: a page that classifies in the browser, with nothing sent anywhere.
    int8
        In whole numbers of 8 bits: a quarter of the size, often faster; refused if that costs accuracy.
    photos
        Where the run's photos are, if they have moved since.
    """
    if file is not None and web is None:
        from ikebana.shipping.export import export

        export(run, file, int8=int8, photos=photos)
        progress.result(str(file))
    elif web is not None and file is None:
        from ikebana.shipping.web import export_web

        export_web(run, web, int8=int8, photos=photos)
        progress.result(str(web))
    else:
        asked = "nothing was asked for" if file is None else "a file and --web are two different things"
        raise UsageError(asked, advice=f"ikebana export {run} flowers.onnx, or ikebana export {run} --web DIR")


@app.command
def predict(
    model: Path,
    *photos: Annotated[str, Parameter(allow_leading_hyphen=True)],
    out: Path | None = None,
    copy_to: Path | None = None,
    link_to: Path | None = None,
) -> None:
    """Say what new photos show: a row for each. Given again after an interruption, it goes on where it was.

    Parameters
    ----------
    model
        A file that export made, or the folder of a run.
    photos
        Files, folders, globs or archives; - for a list of them on standard input, one a line.
    out
        The table to write: .csv, .jsonl or .parquet; CSV on standard output if none is given.
    copy_to
        A folder: each photo is copied into a sub-folder named like its class.
    link_to
        The same with links instead of copies.
    """
    from ikebana import prediction

    # `-` is standard input; anything else with a hyphen in front was meant as a flag.
    for each in photos:
        if each.startswith("-") and each != "-":
            raise UsageError(
                f"there is no option {each}", advice="ikebana predict --help; a photo of that name: ./" + each
            )
    if not photos:
        raise UsageError("no photos were given", advice="ikebana predict MODEL PHOTOS")
    if copy_to is not None and link_to is not None:
        raise UsageError("photos are either copied or linked", advice="--copy-to or --link-to")
    listed = sys.stdin if "-" in photos else None
    named = [each for each in photos if each != "-"]
    prediction.command(model, named, listed, out, copy_to or link_to, link=link_to is not None)
    if out is not None:
        progress.result(str(out))


@app.command
def serve(
    file: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: Annotated[str | None, Parameter(env_var="IKEBANA_TOKEN")] = None,
    limits: Annotated[Bounds, Parameter(name="*")] = Bounds(),  # noqa: B008  # pyright: ignore[reportInvalidTypeForm]
    json: Json = False,
) -> None:
    """Answer over HTTP what photos show, with a page for people and REST for programs, until Ctrl-C.

    Parameters
    ----------
    file
        The file that export made.
    host
        The address to listen at: 127.0.0.1 is this machine alone, 0.0.0.0 whoever reaches it.
    port
        0 for any that is free.
    token
        What a request must bring to be answered; the page asks for it.
    """
    from ikebana.shipping import server

    _listen(json)
    server.serve(file, host, port, token=token, limits=Limits(**asdict(limits)))
    progress.event("done")


@app.command
def doctor(*, json: Json = False) -> None:
    """Say what this machine has, how ikebana will use it, and why."""
    from ikebana import checkup

    _listen(json)
    checkup.doctor()


@app.command
def cache(*, clear: Switch = False, json: Json = False) -> None:
    """Say what ikebana keeps for itself, and how large it is: decoded photos, features, unpacked archives, weights.

    Parameters
    ----------
    clear
        Remove it. What is needed again is made again.
    """
    from ikebana import storage

    _listen(json)
    storage.cache(clear)


@app.command
def demo(*, out: Path | None = None) -> None:
    """Draw photos of paper flowers and walk the whole road with them, in about half a minute.

    Parameters
    ----------
    out
        The folder to make; ikebana-demo here if none is given.
    """
    from ikebana import tour

    progress.result(str(tour.demo(out).folder))


def _listen(json: bool) -> None:
    if json:
        progress.listen(progress.Programs())


def _refused(error: Any) -> int:
    if not isinstance(error, IkebanaError):
        raise error
    progress.say(f"{type(error).__name__}: {error}")
    about = {"what": error.what, "where": str(error.where or ""), "advice": error.advice or ""}
    progress.event("error", kind=type(error).__name__, **about)
    return WRONG_USAGE if isinstance(error, UsageError) else REFUSED


def main(arguments: list[str] | None = None) -> None:
    """The command line. Ends the process with 0 done, 1 refused, 2 usage, 3 a leak, 130 or 143 interrupted, 141 unheard."""
    process.set_up()
    try:
        process.check_here()
        status = app(arguments, exit_on_error=False, print_error=True) or DONE
    except CycloptsError:
        status = WRONG_USAGE
    except BrokenPipeError:  # whoever read our output has gone: `ikebana predict … | head`
        sys.stderr.close()
        status = UNHEARD
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception as error:
        status = INTERRUPTED if process.came else _refused(process.of_output(error))
    if status == INTERRUPTED and process.came[:1] == [signal.SIGTERM]:
        status = TERMINATED
    sys.exit(status)
