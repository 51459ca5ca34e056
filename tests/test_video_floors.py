"""Quality that is asked for, and code rates that are tried: found before a file gets its name, or no file."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av", reason="PyAV is not installed")

import clips
from firth import cli, video
from firth.errors import FormatError, SettingError
from firth.video.floors import Floors
from firth.video.metrics import Quality
from firth.video.trial import Trial


@pytest.fixture(scope="module")
def cover(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.clip(tmp_path_factory.mktemp("cover") / "cover.mp4", width=320, height=240, n_frames=20)


@pytest.fixture(scope="module")
def plain(cover: Path) -> video.Hidden:
    return video.hide(cover, b"open sesame", cover.with_name("plain.mkv"), profile="web")


def test_a_floor_of_ssim_takes_strength_away(cover: Path, plain: video.Hidden, tmp_path: Path) -> None:
    assert plain.ssim is not None and plain.psnr < 41
    floor = plain.ssim + 0.3 * (1 - plain.ssim)
    done = video.hide(cover, b"open sesame", tmp_path / "o.mkv", profile="web", min_ssim=floor)
    assert done.ssim is not None and done.ssim >= floor - 0.001 and done.psnr > 41.5
    assert video.extract(tmp_path / "o.mkv").data == b"open sesame"
    as_it_is = video.hide(
        cover, b"open sesame", tmp_path / "p.mkv", profile="web", min_ssim=plain.ssim - 0.01
    )
    assert as_it_is.psnr == pytest.approx(plain.psnr, abs=0.1)  # the greatest strength that keeps it


def test_flicker_is_bounded(cover: Path, plain: video.Hidden, tmp_path: Path) -> None:
    assert plain.flicker is not None and plain.flicker > 3
    done = video.hide(cover, b"open sesame", tmp_path / "o.mkv", profile="web", max_flicker=2.2)
    assert done.flicker is not None and done.flicker <= 2.2 * 1.02
    assert done.psnr > 44  # two steps of strength, where other settings hold the payload
    assert video.extract(tmp_path / "o.mkv").data == b"open sesame"


def test_what_no_strength_keeps_is_not_written(cover: Path, tmp_path: Path) -> None:
    for asked, said in (({"min_ssim": 0.99999}, "SSIM"), ({"max_flicker": 0.1}, "flicker")):
        with pytest.raises(FormatError, match=f"weakest strength of profile web that holds .* the {said}"):
            video.hide(cover, b"open sesame", tmp_path / "o.mkv", profile="web", **asked)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_floors() -> None:
    """Nothing asked for, nothing missed; nothing measured, nothing missed."""
    quality = Quality(8)
    assert Floors().missed(quality) is None and not Floors(psnr=50).need_rehearsal
    assert Floors(ssim=1.0, flicker=0.0).missed(quality) is None


def test_another_rate_is_tried_where_the_first_does_not_come_through(
    cover: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial encode that loses everything, the first time."""
    tried = []

    def encode(self: Trial, path: Any, out: Path, **_: Any) -> None:
        tried.append(path)
        shutil.copy(cover if len(tried) == 1 else path, out)

    monkeypatch.setattr(Trial, "encode", encode)
    done = video.hide(cover, b"s" * 9, tmp_path / "o.mkv", profile="web", survive="x264:medium:28")
    assert len(tried) == 2 and done.survived == "x264:medium:28" and done.code_rate == 0.28
    assert video.extract(tmp_path / "o.mkv").data == b"s" * 9

    monkeypatch.setattr(Trial, "encode", lambda self, path, out, **_: shutil.copy(cover, out))
    with pytest.raises(FormatError, match=r"0 of \? symbols needed came out of the trial encode"):
        video.hide(cover, b"s", tmp_path / "no.mkv", profile="web", survive="x264:medium:28")
    assert not (tmp_path / "no.mkv").exists()


def test_spread_on_the_command_line(cover: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key.txt").write_text("open sesame", "utf-8")
    hide = ["video", "hide", str(cover), str(tmp_path / "key.txt"), "-o", str(tmp_path / "o.mp4")]
    assert cli.run([*hide, "--profile", "web", "--spread", "--survive", "x264:fast:23"]) == 0
    assert "each spread over 16 frames" in capfd.readouterr().out
    assert cli.run(["video", "extract", str(tmp_path / "o.mp4"), "-o", "-"]) == 0
    assert capfd.readouterr().out == "open sesame"
    assert cli.run([*hide, "--spread", "--force"]) == 2
    assert "lossless profile has no codewords to spread" in capfd.readouterr().err
    rooms = []
    for more in ([], ["--spread"]):
        assert cli.run(["video", "capacity", str(cover), "--json", *more]) == 0
        rooms.append({one["profile"]: one["n_bytes"] for one in json.loads(capfd.readouterr().out)})
    assert rooms[0]["lossless"] == rooms[1]["lossless"] and rooms[0]["high"] and rooms[1]["high"]


def test_spread_is_offered_where_it_would_fit(tmp_path: Path) -> None:
    cover = clips.clip(tmp_path / "long.mp4", width=320, height=240, n_frames=64)
    room = {
        spread: {one.profile: one.n_bytes for one in video.capacity(cover, spread=spread)}
        for spread in (False, True)
    }
    need = (room[False]["web"] + room[True]["web"]) // 2
    payload = bytes(clips.np.random.default_rng(0).integers(0, 256, need, dtype="uint8"))
    with pytest.raises(SettingError, match=r"or --spread \([\d,]+ bytes\)"):
        video.hide(cover, payload, tmp_path / "o.mkv", profile="web")
