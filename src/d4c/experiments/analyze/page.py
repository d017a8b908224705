"""One self-contained HTML page: questions, answers with figures, pictures as data URIs."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from d4c.experiments.analyze import answers

STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; border-top: 1px solid #ddd; padding-top: 1rem; }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; }
.how { color: #555; font-size: .9rem; }
"""


@dataclass(frozen=True)
class Section:
    """One question.

    Args:
        how: how it was measured, formulas in words; pictures: names with their alternative texts.
        answer: (the part's result, `about`) -> sentences; table: the part's result -> rows, a header first.
    """

    question: str
    how: str
    pictures: Mapping[str, str]
    answer: Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]]
    table: Callable[[Mapping[str, Any]], list[list[str]]] | None = None


SECTIONS: dict[str, Section] = {
    "coverage": Section(
        "Do the images cover the prompts?",
        "Cosines of unit features of every image and every prompt of the bank, in 60 equal bins; "
        "p = (n + 1/2) / (N + 60/2); KL(p || q) = Σ p ln(p/q), the set against the reference. "
        "The floor is the KL between the reference's even and odd images.",
        {"coverage": "Histograms of cosines by set, KL divergences, and shares of prompts covered"},
        answers.coverage,
        answers.coverage_table,
    ),
    "patches": Section(
        "Do foreground and background differ as in real images?",
        "Similarity of two patches is the cosine of what attention puts out there before its last linear (in ResNets, "
        "of a stage's output). The same split for all sets, without boxes: sign along the first principal direction of "
        "the image's centred unit patches; foreground is the group with the smaller share of border patches.",
        {
            "patches": "Variance of patch similarities by layer and kind of pair",
            "patch-examples": "Images of each set, and what the split calls their foreground",
        },
        answers.patches,
    ),
    "map": Section(
        "Where do the images lie among real ones?",
        "Unit image features. MMD² is unbiased, with a Gaussian kernel as wide as the median distance of two reference "
        "images; it can be slightly negative.",
        {"map": "Image features of all sets on a plane"},
        answers.feature_map,
    ),
    "sensitivity": Section(
        "Which layers are the bottleneck?",
        "Centred error ‖z′−z‖/‖z−z̄‖ of the tower, root mean square over held-out sets that nothing was calibrated on. "
        "Alone: one layer quantized in the float model. All but one: the recipe's model, rounded to nearest, with one "
        "weight back in float; its input stays quantized where the recipe quantizes it for several readers.",
        {
            "bottlenecks": "Layers whose return to float takes most of the error away",
            "sensitivity-layers": "Error of each layer alone, by kind and block",
            "sensitivity-kinds": "Error of kinds of layers against bits",
        },
        answers.sensitivity,
    ),
    "text-mlp": Section(
        "Does the text MLP need 8 bits?",
        "Only the text tower is quantized. Weights of its MLPs at the bits shown, all else as the recipe has it. "
        "Learned rounding is AdaRound with few iterations; a unit worse on held-out texts keeps the nearest.",
        {"text-mlp": "Error and accuracy against the bits of the text MLP's weights"},
        answers.text_mlp,
    ),
    "transfer": Section(
        "Does it matter what the images show, and what is the gap to real ones?",
        "Image tower rounded to nearest on ranges from the even images of the set in the row, judged on the odd images "
        "of the set in the column. Colour compares a column's errors with its diagonal.",
        {"transfer": "Errors by calibrating and judging set"},
        answers.transfer,
    ),
}


def page(result: Mapping[str, Any], pictures: Mapping[str, Path]) -> str:
    """The page as HTML that needs no other file.

    Args:
        result: the content of analysis.json; pictures: PNG files by name.
    """
    about = result["about"]
    body = [f"<h1>d4c analysis of {escape(about['model'])}</h1>", _about(about)]
    for part, section in SECTIONS.items():
        if part in result:
            shown = [_picture(pictures[name], text) for name, text in section.pictures.items() if name in pictures]
            body += [f"<h2>{escape(section.question)}</h2>", *_paragraphs(section.answer(result[part], about)), *shown]
            body += [_table(section.table(result[part]))] if section.table else []
            body.append(f'<p class="how">{escape(section.how)}</p>')
    title = escape(f"d4c analysis of {about['model']}")
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def sentences(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The answers as text: part and sentence."""
    return [
        (part, sentence)
        for part, section in SECTIONS.items() if part in result
        for sentence in section.answer(result[part], result["about"]) if sentence
    ]  # fmt: skip


def _about(about: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(s['source'])}</td><td>{s['images']}</td>"
        f"<td>{'reference' if name == about['reference'] else ''}"
        f"{'calibrates' if name == about['calibrate_on'] else ''}</td></tr>"
        for name, s in about["sets"].items()
    )
    data = about["dataset"]
    labelled = f" Zero-shot figures: {data['images']} images of {escape(data['name'])}." if data else ""
    return (
        f"<p>Recipe {escape(about['recipe'])}, seed {about['seed']}, {about['threads']} thread(s) on "
        f"{escape(about['device'])}, d4c {about['versions']['d4c']}, torch {about['versions']['torch']}. One seed and "
        f"small sets: differences near the floors given below mean nothing.{labelled}</p>"
        f"<table><tr><th>set</th><th>source</th><th>images</th><th></th></tr>{rows}</table>"
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(rows[0], 'th')}{''.join(line(row, 'td') for row in rows[1:])}</table>"


def _paragraphs(texts: Sequence[str]) -> list[str]:
    return [f"<p>{escape(sentence)}</p>" for sentence in texts if sentence]


def _picture(path: Path, text: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'
