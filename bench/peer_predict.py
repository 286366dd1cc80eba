"""Compare the throughput of `ikebana predict` with Keras, fastai and torch.

    python bench/peer_predict.py --photos FOLDER [--cnn baseline.onnx --tf-env ENV]
                                 [--lite0 good.onnx --fastai-env ENV] [--rounds 3]

Measures photos per second on a folder, from the start of the process to its end. --cnn is an export
of `baseline` (the tutorial's four convolutions). Its peer is Keras as the tutorial uses it:
`image_dataset_from_directory`, `Rescaling`, `predict`. --lite0 is an export of `quick` or `good`.
Its peers are fastai's `test_dl` and `get_preds` with timm's network, and torch with torchvision's
ImageFolder and a DataLoader with one worker per processor. The networks of the peers have the same
layers and random weights, so the work is the same. The contestants alternate within a round.

FOLDER has a sub-folder for each class. Each ENV is a virtual environment that holds the peer.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import format_header, format_spread

KERAS = """
import sys, keras
keras.utils.set_random_seed(0)
layers, side = keras.layers, 150
network = keras.Sequential([keras.Input((side, side, 3)), layers.Rescaling(1 / 255)])
for width in (32, 64, 128, 128):
    network.add(layers.Conv2D(width, 3, activation="relu"))
    network.add(layers.MaxPooling2D(2))
for layer in (layers.Flatten(), layers.Dense(512, activation="relu"), layers.Dense(5, activation="softmax")):
    network.add(layer)
photos = keras.utils.image_dataset_from_directory(sys.argv[1], image_size=(side, side), batch_size=64, shuffle=False, verbose=0)
print(len(network.predict(photos, verbose=0)))
"""
FASTAI = """
import sys
from fastai.vision.all import *
data = ImageDataLoaders.from_folder(sys.argv[1], valid_pct=0.2, seed=0, item_tfms=Resize(224))
learn = vision_learner(data, "tf_efficientnet_lite0", pretrained=False, normalize=False)
files = get_image_files(sys.argv[1])
probabilities, _ = learn.get_preds(dl=learn.dls.test_dl(files))
print(len(probabilities))
"""
TORCH = """
import os, sys, timm, torch
from torchvision import transforms
from torchvision.datasets import ImageFolder
photos = ImageFolder(sys.argv[1], transforms.Compose([
    transforms.Resize((224, 224)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]))
network = timm.create_model("tf_efficientnet_lite0", num_classes=5).eval()
loader = torch.utils.data.DataLoader(photos, batch_size=64, num_workers=len(os.sched_getaffinity(0)))
with torch.inference_mode():
    probabilities = [torch.softmax(network(batch), 1) for batch, _ in loader]
print(len(torch.cat(probabilities)))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--cnn", type=Path)
    parser.add_argument("--lite0", type=Path)
    parser.add_argument("--tf-env", type=Path)
    parser.add_argument("--fastai-env", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(format_header("onnxruntime", "torch", "pillow"), len(os.sched_getaffinity(0)), "of them allowed", flush=True)
    count = sum(1 for file in options.photos.rglob("*") if file.is_file())
    with tempfile.TemporaryDirectory() as scratch:
        commands = build_commands(options, str(Path(scratch) / "x.csv"))
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(options.rounds):
            for name, command in commands.items():
                times[name].append(time_command(command))
                print(f"  {name}: {count / times[name][-1]:.0f} photos per second", flush=True)
    print(f"{count} photos, photos per second:")
    for name, durations in times.items():
        print(f"  {name}: {format_spread([count / duration for duration in durations], 0)}")


def build_commands(options: argparse.Namespace, out: str) -> dict[str, list[str]]:
    """Build the commands of the contestants whose environments are given."""
    photos = str(options.photos)
    commands = {
        f"ikebana predict, {name}": [sys.executable, "-m", "ikebana", "predict", str(file), photos, "--out", out]
        for name, file in (("the CNN", options.cnn), ("Lite0", options.lite0))
        if file
    }
    if options.cnn and options.tf_env:
        commands["Keras predict, the CNN"] = [str(options.tf_env / "bin/python"), "-c", KERAS, photos]
    if options.lite0 and options.fastai_env:
        commands["fastai get_preds, Lite0"] = [str(options.fastai_env / "bin/python"), "-c", FASTAI, photos]
    if options.lite0:
        commands["torch and DataLoader, Lite0"] = [sys.executable, "-c", TORCH, photos]
    return commands


def time_command(command: list[str]) -> float:
    """Measure the seconds of a complete process."""
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    start = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
    if result.returncode:
        raise SystemExit(f"{command[:4]}: {result.stderr[-1500:]}")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
