"""The public API: a page of names, each of which loads what it needs when it is asked for."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

import cerebra_jax


def test_every_public_name_is_there_and_on_the_page():
    named = set(re.findall(r"\w+", cerebra_jax.__doc__))
    for name in cerebra_jax.__all__:
        found = getattr(cerebra_jax, name)
        assert found.__doc__ and callable(found), name
        assert name in named, name
    assert set(cerebra_jax.__all__) <= set(dir(cerebra_jax))
    assert cerebra_jax.__all__ == sorted(cerebra_jax.__all__)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'cerebra_jax' has no attribute 'lode'"):
        cerebra_jax.lode  # noqa: B018


def test_importing_it_and_reading_a_configuration_load_no_jax(clean_env):
    code = (
        "import sys, cerebra_jax\n"
        "cfg = cerebra_jax.parse(cerebra_jax.defaults())\n"
        "assert cfg.net.name and issubclass(cerebra_jax.UserError, Exception)\n"
        "assert not {'jax', 'flax'} & set(sys.modules), 'loaded too early'\n"
        "cerebra_jax.count\n"
        "assert 'jax' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], env=clean_env, check=True)
