"""Start the ranks of a trial on several devices, one process per device, and supervise them.

Each rank is a separate Python process that runs se_lab.training.rank, whether it is started by a command, a sweep's
worker or a notebook. The parent process forwards signals, and no rank outlives the others. Under torchrun, and under
srun with one task per device, the ranks are already running.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from se_lab.spec import ExecSpec, RunSpec, SpecError, TrainSpec
from se_lab.spec.command import module_command
from se_lab.training.failures import death
from se_lab.training.stopping import RESUME_ME, InterruptedTrialError, Stop, catch_signals

PIPE, PARENT = "SE_LAB_RANK_PIPE", "SE_LAB_RANK_PARENT"
"""Environment variables with the rank's end of the pipe to the parent process, and the parent's id."""
GRACE_SECONDS = 15.0
"""Time for the other ranks to exit after one has failed."""
STOP_SECONDS = 600.0
"""Time for a rank to write its checkpoint after it was asked to stop."""


class LostRankError(RuntimeError):
    """A rank's process ended without an error message."""


Progress = Callable[[Mapping[str, float]], None]


def launch(work: str, spec: RunSpec, execution: ExecSpec, progress: Progress | None = None) -> Any:
    """Start this node's ranks of a trial, wait until they exit, and return rank 0's result.

    Args:
        work: The work of each rank: "run" or "rehearse".
        spec: The trial.
        execution: Where and how the trial runs.
        progress: Called in this process with rank 0's rows; its errors are raised in rank 0.

    Raises:
        SpecError: for several nodes without the variables NODE_RANK, MASTER_ADDR and MASTER_PORT.
        LostRankError: if a rank ended without an error message.
        InterruptedTrialError: on SIGTERM, SIGUSR1, SIGHUP or SIGINT, when all ranks have exited.
        Exception: the first exception that a rank raised.
    """
    watch = _Watch(progress)
    with catch_signals(Stop(at_once=False)) as stop, _meeting_point(spec.train) as meeting:
        try:
            for local_rank in range(spec.train.devices):
                watch.ranks.append(_Rank(local_rank, work, spec, execution, meeting))
            watch.wait_for_all(stop)
        finally:
            for rank in watch.ranks:
                rank.kill()
    return watch.result(stopping=stop.asked)


@contextlib.contextmanager
def _meeting_point(train: TrainSpec) -> Iterator[dict[str, str]]:
    """Open the TCP store at which the ranks meet; yield environment variables for them."""
    env = os.environ
    host, port, node = "127.0.0.1", 0, 0
    if train.nodes > 1:
        if missing := [name for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in env]:
            raise SpecError(
                f"train.nodes is {train.nodes}: start the same command on each node with srun or torchrun, or set "
                f"{', '.join(missing)}"
            )
        host, port, node = env["MASTER_ADDR"], int(env["MASTER_PORT"]), int(env["NODE_RANK"])
    meeting = TCPStore(host, port, None, is_master=True, wait_for_workers=False) if node == 0 else None
    yield {
        "MASTER_ADDR": host,
        "MASTER_PORT": str(meeting.port if meeting is not None else port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # rank 0 uses this store, and opens no other
        "NODE_RANK": str(node),
        "GROUP_RANK": str(node),
        "WORLD_SIZE": str(train.ranks),
        "LOCAL_WORLD_SIZE": str(train.devices),
    }


class _Rank:
    """A handle for a rank in the parent process."""

    def __init__(self, local: int, work: str, spec: RunSpec, execution: ExecSpec, meeting: Mapping[str, str]) -> None:
        self.number = int(meeting["NODE_RANK"]) * spec.train.devices + local
        self.pipe, child_end = Pipe()
        self.open, self.killed = True, False
        request = json.dumps({"work": work, "spec": spec.flat(), "execution": dataclasses.asdict(execution)})
        numbers = {"RANK": str(self.number), "LOCAL_RANK": str(local)}
        parent = {PIPE: str(child_end.fileno()), PARENT: str(os.getpid())}
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        self._process = subprocess.Popen(
            module_command("se_lab.training.rank", request),
            env={**os.environ, **meeting, **numbers, **parent, "PYTHONPATH": path},
            pass_fds=[child_end.fileno()],
            start_new_session=True,  # Ctrl-C in the terminal goes to the parent process, which forwards it
        )
        child_end.close()

    @property
    def code(self) -> int | None:
        """The exit status of the process, negative for a signal, or None while it runs."""
        return self._process.poll()

    def messages(self) -> Iterator[tuple[str, Any]]:
        """Yield the messages received since the last call."""
        try:
            while self.open and self.pipe.poll():
                yield self.pipe.recv()
        except (EOFError, OSError):
            self.open = False

    def stop(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        if self.code is None:
            self.killed = True
            self._process.kill()
            self._process.wait()
        self.pipe.close()


class _Watch:
    """Supervises the ranks of a node until all have exited."""

    def __init__(self, progress: Progress | None) -> None:
        self.ranks: list[_Rank] = []
        self._progress = progress
        self._result: Any = None
        self._errors: list[BaseException] = []

    def wait_for_all(self, stop: Stop) -> None:
        stopping, deadline = False, float("inf")
        while any(rank.code is None or rank.open for rank in self.ranks):
            wait([rank.pipe for rank in self.ranks if rank.open], timeout=0.2)
            for rank in self.ranks:
                for kind, content in rank.messages():
                    self._take(rank, kind, content)
            codes = [rank.code for rank in self.ranks]
            if not stopping and (stop.asked or RESUME_ME in codes):
                stopping, deadline = True, time.monotonic() + STOP_SECONDS
                for rank in self.ranks:
                    rank.stop()
            if any(code not in (None, 0, RESUME_ME) for code in codes):
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
            if time.monotonic() > deadline:
                return

    def _take(self, rank: _Rank, kind: str, content: Any) -> None:
        if kind == "row":
            answer: Exception | None = None
            try:
                if self._progress is not None:
                    self._progress(content)
            except Exception as exception:  # such as StoppedEarlyError, which rank 0 raises again
                answer = exception
            with contextlib.suppress(OSError):
                rank.pipe.send(answer)
        elif kind == "error":
            error, trace = content
            error.__cause__ = RuntimeError(f"in rank {rank.number}:\n{trace}")
            self._errors.append(error)
        elif rank.number == 0:
            self._result = content

    def result(self, *, stopping: bool) -> Any:
        """Return rank 0's result, or raise the first error."""
        codes = [rank.code for rank in self.ranks]
        if stopping or RESUME_ME in codes:
            if divergences := [error for error in self._errors if isinstance(error, FloatingPointError)]:
                raise divergences[0]  # a resumed trial would diverge again
            if any(codes):
                raise InterruptedTrialError
            return self._result  # the signal came after the last batch
        for rank in self.ranks:
            if (code := rank.code) is not None and code < 0 and not rank.killed:
                raise LostRankError(f"rank {rank.number} of {len(self.ranks)} is lost: {death(code)}")
        if self._errors:
            raise self._errors[0]
        if lost_ranks := [rank for rank in self.ranks if rank.code]:
            raise LostRankError(
                f"rank {lost_ranks[0].number} of {len(self.ranks)} is lost: {death(lost_ranks[0].code or 0)}"
            )
        return self._result
