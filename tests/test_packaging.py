"""The lock, the metadata, and what a checkout may not contain."""

import pathlib
import re
import subprocess
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
# Which torch is right depends on the machine; TensorFlow brings its own narrow pins.
FREE = {"torch", "tensorflow"}

# Spelt in pieces, so that this file does not hold what it looks for.
HOSTS = re.compile(
    r"pypi\.or" r"g|python" r"hosted\.or" r"g|conda\.anaconda\.or" r"g|download\.pytorch\.or" r"g"
)
LOCAL_PATHS = re.compile(r"(?<![\w.])/(?:ro" r"ot|wo" r"rk|ho" r"me/\w+|Us" r"ers/\w+)/")


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def pins():
    return (ROOT / "constraints.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def checkout():
    """{path: text} of what git has or would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(
            command, cwd=ROOT, capture_output=True, check=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    texts = {}
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file():
            texts[name] = path.read_text(encoding="utf-8", errors="replace")
    return texts


def environments(extra=""):
    for python in PYTHONS:
        for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")):
            yield {
                "extra": extra,
                "python_version": python,
                "python_full_version": f"{python}.0",
                "sys_platform": system,
                "platform_machine": machine,
            }


def test_uv_and_pip_use_the_same_pins(project, pins):
    assert project["tool"]["uv"]["constraint-dependencies"] == pins, "run .ci/lock.py"


def test_each_pin_is_exact_and_addresses_nothing(pins):
    for pin in map(Requirement, pins):
        assert pin.url is None and not pin.extras, pin
        assert [clause.operator for clause in pin.specifier] == ["=="], pin


def test_every_dependency_has_one_pin_on_every_platform(project, pins):
    pins = [Requirement(pin) for pin in pins]
    wanted = list(project["project"]["dependencies"])
    wanted += sum(project["project"]["optional-dependencies"].values(), [])
    for requirement in map(Requirement, wanted):
        if requirement.name in FREE:
            continue
        name = canonicalize_name(requirement.name)
        for environment in environments():
            found = [
                pin
                for pin in pins
                if canonicalize_name(pin.name) == name
                and (pin.marker is None or pin.marker.evaluate(environment))
            ]
            assert len(found) == 1, f"{requirement.name}: {found} in {environment}; run .ci/lock.py"
            (clause,) = found[0].specifier
            assert requirement.specifier.contains(clause.version), f"{requirement} and {found[0]}"


def test_dependencies_have_lower_bounds_only(project):
    for requirement in map(Requirement, project["project"]["dependencies"]):
        assert {clause.operator for clause in requirement.specifier} <= {">="}, requirement


def test_no_file_holds_an_address_of_packages_or_a_path_of_one_machine(checkout):
    for name, text in checkout.items():
        for pattern in (HOSTS, LOCAL_PATHS):
            found = pattern.search(text)
            assert not found, f"{name} holds {found.group()!r}"


def test_no_source_file_is_longer_than_400_lines(checkout):
    long = {name: text.count("\n") for name, text in checkout.items() if name.endswith(".py")}
    assert not {name: lines for name, lines in long.items() if lines > 400}


def test_ignored_folders_are_ignored():
    names = [".venv/x", ".venv.lock", "uv.lock", "runs/emoji/config.json", "data/x", ".jax_cache/x"]
    result = subprocess.run(
        ["git", "check-ignore", *names], cwd=ROOT, capture_output=True, text=True
    )
    if result.returncode == 128:
        pytest.skip("not a git checkout")
    assert result.stdout.split() == names
    kept = ["multimodal/data/pipeline.py", "configs/common.py", "tests/data/test_tokenizer.py"]
    assert not subprocess.run(["git", "check-ignore", *kept], cwd=ROOT, capture_output=True).stdout
