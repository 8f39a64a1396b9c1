"""One training in several processes: each takes its part of every batch, and PyTorch's DDP averages their gradients.

The curve is that of one process with the same `batch_size`, to round-off. The order of the samples and random input codes are
drawn for the whole batch by every process, each of which then keeps its own samples; losses are weighted so that DDP's mean over processes is the
loss over the batch, however long the parts are. What a network itself does across its batch or at random (batch
normalisation, dropout, `warmup="layer"` of TSSL) it does within the part of each process.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from . import console
from .rule import RuleError

Made = TypeVar("Made")
COMMAND = "torchrun --nproc-per-node 2 -m snn_rules train --distributed ..."
TIMEOUT = "SNN_RULES_TIMEOUT"  # the environment's word on how many seconds a process waits for the others; 60 without it
_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed out", re.IGNORECASE)


class Alone:
    """The team of one: it has the whole batch, and nobody to wait for."""

    rank, size = 0, 1

    def wrap(self, net: nn.Module) -> nn.Module:
        """The network whose gradients are those of all processes."""
        return net

    def own(self, samples: int) -> slice:
        """Which samples of a batch are this process's; there may be none."""
        return slice(0, samples)

    def part(self, samples: int, reduction: str) -> tuple[slice, float]:
        """Samples to learn from, at least one, and the factor of their loss: 0 for one that only keeps the others company."""
        return self.own(samples), 1.0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Over all processes."""
        return list(values)

    def gather(self, part: Made) -> list[Made]:
        """The part of each process, for all."""
        return [part]

    def first(self, work: Callable[[], Made]) -> Made:
        """What the first process makes, for all; a refusal of it is everybody's."""
        return work()

    def noise(self, *key: int) -> AbstractContextManager[None]:
        """Random numbers within it are this process's own, those after it common again; `key` tells one use from the others."""
        return nullcontext()

    def watch(self, remedy: str) -> AbstractContextManager[None]:
        """Within it, the end of another process ends this one with a message that closes in `remedy`."""
        return nullcontext()


ALONE = Alone()


class Team(Alone):
    """One of the processes that train together."""

    def __init__(self, rank: int, size: int, device: str, seconds: float):
        self.rank, self.size, self.device, self.seconds = rank, size, device, seconds

    def wrap(self, net: nn.Module) -> nn.Module:
        return DistributedDataParallel(net, device_ids=None if self.device == "cpu" else [torch.cuda.current_device()])

    def own(self, samples: int) -> slice:
        share, more = divmod(samples, self.size)
        begin = self.rank * share + min(self.rank, more)
        return slice(begin, begin + share + (self.rank < more))

    def part(self, samples: int, reduction: str) -> tuple[slice, float]:
        own = self.own(samples)
        count = own.stop - own.start
        if not count:
            return slice(0, 1), 0.0
        return own, float(self.size) if reduction == "sum" else self.size * count / samples

    def sum(self, values: Sequence[float]) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def gather(self, part: Made) -> list[Made]:
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, part)
        return parts

    def first(self, work: Callable[[], Made]) -> Made:
        made: list[Any] = [None, None]
        if self.rank == 0:
            try:
                made[0] = work()
            except RuleError as refusal:
                made[1] = str(refusal)
        dist.broadcast_object_list(made, src=0)
        if made[1] is not None:
            raise RuleError(made[1])
        return made[0]  # type: ignore[no-any-return]

    @contextmanager
    def noise(self, *key: int) -> Iterator[None]:
        with torch.random.fork_rng([] if self.device == "cpu" else [torch.cuda.current_device()]):
            mixed = 0
            for number in (*key, self.rank):
                mixed = (mixed * 1_000_003 + number) % 2**32
            torch.manual_seed(mixed)
            yield

    @contextmanager
    def watch(self, remedy: str) -> Iterator[None]:
        before = signal.signal(signal.SIGTERM, _stop)
        try:
            yield
        except (RuntimeError, _Stopped) as cause:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the others when one has ended: say why, first
            if isinstance(cause, RuleError) or not (isinstance(cause, _Stopped) or _LOST.search(str(cause))):
                raise
            silent = f"has ended or has not answered for {self.seconds:g} s ({TIMEOUT} sets how long to wait)"
            raise RuleError(f"train: one of the {self.size} processes {silent}; {remedy}") from cause
        signal.signal(signal.SIGTERM, before)


class _Stopped(BaseException):
    """SIGTERM: torchrun ends the processes that are left."""


def _stop(*_: object) -> None:
    raise _Stopped


def refuse_many(command: str) -> None:
    """Refuse to run in the several processes of torchrun a command that knows nothing of them."""
    size = int(os.environ.get("WORLD_SIZE", 1))
    if "TORCHELASTIC_RUN_ID" in os.environ and size > 1:
        raise RuleError(f"{command}: torchrun has started {size} processes, which would all do the same; start one: only train has --distributed")


@contextmanager
def team(distributed: bool, device: str) -> Iterator[Alone]:
    """Join the processes that torchrun has started. Only the first prints; a refusal or warning that several have is said once."""
    started, size = "RANK" in os.environ, int(os.environ.get("WORLD_SIZE", 1))
    if not distributed:
        if "TORCHELASTIC_RUN_ID" in os.environ and size > 1:
            raise RuleError(f"train: torchrun has started {size} processes, which would all do the same; pass --distributed, or start one")
        yield ALONE
        return
    if not started:
        raise RuleError(f"train: --distributed needs the processes that torchrun starts; write {COMMAND}")
    seconds = _seconds()
    if device != "cpu":
        _take_gpu()
    store, rank, size = next(rendezvous("env://"))
    dist.init_process_group("gloo" if device == "cpu" else "nccl", timeout=timedelta(seconds=seconds), store=store, rank=rank, world_size=size)
    console.out.quiet = rank > 0
    console.first_to_say = lambda text: store.add(f"said: {text}", 1) == 1
    try:
        yield Team(rank, size, device, seconds)
        dist.destroy_process_group()
    finally:
        console.out.quiet = False


def _seconds() -> float:
    text = os.environ.get(TIMEOUT, "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise RuleError(f"train: {TIMEOUT}={text!r} should be a number of seconds above 0")
    return seconds


def _take_gpu() -> None:
    place, there = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if place >= there:
        raise RuleError(f"train: process {place + 1} of this machine has no GPU of its own, torch sees {there}; pass --nproc-per-node {there}")
    torch.cuda.set_device(place)
