"""onnxruntime without telemetry.

Since 1.29 its Linux and macOS packages send usage data to Microsoft by default, and store a device
identifier in the user's home. Photos may be private, and so may their classification.
"""

import os
from types import ModuleType

TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime with its telemetry disabled.

    The variable takes effect only if it is set before the import; then no events or files appear.
    A user who set it to another value keeps that choice.
    """
    os.environ.setdefault(TELEMETRY_VARIABLE, "1")
    import onnxruntime

    if os.environ[TELEMETRY_VARIABLE] == "1":
        # Needed if other code imported onnxruntime earlier.
        onnxruntime.disable_telemetry_events()
    return onnxruntime
