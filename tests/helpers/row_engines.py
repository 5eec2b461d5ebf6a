"""The engines of the registry that find rows, and what has them do in tests, on few rows, what they do on many."""

import pytest
import torch

from for_search.index import gpu_engine
from for_search.index.compact import compact_engine
from for_search.index.engine_protocol import RowEngine
from for_search.index.engines import ENGINES

ON_PROCESSOR, WITH_CODES = "gpu, on the processor", "compact with codes"
ROW_ENGINES = [
    *(kind for kind, engine in ENGINES.items() if not engine.on_server and kind != "gpu"),
    WITH_CODES,
    ON_PROCESSOR,
    pytest.param("gpu", marks=pytest.mark.gpu),
]


def row_engine(name: str, monkeypatch: pytest.MonkeyPatch) -> type[RowEngine]:
    """The engine of that name in ROW_ENGINES; skips the test where there is no GPU for it."""
    if name == "gpu" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if name == ON_PROCESSOR:
        monkeypatch.setattr(gpu_engine, "scan_device", lambda: torch.device("cpu"))
        monkeypatch.setattr(gpu_engine, "_room", lambda device: 9000)  # some chunks stay, the others come each time
    if name in (ON_PROCESSOR, "gpu"):
        monkeypatch.setattr(gpu_engine, "_CHUNK_BYTES", 8000)
        monkeypatch.setattr(gpu_engine, "_SCORE_BYTES", 20_000)
    if name == WITH_CODES:
        monkeypatch.setattr(compact_engine, "MIN_ROWS", 50)
        monkeypatch.setattr(compact_engine, "_SCAN_ABOVE", 1)
    return ENGINES[name.split()[0].rstrip(",")]  # type: ignore[return-value]
