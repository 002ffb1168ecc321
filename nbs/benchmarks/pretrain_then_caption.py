"""Does pre-training on the same photos help a captioner? All three losses first and captioning then, against captioning alone, in the same time.

Both arms start from the same kind of net, see the same photos, and get the same seconds of training (processor time, so that other work on the machine does not count).
How many epochs that makes is measured first, on one epoch of each kind. Prints CIDEr of both, and the mean recall after pre-training beside chance.

    python nbs/benchmarks/pretrain_then_caption.py --data ucm_captions --minutes 8 --seed 0
"""
import argparse
import json
import tempfile
import time

import torch

from blip_nb.data.text import CleanCaptions, clean_caption
from blip_nb.small import SIZES, all_captions, demo_data, small_captioner, small_pretrainer
from blip_nb.tasks.retrieval import BlipRetrieval
from blip_nb.training.loop import fit
from blip_nb.training.recipes import RECIPES

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--data', required=True)
parser.add_argument('--minutes', type=float, default=8, help='processor minutes of training per arm')
parser.add_argument('--share', type=float, default=.5, help='part of the time that goes into pre-training')
parser.add_argument('--seed', type=int, default=0)
parser.add_argument('--out', help='write the result here, as JSON')
args = parser.parse_args()

data = demo_data(args.data, seed=args.seed)
train, val = CleanCaptions(data['train']), data['val']
words = [clean_caption(c, 30) for texts in all_captions(data['train']) for c in texts]
captioning = RECIPES['photos'].but(seed=args.seed, eval_every=0)
pretraining = RECIPES['pretrain_photos'].but(seed=args.seed, eval_every=0)


def train_for(task, recipe, epochs):
    "Train and return the processor seconds it took."
    for net in (task.net,):
        net.set_attn_implementation('eager')  # with gradients, at few keys, the faster one on a CPU
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        fit(task, train, recipe=recipe.but(epochs=epochs, warmup=min(recipe.warmup, 50) if epochs < 3 else recipe.warmup), out=folder, progress=False)
    return time.process_time() - start


def cider(task):
    return task.validate(val, num_beams=3)['CIDEr']


cost = {kind: train_for(make(words, SIZES['photos'], args.seed), recipe, 1) for kind, make, recipe in (('caption', small_captioner, captioning), ('pretrain', small_pretrainer, pretraining))}
seconds = 60 * args.minutes
epochs = dict(alone=round(seconds/cost['caption']), pretrain=max(1, round(args.share*seconds/cost['pretrain'])))
epochs['then'] = max(1, round((seconds - epochs['pretrain']*cost['pretrain'])/cost['caption']))
print(f"an epoch costs {cost['caption']:.0f} s of captioning, {cost['pretrain']:.0f} s of pre-training; epochs {epochs}", flush=True)

alone = small_captioner(words, SIZES['photos'], args.seed)
spent = dict(alone=train_for(alone, captioning, epochs['alone']))
result = dict(seed=args.seed, minutes=args.minutes, epochs=epochs, alone=cider(alone))
print(f"captioning alone: CIDEr {result['alone']:.3f}", flush=True)

both = small_pretrainer(words, SIZES['photos'], args.seed)
spent['both'] = train_for(both, pretraining, epochs['pretrain'])
net = both.net
search = BlipRetrieval(net.vision_model, net.text_encoder, None, net.vision_proj, net.text_proj, None, net.itm_head, both.tokenizer, max_txt_len=40, data_preprocessor=both.transform(), topk=32)
recall = search.validate(val)
chance = 100/6*sum(min(1, k*n/m) for k in (1, 5, 10) for n, m in ((5, 5*len(val)), (1, len(val))))
print(f"after pre-training: mean recall {recall['mean_recall']:.1f} %, chance about {chance:.1f} %", flush=True)
writer = both.captioner(max_txt_len=40, generation=dict(max_length=40))
spent['both'] += train_for(writer, captioning, epochs['then'])
result |= dict(after_pretraining=cider(writer), recall=recall, chance=chance, processor_seconds=spent, threads=torch.get_num_threads(), torch=torch.__version__)
print(f"pre-training, then captioning: CIDEr {result['after_pretraining']:.3f}; processor seconds {spent}", flush=True)
if args.out:
    with open(args.out, 'w') as f:
        json.dump(result, f, indent=1)
