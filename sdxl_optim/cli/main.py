"""The list of commands, and exit codes for what ends them."""

from __future__ import annotations

import argparse
import sys

from sdxl_optim import __version__
from sdxl_optim.cli import bench, calibrate, compare, demo, demo_model, doctor, generate
from sdxl_optim.cli.console import PROG
from sdxl_optim.errors import Failed, Refused, SettingsError

COMMANDS = (generate, demo, bench, compare, demo_model, calibrate, doctor)


def main(argv: list[str] | None = None) -> int:
    """Exit code 0; 1 where something failed, 2 after one sentence about what is wrong with the input or refused by a
    library, 130 when it was interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a file's encoding on Windows lacks characters
    try:
        args = make_parser().parse_args(argv)
        return args.run(args)
    except (SettingsError, Refused) as error:
        sys.stderr.write(f"{PROG}: {error}\n")
    except Failed as error:
        sys.stderr.write(f"{PROG}: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"{PROG}: interrupted\n")
        return 130
    except ImportError as error:
        if (error.name or "").startswith(PROG):
            raise
        lacking = f'{error.name} is missing; pip install ".[standalone]" in the project\'s folder has it'
        sys.stderr.write(f"{PROG}: {lacking if isinstance(error, ModuleNotFoundError) else error}\n")
    return 2


class Parser(argparse.ArgumentParser):
    """Ends with one sentence, where argparse prints the usage too."""

    def error(self, message: str):
        self.exit(2, f"{PROG}: {message}\n")


def make_parser() -> Parser:
    """Each command adds its own parser, which sets `run`: a function of the parsed arguments that returns the exit
    code."""
    parser = Parser(PROG, description="Stable Diffusion XL with optimisations that compose and tell what they did.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True)
    for command in COMMANDS:
        command.add_to(commands)
    commands.metavar = " | ".join(commands.choices)
    return parser
