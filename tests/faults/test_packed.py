"""A small file that would become a large one is refused in bounded memory, with the limit."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from cerebra_jax.cli import tensor_files
from cerebra_jax.cost import memory
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import table
from cerebra_jax.tasks.intent import read as intent
from cerebra_jax.tasks.text import corpus
from cerebra_jax.tasks.text.scan import scan

MiB = 1 << 20
OPEN = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@pytest.mark.parametrize("ending", [*OPEN, ".zst"])
def test_a_packed_table_is_read_up_to_a_limit(ending: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(table, "LARGEST_UNPACKED", MiB)
    file = tmp_path / f"t.csv{ending}"
    if ending == ".zst":
        pyarrow = pytest.importorskip("pyarrow")
        with pyarrow.CompressedOutputStream(str(file), "zstd") as out:
            for _ in range(64):
                out.write(b"1" * MiB)
    else:
        with OPEN[ending](file, "wb") as out:
            for _ in range(64):
                out.write(b"1" * MiB)
    tracemalloc.start()
    with pytest.raises(UserError, match="unpacks to more than 1 MiB; unpack it yourself"):
        table.read(str(file))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 16 * MiB


@pytest.mark.parametrize("ending", OPEN)
def test_a_packed_table_within_the_limit_is_read(ending: str, tmp_path: Path, monkeypatch):
    text = b"a,b\n1,2\n"
    monkeypatch.setattr(table, "LARGEST_UNPACKED", len(text))
    with OPEN[ending](tmp_path / f"t.csv{ending}", "wb") as out:
        out.write(text)
    assert table.read(str(tmp_path / f"t.csv{ending}")).columns == {"a": ["1"], "b": ["2"]}


def test_a_plain_table_must_fit_into_free_memory(tmp_path: Path, monkeypatch):
    (tmp_path / "t.csv").write_bytes(b"a,b\n" + b"1,2\n" * 1000)
    monkeypatch.setattr(memory, "free_on_host", lambda: 20_000)
    with pytest.raises(UserError, match="needs about .* of memory.*give a part of it"):
        table.read(str(tmp_path / "t.csv"))


def test_few_bytes_of_parquet_that_stand_for_many_rows_are_refused(tmp_path: Path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = pyarrow.table({"a": pyarrow.array([1] * 1_000_000, "int8")})
    parquet.write_table(rows, tmp_path / "t.parquet")
    assert (tmp_path / "t.parquet").stat().st_size < 20_000
    monkeypatch.setattr(memory, "free_on_host", lambda: 50_000_000)
    with pytest.raises(UserError, match="needs about 64.0 MB of memory, and 50.0 MB are free"):
        table.read(str(tmp_path / "t.parquet"))


def test_a_packed_text_is_counted_in_a_stream(tmp_path: Path):
    for split in ("train", "valid", "test"):
        with gzip.open(tmp_path / f"{split}.txt.gz", "wb") as out:
            for _ in range(16 if split == "train" else 1):
                out.write(b"a" * MiB)
    tracemalloc.start()
    counts = scan(corpus.folder(tmp_path))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts["train"].bytes == 16 * MiB and most < 4 * MiB


class Tensor:
    """What is asked of a tensor of PyTorch, which tests do without; it is never unrolled."""

    layout, device = "strided", SimpleNamespace(type="cpu")

    def __init__(self, count: int):
        self.numel = lambda: count

    def element_size(self) -> int:
        return 4

    def is_floating_point(self) -> bool:
        return True

    def detach(self):
        pytest.fail("it is unrolled")


@pytest.fixture
def torch(monkeypatch) -> SimpleNamespace:
    found = SimpleNamespace(__version__="2.6.0", Tensor=Tensor, strided="strided")
    monkeypatch.setattr(tensor_files, "_library", lambda name: found)
    return found


def test_a_tensor_that_repeats_itself_is_not_unrolled(torch, tmp_path: Path):
    (tmp_path / "bomb.pt").write_bytes(bytes(1000))
    torch.load = lambda path, **how: {"w": Tensor(1 << 30)}
    with pytest.raises(UserError, match="has 1,000 bytes and would become 4,294,967,296"):
        tensor_files.read(tmp_path / "bomb.pt")


def test_a_zip_of_tensors_that_expands_is_not_unpacked(torch, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as parts:
        parts.writestr("archive/data/0", bytes(64 * MiB))
    torch.load = lambda path, **how: pytest.fail("it is unpacked")
    with pytest.raises(UserError, match="would become 67,108,864 in memory"):
        tensor_files.read(tmp_path / "bomb.pt")


GOOD = [["how are you", "talk"], ["book a flight", "travel"]]
BAD = {
    "[" * 100_000: "lists in lists",
    json.dumps([GOOD]): "it holds no splits by name",
    json.dumps({"train": GOOD, "val": GOOD}): "there is no test",
    json.dumps({"train": {"ab": 1, "cd": 2}, "val": GOOD, "test": GOOD}): "train is no list",
    json.dumps({"train": GOOD, "val": ["ab", "cd"], "test": GOOD}): "val, row 1 is not",
    json.dumps({"train": GOOD, "val": [*GOOD, ["x"]], "test": GOOD}): "val, row 3 is not",
    json.dumps({"train": GOOD, "val": GOOD, "test": [["a", 5]]}): "test, row 1 is not",
    json.dumps({"train": [["\ud800", "x"]], "val": GOOD, "test": GOOD}): "train, row 1 holds half",
    '{"train": ': "Expecting value",
}


@pytest.mark.parametrize("text", BAD, ids=BAD.values())
def test_a_file_that_is_not_in_the_form_of_clinc150_is_one_line(text: str, tmp_path: Path):
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(UserError) as raised:
        intent._clinc(tmp_path / "data.json")
    assert BAD[text] in raised.value.what and raised.value.hint
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


def test_a_file_in_the_form_of_clinc150_is_read(tmp_path: Path):
    (tmp_path / "data.json").write_text(json.dumps(dict.fromkeys(("train", "val", "test"), GOOD)))
    found = intent._clinc(tmp_path / "data.json")
    assert sorted(found.rows["train"]) == sorted(map(tuple, GOOD)) and found.name == "clinc150 data"
