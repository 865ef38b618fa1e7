"""Figures of replicas joined: each under its own label, in Prometheus' form."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from svdiff_serve.http.metrics import Metrics
from svdiff_serve.ray_app.figures import merged


def test_samples_of_two_replicas_stand_beside_each_other() -> None:
    texts = []
    for count in (1, 2):
        metrics = Metrics()
        for _ in range(count):
            metrics.ended("done", 0.1, 0.2)
        metrics.forward("unet", count, 0.01)
        texts.append(metrics.text())
    found = {family.name: family for family in text_string_to_metric_families(merged(texts).decode())}
    pictures = [each for each in found["replica_svdiff_pictures"].samples if each.name.endswith("_total")]
    assert [(each.labels, each.value) for each in pictures] == [
        ({"outcome": "done", "replica": "0"}, 1.0),
        ({"outcome": "done", "replica": "1"}, 2.0),
    ]
    forwards = found["replica_svdiff_forward_pictures"]
    assert forwards.type == "histogram"
    sums = [each for each in forwards.samples if each.name.endswith("_sum")]
    assert [each.value for each in sums] == [1.0, 2.0]


def test_no_replica_has_no_figures() -> None:
    assert merged([]) == b""
