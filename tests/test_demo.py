"""The main job as a user runs it, in a process of its own: stopped by Ctrl-C, taken up again, finished with a report."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENV = dict(os.environ, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", PYTHONUNBUFFERED="1", MPLBACKEND="Agg")
TINY = ["--n", "48", "--level", "easy", "--device", "cpu", "--set", "batch_size=16", "--set", "amp=no", "--set", "eval_every=0", "--set", "warmup=2"]


def command(out, *more): return [sys.executable, "-m", "blip_nb", "demo", "--out", str(out), *more]


def test_ctrl_c_keeps_the_last_checkpoint_and_the_same_command_goes_on(tmp_path):
    args = command(tmp_path, *TINY, "--set", "epochs=12")
    p = subprocess.Popen(args, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    last, deadline = tmp_path / "runs/shapes-seed0/last/run.json", time.time() + 120
    while not last.exists() and time.time() < deadline and p.poll() is None: time.sleep(.05)
    assert last.exists(), p.communicate()[0]
    p.send_signal(signal.SIGINT)
    said = p.communicate(timeout=60)[0]
    if p.returncode == 0: pytest.skip("the run was over before the signal came")
    assert p.returncode == 130 and "the same command again" in said, said
    done = json.loads(last.read_text())["epoch"]
    q = subprocess.run(args, env=ENV, capture_output=True, text=True, timeout=300)
    assert q.returncode == 0, q.stderr
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "runs/shapes-seed0/log.jsonl").read_text().splitlines() if '"kind": "epoch"' in line]
    assert epochs == list(range(1, 13)) and 0 < done < 12
    report = (tmp_path / "report.html").read_text()
    assert "Where it looks" in report and not re.search(r'(src|href)="(?!data:)', report)
    assert set(json.loads((tmp_path / "scores.json").read_text())["scores"][0]) >= {"CIDEr", "BLEU-4", "objects right"}


@pytest.mark.slow
def test_the_drawn_world_is_learned_in_eight_minutes(tmp_path):
    start = time.time()
    subprocess.run(command(tmp_path), env={k: v for k, v in ENV.items() if k != "OMP_NUM_THREADS"}, check=True)
    assert json.loads((tmp_path / "scores.json").read_text())["scores"][0]["objects right"] >= .9
    assert time.time() - start < 480


@pytest.mark.slow
@pytest.mark.skipif("BLIP_NB_UCM" not in os.environ, reason="BLIP_NB_UCM names the folder of the aerial photos")
def test_photos_reach_the_published_bar_in_twenty_minutes(tmp_path):
    start = time.time()
    subprocess.run(command(tmp_path, "--data", os.environ["BLIP_NB_UCM"]), env={k: v for k, v in ENV.items() if k != "OMP_NUM_THREADS"}, check=True)
    assert json.loads((tmp_path / "scores.json").read_text())["scores"][0]["CIDEr"] >= 2.
    assert time.time() - start < 1200
