"""A SLURM cluster of one node, started in a scratch directory without systemd, for tests of what needs a real one."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket,cred_expire=5
CryptoType=crypto/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
MpiDefault=none
MailProg=/bin/true
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=test Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")


def missing() -> str:
    """Why there can be no cluster here, or nothing."""
    absent = [name for name in NEEDED if not shutil.which(name, path=_path())]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: slurm-wlm, munge)"
    return "" if os.geteuid() == 0 else "slurmd starts jobs as root only"


@contextmanager
def slurm_cluster(place: Path, cpus: int) -> Iterator[Mapping[str, str]]:
    """A running cluster; what the environment of its users needs."""
    for name in ("state", "spool"):
        (place / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    text = CONF.format(place=place, host=host, user="root", cpus=cpus, ports=_free_ports(2))
    (place / "slurm.conf").write_text(text)
    key = place / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    place.chmod(0o755)
    environment = os.environ | {"SLURM_CONF": str(place / "slurm.conf"), "PATH": _path()}
    files = [f"--{name}-file={place}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    daemons = []
    try:
        for command in (
            ["munged", "--foreground", "--force", f"--socket={place}/munge.socket", *files],
            ["slurmctld", "-D", "-i"],
            ["slurmd", "-D", "-N", host],
        ):
            log = (place / f"{command[0]}.out").open("wb")
            daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            _wait_until_up(command[0], place, environment)
        yield {"SLURM_CONF": environment["SLURM_CONF"], "PATH": environment["PATH"]}
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)


def _wait_until_up(daemon: str, place: Path, environment: Mapping[str, str]) -> None:
    asked = {"munged": ["munge", "-n", f"--socket={place}/munge.socket"], "slurmctld": ["scontrol", "ping"]}
    command = asked.get(daemon, ["sinfo", "--noheader", "--format=%t"])
    for _ in range(100):
        answer = subprocess.run(command, env=environment, capture_output=True, text=True)
        if answer.returncode == 0 and (daemon == "munged" or any(s in answer.stdout for s in ("is UP", "idle"))):
            return
        time.sleep(0.1)
    said = (place / f"{daemon}.out").read_text()
    raise RuntimeError(f"{daemon} does not answer: {answer.stdout}{answer.stderr}{said}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"
