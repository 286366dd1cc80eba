"""onnxruntime, asked to keep what it sees to itself.

Since 1.29 its packages for Linux and macOS report their use to their maker by default, and keep an identifier of the device
under the user's home. Photos may be private, and so may be the fact that somebody classifies them: nothing here tells anybody.
"""

import os
from types import ModuleType

SILENCE = "ORT_DISABLE_TELEMETRY"  # must be set before it is loaded; it then makes neither events nor files


def onnxruntime() -> ModuleType:
    """The library, silent. Who set the variable otherwise, or loaded it before us, has decided already."""
    os.environ.setdefault(SILENCE, "1")
    import onnxruntime

    if os.environ[SILENCE] == "1":
        onnxruntime.disable_telemetry_events()  # where it was loaded before
    return onnxruntime
