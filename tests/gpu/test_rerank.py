"""The re-ranking engine on a GPU: `make gpu-check` (DEVICE=cpu runs the same checks where there is none).

In fp32 the device must rank as the CPU does. In bf16 the recall of a model that has learned its pictures must stay what
it is in fp32: what it knows, it knows by more than a rounding.
"""
import copy
import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

root = Path(__file__).parents[2]
sys.path.insert(0, str(root))
fix = root / "nbs/fixtures"
device = torch.device(os.environ.get("BLIP_NB_DEVICE") or "cuda")
if device.type == "cuda" and not torch.cuda.is_available(): pytest.skip("no CUDA device; DEVICE=cpu runs these checks on the CPU", allow_module_level=True)
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

from safetensors.torch import load_file  # noqa: E402
from transformers import BlipConfig  # noqa: E402

from blip_nb.data.text import load_tokenizer  # noqa: E402
from blip_nb.evaluation.recall import rank_scores, ranks  # noqa: E402
from blip_nb.nets.blip import BlipForImageTextRetrieval  # noqa: E402
from blip_nb.nets.checkpoints import from_checkpoint  # noqa: E402
from blip_nb.small import Size, small_retriever  # noqa: E402
from blip_nb.tasks.rerank import candidates, matrix, pair_ranks, rerank  # noqa: E402
from blip_nb.tasks.retrieval import BlipRetrieval, rerank_dataset, score_dataset  # noqa: E402


def order(scores): return scores.argsort(dim=1, descending=True, stable=True)


def test_published_scores_and_ranks():
    d = fix / "salesforce_blip"
    over = json.loads((d / "bert_config.json").read_text()) | dict(vision_config=dict(num_attention_heads=3), text_config=dict(num_attention_heads=2, sep_token_id=3, eos_token_id=3))
    net = from_checkpoint(load_file(d / "retrieval.weights.safetensors"), over)
    task = BlipRetrieval.from_net(net, load_tokenizer(d / "vocab.txt"), head=None, topk=4, max_txt_len=35, device=device).eval()
    io, about = load_file(d / "retrieval.eval.safetensors"), json.loads((d / "retrieval.eval.json").read_text())
    rows = [dict(image=im, text=[about["texts"][t] for t in about["img2txt"][str(i)]]) for i, im in enumerate(io["image"])]
    i2t, t2i, *right = score_dataset(task, rows)
    for got, want, r in ((i2t, io["score_i2t"], right[0]), (t2i, io["score_t2i"], right[1])):
        assert (got - want).abs().max() < 1e-4 and torch.equal(order(got), order(want)) and (ranks(got, r) == ranks(want, r)).all()


def random_net(size=32, **over):
    "A random net whose scores are spread."
    torch.manual_seed(0)
    tower = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, initializer_range=.1) | over
    net = BlipForImageTextRetrieval(BlipConfig(vision_config=dict(image_size=size, patch_size=8 if size < 99 else 16, **tower), text_config=dict(vocab_size=200, bos_token_id=198, sep_token_id=3, eos_token_id=3, pad_token_id=0, max_position_embeddings=40, **tower), image_text_hidden_size=32)).eval()
    with torch.no_grad(): net.itm_head.weight.mul_(10)
    return net


def random_pairs(net, m, n, k, low=3, high=20):
    "States, candidates, ids and mask."
    g = torch.Generator().manual_seed(0)
    size = net.config.vision_config.image_size
    length = torch.randint(low, high + 1, (n,), generator=g)
    mask = (torch.arange(35) < length[:, None]).long()
    ids = torch.randint(4, 198, (n, 35), generator=g) * mask
    with torch.no_grad(): states = torch.cat([net.vision_model(p.to(net.itm_head.weight.device)).last_hidden_state.cpu() for p in torch.randn(m, 3, size, size, generator=g).split(8)])
    feats = (torch.nn.functional.normalize(torch.randn(x, 32, generator=g), dim=1) for x in (m, n))
    return states, candidates(*(f.to(device) for f in feats), k), ids, mask


def test_candidates_are_those_of_the_cpu():
    g = torch.Generator().manual_seed(0)
    for feats in ([torch.nn.functional.normalize(torch.randn(n, 32, generator=g), dim=1) for n in (70, 300)], [torch.randint(-1, 2, (n, 6), generator=g).float() for n in (70, 300)]):  # without and with ties
        a, b = candidates(*feats, 9), candidates(*(f.to(device) for f in feats), 9, memory=24 * 50**2)
        assert all(torch.equal(getattr(a, f), getattr(b, f)) for f in ("images", "texts", "i2t", "t2i"))
        assert (a.cosines - b.cosines).abs().max() < 1e-6


def test_ranks_in_fp32_are_those_of_the_cpu():
    net = random_net()
    states, pairs, ids, mask = random_pairs(net, 24, 120, 12)
    a = rerank(net, lambda i: states[i], pairs, ids, mask)
    b = rerank(copy.deepcopy(net).to(device), lambda i: states[i], pairs, ids, mask)
    assert (a.scores - b.scores).abs().max() < 1e-4 * a.scores.abs().max()
    for way in ("i2t", "t2i"):
        x, y = matrix(a, way), matrix(b, way)
        assert torch.equal(order(x), order(y)), way


def test_what_is_in_a_call_changes_nothing():
    net = random_net().to(device)
    states, pairs, ids, mask = random_pairs(net, 12, 60, 5)
    one = rerank(net, lambda i: states[i], pairs, ids, mask, tokens=1, most=1)
    for tokens, most in ((300, 4), (10**6, 12)):
        assert (rerank(net, lambda i: states[i], pairs, ids, mask, tokens=tokens, most=most).scores - one.scores).abs().max() < 1e-4


def learned(steps=150):
    "A small retriever that has learned sixteen pictures by heart, and their rows."
    words = "red green blue grey round square tall flat one two three four".split()
    g = torch.Generator().manual_seed(0)
    rows = [dict(image=torch.randn(3, 32, 32, generator=g), image_id=i, gt_caption=[f"a {words[i % 4]} {words[4 + i // 4]} thing", f"{words[i % 4]} and {words[4 + i // 4]}"]) for i in range(16)]
    task = small_retriever([c for r in rows for c in r["gt_caption"]], Size(image=32, width=64, depth=2, text_width=64, heads=2), topk=8).to(device).train()
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3)
    pictures = torch.stack([r["image"] for r in rows])
    for step in range(steps):
        losses = task.loss(pictures, [dict(text=r["gt_caption"][step % 2], image_id=r["image_id"]) for r in rows])
        optimizer.zero_grad(); sum(losses.values()).backward(); optimizer.step()
    return task.eval(), rows


def test_recall_in_bf16_is_that_of_fp32():
    task, rows = learned()
    got = {}
    for dtype in (None, torch.bfloat16):
        pairs, texts_of, images_of = rerank_dataset(task, rows, dtype=dtype)
        got[dtype] = rank_scores(pair_ranks(pairs, "i2t", texts_of), pair_ranks(pairs, "t2i", images_of))
    assert got[None] == got[torch.bfloat16] and got[None]["mean_recall"] > 95, got


def test_pairs_per_second(capsys):
    "Measured, not judged: base size at 384 px in bf16 with fused attention on a GPU; elsewhere one layer of it, to see that it runs."
    gpu = device.type == "cuda"
    tower = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12 if gpu else 1, initializer_range=.02)
    net = random_net(384 if gpu else 32, **tower).to(device)
    states, pairs, ids, mask = random_pairs(net, 64 if gpu else 2, 512 if gpu else 8, 256 if gpu else 2, 8, 16)
    keep = states.to(device, torch.bfloat16 if gpu else torch.float32)
    def run():
        start = time.perf_counter(); done = rerank(net, lambda i: keep[i], pairs, ids, mask, dtype=torch.bfloat16)
        return done, len(pairs) / (time.perf_counter() - start)
    run()
    speeds = sorted(run()[1] for _ in range(3 if gpu else 1))
    with capsys.disabled(): print(f"\n  {speeds[len(speeds) // 2]:,.0f} pairs a second, {len(pairs)} pairs of {pairs.shape[0]} pictures, {net.config.text_config.num_hidden_layers} layers, bf16, torch {torch.__version__}, {torch.cuda.get_device_name(device) if gpu else 'CPU'}")
    assert torch.isfinite(run()[0].scores).all()
