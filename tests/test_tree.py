"""The tree is in order: modules are what the notebooks export, notebooks are clean, README.md is today's, nothing is out of place."""
import filecmp, re

import pytest
from tree import BIN, HAND_MADE, ROOT, cells, copy_tree, heading, notebooks, readme, refresh_index, run, tracked

MB = 2**20


def listing(folder, pattern): return {p.relative_to(folder).as_posix() for p in folder.rglob(pattern) if "__pycache__" not in p.parts}


def differing(ours, fresh, names): return sorted(n for n in names if not filecmp.cmp(ours / n, fresh / n, shallow=False))


def test_export_leaves_no_diff(tmp_path):
    copy_tree(tmp_path, "settings.ini", "nbs", "blip_nb")
    for p in (tmp_path / "blip_nb").rglob("*.py"):  # a module whose notebook is gone must not survive
        if p.parent != tmp_path / "blip_nb" or p.name not in HAND_MADE: p.unlink()
    run(BIN / "nbdev_export", cwd=tmp_path)
    have, made = listing(ROOT / "blip_nb", "*.py"), listing(tmp_path / "blip_nb", "*.py")
    assert have == made, f"without a notebook: {sorted(have - made)}; not exported yet: {sorted(made - have)}. Run: make export"
    stale = differing(ROOT / "blip_nb", tmp_path / "blip_nb", have)
    assert not stale, f"{stale} differ from what the notebooks export. Run: make export"


def test_notebooks_are_clean(tmp_path):
    copy_tree(tmp_path, "settings.ini", "nbs")
    run(BIN / "nbdev_clean", cwd=tmp_path)
    dirty = differing(ROOT / "nbs", tmp_path / "nbs", listing(tmp_path / "nbs", "*.ipynb"))
    assert not dirty, f"{dirty} are not clean. Run: make clean-nbs"


def test_readme_is_up_to_date(tmp_path):
    copy_tree(tmp_path, "settings.ini", "nbs", "blip_nb")
    refresh_index(tmp_path)
    assert filecmp.cmp(ROOT / "nbs/index.ipynb", tmp_path / "nbs/index.ipynb", shallow=False), "the table of nbs/index.ipynb is not today's. Run: make readme"
    assert (ROOT / "README.md").read_text(encoding="utf-8") == readme(ROOT), "README.md is not what nbs/index.ipynb gives. Run: make readme"


def test_links_of_the_readme_exist():
    links = [l.split("#")[0] for l in re.findall(r"\]\(([^)\s]+)", (ROOT / "README.md").read_text(encoding="utf-8")) if not l.startswith(("http", "#"))]
    assert links, "README.md links no notebook"
    assert not (gone := [l for l in links if not (ROOT / l).exists()]), f"README.md links to {gone}"


def exported_module(nb):
    "Names in the notebook's `#| default_exp` lines."
    return [m for c in cells(nb) if c["cell_type"] == "code" for m in re.findall(r"^#\|\s*default_exp\s+(\S+)", "".join(c["source"]), re.M)]


def test_one_notebook_one_module():
    owner = {}
    for nb in notebooks():
        rel, exported = nb.relative_to(ROOT / "nbs"), exported_module(nb)
        if not exported:
            assert rel.parts[0] in ("tutorials", "benchmarks", "checks"), f"nbs/{rel} exports nothing: it belongs in tutorials, benchmarks or checks"
            continue
        should = ".".join([*rel.parts[:-1], re.sub(r"^\d+[a-z]?_", "", nb.stem)])
        assert exported == [should], f"nbs/{rel} exports {exported}; its place says {should}"
        owner[should.replace(".", "/") + ".py"] = rel
    rooms = {n for n in listing(ROOT / "blip_nb", "*.py") if n not in HAND_MADE | {"_modidx.py"} and not n.endswith("/__init__.py")}
    assert rooms == set(owner), f"modules without a notebook: {sorted(rooms - set(owner))}; notebooks without a module: {sorted(set(owner) - rooms)}"


def test_other_cells_export_to_their_own_module():
    for nb in notebooks():
        for c in cells(nb):
            aside = re.findall(r"^#\|\s*exports?i?[ \t]+(\S+)", "".join(c["source"]), re.M) if c["cell_type"] == "code" else []
            assert not aside, f"{nb.relative_to(ROOT)} exports a cell to {aside}"


def test_notebooks_open_with_title_and_sentence():
    for nb in notebooks():
        title, sentence = heading(nb)
        assert len(sentence.split()) >= 5, f"{nb.relative_to(ROOT)}: {sentence!r} does not say what the reader has at the end"


def test_sizes():
    files = tracked()
    if files is None: pytest.skip("not a git checkout")
    fixtures = [p for p in files if p.is_relative_to(ROOT / "nbs/fixtures")]
    assert sum(p.stat().st_size for p in fixtures) <= 12 * MB, "nbs/fixtures holds more than 12 MB"
    big = {p.relative_to(ROOT).as_posix(): p.stat().st_size for p in files if p not in fixtures and p.stat().st_size > MB}
    assert not big, f"over 1 MB: {big}"


# Paths of one machine, and the hosts packages come from: neither means anything to the next reader.
PRIVATE = re.compile(r"(?<![\w.:/])/(?:work|root|opt|home|Users|tmp/ipykernel)[/_]|\bpy" r"pi\b|python" r"hosted|download\.py" r"torch|ana" r"conda\.org|conda-" r"forge")


def test_no_text_names_a_machine_or_a_package_host():
    files = tracked()
    if files is None: pytest.skip("not a git checkout")
    found = []
    for p in files:
        raw = p.read_bytes()
        if b"\0" in raw[:8192]: continue  # not a text
        for n, line in enumerate(raw.decode("utf-8", errors="replace").splitlines(), 1):
            if '"image/' not in line and (m := PRIVATE.search(line)): found.append(f"{p.relative_to(ROOT)}:{n}: {m[0]}")
    assert not found, found[:20]
