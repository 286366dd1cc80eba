"""Train and score with fastai in one process, for `peer_fastai.py`.

    python bench/peer_fastai_worker.py TASK.json ANSWER.json        # `peer_fastai.py` writes the one and reads the other
    python bench/peer_fastai_worker.py --versions ANSWER.json       # library versions; fails early if one is missing

The code follows fastai's documentation for beginners: `ImageDataLoaders.from_df` with a validation
column, `Resize(224)`, `aug_transforms()`, `vision_learner`, `fine_tune`, `get_preds`. Everything
else is a default: batches of 64, two epochs for `fine_tune(1)` (the head alone, then all layers),
validation after each epoch, worker processes and threads. timm reads the weights from a file
(`pretrained_cfg_overlay`). `vision_learner` then takes mean and standard deviation (0.5 and 0.5)
from timm, as for weights from the hub.

`tuned` adds what an experienced torch user would add on CPU. Measured on an EPYC (Zen 4,
avx512_bf16) shared with other work, one processor, seconds per step of 64 photos, head alone / all:
    default                                        13.9 / 15.0, of them 9.6 / 9.0 in page faults
    `to_channelslast(use_amp=False)`, fastai's own  7.8 /  8.6
    glibc keeps large blocks                        4.2 /  7.5    (MALLOC_* in the environment, set by `peer_fastai.py`)
    both, which is `tuned`                          4.8 /  5.8
    both, and bfloat16                              3.9 / 10.8    (CPU time without waiting: 3.6 / 5.4; no gain, left out)
    default, no worker processes                   10.9 / 14.1    (within the spread of the default)
fastai's `to_bf16` uses the autocast of CUDA and has no effect on CPU; bfloat16 above was a callback.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

LIBRARIES = ("fastai", "torch", "torchvision", "timm", "pillow", "numpy")

seconds: dict[str, float] = {}


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Time a stage."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def make_loaders(task: dict[str, Any]) -> Any:
    """Make fastai's loaders of training and validation photos from a table."""
    import pandas as pd
    from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms

    rows = [(path, label, part == "validation") for path, label, part in task["photos"] if part != "test"]
    table = pd.DataFrame(rows, columns=["path", "label", "is_valid"])
    worker_options = {} if task["workers"] is None else {"num_workers": task["workers"]}
    transforms = {"item_tfms": Resize(task["side"]), "batch_tfms": aug_transforms()}
    return ImageDataLoaders.from_df(table, task["root"], valid_col="is_valid", **transforms, **worker_options)


def make_learner(task: dict[str, Any], data: Any) -> Any:
    """Make fastai's learner with timm's backbone and the weights from the file."""
    from fastai.vision.all import accuracy, vision_learner

    overlay = {"file": task["weights"]}
    learn = vision_learner(data, task["network"], metrics=accuracy, pretrained_cfg_overlay=overlay)
    if task["tuned"]:
        # Mixed precision of fastai works on CUDA only.
        learn.to_channelslast(use_amp=False)
    return learn


def predict_labels(task: dict[str, Any], learn: Any) -> list[str]:
    """Predict the class of each test photo, in the order of the task."""
    import pandas as pd

    paths = [path for path, _, part in task["photos"] if part == "test"]
    data = learn.dls.test_dl(pd.DataFrame({"path": paths}))
    probabilities, _ = learn.get_preds(dl=data)
    return [learn.dls.vocab[index] for index in probabilities.argmax(1).tolist()]


def get_normalisation(learn: Any) -> list[list[float]]:
    """Return mean and standard deviation of the normalisation, for the record."""
    (normalise,) = [transform for transform in learn.dls.after_batch.fs if type(transform).__name__ == "Normalize"]
    return [normalise.mean.flatten().tolist(), normalise.std.flatten().tolist()]


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Run everything that is timed, from the import to the test score."""
    with stage("import"):
        import torch
        from fastai.vision.all import set_seed
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    set_seed(task["seed"])
    with stage("data"):
        data = make_loaders(task)
    with stage("network"):
        learn = make_learner(task, data)
    with stage("train"):
        learn.fine_tune(task["epochs"])
    with stage("score"):
        labels = predict_labels(task, learn)
    settings = {"threads": torch.get_num_threads(), "workers": data.train.fake_l.num_workers, "batch": data.train.bs}
    settings |= {"normalised_by": get_normalisation(learn), "device": str(data.device)}
    return {"seconds": seconds, "predicted": labels, "setting": settings}


def get_versions() -> dict[str, str]:
    """Return the library versions. The imports also compile the bytecode before timed runs."""
    import fastai.vision.all  # noqa: F401
    import timm  # noqa: F401

    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def main() -> None:
    """Run the task. The answer goes to a file, because fastai prints progress bars."""
    warnings.filterwarnings("ignore")
    # No download: it must fail if it does not use the file of weights.
    os.environ["HF_HUB_OFFLINE"] = "1"
    task_file, answer_file = sys.argv[1:]
    answer = get_versions() if task_file == "--versions" else run(json.loads(Path(task_file).read_text("utf-8")))
    Path(answer_file).write_text(json.dumps(answer) + "\n", "utf-8")


if __name__ == "__main__":
    main()
