"""`hpe`: the names of the commands, answered at once, and nothing else."""

import subprocess
import sys

import pytest

import workflows.full_pipeline
import workflows.predict
from workflows import cli
from workflows.engine.config import EXIT_BAD_INPUT, REPO, load


def test_its_verbs_are_those_of_the_pipeline():
    assert set(cli.VERBS) == set(workflows.full_pipeline.VERBS)


@pytest.mark.parametrize(
    ("uri", "lines"),
    [
        ("http://127.0.0.1:5055", ["http://127.0.0.1:5055/#/models/best"]),
        ("https://me:secret@host:8443/mlflow/", ["https://host:8443/mlflow/#/models/best"]),
        ("none", []),
        (
            "",
            [
                "mlflow ui --backend-store-uri sqlite:////s/mlflow.db --port 5000",
                "then http://127.0.0.1:5000/#/models/best",
            ],
        ),
    ],
)
def test_the_last_lines_name_the_page_of_the_given_mlflow_and_no_password(uri, lines):
    spec = load(["tests/tiny.yaml"], [f"mlflow.uri={uri}", "store=/s", "publish.model_name=best"])
    assert workflows.full_pipeline.where(spec) == lines


def test_help_lists_every_command_and_imports_none(capsys):
    code = (
        "import sys\nfrom workflows.cli import main\nassert main(['--help']) == 0\n"
        "heavy = {'numpy', 'torch', 'ray', 'mlflow', 'pydantic', 'omegaconf'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr
    listed = [line.split()[0] for line in done.stdout.partition("commands:\n")[2].splitlines()]
    assert listed == [*cli.VERBS, *cli.PROGRAMS]
    assert cli.main([]) == 0 and capsys.readouterr().out == done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pln", "-c", "demo"], "unknown command 'pln'; did you mean 'plan'?"),
        (["compare_seeds"], "did you mean 'compare-seeds'?"),
        (["-c", "demo"], "a command comes first, for example hpe run -c demo"),
        (["search.trials=0"], "a command comes first, for example hpe run search.trials=0"),
        (["benchmark", "windws"], "unknown benchmark 'windws'; did you mean 'windows'?"),
        (["benchmark", "render", "raed"], "did you mean 'read'?"),
        (["benchmark", "--faces", "3"], "--faces must be at least 16, got 3"),
        (["benchmark", "--repeat", "0"], "--repeat must be at least 1, got 0"),
        (["plan", "-c", "dmeo"], "no configuration file dmeo; did you mean 'demo'?"),
    ],
)
def test_a_wrong_word_is_one_sentence(words, said, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert cli.main(words) == EXIT_BAD_INPUT
    told = capsys.readouterr()
    assert said in told.err and told.err.count("\n") == 1 and told.out == ""


@pytest.mark.parametrize(("words", "example"), [(["plan"], "hpe run -c conf"), (["doctor"], "hpe doctor -c conf")])
def test_the_examples_of_a_help_name_the_command_that_was_called(words, example, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    with pytest.raises(SystemExit):
        cli.main([*words, "--help"])
    said = capsys.readouterr().out
    assert f"\n    {example}" in said and "python workflows" not in said


def test_the_words_reach_the_command(monkeypatch):
    reached: list[list[str]] = []

    def note(argv: list[str]) -> int:
        reached.append(list(argv))
        return 7

    monkeypatch.setattr(workflows.full_pipeline, "main", note)
    monkeypatch.setattr(workflows.predict, "main", note)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert cli.main(["labels", "-c", "demo", "a=1"]) == cli.main(["predict", "x.jpg", "model=m"]) == 7
    assert reached == [["labels", "-c", "demo", "a=1"], ["x.jpg", "model=m"]]


@pytest.mark.parametrize("name", cli.PROGRAMS)
def test_each_program_answers_under_its_name(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", sys.argv)
    with pytest.raises(SystemExit) as end:
        cli.main([name, "--help"])
    assert not end.value.code and capsys.readouterr().out.startswith(f"usage: hpe {name} [")
