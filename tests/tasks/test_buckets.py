"""Rows in buckets of similar length: the same rows an epoch, in short batches, on all hosts."""

import collections

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cerebra_jax.tasks.examples import Examples, lengths
from cerebra_jax.tasks.task import SPLITS, Shape


def padded(tokens_N: np.ndarray, L: int) -> Examples:
    """A task of rows of so many tokens, which name themselves."""
    mask = np.arange(L)[None] < tokens_N[:, None]
    ids = np.where(mask, np.arange(len(tokens_N))[:, None], -1)
    arrays = {"inputs_BxL": ids, "mask_BxL": mask, "labels_BxL": np.arange(len(tokens_N))[:, None]}
    task = Examples({split: arrays for split in SPLITS})
    task.shape = Shape(L, 9, outputs=2)
    return task


def names(batch):
    return batch["labels_BxL"][batch["w_BxL"] > 0]


@st.composite
def cases(draw):
    """(tokens of each row, L, buckets, batch size)."""
    L, n, seed = draw(st.integers(2, 200)), draw(st.integers(2, 80)), draw(st.integers(0, 99))
    tokens_N = np.random.RandomState(seed).randint(1, 1 + draw(st.integers(1, L)), n)
    return tokens_N, L, draw(st.integers(2, 6)), draw(st.integers(1, 9))


@given(cases())
@settings(max_examples=100, deadline=None)
def test_lengths_are_few_and_each_has_rows_for_a_batch_or_none(case):
    tokens_N, L, buckets, batch_size = case
    found = lengths(tokens_N, buckets, L, batch_size)
    assert list(found) == sorted(set(found)) and found[-1] == L and len(found) <= buckets + 1
    assert L < 64 or all(x % 8 == 0 for x in found[:-1])
    rows = np.bincount(np.searchsorted(found, tokens_N), minlength=len(found))
    assert rows.max() == len(tokens_N) or all(n >= batch_size or n == 0 for n in rows)


def test_lengths_are_quantiles():
    tokens_N = np.arange(1, 101)
    assert lengths(tokens_N, 4, 63, 1) == (26, 51, 63) and lengths(tokens_N, 4, 100, 1) == (
        32,
        56,
        80,
        100,
    )
    assert lengths(tokens_N, 4, 500, 1) == (
        32,
        56,
        80,
        104,
        500,
    )  # the last for what is longer than all in training
    assert lengths(tokens_N, 4, 100, 25) == (32, 100) and lengths(tokens_N, 4, 100, 200) == (100,)


@given(cases(), st.integers(0, 2**31 - 1))
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_the_rows_of_an_epoch_without_buckets_in_batches_as_short_as_they_can_be(
    case, seed
):
    tokens_N, L, buckets, B = case
    plain, task = padded(tokens_N, L), padded(tokens_N, L)
    task.bucket(buckets, B)
    steps = task.steps_per_epoch(B)
    assert steps == plain.steps_per_epoch(B)
    for epoch in range(2):
        seen, want, mixed = collections.Counter(), collections.Counter(), 0
        for step in range(epoch * steps, (epoch + 1) * steps):
            batch = task.train_batch(seed, step, B)
            seen.update(names(batch).tolist())
            want.update(names(plain.train_batch(seed, step, B)).tolist())
            tokens = tokens_N[names(batch)]
            length = batch["inputs_BxL"].shape[1]
            assert (
                length
                == batch["mask_BxL"].shape[1]
                == min(x for x in task.shape.lengths if x >= tokens.max())
            )
            assert (
                batch["labels_BxL"].shape == (B, 1) and (batch["mask_BxL"].sum(1) == tokens).all()
            )
            mixed += np.ptp(task.group_N[names(batch)]) > 0
        assert seen == want and mixed < len(task.shape.lengths)
        assert min(seen[i] for i in range(len(tokens_N))) >= 1 or epoch


@given(cases(), st.integers(0, 60), st.sampled_from([1, 2, 4]))
@settings(max_examples=40, deadline=None)
def test_a_batch_follows_seed_and_step_alone_and_hosts_share_it(case, step, hosts):
    tokens_N, L, buckets, per_host = case
    B = per_host * hosts
    used, fresh = padded(tokens_N, L), padded(tokens_N, L)
    for task in (used, fresh):
        task.bucket(buckets, B)
    for s in (step + 9, 0, step + 40):
        used.train_batch(3, s, B)
    # an epoch, with the batches of two buckets among them
    steps = range(step, step + used.steps_per_epoch(B))

    def batches(task, host):
        yield from (task.train_batch(3, s, B, host) for s in steps)
        yield from task.eval_batches("test", B, host)

    per_host = (batches(fresh, (h, hosts)) for h in range(hosts))
    for whole, *some in zip(batches(used, (0, 1)), *per_host, strict=True):
        for name in whole:  # the same length on every host, too
            np.testing.assert_array_equal(np.concatenate([p[name] for p in some]), whole[name])


@given(cases())
@settings(max_examples=40, deadline=None)
def test_an_evaluation_scores_every_row_once_and_cuts_nothing_but_padding(case):
    tokens_N, L, buckets, B = case
    task = padded(tokens_N, L)
    task.bucket(buckets, B)
    batches = list(task.eval_batches("valid", B))
    assert sorted(np.concatenate([names(b) for b in batches])) == list(range(len(tokens_N)))
    for batch in batches:
        real = batch["w_BxL"][:, 0] > 0
        assert (
            batch["inputs_BxL"].shape == (B, batch["mask_BxL"].shape[1])
            and batch["mask_BxL"].shape[1] in task.shape.lengths
        )
        np.testing.assert_array_equal(batch["mask_BxL"].sum(1)[real], tokens_N[names(batch)])


def test_without_buckets_nothing_is_cut_and_with_them_the_example_is_not():
    tokens_N = np.arange(1, 33)
    task = padded(tokens_N, 40)
    assert task.shape.lengths == () and task.train_batch(0, 0, 4)["inputs_BxL"].shape == (4, 40)
    before = task.example(2)
    task.bucket(4, 4)
    after = task.example(2)
    assert all((after[name] == x).all() for name, x in before.items()) and after[
        "mask_BxL"
    ].shape == (2, 40)
