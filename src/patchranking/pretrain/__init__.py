"""Pretraining of the towers, cheaper: two companions of Patch Ranking on one loop, one budget and the same measures.

Shorter sequences, for contrastive learning ("Accelerating Augmentation Invariance Pretraining", arXiv 2410.22364), and
prototypes first, for masked autoencoders ("From Prototypes to General Distributions", CVPR 2025, arXiv 2411.10685):
    CurriculumSampler, Curriculum    a sampler for any training loop; needs torch and numpy only
    Prototypes, read_prototypes      how typical every image is, as patchranking pretrain prototypes wrote it
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
