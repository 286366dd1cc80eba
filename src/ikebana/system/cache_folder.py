"""The folder for everything that ikebana can compute or download again."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the cache folder, which IKEBANA_CACHE moves; users may delete it at any time."""
    override = os.environ.get("IKEBANA_CACHE")
    if override:
        return Path(override).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("ikebana"))
