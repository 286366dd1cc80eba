"""One contestant of `finetune.py`.

python bench/finetune_worker.py CONTESTANT PHOTOS STEPS      # then a line on standard input for each turn
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SIDE, BATCH, CLASSES, DROPPED = 224, 32, 5, 2
Step = Callable[[], int]  # one step; returns how many photos it saw


def processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ikebana(photos: Path) -> tuple[Step, float]:
    import numpy as np
    import torch

    from ikebana import recipes
    from ikebana.data import pixel_cache, sources
    from ikebana.data.split import split_photos
    from ikebana.learning import estimate, examples
    from ikebana.learning.augmentation import augment
    from ikebana.learning.models import networks, parameter_groups
    from ikebana.learning.models.assembly import assemble
    from ikebana.learning.training.trainer import Trainer, plan_phases
    from ikebana.system import progress

    progress.set_reporter(progress.SilentReporter())
    recipe = networks.fill_defaults(recipes.get_recipe("good"))
    built = assemble(recipe, CLASSES)
    setting = estimate.configure_device(built)
    opened, keep = pixel_cache.open_pixel_cache(sources.read(photos), recipe.image_size, recipe.resize)
    dataset = split_photos(opened, recipe)
    train = examples.build_split_examples(dataset, keep.pixels)["train"]
    network, batch_size = built.network, recipe.gradient_method.batch_size
    photo = torch.zeros((1, 3, recipe.image_size, recipe.image_size), dtype=torch.uint8)
    gflop = counted(network.eval(), photo) / 2  # mirrored: seen twice
    learner = Trainer(network.to(setting.device), recipe, plan_phases(recipe)[-1], train.labels)
    generator = torch.Generator().manual_seed(0)
    order = np.random.default_rng(0).permutation(len(train))
    places = iter(range(10**9))

    def step() -> int:
        start = next(places) * batch_size % (len(order) - batch_size)
        inputs, labels = train.get_batch(order[start : start + batch_size], setting.device)
        assert recipe.augmentation is not None
        loss, _ = learner.step(augment(inputs, recipe.augmentation, generator), labels, setting)
        float(loss)
        return len(labels)

    parameter_groups.set_training_mode(network, recipe, learner.phase.trainable)
    return step, gflop


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def learning(whole: bool) -> tuple[Any, Any, float]:
    """EfficientNet-Lite0 as the reference trains it, or the layers that `good` trains; what moves its weights; its GFLOP."""
    import timm
    import torch

    network: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=CLASSES)
    gflop = counted(network.eval(), torch.zeros((1, 3, SIDE, SIDE)))
    network.to(device())
    if whole:
        optimiser: Any = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    else:
        learned = (*(f"blocks.{number}" for number in range(3, 7)), "conv_head", "bn2", "classifier")
        for name, weight in network.named_parameters():
            weight.requires_grad = name.startswith(learned)
        optimiser = torch.optim.AdamW([each for each in network.parameters() if each.requires_grad], 3e-4)
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and not whole:
            module.eval()
    return network, optimiser, gflop


def looped(photos: Path, whole: bool) -> tuple[Step, float]:
    """A loop in torch: the whole network as the reference trains it, or the layers that `good` trains."""
    import torch
    from torchvision import datasets
    from torchvision.transforms import v2

    changes = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(SIDE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    network, optimiser, gflop = learning(whole)
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(str(photos), changes),
        BATCH,
        shuffle=True,
        num_workers=processors(),
        drop_last=True,
        pin_memory=device() == "cuda",
    )
    loss_of = torch.nn.CrossEntropyLoss()

    def endless() -> Iterator[Any]:
        while True:
            yield from loader

    batches = endless()

    def step() -> int:
        inputs, labels = (each.to(device(), non_blocking=True) for each in next(batches))
        loss = loss_of(network(inputs), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        float(loss)  # a GPU is at it while the processor goes on
        return len(labels)

    return step, gflop


def counted(network: Any, batch: Any) -> float:
    """GFLOP of a photo's way through a network, forward."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(batch)
    return counter.get_total_flops() / 1e9 / len(batch)


def answer(**values: float) -> None:
    print("\n" + json.dumps(values), flush=True)  # a bar may stand on the line


def ultralytics(photos: Path, steps: int) -> None:
    """Its trainer calls back after each batch: there it waits for its turns."""
    import torch
    from ultralytics import YOLO  # pyright: ignore[reportMissingImports]

    told: dict[str, Any] = {"begun": None, "seen": 0}

    def after_batch(trainer: Any) -> None:
        told["seen"] += 1
        if told["begun"] is None:  # set up, one batch seen
            answer(gflop=counted(trainer.model, torch.zeros((1, 3, SIDE, SIDE))))
            sys.stdin.readline()
            told.update(begun=time.perf_counter(), seen=0)
        elif told["seen"] == DROPPED:
            told["begun"] = time.perf_counter()
        elif told["seen"] == DROPPED + steps:
            answer(rate=steps * BATCH / (time.perf_counter() - told["begun"]))
            sys.stdin.readline()
            told.update(begun=time.perf_counter(), seen=0)

    with tempfile.TemporaryDirectory() as scratch:
        for part in ("train", "val"):
            (Path(scratch) / part).symlink_to(photos.resolve())
        network = YOLO("yolo11n-cls.yaml")
        network.add_callback("on_train_batch_end", after_batch)
        network.train(
            data=scratch,
            imgsz=SIDE,
            batch=BATCH,
            epochs=1000,
            workers=processors(),
            device="cpu",
            pretrained=False,
            plots=False,
            save=False,
            val=False,
            verbose=False,
            project=scratch,
        )


def main() -> None:
    name, photos, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if name == "ultralytics":
        ultralytics(photos, steps)
        return
    step, gflop = ikebana(photos) if name == "ikebana" else looped(photos, whole=name == "reference")
    answer(gflop=gflop)
    for _ in sys.stdin:
        for _ in range(DROPPED):
            step()
        begun = time.perf_counter()
        seen = sum(step() for _ in range(steps))
        answer(rate=seen / (time.perf_counter() - begun))


if __name__ == "__main__":
    main()
