"""The official archives, served by a real HTTP server that can be as bad as the internet."""

import http.server
import io
import json
import tarfile
import threading
import time
import zipfile

import pytest
import yaml
from test_bad_input import clearly, nothing_published, stage  # noqa: F401 (a fixture)

from physion.config.schema import SUBSETS
from physion.data.layout import LABELS
from physion.stages import fetch


class Server(http.server.ThreadingHTTPServer):
    """Serves bytes by path, with ranges; breaks connections and fails as often as it is told."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.breaks, self.refusals, self.ranges, self.asked = {}, 0, 0, True, []

    def url(self, name):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append((self.path, wanted))
        if server.refusals:
            server.refusals -= 1
            return self.send_error(503)
        if self.path not in server.files:
            return self.send_error(404)
        data = server.files[self.path]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            self.wfile.write(data[start : start + len(data) // 3])
            self.wfile.flush()
            self.connection.close()
            return None
        self.wfile.write(data[start:])
        return None


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def archives(pristine, server):
    """The dataset as a .zip of the test videos and a .tar.gz of the rest, below folders as the published ones are."""
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        for path in sorted(pristine.root.glob("PhysionTestMP4s/**/*.*")):
            name = path.relative_to(pristine.root).as_posix()
            file.write(path, f"Physion/{name}")
            file.writestr(f"__MACOSX/Physion/{name.rsplit('/', 1)[0]}/._{path.name}", b"resource fork")
        file.writestr("Physion/PhysionTestMP4s/Collide/maps/x.png", b"not wanted")
    with tarfile.open(fileobj=tarred, mode="w:gz") as file:
        for path in sorted(pristine.root.glob("PhysionTrainMP4s/**/*.mp4")):
            file.add(path, path.relative_to(pristine.root).as_posix())
    labels = pristine.labels("readout").read_bytes()
    server.files = {"/Physion.zip": zipped.getvalue(), "/Train.tar.gz": tarred.getvalue(), "/labels.csv": labels}
    return server


@pytest.fixture
def from_server(stage, archives, monkeypatch):  # noqa: F811
    """`physion stage fetch` from the server, of all subsets or of one."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts

    def command(*options, **changes):
        settings = {
            "root": None,
            "archives": [archives.url("Physion.zip"), archives.url("Train.tar.gz")],
            "files": {"readout": {"PhysionTrainMP4s/readout_labels.csv": archives.url("labels.csv")}},
        } | changes
        return stage("fetch", *options, *(f"--set=fetch.{key}={yaml.safe_dump(value)}" for key, value in settings.items()))

    return command


def fetched(store):
    """All files of each subset's artifact."""
    found = {}
    for path in store.glob("artifacts/fetch/*/manifest.json"):
        root, subset = path.parent, json.loads(path.read_bytes())["instance"].removeprefix("fetch-")
        found[subset] = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        del found[subset]["manifest.json"]
    return found


def original(pristine, subset):
    """What belongs to a subset."""
    files = {path.relative_to(pristine.root).as_posix() for path in [*pristine.videos(subset), *pristine.root.glob("*/*.csv")]}
    files -= {LABELS[other] for other in LABELS if other != subset}
    return {name: (pristine.root / name).read_bytes() for name in files}


def complete(ended, store, pristine, subsets=SUBSETS):
    assert ended.code == 0, ended.err
    assert fetched(store) == {subset: original(pristine, subset) for subset in subsets}
    everything = {path.relative_to(pristine.root).as_posix() for path in pristine.root.rglob("*") if path.is_file()}
    assert set().union(*(original(pristine, subset) for subset in SUBSETS)) == everything
    assert not list((store / ".staging").rglob("*"))


def test_from_a_directory(stage, dataset, pristine, tmp_path):  # noqa: F811
    (dataset.root / "notes.txt").write_text("not part of the layout")
    complete(stage("fetch", dataset=dataset), tmp_path / "store", pristine)


def test_from_archives(from_server, pristine, tmp_path):
    complete(from_server(), tmp_path / "store", pristine)


def test_a_broken_connection_goes_on_where_it_ended(from_server, archives, pristine, tmp_path):
    archives.breaks = 2
    ended = from_server()
    complete(ended, tmp_path / "store", pristine)
    size = len(archives.files["/Physion.zip"])
    assert archives.asked[:3] == [
        ("/Physion.zip", None),
        ("/Physion.zip", f"bytes={size // 3}-"),
        ("/Physion.zip", f"bytes={2 * (size // 3)}-"),
    ]
    assert f"the connection ended at {size // 3} of {size} bytes; attempt 2 of 5" in ended.err


def test_a_server_without_ranges_is_asked_from_the_start(from_server, archives, pristine, tmp_path):
    archives.breaks, archives.ranges = 1, False
    complete(from_server(), tmp_path / "store", pristine)


def test_a_server_that_is_busy_for_a_while(from_server, archives, pristine, tmp_path):
    archives.refusals = 3
    complete(from_server(), tmp_path / "store", pristine)


def test_a_server_that_stays_busy(from_server, archives, tmp_path):
    archives.refusals = 99
    clearly(from_server(), 75, "cannot be downloaded (HTTP Error 503: Service Unavailable); run the same command again")
    assert len(archives.asked) == fetch.ATTEMPTS
    nothing_published(tmp_path / "store", "fetch")


def test_nobody_listens(from_server, tmp_path):
    clearly(from_server(archives=["http://127.0.0.1:1/x.zip"]), 75, "http://127.0.0.1:1/x.zip: cannot be downloaded")
    nothing_published(tmp_path / "store", "fetch")


def test_an_address_that_is_wrong(from_server, archives, tmp_path):
    clearly(from_server(archives=[archives.url("none.zip")]), 2, "none.zip: the server answers 404 Not Found")
    nothing_published(tmp_path / "store", "fetch")


@pytest.mark.parametrize("name", ["Physion.zip", "Train.tar.gz"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "page"])
def test_a_damaged_archive(from_server, archives, pristine, tmp_path, name, damage):
    data = bytearray(archives.files[f"/{name}"])
    if damage == "flipped":
        for place in range(len(data) // 3, len(data) // 3 + 64):
            data[place] ^= 0xFF
    archives.files[f"/{name}"] = {"flipped": bytes(data), "cut": bytes(data[: len(data) // 2]), "page": b"<html>"}[damage]
    clearly(from_server(), 3, "not a readable archive")
    # A damaged file inside a .zip is a problem of its own subset only.
    whole = ["training", "readout"] if (name, damage) == ("Physion.zip", "flipped") else []
    assert fetched(tmp_path / "store") == {subset: original(pristine, subset) for subset in whole}
    assert not list((tmp_path / "store" / ".staging").rglob("*"))


def test_two_addresses_with_one_file_name(from_server, archives, pristine, tmp_path):
    archives.files["/a/data"], archives.files["/b/data"] = archives.files["/Physion.zip"], archives.files["/Train.tar.gz"]
    complete(from_server(archives=[archives.url("a/data"), archives.url("b/data")]), tmp_path / "store", pristine)


@pytest.mark.parametrize("subset", SUBSETS)
def test_what_is_fetched_is_not_fetched_again(from_server, archives, pristine, tmp_path, subset):
    half = {"archives": [archives.url("Physion.zip"), archives.url("none")]}
    clearly(from_server("--subset", subset, **half), 2, "none: the server answers 404")
    archives.files["/none"] = archives.files["/Train.tar.gz"]
    archives.asked.clear()
    complete(from_server("--subset", subset, **half), tmp_path / "store", pristine, [subset])
    assert "/Physion.zip" not in dict(archives.asked)


def test_each_subset_has_its_own_archives(from_server, archives, pristine, tmp_path):
    """As published: nobody downloads the training videos for the test."""
    train, test = [archives.url("Train.tar.gz")], [archives.url("Physion.zip")]
    by_subset = {"training": train, "readout": train, "test": test}
    complete(from_server("--subset", "test", archives=by_subset), tmp_path / "store", pristine, ["test"])
    assert dict(archives.asked).keys() == {"/Physion.zip"}
    archives.asked.clear()
    complete(from_server(archives=by_subset), tmp_path / "store", pristine)
    assert dict(archives.asked).keys() == {"/Train.tar.gz", "/labels.csv"}


def test_a_member_that_leads_out_of_the_layout_is_not_taken(from_server, archives, pristine, tmp_path):
    with io.BytesIO(archives.files["/Physion.zip"]) as buffer:
        with zipfile.ZipFile(buffer, "a") as file:
            file.writestr("PhysionTestMP4s/../../escaped.mp4", b"x")
        archives.files["/Physion.zip"] = buffer.getvalue()
    complete(from_server(), tmp_path / "store", pristine)


def test_a_directory_or_an_archive_that_is_not_there(stage, tmp_path):  # noqa: F811
    gone = tmp_path / "gone"
    clearly(stage("fetch", f"--set=fetch.root={gone}"), 2, f"fetch.root={gone}: there is no such directory")
    ended = stage("fetch", "--set=fetch.root=null", f"--set=fetch.archives=[{gone}]")
    clearly(ended, 2, f"{gone}: there is no such file")
