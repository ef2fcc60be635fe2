"""The embedded table: rents of 15,000 made-up flats, from a seed, with a known noise floor."""

from __future__ import annotations

import numpy as np

from cerebra_jax.tasks.table import Table

ROWS = 15_000
NOISE = 90.0  # standard deviation of what no column explains
TARGET = "rent"
KINDS = ("flat", "studio", "shared", "penthouse")
HEATING = ("gas", "district", "heat pump")


def table(rows: int = ROWS, seed: int = 0) -> tuple[Table, np.ndarray]:
    """Returns (table, noise of each row), with missing values and effects that act together.

    The same on every machine: numpy has frozen RandomState's stream. Values are rounded as a person
    would write them.
    """
    rng = np.random.RandomState(seed)

    # the columns
    district = rng.choice(24, rows, p=_few_hold_most(24))
    kind = rng.choice(4, rows, p=(0.55, 0.25, 0.15, 0.05))
    floor = rng.choice(8, rows, p=_few_hold_most(8))
    heating = rng.choice(3, rows, p=(0.6, 0.3, 0.1))
    furnished = rng.rand(rows) < 0.3
    size = np.round(np.exp(rng.normal(4.1, 0.4, rows)), 1)  # square metres
    year = rng.randint(1890, 2024, rows)
    distance = np.round(rng.gamma(2.0, 2.2, rows), 2)  # kilometres to the centre

    # the rent that they explain
    per_metre = 9.0 + 5.0 * rng.rand(24)[district] + np.array([0.0, 0.8, -0.6, 3.0])[kind]
    rent = size * per_metre * np.exp(-0.05 * distance)
    rent += np.where(year > 1995, 3.0 * size, 0.0) + np.where(year < 1920, 120.0, 0.0)
    rent += np.where((floor > 3) & (kind != 3), -60.0, 20.0 * floor)
    of_furniture = furnished * (80.0 + 40.0 * rng.rand(24)[district])
    rent += of_furniture + np.array([0.0, -35.0, 60.0])[heating]

    # what they do not explain, and what is missing
    noise = rng.normal(0.0, NOISE, rows)
    noise -= noise.mean()
    has_year = rng.rand(rows) > 0.03
    has_distance = rng.rand(rows) > 0.02

    columns = {
        "district": [f"D{i:02d}" for i in district],
        "kind": [KINDS[i] for i in kind],
        "floor": [str(i) for i in floor],
        "heating": [HEATING[i] for i in heating],
        "furnished": ["yes" if x else "no" for x in furnished],
        "size": [f"{x:.1f}" for x in size],
        "year": [str(x) if seen else "" for x, seen in zip(year, has_year, strict=True)],
        "distance": [
            f"{x:.2f}" if seen else "" for x, seen in zip(distance, has_distance, strict=True)
        ],
        TARGET: [f"{x:.2f}" for x in rent + noise],
    }
    return Table("made-up rents", columns), noise


def _few_hold_most(n: int) -> np.ndarray:
    """Returns the shares of n categories, of which a few hold most rows: 1 / rank."""
    weight_n = 1.0 / np.arange(1, n + 1)
    return weight_n / weight_n.sum()
