"""Faster CLIP image encoders: rank patches, predict the ranking, run the model on those that matter.

Models and images
    load_model, LoadedModel      a model by its MODEL argument, with its preprocessing and text encoder
    as_tower, VisionTower        one view of the image encoders of open_clip, transformers and timm
    as_text_tower, TextTower     one view of their text encoders
    load_data, ImageData         images by a DATA argument
    demo                         the embedded model's generated scenes

Pruning
    Pruner                       the artefact: attach it to a model, set its keep rate, save and load it
    attach                       prune at once, without a fit, by a method such as cls-attention or tome
    detach                       restore a model exactly, also when its pruner is lost
    Predictor                    the tiny network that scores patches
    Schedule                     where patches are dropped and how many stay

The three phases
    rank, SearchSettings         Phase I: golden rankings of a data set, in resumable shards
    sketched, leave_out, iterative, Ranking
                                 the searches on a batch of pixels
    fit, FitSettings, FitReport  Phase II: a pruner from pictures
    tune, TuneSettings, TuneReport
                                 Phase III: learnable tokens from a few shots

Measuring
    evaluate, EvaluationSettings compare the dense model, pruners, baselines and the oracle

Vectors of many images
    embed, EmbedSettings, Embedded
                                 one batch after the other, decoded ahead of the model
    embed_to, embed_texts        into a folder, in resumable shards
    search, Found                images of such a folder that are like words or a picture
    compare_index, Comparison    what pruning did to such a folder

Deploying
    export, ExportSettings       a model, pruned or dense, as files that run without this package
    Encoder                      runs them, by ONNX Runtime, OpenVINO or PyTorch

Errors
    UserError, MissingExtraError one sentence that says what is wrong and what to do
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
