"""The house stands on its floors: a module imports lower floors only, and at its top nothing that a user may not have."""
import ast, subprocess, sys

import pytest
from tree import HAND_MADE, ROOT

# Where each room stands. A new room gets a line here; a room that needs a higher one moves, and its line says why.
FLOOR = {
    "core": 0,
    "data.samples": 1, "data.text": 1, "data.images": 1, "data.shapes": 1, "data.datasets": 2,
    "data.video": 2, "data.shape_tasks": 2, "data.questions": 3, "data.published": 4, "data.tables": 4,
    "nets.attention": 1, "nets.prompts": 1, "nets.vision": 2,
    "nets.text": 3,  # one above vision, whose BlipPreTrainedModel it shares; what follows moved up with it
    "nets.keys": 1, "nets.blip": 4, "nets.pretraining": 5, "nets.nlvr": 5, "nets.grounding": 5, "nets.classification": 5,
    "nets.keys_flamingo": 2, "nets.perceiver": 2, "nets.hooks": 3, "nets.media": 3, "nets.eva": 3, "nets.qformer": 4, "nets.demonstrations": 4, "nets.interleaved": 4,
    "nets.blip2": 5, "nets.blip2_retrieval": 5, "nets.flamingo": 5,
    "nets.keys_blip2": 2, "nets.checkpoints_blip2": 7,
    "nets.checkpoints": 6,  # it builds all of the nets
    "nets.zoo": 9,
    "evaluation.ptb": 1, "evaluation.intervals": 1, "evaluation.results": 1, "evaluation.recall": 2, "evaluation.answers": 2, "evaluation.captions": 2, "evaluation.adapters": 3,
    "data.rowfile": 1, "evaluation.record": 1, "evaluation.shards": 1, "evaluation.nearest": 1, "evaluation.index": 2, "evaluation.search": 3, "evaluation.engines": 3, "evaluation.qdrant": 4,
    "evaluation.official": 2, "evaluation.cases": 12, "evaluation.report": 13, "evaluation.runners": 14,  # they judge what tasks predicted
    "visual.report": 2, "visual.boxes": 2, "visual.gallery": 3, "visual.attention": 3,  # attention writes its pages with report
    "tasks.losses": 6, "tasks.momentum": 6, "tasks.task": 7, "tasks.caption": 8,
    "tasks.pretrain": 9, "tasks.blip2": 12, "tasks.likelihood": 6, "tasks.shots": 8, "tasks.flamingo_parts": 9, "tasks.lessons": 10, "tasks.flamingo": 12, "tasks.rerank": 6, "tasks.retrieval": 10, "tasks.features": 11, "tasks.find": 12,  # retrieval uses the parts of pretrain's step
    "tasks.boxes": 8, "tasks.grounding": 9, "tasks.ranking": 10, "tasks.vqa": 11, "tasks.nlvr": 10, "tasks.classification": 12,  # ranking and the like share what pre-training made
    "training.survival": 6, "training.recipes": 6,  # both read by the loop
    "training.loop": 8,
    "data.streams": 3,
    "nets.families": 8,
    "small_blip2": 15,
    "small_flamingo": 14,
    "small_language": 16,
    "tasks.blip2_pretrain": 14, "tasks.blip2_retrieval": 13, "tasks.stage_one": 11,
    "train_language": 17,
    "training.ablation": 15, "training.callbacks": 7, "training.capfilt": 14, "training.capfilt_report": 3, "training.checkpoint": 7, "training.launch": 9, "training.one_pass": 4, "training.options": 7, "training.schedules": 1, "training.watch": 1,
    "small": 13, "demo": 14, "train_command": 14, "cli": 18,
}
# Not to be imported when a module loads: the author's tools, and what a GPU machine with torch and transformers need not have.
LAZY = {"datasets", "evaluate", "matplotlib", "ipywidgets", "IPython", "nbdev", "fastcore", "execnb", "accelerate", "torchvision",
        "pycocoevalcap", "faiss", "av", "peft", "captum", "ray", "pandas", "requests", "pyarrow", "qdrant_client"}

FILES = {p.relative_to(ROOT / "blip_nb").with_suffix("").as_posix().replace("/", "."): p for p in sorted((ROOT / "blip_nb").rglob("*.py"))
         if p.name not in HAND_MADE | {"_modidx.py"}}


def at_load(node):
    "The import statements that run when the module loads: everywhere but in functions."
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)): yield child
        elif not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)): yield from at_load(child)


def imported(module, statements):
    "Absolute names of what these statements import."
    for s in statements:
        if isinstance(s, ast.Import): yield from (a.name for a in s.names); continue
        base = f"blip_nb.{module}".split(".")[:-s.level] if s.level else []
        base = ".".join([*base, *(s.module.split(".") if s.module else [])])
        yield base
        yield from (f"{base}.{a.name}" for a in s.names)


def rooms_used(module):
    "Rooms that `module` imports anywhere, in functions too; a name taken from `blip_nb` itself counts as the room that holds it."
    import blip_nb
    statements = [n for n in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))) if isinstance(n, (ast.Import, ast.ImportFrom))]
    names = {n.removeprefix("blip_nb.") for n in imported(module, statements) if n.startswith("blip_nb.")}
    return {blip_nb._module_of.get(n, n) for n in names} & set(FLOOR) - {module}


def test_every_room_has_a_floor():
    assert not (new := sorted(set(FILES) - set(FLOOR))), f"give these rooms a floor in tests/test_floors.py: {new}"


@pytest.mark.parametrize("module", FILES)
def test_imports_lower_floors_only(module):
    above = {m: FLOOR[m] for m in rooms_used(module) if FLOOR[m] >= FLOOR.get(module, 99)}
    assert not above, f"blip_nb.{module} stands on floor {FLOOR.get(module)} and imports {above}"


@pytest.mark.parametrize("module", FILES)
def test_heavy_packages_are_imported_where_they_are_used(module):
    found = {n.split(".")[0] for n in imported(module, at_load(ast.parse(FILES[module].read_text(encoding="utf-8"))))} & LAZY
    assert not found, f"blip_nb.{module} imports {sorted(found)} when it loads; import inside the function that needs it"


def test_every_module_loads_without_the_optional_packages():
    code = f"import sys\nfor name in {sorted(LAZY - {'requests'})}: sys.modules[name] = None\nimport importlib\n" \
           f"for m in {list(FILES)}: importlib.import_module('blip_nb.' + m)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
