"""Reading and writing a run folder, and what its repetition needs."""
