"""Near-twins: photos that are copies of others, resized, saved again, cropped a little, mirrored or turned by quarters.

Two steps. Short descriptions tell which photos may be copies (`neighbours.py`); those few pairs are laid over each other,
pixel on pixel, and compared (`likeness.py`). Everything is found in the photos that are kept in small, whole and squashed,
whatever side and fit a recipe asks for; none is opened again. What was found is kept beside them, so that it is looked for once.
"""

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from ikebana import progress
from ikebana.machine import need_disk
from ikebana.photos import likeness, neighbours
from ikebana.photos.dataset import USED, Dataset, Twin
from ikebana.photos.kept import Kept, allocate, chunks, in_threads
from ikebana.photos.likeness import Small
from ikebana.photos.split import islands
from ikebana.places import cache_folder, cannot_write, set_aside, written

RULES = 4  # raised with each change of the search: what older rules found is looked for anew
CHUNK = 128  # photos a task
PAIRS = 128  # that are compared at once: each needs some 200 kB
BLANK = 3.0  # grey levels: a photo whose spread is less shows nothing that could be compared
CROPPED = 0.015  # of a side: less is no more than what resizing moves
RECOLOURED = (
    6.0  # levels: resizing, cropping and saving again moved blocks' colours by 4.9 at most, on average over a photo
)
TOO_MANY = 0.5  # of a class: copies that are more than this cannot be kept together if every part needs photos
FEW = 10  # photos of a class for which that does not matter


def found(dataset: Dataset, keep: Kept) -> Dataset:
    """The dataset with its near-twins, and in the column `twins` one name for all photos that are copies of each other.

    keep  its pixels
    """
    first = _first_of_each(dataset)
    name = _begins(dataset)
    pairs = _remembered(keep, name)
    if pairs is None:
        pairs = [_named(dataset, *pair) for pair in search(keep.small, first)]
        _remember(keep, name, pairs)
    return replace(dataset, twins=tuple(pairs), photos=dataset.photos.with_columns(_names(dataset, pairs)))


def search(photos: np.ndarray, rows: np.ndarray) -> list[tuple[int, int, str, float]]:
    """Every pair of these photos of which one is a copy of the other.

    photos   uint8 [photos, 64, 64, 3], squashed
    rows     of those that are looked at, each another file
    returns  two rows, the smaller first; what was done to the one or the other, in words; how alike they are
    """
    from threadpoolctl import threadpool_limits

    need_disk({cache_folder(): scratch(len(rows))})
    # The photos are shared out among threads already: small products that start threads of their own wait for each other.
    with threadpool_limits(1, "blas"), _on_disk(len(rows), _RECORD) as small, _on_disk(len(rows), _LIFTED) as lifted:
        pieces = chunks(len(rows), CHUNK)
        work = closing(in_threads(lambda chosen: _describe(photos, rows, chosen, small, lifted), pieces))
        with progress.stage("describe photos", len(rows)) as bar, work as done:
            for number in done:
                bar.advance(number)
        index = neighbours.Index(small["whole"], lifted)
        best: dict[tuple[int, int], tuple[str, float]] = {}
        work = closing(in_threads(lambda chosen: _twins_of(photos, rows, chosen, index, small), pieces))
        with progress.stage("look for twins", len(rows)) as bar, work as parts:
            for chosen, part in zip(pieces, parts, strict=True):
                for pair, how in part:
                    best[pair] = max(how, best.get(pair, how), key=lambda each: each[1])
                bar.advance(len(chosen))
    return [(int(rows[one]), int(rows[other]), *how) for (one, other), how in sorted(best.items())]


_RECORD = np.dtype(
    [
        ("whole", np.float32, (len(neighbours.NUMBERS),)),
        ("grey", np.uint8, (likeness.SIDE,) * 2),
        ("colour", np.uint8, (likeness.COARSE, likeness.COARSE, 3)),
    ]
)

_LIFTED = np.dtype((np.float32, (len(neighbours.NUMBERS) + 1,)))


def scratch(photos: int) -> int:
    """Bytes that the search takes on the disk of the cache while it lasts."""
    return photos * (_RECORD.itemsize + _LIFTED.itemsize)


@contextmanager
def _on_disk(photos: int, kind: np.dtype) -> Iterator[np.ndarray]:
    """An array of a record for each photo, in a file without a name, which goes when it is closed.

    raises  MachineError if it cannot be made, or written to
    """
    folder, rows = cache_folder(), max(photos, 1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as stream:
            allocate(stream, rows * kind.itemsize)
            yield np.memmap(stream, kind, "r+", shape=rows)[:photos]
    except OSError as error:
        raise cannot_write(error, folder) from error


def _describe(photos: np.ndarray, rows: np.ndarray, chosen: range, small: np.ndarray, lifted: np.ndarray) -> int:
    """Fill in what the search needs to know of some photos."""
    place, seen = slice(chosen.start, chosen.stop), _of(photos, rows, chosen)
    small["grey"][place] = np.rint(seen.astype(np.float32) @ neighbours.BANDS[0])
    small["colour"][place] = np.rint(likeness.reduced(seen, likeness.COARSE))
    whole = neighbours.described(seen, neighbours.LINES[:1])[:, neighbours.WHOLE]
    whole[small["grey"][place].std((1, 2)) < BLANK] = np.nan
    small["whole"][place], lifted[place] = whole, neighbours.lifted(whole)
    return len(chosen)


def _of(photos: np.ndarray, rows: np.ndarray, chosen: range) -> np.ndarray:
    return photos[rows[chosen.start : chosen.stop]]


def _twins_of(
    photos: np.ndarray, rows: np.ndarray, chosen: range, index: neighbours.Index, small: np.ndarray
) -> list[tuple[tuple[int, int], tuple[str, float]]]:
    """The pairs in which some photos are the first, or the second."""
    near = index.near(chosen, neighbours.described(_of(photos, rows, chosen)))
    found = []
    for start in range(0, len(near.first), PAIRS):
        one, other, window, symmetry = (each[start : start + PAIRS] for each in near)
        of = [Small(small["grey"][each], small["colour"][each]) for each in (one, other)]
        like = likeness.compared(of[0], of[1], neighbours.CUT_OFF[window], symmetry)
        for row in np.flatnonzero(like.twins):
            pair = int(min(one[row], other[row])), int(max(one[row], other[row]))
            found.append((pair, (_done(like, int(row)), float(like.alike[row]))))
    return found


def _done(like: likeness.Likeness, row: int) -> str:
    """What was done to the one or the other photo, as far as the pixels tell: "mirrored, cropped"."""
    cropped = np.abs(like.window[row]).max() > CROPPED
    recoloured = like.apart[row] > RECOLOURED
    words = (
        likeness.NAMES[like.symmetry[row]],
        "cropped" if cropped else "",
        "in other colours" if recoloured else "",
    )
    return ", ".join(word for word in words if word)


def _first_of_each(dataset: Dataset) -> np.ndarray:
    """Rows of the photos used, exact copies once."""
    return dataset.used_by_row.unique("sha256", keep="first", maintain_order=True)["row"].to_numpy().astype(np.int64)


def _named(dataset: Dataset, one: int, other: int, done: str, alike: float) -> Twin:
    """A pair, and what was done to the one or the other; the files' sizes tell what squares cannot."""
    if not done:
        sizes = dataset.photos[[one, other]].select("width", "height").rows()
        done = "saved again" if sorted(sizes[0]) == sorted(sizes[1]) else "resized"
    return Twin(one, other, done, round(alike, 3))


def _names(dataset: Dataset, pairs: list[Twin]) -> pl.Series:
    """The column `twins`: for each photo the path of the first of its twins, null where it has none.

    An exact copy has the twins of its original.
    """
    photos, names = dataset.photos, dict[str, str]()  # of files, by their hash
    number_of = dict(
        dataset.used.unique("sha256", keep="first", maintain_order=True)["label"].value_counts().iter_rows()
    )
    for rows in islands((each.first, each.second) for each in pairs):
        held = Counter(photos["label"][rows])
        if all(count <= max(FEW, TOO_MANY * number_of[name]) for name, count in held.items()):
            names |= dict.fromkeys(photos["sha256"][rows], photos["path"][rows[0]])
    known = pl.col("sha256").replace_strict(names, default=None, return_dtype=pl.String)
    return photos.select(pl.when(pl.col("status") == USED).then(known).alias("twins"))["twins"]


def are_found(place: Path) -> bool:
    """Whether they were looked for before in the pixels that are kept there."""
    return any(place.glob(f"twins.{RULES}.*.json"))


def _begins(dataset: Dataset) -> str:
    """How the file's name begins: it tells of which photos the twins are. Those that can be used may be others by the time that
    the twins are found: another process has read all photos again, since one can be read by now that could not."""
    seen = pl.when(pl.col("status") == USED).then(pl.col("sha256")).otherwise(pl.lit(""))
    made_of = "\n".join(dataset.photos.select(seen.alias("seen"))["seen"])
    return f"twins.{RULES}.{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"


def _remember(keep: Kept, begins: str, pairs: list[Twin]) -> None:
    """The file bears the checksum of what is in it in its name, as the index of the photos does."""
    text = json.dumps([[each.first, each.second, each.how, each.alike] for each in pairs])
    with written(keep.folder / _name(begins, text)) as beside:
        beside.write_text(text, "utf-8")


def _name(begins: str, text: str) -> str:
    return f"{begins}.{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def _remembered(keep: Kept, begins: str) -> list[Twin] | None:
    """What was found in these pixels before; None if it was not looked for, or somebody spoilt it since."""
    for file in keep.folder.glob(f"{begins}.*.json"):
        with suppress(OSError, ValueError):
            text = file.read_text("utf-8")
            if file.name == _name(begins, text):
                return [Twin(*each) for each in json.loads(text)]
        set_aside(file)
    return None
