"""What a run says about where it ran."""

import json

from experiments.environment_report import environment_report


def test_environment_report_names_versions_device_and_command():
    report = environment_report(["python", "-m", "experiments.run", "a b"])
    assert report["command"] == "python -m experiments.run 'a b'"
    assert {"python", "jax", "jaxlib", "flax", "optax", "numpy", "gymnasium"} <= report["versions"].keys()
    assert report["platform"] in ("cpu", "gpu", "tpu") and report["device"]
    json.dumps(report, allow_nan=False)
