"""Wrong usage is reported with what happened and what to try."""

import shlex
from pathlib import Path

import pytest

from ikebana import cli
from ikebana.cli import training_commands
from ikebana.cli.argument_order import refuse_photos_first
from ikebana.data.output_folders import RUN_FILES
from ikebana.errors import UsageError
from ikebana.system.usage import unwrap_descriptions

HELP = "ikebana fit --help"


@pytest.mark.parametrize(
    ("arguments", "message", "advice"),
    [
        (["fit", "a", "b"], "unexpected argument: b", HELP),
        (["fit", "a", "--epohcs", "3"], "there is no option --epohcs", f"--epochs, or {HELP}"),
        (["fit", "a", "--epohcs=3"], "there is no option --epohcs", f"--epochs, or {HELP}"),
        (["fit", "a", "--sidelong", "3"], "there is no option --sidelong", HELP),
        (["fit", "a", "--epochs"], "--epochs needs a value", HELP),
        (["fit", "a", "--epochs", "many"], 'Invalid value for --epochs: unable to convert "many" into int.', HELP),
        (["export"], "RUN is missing", "ikebana export --help"),
    ],
)
def test_wrong_usage_exits_with_2_and_advice(arguments, message, advice, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr() == ("", f"UsageError: {message}\n  try  {advice}\n")


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


def test_an_unknown_command_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["train"])
    assert end.value.code == 2
    assert 'Unknown command "train"' in capsys.readouterr().err
