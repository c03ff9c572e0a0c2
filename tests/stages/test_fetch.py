"""The official archives, served by a real HTTP server that can be as bad as the internet."""

import base64
import gc
import hashlib
import http.server
import io
import json
import lzma
import shutil
import tarfile
import threading
import time
import zipfile

import pytest
import yaml
from test_bad_input import clearly, nothing_published, stage  # noqa: F401 (a fixture)

from physion.config.schema import SUBSETS, Fetch, shown_source, without_secrets
from physion.data.layout import GLITCHY, LABELS, shipped_glitchy
from physion.stages import fetch
from physion.store import web
from physion.store.artifacts import ArtifactWriter


class Server(http.server.ThreadingHTTPServer):
    """Serves bytes by path, with ranges; breaks connections and fails as often as it is told."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.breaks, self.refusals, self.ranges, self.asked = {}, 0, 0, True, []
        self.refusal, self.longer, self.user, self.replaced, self.location = 503, 0, None, {}, None

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
            if server.location:
                self.send_response(server.refusal)
                self.send_header("Location", server.location)
                return self.end_headers()
            return self.send_error(server.refusal)
        name = self.path.partition("?")[0]
        if name not in server.files:
            return self.send_error(404)
        if server.user and self.headers.get("Authorization") != f"Basic {base64.b64encode(server.user).decode()}":
            return self.send_error(401)
        data = server.files[name]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and server.ranges else 0
        if start > len(data):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start + server.longer))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if server.breaks:
            server.breaks -= 1
            self.wfile.write(data[start : start + len(data) // 3])
            self.wfile.flush()
            self.connection.close()
            server.files |= server.replaced
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


def zip_of_test_videos(target, root, compression=zipfile.ZIP_STORED):
    """As Physion.zip is made: all that people and models saw, below `Physion/`, and what a Mac adds."""
    with zipfile.ZipFile(target, "w", compression) as file:
        file.write(root / LABELS["test"], "Physion/labels.csv")
        for path in sorted(root.glob("PhysionTestMP4s/*/mp4s-redyellow/*")):
            scenario, name = path.parts[-3], path.name
            file.write(path, f"Physion/{scenario}/mp4s-redyellow/{name}")
            file.writestr(f"__MACOSX/Physion/{scenario}/mp4s-redyellow/._{name}", b"resource fork")
            file.writestr(f"Physion/{scenario}/mp4s/{name.replace('-redyellow', '')}", b"what people saw")
            file.writestr(f"Physion/{scenario}/maps/{name.replace('-redyellow', '').removesuffix('.mp4')}_map.png", b"a map")
    return target


def tar_of_the_rest(target, root, top="PhysionTrainMP4s"):
    with tarfile.open(fileobj=target, mode="w:gz", compresslevel=1) as file:
        for path in sorted(root.glob("PhysionTrainMP4s/**/*.mp4")):
            file.add(path, f"{top}/{path.relative_to(root / 'PhysionTrainMP4s').as_posix()}")


@pytest.fixture
def archives(pristine, server):
    """The dataset as a .zip of the test videos and a .tar.gz of the rest, laid out as the published ones are."""
    zipped, tarred = io.BytesIO(), io.BytesIO()
    zip_of_test_videos(zipped, pristine.root)
    tar_of_the_rest(tarred, pristine.root)
    labels = pristine.labels("readout").read_bytes()
    server.files = {"/Physion.zip": zipped.getvalue(), "/Train.tar.gz": tarred.getvalue(), "/labels.csv": labels}
    server.files["/readout_labels.csv"] = labels
    return server


@pytest.fixture
def from_server(stage, archives, monkeypatch):  # noqa: F811
    """`physion stage fetch` from the server, of all subsets or of one."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts

    def command(*options, **changes):
        settings = {
            "root": None,
            "archives": [archives.url(name) for name in ("Physion.zip", "Train.tar.gz", "readout_labels.csv")],
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
    lists = {GLITCHY: shipped_glitchy()} if subset == "test" else {}
    return {name: (pristine.root / name).read_bytes() for name in files} | lists


def complete(ended, store, pristine, subsets=SUBSETS):
    assert ended.code == 0, ended.err
    assert fetched(store) == {subset: original(pristine, subset) for subset in subsets}
    everything = {path.relative_to(pristine.root).as_posix() for path in pristine.root.rglob("*") if path.is_file()}
    assert set().union(*(original(pristine, subset) for subset in SUBSETS)) == everything | {GLITCHY}
    gc.collect()  # downloads last as long as the store that the command opened, in a process of its own until that ends
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


@pytest.mark.parametrize("refusal", [408, 429, 503])
def test_a_server_that_is_busy_for_a_while(refusal, from_server, archives, pristine, tmp_path):
    archives.refusals, archives.refusal = 3, refusal
    complete(from_server(), tmp_path / "store", pristine)


@pytest.mark.parametrize(
    ("code", "reason"), [(408, "Request Timeout"), (429, "Too Many Requests"), (503, "Service Unavailable")]
)
def test_a_server_that_stays_busy(code, reason, from_server, archives, tmp_path):
    archives.refusals, archives.refusal = 99, code
    clearly(from_server(), 75, f"cannot be downloaded (HTTP Error {code}: {reason}); run the same command again")
    assert len(archives.asked) == web.ATTEMPTS
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
    sources = [archives.url(name) for name in ("a/data", "b/data", "readout_labels.csv")]
    complete(from_server(archives=sources), tmp_path / "store", pristine)


@pytest.mark.parametrize("subset", SUBSETS)
def test_what_is_fetched_is_not_fetched_again(from_server, archives, pristine, tmp_path, subset):
    half = {"archives": [archives.url(name) for name in ("Physion.zip", "none", "readout_labels.csv")]}
    clearly(from_server("--subset", subset, **half), 2, "none: the server answers 404")
    archives.files["/none"] = archives.files["/Train.tar.gz"]
    archives.asked.clear()
    complete(from_server("--subset", subset, **half), tmp_path / "store", pristine, [subset])
    assert "/Physion.zip" not in dict(archives.asked)


def test_each_subset_has_its_own_archives(from_server, archives, pristine, tmp_path):
    """As published: nobody downloads the training videos for the test, and nobody downloads them twice."""
    train, test = [archives.url("Train.tar.gz")], [archives.url("Physion.zip")]
    by_subset = {"training": train, "readout": [*train, archives.url("labels.csv")], "test": test}
    complete(from_server("--subset", "test", archives=by_subset), tmp_path / "store", pristine, ["test"])
    assert dict(archives.asked).keys() == {"/Physion.zip"}
    archives.asked.clear()
    complete(from_server(archives=by_subset), tmp_path / "store", pristine)
    assert archives.asked == [("/Train.tar.gz", None), ("/labels.csv", None)]


def test_subsets_that_are_not_given_keep_the_published_archives():
    given = Fetch(archives={"test": "/x.zip"})
    assert given.archives == Fetch().archives | {"test": ("/x.zip",)}
    assert Fetch(archives="/x").archives == Fetch(archives=["/x"]).archives == dict.fromkeys(SUBSETS, ("/x",))


def test_a_member_that_leads_out_of_the_layout_is_not_taken(from_server, archives, pristine, tmp_path):
    with io.BytesIO(archives.files["/Physion.zip"]) as buffer:
        with zipfile.ZipFile(buffer, "a") as file:
            file.writestr("../mp4s-redyellow/escaped.mp4", b"x")
            file.writestr("Physion/../../mp4s-redyellow/escaped.mp4", b"x")
        archives.files["/Physion.zip"] = buffer.getvalue()
    complete(from_server(), tmp_path / "store", pristine)


def test_a_directory_or_an_archive_that_is_not_there(stage, tmp_path):  # noqa: F811
    gone = tmp_path / "gone"
    clearly(stage("fetch", f"--set=fetch.root={gone}"), 2, f"{gone}: there is no such directory (fetch.root)")
    ended = stage("fetch", "--set=fetch.root=null", f"--set=fetch.archives=[{gone}]")
    clearly(ended, 2, f"{gone}: there is no such file (fetch.archives)")
    for option in ('root=""', "archives.test=[' ']", 'glitchy=""'):  # not the current folder
        clearly(stage("fetch", f"--set=fetch.{option}"), 2, "is empty: give a path or an address")
    clearly(stage("fetch", "--set=fetch.archives.test=ftp://x/y.zip"), 2, "ftp://x/y.zip: neither a path nor an address")


# ------------------------------------------------------------------------------------------------- bad sources
def refused(ended, store, *said, code=3):
    """It ends with this code and these lines, publishes nothing and leaves nothing behind."""
    lines = clearly(ended, code, *said)
    gc.collect()
    nothing_published(store, "fetch")
    return lines


def put(archives, change):
    with io.BytesIO(archives.files["/Physion.zip"]) as buffer:
        with zipfile.ZipFile(buffer, "a") as file:
            change(file)
        archives.files["/Physion.zip"] = buffer.getvalue()


@pytest.mark.parametrize(("offset", "value", "said"), [(8, 9, "compression method is not supported"), (6, 1, "is encrypted")])
def test_a_zip_that_cannot_be_unpacked(from_server, archives, tmp_path, offset, value, said):
    """Another compression (as Windows uses from 2 GB on), or a password: as the headers before every file say."""
    data = bytearray(archives.files["/Physion.zip"])
    for magic, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        place = data.find(magic)
        while place >= 0:
            data[place + offset + shift] = value
            place = data.find(magic, place + 4)
    archives.files["/Physion.zip"] = bytes(data)
    (line,) = refused(from_server("--subset", "test"), tmp_path / "store", "Physion.zip: cannot be unpacked (")
    assert said in line
    assert line.endswith("unpack it by hand and name the folder")


def test_a_link_in_an_archive_that_leads_nowhere(from_server, archives, tmp_path):
    with tarfile.open(fileobj=(packed := io.BytesIO()), mode="w:gz") as file:
        entry = tarfile.TarInfo("x/Drop_training_MP4s/a_0001_img.mp4")
        entry.type, entry.linkname = tarfile.SYMTYPE, "gone.mp4"
        file.addfile(entry)
    archives.files["/Train.tar.gz"] = packed.getvalue()
    refused(
        from_server("--subset", "training"), tmp_path / "store", "a_0001_img.mp4 is a link to what the archive does not hold"
    )


def test_links_in_an_archive(from_server, archives, pristine, tmp_path):
    """Through several links, also symbolic ones to a folder beside; round a circle, which is no matter of how deep it goes."""
    (first, *rest) = pristine.videos("training")

    def pack(*links):
        with tarfile.open(fileobj=(packed := io.BytesIO()), mode="w:gz") as file:
            file.add(first, f"./x/kept/{first.name}")
            for path in rest:
                file.add(path, f"./x/{path.relative_to(pristine.root / 'PhysionTrainMP4s')}")
            for kind, name, target in links:
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = kind, target
                file.addfile(entry)
        archives.files["/Train.tar.gz"] = packed.getvalue()

    at = f"./x/{first.parent.name}/{first.name}"
    pack((tarfile.SYMTYPE, at, "../two.mp4"), (tarfile.LNKTYPE, "./x/two.mp4", f"x/kept/{first.name}"))
    complete(from_server("--subset", "training"), tmp_path / "store", pristine, ["training"])
    for circle in (
        [(tarfile.SYMTYPE, at, first.name)],
        [(tarfile.SYMTYPE, at, "../two.mp4"), (tarfile.SYMTYPE, "x/two.mp4", at.removeprefix("./x/"))],
        [(tarfile.LNKTYPE, at, at)],
    ):
        pack(*circle)
        said = f"Train.tar.gz: not a readable archive ({at} is a link that leads in a circle); download it again"
        assert len(refused(from_server("--subset", "training", "--force"), tmp_path / "none", said)) == 1
        shutil.rmtree(tmp_path / "store", ignore_errors=True)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (lzma.compress(b"x" * 9999)[:40] + b"damaged" * 99, "Train.tar.gz: not a readable archive ("),
        (
            lzma.compress(b"x" * 9999)[:6] + b"damaged" * 99,
            "Train.tar.gz: not a readable archive (file could not be opened successf",
        ),
        (b"\x28\xb5\x2f\xfd" + bytes(99), "Train.tar.gz: is compressed with zstd, which is not supported; unpack it by hand"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(99), "Train.tar.gz: is compressed with 7-Zip, which is not supported"),
    ],
)
def test_an_archive_of_another_kind_or_damaged_is_said_in_one_line(from_server, archives, tmp_path, data, said):
    archives.files["/Train.tar.gz"] = data
    assert len(refused(from_server("--subset", "training"), tmp_path / "store", said)) == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (f"{'n' * 300}.mp4", "nnn.mp4: a name in it is longer than 255 bytes"),
        ("a\x1b]0;x\x07.mp4", "/a\ufffd]0;x\ufffd.mp4: a name in it is longer than 255 bytes, or cannot be printed; rename it"),
        ("a\nb.mp4", "/a\ufffdb.mp4: a name in it is longer than 255 bytes, or cannot be printed; rename it"),
    ],
)
def test_a_member_whose_name_is_none(from_server, archives, tmp_path, name, said):
    put(archives, lambda file: file.writestr(f"Physion/Drop/mp4s-redyellow/{name}", b""))
    assert len(refused(from_server("--subset", "test"), tmp_path / "store", said)) == 1


def test_what_a_terminal_must_not_see_is_not_printed_either_when_it_lies_above_the_videos(
    from_server, archives, pristine, tmp_path
):
    """In a folder's name it is no matter: it is told and recorded without."""
    with (
        zipfile.ZipFile(io.BytesIO(archives.files["/Physion.zip"])) as old,
        zipfile.ZipFile(packed := io.BytesIO(), "w") as new,
    ):
        for name in old.namelist():
            new.writestr(f"\x1b[2J\u202e\n/{name}", old.read(name))
    archives.files["/Physion.zip"] = packed.getvalue()
    ended = from_server("--subset", "test", "--json")
    complete(ended, tmp_path / "store", pristine, ["test"])
    assert (
        f"{archives.url('Physion.zip')}/\ufffd[2J\ufffd\ufffd/Physion/labels.csv"
        in json.loads(ended.out)["result"]["metrics"]["sha256"]
    )
    assert from_server("--subset", "test").code == 0  # its record can be read


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_label_file_or_a_video_twice_under_one_name(from_server, archives, pristine, tmp_path):
    whole = archives.files["/Physion.zip"]
    name, at = "Physion/Drop/mp4s-redyellow/pilot_drop-redyellow_0001_img.mp4", archives.url("Physion.zip")
    put(archives, lambda file: file.writestr(name, b""))
    said = f"1 test video is there twice, such as {at}/{name} and {at}/{name}: keep one of each"
    refused(from_server("--subset", "test"), tmp_path / "store", said)
    archives.files["/Physion.zip"] = whole
    put(archives, lambda file: file.writestr("Physion/labels.csv", pristine.labels("readout").read_bytes()))
    said = f"{at}/Physion/labels.csv is there twice: keep one of the two"
    refused(from_server("--subset", "test"), tmp_path / "store", said)
    archives.files["/Physion.zip"] = whole
    twice = [archives.url(name) for name in ("Physion.zip", "labels.csv", "labels.csv?again")]
    said = f"two label files for the test videos: {archives.url('labels.csv')} and {archives.url('labels.csv')}"
    refused(from_server("--subset", "test", archives={"test": twice}), tmp_path / "store", said)


def test_a_video_twice_in_an_archive(from_server, archives, tmp_path):
    put(archives, lambda file: file.writestr("copy/Drop/mp4s-redyellow/pilot_drop-redyellow_0001_img.MP4", b""))
    name = "Drop/mp4s-redyellow/pilot_drop-redyellow_0001_img"
    at = archives.url("Physion.zip")
    said = f"1 test video is there twice, such as {at}/Physion/{name}.mp4 and {at}/copy/{name}.MP4: keep one of each"
    refused(from_server("--subset", "test"), tmp_path / "store", said)


def test_two_copies_of_the_dataset(stage, dataset, tmp_path):  # noqa: F811
    shutil.copytree(dataset.root, dataset.root / "old")
    ended = stage("fetch", dataset=dataset)
    said = [f"{count} {subset} videos are there twice" for subset, count in (("training", 8), ("readout", 8), ("test", 6))]
    lines = refused(ended, tmp_path / "store", *said)
    assert all(f"{dataset.root}/Physion" in line and f"{dataset.root}/old/Physion" in line for line in lines if "twice" in line)


def damage_labels_elsewhere(dataset):
    """Neither beside the videos, nor the only ones: nobody knows which are meant."""
    for name in "ab":
        (dataset.root / name).mkdir()
        shutil.copy(dataset.labels("test"), dataset.root / name)
    dataset.labels("test").unlink()


def damage_no_videos(dataset):
    for folder in dataset.root.glob("PhysionTestMP4s/*/mp4s-redyellow"):
        folder.rename(folder.with_name("mp4s"))


def damage_a_link(dataset):
    video = dataset.videos("test")[0]
    video.unlink()
    video.symlink_to("gone.mp4")


def damage_a_linked_folder(dataset):
    (dataset.root / "PhysionTestMP4s" / "Link").mkdir()
    (dataset.root / "PhysionTestMP4s" / "Link" / "mp4s-redyellow").symlink_to("gone")


def damage_suffixes(dataset):
    video = dataset.videos("test")[0]
    shutil.copy(video, video.with_suffix(".MP4"))


def damage_outcomes(dataset):
    for subset in ("readout", "test"):
        labels = dataset.labels(subset)
        labels.write_text(labels.read_text().replace("False", "True"))


def glitchy(content):
    def damage(dataset):
        (dataset.root / "PhysionTestMP4s" / "glitchy_stimuli.txt").write_bytes(content)

    return damage


def damage_two_lists(dataset):
    for name in fetch.GLITCHY_NAMES:
        (dataset.root / "PhysionTestMP4s" / name).write_bytes(b"x\n")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_labels_elsewhere, "2 files may hold the test labels: {root}/a/labels.csv, {root}/b/labels.csv; leave one"),
        (
            damage_no_videos,
            "no test videos (.../<Scenario>/mp4s-redyellow/*.mp4); found: {root}/PhysionTestMP4s/Collide/mp4s (3",
        ),
        (damage_a_link, "mp4s-redyellow/pilot_collide-redyellow_0000_img.mp4: cannot be read (No such file or directory)"),
        (damage_a_linked_folder, "{root}/PhysionTestMP4s/Link/mp4s-redyellow: cannot be read (the link leads nowhere)"),
        (damage_suffixes, "1 test video is there twice, such as {root}/PhysionTestMP4s/Collide/mp4s-redyellow/pilot_collide"),
        (damage_outcomes, "the outcome of all 6 test videos is True: videos with the other outcome are needed"),
        (glitchy("pilot\n".encode("utf-16")), "{root}/PhysionTestMP4s/glitchy_stimuli.txt: not UTF-8 text"),
        (glitchy("pilot\n".encode("utf-16-le")), "{root}/PhysionTestMP4s/glitchy_stimuli.txt: not UTF-8 text"),
        (glitchy(b"nobody\npilot\n"), "{root}/PhysionTestMP4s/glitchy_stimuli.txt: its 2 lines leave no test video"),
        (damage_two_lists, "2 lists of glitchy stimuli: {root}/PhysionTestMP4s/glitchy_stimuli.txt, "),
    ],
)
def test_a_folder_with_a_problem(stage, dataset, tmp_path, damage, said):  # noqa: F811
    damage(dataset)
    ended = stage("fetch", "--subset", "test", dataset=dataset)
    assert len(refused(ended, tmp_path / "store", said.format(root=dataset.root))) <= 2  # some below "1 problem in the dataset"


def test_readout_videos_of_one_outcome(stage, dataset, tmp_path):  # noqa: F811
    damage_outcomes(dataset)
    ended = stage("fetch", "--subset", "readout", dataset=dataset)
    refused(ended, tmp_path / "store", "the outcome of all 8 readout videos is True: videos with the other outcome are needed")


def test_a_list_of_ones_own_and_no_list_at_all(stage, dataset, tmp_path):  # noqa: F811
    (dataset.root / "glitchy_stimuli.txt").write_text("pilot_drop_0000\n")
    (tmp_path / "mine.txt").write_text("pilot_drop_0001\r\n\r\npilot_collide_0002\r\n")

    def facts(*options):
        ended = stage("fetch", "--subset", "test", "--json", *options, dataset=dataset)
        assert ended.code == 0, ended.err
        metrics = json.loads(ended.out)["result"]["metrics"]
        return metrics["videos"], metrics["left_out"], metrics["glitchy"]

    assert facts() == (5, 1, f"{dataset.root}/glitchy_stimuli.txt")
    assert facts(f"--set=fetch.glitchy={tmp_path}/mine.txt") == (4, 2, f"{tmp_path}/mine.txt")
    assert facts("--set=fetch.glitchy=keep") == (6, 0, "fetch.glitchy=keep")
    refused(
        stage("fetch", "--set=fetch.glitchy=kep", dataset=dataset), tmp_path / "none", "kep: there is no such file (", code=2
    )


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("leave-out", "the list among the videos, else the authors', which has 26 of the official 1,200"),
        ("/x/mine.txt", "glitchy stimuli will be left out (/x/mine.txt)"),
        ("keep", "glitchy stimuli are kept (fetch.glitchy=keep)"),
    ],
)
def test_which_list_it_will_be_is_planned(physion, preset, tmp_path, choice, said):
    out = physion("plan", "-p", preset, "-s", tmp_path, f"--set=fetch.glitchy={choice}").out
    assert said in " ".join(out.split())


@pytest.mark.parametrize("mended", [False, True], ids=["removed", "mended"])
def test_an_interrupted_copy_of_a_folder_that_changed_is_begun_again(
    stage,  # noqa: F811
    dataset,
    tmp_path,
    monkeypatch,
    mended,
):
    monkeypatch.setattr(fetch, "FILES_PER_PART", 2)
    add = ArtifactWriter.add_part

    def killed(writer, part, *more):
        if part.endswith("00002"):
            raise SystemExit(9)
        return add(writer, part, *more)

    with monkeypatch.context() as patch:
        patch.setattr(ArtifactWriter, "add_part", killed)
        assert stage("fetch", "--subset", "training", dataset=dataset).code == 9
    assert len(list(tmp_path.glob("store/artifacts/fetch/*/parts/*"))) == 2
    first, other, *_ = dataset.videos("training")
    if mended:
        first.write_bytes(other.read_bytes())
    else:
        first.unlink()
    clearly(
        stage("fetch", "--subset", "training", dataset=dataset), 75, "has changed since an earlier run that was interrupted"
    )
    ended = stage("fetch", "--subset", "training", dataset=dataset)
    assert (ended.code, f"videos {8 if mended else 7}" in ended.out) == (0, True)


# ------------------------------------------------------------------------------------- lengths, sums, credentials
def test_a_server_that_promises_more_than_it_sends(from_server, archives, tmp_path):
    archives.longer = 7
    size = len(archives.files["/Physion.zip"])
    said = f"cannot be downloaded (the connection ended at {size} of {size + 7} bytes)"
    refused(from_server("--subset", "test"), tmp_path / "store", said, code=75)


def test_a_server_that_promises_less_than_it_has(from_server, archives, tmp_path):
    archives.longer = -7
    refused(from_server("--subset", "test"), tmp_path / "store", "Physion.zip: not a readable archive")


def test_a_file_that_has_become_shorter_is_begun_again(from_server, archives, pristine, tmp_path):
    whole, archives.breaks = archives.files["/Physion.zip"], 1
    archives.files["/Physion.zip"] = whole * 4
    archives.replaced = {"/Physion.zip": whole}
    complete(from_server("--subset", "test"), tmp_path / "store", pristine, ["test"])
    assert [asked for _, asked in archives.asked[:3]] == [None, f"bytes={len(whole) * 4 // 3}-", None]


def test_what_was_read_is_recorded_and_can_be_demanded(from_server, archives, pristine, tmp_path):
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in archives.files.items()}

    def read(change=""):
        urls = {name: f"{archives.url(name[1:])}#sha256={sums[name]}" for name in sums}
        urls["/Physion.zip"] += change
        test, train, labels = (urls[name] for name in ("/Physion.zip", "/Train.tar.gz", "/labels.csv"))
        return from_server("--json", archives={"training": train, "readout": [train, labels], "test": test})

    ended = read()
    complete(ended, tmp_path / "store", pristine)
    recorded = [row["metrics"]["sha256"] for row in json.loads(ended.out)["result"]]
    url = archives.url
    assert recorded[0] == {url("Train.tar.gz"): sums["/Train.tar.gz"]}
    assert recorded[1] == {url("Train.tar.gz"): sums["/Train.tar.gz"], url("labels.csv"): sums["/labels.csv"]}
    inside = hashlib.sha256(pristine.labels("test").read_bytes()).hexdigest()
    assert recorded[2][url("Physion.zip")] == sums["/Physion.zip"]
    assert recorded[2][f"{url('Physion.zip')}/Physion/labels.csv"] == inside
    assert recorded[2]["the authors' list, as shipped"] == hashlib.sha256(shipped_glitchy()).hexdigest()
    said = "'fetch.archives.test.0': "
    refused(read("0"), tmp_path / "none", said, code=2)
    sums["/Physion.zip"] = "0" * 64
    (tmp_path / "store").rename(tmp_path / "first")
    said = f"Physion.zip: its SHA-256 is {hashlib.sha256(archives.files['/Physion.zip']).hexdigest()}, not {'0' * 64} as"
    clearly(read(), 3, said)


def test_what_an_interrupted_run_read_is_held_to_what_is_demanded_of_it_now(from_server, archives, tmp_path):
    def read(demand=""):
        return from_server(
            "--subset", "test", archives={"test": [archives.url("Physion.zip") + demand, archives.url("none.zip")]}
        )

    assert read().code == 2
    assert list(tmp_path.glob("store/artifacts/fetch/*/parts/source-0*"))
    archives.files["/none.zip"] = archives.files["/Train.tar.gz"]
    clearly(read(f"#sha256={'0' * 64}"), 3, f"not {'0' * 64} as the configuration says")


@pytest.mark.parametrize(
    ("address", "code", "said"),
    [("http://127.0.0.1:1/\u00e4.zip", 2, "not a valid address"), ("http:///x.zip", 2, "an address without a host")],
)
def test_an_address_that_is_none(from_server, tmp_path, address, code, said):
    clearly(from_server("--subset", "test", archives={"test": address}), code, said)


def test_where_the_official_videos_are():
    of = Fetch().archives
    assert {subset: [url.rsplit("/", 1)[1] for url in urls] for subset, urls in of.items()} == {
        "training": ["PhysionTrainMP4s.tar.gz"],
        "readout": ["PhysionTrainMP4s.tar.gz", "readout_labels.csv"],
        "test": ["Physion.zip"],
    }


def test_two_queries_are_two_places_and_a_name_stays_as_it_is_shown():
    first, second = (shown_source(f"https://host/download?id={number}") for number in (1, 2))
    assert first != second
    assert shown_source(first) == without_secrets(first) == first
    assert shown_source(f"https://host/a.zip?id=1#sha256={'0' * 64}") == shown_source("https://host/a.zip?id=1")
    assert (
        without_secrets(f"https://host/a.zip#sha256={'0' * 64}, s3://a/b") == f"https://host/a.zip#sha256={'0' * 64}, s3://a/b"
    )
    assert without_secrets("at ftp://u:p@h/x?y: no") == f"at {shown_source('ftp://h/x?y')}: no"


def test_what_a_server_says_is_shown_without_signatures(from_server, archives, tmp_path):
    """Where it sends us on is an address, too."""
    archives.refusals, archives.refusal, archives.location = 99, 302, "gopher://elsewhere/x.zip?X-Amz-Signature=hidden"
    (line,) = refused(from_server("--subset", "test"), tmp_path / "store", "the server answers 302 Found", code=2)
    assert "gopher://elsewhere/x.zip" in line
    assert "=hidden" not in line


# --------------------------------------------------------------------------------------------------------- sizes
@pytest.mark.parametrize("promised", [True, False])
def test_a_download_that_is_larger_than_allowed(from_server, archives, tmp_path, promised):
    size = len(archives.files["/Physion.zip"])
    archives.longer = 0 if promised else 10 - size
    ended = from_server("--subset", "test", **{"largest-gb": size / 1.01 / 1e9 if promised else 1e-9})
    refused(ended, tmp_path / "store", "Physion.zip: holds more than ", code=3)


def test_what_is_taken_from_an_archive_or_a_folder_has_a_bound(from_server, stage, dataset, archives, tmp_path):  # noqa: F811
    """An archive of zeros is small until it is unpacked."""
    with zipfile.ZipFile(packed := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("Drop/mp4s-redyellow/a.mp4", bytes(2 * 10**6))
    archives.files["/Physion.zip"] = packed.getvalue()
    said = "holds more than 0.001 GB; if that is right, --set fetch.largest-gb=... allows more"
    refused(from_server("--subset", "test", **{"largest-gb": 0.001}), tmp_path / "store", f"Physion.zip: {said}")
    said = f"{dataset.root}: holds more than 1e-06 GB"
    refused(stage("fetch", "--set=fetch.largest-gb=1e-6", dataset=dataset), tmp_path / "store", *[said])


def test_a_label_file_that_is_none_by_its_size(from_server, archives, tmp_path):
    put(archives, lambda file: file.writestr("Physion/glitchy_stimuli.txt", b"x\n" * (fetch.LARGEST_TEXT // 2 + 1)))
    said = "Physion/glitchy_stimuli.txt: has more than 50 MB, which no list of videos has"
    refused(from_server("--subset", "test"), tmp_path / "store", said)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_that_would_fill_the_memory(from_server, archives, tmp_path, kind):
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = kind, 2 << 20
    with tarfile.open(fileobj=(packed := io.BytesIO()), mode="w:gz") as file:
        file.addfile(tarfile.TarInfo("first"))
        file.addfile(entry, io.BytesIO(bytes(entry.size)))
    archives.files["/Train.tar.gz"] = packed.getvalue()
    said = "Train.tar.gz: not a readable archive (one of its headers has 2,097,152 bytes); download it again"
    refused(from_server("--subset", "training"), tmp_path / "store", said)


def test_credentials_are_neither_printed_nor_stored(from_server, archives, pristine, tmp_path, physion, preset):
    archives.user, archives.refusals = b"me:pa ss", 1
    address = archives.url("Physion.zip").replace("//", "//me:pa%20ss@") + "?X-Amz-Signature=hidden"
    ended = from_server("--subset", "test", "--json", archives={"test": address})
    complete(ended, tmp_path / "store", pristine, ["test"])
    assert archives.url("Physion.zip") in json.loads(ended.out)["result"]["metrics"]["sha256"]
    again = from_server("--subset", "test", archives={"test": address.replace("hidden", "renewed")})
    assert "cached" in again.out  # it is the same place
    told = [ended.out, ended.err, again.out, again.err]
    other = archives.url("Physion.zip").replace("//", "//me:pa%20ss@") + "?dl=hid-den"  # no name tells that it is secret
    archives.refusals = 1
    complete(from_server("--subset", "test", "--force", archives={"test": other}), tmp_path / "store", pristine, ["test"])
    wrong = [address.replace("Physion", "none"), address.replace("http:", "ftp:"), other.replace("Physion", "none")]
    wrong += [other.replace("me:", "me:/"), other.replace("me:pa", "[me:pa"), f"{other}#token=hid-den"]
    for bad in (*wrong, f"{address} x", f"{{{address}", f"{address}#sha256=1"):
        for command in (["stage", "fetch", "--subset", "test"], ["config", "show"]):
            where = ["-s", tmp_path / "other"] if command[0] == "stage" else []
            refusal = physion(*command, "-p", preset, *where, "--set", "fetch.root=null", "--set", f"fetch.archives.test={bad}")
            told += [refusal.out, refusal.err]
    told += [physion("submit", "-p", "paper", "--set", f"fetch.archives.test={address}").err]
    assert "put it into a preset file" in told[-1]
    told += [path.read_text("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    assert not [text for text in told if "pa ss" in text or "pa%20ss" in text or "=hidden" in text or "hid-den" in text]
    assert not [text for text in told if "Traceback" in text]
    ended = from_server("--subset", "test", "--force", archives={"test": archives.url("Physion.zip")})
    clearly(ended, 2, "answers 401 Unauthorized")
