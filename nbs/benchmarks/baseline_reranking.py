"""The matching head over candidate pairs, the straightforward way: what the re-ranking engine is compared with.

Nothing clever on purpose. `pair_by_pair` is the published evaluation: each picture is encoded once; then, for every
picture, its k best texts, padded to 35 tokens, are read with the picture's states repeated k times; then, for every
text, its k best pictures likewise, so that a pair which is among both is scored twice. `transformers_pairs` calls
transformers' BlipForImageTextRetrieval, which takes pixels and encodes the picture of every pair anew.

    python nbs/benchmarks/baseline_reranking.py --size 384
"""
import argparse, copy, time

import torch
from transformers import BlipConfig
from transformers.models.blip import modeling_blip as hf

from blip_nb.nets.blip import BlipForImageTextRetrieval

ENC, SEP = 30523, 102


def base_nets(size=384, seed=0, layers=12):
    "(ours, transformers') with the same random weights of base size, std 0.02: the default vision tower, 1e-10, cannot see."
    torch.manual_seed(seed)
    cfg = BlipConfig(vision_config=dict(image_size=size, num_hidden_layers=layers, initializer_range=.02), text_config=dict(num_hidden_layers=layers), image_text_hidden_size=256)
    ours = BlipForImageTextRetrieval(copy.deepcopy(cfg))
    for name, p in ours.named_parameters():
        if p.ndim > 1 or name.endswith("bias"): torch.nn.init.normal_(p, 0., .02)
    cfg = copy.deepcopy(cfg); cfg._attn_implementation = "eager"  # the one attention that transformers' class has
    theirs = hf.BlipForImageTextRetrieval(cfg)
    theirs.load_state_dict(ours.state_dict())
    return ours.eval(), theirs.eval()


def drawn_texts(n, low=8, high=16, pad=35, seed=0):
    "Ids and mask (n, pad) of random texts of `low` to `high` tokens, [ENC] first and [SEP] last."
    g = torch.Generator().manual_seed(seed)
    length = torch.randint(low, high + 1, (n,), generator=g)
    ids = torch.randint(1000, 30000, (n, pad), generator=g)
    ids[:, 0], ids[torch.arange(n), length - 1] = ENC, SEP
    mask = (torch.arange(pad) < length[:, None]).long()
    return ids * mask, mask


def read(net, ids, mask, states):
    "Matching logits (n,) of texts (n, t) read with as many pictures' states (n, s, width)."
    seen = net.text_encoder(ids, mask, encoder_hidden_states=states, encoder_attention_mask=torch.ones(states.shape[:2]), return_dict=True).last_hidden_state
    return net.itm_head(seen[:, 0])[:, 1]


@torch.no_grad()
def pair_by_pair(net, states, ids, mask, cosines, k, images=None, texts=None):
    "(i2t (M, N), t2i (N, M), pairs read): logit + cosine, -100 outside the k best. `images`, `texts`: only these rows."
    m, n = cosines.shape
    i2t, t2i, pairs = torch.full((m, n), -100.), torch.full((n, m), -100.), 0
    for i in range(m) if images is None else images:
        best = cosines[i].topk(min(k, n)).indices
        i2t[i, best] = read(net, ids[best], mask[best], states[i].repeat(len(best), 1, 1)) + cosines[i, best]; pairs += len(best)
    for j in range(n) if texts is None else texts:
        best = cosines[:, j].topk(min(k, m)).indices
        t2i[j, best] = read(net, ids[j].repeat(len(best), 1), mask[j].repeat(len(best), 1), states[best]) + cosines[best, j]; pairs += len(best)
    return i2t, t2i, pairs


@torch.no_grad()
def transformers_pairs(model, pixels, ids, mask, images, texts):
    "Matching logits of pairs (picture images[p], text texts[p]) by transformers' class, in one batch."
    return model(input_ids=ids[texts], attention_mask=mask[texts], pixel_values=pixels[images]).itm_score[:, 1]


def main():
    args = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    args.add_argument("--size", type=int, default=384)
    args.add_argument("--pairs", type=int, default=8)
    args = args.parse_args()
    ours, theirs = base_nets(args.size)
    ids, mask = drawn_texts(64)
    pixels = torch.randn(2, 3, args.size, args.size, generator=torch.Generator().manual_seed(1))
    start = time.perf_counter()
    with torch.no_grad(): states = ours.vision_model(pixels).last_hidden_state
    print(f"{(time.perf_counter() - start)/2:.2f} s a picture to encode")
    cosines = torch.randn(2, 64)
    start = time.perf_counter()
    i2t, _, pairs = pair_by_pair(ours, states, ids, mask, cosines, args.pairs, texts=())
    print(f"{(time.perf_counter() - start)/pairs:.3f} s a pair, pair by pair ({pairs} pairs)")
    best = cosines[0].topk(args.pairs).indices
    start = time.perf_counter()
    logits = transformers_pairs(theirs, pixels, ids, mask, torch.zeros(args.pairs, dtype=torch.long), best)
    print(f"{(time.perf_counter() - start)/args.pairs:.3f} s a pair, transformers ({args.pairs} pairs); furthest apart {(logits + cosines[0, best] - i2t[0, best]).abs().max():.0e}")


if __name__ == "__main__":
    main()
