"""Where the value of one modality of a row lies, and reading it.

Each reader has `fields` (of rows, that it needs), `locate(row)` (a handle, or None where the row
has no such value), `read(handle)` and `close()`, after the last `locate`.
"""

from multimodal import npz, paths
from multimodal.data import image_ops
from multimodal.data.image_codec import decode_image
from multimodal.data.row_template import Template
from multimodal.data.tar_index import Shards
from multimodal.errors import BadRecord, UserError
from multimodal.registry import nearest


def find_files(root, pattern, where):
    """Files that match a pattern, or a list of them, under `root`; sorted, at least one."""
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    inner = [paths.inside(root, p, where)[len(root) :] for p in patterns]
    # Only what was given is a pattern: the root's own name may hold brackets.
    found = sorted({f for p in inner for f in paths.find(paths.escape(root) + p)})
    if not found:
        raise UserError(f"{where}: no file {' or '.join(patterns)} in {root!r}")
    return found


class Reader:
    """What readers have in common."""

    def close(self):
        """Let go of what only `locate` needs; gives the damage that was met: list of Counters."""
        return []


class TextReader(Reader):
    """Texts made of fields: a template, a list of them, or {group: template or list of them}."""

    def __init__(self, spec, where):
        groups = spec if isinstance(spec, dict) else {"": spec}
        self._templates = [
            (group, Template(text, where))
            for group, texts in sorted(groups.items())
            for text in ([texts] if isinstance(texts, str) else texts)
        ]
        self.grouped = isinstance(spec, dict)
        self.fields = [f for _, t in self._templates for f in t.fields]
        if not self._templates:
            raise UserError(f"{where}: no template of a text; for example '{{caption}}'")
        if not self.fields:
            texts = ", ".join(repr(t.text) for _, t in self._templates)
            raise UserError(f"{where}: no field in {texts}; fields stand in braces: '{{caption}}'")

    def locate(self, row):
        """(texts, their groups), or None where the row has none of the fields."""
        found = [(t, group) for group, template in self._templates for t in template.fill_all(row)]
        return tuple(zip(*found)) or None

    def read(self, handle):
        """The texts themselves."""
        return list(handle[0])


class TarReader(Reader):
    """Members of tar shards; only the shards that rows need are opened."""

    def __init__(self, spec, root, where, on_bad):
        self._shards = Template(spec["tar"], f"{where}.tar")
        self._member = Template(spec.get("member", ""), f"{where}.member")
        self.fields = self._shards.fields + self._member.fields
        self._root, self._where, self._on_bad = root, where, on_bad
        self._open = {}  # pattern -> number in _sets
        self._sets = []

    def locate(self, row):
        """(number of a set of shards, Member); an empty member counts as missing."""
        pattern, name = self._shards.fill(row, paths.escape), self._member.fill(row)
        if pattern is None or name is None:
            return None
        if pattern not in self._open:
            files = find_files(self._root, pattern, self._where)
            self._sets.append(Shards(files, self._on_bad))
            self._open[pattern] = len(self._sets) - 1
        number = self._open[pattern]
        member = self._sets[number].find(name)
        return (number, member) if member and member.size else None

    def read(self, handle):
        """Bytes of a member."""
        number, member = handle
        return self._sets[number].read(member)

    def close(self):
        """Forget the members that no row needs; gives the damage that each set of shards had."""
        for shards in self._sets:
            shards.samples = {}
        return [shards.report for shards in self._sets]


class FileReader(Reader):
    """Files below a folder; none is followed out of it, not even by a link."""

    def __init__(self, spec, root, where):
        folder = paths.inside(root, spec.get("folder", ""), f"{where}.folder")
        self._folder, self._where, self._listed = paths.real(folder), where, {}
        self._name = Template(spec["file"], f"{where}.file")
        self.fields = self._name.fields

    def locate(self, row):
        """The path of a file that is there."""
        name = self._name.fill(row)
        if name is None:
            return None
        try:
            path = paths.real(paths.inside(self._folder, name, self._where))
        except ValueError as e:
            raise UserError(f"{self._where}: {name!r} is no path ({e})") from None
        if not paths.is_remote(path):
            paths.inside(self._folder, path, self._where)
        return path if paths.is_file(path, self._listed) else None

    def close(self):
        """Forget what the folders hold."""
        self._listed = {}
        return []

    def read(self, handle):
        """Bytes of a file."""
        return paths.read_example(handle)


class NpzReader(Reader):
    """Rows of an array in one or several .npz files, found by their number or by a second array."""

    def __init__(self, spec, root, where):
        self._files = find_files(root, spec["npz"], where)
        self._array, self._index = spec.get("array", "images"), spec.get("index", "")
        self._row = Template(spec.get("row", ""), f"{where}.row")
        self._where, self.fields = where, self._row.fields
        self._arrays = self._load(self._array)
        keys = self._load(self._index) if self._index else None
        self._places = {}
        for number, array in enumerate(self._arrays):
            names = range(len(self._places), len(self._places) + len(array))
            names = names if keys is None else keys[number].tolist()
            if len(names) != len(array):
                raise UserError(
                    f"{where}: {self._files[number]} has {len(array)} {self._array}, but "
                    f"{len(names)} {self._index}"
                )
            self._places |= {str(name): (number, i) for i, name in enumerate(names)}

    def __getstate__(self):
        return {**self.__dict__, "_arrays": None}

    def locate(self, row):
        """(number of a file, row in it)."""
        return self._places.get(self._row.fill(row))

    def read(self, handle):
        """One row of the array."""
        if self._arrays is None:  # After unpickling.
            self._arrays = self._load(self._array)
        return self._arrays[handle[0]][handle[1]]

    def _load(self, name):
        arrays = []
        for path in self._files:
            try:
                with npz.opened(path) as file:
                    known = list(file.files)
                    arrays.append(file[name])
                    if arrays[-1].dtype.hasobject:
                        raise ValueError(f"{name!r} holds objects")
            except KeyError:
                raise UserError(
                    f"{self._where}: {path} has no array {name!r}{nearest(name, known)}; "
                    f"it has {', '.join(known)}"
                ) from None
            except (OSError, ValueError, AttributeError) as e:  # the last: no array at all
                raise UserError(f"{self._where}: cannot read {path} ({e!s:.100})") from None
            if arrays[-1].ndim == 0:
                raise UserError(f"{self._where}: {path}: {name!r} is a single value, not an array")
        return arrays


class TileReader(Reader):
    """A picture cut into equal tiles, row by row: one of them, or all as the frames of a video."""

    def __init__(self, inner, spec, where):
        self._inner, self._where = inner, where
        self._grid = tuple(int(n) for n in spec["tiles"])
        self._tile = Template(spec["tile"], f"{where}.tile") if "tile" in spec else None
        self._channels = spec.get("channels", 3)
        self.fields = inner.fields + (self._tile.fields if self._tile else [])
        self._last = (None, None)
        if len(self._grid) != 2 or min(self._grid) < 1 or self._channels not in (1, 3):
            raise UserError(
                f"{where}: tiles={spec['tiles']} and channels={self._channels}: give (rows, "
                "columns) of at least 1, and 1 or 3 channels"
            )

    def __getstate__(self):
        return {**self.__dict__, "_last": (None, None)}

    def locate(self, row):
        """(handle of the picture, number of the tile or None)."""
        inner = self._inner.locate(row)
        if inner is None or self._tile is None:
            return inner and (inner, None)
        text, count = self._tile.fill(row), self._grid[0] * self._grid[1]
        if text is None:
            return None
        if not text.isdecimal() or int(text) >= count:
            raise UserError(f"{self._where}.tile: {text!r} is none of the tiles 0 to {count - 1}")
        return inner, int(text)

    def close(self):
        """That of the pictures' reader."""
        return self._inner.close()

    def read(self, handle):
        """uint8 [tiles, H, W, channels], or one of the tiles."""
        inner, tile = handle
        tiles = self._tiles(inner)
        return tiles if tile is None else tiles[tile]

    def _tiles(self, inner):
        last, tiles = self._last  # Neighbouring rows often share a picture.
        if last == inner:
            return tiles
        rows, columns = self._grid
        pixels = decode_image(self._inner.read(inner))
        height, width = pixels.shape[:2]
        if height % rows or width % columns:
            raise BadRecord(f"picture of {width}x{height} pixels has no {rows}x{columns} tiles")
        pixels = image_ops.with_channels(pixels, self._channels)
        tiles = pixels.reshape(rows, height // rows, columns, width // columns, self._channels)
        tiles = tiles.swapaxes(1, 2).reshape(-1, *tiles.shape[1:2], *tiles.shape[3:])
        self._last = (inner, tiles)
        return tiles


_TILES = ("tiles", "tile", "channels")
_KEYS = {  # The key that tells the kind -> those that may stand beside it.
    "text": (),
    "tar": ("member", *_TILES),
    "file": ("folder", *_TILES),
    "npz": ("array", "index", "row", *_TILES),
}
_REQUIRED = {"tar": "member", "npz": "row"}


def build_reader(spec, root, where, on_bad):
    """The reader of one modality's spec; see records_source.py."""
    if isinstance(spec, str | list | tuple):
        return TextReader(spec, where)
    kind = next((k for k in _KEYS if k in spec), None) if isinstance(spec, dict) else None
    if kind is None:
        raise UserError(f"{where}: {spec!r:.80} must have one of the keys {', '.join(_KEYS)}")
    for key in spec:
        if key != kind and key not in _KEYS[kind]:
            known = [kind, *_KEYS[kind]]
            raise UserError(
                f"{where}: unknown key {key!r}{nearest(key, known)}; it takes {', '.join(known)}"
            )
    if kind in _REQUIRED and not spec.get(_REQUIRED[kind]):
        raise UserError(f"{where}: needs {_REQUIRED[kind]!r} beside {kind!r}")
    if kind == "text":
        return TextReader(spec["text"], where)
    if kind == "tar":
        reader = TarReader(spec, root, where, on_bad)
    else:
        reader = (FileReader if kind == "file" else NpzReader)(spec, root, where)
    return TileReader(reader, spec, where) if "tiles" in spec else reader
