"""Recurrence, attention, embeddings and language models, those of transformers among them."""

import math

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import rnn
from zoo_entry import EITHER, REFUSED, RIGHT, Case, classes, entry, numbers, seeded, supervised

LENGTHS = torch.tensor([5, 2, 4, 1, 5, 3, 4])
SEQUENCES, LABELS = numbers(1, 7, 5, 3), classes(2, 3, 7)
TOKENS = classes(3, 9, 7, 5) + 1  # 0 is padding
PADDED = torch.where(torch.arange(5) < LENGTHS[:, None], TOKENS, 0)
ALL = ("one batch", "ragged batches", "data loader")


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn = kind(3, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x, lengths):
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, _ = rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        return self.head(out.sum(1) / lengths[:, None])


@entry(
    RIGHT,
    hard="flat weights that the module keeps beside its parameters; packed batches of unequal lengths",
    source="aleximmer/Laplace: Using Laplace approximation for LSTMs as base models",
)
def bidirectional_lstm_of_packed_sequences():
    model = seeded(lambda: Recurrent(nn.LSTM))
    return Case(model, nn.CrossEntropyLoss(), ((SEQUENCES, LENGTHS), LABELS), supervised)


@entry(
    RIGHT,
    hard="the fused cell's second derivative, data as (x, lengths, labels)",
    source="pytorch/pytorch: No double backwards implemented for several RNN ops",
)
def bidirectional_gru_of_triples():
    def train(model, loss_function, batch):
        x, lengths, labels = batch
        return loss_function(model(x, lengths), labels)

    return Case(
        seeded(lambda: Recurrent(nn.GRU)), nn.CrossEntropyLoss(), (SEQUENCES, LENGTHS, LABELS), train, forms=ALL
    )


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True, activation="gelu")
        self.lift, self.encoder, self.head = nn.Linear(3, 4), nn.TransformerEncoder(layer, 2), nn.Linear(4, 3)

    def forward(self, src, padding):
        out = self.encoder(self.lift(src), src_key_padding_mask=padding)
        return self.head(out.masked_fill(padding[:, :, None], 0).sum(1))


@entry(
    RIGHT,
    hard="in eval mode without gradients a fast path takes over, which cuts or zeroes what is padded",
    source="pytorch/pytorch: TransformerEncoder src_key_padding_mask does not work in eval()",
)
def transformer_encoder_with_padding_masks():
    inputs = {"src": SEQUENCES, "padding": torch.arange(5) >= LENGTHS[:, None].clamp(max=4)}
    return Case(seeded(Encoder).eval(), nn.CrossEntropyLoss(), (inputs, LABELS), supervised, forms=ALL)


class Decoder(nn.Module):
    """A causal language model with rotary positions as complex numbers and a tied head, as Llama's own code has it."""

    def __init__(self, fused):
        super().__init__()
        self.embed, self.qkv, self.out = nn.Embedding(10, 4), nn.Linear(4, 12), nn.Linear(4, 4)
        self.norm, self.head, self.fused = nn.LayerNorm(4), nn.Linear(4, 10, bias=False), fused
        self.head.weight = self.embed.weight
        angles = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.1]))
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles), persistent=False)

    def turned(self, x):
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (2, 2))) * self.turns[: x.shape[1]]).flatten(-2)

    def forward(self, tokens):
        x = self.embed(tokens)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        q, k = self.turned(q), self.turned(k)
        if self.fused:
            mixed = functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[:, 0]
        else:
            scores = q @ k.mT / math.sqrt(4) + torch.full((5, 5), -math.inf, dtype=x.dtype).triu(1)
            mixed = scores.softmax(-1) @ v
        return self.head(x + self.out(mixed)).transpose(1, 2)


@entry(
    RIGHT,
    hard="fused causal attention without a second derivative; tied embeddings; a complex buffer",
    source="pytorch/pytorch: derivative for aten::_scaled_dot_product_flash_attention_backward is not implemented",
)
def causal_decoder_with_fused_attention():
    data = (TOKENS, classes(5, 10, 7, 5))
    return Case(seeded(lambda: Decoder(True)), nn.CrossEntropyLoss(), data, supervised, forms=ALL)


@entry(
    RIGHT,
    hard="a mask of minus infinity; padded targets, so that batches weigh by their tokens",
    source="meta-pytorch/torchtune: Normalize CE loss by total number of (non-padding) tokens",
)
def causal_decoder_with_padded_targets():
    loss_function = nn.CrossEntropyLoss(ignore_index=0)
    return Case(seeded(lambda: Decoder(False)), loss_function, (TOKENS, PADDED), supervised, forms=ALL)


@entry(
    RIGHT,
    hard="the same mean over tokens by a function of the user's own: batches of unequal weight, nothing says so",
    source="huggingface/transformers: Sum loss instead of mean loss should be used if gradient accumulation ...",
)
def padded_targets_by_a_lambda():
    def loss_function(outputs, targets):
        return functional.cross_entropy(outputs, targets, ignore_index=0)

    return Case(seeded(lambda: Decoder(False)), loss_function, (TOKENS, PADDED), supervised, forms=ALL)


class Rotary(nn.Module):
    """Keeps its table of cosines from the first call, as many do."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head, self.table = nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 3), None

    def forward(self, tokens):
        if self.table is None or len(self.table) < tokens.shape[1]:
            self.table = torch.cos(torch.outer(torch.arange(tokens.shape[1]).double(), torch.arange(1.0, 5).double()))
        return self.head(torch.tanh(self.mix(self.embed(tokens) * self.table[: tokens.shape[1]])).mean(1))


@entry(RIGHT, hard="an attribute that the first call sets, of constants only", source="practice (rotary caches)")
def table_kept_from_the_first_call():
    return Case(seeded(Rotary).eval(), nn.CrossEntropyLoss(), (TOKENS, LABELS), supervised)


class Bag(nn.Module):
    def __init__(self, padding):
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 4, padding_idx=padding), nn.Linear(4, 3)
        with torch.no_grad():
            self.embed.weight.normal_()

    def forward(self, tokens):
        return self.head(torch.tanh(self.embed(tokens).mean(1)))


@entry(
    RIGHT,
    hard="a padding row that is not zero: it moves the output, backward calls it a constant, forward mode does not",
    source="pytorch/pytorch: `embedding` has different jacobians in reverse and forward modes when `padding_idx` ...",
)
def embedding_with_a_padding_row():
    return Case(
        seeded(lambda: Bag(0)), nn.CrossEntropyLoss(), (PADDED, LABELS), supervised, held={"embed.weight": 0}
    )  # fmt: skip


class Summed(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.EmbeddingBag(10, 4, mode="mean", padding_idx=0), nn.Linear(4, 3)

    def forward(self, tokens):
        return self.head(torch.tanh(self.embed(tokens)))


@entry(
    EITHER,
    fault="second derivative",
    hard="torch has no second derivative of embedding_bag",
    source="pytorch/pytorch: [PyTorch] Dense embedding doesn't work with double backward",
)
def embedding_bag():
    return Case(seeded(Summed), nn.CrossEntropyLoss(), (PADDED, LABELS), supervised)


class Speech(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(self.rnn(x)[0]).log_softmax(-1).transpose(0, 1)


@entry(
    EITHER,
    fault="second derivative",
    hard="torch has no second derivative of ctc_loss, and its first is right only behind log_softmax",
    source="pytorch/pytorch: Derivative for _ctc_loss_backward",
)
def connectionist_temporal_classification():
    def loss_function(outputs, targets):
        words, lengths = targets
        frames = torch.full_like(lengths, len(outputs))
        return functional.ctc_loss(outputs, words, frames, lengths, reduction="none").mean()

    words, lengths = classes(6, 3, 7, 2) + 1, torch.tensor([2, 1, 2, 2, 1, 2, 1])
    return Case(seeded(Speech), loss_function, (SEQUENCES, (words, lengths)), supervised)


class LowRank(nn.Module):
    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.A, self.B = nn.Parameter(torch.randn(2, base.in_features)), nn.Parameter(torch.zeros(base.out_features, 2))

    def forward(self, x):
        return self.base(x) + x @ self.A.T @ self.B.T


@entry(
    RIGHT,
    hard="only the adapters are trained, and half of them start at zero",
    source="aleximmer/Laplace: Bringing laplace-torch to foundation-model era",
)
def low_rank_adapters_on_a_frozen_base():
    model = seeded(lambda: nn.Sequential(LowRank(nn.Linear(3, 5)), nn.Tanh(), LowRank(nn.Linear(5, 3))))
    return Case(model, nn.CrossEntropyLoss(), (SEQUENCES[:, 0], LABELS), supervised, forms=ALL)


class Experts(nn.Module):
    def __init__(self, balance):
        super().__init__()
        self.router, self.balance = nn.Linear(3, 4), balance
        with torch.no_grad():
            self.router.weight.mul_(4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)) for _ in range(4))

    def forward(self, x):
        chances = self.router(x).softmax(-1)
        top, chosen = chances.topk(2)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            sample, slot = torch.where(chosen == index)
            out = out.index_add(0, sample, top[sample, slot, None] * expert(x[sample]))
        load = torch.stack([(chosen == index).double().mean() for index in range(4)])
        return out, self.balance * (load * chances.mean(0)).sum()


def balanced(outputs, targets):
    return functional.cross_entropy(outputs[0], targets) + outputs[1]


def mixture(balance, **options):
    model, data = seeded(lambda: Experts(balance)), (SEQUENCES[:, 0], LABELS)
    return Case(model, balanced, data, supervised, options, forms=("one batch",), step=1e-6, spread=0.03)


@entry(
    RIGHT,
    hard="top-k routing, and an auxiliary loss over the whole batch",
    source="pytorch/torchtitan: [moe] load-balancing aux loss",
)
def mixture_of_experts_with_coupled_batches():
    return mixture(0.5, coupled=True)


@entry(
    REFUSED,
    fault="coupled samples",
    hard="the auxiliary loss multiplies two means over the batch, and nothing says so",
    source="pytorch/torchtitan: [moe] brings batch/sequence-wise load balance loss",
)
def mixture_of_experts_that_hides_its_coupling():
    return mixture(0.5)
