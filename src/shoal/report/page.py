"""What the page of a report shows, gathered for its template ``page.html``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from shoal.core.columns import OF_GRAPHS, metric_table
from shoal.report import charts
from shoal.report.charts import Chart, Series, bar_chart, line_chart, number
from shoal.report.history import History, Number

_ENDS = {
    "steps": "all its steps taken",
    "minutes": "its minutes spent",
    "patience": "stopped for want of better validation",
    "interrupt": "interrupted",
}
_OF_GRAPHS = {
    "accuracy": "The class is right for {:.1f} % of the test nodes.",
    "micro_F1": "Classes of test nodes are found with a micro-averaged F1 of {:.1f} %.",
    "MRR": "The mean reciprocal rank of test links is {:.1f} %.",
}
_TENTHS = [str(i) for i in range(1, 11)]


@dataclass(frozen=True)
class Card:
    """A title, and below it what the run logged, or why it did not.

    Attributes:
        title: of the card.
        about: what is shown.
        missing: why nothing is.
        chart: its series.
        stages: name, share of the longest, seconds and memory of each.
        heads: of a table.
        table: its rows.
        summary: of the table, where it is folded.
    """

    title: str
    about: str = ""
    missing: str = ""
    chart: Chart | None = None
    stages: Sequence[tuple[str, str, str, str]] = ()
    heads: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()
    summary: str = ""


def page(name: str, history: History, stages: dict[str, History]) -> str:
    """The report of a run.

    Args:
        name: of the run.
        history: its log.
        stages: logs of its further stages, such as classifiers, by name.
    """
    evaluated = [*history.names("validate"), *history.names("test")]
    on_graph = any(metric.removeprefix("valid_") in OF_GRAPHS for metric in evaluated)
    ensemble = _alone(history)
    shown = [_loss] if ensemble is None else [_loss, _validation]
    shown += [] if on_graph else [_deciles, _hardness, _clusters]
    shown += [_calibration] if history.last("calibration").get("said") else []
    shown += [_stages]
    sections = [("How it went", [draw(history) for draw in shown])]
    for stage, log in stages.items():
        cards = [draw(log) for draw in (_loss, _validation, _stages)]
        sections.append((f"How its {stage} went", cards))
    return template("page.html").render(
        name=name,
        style=style(),
        facts=_facts(history),
        lead=lead(history),
        first=ensemble or _validation(history),
        tiles=_tiles(history, list(stages.values())),
        sections=sections,
        examples=[] if on_graph else _examples(history),
        evaluated=bool(history.last("examples")),
        metrics=_metrics(history),
        settings=_settings(history.settings),
        footer=_footer(history, on_graph),
    )


def style() -> str:
    """The style sheet of every page."""
    return files("shoal.report").joinpath("page.css").read_text(encoding="utf-8")


@cache
def template(name: str) -> Any:
    """A template of this folder; whatever is put into it is escaped."""
    loader = PackageLoader("shoal.report", ".")
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    names = ("WIDTH", "HEIGHT", "LEFT", "RIGHT", "TOP", "BOTTOM")
    templates.globals["size"] = {name.lower(): getattr(charts, name) for name in names}
    return templates.get_template(name)


def lead(history: History) -> str:
    """What came of a run, in one sentence."""
    test, tested = history.last("test"), history.last("possible").get("tested")
    if "P@1" in test:
        whole = f"{tested:,} test examples" if tested else "test examples"
        best = max((name for name in test if name.startswith("R@")), default="", key=_k)
        also = (
            f"; its first {_k(best)} labels hold {test[best]:.1f} % of the true ones"
            if best
            else ""
        )
        return f"The first label is right for {test['P@1']:.1f} % of {whole}{also}."
    for name, said in _OF_GRAPHS.items():
        if name in test:
            return said.format(test[name])
    return "Not evaluated on test examples yet."


def _k(name: str) -> int:
    return int(name.partition("@")[2]) if name.partition("@")[2].isdigit() else 0


# -- above the charts ----------------------------------------------------------------------------


def _facts(history: History) -> list[str]:
    start, end = history.last("start"), history.last("end")
    facts = [str(start.get("data", history.settings.get("source", "")))]
    facts.append(f"{history.steps:,} steps")
    facts.append(_ENDS.get(end.get("stopped", ""), "not ended, or killed"))
    if "time" in start:
        facts.append(time.strftime("begun %Y-%m-%d %H:%M UTC", time.gmtime(start["time"])))
    return facts


def _tiles(history: History, stages: list[History]) -> list[tuple[str, str, str]]:
    test = history.last("test")
    names = ("P@1", "P@5", "PSP@1", "R@5", "F1", "ECE", "hits@10", *OF_GRAPHS)
    tiles = [(name, f"{test[name]:.2f}", "%") for name in names if name in test]
    logs = [history, *stages]
    # every stage counts: the classifiers and the ensemble often take longer than the encoder
    tiles.append(("Training", *duration(sum(log.total for log in logs))))
    for key, title in (("peak_mib", "Peak memory"), ("device_peak_mib", "Peak device memory")):
        peak = max(log.most(key) for log in logs)
        tiles += [(title, f"{peak / 1024:.2f}", "GiB")] if peak else []
    return tiles


def duration(seconds: Number) -> tuple[str, str]:
    """A time as a number and its unit: s, min or h."""
    if seconds < 120:
        return f"{seconds:.1f}", "s"
    return (f"{seconds / 60:.1f}", "min") if seconds < 7200 else (f"{seconds / 3600:.1f}", "h")


# -- the charts ----------------------------------------------------------------------------------


def _loss(history: History) -> Card:
    x, y = history.over_steps("step", "loss")
    if not y:
        return Card("Loss", missing="the run took no step that was logged")
    about = "Of single steps, every tenth; neighbors averaged where they are many."
    chart = line_chart([Series("training loss", y, x)], "step", "loss")
    return Card("Loss", about, chart=chart)


def _validation(history: History) -> Card:
    names = history.names("validate", "valid_")[:3]
    found = [(name, *history.over_steps("validate", name)) for name in names]
    series = [Series(name.removeprefix("valid_"), y, x) for name, x, y in found if y]
    if not series:
        return Card("Validation", missing="nothing was held out, or no validation came")
    about = "On examples held out from training, in per cent."
    return Card("Validation", about, chart=line_chart(series, "step", "per cent"))


def _alone(history: History) -> Card | None:
    """What each ranker finds by itself, beside the ensemble of them all."""
    found = history.last("alone")
    if not found.get("P@1"):
        return None
    names, values = zip(*sorted(found["P@1"].items(), key=lambda x: x[1]), strict=True)
    about = (
        f"P@1 of each ranker by itself and of the ensemble that weighs them, in per cent, on the "
        f"same {found['tested']:,} test examples."
    )
    most = max(values) or 1.0
    bars = [
        (n, f"{100 * x / most:.1f}", f"{x:.1f} %", "") for n, x in zip(names, values, strict=True)
    ]
    return Card("What the ensemble gains", about, stages=bars)


def _calibration(history: History) -> Card:
    title, found = "Can its probabilities be believed?", history.last("calibration")
    about = (
        "Predictions for test examples in bins of their probability: the share that is true. The "
        "closer to the dashed line, the better; below it the model is too sure."
    )
    series = [Series("true", found["true"], found["said"]), Series("ideal", [0, 100], [0, 100])]
    chart = line_chart(series, "probability, per cent", "true, per cent")
    table = [
        [number(s), number(t), number(n)]
        for s, t, n in zip(found["said"], found["true"], found["of"], strict=True)
    ]
    heads = ["probability", "true", "predictions"]
    return Card(title, about, chart=chart, heads=heads, table=table, summary="How many")


def _deciles(history: History) -> Card:
    title, found = "Rare and frequent labels", history.last("deciles")
    shares = [name for name in found if name[:2] in ("R@", "P@")]
    if not shares:
        why = "the run was not evaluated on test examples, or by an older version"
        return Card(title, missing=why)
    k = shares[0][2:]
    about = (
        f"R@{k}: of a tenth of the pairs of test example and true label, how many are found. P@k: "
        "of a tenth of the pairs of test example and predicted label, how many are true."
    )
    series = [Series(name, found[name]) for name in shares[:3]]
    groups = _TENTHS[: max(len(one.y) for one in series)]
    seen = found.get("frequency", [])
    return Card(
        title,
        about,
        chart=bar_chart(groups, series, "tenth, rarest labels first", "per cent"),
        summary="How rare",
        heads=["tenth", f"training examples per label (tenths of R@{k})"],
        table=[[x, number(round(mean, 1))] for x, mean in zip(groups, seen, strict=False)],
    )


def _hardness(history: History) -> Card:
    title = "Hardness of in-batch negatives"
    names = {"positive": "positives", "hardest_negative": "hardest negative"}
    found = [(said, *history.over_steps("step", name)) for name, said in names.items()]
    series = [Series(said, y, x) for said, x, y in found if y]
    if not series:
        return Card(title, missing="no step logged it; the run may be by an older version")
    about = (
        "Mean cosine of a batch's examples with their positives, and with the wrong label that "
        "comes nearest. Dotted uprights: new clusters."
    )
    new = [line["step"] for line in history.all("refresh") if line.get("refreshed")]
    return Card(title, about, chart=line_chart(series, "step", "cosine", new))


def _clusters(history: History) -> Card:
    title, rounds = "Clusters", history.all("refresh")
    if not rounds:
        return Card(title, missing="the run began no epoch")
    names = ["epoch", "step", "cluster_size", "clusters", "refreshed", "refresh_seconds"]
    about = (
        "At the start of each epoch. Size: examples per cluster, all full but at most one; 1 "
        "stands for random batches."
    )
    heads = ["epoch", "step", "size", "clusters", "new", "seconds"]
    table = [[number(line.get(name)) for name in names] for line in rounds]
    return Card(title, about, heads=heads, table=table)


def _stages(history: History) -> Card:
    title, stages = "Time and memory", history.stages()
    if not stages:
        return Card(title, missing="no stage was timed")
    most = max(seconds for _, seconds, _ in stages) or 1.0
    bars = [
        (
            name,
            f"{100 * seconds / most:.1f}",
            f"{seconds:,.1f} s",
            "–" if peak is None else f"{peak:,} MiB",
        )
        for name, seconds, peak in stages
    ]
    whole = "{} {}".format(*duration(sum(seconds for _, seconds, _ in stages)))
    about = f"{whole} in all, by stage, and the highest resident memory of the process by its end."
    return Card(title, about, stages=bars)


# -- below them ----------------------------------------------------------------------------------


def _examples(history: History) -> list[tuple[str, str, list[Any]]]:
    found = history.last("examples")
    kinds = (("right", "First prediction right"), ("wrong", "First prediction wrong"))
    return [
        (kind, f"{title}: test examples drawn at random", [_named(x) for x in found.get(kind, [])])
        for kind, title in kinds
    ]


def _named(example: dict[str, Any]) -> dict[str, Any]:
    """An example whose predictions have a name; runs of the first layout call it uid."""
    predicted = [x | {"name": x.get("uid", x.get("label"))} for x in example["predicted"]]
    return {"labels_left_out": 0} | example | {"predicted": predicted}


def _metrics(history: History) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the test metrics, with the most that P@k can be where labels are few."""
    ks, rows = metric_table(history.last("test"))
    most = history.last("possible").get("most", {})
    heads = ["test, per cent", *(f"@{k}" if k else "" for k in ks)]
    shown = [[kind, *("" if x is None else f"{x:.2f}" for x in xs)] for kind, xs in rows]
    if shown and any(x < 100 for x in most.values()):
        best = ["P at most", *(f"{most[f'P@{k}']:.2f}" if f"P@{k}" in most else "" for k in ks)]
        shown.insert(1, best)
    return heads, shown


def _settings(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """What was asked for, without what was left to its default; a command's flags among them."""
    return [*flat(settings)]


def flat(settings: dict[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    """Settings by name, ``encoder.dim`` for one of an object; those that are not set are left out.

    Yields:
        names and values, in order.

    Example:
        >>> list(flat({"encoder": {"class": "shoal.text.bag:BagEncoder", "dim": 16}, "lr": None}))
        [('encoder', 'BagEncoder'), ('encoder.dim', '16')]
    """
    for name, value in (settings | dict(settings.get("command") or {})).items():
        if name == "command" or value is None:
            continue
        if isinstance(value, dict):
            made = str(value.get("class") or value.get("function") or "").rpartition(":")[2]
            yield from [(within + name, made)] if made else []
            inside = {k: v for k, v in value.items() if k not in ("class", "function")}
            yield from flat(inside, f"{within}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from flat({f"{name}.{i + 1}": one for i, one in enumerate(value)}, within)
        else:
            yield (
                within + name,
                ", ".join(map(str, value)) if isinstance(value, list) else number(value),
            )


def _footer(history: History, on_graph: bool) -> str:
    start = history.last("start")
    made = [f"{name} {start[name]}" for name in ("shoal", "torch", "python") if name in start]
    said = "A run on a graph has no clusters, no rare labels and no texts, so their charts are "
    return (f"{said}left out. " if on_graph else "") + ", ".join(made)
