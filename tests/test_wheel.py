"""What is published: an sdist, the wheel built from it, and a package that runs from either, away from the sources. No network."""
import configparser, email, os, subprocess, sys, sysconfig, tarfile, zipfile

import pytest
from tree import ROOT, copy_tree, run

PROBE = "import blip_nb, sys; from blip_nb.data import text; from blip_nb import DataSample; " \
        "print(blip_nb.__file__); print(len(text.load_tokenizer()('a red circle').input_ids))"


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    "sdist from a copy of the sources, and the wheel built from that sdist."
    src = copy_tree(tmp_path_factory.mktemp("src"), "settings.ini", "setup.py", "MANIFEST.in", "LICENSE", "README.md", "CHANGELOG.md",
                    "constraints.txt", "Makefile", "blip_nb", "nbs", "tests")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", src / "dist", src)
    return src / "dist"


@pytest.fixture(scope="module")
def sdist(dist): return next(dist.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def wheel(dist): return next(dist.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    "A new virtual environment with the wheel; what the wheel requires is seen in today's site-packages."
    venv = tmp_path_factory.mktemp("wheel") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    python = venv / "bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", wheel)
    paths = sysconfig.get_paths()
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip()
    with open(f"{site}/today.pth", "w") as f: f.write("\n".join({paths["purelib"], paths["platlib"]}))
    return python


def modules(): return {f"blip_nb/{p.relative_to(ROOT / 'blip_nb').as_posix()}" for p in (ROOT / "blip_nb").rglob("*.py")}


def assets(): return {p.relative_to(ROOT).as_posix() for p in (ROOT / "blip_nb/data/assets").iterdir()}


def test_sdist_contents(sdist):
    names = {n.split("/", 1)[1] for n in tarfile.open(sdist).getnames() if "/" in n}
    assert {"settings.ini", "setup.py", "LICENSE", "README.md", "CHANGELOG.md", *modules(), *assets()} <= names
    assert not (extra := sorted(n for n in names if n.startswith(("nbs", "tests")))), extra


def test_wheel_contents(wheel):
    names = {n for n in zipfile.ZipFile(wheel).namelist() if not n.endswith("/")}
    info = {n for n in names if n.startswith("blip_nb-") and ".dist-info/" in n}
    assert names - info == modules() | assets()
    assert any(n.endswith("/LICENSE") for n in info)


def test_vocabulary_is_inside(wheel):
    with zipfile.ZipFile(wheel).open("blip_nb/data/assets/bert-base-uncased-vocab.txt") as f: words = f.read().decode().split("\n")
    assert (words[0], words[101], len([w for w in words if w])) == ("[PAD]", "[CLS]", 30522)


def test_wheel_metadata(wheel):
    cfg = configparser.ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    with zipfile.ZipFile(wheel) as z: meta = email.message_from_bytes(z.read(next(n for n in z.namelist() if n.endswith("/METADATA"))))
    assert meta["Version"] == cfg["DEFAULT"]["version"]
    assert meta["Requires-Python"] == ">=3.11"
    needs = [r for r in meta.get_all("Requires-Dist") if "extra ==" not in r]
    assert len(needs) == len(cfg["DEFAULT"]["requirements"].split())
    assert set(meta.get_all("Provides-Extra")) == {"dev", "search", "coco", "video", "lora", "explain", "bulk", "notebooks"}
    assert meta.get_payload().lstrip().startswith("<!-- Made from nbs/index.ipynb")


def test_wheel_runs_away_from_the_sources(installed, tmp_path):
    where, n = run(installed, "-W", "ignore", "-c", PROBE, cwd=tmp_path).splitlines()[-2:]
    assert str(installed.parent.parent) in where and int(n) == 5


def test_sdist_installs(sdist, tmp_path):
    run(sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation", "--target", tmp_path / "lib", sdist)
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'lib')!r}); {PROBE}"
    where, n = run(sys.executable, "-W", "ignore", "-c", code, cwd=tmp_path).splitlines()[-2:]
    assert where.startswith(str(tmp_path / "lib")) and int(n) == 5


@pytest.mark.parametrize("command", [[], ["caption"], ["train"], ["evaluate"], ["demo"]], ids=" ".join)
def test_help_of_the_command_line(installed, tmp_path, command):
    text = run(installed.parent / "blip_nb", *command, "--help", cwd=tmp_path)
    assert text.startswith(" ".join(["usage: blip_nb", *command]))
    assert f"blip_nb {command[0]} " in text.split("example:")[1] if command else "caption" in text


def test_python_m_is_the_command_line(installed, tmp_path):
    assert run(installed, "-m", "blip_nb", "--help", cwd=tmp_path).startswith("usage: blip_nb ")


@pytest.mark.parametrize("command", [["evaluate", "nowhere.json", "--model", "nothing"], ["caption", "nowhere.jpg", "--model", "nothing"]], ids=lambda c: c[0])
def test_a_mistake_gets_a_sentence_and_no_traceback(installed, tmp_path, command):
    done = subprocess.run([installed.parent / "blip_nb", *command], cwd=tmp_path, text=True, capture_output=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode not in (0, -11) and "Traceback" not in done.stderr, done.stderr
    assert "nowhere" in done.stderr or "nothing" in done.stderr, done.stderr
