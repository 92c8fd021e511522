"""Plans: flat lists of kernel calls on one arena, and the builder that makes them.

A builder collects calls whose arguments are buffers: places in the arena, or arrays bound from outside
by name. `finish` gives every arena buffer an offset from the calls that use it first and last, and freezes
the calls into a C array. A run binds the outside arrays and executes a range of calls.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from pycnn import native
from pycnn.native import KERNELS, ffi, lib
from pycnn.shapes import LINE

# The work of a call, in multiply-adds, from which on a second thread saves more than the barrier costs.
WORK_FOR_THREADS = 150_000
# What an element that is read or written counts for, and a call between two parallel ones: starting the threads anew
# costs more than letting them all do these.
ELEMENT_WORK = 8
CALLS_BETWEEN = 2


class Buffer:
    """An argument of calls: bytes in the arena, or (external) an array that a run binds."""

    __slots__ = ("base", "first", "last", "nbytes", "offset")

    def __init__(self, nbytes: int, base: int = 0):
        self.nbytes = nbytes
        self.base = base
        self.first: int | None = None
        self.last = 0
        self.offset = 0


class Call(NamedTuple):
    """A kernel with its descriptor and arguments; `work` is its number of multiply-adds, for the thread rule."""

    kernel: str
    desc: Any
    args: list[Buffer | None]
    work: float
    stops: bool
    owner: tuple[str, str]


class PlanBuilder:
    """Collects the calls of a plan."""

    def __init__(self) -> None:
        self.threads = native.get_num_threads()
        self._prepared: list[Call] = []
        self._calls: list[Call] = []
        self._externals: dict[str, Buffer] = {}
        self._stand_ins: dict[str, Buffer] = {}
        self.marks: dict[str, int] = {}
        self.owner = ("", "")  # the layer that calls are made for from now on, and its part: "forward", ...

    def arena(self, floats: int) -> Buffer:
        """A new place in the arena."""
        return Buffer(4 * floats)

    def external(self, name: str) -> Buffer:
        """The array that runs bind under this name."""
        if name in self._stand_ins:
            return self._stand_ins[name]
        if name not in self._externals:
            self._externals[name] = Buffer(0, len(self._externals) + 1)
        return self._externals[name]

    @contextmanager
    def standing_in(self, **buffers: Buffer) -> Iterator[None]:
        """Meanwhile these buffers stand for the outside arrays of their names."""
        before, self._stand_ins = self._stand_ins, self._stand_ins | buffers
        yield
        self._stand_ins = before

    def mark(self, name: str) -> None:
        """Names the place between the calls so far and the next one."""
        self.marks[name] = len(self._calls)

    def _made(
        self, kernel: str, args: Sequence[Buffer | None], desc: dict[str, Any], work: float = 0, stops: bool = False
    ) -> Call:
        row, args = KERNELS[kernel], list(args)
        if len(args) != row.arrays:
            raise TypeError(f"[{kernel}] takes {row.arrays} arrays, got {len(args)}")
        struct = ffi.new(row.desc, desc)
        if row.workspace:
            args.append(Buffer(lib.pycnn_workspace(row.index, struct, self.threads)))
        return Call(kernel, struct, args, work, stops, self.owner)

    def call(
        self, kernel: str, args: Sequence[Buffer | None], work: float = 0, *, stops: bool = False, **desc: Any
    ) -> None:
        """Appends a call; with `stops`, the run ends after it if its first output, a float, is not finite."""
        call = self._made(kernel, args, desc, work, stops)
        for buffer in call.args:
            if buffer is not None:
                buffer.first = len(self._calls) if buffer.first is None else buffer.first
                buffer.last = len(self._calls)
        self._calls.append(call)

    def prepare(self, kernel: str, args: Sequence[Buffer | None], **desc: Any) -> Buffer | None:
        """Adds a call to those that run before all others, and need not run again while their inputs, parameters,
        stay the same. Its results keep their places; the last one, the workspace of a pack_ kernel, is returned."""
        call = self._made(kernel, args, desc)
        self._prepared.append(call)
        return call.args[-1]

    def finish(self, repeatable: str | None = None) -> "Plan":
        """The plan; what follows the mark `repeatable` may run again and again after one run of what is before."""
        buffers = {id(b): b for call in self._calls for b in call.args if b is not None and b.base == 0}
        if repeatable is not None:
            for buffer in buffers.values():
                if buffer.first < self.marks[repeatable] <= buffer.last:
                    buffer.last = len(self._calls) - 1
        for buffer in (b for call in self._prepared for b in call.args if b is not None and b.base == 0):
            buffer.first, buffer.last = 0, len(self._calls)
            buffers[id(buffer)] = buffer
        arena_bytes = place(list(buffers.values()))
        made = self._prepared + self._calls
        calls = ffi.new("pycnn_call[]", max(len(made), 1))
        shared = self._parallel(made)
        for struct, call, parallel in zip(calls, made, shared, strict=False):
            struct.kernel = KERNELS[call.kernel].index
            struct.desc = call.desc
            struct.arguments = len(call.args)
            struct.parallel, struct.stops = parallel, call.stops
            for ref, buffer in zip(struct.args, call.args, strict=False):
                ref.base, ref.offset = (-1, 0) if buffer is None else (buffer.base, buffer.offset)
        marks = {name: len(self._prepared) + number for name, number in self.marks.items()}
        return Plan(
            calls,
            [(call.kernel, call.desc) for call in made],
            [call.owner for call in made],
            [_bytes_moved(call) for call in made],
            arena_bytes,
            {name: b.base for name, b in self._externals.items()},
            marks | {"prepared": len(self._prepared)},
            self.threads if any(shared[len(self._prepared) :]) else 1,
        )

    def _parallel(self, calls: list[Call]) -> list[bool]:
        """Which calls the threads share: those with work enough, and few calls between two of them."""
        parallel = [call.work >= WORK_FOR_THREADS or i < len(self._prepared) for i, call in enumerate(calls)]
        shared = [i for i, is_parallel in enumerate(parallel) if is_parallel]
        for i, j in pairwise(shared):
            if j - i - 1 <= CALLS_BETWEEN:
                parallel[i:j] = [True] * (j - i)
        return parallel


def _bytes_moved(call: Call) -> tuple[int, list[int], int]:
    """What a call reads and writes, each once: bytes in the arena, the outside arrays; and its workspace's bytes."""
    workspace = call.args[-1].nbytes if KERNELS[call.kernel].workspace else 0
    buffers = {id(b): b for b in call.args if b is not None}.values()
    inside = sum(b.nbytes for b in buffers if b.base == 0) - workspace
    return inside, [b.base for b in buffers if b.base > 0], workspace


def place(buffers: list[Buffer]) -> int:
    """Gives each buffer an offset so that no two in use at the same time overlap; the bytes in all.

    The largest first, each at the lowest offset that is free during its time.
    """
    placed: list[Buffer] = []
    total = 0
    for buffer in sorted(buffers, key=lambda b: -b.nbytes):
        offset = 0
        for other in placed:  # kept in the order of offsets
            if other.first <= buffer.last and buffer.first <= other.last:
                if offset + buffer.nbytes <= other.offset:
                    break
                offset = max(offset, other.offset + _lines(other.nbytes))
        buffer.offset = offset
        placed.append(buffer)
        placed.sort(key=lambda b: b.offset)
        total = max(total, offset + _lines(buffer.nbytes))
    return total


def _lines(nbytes: int) -> int:
    return -(-nbytes // LINE) * LINE


class Arena:
    """Memory for one run at a time, aligned to cache lines."""

    def __init__(self, nbytes: int):
        try:
            memory = np.empty(nbytes + LINE, np.uint8)
        except MemoryError:
            raise ValueError(f"the {nbytes:,} bytes that this needs do not fit into memory") from None
        start = -memory.ctypes.data % LINE
        self.nbytes = nbytes
        self._memory = memory
        self.pointer = ffi.from_buffer("char[]", memory) + start


class Plan:
    """A frozen list of calls. Any number of threads may run it at once, each with its own arena."""

    def __init__(
        self,
        calls: Any,
        kernels: list[tuple[str, Any]],
        owners: list[tuple[str, str]],
        moved: list[tuple[int, list[int], int]],
        arena_bytes: int,
        externals: dict[str, int],
        marks: dict[str, int],
        threads: int,
    ):
        self._calls = calls
        self.kernels = kernels  # also keeps the descriptors alive
        self.owners = owners  # of each call, the layer and its part
        self._moved = moved
        self.arena_bytes = arena_bytes
        self.externals = externals
        self.marks = marks
        self.threads = threads
        self.length = len(kernels)

    def workspace_bytes(self) -> int:
        """The largest workspace of a call."""
        return max((call[2] for call in self._moved), default=0)

    def bind(self, arrays: dict[str, np.ndarray], arena: Arena) -> "Binding":
        """Pointers for a run; names that the plan does not use are passed over."""
        return Binding(self, arrays, arena)


class Binding:
    """A plan with an arena and arrays to work on, kept alive here."""

    def __init__(self, plan: Plan, arrays: dict[str, np.ndarray], arena: Arena):
        self.plan = plan
        self.arrays = arrays
        self.prepared_at: int | None = None  # Parameter.changes when the first calls, which prepare, last ran
        self._arena = arena
        self._bases = ffi.new("void *[]", len(plan.externals) + 1)
        self._bases[0] = arena.pointer
        self._kept: dict[int, Any] = {}
        self._sources: dict[int, np.ndarray] = {}
        for name, array in arrays.items():
            self.set(name, array)

    def set(self, name: str, array: np.ndarray) -> None:
        """Binds an array; its memory must be C-contiguous."""
        base = self.plan.externals.get(name)
        if base is not None and self._sources.get(base) is not array:
            self._kept[base] = self._bases[base] = ffi.from_buffer(array)
            self._sources[base] = array

    def bytes_moved(self, call: int) -> int:
        """The bytes that a call reads and writes, each array once."""
        inside, bases, _ = self.plan._moved[call]
        return inside + sum(ffi.sizeof(self._kept[base]) for base in bases if base in self._kept)

    def run(self, first: int = 0, last: int | None = None) -> bool:
        """Runs a range of calls; whether all of them have run, none having stopped the plan."""
        plan = self.plan
        last = plan.length if last is None else last
        return lib.pycnn_run(plan._calls, first, last, self._bases, plan.threads) == last


class _Scratch(threading.local):
    """One arena a thread for runs that leave nothing behind; it grows to the largest seen."""

    arena: Arena | None = None

    def get(self, nbytes: int) -> Arena:
        if self.arena is None or self.arena.nbytes < nbytes:
            self.arena = None
            self.arena = Arena(nbytes)
        return self.arena


_scratch = _Scratch()


def run_once(plan: Plan, arrays: dict[str, np.ndarray]) -> None:
    """Runs a whole plan on these arrays with this thread's scratch memory."""
    arena = _scratch.get(plan.arena_bytes)  # kept: a finalizer or signal handler could ask for a larger one meanwhile
    bases = [arena.pointer, *map(ffi.from_buffer, map(arrays.__getitem__, plan.externals))]
    lib.pycnn_run(plan._calls, 0, plan.length, bases, plan.threads)
