"""The cache of records."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tts_assets.core.audio import AudioPool
from tts_assets.core.cache import RecordCache


def test_records_persist_and_never_change(tmp_path: Path) -> None:
    cache = RecordCache(tmp_path / "deep" / "facts.sqlite")
    assert cache.get(["a"]) == {}
    cache.put({f"key {number}": {"number": number} for number in range(1200)})
    cache.put({"key 7": "another"})
    found = RecordCache(cache.path).get(["unknown", *(f"key {n}" for n in range(1200))])
    assert len(found) == 1200 and found["key 7"] == {"number": 7}


def test_threads_write_concurrently(tmp_path: Path) -> None:
    cache, pool = RecordCache(tmp_path / "facts.sqlite"), AudioPool(tmp_path / "audio")
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda n: cache.put({str(n % 10): n % 10}), range(80)))
        names = set(threads.map(lambda n: pool.put(b"the same clip", ".flac"), range(80)))
    assert cache.get(map(str, range(10))) == {str(n): n for n in range(10)}
    (name,) = names
    assert Path(name).stem == hashlib.sha256(b"the same clip").hexdigest()
    assert pool.path(name).read_bytes() == b"the same clip"
    assert [path for path in pool.root.rglob("*") if path.is_file()] == [pool.path(name)]
