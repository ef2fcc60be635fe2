"""Refuses to train in several processes, each of which would train the same. No JAX here."""

from __future__ import annotations

import os
from collections.abc import Mapping

from cerebra_jax.errors import UserError

# what launchers tell each of their processes: how many there are
_COUNTS = ("JAX_NUM_PROCESSES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
_OWN = {"SLURM_NTASKS": "SLURM_PROCID"}  # without it this process is none of those
# what belongs to several processes, where nothing says that there is one
_PARTS = ("JAX_COORDINATOR_ADDRESS", "JAX_PROCESS_ID")


def require_one(env: Mapping[str, str] | None = None) -> None:
    """Raises UserError where a launcher has started this process as one of several."""
    env = os.environ if env is None else env
    for name in _COUNTS:
        text = env.get(name, "")
        belongs = env.get(_OWN[name], "") if name in _OWN else "yes"
        if belongs and text.strip().isdecimal() and int(text) > 1:
            raise _several(f"{name} is {text}", name)
    if not env.get("JAX_NUM_PROCESSES"):
        for name in _PARTS:
            if env.get(name):
                raise _several(f"{name} is set", name)
    hosts = [host for host in env.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    if len(hosts) > 1:
        raise _several(f"TPU_WORKER_HOSTNAMES names {len(hosts)} hosts", "TPU_WORKER_HOSTNAMES")


def _several(what: str, name: str) -> UserError:
    what = f"{what}, and a run is one process: several would each train the same"
    return UserError(what, f"start one process, which uses all devices here, without {name}")
