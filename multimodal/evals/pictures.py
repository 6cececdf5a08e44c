"""Pictures that people look at: what a model finds for some captions."""

import dataclasses
import io
import pathlib

import numpy as np
from PIL import Image, ImageDraw

from multimodal.evals.embed import embed
from multimodal.evals.fonts import find_font, load_font, plain_font
from multimodal.evals.languages import language
from multimodal.evals.retrieval import rank_of_best

INK, GREY, LIGHT, GREEN, PAPER = "#1f2328", "#6e7781", "#d8dee4", "#1a9c4b", "#ffffff"
THUMB, GAP, PAD, TEXT_WIDTH = 104, 16, 28, 380
# Languages are taken in this order, so that few rows already show several scripts.
LANGUAGE_ORDER = (
    *("en", "zh", "de", "ar", "ru", "ja", "es", "hi"),
    *("ko", "fr", "fa", "tr", "pt", "it", "id", "cs"),
)


@dataclasses.dataclass
class SheetRow:
    """One query of a retrieval sheet.

    Attributes:
      text: the caption; group: its language code, or ''; gloss: the English caption, or ''.
      images: the best images in order: PIL images, uint8 arrays or encoded bytes.
      right: one bool an image; scores: one number an image.
      rank: of the best right image; answer: that image, drawn where it is not among `images`.
    """

    text: str
    images: list
    right: list
    scores: list
    rank: int
    group: str = ""
    gloss: str = ""
    answer: object = None


def retrieval_sheet(path, rows, title, subtitle="", footer=""):
    """Draw queries (rows) and the images found for them (columns), the right one framed green.

    A caption that no font of this machine can draw is shown by its English gloss.

    Args:
      path: PNG to write; folders are made.  rows: list of SheetRow.
      footer: small print, such as the attribution of the images.
    Returns: path.
    """
    columns = max(len(r.images) for r in rows)
    step = THUMB + GAP
    missed = any(r.answer is not None for r in rows)
    width = PAD + TEXT_WIDTH + GAP + columns * step + (step + GAP if missed else 0) + PAD - GAP + 6
    row_height, top = THUMB + 40, PAD + 96
    height = top + len(rows) * row_height + PAD + (20 if footer else 0)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((PAD, PAD - 4), title, INK, plain_font(24, bold=True))
    draw.text((PAD, PAD + 30), subtitle, GREY, plain_font(15))
    left = PAD + TEXT_WIDTH + GAP
    for i in range(columns):
        draw.text(
            (left + i * step + THUMB / 2, top - 16), str(i + 1), GREY, plain_font(15), anchor="mm"
        )
    if missed:
        x = left + columns * step + GAP + THUMB / 2
        draw.text((x, top - 16), "right one", GREY, plain_font(15), anchor="mm")
    for i, row in enumerate(rows):
        y = top + i * row_height
        draw.line([(PAD, y - 4), (width - PAD, y - 4)], LIGHT)
        _draw_row(sheet, draw, row, y + 6, left, columns)
    draw.text((PAD, height - PAD - 2), footer, GREY, plain_font(12))
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def _draw_row(sheet, draw, row, y, left, columns):
    _draw_query(draw, row, y + 8)
    for i, (image, right, score) in enumerate(zip(row.images, row.right, row.scores)):
        x = left + i * (THUMB + GAP)
        _draw_thumb(sheet, draw, image, x, y, GREEN if right else None, f"{score:.2f}")
    if row.answer is not None:
        x = left + columns * (THUMB + GAP) + GAP
        _draw_thumb(sheet, draw, row.answer, x, y, LIGHT, f"rank {row.rank:,}")


def _draw_thumb(sheet, draw, image, x, y, frame, note):
    image = thumbnail(image)
    sheet.paste(image, (x + (THUMB - image.width) // 2, y + (THUMB - image.height) // 2))
    if frame:
        box = (x - 5, y - 5, x + THUMB + 4, y + THUMB + 4)
        draw.rounded_rectangle(box, radius=9, outline=frame, width=4 if frame == GREEN else 2)
    color = GREEN if frame == GREEN else GREY
    draw.text((x + THUMB / 2, y + THUMB + 16), note, color, plain_font(12), anchor="mm")


def _draw_query(draw, row, y):
    """The language, the caption in up to two lines, the English gloss."""
    path = find_font(row.text)
    text, small = row.text, row.gloss if row.gloss != row.text else ""
    label = language(row.group)
    if path is None:
        text = f"“{row.gloss}”" if row.gloss else "(no font here can draw this caption)"
        small, path = "no font here has its letters: shown in English", find_font(text)
    if label:
        draw.text((PAD, y), label, GREY, plain_font(13))
    font = load_font(path or find_font("a"), 19)
    lines = wrap(draw, text, font, TEXT_WIDTH, 2)
    for i, line in enumerate(lines):
        draw.text((PAD, y + 20 + 25 * i), line, INK, font)
    y += 24 + 25 * len(lines)
    if small:
        draw.text(
            (PAD, y), wrap(draw, small, plain_font(13), TEXT_WIDTH, 1)[0], GREY, plain_font(13)
        )


def wrap(draw, text, font, width, most) -> list[str]:
    """The text in at most so many lines of a width in pixels; what does not fit ends in '…'.

    Breaks at spaces, or anywhere in a script without them.
    """
    words = text.split() if " " in text.strip() else list(text)
    space = " " if " " in text.strip() else ""
    lines, line = [], ""
    for word in words:
        longer = f"{line}{space}{word}" if line else word
        if draw.textlength(longer, font) <= width or not line:
            line = longer
        else:
            lines.append(line)
            line = word
    lines.append(line)
    cut = len(lines) > most
    lines = lines[:most]
    while cut or draw.textlength(lines[-1], font) > width:
        cut = False
        lines[-1] = lines[-1].rstrip("…")[:-1].rstrip() + "…"
    return lines


def thumbnail(image) -> Image.Image:
    """An image (PIL, uint8 array or encoded bytes) fitted into a thumbnail, on white."""
    if isinstance(image, bytes):
        image = Image.open(io.BytesIO(image))
    elif not isinstance(image, Image.Image):
        image = Image.fromarray(np.asarray(image))
    image = image.convert("RGBA")
    scale = THUMB / max(image.size)
    size = [max(1, round(n * scale)) for n in image.size]
    image = image.resize(size, Image.Resampling.LANCZOS)
    paper = Image.new("RGBA", image.size, PAPER)
    paper.alpha_composite(image)
    return paper.convert("RGB")


def draw_retrieval(net, data, path, count=8, top=5, batch_size=64, mesh=None, title="", seed=0):
    """A sheet of the images that a model finds for some captions of an EvalData, drawn at random.

    Captions are spread over the languages; those whose script can be drawn here come first.

    Returns: path of the PNG. Needs the modalities 'text' and 'image' with raw values.
    """
    embeds = {m: embed(net, m, data.rows[m], batch_size, mesh) for m in ("text", "image")}
    images, texts = np.flatnonzero(data.usable("image")), data.rows["text"].value
    image_ids = data.ids["image"][images]
    chosen = choose_queries(data, image_ids, count, seed)
    scores = embeds["text"][chosen] @ embeds["image"][images].T
    positive = data.ids["text"][chosen, None] == image_ids[None]
    rows = []
    for query, score, right, rank in zip(chosen, scores, positive, rank_of_best(scores, positive)):
        best = np.argsort(-score, kind="stable")[:top]
        answer = None
        if not right[best].any():
            answer = _image(data, images[np.argmax(np.where(right, score, -np.inf))])
        rows.append(
            SheetRow(
                texts(query),
                [_image(data, images[i]) for i in best],
                list(right[best]),
                list(score[best]),
                int(rank),
                _group(data, query),
                _gloss(data, query),
                answer,
            )
        )
    subtitle = (
        f"Captions drawn at random, the {top} nearest of {len(images):,} images and their cosines; "
        "green: the right one"
    )
    return retrieval_sheet(
        path, rows, title or f"Text to image: {data.name}", subtitle, data.credit
    )


def _image(data, row):
    return data.rows["image"].value(int(row))


def _group(data, row):
    return str(data.groups["text"][row]) if "text" in data.groups else ""


def _gloss(data, row):
    """The English caption of the same record, or ''."""
    if "text" not in data.groups or _group(data, row) == "en":
        return ""
    same = (data.ids["text"] == data.ids["text"][row]) & (data.groups["text"] == "en")
    return data.rows["text"].value(int(np.argmax(same))) if same.any() else ""


def choose_queries(data, image_ids, count, seed=0) -> np.ndarray:
    """Rows of 'text' to draw: of different ids, languages in turn, drawable scripts first."""
    rows = np.random.default_rng(seed).permutation(len(data.ids["text"]))
    rows = [r for r in rows if data.ids["text"][r] in set(image_ids.tolist())]
    by_group = {}
    for r in rows:
        by_group.setdefault(_group(data, r), []).append(r)

    def place(group):
        drawable = find_font(data.rows["text"].value(int(by_group[group][0]))) is not None
        known = LANGUAGE_ORDER.index(group) if group in LANGUAGE_ORDER else len(LANGUAGE_ORDER)
        return not drawable, known, group

    order, chosen, used = sorted(by_group, key=place), [], set()
    while len(chosen) < count and any(by_group.values()):
        for group in order:
            row = next((r for r in by_group[group] if data.ids["text"][r] not in used), None)
            by_group[group] = (
                by_group[group][by_group[group].index(row) + 1 :] if row is not None else []
            )
            if row is not None and len(chosen) < count:
                chosen.append(row)
                used.add(data.ids["text"][row])
    return np.array(sorted(chosen, key=lambda r: place_of(_group(data, r))), int)


def place_of(group):
    """Where a language stands in LANGUAGE_ORDER."""
    return LANGUAGE_ORDER.index(group) if group in LANGUAGE_ORDER else len(LANGUAGE_ORDER)
