"""onnxruntime without telemetry.

Since 1.29 its Linux and macOS packages send usage data to Microsoft by default, and store a device
identifier in the user's home. Photos may be private, and so may their classification.
"""

import os
from types import ModuleType

TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime with its telemetry disabled.

    The variable takes effect only if it is set during the import; then no events or files appear.
    It is unset afterwards. A user who set it to another value keeps that choice.
    """
    choice = os.environ.get(TELEMETRY_VARIABLE)
    if choice is None:
        os.environ[TELEMETRY_VARIABLE] = "1"
    try:
        import onnxruntime
    finally:
        if choice is None:
            os.environ.pop(TELEMETRY_VARIABLE, None)
    if choice in (None, "1"):
        # Needed if other code imported onnxruntime earlier.
        onnxruntime.disable_telemetry_events()
    return onnxruntime
