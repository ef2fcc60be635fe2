"""Checkpoints: kept, found, verified.

A damaged one is never restored and never hides an intact one.
"""

from __future__ import annotations

import random
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from cerebra_jax.errors import DiskError, Diverged, UserError
from cerebra_jax.training import checkpoint
from cerebra_jax.training.checkpoint import Checkpoints, digest, digests
from tests.damage import delete, flip, truncate, zero
from tests.training.saved import assert_is, restore, save, state

# after a damaged file TensorStore still reports to the event loop that Orbax has closed
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    save(folder, {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: None})
    return folder


def test_keeps_the_last_two_and_the_best_and_restores_exactly(saved):
    checkpoints = Checkpoints(saved, print, read_only=True)
    assert checkpoints.steps() == [5, 4, 2]
    assert checkpoints.by_validation() == [2]
    assert_is(checkpoints.latest(state(0)), 5)
    assert_is(checkpoints.best(state(0)), 2)
    checkpoints.close()


def test_the_later_of_two_equals_is_the_best(tmp_path):
    save(tmp_path / "run", {1: 2.0, 2: 1.0, 3: 1.0, 4: 1.5, 5: None, 6: None})
    checkpoints = Checkpoints(tmp_path / "run", print, read_only=True)
    assert checkpoints.by_validation() == [3]
    checkpoints.close()


def test_nothing_saved_is_none(tmp_path):
    assert restore(tmp_path / "run") == (None, [])


@pytest.mark.parametrize("damage", [flip, truncate, zero, delete])
def test_damage_to_any_file_never_restores_wrong_numbers(saved, tmp_path, damage):
    """Every file of the newest checkpoint in turn: the newest exactly, or the one before with one
    warning line.
    """
    names = sorted(
        p.relative_to(saved) for p in (saved / "5").rglob("*") if p.is_file() and p.stat().st_size
    )
    assert len(names) > 4
    passed_over = 0
    for i, name in enumerate(names):
        folder = tmp_path / str(i) / "checkpoints"
        shutil.copytree(saved, folder)
        damage(folder / name, random.Random(i))
        found, said = restore(folder)
        if found[0] == 5:
            assert_is(found, 5)
            assert not said
        else:
            assert_is(found, 4)
            assert (
                len(said) == 1 and "5" in said[0] and "using 4" in said[0] and "\n" not in said[0]
            )
            assert not (folder / "5").exists()  # moved aside, so that step 5 can be saved again
            passed_over += 1
    assert passed_over


def test_flipped_bits_in_the_arrays_are_seen(saved, tmp_path):
    """What Orbax restores without a word: most flips land in array bytes, and all of them must be
    refused.
    """
    big = max(
        (p for p in (saved / "5" / "state").rglob("*") if p.is_file()),
        key=lambda p: p.stat().st_size,
    )
    seen = 0
    for i in range(12):
        folder = tmp_path / str(i) / "checkpoints"
        shutil.copytree(saved, folder)
        flip(folder / big.relative_to(saved), random.Random(100 + i))
        found, said = restore(folder)
        assert_is(found, 4 if said else 5)
        seen += any("sha256" in line for line in said)
    assert seen


def test_half_deleted_and_foreign_entries(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    shutil.rmtree(folder / "5" / "state")
    (folder / "notes.txt").write_text("mine")
    (folder / "6.orbax-checkpoint-tmp-1").mkdir()
    found, said = restore(folder)
    assert_is(found, 4)
    assert len(said) == 1
    assert not list(folder.glob("*tmp*")) and (folder / "notes.txt").exists()


@pytest.mark.parametrize("text", [None, "", '{"score"z 1.0}', '{"score": 9.0}', "[1]"])
def test_a_damaged_copy_of_a_score_does_not_matter(saved, tmp_path, text):
    """Orbax alone cannot open the folder where it is not JSON, and lets the best one go."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    copy = folder / "2" / "metrics" / "metrics"
    copy.unlink() if text is None else copy.write_text(text)
    (folder / "6.orbax-checkpoint-tmp-1").write_text("a file of such a name is left alone")
    assert_is(restore(folder, read_only=True)[0], 5)
    checkpoints = Checkpoints(folder, print)
    checkpoints.save(6, state(6), {"step": 6, "score": 1.5}, 1.5)
    checkpoints.wait()
    assert_is(checkpoints.best(state(0)), 2)
    checkpoints.close()


def test_none_intact_is_an_error_not_a_fresh_start(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    for step in (2, 4, 5):
        shutil.rmtree(folder / str(step) / "state")
    with pytest.raises(UserError, match="intact"):
        restore(folder)
    assert (folder / "5").exists()  # nothing was moved


def test_a_folder_renamed_to_another_step_is_not_that_step(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    (folder / "5").rename(folder / "9")
    found, said = restore(folder)
    assert_is(found, 4)
    assert len(said) == 1 and "checkpoint 9 is damaged (it holds step 5" in said[0]


def test_a_rename_inside_is_said_and_none_left_is_an_error(saved, tmp_path):
    """Orbax alone passes over such a folder without a word, and would begin afresh with none."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    inside = [path.name for path in (folder / "5").iterdir()]
    for name in inside:
        (folder / "5" / name).rename(folder / "5" / f"{name}.old")
    found, said = restore(folder)
    assert_is(found, 4)
    assert len(said) == 1 and "checkpoint 5 is damaged" in said[0]
    assert not (folder / "5").exists()
    for step in (2, 4):
        for name in inside:
            (folder / str(step) / name).rename(folder / str(step) / f"{name}.old")
    with pytest.raises(UserError, match="intact"):
        restore(folder)
    assert (folder / "4").exists()


def test_training_goes_on_where_the_damage_was(saved, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(saved, folder)
    shutil.rmtree(folder / "5" / "state")
    checkpoints = Checkpoints(folder, lambda line: None)
    assert_is(checkpoints.latest(state(0)), 4)
    checkpoints.save(5, state(5), {"step": 5, "score": 0.5}, 0.5)
    checkpoints.wait()
    assert_is(checkpoints.best(state(0)), 5)
    checkpoints.close()


def test_a_step_stopped_before_its_validation_is_saved_again_with_it(tmp_path):
    save(tmp_path / "run", {1: 2.0, 2: None})
    checkpoints = Checkpoints(tmp_path / "run", print)
    checkpoints.save(2, state(2), {"step": 2, "score": 1.0}, 1.0)
    checkpoints.wait()
    assert checkpoints.by_validation()[0] == 2
    checkpoints.close()


def test_another_models_checkpoint_is_named(saved):
    checkpoints = Checkpoints(saved, print, read_only=True)
    with pytest.raises(
        UserError, match=r"params/embed/table float32\[16, 32\], this model float32\[24, 32\]"
    ):
        checkpoints.latest(state(0, width=24))
    other = state(0)
    other.params["extra"] = jnp.zeros(3)
    with pytest.raises(UserError, match="params/extra"):
        checkpoints.latest(other)
    checkpoints.close()


@pytest.mark.parametrize("leaf", ["bias", "kernel"])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_number_that_is_not_finite_is_never_saved(tmp_path, bad, leaf):
    checkpoints = Checkpoints(tmp_path / "run", print)
    broken = state(1)
    broken.params["head"][leaf] = broken.params["head"][leaf].at[3].set(bad)
    with pytest.raises(Diverged, match=f"params/head/{leaf}"):
        checkpoints.save(1, broken, {"step": 1, "score": None}, None)
    assert checkpoints.steps() == []
    checkpoints.close()


def test_saved_numbers_are_those_of_the_moment_though_the_buffers_are_donated(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), s), donate_argnums=0)
    checkpoints = Checkpoints(tmp_path / "run", print)
    now = jax.device_put(state(1))
    checkpoints.save(1, now, {"step": 1, "score": None}, None)
    for _ in range(3):
        now = step(now)
    jax.block_until_ready(now)
    checkpoints.wait()
    assert_is(checkpoints.latest(state(0)), 1)
    checkpoints.close()


def test_digest_sees_every_leaf_its_dtype_and_its_name():
    base = {"a": jnp.zeros(4), "b": jnp.zeros(4)}
    others = [
        {"a": jnp.zeros(4), "c": jnp.zeros(4)},
        base | {"a": jnp.zeros(4, jnp.int32)},
        base | {"b": -jnp.zeros(4)},
    ]
    assert digest(base) == digest({"b": jnp.zeros(4), "a": jnp.zeros(4)})
    assert len({digest(t) for t in [base, *others, base | {"a": jnp.zeros((2, 2))}]}) == 5


def test_a_full_disk_is_named_before_the_first_step(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "run", print)
    checkpoints.preflight(state(0))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(UserError, match="MB free"):
        checkpoints.preflight(state(0))
    checkpoints.close()


@pytest.mark.parametrize(
    "error", [OSError(28, "x"), ValueError('OUT_OF_RANGE: "a" [OS error 27: EFBIG File too large]')]
)
def test_a_disk_that_fills_later_is_named_however_it_is_reported(tmp_path, monkeypatch, error):
    checkpoints = Checkpoints(tmp_path / "run", print)

    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(checkpoints._manager, "save", fails)
    checkpoints.save(1, state(1), {"step": 1, "score": None}, None)
    with pytest.raises(DiskError, match=r"No space left on device|File too large"):
        checkpoints.wait()
    monkeypatch.setattr(checkpoints._manager, "save", lambda *a, **k: 1 / 0)
    checkpoints.save(1, state(1), {"step": 1, "score": None}, None)
    with pytest.raises(ZeroDivisionError):  # a bug stays a bug
        checkpoints.save(2, state(2), {"step": 2, "score": None}, None)
    checkpoints.close()


def test_training_goes_on_while_a_checkpoint_is_hashed_and_the_one_before_stays(
    tmp_path, monkeypatch
):
    folder, may_hash = tmp_path / "run", threading.Event()
    save(folder, {1: None})
    checkpoints = Checkpoints(folder, print)

    def slowly(named):
        assert may_hash.wait(60)
        return digests(named)

    monkeypatch.setattr(checkpoint, "digests", slowly)
    checkpoints.save(2, state(2), {"step": 2, "score": None}, None)
    checkpoints.check()
    monkeypatch.setattr(checkpoint, "digests", digests)
    assert_is(restore(folder, read_only=True)[0], 1)  # what a kill would leave
    may_hash.set()
    assert checkpoints.steps() == [2, 1]
    checkpoints.close()
    assert_is(restore(folder)[0], 2)


def test_an_array_without_numbers_is_saved_and_restored(tmp_path: Path):
    """CHIAR of two layers routes nothing: its thresholds are arrays of size zero."""

    def empty(step):
        return state(step).replace(routing={"spread": jnp.zeros((0, 3), jnp.bfloat16)})

    checkpoints = Checkpoints(tmp_path, print)
    checkpoints.save(1, empty(1), {"score": 2.0}, 2.0)
    checkpoints.wait()
    found, named = checkpoints.latest(empty(0)), checkpoints.named()
    checkpoints.close()
    assert found.state.routing["spread"].shape == (0, 3)
    assert found.state.routing["spread"].dtype == jnp.bfloat16
    assert digest(found.state) == digest(empty(1))
    assert named.state["routing/spread"].shape == (0, 3)
