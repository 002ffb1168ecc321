"""The source tree seen from outside: copies of it to work on, and README.md made from nbs/index.ipynb.

`python tests/tree.py` (= `make readme`) refreshes the table in nbs/index.ipynb and writes README.md; tests/test_tree.py runs
the same on a copy and compares. nbdev resolves the notebook (hidden cells go), nbconvert writes the markdown: no Quarto needed.
"""
import json, posixpath, re, shutil, subprocess, sys, tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
HAND_MADE = {"__init__.py", "__main__.py"}  # the only modules of blip_nb/ that no notebook exports
TABLE_HEAD = "| notebook | what you have at the end |\n|---|---|"
_passing = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "_proc", "_docs", "demo", "runs", "sidebar.yml")


def copy_tree(to, *names):
    "Copy `names` (files or folders of the project's root) into the folder `to`, without what builds and runs leave behind."
    for name in names:
        src, dst = ROOT / name, Path(to) / name
        if src.is_dir(): shutil.copytree(src, dst, ignore=_passing)
        elif src.exists(): shutil.copy2(src, dst)
    return Path(to)


def run(*cmd, **kw):
    "Run a command; a failure shows what it printed."
    done = subprocess.run([str(c) for c in cmd], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kw)
    assert done.returncode == 0, f"{' '.join(map(str, cmd))} ended with {done.returncode}:\n{done.stdout[-4000:]}"
    return done.stdout


def tracked():
    "Every file that is in git or would be added to it; None outside a checkout."
    if not (ROOT / ".git").exists(): return None
    out = run("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    return [p for p in (ROOT / n for n in out.split("\0") if n) if p.is_file()]


def notebooks(root=ROOT):
    "All notebooks but the index: tutorials first, then the rooms in reading order, then benchmarks and checks."
    place = {"tutorials": 0, "benchmarks": 2, "checks": 3}
    paths = [p for p in (root / "nbs").rglob("*.ipynb") if not any(o.startswith((".", "_")) for o in p.relative_to(root).parts)]
    key = lambda p: (place.get(p.parent.name, 1), p.name)
    return sorted((p for p in paths if p != root / "nbs/index.ipynb"), key=key)


def cells(path): return json.loads(Path(path).read_text(encoding="utf-8"))["cells"]


def heading(path):
    "Title and sentence from a notebook's first cell: `# title`, a blank line, `> one sentence`."
    first = "".join(cells(path)[0]["source"])
    m = re.fullmatch(r"# (.+)\n\n> (.+)", first.strip(), re.S)
    assert m, f"{path.parent.name}/{path.name} must open with `# title`, a blank line and `> one sentence`; it opens with {first[:80]!r}"
    return m[1].strip(), " ".join(m[2].replace("\n>", " ").split())


def table(root):
    "The index's table, one line a notebook, links as seen from nbs/."
    row = lambda p: f"| [{p.relative_to(root / 'nbs').with_suffix('').as_posix()}]({p.relative_to(root / 'nbs').as_posix()}) | {heading(p)[1].replace('|', chr(92) + '|')} |"
    return "\n".join([TABLE_HEAD, *map(row, notebooks(root))])


def refresh_index(root):
    "Write today's notebooks into the table of nbs/index.ipynb."
    path = root / "nbs/index.ipynb"
    nb = json.loads(path.read_text(encoding="utf-8"))
    mine = [c for c in nb["cells"] if "".join(c["source"]).startswith(TABLE_HEAD)]
    assert len(mine) == 1, f"nbs/index.ipynb must hold one cell that opens with {TABLE_HEAD!r}, it holds {len(mine)}"
    mine[0]["source"] = table(root).splitlines(True)
    path.write_text(json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def readme(root):
    "README.md as text, from `root`/nbs/index.ipynb."
    with tempfile.TemporaryDirectory() as tmp:
        work = Path(tmp) / "readme"  # nbdev skips folders whose name opens with _ or .
        (work / "nbs").mkdir(parents=True); (work / "blip_nb").mkdir()
        for name in ("settings.ini", "nbs/index.ipynb", "blip_nb/__init__.py"): shutil.copy(root / name, work / name)
        run(sys.executable, "-c", "from nbdev.serve import proc_nbs; proc_nbs(n_workers=0)", cwd=work)
        page = work / "_proc/index.ipynb"
        nb = json.loads(page.read_text(encoding="utf-8"))
        nb["metadata"]["language_info"] = {"name": "python"}  # what nbconvert writes after the three backticks
        page.write_text(json.dumps(nb), encoding="utf-8")
        run(sys.executable, "-m", "nbconvert", "--to", "markdown", "--log-level=WARN", page, cwd=work)
        assert not (work / "_proc/index_files").exists(), "README.md holds text only, and nbs/index.ipynb draws a picture: link it instead"
        text = page.with_suffix(".md").read_text(encoding="utf-8")
    text = re.sub(r"\A\s*---\n.*?\n---\n", "", text, flags=re.S)              # front matter: title and sentence, set again below
    text = re.sub(r"^<!-- WARNING: .*-->\n", "", text, flags=re.M)
    text = re.sub(r"^#\|.*\n", "", text, flags=re.M)                          # directives
    text = re.sub(r"\[(`[^`\]]+`)\]\(https?://[^)\s]*\)", r"\1", text)        # nbdev's guesses at where a `name` is documented
    text = re.sub(r"(\]\()(?!https?:|#|mailto:)([^)\s]+)", lambda m: m[1] + posixpath.normpath(posixpath.join("nbs", m[2])), text)
    text = "\n".join(line.rstrip() for line in text.splitlines())
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    title, sentence = heading(root / "nbs/index.ipynb")
    return f"<!-- Made from nbs/index.ipynb by `make readme`: edit that. -->\n\n# {title}\n\n> {sentence}\n\n{text}"


if __name__ == "__main__":
    refresh_index(ROOT)
    (ROOT / "README.md").write_text(readme(ROOT), encoding="utf-8")
    print(f"README.md is written; its table lists {len(notebooks())} notebooks")
