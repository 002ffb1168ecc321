"""A plain transformers BLIP captioner, trained from scratch: what the library's own run is compared with.

Nothing clever on purpose: transformers' classes, AdamW with warm-up and a cosine, pictures resized to 128 pixels,
a left-right flip, one randomly chosen caption per picture and step, a vocabulary of whole words.

    python nbs/benchmarks/baseline_transformers.py --data ucm_captions --epochs 60 --seed 0 --out baseline.json
"""
import argparse, json, random, re, time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import BlipConfig, BlipForConditionalGeneration, get_cosine_schedule_with_warmup

PAD, BOS, SEP, UNK = range(4)
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def words(caption):
    "Lower-case words without punctuation."
    return re.findall(r"[a-z0-9']+", caption.lower())


def load(folder, split, size):
    "Pictures as one uint8 array (N, 3, size, size), and their captions."
    rows = [row for row in json.loads((folder / "dataset.json").read_text())["images"] if row["split"] == split]
    images = [Image.open(folder / "images" / row["filename"]).convert("RGB").resize((size, size), Image.BICUBIC) for row in rows]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()
    return pixels, [[sentence["raw"] for sentence in row["sentences"]] for row in rows]


def normalise(pixels):
    return (pixels.float() / 255 - MEAN) / STD


def encode(captions, vocab):
    "Token ids, attention mask and labels, padded to the longest caption."
    rows = [[BOS] + [vocab.get(word, UNK) for word in words(caption)] + [SEP] for caption in captions]
    width = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (width - len(row)) for row in rows])
    mask = (ids != PAD).long()
    return ids, mask, ids.masked_fill(mask == 0, -100)


def build(vocab_size, size):
    "About 4.7 million parameters: a vision tower of six layers, a decoder of three."
    vision = dict(image_size=size, patch_size=16, hidden_size=192, intermediate_size=768, num_hidden_layers=6,
                  num_attention_heads=3, initializer_range=0.02)  # the default, 1e-10, cannot see the picture
    text = dict(vocab_size=vocab_size, hidden_size=192, intermediate_size=768, num_hidden_layers=3,
                num_attention_heads=3, max_position_embeddings=32, hidden_dropout_prob=0.1,
                attention_probs_dropout_prob=0.1, pad_token_id=PAD, bos_token_id=BOS, eos_token_id=SEP, sep_token_id=SEP)
    return BlipForConditionalGeneration(BlipConfig(vision_config=vision, text_config=text))


@torch.no_grad()
def describe(model, pixels, names, beams, batch=64):
    "One caption per picture."
    model.eval()
    captions = []
    for part in pixels.split(batch):
        ids = model.generate(normalise(part), num_beams=beams, max_length=30)
        captions += [" ".join(names[i] for i in row.tolist() if i > UNK) for row in ids]
    return captions


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=Path, required=True, help="folder with dataset.json and images/")
    args.add_argument("--epochs", type=int, default=60)
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--out", type=Path, default=Path("baseline.json"))
    args.add_argument("--size", type=int, default=128)
    args.add_argument("--batch", type=int, default=32)
    args.add_argument("--lr", type=float, default=5e-4)
    args.add_argument("--beams", type=int, default=3)
    args = args.parse_args()
    random.seed(args.seed), torch.manual_seed(args.seed)

    start = time.perf_counter()
    pixels, captions = load(args.data, "train", args.size)
    counts = Counter(word for group in captions for caption in group for word in words(caption))
    names = ["[PAD]", "[BOS]", "[SEP]", "[UNK]"] + sorted(counts)
    vocab = {name: i for i, name in enumerate(names)}

    model = build(len(names), args.size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.05)
    steps = args.epochs * -(-len(pixels) // args.batch)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(names)} words, {steps} steps")

    log = []
    for epoch in range(args.epochs):
        model.train()
        total = 0.0
        for rows in torch.randperm(len(pixels)).split(args.batch):
            images = normalise(pixels[rows])
            flip = torch.rand(len(rows)) < 0.5
            images[flip] = images[flip].flip(-1)
            ids, mask, labels = encode([random.choice(captions[i]) for i in rows.tolist()], vocab)
            loss = model(pixel_values=images, input_ids=ids, attention_mask=mask, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(rows)
        log.append({"epoch": epoch + 1, "loss": total / len(pixels), "seconds": time.perf_counter() - start})
        print(log[-1], flush=True)

    pixels, references = load(args.data, "val", args.size)
    predictions = describe(model, pixels, names, args.beams)
    result = {"seed": args.seed, "epochs": args.epochs, "seconds": time.perf_counter() - start, "log": log,
              "predictions": predictions, "references": references}
    try:
        from blip_nb.evaluation.captions import caption_scores
        result["scores"] = caption_scores(predictions, references)
        print(result["scores"])
    except ImportError:
        print("blip_nb is not installed: the captions are saved without scores")
    args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
