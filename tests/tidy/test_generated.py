"""Generated files are those that their sources give."""

from pathlib import Path

from tests.tidy.generated import CONFIGURATION_PAGE, configuration_page, write_protobuf
from tests.tidy.tree import ROOT


def test_protobuf_code_is_current(tmp_path: Path) -> None:
    written = {path.relative_to(tmp_path): path.read_bytes() for path in write_protobuf(tmp_path)}
    committed = {
        path.relative_to(ROOT / "proto"): path.read_bytes()
        for path in sorted((ROOT / "proto").rglob("*_pb2*.py*"))
        if path.suffix in {".py", ".pyi"}
    }
    assert len(written) >= 4
    assert sorted(written) == sorted(committed)
    stale = [str(path) for path in written if written[path] != committed[path]]
    assert not stale, f"run `make proto`: {stale}"


def test_configuration_reference_is_current() -> None:
    assert (ROOT / CONFIGURATION_PAGE).read_text() == configuration_page(), "run `make docs`"
