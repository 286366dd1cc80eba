"""Exporting the web page: the runtime is fetched once; no export overwrites another."""

import json
import shutil
import tarfile

import pytest

from ikebana.commands import export as export_command
from ikebana.errors import MachineError
from ikebana.exporting import web


@pytest.fixture
def runtime(monkeypatch):
    """Two small files in place of the WebAssembly build."""
    contents = {name: name.encode() for name in web.RUNTIME_INTEGRITY}
    monkeypatch.setattr(web, "_is_intact", lambda file: file.is_file() and file.read_bytes() == contents[file.name])
    return contents


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IKEBANA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / web.RUNTIME_PACKAGE / web.RUNTIME_VERSION


@pytest.fixture
def npm(monkeypatch):
    """Replace npm by a function, and record how it was called."""

    def does(act):
        calls = []

        def run(command, *, cwd, **_):
            calls.append(command)
            act(cwd)

        monkeypatch.setattr(web.shutil, "which", lambda _: "npm")
        monkeypatch.setattr(web.subprocess, "run", run)
        return calls

    return does


def pack(contents, folder):
    """Pack files as npm does."""
    package = f"{folder}/{web.RUNTIME_PACKAGE}.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for name, data in contents.items():
            file = f"{folder}/{name}"
            with open(file, "wb") as stream:
                stream.write(data)
            archive.add(file, f"package/dist/{name}")
    return package


def test_npm_gets_a_target_folder_and_its_files_are_cached(runtime, cache, npm):
    calls = npm(lambda folder: pack(runtime, folder))
    assert web.fetch_runtime() == cache
    assert web.fetch_runtime() == cache
    (command,) = calls
    assert command[command.index("--pack-destination") + 1] == "."
    assert {path.name for path in cache.iterdir()} == set(runtime)


def nothing(folder):
    pass


def no_archive(folder):
    with open(f"{folder}/x.tgz", "w") as stream:
        stream.write("no archive")


def another_package(folder):
    pack({"readme": b"read me"}, folder)


@pytest.mark.parametrize("act", [nothing, no_archive, another_package])
@pytest.mark.usefixtures("terminal")
def test_if_npm_fails_the_page_loads_the_runtime_from_a_cdn(runtime, cache, npm, tmp_path, capsys, act):
    npm(act)
    assert web.add_runtime(tmp_path)["place"] == web.RUNTIME_CDN_URL
    output = capsys.readouterr().err
    assert "could not be downloaded" in output
    assert "not enough values" not in output


def test_an_unwritable_cache_does_not_prevent_the_export(runtime, cache, npm, tmp_path):
    npm(lambda folder: pack(runtime, folder))
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("a file in the way")
    assert web.add_runtime(tmp_path)["place"] == web.RUNTIME_CDN_URL


def test_a_package_fetched_by_another_process_meanwhile_is_left_alone(runtime, cache, npm):
    def while_another_is_faster(folder):
        cache.mkdir(parents=True)
        for name, data in runtime.items():
            (cache / name).write_bytes(data)
        pack(runtime, folder)
        there.update({path.name: path.stat().st_ino for path in cache.iterdir()})

    there = {}
    npm(while_another_is_faster)
    assert web.fetch_runtime() == cache
    assert {path.name: path.stat().st_ino for path in cache.iterdir()} == there


def test_damaged_files_in_the_cache_are_fetched_again(runtime, cache, npm):
    npm(lambda folder: pack(runtime, folder))
    web.fetch_runtime()
    (cache / web.RUNTIME_WASM).write_bytes(b"damaged")
    assert web.fetch_runtime() == cache
    assert (cache / web.RUNTIME_WASM).read_bytes() == runtime[web.RUNTIME_WASM]


def test_the_second_of_two_exports_to_one_folder_is_refused(
    paper_run, paper_classifier, paper_model, tmp_path, monkeypatch
):
    place, begun = tmp_path / "page", []

    def export(run, file, **_):
        begun.append(file)
        if len(begun) == 1:  # another export to the same folder starts later and finishes first
            export_command.export_web(run, place)
            (place / "whose.txt").write_text("the other's")
        shutil.copy(paper_model, file)
        return paper_classifier

    monkeypatch.setattr(export_command, "export", export)
    monkeypatch.setattr(web.shutil, "which", lambda _: None)
    with pytest.raises(MachineError):
        export_command.export_web(paper_run, place)
    assert (place / "whose.txt").read_text() == "the other's"
    assert json.loads((place / "model.json").read_text("utf-8"))["classes"]
