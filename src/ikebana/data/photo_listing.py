"""Photos as they are listed in containers and stores, before any is opened."""

from collections.abc import Iterable
from dataclasses import dataclass

import polars as pl

from ikebana.data.dataset import LOCATION_SCHEMA, collect_rows

# One row per photo; the plan of a prediction has the same columns.
LISTING_SCHEMA = {
    # The path is below the collection, or inside the container.
    **LOCATION_SCHEMA,
    # Whether it can be opened, or why not.
    "status": pl.String,
    # Null if the container has none.
    "label": pl.String,
    # What to show before the path: `shard-000.tar!`.
    "prefix": pl.String,
}


@dataclass(frozen=True)
class PhotoListing:
    """The photos of a folder in a store, or of containers.

    Attributes:
        photos: LISTING_SCHEMA.
        ignored_count: hidden files; the labels beside photos in a tar are used.
        notes: how the containers were understood, for the user.
    """

    photos: pl.DataFrame
    ignored_count: int = 0
    notes: tuple[str, ...] = ()


def join_listings(listings: Iterable[PhotoListing]) -> PhotoListing:
    """Join the listings of several containers, in order; each note once."""
    listed = list(listings)
    photos = pl.concat([collect_rows((), LISTING_SCHEMA), *(listing.photos for listing in listed)])
    notes = dict.fromkeys(note for listing in listed for note in listing.notes)
    return PhotoListing(photos, sum(listing.ignored_count for listing in listed), tuple(notes))
