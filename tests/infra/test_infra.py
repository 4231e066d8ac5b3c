"""infra/ without a container engine, a Kubernetes or a cloud: each file is read by the program that would read it.

Ray's own parser reads every `ray` command, Ray's validators read cluster.yaml, runtime_env.yaml and the RayCluster (as
its autoscaler would), MLflow's own rule reads the allowed hosts, the pipeline reads its own command lines. Compose and
KubeRay bring no validator for Python; the fields that are used are written down in schemas.yaml.
"""

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tests.infra.reading import (
    FILES,
    INFRA,
    commands,
    document,
    documents,
    filled,
    header,
    parsed,
    pinned,
    pipelines,
    pods,
    ray_command,
    ray_starts,
    spec_of,
)
from workflows.cli import VERBS
from workflows.engine.config import REPO

SCHEMAS = yaml.safe_load((Path(__file__).parent / "schemas.yaml").read_text())["$defs"]


@pytest.mark.parametrize("name", ["docker-compose.yml", "raycluster.yaml", "rayjob.yaml", "shared.yaml"])
def test_every_field_is_a_documented_one(name):
    from jsonschema import Draft202012Validator

    for entry in documents(name):
        kind = entry.get("kind", "compose")
        checker = Draft202012Validator({"$defs": SCHEMAS, "$ref": f"#/$defs/{kind}"})
        assert not [f"{error.json_path}: {error.message}" for error in checker.iter_errors(entry)]
        assert any("mispelt" in error.message for error in checker.iter_errors(entry | {"mispelt": 1}))


def test_ray_up_takes_cluster_yaml():
    """With `ray up`'s own functions: its schema, its defaults, its checks of node types. No cloud is asked."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(document("cluster.yaml"))
    validate_config(prepared)
    types = prepared["available_node_types"]
    assert prepared["max_workers"] == sum(node["max_workers"] for node in types.values())


def test_ray_takes_the_runtime_environment_beside_what_the_pipeline_sets():
    """Ray refuses a variable that the job and ray.init both set."""
    from ray.runtime_env.runtime_env import RuntimeEnv, _merge_runtime_env

    from workflows.engine.cluster.connection import worker_environment

    job = RuntimeEnv(**document("runtime_env.yaml"))
    ours = RuntimeEnv(env_vars=worker_environment())
    assert _merge_runtime_env(job, ours) is not None
    assert _merge_runtime_env(RuntimeEnv(env_vars={"OMP_NUM_THREADS": "4"}), ours) is None
    excluded = document("runtime_env.yaml")["excludes"]
    assert all((REPO / name).is_dir() for name in excluded) and not {"conf", "hpe_core", "workflows"} & set(excluded)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_file_opens_with_a_command_that_uses_it(path):
    found = commands(path)
    subject = path.name.removesuffix(".dockerignore")
    assert any(word == f"infra/{subject}" for words in found for word in words)
    for words in found:
        for word in words:
            if word.startswith(("infra/", "conf/", "workflows/")):
                assert (REPO / word).is_file(), f"{path.name} names {word}"


@pytest.mark.parametrize(("name", "words"), pipelines(), ids=lambda value: value if isinstance(value, str) else "")
def test_each_pipeline_command_is_one(name, words, monkeypatch):
    """The verb or script exists; configuration and overrides make a valid run whose store is on the shared volume."""
    assert words[1] in VERBS or (REPO / words[1]).is_file()
    assert spec_of(words, monkeypatch).store.startswith("/shared/")


def test_ray_reads_every_ray_command():
    count = 0
    for path in FILES:
        for words in commands(path):
            if words[0] != "ray":
                continue
            depth = 2 if words[1] == "job" else 1
            parsed(ray_command(*words[1 : 1 + depth]), words[1 + depth :])
            count += 1
    assert count >= 6


def test_compose_and_kubectl_commands_name_what_exists():
    services = document("docker-compose.yml")["services"]
    names = {entry["metadata"]["name"] for entry in documents("shared.yaml") if entry["kind"] == "Service"}
    names.add(document("raycluster.yaml")["metadata"]["name"] + "-head-svc")  # KubeRay's name for it
    for path in FILES:
        for words in commands(path):
            if "exec" in words:
                assert words[words.index("exec") + 1] in services
            if "--scale" in words:
                assert words[words.index("--scale") + 1].split("=")[0] in services
            if "--profile" in words:
                profile = words[words.index("--profile") + 1]
                assert any(profile in service.get("profiles", []) for service in services.values())
            if words[:2] == ["kubectl", "port-forward"]:
                assert words[2].removeprefix("service/") in names
            if words[:3] == ["kubectl", "get", "rayjob"]:
                assert words[3] == document("rayjob.yaml")["metadata"]["name"]


def test_images_name_the_pinned_ray_and_the_dockerfiles_python():
    python = re.search(r"^FROM python:(\d+)\.(\d+)-", (INFRA / "Dockerfile").read_text(), re.MULTILINE)
    assert python and f"(Python {python[1]}.{python[2]}," in (REPO / "constraints.txt").read_text().splitlines()[0]
    wanted = {f"{pinned()['ray']}-py{python[1]}{python[2]}-{device}" for device in ("cpu", "cuda")}
    found = set()
    for path in FILES:
        found |= set(re.findall(r"head-pose:([\w.-]*\d[\w.-]*)", path.read_text()))
    assert found == wanted
    assert document("raycluster.yaml")["spec"]["rayVersion"] == pinned()["ray"]


def test_the_job_and_the_cluster_describe_the_same_cluster():
    assert document("rayjob.yaml")["spec"]["rayClusterSpec"] == document("raycluster.yaml")["spec"]


def test_ports_agree():
    compose = document("docker-compose.yml")["services"]
    starts = dict(ray_starts())
    head, worker = starts["head"], starts["worker"]
    assert worker["address"] == starts["gpu-worker"]["address"] == f"head:{head['port']}"
    assert compose["head"]["healthcheck"]["test"][-1] == f"127.0.0.1:{head['port']}"
    assert compose["head"]["ports"] == [f"127.0.0.1:{head['dashboard_port']}:{head['dashboard_port']}"]
    machines = starts["head_start_ray_commands"]
    assert starts["worker_start_ray_commands"]["address"] == f"$RAY_HEAD_IP:{machines['port']}"
    ports = {port["name"]: port["containerPort"] for port in dict(pods())["head"]["containers"][0]["ports"]}
    assert ports == {"gcs-server": head["port"], "dashboard": head["dashboard_port"]}
    submitted = {urlsplit(uri).port for path in FILES for uri in re.findall(r"API_SERVER_ADDRESS=(\S+)", header(path))}
    assert submitted == {head["dashboard_port"]} == {machines["dashboard_port"]}


def mlflow_servers() -> dict[str, tuple[list[str], int]]:
    """File -> (words after `mlflow server`, the port under which jobs reach it)."""
    service = document("docker-compose.yml")["services"]["mlflow"]
    found = {entry["kind"]: entry for entry in documents("shared.yaml")}
    container = found["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert [*service["command"][:2]] == container["command"] == ["mlflow", "server"]
    assert found["Service"]["spec"]["selector"] == found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    return {
        "docker-compose.yml": (service["command"][2:], int(service["ports"][0].rpartition(":")[2])),
        "shared.yaml": (container["args"], found["Service"]["spec"]["ports"][0]["port"]),
    }


def test_mlflow_answers_the_host_name_that_jobs_use(monkeypatch):
    from mlflow.cli import cli
    from mlflow.server.security_utils import is_allowed_host_header

    hosts = {urlsplit(uri).netloc for _, words in pipelines() if (uri := spec_of(words, monkeypatch).mlflow.uri)}
    assert hosts == {"mlflow:5000"}
    for words, port in mlflow_servers().values():
        options = parsed(cli.commands["server"], words)
        assert options["port"] == port and options["host"] == "0.0.0.0"
        allowed = options["allowed_hosts"].split(",")
        assert all(is_allowed_host_header(allowed, host) for host in [*hosts, f"127.0.0.1:{port}"])
        assert not is_allowed_host_header(allowed, f"stranger.example:{port}")


def test_compose_waits_only_for_services_that_can_become_healthy_and_mounts_only_its_volumes():
    compose = document("docker-compose.yml")
    for service in compose["services"].values():
        for other, wait in service.get("depends_on", {}).items():
            assert wait["condition"] != "service_healthy" or "healthcheck" in compose["services"][other]
        for volume in filled(service["volumes"]):
            assert volume.split(":")[0] in compose["volumes"]
    rays = [service for service in compose["services"].values() if service["command"][0] == "ray"]
    assert len(rays) == 3
    for service in rays:
        assert "shared:/shared" in service["volumes"], "the store is on the volume that all nodes see"
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?"), "no token, no start"


def test_every_pod_of_ray_sees_the_store_and_no_pod_is_root():
    claims = {
        entry["metadata"]["name"]: entry["spec"]["accessModes"]
        for entry in documents("shared.yaml")
        if entry["kind"] == "PersistentVolumeClaim"
    }
    for name, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] == 1000
        mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert set(mounts.values()) == set(volumes)
        claim = volumes[mounts["/shared"]]["persistentVolumeClaim"]["claimName"]
        assert claims[claim] == (["ReadWriteOnce"] if name == "mlflow" else ["ReadWriteMany"])


def node_types(name: str) -> dict[str, dict[str, Any]]:
    """Node types as the autoscaler sees them, whichever way the cluster was started."""
    if name == "cluster.yaml":
        from ray.autoscaler._private.util import prepare_config

        return prepare_config(document(name))["available_node_types"]
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    entry = document(name)
    entry["metadata"]["namespace"] = "default"  # Kubernetes fills it in
    return _derive_autoscaling_config_from_ray_cr(entry)["available_node_types"]  # checked against Ray's schema, too


@pytest.mark.parametrize("name", ["cluster.yaml", "raycluster.yaml"])
def test_workers_scale_from_zero_and_the_commands_name_their_limits(name, monkeypatch):
    """What `cluster.max_cpus` and `max_gpus` promise, the node types hold: else actors would wait for ever."""
    types = node_types(name)
    assert all(node["min_workers"] == 0 for node in types.values())
    head = next(node for kind, node in types.items() if kind.startswith("head"))
    assert head["resources"]["CPU"] == 0, "a head that works keeps the groups from growing"
    cpus = sum(n["max_workers"] * n["resources"]["CPU"] for n in types.values() if not n["resources"].get("GPU"))
    gpus = sum(node["max_workers"] * node["resources"].get("GPU", 0) for node in types.values())
    job = {"raycluster.yaml": ("raycluster.yaml", "rayjob.yaml"), "cluster.yaml": ("cluster.yaml",)}[name]
    specs = [spec_of(words, monkeypatch).cluster for file, words in pipelines() if file in job]
    assert specs
    for spec in specs:
        assert spec.max_cpus == cpus
        assert spec.max_gpus in (0, gpus)
        need = {"CPU": spec.cpus_per_worker, "GPU": int(spec.max_gpus > 0)}
        fitting = [n for n in types.values() if all(n["resources"].get(kind, 0) >= need[kind] for kind in need)]
        assert any(node["max_workers"] for node in fitting), "a worker fits into a node"


def test_every_cluster_wants_a_token():
    cluster = document("cluster.yaml")
    assert "--env=RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert "/home/ray/.ray/auth_token" in cluster["file_mounts"]
    assert document("raycluster.yaml")["spec"]["authOptions"]["mode"] == "token"


def test_a_job_that_failed_is_tried_again_on_the_same_store():
    job = document("rayjob.yaml")["spec"]
    assert job["backoffLimit"] >= 1 and "store=/shared/" in job["entrypoint"]
    assert job["shutdownAfterJobFinishes"], "else every try leaves its cluster running"
