"""A real Slurm of two nodes on this machine, for the tests: no systemd, nothing outside its folder.

The daemons of the Debian packages run side by side on ports of their own; a node is a slurmd that
claims 16 CPUs and 8 GPUs, which are device files that are as good as /dev/null. Partition ``high``
preempts ``low`` (the default) by requeueing its jobs.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch")
NEEDED_TO_ACCOUNT = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb")
NODES, CPUS, GPUS = 2, 16, 8

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
ReturnToService=2
InactiveLimit=0
KillWait=5
MinJobAge=300
EnforcePartLimits=ALL
SlurmctldTimeout=30
SlurmdTimeout=10
MessageTimeout=5
BatchStartTimeout=10
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/linux
{accounting}
JobCompType=jobcomp/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName=node[0-{last}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first_port}-{last_port}] \
CPUs={cpus} RealMemory=8000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=30 PriorityTier=1 State=UP
PartitionName=high Nodes=ALL MaxTime=INFINITE DefaultTime=30 PriorityTier=10 State=UP
"""


NO_ACCOUNTING = "AccountingStorageType=accounting_storage/none"
ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={folder}/run/munge.sock"""

DBD_CONFIGURATION = """\
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser={user}
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
PidFile={folder}/run/slurmdbd.pid
LogFile={folder}/log/slurmdbd.log
"""
SQL = """\
create database slurm_acct_db;
create user slurm@127.0.0.1 identified by 'slurm';
create user slurm@localhost identified by 'slurm';
grant all on slurm_acct_db.* to slurm@127.0.0.1; grant all on slurm_acct_db.* to slurm@localhost;
"""


class Unavailable(Exception):
    """Why there can be no cluster here."""


class SlurmCluster:
    """Started by :meth:`start`; clients find it by the variable SLURM_CONF.

    ``accounting``: with slurmdbd and a MariaDB of its own, without which ``sacct`` knows nothing.
    """

    def __init__(self, folder: Path, accounting: bool = False) -> None:
        self.folder, self.accounting = folder, accounting
        self.database: subprocess.Popen[bytes] | None = None
        self.configuration = folder / "slurm.conf"
        self.first_job = 1
        self.environment = {**os.environ, "SLURM_CONF": str(self.configuration)}

    def start(self) -> None:
        needed = (*NEEDED, *NEEDED_TO_ACCOUNT) if self.accounting else NEEDED
        missing = [name for name in needed if find(name) is None]
        if missing:
            raise Unavailable(f"Slurm is not installed ({', '.join(missing)}); see .ci/run")
        if os.getuid() != 0:
            raise Unavailable("fake GPUs are device files, which only root can make")
        for name in ("run", "log", "state", "dev"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        (self.folder / "run").chmod(0o755)
        try:
            for i in range(GPUS):
                os.mknod(self.folder / "dev" / f"nvidia{i}", 0o20666, os.makedev(1, 3))
        except PermissionError as error:
            raise Unavailable(f"this container may not make device files: {error}") from None
        self._configure()
        self._start_munge()
        if self.accounting:
            self._start_accounting()
        self.start_controller(forget=True)
        for node in range(NODES):
            self.start_node(node)
        self.wait_until(lambda: self.states() == ["idle"] * NODES, "idle nodes")

    def _configure(self) -> None:
        host, port = socket.gethostname().split(".")[0], free_ports(NODES + 3)
        places = {
            "folder": self.folder,
            "user": psutil.Process().username(),
            "dbd_port": port + NODES + 1,
            "sql_port": port + NODES + 2,
        }
        text = CONFIGURATION.format(
            **places,
            host=host,
            accounting=(ACCOUNTING if self.accounting else NO_ACCOUNTING).format(**places),
            port=port,
            first_port=port + 1,
            last_port=port + NODES,
            last=NODES - 1,
            cpus=CPUS,
            gpus=GPUS,
        )
        self.configuration.write_text(text)
        (self.folder / "slurmdbd.conf").write_text(DBD_CONFIGURATION.format(**places))
        (self.folder / "slurmdbd.conf").chmod(0o600)
        self.dbd_port, self.sql_port = port + NODES + 1, port + NODES + 2
        gpus = f"Name=gpu File={self.folder}/dev/nvidia[0-{GPUS - 1}]"
        (self.folder / "gres.conf").write_text(f"NodeName=node[0-{NODES - 1}] {gpus}\n")

    def _start_munge(self) -> None:
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        places = {
            "key-file": key,
            "socket": self.folder / "run" / "munge.sock",
            "pid-file": self.folder / "run" / "munged.pid",
            "log-file": self.folder / "log" / "munged.log",
            "seed-file": self.folder / "munge.seed",
        }
        self._daemon("munged", *(f"--{name}={path}" for name, path in places.items()))

    def _start_accounting(self) -> None:
        """MariaDB, an empty database in it, and slurmdbd."""
        data, socket_file = self.folder / "mysql", self.folder / "run" / "mysqld.sock"
        mine = ["--no-defaults", f"--user={psutil.Process().username()}", f"--datadir={data}"]
        self._daemon(
            *("mariadb-install-db", *mine),
            *("--auth-root-authentication-method=normal", "--skip-test-db"),
        )
        server = find("mariadbd")
        assert server is not None
        options = [f"--socket={socket_file}", f"--pid-file={self.folder}/run/mariadbd.pid"]
        options += ["--bind-address=127.0.0.1", f"--port={self.sql_port}"]
        with (self.folder / "log" / "mariadbd.log").open("w") as log:
            self.database = subprocess.Popen([server, *mine, *options], stdout=log, stderr=log)
        client = ["mariadb", "--no-defaults", f"--socket={socket_file}", "-uroot"]

        def sql(text: str) -> bool:
            done = subprocess.run([*client, "-e", text], capture_output=True, check=False)
            return done.returncode == 0

        self.wait_until(lambda: sql("select 1"), "MariaDB")
        assert sql(SQL)
        environment = {**self.environment, "SLURM_CONF": str(self.folder / "slurmdbd.conf")}
        self._daemon("slurmdbd", environment=environment)
        self.wait_until(lambda: listening(self.dbd_port), "slurmdbd")

    def start_controller(self, forget: bool = False) -> None:
        """``forget``: without the jobs and nodes that the last one knew.

        It counts jobs on, from a higher number: a node that still remembers job 16 would refuse
        another one, and be drained.
        """
        self.first_job += 1000 if forget else 0
        configuration = self.folder / "slurmctld.conf"
        own = f"{self.configuration.read_text()}FirstJobId={self.first_job}\n"
        configuration.write_text(own)
        self._daemon("slurmctld", "-f", str(configuration), *(["-c"] if forget else []))

    def start_node(self, node: int) -> None:
        (self.folder / f"spool.node{node}").mkdir(exist_ok=True)
        self._daemon("slurmd", "-f", str(self.configuration), "-N", f"node{node}")

    def kill(self, daemon: str, how: signal.Signals = signal.SIGKILL) -> None:
        """End ``slurmctld`` or ``node0``: by SIGKILL as a crash would, by SIGTERM as a restart."""
        pid_file = self.folder / "run" / f"{daemon}.pid"
        pid = int(pid_file.read_text())
        os.kill(pid, how)
        self.wait_until(lambda: not alive(pid), f"the end of {daemon}")
        pid_file.unlink(missing_ok=True)

    def crash(self, node: int) -> None:
        """As a power cut: slurmd, and all that its jobs run there, are gone."""
        self.kill(f"node{node}")
        for process in psutil.process_iter():
            try:
                if process.environ().get("SLURMD_NODENAME") != f"node{node}":
                    continue
                for parent in process.parents():
                    if parent.name() == "slurmstepd":
                        parent.kill()
                process.kill()
            except psutil.Error:
                continue

    def ask(self, *command: str) -> str:
        """The output of a Slurm command, as a user would type it."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout.strip()

    def states(self) -> list[str]:
        return self.ask("sinfo", "-h", "-N", "-p", "low", "-o", "%t").split()

    def recover(self) -> None:
        """Whatever a test did: no jobs, all daemons up, all nodes idle."""
        for daemon in ("slurmctld", *(f"node{i}" for i in range(NODES))):
            pid_file = self.folder / "run" / f"{daemon}.pid"
            if not (pid_file.is_file() and alive(int(pid_file.read_text()))):
                if daemon == "slurmctld":
                    self.start_controller()
                else:
                    self.start_node(int(daemon.removeprefix("node")))
        self.ask("scancel", "--me")
        self.ask("scancel", "--me", "--signal=KILL", "--full")
        self.wait_until(lambda: not self.ask("squeue", "-h"), "an empty queue")
        for i in range(NODES):
            self.ask("scontrol", "update", f"nodename=node{i}", "state=resume")
        self.wait_until(lambda: self.states() == ["idle"] * NODES, "idle nodes")

    def stop(self) -> None:
        """End the daemons, then what their jobs have left."""
        self.ask("scancel", "--me", "--signal=KILL", "--full")
        for pid_file in sorted((self.folder / "run").glob("*.pid")):
            try:
                os.kill(int(pid_file.read_text()), signal.SIGKILL)
            except (ProcessLookupError, ValueError):
                continue
        if self.database is not None:
            self.database.wait()
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("SLURM_CONF") == str(self.configuration)
                if mine and process.pid != os.getpid():
                    process.kill()
            except psutil.Error:
                continue
        shutil.rmtree(self.folder, ignore_errors=True)

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds:.0f} s for {what}\n{self.report()}")
            time.sleep(0.1)

    def report(self) -> str:
        logs = [path.read_text()[-1000:] for path in (self.folder / "log").glob("*.log")]
        return "\n".join([self.ask("sinfo", "-N", "-l"), self.ask("squeue"), *logs])

    def _daemon(
        self, name: str, *arguments: str, environment: dict[str, str] | None = None
    ) -> None:
        program = find(name)
        assert program is not None
        done = subprocess.run(
            [program, *arguments],
            env=environment or self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise Unavailable(f"{name} does not start here: {done.stdout.strip()[-500:]}")


def find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin")


def free_ports(count: int) -> int:
    """The first of ``count`` ports in a row that nobody uses, below those that jobs use."""
    while True:
        first = random.randrange(15000, 19900)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
