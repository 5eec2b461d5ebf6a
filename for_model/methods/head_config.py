"""Which head is trained, and its settings."""

from typing import Any

from pydantic import field_validator

from for_model.heads.config import PlusSettings, SumSettings
from for_model.methods.registry import head_kinds


class HeadConfig(SumSettings, PlusSettings):
    """Which head is trained.

    kind: one of `head_kinds`, the methods whose head can be trained. `queries` is N of `for` and `for+`; the other
        settings of SumSettings shape `for` alone, those of PlusSettings `for+` alone.
    """

    kind: str = "for"

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if kind not in head_kinds():
            raise ValueError(f"head.kind is {kind!r}; expected one of {', '.join(head_kinds())}")
        return kind

    def of(self, kind: type[Any]) -> Any:
        """The settings that one kind of head takes.

        kind: SumSettings or PlusSettings.
        """
        return kind(**{name: getattr(self, name) for name in kind.model_fields})
