"""Measure which stages of a fine-tuned network recognise photos of something else.

    python bench/familiarity_depths.py RUN --photos DIR --others DIR [--exclude NAME,...] [--count 430]

For each stage, before and after fine-tuning: the channel means of its output, compared with the
nearest of 40 centroids of training photos (cosine), and by the Mahalanobis distance of means and
spreads. Then each of them is added to the three terms of familiarity. Prints the area under the ROC
curve against test photos, and the share that is below the threshold, which keeps 95% of the
validation photos: for a folder of photos that show none of the classes, and for drawn images.
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from machine import format_header
from sklearn.cluster import KMeans
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from unknown_objects import read_photos

from ikebana.evaluation import drawn_images
from ikebana.evaluation.familiarity import normalise
from ikebana.learning import plan
from ikebana.learning.examples import build_split_examples
from ikebana.learning.features.scaling import compute_mean_and_scale
from ikebana.learning.models import parameter_groups
from ikebana.learning.models.assembly import load_trained_network
from ikebana.learning.plan import Plan
from ikebana.runs.run import Run, open_run

CENTROIDS, NEIGHBOURS, BATCH = 40, 5, 32
UNKNOWN = ("other photos", "drawn images")
# By name of the photos: values [photos], higher is more familiar.
Scores = dict[str, np.ndarray]
Outputs = dict[str, dict[str, np.ndarray]]


def collect_photos(run: Run, options: argparse.Namespace) -> tuple[Plan, dict[str, np.ndarray]]:
    """Decode photos: uint8 [photos, image_size, image_size, 3] by name."""
    source = Plan.from_photos(options.photos, run.recipe)
    source.apply_settings()
    dataset, pixels = plan.open_photos(source.dataset, source.recipe)
    splits, rng = build_split_examples(dataset, pixels.pixels), np.random.default_rng(0)
    photos = {}
    for name in ("train", "validation", "test"):
        count = min(len(splits[name]), 700 if name == "train" else options.count)
        rows = np.sort(rng.choice(splits[name].rows, count, replace=False))
        photos[name] = np.stack([pixels.pixels[row] for row in rows])
    photos["other photos"] = read_photos(options.others, source, options.exclude.split(","))
    photos["drawn images"] = np.concatenate(list(drawn_images.draw_images(source.recipe.image_size).values()))
    return source, photos


@torch.inference_mode()
def compute_stages(network: nn.Module, photos: dict[str, np.ndarray]) -> Outputs:
    """Compute the outputs of all stages by name: means, then spreads, of each channel."""
    network = copy.deepcopy(network).eval()
    # A second pass with flipped images would be collected as more photos.
    vars(network.get_submodule("backbone"))["flip_tta"] = False
    backbone = network.get_submodule("backbone.network")
    collected: dict[str, list[Tensor]] = {}

    def collect(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            values = output.float()
            pooled = torch.cat([values.mean((2, 3)), values.std((2, 3))], 1) if values.ndim == 4 else values
            collected.setdefault(name, []).append(pooled)

        return hook

    for name, layer in parameter_groups.iterate_layers(backbone):
        layer.register_forward_hook(collect(name))
    results: Outputs = {}
    for kind, pixels in photos.items():
        collected.clear()
        for start in range(0, len(pixels), BATCH):
            images = torch.from_numpy(pixels[start : start + BATCH]).permute(0, 3, 1, 2).contiguous()
            collected.setdefault("logits", []).append(network(images).float())
        for name, parts in collected.items():
            results.setdefault(name, {})[kind] = torch.cat(parts).numpy()
    return results


def score_centroids(stage: dict[str, np.ndarray]) -> Scores:
    fitted = KMeans(CENTROIDS, max_iter=10, random_state=0).fit(normalise(stage["train"]))
    centroids = normalise(fitted.cluster_centers_)
    return {kind: (normalise(values) @ centroids.T).max(1) for kind, values in stage.items()}


def score_mahalanobis(stage: dict[str, np.ndarray]) -> Scores:
    mean, scale = compute_mean_and_scale(stage["train"])
    fitted = LedoitWolf().fit((stage["train"] - mean) / scale)
    return {kind: -fitted.mahalanobis((values - mean) / scale) for kind, values in stage.items()}


def score_neighbours(stage: dict[str, np.ndarray]) -> Scores:
    mean, scale = compute_mean_and_scale(stage["train"])
    known = normalise((stage["train"] - mean) / scale)
    similarities = {kind: normalise((values - mean) / scale) @ known.T for kind, values in stage.items()}
    return {kind: np.sort(values, 1)[:, -NEIGHBOURS:].mean(1) for kind, values in similarities.items()}


def score_energy(logits: dict[str, np.ndarray]) -> Scores:
    return {kind: np.logaddexp.reduce(values, axis=1) for kind, values in logits.items()}


def combine(terms: list[Scores]) -> Scores:
    """Average scores, each standardised by its values for validation photos."""
    known = [(term["validation"].mean(), term["validation"].std()) for term in terms]
    return {
        kind: np.mean([(term[kind] - mean) / spread for term, (mean, spread) in zip(terms, known, strict=True)], 0)
        for kind in terms[0]
    }


def describe(title: str, scores: Scores) -> None:
    threshold, parts = np.quantile(scores["validation"], 0.05), []
    for kind in UNKNOWN:
        is_known = np.r_[np.ones(len(scores["test"])), np.zeros(len(scores[kind]))]
        area = roc_auc_score(is_known, np.r_[scores["test"], scores[kind]])
        parts.append(f"{kind} {area:.3f} ({np.mean(scores[kind] < threshold):.2f})")
    print(f"{title:<44} {'  '.join(parts)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--others", type=Path, required=True)
    parser.add_argument("--exclude", default="", help="file names of --others that show one of the classes")
    parser.add_argument("--count", type=int, default=430, help="validation photos, and test photos")
    options = parser.parse_args()
    print(format_header("torch"), flush=True)
    run = open_run(options.run)
    source, photos = collect_photos(run, options)
    trained = load_trained_network(run.recipe, len(run.classes), run.weights, 1.0).get_submodule("network")
    for name, network in (("before", source.network), ("after", trained)):
        stages = compute_stages(network, photos)
        energy, final = score_energy(stages.pop("logits")), stages["global_pool"]
        terms = [score_neighbours(final), score_centroids(final), energy]
        describe(f"{name}: neighbours, centroids, energy", combine(terms))
        for stage, values in stages.items():
            for score in (score_centroids, score_mahalanobis):
                title = f"{name}: {stage}, {score.__name__.removeprefix('score_')}"
                alone = score(values)
                describe(title, alone)
                describe(f"{title}, with the three", combine([*terms, alone]))


if __name__ == "__main__":
    main()
