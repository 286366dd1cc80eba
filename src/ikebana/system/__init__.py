"""Files, locks, the cache folder, memory, signals and progress reporting."""
