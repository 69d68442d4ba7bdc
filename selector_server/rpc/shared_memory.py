"""Reads payloads that clients of this host leave in a folder. Every byte of it is a stranger's."""

import logging
import os
import secrets
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

from selector_proto import shared_memory as layout
from selector_proto.contract import printable
from selector_proto.copying import copy_threads, read_all
from selector_proto.files import try_lock
from selector_proto.v1 import selector_pb2 as pb

from selector_server.buffers import Pool
from selector_server.errors import InvalidRequest, SetupError

log = logging.getLogger(__name__)

# The sidecar that has the folder holds a lock on this file, which says who it is.
OWNER_FILE = "owner"
# So many copies are kept for the next requests: fresh memory costs ten times as much.
SPARE = 2


class SharedFolder:
    """One sidecar's folder. Building this makes the folder, takes it for this process until that ends, writes its
    `token`, and removes what dead clients left (`swept`). Payloads are copied into memory of `pool`. Raises SetupError
    if the folder cannot be used, or is another's."""

    def __init__(self, path: Path) -> None:
        self.path, self.token, self.pool = path.absolute(), secrets.token_hex(16), Pool(SPARE)
        self._threads = ThreadPoolExecutor(copy_threads(), thread_name_prefix="shared-memory")
        try:
            with ExitStack() as opened:
                if not path.is_dir():
                    path.mkdir(parents=True)
                    path.chmod(0o2770)  # Files in it belong to its group.
                self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                opened.callback(os.close, self._folder)
                owner = self._own()
                opened.callback(os.close, owner)
                self.swept = layout.sweep(self._folder)  # first of all, for they may have left no room
                os.ftruncate(owner, 0)
                os.pwrite(owner, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                self._write_token()
                self._opened = opened.pop_all()
        except OSError as error:
            raise SetupError("shared_memory_dir", path, str(error)) from error
        log.info("payloads in shared memory: %s, %d files of dead clients removed", self.path, self.swept)

    def read(self, where: pb.SharedMemory, payload_bytes: int) -> memoryview:
        """A copy of the payload. It is copied, not mapped: a client that truncated a mapped file would kill the server.

        Raises InvalidRequest.
        """
        if not layout.is_name(where.name):
            raise InvalidRequest("shared_memory.name", repr(where.name), "must be selector-<32 hex digits>.payload")
        if where.generation == 0:
            raise InvalidRequest("shared_memory.generation", 0, "0 is a file that is being written")
        try:
            file = layout.open_within(self._folder, where.name)
        except OSError as error:
            limit = f"must be a file in {self.path}: {error.strerror}"
            raise InvalidRequest("shared_memory.name", repr(where.name), limit) from error
        try:
            return self._copied(file, where, payload_bytes)
        finally:
            os.close(file)

    def usage(self) -> tuple[int, int]:
        """Payload files that lie in the folder, and the bytes of memory that they take."""
        sizes = []
        for name in filter(layout.is_name, os.listdir(self._folder)):
            with suppress(FileNotFoundError):
                sizes.append(512 * os.stat(name, dir_fd=self._folder, follow_symlinks=False).st_blocks)
        return len(sizes), sum(sizes)

    def close(self) -> None:
        self._threads.shutdown()
        self._opened.close()

    def _copied(self, file: int, where: pb.SharedMemory, payload_bytes: int) -> memoryview:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidRequest("shared_memory.name", repr(where.name), "must be a regular file")
        if status.st_size < layout.PAYLOAD_OFFSET + payload_bytes:
            limit = f"the file has {status.st_size} bytes, {layout.PAYLOAD_OFFSET} of them before the payload"
            raise InvalidRequest("shared_memory", f"{payload_bytes} bytes", limit)
        self._check(file, where, payload_bytes)
        view = self.pool.take(payload_bytes).data
        if not read_all(file, view, layout.PAYLOAD_OFFSET, self._threads):
            raise InvalidRequest("shared_memory", f"{payload_bytes} bytes", "the file ends before")
        self._check(file, where, payload_bytes)  # It may have been written anew meanwhile.
        return view.toreadonly()

    def _check(self, file: int, where: pb.SharedMemory, payload_bytes: int) -> None:
        try:
            header = layout.Header.decode(os.pread(file, layout.HEADER_BYTES, 0))
        except layout.HeaderError as error:
            raise InvalidRequest("shared_memory.name", repr(where.name), f"its header {error}") from error
        if header.generation != where.generation:
            limit = f"the file is at {header.generation}; a payload must stay until its request is answered"
            raise InvalidRequest("shared_memory.generation", where.generation, limit)
        if header.payload_bytes != payload_bytes:
            raise InvalidRequest(
                "shared_memory", f"{payload_bytes} bytes", f"the file's header says {header.payload_bytes}"
            )

    def _own(self) -> int:
        """Returns the locked file that makes the folder this process's. Two sidecars with one folder would each make
        the other's token wrong, so that no client of either found its folder. Raises SetupError and OSError."""
        file = layout.open_within(self._folder, OWNER_FILE, os.O_RDWR | os.O_CREAT)
        if try_lock(file):
            if os.fstat(file).st_uid == os.geteuid():
                os.fchmod(file, 0o660)  # the next sidecar may be another user of the folder's group
            return file
        owner = printable(os.read(file, 300).decode(errors="replace")) or "which starts just now"
        os.close(file)
        raise SetupError("shared_memory_dir", self.path, f"another sidecar has it, {owner}; give each its own folder")

    def _write_token(self) -> None:
        """Writes it whole or not at all: clients read it at any time."""
        name = f".{layout.TOKEN_FILE}-{self.token}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(name, flags, 0o644, dir_fd=self._folder)
        try:
            os.write(file, self.token.encode())
            os.fchmod(file, 0o644)
            os.rename(name, layout.TOKEN_FILE, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except OSError:
            os.unlink(name, dir_fd=self._folder)
            raise
        finally:
            os.close(file)
