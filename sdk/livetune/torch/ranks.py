"""Owns the messages between the ranks of a torch.distributed job, on gloo and on CPU tensors: no GPU is waited for."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join, Joinable, JoinHook

from livetune.errors import LiveTuneError

__all__ = ["Ranks", "RanksError"]

BUFFER_BYTES = 1024
"""Size of what travels at every meeting; what is longer takes a second broadcast."""
_LENGTH_BYTES = 4


class RanksError(LiveTuneError, RuntimeError):
    """The ranks of a job can't be joined as asked."""


class Ranks(Joinable):
    """The ranks of a distributed job, which take every change at the same step. For `livetune.init(..., ranks=...)`.

        dist.init_process_group("nccl")
        job = livetune.init("vgg", ranks=livetune.torch.Ranks())

    Make it on every rank, after ``init_process_group``, and call ``job.step()`` equally often on every rank: as with
    DistributedDataParallel, a rank that is missing is waited for. Where the ranks have different numbers of inputs, it
    is joined with the model: ``with Join([model, ranks]): ...``; who has run out then goes on taking changes.

    The ranks meet about ten times a second, or at every step where steps are longer: a change takes effect at the safe
    point after the meeting that follows it, one later where another rank than 0 has ``on_set`` callbacks. Those that
    are registered on such a rank after its first ``job.step()`` are asked from the meeting after the next one on. With
    gradient accumulation ``job.step()`` may stand in either loop, the same on all ranks. The cost of a step is in
    benchmarks/README.md.

    Args:
        group: The process group of the job; None for the default one. Messages go through a gloo group of the same
            ranks, which is made here (a collective call).
        timeout: How long a rank is waited for before it is taken to be gone.
        join_device: Device of the collectives by which `Join` counts the ranks that still have inputs: the model's.
            None for the CPU, or the current GPU where the group is one of NCCL.

    Raises:
        RanksError: torch.distributed is not there, or not initialised, or this process is not in the group.
    """

    def __init__(
        self,
        group: dist.ProcessGroup | None = None,
        *,
        timeout: timedelta = timedelta(minutes=30),
        join_device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if not dist.is_available() or not dist.is_initialized():
            raise RanksError("Ranks() needs torch.distributed: call init_process_group before, on every rank")
        whole = group if group is not None else dist.group.WORLD
        if whole is None or dist.get_rank(whole) < 0:
            raise RanksError(f"rank {dist.get_rank()} is not in the group of the job's ranks")
        self._whole = whole
        self._rank = dist.get_rank(whole)
        self._size = dist.get_world_size(whole)
        members = dist.get_process_group_ranks(whole)
        self._leader = members[0]
        made = dist.new_group(members, timeout=timeout, backend="gloo", use_local_synchronization=True)
        self._group = cast("dist.ProcessGroup", made)  # this process is a member
        if join_device is None:
            on_gpu = "nccl" in str(dist.get_backend(whole))
            join_device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        self._device = join_device
        self._buffer = bytearray(BUFFER_BYTES)
        self._message = torch.frombuffer(self._buffer, dtype=torch.uint8)
        self._long = b""
        """What does not fit; on rank 0."""
        # Read without torch: to index a tensor costs more than all the rest of an idle meeting but the broadcast.
        self._yes, self._raised = bytearray(1), bytearray(1)
        self._answer, self._hand = (torch.frombuffer(byte, dtype=torch.uint8) for byte in (self._yes, self._raised))
        self._sending: dist.Work | None = None
        self._polling: dist.Work | None = None
        # Nobody waits for it: the byte itself tells when one has come.
        self._hands = dist.irecv(self._hand, None, group=self._group) if self._rank == 0 and self._size > 1 else None
        self._step: Callable[[], None] | None = None
        self._joined = False

    # -- for the job: see `livetune.ranks.Agreement` --

    @property
    def rank(self) -> int:
        """This rank within the group, from 0."""
        return self._rank

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self._size

    def attach(self, step: Callable[[], None]) -> None:
        """Take the job's safe point.

        Raises:
            RanksError: Another job has it: the ranks of a job are its own.
        """
        if self._step is not None:
            raise RanksError("these Ranks() belong to another job: make new ones")
        self._step = step

    def passed(self) -> None:
        """Note that this rank is at a safe point, and has inputs."""
        if self._join_config.enable and not self._joined:
            Join.notify_join_context(self)

    def send(self, message: object) -> None:
        """Begin to bring a message from rank 0 to all ranks."""
        if self._rank == 0:
            packed = pickle.dumps(message)
            fits = len(packed) <= BUFFER_BYTES - _LENGTH_BYTES
            self._long = b"" if fits else packed
            self._buffer[:_LENGTH_BYTES] = len(packed).to_bytes(_LENGTH_BYTES, "little")
            if fits:
                self._buffer[_LENGTH_BYTES : _LENGTH_BYTES + len(packed)] = packed
        self._sending = self._group.broadcast(self._message, 0)  # dist.broadcast does much else, ten times a second

    def receive(self) -> Any:
        """Return that message."""
        _wait(self._sending)
        length = int.from_bytes(self._buffer[:_LENGTH_BYTES], "little")
        if length <= BUFFER_BYTES - _LENGTH_BYTES:
            packed = bytes(self._buffer[_LENGTH_BYTES : _LENGTH_BYTES + length])
        else:
            whole = bytearray(self._long or bytes(length))
            dist.broadcast(torch.frombuffer(whole, dtype=torch.uint8), self._leader, group=self._group)
            packed = bytes(whole)
        return pickle.loads(packed)  # noqa: S301 - from this job's own rank 0, as all that its ranks exchange

    def poll(self, yes: bool) -> None:
        """Begin to learn whether any rank says yes."""
        self._yes[0] = yes
        self._polling = dist.all_reduce(self._answer, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def polled(self) -> bool:
        """Return whether any rank did."""
        _wait(self._polling)
        return bool(self._yes[0])

    def share(self, message: object) -> Any:
        """Bring a message from rank 0 to all ranks, and wait for it."""
        box = [message]
        dist.broadcast_object_list(box, self._leader, group=self._group)
        return box[0]

    def gather(self, answer: object) -> list[Any]:
        """Bring an answer of each rank to rank 0."""
        answers: list[Any] | None = [None] * self._size if self._rank == 0 else None
        dist.gather_object(answer, answers, self._leader, group=self._group)
        return answers or []

    def raise_hand(self) -> None:
        """Tell rank 0 that this rank is to be asked from now on."""
        self._raised[0] = 1
        self._hands = dist.isend(self._hand, self._leader, group=self._group)

    @property
    def hand_raised(self) -> bool:
        """For rank 0: whether any rank has raised its hand."""
        return bool(self._raised[0])

    # -- for torch's Join: uneven inputs --

    def join_hook(self, **kwargs: Any) -> JoinHook:  # noqa: ARG002 - as torch has it
        """Return what a rank without inputs does while others have some: it is at its safe point as often as they."""
        return _Joined(self)

    def _shadow(self) -> None:
        self._joined = True
        if self._step is not None:
            self._step()

    @property
    def join_device(self) -> torch.device:
        """Device of `Join`'s own collectives."""
        return self._device

    @property
    def join_process_group(self) -> dist.ProcessGroup:
        """Group of `Join`'s own collectives."""
        return self._whole


class _Joined(JoinHook):
    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def main_hook(self) -> None:
        self._ranks._shadow()  # noqa: SLF001 - this module's own

    def post_hook(self, is_last_joiner: bool) -> None:
        del is_last_joiner
        self._ranks._joined = False  # noqa: SLF001


def _wait(work: dist.Work | None) -> None:
    if work is not None:
        work.wait()
