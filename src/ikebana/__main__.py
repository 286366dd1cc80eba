"""`ikebana`, and `python -m ikebana`: nothing is loaded here, so that Ctrl-C is a quiet end from the first moment on."""

import sys

INTERRUPTED = 130  # as cli has it, which is what is being loaded


def main() -> None:
    """The command line; see `ikebana.cli`."""
    try:
        from ikebana import cli
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    cli.main()


if __name__ == "__main__":
    main()
