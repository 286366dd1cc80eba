"""A Dataset with a split: which photos the network learns from, which serve for choices, and which are sealed.

stratified  keeps each class's share in every part, and never parts photos that belong together: exact copies, near-twins,
            and the groups that the user gave
shuffle     the tutorial's: all photos in one seeded shuffle, cut in three; twins may be parted, and are then reported
given       a split that came with the photos is kept; only a part that is missing is taken from the training photos
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import polars as pl

from ikebana import progress
from ikebana.errors import PhotosError
from ikebana.photos.dataset import PARTS, Dataset, texts
from ikebana.recipe import Recipe

Parts = tuple[float, float, float]


def split(dataset: Dataset, recipe: Recipe) -> Dataset:
    """Every usable photo gets a part; photos that were set aside get none.

    raises  PhotosError if there are too few photos for a training and a test part
    """
    used = dataset.used
    given = used["split"].is_not_null().any()
    if given:
        if (recipe.split, recipe.parts, recipe.split_seed) != (Recipe.split, Recipe.parts, Recipe.split_seed):
            progress.say("the parts came with the photos: --split, --parts and --split-seed change nothing")
        parts = _given(used, recipe)
    elif recipe.split == "shuffle":
        parts = shuffled(texts(used["label"]), dataset.classes, recipe.parts, recipe.split_seed)
    else:
        parts = stratified(texts(used["label"]), groups(used), recipe.parts, recipe.split_seed)
    found = set(parts)
    for needed in ("train", "test"):
        if needed not in found:
            together = len(set(groups(used)))
            what = f"of {used.height} photos none is left for the {needed} part"
            advice = "more photos, at least 3 of each class, or other parts of them (fit --parts)"
            if given:
                advice = f"photos whose part is {needed}, or no parts: then they are split here"
            elif together < used.height:
                what += (
                    f": they make {together} group{'s' * (together != 1)}, of photos that belong together or are copies"
                )
                advice = "smaller groups, or photos of more different things: groups are never parted"
            raise PhotosError(what, where=dataset.source, advice=advice)
    dealt = used.select("path").with_columns(pl.Series("split", parts, pl.String))
    rows = dataset.used_by_row["row"]
    column = pl.Series("split", [None], pl.String).new_from_index(0, dataset.photos.height)
    return dataset.with_photos(dataset.photos.with_columns(column.scatter(rows, dealt["split"])))


def shuffled(labels: Sequence[str], classes: Sequence[str], parts: Parts, seed: int) -> list[str]:
    """The tutorial's split: class after class in the given order, shuffled by `random.seed`, cut at `int(share * n)`.

    labels   of the photos in sorted order of their paths
    returns  the part of each photo
    """
    rank = {name: number for number, name in enumerate(classes)}
    order = sorted(range(len(labels)), key=lambda row: rank[labels[row]])
    random.Random(seed).shuffle(order)
    first = int(parts[0] * len(order))
    second = int(round(parts[0] + parts[1], 12) * len(order))
    result = [""] * len(order)
    for place, row in enumerate(order):
        result[row] = PARTS[0] if place < first else PARTS[1] if place < second else PARTS[2]
    return result


def groups(photos: pl.DataFrame) -> list[int]:
    """Which photos belong together: the same bytes, near-twins, or the same given group, or any of these in a chain.

    returns  a group number for each photo
    """
    columns = ("sha256", "twins", "group")
    rows = photos.lazy().select(columns).with_row_index("row")
    first = rows.select(pl.col("row").min().over(name).alias(name) for name in columns)
    own = np.arange(photos.height)
    number, pairs = own.copy(), []
    for name, values in zip(columns, first.collect().iter_columns(), strict=True):
        joined = (values.to_numpy() != own) & photos[name].is_not_null().to_numpy()
        pairs += zip(values.to_numpy()[joined].tolist(), own[joined].tolist(), strict=True)
    for island in islands(pairs):
        number[island] = island[0]
    return number.tolist()


def islands(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Who is joined to whom, in however many steps: each island sorted, the islands by their first."""
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        parent.setdefault(row, row)
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for one, other in pairs:
        first, second = sorted((root(one), root(other)))
        parent[second] = first
    joined: dict[int, list[int]] = defaultdict(list)
    for row in sorted(parent):
        joined[root(row)].append(row)
    return sorted(joined.values())


def twins_seen(group: Sequence[int], parts: Sequence[str]) -> list[bool]:
    """For each test photo, in order, whether another of its group lies in training or validation: its score may be memory."""
    seen = {key for key, part in zip(group, parts, strict=True) if part != "test"}
    return [key in seen for key, part in zip(group, parts, strict=True) if part == "test"]


def stratified(labels: Sequence[str], group: Sequence[int], parts: Parts, seed: int) -> list[str]:
    """Groups dealt out so that every class comes as near to its shares as whole groups allow.

    Large groups are placed first, each where its classes lack most; single photos then fill up exactly. A class of at
    least three groups has a photo in every part that is asked for; one of two in training and test; a lonely photo is
    trained on. Only groups of several classes may stand in the way of that, though not of a training photo for each class.

    returns  the part of each photo
    """
    _, first, inverse, sizes = np.unique(group, return_index=True, return_inverse=True, return_counts=True)
    rows, ends = np.argsort(inverse, kind="stable"), np.cumsum(sizes)
    order = np.argsort(first).tolist()  # of the groups: as they come
    random.Random(seed).shuffle(order)
    order.sort(key=lambda each: -sizes[each])

    def members(each: int) -> list[int]:
        return rows[ends[each] - sizes[each] : ends[each]].tolist()

    number_of_groups = Counter(name for each in order for name in {labels[row] for row in members(each)})
    classes = {name: _Share(count, number_of_groups[name], parts) for name, count in Counter(labels).items()}
    result = [""] * len(labels)
    for each in order:
        its = members(each)
        held = Counter(labels[row] for row in its) if len(its) > 1 else {labels[its[0]]: 1}
        part = _where(held, classes, parts)
        for name, count in held.items():
            classes[name].deal(part, count)
        for row in its:
            result[row] = PARTS[part]
    for name in sorted(set(labels) - {label for label, part in zip(labels, result, strict=True) if part == PARTS[0]}):
        smallest = min(
            inverse[[row for row, label in enumerate(labels) if label == name]].tolist(), key=sizes.__getitem__
        )
        for row in members(smallest):
            result[row] = PARTS[0]
    return result


class _Share:
    """What the parts still lack of one class."""

    def __init__(self, photos: int, groups_of_class: int, parts: Parts):
        self.quota = _quota(photos, groups_of_class, parts)
        self.lacking = list(self.quota)
        self.groups_left = groups_of_class
        self.still_empty = {part for part in range(3) if self.quota[part]}

    def deal(self, part: int, photos: int) -> None:
        self.lacking[part] -= photos
        self.groups_left -= 1
        self.still_empty.discard(part)


def _where(held: Mapping[str, int], classes: dict[str, _Share], parts: Parts) -> int:
    """The part for a group: an empty one where a class has no group to spare, else where its classes lack most.

    They lack a share of their quota, so that large groups spread over all parts.
    """
    choice = [part for part in range(3) if parts[part] > 0]
    need = [0.0, 0.0, 0.0]
    for name, count in held.items():
        its = classes[name]
        if its.groups_left <= len(its.still_empty):
            choice = [part for part in choice if part in its.still_empty] or choice
        for part in choice:
            need[part] += count * its.lacking[part] / max(its.quota[part], 1)
    return max(choice, key=need.__getitem__)


def _quota(photos: int, groups_of_class: int, parts: Parts) -> list[int]:
    """Whole numbers nearest to the shares (largest remainders), no part left empty that could have one."""
    wanted = [part for part in (0, 2, 1) if parts[part] > 0][:groups_of_class]
    whole = sum(parts[part] for part in wanted)
    exact = [parts[part] / whole * photos if part in wanted else 0.0 for part in range(3)]
    quota = [int(number + 1e-9) for number in exact]
    by_remainder = sorted(sorted(wanted), key=lambda part: quota[part] - exact[part])
    for part in by_remainder[: photos - sum(quota)]:
        quota[part] += 1
    for part in wanted:
        if quota[part] == 0:
            quota[quota.index(max(quota))] -= 1
            quota[part] = 1
    return quota


def _given(used: pl.DataFrame, recipe: Recipe) -> list[str]:
    """The parts that came with the photos; a missing validation or test part is taken from the training photos."""
    parts = used["split"].to_list()
    loose = [row for row, part in enumerate(parts) if part is None]
    if loose:
        raise PhotosError(
            f"{len(loose)} photos lie in no part, the first: {used['path'][loose[0]]}",
            advice="a folder each for train, validation and test, and nothing beside them",
        )
    shares = tuple(
        0.0 if name in parts and name != "train" else share for name, share in zip(PARTS, recipe.parts, strict=True)
    )
    if sum(shares) == shares[0]:
        return parts
    whole = sum(shares)
    rows = [row for row, part in enumerate(parts) if part == "train"]
    train = used[rows]
    scaled = (shares[0] / whole, shares[1] / whole, shares[2] / whole)
    taken = stratified(texts(train["label"]), groups(train), scaled, recipe.split_seed)
    for row, part in zip(rows, taken, strict=True):
        parts[row] = part
    return parts


def fingerprint(hashes: Iterable[str]) -> str:
    """A name for a set of photos, whatever their files are called: the sha256 of their sorted sha256s."""
    import hashlib

    made_of, between = hashlib.sha256(), b""
    for each in pl.Series(hashes, dtype=pl.String).sort():
        made_of.update(between + each.encode())
        between = b"\n"
    return made_of.hexdigest()


def for_choices(validation: pl.DataFrame) -> np.ndarray:
    """Which validation photos choices are made by; confidence is calibrated on the others. About half, the same for ever.

    Copies, and photos of one group, stay together: otherwise confidence would be tried on what a choice has seen.

    validation  the photos of that part, with `sha256`, `twins` and `group`
    returns     bool, one each
    """
    together = validation.select("sha256", together=pl.Series(groups(validation), dtype=pl.Int64))
    first = together.select(pl.col("sha256").min().over("together"))["sha256"]
    return np.array([int(each[-1], 16) % 2 == 0 for each in first], bool)
