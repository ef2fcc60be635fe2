"""export: writes the best checkpoint of a run, as a .safetensors file or as a program with the
weights inside.

A card, the configuration and the tokenizer stand beside it.
"""

from __future__ import annotations

from collections.abc import Callable

from cerebra_jax.checks import require
from cerebra_jax.cli import arguments, settings, tensor_files
from cerebra_jax.cli import checkpoint_files as read
from cerebra_jax.cli import exported_program as program
from cerebra_jax.cli import model_card as card
from cerebra_jax.cli.arguments import Parser, Request
from cerebra_jax.cli.screen import Screen
from cerebra_jax.config import RunCfg
from cerebra_jax.errors import UserError
from cerebra_jax.training import preprocessing
from cerebra_jax.training import workdir as folder

MOST_ROWS = 65_536  # at once: a program of fixed shapes keeps memory for all of them
FORMATS = ("safetensors", "stablehlo", "onnx")
USE = """from safetensors.numpy import load_file

# {{name: array}}; to go on with it: cerebra import --from={name} --to=runs/NAME
tensors = load_file("{name}")"""


def add_arguments(parser: Parser) -> None:
    """Declares the options."""
    parser.add_argument(
        "--workdir", metavar="DIR", type=arguments.folder, help="the folder of the run"
    )
    parser.add_argument(
        "--to", metavar="FILE", type=arguments.file, help="the file that is written"
    )
    parser.add_argument(
        "--format",
        type=arguments.choice(*FORMATS),
        default=FORMATS[0],
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)} (default {FORMATS[0]})",
    )
    parser.add_argument(
        "--platforms",
        metavar="NAMES",
        type=_platforms,
        help="what a stablehlo program is for (default cpu,cuda,tpu)",
    )
    parser.add_argument(
        "--materialise",
        action="store_true",
        help="in a stablehlo program, make one matrix of each DCT filter, and of the compressor "
        "and what follows it where that saves work",
    )
    parser.add_argument(
        "--rows",
        type=arguments.whole(1, MOST_ROWS),
        metavar="N",
        help="rows that an onnx program takes at once (default 1)",
    )
    arguments.add_verbose(parser)


def check(request: Request) -> None:
    """Raises UserError where an option is missing, or belongs to another format."""
    usage = "write export --workdir=DIR --to=FILE"
    require(request.workdir is not None, "--workdir is missing", usage)
    require(request.to is not None, "--to is missing", usage)
    form = request.format
    for name, is_given, owner in (
        ("materialise", request.materialise, "stablehlo"),
        ("platforms", request.platforms is not None, "stablehlo"),
        ("rows", request.rows is not None, "onnx"),
    ):
        require(
            form == owner or not is_given,
            f"--{name} is given for {form}",
            f"use --format={owner}",
        )


def run(request: Request) -> None:
    """Writes the file; raises UserError where the run will not do."""
    say, to = Screen().say, request.to
    cfg = settings.load(str(request.workdir / "config.json"), {})
    require(not to.is_dir(), f"{to} is a folder", "give the name of a file")
    with folder.quiet(request.workdir / "log.txt", request.verbose):
        if request.format == "stablehlo":
            form = program.Form(request.platforms or program.PLATFORMS, request.materialise)
            program.write(cfg, request.workdir, to, form, say)
        elif request.format == "onnx":
            program.onnx(cfg, request.workdir, to, request.rows or 1, say)
        else:
            _tensors(cfg, request, say)


def _tensors(cfg: RunCfg, request: Request, say: Callable[[str], None]) -> None:
    """Writes a .safetensors file, with the configuration in the file's own text."""
    from cerebra_jax.training import imported
    from cerebra_jax.training.sizes import with_division

    step, named, score, by_layer = imported.load(request.workdir, say)
    cfg = with_division(cfg, by_layer)
    tensors, about, line = read.plain(cfg, named)
    tensor_files.write(request.to, tensors, about | {"step": str(step), "score": repr(score)})
    try:
        task = preprocessing.restore(cfg, request.workdir, lambda line: None)
    except UserError as e:  # its data have gone: the weights are worth exporting all the same
        task = None
        say(f"no tokenizer beside it: {e}")
    made = card.Made(cfg, task, step, score, [f"{len(tensors)} tensors; {line}"])
    for path in card.write(request.to, made, USE.format(name=request.to.name)):
        say(f"written: {path}")
    say(f"checkpoint {step:,} · {len(tensors)} tensors · {line}")
    say(f"done: {request.to}")


def _platforms(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if not set(names) <= set(program.PLATFORMS):
        arguments.refuse(text, f"choose among {', '.join(program.PLATFORMS)}, with commas")
    return names
