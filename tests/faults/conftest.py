"""What the drivers of faults share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import runs
from tests.faults.forks import Forks


@pytest.fixture(scope="session")
def forks(clean_env: dict[str, str]) -> Iterator[Forks]:
    """Returns what starts runs quickly, each in a process of its own."""
    found = Forks(clean_env)
    yield found
    found.close()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Returns where the data of each kind of run are."""
    return runs.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def reference(
    forks: Forks, data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Returns a function: the folder of the run of a kind that nothing happened to."""
    root = tmp_path_factory.mktemp("references")

    @functools.cache
    def of(kind: str) -> Path:
        done = forks.run(runs.words(kind, data[kind], root / kind), root)
        assert done.status == 0, done
        return root / kind

    return of
