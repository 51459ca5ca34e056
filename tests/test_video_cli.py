"""``firth video`` as people meet it: a file goes in and comes out exact, or one sentence says why not."""

import getpass
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV is not installed")
pytest.importorskip("cryptography", reason="cryptography is not installed")

import clips  # noqa: E402
import firth  # noqa: E402
from firth import cli, video  # noqa: E402
from firth.errors import FormatError, SettingError, StorageError  # noqa: E402
from firth.video import codecs, hiding, profiles  # noqa: E402
from firth.video.finding import default_name  # noqa: E402
from firth.video.lossless import Lossless  # noqa: E402
from firth.video.trial import Trial  # noqa: E402

SECRET = bytes(np.random.default_rng(11).integers(0, 256, 2500, dtype=np.uint8))


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> "Call":
    return Call(capfd)


class Call:
    """Runs a command in this process."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: object) -> Done:
        code = cli.run(["video", *(str(argument) for argument in arguments)])
        out, err = self._capture.readouterr()
        return Done(code, out, err)

    def refused(self, code: int, *arguments: object) -> str:
        """The one sentence of a command that must be refused with ``code``."""
        done = self(*arguments)
        assert done.code == code and not done.out and "Traceback" not in done.err, done
        last = done.err.splitlines()[-1]
        assert last.startswith("firth: ")
        return last.removeprefix("firth: ")


@pytest.fixture(scope="module")
def cover(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.clip(tmp_path_factory.mktemp("cover") / "cover.mp4", languages=("eng", "spa"))


@pytest.fixture(scope="module")
def marked(cover: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cover with SECRET in it, under the password ``pass``."""
    out = tmp_path_factory.mktemp("marked") / "marked.mkv"
    video.hide(cover, SECRET, out, password="pass", name="secret.bin")
    return out


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to be in, with a payload and a password file; nothing half-done may stay in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(SECRET)
    (tmp_path / "pass.txt").write_text("pass\n", "utf-8")
    yield tmp_path
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_there_and_back(cover: Path, work: Path, call: Call) -> None:
    done = call("hide", cover, "secret.bin", "-o", "out.mkv", "--password-file", "pass.txt")
    assert done.code == 0 and "hiding: done" in done.err and "reading back: done" in done.err
    facts = {line[:10].strip(): line[10:].strip() for line in done.out.splitlines()}
    assert facts["file"] == "out.mkv" and facts["profile"] == "lossless, ffv1"
    assert facts["payload"] == "2,500 bytes" and facts["secret"] == "yes"
    (work / "secret.bin").unlink()
    done = call("extract", "out.mkv", "--password-file", "pass.txt")
    assert done.code == 0 and (work / "secret.bin").read_bytes() == SECRET
    assert clips.packet_hashes(cover) == clips.packet_hashes(work / "out.mkv")
    before, after = clips.decoded_planes(cover), clips.decoded_planes(work / "out.mkv")
    for old, new in zip(before, after, strict=True):
        assert np.abs(old[0].astype(int) - new[0]).max() == 1
        assert np.array_equal(old[1], new[1]) and np.array_equal(old[2], new[2])


def test_in_python(cover: Path, tmp_path: Path) -> None:
    done = video.hide(cover, SECRET, tmp_path / "out.mp4", codec="x265", verify=True)
    assert (done.profile, done.codec, done.secret) == ("lossless", "x265", False)
    assert (done.symbols, done.symbols_needed, done.n_frames) == (12, 3, 12)
    assert done.psnr > 55 and done.psnr_least > 54.5 and done.ssim and done.ssim > 0.99
    assert done.growth == done.n_bytes / cover.stat().st_size
    found = video.extract(tmp_path / "out.mp4")
    assert (found.data, found.name, found.secret) == (SECRET, None, False)
    assert (found.n_frames, found.symbols_needed) == (3, 3)  # no more is read than it takes
    seen = video.inspect(tmp_path / "out.mp4")
    assert seen.found and seen.margin == 4 and seen.bit_error_rate == 0 and seen.password_fits is None


def test_json(cover: Path, work: Path, call: Call) -> None:
    done = call("hide", cover, "secret.bin", "-o", "out.mkv", "--json", "--quiet")
    assert done.err == "" and json.loads(done.out)["symbols_needed"] == 3
    facts = json.loads(call("inspect", "out.mkv", "--json", "-q").out)
    assert facts["found"] and facts["profile"] == "lossless" and facts["n_usable"] == 12
    facts = json.loads(call("extract", "out.mkv", "-o", "back", "--json", "-q").out)
    assert (facts["path"], facts["name"], facts["n_bytes"]) == ("back", "secret.bin", 2500)
    assert "data" not in facts
    rooms = json.loads(call("capacity", cover, "--json").out)
    assert rooms[0]["profile"] == "lossless"


def test_capacity_is_what_fits(cover: Path, work: Path, call: Call) -> None:
    room = video.capacity(cover)[0]
    assert room.bits_per_frame == pytest.approx(8 * room.n_bytes / 12)
    fits = np.random.default_rng(0).bytes(room.n_bytes)
    video.hide(cover, fits, "out.mkv", password="pass")
    assert video.extract("out.mkv", password="pass").data == fits
    (work / "large").write_bytes(fits + b"more")
    sentence = call.refused(2, "hide", cover, "large", "-o", "more.mkv", "--password-file", "pass.txt")
    assert "takes 11,184 in profile lossless" in sentence and "--rate 1" in sentence
    assert "such frames" in sentence and not (work / "more.mkv").exists()
    more = video.capacity(cover, rate=1)[0].n_bytes
    assert more > 2.4 * room.n_bytes
    assert video.capacity(cover, rate=1, min_psnr=55)[0].n_bytes < 0.5 * more
    assert "lossless" in call("capacity", cover).out


def test_capacity_of_pixels_that_h264_does_not_take(tmp_path: Path) -> None:
    cover = clips.clip(tmp_path / "odd.mkv", width=321, height=241, n_frames=3, codec="ffv1", languages=())
    rooms = {room.profile: room.n_bytes for room in video.capacity(cover)}
    assert rooms.pop("lossless") > 10_000 and not any(rooms.values())
    for profile in rooms:
        with pytest.raises(SettingError, match=r"h264 takes even sizes only, and odd\.mkv has 321x241"):
            video.hide(cover, b"x", tmp_path / "out.mkv", profile=profile)


def test_standard_input_and_output(cover: Path, work: Path) -> None:
    def process(*arguments: object, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        paths = {"PYTHONPATH": str(Path(firth.__file__).parents[1])}
        return subprocess.run(
            [sys.executable, "-m", "firth", "video", *map(str, arguments)],
            input=given,
            env={**os.environ, **paths},
            capture_output=True,
            check=False,
        )

    assert process("hide", cover, "-", "-o", "out.mkv", given=SECRET).returncode == 0
    done = process("extract", "out.mkv", "-o", "-")
    assert done.stdout == SECRET and done.returncode == 0 and b"reading" in done.stderr
    done = process("extract", cover, "-o", "-")
    assert done.stdout == b"" and done.returncode == 1


def test_passwords(marked: Path, work: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    for text, fits in (("pass", True), ("pass\n", True), ("pass\r\n", True), ("pass\n\n", False)):
        (work / "p").write_bytes(text.encode())
        assert json.loads(call("inspect", marked, "--password-file", "p", "--json").out)["found"] is fits
    (work / "p").write_bytes(b"\n")
    assert "p is empty" in call.refused(2, "inspect", marked, "--password-file", "p")
    (work / "p").write_bytes(b"\xff\n")
    assert "byte 0 is not UTF-8" in call.refused(2, "inspect", marked, "--password-file", "p")
    assert "cannot read none" in call.refused(1, "inspect", marked, "--password-file", "none")
    both = call.refused(2, "inspect", marked, "--password-file", "p", "--password-prompt")
    assert "not both" in both
    asked = iter(["pass", "this", "that", ""])
    monkeypatch.setattr(getpass, "getpass", lambda *_, **__: next(asked))
    assert call("extract", marked, "-o", "back", "--password-prompt").code == 0
    assert (work / "back").read_bytes() == SECRET
    hide = ("hide", marked, "back", "-o", "o.mkv", "--password-prompt")
    assert call.refused(2, *hide) == "the two passwords differ; nothing was done"
    assert "the password is empty" in call.refused(2, "inspect", marked, "--password-prompt")

    def no_terminal(*_: object, **__: object) -> str:
        raise EOFError

    monkeypatch.setattr(getpass, "getpass", no_terminal)
    assert "needs a terminal" in call.refused(2, *hide)


def test_a_wrong_password_and_nothing_hidden_look_alike(
    cover: Path, marked: Path, work: Path, call: Call
) -> None:
    (work / "wrong").write_text("wrong", "utf-8")
    wrong = call.refused(1, "extract", marked, "--password-file", "wrong")
    nothing = call.refused(1, "extract", cover, "--password-file", "wrong")
    assert wrong.replace(str(marked), "X") == nothing.replace(str(cover), "X")
    assert "a wrong password and nothing hidden look alike" in wrong
    assert "without a password" in call.refused(1, "extract", marked)
    for path in (cover, marked):
        done = call("inspect", path, "--password-file", "wrong")
        assert done.code == 0 and "nothing found for this password" in done.out
    assert "the password fits" in call("inspect", marked, "--password-file", "pass.txt").out
    assert "nothing found without a password" in call("inspect", marked).out
    video.hide(cover, SECRET, "open.mkv")
    assert "the one given is not needed" in call("inspect", "open.mkv", "--password-file", "wrong").out


def test_nothing_is_overwritten(cover: Path, marked: Path, work: Path, call: Call) -> None:
    (work / "out.mkv").write_bytes(b"old")
    assert "out.mkv exists" in call.refused(1, "hide", cover, "secret.bin", "-o", "out.mkv")
    assert "hiding" not in call("hide", cover, "secret.bin", "-o", "out.mkv").err  # told before any work
    assert (work / "out.mkv").read_bytes() == b"old"
    assert call("hide", cover, "secret.bin", "-o", "out.mkv", "--force").code == 0
    assert video.extract("out.mkv").data == SECRET
    (work / "secret.bin").write_bytes(b"old")
    for given in ([], ["-o", "secret.bin"]):
        sentence = call.refused(1, "extract", marked, "--password-file", "pass.txt", *given)
        assert "secret.bin exists" in sentence and (work / "secret.bin").read_bytes() == b"old"
    assert call("extract", marked, "--password-file", "pass.txt", "--force").code == 0
    assert (work / "secret.bin").read_bytes() == SECRET
    os.symlink(cover, work / "link.mp4")
    for out in (cover, work / "link.mp4"):
        sentence = call.refused(2, "hide", cover, "secret.bin", "-o", out, "--force")
        assert "is the cover itself" in sentence
    os.symlink("secret.bin", work / "link.mkv")
    assert "is the payload itself" in call.refused(
        2, "hide", cover, "secret.bin", "-o", "link.mkv", "--force"
    )


def test_wrong_calls(cover: Path, work: Path, call: Call) -> None:
    (work / "empty").touch()
    (work / "notes.txt").write_text("no video\n" * 100, "utf-8")
    hide = ("hide", cover, "secret.bin", "-o", "o.mkv")
    for code, arguments, part in (
        (2, ("hide", cover, "empty", "-o", "o.mkv"), "the payload is empty"),
        (1, ("hide", cover, "none", "-o", "o.mkv"), "cannot read none"),
        (1, ("hide", cover, ".", "-o", "o.mkv"), "cannot read ."),
        (1, ("hide", "notes.txt", "secret.bin", "-o", "o.mkv"), "notes.txt is not a video"),
        (1, ("hide", "none.mp4", "secret.bin", "-o", "o.mkv"), "cannot read none.mp4"),
        (2, ("hide", cover, "secret.bin", "-o", "o.avi"), "names no container"),
        (1, ("hide", cover, "secret.bin", "-o", "no/o.mkv"), "the folder no does not exist"),
        (2, (*hide, "--codec", "mpeg4"), "mpeg4 would destroy"),
        (2, ("hide", cover, "secret.bin", "-o", "o.mp4", "--codec", "ffv1"), ".mp4 holds no ffv1"),
        (2, (*hide, "--profile", "loud"), "no profile loud"),
        (2, (*hide, "--rate", "1.5"), "--rate must be at least 0 and at most 1"),
        (2, (*hide, "--rate", "0"), "rate must be above 0"),
        (2, (*hide, "--min-psnr", "5"), "--min-psnr must be at least 20"),
        (2, (*hide, "--min-psnr", "90"), "too small to carry anything|takes 0 in profile"),
        (2, (*hide, "--survive", "x264:medium:28"), "lives through no second encode"),
        (2, (*hide, "--survive", "x264"), "ENCODER:PRESET:CRF"),
        (2, ("hide", cover, "secret.bin"), "missing option"),
        (1, ("extract", "notes.txt"), "notes.txt is not a video"),
        (2, ("extract", cover, "-o", "-", "--json"), "either the payload or JSON"),
        (1, ("capacity", "none.mp4"), "cannot read none.mp4"),
        (1, ("inspect", "notes.txt"), "notes.txt is not a video"),
        (2, ("hid",), "firth video has no verb 'hid'; did you mean 'hide'?"),
        (2, (*hide, "--pasword-file", "x"), "did you mean '--password-file'"),
    ):
        sentence = call.refused(code, *arguments)
        assert any(one in sentence for one in part.split("|")), sentence
        assert not list(work.glob("o.*"))


def test_help(call: Call) -> None:
    assert all(verb in call().out for verb in ("hide", "extract", "capacity", "inspect"))
    assert "--survive" in call("hide", "--help").out


def test_what_is_left_of_a_film_is_enough(marked: Path, work: Path, call: Call) -> None:
    """Trimmed, reordered, re-timed and re-coded without loss; then with too little left."""
    frames = clips.decoded_planes(marked)

    def save(name: str, order: list[int]) -> Path:
        with av.open(name, "w") as film:
            stream = film.add_stream("libx264", rate=50, options={"qp": "0"})
            stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
            for place, number in enumerate(order):
                frame = av.VideoFrame(160, 120, "yuv420p")
                for plane, rows in zip(frame.planes, frames[number], strict=True):
                    np.frombuffer(plane, np.uint8).reshape(plane.height, -1)[:, : plane.width] = rows
                frame.pts = place
                film.mux(stream.encode(frame))
            film.mux(stream.encode(None))
        return work / name

    assert (
        call("extract", save("some.mp4", [7, 2, 2, 11]), "--password-file", "pass.txt", "--force").code == 0
    )
    few = save("few.mp4", [7, 7, 2])
    sentence = call.refused(1, "extract", few, "-o", "x", "--password-file", "pass.txt")
    assert "2 of 3 symbols needed were found in 3 frames" in sentence
    assert "at least 1 are missing" in sentence and "bits a pixel" in sentence and not (work / "x").exists()
    done = call("inspect", few, "--password-file", "pass.txt")
    assert "0.67 times what is needed, too few to take it out" in done.out


def test_a_cut_file_gives_what_it_can(marked: Path, work: Path) -> None:
    (work / "cut.mkv").write_bytes(marked.read_bytes()[: marked.stat().st_size * 2 // 3])
    assert video.extract("cut.mkv", password="pass").data == SECRET
    (work / "cut.mkv").write_bytes(marked.read_bytes()[: marked.stat().st_size // 10])
    with pytest.raises(FormatError):
        video.extract("cut.mkv", password="pass")


@pytest.mark.parametrize("profile", ["high", "web", "hard"])
def test_robust_profiles_live_through_an_encode(profile: str, work: Path, call: Call) -> None:
    cover = clips.clip(work / "cover.mp4", width=320, height=240, n_frames=24, languages=("eng", "spa"))
    (work / "key.txt").write_text("open sesame", "utf-8")
    given = ("--profile", profile, "--password-file", "pass.txt", "--survive", "x264:fast:23")
    done = call("hide", cover, "key.txt", "-o", "out.mp4", *given)
    assert done.code == 0 and "trying x264:fast:23: done" in done.err
    assert f"{profile}, h264" in done.out and "survived" in done.out
    assert clips.packet_hashes(cover) == clips.packet_hashes(work / "out.mp4")
    assert clips.frame_times(cover) == clips.frame_times(work / "out.mp4")
    Trial.parse("x264:fast:23").encode("out.mp4", work / "again.mkv")
    for path in ("out.mp4", "again.mkv"):
        found = video.extract(path, password="pass")
        assert (found.data, found.name, found.profile) == (b"open sesame", "key.txt", profile)
    seen = video.inspect("again.mkv", password="pass")
    assert seen.margin and seen.margin >= 1 and seen.bit_error_rate is not None


def test_a_lossy_encode_destroys_it_and_says_so(marked: Path, work: Path) -> None:
    Trial.parse("x264:veryfast:18").encode(marked, work / "lossy.mkv")
    with pytest.raises(FormatError, match="nothing is hidden in"):
        video.extract("lossy.mkv", password="pass")


def test_an_encoder_that_is_not_lossless_is_found_out(
    cover: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lossy = replace(codecs.LOSSLESS["x264"], options={"qp": "2", "preset": "veryfast"})
    monkeypatch.setattr(codecs, "LOSSLESS", MappingProxyType({**codecs.LOSSLESS, "x264": lossy}))
    with pytest.raises(FormatError, match=r"frame 0 of out\.mkv came back changed"):
        video.hide(cover, SECRET, "out.mkv", codec="x264")
    assert not (work / "out.mkv").exists()


def test_a_payload_that_does_not_come_out_is_not_handed_out(
    cover: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lowest bits in a lossy file, as no profile would: the file is written, tried, and thrown away."""

    class Foolish(Lossless):
        """It says that it lives through an encode."""

    foolish = Foolish()
    object.__setattr__(foolish, "name", "web")
    object.__setattr__(foolish, "lossless", False)
    monkeypatch.setattr(profiles, "_robust", lambda: {"web": foolish})
    with pytest.raises(
        FormatError, match=r"0 of \? symbols needed came out of out\.mp4; nothing was written"
    ):
        video.hide(cover, SECRET, "out.mp4", profile="web")
    with pytest.raises(FormatError, match=r"came out of the trial encode x264:fast:20"):
        video.hide(cover, SECRET, "out.mp4", profile="web", verify=False, survive="x264:fast:20")
    assert not (work / "out.mp4").exists()
    done = video.hide(cover, SECRET, "out.mp4", profile="web", verify=False)
    assert done.codec == "h264" and done.path.exists()
    with pytest.raises(SettingError, match=r"the encoder does not take this"):
        video.hide(cover, SECRET, "o.mp4", profile="web", verify=False, survive="x264:nix:20")


def test_a_mean_below_the_floor_is_not_handed_out(
    cover: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lossless, "holding", lambda self, psnr, info: self)
    large = np.random.default_rng(0).bytes(11_000)
    with pytest.raises(FormatError, match=r"PSNR came to 55\.\d\d dB, below the 60 asked for"):
        video.hide(cover, large, "out.mkv", min_psnr=60)
    assert not (work / "out.mkv").exists()


def test_fewer_frames_than_packets(cover: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = hiding.probe(cover)
    monkeypatch.setattr(hiding, "probe", lambda path: replace(info, n_frames=40))
    with pytest.raises(FormatError, match="only 12 of 40 frames"):
        video.hide(cover, np.random.default_rng(0).bytes(20_000), "out.mkv")
    assert not (work / "out.mkv").exists()


def test_trials() -> None:
    assert Trial.parse("x264:medium:28") == Trial("x264", "medium", 28)
    for text in ("", "x264", "x264:medium", "x264::3", "x264:medium:no", "h263:medium:3", "x264:medium:70"):
        with pytest.raises(SettingError, match="--survive"):
            Trial.parse(text)


def test_names_of_payloads() -> None:
    def name(own: str | None) -> str:
        return default_name(video.Extracted(b"x", own, True, "", 1, 1, 1, None), "films/film.mkv")

    assert name("notes.pdf") == "notes.pdf"
    assert name(None) == name(".bashrc") == name("-rf") == "film.mkv.payload"


def test_without_the_extra(cover: Path, call: Call, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install 'firth[video]'" in call.refused(1, "capacity", cover)


def _limited(*arguments: object, bytes_at_most: int) -> subprocess.CompletedProcess[str]:
    """A command in a process that may write no file longer than so many bytes."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_at_most, bytes_at_most))

    paths = {"PYTHONPATH": str(Path(firth.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-m", "firth", "video", *map(str, arguments)],
        env={**os.environ, **paths},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("out", ["o.mkv", "o.mp4"])
def test_a_file_that_cannot_grow(cover: Path, work: Path, out: str) -> None:
    """As on a full disk: one sentence, and nothing stays."""
    done = _limited("hide", cover, "secret.bin", "-o", out, "-q", bytes_at_most=60_000)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.splitlines()[-1].startswith(f"firth: cannot write {out}: file too large")
    assert "Traceback" not in done.stderr and sorted(os.listdir(work)) == ["pass.txt", "secret.bin"]


def test_a_full_disk(cover: Path, work: Path) -> None:
    small = work / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(small)]
    if os.getuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a file system of 100 kB cannot be mounted here")
    try:
        with pytest.raises(StorageError, match=r"no space left on device \(.* bytes free\)"):
            video.hide(cover, SECRET, small / "out.mkv")
        assert os.listdir(small) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_ctrl_c(work: Path) -> None:
    long = clips.clip(work / "long.mkv", n_frames=60, languages=(), options={"preset": "ultrafast"})
    slow = "import sys, time\nfrom firth.video import lossless\nold = lossless.matched\n"
    slow += "lossless.matched = lambda *given: (time.sleep(0.2), old(*given))[1]\n"
    slow += "from firth import cli\ncli.main(sys.argv[1:])"
    paths = {"PYTHONPATH": str(Path(firth.__file__).parents[1])}
    child = subprocess.Popen(
        [sys.executable, "-c", slow, "video", "hide", str(long), "secret.bin", "-o", "o.mkv", "-q"],
        env={**os.environ, **paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 30
    while not any(path.suffix == ".tmp" for path in work.iterdir()) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 130 and "Traceback" not in err and not out
    assert err == "firth: stopped; nothing was written\n"
    assert sorted(os.listdir(work)) == ["long.mkv", "pass.txt", "secret.bin"]


def test_nothing_else_imports_video() -> None:
    code = "import sys, firth, firth.vectors; sys.exit(any('firth.video' in name for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    source = Path(firth.__file__).parent
    for path in source.rglob("*.py"):
        inside = path.relative_to(source).parts[0]
        if inside not in ("video", "cli") and path.name != "__init__.py":
            assert "firth.video" not in path.read_text("utf-8"), path


def test_a_larger_film_of_others(data: Path, tmp_path: Path) -> None:
    given: Any = data / "video" / "flower.webm"
    if not given.exists():
        pytest.skip("the folder of real data has no video/flower.webm")
    with av.open(str(given)) as film, av.open(str(tmp_path / "cover.webm"), "w") as short:
        copies = {one.index: short.add_stream_from_template(one, opaque=True) for one in film.streams}
        for packet in film.demux():
            if packet.size and packet.pts * packet.time_base < 0.4:
                packet.stream = copies[packet.stream.index]
                short.mux(packet)
    done = video.hide(tmp_path / "cover.webm", SECRET, tmp_path / "out.mkv", password="x")
    assert done.symbols_needed == 1
    assert video.extract(tmp_path / "out.mkv", password="x").data == SECRET
    assert clips.packet_hashes(tmp_path / "cover.webm") == clips.packet_hashes(tmp_path / "out.mkv")
