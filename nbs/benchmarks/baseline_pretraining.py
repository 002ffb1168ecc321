"""One pre-training step of BLIP arranged as the published training code arranges it: what `BlipPretrain` is compared with.

Nothing clever on purpose, and nothing slow on purpose either: the same modules with the same weights, the same attention
kernel, the same draws. What differs from `BlipPretrain` is the arrangement alone: texts padded to 30 tokens; the states of
the pictures handed to every text pass, so that each pass projects its own keys and values; right pairs and wrong pairs
matched in two passes; the slow copy moved one parameter at a time; the similarities over keys and a copy of the queue,
left to autograd.

    python nbs/benchmarks/baseline_pretraining.py --memory plain   # peak memory of two steps at base size, as JSON
    python nbs/benchmarks/baseline_pretraining.py --memory ours
"""
import argparse, gc, json
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import BlipConfig

from blip_nb.data.shapes import shapes_dataset
from blip_nb.tasks.pretrain import BlipPretrain


def base_task(queue_size=57_600, seed=0):
    "The published size: ViT-B/16 at 224 px, BERT-base text layers, 30,524 words; random weights, no dropout."
    torch.manual_seed(seed)
    config = BlipConfig(vision_config=dict(image_size=224, patch_size=16, initializer_range=0.02), image_text_hidden_size=256,
                        text_config=dict(num_attention_heads=12, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.02))
    return BlipPretrain.from_config(config, queue_size=queue_size).train()


def batch(n, size=224, seed=0):
    "Noise for pictures (n, 3, size, size) and n captions of the drawn world, 8 to 14 words each as most of COCO's are."
    fits = [c for row in shapes_dataset(8 * n, seed=seed, size=16) for c in row["gt_caption"] if 8 <= len(c.split()) <= 14]
    pixels = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return pixels, [dict(gt_caption=fits[i * len(fits) // n]) for i in range(n)]


def draw_ring(n, device="cpu"):
    "Wrong partners that both sides are given: the next picture for each text, the previous text for each picture."
    i = torch.arange(n, device=device)
    return (i + 1) % n, (i - 1) % n


def nothing(phase):
    "The clock of a step that nobody times."


@torch.no_grad()
def update_momentum(task):
    "Slow copies, one parameter after the other."
    m = task.memory.momentum
    for name in task.copied:
        for param, param_m in zip(task.net.get_submodule(name).parameters(), task.memory.get_submodule(name).parameters()):
            param_m.data = param_m.data * m + param.data * (1.0 - m)


@torch.no_grad()
def enqueue(memory, image_feats, text_feats):
    "The oldest keys make room."
    size, ptr = len(image_feats), int(memory.pointer)
    assert memory.image_queue.shape[1] % size == 0
    memory.image_queue[:, ptr:ptr + size] = image_feats.T
    memory.text_queue[:, ptr:ptr + size] = text_feats.T
    memory.pointer[0] = (ptr + size) % memory.image_queue.shape[1]


def plain_loss(task, pixels, samples, negatives, alpha=0.4, lap=nothing):
    "The three losses. `negatives`: a wrong picture per text and a wrong text per picture; `lap(phase)` is called after each part."
    net, memory, tokenizer = task.net, task.memory, task.tokenizer
    with torch.no_grad():
        task.temperature.clamp_(0.001, 0.5)
    image_embeds = net.vision_model(pixels, return_dict=True).last_hidden_state
    image_atts = torch.ones(image_embeds.shape[:-1], dtype=torch.long, device=pixels.device)
    image_feat = F.normalize(net.vision_proj(image_embeds[:, 0]), dim=-1)
    lap("vision")

    text = tokenizer([s["gt_caption"] for s in samples], padding="max_length", truncation=True, max_length=30, return_tensors="pt").to(pixels.device)
    text_output = net.text_encoder(text.input_ids, text.attention_mask, return_dict=True)
    text_feat = F.normalize(net.text_proj(text_output.last_hidden_state[:, 0]), dim=-1)
    lap("text")

    update_momentum(task)
    lap("momentum update")
    with torch.no_grad():
        image_embeds_m = memory.vision_model(pixels, return_dict=True).last_hidden_state
        image_feat_m = F.normalize(memory.vision_proj(image_embeds_m[:, 0]), dim=-1)
        image_feat_all = torch.cat([image_feat_m.t(), memory.image_queue.clone().detach()], dim=1)
        text_output_m = memory.text_encoder(text.input_ids, text.attention_mask, return_dict=True)
        text_feat_m = F.normalize(memory.text_proj(text_output_m.last_hidden_state[:, 0]), dim=-1)
        text_feat_all = torch.cat([text_feat_m.t(), memory.text_queue.clone().detach()], dim=1)
        lap("momentum forward")
        sim_i2t_m = image_feat_m @ text_feat_all / task.temperature
        sim_t2i_m = text_feat_m @ image_feat_all / task.temperature
        sim_targets = torch.zeros_like(sim_i2t_m)
        sim_targets.fill_diagonal_(1)
        sim_i2t_targets = alpha * F.softmax(sim_i2t_m, dim=1) + (1 - alpha) * sim_targets
        sim_t2i_targets = alpha * F.softmax(sim_t2i_m, dim=1) + (1 - alpha) * sim_targets
    sim_i2t = image_feat @ text_feat_all / task.temperature
    sim_t2i = text_feat @ image_feat_all / task.temperature
    loss_i2t = -torch.sum(F.log_softmax(sim_i2t, dim=1) * sim_i2t_targets, dim=1).mean()
    loss_t2i = -torch.sum(F.log_softmax(sim_t2i, dim=1) * sim_t2i_targets, dim=1).mean()
    loss_itc = (loss_i2t + loss_t2i) / 2
    enqueue(memory, image_feat_m, text_feat_m)
    lap("ITC")

    encoder_input_ids = text.input_ids.clone()
    encoder_input_ids[:, 0] = tokenizer.enc_token_id
    output_pos = net.text_encoder(encoder_input_ids, text.attention_mask, encoder_hidden_states=image_embeds,
                                  encoder_attention_mask=image_atts, return_dict=True)
    neg_image, neg_text = negatives
    text_ids_all = torch.cat([encoder_input_ids, encoder_input_ids[neg_text]], dim=0)
    text_atts_all = torch.cat([text.attention_mask, text.attention_mask[neg_text]], dim=0)
    image_embeds_all = torch.cat([image_embeds[neg_image], image_embeds], dim=0)
    image_atts_all = torch.cat([image_atts, image_atts], dim=0)
    output_neg = net.text_encoder(text_ids_all, text_atts_all, encoder_hidden_states=image_embeds_all,
                                  encoder_attention_mask=image_atts_all, return_dict=True)
    vl_embeddings = torch.cat([output_pos.last_hidden_state[:, 0], output_neg.last_hidden_state[:, 0]], dim=0)
    n = len(pixels)
    itm_labels = torch.cat([torch.ones(n, dtype=torch.long), torch.zeros(2 * n, dtype=torch.long)]).to(pixels.device)
    loss_itm = F.cross_entropy(net.itm_head(vl_embeddings), itm_labels)
    lap("ITM")

    decoder_input_ids = text.input_ids.clone()
    decoder_input_ids[:, 0] = tokenizer.bos_token_id
    decoder_targets = decoder_input_ids.masked_fill(decoder_input_ids == tokenizer.pad_token_id, -100)
    logits = net.text_decoder(decoder_input_ids, text.attention_mask, encoder_hidden_states=image_embeds,
                              encoder_attention_mask=image_atts, use_cache=False, return_dict=True).logits
    shifted, labels = logits[:, :-1].contiguous(), decoder_targets[:, 1:].contiguous()
    loss_lm = F.cross_entropy(shifted.view(-1, shifted.shape[-1]), labels.view(-1), label_smoothing=task.options["label_smoothing"])
    lap("LM")
    return dict(itc_loss=loss_itc, itm_loss=loss_itm, lm_loss=loss_lm)


def peak_resident():
    "Most bytes this process has held so far."
    try:  # not ru_maxrss, which a child process inherits from the one that started it
        return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    except FileNotFoundError:
        import resource, sys
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def kept_for_backward(task, loss):
    "Bytes that autograd keeps between the forward and the backward pass of `loss()`, weights and buffers left out, each storage once."
    own = {t.untyped_storage().data_ptr() for t in (*task.parameters(), *task.buffers())}
    kept = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        total = sum(loss().values())
        found = sum(kept.values())
        total.backward()
    return found


def memory_report(side, n=4, steps=2):
    "Peak memory of a process that makes the base model and takes `steps` steps on one side."
    task = base_task()
    pixels, samples = batch(n)
    negatives = draw_ring(n)
    gc.collect()
    built = peak_resident()
    step = (lambda: task.loss(pixels, samples, negatives=negatives)) if side == "ours" else (lambda: plain_loss(task, pixels, samples, negatives))
    for _ in range(steps):
        task.zero_grad()
        sum(step().values()).backward()
    peak = peak_resident()
    task.zero_grad()
    return dict(side=side, peak=peak, built=built, kept=kept_for_backward(task, step))


if __name__ == "__main__":
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--memory", choices=("ours", "plain"), required=True)
    print(json.dumps(memory_report(args.parse_args().memory)))
