"""A server in a process of its own, for what asks it; see serving.py."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import psutil


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    process: psutil.Process
    address: str
    models: list[str]

    def client(self) -> openai.OpenAI:
        """OpenAI's own client of it."""
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0, timeout=300)


@contextmanager
def serving(runs: list[Path], *options: str) -> Iterator[Server]:
    """Serve runs on a free port; the server must end by itself when it is told to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ftbench", "serve", *map(str, runs), "--port", str(port), *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        address = f"http://127.0.0.1:{port}"
        log: list[str] = []
        assert process.stderr
        threading.Thread(target=lambda lines=process.stderr: log.extend(lines), daemon=True).start()
        try:
            while process.poll() is None:
                try:
                    httpx.get(f"{address}/healthz").raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(0.5)
            else:
                sys.exit("".join(log))
            listed = httpx.get(f"{address}/v1/models").json()["data"]
            yield Server(psutil.Process(process.pid), address, [model["id"] for model in listed])
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
    if code:
        sys.exit(f"the server ended with {code}: {''.join(log)}")
