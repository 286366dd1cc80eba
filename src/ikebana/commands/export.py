"""`ikebana export`: run → graph → comparison with the run → file or web folder."""

import base64
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ikebana.data.sources import PhotoSource
from ikebana.errors import ModelError, RecipeError
from ikebana.exporting import metadata, neighbours, onnx_file, quantisation, run_photos, verification
from ikebana.exporting.web import add_runtime, build_index
from ikebana.inference import classifier, page_files
from ikebana.inference.classifier import Classifier
from ikebana.learning.process_state import preserve_process_state
from ikebana.runs.run import Run, open_run
from ikebana.system import progress
from ikebana.system.files import atomic_directory, atomic_write, resolve_output_path
from ikebana.system.percentages import parse_share

if TYPE_CHECKING:
    from torch import nn


@preserve_process_state()
def export(
    run: Run | str | Path,
    file: str | Path,
    *,
    int8: bool = False,
    photos: PhotoSource | None = None,
    model: "nn.Module | None" = None,
    at_most_wrong: float | str | None = None,
    with_neighbours: bool = False,
) -> Classifier:
    """Write one ONNX file that predicts what the run's network predicts.

    The input is the photo's bytes. All test photos are compared before the file is written.

    Args:
        int8: quantise to 8 bits: a quarter of the size, often faster; refused if it costs accuracy.
        photos: where the run's photos are, if they have moved; a frame for a run from a frame.
        model: your own module, if the run trained one.
        at_most_wrong: choose the threshold anew, so that at most this share of the answers is
            wrong, such as "5%" or 0.05; None for the threshold of the run.
        with_neighbours: put small copies of the training photos into the file, so that it finds
            those that a photo resembles. Anyone who has the file can see them.
    Raises:
        ModelError: the file would predict differently from the run; no file is written then.
        RunError: the run has not finished, or cannot give that guarantee.
        PhotosError: the run's photos are missing.
        MachineError: the file cannot be written.
    """
    source_run, output_path = run if isinstance(run, Run) else open_run(run), resolve_output_path(file)
    if output_path.is_dir() or output_path.suffix != ".onnx":
        raise ModelError(
            "the name of a model file must end in .onnx", where=file, advice=f"{output_path.name or 'flowers'}.onnx"
        )
    model_info = metadata.collect(source_run, _parse_share(at_most_wrong))
    splits = run_photos.find_photos(source_run, photos)
    network = onnx_file.load_network(source_run, model_info["temperature"], model)
    graph = onnx_file.trace_to_onnx(
        network, source_run.recipe.image_size, onnx_file.decode_examples(splits["test"], model_info)
    )
    float32_classifier = classifier.from_bytes(onnx_file.assemble_file(graph, model_info))
    agreement = verification.check_agreement(
        float32_classifier, onnx_file.make_reference(network), splits["test"], onnx_file.get_scored_classes(source_run)
    )
    whole_photos = verification.compare_graph_resize(float32_classifier, splits["test"])
    model_info["parity"] = {"of": "float32", **agreement, "whole_photos": whole_photos}
    if int8:
        graph, model_info["int8"] = quantisation.quantise(
            graph,
            float32_classifier,
            splits,
            lambda new: classifier.from_bytes(onnx_file.assemble_file(new, model_info)),
        )
    if with_neighbours:
        model_info["neighbours"] = neighbours.collect(source_run, splits)
    data = onnx_file.assemble_file(graph, model_info)
    # Loaded from the bytes that users will load.
    shipped = classifier.from_bytes(data, output_path)
    with atomic_write(output_path) as partial_file:
        partial_file.write_bytes(data)
    progress.message(onnx_file.summarise(output_path, data, model_info))
    return shipped


def export_web(
    run: Run | str | Path,
    folder: str | Path,
    *,
    int8: bool = False,
    photos: PhotoSource | None = None,
    model: "nn.Module | None" = None,
    at_most_wrong: float | str | None = None,
    with_neighbours: bool = False,
) -> Classifier:
    """Write a folder whose page classifies photos in the browser.

    The page sends no photo anywhere. The folder contains the file that `export` makes.

    Args:
        folder: appears by rename when it is complete.
        int8: as for `export`: a quarter of the size to load.
        photos: where the run's photos are, if they have moved; a frame for a run from a frame.
        model: your own module, if the run trained one.
        at_most_wrong: as for `export`.
        with_neighbours: put small copies of the training photos into the folder, so that the page
            shows those that a photo resembles. Anyone who can load the page can see them.
    Raises:
        ModelError: the folder is not empty, or `export` refuses the run.
        RunError, PhotosError: as `export` does.
    """
    target = resolve_output_path(folder, is_new_folder=True)
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ModelError("this path already exists and is not an empty folder", where=folder, advice="a new folder")
    with atomic_directory(target, allow_existing=False) as partial_folder:
        file = partial_folder / "model.onnx"
        shipped = export(run, file, int8=int8, photos=photos, model=model, at_most_wrong=at_most_wrong)
        if with_neighbours:
            _add_neighbours(run, partial_folder, photos)
        runtime = add_runtime(partial_folder)
        page_info = asdict(page_files.summarise_classifier(shipped, target.name)) | {
            "image_size": shipped.image_size,
            "has_neighbours": with_neighbours,
            "runtime": runtime,
        }
        text = json.dumps(page_info, ensure_ascii=False, indent=1) + "\n"
        (partial_folder / "model.json").write_text(text, "utf-8")
        for name in (*page_files.COMMON_FILES, *page_files.STANDALONE_FILES):
            (partial_folder / name).write_bytes(page_files.read(name))
        (partial_folder / "index.html").write_text(build_index(), "utf-8")
    progress.message(
        f"{target}: serve it with any web server, for example: python3 -m http.server --directory {target} 8080"
    )
    return shipped


def _add_neighbours(run: Run | str | Path, folder: Path, photos: PhotoSource | None) -> None:
    """Add what the page compares photos with, and a file per training photo."""
    source_run = run if isinstance(run, Run) else open_run(run)
    values = neighbours.collect(source_run, run_photos.find_photos(source_run, photos))
    thumbnails = folder / "training-photos"
    thumbnails.mkdir()
    # The page loads only the few that it shows.
    for number, thumbnail in enumerate(values.pop("thumbnails")):
        (thumbnails / f"{number}.jpg").write_bytes(base64.b64decode(thumbnail))
    (folder / "neighbours.json").write_text(json.dumps(values, ensure_ascii=False), "utf-8")


def _parse_share(share: float | str | None) -> float | None:
    """Parse a share of wrong answers; RecipeError if it is none."""
    try:
        parsed = parse_share(share)
    except ValueError:
        parsed = -1
    if parsed is None or (isinstance(parsed, int | float) and 0 < parsed < 1):
        return parsed
    raise RecipeError(f"{share!r} is not a share of wrong answers", advice="--at-most-wrong 5%")
