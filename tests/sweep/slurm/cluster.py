"""A real Slurm on this host, as two nodes: Debian's slurm-wlm and munge, in a folder and on ports of its own.

    python tests/slurm/cluster.py                     # a shell in it
    python tests/slurm/cluster.py sinfo --long        # or one command

Whatever it starts is stopped when the shell or the command ends, and the folder is removed.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "squeue", "scontrol")
NODES = ("n1", "n2")

CONF = """
ClusterName=selab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# a requeued job waits until its old credential has expired: by default two minutes
AuthInfo=socket={folder}/munge.socket,cred_expire=6
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/%n
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# the two nodes are one host, whose cores they both claim
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
KillWait=10
MinJobAge=10
SchedulerParameters=sched_interval=2,batch_sched_delay=0,bf_interval=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000
# a job of the partition urgent takes the place of those of main, which are told, and go back into the queue
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=5
PartitionName=urgent Nodes=n1,n2 MaxTime=60 State=UP PriorityTier=2 PreemptMode=OFF
"""


def missing() -> list[str]:
    """Return the programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


@contextlib.contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Yield the environment in which srun, sbatch and the others reach a Slurm of two nodes."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # the path of a socket may not be long
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
    environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    daemons: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        with (folder / "daemons.log").open("ab") as log:
            daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL))

    try:
        (folder / "slurm.conf").write_text(
            CONF.format(
                host=socket.gethostname().split(".")[0], ports=_free_ports(3), folder=folder, user=getpass.getuser()
            )
        )
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        for name in ("state", *NODES):
            (folder / name).mkdir()
        (folder / "munge").mkdir(mode=0o700)
        options = {
            "key": "munge.key",
            "socket": "munge.socket",
            "pid": "munge/pid",
            "log": "munge/log",
            "seed": "munge/seed",
        }
        files = [f"--{name}{'' if name == 'socket' else '-file'}={folder / file}" for name, file in options.items()]
        start("munged", "--foreground", "--force", *files)
        _until(lambda: (folder / "munge.socket").exists(), daemons, folder)
        start("slurmctld", "-D", "-c")
        for node in NODES:
            start("slurmd", "-D", "-N", node)

        def up() -> bool:
            said = subprocess.run(
                ["sinfo", "-hN", "-p", "main", "-o", "%t"], env=environment, capture_output=True, text=True
            )
            return said.stdout.split() == ["idle"] * len(NODES)

        _until(up, daemons, folder)
        yield environment
    finally:
        _stop(daemons, folder)


def _stop(daemons: list[subprocess.Popen[bytes]], folder: Path) -> None:
    for daemon in daemons:  # nothing that they would have to save is kept
        daemon.kill()
        daemon.wait()
    while left := _started_in(folder):  # steps, and what they run
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.1)
    shutil.rmtree(folder, ignore_errors=True)


def _started_in(folder: Path) -> set[int]:
    """Return the processes that were started in this Slurm: its configuration is in their environment."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"SLURM_CONF={folder}/".encode() in (process / "environ").read_bytes():
                found.add(int(process.name))
    return found


def _until(true: object, daemons: list[subprocess.Popen[bytes]], folder: Path, seconds: float = 30) -> None:
    assert callable(true)
    end = time.monotonic() + seconds
    while not true():
        dead = [daemon.args for daemon in daemons if daemon.poll() is not None]
        if dead or time.monotonic() > end:
            logs = "\n".join(f"{log}:\n{log.read_text()[-2000:]}" for log in folder.rglob("*log"))
            raise RuntimeError(f"Slurm did not come up; ended: {dead}\n{logs}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


if __name__ == "__main__":
    if missing():
        sys.exit(f"not installed: {', '.join(missing())}; on Debian: apt-get install slurm-wlm munge")
    with cluster() as inside:
        sys.exit(subprocess.run(sys.argv[1:] or [os.environ.get("SHELL", "bash")], env=inside).returncode)
