"""Parity, laws and figures on a GPU: `make gpu-check` (DEVICE=cpu runs the same checks where there is none).

Needs torch, transformers, matplotlib and pytest. The golden tensors are those of nbs/fixtures.
fp32 must agree within 1e-4 of the published numbers. bf16 keeps 8 bits of mantissa, so one rounding moves a value by
at most 2**-9 of its size; through L layers of post-LN text and pre-LN image the errors add like independent ones,
about sqrt(roundings) * 2**-9. With roughly 12 roundings a layer and 4 layers here that is under 2 % of the largest output.
"""
import copy
import json
import os
import sys
from pathlib import Path

import pytest
import torch

root = Path(__file__).parents[2]
sys.path.insert(0, str(root))
fix = root / "nbs/fixtures"
device = torch.device(os.environ.get("BLIP_NB_DEVICE") or "cuda")
if device.type == "cuda" and not torch.cuda.is_available(): pytest.skip("no CUDA device; DEVICE=cpu runs these checks on the CPU", allow_module_level=True)
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

import transformers.models.blip.modeling_blip as hf  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import BlipConfig  # noqa: E402

from blip_nb.nets import blip as ours  # noqa: E402
from blip_nb.nets.checkpoints import from_checkpoint  # noqa: E402

BF16 = 12**.5 * 4**.5 * 2**-9  # see above: 1.4 % of the largest value


def config():
    return BlipConfig(vision_config=dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, initializer_range=.02),
        text_config=dict(vocab_size=90, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32,
                         bos_token_id=88, sep_token_id=3, pad_token_id=0, eos_token_id=3), projection_dim=16, image_text_hidden_size=16)


def model(name, cls=ours, std=.1):
    torch.manual_seed(0)
    m = getattr(ours, name)(config())
    for n, p in m.named_parameters(): torch.nn.init.normal_(p, 1. if "norm" in n.lower() and n.endswith("weight") else 0., std)
    if cls is ours: return m.eval().to(device)
    other = getattr(hf, name)(config()); other.load_state_dict(m.state_dict())
    return other.eval().to(device)


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 87, (3, 7), generator=g); ids[:, -1] = 3
    return dict(pixel_values=torch.randn(3, 3, 32, 32, generator=g).to(device), input_ids=ids.to(device))


def golden(stem, **heads):
    d = fix / "salesforce_blip"
    over = json.loads((d / "med_config.json").read_text()) | dict(vision_config=dict(num_attention_heads=3), text_config=dict(sep_token_id=3, eos_token_id=3))
    return from_checkpoint(d / f"{stem}.weights.safetensors", over).to(device), load_file(d / f"{stem}.io.safetensors"), json.loads((d / f"{stem}.json").read_text())


@pytest.mark.filterwarnings("ignore")
def test_published_ids():
    net, io, want = golden("decoder")
    for name, g in want["gen"].items():
        if name == "nucleus": continue
        got = net.generate(io["image"].to(device), g["prompt_ids"], **g["args"]).cpu()
        for a, b in zip(got, io[f"gen.{name}"]):
            n = next((i + 1 for i, t in enumerate(b) if t == want["sep"]), len(b))
            assert torch.equal(a[:n], b[:n]), name


@pytest.mark.filterwarnings("ignore")
def test_published_image_states():
    net, io, _ = golden("base")
    assert (net.vision_model(io["image"].to(device)).last_hidden_state.cpu() - io["feat_image"]).abs().max() < 1e-4


def test_published_caption_task():
    from blip_nb.tasks.caption import BlipCaption
    d = fix / "mmpretrain/blip_caption"
    cfg = json.loads((d / "fixture.json").read_text())
    args = {k: v for k, v in cfg["model_cfg"].items() if k != "type"} | dict(tokenizer=str(fix / "mmpretrain/bert"))
    task = BlipCaption(**args, init_cfg=dict(type="Pretrained", checkpoint=str(d / "state.safetensors")), device=device).eval()
    loss = task.loss(load_file(d / "inputs.safetensors")["images"], [dict(gt_caption=c) for c in cfg["inputs"]["captions"]])["seq_gen_lm_loss"]
    assert abs(loss.item() - cfg["outputs"]["loss"]) < 1e-4


@pytest.mark.parametrize("name", ["BlipForConditionalGeneration", "BlipForImageTextRetrieval", "BlipModel", "BlipForQuestionAnswering"])
def test_transformers_values_and_gradients(name, batch):
    a, b = model(name), model(name, hf)
    extra = dict(labels=batch["input_ids"]) if "Generation" in name else dict(decoder_input_ids=batch["input_ids"], labels=batch["input_ids"]) if "Question" in name else dict(return_loss=True) if name == "BlipModel" else {}
    try: theirs = b(**batch, **extra)
    except RuntimeError as e:
        if "device" not in str(e): raise
        pytest.skip(f"transformers' {name} cannot run here: {e}")
    mine = a(**batch, **extra)
    pick = (lambda o: o.itm_score.square().sum()) if "Retrieval" in name else (lambda o: o.loss)
    assert abs(pick(mine) - pick(theirs)) <= 1e-4 * max(1, abs(pick(theirs)))
    pick(mine).backward(); pick(theirs).backward()
    g = {n: p.grad for n, p in b.named_parameters() if p.grad is not None}
    for n, p in a.named_parameters():
        if n in g and not n.endswith("key.bias"): assert (p.grad - g[n]).norm() <= 1e-3 * g[n].norm() + 1e-5, n


def test_padding_and_neighbours_change_nothing(batch):
    m = model("BlipForImageTextRetrieval")
    alone = m(input_ids=batch["input_ids"][:1], pixel_values=batch["pixel_values"][:1]).itm_score
    wide = torch.nn.functional.pad(batch["input_ids"], (0, 5), value=9)
    mask = torch.nn.functional.pad(torch.ones_like(batch["input_ids"]), (0, 5))
    assert (m(input_ids=wide, attention_mask=mask, pixel_values=batch["pixel_values"]).itm_score[:1] - alone).abs().max() < 1e-5


def test_decoding_laws(batch):
    m, x = model("BlipForConditionalGeneration"), batch["pixel_values"]
    kw = dict(max_length=14)
    greedy = m.generate(x, **kw)
    assert torch.equal(greedy, m.generate(x, num_beams=1, **kw)) and torch.equal(greedy, m.generate(x, use_cache=False, **kw))
    assert torch.equal(m.generate(x, num_beams=3, **kw), m.generate(x, num_beams=3, use_cache=False, **kw))
    assert torch.equal(greedy, m.generate(x, cache_implementation="static", **kw))


def test_fused_equals_explicit(batch):
    m = model("BlipForConditionalGeneration"); fused = m(**batch).logits
    m.set_attn_implementation("eager")
    assert (m(**batch).logits - fused).abs().max() < 1e-4 * max(1, fused.abs().max())


def test_bf16_within_its_rounding(batch):
    m = model("BlipForConditionalGeneration", std=.05); full = m(**batch).logits
    half = copy.deepcopy(m).to(torch.bfloat16)(**batch).logits.float()
    assert (half - full).norm() / full.norm() < BF16 and torch.isfinite(half).all()


def test_maps_of_generated_words(batch):
    m = model("BlipForConditionalGeneration")
    out = m.generate(batch["pixel_values"], num_beams=3, max_length=9, output_attentions=True, return_dict_in_generate=True)
    again = m(batch["pixel_values"], out.sequences[:, :-1], output_attentions=True).cross_attentions
    assert (out.cross_attentions[1][0][:, :, 0] - again[0][:, :, 1]).abs().max() < 1e-5


def test_figures(batch):
    import matplotlib
    matplotlib.use("Agg")
    from blip_nb.visual.attention import rollout, show_words, word_maps
    from PIL import Image
    m = model("BlipForConditionalGeneration").to(torch.bfloat16)
    out = m.generate(batch["pixel_values"], max_length=5, output_attentions=True, return_dict_in_generate=True)
    maps = word_maps(tuple(tuple(l[:1] for l in step) for step in out.cross_attentions))
    fig = show_words(Image.new("RGB", (64, 64), "grey"), [f"w{i}" for i in range(len(maps))], maps)
    assert len(fig.axes) >= len(maps) and torch.isfinite(torch.as_tensor(maps)).all()
    attentions = m.vision_model(batch["pixel_values"], output_attentions=True).attentions
    r = torch.as_tensor(rollout(attentions)).float().cpu()
    assert torch.allclose(r.sum(-1), torch.ones(1), atol=1e-2)
