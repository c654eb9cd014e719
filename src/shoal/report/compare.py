"""Two or three runs side by side: metrics, curves, time, and the settings that differ."""

from __future__ import annotations

from collections.abc import Mapping

from shoal.core.columns import OF_GRAPHS
from shoal.report.charts import Series, line_chart
from shoal.report.history import History
from shoal.report.page import Card, duration, flat, style, template

_SMALL = 0.05  # points: less is no difference that a reader of one decimal sees


def comparison(runs: Mapping[str, History]) -> str:
    """The page of several runs.

    Args:
        runs: their logs, by names that differ.
    """
    cards = [_curves(runs, "validate", "Validation"), _curves(runs, "step", "Loss")]
    return template("compare.html").render(
        name=" and ".join(runs),
        style=style(),
        lead=_lead(runs),
        metrics=_metrics(runs),
        cards=[card for card in cards if card is not None],
        differ=_differing(runs),
        names=list(runs),
    )


def _lead(runs: Mapping[str, History]) -> str:
    """Which run is ahead, by the first metric that all have, and what makes that doubtful."""
    metric = _common(runs)
    if metric is None:
        return "Not all of them were evaluated on test examples of the same task."
    found = {name: run.last("test")[metric] for name, run in runs.items()}
    ahead, best = max(found.items(), key=lambda x: x[1])
    behind = sorted((x for x in found.items() if x[0] != ahead), key=lambda x: -x[1])
    if best - behind[0][1] < _SMALL:
        said = f"{metric} is the same, {best:.1f} %."
    else:
        others = " and ".join(f"{value:.1f} % in {name}" for name, value in behind)
        said = f"{metric} is highest in {ahead}: {best:.1f} %, against {others}."
    data = {str(run.last("start").get("data", "")) for run in runs.values()}
    tested = {run.last("possible").get("tested") for run in runs.values()} - {None}
    if len(data) > 1 or len(tested) > 1:
        said += " But their test examples are not the same."
    return said


def _common(runs: Mapping[str, History]) -> str | None:
    names = [
        name for name in ("P@1", *OF_GRAPHS) if all(name in x.last("test") for x in runs.values())
    ]
    return names[0] if names else None


def _metrics(runs: Mapping[str, History]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of test metrics and time, a column per run, of two runs the difference."""
    tests = {name: run.last("test") for name, run in runs.items()}
    every = dict.fromkeys(x for test in tests.values() for x in test if "@" in x or x in OF_GRAPHS)
    table = []
    for metric in every:
        values = [test.get(metric) for test in tests.values()]
        cells = ["–" if x is None else f"{x:.2f}" for x in values]
        known = [x for x in values if x is not None]
        if len(runs) == 2:
            cells.append(f"{known[1] - known[0]:+.2f}" if len(known) == 2 else "–")
        table.append([metric, *cells])
    blank = [""] if len(runs) == 2 else []
    spent = [" ".join(duration(run.total)) for run in runs.values()]
    table.append(["training time", *spent, *blank])
    heads = ["test, per cent", *runs, *(["difference"] if blank else [])]
    return heads, table


def _curves(runs: Mapping[str, History], event: str, title: str) -> Card | None:
    """One curve per run: of the loss, or of the first metric of validation."""
    names = [run.names("validate", "valid_")[:1] for run in runs.values()]
    metric = "loss" if event == "step" else next((x[0] for x in names if x), "")
    found = [(name, *run.over_steps(event, metric)) for name, run in runs.items()]
    series = [Series(name, y, x) for name, x, y in found if y]
    if not series:
        return None
    unit = "loss" if event == "step" else f"{metric.removeprefix('valid_')}, per cent"
    about = (
        "Of single training steps." if event == "step" else "On examples held out from training."
    )
    return Card(title, about, chart=line_chart(series, "step", unit))


def _differing(runs: Mapping[str, History]) -> list[list[str]]:
    """The settings in which the runs differ, by name."""
    settings = [dict(flat(run.settings)) for run in runs.values()]
    names = dict.fromkeys(name for one in settings for name in one)
    rows = [[name, *(one.get(name, "–") for one in settings)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]
