"""Language models of the library transformers, of random weights and tiny configurations: nothing is downloaded."""

import functools

import pytest
import torch
from torch.nn import functional
from zoo_entry import RIGHT, Case, classes, entry, labelled, own_loss, seeded

LENGTHS = torch.tensor([6, 3, 5, 2, 6, 4, 6])
TOKENS = classes(3, 11, 7, 6) + 1
REAL = torch.arange(6) < LENGTHS[:, None]
PADDED = torch.where(REAL, TOKENS, 0)
MASKED = torch.where(REAL, TOKENS, -100)
SMALL = {"vocab_size": 12, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# the library computes the loss (and Llama its norms) in float32, even of a model in float64
SINGLE = {"value_error": 1e-6, "gradient_error": 1e-5, "product_error": 1e-3, "step": 1e-2}
FORMS = ("one batch", "ragged batches", "data loader")


@functools.cache
def library():
    return pytest.importorskip("transformers")


def gpt2():
    made = library()
    sizes = {"n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
    return seeded(lambda: made.GPT2LMHeadModel(made.GPT2Config(**SMALL, **sizes))).eval()


def bert(kind, **rest):
    made = library()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = made.BertConfig(**SMALL, **sizes, max_position_embeddings=8, **rest)
    return seeded(lambda: getattr(made, kind)(config)).eval()


def llama():
    made = library()
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = made.LlamaConfig(**SMALL, **sizes, intermediate_size=16, max_position_embeddings=8)
    return seeded(lambda: made.LlamaForCausalLM(config)).eval()


def shifted(labels):
    return (labels[:, 1:] != -100).sum()


def counted(labels):
    return (labels != -100).sum()


@entry(
    RIGHT,
    hard="the model computes its loss, and in float32; tied embeddings; batches are dicts",
    source="f-dangel/curvlinops: Make less/no assumption about the data",
)
def gpt2_with_its_own_loss():
    batch = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS), "labels": TOKENS}
    return Case(gpt2(), None, batch, own_loss, forms=FORMS, **SINGLE)


PAD = {"input_ids": PADDED, "attention_mask": REAL.long(), "labels": MASKED}


@entry(
    RIGHT,
    hard="a mean over the tokens that are not padding, of unequal number in each batch",
    source="huggingface/blog: Gradient accumulation",
)
def gpt2_on_padded_batches():
    return Case(gpt2(), None, PAD, own_loss, {"normalizer": shifted}, forms=FORMS, **SINGLE)


@entry(
    RIGHT,
    hard="the same, and nobody says what the model divides by",
    source="huggingface/transformers: Fix Gradient Accumulation issue",
)
def gpt2_on_padded_batches_of_unknown_weight():
    return Case(gpt2(), None, PAD, own_loss, forms=("ragged batches",), **SINGLE)


@entry(
    RIGHT,
    hard="the decoder is tied to an embedding with padding_idx: its row is a constant as input and trained as output",
    source="pytorch/pytorch: Add `padding_idx` argument to EmbeddingBag; practice",
)
def bert_for_masked_words():
    labels = torch.where(REAL & (classes(9, 2, 7, 6) == 1), TOKENS, -100)
    labels[:, 0] = TOKENS[:, 0]  # no batch without a word
    return Case(
        bert("BertForMaskedLM"), None, {**PAD, "labels": labels}, own_loss, {"normalizer": counted}, forms=FORMS
    )


@entry(
    RIGHT,
    hard="dict batches whose labels go to a loss function of one's own; a pooler; an output with attributes",
    source="huggingface/transformers: practice (a loss outside the model)",
)
def bert_for_classes_with_another_loss():
    def loss_function(outputs, labels):
        return functional.cross_entropy(outputs.logits, labels, label_smoothing=0.1)

    batch = {"input_ids": PADDED, "attention_mask": REAL.long(), "labels": classes(7, 3, 7)}
    model = bert("BertForSequenceClassification", num_labels=3)
    return Case(model, loss_function, batch, labelled, forms=FORMS)


@entry(
    RIGHT,
    hard="casts to float32 in every layer of a model in float64: rounding of 1e-7 under every number",
    source="huggingface/transformers: I have a question in the source code called modeling_llama.py",
)
def llama_with_its_own_loss():
    batch = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS), "labels": TOKENS}
    return Case(llama(), None, batch, own_loss, **SINGLE)
