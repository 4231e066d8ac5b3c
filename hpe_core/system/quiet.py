"""No byte leaves unasked: the switches by which libraries stop reporting and looking for updates.

`import hpe_core` sets them, in every process and so in Ray's workers, before any of these libraries is imported. A
variable that is set already keeps its value.
"""

import os

SWITCHES = {
    # ONNX Runtime sends usage data and writes a device id below HOME. Which spelling counts depends on the build.
    "ORT_DISABLE_TELEMETRY": "1",
    "ORT_TELEMETRY_DISABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NO_ALBUMENTATIONS_UPDATE": "1",  # it asks the package index for a newer release
    "HF_HUB_DISABLE_TELEMETRY": "1",  # timm's way to pretrained weights
    "DO_NOT_TRACK": "true",  # read by MLflow and the hub, too
}


def be_quiet() -> None:
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
