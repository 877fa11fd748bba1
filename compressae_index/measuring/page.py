"""An index report as one self-contained HTML page: plots inside, no script, no request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from compressae_index.measuring.evaluation import TIMED_QUERIES, Measurement
from compressae_index.measuring.index_report import IndexReport, Standing
from compressae_index.measuring.plots import (
    Series,
    as_svg,
    recall_against_bytes,
    recall_against_expected,
    speed_against_recall,
)
from compressae_index.search.sides import SIGNS, side
from compressae_index.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS = "compressae-index"
# Latents that are shown with their names.
LATENTS = 20


def as_page(report: IndexReport, names: Mapping[str, str]) -> str:
    """The HTML of a report. Every number is in a `data` element with its exact value.

    Args:
        report: the report to show.
        names: what was measured, such as "embeddings" and its file, which is in the title.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    template = (files("compressae_index") / "data" / "evaluation.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(f"compressae-index on {printable(names['embeddings'])}"),
        lead=_lead(report),
        contestants=_table("All contestants", report.measurements, report.modes),
        standings=_standings(report),
        sweeps="\n".join(
            _table(f"{each.mode} by {each.option}", each.measurements.values()) for each in report.sweeps
        ),
        frontier=_frontier(report),
        latents=_latents(report),
        facts=_facts(report, names),
        k=report.k,
        queries=_number(report.queries),
        timed=min(report.queries, TIMED_QUERIES),
        metric=escape(report.metric.replace("_", " ")),
        model_bytes=_number(report.stats.model_bytes),
        **_figures(report),
    )


def _lead(report: IndexReport) -> str:
    found = [
        f"<code>{escape(mode.name)}</code> finds {_recall(mode, report.k)} in {_bytes(mode)}"
        for mode in report.modes
    ]
    disk = report.stats.disk_bytes_per_vector
    on_disk = f", and original vectors of {_number(disk, ',.0f')} bytes on disk" if disk else ""
    return (
        f"Of the {report.k} nearest of {_number(report.stats.vectors)} vectors, {', '.join(found)} bytes a "
        f"vector{on_disk}; their {_number(report.stats.dim)} float32 numbers take {_bytes(report.exact)}."
    )


def _standings(report: IndexReport) -> str:
    items = "\n".join(_standing(each, report.k) for each in report.standings())
    alone = "" if report.rivals else "\n<p>Compared with exact search only: Faiss was not measured.</p>"
    return f"<ul>\n{items}\n</ul>{alone}"


def _standing(standing: Standing, k: int) -> str:
    """A mode's losses in words, with advice, or that it has none."""
    mode, more, faster, advice = standing
    said = []
    if more:
        rivals = _listed(
            f"{escape(one.name)} ({_recall(one, k)} in {_bytes(one)} bytes, {_ms(one)} ms)" for one in more
        )
        said.append(
            f"finds fewer of the {k} nearest, {_recall(mode, k)} in {_bytes(mode)} bytes at {_ms(mode)} ms a "
            f"query, than do in no more bytes: {rivals}"
        )
    if faster:
        rivals = _listed(
            f"{escape(one.name)} ({_ms(one)} ms, {_recall(one, k)} in {_bytes(one)} bytes)" for one in faster
        )
        said.append(
            f"is slower, at {_ms(mode)} ms a query and {_bytes(mode)} bytes, than what finds as much: "
            f"{rivals}"
        )
    if not said:
        said.append(
            f"does not: nothing finds more than {_recall(mode, k)} in at most its {_bytes(mode)} bytes, and "
            f"nothing finds as much in less than its {_ms(mode)} ms a query"
        )
    todo = "".join(f' <span class="advice">{escape(each)}.</span>' for each in advice)
    return f"<li><code>{escape(mode.name)}</code> {'; it '.join(said)}.{todo}</li>"


def _listed(parts: Iterable[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _frontier(report: IndexReport) -> str:
    """The settings that were measured when the index was built, on these queries; empty without any."""
    if not report.frontier:
        return ""
    found = [one for _, one in report.frontier]
    expected = {one.name: point.recall for point, one in report.frontier}
    (k,) = found[0].recall
    caption = (
        f"recall@{k} of these queries against what build expected of each setting. On the line both are "
        "equal; below it, the queries are less like the vectors than these are like each other."
    )
    series = Series("settings of two_stage", found, is_ours=True)
    figure = _figure("frontier", lambda axes: recall_against_expected(axes, series, expected, k), caption)
    rows = [
        _row(one, (_recall(one, k), _number(point.recall, ".3f"), _ms(one), _per_second(one)))
        for point, one in report.frontier
    ]
    header = ["settings", f"recall@{k}", "expected", "ms/query", "queries/s"]
    table = _table_of("two_stage by settings that build measured", header, rows)
    return f'<h2>Settings that build measured</h2>\n<div class="figures">\n{figure}\n</div>\n{table}\n'


def _latents(report: IndexReport) -> str:
    """The latents that most rows use, with their names; empty for an index without labels."""
    if report.labels is None:
        return ""
    lengths, rows = report.model.list_lengths, []
    for latent in sorted(range(len(lengths)), key=lambda latent: -lengths[latent])[:LATENTS]:
        names = [escape(printable(report.labels.get(side(latent, sign), ""))) for sign in SIGNS]
        cells = [_number(lengths[latent]), *names]
        rows.append(
            f'<tr><th scope="row">{latent}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
        )
    caption = f"the {len(rows)} latents that most of {report.model.rows:,} rows use"
    table = _table_of(caption, ["", "rows", "name of +", "name of −"], rows)
    return f"<h2>What latents stand for</h2>\n{table}\n"


def _table(caption: str, measurements: Iterable[Measurement], highlighted: Iterable[Measurement] = ()) -> str:
    measurements, highlighted = list(measurements), list(highlighted)
    ks = list(measurements[0].recall)
    header = ["search", *(f"recall@{k}" for k in ks), "bytes/vector", "ms/query", "queries/s"]
    rows = [
        _row(
            one,
            (*(_recall(one, k) for k in ks), _bytes(one), _ms(one), _per_second(one)),
            ' class="ours"' if one in highlighted else "",
        )
        for one in measurements
    ]
    return _table_of(caption, header, rows)


def _row(one: Measurement, cells: Iterable[str], style: str = "") -> str:
    return (
        f'<tr{style}><th scope="row">{escape(one.name)}</th>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
    )


def _table_of(caption: str, header: Iterable[str], rows: Iterable[str]) -> str:
    return (
        f'<div class="scroll" role="region" aria-label="{escape(caption)}" tabindex="0">\n'
        f"<table>\n<caption>{escape(caption)}</caption>\n<thead><tr>"
        + "".join(f'<th scope="col">{name}</th>' for name in header)
        + "</tr></thead>\n<tbody>\n"
        + "\n".join(rows)
        + "\n</tbody>\n</table>\n</div>"
    )


def _figures(report: IndexReport) -> dict[str, str]:
    """The plots, by their name in the template."""
    k = report.k
    modes = Series(OURS, report.modes, [mode.name for mode in report.modes], is_ours=True)
    # Only dense needs a label here: `sparse` and `two_stage` lie on the labelled curves of their settings.
    timed = modes._replace(
        labels=[
            mode.name if of == "dense" else "" for of, mode in zip(report.measured, report.modes, strict=True)
        ]
    )
    others, settings = _others(report), _settings(report)
    return {
        "recall_figure": _figure(
            "recall",
            lambda axes: recall_against_bytes(axes, [modes, *others], k),
            f"recall@{k} against bytes per vector. Up and to the left is better.",
        ),
        "speed_figure": _figure(
            "speed",
            lambda axes: speed_against_recall(axes, [timed, *others, *settings], k),
            f"Queries per second against recall@{k}. Up and to the right is better.",
        ),
        "lists_figure": _figure(
            "lists",
            report.model.plot_lists,
            f"Rows that use each latent, of a sample of {report.model.rows:,}. Even lists are the fastest to "
            "search; latents without rows are wasted.",
        ),
        "cosines_figure": _figure(
            "cosines",
            report.model.plot_cosines,
            "Cosine of each vector and its reconstruction. Further right is better.",
        ),
    }


def _others(report: IndexReport) -> list[Series]:
    """Exact search, and a series for each family of rivals."""
    families = (
        Series(family, ones, [one.name.removeprefix("Faiss ") for one in ones], joined=True)
        for family, ones in report.rivals.items()
    )
    return [Series("exact", [report.exact], ["float32"]), *families]


def _settings(report: IndexReport) -> list[Series]:
    """A series for each sweep."""
    return [
        Series(
            f"{each.mode}, by {each.option}",
            list(each.measurements.values()),
            list(map(str, each.measurements)),
            joined=True,
            is_ours=True,
        )
        for each in report.sweeps
    ]


def _figure(name: str, draw: Callable[[Axes], None], caption: str) -> str:
    return f"<figure>\n{as_svg(draw, name, caption)}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def _facts(report: IndexReport, names: Mapping[str, str]) -> str:
    stats, environment = report.stats, report.environment
    parts = [f"{escape(name)} {_number(size, '.1f')}" for name, size in stats.bytes_per_vector.items()]
    if disk := stats.disk_bytes_per_vector:
        parts.append(f"and original vectors on disk {_number(disk, '.1f')}")
    versions = (f"{name} {each}" for name, each in environment["versions"].items() if each != "not installed")
    load = environment["load_average"]
    busy = "" if load is None else f"; load average {_number(load[0], '.1f')}"
    left_out = f"; {_number(report.left_out)} other rows left out" if report.left_out else ""
    unused = "" if stats.dead_latents is None else f", {_number(stats.dead_latents)} without postings"
    facts = {
        **{name: escape(printable(value)) for name, value in names.items()},
        "vectors": f"{_number(stats.vectors)} of {_number(stats.dim)} dimensions{left_out}",
        "metric": escape(stats.metric),
        "model": f"{_number(stats.n_latents)} latents{unused}",
        "codes": f"{_number(stats.k)} nonzeros, {_number(stats.postings)} in posting lists, {stats.encoder}, "
        f"{_number(stats.residual_bits)} bits a dimension of residuals",
        "bytes per vector": ", ".join(parts),
        "measured at": f'<time datetime="{report.made_at}">{report.made_at}</time>',
        "machine": escape(f"{environment['processor']}, {environment['machine']}"),
        "processors": f"{environment['processors']}, {environment['simd']}{busy}",
        "versions": escape(", ".join((f"Python {environment['python']}", *versions))),
        "seeds": "Faiss’s own for k-means and rotations; nothing else is random",
    }
    rows = "\n".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in facts.items())
    return f"<dl>\n{rows}\n</dl>"


def _recall(one: Measurement, k: int) -> str:
    return _number(one.recall[k], ".3f")


def _bytes(one: Measurement) -> str:
    return _number(one.bytes_per_vector, ",.0f")


def _ms(one: Measurement) -> str:
    return _number(one.ms_per_query, ".2f")


def _per_second(one: Measurement) -> str:
    return _number(one.queries_per_second, ",.0f")


def _number(value: float, shown: str = ",") -> str:
    """A number, rounded for the eye and exact for programs."""
    return f'<data value="{value}">{value:{shown}}</data>'
