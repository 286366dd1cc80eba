"""What a user should know about the members of an archive: guessed names, archives inside."""

from dataclasses import dataclass, field

from ikebana.data.folder import is_hidden

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
# Archives that Python does not read, and parts of divided ones.
FOREIGN_SUFFIXES = (".7z", ".rar", ".z01", ".001")
# These lie beside photos, or beside archives of photos, and are neither.
DOCUMENT_SUFFIXES = (".txt", ".md", ".csv", ".json", ".xml", ".html", ".pdf")
# Inner archives that a message names.
MAX_NAMED_ARCHIVES = 3


@dataclass
class ArchiveNotes:
    """The members of an archive, counted as they are unpacked."""

    guessed_count: int = 0
    guessed_example: str = ""
    inner_count: int = 0
    inner_examples: list[str] = field(default_factory=list)
    has_other_files: bool = False
    # Bytes of a zip before its first listed member.
    unlisted_bytes: int = 0
    has_content_after_end: bool = False

    def report_content_after_end(self) -> None:
        """Record that bytes other than padding follow the end of a tar."""
        self.has_content_after_end = True

    def add_file(self, name: str, is_name_guessed: bool) -> None:
        """Count a file that is about to be unpacked."""
        if any(map(is_hidden, name.split("/"))):
            return
        if is_name_guessed:
            self.guessed_count += 1
            self.guessed_example = self.guessed_example or name
        if name.lower().endswith((*ARCHIVE_SUFFIXES, *FOREIGN_SUFFIXES)):
            self.inner_count += 1
            self.inner_examples += [name] if len(self.inner_examples) < MAX_NAMED_ARCHIVES else []
        elif not name.lower().endswith(DOCUMENT_SUFFIXES):
            self.has_other_files = True

    @property
    def holds_only_archives(self) -> bool:
        return self.inner_count > 0 and not self.has_other_files

    def name_inner_archives(self) -> str:
        """Name the archives inside, the first ones if there are many."""
        remaining = self.inner_count - len(self.inner_examples)
        return ", ".join(self.inner_examples) + (f" and {remaining:,} more" if remaining else "")

    def to_lines(self) -> tuple[str, ...]:
        """Return a sentence for each thing to know."""
        lines = []
        if self.guessed_count:
            lines.append(
                f"the encoding of {self.guessed_count:,} names in the archive is unknown: {self.guessed_example}, ... "
                "(if they look garbled, unpack it yourself, for example with unzip -O cp932, and give the folder)"
            )
        if self.inner_count:
            lines.append(f"archives inside the archive are not unpacked: {self.name_inner_archives()}")
        if self.unlisted_bytes > 0:
            lines.append(
                f"the first {self.unlisted_bytes:,} bytes of the zip are not listed in it: if two zips were joined, only "
                "the last one is read"
            )
        if self.has_content_after_end:
            lines.append(
                "other bytes follow the end of the tar: if two tars were joined, only the first one is read "
                "(unpack it yourself with tar --ignore-zeros, and give the folder)"
            )
        return tuple(lines)
