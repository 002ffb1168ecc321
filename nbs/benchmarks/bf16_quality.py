"""Do captions get worse in bf16? The same captioner on the same pictures in both precisions, CIDEr with a paired bootstrap interval.

    python nbs/benchmarks/bf16_quality.py --model demo/runs/photos-seed0/last --data ucm_captions
    python nbs/benchmarks/bf16_quality.py --model demo/runs/shapes-seed0/last
"""
import argparse

import torch

from blip_nb.small import demo_data
from blip_nb.evaluation.captions import caption_scores, caption_scores_per_image, paired_bootstrap
from blip_nb.tasks.caption import BlipCaption

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--model', required=True, help='folder of a captioner')
parser.add_argument('--data', help='captioned photos; without it the drawn world')
parser.add_argument('--beams', type=int, default=3)
args = parser.parse_args()

rows, model, said = demo_data(args.data)['val'], BlipCaption.from_pretrained(args.model), {}


def captions(task, autocast=False):
    done = []
    with torch.autocast(task.device.type, torch.bfloat16, enabled=autocast):
        task.validate(rows, predictions=done, num_beams=args.beams)
    return [p.pred_caption for p in done], [p['gt_caption'] for p in done]


said['fp32'], references = captions(model)
said['bf16 by autocast'], _ = captions(model, autocast=True)
said['bf16 weights'], _ = captions(model.to(torch.bfloat16))
cider = {k: (caption_scores(s, references)['CIDEr'], caption_scores_per_image(s, references)['CIDEr']) for k, s in said.items()}
print(f"{len(references)} pictures, beam {args.beams}: CIDEr {cider['fp32'][0]:.4f} in fp32")
for name in list(said)[1:]:
    mean, each = cider[name]
    difference, low, high = paired_bootstrap(each, cider['fp32'][1])
    same = sum(a == b for a, b in zip(said[name], said['fp32']))
    print(f"{name}: {mean:.4f} ({100*(mean/cider['fp32'][0] - 1):+.2f} %), difference {difference:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}; {same} captions equal")
