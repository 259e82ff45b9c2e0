"""`ftbench serve RUN [RUN...]`."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ftbench.cli.common import out_option, quieten_libraries, registry_with_warnings, warn

if TYPE_CHECKING:
    from ftbench.serving.limits import Limits
    from ftbench.serving.served import Served


@click.command(name="serve")
@click.argument("runs", nargs=-1, required=True)
@out_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address; one beyond this machine needs a key.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option("--api-key", envvar="FTBENCH_API_KEY", help="That clients must send. Also FTBENCH_API_KEY.")
@click.option("--max-rows", default=32, show_default=True, type=click.IntRange(1, 512), help="Replies at a time.")
@click.option("--max-queue", default=64, show_default=True, type=click.IntRange(1), help="Requests that wait.")
@click.option("--max-prompt", default=4096, show_default=True, type=click.IntRange(1), help="Tokens of a conversation.")
@click.option("--max-reply", default=1024, show_default=True, type=click.IntRange(1), help="Tokens of a reply.")
@click.option(
    "--max-cache",
    default=32_768,
    show_default=True,
    type=click.IntRange(64),
    help="Tokens kept for all rows of a model.",
)
@click.option("--timeout", default=120.0, show_default=True, type=click.FloatRange(1), help="Seconds for a reply.")
def command(
    runs: tuple[str, ...],
    out: Path,
    host: str,
    port: int,
    api_key: str | None,
    max_rows: int,
    max_queue: int,
    max_prompt: int,
    max_reply: int,
    max_cache: int,
    timeout: float,
) -> None:
    """Serve the models of RUNS: an OpenAI-compatible endpoint, and a chat page at /.

    A run is a folder, or the beginning of a name in --out. What is served is what was measured: the same weights,
    precision, chat format and system prompt, greedy unless a request says otherwise.
    """
    from ftbench.serving.server import check_address, give_memory_back, listen, make_server, require_libraries

    require_libraries()
    check_address(host, api_key)
    give_memory_back()
    with listen(host, port) as socket:  # a busy port shows before models are loaded
        from ftbench.serving.limits import Limits

        limits = Limits(
            prompt_tokens=max_prompt,
            reply_tokens=max_reply,
            rows=max_rows,
            cache_tokens=max_cache,
            queue=max_queue,
            seconds=timeout,
        )
        models = _load(runs, out)
        _announce(models, socket.getsockname()[:2], api_key, limits)
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again once it has ended
            make_server(models, limits, api_key).run([socket])
    click.echo("stopped", err=True)


def _load(names: tuple[str, ...], out: Path) -> "list[Served]":
    from ftbench.execution.reloading import check_servable, reload_run
    from ftbench.results.store import find_run
    from ftbench.serving.served import Served, name_runs

    registry = registry_with_warnings()
    found = [find_run(name, out, ok=True) for name in names]
    unique = list({run.folder.resolve(): run for run in found}.values())
    for run in unique:
        check_servable(run, registry)
    quieten_libraries()
    models = []
    for name, run in zip(name_runs(unique), unique, strict=True):
        click.echo(f"loading {name}", err=True)
        reloaded = reload_run(run, registry)
        warn(f"{name}: {line}; replies may differ from those recorded" for line in reloaded.changed)
        models.append(Served(name, run, reloaded.model, reloaded.chat, reloaded.packed))
    return models


def _announce(models: "list[Served]", address: tuple[str, int], key: str | None, limits: "Limits") -> None:
    from ftbench.memory.budget import format_bytes
    from ftbench.serving.guarding import LOOPBACK

    host, port = address
    if host not in LOOPBACK:
        warn([f"{host} can be reached from other machines; whoever has the key can ask, and nothing is encrypted here"])
    for served in models:
        held = sum(tensor.nbytes for tensor in (*served.model.parameters(), *served.model.buffers()))
        how = f"up to {limits.rows} replies at a time" if served.together else "one reply at a time"
        click.echo(f"{served.name}: {format_bytes(held)}, {how}", err=True)
    shown = f"[{host}]" if ":" in host else host
    click.echo(
        f"http://{shown}:{port}/ (page), /v1 (OpenAI's API{', with the key' if key else ''}), /healthz, /metrics"
    )
