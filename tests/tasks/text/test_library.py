"""The offline corpus: which files of the standard library it holds, and in which split."""

from cerebra_jax.tasks.text import library


def test_offline_corpus_splits_by_file_and_leaves_out_what_is_not_the_library(
    tmp_path, monkeypatch
):
    names = [f"m{i:03d}.py" for i in range(200)]
    for name in [
        *names,
        "test/a.py",
        "lib2to3/tests/b.py",
        "site-packages/c.py",
        "pkg/__pycache__/d.py",
        "pkg/e.txt",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}")
    (tmp_path / "latin.py").write_bytes(b"# \xe4")
    (tmp_path / "pkg" / "copy.py").write_text("# m000.py")
    splits = library.read(tmp_path)
    where = {name: split for split, texts in splits.items() for name in texts}
    assert sorted(where) == [*names, "pkg/copy.py"]
    assert where["pkg/copy.py"] == where["m000.py"]
    assert all(list(texts) == sorted(texts) and texts for texts in splits.values())
    assert len(splits["train"]) > 150
    monkeypatch.setattr(library, "TRAIN_BYTES", 500)
    small = library.read(tmp_path)
    assert 400 < sum(map(len, small["train"].values())) <= 500
    assert small["test"] == splits["test"]
