"""The spool: files that the gateway appends to, read line by line, and removed when read.

A file is known again by its inode and its first bytes, since `ends.jsonl` is renamed and an inode
is used again once its file is gone.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["requests", "ends"]

ENDS = "ends.jsonl"
_REQUESTS = re.compile(r"requests-(\d{1,18})\.jsonl")
_ROTATED = re.compile(r"ends-\d+\.jsonl")

GRACE = 120.0
"""Seconds after its minute, or after its last line, in which a file may still get one."""
HELD = 30.0
"""Seconds for which a removed file stays open here, in case a writer has it open too."""
CHUNK = 2**22
BEGINNING = 512
"""Bytes by which a file is known again."""
AGAIN = 5.0
"""Seconds after which Envoy is asked again to open a new file."""


@dataclass
class Reader:
    """One open file of the spool."""

    fd: int
    inode: int
    kind: Kind
    path: Path
    minute: int | None
    offset: int = 0
    moved: bool = False
    """Whether `offset` is further than the state knows."""
    grown: float = 0.0
    """When it was last found longer, monotonic."""
    gone: float | None = None
    """When it was removed, monotonic."""

    @property
    def unread(self) -> int:
        return os.fstat(self.fd).st_size - self.offset

    @property
    def beginning(self) -> bytes:
        return os.pread(self.fd, min(BEGINNING, self.offset), 0)


class Spool:
    """The folder. `known` is what the state knows: how far files are read, by inode."""

    def __init__(
        self,
        folder: Path,
        known: dict[int, tuple[int, bytes]],
        admin: Path | None = None,
        largest: int = 8 * 2**20,
    ) -> None:
        self.folder, self._admin, self._largest = folder, admin, largest
        self._known = dict(known)
        self.readers: dict[int, Reader] = {}
        self.forgotten: list[int] = []
        """Inodes that the state need not know any longer."""
        self._asked = 0.0
        self._rotation = False
        self.look()
        self.forgotten += [inode for inode in known if inode not in self.readers]

    def close(self) -> None:
        for reader in self.readers.values():
            os.close(reader.fd)
        self.readers.clear()

    def look(self) -> None:
        """Open what is new."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                found = _REQUESTS.fullmatch(entry.name)
                if not found and entry.name != ENDS and not _ROTATED.fullmatch(entry.name):
                    continue
                reader = self.readers.get(entry.inode())
                if reader is not None and reader.gone is None:
                    reader.path = Path(entry.path)
                    continue
                with suppress(FileNotFoundError):
                    self._open(Path(entry.path), int(found[1]) if found else None)

    def _open(self, path: Path, minute: int | None) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        inode = os.fstat(fd).st_ino
        if inode in self.readers:
            os.close(fd)
            return
        kind: Kind = "ends" if minute is None else "requests"
        reader = Reader(fd, inode, kind, path, minute, grown=time.monotonic())
        offset, start = self._known.pop(inode, (0, b""))
        if offset <= os.fstat(fd).st_size and os.pread(fd, len(start), 0) == start:
            reader.offset = offset
        self.readers[inode] = reader

    def read(self, kind: Kind, budget: int) -> Iterator[bytes]:
        """The next lines of all files of a kind, the oldest file first, of about `budget` bytes."""
        mine = (reader for reader in self.readers.values() if reader.kind == kind)
        for reader in sorted(mine, key=lambda reader: (reader.minute or 0, reader.path.name)):
            while budget > 0 and (data := os.pread(reader.fd, CHUNK, reader.offset)):
                end = data.rfind(b"\n") + 1
                if not end:
                    if len(data) < CHUNK and not self._is_over(reader):
                        break
                    end = len(data)
                reader.offset += end
                reader.moved, reader.grown = True, time.monotonic()
                budget -= end
                for line in data[:end].split(b"\n"):
                    if line and not line.isspace():
                        yield line

    def is_read(self, kind: Kind) -> bool:
        """Whether every whole line of these files is read."""
        for reader in self.readers.values():
            if reader.kind == kind and (unread := reader.unread) > 0:
                tail = os.pread(reader.fd, min(unread, CHUNK), reader.offset)
                if b"\n" in tail or len(tail) == CHUNK:
                    return False
        return True

    def _is_over(self, reader: Reader) -> bool:
        """Whether nobody writes to the file any more."""
        if reader.minute is not None:
            return time.time() > (reader.minute + 1) * 60 + GRACE
        quiet = time.monotonic() - reader.grown > GRACE
        return reader.path.name != ENDS and quiet and (self.folder / ENDS).exists()

    def tidy(self) -> None:
        """Remove what is read and over, and begin a new `ends.jsonl` where it is large.

        Only after the state has all that was read.
        """
        now = time.monotonic()
        for reader in list(self.readers.values()):
            if reader.gone is not None:
                if now - reader.gone > HELD and not reader.unread:
                    os.close(reader.fd)
                    del self.readers[reader.inode]
                    self.forgotten.append(reader.inode)
            elif not reader.unread and not reader.moved and self._is_over(reader):
                reader.path.unlink(missing_ok=True)
                reader.gone = now
        self._rotate(now)

    def _rotate(self, now: float) -> None:
        if self._admin is None:
            return
        current = self.folder / ENDS
        size = 0
        with suppress(FileNotFoundError):
            size = current.stat().st_size
        if size >= self._largest:
            # Envoy goes on in the renamed file until it opens a new one.
            current.rename(self.folder / f"ends-{time.time_ns()}.jsonl")
            self._rotation, self._asked = True, 0.0
        if now - self._asked > AGAIN and self._must_reopen(current):
            self._asked = now
            reopen_logs(self._admin)

    def _must_reopen(self, current: Path) -> bool:
        if current.exists():
            self._rotation = False
        elif any(reader.path.name != ENDS for reader in self._ends()):
            return True
        return self._rotation

    def _ends(self) -> Iterator[Reader]:
        return (
            reader
            for reader in self.readers.values()
            if reader.kind == "ends" and reader.gone is None
        )


def reopen_logs(admin: Path) -> bool:
    """Have Envoy open its log files anew; False where none answers, which may have ended."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(1)
        try:
            link.connect(str(admin))
            link.sendall(
                b"POST /reopen_logs HTTP/1.1\r\nHost: envoy\r\nContent-Length: 0\r\n"
                b"Connection: close\r\n\r\n"
            )
            return b" 200 " in link.recv(64)
        except OSError:
            return False
