"""Drawn photos of paper flowers, and the demo that trains on them."""
