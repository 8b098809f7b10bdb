"""A Perfetto trace, written packet by packet: tracks, slices, counters and flow arrows, with every
name interned.

The packets are filled into two templates that are serialised again and again, because building
messages anew takes several times as long. A file is any number of serialised `Trace` messages one
after the other.

Format: https://perfetto.dev/docs/reference/synthetic-track-event and perfetto_trace.proto of the
`perfetto` package.
"""

from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import (
    CounterDescriptor,
    Trace,
    TracePacket,
    TrackDescriptor,
    TrackEvent,
)

SEQUENCE = 1  # all packets come from one writer, so interned names hold for all of them
ARGS = ("nbytes", "flop", "joules", "outcome")
UNITS = {"count": CounterDescriptor.UNIT_COUNT, "bytes": CounterDescriptor.UNIT_SIZE_BYTES}


class TraceWriter:
    """Writes a trace to an open binary file; `labels` and `outcomes` are the slice names and
    outcomes it will meet.

    `slices` and `tracks` count what has been written. Slices of one track must come in time order
    and must not overlap.
    """

    def __init__(self, file: BinaryIO, labels: list[str], outcomes: list[str]) -> None:
        self.slices = 0
        self.tracks = 0
        self._children: dict[int, int] = {}
        self._file = file
        trace = Trace()
        packet = trace.packet.add(trusted_packet_sequence_id=SEQUENCE, timestamp=0)
        packet.sequence_flags = TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
        for number, label in enumerate(labels, start=1):
            packet.interned_data.event_names.add(iid=number, name=label)
        for number, name in enumerate(ARGS, start=1):
            packet.interned_data.debug_annotation_names.add(iid=number, name=name)
        for number, outcome in enumerate(outcomes, start=1):
            packet.interned_data.debug_annotation_string_values.add(
                iid=number, str=outcome.encode()
            )
        self._write(trace)

        self._slice = Trace()
        self._begin, self._end = self._slice.packet.add(), self._slice.packet.add()
        for packet, kind in (
            (self._begin, TrackEvent.TYPE_SLICE_BEGIN),
            (self._end, TrackEvent.TYPE_SLICE_END),
        ):
            packet.trusted_packet_sequence_id = SEQUENCE
            packet.sequence_flags = TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
            packet.track_event.type = kind
        self._args = [
            self._begin.track_event.debug_annotations.add(name_iid=i + 1) for i in range(len(ARGS))
        ]
        self._counter = Trace()
        self._point = self._counter.packet.add(trusted_packet_sequence_id=SEQUENCE)
        self._point.track_event.type = TrackEvent.TYPE_COUNTER

    def track(self, name: str, parent: int | None = None, unit: str | None = None) -> int:
        """Declare a track below `parent`, shown in the order of declaration; with a `unit` it is a
        counter's.
        """
        self.tracks += 1
        trace = Trace()
        descriptor = trace.packet.add(
            trusted_packet_sequence_id=SEQUENCE, timestamp=0
        ).track_descriptor
        descriptor.uuid, descriptor.name = self.tracks, name
        descriptor.child_ordering = TrackDescriptor.EXPLICIT
        if parent is not None:
            self._children[parent] = descriptor.sibling_order_rank = (
                self._children.get(parent, 0) + 1
            )
            descriptor.parent_uuid = parent
        if unit is not None:
            descriptor.counter.unit = UNITS[unit]
        self._write(trace)
        return self.tracks

    def slice(
        self,
        track: int,
        label: int,
        start_ns: int,
        end_ns: int,
        nbytes: int,
        flop: float,
        joules: float,
        outcome: int,
        leaving: Iterable[int] = (),
        arriving: Iterable[int] = (),
    ) -> None:
        """Write a slice; `label` and `outcome` are positions in the lists of names; the rest are
        flow ids.
        """
        begin, end, event = self._begin, self._end, self._begin.track_event
        begin.timestamp, end.timestamp = start_ns, end_ns
        event.track_uuid = end.track_event.track_uuid = track
        event.name_iid = label + 1
        self._args[0].int_value = nbytes
        self._args[1].double_value = flop
        self._args[2].double_value = joules
        self._args[3].string_value_iid = outcome + 1
        if leaving or arriving:
            event.flow_ids.extend(leaving)
            event.terminating_flow_ids.extend(arriving)
        self._write(self._slice)
        if leaving or arriving:
            event.ClearField("flow_ids")
            event.ClearField("terminating_flow_ids")
        self.slices += 1

    def note(
        self, track: int, name: str, start_ns: int, end_ns: int, facts: dict[str, str]
    ) -> None:
        """Write a slice of its own name with arguments of its own."""
        trace = Trace()
        for kind, time_ns in (
            (TrackEvent.TYPE_SLICE_BEGIN, start_ns),
            (TrackEvent.TYPE_SLICE_END, end_ns),
        ):
            packet = trace.packet.add(trusted_packet_sequence_id=SEQUENCE, timestamp=time_ns)
            packet.track_event.type, packet.track_event.track_uuid = kind, track
        trace.packet[0].track_event.name = name
        for key, value in facts.items():
            trace.packet[0].track_event.debug_annotations.add(name=key, string_value=value)
        self._write(trace)
        self.slices += 1

    def counter(self, track: int, time_ns: np.ndarray, value: np.ndarray) -> None:
        """Write the points of a counter, int64 and numbers of shape (n,)."""
        self._point.track_event.track_uuid = track
        for at_ns, number in zip(time_ns.tolist(), value.tolist(), strict=True):
            self._point.timestamp = at_ns
            self._point.track_event.double_counter_value = number
            self._write(self._counter)

    def _write(self, trace: Trace) -> None:
        self._file.write(trace.SerializeToString())
