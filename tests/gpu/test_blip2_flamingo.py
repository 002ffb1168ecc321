"""BLIP-2 and Flamingo on a GPU: `make gpu-check` (DEVICE=cpu runs the same checks where there is none).

In fp32 the device must give the published programs' numbers within 1e-4, and their words exactly, with the cache,
without it and with a static one. The goldens are those of nbs/fixtures, and those beside the repository where they lie there.
bf16 keeps 8 bits of mantissa: one rounding moves a value by at most 2**-9 of its size, and the roundings of a forward pass
add like independent errors, sqrt(12 roundings a layer * layers) * 2**-9. `torch.compile` must take the tower and the
Q-Former as one graph each and change neither values nor gradients (on the CPU the graphs are traced and run without
generated code, which spares a compiler).
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

import transformers.models.blip_2.modeling_blip_2 as hf  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import Blip2Config, CLIPVisionConfig, LlamaConfig  # noqa: E402

from blip_nb.nets import blip2, blip2_retrieval  # noqa: E402
from blip_nb.nets.families import from_checkpoint  # noqa: E402
from blip_nb.nets.flamingo import FlamingoForConditionalGeneration  # noqa: E402
from blip_nb.nets.interleaved import FlamingoConfig, config_of_open_flamingo  # noqa: E402
from blip_nb.nets.keys_flamingo import from_open_flamingo  # noqa: E402

BACKEND = "inductor" if device.type == "cuda" else "aot_eager"


def bf16(layers): return (12 * layers)**.5 * 2**-9


def folders(program):
    "Goldens by name: those of the repository, and those beside it."
    places = [p for p in (fix / program, root.parent / "shared/golden" / program, root / "shared/golden" / program) if p.exists()]
    return {d.name: d for p in reversed(places) for d in sorted(p.iterdir()) if (d / "outputs.safetensors").exists()}


def tensors(d): return [{k: v.to(device) for k, v in load_file(d / f"{n}.safetensors").items()} for n in ("inputs", "outputs")]


def near(a, b, tol=1e-4): return (a - b).abs().max() <= tol * max(1, b.abs().max())


def until(ids, end, skip):
    "Rows up to and with their end; tails are padded differently."
    return [r[:skip] + r[skip:][:(r[skip:] + [end]).index(end) + 1] for r in ids.tolist()]


# BLIP-2

@pytest.mark.parametrize("name", [n for n in folders("hf_blip2") if n.startswith("cond_")])
def test_blip2_published_scores_and_words(name):
    d = folders("hf_blip2")[name]
    cfg, (io, want) = json.loads((d / "config.json").read_text()), tensors(d)
    state, t5 = load_file(d / "state.safetensors"), name == "cond_t5"
    net = from_checkpoint(state | {k: state[v] for k, v in cfg["tied_keys"].items()}, Blip2Config(**cfg["hf_config"])).to(device)
    labels = io["decoder_labels"] if t5 else io["labels"]
    with torch.no_grad(): out, image = net(io["pixel_values"], io["input_ids"], io["attention_mask"], labels=labels), net.get_image_features(io["pixel_values"])
    real = slice(None) if t5 else io["attention_mask"].bool()
    assert near(out.logits[real], want["logits"][real]) and near(out.loss, want["loss"]) and near(image.pooler_output, want["language_projection"])
    stop, prompt = cfg["gen_kwargs"], (io["pixel_values"], io["gen_ids"], io["gen_mask"])
    for how, kw in dict(greedy={}, beam5=dict(num_beams=5)).items(): assert torch.equal(net.generate(*prompt, **stop, **kw), want[f"{how}_ids"]), how
    end, skip = stop.get("eos_token_id", cfg["hf_config"]["text_config"].get("eos_token_id")), 0 if t5 else io["gen_ids"].shape[1]
    static = net.generate(*prompt, **stop, cache_implementation="static", disable_compile=True)
    assert until(static, end, skip) == until(want["greedy_ids"], end, skip)


def sizes(text=False, std=.1, **kw):
    return Blip2Config(vision_config=dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, initializer_range=std),
        qformer_config=dict(vocab_size=60, hidden_size=48, num_hidden_layers=4, num_attention_heads=3, intermediate_size=96, max_position_embeddings=24, initializer_range=std, hidden_dropout_prob=0., attention_probs_dropout_prob=0., use_qformer_text_input=text),
        num_query_tokens=4, image_text_hidden_size=16, initializer_range=std, **kw)


def speaker(**kw):
    return sizes(text_config=dict(model_type="opt", vocab_size=64, hidden_size=48, ffn_dim=96, num_hidden_layers=2, num_attention_heads=3, word_embed_proj_dim=48, max_position_embeddings=96, dropout=0., pad_token_id=1, bos_token_id=2, eos_token_id=2), image_token_index=63, **kw)


def random(module, std=.1):
    torch.manual_seed(0)
    for n, p in module.named_parameters(): torch.nn.init.normal_(p, 1. if "norm" in n.lower() and n.endswith("weight") else 0., std)
    return module.eval()


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    ids = torch.cat([torch.full((2, 4), 63), torch.tensor([[2, 11, 12, 13, 14], [2, 21, 22, 1, 1]])], 1)
    return torch.randn(2, 3, 32, 32, generator=g).to(device), ids.to(device), (ids != 1).long().to(device)


def same_gradients(ours, theirs):
    g = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    odd = [n for n, p in ours.named_parameters() if n in g and not n.endswith("key.bias") and (p.grad - g[n]).norm() > 1e-3 * g[n].norm() + 1e-5]
    assert not odd, odd[:5]


def test_blip2_values_and_gradients_of_transformers(batch):
    x, ids, mask = batch
    ours, theirs = random(blip2.Blip2ForConditionalGeneration(speaker())), hf.Blip2ForConditionalGeneration(speaker()).eval()
    theirs.load_state_dict(ours.state_dict()); ours.to(device), theirs.to(device)
    labels = ids.masked_fill((mask == 0) | (ids == 63) | (ids == 2), -100)
    a, b = (m(pixel_values=x, input_ids=ids, attention_mask=mask, labels=labels) for m in (ours, theirs))
    assert near(a.logits[mask.bool()], b.logits[mask.bool()]) and near(a.loss, b.loss)
    a.loss.backward(); b.loss.backward()
    same_gradients(ours, theirs)


def test_retrieval_values_and_gradients_of_transformers(batch):
    x, ids, mask = batch[0], batch[1][:, 4:], batch[2][:, 4:]
    ours, theirs = random(blip2_retrieval.Blip2ForImageTextRetrieval(sizes(True, image_token_index=None))), hf.Blip2ForImageTextRetrieval(sizes(True)).eval()
    theirs.load_state_dict(ours.state_dict()); ours.to(device), theirs.to(device)
    for head in (False, True):
        b = theirs(pixel_values=x, input_ids=ids, attention_mask=mask, use_image_text_matching_head=head)
        a = ours(x, ids, mask, use_image_text_matching_head=head)
        assert near(a.logits_per_image, b.logits_per_image), head
        for m, o in ((ours, a), (theirs, b)): m.zero_grad(); o.logits_per_image.square().sum().backward()
        same_gradients(ours, theirs)


@pytest.mark.parametrize("name", ["mmpretrain/blip2_retrieval"])
def test_published_retrieval(name):
    d = folders("mmpretrain").get("blip2_retrieval")
    if d is None: pytest.skip("mmpretrain's goldens of BLIP-2 are not at hand")
    io, want = tensors(d)
    net = from_checkpoint(d / "state.safetensors", dict(vision_config=dict(num_attention_heads=2), qformer_config=dict(num_attention_heads=2, max_position_embeddings=40))).to(device)
    with torch.no_grad():
        image = net.images(io["images"]).last_hidden_state
        feat, text = net.image_feat(net.look(image).last_hidden_state), net.text_feat(net.read(want["text_ids"], want["text_attn_mask"]).last_hidden_state)
    assert near(image, want["image_embeds"]) and near(feat, want["image_feat"]) and near(blip2_retrieval.similarity(feat, text), want["score_i2t_fast"])


def test_blip2_padding_and_neighbours(batch):
    x, ids, mask = batch
    net = random(blip2.Blip2ForConditionalGeneration(speaker()), .2).to(device)
    stop = dict(max_new_tokens=6, do_sample=False, eos_token_id=50, pad_token_id=1)
    for kw in ({}, dict(num_beams=3)):
        both, alone = net.generate(x, ids, mask, **stop, **kw), net.generate(x[1:], ids[1:, :7], **stop, **kw)
        assert until(both[1:, ids.shape[1]:], 50, 0) == until(alone[:, 7:], 50, 0)


def test_bf16_blip2(batch):
    x, ids, mask = batch
    net = random(blip2.Blip2ForConditionalGeneration(speaker()), .05).to(device)
    half = copy.deepcopy(net).to(torch.bfloat16)
    with torch.no_grad():
        for what, layers in ((lambda m, x: m.vision_model(x).last_hidden_state, 2), (lambda m, x: m.get_image_features(x).pooler_output, 2 + 4), (lambda m, x: m(x, ids, mask).logits[mask.bool()], 2 + 4 + 2)):
            full, low = what(net, x), what(half, x.bfloat16()).float()
            assert torch.isfinite(low).all() and (low - full).norm() / full.norm() < bf16(layers), (layers, (low - full).norm() / full.norm())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("part", ["tower", "qformer"])
def test_compiled(part, dtype, batch):
    torch.compiler.reset()
    net = random(blip2_retrieval.Blip2ForImageTextRetrieval(sizes(True, image_token_index=None)), .05).to(device, dtype)
    x, ids, mask = batch[0].to(dtype), batch[1][:, 4:], batch[2][:, 4:]
    states = net.vision_model(x).last_hidden_state.detach()
    words = torch.cat([net.query_tokens.expand(2, -1, -1), net.embeddings(ids)], 1).detach()
    whole = torch.cat([torch.ones_like(ids[:, :4]), mask], 1)
    module, call = (net.vision_model, lambda m: m(x).last_hidden_state) if part == "tower" else (net.qformer, lambda m: m(words, 4, whole, states).last_hidden_state[whole.bool()])
    tol, found = 1e-4 if dtype == torch.float32 else bf16(6), []
    for m in (module, torch.compile(module, backend=BACKEND, fullgraph=True)):
        module.zero_grad(); out = call(m); out.float().square().mean().backward()
        found.append((out.detach().float(), {n: p.grad.float().clone() for n, p in module.named_parameters() if p.grad is not None}))
    (a, ga), (b, gb) = found
    assert (a - b).norm() <= tol * a.norm() and ga.keys() == gb.keys()
    odd = [n for n, g in ga.items() if not n.endswith("key.bias") and (gb[n] - g).norm() > 10 * tol * g.norm() + 1e-3 * max(v.norm() for v in ga.values())]
    assert not odd, odd[:5]


# Flamingo

def flamingo(d):
    c = json.loads((d / "config.json").read_text()); v, p = c["vit"], c["perceiver"]
    vision = dict(hidden_size=v["width"], intermediate_size=4 * v["width"], num_hidden_layers=v["layers"], num_attention_heads=v["heads"], image_size=v["img"], patch_size=v["patch"], hidden_act="quick_gelu" if v["quick_gelu"] else "gelu")
    own = dict(resampler_depth=p["depth"], resampler_latents=p["latents"], attention_heads=p["heads"], attention_head_dim=p["dim_head"], ff_factor=p["ff_mult"])
    config = config_of_open_flamingo(c["lm_config"], vision, **own, **{k: c[k] for k in ("media_token_id", "eoc_token_id", "pad_token_id", "cross_attn_every_n_layers")},
        only_attend_immediate_media=p.get("immediate", True), reference_quirks=not p.get("immediate", True))
    return FlamingoForConditionalGeneration(config).eval().load_published(load_file(d / "state.safetensors")).to(device), c


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(folders("open_flamingo")))
def test_flamingo_published_scores_gradients_and_words(name):
    d = folders("open_flamingo")[name]
    (net, c), (io, want) = flamingo(d), tensors(d)
    real, table = io["train_mask"].bool(), net.get_input_embeddings().weight.requires_grad_(True)
    out = net(io["train_ids"], io["vision_x"], io["train_mask"], labels=io["labels_mmc4"])
    out.loss.backward()
    assert near(out.logits[real], want["train_logits"][real]) and near(out.loss, want["loss_mmc4"])
    full = table.grad.clone(); full[net.token_rows.ids] += net.token_rows.input.grad
    ours = {n: p.grad for n, p in net.named_parameters() if n.startswith(("resampler", "gated"))} | {f"language_model.{n}": full for n, p in net.language_model.named_parameters() if p is table}
    theirs = from_open_flamingo({k.removeprefix("grad."): v for k, v in want.items() if k.startswith("grad.")})
    odd = [k for k, g in theirs.items() if k in ours and (ours[k] - g).norm() > 1e-3 * g.norm() + 1e-5]
    assert not odd and len(theirs) >= 5, odd
    prompt = io["gen_ids"], io["gen_vision_x"], io["gen_mask"]
    for kw, ids in (({}, want["greedy_ids"]), (c["beam"], want["beam3_ids"])):
        for more in ({}, dict(use_cache=False), dict(cache_implementation="static", disable_compile=True)):
            assert torch.equal(net.generate(*prompt, max_new_tokens=c["max_new_tokens"], **kw, **more), ids), (kw, more)


def small_flamingo(std=.1):
    config = FlamingoConfig(vision_config=CLIPVisionConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8),
        text_config=LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=96, bos_token_id=1, eos_token_id=2, pad_token_id=62).to_dict(),
        media_token_id=60, eoc_token_id=61, pad_token_id=62, cross_attn_every_n_layers=2, resampler_depth=1, resampler_latents=4, attention_heads=2, attention_head_dim=16)
    net = random(FlamingoForConditionalGeneration(config), std)
    for b in net.gated_blocks.values(): b.attn_gate.data.fill_(.8); b.ff_gate.data.fill_(-.6)
    net.token_rows.take(net.language_model)
    g = torch.Generator().manual_seed(0)
    ids = torch.tensor([[1, 60, 5, 6, 61, 60, 9, 4], [1, 7, 60, 5, 8, 61, 62, 62]])
    return net.to(device), ids.to(device), [torch.randn(n, 3, 32, 32, generator=g).to(device) for n in (2, 1)]


def test_flamingo_padding_and_kept_demonstrations():
    net, ids, x = small_flamingo(.25)
    alone = net.generate(ids[1:, :6], [x[1]], max_new_tokens=6)
    assert until(net.generate(ids, x, max_new_tokens=6)[1:, 8:], 61, 0) == until(alone[:, 6:], 61, 0)
    kept = net.encode_demonstrations(ids[:1, :5], [x[0][:1]])
    for kw in ({}, dict(num_beams=3), dict(do_sample=False, num_beams=2, num_return_sequences=2)):
        assert torch.equal(net.generate(ids[:1, 5:], [x[0][1:]], demonstrations=kept, max_new_tokens=6, **kw), net.generate(ids[:1], [x[0]], max_new_tokens=6, **kw)), kw


def test_flamingo_checkpointing_changes_no_gradient():
    found = []
    for again in (False, True):
        net, ids, x = small_flamingo(); net.train()
        if again: net.gradient_checkpointing_enable()
        net(ids, x, labels=ids.masked_fill(ids > 59, -100)).loss.backward()
        found.append({n: p.grad for n, p in net.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 20
    assert all((found[1][n] - g).norm() <= 1e-4 * g.norm() + 1e-6 for n, g in found[0].items())


def test_bf16_flamingo():
    net, ids, x = small_flamingo(.05)
    half, real = copy.deepcopy(net).to(torch.bfloat16), ids != 62
    with torch.no_grad(): full, low = net(ids, x).logits[real], half(ids, [p.bfloat16() for p in x]).logits[real].float()
    assert torch.isfinite(low).all() and (low - full).norm() / full.norm() < bf16(2 + 1 + 2 + 4)   # tower, resampler, gated blocks, language model
    assert half.generate(ids, [p.bfloat16() for p in x], max_new_tokens=4, min_new_tokens=4).shape == (2, 12)
