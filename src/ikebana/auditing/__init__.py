"""Checks of a photo collection: findings, suspect labels, shortcuts, cleaning, recommendation."""
