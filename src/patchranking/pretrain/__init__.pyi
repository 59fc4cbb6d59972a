from .curriculum import Curriculum
from .prototypes import Prototypes, read_prototypes
from .sampler import CurriculumSampler

__all__ = [
    "Curriculum",
    "CurriculumSampler",
    "Prototypes",
    "read_prototypes",
]
