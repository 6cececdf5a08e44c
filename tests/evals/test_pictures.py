"""Pictures of what is found: fonts, line breaks, frames, the choice of queries."""

import numpy as np
from PIL import Image, ImageDraw

from multimodal.evals import pictures
from multimodal.evals.data import EvalData, Rows
from multimodal.evals.fonts import find_font, plain_font
from tests.evals.conftest import random_images, random_texts

GREEN = (26, 156, 75)


def sheet_data():
    """12 images with an English and a German caption each."""
    images, words = random_images(12), ["red apple", "roter Apfel"] * 12
    ids = random_texts(24)
    return EvalData(
        "dev",
        dict(
            image=Rows("image", lambda i: images[i], 12, lambda v, rng: v),
            text=Rows("text", lambda i: words[i], 24, lambda v, rng: ids[words.index(v)]),
        ),
        dict(image=np.arange(12), text=np.repeat(np.arange(12), 2)),
        dict(text=np.array(["en", "de"] * 12)),
    )


def test_sheet_is_drawn_with_the_right_image_framed(net, tmp_path):
    path = pictures.draw_retrieval(
        net, sheet_data(), tmp_path / "new" / "sheet.png", count=4, top=12
    )
    pixels = np.asarray(Image.open(path).convert("RGB"))
    rows, height = 4, (pixels.shape[0] - 2 * pictures.PAD - 96) // 4
    top = pictures.PAD + 96
    for i in range(rows):
        part = pixels[top + i * height : top + (i + 1) * height]
        assert (part == GREEN).all(-1).sum() > 500, (
            "with all images shown, each row has a right one"
        )


def test_a_miss_shows_the_right_image_without_green(tmp_path):
    images = list(random_images(3))
    row = pictures.SheetRow("x", images[:2], [False, False], [0.5, 0.4], 17, answer=images[2])
    path = pictures.retrieval_sheet(tmp_path / "miss.png", [row], "title")
    pixels = np.asarray(Image.open(path).convert("RGB"))
    assert not (pixels == GREEN).all(-1).any()
    shown = np.asarray(pictures.thumbnail(images[2]))
    x = pixels.shape[1] - pictures.PAD - pictures.THUMB - 6
    y = pictures.PAD + 96 + 6
    found = pixels[y : y + pictures.THUMB, x : x + pictures.THUMB]
    np.testing.assert_array_equal(found[10:-10, 10:-10], shown[10:-10, 10:-10])


def test_queries_take_languages_in_turn_and_no_image_twice():
    data = sheet_data()
    chosen = pictures.choose_queries(data, data.ids["image"], 6)
    assert list(data.groups["text"][chosen]) == ["en"] * 3 + ["de"] * 3
    assert len(set(data.ids["text"][chosen])) == 6
    np.testing.assert_array_equal(chosen, pictures.choose_queries(data, data.ids["image"], 6))
    assert len(pictures.choose_queries(data, data.ids["image"][:2], 6)) == 2


def test_no_font_pretends_to_have_every_character():
    assert find_font("Ölfaß naïve Привет")
    assert find_font("\U0001e900\U00016a40") is None  # Adlam, Mro
    row = pictures.SheetRow(
        "\U0001e900", [random_images(1)[0]], [True], [1.0], 1, "ff", "red apple"
    )
    draw = ImageDraw.Draw(Image.new("RGB", (400, 100)))
    pictures._draw_query(draw, row, 0)


def test_long_captions_are_cut_to_their_lines():
    draw, font = ImageDraw.Draw(Image.new("RGB", (9, 9))), plain_font(19)
    for text in ("a few words and some more of them until it is too long", "x" * 200, "短" * 90):
        lines = pictures.wrap(draw, text, font, 200, 2)
        assert len(lines) <= 2
        assert lines[-1].endswith("…")
        assert all(draw.textlength(line, font) <= 200 for line in lines)
    assert pictures.wrap(draw, "short one", font, 200, 2) == ["short one"]
