"""Films written anew: the luma that was asked for, and everything else as it was."""

import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV is not installed")

import clips  # noqa: E402
from firth import video  # noqa: E402
from firth.errors import FormatError, MissingExtra, SettingError, StorageError  # noqa: E402
from firth.video.codecs import LOSSLESS, container_for, encoder_for  # noqa: E402
from firth.video.frames import ATTACHED_PICTURE, attached_picture, luma_frames, open_video, probe  # noqa: E402
from firth.video.writing import FrameLog, lost, rewrite  # noqa: E402


@pytest.fixture(scope="module")
def cover(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """H.264 with B-frames, sound in two languages before the picture, tags and a rotation."""
    return clips.clip(
        tmp_path_factory.mktemp("cover") / "cover.mp4",
        languages=("eng", "spa"),
        audio_first=True,
        rotation=90,
        tags={"title": "A film", "comment": "made by a test"},
        chapters=True,
    )


def flip(luma: Any, frame_pos: int) -> Any:
    """Another lowest bit everywhere."""
    return luma ^ 1


def written(cover: Path, out: Path, codec: str, change: Callable[[Any, int], Any] = flip) -> FrameLog:
    log = rewrite(cover, out, container_for(out), LOSSLESS[codec], change, name=out.name)
    log.check(out, name=out.name)
    return log


def assert_only_luma_changed(cover: Path, out: Path) -> None:
    before, after = clips.decoded_planes(cover), clips.decoded_planes(out)
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(old[0] ^ 1, new[0])
        for plane in range(1, len(old)):
            assert np.array_equal(old[plane], new[plane])
    assert clips.packet_hashes(cover) == clips.packet_hashes(out)
    assert (
        np.abs(np.subtract(clips.frame_times(cover), clips.frame_times(out))).max() < 0.00051
    )  # Matroska has milliseconds
    assert lost(cover, out) == []


@pytest.mark.parametrize(
    ("out", "codec"),
    [
        ("out.mkv", "ffv1"),
        ("out.mkv", "x264"),
        ("out.mkv", "x265"),
        ("out.mkv", "vp9"),
        ("out.mp4", "x264"),
        ("out.mp4", "x265"),
        ("out.mp4", "vp9"),
        ("out.mov", "x264"),
    ],
)
def test_only_luma_changes(cover: Path, tmp_path: Path, out: str, codec: str) -> None:
    log = written(cover, tmp_path / out, codec)
    assert log.n_frames == 12
    assert_only_luma_changed(cover, tmp_path / out)
    with av.open(str(cover)) as before, av.open(str(tmp_path / out)) as after:
        # MP4 keeps chapters in a stream of data.
        kinds = [one.type for one in after.streams if one.type != "data"]
        assert kinds == ["audio", "audio", "video"]
        assert [one.metadata.get("language") for one in after.streams.audio] == ["eng", "spa"]
        for old, new in zip(list(before.streams)[:3], list(after.streams)[:3], strict=True):
            assert old.disposition == new.disposition
        assert after.metadata["title" if "title" in after.metadata else "TITLE"] == "A film"
        assert len(after.chapters()) == 1
        frame = next(after.decode(video=0))
        assert frame.rotation == 90
        context = after.streams.video[0].codec_context
        tags = [context.color_range, context.colorspace, context.color_primaries, context.color_trc]
        assert tags == [1, 1, 1, 1]


UNUSUAL = {
    "variable frame rate": {"times": [0, 500, 1111, 2000, 2222, 3000, 4000, 4100, 5000, 5555, 6000, 90000]},
    "odd size": {"width": 161, "height": 121, "codec": "ffv1", "suffix": ".mkv"},
    "10 bits": {"pixel_format": "yuv420p10le"},
    "full range": {"pixel_format": "yuvj420p", "colours": 2},
    "4:4:4": {"pixel_format": "yuv444p"},
    "4:2:2, 10 bits": {"pixel_format": "yuv422p10le"},
    "grey": {"pixel_format": "gray", "codec": "ffv1", "suffix": ".mkv"},
    "no sound": {"languages": ()},
    "one frame": {"n_frames": 1},
    "small": {"width": 16, "height": 16, "n_frames": 3},
}


@pytest.mark.parametrize("kind", UNUSUAL)
def test_unusual_covers(kind: str, tmp_path: Path) -> None:
    given = dict(UNUSUAL[kind])
    cover = clips.clip(tmp_path / f"cover{given.pop('suffix', '.mp4')}", **given)
    written(cover, tmp_path / "out.mkv", "ffv1")
    assert_only_luma_changed(cover, tmp_path / "out.mkv")


def test_ten_bits_in_h264_and_h265(tmp_path: Path) -> None:
    cover = clips.clip(tmp_path / "cover.mp4", pixel_format="yuv420p10le")
    assert next(luma_frames(cover)).dtype == np.uint16 and probe(cover).depth == 10
    for codec in ("x264", "x265"):
        written(cover, tmp_path / "out.mp4", codec)
        assert_only_luma_changed(cover, tmp_path / "out.mp4")


def test_subtitles_and_attachments_go_along(tmp_path: Path) -> None:
    lines = tmp_path / "lines.srt"
    lines.write_text(
        "1\n00:00:00,040 --> 00:00:00,200\nhello\n\n2\n00:00:00,240 --> 00:00:00,400\nworld\n", "utf-8"
    )
    cover = clips.clip(tmp_path / "cover.mkv", subtitles=lines, attachment=b"a font" * 50)
    written(cover, tmp_path / "out.mkv", "ffv1")
    assert_only_luma_changed(cover, tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as out:
        assert sum(1 for packet in out.demux(subtitles=0) if packet.size) == 2
        assert out.streams.attachments[0].data == b"a font" * 50


def test_subtitles_of_mp4(tmp_path: Path) -> None:
    plain = clips.clip(tmp_path / "plain.mp4")
    cover = tmp_path / "cover.mp4"
    with av.open(str(plain)) as film, av.open(str(cover), "w") as out:
        copies = {one.index: out.add_stream_from_template(one, opaque=True) for one in film.streams}
        lines = out.add_mux_stream("mov_text", time_base=Fraction(1, 1000))
        for number, line in enumerate((b"hello", b"world")):
            packet = av.Packet(len(line).to_bytes(2, "big") + line)
            packet.stream, packet.time_base = lines, Fraction(1, 1000)
            packet.pts = packet.dts = 200 * number
            packet.duration = 150
            out.mux(packet)
        for packet in film.demux():
            if packet.size:
                packet.stream = copies[packet.stream.index]
                out.mux(packet)
    for name in ("out.mp4", "out.mov"):
        written(cover, tmp_path / name, "x264")
        assert_only_luma_changed(cover, tmp_path / name)
    with pytest.raises(SettingError, match=r"cannot hold stream 2 \(subtitle, mov_text\) .*own container$"):
        written(cover, tmp_path / "out.mkv", "ffv1")


def test_interlaced_films_stay_so(tmp_path: Path) -> None:
    cover = clips.clip(tmp_path / "cover.mp4", options={"flags": "+ilme+ildct", "x264-params": "tff=1"})
    for out, codec in (("out.mkv", "ffv1"), ("out.mp4", "x264")):
        written(cover, tmp_path / out, codec)
        assert_only_luma_changed(cover, tmp_path / out)
        with av.open(str(tmp_path / out)) as film:
            assert next(film.decode(video=0)).interlaced_frame
            assert film.streams.video[0].codec_context.field_order == 2  # top first
    written(cover, tmp_path / "out.mkv", "vp9")
    assert lost(cover, tmp_path / "out.mkv") == ["the interlacing"]


def test_cover_art_goes_along(tmp_path: Path) -> None:
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt = 32, 32, "rgb24"
    encoder.time_base = Fraction(1, 25)
    art = tmp_path / "art.png"
    art.write_bytes(b"".join(map(bytes, encoder.encode(av.VideoFrame(32, 32, "rgb24")))))
    plain = clips.clip(tmp_path / "plain.mp4")
    cover = tmp_path / "cover.mp4"
    with av.open(str(plain)) as film, av.open(str(art)) as picture, av.open(str(cover), "w") as out:
        copies = {one.index: out.add_stream_from_template(one, opaque=True) for one in film.streams}
        cover_art = out.add_stream_from_template(picture.streams.video[0], opaque=True)
        cover_art.disposition = ATTACHED_PICTURE
        for source in (picture, film):
            for packet in source.demux():
                if packet.size:
                    packet.stream = cover_art if source is picture else copies[packet.stream.index]
                    out.mux(packet)
    assert probe(cover).codec == "h264"  # and not the picture
    for name, codec in (("out.mp4", "x264"), ("out.mkv", "ffv1")):
        written(cover, tmp_path / name, codec)
        assert_only_luma_changed(cover, tmp_path / name)
        with av.open(str(tmp_path / name)) as film:
            pictures = [one for one in film.streams.video if int(one.disposition) & ATTACHED_PICTURE]
            assert len(pictures) == 1
            assert attached_picture(tmp_path / name, pictures[0].index) == art.read_bytes()


def test_damaged_files_give_frames_or_a_sentence(tmp_path: Path) -> None:
    wholes = [
        clips.clip(tmp_path / name, n_frames=4, width=64, height=48, tags={"title": "a film"})
        for name in ("whole.mp4", "whole.mkv")
    ]
    chance = np.random.default_rng(0)
    n_read = 0
    for number in range(60):
        whole = wholes[number % 2]
        damaged = bytearray(whole.read_bytes())
        if number % 3 == 0:
            del damaged[int(chance.integers(len(damaged))) :]
        for place in chance.integers(0, len(damaged), 20 if number % 3 == 1 else 0).tolist():
            damaged[place] ^= 1 << int(chance.integers(8))
        head = len(damaged) - 1500 if whole.suffix == ".mp4" else 0  # where tables and tags stand
        for place in chance.integers(0, 1500, 6 if number % 3 == 2 else 0).tolist():
            damaged[max(0, head) + place] = int(chance.integers(256))
        path = tmp_path / f"damaged{whole.suffix}"
        path.write_bytes(damaged)
        for read in (probe, lambda path: list(luma_frames(path)), lambda path: rewritten(path, tmp_path)):
            try:
                read(path)
                n_read += 1
            except (FormatError, SettingError) as error:
                assert "\n" not in str(error)
    assert 30 < n_read < 180


def rewritten(path: Path, folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of streams that are left out
        out = folder / "out.mkv"
        rewrite(path, out, container_for(out), LOSSLESS["ffv1"], flip, name=out.name)


def test_tags_that_are_not_text(tmp_path: Path) -> None:
    cover = clips.clip(tmp_path / "cover.mp4", tags={"title": "a film"})
    cover.write_bytes(cover.read_bytes().replace(b"a film", b"a f\xfflm"))
    assert probe(cover).n_frames == 12


def test_oblong_pixels(tmp_path: Path) -> None:
    cover = clips.clip(tmp_path / "cover.mp4", sample_aspect=Fraction(4, 3))
    info = probe(cover)
    assert info.sample_aspect == Fraction(4, 3)
    for out in ("out.mkv", "out.mp4"):
        encoder = encoder_for(out, None, True, info)
        assert encoder.name == "x264"
        written(cover, tmp_path / out, encoder.name)
        assert lost(cover, tmp_path / out) == []
    written(cover, tmp_path / "out.mkv", "ffv1")
    assert lost(cover, tmp_path / "out.mkv") == ["the aspect ratio"]


def test_tags_that_mp4_has_no_place_for(tmp_path: Path) -> None:
    cover = clips.clip(tmp_path / "cover.mkv", tags={"title": "A film", "camera": "none"})
    written(cover, tmp_path / "out.mp4", "x264")
    assert lost(cover, tmp_path / "out.mp4") == []


def test_what_a_container_loses_is_told(tmp_path: Path) -> None:
    cover = clips.clip(tmp_path / "cover.mp4", languages=("deu",))  # .mov knows German as ger only
    written(cover, tmp_path / "out.mov", "x264")
    assert lost(cover, tmp_path / "out.mov") == ["the languages"]
    mastering = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)"
    hdr = clips.clip(
        tmp_path / "hdr.mp4",
        codec="libx265",
        pixel_format="yuv420p10le",
        options={"x265-params": f"log-level=none:hdr10=1:master-display={mastering}:max-cll=1000,400"},
    )
    with pytest.warns(UserWarning, match=r"out\.mkv could not keep HDR metadata of .*hdr\.mp4"):
        video.hide(hdr, b"x", tmp_path / "out.mkv")


def test_frames_that_others_are_predicted_from_are_not_touched(tmp_path: Path) -> None:
    """A change in the decoder's own buffers would spoil the frames after it."""
    cover = clips.clip(tmp_path / "cover.mp4", options={"bf": "0", "refs": "1", "preset": "veryfast"})
    written(cover, tmp_path / "out.mkv", "ffv1", lambda luma, frame_pos: np.zeros_like(luma))
    before, after = clips.decoded_planes(cover), clips.decoded_planes(tmp_path / "out.mkv")
    assert all(not new[0].any() for new in after)
    assert all(np.array_equal(old[1], new[1]) for old, new in zip(before, after, strict=True))


def test_a_change_sees_frames_in_order_and_may_change_its_copy(cover: Path, tmp_path: Path) -> None:
    seen = []

    def change(luma: Any, frame_pos: int) -> Any:
        seen.append((frame_pos, luma.copy()))
        luma[:] = frame_pos
        return luma

    written(cover, tmp_path / "out.mkv", "ffv1", change)
    assert [frame_pos for frame_pos, _ in seen] == list(range(12))
    planes = clips.decoded_planes(cover)
    assert all(np.array_equal(luma, planes[frame_pos][0]) for frame_pos, luma in seen)
    assert [int(luma.max()) for luma in luma_frames(tmp_path / "out.mkv")] == list(range(12))


def test_probe(cover: Path) -> None:
    info = probe(cover)
    assert (info.width, info.height, info.pixel_format, info.depth) == (160, 120, "yuv420p", 8)
    assert (info.n_frames, info.n_audio, info.n_subtitles, info.codec) == (12, 2, 0, "h264")
    assert info.n_bytes == cover.stat().st_size and info.seconds == pytest.approx(0.48, abs=0.03)


def test_luma_frames_are_the_decoders(cover: Path) -> None:
    planes = clips.decoded_planes(cover)
    found = list(luma_frames(cover))
    assert len(found) == len(planes) == 12
    assert all(np.array_equal(luma, one[0]) for luma, one in zip(found, planes, strict=True))


def test_a_changed_byte_is_seen_on_reading_back(cover: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mkv"
    log = written(cover, out, "ffv1")
    written(cover, out, "ffv1", lambda luma, frame_pos: luma ^ (1 if frame_pos < 7 else 3))
    with pytest.raises(FormatError, match=r"frame 7 of out\.mkv came back changed"):
        log.check(out, name="out.mkv")
    with pytest.raises(FormatError, match="longer than the cover"):
        FrameLog().check(out, name="out.mkv")


def test_a_file_that_breaks_off(tmp_path: Path) -> None:
    """What is there is used; a cut MP4 has its directory at the end and cannot be opened."""
    whole = clips.clip(tmp_path / "whole.mkv", n_frames=40, codec="ffv1")
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    found = list(luma_frames(cut))
    assert 10 < len(found) < 30 and probe(cut).n_frames >= len(found)
    assert all(
        np.array_equal(one, two[0]) for one, two in zip(found[:-1], clips.decoded_planes(whole), strict=False)
    )
    log = written(cut, tmp_path / "out.mkv", "ffv1")
    assert log.n_frames == len(found)
    mp4 = clips.clip(tmp_path / "whole.mp4")
    (tmp_path / "cut.mp4").write_bytes(mp4.read_bytes()[: mp4.stat().st_size // 2])
    with pytest.raises(FormatError, match=r"cut\.mp4 is not a video that can be read"):
        probe(tmp_path / "cut.mp4")


def test_what_is_no_video(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no video at all\n" * 50, "utf-8")
    empty = tmp_path / "empty.mp4"
    empty.touch()
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w") as film:
        stream = film.add_stream("aac", rate=48_000)
        clips._sing(film, stream, 440, 5)
    for path, sentence in (
        (text, "is not a video"),
        (empty, "is not a video"),
        (sound, "has no video stream"),
    ):
        with pytest.raises(FormatError, match=sentence):
            probe(path)
    for path in (tmp_path / "none.mp4", tmp_path):
        with pytest.raises(StorageError, match="cannot read"):
            probe(path)


def test_zero_frames(tmp_path: Path) -> None:
    empty = tmp_path / "empty.mkv"
    with av.open(str(empty), "w") as film:
        stream = film.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        film.start_encoding()
    with pytest.raises(FormatError, match="end of file"):
        probe(empty)
    sound = tmp_path / "sound.mkv"
    with av.open(str(sound), "w") as film:
        stream = film.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        clips._sing(film, film.add_stream("aac", rate=48_000), 440, 5)
    with pytest.raises(FormatError, match=r"not a single frame|cannot be decoded"):
        probe(sound)


def test_pixels_without_luma_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rgb.mkv"
    with av.open(str(path), "w") as film:
        stream = film.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        film.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")))
        film.mux(stream.encode(None))
    with pytest.raises(FormatError, match=r"bgr0, which has no plane of its own for luma"):
        open_video(path)


def test_encoders_that_would_destroy_or_cannot(cover: Path, tmp_path: Path) -> None:
    info = probe(cover)
    for out, codec, sentence in (
        ("o.mkv", "prores", "would destroy"),
        ("o.mkv", "libx264", "would destroy"),
        ("o.webm", "x264", "holds no x264"),
        ("o.avi", None, "names no container"),
        ("o", None, "names no container"),
    ):
        with pytest.raises(SettingError, match=sentence):
            encoder_for(out, codec, True, info)
    with pytest.raises(SettingError, match=r"robust profiles write H\.264"):
        encoder_for("o.mp4", "ffv1", False, info)
    with pytest.raises(SettingError, match=r"holds no H\.264"):
        encoder_for("o.webm", None, False, info)
    ten = probe(clips.clip(tmp_path / "ten.mp4", pixel_format="yuv420p10le"))
    with pytest.raises(SettingError, match=r"vp9 cannot write ten\.mp4's pixels as they are"):
        LOSSLESS["vp9"].check(ten)
    odd = probe(clips.clip(tmp_path / "odd.mkv", width=161, height=121, codec="ffv1"))
    with pytest.raises(SettingError, match=r"x264 takes even sizes only, and odd\.mkv has 161x121"):
        LOSSLESS["x264"].check(odd)
    LOSSLESS["vp9"].check(odd)


def test_a_container_that_does_not_hold_the_sound(cover: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"o\.webm cannot hold stream 0 \(audio, aac\)"):
        written(cover, tmp_path / "o.webm", "vp9")


def test_without_pyav(cover: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtra, match=r"pip install 'firth\[video\]'"):
        probe(cover)
