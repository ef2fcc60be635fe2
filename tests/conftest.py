"""Strict by default: warnings and rank promotion are errors, 8 CPU devices, no network."""

from __future__ import annotations

import gc
import os
import random
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_USER_ENV = dict(os.environ)  # what subprocesses start from: one device, as for a user
_CACHE = {
    "CEREBRA_CACHE": tempfile.mkdtemp(prefix="cerebra-test-cache-"),
    "JAX_COMPILATION_CACHE_DIR": os.environ.get(
        "JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax")
    ),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "HF_HUB_OFFLINE": "1",
}
# the tests compile many tiny programs: unoptimised code takes two thirds of the time to make, and
# the older code generator of fusions two thirds of that
_FLAGS = (
    f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
os.environ |= _CACHE | {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"{_FLAGS} --xla_force_host_platform_device_count=8",
    # XLA's CPU pool is sized by core count: with fewer threads than devices, collectives deadlock
    # on jax < 0.12
    "NPROC": "16",
}

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell's background job: nohup … &
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402  (after the environment)
import pytest  # noqa: E402

from cerebra_jax import config  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# tracing makes many small objects and few cycles: looking for these took a tenth of all CPU time
gc.freeze()
gc.set_threshold(100_000, 50, 100)

# what `-m quick` runs, about two minutes on two cores: files of many small facts and few programs
QUICK = (
    "config/",
    "cost/",
    "report/",
    "routing/test_dispatch.py",
    "tasks/tabular/",
    "tasks/text/test_scan.py",
    "kernels/test_topk.py",
    "kernels/test_straight_through.py",
    "kernels/test_cross_entropy.py",
    "layers/test_recurrent.py",
    "models/test_rules.py",
    "models/test_shapes.py",
    "policies/test_policy.py",
    "test_checks.py",
    "test_house.py",
)


# what `-m floor` runs with the oldest versions we promise: one variant of each kind of program
FLOOR = (
    "test_smoke.py",
    "test_contract.py",
    "test_costs.py::test_analytic_equals_counted[",
    "test_costs.py::test_a_decoded_token_costs_what_is_counted[",
    "training/test_certificate.py::test_a_finished_run_is_certified_as_trained",
)
FLOOR_VARIANTS = (
    "dense",
    "chiar-threshold-routed-dispatched",
    "chiar-rbf-threshold",
    "chiar-scan-remat",
    "cerebra-hybrid-odd",
    "cerebra-gla-gla",
    "cerebra-ssm-local-threshold-dispatched",
    "mod-learned",
    "lstm-scan-remat",
    "cnn",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the tests of the subsets, and lets those of one variant follow each other.

    A model that one test has made and compiled then serves the next ones. Large drivers of faults
    run only where -m names them.
    """
    if "faults" not in config.option.markexpr:
        large = [item for item in items if item.get_closest_marker("faults")]
        config.hook.pytest_deselected(items=large)
        items[:] = [item for item in items if item not in large]
    for item in items:
        name = item.path.relative_to(ROOT / "tests").as_posix()
        if name.startswith(QUICK):
            item.add_marker(pytest.mark.quick)
        whole = f"{name}::{item.name}"
        if whole.startswith(FLOOR) and _variant(item) in (None, *FLOOR_VARIANTS):
            item.add_marker(pytest.mark.floor)
    files = {item.path: i for i, item in enumerate(items)}
    items.sort(key=lambda item: (files[item.path], _variant(item) or ""))


def _variant(item: pytest.Item) -> str | None:
    """Returns the name of the model's variant that a test is of, if it is of one."""
    call = getattr(item, "callspec", None)
    name = call.params.get("name", call.params.get("case")) if call else None
    return name if isinstance(name, str) else None


_LOCAL = {"127.0.0.1", "::1", "localhost", ""}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a test that reaches for the network fail at once, as on an offline machine."""
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> Any:
        if isinstance(address, tuple) and address[0] not in _LOCAL:
            raise OSError(f"tests may not use the network: {address}")
        return connect(self, address)

    def guarded_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in _LOCAL and host is not None:
            raise socket.gaierror(f"tests may not use the network: {host}")
        return lookup(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guarded_connect)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_lookup)


@pytest.fixture(scope="session")
def clean_env() -> dict[str, str]:
    """Returns the environment of subprocesses: a user's own, offline, with our caches."""
    env = {k: v for k, v in _USER_ENV.items() if not k.startswith("PYTEST_")}
    dead_proxy = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
    )
    path = os.pathsep.join(filter(None, (str(ROOT), env.get("PYTHONPATH"))))
    own = {"JAX_PLATFORMS": "cpu", "NO_COLOR": "1", "PYTHONPATH": path, "XLA_FLAGS": _FLAGS}
    return env | _CACHE | dead_proxy | own


@pytest.fixture(scope="session")
def tiny_cfg() -> Callable[..., config.RunCfg]:
    """Returns a function that makes a small configuration, of nested or dotted keys.

    tiny_cfg({"net.name": "transformer", "train": {"accum": 2}})

    It has `blocks` blocks of each kind that the model repeats, unless the keys say net.depth.
    """

    def make(overrides: Mapping[str, Any] | None = None, blocks: int = 2) -> config.RunCfg:
        values: dict[str, Any] = {
            "task": {"tokenizer": "bytes", "vocab_size": 260, "seq_len": 32},
            "net": {"width": 32, "heads": 2, "ffn_width": 64, "loss_chunk": 64},
            "train": {"duration": "8 steps", "batch_size": 8},
        }
        _merge(values, overrides or {})
        values["net"].setdefault("depth", _depth(values["net"], blocks))
        return config.parse(values)

    return make


def _depth(net: Mapping[str, Any], blocks: int) -> int:
    """Returns the layers of a small model: as many as lists name, if it has any."""
    lists = [net.get("route", {}).get("by_layer", ""), *net.get("kept", {}).values()]
    named = max(map(str, lists), key=len)
    if named:
        return len(named.split(","))
    # CHIAR has a first and a last layer of its own, MoD a dense one before each routed one
    return {"chiar": 3, "mod": max(2, blocks)}.get(net.get("name", "chiar"), blocks)


class _Screen:
    """Keeps what the training loop shows."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.begun: tuple[int, int] | None = None
        self.ended = 0

    def say(self, line: str) -> None:
        self.lines.append(line)

    def begin(self, total: int, done: int) -> None:
        self.begun = (total, done)

    def step(self, done: int, text: str, due: bool) -> None:
        if due:
            self.say(text)

    def end(self) -> None:
        self.ended += 1


@pytest.fixture(scope="session", name="Screen")
def _screen() -> type[_Screen]:
    """Returns a screen that shows nothing and keeps its lines: Screen()."""
    return _Screen


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a CSV of 60 rows: a category, a number, and y to predict."""
    rng = random.Random(0)
    rows = [f"{rng.choice('abc')},{rng.gauss(0, 1):.3f},{rng.gauss(5, 2):.3f}" for _ in range(60)]
    path = tmp_path_factory.mktemp("table") / "t.csv"
    path.write_text("kind,x,y\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture(scope="session")
def rents() -> Callable[[int], list[list[str]]]:
    """Returns a function that makes n rows: id, city, area, date of building, rent."""

    def make(n: int) -> list[list[str]]:
        rng = random.Random(7)
        rows = []
        for i in range(n):
            day = f"{rng.randint(1, 28):02d}.{rng.randint(1, 12):02d}.{rng.randint(1990, 2024)}"
            area = rng.uniform(20, 140)
            city = rng.choice(["Köln", "München", "Halle (Saale)"])
            rent = 9 * area + rng.gauss(0, 9)
            rows.append([f"A-{i:05d}", city, f"{area:.1f}", day, f"{rent:.2f}"])
        return rows

    return make


@pytest.fixture(scope="session")
def go(
    Screen: type[_Screen],
) -> Callable[..., tuple[dict[str, Any], list[dict[str, Any]], _Screen]]:
    """Returns a function that trains, go(cfg, folder, stop).

    It returns the result, the lines of metrics.jsonl without times, and the screen.
    """
    from cerebra_jax.tasks.registry import build
    from cerebra_jax.training import metrics
    from cerebra_jax.training import trainer as loop

    def run(cfg: config.RunCfg, folder: Path, stop: Callable[[], bool] = lambda: False):
        folder.mkdir(exist_ok=True)
        screen = Screen()
        found = loop.run(cfg, build(cfg, lambda line: None), folder, screen, stop)
        times = ("tokens_per_s", "step_ms")
        kept = [
            {k: v for k, v in x.items() if k not in times}
            for x in metrics.read(folder / "metrics.jsonl")
        ]
        return found, kept, screen

    return run


@pytest.fixture(scope="session")
def write_text() -> Callable[..., Path]:
    """Returns a function that writes train.txt, valid.txt and test.txt of four words."""

    def write(folder: Path, train: int) -> Path:
        rng = random.Random(1)
        for split, count in (("train", train), ("valid", 8), ("test", 8)):
            lines = [rng.choices(["one", "two", "three", "four"], k=10) for _ in range(count)]
            (folder / f"{split}.txt").write_text("".join(" ".join(x) + "\n" for x in lines))
        return folder

    return write


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for key, value in new.items():
        head, _, rest = key.partition(".")
        if rest:
            value = {rest: value}
        if isinstance(value, Mapping):
            _merge(into.setdefault(head, {}), value)
        else:
            into[head] = value


@pytest.fixture(scope="session", autouse=True)
def _remove_cache() -> Iterator[None]:
    yield
    import shutil

    shutil.rmtree(_CACHE["CEREBRA_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session")
def eight_bits() -> None:
    """Skips tests that train or run in 8 bits where the library is not installed."""
    pytest.importorskip("qwix", reason="8 bits take qwix: the extra `quant`")
