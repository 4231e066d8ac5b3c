"""Bring MLflow up to what the store says: each run, point, file and model version once, however often it is called.

A run is found by its tags `hpe.store`, the id of its store, and `hpe.key`: stores of one configuration share keys. Its
tag `hpe.sent`, written last, says what it has got: most of what is there is not sent again. What was cut off is, and
leaves no trace: MLflow keeps identical points once, and files, tags and params overwrite themselves. A run that
somebody deleted in MLflow comes back when the store has news of it.
"""

import getpass
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hpe_core.system.identity import id_of
from workflows.tracking.facts import Model, Point, RunFacts, Status
from workflows.tracking.server import alone, check_address, connect

KEY_TAG, STORE_TAG, SENT_TAG = "hpe.key", "hpe.store", "hpe.sent"
PARENT_TAG = "mlflow.parentRunId"
JUDGED_TAG = "hpe.judged"  # of a model version: who holds the alias was decided
CANDIDATE = "candidate"  # the alias of the newest version, whoever is champion
RUNNING = "RUNNING"


@dataclass
class Synced:
    """What was sent; what became of new model versions, a sentence each; and why MLflow did not take all of a run."""

    runs: int = 0
    points: int = 0
    artifacts: int = 0
    registered: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def sentence(self) -> str:
        sent = f"sent to MLflow: {self.runs} runs, {self.points} points, {self.artifacts} files"
        refused = [f"MLflow does not take all of {key}: {why}" for key, why in self.refused.items()]
        return "\n".join([sent if self.runs else "MLflow has all that the store says", *self.registered, *refused])


def sync(store: Path, uri: str, experiment: str, facts: Sequence[RunFacts]) -> Synced:
    """Bring the experiment at `uri` up to `facts`. Raises SpecError for a wrong address, and what MLflow raises."""
    return Synced() if uri == "none" else Session(store, uri, experiment).sync(facts)


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested plain values as `a.b.0.c -> text`; lists of plain values as JSON."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
            value = {str(place): each for place, each in enumerate(value)}
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            text = json.dumps(value) if isinstance(value, Mapping | list | tuple) else str(value)
            flat[clean(f"{prefix}{key}")] = clip(text, 6000)
    return flat


def clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def clean(name: str) -> str:
    """The name in the letters that MLflow allows for params, metrics and tags."""
    parts = [part.strip() for part in re.sub(r"[^\w\-. :/]", "_", name).split("/")]
    return "/".join(part for part in parts if part.strip("."))[:200] or "_"


def cause(error: BaseException) -> str:
    """What lies at the bottom: MLflow wraps 'connection refused' in 500 letters of other errors."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return clip(" ".join(f"{type(error).__name__}: {error}".split()), 300)


def digest(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:16]


def files_of(run: RunFacts) -> Iterator[tuple[Path, str, int, int]]:
    """The files of a run's artifacts that are here: path, folder in MLflow, bytes, time."""
    for artifact in run.artifacts:
        path = run.home / artifact.path
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                inner = Path(artifact.folder or path.name, file.relative_to(path).parent)
                folder = inner.as_posix() if path.is_dir() else artifact.folder
                yield file, folder, file.stat().st_size, file.stat().st_mtime_ns


def is_active(run: Any) -> bool:
    """Whether nobody deleted the run in MLflow."""
    return bool(run.info.lifecycle_stage == "active")


def sent_to(run: Any) -> dict[str, Any]:
    """What a run has got: digests of all of it and of its files, how many points, and their digest."""
    return dict(json.loads(run.data.tags.get(SENT_TAG, "{}")))


def sent_before(found: Sequence[Any], facts: Sequence[RunFacts], store: str) -> Iterator[Any]:
    """Those of MLflow's runs that an earlier version, which named no store, has sent for the store with these facts.

    A whole run has its store's place among its params, as the store itself notes it, wherever it lies now. What stands
    below a whole run is of its store. Of two stores that lay at one place on two machines nobody can tell.
    """
    told = {run.key: run.params["store"] for run in facts if "store" in run.params}
    there = {run.info.run_id: run for run in found}

    def is_ours(run: Any) -> bool:
        tags = run.data.tags
        if STORE_TAG in tags:
            return bool(tags[STORE_TAG] == store)
        if PARENT_TAG in tags:
            return tags[PARENT_TAG] in there and is_ours(there[tags[PARENT_TAG]])
        return told.get(tags[KEY_TAG], "") in (run.data.params.get("store"), tags.get("param.store"))

    return (run for run in found if STORE_TAG not in run.data.tags and is_ours(run))


class Session:
    """MLflow as seen from one store, for one thread. The store's lock keeps other processes out while runs are made."""

    def __init__(self, store: Path, uri: str, experiment: str) -> None:
        check_address(uri)
        store.mkdir(parents=True, exist_ok=True)
        self._lock = store.resolve() / "mlflow.lock"
        self._runs: dict[str, Any] = {}  # the store's runs in MLflow by key, as of the last look
        with alone(self._lock):
            self._store = id_of(store)
            self.client, self._experiment = connect(uri, experiment, self._lock.with_name("mlartifacts"))

    def sync(self, facts: Sequence[RunFacts]) -> Synced:
        done = Synced()
        with alone(self._lock):
            self._look(facts)
            for run in facts:
                try:
                    self._bring(run, done)
                except Exception as error:
                    if getattr(error, "error_code", "") == "TEMPORARILY_UNAVAILABLE":  # such as a locked database
                        raise
                    self.client.get_experiment(self._experiment)  # raises, too, where MLflow is what does not answer
                    done.refused[run.key] = cause(error)
            told = {run.key: run.status for run in facts}
            for key, there in self._runs.items():  # shown early, and then their stage was cut off
                stage = told.get("/".join(key.split("/")[:2]), RUNNING)
                if key not in told and stage != RUNNING and there.info.status == RUNNING and is_active(there):
                    self.end(key, "KILLED")
        return done

    def begin(self, run: RunFacts) -> None:
        """Show a run early: the store will say more of it when its stage is done."""
        with alone(self._lock):
            self._look()
            self._bring(run, Synced())

    def end(self, key: str, status: Status) -> None:
        if run_id := self.run_id(key):
            self.client.set_terminated(run_id, status)

    def run_id(self, key: str | None) -> str:
        """MLflow's id of a run that was shown; '' for others."""
        return str(self._runs[key].info.run_id) if key in self._runs else ""

    def _look(self, facts: Sequence[RunFacts] = ()) -> None:
        """Ask MLflow for the store's runs; of several with one key, the first that nobody deleted counts."""
        from mlflow.entities import ViewType

        found: list[Any] = []
        token: str | None = ""
        keyed = f"tags.`{KEY_TAG}` LIKE '%'"
        while token is not None:
            page = self.client.search_runs([self._experiment], keyed, ViewType.ALL, 1000, page_token=token or None)
            found, token = [*found, *page], page.token or None
        found.sort(key=lambda run: (is_active(run), -run.info.start_time))
        ours = {run.data.tags[KEY_TAG]: run for run in found if run.data.tags.get(STORE_TAG) == self._store}
        news = [run for run in facts if run.key not in ours]
        old = {run.data.tags[KEY_TAG]: run for run in sent_before(found, news, self._store)}
        self._runs = old | ours
        for key in old.keys() - ours:
            if is_active(old[key]):  # MLflow writes nothing into a deleted one
                self.client.set_tag(old[key].info.run_id, STORE_TAG, self._store)

    def _bring(self, run: RunFacts, done: Synced) -> None:
        """One run, and in the end the tag that says what was sent."""
        files, there = list(files_of(run)), self._runs.get(run.key)
        stamp = digest([(path.name, *rest) for path, *rest in files])
        whole = digest([run.to_json(), stamp])
        if there and there.info.status == run.status and sent_to(there).get("whole") == whole:
            return
        there = self._open(run, there if there and is_active(there) else None)
        run_id, sent = there.info.run_id, sent_to(there)
        known = sent.get("points", 0)
        new = run.points[known if sent.get("head") == digest(run.points[:known]) else 0 :]
        self.log(run_id, new)
        if new:
            sent |= {"points": len(run.points), "head": digest(run.points)}
        if files and sent.get("files") != stamp:
            for path, folder, *_ in files:
                self.client.log_artifact(run_id, str(path), folder or None)
            sent["files"], done.artifacts = stamp, done.artifacts + len(files)
        if run.model is not None:
            done.registered.append(self._register(run_id, run.name, run.model))
        if run.status == RUNNING:
            self.client.update_run(run_id, status=RUNNING)
        else:
            self.client.set_terminated(run_id, run.status, run.ended_ms)
        self.client.set_tag(run_id, SENT_TAG, json.dumps(sent | {"whole": whole}))
        done.runs, done.points = done.runs + 1, done.points + len(new)

    def _open(self, run: RunFacts, there: Any) -> Any:
        """The run, made where it is not there, with its name, tags and params."""
        tags = {clean(tag): clip(str(value), 5000) for tag, value in run.tags.items()}
        tags |= {KEY_TAG: run.key, STORE_TAG: self._store}
        tags |= {"mlflow.source.git.commit": run.tags["commit"]} if "commit" in run.tags else {}
        tags |= {PARENT_TAG: self.run_id(run.parent)} if self.run_id(run.parent) else {}
        name = clip(run.name, 250)
        if there is None:
            tags |= {"mlflow.source.name": Path(sys.argv[0] or "python").name, "mlflow.source.type": "LOCAL"}
            with suppress(Exception):  # a container may run under a number that has no name
                tags["mlflow.user"] = getpass.getuser()
            there = self._runs[run.key] = self.client.create_run(self._experiment, run.started_ms, tags, name)
        elif there.info.run_name != name:
            self.client.update_run(there.info.run_id, name=name)
        flat, first = flatten(run.params), there.data.params  # params cannot change: another value becomes a tag
        tags |= {clean(f"param.{key}"): text for key, text in flat.items() if first.get(key, text) != text}
        tags = {tag: value for tag, value in tags.items() if there.data.tags.get(tag) != value}
        self.log(there.info.run_id, (), {key: text for key, text in flat.items() if key not in first}, tags)
        return there

    def log(
        self, run_id: str, points: Sequence[Point], params: Mapping[str, str] = {}, tags: Mapping[str, str] = {}
    ) -> None:
        """Figures, params and tags of a run that was shown, in requests that MLflow takes; inf becomes NaN, tagged."""
        from mlflow.entities import Metric, Param, RunTag

        rows, noted = [], dict(tags)
        for name, value, step, time_ms in points:
            if not math.isfinite(value):
                noted[f"nonfinite.{clean(name)}"] = f"{value} at step {step}"
            rows.append(Metric(clean(name), value if math.isfinite(value) else math.nan, time_ms, step))
        words, notes = [Param(*each) for each in params.items()], [RunTag(*each) for each in noted.items()]
        while run_id and (rows or words or notes):
            self.client.log_batch(run_id, rows[:800], words[:80], notes[:80])  # at most 1000, 100, 100, and 1 MB
            rows, words, notes = rows[800:], words[80:], notes[80:]

    def _register(self, run_id: str, run_name: str, model: Model) -> str:
        """One run's folder is one version; returns what became of it. Who holds the alias is decided once for it, so an
        old store that is sent again takes it from nobody. The source `runs:/...` holds with and without a server."""
        name, alias, source = model.name, model.alias, f"runs:/{run_id}/{model.folder}"
        if not self.client.list_artifacts(run_id, model.folder):
            raise FileNotFoundError(f"the run has no artifacts in {model.folder!r} to register")
        if not self.client.search_registered_models(f"name = '{name}'"):
            self.client.create_registered_model(name)
        tags = {**model.tags, "contest": model.contest[0], "contest.error": repr(float(model.contest[1]))}
        there = self.client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        made = next((version for version in there if version.source == source), None)
        if made is None:
            about = {"tags": tags, "description": clip(model.description, 5000), "await_creation_for": 0}
            made = self.client.create_model_version(name, source, run_id, **about)
        version, holder = str(made.version), str(self.client.get_registered_model(name).aliases.get(alias, ""))
        if JUDGED_TAG not in made.tags:
            judged = self.client.get_model_version(name, holder).tags if holder else {}
            same = judged.get("contest") == model.contest[0]
            self.client.set_registered_model_alias(name, CANDIDATE, version)
            if not (same and float(judged["contest.error"]) < model.contest[1]):
                holder = version
                self.client.set_registered_model_alias(name, alias, version)
                self._show(run_id, run_name, model, version)
            self.client.set_model_version_tag(name, version, JUDGED_TAG, "yes")
        if version == holder:
            return f"registered {name} version {version}, the {alias}"
        kept = f"version {holder} stays {alias} with a smaller error on the same validation faces"
        return f"registered {name} version {version}, candidate; {kept}"

    def _show(self, run_id: str, run_name: str, model: Model, version: str) -> None:
        """Put the champion where a visitor looks first: MLflow's "GenAI" view hides runs and models, and lists show 16
        letters of a tag."""
        place, page = f"#/experiments/{self._experiment}/runs/{run_id}", model.tags.get("report")
        report = f", [report]({place}/artifacts/{page})" if page else ""
        text = f"**{model.alias}: version {version}**{report}\n\n{model.description}"
        self.client.update_registered_model(model.name, clip(text, 5000))
        link = f"[{model.name} version {version}](#/models/{quote(model.name)}/versions/{version})"
        first = " · ".join(filter(None, [f"{model.alias}: {link}", model.summary]))
        note = f"**{first}**, from the run [{run_name}]({place}){report}\n\n{model.description}"
        short = " · ".join(filter(None, [model.summary, f"{model.name} v{version}"]))
        for tag, value in ((model.alias, short), ("mlflow.note.content", note)):
            self.client.set_experiment_tag(self._experiment, tag, clip(value, 5000))
