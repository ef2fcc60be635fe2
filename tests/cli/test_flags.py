"""The command line: a mistake is one line with a hint, exit 2, before JAX.

The rest is read right.
"""

from __future__ import annotations

import json
import random
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest

import cerebra_jax
from cerebra_jax import config
from cerebra_jax.cli import commands, flags
from cerebra_jax.config import names
from cerebra_jax.errors import UserError
from cerebra_jax.main import main

CONFIG = str(Path(__file__).resolve().parents[2] / "configs" / "wikitext.py")
KEYS = config.fields()


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """A folder of broken configurations, which is also where we stand."""
    start = "from cerebra_jax import config\ndef get_config():\n    c = config.defaults()\n"
    text = {
        "noarg.py": start + "    return c\n",
        "needs.py": start.replace("()", "(arg)", 1) + "    return c\n",
        "none.py": "def get_config():\n    pass\n",
        "empty.py": "",
        "name.py": "def get_config():\n    return undefined\n",
        "syntax.py": "def get_config(:\n",
        "value.py": "def get_config():\n    return int('x')\n",
        "io.py": "def get_config():\n    return open('nowhere').read()\n",
        "typo.py": start + "    c.net.dpeth = 3\n",
        "type.py": start + "    c.net.depth = 'x'\n",
        "torn.json": '{"seed": ',
        "typo.json": '{"net": {"dpeth": 3}}',
        "list.json": "[1]",
        "notes.txt": "",
    }
    for name, body in text.items():
        (tmp_path / name).write_text(body)
    monkeypatch.chdir(tmp_path)
    return tmp_path


C = f"--config={CONFIG}"
BAD = {
    "": "--config is missing",
    "trian --config=x": "did you mean train?",
    "xyzzy": "commands are train, cost, eval, generate",
    "test --workdir=x": "did you mean eval?",
    "infer --workdir=x": "did you mean predict?",
    "sample": "did you mean generate?",
    f"resume {C}": "did you mean train?",
    f"{C} stray": "unexpected argument 'stray'",
    f"train {C} eval": "unexpected argument 'eval'",
    "--config": "write --config=VALUE",
    "--config=absent.py": "there is no absent.py",
    "--config=nome.py": "did you mean none.py?",
    "--config=.": "is a folder",
    "--config=notes.txt": "neither .py nor .json",
    "--config=noarg.py:smoke": "leave out :smoke",
    "--config=needs.py": "FILE.py:ARG",
    "--config=none.py": "returns NoneType",
    "--config=empty.py": "get_config",
    "--config=name.py": "NameError: name 'undefined' is not defined (line 2)",
    "--config=syntax.py": "SyntaxError",
    "--config=value.py": "invalid literal",
    "--config=io.py": "nowhere",
    "--config=typo.py": "dpeth",
    "--config=type.py": "type.py fails",
    "--config=torn.json": "is not JSON",
    "--config=typo.json": "unknown key net.dpeth; did you mean net.depth?",
    "--config=list.json": "not a section",
    "--config=typo.json:arg": ".json is data",
    f"{C}:smokey": "no part 'smokey'",
    f"{C} --confg=x": "did you mean --config?",
    f"{C} --workdr=x": "did you mean --workdir?",
    f"{C} --frsh": "did you mean --fresh?",
    f"{C} --fresh=yes": "write --fresh",
    f"{C} --workdir=": "--workdir is empty",
    "certify": "or --config=FILE.py",
    f"certify {C} --workdir=x": "not both",
    f"certify {C} --out=": "--out is empty",
    f"{C} --out=x": "train takes no --out",
    f"{C} --net.depth=3": "did you mean --config.net.depth?",
    f"{C} --depth=3": "did you mean --config.net.depth?",
    f"{C} --batch-size=3": "did you mean --config.train.batch_size?",
    f"{C} --learning_rate=1e-3": "train takes no --learning_rate; did you mean --config.train.lr?",
    f"{C} --output_dir=x": "did you mean --workdir?",
    f"{C} --overwrite": "did you mean --fresh?",
    f"{C} --config.optimizer.learning_rate=1": "did you mean --config.train.lr?",
    f"{C} --config.net.hidden_size=64": "did you mean --config.net.width?",
    f"{C} --config.train.epochs=3": "did you mean --config.train.duration?",
    f"{C} --config.zzzzzz=3": "`cerebra keys` lists all keys",
    f"{C} --config.net.kept.heads=1,x": "give whole numbers with commas: 1,0,2",
    f"{C} --config.net.route.by_layer=a": "give numbers with commas: 0.5,1.5",
    f"{C} --verbose=3": "--verbose takes no value; write --verbose",
    "keys nothing": "no key has nothing in its name",
    "report": "report: the following arguments are required: RUN; `cerebra report --help`",
    "report x --config.seed=3": "report cannot change seed; it takes no --config.KEY",
    "report x --also=y": "--also is 'y'; write --also=NAME:FIGURE",
    "generate --workdir=x --max_tokens=0": "give a whole number from 1 to 1,000,000",
    "generate --workdir=x --temperature=hot": "is 'hot'; give a number from 0 to 1000",
    "generate --workdir=x --prompt": "--prompt needs a value; write --prompt=VALUE",
    "export --workdir=x --to=y --format=pdf": "choose safetensors, stablehlo or onnx",
    "export --workdir=x --to=y --rows=2": "use --format=onnx",
    "export --workdir=x --to=y --platforms=tpu,abacus": "choose among cpu, cuda, tpu",
    "import --to=y": "--from is missing",
    "calibrate --workdir=x --share=1": "give the share of tokens to route: --share=0.25",
    f"{C} --config.net.dpeth=3": "did you mean --config.net.depth?",
    f"{C} --config.depth=3": "did you mean --config.net.depth?",
    f"{C} --config.net=3": "net is a section, not a key",
    f"{C} --config.net.depth": "needs a value",
    f"{C} --config.net.depth=abc": "net.depth is 'abc'; it must be of type int",
    f"{C} --config.net.depth=3.5": "net.depth is '3.5'; it must be of type int",
    f"{C} --config.train.lr=fast": "it must be of type float",
    f"{C} --config.train.lr=nan": "0 <= train.lr <= 10",
    f"{C} --config.train.batch_size=-5": "train.batch_size >= 1",
    f"{C} --config.task.offline_fallback=maybe": "it must be of type bool",
    f"{C} --config.net.dtype=float64": "choose one of float32, bfloat16",
    f"{C} --config.net.dtype=1": "choose one of",
    f"{C} --config.net.width=130": "not divisible by net.heads 4",
    f"{C} --config.train.accum=5": "not divisible by train.accum",
    f"{C} --config.train.duration=10": 'write "500 steps"',
    f"{C} --config.train.duration=0.5_frac": 'write "500 steps"',
    f"{C}:dense --config.objective.lam=0.1": "dense model",
    f"{C}:dense --config.net.name=fnet": "it is no language model",
    f"{C}:ssm --config.objective.budget=0.5": "set for ssm",
    f"{C}:mod --config.net.route.mode=soft": "soft for mod",
    f"{C} --noconfig.net.depth": "write --config.net.depth=VALUE",
    f"{C} --split=test": "train takes no --split",
    "eval": "eval needs --workdir",
    f"eval {C} --workdir=x": "eval takes no --config",
    "eval --workdir=x": "there is no x/config.json",
    "eval --workdir=x --split=train": "choose valid or test",
    "eval --workdir=x --config.net.depth=3": "eval cannot change net.depth",
    f"cost {C} --workdir=x": "cost takes no --workdir",
    f"{C} --config.task.data_dir=nowhere --workdir=run": "nowhere",
}


def run(words: str, capsys) -> str:
    assert main(words.split(" ") if words else []) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1 and ";" in err
    return err


@pytest.mark.parametrize("words", BAD)
def test_a_mistake_is_one_line_that_says_how_to_mend_it(words, files, capsys):
    assert BAD[words] in run(words, capsys)


def test_a_mistyped_key_is_recognised(files, capsys):
    """Typos at edit distance 1 of every key: the right suggestion at least 95 times of 100, an
    error always.
    """
    rng, right, total = random.Random(0), 0, 0
    for key in KEYS:
        for _ in range(3):
            i = rng.randrange(len(key))
            while key[i] == ".":
                i = rng.randrange(len(key))
            c = rng.choice(string.ascii_lowercase)
            typo = rng.choice(
                [key[:i] + key[i + 1 :], key[:i] + c + key[i:], key[:i] + c + key[i + 1 :]]
            )
            if typo in KEYS:
                continue
            with pytest.raises(UserError) as e:
                flags.parse([C, f"--config.{typo}=1"])
            total += 1
            right += f"--config.{key}?" in e.value.hint
    assert total > 100 and right / total >= 0.95


def test_every_key_refuses_a_wrong_type_and_what_is_out_of_range():
    for key, f in KEYS.items():
        bad = {
            int: ["x", "1.5", "-9999999999"],
            float: ["x", "nan", "inf"],
            bool: ["maybe"],
            str: [],
            tuple: [] if f.metadata["item"] is str else ["x", "1;2"],
        }[type(f.default)]
        for value in bad + (["no-such-choice"] if f.metadata["of"] else []):
            with pytest.raises(UserError, match=key.replace(".", r"\.")):
                flags.parse([C, f"--config.{key}={value}"])


def test_mistakes_are_found_without_jax(files, clean_env):
    """All of the table in one process that may not import JAX."""
    code = (
        "import json, sys\nfrom cerebra_jax.main import main\n"
        "table = json.loads(sys.argv[1])\n"
        "assert [main(words) for words in table] == [2] * len(table)\n"
        "from cerebra_jax.cli.commands import COMMANDS\n"
        "for words in [], ['keys'], *([name] for name in COMMANDS):\n"
        "    assert main([*words, '--help']) == 0\n"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'tensorflow'}\n"
        "assert not heavy & set(sys.modules), 'JAX was imported'\n"
    )
    table = json.dumps([words.split(" ") if words else [] for words in BAD])
    done = subprocess.run(
        [sys.executable, "-c", code, table], env=clean_env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_keys_lists_every_key_with_its_type_default_and_meaning(capsys):
    assert main(["keys"]) == 0
    rows = {
        row.split()[0]: row
        for row in capsys.readouterr().out.splitlines()
        if row.startswith("  ") and row.split()
    }
    for key, f in KEYS.items():
        is_list = f.metadata["item"] is not None
        kind = f.metadata["item"] if is_list else type(f.default)
        assert kind.__name__ in rows[key] and f.metadata["doc"] in rows[key]
        default = json.dumps(f.default) if isinstance(f.default, bool) else str(f.default)
        assert ("empty" if is_list else default) in rows[key]
        assert all(str(value) in rows[key] for value in f.metadata["of"])
    assert main(["keys", "net.kept"]) == 0
    shown = [row for row in capsys.readouterr().out.splitlines() if row.startswith("  ")]
    assert len(shown) == 4 and all("net.kept." in row and "list of int" in row for row in shown)


def test_help_names_every_command_and_says_where_the_keys_are(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, command in commands.COMMANDS.items():
        assert f"  {name} " in shown and command.help in shown
    assert "`cerebra keys`" in shown and "exit status: 0 done" in shown.splitlines()[-1]
    assert main(["help"]) == 0 and capsys.readouterr().out == shown


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_help_of_a_command_shows_its_own_options_only(name, capsys):
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: cerebra {name} ") and commands.COMMANDS[name].help in shown
    options = set(re.findall(r"--([a-z][\w-]*)", shown.partition("options:")[2])) - {"help"}
    assert options | {"config"} == {*flags._parser(name).options(), "config"}
    others = {"prompt": "generate", "jobs": "sweep", "fresh": "train", "share": "calibrate"}
    assert all(owner == name or option not in options for option, owner in others.items())
    takes_keys = name not in ("export", "report", "keys")
    assert ("--config.KEY=VALUE" in shown.replace("\n  ", " ")) == takes_keys
    assert main(["help", name]) == 0 and capsys.readouterr().out == shown


@pytest.mark.parametrize("words", [["-m", "cerebra_jax"], ["-m", "cerebra_jax.main"]])
def test_the_package_runs_as_a_module_and_tells_its_version(words, clean_env):
    done = subprocess.run(
        [sys.executable, *words, "--version"], env=clean_env, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"cerebra_jax {cerebra_jax.__version__}\n")


def test_every_word_of_another_library_means_a_key_command_or_option_of_ours():
    assert set(names.KEYS.values()) <= set(KEYS) and not set(names.KEYS) & set(KEYS)
    assert set(names.COMMANDS.values()) <= set(commands.COMMANDS)
    assert not set(names.COMMANDS) & set(commands.COMMANDS)
    options = {option for name in commands.COMMANDS for option in flags._parser(name).options()}
    assert set(names.OPTIONS.values()) <= options


def test_values_are_typed_and_the_last_one_wins(files):
    words = ["--config.net.depth=3", "--config.train.lr", "1", "--config.net.depth", "5"]
    words += ["--noconfig.task.offline_fallback", "--config.net.remat", "--config.task.data_dir="]
    words += ["--config.task.ignore=a, b", "--config.net.kept.heads", "1,0,2,3,4"]
    got = flags.parse([C, *words, "--fresh", "-v"])
    assert (got.command, got.fresh, got.verbose, got.cfg.net.depth) == ("train", True, True, 5)
    assert (got.cfg.task.ignore, got.cfg.net.kept.heads) == (("a", "b"), (1, 0, 2, 3, 4))
    assert (got.cfg.train.lr, got.cfg.task.offline_fallback) == (1.0, False)
    assert got.cfg.net.remat == "full"  # it was a switch, and may still be used as one


@pytest.mark.parametrize(
    ("word", "want"), [("=dots", "dots"), ("=false", "off"), ("=1", "full"), ("=full", "full")]
)
def test_remat_is_a_word_or_a_switch(files, word, want):
    assert flags.parse([C, f"--config.net.remat{word}"]).cfg.net.remat == want
    assert flags.parse([C, "--noconfig.net.remat"]).cfg.net.remat == "off"


def test_json_is_read_as_data_and_may_be_overridden(files):
    cfg = flags.parse([f"{C}:dense", "--config.seed=7"]).cfg
    run = files / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(config.to_dict(cfg)))
    got = flags.parse(["--config=runs/mine/config.json"])
    assert (got.cfg, got.workdir) == (
        cfg,
        Path("runs/mine"),
    )  # a run's own configuration resumes it
    got = flags.parse(["--config=runs/mine/config.json", "--config.seed=8", "--workdir=other"])
    assert (got.cfg.seed, got.workdir) == (8, Path("other"))
    moved = flags.parse(
        ["eval", "--workdir=runs/mine", "--config.task.data_dir=there", "--split=valid"]
    )
    assert (moved.cfg.task.data_dir, moved.split, moved.workdir) == (
        "there",
        "valid",
        Path("runs/mine"),
    )


@pytest.mark.parametrize(
    ("spec", "name"),
    [("", "wikitext-s3"), (":dense-17m", "wikitext-dense-17m-s3"), (":-", "wikitext---s3")],
)
def test_default_workdir_names_the_configuration_and_the_seed(spec, name):
    assert flags.parse([C + spec, "--config.seed=3"]).workdir == Path("runs") / name


def test_a_bug_is_one_line_and_a_traceback_in_the_folder(files, monkeypatch, capsys):
    def broken(*args):
        raise RuntimeError("odd\nthing")

    monkeypatch.setattr("cerebra_jax.training.preprocessing.build", broken)
    assert main([C, "--workdir=run"]) == 70
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "run/crash.txt" in err and "RuntimeError: odd thing" in err
    assert "Traceback" in (files / "run" / "crash.txt").read_text()


def test_a_full_disk_has_its_own_status(files, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("cerebra_jax.training.preprocessing.build", full)
    assert main([C, "--workdir=run"]) == 74
    assert "somewhere" in capsys.readouterr().err
