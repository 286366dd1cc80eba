"""The commands demo, doctor and cache."""

from pathlib import Path

from ikebana.cli.app import DEFAULT_OUTPUT, Device, Output, Switch, app
from ikebana.system import progress


@app.command(sort_key=10)
def demo(*, out: Path | None = None, output: Output = DEFAULT_OUTPUT) -> None:
    """Draw photos of paper flowers, train on them and predict new ones.

    This takes about half a minute.

    Parameters
    ----------
    out
        The folder to write. Default: ikebana-demo.
    """
    output.apply()
    from ikebana.demo_data import demo

    folder = demo.demo(out).folder
    progress.event("done", folder=str(folder))
    progress.result(str(folder))


@app.command(sort_key=11)
def doctor(*, device: Device = "auto", output: Output = DEFAULT_OUTPUT) -> None:
    """Show this machine's hardware, how ikebana will use it, and why."""
    from ikebana.commands import doctor as doctor_command

    output.apply()
    facts = doctor_command.doctor(device=device)
    progress.result("\n".join(f"{name:<14} {value}" for name, value in facts.items()))
    progress.event("done", **facts)


@app.command(sort_key=12)
def cache(*, clear: Switch = False, output: Output = DEFAULT_OUTPUT) -> None:
    """Show what the cache contains and how large it is, or clear it.

    It contains decoded photos, features, unpacked archives and weights.

    Parameters
    ----------
    clear
        Delete the cache. What is needed again is computed again.
    """
    from ikebana.commands import cache as cache_command

    output.apply()
    contents = cache_command.cache(clear)
    progress.result(repr(contents))
    progress.event("done", folder=str(contents.folder), bytes={usage.kind: usage.bytes for usage in contents.kinds})
