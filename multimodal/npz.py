"""Reading .npz files that may be anybody's: plain arrays, and no more than a file can hold."""

import contextlib
import zipfile

import numpy as np

from multimodal import paths
from multimodal.errors import first_line

_ALLOWED = 1 << 30  # bytes of arrays, whatever the file's size
_RATIO = 100  # times its size beyond that: ten times what arrays of real data compress to


@contextlib.contextmanager
def opened(path):
    """The file of `np.load`, without pickles. Raises ValueError, in one line, for what is no .npz
    of plain arrays, and for one that would unpack to far more than there is on disk.
    """
    try:
        with paths.open_binary(path) as raw:
            with zipfile.ZipFile(raw) as archive:
                claimed = sum(member.file_size for member in archive.infolist())
            if claimed > _ALLOWED + _RATIO * paths.size(path):
                raise ValueError(f"it would unpack to {claimed / 1e9:.1f} GB")
            raw.seek(0)
            with np.load(raw, allow_pickle=False) as file:
                yield file
    except (KeyError, OSError):
        raise
    except Exception as e:  # NumPy, zipfile and zlib raise many kinds
        raise ValueError(first_line(e)) from None


def numbers(file, name) -> np.ndarray:
    """An array of an opened file. Raises KeyError where it is missing, ValueError for anything but
    numbers.
    """
    array = file[name]
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufc":
        kind = getattr(array, "dtype", type(array).__name__)
        raise ValueError(f"{name!r} is no array of numbers ({kind})")
    return array
