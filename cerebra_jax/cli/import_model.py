"""import: makes the folder of a run of a file: what CHIAR's authors saved, or tensors by name."""

from __future__ import annotations

import math
from collections.abc import Callable

from cerebra_jax import config
from cerebra_jax.checks import require
from cerebra_jax.cli import arguments, tensor_files
from cerebra_jax.cli import checkpoint_files as read
from cerebra_jax.cli.arguments import Parser, Request
from cerebra_jax.cli.screen import Screen
from cerebra_jax.training import preprocessing
from cerebra_jax.training import workdir as folder


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    parser.takes_keys = True
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FILE",
        type=arguments.file,
        help="a .pt file (nothing in it is run) or a .safetensors file",
    )
    parser.add_argument(
        "--to", metavar="DIR", type=arguments.folder, help="the folder of the run that is made"
    )
    parser.add_argument(
        "--tau",
        metavar="NUMBERS",
        type=_thresholds,
        default=(),
        help="the threshold, or one for each routed layer with commas, where the file does not say",
    )
    parser.epilog = (
        "--config.KEY=VALUE sets what the file does not say, such as --config.net.heads=16. "
        "`cerebra keys` lists all keys."
    )
    arguments.add_verbose(parser)


def check(request: Request) -> None:
    """Raises UserError where an option is missing."""
    usage = "write import --from=FILE --to=DIR"
    require(request.source is not None, "--from is missing", usage)
    require(request.to is not None, "--to is missing", usage)


def run(request: Request) -> None:
    """Makes the folder; raises UserError where the file or the configuration will not do."""
    make(request, Screen().say)


def make(request: Request, say: Callable[[str], None]) -> None:
    """Writes config.json, import.json and checkpoints/ of the run."""
    to = request.to
    arguments.new_folder(to)
    found = read.model(tensor_files.read(request.source), request.overrides, request.tau)
    folder.prepare(to, False, say)
    with folder.quiet(to / "log.txt", request.verbose):
        from cerebra_jax.training import imported

        imported.save(found.cfg, to, imported.Weights(found.named, found.step, found.score), say)
    about = {
        "from": str(request.source),
        "sha256": tensor_files.sha256(request.source),
        "step": found.step,
        "score": found.score,
        "notes": found.notes,
    }
    folder.write_json(to / "import.json", about)
    beside = request.source.with_name(f"{request.source.name}.{preprocessing.FILE}")
    preprocessing.copy(beside, to)
    folder.write_json(to / "config.json", config.to_dict(found.cfg))
    net = found.cfg.net
    size = sum(a.size for name, a in found.named.items() if name.startswith("params/"))
    say(f"model {net.name} · {size:,} parameters · {net.depth} layers of width {net.width}")
    for line in found.notes:
        say(line)
    say(f"done: {to}")


def _thresholds(text: str) -> tuple[float, ...]:
    numbers = tuple(arguments.as_float(word) for word in text.split(",") if word)
    if not all(math.isfinite(number) and 0 <= number <= 1 for number in numbers):
        hint = "give a threshold from 0 to 1, or one a routed layer with commas"
        arguments.refuse(text, hint)
    return numbers
