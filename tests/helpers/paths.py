"""Where things are that tests read."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared" / "data"  # real data beside a checkout, if it is there
CONFIGS = REPOSITORY / "for_model" / "configs"
