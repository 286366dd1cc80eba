"""Photos on disk, as a checked table, a split and one pixel array; without torch."""
