"""Turn photos on disk into a checked table, a split and one pixel array. No torch."""
