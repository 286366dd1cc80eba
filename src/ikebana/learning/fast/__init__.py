"""Faster equivalents of parts of a network, each verified against the original."""
