"""What `import blip_nb` offers and what it costs."""
import configparser, json, statistics, subprocess, sys

import pytest
from tree import ROOT

import blip_nb

HEAVY = ["torch", "numpy", "transformers", "matplotlib", "datasets", "evaluate", "accelerate", "ipywidgets", "nbdev", "fastcore"]


def fresh(code):
    "Run `code` in a new interpreter and return the JSON that it prints last."
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_version_is_that_of_the_settings():
    cfg = configparser.ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    assert blip_nb.__version__ == cfg["DEFAULT"]["version"]


@pytest.mark.parametrize("name", blip_nb.__all__)
def test_every_name_resolves(name):
    value, module = getattr(blip_nb, name), blip_nb._module_of[name]
    assert value is vars(sys.modules[f"blip_nb.{module}"])[name]
    assert value.__module__ == f"blip_nb.{module}", f"{name} is defined in {value.__module__}"
    assert name in dir(blip_nb)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'BlipCaptoin'"): blip_nb.BlipCaptoin
    with pytest.raises(ImportError, match="BlipCaptoin"): exec("from blip_nb import BlipCaptoin")


def test_import_loads_nothing_heavy():
    loaded = fresh(f"import json, sys, blip_nb; dir(blip_nb); print(json.dumps([m for m in {HEAVY} if m in sys.modules]))")
    assert loaded == []


def test_import_costs_at_most_15_percent_of_torch():
    # Seven fresh interpreters time both imports, in alternating order: what else the machine does weighs on both alike.
    timed = "t = time.perf_counter(); import {0}; spent['{0}'] = time.perf_counter() - t\n"
    runs = [fresh("import json, time\nspent = {}\n" + "".join(timed.format(m) for m in order) + "print(json.dumps(spent))")
            for order in [("torch", "blip_nb"), ("blip_nb", "torch")] * 3 + [("torch", "blip_nb")]]
    ours, torch = (statistics.median(r[m] for r in runs) for m in ("blip_nb", "torch"))
    assert ours <= .15 * torch, f"import blip_nb takes {1000 * ours:.0f} ms beside {1000 * torch:.0f} ms for torch"
