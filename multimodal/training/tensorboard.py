"""Writes TensorBoard event files without TensorFlow, protobuf or tensorboard.

An event file is a sequence of records `length u64 | crc(length) u32 | data | crc(data) u32`, all
little-endian, where crc is CRC-32C, masked (the TFRecord format, TensorFlow's
core/lib/io/record_writer.h). Each data is one `Event` message, encoded here by hand: field numbers
and types are those of TensorFlow's core/util/event.proto and core/framework/summary.proto.
"""

import itertools
import math
import os
import pathlib
import struct
import time

_COUNTER = itertools.count()

# Wire types of protobuf (protobuf.dev/programming-guides/encoding).
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_FLOAT32_MAX = 3.4028234663852886e38
_SESSION_START = 1  # SessionLog.SessionStatus.START
_DT_STRING = 7  # DataType.DT_STRING
_DATA_CLASS_TENSOR = 2  # DataClass


class EventWriter:
    """Appends events to a new file in `folder`; TensorBoard reads the files of a folder by name.

    Args:
      folder: made if absent.
      purge_step: TensorBoard forgets what earlier files hold from this step on (a resumed run).
    """

    def __init__(self, folder, purge_step=None):
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        # The time comes first, so that the order of names is the order of runs.
        name = f"events.out.tfevents.{time.time():017.6f}.{os.getpid()}.{next(_COUNTER)}"
        self._file = open(pathlib.Path(folder, name), "xb")  # noqa: SIM115  closed by close()
        self._event(0, _string(3, "brain.Event:2"))  # Event.file_version
        if purge_step is not None:
            self._event(purge_step, _message(7, _int(1, _SESSION_START)))  # Event.session_log
        self.flush()

    def scalar(self, step, tag, value):
        if math.isfinite(value) and abs(value) > _FLOAT32_MAX:
            value = math.copysign(math.inf, value)
        self._value(step, tag, _field(2, _FIXED32, struct.pack("<f", value)))  # simple_value

    def image(self, step, tag, png):
        """An image given as the bytes of a PNG file."""
        if png[:8] != b"\x89PNG\r\n\x1a\n":
            raise ValueError(f"image {tag!r}: not the bytes of a PNG file")
        width, height = struct.unpack(">II", png[16:24])  # the IHDR chunk comes first
        image = _int(1, height) + _int(2, width) + _int(3, 4) + _message(4, png)  # 4: RGBA
        self._value(step, tag, _message(4, image))

    def text(self, step, tag, text):
        """A string, shown as Markdown."""
        metadata = _message(1, _string(1, "text")) + _int(4, _DATA_CLASS_TENSOR)
        tensor = _int(1, _DT_STRING) + _message(2, b"") + _string(8, text)  # shape (): a scalar
        self._value(step, tag, _message(8, tensor) + _message(9, metadata))

    def flush(self):
        self._file.flush()

    def close(self):
        self._file.close()

    def _value(self, step, tag, content):
        self._event(step, _message(5, _message(1, _string(1, tag) + content)))  # Event.summary

    def _event(self, step, content):
        wall_time = _field(1, _FIXED64, struct.pack("<d", time.time()))
        data = wall_time + _int(2, step) + content
        length = struct.pack("<Q", len(data))
        crcs = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
        self._file.write(length + next(crcs) + data + next(crcs))


def _varint(value):
    value &= (1 << 64) - 1  # negative numbers are ten bytes of two's complement
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number, wire_type, payload):
    return _varint(number << 3 | wire_type) + payload


def _int(number, value):
    return _field(number, _VARINT, _varint(value))


def _message(number, data):
    return _field(number, _BYTES, _varint(len(data)) + data)


def _string(number, text):
    # A lone surrogate cannot be encoded, and a log is no place to fail for it.
    return _message(number, text.encode("utf-8", "replace"))


def _crc_table():
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)  # Castagnoli's polynomial, reflected
        table.append(crc)
    return table


_TABLE = _crc_table()


def masked_crc32c(data):
    """CRC-32C (RFC 3720, appendix B.4), rotated and offset as TFRecord files want it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
