"""What does not fit into memory is refused before the first step, with cures that are settings."""

from __future__ import annotations

import re
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from cerebra_jax import main as program
from cerebra_jax.cost import memory
from cerebra_jax.errors import UserError
from cerebra_jax.tasks.registry import build
from cerebra_jax.training import parallel, processes
from cerebra_jax.training import trainer as loop
from cerebra_jax.training.memory import Need, Room

GB = 10**9


class Cpu(SimpleNamespace):
    platform, device_kind = "cpu", "cpu"


@pytest.fixture
def cfg_of(tiny_cfg):
    def make(keys=None):
        base = {"task": {"name": "long_sequence", "kind": "mqar", "pairs": 2, "vocab_size": 64}}
        base |= {"net": {"name": "transformer", "width": 8, "ffn_width": 8}}
        base["train"] = {"duration": "1 steps", "devices": 1}
        return tiny_cfg(base | (keys or {}), blocks=1)

    return make


def room_of(cfg, devices: int = 1, **more) -> Room:
    return Room(cfg, [Cpu()] * devices, **more)


# ---- what is free


def write(root, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


MACHINE = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"}
V2 = MACHINE | {"proc/self/cgroup": "0::/a/b\n"}
V1 = MACHINE | {"proc/self/cgroup": "5:cpu:/x\n4:memory,pids:/job\n"}
FREE = {
    "the machine's": (MACHINE, 8000 * 1024),
    "of a group": (
        V2
        | {
            "sys/fs/cgroup/a/b/memory.max": "5000\n",
            "sys/fs/cgroup/a/b/memory.current": "3000\n",
            "sys/fs/cgroup/a/b/memory.stat": "anon 1000\ninactive_file 500\n",
        },
        2500,
    ),
    "of the group around it": (
        V2
        | {
            "sys/fs/cgroup/a/b/memory.max": "max\n",
            "sys/fs/cgroup/a/memory.max": "4000\n",
            "sys/fs/cgroup/a/memory.current": "3000\n",
        },
        1000,
    ),
    "of a group of the first version": (
        V1
        | {
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "7000\n",
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "6500\n",
            "sys/fs/cgroup/memory/job/memory.stat": "total_inactive_file 100\n",
        },
        600,
    ),
    "not known": ({}, memory.ALWAYS),
}


@pytest.mark.parametrize("name", FREE)
def test_what_is_free_is_the_least_of_machine_and_groups(name: str, tmp_path):
    files, free = FREE[name]
    write(tmp_path, files)
    assert memory.free_on_host(tmp_path) == free


def test_a_device_says_itself_what_is_free():
    stats = {"bytes_limit": 1000, "bytes_in_use": 300}
    assert memory.free(SimpleNamespace(platform="gpu", memory_stats=lambda: stats)) == 700
    assert memory.free(SimpleNamespace(platform="tpu", memory_stats=lambda: None)) == memory.ALWAYS


# ---- before anything is compiled


def test_an_absurd_batch_is_refused_before_anything_is_traced(
    cfg_of, monkeypatch, tmp_path, Screen
):
    cfg = cfg_of({"train": {"batch_size": 10**9, "devices": 1, "duration": "1 steps"}})
    monkeypatch.setattr(loop, "prepare", lambda *args: pytest.fail("it is traced"))
    with pytest.raises(UserError, match="training needs about .* GB of memory") as raised:
        loop.run(cfg, build(cfg, lambda line: None), tmp_path, Screen())
    assert "--force" in raised.value.hint and "task.seq_len=16" in raised.value.hint


def test_parameters_that_are_too_large_by_themselves_are_refused(cfg_of, monkeypatch):
    monkeypatch.setattr(memory, "free_on_host", lambda: 1000)
    like = SimpleNamespace(params=jnp.zeros(400))
    monkeypatch.setattr("cerebra_jax.training.memory.tree_bytes", lambda tree: 800)
    with pytest.raises(UserError, match="a smaller net.width or net.depth"):
        room_of(cfg_of()).outline_state(like)


# ---- the compiled step


def test_a_compiled_step_that_does_not_fit_is_refused(cfg_of, monkeypatch, tmp_path, Screen):
    cfg = cfg_of()
    task = build(cfg, lambda line: None)
    monkeypatch.setattr(memory, "free_on_host", lambda: 100_000)
    for name in ("run", "forced"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError) as raised:
        loop.run(cfg, task, tmp_path / "run", Screen())
    assert re.match(
        r"training needs [\d.]+ MB of memory, and [\d.]+ MB are free", raised.value.what
    )
    assert re.search(r"train.accum=\d \(about [\d.]+ MB less\)", raised.value.hint)
    # the same run, by force
    result = loop.run(cfg, task, tmp_path / "forced", Screen(), force=True)
    assert result["steps"] == 1


def test_the_step_is_compiled_once(monkeypatch):
    seen, traced = [], []

    def train(state, batch, key, axis=None):
        traced.append(1)
        return state + batch["x"].sum(), {}

    step = parallel.DataParallel(train, train, parallel.jax.devices()[:1], seen.append)
    state, key = step.place(jnp.zeros(())), parallel.jax.random.key(0)
    batch = step.shard({"x": jnp.ones((2, 2))})
    for _ in range(3):
        state, _ = step.step(state, batch, key)
    assert (len(seen), len(traced), float(state)) == (1, 1, 12.0)
    assert seen[0].memory_analysis().argument_size_in_bytes > 0


# ---- cures

NEED = Need(state=1 * GB, batch=0, activations=40 * GB)


def test_cures_are_settings_with_what_they_save(cfg_of):
    cfg = cfg_of({"train.batch_size": 48, "net.depth": 4})
    accum, remat, length = room_of(cfg).cures(NEED, 12 * GB)
    assert accum == ("train.accum=4", 30 * GB)  # 3 leaves 14.3 GB
    assert remat[0] == "net.remat=full" and 29 * GB < remat[1] <= 30 * GB
    assert length == ("task.seq_len=16", 20 * GB)


def test_a_cure_that_is_in_use_or_impossible_is_not_named(cfg_of):
    cfg = cfg_of({"train.batch_size": 4, "train.accum": 2, "net.remat": "full", "net.depth": 4})
    assert room_of(cfg, devices=2, has_length=False).cures(NEED, 2 * GB) == []


def test_where_the_batch_itself_is_too_large_it_is_made_smaller(cfg_of):
    cfg = cfg_of({"train.batch_size": 48, "train.accum": 2})
    need = Need(state=0, batch=48 * GB, activations=0)
    first, *_ = room_of(cfg, devices=2).cures(need, 13 * GB)
    assert first == ("train.batch_size=12", 36 * GB)


@pytest.mark.parametrize("free, word", [(12, "or"), (5, "and")])
def test_cures_that_are_not_enough_alone_are_named_together(free, word, cfg_of):
    cfg = cfg_of({"train.batch_size": 4, "net.depth": 4})
    with pytest.raises(UserError, match=rf"less\) {word} task.seq_len=16"):
        room_of(cfg)._refuse("", NEED, free * GB)


# ---- full memory all the same


@pytest.mark.parametrize(
    "error", [MemoryError("std::bad_alloc"), "RESOURCE_EXHAUSTED: Out of memory"]
)
def test_full_memory_in_a_step_is_the_users_line(error, cfg_of):
    if isinstance(error, str):
        error = type("JaxRuntimeError", (RuntimeError,), {})(error)
    with pytest.raises(UserError, match="memory of cpu is not enough") as raised:
        with room_of(cfg_of()).explained():
            raise error
    assert "train.accum=2" in raised.value.hint


def test_another_error_stays_what_it_is(cfg_of):
    with pytest.raises(ValueError, match="x"), room_of(cfg_of()).explained():
        raise ValueError("x")


def test_full_memory_in_any_command_is_one_line(monkeypatch, capsys):
    def full(command):
        raise MemoryError("cannot allocate 9 GB")

    monkeypatch.setattr("cerebra_jax.cli.commands.load", full)
    assert program.main(["keys"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: memory is full (cannot allocate 9 GB); use")


# ---- processes and devices

SEVERAL = {
    "JAX": {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
    "a coordinator": {"JAX_COORDINATOR_ADDRESS": "localhost:1234"},
    "SLURM": {"SLURM_NTASKS": "4", "SLURM_PROCID": "3"},
    "MPI": {"OMPI_COMM_WORLD_SIZE": "2"},
    "a pod": {"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"},
}
ONE = {
    "nothing": {},
    "one of JAX": {"JAX_NUM_PROCESSES": "1", "JAX_COORDINATOR_ADDRESS": "localhost:1"},
    "one of SLURM": {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
    "no task of SLURM": {"SLURM_NTASKS": "4"},
    "one host": {"TPU_WORKER_HOSTNAMES": "localhost"},
}


@pytest.mark.parametrize("env", SEVERAL.values(), ids=SEVERAL)
def test_one_of_several_processes_is_refused(env):
    with pytest.raises(UserError, match="a run is one process"):
        processes.require_one(env)


@pytest.mark.parametrize("env", ONE.values(), ids=ONE)
def test_a_process_of_its_own_is_not(env):
    processes.require_one(env)


def test_train_refuses_before_it_touches_a_folder(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    words = ["--config=configs/longseq.py:smoke", f"--workdir={tmp_path / 'run'}"]
    assert program.main(words) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "JAX_NUM_PROCESSES is 2" in line and not (tmp_path / "run").exists()


def test_idle_devices_are_named(cfg_of):
    train = cfg_of({"train": {"batch_size": 100, "devices": 0, "accum": 1}}).train
    used = parallel.choose_devices(0, 100, 1)
    assert len(used) == 5  # of the 8 that tests have
    [line] = parallel.idle(used, train)
    assert line.startswith("5 of 8 devices are used") and "train.batch_size=104" in line
    assert parallel.idle(parallel.choose_devices(0, 104, 1), train) == []


def test_many_layers_are_announced(cfg_of):
    assert "1,000 layers" in loop._long(cfg_of({"net.depth": 1000}))
    assert loop._long(cfg_of({"net.depth": 1000, "net.scan": True})) == ""
    assert loop._long(cfg_of()) == ""
