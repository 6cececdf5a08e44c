"""Reading tar shards by the offsets of their members; nothing is ever extracted."""

import collections
import dataclasses
import os
import tarfile

from multimodal import paths
from multimodal.errors import BadRecord, UserError


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
    With `on_bad='error'` a damaged shard is a UserError; with 'skip' what can be read of it is used
    and `report` counts the reasons. Links and paths that leave the archive are never followed.
    """

    def __init__(self, files, on_bad="error"):
        if on_bad not in ("error", "skip"):
            raise UserError(f"on_bad must be 'error' or 'skip', not {on_bad!r}")
        self.paths = [paths.absolute(p) for p in files]
        self.samples, self.report, self._fds = {}, collections.Counter(), {}
        for number in range(len(self.paths)):
            for problem in self._index(number):
                self._complain(self.paths[number], problem, on_bad)

    def find(self, name):
        """The Member of a file name, or None."""
        key, extension = _split(name)
        return self.samples.get(key, {}).get(extension)

    def read(self, member):
        """Bytes of a member; safe in threads. Raises BadRecord when the file has become shorter."""
        path = self.paths[member.shard]
        if paths.is_remote(path):
            return paths.read_example(path, member.offset, member.size)
        data = os.pread(self._fd(member.shard), member.size, member.offset)
        if len(data) != member.size:
            raise BadRecord(f"{path}: truncated at byte {member.offset}")
        return data

    def __getstate__(self):
        return {**self.__dict__, "_fds": {}}

    def __del__(self):
        for fd in getattr(self, "_fds", {}).values():
            os.close(fd)

    def _fd(self, shard):
        fd = self._fds.get(shard)
        if fd is None:
            new = os.open(self.paths[shard], os.O_RDONLY)
            fd = self._fds.setdefault(shard, new)
            if fd != new:  # Another thread was faster.
                os.close(new)
        return fd

    def _complain(self, path, problem, on_bad):
        reason, detail = problem
        self.report[reason] += 1
        if on_bad == "error":
            raise UserError(f"{path}: {detail}; mend the shard or set on_bad='skip'")

    def _index(self, number):
        """Add the members of one shard; yields (reason, detail) for each problem."""
        path = self.paths[number]
        try:
            size = paths.size(path)
            with paths.open_binary(path) as f, tarfile.open(fileobj=f, mode="r:") as tar:
                for member in tar:
                    yield from self._add(number, member, size)
                yield from _check_end(f, tar.offset, size)
        except (tarfile.TarError, EOFError) as e:
            yield "unreadable_shard", f"not a whole, uncompressed tar file ({e})"
        except OSError as e:
            raise UserError(f"cannot read shard {path!r}: {e.strerror}") from None

    def _add(self, number, member, size):
        if member.isdir():
            return
        name = member.name
        if not member.isreg() or name.startswith("/") or ".." in name.split("/"):
            yield "unsafe_member", f"member {name!r} is a link or leaves the archive"
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


def _split(name):
    """(key, extension) of a member's name: its first dot, folders apart, ends the key."""
    folder, _, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension


def _check_end(f, offset, size):
    """tarfile stops at a damaged header without an error: only zeros may follow the last member."""
    f.seek(offset)
    block = f.read(512)
    if block.strip(b"\0"):
        yield "damaged_header", f"damaged header at byte {offset} of {size}"
    elif len(block) < 512:
        yield "truncated_shard", f"ends at byte {size} without the end mark of a tar file"
