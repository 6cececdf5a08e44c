"""train.py and eval.py from outside: what they leave behind, exit codes, one clear line for bad
input.
"""

import json
import shutil

import pytest

from tests import processes

SMOKE = ("--config", "configs/emoji.py:smoke")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished smoke run."""
    path = tmp_path_factory.mktemp("run")
    code, out, err = processes.run("train.py", *SMOKE, "--workdir", path, "--profile", "2:4")
    assert code == 0, err
    (path / "stdout").write_text(out)
    (path / "stderr").write_text(err)
    return path


def test_workdir_holds_what_the_readme_says(workdir):
    for name in (
        "config.json",
        "metrics.jsonl",
        "tokenizer.json",
        "checkpoints/4",
        "eval/4.json",
        "goodput.json",
    ):
        assert (workdir / name).exists(), name
    assert list((workdir / "tb").glob("events.*"))
    assert {p.suffix for p in (workdir / "pictures").iterdir()} == {".png"}
    assert [m["step"] for m in processes.metrics(workdir)] == [2, 4, 4]
    first = processes.metrics(workdir)[0]
    assert first.keys() >= {"contrastive/loss", "itm/accuracy", "mlm/accuracy"}
    assert {k[6:] for k in first if k.startswith("train/")} == {
        "loss", "grad_norm", "lr", "samples_per_s", "data_wait", "temperature", "skipped",
        "skipped_in_row",
    }  # fmt: skip
    once = {"run/compile_s", "run/first_step_s", "run/peak_memory_gib"}
    assert [once & row.keys() for row in processes.metrics(workdir)] == [
        once,
        {"run/peak_memory_gib"},
        set(),
    ]
    assert (workdir / "stderr").read_text().count("first step after") == 1
    assert list((workdir / "profile").rglob("*.xplane.pb"))
    table = (workdir / "stdout").read_text()
    assert "unseen_combination" in table and "Chinese" in table


def test_eval_repeats_what_training_measured(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "copy")
    before = json.loads((copy / "eval" / "4.json").read_text())
    (copy / "eval" / "4.json").unlink()
    code, out, err = processes.run(
        "eval.py", "--workdir", copy, "--step", "best", "--evals", "retrieval"
    )
    assert code == 0, err
    after = json.loads((copy / "eval" / "4.json").read_text())
    assert after.keys() == before.keys()
    assert all(abs(after[k] - before[k]) < 1e-6 for k in before)
    assert "text -> image" in out


@pytest.mark.slow
def test_eval_of_other_data_prints_that_alone_and_keeps_the_rest(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "copy")
    kwargs = {"modalities": ("image", "text"), "examples": 16}
    args = ("--data", "toy", f"--config.data.kwargs={kwargs}", "--config.data.eval_splits=val")
    code, out, err = processes.run("eval.py", "--workdir", copy, "--evals", "retrieval", *args)
    assert code == 0, err
    assert "toy:val: 16 images" in out and "unseen_combination" not in out
    splits = {k.split("/")[0] for k in json.loads((copy / "eval" / "4.json").read_text())}
    assert splits == {"toy:val", "unseen_combination", "unseen_glyph"}


@pytest.mark.slow
def test_training_again_changes_nothing(workdir):
    before = (workdir / "metrics.jsonl").read_bytes()
    code, _, err = processes.run("train.py", *SMOKE, "--workdir", workdir)
    assert code == 0 and "resumed from step 4" in err
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_run_that_saved_nothing_does_not_hold_its_workdir(tmp_path):
    args = ("train.py", *SMOKE, "--workdir", tmp_path)
    code, _, err = processes.run(*args, "--config.batch_size=100000")
    assert code == 2, err
    (tmp_path / "config.json").write_text('{"seed": 5}')  # as one that was killed early leaves
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    code, _, err = processes.run(*args, "--config.eval.pictures=0")
    assert code == 0, err


BAD = {
    "unknown key": (["--config.optim.lrr=1"], "did you mean --config.optim.lr"),
    "unknown argument": (["--wrkdir", "x"], "--workdir"),
    "key as an argument": (["--batch_size=32"], "did you mean --config.batch_size"),
    "key of a part": (["--weight-decay", "0.1"], "did you mean --config.optim.weight_decay"),
    "workdir": (["--workdir", "/dev/null/run"], "--workdir: Not a directory"),
    "missing config": (["--config", "configs/nothing.py"], "no file"),
    "unknown source": (["--config.data.source=jsonl_tr"], "did you mean jsonl_tar"),
    "unknown split": (["--config.data.train_split=trian"], "did you mean train"),
    "unknown objective": (["--config.objectives.itm.fn=imt"], "did you mean itm"),
    "unknown key of a schedule": (["--config.optim.lr.peek=1e-3"], "config.optim.lr.peek: "),
    "unknown keyword": (["--config.objectives.itm.wieght=1"], "did you mean weight"),
    "batch and mesh": (["--config.batch_size=17", "--config.micro_batches=2"], "nearest size"),
    "batch and data": (["--config.batch_size=100000"], "batch_size"),
    "mesh": (["--config.mesh.fsdp=3"], "does not divide 1 device;"),
    "vocabulary": (["--config.modalities.text.vocab_size=100"], "tokenizer has"),
    "optimizer rule": (["--config.optim.rules=(('nope', 1.0, 1.0), ('.*', 1.0, 1.0))"], "nope"),
    "changed config": (["--config.seed=5"], "seed"),
    "more steps": (["--config.steps=9"], "to train longer, start a new run from it"),
    "steps to trace": (["--profile", "3:6"], "has steps 1 to 4"),
}


# 'mesh' speaks of the number of devices, which is another in this process, where the rest is tried;
# 'unknown key' shows that a process ends as the rest says.
AS_PROCESSES = ("unknown key", "mesh")


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case, workdir, tmp_path, commands):
    extra, told = BAD[case]
    config = [] if extra[0] == "--config" else SMOKE
    where = workdir if case in ("changed config", "more steps") else tmp_path
    args = *config, "--workdir", where, *extra
    if case in AS_PROCESSES:
        code, _, err = processes.run("train.py", *args)
    else:
        code, err, _ = commands.train(*args)
    check_refused(code, err, told)


def check_refused(code, err, told):
    """Assert exit code 2 and one line, the last, with `told` in it."""
    assert code == 2, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ") and told in last
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "args, told",
    [
        (["--workdir", "no/such/run"], "not a workdir"),
        (["--step", "77"], "no checkpoint 77"),
        (["--evals", "retreival"], "did you mean retrieval"),
        (["--data", "jsonl_tr"], "did you mean jsonl_tar"),
        (["--workdir"], "argument"),
    ],
)
def test_eval_says_what_is_wrong(args, told, workdir, commands):
    code, err, _ = commands.eval(*([] if "--workdir" in args else ["--workdir", workdir]), *args)
    check_refused(code, err, told)


def test_eval_ends_with_exit_code_2():
    code, _, err = processes.run("eval.py", "--workdir", "no/such/run")
    check_refused(code, err, "not a workdir")


def test_a_tokenizer_of_another_model_is_refused(workdir, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "copy")
    (copy / "tokenizer.json").unlink()
    code, _, err = processes.run("eval.py", "--workdir", copy)
    assert code == 2 and "tokenizer.json is missing" in err
