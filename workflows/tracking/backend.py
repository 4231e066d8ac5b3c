"""The one place that imports mlflow: applies the spool's events, each of them safe to apply twice.

A run is looked up by its tag `hpe.key` before it is created; a metric's time is taken when it is called, and MLflow's
primary key is (run, key, step, timestamp, value), so the database drops a second copy; params, tags and artifacts
overwrite themselves; a model version is reused when its run and folder are the same.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from hpe_core.system.files import write_atomic
from workflows.tracking.spool import Event, flock

KEY_TAG = "hpe.key"
DEADLINE_S = 10.0  # a call without an answer for so long counts as a slow server
CANDIDATE = "candidate"  # the alias of the newest version, whoever is champion
PERMANENT = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST"}


class Refused(Exception):
    """MLflow will never take this event, however often it is sent."""


class Registered(NamedTuple):
    """What became of a new model version: its number, and the version that holds the alias now."""

    version: str
    holder: str


def say(text: str) -> None:
    print(f"tracking: {text}", file=sys.stderr, flush=True)


def public(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)  # a password in the address stays out of messages


def clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def clean_name(text: str) -> str:
    """Return `text` in the letters that MLflow allows in the names of params, metrics and tags."""
    clean = re.sub(r"/{2,}", "/", re.sub(r"[^\w\-. :/]", "_", text)).strip("/. ") or "_"
    return clip(clean.replace("../", "_"), 200)


def git_commit(root: Path) -> str:
    """Return the commit of `root`, with `-dirty` when tracked files differ, or `unknown` without git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=5)
        done.check_returncode()
        return done.stdout.strip()

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "--verify", "HEAD") + ("-dirty" if dirty else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def make_database(uri: str) -> None:
    """MLflow's SQLite file, unless there is one. Hold the lock.

    Its schema takes five seconds and hundreds of steps. A kill or a full disk in their midst would leave a file that
    MLflow never opens again, so it is made beside and renamed.
    """
    path = Path(uri.removeprefix("sqlite:///"))
    if path.exists():
        return
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine_with_retry

    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    engine = create_sqlalchemy_engine_with_retry(f"sqlite:///{beside}")
    try:
        _initialize_tables(engine)  # what MLflow itself calls for a new file
    finally:
        engine.dispose()
    beside.replace(path)


class Backend:
    """The one place that imports mlflow: applies events, each of them safe to apply twice."""

    def __init__(self, uri: str, experiment: str, store: Path, artifact_root: Path | None) -> None:
        self.uri, self.experiment, self.store, self.artifact_root = uri, experiment, store, artifact_root
        self.ids: dict[str, str] = {}  # keys seen in MLflow by this process
        self.client: Any = None
        self.experiment_id = ""

    def prepare(self) -> None:
        """Import mlflow, quietly and with no network but the tracking server."""
        os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(int(DEADLINE_S)))
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        import mlflow  # noqa: F401

        for name in ("mlflow.store.db.utils", "mlflow.utils.rest_utils", "urllib3.connectionpool", "alembic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # we say it once, in our own words

    def connect(self) -> None:
        """Open the client and the experiment; create or migrate a SQLite schema, one process at a time."""
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        lock = None
        if self.uri.startswith("sqlite:"):
            lock = flock(self.store / "mlflow-spool" / "migrate.lock", wait=True)
        try:
            if lock is not None:
                make_database(self.uri)
            try:
                client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                found = client.get_experiment_by_name(self.experiment)
            except MlflowException as error:
                if lock is None or "out-of-date" not in str(error):
                    raise
                from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine_with_retry

                say("bringing the MLflow database to the schema of the installed version")
                _upgrade_db(create_sqlalchemy_engine_with_retry(self.uri))  # what `mlflow db upgrade` calls
                client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
                found = client.get_experiment_by_name(self.experiment)
            if found is None:
                folder = re.sub(r"[^\w-]", "_", self.experiment)
                root = self.artifact_root and (self.artifact_root / folder).as_uri()
                self.experiment_id = client.create_experiment(self.experiment, artifact_location=root)
            else:
                if found.lifecycle_stage == "deleted":
                    client.restore_experiment(found.experiment_id)
                self.experiment_id = found.experiment_id
        finally:
            if lock is not None:
                os.close(lock)
        self.common = {
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": Path(sys.argv[0] or "python").name,
            "mlflow.source.git.commit": git_commit(Path(__file__).resolve().parents[2]),
        }
        with contextlib.suppress(Exception):
            self.common["mlflow.user"] = getpass.getuser()
        self.client = client

    def _map_key(self) -> str:
        return f"{public(self.uri)} {self.experiment}"

    def _read_map(self) -> dict[str, dict[str, str]]:
        try:
            return dict(json.loads((self.store / "mlflow-runs.json").read_text()))
        except (OSError, ValueError):
            return {}  # only a short cut: the tag on the run is the truth

    def find(self, key: str) -> str | None:
        """Return the run id of `key`: from memory, the map, or MLflow's tags; None when there is no run."""
        if key in self.ids:
            return self.ids[key]
        from mlflow.exceptions import MlflowException

        known = self._read_map().get(self._map_key(), {}).get(key)
        if known:
            try:
                run = self.client.get_run(known)
                if run.info.lifecycle_stage == "active" and run.data.tags.get(KEY_TAG) == key:
                    self.ids[key] = known
                    return known
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        runs = self.client.search_runs(
            [self.experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1, order_by=["start_time ASC"]
        )
        if runs:
            self._remember(key, runs[0].info.run_id)
        return self.ids.get(key)

    def _remember(self, key: str, run_id: str) -> None:
        self.ids[key] = run_id
        runs = self._read_map()
        runs.setdefault(self._map_key(), {})[key] = run_id
        write_atomic(self.store / "mlflow-runs.json", json.dumps(runs, indent=1, sort_keys=True))

    def need(self, key: str) -> str:
        run_id = self.find(key)
        if run_id is None:
            raise Refused(f"there is no run with the key {key!r}")
        return run_id

    def apply(self, events: list[Event], folder: Path) -> Registered | None:
        """Send events of one kind (several only for metrics). Raises `Refused` for what cannot work."""
        from mlflow.exceptions import MlflowException

        try:
            if events[0]["op"] == "metrics":
                self._metrics(events)
                return None
            result: Registered | None = getattr(self, "_" + events[0]["op"])(events[0], folder)
            return result
        except MlflowException as error:
            if error.error_code in PERMANENT:
                raise Refused(str(error)) from error
            raise
        except (FileNotFoundError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise Refused(f"{type(error).__name__}: {error}") from error

    def _run(self, event: Event, _: Path) -> None:
        tags = self.common | event["tags"] | {KEY_TAG: event["key"]}
        if event["parent"]:
            tags["mlflow.parentRunId"] = self.need(event["parent"])
        run_id = self.find(event["key"])
        if run_id is None:
            run = self.client.create_run(self.experiment_id, event["time"], tags, event["name"])
            self._remember(event["key"], run.info.run_id)
        else:  # resumed: the same run goes on
            self._set_tags(run_id, tags)
            self.client.update_run(run_id, status="RUNNING", name=event["name"])

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        rows = [RunTag(clean_name(k), clip(v, 8000)) for k, v in tags.items()]
        for i in range(0, len(rows), 100):
            self.client.log_batch(run_id, tags=rows[i : i + 100])

    def _tags(self, event: Event, _: Path) -> None:
        self._set_tags(self.need(event["key"]), event["tags"])

    def _params(self, event: Event, _: Path) -> None:
        from mlflow.entities import Param

        run_id = self.need(event["key"])
        old = self.client.get_run(run_id).data.params
        new = [Param(k, v) for k, v in event["params"].items() if k not in old]
        for i in range(0, len(new), 100):
            self.client.log_batch(run_id, params=new[i : i + 100])
        changed = {f"param.{k}": v for k, v in event["params"].items() if old.get(k, v) != v}
        if changed:
            self._set_tags(run_id, changed)

    def _metrics(self, events: list[Event]) -> None:
        from mlflow.entities import Metric

        for key, group in groupby(sorted(events, key=lambda e: str(e["key"])), key=lambda e: str(e["key"])):
            run_id, rows, odd = self.need(key), [], {}
            for e in group:
                for name, value in e["metrics"].items():
                    if not math.isfinite(value):
                        odd[f"nonfinite.{name}"] = f"{value} at step {e['step']}"
                        value = math.nan
                    rows.append(Metric(name, value, e["time"], e["step"]))
            for i in range(0, len(rows), 1000):
                self.client.log_batch(run_id, metrics=rows[i : i + 1000])
            if odd:
                self._set_tags(run_id, odd)

    def _artifact(self, event: Event, folder: Path) -> None:
        run_id, path = self.need(event["key"]), folder / event["file"]
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), event["folder"] or path.name)
        else:
            self.client.log_artifact(run_id, str(path), event["folder"] or None)

    def _finish(self, event: Event, _: Path) -> None:
        self.client.set_terminated(self.need(event["key"]), event["status"], event["time"])

    def _register(self, event: Event, _: Path) -> Registered:
        run_id, name = self.need(event["key"]), event["model"]
        if not self.client.list_artifacts(run_id, event["folder"]):
            raise Refused(f"the run {event['key']!r} has no artifacts in {event['folder']!r} to register")
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(name)
        tags = dict(event["tags"])
        if event.get("contest"):
            tags |= {"contest": event["contest"][0], "contest.error": repr(float(event["contest"][1]))}
        source = f"runs:/{run_id}/{event['folder']}"
        versions = self.client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        version = next((v.version for v in versions if v.source == source), None)
        if version is None:
            version = self.client.create_model_version(
                name, source, run_id, tags, description=event["description"], await_creation_for=0
            ).version
            if event["alias"]:
                self.client.set_registered_model_alias(name, CANDIDATE, version)
        else:
            for tag, value in tags.items():
                self.client.set_model_version_tag(name, version, tag, value)
            self.client.update_model_version(name, version, event["description"])
        holder = version
        if event["alias"]:
            holder = self._better_holder(name, event["alias"], str(version), tags) or version
        if event["alias"] and holder == version:
            self.client.set_registered_model_alias(name, event["alias"], version)
            self._show(event["alias"], event, run_id, version)
        return Registered(str(version), str(holder))

    def _better_holder(self, name: str, alias: str, version: str, tags: Mapping[str, str]) -> str | None:
        """The version that keeps the alias: judged on the same faces, with a smaller error."""
        held = self.client.get_registered_model(name).aliases.get(alias)
        if held is None or str(held) == version:
            return None
        judged = self.client.get_model_version(name, held).tags
        same = "contest" in tags and judged.get("contest") == tags["contest"]
        return str(held) if same and float(judged["contest.error"]) < float(tags["contest.error"]) else None

    def _show(self, alias: str, event: Event, run_id: str, version: str) -> None:
        """Put the champion where a visitor looks first: start page, experiment, page of the model.

        The tag `report` names the page among the run's artifacts that shows it; MLflow opens that one.
        """
        name, about, page = event["model"], event["description"], event["tags"].get("report")
        run = self.client.get_run(run_id).info.run_name
        place = f"#/experiments/{self.experiment_id}/runs/{run_id}"
        shown = f", [report]({place}/artifacts/{page})" if page else ""
        self.client.update_registered_model(name, f"**{alias}: version {version}**{shown}\n\n{about}")
        note = (
            f"**{alias}: [{name} version {version}](#/models/{name}/versions/{version})"
            f"{' · ' if event['summary'] else ''}{event['summary']}**, from the run "
            f"[{run}]({place}){shown}\n\n{about}"
        )
        short = " · ".join(part for part in (event["summary"], f"{name} v{version}") if part)
        for tag, value in ((alias, short), ("mlflow.note.content", note)):
            self.client.set_experiment_tag(self.experiment_id, tag, clip(value, 5000))
