"""What an exported page needs is fetched once, whatever npm does, and no export writes over another's."""

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
    """A program in npm's place: what it does, and what it was called with."""

    def does(act):
        calls = []

        def run(command, *, cwd, **_):
            calls.append(command)
            act(cwd)

        monkeypatch.setattr(web.shutil, "which", lambda _: "npm")
        monkeypatch.setattr(web.subprocess, "run", run)
        return calls

    return does


def packed(contents, folder):
    """As npm packs them."""
    package = f"{folder}/{web.RUNTIME_PACKAGE}.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for name, data in contents.items():
            file = f"{folder}/{name}"
            with open(file, "wb") as stream:
                stream.write(data)
            archive.add(file, f"package/dist/{name}")
    return package


def test_npm_is_told_where_to_put_the_package_and_its_files_are_kept(runtime, cache, npm):
    calls = npm(lambda folder: packed(runtime, folder))
    assert web.fetch_runtime() == cache
    assert web.fetch_runtime() == cache
    (command,) = calls
    assert command[command.index("--pack-destination") + 1] == "."
    assert {each.name for each in cache.iterdir()} == set(runtime)


def nothing(folder):
    pass


def no_archive(folder):
    with open(f"{folder}/x.tgz", "w") as stream:
        stream.write("no archive")


def another_package(folder):
    packed({"readme": b"read me"}, folder)


@pytest.mark.parametrize("act", [nothing, no_archive, another_package])
@pytest.mark.usefixtures("terminal")
def test_if_npm_gives_no_package_the_page_loads_it_from_elsewhere(runtime, cache, npm, tmp_path, capsys, act):
    npm(act)
    assert web.add_runtime(tmp_path)["place"] == web.RUNTIME_CDN_URL
    said = capsys.readouterr().err
    assert "could not be downloaded" in said
    assert "not enough values" not in said


def test_a_cache_that_cannot_be_written_to_is_no_reason_to_export_no_page(runtime, cache, npm, tmp_path):
    npm(lambda folder: packed(runtime, folder))
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_text("a file in the way")
    assert web.add_runtime(tmp_path)["place"] == web.RUNTIME_CDN_URL


def test_what_another_process_has_fetched_meanwhile_is_left_alone(runtime, cache, npm):
    def while_another_is_faster(folder):
        cache.mkdir(parents=True)
        for name, data in runtime.items():
            (cache / name).write_bytes(data)
        packed(runtime, folder)
        there.update({each.name: each.stat().st_ino for each in cache.iterdir()})

    there = {}
    npm(while_another_is_faster)
    assert web.fetch_runtime() == cache
    assert {each.name: each.stat().st_ino for each in cache.iterdir()} == there


def test_what_is_damaged_in_the_cache_is_fetched_anew(runtime, cache, npm):
    npm(lambda folder: packed(runtime, folder))
    web.fetch_runtime()
    (cache / web.RUNTIME_WASM).write_bytes(b"damaged")
    assert web.fetch_runtime() == cache
    assert (cache / web.RUNTIME_WASM).read_bytes() == runtime[web.RUNTIME_WASM]


def test_of_two_exports_to_one_folder_the_later_is_refused(
    paper_run, paper_classifier, paper_model, tmp_path, monkeypatch
):
    place, begun = tmp_path / "page", []

    def export(run, file, **_):
        begun.append(file)
        if len(begun) == 1:  # another export to the same folder begins later, and is ready first
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
