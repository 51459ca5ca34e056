"""Processes as torchrun starts them: trainers to start and kill, and workers that run functions of a test."""

import contextlib
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import firth

LIMIT = 60  # seconds for what should take a few
TORCHRUN = "import sys; from torch.distributed.run import main; sys.exit(main())"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def environment(rank, size, port, machines=1):
    """What torchrun puts into the environment of a process; here all machines are this one."""
    machine = rank * machines // size
    return {
        "TORCHELASTIC_RUN_ID": f"machine {machine}",  # tells the launchers apart
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size // machines),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
    }


def _base():
    paths = [str(Path(firth.__file__).parents[1]), str(Path(__file__).parent)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


class Started:
    """Processes that were started together, and what they say on standard error."""

    def __init__(self, commands, environments, folder):
        self.logs = [folder / f"log{rank}.txt" for rank in range(len(commands))]
        self.processes = []
        for command, given, log in zip(commands, environments, self.logs, strict=True):
            with log.open("wb") as file:
                self.processes.append(
                    subprocess.Popen(command, env={**_base(), **given}, stdout=file, stderr=subprocess.STDOUT)
                )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(LIMIT)

    def codes(self):
        """The exit codes, when all have ended."""
        return [process.wait(LIMIT) for process in self.processes]

    def said(self):
        """The sentences of firth."""
        lines = "\n".join(log.read_text() for log in self.logs).splitlines()
        return [line for line in lines if line.startswith("firth: ")]

    def wait_for(self, path, pattern, but=()):
        """Until a file that fits is there, other than those of ``but``; all must not have ended."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            found = set(path.glob(pattern)) - set(but) if path.is_dir() else set()
            if found:
                return found
            assert any(process.poll() is None for process in self.processes), self.logs[0].read_text()
            time.sleep(0.02)
        raise AssertionError(f"no {pattern} in {path} in time")


def start(size, arguments, folder, differing=None, machines=1):
    """``python -m firth ARGUMENTS`` in so many processes, as torchrun would; one may get others."""
    folder.mkdir(exist_ok=True)
    port = free_port()
    commands = [[sys.executable, "-m", "firth", *map(str, arguments)] for _ in range(size)]
    for rank, more in (differing or {}).items():
        commands[rank] += more
    environments = [environment(rank, size, port, machines) for rank in range(size)]
    return Started(commands, environments, folder)


def torchrun(size, arguments, folder, *options):
    """The launcher itself."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", TORCHRUN, "--standalone", "--nproc-per-node", str(size), *options]
    return Started([[*command, *map(str, arguments)]], [{}], folder)


# --- workers ------------------------------------------------------------------------------------------


def serve(rank, size, port, machines, pipe, module):
    """A worker: meets the others, then runs functions of a module with the group until it is told to end."""
    import importlib

    import torch

    from firth.processes import joined

    os.environ.update(environment(rank, size, port, machines))
    torch.set_num_threads(1)
    functions = importlib.import_module(module)
    with joined() as group:
        while (job := pipe.recv()) is not None:
            name, arguments = job
            try:
                result = getattr(functions, name)(group, *arguments)
            except (firth.errors.FirthError, AssertionError) as error:
                result = error
            pipe.send(result)


class Workers:
    """So many processes that stay, each a rank, on one machine or as if on several."""

    def __init__(self, size, module, machines=1):
        spawn = multiprocessing.get_context("forkserver")
        spawn.set_forkserver_preload(["firth.training.distributed", "torch", "firth.kernels.cpu"])
        port = free_port()
        self._pipes, self._processes = [], []
        for rank in range(size):
            here, there = spawn.Pipe()
            process = spawn.Process(
                target=serve, args=(rank, size, port, machines, there, module), daemon=True
            )
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def run(self, function, *arguments):
        """What ``function(group, *arguments)`` gives in each."""
        for pipe in self._pipes:
            pipe.send((function.__name__, arguments))
        results = []
        for pipe in self._pipes:
            assert pipe.poll(LIMIT), "a worker does not answer"
            results.append(pipe.recv())
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return results

    def end(self):
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join(10)
