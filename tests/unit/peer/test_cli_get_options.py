"""What `shoal get` makes of its command line, before anything is asked of anybody."""

from pathlib import Path

import pytest

from peer.cli.get_options import (
    UsageProblem,
    display,
    header_of,
    parser,
    request_of,
    size_of,
    timeout_of,
)

URL = "https://user:password@origin.example/dir/model%20v1.bin?signature=secret#part"


def request(tmp_path: Path, *arguments: str) -> tuple[dict[str, object], list[Path | None]]:
    return request_of(parser().parse_args(arguments))


def test_what_a_script_for_dfget_says_is_understood(tmp_path: Path) -> None:
    target = tmp_path / "out.bin"
    digest = "sha256:" + "0" * 64
    body, outputs = request(
        tmp_path,
        "-O", str(target), "--digest", digest,
        "-H", "Authorization: Bearer abc", "--header", "X: y",
        "--timeout", "90s", "--piece-length", "4mib", "--tag", "t", "--application", "a",
        "--filtered-query-param", "signature", "--filtered-query-param", "expires",
        "--disable-back-to-source", "--overwrite", "-p", "3", "--no-progress",
        "-e", "unix:///run/x.sock", URL,
    )  # fmt: skip
    assert outputs == [target]
    assert body == {
        "urls": [
            {
                "url": URL,
                "headers": [["Authorization", "Bearer abc"], ["X", "y"]],
                "digest": digest,
            }
        ],
        "outputs": [str(target)],
        "tag": "t",
        "application": "a",
        "piece_length": 4 << 20,
        "filtered_query_params": ["signature", "expires"],
        "priority": 3,
        "disable_back_to_source": True,
        "overwrite": True,
        "demand": "whole",
        "timeout_ms": 90_000,
    }


def test_headers_from_a_file_stay_out_of_the_process_list(tmp_path: Path) -> None:
    headers = tmp_path / "headers"
    headers.write_text("Authorization: Bearer abc:def\n\nX-Other:1\n")
    body, _ = request(tmp_path, "--header-file", str(headers), "-O", "-", URL)
    urls = body["urls"]
    assert isinstance(urls, list)
    assert urls[0]["headers"] == [["Authorization", "Bearer abc:def"], ["X-Other", "1"]]


def test_a_directory_takes_the_name_from_the_url(tmp_path: Path) -> None:
    _, outputs = request(tmp_path, "-O", str(tmp_path), URL)
    assert outputs == [tmp_path / "model v1.bin"]


def test_without_an_output_the_file_lands_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, outputs = request(tmp_path, "http://origin.example/a.bin")
    assert outputs == [tmp_path / "a.bin"]


def test_several_urls_with_a_digest_each(tmp_path: Path) -> None:
    first, second = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    body, outputs = request(
        tmp_path, "-O", str(tmp_path), "--digest", first, "--digest", second, "http://o/a", "http://o/b"
    )  # fmt: skip
    assert outputs == [tmp_path / "a", tmp_path / "b"]
    urls = body["urls"]
    assert isinstance(urls, list)
    assert [each["digest"] for each in urls] == [first, second]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-O", "{tmp}/missing/x", "http://o/a"], "not a directory that exists"),
        (["-O", "{tmp}/taken", "http://o/a"], "--overwrite"),
        (["-O", "{tmp}/link", "http://o/a"], "--overwrite"),
        (["-O", "{tmp}/folder", "http://o/sub"], "is a directory"),
        (["-O", "{tmp}/new", "http://o/a", "http://o/b"], "need a directory"),
        (["-O", "{tmp}", "http://o/x/a", "http://o/y/a"], "same file name"),
        (["-O", "-", "http://o/a", "http://o/b"], "takes one URL"),
        (["-O", "{tmp}", "http://o/"], "no file name"),
        (["-O", "{tmp}", "http://o/.."], "no file name"),
        (["-O", "{tmp}", "http://o/a%2fb"], "no file name"),
        (["-O", "{tmp}", "http://[bad/"], "no file name"),
        (["-O", "{tmp}", "--digest", "x", "http://o/a", "http://o/b"], "one for each"),
        (["-O", "{tmp}", "-H", "no colon secret", "http://o/a"], "Name: value"),
        (["-O", "{tmp}", "--timeout", "soon", "http://o/a"], "30s"),
        (["-O", "{tmp}", "--piece-length", "4 potatoes", "http://o/a"], "4MiB"),
        (["-O", "{tmp}", "--header-file", "{tmp}/none", "http://o/a"], "--header-file"),
    ],
)
def test_what_makes_no_sense_is_told(tmp_path: Path, arguments: list[str], says: str) -> None:
    (tmp_path / "taken").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    with pytest.raises(UsageProblem) as caught:
        request(tmp_path, *(each.format(tmp=tmp_path) for each in arguments))
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_output_that_exists_is_replaced_when_told_to(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    _, outputs = request(tmp_path, "--overwrite", "-O", str(tmp_path / "taken"), "http://o/a")
    assert outputs == [tmp_path / "taken"]


def test_nothing_secret_of_a_url_is_shown() -> None:
    assert display(URL) == "https://origin.example/dir/model%20v1.bin"
    assert "secret" not in display("http://[secret/")


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("2h", 7_200_000), ("5m", 300_000), ("30s", 30_000), ("250ms", 250), ("1.5s", 1500),
     ("12", 12_000), ("0", 0)],
)  # fmt: skip
def test_timeouts(text: str, milliseconds: int) -> None:
    assert timeout_of(text) == milliseconds


@pytest.mark.parametrize("text", ["", "s", "-5s", "nan", "1d2", "5 s "])
def test_wrong_timeouts(text: str) -> None:
    with pytest.raises(UsageProblem):
        timeout_of(text)


@pytest.mark.parametrize(("text", "size"), [("4MiB", 4 << 20), ("256kib", 1 << 18), ("4096", 4096)])
def test_sizes(text: str, size: int) -> None:
    assert size_of(text) == size


def test_a_headers_value_may_hold_colons() -> None:
    assert header_of("X-Time: 12:30:00") == ["X-Time", "12:30:00"]
