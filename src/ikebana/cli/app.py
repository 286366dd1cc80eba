"""The command's name, exit statuses, and the flags that several commands have."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter, Token

from ikebana.errors import UsageError
from ikebana.system import progress
from ikebana.system.local_paths import refuse_address

EXIT_DONE, EXIT_REFUSED, EXIT_WRONG_USAGE, EXIT_LEAKAGE = 0, 1, 2, 3
EXIT_INTERRUPTED, EXIT_BROKEN_PIPE, EXIT_TERMINATED = 130, 141, 143


def _refuse_address(_: Any, value: object) -> None:
    """Refuse an address as a path; PHOTOS and other text may be one."""
    if isinstance(value, Path):
        refuse_address(value)


app = App(
    name="ikebana",
    help="From a folder of labelled photos to an image classifier that its owner can trust and ship.",
    version_flags=["--version"],
    help_format="plaintext",
    result_action="return_value",
    default_parameter=Parameter(validator=_refuse_address),
    # `main` distinguishes Ctrl-C from SIGTERM.
    suppress_keyboard_interrupt=False,
)
Switch = Annotated[bool, Parameter(negative=())]


def parse_integer(_: Any, tokens: Sequence[Token]) -> int:
    """Parse a whole number; the parser would round 0.5 to 0."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ValueError(f"{tokens[0].value!r} is not a whole number") from None


Integer = Annotated[int, Parameter(converter=parse_integer)]
TRAINING, NETWORK, SPLIT, CONFIDENCE, SECURITY, LIMITS, SHARDS, OUTPUT = (
    Group(name, sort_key=number)
    for number, name in enumerate(
        ("Training", "Network and images", "Split", "Confidence", "Security", "Limits", "Shards", "Output"), 1
    )
)
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
