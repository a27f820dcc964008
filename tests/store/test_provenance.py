"""What lies outside the spec and can change a number is digested, and its changes are named."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from se_lab.spec import ExecSpec, ModelSpec, RunSpec
from se_lab.store import provenance
from se_lab.store.provenance import current_provenance, differences, git_state, merge_parts, mixtures, source_digest


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Return the file of a plugin that imports one beside it."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "operators_helper.py").write_text("FACTOR = 2\n")
    (tmp_path / "my_operators.py").write_text("def late():\n    from operators_helper import FACTOR\n")
    return tmp_path / "my_operators.py"


def test_a_plugin_is_digested_with_what_it_imports_from_its_folder(plugin):
    execution = ExecSpec(plugins="my_operators")
    before = current_provenance(RunSpec(), execution)
    assert before == current_provenance(RunSpec(), execution) and "my_operators" not in sys.modules
    (plugin.parent / "operators_helper.py").write_text("FACTOR = 3\n")
    (difference,) = differences(before, current_provenance(RunSpec(), execution))
    assert difference.startswith("plugin my_operators was ")
    (plugin.parent / "beside.py").write_text("nobody imports this")
    assert source_digest("my_operators") == current_provenance(RunSpec(), execution)["plugin my_operators"]
    (difference,) = differences(before, current_provenance(RunSpec(), ExecSpec()))
    assert difference.endswith("and is absent")


def test_all_files_of_a_package_count(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "operator_package").mkdir()
    (tmp_path / "operator_package" / "__init__.py").touch()
    part = tmp_path / "operator_package" / "part.py"
    part.write_text("x = 1")
    before = source_digest("operator_package")
    part.write_text("x = 2")
    assert source_digest("operator_package") != before


def test_an_installed_plugin_is_digested_without_what_lies_beside_it():
    # an installed module's folder holds every other package: PyTorch alone has thousands of files
    from se_lab.store.provenance import _source_files

    assert {file.name for file in _source_files("typing_extensions")} == {"typing_extensions.py"}


def test_of_what_a_plugin_imports_only_its_own_folder_is_read(plugin, monkeypatch):
    plugin.write_text("import torch\nimport json\nfrom operators_helper import FACTOR\n")
    read = []
    original = provenance._imports_of
    monkeypatch.setattr(provenance, "_imports_of", lambda file: read.append(file.name) or original(file))
    source_digest("my_operators")
    assert sorted(read) == ["my_operators.py", "operators_helper.py"]


def test_weights_are_known_by_their_content(tmp_path):
    file = tmp_path / "weights.pth"
    spec = RunSpec(model=ModelSpec(pretrained=str(file)))
    file.write_bytes(b"one")
    before = current_provenance(spec, ExecSpec())
    file.write_bytes(b"two")
    (difference,) = differences(before, current_provenance(spec, ExecSpec()))
    assert difference.startswith("weights was ")


def test_differences_are_named_and_what_is_not_known_compares_as_equal():
    before = {"torch": "2.13.0", "threads": "1", "git": "a" * 40, "device": "A100"}
    now = {"torch": "2.14.1", "threads": "1", "git": f"{'b' * 40} with changes", "images": "1234"}
    assert differences(before, now) == [
        "torch was 2.13.0 and is 2.14.1",
        "git was aaaaaaaaaaaa and is bbbbbbbbbbbb with changes",
    ]
    assert differences({}, now) == []


def test_a_mixture_says_which_values_meet_and_how_often():
    trials = [{"torch": "2.13.0", "device": "A100"}, {"torch": "2.14.1"}, {"torch": "2.13.0", "weights": "w"}, {}]
    assert mixtures(trials) == ["torch: 2.13.0 (2 trials), 2.14.1 (1 trial)", "weights: absent (2 trials), w (1 trial)"]
    assert mixtures(trials[:1]) == []


def test_a_trial_that_was_resumed_under_other_conditions_is_a_mixture_by_itself():
    before, after = {"torch": "2.13.0", "git": "a" * 40}, {"torch": "2.14.1", "git": "a" * 40, "device": "A100"}
    whole = merge_parts([before, after])
    assert whole == {"torch": "2.13.0 then 2.14.1", "git": "a" * 40, "device": "A100"}
    assert mixtures([whole]) == ["torch: 2.13.0 then 2.14.1 (1 trial)"]
    assert mixtures([after, whole]) == ["torch: 2.14.1 (1 trial), 2.13.0 then 2.14.1 (1 trial)"]


def test_a_plugin_in_the_current_folder_is_found_without_being_on_the_path(tmp_path, monkeypatch):
    (tmp_path / "operators_here.py").write_text("x = 1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert len(source_digest("operators_here")) == 64 and "operators_here" not in sys.modules


def test_git_runs_nothing_that_the_repository_names(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *arguments], cwd=tmp_path, check=True)

    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "one")
    ran = tmp_path / "ran"
    hook = tmp_path / ".git" / "hooks" / "post-index-change"
    hook.parent.mkdir(exist_ok=True)
    for program in (hook, monitor := tmp_path / "monitor"):
        program.write_text(f"#!/bin/sh\ntouch {ran}\n")
        program.chmod(0o755)
    git("config", "core.fsmonitor", str(monitor))
    (tmp_path / ".git" / "info" / "attributes").write_text("* filter=a=b\n")
    git("config", "filter.a=b.clean", str(monitor))
    git("config", "filter.a=b.required", "true")
    os.utime(tmp_path / "file", (1, 1))  # git must read it again to know that it is the same
    commit = git_state(str(tmp_path))
    assert commit is not None and len(commit) == 40
    git_state.cache_clear()
    (tmp_path / "file").write_text("two")
    assert git_state(str(tmp_path)) == f"{commit} with changes" and not ran.exists()
    (tmp_path / ".git").rename(tmp_path / "gone")
    git_state.cache_clear()
    assert git_state(str(tmp_path)) is None


def test_a_changed_file_may_have_any_name(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *arguments], cwd=tmp_path, check=True)

    git("init", "-q")
    file = tmp_path / os.fsdecode(b"caf\xe9")
    file.write_text("one")
    git("add", ".")
    git("commit", "-qm", "one")
    git("config", "core.quotePath", "false")
    file.write_text("two")
    assert str(git_state(str(tmp_path))).endswith(" with changes")
