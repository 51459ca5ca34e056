"""Layers: tables of vectors as torch modules, and optimisers that touch only the rows used."""

from firth.nn import functional as functional
from firth.nn.bag import EmbeddingBag as EmbeddingBag
from firth.nn.batches import SkipGramBatches as SkipGramBatches
from firth.nn.embedding import Embedding as Embedding
from firth.nn.fused import FusedOptimizer as FusedOptimizer
from firth.nn.linear import LinearView as LinearView
from firth.nn.optim import RowAdagrad as RowAdagrad
from firth.nn.optim import RowAdam as RowAdam
from firth.nn.optim import RowSGD as RowSGD
from firth.nn.quantized import QuantizedEmbedding as QuantizedEmbedding
from firth.nn.recipes import SGD as SGD
from firth.nn.recipes import Adagrad as Adagrad
from firth.nn.recipes import Adam as Adam
from firth.nn.recipes import RowWiseAdagrad as RowWiseAdagrad
from firth.nn.sharded import ShardedEmbedding as ShardedEmbedding
from firth.nn.skipgram import SkipGram as SkipGram
from firth.nn.transfer import extend_model_embeddings as extend_model_embeddings
from firth.nn.transfer import init_model_embeddings as init_model_embeddings

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "Embedding",
    "EmbeddingBag",
    "FusedOptimizer",
    "LinearView",
    "QuantizedEmbedding",
    "RowAdagrad",
    "RowAdam",
    "RowSGD",
    "RowWiseAdagrad",
    "ShardedEmbedding",
    "SkipGram",
    "SkipGramBatches",
    "extend_model_embeddings",
    "functional",
    "init_model_embeddings",
]
