"""The command line: one small file per command, loaded when it is called."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from cyclopts import App, CycloptsError

from cryoai.errors import CryoAIError

app = App(
    name="cryoai",
    help="Ab initio single-particle cryo-EM: from a particle stack to a map, poses and an honest resolution.",
    version=lambda: version("cryoai"),
)
_COMMANDS = {
    "demo": "Simulate, reconstruct and compare with the truth, in about a minute.",
    "info": "Say what is understood of a particle file, a stack or a map.",
    "simulate": "Simulate particles of a known molecule, with their true poses.",
    "reconstruct": "Reconstruct a map and a pose for every particle, with nothing known beforehand.",
    "infer": "Pose new particles with the trained encoder of a finished run.",
    "select": "Choose particles of a finished run by class and confidence, to go on with.",
    "evaluate": "Compare maps, poses and classes with the truth, over both hands.",
}
for _name, _help in _COMMANDS.items():
    app.command(f"cryoai.cli.{_name}:{_name}", name=_name, help=_help)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, with 2 for wrong input or options, or with 1 for any other failure."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except (CryoAIError, CycloptsError) as error:
        if debug:
            raise
        _fail(str(error), error.exit_code if isinstance(error, CryoAIError) else 2)
    except KeyboardInterrupt:
        _fail("stopped; a reconstruction goes on with --resume", 1)
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone; that is no failure of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if debug:
            raise
        _fail(f"{type(error).__name__}: {error} (run again with --debug for details)", 1)


def _fail(message: str, exit_code: int) -> None:
    from rich.console import Console
    from rich.text import Text

    sentence = " ".join(message.split())
    Console(stderr=True, soft_wrap=True).print(Text("cryoai: ", style="bold red") + Text(sentence))
    sys.exit(exit_code)
