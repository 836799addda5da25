"""Faults planted in a kernel's source, to see whether its tests would notice: for the mutation tests.

All faults of a kernel whose texts are apart or within one another are compiled into one library, each behind a switch
that is turned on at run time: `planted_fault == 7 ? faulty : sound`, or the same as two statements.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import multiprocessing
import pathlib
import resource
import tempfile

import torch

from tests.support import emulated, hang


@dataclasses.dataclass(frozen=True)
class Fault:
    """`sound` becomes `faulty` in csrc/`source`; a text that ends in ; or } is one or more statements."""

    name: str
    source: str
    sound: str
    faulty: str

    def switched(self, number: int, sound: str) -> str:
        """Both texts behind a switch; `sound` is this fault's own, with the switches of those within it."""
        if self.sound.rstrip().endswith((";", "}")):
            return f"if (planted_fault == {number}) {{ {self.faulty} }} else {{ {sound} }}"
        return f"(planted_fault == {number} ? {self.faulty} : {sound})"

    def place(self, text: str) -> range:
        """Where the sound text stands in that of the source."""
        if text.count(self.sound) != 1:
            raise ValueError(f"{self.name}: its text stands {text.count(self.sound)} times in {self.source}")
        start = text.index(self.sound)
        return range(start, start + len(self.sound))


_SWITCH = """#pragma once
inline int planted_fault = 0;
extern "C" __attribute__((used)) inline void plant_fault(int number) { planted_fault = number; }
"""


def groups(faults: list[Fault]) -> list[list[Fault]]:
    """The faults in as few libraries as their texts allow, in their order."""
    result: list[list[tuple[Fault, range]]] = []
    for fault in faults:
        place = fault.place((emulated.CSRC / fault.source).read_text())
        for group in result:
            if not any(other.source == fault.source and _cross(place, taken) for other, taken in group):
                group.append((fault, place))
                break
        else:
            result.append([(fault, place)])
    return [[fault for fault, _ in group] for group in result]


def _holds(outer: range, inner: range) -> bool:
    return outer.start <= inner.start and inner.stop <= outer.stop


def _cross(one: range, other: range) -> bool:
    overlap = one.start < other.stop and other.start < one.stop
    return overlap and not _holds(one, other) and not _holds(other, one)


def _planted(text: str, within: range, placed: list[tuple[range, int, Fault]]) -> str:
    """The text `within`, with these faults behind their switches; they come in the order of their places, outer ones
    before those within them."""
    pieces, at = [], within.start
    while placed:
        place, number, fault = placed[0]
        inner = [one for one in placed[1:] if _holds(place, one[0])]
        pieces += [text[at : place.start], fault.switched(number, _planted(text, place, inner))]
        placed, at = placed[1 + len(inner) :], place.stop
    return "".join(pieces) + text[at : within.stop]


def write_sources(folder: pathlib.Path, faults: list[Fault]) -> None:
    """The sources that the faults stand in, with a switch for each: the n-th fault is number n + 1."""
    for source in {fault.source for fault in faults}:
        text = (emulated.CSRC / source).read_text()
        numbered = [(number, fault) for number, fault in enumerate(faults, 1) if fault.source == source]
        placed = [(fault.place(text), number, fault) for number, fault in numbered]
        placed.sort(key=lambda one: (one[0].start, -one[0].stop, one[1]))
        target = folder / source
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text('#include "planted_fault.h"\n' + _planted(text, range(len(text)), placed))
    (folder / "planted_fault.h").write_text(_SWITCH)


def library(name: str, faults: list[Fault], *flags: str) -> ctypes.CDLL:
    """The library of a source of csrc/ with these faults in it, all of them off."""
    with tempfile.TemporaryDirectory() as folder:
        write_sources(pathlib.Path(folder), faults)
        return emulated.library(name, folder, *flags)


class Kernel:
    """The kernel that a source of csrc/ offers, its faults, and `check(library)`, which raises where it errs."""

    def __init__(self, name: str, check, faults: list[Fault], *flags: str) -> None:
        self.name, self.check, self.faults, self.flags = name, check, faults, flags

    @functools.cached_property
    def groups(self) -> list[list[Fault]]:
        return groups(self.faults)

    @functools.cache  # noqa: B019 - a kernel lives as long as its tests
    def _library(self, group: int) -> ctypes.CDLL:
        return library(self.name, self.groups[group], *self.flags)

    def outcome(self, fault: Fault) -> str:
        """What `check` says of `fault`, empty where it notices nothing."""
        group = next(number for number, faults in enumerate(self.groups) if fault in faults)
        built = self._library(group)
        return outcome(built, self.groups[group].index(fault) + 1, lambda: self.check(built))

    def sound(self) -> list[str]:
        """What `check` says of each library with every switch off."""
        built = [self._library(group) for group in range(len(self.groups))]
        return [outcome(one, 0, functools.partial(self.check, one)) for one in built]


def outcome(library: ctypes.CDLL, number: int, run, seconds: int = 60) -> str:
    """What `run()` comes to in a process of its own with this fault on: "" if it notices nothing, else what.

    A fault may make a loop endless.  `seconds` are the processor's, some twenty times what a sound kernel takes: by the
    clock on the wall, a loaded machine would make an endless loop of everything.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        # OpenMP's threads stay behind in a fork, and a parallel region would wait for them for ever
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        library.plant_fault(number)
        try:
            run()
            sender.send("")
        except AssertionError as error:
            sender.send(f"{type(error).__name__}: {str(error)[:400]}")

    process = context.Process(target=child)
    process.start()
    sender.close()
    try:
        if not receiver.poll(hang.SECONDS):
            return f"does not end within {hang.SECONDS} s"
        return receiver.recv()
    except EOFError:
        process.join()
        return f"crashes, exit code {process.exitcode}"
    finally:
        process.kill()
        process.join()
