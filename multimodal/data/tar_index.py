"""Reading tar shards by the offsets of their members; nothing is ever extracted."""

import collections
import dataclasses
import logging
import os
import stat
import tarfile
import threading

from multimodal import paths
from multimodal.errors import BadRecord, Unhealthy, UserError

_OPEN_FILES = 128  # a job may have thousands of shards, and a process often only 1,024 files
_BLOCK = 1 << 20
_NAMED = 20  # damaged shards of a data set that the log names one by one
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Member:
    """Where the bytes of one file lie: number of the shard, offset and size in bytes."""

    shard: int
    offset: int
    size: int


class Shards:
    """Index of tar shards: `samples` maps key -> {extension: Member}, in order of appearance.

    A key is a member's path without its suffix (from the first dot of the file name). Shards are
    paths or URLs; of a remote one all headers are read at the start, and later its members alone.
    With `on_bad='error'` a damaged or missing shard is a UserError; with 'skip' what can be read of
    it is used, the log names it, `report` counts the reasons, `first_problem` says what the first
    one was and `lost_share` how much of all bytes lies behind damage. Links, sparse files and paths
    that leave the archive are never followed.
    """

    def __init__(self, files, on_bad="error"):
        if on_bad not in ("error", "skip"):
            raise UserError(f"on_bad must be 'error' or 'skip', not {on_bad!r}")
        self.paths = [paths.absolute(p) for p in files]
        self.samples, self.report, self.first_problem = {}, collections.Counter(), ""
        self._sizes = []  # (bytes, of them behind damage) of each shard
        self._restart()
        for number in range(len(self.paths)):
            for problem in self._index(number):
                self._complain(self.paths[number], problem, on_bad)

    @property
    def lost_share(self):
        """Share of the bytes of all shards that cannot be reached for damage before them."""
        known = [size for size, _ in self._sizes if size]
        if not known:
            return float(bool(self._sizes))
        usual = sum(known) / len(known)  # of a shard that is missing
        lost = sum(lost if size else usual for size, lost in self._sizes)
        return lost / sum(size or usual for size, _ in self._sizes)

    def find(self, name):
        """The Member of a file name, or None."""
        key, extension = _split(name)
        return self.samples.get(key, {}).get(extension)

    def read(self, member):
        """Bytes of a member; safe in threads. Raises BadRecord when the file has become shorter,
        or is there no more.
        """
        path = self.paths[member.shard]
        if paths.is_remote(path):
            return paths.read_example(path, member.offset, member.size)
        try:
            file = self._file(member.shard)  # held: another thread may let go of it meanwhile
            data = os.pread(file.fd, member.size, member.offset)
        except OSError as e:
            raise BadRecord(f"cannot read shard {path!r}: {e.strerror}") from None
        if len(data) != member.size:
            raise BadRecord(f"{path}: truncated at byte {member.offset}")
        return data

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k not in ("_files", "_lock")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._restart()

    def _restart(self):
        self._files, self._lock = {}, threading.Lock()  # the files last used, by number of shard

    def _file(self, shard):
        with self._lock:
            file = self._files.pop(shard, None) or _File(self.paths[shard])
            self._files[shard] = file
            if len(self._files) > _OPEN_FILES:
                self._files.pop(next(iter(self._files)))  # closed once nobody reads from it
        return file

    def leave_out(self, path, reason, detail):
        """Count what is left out of a shard."""
        self.report[reason] += 1
        self.first_problem = self.first_problem or f"{path}: {detail}"

    def _complain(self, path, problem, on_bad):
        reason, detail = problem
        self.leave_out(path, reason, detail)
        if on_bad == "error":
            raise UserError(f"{path}: {detail}; mend the shard or set on_bad='skip'")
        told = sum(self.report.values())
        if told <= _NAMED:
            log.warning("%s: %s: left out%s", path, detail, " ..." if told == _NAMED else "")

    def _index(self, number):
        """Add the members of one shard; yields (reason, detail) for each problem."""
        path, size, good = self.paths[number], 0, 0
        try:
            size = _size(path)
            with paths.open_binary(path) as f, tarfile.open(fileobj=f, mode="r:") as tar:
                for member in tar:
                    if tar.offset <= member.offset:  # a negative size: it would go on for ever
                        raise tarfile.ReadError(f"damaged header at byte {member.offset}")
                    good = member.offset
                    yield from self._add(number, member, size)
                problem, good = _check_end(f, tar.offset, size)
                if problem:
                    yield problem
        except OSError as e:
            if paths.is_outage(e, path):
                raise Unhealthy(f"{path}: {e.strerror}; the same command goes on") from None
            yield "unreadable_shard", f"cannot be read ({e.strerror or e})"
        except Exception as e:  # what damaged headers make tarfile raise is not documented
            yield "unreadable_shard", f"not a whole, uncompressed tar file ({e!s:.100})"
        self._sizes.append((size, size - good))

    def _add(self, number, member, size):
        if member.isdir():
            return
        name = member.name
        unsafe = not member.isreg() or member.issparse() or "\0" in name
        if unsafe or name.startswith("/") or ".." in name.split("/"):
            yield "unsafe_member", f"member {name!r} is a link, sparse, or leaves the archive"
            return
        if member.offset_data + member.size > size:
            yield "truncated_member", f"truncated inside member {name!r}"
            return
        key, extension = _split(name)
        sample = self.samples.setdefault(key, {})
        if extension in sample:
            self.report["duplicate_member"] += 1  # The first one counts.
        else:
            sample[extension] = Member(number, member.offset_data, member.size)


class _File:
    """An open file, closed with its last user: a thread may still read from one that was let go."""

    def __init__(self, path):
        self.fd = -1
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self, close=os.close):  # at the interpreter's end `os` is gone
        if self.fd >= 0:
            close(self.fd)


def _split(name):
    """(key, extension) of a member's name: its first dot, folders apart, ends the key."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension


def _size(path):
    """Bytes of a file. Raises OSError for what is none: opening a pipe would wait for ever."""
    if paths.is_remote(path):
        return paths.size(path)
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no regular file")
    return found.st_size


def _check_end(f, offset, size):
    """(what is wrong with the end of a shard or None, byte up to which it is whole).

    tarfile stops at a damaged header, and at the first zeros, without an error: only zeros may
    follow the last member, or a part of the shard was never seen.
    """
    f.seek(offset)
    at = offset
    while block := f.read(_BLOCK):
        if block.strip(b"\0"):
            at += len(block) - len(block.lstrip(b"\0"))
            return ("damaged_header", f"damaged header at byte {at} of {size}"), offset
        at += len(block)
    if at - offset < 512:
        return ("truncated_shard", f"ends at byte {size} without the end mark of a tar file"), size
    return None, size
