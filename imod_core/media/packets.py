"""What the packets of a stream tell before anything is decoded: how many frames are shown, and for how long."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Packets:
    """Of one stream, as far as they were read.

    An MP4 that was trimmed without encoding it anew has an edit list: its first packets are there to decode the later
    ones and are not shown. The number of frames in its header counts them all.
    """

    found: int = 0
    """All that hold something."""
    shown: int = 0
    begin: float = math.inf
    """Seconds; of the first that is shown, in the order of showing."""
    end: float = -math.inf

    @property
    def seconds(self) -> float:
        """From the first that is shown to the end of the last."""
        return self.end - self.begin if self.shown else 0.0

    def add(self, packet: Any) -> None:
        """Count one that holds something."""
        self.found += 1
        if packet.is_discard:
            return
        ticks = packet.dts if packet.pts is None else packet.pts
        after = self.end if self.shown else 0.0
        begin = after if ticks is None else float(ticks * packet.time_base)
        self.shown += 1
        self.begin = min(self.begin, begin)
        self.end = max(self.end, begin + float((packet.duration or 0) * packet.time_base))


def read_packets(container: Any, stream: Any, check: Callable[[Packets], None] = lambda packets: None) -> Packets:
    """The packets of a stream, to the end of the file; `check` sees them after each and may raise."""
    packets = Packets()
    for packet in container.demux(stream):
        if packet.size:
            packets.add(packet)
            check(packets)
    return packets


def share_there(packets: Packets, container: Any, stream: Any) -> float:
    """How much there is of what a header announces of a stream; 1 where it counts no frames.

    The duration of an MP4's stream is the one that its edit list leaves. That of an AVI without its end is a guess by
    the file's size, but its frames are all shown.
    """
    if not stream.frames:
        return 1.0
    if "mov" not in container.format.name.split(","):
        return packets.found / stream.frames
    return packets.seconds / float(stream.duration * stream.time_base) if stream.duration else 1.0
