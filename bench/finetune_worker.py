"""Run one contestant of `finetune.py`.

python bench/finetune_worker.py CONTESTANT PHOTOS STEPS      # then one line on standard input per turn
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

IMAGE_SIZE, BATCH_SIZE, CLASSES, WARMUP_STEPS = 224, 32, 5, 2
# Runs one training step, and returns the number of photos in it.
Step = Callable[[], int]


def count_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_up_ikebana(photos: Path) -> tuple[Step, float]:
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
    assembled = assemble(recipe, CLASSES)
    settings = estimate.configure_device(assembled)
    photo_set, cache = pixel_cache.open_pixel_cache(sources.read(photos), recipe.image_size, recipe.resize)
    dataset = split_photos(photo_set, recipe)
    train = examples.build_split_examples(dataset, cache.pixels)["train"]
    network, batch_size = assembled.network, recipe.gradient_method.batch_size
    photo = torch.zeros((1, 3, recipe.image_size, recipe.image_size), dtype=torch.uint8)
    # In evaluation mode, flip TTA runs the network twice per photo.
    gflop = count_gflop(network.eval(), photo) / 2
    learner = Trainer(network.to(settings.device), recipe, plan_phases(recipe)[-1], train.labels)
    generator = torch.Generator().manual_seed(0)
    order = np.random.default_rng(0).permutation(len(train))
    step_numbers = iter(range(10**9))

    def step() -> int:
        start = next(step_numbers) * batch_size % (len(order) - batch_size)
        inputs, labels = train.get_batch(order[start : start + batch_size], settings.device)
        assert recipe.augmentation is not None
        loss, _ = learner.step(augment(inputs, recipe.augmentation, generator), labels, settings)
        float(loss)
        return len(labels)

    parameter_groups.set_training_mode(network, recipe, learner.phase.trainable)
    return step, gflop


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def build_network(trains_all_layers: bool) -> tuple[Any, Any, float]:
    """Build EfficientNet-Lite0 and its optimiser.

    Args:
        trains_all_layers: train all layers as the reference script does, otherwise those that `good` trains

    Returns: network, optimiser, GFLOP per photo
    """
    import timm
    import torch

    network: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=CLASSES)
    gflop = count_gflop(network.eval(), torch.zeros((1, 3, IMAGE_SIZE, IMAGE_SIZE)))
    network.to(device())
    if trains_all_layers:
        optimiser: Any = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    else:
        trained_layers = (*(f"blocks.{number}" for number in range(3, 7)), "conv_head", "bn2", "classifier")
        for name, weight in network.named_parameters():
            weight.requires_grad = name.startswith(trained_layers)
        optimiser = torch.optim.AdamW([weight for weight in network.parameters() if weight.requires_grad], 3e-4)
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and not trains_all_layers:
            module.eval()
    return network, optimiser, gflop


def set_up_torch_loop(photos: Path, trains_all_layers: bool) -> tuple[Step, float]:
    """Set up a plain torch loop that trains all layers, or those that `good` trains."""
    import torch
    from torchvision import datasets
    from torchvision.transforms import v2

    transforms = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomResizedCrop(IMAGE_SIZE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    network, optimiser, gflop = build_network(trains_all_layers)
    loader = torch.utils.data.DataLoader(
        datasets.ImageFolder(str(photos), transforms),
        BATCH_SIZE,
        shuffle=True,
        num_workers=count_processors(),
        drop_last=True,
        pin_memory=device() == "cuda",
    )
    criterion = torch.nn.CrossEntropyLoss()

    def repeat_batches() -> Iterator[Any]:
        while True:
            yield from loader

    batches = repeat_batches()

    def step() -> int:
        inputs, labels = (tensor.to(device(), non_blocking=True) for tensor in next(batches))
        loss = criterion(network(inputs), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        # Wait for the GPU, whose kernels run asynchronously.
        float(loss)
        return len(labels)

    return step, gflop


def count_gflop(network: Any, batch: Any) -> float:
    """Count the GFLOP of a forward pass per photo."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(batch)
    return counter.get_total_flops() / 1e9 / len(batch)


def write_answer(**values: float) -> None:
    # A progress bar may occupy the current line.
    print("\n" + json.dumps(values), flush=True)


def run_ultralytics(photos: Path, steps: int) -> None:
    """Train with ultralytics, and wait for each turn in its callback after a batch."""
    import torch
    from ultralytics import YOLO  # pyright: ignore[reportMissingImports]

    state: dict[str, Any] = {"start": None, "batches": 0}

    def after_batch(trainer: Any) -> None:
        state["batches"] += 1
        # The first batch completes the setup.
        if state["start"] is None:
            write_answer(gflop=count_gflop(trainer.model, torch.zeros((1, 3, IMAGE_SIZE, IMAGE_SIZE))))
            sys.stdin.readline()
            state.update(start=time.perf_counter(), batches=0)
        elif state["batches"] == WARMUP_STEPS:
            state["start"] = time.perf_counter()
        elif state["batches"] == WARMUP_STEPS + steps:
            write_answer(rate=steps * BATCH_SIZE / (time.perf_counter() - state["start"]))
            sys.stdin.readline()
            state.update(start=time.perf_counter(), batches=0)

    with tempfile.TemporaryDirectory() as scratch:
        for part in ("train", "val"):
            (Path(scratch) / part).symlink_to(photos.resolve())
        network = YOLO("yolo11n-cls.yaml")
        network.add_callback("on_train_batch_end", after_batch)
        network.train(
            data=scratch,
            imgsz=IMAGE_SIZE,
            batch=BATCH_SIZE,
            epochs=1000,
            workers=count_processors(),
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
        run_ultralytics(photos, steps)
        return
    step, gflop = (
        set_up_ikebana(photos)
        if name == "ikebana"
        else set_up_torch_loop(photos, trains_all_layers=name == "reference")
    )
    write_answer(gflop=gflop)
    for _ in sys.stdin:
        for _ in range(WARMUP_STEPS):
            step()
        start = time.perf_counter()
        n_photos = sum(step() for _ in range(steps))
        write_answer(rate=n_photos / (time.perf_counter() - start))


if __name__ == "__main__":
    main()
