import resource

import pytest

import files
from files import WorldFault


def test_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    files.write_file(path, b"old")
    # A limit on the file size stops a write in the middle, as a full disk does.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(WorldFault, match="cannot write"):
            files.write_file(path, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
