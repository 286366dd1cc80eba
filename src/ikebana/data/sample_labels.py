"""Labels beside the photos of a WebDataset shard: `.cls`, `.json` or `.txt`."""

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from ikebana.data.folder import TEXT_SUFFIXES

# Label members, the most certain first. Anything else beside a photo is ignored.
LABEL_SUFFIXES = ("cls", "json", "txt")
# Entries of a `.json` that can be a label; a name wins over a number.
JSON_NAMES = ("label_name", "class_name", "category_name", "label", "class", "category", "cls")
# A larger member is no label.
MAX_LABEL_BYTES = 2**16
MAX_LABEL_CHARACTERS = 200
# Entries that a message names.
MAX_NAMED_ENTRIES = 8
# Texts are captions, not labels, if there is more than one per so many photos.
MIN_PHOTOS_PER_TEXT = 2


def divide_name(path: str) -> tuple[str, str]:
    """Divide a member's path into key and lower-case suffix, at the name's first dot."""
    folder, slash, name = path.rpartition("/")
    stem, _, suffix = name.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def is_label(suffix: str) -> bool:
    return suffix in LABEL_SUFFIXES


def is_photo(suffix: str) -> bool:
    """Return whether a member may be a photo: no label, text or array."""
    last = suffix.rpartition(".")[2]
    return not is_label(last) and f".{last}" not in TEXT_SUFFIXES and bool(last)


def is_sample(suffixes: Collection[str]) -> bool:
    """Return whether the members of a key are a photo and its label."""
    return any(map(is_label, suffixes)) and any(map(is_photo, suffixes))


@dataclass
class SampleLabels:
    """The labels of the samples that have been read, per kind of member."""

    by_suffix: dict[str, dict[str, str | None]] = field(default_factory=lambda: {name: {} for name in LABEL_SUFFIXES})
    # Names of the entries of each `.json` without a label, the first ones.
    other_entries: dict[str, None] = field(default_factory=dict)

    def add(self, key: str, suffix: str, content: bytes) -> None:
        """Add the content of a label member."""
        text = content.decode("utf-8", "replace").strip("\ufeff \t\r\n\0")
        self.by_suffix[suffix][key] = self._find_entry(text) if suffix == "json" else _clean(text)

    def _find_entry(self, text: str) -> str | None:
        """Find the label in a `.json`, or remember what it has instead."""
        values = _parse_object(text)
        label = _choose_entry(values)
        if label is None:
            names = [name for name in values if _clean(name) and name not in self.other_entries]
            self.other_entries.update(dict.fromkeys(names[: MAX_NAMED_ENTRIES - len(self.other_entries)]))
        return label

    def has(self, key: str) -> bool:
        """Return whether a key has a label member, also one without a label."""
        return any(key in labels for labels in self.by_suffix.values())

    def choose(self, photo_keys: Collection[str]) -> tuple[dict[str, str], tuple[str, ...]]:
        """Choose the kind of member that has the labels, and say so.

        Returns:
            The label per key, and notes for the user; nothing if no kind has labels.
        """
        for suffix, labels in self.by_suffix.items():
            of_photos = {key: label for key, label in labels.items() if label and key in photo_keys}
            if not of_photos:
                continue
            texts = len(set(of_photos.values()))
            if suffix == "txt" and texts * MIN_PHOTOS_PER_TEXT > len(of_photos):
                note = "the .txt files in the tar are captions or annotations, not labels: almost each is different"
                return {}, (note, *self._describe_other_entries())
            return of_photos, (f"labels are read from the .{suffix} files in the tar",)
        return {}, self._describe_other_entries()

    def _describe_other_entries(self) -> tuple[str, ...]:
        if not self.other_entries:
            return ()
        return (
            f"the .json files in the tar have no label: they have {', '.join(self.other_entries)}, and none of "
            f"{', '.join(JSON_NAMES)}",
        )


def _clean(text: str) -> str | None:
    is_short = 0 < len(text) <= MAX_LABEL_CHARACTERS and text.isprintable()
    return text if is_short else None


def _parse_object(text: str) -> dict[str, Any]:
    """Parse a JSON object; an empty one if the text is another value, or damaged."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _choose_entry(values: dict[str, Any]) -> str | None:
    for name in JSON_NAMES:
        value = values.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool):
            return _clean(str(value))
    return None
