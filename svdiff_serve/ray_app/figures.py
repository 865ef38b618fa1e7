"""Join the figures of replicas: each sample gets the label of its replica."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

LABEL: Final = "replica"
CREATED: Final = "_created"
"""How samples end that say when a counter began, for which this form of figures has no place."""


class _Families:
    """What a registry collects.

    Args:
        families: by name.
    """

    def __init__(self, families: dict[str, Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        """Return all of them."""
        return list(self._families.values())


def merged(texts: Sequence[bytes]) -> bytes:
    """Return the figures of several replicas as one text, whose samples are labelled 0, 1, … in their order.

    Args:
        texts: figures in Prometheus' form.
    """
    families: dict[str, Metric] = {}
    for number, text in enumerate(texts):
        for family in text_string_to_metric_families(text.decode()):
            if family.name.endswith(CREATED):
                continue
            name = f"replica_{family.name}"
            found = families.setdefault(name, Metric(name, family.documentation, family.type))
            for sample in family.samples:
                found.add_sample(f"replica_{sample.name}", {**sample.labels, LABEL: str(number)}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Families(families))  # it asks for no more than `collect`
    return generate_latest(registry)
