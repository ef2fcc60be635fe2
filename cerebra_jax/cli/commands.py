"""Lists the commands.

Each is a module of this package with two functions, and a third where it has more to check:

    add_arguments(parser)   declares its options
    check(request)          adds what follows from them, such as a configuration; imports no JAX
    run(request)            does it

Each of them may raise UserError.

To add a command, write its module and add its line here. A module is imported when its command is
asked for.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import NamedTuple

from cerebra_jax import config
from cerebra_jax.config import names
from cerebra_jax.errors import UserError


class Command(NamedTuple):
    """Where a command stands, and what it does in a sentence."""

    module: str
    help: str


COMMANDS = {
    "train": Command("train", "Trains a model, or resumes a stopped run. This is the default."),
    "cost": Command("cost", "Shows parameters, FLOPs, memory and step time without training."),
    "eval": Command("evaluate", "Measures the best checkpoint of a run again."),
    "generate": Command("generate", "Continues a prompt with a run that was trained on text."),
    "predict": Command("predict", "Answers for the rows of a CSV file."),
    "certify": Command("certify", "Proves that a model costs less than its dense twin."),
    "heatmap": Command("heatmap", "Shows which tokens of a text take the heavy path."),
    "analyze": Command("analyze", "Tells what the routing decisions of a run on text go with."),
    "calibrate": Command("calibrate", "Sets the thresholds of a run of chiar by a text."),
    "shrink": Command("shrink", "Makes a smaller run of one that was pruned."),
    "convert": Command("convert", "Makes a run with int8 weights of one trained in 8 bits."),
    "import": Command("import_model", "Makes a run of a file of tensors."),
    "export": Command("export", "Writes the best checkpoint of a run as tensors or as a program."),
    "sweep": Command("sweep", "Trains every point of a list, or searches with Optuna."),
    "report": Command("report", "Compares finished runs in a table, a page and figures."),
    "keys": Command("keys", "Lists the configuration keys with type, default and meaning."),
}


def load(name: str) -> ModuleType:
    """Returns the module of a command."""
    return importlib.import_module(f"cerebra_jax.cli.{COMMANDS[name].module}")


def find(word: str) -> str:
    """Returns the command of this name.

    Raises UserError with the nearest one where there is none.
    """
    if word in COMMANDS:
        return word
    meant = names.synonym(word, names.COMMANDS)
    near = f"did you mean {meant}?" if meant else config.suggest(word, list(COMMANDS))
    hint = near or f"commands are {', '.join(COMMANDS)}"
    raise UserError(f"unknown command {word!r}", hint)
