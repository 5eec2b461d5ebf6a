"""What is kept of the packaged methods, so that the page's first answers needn't wait until a network is loaded."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

import for_model
from for_model.files import cache_dir, sha256_file, sha256_json, write_json
from for_model.methods.protocol import LazyMethod, Method, MethodInfo

TextEmbeddings: TypeAlias = dict[str, NDArray[np.float32]]  # by text, each [Co], unit-norm

_log = logging.getLogger(__name__)


def packaged_method(spec: str, texts: Sequence[str], load: Callable[[], Method]) -> tuple[LazyMethod, TextEmbeddings]:
    """A method of the packaged weights and its embeddings of some queries, as `embed_queries` gives them.

    The first call loads the method; later calls read both from FOR's cache, until the package `for_model` or its
    weights change in any way. A damaged file in the cache is made again.

    spec: the method's name, as `build_method` takes it.
    texts: the queries.
    load: loads the method.

    Raises what `load` raises.
    """
    path = _kept([spec, list(texts)])
    try:
        content = json.loads(path.read_bytes())
        info = MethodInfo(**content["method"])
        return LazyMethod(info, load), {text: _vector(content["texts"][text], info.dim) for text in texts}
    except FileNotFoundError:
        pass
    except (OSError, ValueError, TypeError, KeyError) as error:
        _log.warning("%s can't be read (%s), making it again", path, error)
    from for_model.text import embed_queries

    method = load()
    embeddings = dict(zip(texts, embed_queries(method, texts).numpy(force=True).astype(np.float32), strict=True))
    content = {"method": method.info.to_json(), "texts": {text: row.tolist() for text, row in embeddings.items()}}
    try:
        write_json(path, content)
    except OSError as error:
        _log.warning("the next start takes longer: %s can't be written (%s)", path, error)
    return LazyMethod.of(method), embeddings


def _vector(values: object, dim: int) -> NDArray[np.float32]:
    """The [Co] embedding in a file. Raises ValueError for anything else."""
    vector = np.array(values, dtype=np.float32)
    if vector.shape != (dim,) or not abs(float(np.linalg.norm(vector)) - 1) < 1e-3:
        raise ValueError(f"it holds {vector.shape} numbers for a text, expected {dim} of norm 1")
    return vector


def _kept(what: object) -> Path:
    """The file for what depends on `what` and on every byte of the package `for_model`."""
    package = Path(for_model.__file__).parent
    files = sorted(file for file in package.rglob("*") if file.is_file() and file.suffix != ".pyc")
    key = sha256_json([what, [[str(file.relative_to(package)), sha256_file(file)] for file in files]])
    return cache_dir() / "methods" / f"{key}.json"
