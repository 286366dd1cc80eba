"""Faults in the processes of a test cluster, which Python imports at their start by PYTHONPATH.

Reading `kills*.jpg` kills the process, as a bug in a decoder does. Reading `hangs*.jpg` does not end
before the file IKEBANA_TEST_RELEASE exists.
"""

import importlib.metadata
import os
import signal
import sys
import time


def _disturb(event: str, arguments: tuple) -> None:
    if event != "open" or not isinstance(arguments[0], str):
        return
    name = os.path.basename(arguments[0])
    if name.endswith(".jpg") and name.startswith("kills"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.endswith(".jpg") and name.startswith("hangs"):
        while not os.path.exists(os.environ.get("IKEBANA_TEST_RELEASE", "")):
            time.sleep(0.05)


sys.addaudithook(_disturb)
if "IKEBANA_TEST_VERSION" in os.environ:
    _read_version = importlib.metadata.version
    importlib.metadata.version = lambda name: (
        os.environ["IKEBANA_TEST_VERSION"] if name == "ikebana" else _read_version(name)
    )
