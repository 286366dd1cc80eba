"""Import of matplotlib, whatever backend the environment names.

Notebooks set MPLBACKEND for all programs that they start. matplotlib refuses to be imported if that
backend is not installed, although figures that are written to files use none.
"""

import os
import sys
from contextlib import suppress

BACKEND_VARIABLE = "MPLBACKEND"


def import_matplotlib() -> None:
    """Import matplotlib without its variable, then set the backend as matplotlib does if it exists."""
    # What the program imported itself stays as it is.
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop(BACKEND_VARIABLE, None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ[BACKEND_VARIABLE] = backend
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


import_matplotlib()
