"""What are writing captions, filtering them, and both worth, where it is known which texts are wrong? Killed, the same command goes on.

    python nbs/benchmarks/capfilt_ablation.py --out runs/capfilt                                   # the drawn world, seeds 0 1 2
    python nbs/benchmarks/capfilt_ablation.py --out runs/capfilt_photos --data ucm_captions        # photos, captions shuffled among them
    python nbs/benchmarks/capfilt_ablation.py --out /tmp/quick --quick --seeds 0                   # every stage, in under a minute
"""
from blip_nb.training.ablation import main

main()
