"""The one thing that pyproject.toml cannot say: conf/ lies at the top of the repository and travels in `workflows`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["hpe_core*", "workflows*"]), "workflows.conf"],
    package_dir={"workflows.conf": "conf"},
)
