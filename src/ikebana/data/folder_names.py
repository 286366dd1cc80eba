"""What the name of a folder says: a split, a fold, a copy, annotations.

A class may have such a name too, so a name alone decides nothing. `layout` and `split_folders` also
look at what is inside.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ikebana.data.dataset import SPLIT_ALIASES

# Photos without labels, such as `seg_pred` beside `seg_train` and `seg_test`.
UNLABELLED = "unlabelled"
UNLABELLED_WORDS = ("pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "inference")
# The validation split, or the test split where another folder is the validation split.
EVALUATION_WORDS = frozenset(("eval", "evaluation"))
SPLIT_WORDS: dict[str, str] = {
    **SPLIT_ALIASES,
    **dict.fromkeys(("dev", *EVALUATION_WORDS), "validation"),
    **dict.fromkeys(("testing", "holdout"), "test"),
    "trainval": "train",
    **dict.fromkeys(UNLABELLED_WORDS, UNLABELLED),
}
IMAGE_WORDS = frozenset(("images", "image", "imgs", "img", "jpegimages", "jpegs"))
# Words that say nothing about the content.
FILLER_WORDS = IMAGE_WORDS | {
    *("set", "sets", "data", "dataset", "datasets", "split", "splits", "photo", "photos", "pics", "pictures"),
    *("jpg", "jpeg", "png", "folder", "dir", "all"),
}
ANNOTATION_WORDS = frozenset(
    (
        *("annotation", "annotations", "annots", "labels", "label", "masks", "mask", "bboxes", "xml", "xmls"),
        *("imagesets", "groundtruth", "segmentation", "segmentations", "segmentationclass"),
        *("segmentationobject", "trimaps"),
    )
)
# Folders that programs and people make. Not `trash`, which is a class of recycling data sets.
LEFTOVER_NAMES = frozenset(
    (
        *("thumbs", "thumbnails", "_thumbs", "_thumbnails", "_trash", "backup", "backups", "_backup", "_old"),
        *("new folder", "untitled folder", "unsorted", "_unsorted"),
    )
)
FOLD_WORDS = frozenset(("fold", "folds", "kfold", "cv"))
# Pieces of a download; a class may be called part 1 as well.
PIECE_WORDS = frozenset(("part", "batch", "chunk", "shard", "split", "subset", "set"))

# Between a small and a capital letter, and between a letter and a digit.
_WORD_BOUNDARY = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])")
_SPLIT_AND_FILLER = re.compile(
    rf"({'|'.join(sorted(SPLIT_WORDS, key=len, reverse=True))})(?:set|dataset|data|images|imgs)"
)
# Names that file managers and people give to a copy of `daisy`.
_COPY = re.compile(
    r"(?P<of>copy of )?(?P<name>.+?)"
    r"(?P<suffix>[ _-]+copy(?:[ _]?\(?\d+\)?)?|[ _]?\((?:(?:another |\d+\w* )?copy|\d+)\)|[ _.-]+(?:bak|backup|old)"
    # macOS, editors, Dropbox, Syncthing and OneDrive.
    r"| [2-9]|~|[ _]?\([^()]*(?:conflicted copy|case conflict)[^()]*\)|[.]sync-conflict-[\w-]+"
    r"|-(?:desktop|laptop)-\w+)?",
    re.IGNORECASE,
)
# Folders that Google Drive's archives of `daisy` are unpacked to: daisy-20240101T101010Z-001.
_DOWNLOAD = re.compile(r"(?P<name>.+)-\d{8}T\d+Z?(?:-\d+)+")


@dataclass(frozen=True)
class SplitNames:
    """Names of folders that may be the splits of one data set.

    Attributes:
        splits: name → train, validation, test or unlabelled.
        is_certain: whether the names agree in all but the split, as seg_train and seg_test do.
    """

    splits: Mapping[str, str] = field(default_factory=dict)
    is_certain: bool = False


def find_splits(names: Iterable[str]) -> SplitNames:
    """Find the names of at least two splits of one data set.

    A plain name, such as `train`, comes before a longer one, such as `train_images`.
    """
    by_context: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        split, context = _parse_split_name(name)
        if split is not None:
            by_context[context][name] = split
    candidates = sorted(by_context.values(), key=len, reverse=True)
    # train_sep beside valid and test.
    mixed = [
        by_context.get("", {}) | splits for context, splits in by_context.items() if context and len(by_context) == 2
    ]
    # public_test and private_test beside training.
    if "train" in by_context.get("", {}).values():
        mixed.append({name: split for splits in candidates for name, split in splits.items()})
    ranked = [
        *((splits, True) for splits in candidates if "train" in splits.values()),
        *((splits, False) for splits in mixed if "train" in splits.values()),
        *((splits, True) for splits in candidates),
    ]
    for splits, is_certain in ranked:
        if len(set(splits.values())) > 1:
            return SplitNames(_prefer_plain(_resolve_evaluation(splits)), is_certain)
    return SplitNames()


def _parse_split_name(name: str) -> tuple[str | None, str]:
    """Return the split that a name means, and what it says besides: `seg` of seg_train."""
    words = _split_into_words(name)
    splits = {word: split for word in words if (split := _find_split(word)) is not None}
    meanings = set(splits.values())
    # train_val: photos of which no validation split was taken yet.
    split = "train" if meanings == {"train", "validation"} else next(iter(meanings)) if len(meanings) == 1 else None
    context = (word for word in words if word not in splits and word not in FILLER_WORDS and not word.isdigit())
    return split, " ".join(context)


def _find_split(word: str) -> str | None:
    match = _SPLIT_AND_FILLER.fullmatch(word)
    return SPLIT_WORDS.get(match[1] if match else word)


def _split_into_words(name: str) -> list[str]:
    return [word.lower() for word in re.split(r"[\W_]+", _WORD_BOUNDARY.sub(" ", name)) if word]


def _prefer_plain(splits: Mapping[str, str]) -> dict[str, str]:
    plain = {split for name, split in splits.items() if is_plain_split(name)}
    return {name: split for name, split in splits.items() if is_plain_split(name) or split not in plain}


def _resolve_evaluation(splits: Mapping[str, str]) -> dict[str, str]:
    evaluation = {name for name in splits if EVALUATION_WORDS.intersection(_split_into_words(name))}
    others = {split for name, split in splits.items() if name not in evaluation}
    is_test = "validation" in others and "test" not in others
    return {name: "test" if name in evaluation and is_test else split for name, split in splits.items()}


def is_plain_split(name: str) -> bool:
    """Return whether a name is one of those that a split column may have."""
    return name.lower() in SPLIT_ALIASES


def is_rarely_class(name: str) -> bool:
    """Return whether a name means annotations, leftovers or a split other than train."""
    if (get_original_name(name) or name).lower() in LEFTOVER_NAMES:
        return True
    split, context = _parse_split_name(name)
    # `mask` is a class of people with and without one.
    is_annotation = is_annotation_folder(name) and name.lower() not in ("mask", "label")
    return is_annotation or (split not in (None, "train") and not context)


def is_wrapper(name: str, split_name: str) -> bool:
    """Return whether the only folder in a split folder is a wrapper, by its name."""
    split, context = _parse_split_name(name)
    is_same_split = split in (_parse_split_name(split_name)[0], UNLABELLED) and not (split is None or context)
    return is_filler(name) or is_same_split or name.casefold() == split_name.casefold()


def is_filler(name: str) -> bool:
    """Return whether a name says nothing about the photos, such as `data` or `all_images`."""
    return all(word in FILLER_WORDS for word in _split_into_words(name))


def is_image_folder(name: str) -> bool:
    """Return whether a name means all images, as of a data set with annotations."""
    return "".join(_split_into_words(name)) in IMAGE_WORDS


def is_annotation_folder(name: str) -> bool:
    """Return whether a name means annotations of images, not images of a class."""
    words = [word for word in _split_into_words(name) if word not in FILLER_WORDS]
    joined = "".join(_split_into_words(name))
    return joined in ANNOTATION_WORDS or (bool(words) and all(word in ANNOTATION_WORDS for word in words))


def find_numbered_word(names: Sequence[str]) -> str | None:
    """Return `fold` for fold_1, fold_2, …; None for names of another pattern."""
    if len(names) < 2:
        return None
    stems = {tuple(_split_into_words(name)[:-1]) for name in names if name and name[-1].isdigit()}
    if len(stems) != 1 or not all(name[-1:].isdigit() for name in names):
        return None
    (stem,) = stems
    return stem[-1] if stem and stem[-1] in FOLD_WORDS | PIECE_WORDS else None


def get_original_name(name: str) -> str | None:
    """Return `daisy` for `daisy - Copy`, `daisy (1)` or `Copy of daisy`, else None."""
    match = _COPY.fullmatch(name)
    return match["name"] if match and (match["of"] or match["suffix"]) else None


def get_download_name(name: str) -> str | None:
    """Return `daisy` for `daisy-20240101T101010Z-001`, a part of a Google Drive download, else None."""
    match = _DOWNLOAD.fullmatch(name)
    return match["name"] if match else None
