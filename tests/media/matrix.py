"""Films of all kinds, made by the program `ffmpeg`, and what is refused.

`oracle_test` compares what is read of each film with what `ffmpeg` decodes.
Which codecs go into which containers, the page docs/formats.md says.
"""

from collections.abc import Callable, Iterator
import itertools
import pathlib
import struct
import subprocess
from typing import NamedTuple

import PIL.Image

from tests import pages
from tests.media import field_pictures

PAGE = (pages.ROOT / "docs" / "formats.md").read_text(encoding="utf-8")


def table(*head: str) -> dict[str, str]:
    """Rows of a table of the page: the second cell by the first."""
    start = f"| {' | '.join(head)} |\n|---|---|\n"
    rows = PAGE.partition(start)[2].partition("\n\n")[0].splitlines()
    return dict(row.strip("| ").split(" | ") for row in rows)


PROMISED = {
    codec: containers.split(", ")
    for codec, containers in table("codec", "in").items()
}
# Arguments of `ffmpeg` for each codec.
_420 = "-pix_fmt yuv420p"
_VPX = "-deadline realtime -cpu-used 8"
_X265 = "-c:v libx265 -x265-params log-level=none"
CODECS = {
    "H.264": f"-c:v libx264 -g 8 {_420}",
    "HEVC": f"{_X265}:keyint=8 {_420}",
    "AV1": f"-c:v libaom-av1 -usage realtime -cpu-used 8 {_420}",
    "VP9": f"-c:v libvpx-vp9 {_VPX} {_420}",
    "VP8": f"-c:v libvpx {_VPX} {_420}",
    "MPEG-4": f"-c:v mpeg4 -bf 2 -g 8 {_420}",
    "MPEG-2": f"-c:v mpeg2video -bf 2 -g 8 {_420}",
    "MPEG-1": f"-c:v mpeg1video -bf 2 -g 8 {_420}",
    "Motion JPEG": "-c:v mjpeg -pix_fmt yuvj420p",
    "FFV1": f"-c:v ffv1 {_420}",
    "ProRes": "-c:v prores_ks -pix_fmt yuv422p10le",
    "DV": f"-c:v dvvideo -s 720x576 {_420}",
}


class Container(NamedTuple):
    """A kind of file."""

    suffix: str
    # The codec that is tried with all of `SPECIAL`.
    codec: str
    sound: str = "aac"
    arguments: str = ""


CONTAINERS = {
    "MP4": Container(".mp4", "H.264"),
    "fragmented MP4": Container(
        ".mp4", "H.264", arguments="-movflags frag_keyframe+empty_moov"
    ),
    "MOV": Container(".mov", "ProRes"),
    "MKV": Container(".mkv", "H.264"),
    "WebM": Container(".webm", "VP9", "libopus"),
    "AVI": Container(".avi", "Motion JPEG", "mp3"),
    "TS": Container(".ts", "H.264"),
    "PS": Container(".mpg", "MPEG-2", "mp2", "-f vob"),
    "FLV": Container(".flv", "H.264"),
}
_SINE = "-f lavfi -i sine=duration={} {{}} -c:a {{sound}}"
_LATER = "-filter_complex [0:v]setpts=PTS+1/TB[v] -map [v] -map 1:a"
_PASS = "-fps_mode passthrough"
# What may be special about a film: {what: (arguments, codecs that have it)}.
SPECIAL = {
    "nothing": ("{}", ""),
    "interlaced frames": (
        "{} -vf setfield=tff -flags +ildct+ilme",
        "H.264, MPEG-4, MPEG-2, ProRes, DV",
    ),
    "a variable rate": (
        rf"{{}} -vf select='not(mod(n\,3))+eq(n\,1)' {_PASS}",
        "",
    ),
    "longer sound": (_SINE.format(2), ""),
    "shorter sound": (_SINE.format(0.2), ""),
    "sound that starts earlier": (f"{_SINE.format(2)} {_LATER} {_PASS}", ""),
    "a start at 3.5 s": ("{} -output_ts_offset 3.5", ""),
    "a single frame": ("{} -frames:v 1", ""),
    "non-square pixels": ("{} -vf setsar=4/3", ""),
    "full range": ("{} -vf scale=out_range=pc -color_range pc", ""),
    "BT.709 colours": (
        "{} -vf scale=out_color_matrix=bt709 -colorspace bt709",
        "",
    ),
    "10 bits": ("{} -pix_fmt yuv420p10le", "H.264, HEVC, FFV1"),
    "4:2:2": ("{} -pix_fmt yuv422p", "H.264, HEVC, VP9, MPEG-2, FFV1"),
    "4:4:4": ("{} -pix_fmt yuv444p", "H.264, HEVC, VP9, FFV1"),
    "grey": ("{} -pix_fmt gray", "H.264, HEVC, FFV1"),
    "an odd size": (
        "{} -vf scale=63:47",
        "AV1, VP9, VP8, MPEG-4, MPEG-2, FFV1",
    ),
}


class Film(NamedTuple):
    """A film to make."""

    container: str
    codec: str
    special: str
    # Of `ffmpeg`, behind the source of its pictures.
    arguments: str
    # Changes the file that was made.
    change: Callable[[pathlib.Path], None] | None = None
    # Of its name, if it is none of the container's.
    suffix: str = ""
    # What is said to be wrong with it, if anything is.
    damage: str = ""
    # Whether less is read than `ffmpeg` decodes.
    is_short: bool = False

    def __str__(self) -> str:
        return f"{self.codec} in {self.container}: {self.special}"

    def make(self, folder: pathlib.Path) -> pathlib.Path:
        """Makes it; `subprocess.CalledProcessError` says why it cannot."""
        suffix = self.suffix or CONTAINERS[self.container].suffix
        path = folder / f"film{suffix}"
        encode(path, self.arguments)
        if self.change is not None:
            self.change(path)
        return path


_SOURCE = "testsrc2=size=64x48:rate=25:duration=0.6"


def encode(path: pathlib.Path, arguments: str, size: str = "64x48") -> None:
    """Makes 15 frames of a moving picture; arguments are between spaces."""
    source = _SOURCE.replace("64x48", size)
    ffmpeg(f"-f lavfi -i {source} {arguments}", path)


def ffmpeg(arguments: str, path: pathlib.Path) -> None:
    """Calls the program, without a shell."""
    subprocess.run(
        ["ffmpeg", "-v", "error", "-y", *arguments.split(), str(path)],
        capture_output=True,
        text=True,
        check=True,
    )


# === Films that differ by one thing ===


def _regular() -> Iterator[Film]:
    """Every codec in its containers; all that is special in some of them."""
    for name, codec, special in itertools.product(
        CONTAINERS, PROMISED, SPECIAL
    ):
        container, (arguments, has) = CONTAINERS[name], SPECIAL[special]
        is_tried = special == "nothing" or name == "MKV"
        is_tried |= codec == container.codec
        is_possible = name in PROMISED[codec]
        is_possible &= not has or codec in has.split(", ")
        if is_tried and is_possible:
            written = arguments.format(CODECS[codec], sound=container.sound)
            written += f" {container.arguments}"
            yield Film(name, codec, special, written)


# === Films with something of their own ===

_ONE, _MINUS = 0x10000, -0x10000
_HALF = 0xB505  # The cosine of 45 degrees.
# How a film is to be shown, as MP4 says it.
MATRICES = {
    "a right turn": (0, _ONE, _MINUS, 0),
    "a left turn": (0, _MINUS, _ONE, 0),
    "a half turn": (_MINUS, 0, 0, _MINUS),
    "mirrored": (_MINUS, 0, 0, _ONE),
    "upside down": (_ONE, 0, 0, _MINUS),
    "mirrored and turned right": (0, _MINUS, _MINUS, 0),
    "mirrored and turned left": (0, _ONE, _ONE, 0),
    "a turn by 45 degrees": (_HALF, _HALF, -_HALF, _HALF),
    "an orientation matrix of zeros": (0, 0, 0, 0),
}


def later(function: Callable) -> Callable:
    """The same function, which takes its first argument last, in a call."""
    return lambda *more, **how: lambda path: function(path, *more, **how)


@later
def turned(path: pathlib.Path, matrix: tuple[int, int, int, int]) -> None:
    """Writes another display matrix into an MP4."""
    a, b, c, d = matrix
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = struct.pack(
        ">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30
    )
    path.write_bytes(content)


@later
def _copied(path: pathlib.Path, before: str, behind: str = "") -> None:
    """Copies the packets of a film by `ffmpeg`."""
    source = path.with_name(f"source{path.suffix}")
    path.rename(source)
    ffmpeg(f"{before} -i {source} -c copy {behind}", path)


def _without_start(path: pathlib.Path) -> None:
    """Leaves out the first key frame of a TS, and more."""
    data = path.read_bytes()
    path.write_bytes(data[len(data) // 4 // 188 * 188 :])


def _of_fields(path: pathlib.Path) -> None:
    """Puts a stream whose fields are pictures in its place."""
    source = path.with_name("source.h264")
    source.write_bytes(field_pictures.stream(12))
    ffmpeg(f"-fflags +genpts -r 25 -i {source} -c copy", path)


def _grown(path: pathlib.Path) -> None:
    """Appends the same film of another size."""
    first = path.read_bytes()
    encode(path, "-c:v mpeg2video -bf 0", "96x64")
    path.write_bytes(first + path.read_bytes())


def _special() -> Iterator[Film]:
    h264 = CODECS["H.264"]
    mp4, mkv, ts = (("MP4", "H.264"), ("MKV", "H.264"), ("TS", "H.264"))
    for special, matrix in MATRICES.items():
        yield Film(*mp4, special, h264, turned(matrix))
    right = turned(MATRICES["a right turn"])
    of_422 = "-c:v libx264 -pix_fmt yuv422p"
    yield Film(*mp4, "4:2:2 and a right turn", of_422, right)
    opened = "open-gop=1:keyint=6:bframes=3"
    for pair in (mkv, ts):
        x264 = f"-c:v libx264 {_420} -x264-params {opened}"
        yield Film(*pair, "open GOPs", x264)
    hevc = f"{_X265}:{opened} {_420}"
    yield Film("MP4", "HEVC", "open GOPs", hevc)
    yield Film(*mp4, "an edit list", h264, _copied("-ss 0.3", "-t 0.2"))
    yield Film(*mp4, "a delay of 1 s", h264, _copied("-itsoffset 1"))
    anew = "a clock that wraps around"
    yield Film(*ts, anew, f"{h264} -output_ts_offset 95443.4")
    for pair in (mp4, mkv):
        yield Film(
            *pair,
            "a frame held for two minutes",
            rf"-f lavfi -i sine=duration=121 {h264} -c:a aac {_PASS} -vf "
            r"setpts='PTS+gte(N\,7)*120/TB'",
        )
    yield Film(
        *(*ts, "a start between key frames", h264, _without_start),
        damage="frames at its start cannot be decoded",
    )
    mpeg2 = f"-c:v mpeg2video -bf 0 {_420}"
    yield Film(
        *("TS", "MPEG-2", "a size that changes", mpeg2, _grown),
        damage="has another size than the first",
        is_short=True,
    )
    for pair in (ts, mp4, mkv):
        fields = "fields coded as separate pictures"
        yield Film(*pair, fields, h264, _of_fields)
    still = "frames without changes"
    yield Film("AVI", "XviD", still, f"-c:v libxvid -bf 2 {_420}")
    mpeg4 = f"{CODECS['MPEG-4']} -metadata title=Caf\udce9"
    yield Film("AVI", "MPEG-4", "a title that is not UTF-8", mpeg4)
    ends = "a cut before an open GOP"
    yield Film("MKV", "HEVC", ends, hevc, _copied("-ss 0.3"))
    yield Film(
        *("MP3", "PNG", "the cover of an audio file"),
        "-f lavfi -i sine=duration=0.5 -map 1:a -map 0:v -frames:v 1 -c:v png "
        "-disposition:v attached_pic",
        suffix=".mp3",
    )
    for matrix in ("smpte170m", "bt470bg", "fcc", "smpte240m", "bt2020nc"):
        yield Film(*mkv, f"{matrix} colours", f"{h264} -colorspace {matrix}")
    yield Film(
        *("MKV", "HEVC", "HDR (BT.2020, PQ)"),
        f"{_X265} -pix_fmt yuv420p10le -colorspace bt2020nc "
        "-color_primaries bt2020 -color_trc smpte2084",
    )
    for container, codec, name, pixels in (
        ("WebM", "VP9", "libvpx-vp9", "yuva420p"),
        ("WebM", "VP8", "libvpx -auto-alt-ref 0", "yuva420p"),
        ("MOV", "ProRes", "prores_ks", "yuva444p10le"),
        ("MOV", "PNG", "png", "rgba"),
        ("MOV", "QuickTime RLE", "qtrle", "argb"),
        ("MKV", "FFV1", "ffv1", "bgra"),
    ):
        yield Film(
            *(container, codec, "transparency (left out)"),
            f"-vf format={pixels},colorchannelmixer=aa=0.5 -c:v {name} "
            f"-pix_fmt {pixels}",
        )
    for pixels in ("bgr0", "gbrp10le", "gbrp16le", "rgb48le", "gray16le"):
        ffv1 = f"-c:v ffv1 -pix_fmt {pixels}"
        yield Film("MKV", "FFV1", f"{pixels} pixels", ffv1)
    for pixels in ("pal8", "monow", "rgb555le", "nv12", "yuyv422"):
        raw = f"-c:v rawvideo -pix_fmt {pixels}"
        yield Film("NUT", "raw", f"{pixels} pixels", raw, suffix=".nut")
    other = "-f lavfi -i testsrc=size={}:rate=25:duration=0.8 -map 0:v -map 1:v"
    second = "-disposition:v:0 0 -disposition:v:1 default"
    for name in ("MP4", "MKV", "TS", "AVI"):
        codec = CONTAINERS[name].codec
        for special, arguments in {
            "a second film that is larger": other.format("128x96"),
            "a second film of the same size": other.format("64x48"),
            "a second film by default": f"{other.format('32x32')} {second}",
        }.items():
            yield Film(name, codec, special, f"{arguments} {CODECS[codec]}")
    cover = "-f lavfi -i color=red:size=320x240:duration=0.04 -map 1 -map 0"
    yield Film(
        *(*mp4, "a cover"),
        f"{cover} {h264} -c:v:0 png -pix_fmt:v:0 rgb24 "
        "-disposition:v:0 attached_pic",
    )
    dnxhr = "-c:v dnxhd -profile:v dnxhr_sq -s 256x120 -pix_fmt yuv422p"
    for container, codec, suffix, arguments in (
        ("GIF", "GIF", ".gif", ""),
        ("animated PNG", "PNG", ".apng", ""),
        ("Ogg", "Theora", ".ogv", "-c:v libtheora"),
        ("ASF", "WMV 2", ".wmv", "-c:v wmv2"),
        ("3GP", "H.264", ".3gp", h264),
        ("MXF", "MPEG-2", ".mxf", "-c:v mpeg2video -s 128x96"),
        ("IVF", "VP8", ".ivf", CODECS["VP8"]),
        ("SWF", "Sorenson", ".swf", "-c:v flv"),
        ("FLV", "Sorenson", ".flv", "-c:v flv"),
        ("Y4M", "raw", ".y4m", _420),
        ("no container", "H.264", ".h264", h264),
        ("no container", "HEVC", ".hevc", CODECS["HEVC"]),
        ("no container", "MPEG-2", ".m2v", CODECS["MPEG-2"]),
        ("no container", "AV1", ".obu", CODECS["AV1"]),
        ("no container", "DV", ".dv", CODECS["DV"]),
        ("AVI", "Huffyuv", ".avi", "-c:v huffyuv"),
        ("AVI", "Ut Video", ".avi", "-c:v utvideo"),
        ("AVI", "Cinepak", ".avi", "-c:v cinepak -pix_fmt rgb24"),
        ("AVI", "raw", ".avi", "-c:v rawvideo -pix_fmt bgr24"),
        ("MOV", "DNxHR", ".mov", dnxhr),
        ("MOV", "CineForm", ".mov", "-c:v cfhd -s 256x128"),
        ("MKV", "JPEG 2000", ".mkv", f"-c:v jpeg2000 {_420}"),
    ):
        yield Film(container, codec, "nothing", arguments, suffix=suffix)


REGULAR, OTHERS = list(_regular()), list(_special())
FILMS = [*REGULAR, *OTHERS]
# Of the others, those of the sample.
_SHOWN = (
    "mirrored",
    "4:2:2 and a right turn",
    "an edit list",
    "open GOPs",
    "frames without changes",
    "a title that is not UTF-8",
    "a cut before an open GOP",
    "the cover of an audio file",
    "a start between key frames",
    "a size that changes",
    "a second film that is larger",
    "a cover",
    "fields coded as separate pictures",
)


def sample() -> set[str]:
    """Names of a few, with each container, codec and peculiarity once."""
    seen: set[str] = set()
    found = {str(film) for film in OTHERS if film.special in _SHOWN}
    # First those that show most.
    for new, film in itertools.product((3, 2, 1), REGULAR):
        has = {film.container, film.codec, film.special}
        if len(has - seen) >= new:
            found.add(str(film))
            seen |= has
    return found


# === What is refused ===


@later
def _film(
    folder: pathlib.Path, arguments: str, name: str = "film.mp4", keep=1.0
) -> pathlib.Path:
    """Makes a film, or its beginning."""
    path = folder / name
    ffmpeg(f"-f lavfi -i {arguments}", path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


@later
def _holding(folder: pathlib.Path, data: bytes, name: str = "film.mp4"):
    """Makes a file of some bytes."""
    (folder / name).write_bytes(data)
    return folder / name


@later
def _pictures(folder: pathlib.Path, *names: str, count=1, mode="RGB"):
    """Makes files of so many pictures each; the folder, or the only one."""
    first, *more = (PIL.Image.new(mode, (8, 6), 80 * k) for k in range(count))
    for name in names:
        first.save(folder / name, save_all=True, append_images=more)
    return folder / names[0] if len(names) == 1 else folder


_YCGCO = "-bsf:v h264_metadata=matrix_coefficients=8"
# By what the page calls it: what makes it in a folder and returns its path, and
# what is said, a regular expression.
REFUSED = {
    "a truncated MP4 with its index at the end": (
        _film(_SOURCE, keep=0.6),
        "cut off before its index",
    ),
    "sound only": (
        _film("sine=duration=0.2", "sound.wav"),
        "there is only sound",
    ),
    "an empty file": (_holding(b""), "the file is empty"),
    "any other file": (
        _holding(b"Lorem ipsum dolor sit amet. " * 99),
        "not a video",
    ),
    "a playlist of addresses": (
        _holding(b"#EXTM3U\n#EXTINF:1,\nhttp://localhost:1/a.ts\n"),
        "not a video",
    ),
    "YCgCo colours": (
        _film(f"{_SOURCE} {CODECS['H.264']} {_YCGCO}"),
        "cannot be converted to RGB",
    ),
    "a device such as `/dev/null`": (
        lambda _: pathlib.Path("/dev/null"),
        "neither a file nor a pipe",
    ),
    "a folder without pictures": (_pictures(), "no picture in it"),
    "pictures with the same number: `1.png`, `01.png`": (
        _pictures("01.png", "1.png"),
        r"01\.png and 1\.png have the same number",
    ),
    "animated WebP": (_pictures("a.webp", count=3), "holds 3 pictures"),
    "animated PNG called `.png`": (
        _pictures("a.png", count=3),
        "holds 3 pictures",
    ),
    "multi-page TIFF": (_pictures("a.tif", count=3), "holds 3 pictures"),
    "pictures of 32 bits": (_pictures("a.tiff", mode="F"), "8 or 16 bits"),
    "a single damaged picture": (
        _holding(b"\x89PNG nothing", "picture.png"),
        "or a damaged one",
    ),
}
