"""The container and cluster files: against the checkers of those who define them, and against this project itself."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = ROOT / "Dockerfile"
COMPOSE = sorted(DEPLOY.glob("compose*.yaml"))
MANIFESTS = sorted([*DEPLOY.glob("kubernetes/*.yaml"), *DEPLOY.glob("multi-node/*.yaml")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
USER = 10001
BIN = Path(sys.executable).parent
LINTERS = {
    "hadolint": [BIN / "hadolint"],
    "shellcheck": [BIN / "shellcheck"],
    "compose": [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"],
    "kubernetes": [BIN / "kubernetes-validate", "--strict"],
}


def lint(linter, *files):
    """The linter's exit code and words."""
    result = subprocess.run([*LINTERS[linter], *files], capture_output=True, text=True)
    return result.returncode, result.stdout + result.stderr


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def workloads():
    """Name and pod specification of everything that runs containers in the cluster files."""
    for path in MANIFESTS:
        for document in documents(path):
            if document["kind"] in ("Deployment", "StatefulSet"):
                yield f"{path.stem}/{document['metadata']['name']}", document["spec"]["template"]["spec"]


def stages():
    """The Dockerfile's stages: name -> instructions with their continuations on one line."""
    text = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text())
    found = {}
    for line in text.splitlines():
        if match := re.match(r"FROM \S+ AS (\S+)", line):
            found[match[1]] = []
        elif found and line and not line.startswith("#"):
            found[list(found)[-1]].append(line)
    return found


def instruction(stage, word):
    lines = [line.removeprefix(f"{word} ") for line in stages()[stage] if line.startswith(f"{word} ")]
    assert len(lines) == 1, (stage, word)
    return lines[0]


def servers():
    """Where -> the whole command of every `imod serve` and `imod demo` in the files, the image's own part included."""
    found = {}
    for stage in ("serve", "serve-cpu", "demo"):
        entry = json.loads(instruction(stage, "ENTRYPOINT"))
        found[f"Dockerfile/{stage}"] = entry + json.loads(instruction(stage, "CMD"))
    for name, service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].items():
        found[f"compose/{name}"] = (
            json.loads(instruction(service["build"]["target"], "ENTRYPOINT")) + service["command"]
        )
    for name, pod in workloads():
        container = pod["containers"][0]
        if "command" not in container:
            stage = "serve" if container["name"] == "server" else "demo"
            found[name] = json.loads(instruction(stage, "ENTRYPOINT")) + container["args"]
        else:
            for words in scripts(container):
                found[f"{name}/headless" if "--headless" in words else name] = words
    return found


def scripts(container):
    """Commands of a container's shell script that start vLLM, with its variables filled in."""
    text = container["args"][0].replace("\\\n", " ")
    text = text.replace("$((2 * POD_INDEX))", "2").replace('"$VLLM_HOST_IP"', "10.0.0.1")
    shared = re.search(r'shared="([^"]*)"', text)
    if shared:
        text = text.replace(shared[0], "").replace("$shared", " ".join(shared[1].split()))
    for line in text.replace("exec ", "").splitlines():
        words = shlex.split(line)
        if words[:2] == ["imod", "serve"]:
            yield words


def vllm_flags():
    """Where -> the arguments that vLLM's own parser gets."""
    return {name: words[words.index("--") + 1 :] for name, words in servers().items() if "--" in words}


def test_the_dockerfile_passes_hadolint(tmp_path):
    assert lint("hadolint", DOCKERFILE) == (0, "")
    loose = tmp_path / "Dockerfile"
    loose.write_text(DOCKERFILE.read_text().replace(" --no-install-recommends", "").replace("USER 10001", "USER root"))
    code, words = lint("hadolint", loose)
    assert code == 1
    assert {"DL3015", "DL3002"} <= set(re.findall(r"DL\d+", words))


def test_the_build_check_passes_shellcheck(tmp_path):
    assert lint("shellcheck", DEPLOY / "check_build.sh") == (0, "")
    loose = tmp_path / "loose.sh"
    loose.write_text(
        (DEPLOY / "check_build.sh").read_text().replace('"$url"', "$url").replace('"$scratch/pids', "$scratch/p ids")
    )
    assert lint("shellcheck", loose)[0] == 1


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_compose_files_follow_the_compose_specification(path, tmp_path):
    code, words = lint("compose", path)
    assert code == 0, words
    wrong = tmp_path / path.name
    wrong.write_text(path.read_text().replace("target:", "targets:"))
    assert lint("compose", wrong)[0] == 1


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_follow_kubernetes_schemas(path, tmp_path):
    code, words = lint("kubernetes", path)
    assert code == 0, words
    assert words.count("passed") == len(documents(path))
    wrong = tmp_path / path.name
    wrong.write_text(path.read_text().replace("containerPort:", "containerport:"))
    assert lint("kubernetes", wrong)[0] != 0


def test_every_start_uses_options_that_the_commands_have():
    from imod_core.cli import imod

    found = servers()
    assert len(found) == 10
    for where, words in found.items():
        command = imod.get_command(None, words[1])
        context = command.make_context(words[1], list(words[2:]))  # raises for what the command does not know
        assert context.params["host"] == ("127.0.0.1" if where.endswith("/headless") else "0.0.0.0"), where
    with pytest.raises(Exception, match="No such option"):
        imod.get_command(None, "serve").make_context("serve", ["--no-such", "m"])


def test_vllms_own_parser_takes_all_of_its_flags(tmp_path):
    found = vllm_flags()
    assert {name.partition("/")[0] for name in found} == {"ray", "data-parallel"}
    file = tmp_path / "flags.json"
    file.write_text(json.dumps([*found.values(), ["--no-such-flag", "1"]]))
    result = subprocess.run(
        [sys.executable, Path(__file__).with_name("parse_flags.py"), file], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    *good, wrong = json.loads(result.stdout.splitlines()[-1])
    assert not wrong
    assert all(good), [name for name, parsed in zip(found, good, strict=True) if not parsed]


def test_both_ends_of_a_parallel_server_give_the_engines_the_same_flags():
    found = vllm_flags()
    ours = {"--headless", "--data-parallel-start-rank", "--data-parallel-address"}
    head, other = (pairs(found[f"data-parallel/imod-data-parallel{end}"]) for end in ("", "/headless"))
    assert {k: v for k, v in head.items() if k not in ours} == {k: v for k, v in other.items() if k not in ours}
    assert int(head["--data-parallel-size"]) == 2 * int(head["--data-parallel-size-local"])


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("multi-node/*.yaml")), ids=lambda path: path.stem)
def test_clients_are_led_to_the_one_host_that_answers_once_it_is_ready(path):
    hosts, clients = (d["spec"] for d in documents(path) if d["kind"] == "Service")
    assert "ports" not in hosts
    assert hosts["publishNotReadyAddresses"]
    assert clients["selector"] == {**hosts["selector"], "apps.kubernetes.io/pod-index": "0"}
    assert "publishNotReadyAddresses" not in clients
    assert "clusterIP" not in clients


def pairs(words):
    """`--a 1 --b` as a dict."""
    return {word: after for word, after in zip(words, [*words[1:], ""], strict=True) if word.startswith("--")}


def test_nothing_runs_as_root_or_writes_to_its_image():
    for stage in ("serve", "serve-cpu", "demo"):
        assert instruction(stage, "USER") == str(USER)
    for name, pod in workloads():
        assert pod["securityContext"]["runAsNonRoot"], name
        assert pod["securityContext"]["runAsUser"] == USER
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    for service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]


def test_the_key_comes_as_a_file_and_the_server_is_published_nowhere():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert "ports" not in compose["services"]["server"]
    assert compose["networks"]["inside"]["internal"]
    assert all(port.startswith("127.0.0.1:") for port in compose["services"]["demo"]["ports"])
    for where, words in servers().items():
        if not where.startswith("Dockerfile") and not where.endswith("/headless"):
            assert words[words.index("--api-key-file") + 1].startswith("/run/secrets/"), where


def test_each_target_is_healthy_when_what_it_serves_answers():
    paths = {"serve": ":8000/ready", "serve-cpu": ":8000/ready", "demo": ":7860/"}
    for stage, path in paths.items():
        line = next(line for line in stages()[stage] if line.startswith("HEALTHCHECK"))
        assert f"http://127.0.0.1{path}'" in line
        assert instruction(stage, "EXPOSE") in path
    probes = [c[p]["httpGet"]["path"] for name, pod in workloads() if name == "server/imod-server"
              for c in pod["containers"] for p in ("startupProbe", "readinessProbe", "livenessProbe")]  # fmt: skip
    assert probes == ["/ready", "/ready", "/health"]


def test_versions_in_the_files_are_those_of_the_project():
    from packaging.requirements import Requirement

    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    text = DOCKERFILE.read_text()
    extras = PROJECT["optional-dependencies"]
    vllm = next(Requirement(need) for need in extras["serve"] if need.startswith("vllm"))
    assert re.search(r"vllm-openai:v([\d.]+)", text)[1] in vllm.specifier
    assert set(re.findall(r"\b(torch|uv)==([\d.]+)", text)) == {("torch", pins["torch"]), ("uv", pins["uv"])}
    assert re.search(r"python:(\d+\.\d+)", text)[1] in PROJECT["requires-python"]
    assert {*re.findall(r"--extra (\S+)", text), *re.findall(r"EXTRAS=([\w,]+)", text)[0].split(",")} <= set(extras)
    tags = set(re.findall(r"image: imod-\S+:(\S+)", "".join(path.read_text() for path in [*COMPOSE, *MANIFESTS])))
    assert tags == {PROJECT["version"]}


def test_only_what_the_wheel_needs_goes_into_a_build():
    """A model, a key or a virtual environment in the folder never reaches an image."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    let_in = {line[1:] for line in lines if line.startswith("!")}
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    packages = {package.partition("/")[0] for package in settings["packages"]}
    assert packages <= let_in
    assert let_in - packages <= {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "demo"}
