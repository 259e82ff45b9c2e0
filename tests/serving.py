"""A real server in this process, for tests: a tiny model under two names, on a free port."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ftbench.models.chat import ChatFormat
from ftbench.models.loading import load_model, load_tokenizer
from ftbench.serving.limits import Limits
from ftbench.serving.served import Served
from ftbench.serving.server import listen, make_server
from made_results import make_run

LIMITS = Limits(body_bytes=50_000, prompt_tokens=400, reply_tokens=64, rows=4, cache_tokens=2048, queue=6, seconds=30.0)


def serve_tiny(folder: Path, name: str, *, seed: int = 0, packed: bool = True, system: str | None = None) -> Served:
    """A tiny model that says many things, as a run's; its random weights are made larger, or it would repeat itself."""
    model = load_model(folder, torch.device("cpu"))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
        table = model.get_input_embeddings().get_parameter("weight")
        table.add_(torch.randn_like(table) * 0.05)
    run = make_run(name, model=str(folder))
    return Served(name, run, model, ChatFormat(load_tokenizer(folder), system), packed)


@contextmanager
def server(models: list[Served], limits: Limits = LIMITS, key: str | None = None) -> Iterator[str]:
    """Serve, and give the address."""
    with listen("127.0.0.1", 0) as socket:
        running = make_server(models, limits, key)
        thread = threading.Thread(target=running.run, args=([socket],), daemon=True)
        thread.start()
        while not running.started:
            assert thread.is_alive()
            thread.join(0.02)
        try:
            yield f"http://127.0.0.1:{socket.getsockname()[1]}"
        finally:
            running.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
