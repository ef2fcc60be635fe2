"""Tables as tokens: what a row becomes, that only training rows are learnt from, and mistakes."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest

from cerebra_jax import config
from cerebra_jax.errors import UserError
from cerebra_jax.tasks import registry
from cerebra_jax.tasks.examples import cut
from cerebra_jax.tasks.tabular import synthetic
from cerebra_jax.tasks.task import SPLITS

N = 60
HEADER = ["city", "age", "plan", "price"]


def rows_of(n: int = N, seed: int = 0) -> list[list[str]]:
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        city, age = rng.choice(["Köln", "a,b", 'say "x"', "Rome"]), rng.gauss(40, 9)
        plan, price = rng.choice("xyz"), rng.gauss(9, 3)
        rows.append([city, f"{age:.2f}", plan, f"{price:.3f}"])
    rows[3][1] = rows[7][1] = ""
    rows[5][0] = "NA"
    return rows


def write(path: Path, rows: list[list[str]], header=None, delimiter: str = ",") -> str:
    def quote(field):
        if not set(field) & set(f'"\n{delimiter}'):
            return field
        return '"' + field.replace('"', '""') + '"'

    text = "".join(delimiter.join(map(quote, row)) + "\n" for row in [header or HEADER, *rows])
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def task_of(path: str, target: str = "price", said: list | None = None, **more):
    task = {"name": "tabular", "seq_len": 0, "path": path, "target": target} | more
    cfg = config.parse({"task": task, "net": {"name": "transformer", "causal": False}})
    return registry.build(cfg, said.append if said is not None else lambda line: None)


def arrays(task) -> list[np.ndarray]:
    return [x for split in SPLITS for _, x in sorted(task._splits[split].items())]


@pytest.fixture
def table(tmp_path) -> str:
    return write(tmp_path / "t.csv", rows_of())


def test_a_row_is_a_token_per_column_behind_a_summary_token(table):
    task, rows, parts = task_of(table), rows_of(), cut(N, 0.1, 0.1)
    assert task.shape.seq_len == 4 and task.shape.outputs == 1 and not task.shape.causal
    train = [rows[i] for i in parts["train"]]
    age = np.array([float(r[1]) for r in train if r[1]])
    y = np.array([float(r[3]) for r in train])
    owner = {}  # id -> (column, what it stands for)
    for split, numbers in parts.items():
        ids, values = task._splits[split]["inputs_BxL"], task._splits[split]["values_BxL"]
        assert ids.dtype == np.int32 and (ids[:, 0] == 0).all() and (values[:, 0] == 1).all()
        for k, i in enumerate(numbers):
            row = rows[i]
            want = ("age", "" if not row[1] else "number"), ("city", row[0]), ("plan", row[2])
            for token, meaning in zip(ids[k, 1:], want, strict=True):
                assert (
                    owner.setdefault(int(token), meaning) == meaning
                )  # an id means one thing, in one column
            scaled = (float(row[1]) - age.mean()) / age.std() if row[1] else 1.0
            np.testing.assert_allclose(values[k, 1:], [scaled, 1, 1], rtol=1e-5)
            label = (float(row[3]) - y.mean()) / y.std()
            np.testing.assert_allclose(
                task._splits[split]["labels_BxL"][k], label, rtol=1e-4, atol=1e-6
            )
    assert max(owner) < task.shape.vocab_size == 1 + 2 + (2 + 4) + (2 + 3)
    batch = task.example(5)
    assert {k: x.shape for k, x in batch.items()} == {
        "inputs_BxL": (5, 4),
        "values_BxL": (5, 4),
        "labels_BxL": (5, 1),
        "w_BxL": (5, 1),
        "ex_B": (5,),
    }


def test_columns_in_another_order_are_the_same_task(tmp_path, table):
    order = [2, 3, 0, 1]
    other = write(
        tmp_path / "o.csv", [[r[i] for i in order] for r in rows_of()], [HEADER[i] for i in order]
    )
    for a, b in zip(arrays(task_of(table)), arrays(task_of(other)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert task_of(table).info()["sha256"] == task_of(other).info()["sha256"]


@pytest.mark.parametrize("scale", ["standard", "quantile"])
def test_nothing_is_learnt_from_validation_or_test_rows(tmp_path, table, scale):
    rows, parts = rows_of(), cut(N, 0.1, 0.1)
    for i in (*parts["valid"], *parts["test"]):  # everything there becomes something else
        rows[i] = ["Nowhere", "1e6", "never seen", "-5e5"]
    here, there = task_of(table, scale=scale), task_of(write(tmp_path / "o.csv", rows), scale=scale)
    for name, x in here._splits["train"].items():
        np.testing.assert_array_equal(x, there._splits["train"][name])
    assert here.shape == there.shape
    ids = there._splits["test"]["inputs_BxL"]
    assert not set(ids[:, 2:].ravel()) & set(
        here._splits["train"]["inputs_BxL"].ravel()
    )  # never seen has its own id


def test_rare_categories_share_the_id_of_those_never_seen(tmp_path):
    rows = rows_of()
    first, last = cut(N, 0.1, 0.1)["train"][0], cut(N, 0.1, 0.1)["test"][0]
    rows[first][0], rows[last][0] = "only here", "only there"
    path = write(tmp_path / "t.csv", rows)
    task = task_of(path)
    rare, unseen = (
        task._splits["train"]["inputs_BxL"][0, 2],
        task._splits["test"]["inputs_BxL"][0, 2],
    )
    assert rare == unseen
    assert task_of(path, min_count=1).shape.vocab_size > task.shape.vocab_size


def test_quantile_scaling_makes_any_column_normal(tmp_path):
    rng = np.random.RandomState(0)
    rows = [[f"{np.exp(3 * x):.6g}", f"{x:.4f}"] for x in rng.standard_normal(2000)]
    task = task_of(write(tmp_path / "t.csv", rows, ["x", "price"]), scale="quantile")
    values = task._splits["train"]["values_BxL"][:, 1]
    assert (
        abs(values.mean()) < 0.01
        and abs(values.std() - 1) < 0.02
        and abs(np.mean(values**3)) < 0.05
    )
    np.testing.assert_allclose(
        values, task._splits["train"]["labels_BxL"][:, 0], atol=0.3
    )  # the order is kept


def test_quantile_scaling_puts_equal_values_in_the_middle_of_their_quantiles(tmp_path):
    rng = np.random.RandomState(0)
    rows = [[rng.choice(["0", "0", "0", "7"]), f"{rng.rand():.4f}"] for _ in range(1000)]
    task = task_of(write(tmp_path / "t.csv", rows, ["x", "price"]), scale="quantile")
    values = task._splits["train"]["values_BxL"][:, 1]
    normal = np.sort(rng.standard_normal(100_000))
    low = (values < 0).mean()
    want = normal[: int(low * 1e5)].mean(), normal[int(low * 1e5) :].mean()
    np.testing.assert_allclose(np.unique(values), want, atol=0.03)


def test_types_are_inferred_or_given(table):
    assert {n: c["kind"] for n, c in task_of(table).info()["columns"].items()} == {
        "age": "number",
        "city": "category",
        "plan": "category",
    }
    kinds = task_of(table, types="*:category").info()["columns"]
    assert {c["kind"] for c in kinds.values()} == {"category"}
    task = task_of(table, target="plan", ignore="age")
    assert (
        task.shape.outputs == 3 and task.metrics[0].key == "accuracy" and not task.metrics[0].lower
    )
    assert sorted(set(task._splits["train"]["labels_BxL"].ravel())) == [0, 1, 2]
    assert list(task.info()["columns"]) == ["city", "price"]
    assert list(task_of(table, columns="plan, age").info()["columns"]) == ["age", "plan"]
    said = []
    price = task_of(table, said=said, types="price:category")
    assert price.shape.outputs > 3 and not [x for x in said if x.startswith("warning")]


def test_semicolons_tabs_gzip_and_a_byte_order_mark_are_read(tmp_path, table):
    want = arrays(task_of(table))
    paths = [
        write(tmp_path / "s.csv", rows_of(), delimiter=";"),
        write(tmp_path / "t.tsv", rows_of(), delimiter="\t"),
        write(tmp_path / "z.csv.gz", rows_of()),
    ]
    bom = tmp_path / "b.csv"
    bom.write_bytes(b"\xef\xbb\xbf" + Path(table).read_bytes().replace(b"\n", b"\r\n"))
    for path in (*paths, str(bom)):
        for a, b in zip(want, arrays(task_of(path)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_rows_without_a_target_and_copies_are_left_out_and_said(tmp_path):
    rows = rows_of()
    rows[4][3] = "NA"
    said = []
    task = task_of(write(tmp_path / "t.csv", rows + rows[:10]), said=said, dedup=True)
    assert sum(task.size.values()) == N - 1
    named = [
        ["x", "none"],
        ["y", "some"],
        ["x", ""],
    ] * 10  # a class may be called none; an empty one is missing
    task = task_of(write(tmp_path / "n.csv", named, ["a", "ill"]), target="ill", said=[])
    assert task.info()["target"]["classes"] == ["none", "some"] and sum(task.size.values()) == 20
    assert any("2 of 70 rows have no price" in line for line in said)
    assert any("9 of 68 rows equal an earlier one" in line for line in said)


def test_the_floor_is_what_the_best_function_of_the_columns_reaches(tmp_path):
    rng = np.random.RandomState(3)
    rows = [
        [rng.choice(list("ab")), rng.choice(list("cd")), f"{rng.standard_normal():.5f}"]
        for _ in range(80)
    ]
    task = task_of(write(tmp_path / "t.csv", rows, ["x", "y", "price"]))
    y, cells = np.array([float(r[2]) for r in rows]), np.array([r[0] + r[1] for r in rows])
    best = np.array([y[cells == c].mean() for c in cells])
    zero = {"loss": (1.0, 1.0), "absolute": (1.0, 1.0)}
    assert task.report("test", zero)["rmse_floor"] == pytest.approx(
        np.sqrt(((y - best) ** 2).mean()), rel=1e-9
    )
    assert "rmse_floor" not in task_of(write(tmp_path / "u.csv", rows_of())).report(
        "test", zero
    )  # all rows differ


def test_report_is_in_the_units_of_the_target(table):
    task, parts = task_of(table), cut(N, 0.1, 0.1)
    y = {s: np.array([float(rows_of()[i][3]) for i in rows]) for s, rows in parts.items()}
    miss = (y["test"] - y["train"].mean()) / y["train"].std()  # of a model that says the mean
    sums = {"loss": (np.square(miss).sum(), len(miss)), "absolute": (np.abs(miss).sum(), len(miss))}
    got = task.report("test", sums)
    assert got["rmse"] == pytest.approx(
        np.sqrt(np.square(y["test"] - y["train"].mean()).mean()), rel=1e-5
    )
    assert got["mae"] == pytest.approx(np.abs(y["test"] - y["train"].mean()).mean(), rel=1e-5)
    assert (
        got["r2"] == pytest.approx(1 - got["rmse"] ** 2 / y["test"].var(), rel=1e-4)
        and got["r2"] <= 0
    )
    json.dumps(task.info(), allow_nan=False)


BROKEN = {
    "": "is empty",
    "\n": "is empty",
    "a,b\n": "has no rows",
    "a,a\n1,2\n": "two columns 'a'",
    "a,\n1,2\n": "column 2 has no name",
    "price,b\n1,2\n3\n": "t.csv:3 has 1 fields, the header has 2",
    'price,b\n1,"2\n': "is not CSV",
    "price,b\n" + "5,x\n" * 20: "the target price is 5 in every training row",
    "price,b\n" + "5,x\n" * 4: "no row is left",
    "price\n" + "5\n6\n" * 9: "no column left",
    "price,b\n" + "x,1\n" * 20: "one class only, 'x'",
    "b,c\n1,2\n": "task.target names 'price'",
    "pryce,c\n1,2\n": "did you mean pryce?",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_table_is_one_line(tmp_path, text):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(UserError) as e:
        task_of(str(path))
    assert BROKEN[text] in str(e.value) and e.value.hint


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"target": ""}, "task.target is empty"),
        ({"types": "age"}, "cannot read 'age'"),
        ({"types": "age:int"}, "cannot read 'age:int'"),
        ({"types": "aje:number"}, "did you mean age?"),
        ({"types": "city:number"}, "t.csv:2: column city holds 'Rome', which is no finite number"),
        ({"ignore": "nothing"}, "task.ignore names 'nothing'"),
        ({"ignore": "price"}, "names the target"),
        ({"columns": "price,age"}, "names the target"),
        ({"seq_len": 256}, "task.seq_len is 256, a row has 4 tokens"),
        ({"path": "absent.csv"}, "does not exist"),
        ({"path": "."}, "has no train.csv"),
    ],
)
def test_a_setting_that_does_not_fit_the_table_is_one_line(table, more, what):
    with pytest.raises(UserError) as e:
        task_of(**({"path": table} | more))
    assert what in str(e.value) and e.value.hint


def test_a_file_that_is_not_text_is_one_line(tmp_path):
    for name, data in {
        "t.csv": b"a,b\n\xff\xfe\n",
        "t.csv.gz": b"not gzip",
        "n.csv": b"a,b\n1,\0\n",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError):
            task_of(str(tmp_path / name), target="a")


def test_the_made_up_table_is_the_same_everywhere_and_its_noise_is_known():
    (table, noise), (again, _) = synthetic.table(400), synthetic.table(400)
    assert table.columns == again.columns and table.rows == len(noise) == 400
    first = [column[0] for column in table.columns.values()]
    assert first == ["D03", "flat", "0", "gas", "no", "57.9", "2005", "5.63", "530.57"], (
        f"{first}: the embedded table is another one. Intended? Update this, say why in the commit."
    )
    whole = task_of("", target="")
    assert (
        whole.shape.seq_len == 9
        and sum(whole.size.values()) == synthetic.ROWS
        and "made-up" in whole.notice
    )
    floors = whole.info()["target"]["floor"]
    assert all(abs(floors[split] / synthetic.NOISE - 1) < 0.05 for split in SPLITS)
    assert (
        1 - (synthetic.NOISE / whole.info()["target"]["sd"]) ** 2 > 0.8
    )  # what can be learnt of it


def test_salaries_beside_the_checkout_have_the_published_splits_and_bounds():
    path = Path(__file__).resolve().parents[4] / "shared" / "data" / "salaries" / "salaries.csv"
    if not path.is_file():
        pytest.skip("no salaries beside the checkout")
    more = {"ignore": "salary,salary_currency", "types": "*:category"}
    task = task_of(str(path), target="salary_in_usd", **more)
    assert task.size == {"train": 12_162, "valid": 1_520, "test": 1_521} and task.shape.seq_len == 9
    labels = task.info()["target"]
    assert labels["floor"]["test"] == pytest.approx(51_759, abs=1)
    # of a model that says the training mean
    miss = task._splits["test"]["labels_BxL"].astype(np.float64)
    sums = {"loss": (np.square(miss).sum(), miss.size), "absolute": (np.abs(miss).sum(), miss.size)}
    got = task.report("test", sums)
    assert (round(got["rmse"]), round(got["mae"])) == (69_377, 53_122)
    distinct = task_of(str(path), target="salary_in_usd", dedup=True, **more)
    assert distinct.size == {"train": 7_463, "valid": 932, "test": 934}
