"""The cached features of a collection in memory, for experiments with subsamples of its photos."""

from pathlib import Path

import numpy as np

from ikebana.data import sources, split
from ikebana.learning import examples
from ikebana.learning.estimate import configure_device
from ikebana.learning.features import out_of_fold
from ikebana.learning.models import networks
from ikebana.learning.models.assembly import assemble
from ikebana.learning.plan import open_photos
from ikebana.recipes import RECIPES


class FeatureCollection:
    """Features, labels and groups of all photos of a collection.

    Attributes:
        features: float32 [photos, features] of the recipe's backbone.
        labels: class indices [photos].
        table: the rows of the dataset's table.
        groups: a number per photo; duplicates have the same.
    """

    def __init__(self, photos: Path, recipe_name: str = "quick"):
        recipe = networks.fill_defaults(RECIPES[recipe_name])
        dataset, cache = open_photos(sources.read(photos), recipe)
        self.classes = dataset.classes
        assembled = assemble(recipe, len(self.classes))
        splits = examples.build_split_examples(dataset, cache.pixels)
        settings = configure_device(assembled)
        (member,) = assembled.members
        extracted = out_of_fold.extract_labelled_features(splits, member, cache.folder.name, settings)
        self.features, self.labels = extracted.features[np.arange(len(extracted.labels))], extracted.labels
        self.table = dataset.photos[extracted.rows]
        self.groups = np.array(split.find_groups(self.table))
