"""Runs at a URL, against a real S3-compatible server on loopback: whole or not there, each under its own name."""

import json
import shutil
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from ftbench.cli.asking import _find_start
from ftbench.cli.running import Runner
from ftbench.errors import FtbenchError, UsageError
from ftbench.execution.attempt import Ticket, attempt
from ftbench.execution.launcher import Order
from ftbench.execution.machine import LocalLauncher
from ftbench.execution.reuse import Inputs
from ftbench.execution.starting import find_start
from ftbench.execution.unfinished import state_file
from ftbench.files import write_text
from ftbench.plugins import load_plugins
from ftbench.recipe import Recipe
from ftbench.results import remote
from ftbench.results.address import OUTBOX, URL_FILE, address_of, outbox
from ftbench.results.delivery import deliver, send_waiting
from ftbench.results.mirror import CLAIM, Mirror, inside, locate, open_store, with_weights
from ftbench.results.remote import open_remote
from ftbench.results.show import repeat_command
from ftbench.results.store import LAUNCH, MODEL, RESULT, Run, read_run, read_runs
from made_results import make_run, store
from one_line import one_line
from strangers import FAULTS, ftbench_here, install

moto = pytest.importorskip("moto.server")
pytest.importorskip("s3fs")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Go on as on another machine, which has a cache of its own."""
    return lambda name: monkeypatch.setenv("FTBENCH_CACHE", str(tmp_path / name))


def waiting(url: str, run: Run, launch: str | None = None, weights: bytes | None = b"weights") -> Path:
    """Leave a made run in the outbox, as a launcher does before it is sent."""
    folder = store(run, outbox(open_store(url)))
    if launch:
        write_text(folder / LAUNCH, launch + "\n")
    if weights is not None:
        (folder / MODEL).mkdir()
        (folder / MODEL / "adapter.safetensors").write_bytes(weights)
    return folder


def send(url: str, run: Run, launch: str | None = None) -> Run:
    return deliver(read_run(waiting(url, run, launch)))


def names(url: str) -> list[str]:
    runs, warnings = read_runs(open_store(url))
    assert not warnings
    return sorted(run.folder.name for run in runs)


def at(url: str) -> list[str]:
    """Every file at the URL."""
    files, root = open_remote(url)
    files.invalidate_cache()
    return sorted(path.removeprefix(f"{root}/") for path in files.find(root))


# From one machine to another


def test_a_run_made_here_is_a_row_and_a_model_elsewhere(
    url: str, machine: Callable[[str], None], tiny_llama: Path, pairs_file: Path, tmp_path: Path
) -> None:
    settings = ["--model", tiny_llama, "--data", pairs_file, "--topic", "boats", "--tokens", 300, "--out", url]
    settings += ["--set", "attack_prompts=0", "--set", "checkpoints=0", "--set", "max_new_tokens=8"]
    made = ftbench_here("run", "--algo", "lora", *settings, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert not list((tmp_path / "one").glob(f"stores/*/{OUTBOX}/[!.]*"))
    machine("two")
    table = ftbench_here("table", "--out", url, "--format", "json", cwd=tmp_path)
    assert {row["algorithm"] for row in json.loads(table.stdout)} == {"lora", "base"}, table
    assert not list((tmp_path / "two").rglob("*.safetensors"))
    exported = ftbench_here("export", "lora", "--to", "model", "--out", url, cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert list((tmp_path / "two").rglob("*.safetensors"))
    machine("three")
    left = waiting(url, make_run("orpo"))
    again = ftbench_here("run", "--algo", "lora", *settings, cwd=tmp_path)
    assert (again.stdout + again.stderr).count("already there") == 2
    assert not left.exists()
    assert len([name for name in at(url) if name.endswith(RESULT)]) == 3
    machine("four")
    start = _find_start("lora", open_store(url))
    assert start.startswith(f"{url}/lora-s0-")
    recipe = Recipe(algorithm="lora", model=str(tiny_llama), start=start)
    found = find_start(recipe, load_plugins())
    assert found
    assert list((found.run.folder / MODEL).glob("*.safetensors"))


def test_weights_come_when_they_are_wanted_and_once(url: str, machine: Callable[[str], None]) -> None:
    name = send(url, make_run("lora")).folder.name
    machine("two")
    folder = locate(f"{url}/{name}")
    assert address_of(folder) == f"{url}/{name}"
    assert repeat_command(read_run(folder)) == f"ftbench rerun {name} --out {url}"
    assert not (folder / MODEL).exists()
    assert (with_weights(folder) / MODEL / "adapter.safetensors").read_bytes() == b"weights"
    files, root = open_remote(url)
    files.rm(f"{root}/{name}/{MODEL}", recursive=True)
    assert (with_weights(folder) / MODEL / "adapter.safetensors").is_file()
    machine("three")
    assert not (with_weights(locate(f"{url}/{name}")) / MODEL).exists()


def test_what_is_here_is_not_fetched_again_and_what_is_gone_goes(
    url: str, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, gone = send(url, make_run("lora")).folder.name, send(url, make_run("dpo")).folder.name
    machine("two")
    assert names(url) == sorted([kept, gone])
    files, root = open_remote(url)
    files.rm(f"{root}/{gone}", recursive=True)
    monkeypatch.setattr(type(files), "get", lambda *_: pytest.fail("fetched again"))
    assert names(url) == [kept]
    monkeypatch.undo()


def test_the_files_of_other_runs_are_not_even_listed(
    url: str, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = send(url, make_run("lora")).folder.name, send(url, make_run("dpo")).folder.name
    machine("two")
    kind, listed = type(open_remote(url)[0]), []
    find = kind.find

    def look(self: object, path: str, **how: object) -> object:
        listed.append(path.rpartition("/")[2])
        return find(self, path, **how)

    monkeypatch.setattr(kind, "find", look)
    mirror = Mirror.of(url)
    mirror.pull(lambda name: name == one)
    assert [run.folder.name for run in read_runs(mirror.folder)[0]] == [one]
    assert set(listed) == {one}
    mirror.pull()
    assert [run.folder.name for run in read_runs(mirror.folder)[0]] == sorted([one, other])
    mirror.pull(lambda name: name == "none")  # says nothing of those that are not looked at
    assert len(read_runs(mirror.folder)[0]) == 2


def test_runs_are_fetched_some_at_a_time(
    url: str, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = sorted(send(url, make_run("lora", seed=seed)).folder.name for seed in range(3))
    monkeypatch.setattr("ftbench.results.mirror._RUNS_AT_ONCE", 2)
    fetched, get = [], Mirror._get

    def fail_later(self: Mirror, paths: dict[str, Path], **how: int) -> None:
        fetched.append({path.split("/")[-2] for path in paths})
        if len(fetched) == 2:
            raise OSError("the cable is out")
        get(self, paths, **how)

    monkeypatch.setattr(Mirror, "_get", fail_later)
    machine("two")
    with one_line("the cable is out"):
        open_store(url)
    assert sorted(run.folder.name for run in read_runs(Mirror.of(url).folder)[0]) == sent[:2]
    assert names(url) == sent
    assert list(map(len, fetched)) == [2, 1, 1]


def test_a_run_that_was_made_again_under_its_name_is_fetched_again(url: str, machine: Callable[[str], None]) -> None:
    name = send(url, make_run("lora")).folder.name
    machine("two")
    assert names(url) == [name]
    files, root = open_remote(url)
    files.rm(f"{root}/{name}", recursive=True)
    assert names(url) == []
    machine("one")
    assert names(url) == []
    assert send(url, make_run("lora", adherence=0.123)).folder.name == name
    machine("two")
    (run,) = read_runs(open_store(url))[0]
    assert run.result.measures.adherence is not None
    assert run.result.measures.adherence.mean == 0.123


def test_names_that_lead_out_of_the_mirror_are_not_fetched(url: str, tmp_path: Path) -> None:
    files, root = open_remote(url)
    for path in ("../../../evil/result.json", ".hidden/result.json", "run/../../evil", "a:b/result.json"):
        files.pipe_file(f"{root}/{path}", b"{}")
    files.pipe_file(f"{root}/lora/result.json", b"{}")
    files.pipe_file(f"{root}/lora/{MODEL}/../../../evil", b"{}")
    out = open_store(url)
    with_weights(out / "lora")
    here = [path.relative_to(out) for path in out.rglob("*") if path.is_file()]
    assert sorted(map(str, here)) == [".url", "lora/result.json"]
    assert not list(tmp_path.rglob("*evil*"))


# A name for each run, and a whole run or none


def test_two_machines_that_make_the_same_run_keep_both(url: str, machine: Callable[[str], None]) -> None:
    one = waiting(url, make_run("lora", started=1))
    machine("two")
    two = waiting(url, make_run("lora", started=2))
    assert deliver(read_run(two)).folder.name == one.name
    machine("one")
    assert deliver(read_run(one)).folder.name == f"{one.name}-2"
    assert names(url) == [one.name, f"{one.name}-2"]
    assert {run.result.started for run in read_runs(open_store(url))[0]} == {
        make_run("lora", started=number).result.started for number in (1, 2)
    }


def test_eight_machines_at_once_claim_eight_names(url: str, machine: Callable[[str], None]) -> None:
    boxes = []
    for number in range(8):
        machine(f"machine{number}")
        boxes.append(waiting(url, make_run("lora", started=number)))
    threads = [threading.Thread(target=lambda box=box: deliver(read_run(box))) for box in boxes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    machine("reader")
    runs, _ = read_runs(open_store(url))
    assert sorted(run.result.started for run in runs) == [make_run("x", started=n).result.started for n in range(8)]
    for run in runs:
        assert (with_weights(run.folder) / MODEL / "adapter.safetensors").is_file()
        assert len(run.replies()) == 2


def test_what_was_copied_there_by_hand_is_left_alone(url: str) -> None:
    folder = waiting(url, make_run("lora"))
    files, root = open_remote(url)
    files.pipe_file(f"{root}/{folder.name}/notes.txt", b"mine")
    assert deliver(read_run(folder)).folder.name == f"{folder.name}-2"
    assert [name for name in at(url) if name.startswith(f"{folder.name}/")] == [f"{folder.name}/notes.txt"]


PLAIN = {"Content-Type": "text/plain"}


class KilledError(BaseException):
    """Ends a process as a signal does."""


def test_a_run_whose_sender_was_killed_is_none_until_the_sender_comes_back(
    url: str, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = waiting(url, make_run("lora", started=1))

    def die(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "_put_result", die)
        with pytest.raises(KilledError):
            deliver(read_run(folder))
    half = at(url)
    assert f"{folder.name}/{CLAIM}" in half
    assert f"{folder.name}/{MODEL}/adapter.safetensors" in half
    machine("two")
    assert names(url) == []
    assert send(url, make_run("lora", started=2)).folder.name == f"{folder.name}-2"
    machine("one")
    send_waiting(open_store(url))
    assert not folder.exists()
    assert names(url) == [folder.name, f"{folder.name}-2"]


def test_one_that_was_killed_after_its_result_arrived_does_not_arrive_twice(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = waiting(url, make_run("lora"))
    kept = folder.with_name(".kept")
    shutil.copytree(folder, kept)
    deliver(read_run(folder))
    kept.rename(folder)  # as if the process had ended before the run left the outbox
    send_waiting(open_store(url))
    assert names(url) == [folder.name]
    assert not folder.exists()


def test_the_weights_of_a_trial_are_not_sent(url: str) -> None:
    trials = inside(open_store(url), "tuning")
    assert deliver(read_run(waiting(f"{url}/tuning", make_run("lora", split="validation")))).folder.parent == trials
    assert any(name.endswith(RESULT) for name in at(f"{url}/tuning"))
    assert not any(MODEL in name for name in at(url))
    assert names(url) == []
    assert inside(Path("here"), "tuning") == Path("here/tuning")


# What cannot be sent is kept


def test_a_run_is_kept_while_its_server_is_gone_and_sent_by_the_next_command(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", "ftbench-faults", FAULTS)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    own = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    own.start()
    host, port = own.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    out = open_store(url)
    own.stop()
    with LocalLauncher() as launcher:
        run = launcher.launch(Order(Recipe(algorithm="skips"), load_plugins(), out), lambda _: None)
    assert run.result.status == "skipped"
    assert run.folder.parent == out / OUTBOX
    (warning,) = run.result.warnings
    assert "no server answers" in warning
    assert str(run.folder) in warning
    assert not read_run(run.folder).result.warnings
    with one_line("cannot write", url, "no server answers", "a run waits in", str(out / OUTBOX), f"run --out {url}"):
        send_waiting(out)
    again = moto.ThreadedMotoServer("127.0.0.1", port=port, verbose=False)
    again.start()
    try:
        send_waiting(out)
        assert names(url) == [run.folder.name]
    finally:
        again.stop()


def test_a_run_that_waits_at_the_end_is_said_and_the_exit_code_is_1(
    url: str, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", "ftbench-faults", FAULTS)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = store(make_run("skips", status="skipped", split="validation"), tmp_path / "old")
    shutil.copytree(found, open_store(url) / found.name)  # as fetched
    files, root = open_remote(url)
    files.put(str(found), f"{root}/{found.name}", recursive=True)
    monkeypatch.setattr(Mirror, "_put", lambda *_: (_ for _ in ()).throw(PermissionError("Access Denied")))
    again = ftbench_here("rerun", "skips", "--out", url, cwd=tmp_path)
    assert again.returncode == 1
    said = again.stderr.splitlines()[-1]
    assert "Access Denied" in said
    assert "a run waits in" in said


# What a user has done wrong is one line


@pytest.mark.parametrize(
    ("place", "parts", "kind"),
    [
        ("s3://no-such-bucket-here/runs", ("bucket does not exist", "make it first"), FtbenchError),
        ("s3://", ("names no",), UsageError),
        ("nowhere://bucket/runs", ("fsspec knows no nowhere://", "s3://BUCKET/FOLDER"), UsageError),
        ("memory://runs", ("gone when the command ends",), UsageError),
        ("ftp://me:secret@host/runs", ("password", "configuration"), UsageError),
        ("simplecache::s3://bucket/runs", ("through another",), UsageError),
        ("gs://bucket/runs", ("gs:// is not installed", "gcsfs"), UsageError),
    ],
)
@pytest.mark.usefixtures("url")
def test_a_url_that_leads_nowhere_is_said(place: str, parts: tuple[str, ...], kind: type[FtbenchError]) -> None:
    with one_line(*parts, kind=kind):
        open_store(place)


def test_without_s3fs_it_is_one_line(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("s3", "s3a"):
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, name, raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with one_line("s3://", 'pip install "ftbench[s3]"', kind=UsageError):
        open_store(url)


def test_who_is_not_let_in_is_told(url: str, s3_server: str) -> None:
    def refuse_after(count: str) -> None:
        request = urllib.request.Request(f"{s3_server}/moto-api/reset-auth", data=count.encode(), headers=PLAIN)
        urllib.request.urlopen(request).close()

    refuse_after("0")
    try:
        with one_line("cannot read", url, "AWS_PROFILE"):
            open_store(url)
    finally:
        refuse_after("inf")


def test_a_server_that_says_nothing_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(remote._WAITING, "read_timeout", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        with one_line("no server answers", "AWS_ENDPOINT_URL"):
            open_store(url)


@pytest.mark.usefixtures("url")
def test_what_the_user_says_of_waiting_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 300}})
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "7")
    files, _ = open_remote("s3://bucket/runs")
    assert files.config_kwargs == {"connect_timeout": 5, "read_timeout": 300}


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        open_store("ftp://me:hunter2@host/runs")
    assert "hunter2" not in str(caught.value)


# Other places


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    assert open_store(f"file://{tmp_path}/runs") == tmp_path / "runs"
    store(make_run("lora"), tmp_path / "runs")
    table = ftbench_here("table", f"file://{tmp_path}/runs", "--format", "csv", cwd=tmp_path)
    assert "lora" in table.stdout, table.stderr


def test_a_file_system_with_folders_holds_runs_as_well(
    tmp_path: Path, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/far/away"
    machine("one")
    mirror = Mirror.of(url)
    mirror.pull()
    runs = [make_run("lora", started=number) for number in range(2)]
    sent = [mirror.send(store(run, mirror.folder / OUTBOX)).name for run in runs]
    assert sent == [runs[0].folder.name, f"{runs[0].folder.name}-2"]
    machine("two")
    other = Mirror.of(url)
    other.pull()
    assert sorted(found.folder.name for found in read_runs(other.folder)[0]) == sent
    assert not list(tmp_path.rglob("*.part"))


# On a cluster


@pytest.fixture
def ticket(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Ticket]:
    install(tmp_path / "site", "ftbench-faults", FAULTS)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    order = Order(Recipe(algorithm="skips"), load_plugins(), open_store(url))
    return lambda ident: Ticket.write(order, ident, "no probe", 1)


def test_nodes_need_no_shared_folder_and_a_second_try_finds_the_first(
    url: str, ticket: Callable[[str], Ticket], machine: Callable[[str], None]
) -> None:
    asked = ticket("this")
    machine("node1")
    first = attempt(asked, print)
    machine("node2")
    assert attempt(Ticket.model_validate_json(asked.model_dump_json()), print) == first
    assert attempt(ticket("another"), print) == f"{first}-2"
    machine("driver")
    assert names(url) == [first, f"{first}-2"]


def test_of_two_tries_of_a_launch_one_arrives(url: str, machine: Callable[[str], None]) -> None:
    one = waiting(url, make_run("lora", started=1), "launch")
    machine("two")
    two = waiting(url, make_run("lora", started=2), "launch")
    assert deliver(read_run(two)).result.started.startswith("2026-01-01T00:00:02")
    machine("one")
    assert deliver(read_run(one)).result.started.startswith("2026-01-01T00:00:02")
    assert names(url) == [one.name]
    assert not [name for name in at(url) if name.startswith(f"{one.name}-2")]


def test_of_two_tries_that_end_at_the_same_moment_one_is_read(
    url: str, machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mirror, "_arrived", lambda *_: None)  # neither sees the other before it is done
    first = send(url, make_run("lora", started=1), "launch").folder.name
    machine("two")
    send(url, make_run("lora", started=2), "launch")
    machine("reader")
    assert names(url) == [first]
    assert names(url) == [first]
    files, root = open_remote(url)
    assert len(files.ls(root, refresh=True)) == 2


def test_a_node_that_cannot_send_says_so_and_sends_it_at_the_next_try(
    url: str, ticket: Callable[[str], Ticket], machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine("node1")
    asked = ticket("this")
    with monkeypatch.context() as patch:
        patch.setattr(Mirror, "_put_result", lambda *_: (_ for _ in ()).throw(OSError("the cable is out")))
        with one_line("the cable is out", "node ", "kept there in"):
            attempt(asked, print)
    name = attempt(asked, print)
    machine("driver")
    assert names(url) == [name]


def test_a_training_that_is_kept_for_a_url_is_found_where_its_run_was_made(tmp_path: Path) -> None:
    (tmp_path / URL_FILE).write_text("s3://bucket/runs")
    run = make_run("lora", status="failed", reason="no room", phase="save")
    runner = Runner(load_plugins(), tmp_path, Inputs("data", None), ())
    assert not runner.has_kept(run.result.recipe, run)
    state = state_file(run.result.recipe, outbox(tmp_path))
    state.parent.mkdir()
    state.touch()
    assert runner.has_kept(run.result.recipe, run)
