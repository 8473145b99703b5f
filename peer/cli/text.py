"""How commands show numbers, durations and URLs to people. Imports nothing."""


def size_text(size_bytes: float | None) -> str:
    """`12.3 MiB`; powers of 1024."""
    if size_bytes is None:
        return "?"
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def rate_text(rate_bytes_s: float) -> str:
    """`25.0 MB/s`; powers of 1000, as links and limits are named."""
    value = float(rate_bytes_s)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000 or unit == "GB":
            return f"{value:.0f} B/s" if unit == "B" else f"{value:.1f} {unit}/s"
        value /= 1000
    raise AssertionError("unreachable")


def duration_text(seconds: float) -> str:
    """`0.12 s`, `12.3 s`, `3 min 5 s`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def percent_text(part: float, whole: float) -> str:
    """`87 %`, or `-` of nothing."""
    return f"{100 * part / whole:.0f} %" if whole else "-"


def public_url(url: str) -> str:
    """A URL without user, query and fragment, which may be credentials."""
    bare = url.partition("#")[0].partition("?")[0]
    scheme, separator, rest = bare.partition("://")
    if not separator:
        return bare
    authority, slash, path = rest.partition("/")
    return scheme + separator + authority.rpartition("@")[2] + slash + path


def url_file_name(url: str) -> str:
    """The last part of a URL's path, "" if it has none."""
    path = public_url(url).partition("://")[2].partition("/")[2]
    return path.rpartition("/")[2]
