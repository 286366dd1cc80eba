"""The split into train, validation (model selection and calibration) and test.

stratified  keeps each class's share in every split, and photos that belong together in one split:
            exact copies, near-duplicates, and the user's groups
shuffle     the tutorial's: one seeded shuffle of all photos, cut in three; it may separate
            near-duplicates, which are then reported
given       keeps a split that came with the photos; takes a missing one from the training photos
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import polars as pl

from ikebana.data.dataset import SPLITS, Dataset, to_strings
from ikebana.data.labels import simplify_name
from ikebana.errors import PhotosError
from ikebana.recipe import Recipe
from ikebana.system import progress

SplitFractions = tuple[float, float, float]

# A network never predicts a class without training photos. With more of them in the test split, its
# score is mostly that.
MAX_UNTRAINED_SHARE = 0.5
MAX_LISTED_CLASSES = 5


def split_photos(dataset: Dataset, recipe: Recipe) -> Dataset:
    """Assign a split to every used photo, and none to the others.

    Raises:
        PhotosError: too few photos for a training and a test split.
    """
    used = dataset.used_photos
    is_given = used["split"].is_not_null().any()
    if is_given:
        if (recipe.split, recipe.split_fractions, recipe.split_seed) != (
            Recipe.split,
            Recipe.split_fractions,
            Recipe.split_seed,
        ):
            progress.warn("the photos come with a split: --split, --split-fractions and --split-seed have no effect")
        splits = _complete_given(used, recipe)
    elif recipe.split == "shuffle":
        splits = assign_shuffled(to_strings(used["label"]), dataset.classes, recipe.split_fractions, recipe.split_seed)
    else:
        splits = assign_stratified(
            to_strings(used["label"]), find_groups(used), recipe.split_fractions, recipe.split_seed
        )
    present = set(splits)
    for required in ("train", "test"):
        if required not in present:
            n_groups = len(set(find_groups(used)))
            what = f"too few photos: none of the {used.height} is left for the {required} split"
            advice = "add photos, at least 3 per class, or change the fractions: fit --split-fractions"
            if is_given:
                advice = f"add photos to the {required} split, or give no split: ikebana then splits the photos itself"
            elif n_groups < used.height:
                plural = "s" * (n_groups != 1)
                what += f" ({n_groups} group{plural} of duplicates or related photos)"
                advice = "use smaller groups, or add photos of other subjects: a group is never divided between splits"
            raise PhotosError(what, where=dataset.source, advice=advice)
    rows = dataset.used_photos_with_row["row"]
    column = pl.Series("split", [None], pl.String).new_from_index(0, dataset.photos.height)
    column = column.scatter(rows, pl.Series("split", splits, pl.String))
    return dataset.with_photos(dataset.photos.with_columns(column))


def check_training_classes(dataset: Dataset) -> None:
    """Refuse a split on which no network can learn the classes.

    Raises:
        PhotosError: training photos are of fewer than two classes, or most test photos are of
            classes without training photos.
    """
    photos = dataset.used_photos.select("label", "split")
    trained = photos.filter(split="train")["label"].unique().sort().to_list()
    if len(trained) < 2:
        raise PhotosError(
            f"only class {', '.join(trained)} has training photos, of the classes {', '.join(dataset.classes)}",
            where=dataset.source,
            advice="add training photos of the other classes; where photos came in splits, "
            "give each class the same name in all of them",
        )
    test = photos.filter(split="test")
    untrained = test.filter(~pl.col("label").is_in(trained))
    if untrained.height > MAX_UNTRAINED_SHARE * test.height:
        similar = {simplify_name(name): name for name in trained}
        names = ", ".join(
            f"{name} ({similar[key]} has some)" if (key := simplify_name(name)) in similar else name
            for name in untrained["label"].unique().sort().head(MAX_LISTED_CLASSES)
        )
        raise PhotosError(
            f"{untrained.height:,} of {test.height:,} test photos are of classes without training photos: {names}",
            where=dataset.source,
            advice="give each class the same name in all splits; "
            "or remove the test photos: ikebana then takes some of the training photos",
        )


def assign_shuffled(labels: Sequence[str], classes: Sequence[str], fractions: SplitFractions, seed: int) -> list[str]:
    """Return the tutorial's split for each photo.

    All photos class by class in the given order, shuffled by `random.seed`, cut at `int(share * n)`.

    Args:
        labels: of the photos, sorted by path.
    """
    class_ranks = {name: number for number, name in enumerate(classes)}
    order = sorted(range(len(labels)), key=lambda row: class_ranks[labels[row]])
    random.Random(seed).shuffle(order)
    train_end = int(fractions[0] * len(order))
    validation_end = int(round(fractions[0] + fractions[1], 12) * len(order))
    splits = [""] * len(order)
    for position, row in enumerate(order):
        splits[row] = SPLITS[0] if position < train_end else SPLITS[1] if position < validation_end else SPLITS[2]
    return splits


def find_groups(photos: pl.DataFrame) -> list[int]:
    """Return a group number for each photo; photos of one group belong together.

    They have the same bytes, are near-duplicates or share a given group, directly or in a chain.
    """
    columns = ("sha256", "duplicate_of", "group")
    rows = photos.lazy().select(columns).with_row_index("row")
    first_rows = rows.select(pl.col("row").min().over(name).alias(name) for name in columns)
    row_numbers = np.arange(photos.height)
    group_numbers, pairs = row_numbers.copy(), []
    for name, first in zip(columns, first_rows.collect().iter_columns(), strict=True):
        has_earlier = (first.to_numpy() != row_numbers) & photos[name].is_not_null().to_numpy()
        pairs += zip(first.to_numpy()[has_earlier].tolist(), row_numbers[has_earlier].tolist(), strict=True)
    for component in find_connected_components(pairs):
        group_numbers[component] = component[0]
    return group_numbers.tolist()


def find_connected_components(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Find the connected components of a graph by union-find: each sorted, ordered by first row."""
    parents: dict[int, int] = {}

    def find_root(row: int) -> int:
        parents.setdefault(row, row)
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    for left, right in pairs:
        first, second = sorted((find_root(left), find_root(right)))
        parents[second] = first
    components: dict[int, list[int]] = defaultdict(list)
    for row in sorted(parents):
        components[find_root(row)].append(row)
    return sorted(components.values())


def flag_leaked(group_numbers: Sequence[int], splits: Sequence[str]) -> list[bool]:
    """Flag test photos whose group is also in training or validation (leakage)."""
    groups_outside_test = {group for group, split in zip(group_numbers, splits, strict=True) if split != "test"}
    return [group in groups_outside_test for group, split in zip(group_numbers, splits, strict=True) if split == "test"]


def assign_stratified(
    labels: Sequence[str], group_numbers: Sequence[int], fractions: SplitFractions, seed: int
) -> list[str]:
    """Return a split for each photo; groups are not divided.

    The shares of each class are as close to the fractions as possible.

    Large groups come first, each to the split where its classes lack most; single photos then fill
    up exactly. A class of three groups or more has a photo in every requested split; one of two
    groups in train and test; one of a single group in train. Only groups of several classes may
    prevent that, but never a training photo for each class.
    """
    _, first_rows, inverse, sizes = np.unique(group_numbers, return_index=True, return_inverse=True, return_counts=True)
    rows, ends = np.argsort(inverse, kind="stable"), np.cumsum(sizes)
    # Groups in the order of their first photos.
    order = np.argsort(first_rows).tolist()
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: -sizes[group])

    def get_members(group: int) -> list[int]:
        return rows[ends[group] - sizes[group] : ends[group]].tolist()

    n_groups = Counter(name for group in order for name in {labels[row] for row in get_members(group)})
    quotas = {name: _ClassQuota(count, n_groups[name], fractions) for name, count in Counter(labels).items()}
    splits = [""] * len(labels)
    for group in order:
        members = get_members(group)
        label_counts = Counter(labels[row] for row in members) if len(members) > 1 else {labels[members[0]]: 1}
        chosen = _choose_split(label_counts, quotas, fractions)
        for name, count in label_counts.items():
            quotas[name].assign(chosen, count)
        for row in members:
            splits[row] = SPLITS[chosen]
    trained = {label for label, split in zip(labels, splits, strict=True) if split == SPLITS[0]}
    for name in sorted(set(labels) - trained):
        groups_of_class = inverse[[row for row, label in enumerate(labels) if label == name]].tolist()
        for row in get_members(min(groups_of_class, key=sizes.__getitem__)):
            splits[row] = SPLITS[0]
    return splits


class _ClassQuota:
    """The photos of one class that each split still lacks."""

    def __init__(self, n_photos: int, n_groups: int, fractions: SplitFractions):
        self.quota = _compute_quota(n_photos, n_groups, fractions)
        self.lacking = list(self.quota)
        self.groups_left = n_groups
        self.empty_splits = {split for split in range(3) if self.quota[split]}

    def assign(self, split: int, n_photos: int) -> None:
        self.lacking[split] -= n_photos
        self.groups_left -= 1
        self.empty_splits.discard(split)


def _choose_split(label_counts: Mapping[str, int], quotas: dict[str, _ClassQuota], fractions: SplitFractions) -> int:
    """Choose the split that a group's classes need most.

    An empty split first, where a class has no group to spare. Need is relative to the quota, so
    that large groups spread over all splits.
    """
    candidates = [split for split in range(3) if fractions[split] > 0]
    need = [0.0, 0.0, 0.0]
    for name, count in label_counts.items():
        class_quota = quotas[name]
        if class_quota.groups_left <= len(class_quota.empty_splits):
            candidates = [split for split in candidates if split in class_quota.empty_splits] or candidates
        for split in candidates:
            need[split] += count * class_quota.lacking[split] / max(class_quota.quota[split], 1)
    return max(candidates, key=need.__getitem__)


def _compute_quota(n_photos: int, n_groups: int, fractions: SplitFractions) -> list[int]:
    """Round the shares to whole numbers by largest remainder; no split stays empty needlessly."""
    wanted = [split for split in (0, 2, 1) if fractions[split] > 0][:n_groups]
    total = sum(fractions[split] for split in wanted)
    exact = [fractions[split] / total * n_photos if split in wanted else 0.0 for split in range(3)]
    quota = [int(number + 1e-9) for number in exact]
    by_remainder = sorted(sorted(wanted), key=lambda split: quota[split] - exact[split])
    for split in by_remainder[: n_photos - sum(quota)]:
        quota[split] += 1
    for split in wanted:
        if quota[split] == 0:
            quota[quota.index(max(quota))] -= 1
            quota[split] = 1
    return quota


def _complete_given(used: pl.DataFrame, recipe: Recipe) -> list[str]:
    """Keep the given splits and complete them.

    A missing validation or test split is taken from the training photos.
    """
    splits = used["split"].to_list()
    unassigned = [row for row, split in enumerate(splits) if split is None]
    if unassigned:
        raise PhotosError(
            f"{len(unassigned)} photos are in no split; the first is {used['path'][unassigned[0]]}",
            advice="put every photo into the folder train, validation or test",
        )
    missing = tuple(
        0.0 if name in splits and name != "train" else fraction
        for name, fraction in zip(SPLITS, recipe.split_fractions, strict=True)
    )
    if sum(missing) == missing[0]:
        return splits
    total = sum(missing)
    rows = [row for row, split in enumerate(splits) if split == "train"]
    train = used[rows]
    fractions = (missing[0] / total, missing[1] / total, missing[2] / total)
    assigned = assign_stratified(to_strings(train["label"]), find_groups(train), fractions, recipe.split_seed)
    for row, split in zip(rows, assigned, strict=True):
        splits[row] = split
    return splits


def fingerprint(hashes: Iterable[str]) -> str:
    """Compute the fingerprint of a set of photos: the sha256 of their sorted sha256s.

    It does not depend on the names of the files.
    """
    import hashlib

    digest, separator = hashlib.sha256(), b""
    for photo_hash in pl.Series(hashes, dtype=pl.String).sort():
        digest.update(separator + photo_hash.encode())
        separator = b"\n"
    return digest.hexdigest()


def get_selection_mask(validation: pl.DataFrame) -> np.ndarray:
    """Return which validation photos are for model selection; the others are for calibration.

    About half, and always the same. Copies and groups stay together: otherwise calibration would
    use photos that model selection has used.

    Args:
        validation: the photos of that split, with `sha256`, `duplicate_of` and `group`.
    Returns:
        bool [photos].
    """
    together = validation.select("sha256", together=pl.Series(find_groups(validation), dtype=pl.Int64))
    first_hashes = together.select(pl.col("sha256").min().over("together"))["sha256"]
    return np.array([int(first_hash[-1], 16) % 2 == 0 for first_hash in first_hashes], bool)
