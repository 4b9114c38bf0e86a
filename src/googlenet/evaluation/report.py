"""A run as one self-contained HTML page: opens offline, asks no server for anything."""

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ..data.dataset import Split
from .metrics import Outputs, confusion_matrix, scores

MISTAKES = 24

# Okabe and Ito's palette: told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6b7280"

STYLE = """
:root { color-scheme: light; --ink: #1f2933; --soft: #6b7280; --line: #e3e7ec; --accent: #0072B2; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f9; color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { margin: 0 0 .25rem; font-size: 1.7rem; } h2 { margin: 0 0 1rem; font-size: 1.15rem; }
section { padding: 1.25rem; margin-top: 1.25rem; }
section, .figures div { background: #fff; border: 1px solid var(--line); border-radius: .75rem; }
.soft { color: var(--soft); } .scroll { overflow-x: auto; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; margin-top: 1.25rem; }
.figures div { flex: 1 1 9rem; padding: .9rem 1.1rem; }
.figures b { display: block; font-size: 1.6rem; font-variant-numeric: tabular-nums; }
svg { max-width: 100%; height: auto; }
table.matrix { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
.matrix th { font-weight: 500; padding: .3rem .5rem; text-align: right; white-space: nowrap; }
.matrix thead th { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; }
.matrix td { width: 3rem; height: 2.1rem; text-align: center; border: 1px solid #fff; }
.mistakes { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 1rem; }
.mistakes figure { margin: 0; }
.mistakes img { width: 100%; image-rendering: pixelated; border-radius: .4rem; }
.mistakes figcaption { font-size: .8rem; line-height: 1.35; margin-top: .3rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
pre { margin: 0; padding: .8rem 1rem; background: #f6f7f9; border-radius: .5rem; overflow-x: auto; }
pre { font-size: .85rem; }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="data:,"><style>{style}</style></head>
<body><main><h1>{title}</h1><div class="soft">{about}</div>
<div class="figures">{tiles}</div>
{sections}
</main></body></html>
"""


# What a page shows on top: a value, and what it is; and below: a heading, a remark, HTML.
Tile = tuple[str, str]
Section = tuple[str, str, str]


def render_report(
    title: str,
    recipe: str,
    entries: Sequence[dict[str, Any]],
    classes: Sequence[str],
    split: Split,
    outputs: Outputs | None,
    environment: dict[str, Any],
) -> str:
    """The page: figures, curves, confusion matrix, worst mistakes, recipe and machine.

    `entries` are those of metrics.jsonl; `outputs` are the network's answers to the pictures of `split`, None
    where nothing was held out to measure on.
    """
    which = next((e["split"] for e in reversed(entries) if e["split"] != "train"), "none")
    tiles: list[Tile] = []
    sections = [("Training", "The training loss includes label smoothing and auxiliary losses.", curves(entries))]
    if outputs is not None:
        final = scores(outputs)
        tiles = [
            (f"{final['top1']:.4f}", f"top-1 accuracy, {which} ({final['images']:,} pictures)"),
            (f"{final['top5']:.4f}", "top-5 accuracy"),
            (f"{final['loss']:.3f}", "cross-entropy (nats)"),
        ]
        matrix = f"<div class='scroll'>{_matrix(confusion_matrix(outputs), classes)}</div>"
        mistakes = _mistakes(outputs, split, classes)
        sections += [
            ("Confusion matrix", "Rows: the true class; columns: the answer; in pictures.", matrix),
            ("Worst mistakes", "Wrong answers in which the true class got the least probability.", mistakes),
        ]
    return page(title, recipe, entries, environment, tiles, sections)


def page(
    title: str,
    recipe: str,
    entries: Sequence[dict[str, Any]],
    environment: dict[str, Any],
    tiles: Sequence[Tile],
    sections: Sequence[Section],
) -> str:
    """The page of any run: its `tiles` and `sections`, then the command, the recipe and the machine."""
    seconds = max((e["seconds"] for e in entries if e["split"] == "train"), default=0.0)
    tiles = [*tiles, (_duration(seconds), "of training")]
    facts = {key: str(value) for key, value in environment.items() if key != "command" and value is not None}
    table = "".join(f"<dt>{html.escape(key)}</dt><dd>{html.escape(value)}</dd>" for key, value in facts.items())
    sections = [
        *sections,
        ("Command", "", f"<pre>{html.escape(str(environment.get('command') or 'googlenet.fit(recipe, out)'))}</pre>"),
        ("Recipe, every value", "", f"<pre>{html.escape(recipe)}</pre>"),
        ("Environment", "", f"<dl>{table}</dl>"),
    ]
    about = f"Trained {facts.get('started', '')} with googlenet {facts.get('googlenet', '')}"
    return PAGE.format(
        title=html.escape(title),
        style=STYLE,
        about=html.escape(about),
        tiles="".join(f"<div><b>{value}</b>{html.escape(what)}</div>" for value, what in tiles),
        sections="".join(
            f"<section><h2>{name}</h2>{f'<p class=soft>{note}</p>' if note else ''}{body}</section>"
            for name, note, body in sections
        ),
    )


def curves(
    entries: Sequence[dict[str, Any]], best: str = "top1", label: str = "top-1 accuracy", unit: str = " (nats)"
) -> str:
    """Loss, accuracy, and learning rate with image size, by epoch, as one SVG drawing.

    Of the held-out pictures the accuracy is the figure `best`, which a reader calls `label`.
    """
    train = [e for e in entries if e["split"] == "train"]
    if not train:
        return "<p>No step was recorded.</p>"
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    loss, accuracy, settings = figure.subplots(1, 3)
    for axis, key in ((loss, "loss"), (accuracy, "accuracy")):
        axis.plot([e["epoch"] for e in train], [e[key] for e in train], color=BLUE, lw=1.2, label="training")
        for split, colour, mark in (("validation", ORANGE, "o-"), ("test", GREEN, "D")):
            name = best if key == "accuracy" else key
            points = [(e["epoch"], e[name]) for e in entries if e["split"] == split and name in e]
            if points:
                axis.plot(*zip(*points, strict=True), mark, color=colour, ms=5, lw=1.2, label=split)
        axis.set(xlabel="epoch", ylabel=f"loss{unit}" if key == "loss" else label)
        axis.legend(frameon=False, fontsize=8)
    settings.plot([e["epoch"] for e in train], [e["learning_rate"] for e in train], color=BLUE, lw=1.2)
    settings.set(xlabel="epoch")
    settings.set_ylabel("learning rate", color=BLUE)
    sizes = settings.twinx()
    sizes.plot([e["epoch"] for e in train], [e["size"] for e in train], color=ORANGE, lw=1.2, drawstyle="steps-post")
    sizes.set_ylabel("picture size (pixels)", color=ORANGE)
    sizes.set_ylim(0, 1.15 * max(e["size"] for e in train))
    for axis in (loss, accuracy, settings):
        axis.grid(color="#e3e7ec", lw=0.6)
        axis.spines[["top"]].set_visible(False)
    return drawing(figure)


def drawing(figure: Figure) -> str:
    """A figure as an SVG element."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _matrix(counts: Tensor, classes: Sequence[str]) -> str:
    """An HTML table, its cells shaded by their share of the row."""
    share = counts.double() / counts.sum(dim=1, keepdim=True).clamp_min(1)
    head = "".join(f"<th scope='col'>{html.escape(name)}</th>" for name in classes)
    rows = []
    for i, name in enumerate(classes):
        cells = []
        for j in range(len(classes)):
            part = share[i, j].item()
            base = "0,114,178" if i == j else "213,94,0"
            # The square root keeps rare mistakes visible beside the diagonal.
            ink = "#fff" if part > 0.35 else "inherit"
            style = f"background:rgba({base},{part**0.5:.2f});color:{ink}"
            cells.append(f"<td style='{style}'>{counts[i, j].item() or ''}</td>")
        rows.append(f"<tr><th scope='row'>{html.escape(name)}</th>{''.join(cells)}</tr>")
    return f"<table class='matrix'><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _mistakes(outputs: Outputs, split: Split, classes: Sequence[str]) -> str:
    probabilities = F.softmax(outputs.logits, dim=1)
    best, answers = probabilities.max(dim=1)
    true = probabilities.gather(1, outputs.labels.unsqueeze(1)).squeeze(1)
    wrong = torch.nonzero(answers != outputs.labels).flatten()
    if not len(wrong):
        return "<p>None: every answer was right.</p>"
    figures = []
    worst = wrong[true[wrong].argsort(stable=True)][:MISTAKES]
    (pictures,) = split.pixels([worst])
    for row, picture in zip(worst.tolist(), pictures, strict=True):
        said, truth = (html.escape(classes[int(labels[row])]) for labels in (answers, outputs.labels))
        name = html.escape(split.names[row])
        figures.append(
            f"<figure><img alt='{truth}' src='{data_url(picture)}'><figcaption>"
            f"<b>{truth}</b>, taken for {said} ({best[row].item():.0%})<br><span class='soft'>{name}</span>"
            "</figcaption></figure>"
        )
    return f"<div class='mistakes'>{''.join(figures)}</div>"


def data_url(picture: Tensor) -> str:
    """uint8 (channels, h, w) -> the address of a PNG that is in the page itself."""
    pixels = picture.permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
