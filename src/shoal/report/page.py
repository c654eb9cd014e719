"""The page: one HTML file that needs no network, no script and no other file."""

from __future__ import annotations

import time
from importlib.resources import files
from typing import Any

from shoal.report.charts import Series, bars, lines
from shoal.report.markup import Markup, Number, number, table, tag
from shoal.report.story import Story

_ENDS = {
    "steps": "all its steps taken",
    "minutes": "its minutes spent",
    "patience": "stopped for want of better validation",
    "interrupt": "interrupted",
}
# metrics of nodes and links that are no metrics of labels
_OF_GRAPHS = ("accuracy", "micro_F1", "MRR", "AUC")
_TENTHS = [str(i) for i in range(1, 11)]
_STAGES = {
    "prepare": "Prepare",
    "steps": "Steps",
    "refresh": "Cluster",
    "validate": "Validate",
    "fuse": "Fuse",
    "test": "Test",
}


def page(name: str, story: Story, head: Story) -> str:
    """The report of a run called `name`; `head` is that of its stage of classifiers, if any."""
    told = [*story.names("validate", ""), *story.names("test", "")]
    graph = any(name.removeprefix("valid_") in _OF_GRAPHS for name in told)
    shown = [_loss, _validation, _stages]
    shown[2:2] = [] if graph else [_deciles, _hardness, _clusters]
    body = tag(
        "main",
        _header(name, story),
        _tiles(story),
        tag("h2", "How it went"),
        tag("div", *(draw(story) for draw in shown), class_="cards"),
        _head(head) if head.by_event else None,
        None if graph else _examples(story),
        tag("h2", "Final metrics"),
        _metrics(story),
        tag("h2", "Settings"),
        _settings(story),
        _footer(graph),
    )
    style = Markup(files("shoal.report").joinpath("page.css").read_text(encoding="utf-8"))
    metas = (
        '<meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
    )
    about = tag("head", Markup(metas), tag("title", f"{name}: shoal report"), tag("style", style))
    return f"<!doctype html>\n{tag('html', about, tag('body', body), lang='en')}\n"


# -- above the pictures ------------------------------------------------------------------------


def _header(name: str, story: Story) -> Markup:
    start, end = story.last("start"), story.last("end")
    facts = [str(start.get("data", story.settings.get("source", "")))]
    facts.append(f"{story.steps:,} steps")
    facts.append(_ENDS.get(end.get("stopped", ""), "not ended, or killed"))
    if "time" in start:
        facts.append(time.strftime("begun %Y-%m-%d %H:%M UTC", time.gmtime(start["time"])))
    return tag("header", tag("h1", name), tag("p", " · ".join(facts)))


def _tiles(story: Story) -> Markup:
    test = story.last("test")
    names = ("P@1", "P@5", "PSP@1", "R@5", "hits@10", *_OF_GRAPHS)
    tiles = [(name, f"{test[name]:.2f}", "%") for name in names if name in test]
    tiles.append(("Training", *_duration(story.seconds)))
    tiles += [(name, f"{peak / 1024:.2f}", "GiB") for name, peak in story.peak_mib.items()]
    cells = (
        tag("div", tag("dt", name), tag("dd", value, " ", tag("small", unit)), class_="tile")
        for name, value, unit in tiles
    )
    return tag("dl", *cells, class_="tiles")


def _duration(seconds: Number) -> tuple[str, str]:
    if seconds < 120:
        return f"{seconds:.1f}", "s"
    return (f"{seconds / 60:.1f}", "min") if seconds < 7200 else (f"{seconds / 3600:.1f}", "h")


# -- the pictures ------------------------------------------------------------------------------


def _card(title: str, about: str, *content: Markup | None) -> Markup:
    return tag("section", tag("h3", title), tag("p", about), *content, class_="card")


def _missing(title: str, why: str) -> Markup:
    about = tag("p", f"Not recorded: {why}.")
    return tag("section", tag("h3", title), about, class_="card missing")


def _loss(story: Story) -> Markup:
    x, y = story.over_steps("step", "loss")
    if not y:
        return _missing("Loss", "the run took no step that was noted")
    about = "Of single steps, every tenth; neighbors averaged where they are many."
    return _card("Loss", about, lines([Series("training loss", y, x)], "step", "loss"))


def _validation(story: Story) -> Markup:
    names = story.names("validate", "valid_")[:3]
    found = [(name, *story.over_steps("validate", name)) for name in names]
    series = [Series(name.removeprefix("valid_"), y, x) for name, x, y in found if y]
    if not series:
        return _missing("Validation", "nothing was held out, or no round of it came")
    about = "On points held out from training, in per cent."
    return _card("Validation", about, lines(series, "step", "per cent"))


def _deciles(story: Story) -> Markup:
    title, found = "Rare and frequent labels", story.last("deciles")
    shares = [name for name in found if name[:2] in ("R@", "P@")]
    if not shares:
        return _missing(title, "the run was not judged on test points, or by an older version")
    k = shares[0][2:]
    about = (
        f"R@{k}: of a tenth of the pairs of test point and true label, how many are found. P@k: of "
        "a tenth of the pairs of test point and predicted label, how many are true."
    )
    series = [Series(name, found[name]) for name in shares[:3]]
    groups = _TENTHS[: max(len(one.y) for one in series)]
    seen = found.get("frequency", [])
    rows = [[group, number(round(mean, 1))] for group, mean in zip(groups, seen, strict=False)]
    heads = ["tenth", f"training points a label (tenths of R@{k})"]
    how_rare = tag("details", tag("summary", "How rare"), table(heads, rows, "tall"))
    return _card(
        title, about, bars(groups, series, "tenth, rarest labels first", "per cent"), how_rare
    )


def _hardness(story: Story) -> Markup:
    title = "Hardness of in-batch negatives"
    names = {"positive": "positives", "hardest_negative": "hardest negative"}
    found = [(said, *story.over_steps("step", name)) for name, said in names.items()]
    series = [Series(said, y, x) for said, x, y in found if y]
    if not series:
        return _missing(title, "no step noted it; the run may be by an older version")
    about = (
        "Mean cosine of a batch's points with their positives, and with the wrong label that "
        "comes nearest. Dotted uprights: clusters made anew."
    )
    anew = [line["step"] for line in story.all("refresh") if line.get("anew")]
    return _card(title, about, lines(series, "step", "cosine", anew))


def _clusters(story: Story) -> Markup:
    title, rounds = "Clusters", story.all("refresh")
    if not rounds:
        return _missing(title, "the run began no epoch")
    heads = ["epoch", "step", "size", "clusters", "new", "seconds"]
    names = ["epoch", "step", "cluster_size", "clusters", "anew", "refresh_seconds"]
    rows = [[number(line.get(name)) for name in names] for line in rounds]
    about = (
        "At the start of each epoch. Size: points a cluster, all full but at most one; 1 stands "
        "for random batches."
    )
    return _card(title, about, table(heads, rows, "tall"))


def _stages(story: Story) -> Markup:
    stages = story.stages()
    if not stages:
        return _missing("Time and memory", "no stage was timed")
    most = max(seconds for _, seconds, _ in stages) or 1.0
    cells = []
    for name, seconds, peak in stages:
        share = f"width: {100 * seconds / most:.1f}%"
        fill = tag("span", tag("span", class_="fill", style=share), class_="track")
        memory = "–" if peak is None else f"{peak:,} MiB"
        cells += [tag("span", _STAGES[name]), fill, tag("span", f"{seconds:,.1f} s")]
        cells.append(tag("span", memory, class_="quiet"))
    about = "Seconds of each stage, and the highest resident memory of the process by its end."
    return _card("Time and memory", about, tag("div", *cells, class_="stages"))


def _head(head: Story) -> Markup:
    """The stage of classifiers, which is a run of its own."""
    cards = (draw(head) for draw in (_loss, _validation, _stages))
    return tag("", tag("h2", "How its head went"), tag("div", *cards, class_="cards"))


# -- below them --------------------------------------------------------------------------------


def _examples(story: Story) -> Markup:
    found = story.last("examples")
    kinds = (("right", "First prediction right"), ("wrong", "First prediction wrong"))
    parts: list[Markup] = []
    for kind, title in kinds:
        parts.append(tag("h2", f"{title}: test points drawn at random"))
        shown = found.get(kind, [])
        if shown:
            cards = (_example(kind, point) for point in shown)
            parts.append(tag("div", *cards, class_="examples"))
        else:
            why = "There is none." if found else "Not recorded: the run was not judged."
            parts.append(tag("p", why, class_="quiet"))
    return tag("", *parts)


def _example(kind: str, point: dict[str, Any]) -> Markup:
    more = point.get("labels_left_out", 0)
    truth = "True: " + "; ".join(point["labels"]) + (f"; and {more} more" if more else "")
    rows = (
        tag(
            "li",
            tag("b", "✓" if p["true"] else "✗", role="img", aria_label=str(p["true"]).lower()),
            tag("span", p["title"], " ", tag("span", p["uid"], class_="uid"), class_="title"),
            tag("span", f"{p['score']:.2f}", class_="quiet"),
            class_="yes" if p["true"] else "no",
        )
        for p in point["predicted"]
    )
    text = tag("p", point["text"] or "(no text)")
    return tag(
        "article", text, tag("p", truth, class_="truth"), tag("ol", *rows), class_=f"example {kind}"
    )


def _metrics(story: Story) -> Markup:
    test = story.last("test")
    kinds: dict[str, dict[str, Number]] = {}
    for name, value in test.items():
        kind, at, k = name.partition("@")
        if at or name in _OF_GRAPHS:
            kinds.setdefault(kind, {})[k] = value
    if not kinds:
        return tag("p", "Not recorded: the run was not judged on its test split.", class_="quiet")
    ks = list(dict.fromkeys(k for row in kinds.values() for k in row))
    heads = ["test, per cent", *(f"@{k}" if k else "" for k in ks)]
    rows = [
        [kind, *(f"{row[k]:.2f}" if k in row else "–" for k in ks)] for kind, row in kinds.items()
    ]
    return tag("div", table(heads, rows), class_="card")


def _settings(story: Story) -> Markup:
    cells = (
        tag("div", tag("dt", name), tag("dd", _plain(value)))
        for name, value in story.settings.items()
    )
    return tag("div", tag("dl", *cells, class_="settings"), class_="card")


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else number(value)


def _footer(graph: bool) -> Markup:
    label_only = (
        "A run on a graph has no clusters, no rare labels and no texts, so their pictures are "
        "left out. "
        if graph
        else ""
    )
    return tag("footer", label_only, "A dash is a setting left to its default.")
