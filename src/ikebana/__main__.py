"""Entry point of `ikebana` and `python -m ikebana`.

Nothing is imported at the top, so that Ctrl-C ends the process quietly from the start.
"""

import sys

# The value of `cli.EXIT_INTERRUPTED`, which is not loaded yet.
EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command line; see `ikebana.cli`."""
    try:
        from ikebana import cli
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    cli.main()


if __name__ == "__main__":
    main()
