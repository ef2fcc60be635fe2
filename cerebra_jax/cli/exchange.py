"""import and export: what CHIAR's authors saved, or tensors by name, into the folder of a run and out of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cerebra_jax import config
from cerebra_jax.checks import need
from cerebra_jax.cli import checkpoint_files as read
from cerebra_jax.cli import exported_program as program
from cerebra_jax.cli import flags, settings
from cerebra_jax.cli import model_card as card
from cerebra_jax.cli import tensor_files as files
from cerebra_jax.cli.screen import Screen
from cerebra_jax.errors import UserError
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import workdir as folder

FORMATS = ("safetensors", "stablehlo", "onnx")
HOW = """from safetensors.numpy import load_file

tensors = load_file("{name}")  # name -> array; to go on with it: cerebra import --from={name} --to=runs/NAME"""


class Request(NamedTuple):
    """What is read, and where it goes."""

    command: str
    source: Path  # a file for import, the folder of a run for export
    to: Path
    tau: tuple[float, ...]
    overrides: dict[str, str]
    verbose: bool
    form: str = FORMATS[0]
    platforms: tuple[str, ...] = program.PLATFORMS
    materialise: bool = False
    rows: int = 1


def parse(argv: list[str]) -> Request:
    """Request of the words from `import` or `export` on; nothing is read."""
    command, options, overrides = flags.words(argv)
    source = "from" if command == "import" else "workdir"
    for name in (source, "to"):
        need(
            bool(options.get(name)),
            f"--{name} is missing",
            f"write {command} --{source}=... --to=...",
        )
    form, platforms = (
        options.get("format", FORMATS[0]),
        tuple(options.get("platforms", "cpu,cuda,tpu").split(",")),
    )
    need(form in FORMATS, f"--format is {form!r}", f"choose one of {', '.join(FORMATS)}")
    known = set(platforms) <= set(program.PLATFORMS)
    need(
        known,
        f"--platforms is {','.join(platforms)}",
        f"choose among {', '.join(program.PLATFORMS)}, with commas",
    )
    for name in ("materialise", "platforms"):
        need(
            form == "stablehlo" or name not in options,
            f"--{name} is given for {form}",
            "use --format=stablehlo",
        )
    changed = next(iter(overrides), "")
    need(
        command == "import" or not changed,
        f"export cannot change {changed}",
        "a run's config.json rules",
    )
    try:
        tau = tuple(float(number) for number in options.get("tau", "").split(",") if number)
    except ValueError:
        tau = (math.nan,)
    good = all(0 <= t <= 1 for t in tau)
    need(
        good,
        f"--tau is {options.get('tau')!r}",
        "give a threshold from 0 to 1, or one a routed layer with commas",
    )
    rows = options.get("rows", "1")
    need(rows.isdecimal() and int(rows) > 0, f"--rows is {rows!r}", "give a number: --rows=1")
    need(
        form == "onnx" or "rows" not in options, f"--rows is given for {form}", "use --format=onnx"
    )
    switches = form, platforms, "materialise" in options, int(rows)
    return Request(
        command,
        Path(options[source]),
        Path(options["to"]),
        tau,
        overrides,
        "verbose" in options,
        *switches,
    )


def run(argv: list[str]) -> None:
    """Raises UserError where a file, a run or a configuration will not do."""
    request, screen = parse(argv), Screen()
    (bring if request.command == "import" else send)(request, screen.say)


def bring(request: Request, say: Callable[[str], None]) -> None:
    """Makes the folder of a run out of a file of tensors: config.json, import.json, checkpoints/."""
    to = request.to
    emptied(to)
    found = read.model(files.read(request.source), request.overrides, request.tau)
    folder.prepare(to, False, say)
    with folder.quiet(to / "log.txt", request.verbose):
        from cerebra_jax.training import imported as outside

        outside.save(found.cfg, to, outside.Weights(found.named, found.step, found.score), say)
    about = {
        "from": str(request.source),
        "sha256": files.sha256(request.source),
        "step": found.step,
    }
    folder.write_json(to / "import.json", about | {"score": found.score, "notes": found.notes})
    folder.write_json(to / "config.json", config.to_dict(found.cfg))
    net, size = (
        found.cfg.net,
        sum(a.size for name, a in found.named.items() if name.startswith("params/")),
    )
    say(f"model {net.name} · {size:,} parameters · {net.depth} layers of width {net.width}")
    for line in found.notes:
        say(line)
    say(f"done: {to}")


def emptied(to: Path) -> None:
    """UserError where something else is in a folder that a run is to be made in."""
    need(not to.is_file(), f"{to} is a file", "choose another --to")
    there = {path.name for path in to.iterdir()} if to.is_dir() else set()
    need(
        there <= {"log.txt"}, f"{to} is not empty", "choose another --to"
    )  # a refused attempt leaves its log


def send(request: Request, say: Callable[[str], None]) -> None:
    """Writes the best checkpoint of a run: as a .safetensors file, with its configuration in the file's own text, or as
    a program. A card, the configuration and the tokenizer stand beside it."""
    cfg = settings.load(str(request.source / "config.json"), {})
    need(not request.to.is_dir(), f"{request.to} is a folder", "give the name of a file")
    if request.form == "stablehlo":
        with folder.quiet(request.source / "log.txt", request.verbose):
            program.write(
                cfg, request.source, request.to, request.platforms, request.materialise, say
            )
        return
    if request.form == "onnx":
        with folder.quiet(request.source / "log.txt", request.verbose):
            program.onnx(cfg, request.source, request.to, request.rows, say)
        return
    with folder.quiet(request.source / "log.txt", request.verbose):
        from cerebra_jax.training import imported as outside

        step, named, score = outside.load(request.source, say)
    tensors, about, line = read.plain(cfg, named)
    files.write(request.to, tensors, about | {"step": str(step), "score": repr(score)})
    try:
        task = build(cfg, lambda line: None)
    except UserError as e:  # its data have gone: the weights are worth exporting all the same
        task = None
        say(f"no tokenizer beside it: {e}")
    facts = [f"{len(tensors)} tensors; {line}"]
    for path in card.write(
        request.to, cfg, task, step, score, facts, HOW.format(name=request.to.name)
    ):
        say(f"written: {path}")
    say(f"checkpoint {step:,} · {len(tensors)} tensors · {line}")
    say(f"done: {request.to}")
