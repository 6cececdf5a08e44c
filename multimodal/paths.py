"""Files by path or URL: `gs://`, `s3://`, `https://`, `memory://`, ... are read through fsspec.

A local path goes straight to the operating system. What a remote store answers is an OSError, as
for a local file; a store that does not answer is asked again a few times. fsspec needs a package
for each kind of store: gcsfs, s3fs, adlfs, aiohttp for http.
"""

import contextlib
import errno
import glob
import io
import os
import re
import tempfile
import time
import urllib.parse
import uuid

from multimodal.errors import BadRecord, Unhealthy, UserError, first_line

_URL = re.compile(r"[a-z][a-z0-9+.-]+://")
_BLOCK = 2**20  # bytes that are read at a time
_WAITS = (0.5, 2.0, 8.0)  # seconds before a store is asked again
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


def is_remote(path) -> bool:
    """Whether a path is a URL."""
    return isinstance(path, str) and _URL.match(path) is not None


def absolute(path) -> str:
    """A path that means the same from everywhere; `~` is the user's folder. A URL as it is."""
    if is_remote(path):
        return re.sub(r"(?<=[^/])/+$", "", path)
    return os.path.abspath(os.path.expanduser(path))


def real(path) -> str:
    """A path without links. A URL as it is."""
    return absolute(path) if is_remote(path) else os.path.realpath(path)


def join(folder, name) -> str:
    """A name, or a pattern of names, below a folder; '' is the folder itself."""
    if not is_remote(folder):
        return os.path.join(folder, name)
    if folder.startswith("http"):  # '?', '#' and '%' of a name are not those of a URL
        name = urllib.parse.quote(name, safe="/*[]!")
    return f"{folder.rstrip('/')}/{name}" if name else folder


def inside(root, name, where) -> str:
    """`name` below the folder `root`, by its name alone; UserError where it leads out of it."""
    if is_remote(root):
        full = join(root, name)
        out = name.startswith("/") or "\\" in name or ".." in name.split("/") or is_remote(name)
        out = out or "::" in name  # fsspec's chains of stores
    else:
        full = os.path.normpath(os.path.join(root, name))
        out = "\0" in name or os.path.commonpath([full, root]) != root
    if out or "\0" in name:
        raise UserError(f"{where}: {name!r} lies outside {root!r}")
    return full


def folder_of(path) -> str:
    """The folder that a file lies in."""
    return path.rpartition("/")[0] if is_remote(path) else os.path.dirname(os.path.abspath(path))


def find(pattern) -> list[str]:
    """Paths that match a pattern, unsorted; a URL without one is taken as it is."""
    if not is_remote(pattern):
        return glob.glob(os.path.expanduser(pattern))
    if not re.search(r"[*[]" if pattern.startswith("http") else r"[*?[]", pattern):
        return [pattern]
    system, _ = _system(pattern)
    return [system.unstrip_protocol(p) for p in _ask("glob", pattern)]


def escape(path) -> str:
    """A path as a pattern that matches it alone."""
    magic = r"([*[])" if is_remote(path) and path.startswith("http") else r"([*?[])"
    return re.sub(magic, r"[\1]", path)


def is_file(path, listed=None) -> bool:
    """Whether there is a file. `listed`: a dict in which folders are kept that were listed: a store
    is asked once a folder then, not once a file (HTTP has no listing).
    """
    if not is_remote(path):
        return os.path.isfile(path)
    if listed is None or path.startswith("http"):
        try:  # fsspec's own isfile takes a store that does not answer for a missing file
            return _ask("info", path)["type"] == "file"
        except (FileNotFoundError, NotADirectoryError):
            return False
    folder, _, name = path.rpartition("/")
    if folder not in listed:
        try:
            found = _ask("ls", folder, detail=True)
        except FileNotFoundError:
            found = ()
        listed[folder] = {f["name"].rpartition("/")[2] for f in found if f["type"] == "file"}
    return name in listed[folder]


def names(folder) -> list[str]:
    """Names of what lies in a remote folder; none where there is no such folder."""
    try:
        return [f["name"].rstrip("/").rpartition("/")[2] for f in _ask("ls", folder, detail=True)]
    except FileNotFoundError:
        return []


def size(path) -> int:
    """Bytes of a file. Raises OSError where there is none, or the store does not tell."""
    if not is_remote(path):
        return os.path.getsize(path)
    found = _ask("size", path)
    if found is None:
        raise OSError(errno.EIO, "the server does not tell its size", path)
    return found


def read(path, offset=0, count=None) -> bytes:
    """All bytes of a file, or `count` of them from `offset`, fewer where it ends before."""
    if not is_remote(path):
        with open(path, "rb") as f:
            f.seek(offset)
            return f.read(count)
    end = None if count is None else offset + count
    data = b"" if count == 0 else _ask("cat_file", path, start=offset or None, end=end)
    if count is not None and len(data) > count:
        raise OSError(errno.EIO, "the server does not answer with a range of bytes", path)
    return data


def read_example(path, offset=0, count=None) -> bytes:
    """`read` for one example of a data set.

    Raises BadRecord where the file is missing or shorter, and Unhealthy where a remote store does
    not answer: an example that is replaced because of the network would change the run.
    """
    try:
        data = read(path, offset, count)
    except OSError as e:
        raise failure(e, path) from None
    if count is not None and len(data) != count:
        raise BadRecord(f"{path}: truncated at byte {offset}")
    return data


def is_outage(e, path) -> bool:
    """Whether an OSError is a remote store that does not answer, rather than a missing file."""
    return is_remote(path) and getattr(e, "errno", None) == errno.EIO


def failure(e, path, where=""):
    """The BadRecord, or the Unhealthy, that an error while an example is read comes to; `where` it
    is, if the path alone does not tell.
    """
    if is_outage(e, path):
        return Unhealthy(f"{path}: {e.strerror}; the same command goes on when it does")
    reason = getattr(e, "strerror", None) or first_line(e)
    return BadRecord(f"cannot read {where or repr(path)}: {reason}")


def handle(path):
    """What a library that takes paths and open files gets: a local path, or an open remote file."""
    return open_binary(path) if is_remote(path) else path


def open_binary(path):
    """A file open for reading, which can seek: of a remote one only what is read is fetched."""
    return io.BufferedReader(_Remote(path), _BLOCK) if is_remote(path) else open(path, "rb")


def write(path, data):
    """Write a small file: at no moment half of it is there."""
    if is_remote(path):
        _ask("pipe_file", path, data)
        return
    with writing(path) as part, open(part, "wb") as f:
        f.write(data)


@contextlib.contextmanager
def writing(path):
    """A local file to write to, which is found at `path` once the context ends without an error."""
    if not is_remote(path):
        part = f"{path}.{uuid.uuid4().hex[:12]}.part"  # processes of other machines may write too
        try:
            yield part
            os.replace(part, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
        return
    with tempfile.TemporaryDirectory() as folder:
        part = os.path.join(folder, "part")
        yield part
        system, inner = _system(path)
        _ask("put_file", path, call=lambda: system.put_file(part, inner))


def download(path, local):
    """Copy a file, or a folder with all that is in it, to a local path."""
    system, inner = _system(path)
    os.makedirs(os.path.dirname(local), exist_ok=True)
    if _ask("isfile", path):
        _ask("get_file", path, call=lambda: system.get_file(inner, str(local)))
    else:
        source, target = inner.rstrip("/") + "/", str(local).rstrip("/") + "/"
        _ask("get", path, call=lambda: system.get(source, target, recursive=True))


def must_be_local(path, what):
    """Raise UserError for a URL where a library can only read the local disk."""
    if is_remote(str(path)):
        raise UserError(
            f"{what} must lie on a local disk, not at {path}: copy the folder there, or mount the "
            "bucket (gcsfuse, mountpoint-s3)"
        )


class _Remote(io.RawIOBase):
    """A remote file as io.BufferedReader wants it."""

    def __init__(self, path):
        self._path, self._at, self._size = path, 0, size(path)

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self._at

    def seek(self, offset, whence=io.SEEK_SET):
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer):
        count = max(0, min(len(buffer), self._size - self._at))
        data = read(self._path, self._at, count)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _system(path):
    """(fsspec's file system, what it calls the file) of a URL."""
    import fsspec

    scheme = path.partition(":")[0]
    if scheme in ("file", "local"):  # where links would be followed
        raise UserError(f"{path}: give the path itself, without {scheme}://")
    try:
        return fsspec.core.url_to_fs(path)
    except ImportError as e:
        raise UserError(f"{path}: {scheme}:// needs one more package: {first_line(e)}") from None
    except Exception as e:  # unknown schemes, and whatever a store's package finds wrong
        raise UserError(f"{path}: cannot use {scheme}:// ({first_line(e)})") from None


def _ask(method, path, *args, call=None, **kwargs):
    """What a store answers; asked again where it does not. Raises OSError."""
    system, inner = _system(path)
    call = call or (lambda: getattr(system, method)(inner, *args, **kwargs))
    for wait in (*_WAITS, None):
        try:
            return call()
        except _FINAL as e:
            number = e.errno or (errno.ENOENT if isinstance(e, FileNotFoundError) else errno.EACCES)
            raise type(e)(number, os.strerror(number), path) from None
        except Exception as e:  # each store has errors of its own
            why = f"the store does not answer ({first_line(e)})"
        if wait is not None:
            time.sleep(wait)
    raise OSError(errno.EIO, why, path)
