"""The main program of a rank, which `se_lab.training.launch` starts."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection

from se_lab.training.stopping import RESUME_ME, InterruptedTrialError, exit_on_signals


def main() -> int:
    """Run the requested work, send its result to the parent process, and return the exit status."""
    from se_lab.training.launch import PARENT, PIPE

    pipe = Connection(int(os.environ.pop(PIPE)))
    threading.Thread(target=_stop_after, args=(int(os.environ.pop(PARENT)),), daemon=True).start()
    try:
        pipe.send(("result", _work(json.loads(sys.argv[1]), pipe)))
    except InterruptedTrialError:
        return RESUME_ME
    except BaseException as error:
        pipe.send(("error", (_portable(error), traceback.format_exc())))
        return 1
    return 0


def _work(request: dict[str, object], pipe: Connection) -> object:
    from se_lab.spec import ExecSpec, run_spec
    from se_lab.spec.flags import import_plugins
    from se_lab.training.rehearse import rehearse
    from se_lab.training.run import run

    execution = ExecSpec(**request["execution"])  # type: ignore[arg-type]
    import_plugins(execution.plugins)  # before names in the spec are checked
    spec = run_spec(request["spec"])  # type: ignore[arg-type]

    def progress(row: Mapping[str, float]) -> None:
        try:
            pipe.send(("row", dict(row)))
            error = pipe.recv()
        except (EOFError, OSError):  # the parent process has ended, and `_stop_after` stops this one
            return
        if error is not None:
            raise error

    return rehearse(spec, execution) if request["work"] == "rehearse" else run(spec, execution, progress=progress)


def _portable(error: BaseException) -> BaseException:
    """Return an error if it can be pickled, else a RuntimeError with the same message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error's constructor can raise any exception
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _stop_after(parent: int) -> None:
    """Send SIGTERM to this process when the parent process has ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    with exit_on_signals():
        sys.exit(main())
