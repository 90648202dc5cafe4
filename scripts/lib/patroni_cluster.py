"""Runs a PostgreSQL cluster that fails over, for tests: two nodes under Patroni, etcd, and HAProxy in front.

    patroni_cluster.py up DIR [--venv VENV]            starts all, waits for the sync standby, prints a line of JSON
    patroni_cluster.py kill-leader DIR [--expire]      kills the leader as if its machine were lost, prints its name
    patroni_cluster.py restart-dead DIR                starts the killed node, waits until it is the sync standby
    patroni_cluster.py switchover DIR                  hands over in good order, waits likewise, prints the new leader
    patroni_cluster.py demote-in-place DIR [--undo]    makes the leader refuse writes, on open connections too
    patroni_cluster.py leader DIR                      prints the name of the leader; fails while there is none
    patroni_cluster.py down DIR                        stops everything; data and logs stay

A dead leader keeps its lock for 20 s, Patroni's minimum; `--expire` ends the lock at once. Needs what
scripts/lib/patroni.sh installs. Everything listens on loopback only. Nothing is synced to disk.
"""

import argparse
import base64
import contextlib
import http.client
import json
import os
import pathlib
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

HOST = "127.0.0.1"
NODES = ("node1", "node2")
# A shorter retry_timeout would not make a failover any quicker, but a busy machine would cause one sooner.
# Patroni wants loop_wait + 2 * retry_timeout to be ttl at most.
TIMES = {"ttl": 20, "loop_wait": 1, "retry_timeout": 9}
# Seconds for one step on a busy machine.
PATIENCE = 120
# Whom everything runs as where this runs as root, which PostgreSQL refuses.
NOBODY = 65534
# Nothing else is handed on: all these programs take settings from the environment.
DEBIAN = sorted(map(str, pathlib.Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
PATH = ":".join([os.environ.get("PATH", ""), "/usr/sbin", *DEBIAN])
ENVIRONMENT = {"PATH": PATH, "LANG": "C.UTF-8"}

HAPROXY = """\
defaults
    mode tcp
    retries 0
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    timeout check 2s
listen broker
    bind {host}:{port}
    option httpchk GET /primary
    default-server inter 500ms fastinter 100ms fall 2 rise 1 on-marked-down shutdown-sessions
"""


def program(name):
    return shutil.which(name, path=PATH) or sys.exit(f"{name} is not installed")


def free_ports(count):
    """Ports that are still free when a killed node comes back: between those that tests/integration/harness/ports.rs
    gives and those that the system does."""
    with contextlib.ExitStack() as held:
        ports = []
        for port in random.sample(range(31_000, 32_768), 1_768):
            with contextlib.suppress(OSError):
                held.enter_context(socket.socket()).bind((HOST, port))
                ports.append(port)
            if len(ports) == count:
                return ports
    sys.exit("too few free ports")


def ask(port, path, body=None):
    """The status and the text of an answer over HTTP; (None, "") where there is none."""
    request = urllib.request.Request(f"http://{HOST}:{port}{path}", body and json.dumps(body).encode())
    without_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with without_proxy.open(request, timeout=PATIENCE if body else 5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except (OSError, http.client.HTTPException):
        return None, ""


def wait_until(what, condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"waited {PATIENCE} s in vain until {what}")
        time.sleep(0.1)


def process_status(pid):
    """The fields of /proc/PID/stat from the state on; None where the process has ended."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields


def birth(pid):
    """Tells a process from a later one of the same id."""
    return (process_status(pid) or [None] * 20)[19]


def family(heads):
    """These processes and all that descend from them: in PostgreSQL, each has a session of its own."""
    everyone = [int(folder.name) for folder in pathlib.Path("/proc").glob("[0-9]*")]
    parents = {pid: int(fields[1]) for pid in everyone if (fields := process_status(pid))}
    found = set(heads)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def send(which, pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, which)


class Cluster:
    def __init__(self, folder):
        self.folder = pathlib.Path(folder).resolve()
        self.file = self.folder / "state.json"
        self.state = json.loads(self.file.read_text()) if self.file.exists() else None

    def start(self, name, *command):
        command = [str(word) for word in command]
        if os.geteuid() == 0:
            # It may read what only root can: Python, Patroni and DIR may be in folders closed to others.
            may_read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
            command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *may_read, *command]
        with open(self.folder / f"{name}.log", "a") as log:
            process = subprocess.Popen(
                command, cwd="/", env=ENVIRONMENT, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )
        self.state["processes"][name] = [process.pid, birth(process.pid)]
        self.file.write_text(json.dumps(self.state, indent=2))

    def start_node(self, name):
        self.start(name, f"{self.state['venv']}/bin/python", "-m", "patroni", self.folder / f"{name}.yml")

    def running(self, name):
        """The ids of what was started under this name, and of its PostgreSQL."""
        pid, born = self.state["processes"].get(name, (0, None))
        found = [pid] if born and birth(pid) == born else []
        with contextlib.suppress(OSError, ValueError):
            data = self.folder / name / "data"
            pid = int((data / "postmaster.pid").read_text().partition("\n")[0])
            # The file outlives a server that was killed.
            if process_status(pid) and os.readlink(f"/proc/{pid}/cwd") == str(data):
                found.append(pid)
        return found

    def kill(self, *names):
        heads = [pid for name in names for pid in self.running(name)]
        # What is held still starts nothing while its descendants are looked for. It ends after them, so that
        # none has the time to show its client so.
        send(signal.SIGSTOP, heads)
        send(signal.SIGKILL, sorted(family(heads), key=heads.__contains__))
        wait_until(f"{names} have ended", lambda: not any(map(self.running, names)))

    def port(self, of):
        return self.state["ports"][of]

    def is_a(self, name, role):
        return ask(self.port(f"{name} rest"), f"/{role}")[0] == 200

    def leader(self):
        return next((name for name in NODES if self.is_a(name, "primary")), None)

    def the_leader(self):
        return self.leader() or sys.exit("there is no leader")

    def wait_all_alive(self, what, condition):
        def is_met():
            for name in self.state["processes"]:
                if not self.running(name):
                    sys.exit(f"{name} has ended: see {self.folder / name}.log")
            return condition()

        wait_until(what, is_met)

    def wait_for_sync_standby(self):
        def is_there():
            return self.leader() and any(self.is_a(name, "sync") for name in NODES)

        self.wait_all_alive("there are a leader and its sync standby", is_there)

    def url(self, of, user, database):
        return f"postgres://{user}:{self.state['password']}@{HOST}:{self.port(of)}/{database}"

    def sql(self, url, *statements):
        """Whether psql runs them; each is a transaction."""
        commands = [word for statement in statements for word in ("-c", statement)]
        psql = [program("psql"), "-Xq", "-v", "ON_ERROR_STOP=1", *commands, f"{url}?connect_timeout=5"]
        ended = subprocess.run(psql, check=False, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True)
        return ended.returncode == 0

    def make_folder(self, name):
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        return folder

    def write_node(self, name):
        folder, password = self.make_folder(name), self.state["password"]
        rest, postgresql = (f"{HOST}:{self.port(f'{name} {of}')}" for of in ("rest", "postgresql"))
        # With `mmap`, a server that was killed leaves no files in /dev/shm.
        memory = {"dynamic_shared_memory_type": "mmap"}
        parameters = {"max_connections": 300, "fsync": "off", "unix_socket_directories": "", **memory}
        shared = {
            **TIMES,
            "synchronous_mode": True,
            # The sync standby has what counts, although the leader wrote more, which it did not confirm.
            "maximum_lag_on_failover": 2**30,
            "postgresql": {"use_pg_rewind": True, "parameters": parameters},
        }
        server = {
            "listen": postgresql,
            "connect_address": postgresql,
            "bin_dir": str(pathlib.Path(program("postgres")).resolve().parent),
            "data_dir": str(folder / "data"),
            "pgpass": str(folder / "pgpass"),
            "pg_hba": [f"host {what} all {HOST}/32 scram-sha-256" for what in ("all", "replication")],
            "authentication": {
                "superuser": {"username": "postgres", "password": password},
                "replication": {"username": "replicator", "password": password},
            },
            "basebackup": [{"checkpoint": "fast"}, "no-sync"],
            "remove_data_directory_on_rewind_failure": True,
            "remove_data_directory_on_diverged_timelines": True,
        }
        settings = {
            "scope": "broker",
            "name": name,
            "etcd3": {"host": f"{HOST}:{self.port('etcd')}"},
            "restapi": {"listen": rest, "connect_address": rest},
            "bootstrap": {"dcs": shared, "initdb": [{"encoding": "UTF8"}, "data-checksums", "no-sync"]},
            "postgresql": server,
        }
        # JSON is YAML, too.
        (self.folder / f"{name}.yml").write_text(json.dumps(settings, indent=2))

    def start_etcd(self):
        clients, peers = (f"http://{HOST}:{self.port(of)}" for of in ("etcd", "etcd peer"))
        self.start(
            "etcd", program("etcd"), f"--data-dir={self.make_folder('etcd')}", f"--initial-cluster=default={peers}",
            f"--listen-client-urls={clients}", f"--advertise-client-urls={clients}",
            f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}",
        )
        self.wait_all_alive("etcd answers", lambda: ask(self.port("etcd"), "/health")[0] == 200)

    def start_haproxy(self):
        settings = HAPROXY.format(host=HOST, port=self.port("haproxy"))
        for name in NODES:
            rest, postgresql = self.port(f"{name} rest"), self.port(f"{name} postgresql")
            settings += f"    server {name} {HOST}:{postgresql} check port {rest}\n"
        (self.folder / "haproxy.cfg").write_text(settings)
        self.start("haproxy", program("haproxy"), "-db", "-f", self.folder / "haproxy.cfg")

    def start_all(self):
        self.start_etcd()
        for name in NODES:
            self.write_node(name)
        self.start_node("node1")
        self.wait_all_alive("the first node leads", self.leader)
        url = self.url("node1 postgresql", "postgres", "postgres")
        role = f"CREATE ROLE broker LOGIN PASSWORD '{self.state['password']}'"
        if not self.sql(url, role, "CREATE DATABASE broker OWNER broker"):
            sys.exit("the database could not be made")
        self.start_node("node2")
        self.start_haproxy()
        self.wait_for_sync_standby()
        url = self.url("haproxy", "broker", "broker")
        self.wait_all_alive("HAProxy leads there", lambda: self.sql(url, "SELECT 1"))

    def up(self, venv):
        if self.state:
            sys.exit(f"{self.folder} has a cluster already")
        uses = ["etcd", "etcd peer", "haproxy", *(f"{name} {of}" for name in NODES for of in ("rest", "postgresql"))]
        self.state = {
            "venv": str(venv.absolute()),
            "password": secrets.token_hex(16),
            "ports": dict(zip(uses, free_ports(len(uses)))),
            "processes": {},
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.start_all()
        except BaseException:
            self.down()
            raise
        nodes = [{
            "name": name,
            "patroni_pid": self.state["processes"][name][0],
            "rest": f"http://{HOST}:{self.port(f'{name} rest')}",
            "pg_port": self.port(f"{name} postgresql"),
        } for name in NODES]
        print(json.dumps({"url": self.url("haproxy", "broker", "broker"), "nodes": nodes}))

    def kill_leader(self, expire):
        name = self.the_leader()
        self.kill(name)
        if expire:
            key = base64.b64encode(b"/service/broker/leader").decode()
            lock = json.loads(ask(self.port("etcd"), "/v3/kv/range", {"key": key})[1])["kvs"][0]
            ask(self.port("etcd"), "/v3/lease/revoke", {"ID": lock["lease"]})
        print(name)

    def restart_dead(self):
        # Until another node leads, it would find its own lock and lead again.
        wait_until("another node leads", self.leader)
        for name in NODES:
            if not self.running(name):
                self.start_node(name)
        self.wait_for_sync_standby()

    def switchover(self):
        leader = self.the_leader()
        candidate = next(name for name in NODES if name != leader)
        wish = {"leader": leader, "candidate": candidate}
        status, answer = ask(self.port(f"{leader} rest"), "/switchover", wish)
        if status != 200:
            sys.exit(f"Patroni answers {status}: {answer}")
        self.wait_for_sync_standby()
        print(self.the_leader())

    def demote_in_place(self, undo):
        """Writes then fail with 25006, as on a standby; but pg_is_in_recovery() stays false."""
        change = "RESET default_transaction_read_only" if undo else "SET default_transaction_read_only = on"
        for name in filter(self.running, NODES) if undo else [self.the_leader()]:
            url = self.url(f"{name} postgresql", "postgres", "postgres")
            if not self.sql(url, f"ALTER SYSTEM {change}", "SELECT pg_reload_conf()"):
                sys.exit(f"{name} could not be changed")

    def down(self):
        self.kill("haproxy", *NODES, "etcd")
        for name in NODES:
            # A server that was killed leaves a little shared memory. Its id stands at the end of line 7.
            with contextlib.suppress(OSError, IndexError):
                lines = (self.folder / name / "data" / "postmaster.pid").read_text().splitlines()
                subprocess.run(["ipcrm", "-m", lines[6].split()[-1]], check=False, stderr=subprocess.DEVNULL)
        self.file.unlink(missing_ok=True)


def main():
    commands = {
        "up": lambda: cluster.up(wanted.venv),
        "kill-leader": lambda: cluster.kill_leader(wanted.expire),
        "restart-dead": lambda: cluster.restart_dead(),
        "switchover": lambda: cluster.switchover(),
        "demote-in-place": lambda: cluster.demote_in_place(wanted.undo),
        "leader": lambda: print(cluster.the_leader()),
        "down": lambda: cluster.down(),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--venv", type=pathlib.Path, default=pathlib.Path(__file__).parents[2] / ".tools/patroni")
    parser.add_argument("--expire", action="store_true")
    parser.add_argument("--undo", action="store_true")
    wanted = parser.parse_args()
    cluster = Cluster(wanted.folder)
    if cluster.state or wanted.command == "up":
        commands[wanted.command]()
    elif wanted.command != "down":
        sys.exit(f"{wanted.folder} has no cluster")


if __name__ == "__main__":
    main()
