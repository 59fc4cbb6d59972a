"""Cheaper training of the encoders themselves: the two companions of Patch Ranking.

Prototypes first, for masked autoencoders ("From Prototypes to General Distributions", CVPR 2025, arXiv 2411.10685)
    CurriculumSampler, Curriculum    a sampler for any training loop; needs torch and numpy only
    Prototypes, read_prototypes      how typical every image is, as patchranking pretrain prototypes wrote it
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
