"""fastai's side of `peer_fastai.py`: one process from import to the last score, under the Python that has fastai in it.

    python bench/peer_fastai_worker.py TASK.json ANSWER.json        # `peer_fastai.py` writes the one and reads the other
    python bench/peer_fastai_worker.py --versions ANSWER.json       # what this environment has; fails early if it has not

It is what fastai's own pages show to a beginner: `ImageDataLoaders.from_df` with a column that says what is validation,
`Resize(224)`, `aug_transforms()`, `vision_learner`, `fine_tune`, `get_preds`. Batches of 64, two passes for
`fine_tune(1)` (head alone, then all), the validation photos scored after each, worker processes and threads: all its own
defaults. Weights are read from a file by timm's own way (`pretrained_cfg_overlay`), and with them `vision_learner` takes
mean and deviation (0.5 and 0.5) from timm, as it does for weights from the hub.

`tuned` is what a user who knows torch on a processor would add, and no more than that. Measured on an EPYC (Zen 4,
avx512_bf16) shared with other work, one processor, seconds a step of 64 photos, head alone / all:
    as it comes                                    13.9 / 15.0, of them 9.6 / 9.0 in the system's page faults
    `to_channelslast(use_amp=False)`, fastai's own  7.8 /  8.6
    glibc told to keep large blocks                 4.2 /  7.5    (MALLOC_* in the environment, set by `peer_fastai.py`)
    both, which is `tuned`                          4.8 /  5.8
    both, and bfloat16                              3.9 / 10.8    (its work without waiting: 3.6 / 5.4; no gain, left out)
    as it comes, no worker processes               10.9 / 14.1    (within the spread of as it comes)
fastai's own `to_bf16` asks for CUDA's autocast and changes nothing on a processor; bfloat16 above was a callback.
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

seconds: dict[str, float] = {}  # stage -> how long


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Time a part of the whole."""
    begun = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - begun


def loaders(task: dict[str, Any]) -> Any:
    """Training and validation photos as fastai wants them, from a table."""
    import pandas as pd
    from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms

    rows = [(path, label, part == "validation") for path, label, part in task["photos"] if part != "test"]
    table = pd.DataFrame(rows, columns=["path", "label", "is_valid"])
    given = {} if task["workers"] is None else {"num_workers": task["workers"]}
    transforms = {"item_tfms": Resize(task["side"]), "batch_tfms": aug_transforms()}
    return ImageDataLoaders.from_df(table, task["root"], valid_col="is_valid", **transforms, **given)


def learner(task: dict[str, Any], data: Any) -> Any:
    """fastai's learner around timm's backbone, its weights from the file."""
    from fastai.vision.all import accuracy, vision_learner

    overlay = {"file": task["weights"]}
    learn = vision_learner(data, task["network"], metrics=accuracy, pretrained_cfg_overlay=overlay)
    if task["tuned"]:
        learn.to_channelslast(use_amp=False)  # mixed precision would be CUDA's
    return learn


def predicted(task: dict[str, Any], learn: Any) -> list[str]:
    """The class that it gives each test photo, in the order of the task, each scored once."""
    import pandas as pd

    paths = [path for path, _, part in task["photos"] if part == "test"]
    data = learn.dls.test_dl(pd.DataFrame({"path": paths}))
    probabilities, _ = learn.get_preds(dl=data)
    return [learn.dls.vocab[index] for index in probabilities.argmax(1).tolist()]


def normalisation(learn: Any) -> list[list[float]]:
    """Mean and deviation that the photos are normalised by: whoever reads the record sees that they are the network's."""
    (normalise,) = [each for each in learn.dls.after_batch.fs if type(each).__name__ == "Normalize"]
    return [normalise.mean.flatten().tolist(), normalise.std.flatten().tolist()]


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Everything that is timed, from the import to the last score."""
    with stage("import"):
        import torch
        from fastai.vision.all import set_seed
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    set_seed(task["seed"])
    with stage("data"):
        data = loaders(task)
    with stage("network"):
        learn = learner(task, data)
    with stage("train"):
        learn.fine_tune(task["epochs"])
    with stage("score"):
        labels = predicted(task, learn)
    setting = {"threads": torch.get_num_threads(), "workers": data.train.fake_l.num_workers, "batch": data.train.bs}
    setting |= {"normalised_by": normalisation(learn), "device": str(data.device)}
    return {"seconds": seconds, "predicted": labels, "setting": setting}


def versions() -> dict[str, str]:
    """What this environment has; importing it also leaves compiled files behind, so that no timed run has to."""
    import fastai.vision.all  # noqa: F401
    import timm  # noqa: F401

    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def main() -> None:
    """Do what is asked; the answer goes to the file alone, since fastai's bars are on standard output."""
    warnings.filterwarnings("ignore")
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is to be fetched: if the file of weights were not taken, it must fail
    asked, answer = sys.argv[1:]
    told = versions() if asked == "--versions" else run(json.loads(Path(asked).read_text("utf-8")))
    Path(answer).write_text(json.dumps(told) + "\n", "utf-8")


if __name__ == "__main__":
    main()
