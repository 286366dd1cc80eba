"""Wrong usage is reported with what happened and what to try."""

import os
import shlex
from pathlib import Path
from typing import get_args

import pytest

import ikebana
from ikebana import cli
from ikebana.cli import training_commands
from ikebana.cli.argument_order import refuse_photos_first
from ikebana.data.containers import CONTAINER_SUFFIXES
from ikebana.data.output_folders import RUN_FILES
from ikebana.errors import UsageError
from ikebana.system.files import resolve_output_path
from ikebana.system.usage import unwrap_descriptions

HELP = "ikebana fit --help"


@pytest.mark.parametrize(
    ("arguments", "message", "advice"),
    [
        (["fit", "a", "b"], "unexpected argument: b", HELP),
        (["fit", "a", "--epohcs", "3"], "there is no option --epohcs", f"--epochs, or {HELP}"),
        (["fit", "a", "--epohcs=3"], "there is no option --epohcs", f"--epochs, or {HELP}"),
        (["fit", "a", "--sidelong", "3"], "there is no option --sidelong", HELP),
        (["fit", "a", "--out", "b"], "there is no option --out", f"--run, or {HELP}"),
        (["audit", "a", "--output", "b"], "there is no option --output", "--out, or ikebana audit --help"),
        (["fit", "a", "--epochs"], "--epochs needs a value", HELP),
        (["fit", "a", "--epochs", "many"], "Invalid value for --epochs: 'many' is not a whole number", HELP),
        (["fit", "a", "--split-seed", "0.5"], "Invalid value for --split-seed: '0.5' is not a whole number", HELP),
        (["fit", "a", "--at-most-wrong", "-5%"], "--at-most-wrong cannot be negative: -5%", HELP),
        (["fit", "a", "--epochs", "--json"], "--epochs needs a value", HELP),
        (["fit", "a", "--epochs", "15", "--epochs"], "--epochs needs a value", HELP),
        (["export"], "RUN is missing", "ikebana export --help"),
    ],
)
def test_wrong_usage_exits_with_2_and_advice(arguments, message, advice, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr() == ("", f"UsageError: {message}\n  try  {advice}\n")


@pytest.mark.parametrize("suffix", CONTAINER_SUFFIXES)
def test_a_pattern_that_the_shell_replaced_is_to_be_quoted(suffix, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    files = [f"shards/photos-{number}{suffix}" for number in range(3)]
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(SystemExit):
        cli.main(["audit", *files])
    assert capsys.readouterr().err.endswith(f"so that the shell does not replace it: 'shards/*{suffix}'\n")
    with pytest.raises(SystemExit):
        cli.main(["audit", files[0], "missing.tar"])
    assert capsys.readouterr().err.endswith("ikebana audit --help\n")


@pytest.mark.parametrize(
    ("arguments", "corrected"),
    [
        ("predict garden flowers.onnx", "ikebana predict flowers.onnx garden"),
        ("predict garden run --out table.csv", "ikebana predict run garden"),
        ("predict garden run --out shards/", "ikebana predict run garden"),
        ("predict a.jpg b.jpg flowers.onnx", "ikebana predict flowers.onnx a.jpg b.jpg"),
        ("predict a.jpg b.jpg c.jpg d.jpg flowers.onnx", "ikebana predict flowers.onnx a.jpg b.jpg c.jpg …"),
        ("explain garden flowers.onnx --out why", "ikebana explain flowers.onnx garden"),
        ("export new.onnx run", "ikebana export run new.onnx"),
    ],
)
def test_a_model_that_is_given_last_is_an_error_with_the_corrected_command(
    arguments, corrected, tmp_path, monkeypatch, capsys
):
    for name in ("garden", "run"):
        (tmp_path / name).mkdir()
    for name in RUN_FILES:
        (tmp_path / "run" / name).write_text("{}")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(arguments.split())
    lines = capsys.readouterr().err.splitlines()
    assert (end.value.code, lines[2]) == (2, f"  try  {corrected}")
    assert "comes first, then" in lines[0]
    assert lines[1] == f"  in   {arguments.split()[1]}"


def test_a_corrected_command_can_be_pasted_into_a_shell(tmp_path):
    with pytest.raises(UsageError) as refusal:
        refuse_photos_first("predict", tmp_path / "my garden", ["my flowers.onnx"])
    assert shlex.split(refusal.value.advice or "") == [
        "ikebana", "predict", "my flowers.onnx", str(tmp_path / "my garden"),
    ]  # fmt: skip


@pytest.mark.parametrize("photos", [["garden"], ["garden", "other.onnx"]])
def test_a_model_that_is_given_first_is_no_error(photos):
    refuse_photos_first("predict", Path("flowers.onnx"), photos)
    refuse_photos_first("predict", Path("model"), ["garden"])


def list_path_arguments():
    """List the command and the name of each path on this computer; "" if positional."""
    for command in cli.app:
        if not command.startswith("-"):
            for argument in cli.app[command].assemble_argument_collection():
                if argument.hint is Path or Path in get_args(argument.hint):
                    yield command, argument.name if argument.index is None else ""


@pytest.mark.parametrize("address", ["s3://garden/x.onnx", "s3://garden/x/", "gs://x/y.csv", "azure://x/y"])
@pytest.mark.parametrize(("command", "name"), sorted(set(list_path_arguments())))
def test_no_path_on_this_computer_may_be_an_address(command, name, address, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    positional = {"predict": ["m.onnx", "p"], "explain": ["m.onnx", "p"], "export": ["run"], "fit": ["p"]}
    given = [name, address] if name else []
    arguments = positional.get(command, ["p"]) if name else [address, *(["p"] if command in positional else [])]
    if command == "demo":
        arguments = []
    if name == "--join":
        given += ["--out", "out/"]
    with pytest.raises(SystemExit) as end:
        cli.main([command, *arguments, *given])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "UsageError: this is an address, and a path on this computer is needed here" in error
    assert f"in   {address.rstrip('/')}\n" in error
    # Photos may also be on a web server, which the advice must not exclude.
    assert "only photos may be at an address" in error
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("out", ["azure://x/y/", "azure://x/y.csv", "s3:/x/y/", "ftp://x"])
def test_predictions_are_written_to_no_unknown_kind_of_store(out, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(["predict", "m.onnx", "p", "--out", out])
    assert end.value.code == 2
    assert "this is an address" in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_functions_refuse_an_address_as_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for address in ("s3://garden/x.csv", Path("s3://garden/x.csv")):
        for work in (
            lambda address=address: ikebana.predict(address, "photo.jpg"),
            lambda address=address: ikebana.predict("model.onnx", "photo.jpg", address),
            lambda address=address: resolve_output_path(address),
        ):
            with pytest.raises(UsageError, match="this is an address") as refusal:
                work()
            assert refusal.value.where == "s3://garden/x.csv"
    monkeypatch.setenv("IKEBANA_CACHE", "s3://garden/cache")
    with pytest.raises(UsageError, match="this is an address"):
        ikebana.cache()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("ftp://x/y", "s3://, gs://, hf://, https://, http://"),
        ("azure://x/y", "s3://, gs://, hf://, https://, http://"),
        ("s3:/garden", "s3://garden"),
    ],
)
def test_an_address_that_cannot_be_read_is_answered_with_those_that_can(source, advice, paper_model):
    for work in (ikebana.audit, ikebana.fit, lambda photos: ikebana.predict(paper_model, photos)):
        with pytest.raises(ikebana.PhotosError) as refusal:
            work(source)
        assert advice in str(refusal.value)


def test_the_help_breaks_lines_at_the_width_of_the_terminal_only():
    def command(photos, out):
        """Do something.

        It takes a while.

        Parameters
        ----------
        photos
            A folder with
            photos, or
            an archive.
        out
            The file.
        """

    unwrap_descriptions(command)
    assert command.__doc__ == (
        "Do something.\n\nIt takes a while.\n\nParameters\n----------\nphotos\n    A folder with photos, or an archive."
        "\nout\n    The file."
    )
    assert "path and label, or an address such as s3://bucket/folder.\nrecipe" in (training_commands.fit.__doc__ or "")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("pedict", "ikebana predict, or"),
        ("train", "ikebana fit, or"),
        ("flowers", "one of audit, cache, compare, demo, doctor, explain, export, fit, predict, report, serve, sweep"),
    ],
)
def test_an_unknown_command_is_refused_with_the_one_that_was_meant_or_all(name, advice, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([name])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert f'there is no command "{name}"' in error
    assert advice in error


def test_no_usage_line_hides_the_names_of_arguments(capsys):
    for name in cli.app:
        if not name.startswith("-"):
            with pytest.raises(SystemExit):
                cli.main([name, "--help"])
            usage = capsys.readouterr().out.splitlines()[0]
            assert usage.startswith(f"Usage: ikebana {name} ")
            assert "ARGS" not in usage
