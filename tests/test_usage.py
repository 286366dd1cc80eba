"""Wrong usage is reported with what happened and what to try."""

import pytest

from ikebana import cli
from ikebana.cli import training_commands
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
