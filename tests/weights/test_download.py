"""Downloads: resumed, checked, once, and refused in one sentence."""

import hashlib
import threading
from pathlib import Path

import pytest
from weight_server import serving

from mrcnn_jax.errors import InputError
from mrcnn_jax.weights import download, locate, zoo

CONTENT = bytes(range(256)) * 12_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PATH = "/models/tiny-1a2b.pth"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving({PATH: CONTENT}) as server:
        yield server


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "tiny.pth"


def parts(file: Path) -> list[str]:
    return sorted(path.name for path in file.parent.iterdir())


def fetch(server, file, checksum=("sha256", SHA256[:8])) -> Path:
    return download.download(server.address + PATH, file, checksum)


def test_a_file_is_loaded_once_and_its_digest_recorded(server, file, capsys):
    assert fetch(server, file) == file and file.read_bytes() == CONTENT
    fetch(server, file)
    assert len(server.requests) == 1
    assert parts(file) == ["tiny.pth", "tiny.pth.sha256"]
    assert (file.parent / "tiny.pth.sha256").read_text() == f"{SHA256}\n"
    assert capsys.readouterr().err == "loading tiny-1a2b.pth (3.1 MB)\n"


def test_md5_is_checked_as_well(server, file):
    fetch(server, file, ("md5", hashlib.md5(CONTENT).hexdigest()[:6]))
    assert file.read_bytes() == CONTENT


def test_addresses_are_encoded_as_browsers_do(server, file):
    server.files["/m%C3%BCll%201.pth?f=%C3%BC%20x"] = CONTENT
    download.download(f"{server.address}/müll%201.pth?f=ü x", file)
    assert file.read_bytes() == CONTENT


def test_a_cut_connection_continues_where_it_ended(server, file):
    server.cut_after = [2_000_000, 500_000]
    fetch(server, file)
    assert file.read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=2000000-", "bytes=2500000-"]


def test_the_next_call_continues_a_download_that_failed(server, file):
    server.cut_after = [2_000_000, 0, 0, 0]
    with pytest.raises(InputError, match=r"the connection was cut; 2\.0 MB have arrived, and the same call"):
        fetch(server, file)
    assert not file.exists() and (file.parent / "tiny.pth.part").stat().st_size == 2_000_000
    server.requests.clear()
    fetch(server, file)
    assert server.requests == [(PATH, "bytes=2000000-")] and file.read_bytes() == CONTENT


def test_a_server_without_ranges_sends_everything_again(server, file):
    server.ranges, server.cut_after = False, [2_000_000]
    fetch(server, file)
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 5])
def test_a_part_of_the_full_length_is_checked_and_a_longer_one_replaced(server, file, length):
    (file.parent / "tiny.pth.part").write_bytes((CONTENT + b"12345")[:length])
    fetch(server, file)
    assert file.read_bytes() == CONTENT
    assert len(server.requests) == (1 if length == len(CONTENT) else 2)


def test_without_a_checksum_only_the_same_file_is_continued(server, file):
    server.etag, server.cut_after = '"one"', [2_000_000, 0, 0, 0]
    with pytest.raises(InputError):
        fetch(server, file, None)
    server.etag, server.files[PATH] = '"two"', CONTENT[::-1]
    fetch(server, file, None)
    assert server.requests[-1] == (PATH, "bytes=2000000-") and file.read_bytes() == CONTENT[::-1]


def test_without_checksum_and_validator_nothing_is_continued(server, file):
    server.cut_after = [2_000_000]
    fetch(server, file, None)
    assert [asked for _, asked in server.requests] == [None, None] and file.read_bytes() == CONTENT


def test_another_file_than_the_published_one_is_refused(server, file):
    found = hashlib.sha256(CONTENT).hexdigest()[:8]
    message = f"is not the file that was published: its sha256 starts with {found}, not with 00000000"
    with pytest.raises(InputError, match=message):
        fetch(server, file, ("sha256", "00000000"))
    assert not [name for name in parts(file) if name in ("tiny.pth", "tiny.pth.part")]


def test_a_file_that_is_loaded_again_must_be_the_same(server, file):
    fetch(server, file, None)
    file.unlink()
    server.files[PATH] = CONTENT[::-1]
    with pytest.raises(InputError, match=f"starts with .*, not with {SHA256[:8]}"):
        fetch(server, file, None)
    assert not file.exists()


def test_what_a_server_sends_instead_is_named(server, file):
    with pytest.raises(InputError, match=r"/none.pth cannot be loaded: there is no such file \(HTTP 404\)$"):
        download.download(f"{server.address}/none.pth", file)
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(InputError, match="a web page came instead of the file, perhaps that of a proxy"):
        fetch(server, file)
    assert parts(file) == []


def test_a_server_that_does_not_answer_is_given_up(server, file, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    server.stall = 5.0
    with pytest.raises(InputError, match="cannot be loaded: timed out$"):
        fetch(server, file)
    assert len(server.requests) == download.ATTEMPTS


def test_no_server_is_named(file, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        pass
    with pytest.raises(InputError, match="cannot be loaded: Connection refused$"):
        fetch(server, file)


def test_a_full_disk_keeps_nothing(server, file, monkeypatch):
    part = file.parent / "tiny.pth.part"
    part.symlink_to("/dev/full")
    with pytest.raises(InputError, match="part cannot be written: No space left on device; MRCNN_JAX"):
        fetch(server, file)
    assert not part.is_symlink() and not file.exists()
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(InputError, match="has no room for 3 MB: MRCNN_JAX_CACHE names another place"):
        fetch(server, file)
    assert not part.exists()


@pytest.fixture
def entry(server, monkeypatch, tmp_path) -> zoo.Entry:
    """An entry of the catalogue whose file the server has, as a mirror."""
    monkeypatch.setenv(download.MIRROR, server.address)
    monkeypatch.setenv(download.CACHE, str(tmp_path / "cache"))
    entry = zoo.Entry("torchvision/tiny", f"https://download.example{PATH}", ("boxes",), 3.1)
    monkeypatch.setitem(zoo.ENTRIES, entry.name, entry)
    return entry


def test_two_at_once_load_once(server, entry):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(locate.find_file(entry.name).path)) for _ in range(2)
    ]
    server.stall = 0.1
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1 and found[0] == found[1] and found[0].read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written_is_named(entry, monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputError, match="the cache of weights .* cannot be written: set MRCNN_JAX_CACHE"):
        locate.find_file(entry.name)


def test_a_folder_can_be_the_mirror(entry, monkeypatch, tmp_path):
    source = tmp_path / "mirror" / PATH[1:]
    source.parent.mkdir(parents=True)
    source.write_bytes(CONTENT)
    monkeypatch.setenv(download.MIRROR, f"file://{tmp_path}/mirror/")
    assert locate.find_file(entry.name).path.read_bytes() == CONTENT
