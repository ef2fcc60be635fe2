"""What may name a place: a file of data never says where code is loaded from or where to write."""

from __future__ import annotations

import json
import os

import pytest

from cerebra_jax import config
from cerebra_jax.cli import settings, sweep_points, sweep_pool
from cerebra_jax.cli.train import compile_cache
from cerebra_jax.config import names
from cerebra_jax.trained import _configuration

READ = {"task.data_dir", "task.path", "task.gpt2_dir", "task.tokenizer_from", "init_from"}
WRITE = {"task.cache_dir"}


@pytest.fixture(autouse=True)
def told():
    names._told.clear()


def test_every_key_that_is_a_path_says_what_it_is_for():
    assert config.places() == dict.fromkeys(READ, "read") | dict.fromkeys(WRITE, "write")
    for key, field in config.fields().items():
        words = field.metadata["doc"].lower()
        is_path = words.startswith(("folder", "file", "table", "where prepared"))
        assert not is_path or key in READ | WRITE, key


@pytest.fixture
def hostile(tmp_path):
    """A run's folder whose config.json names a place of its own."""
    found = config.to_dict(config.RunCfg())
    found["task"]["cache_dir"] = str(tmp_path / "theirs")
    found["task"]["data_dir"] = "texts"
    (tmp_path / "config.json").write_text(json.dumps(found))
    return tmp_path


def test_a_file_of_data_names_no_place_to_write_or_to_load_code_from(hostile, capsys, monkeypatch):
    file = hostile / "config.json"
    monkeypatch.setenv("CEREBRA_CACHE", str(hostile / "own"))
    for cfg in (settings.load(str(file), {}), _configuration(hostile)):
        assert (cfg.task.cache_dir, cfg.task.data_dir) == ("", "texts")
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        compile_cache(cfg.task)
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(hostile / "own" / "xla")
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "task.cache_dir" in told and "CEREBRA_CACHE" in told
    assert not (hostile / "theirs").exists()


def test_the_command_line_and_a_sweep_that_it_started_may(hostile):
    mine = str(hostile / "mine")
    cfg = settings.load(str(hostile / "config.json"), {"task.cache_dir": mine})
    assert cfg.task.cache_dir == mine
    words = sweep_pool.command(sweep_points.Point("a", cfg, hostile))
    assert f"--config.task.cache_dir={mine}" in words
