"""What the tests of the library share."""

import pytest

from for_model.methods.clip_method import ClipMethod
from tests.helpers.tiny_index import random_method


@pytest.fixture(scope="module")
def method() -> ClipMethod:
    """Cluster-CLIP on RN-mini with random weights."""
    return random_method()
