"""Models and their training, on any supported device."""
