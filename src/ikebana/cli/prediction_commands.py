"""The commands that use a trained run: predict, explain, export and serve."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ikebana.cli.app import DEFAULT_OUTPUT, SECURITY, Integer, Output, Switch, app
from ikebana.cli.argument_order import refuse_file_first, refuse_photos_first
from ikebana.cli.options import LimitOptions
from ikebana.cli.shard_options import DEFAULT_SHARDS, ShardFlags, is_folder
from ikebana.errors import UsageError
from ikebana.serving.limits import Limits
from ikebana.system import progress


@app.command(sort_key=6, usage="Usage: ikebana predict [OPTIONS] MODEL PHOTOS...")
def predict(
    model: Path,
    *photos: Annotated[str, Parameter(allow_leading_hyphen=True)],
    out: str | None = None,
    copy_to: Path | None = None,
    link_to: Path | None = None,
    shards: ShardFlags = DEFAULT_SHARDS,
    output: Output = DEFAULT_OUTPUT,
) -> None:
    """Classify new photos: one table row per photo.

    After an interruption, the same command resumes.

    Parameters
    ----------
    model
        A file that export wrote, or the folder of a run.
    photos
        Files, folders, globs, archives, or addresses such as s3://bucket/folder; - reads a list from standard input, one
        path per line.
    out
        The table to write: .csv, .jsonl or .parquet; or DIR/, a folder for shards. Default: CSV on standard output.
    copy_to
        A folder: each photo is copied into a sub-folder named after its class.
    link_to
        The same with links instead of copies.
    """
    output.apply()

    # `-` is standard input; any other argument with a leading hyphen is a misspelt flag.
    for photo in photos:
        if photo.startswith("-") and photo != "-":
            named = f"; a photo of that name: ./{photo}" if Path(photo).exists() else ""
            raise UsageError(f"there is no option {photo}", advice=f"ikebana predict --help{named}")
    if not photos:
        raise UsageError("no photos were given", advice="ikebana predict MODEL PHOTOS")
    refuse_photos_first("predict", model, photos)
    if copy_to is not None and link_to is not None:
        raise UsageError("--copy-to and --link-to exclude each other", advice="one of them")
    if output.json and out is None:
        raise UsageError("--json needs --out: both would write to standard output", advice="--out predictions.jsonl")
    path_lines = sys.stdin if "-" in photos else None
    paths = [photo for photo in photos if photo != "-"]
    if out is not None and is_folder(out):
        if copy_to is not None or link_to is not None:
            raise UsageError("--copy-to and --link-to need a table", advice="--out predictions.csv")
        shards.import_predictor()(model, paths, path_lines, out, shards.to_options())
    else:
        shards.refuse_for_table(out)
        from ikebana.commands.predict import predict_to_table

        table = None if out is None else Path(out)
        predict_to_table(model, paths, path_lines, table, copy_to or link_to, link=link_to is not None)
    progress.event("done", out=out or "", join=str(shards.join or ""))
    if out is not None:
        progress.result(str(shards.join or out))


@app.command(sort_key=7, usage="Usage: ikebana explain [OPTIONS] MODEL PHOTOS...")
def explain(
    model: Path,
    *photos: str,
    out: Path | None = None,
    count: Integer = 5,
    output: Output = DEFAULT_OUTPUT,
) -> None:
    """Show why new photos get their class: nearest training photos and heat maps.

    Parameters
    ----------
    model
        The folder of a run, or a file that export wrote. A file has training photos if it was exported with
        --with-neighbours.
    photos
        Files, folders, globs, archives, or addresses such as s3://bucket/folder.
    out
        A folder for a page, index.html, and the heat maps as PNG files. An earlier page of explain is replaced. Without
        it, no heat maps are drawn.
    count
        The number of training photos to show per photo.
    """
    output.apply()
    from ikebana.commands.explain import explain

    if not photos:
        raise UsageError("no photos were given", advice="ikebana explain MODEL PHOTOS")
    refuse_photos_first("explain", model, photos)
    explanations = explain(model, photos, count=count, out=out, draws_heat_maps=out is not None)
    progress.event("done", photos=len(explanations), out=str(out or ""))
    progress.result("\n".join([*map(repr, explanations), *([str(out)] if out is not None else [])]))


@app.command(sort_key=8, usage="Usage: ikebana export [OPTIONS] RUN [FILE]")
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
        refuse_file_first(run, file)
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


@app.command(sort_key=9)
def serve(
    file: Path,
    *,
    host: str = "127.0.0.1",
    port: Integer = 8000,
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
