"""Markdown tables of finished runs: quality, the four costs and step time, as mean ± standard deviation over seeds."""

from __future__ import annotations

import datetime
import math

from cerebra_jax.report.runs import Run, mean_sd, paired

_COLUMNS = (
    ("perplexity per word, valid", lambda r: r["val"]["ppl_word"], 1),
    ("perplexity per word, test", lambda r: r["test"]["ppl_word"], 1),
    ("bits per byte, test", lambda r: r["test"]["bits_per_byte"], 3),
    ("expected", lambda r: r["costs"]["relative"]["expected"], 3),
    ("hard", lambda r: r["costs"]["relative"]["hard"], 3),
    ("executed", lambda r: r["costs"]["relative"]["executed"], 3),
    ("executed MFLOP/token", lambda r: r["costs"]["executed"] / 1e6, 3),
    ("step ms", lambda r: r["step_ms"], 0),
    ("M parameters", lambda r: r["params"] / 1e6, 2),
)


def markdown(groups: dict[str, list[Run]], also: dict[str, float]) -> str:
    """The table, the paired differences, and what the numbers were measured on. `also`: name -> perplexity per word."""
    head = ["model", *(name for name, _, _ in _COLUMNS), "seeds"]
    rows = [head, ["---"] * len(head)]
    for name, runs in groups.items():
        cells = [_cell([get(r.result) for r in runs], digits) for _, get, digits in _COLUMNS]
        rows.append([name, *cells, ", ".join(str(r.seed) for r in runs)])
    for name, ppl in also.items():
        rows.append([name, "", f"{ppl:g}", *[""] * (len(head) - 3)])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", *differences(groups), *held(groups), "", provenance(groups)])


def differences(groups: dict[str, list[Run]]) -> list[str]:
    """Test perplexity of every group against the dense Transformer, seed by seed, with a 95 % interval."""
    dense = [name for name in groups if name.startswith("transformer")]
    lines = []
    for base in dense:
        for name, runs in groups.items():
            if name in dense:
                continue
            of = lambda rs: {r.seed: r.result["test"]["ppl_word"] for r in rs}  # noqa: E731
            found = paired(of(runs), of(groups[base]))
            if found is None:
                continue
            mean, half, n = found
            verdict = "the interval contains 0: no difference shown"
            if abs(mean) > half:
                verdict = "lower than dense" if mean < 0 else "higher than dense"
            lines.append(
                f"{name} − {base}, test perplexity per word, paired over {n} seeds: "
                f"{mean:+.1f}, 95 % interval [{mean - half:+.1f}, {mean + half:+.1f}]: {verdict}."
            )
    return lines


def held(groups: dict[str, list[Run]]) -> list[str]:
    """How far runs under a budget ended from it: the program that ran, and the decisions, the worst seed of each."""
    lines = []
    for name, runs in groups.items():
        budget = runs[0].config["objective"].get("budget")
        if budget:
            off = [max((r.result["costs"]["relative"][kind] / budget - 1 for r in runs), key=abs)
                   for kind in ("executed", "hard")]  # fmt: skip
            seeds = f"worst of {len(runs)} seeds" if len(runs) > 1 else "one seed"
            lines.append(f"{name}: executed {off[0]:+.1%} of the budget, hard cost {off[1]:+.1%} ({seeds}).")
    return lines


def provenance(groups: dict[str, list[Run]]) -> str:
    """One paragraph: data, training length, hardware, versions and code of the runs."""
    runs = [r for g in groups.values() for r in g]

    def all_of(get) -> str:
        return ", ".join(sorted({str(get(r.result)) for r in runs}))

    machine = all_of(lambda r: f"{r['device']['device']}, {r['device']['cores']} cores, jax {r['device']['jax']}")
    hours = sum(r.result["wall_s"] for r in runs) / 3600
    day = datetime.date.fromtimestamp(max((r.path / "result.json").stat().st_mtime for r in runs))
    return (
        f"Data {all_of(lambda r: r['dataset'])}; {all_of(lambda r: r['steps'])} steps, "
        f"{all_of(lambda r: format(r['tokens'], ','))} tokens a run; {machine}; {hours:.1f} hours in all, {day}; "
        f"commit {all_of(lambda r: str(r['commit'])[:12])}. Costs are relative to the dense Transformer of the same "
        "shape: expected and hard count causal attention as half the square, executed what the program runs."
    )


def _cell(values: list[float], digits: int) -> str:
    mean, sd = mean_sd(values)
    if math.isnan(sd) or sd < 0.5 * 10**-digits:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {sd:.{digits}f}"
