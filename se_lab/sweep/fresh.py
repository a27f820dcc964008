"""A sweep from a process that can fork no workers, such as a notebook that has trained: a new Python runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from se_lab.spec import ExecSpec, RunSpec, SpecError, run_spec
from se_lab.spec.flags import import_plugins
from se_lab.sweep.child import end_with, told_to_stop

if TYPE_CHECKING:
    from se_lab.sweep.execute import Event, View
    from se_lab.sweep.trial_process import Outcome


def execute_afresh(view: View, **work: Any) -> list[Outcome]:
    """Return what `execute` returns for these arguments in a new Python, and hand its events to the view.

    Raises:
        SpecError: also for an operator that no plugin of the execution adds, only this process.
        RuntimeError: where that Python dies.
    """
    ours, theirs = Pipe()
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-m", "se_lab.sweep.fresh", str(theirs.fileno()), str(os.getpid())],
        env={**os.environ, "PYTHONPATH": path},
        pass_fds=[theirs.fileno()],
        start_new_session=True,  # the terminal's Ctrl-C goes to this process, which passes it on
    )
    theirs.close()
    with ours, told_to_stop() as stop:
        told = False
        try:
            ours.send(work)
            while True:
                if stop.is_set() and not told:
                    told = True
                    process.terminate()
                if not ours.poll(0.2):
                    continue
                kind, content = ours.recv()
                if kind == "outcomes":
                    outcomes: list[Outcome] = content
                    return outcomes
                if kind == "error":
                    raise content
                view(content)
        except (EOFError, ConnectionError):
            if told:  # it was still importing
                return _none_begun(work["trials"])
            raise RuntimeError(f"the sweep's Python ended with status {process.wait()} and no word") from None
        except BaseException:  # of the view's
            process.terminate()
            raise
        finally:
            ours.close()
            process.wait()


def _none_begun(trials: Sequence[RunSpec]) -> list[Outcome]:
    from se_lab.sweep.trial_process import Outcome

    return [Outcome(trial, "not started") for trial in trials]


def _main(pipe: Connection, parent: int) -> None:
    from se_lab.sweep.execute import execute_here

    end_with(parent)
    work: dict[str, Any] = pipe.recv()

    def view(event: Event) -> None:
        pipe.send(("event", event))

    try:
        _check_operators(work["trials"], work["execution"])
        answer = ("outcomes", execute_here(view=view, **work))
    except Exception as error:
        pipe.send(("error", error))
        return
    pipe.send(answer)


def _check_operators(trials: Sequence[RunSpec], execution: ExecSpec) -> None:
    import_plugins(execution.plugins)
    try:
        for trial in trials:
            run_spec(trial.flat())
    except SpecError as error:
        raise SpecError(
            f"{error}. This process has trained, so its sweep runs in a new Python, which knows operators of plugins "
            "alone: put yours into a module and name that as plugins"
        ) from None


if __name__ == "__main__":
    _main(Connection(int(sys.argv[1])), int(sys.argv[2]))
