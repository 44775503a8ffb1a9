"""Seeing in H.264 and H.265, without decoding, where the frame size changes and where decoding can begin afresh.

A stream's size is written in its parameter sets. They stand once in the container's header, or inside the stream at
keyframes; a set that was not there before means that the size may change in the middle. (decord silently scales later
frames to the first size; this is how such files are kept from it.)

Not every packet that is flagged as a keyframe is one: of an intra refresh, say, the picture is whole only some frames
later. Behind an IDR frame nothing refers to what was before it.
"""

from __future__ import annotations

from collections.abc import Iterator

_SPS = {"h264": 7, "hevc": 33}
_IDR = {"h264": {5}, "hevc": {19, 20}}


class ParameterSets:
    """Watches keyframe packets for sequence parameter sets that were not announced."""

    def __init__(self, codec: str, header: bytes) -> None:
        self._codec = codec
        self._known = [header] if header else []
        self._lengths = _length_bytes(codec, header)
        self._at_start = True
        self.constant = codec in _SPS
        """True while all sets seen are alike; False from the start for codecs this does not understand."""

    def see(self, packet: bytes) -> bool:
        """Look at the next keyframe packet; tells whether it is an IDR frame."""
        if self._codec not in _SPS:
            return False
        idr = False
        for unit in _units(packet, self._lengths):
            kind = _kind(self._codec, unit)
            idr = idr or kind in _IDR[self._codec]
            if self.constant and kind == _SPS[self._codec] and not any(unit in known for known in self._known):
                self._known.append(unit)
                self.constant = self._at_start
        self._at_start = False
        return idr


def _length_bytes(codec: str, header: bytes) -> int:
    """How many bytes give a unit's length; 0 if units are set apart by start codes instead."""
    place = {"h264": 4, "hevc": 21}.get(codec, 0)
    return (header[place] & 3) + 1 if header[:1] == b"\x01" and len(header) > place else 0


def _kind(codec: str, unit: bytes) -> int:
    return unit[0] & 31 if codec == "h264" else (unit[0] >> 1) & 63


def _units(packet: bytes, lengths: int) -> Iterator[bytes]:
    if lengths:
        at = 0
        while at + lengths < len(packet):
            size = int.from_bytes(packet[at : at + lengths], "big")
            at += lengths
            if size:
                yield packet[at : at + size]
            at += size
    else:
        yield from (unit.rstrip(b"\0") for unit in packet.split(b"\0\0\1")[1:] if unit.rstrip(b"\0"))
