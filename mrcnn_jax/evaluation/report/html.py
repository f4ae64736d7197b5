"""Pieces of HTML. Texts are escaped here, and only here."""

import base64
import html
from collections.abc import Iterable, Sequence
from importlib.resources import files
from string import Template
from typing import Any


def escaped(text: Any, longest: int = 120) -> str:
    """Returns a text for HTML, of which the end is left out beyond ``longest`` characters."""
    text = str(text).encode("utf-8", "backslashreplace").decode()
    return html.escape(text if len(text) <= longest else text[: longest - 1] + "…")


def shortened(name: str, longest: int = 32) -> str:
    """Returns a name without its middle, if it is longer."""
    half = longest // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half + 1 :]}"


def shown(value: float | None, digits: int = 1) -> str:
    """Returns a number for a table; a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}"


def page(title: str, subtitle: str, body: str) -> str:
    """Returns a page that needs nothing but itself; ``body`` is HTML, the other two are texts."""
    template = Template(files(__package__).joinpath("template.html").read_text("utf-8"))
    return template.substitute(title=escaped(title), subtitle=escaped(subtitle, 2000), body=body)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], left: Sequence[int] = (0,)) -> str:
    """Returns a table of texts and whole numbers; the columns ``left`` are aligned to the left."""
    head = _row("th", header, left)
    body = "".join(_row("td", [f"{c:,}" if isinstance(c, int) else c for c in row], left) for row in rows)
    inner = f"<thead>{head}</thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table>{inner}</table></div>'


def _row(tag: str, cells: Sequence[Any], left: Sequence[int]) -> str:
    marks = [' class="left"' if column in left else "" for column in range(len(cells))]
    parts = (f"<{tag}{mark}>{escaped(cell)}</{tag}>" for mark, cell in zip(marks, cells, strict=True))
    return f"<tr>{''.join(parts)}</tr>"


def picture(content: bytes, kind: str, caption: str) -> str:
    """Returns a figure from the content of a PNG or JPEG file (``kind`` "png" or "jpeg")."""
    data = base64.b64encode(content).decode()
    image = f'<img alt="{escaped(caption)}" src="data:image/{kind};base64,{data}">'
    return f"<figure>{image}<figcaption>{escaped(caption, 200)}</figcaption></figure>"


def grid(figures: Iterable[str], style: str = "") -> str:
    """Returns figures side by side, as many as the window holds."""
    return f'<div class="grid {style}">{"".join(figures)}</div>'


def listing(texts: Sequence[str]) -> str:
    """Returns texts as points."""
    points = "".join(f"<li>{escaped(text, 1000)}</li>" for text in texts)
    return f'<ul class="findings">{points}</ul>' if texts else ""
