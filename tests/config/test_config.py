"""Configurations: lists are tuples however they were written, and earlier names are accepted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cerebra_jax import config
from cerebra_jax.cli import flags, settings
from cerebra_jax.config import names
from cerebra_jax.errors import UserError
from cerebra_jax.training import workdir as folder

ROOT = Path(__file__).resolve().parents[2]
LISTS = {
    "net.kept.heads": ("1,0,2", (1, 0, 2)),
    "net.kept.ffn": ("8, 48, 3", (8, 48, 3)),
    "task.columns": ("a, b", ("a", "b")),
    "task.ignore": ("a", ("a",)),
    "task.types": ("a:number,*:category", ("a:number", "*:category")),
}


@pytest.fixture
def told(monkeypatch) -> set[str]:
    """What was said of earlier names; nothing so far."""
    lines: set[str] = set()
    monkeypatch.setattr(names, "_told", lines)
    return lines


def nested(key: str, value: object) -> dict:
    tree = {"net": {"depth": 3}}
    section, *sections = key.split(".")
    inner = tree.setdefault(section, {})
    for part in sections[:-1]:
        inner = inner.setdefault(part, {})
    inner[sections[-1]] = value
    return tree


def value_of(cfg: config.RunCfg, key: str) -> object:
    value = cfg
    for part in key.split("."):
        value = getattr(value, part)
    return value


@pytest.mark.parametrize("key", LISTS)
def test_a_list_is_a_tuple_whatever_it_was_written_as(key):
    text, want = LISTS[key]
    for written in (text, want, list(want)):
        assert value_of(config.parse(nested(key, written)), key) == want
    # in a configuration file
    edited = config.defaults()
    edited.net.depth = 3
    *sections, name = key.split(".")
    section = edited
    for part in sections:
        section = section[part]
    section[name] = text
    assert value_of(config.parse(edited), key) == want
    # and in the file of a run
    saved = json.loads(json.dumps(config.to_dict(config.parse(edited))))
    assert config.parse(saved) == config.parse(edited)
    assert config.renewed(nested(key, text)) == config.renewed(nested(key, list(want)))


@pytest.mark.parametrize("bad", [3, [1.5], ["1"], [True], {"a": 1}, "1,x"])
def test_a_list_of_other_things_is_refused(bad):
    with pytest.raises(UserError, match="net.kept.heads is .*; give whole numbers with commas"):
        config.parse(nested("net.kept.heads", bad))


def test_a_run_of_before_with_text_in_the_place_of_lists_is_the_same_run(tmp_path):
    cfg = config.parse({})
    old = config.to_dict(cfg)
    old["net"]["route"]["by_layer"] = ""
    old["net"]["kept"] = dict.fromkeys(old["net"]["kept"], "")
    del old["net"]["window"]  # of before the key existed
    (tmp_path / "config.json").write_text(json.dumps(old))
    (tmp_path / "metrics.jsonl").touch()
    folder.check(tmp_path, cfg)
    old["net"]["route"]["by_layer"] = "1,2"
    (tmp_path / "config.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match="net.route.by_layer"):
        folder.check(tmp_path, cfg)


def test_an_earlier_value_is_accepted_with_one_line_of_notice(told, capsys):
    for _ in range(2):
        assert config.parse({"task": {"name": "longseq"}}).task.name == "long_sequence"
    words = [f"--config={ROOT / 'configs' / 'longseq.py'}", "--config.task.name=longseq"]
    assert flags.parse(words).cfg.task.name == "long_sequence"
    assert config.renewed({"task": {"name": "longseq"}})["task"]["name"] == "long_sequence"
    out, err = capsys.readouterr()
    line = "task.name=longseq is now called task.name=long_sequence; the old name still works"
    assert not out and err == f"notice: {line}\n"


@pytest.mark.parametrize(("was", "now"), [(False, "off"), (True, "full"), ("dots", "dots")])
def test_a_key_that_was_a_switch_still_is_one(was, now, told, capsys):
    assert config.parse({"net": {"remat": was}}).net.remat == now
    assert config.renewed({"net": {"remat": was}})["net"]["remat"] == now
    values = config.defaults()
    values.net.remat = was
    assert config.parse(values).net.remat == now
    assert capsys.readouterr() == ("", "")
    with pytest.raises(UserError, match="net.scan"):
        config.parse({"net": {"scan": "dots"}})


def test_an_earlier_key_is_accepted_everywhere_with_one_line_of_notice(
    told, capsys, monkeypatch, tmp_path
):
    monkeypatch.setitem(names.RENAMED_KEYS, "net.hidden_size", "net.width")
    base = f"--config={ROOT / 'configs' / 'wikitext.py'}"
    assert flags.parse([base, "--config.net.hidden_size=64"]).cfg.net.width == 64
    old = {"net": {"hidden_size": 64}}
    assert config.parse(old).net.width == 64
    assert config.renewed(old)["net"]["width"] == 64
    sweep = tmp_path / "sweep.py"
    row = '{"config": "configs/wikitext.py", "net.hidden_size": 64}'
    sweep.write_text(f"def get_sweep():\n    return [{row}]\n")
    monkeypatch.chdir(ROOT)
    points = flags.parse(["sweep", f"--config={sweep}"]).sweep.points
    assert [point.cfg.net.width for point in points] == [64]
    err = capsys.readouterr().err
    assert err == "notice: net.hidden_size is now called net.width; the old name still works\n"


def test_values_of_a_sweep_may_be_lists():
    base = str(ROOT / "configs" / "tabular.py")
    for written in ("a,b", ["a", "b"], ("a", "b")):
        assert settings.load(base, {"task.ignore": written}).task.ignore == ("a", "b")
