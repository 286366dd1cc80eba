"""Near-duplicate search: candidates by descriptors, then pixel comparison."""
