"""Attention with padding: one function for the value, the gradient and the products, and no shortcut of eval mode."""

import pytest
import torch
from cases import labels_of, numbers, seeded
from oracles import assert_matches, assert_near, differences, outputs_at
from torch import nn
from torch.nn import functional

import jvp_ops as jo

pytestmark = pytest.mark.filterwarnings("ignore:.*nested tensor.*:UserWarning")

IDS, T = torch.arange(84).reshape(12, 7) * 5 % 11, labels_of(210, 12, 3)
PAD = torch.arange(7) >= (2 + torch.arange(12) % 4)[:, None]  # no row is full: the shortcut would cut them all off


def encoder(layers):
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 5, 0.0, "gelu", batch_first=True), layers)


class Averaged(nn.Module):
    """An encoder whose every place counts, padded ones too."""

    def __init__(self, layers=1):
        super().__init__()
        self.embed, self.encoder, self.head = nn.Embedding(11, 4), encoder(layers), nn.Linear(4, 3)

    def forward(self, ids, pad):
        return self.head(self.encoder(self.embed(ids), src_key_padding_mask=pad).mean(1))


class OneLayer(Averaged):
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 5, 0.0, "gelu", batch_first=True, norm_first=True)


class Attention(nn.Module):
    """torch's own attention with a padding mask, and an additive mask beside it."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(11, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, ids, pad):
        x = self.embed(ids)
        return self.head(self.mix(x, x, x, key_padding_mask=pad, need_weights=False)[0].mean(1))


class Pooled(Averaged):
    """Two layers, of which only what is not padded is averaged."""

    def __init__(self):
        super().__init__(2)

    def forward(self, ids, pad):
        mixed = self.encoder(self.embed(ids), src_key_padding_mask=pad)
        keep = (~pad).to(mixed.dtype)[..., None]
        return self.head((mixed * keep).sum(1) / keep.sum(1))


class Crossed(nn.Module):
    """A decoder that looks at a padded memory."""

    def __init__(self):
        super().__init__()
        self.embed, self.start = nn.Embedding(11, 4), nn.Parameter(numbers(211, 2, 4))
        layer = nn.TransformerDecoderLayer(4, 2, 5, 0.0, "gelu", batch_first=True)
        self.decoder, self.head = nn.TransformerDecoder(layer, 1), nn.Linear(4, 3)

    def forward(self, ids, pad):
        asked = self.start.expand(len(ids), 2, 4)
        return self.head(self.decoder(asked, self.embed(ids), memory_key_padding_mask=pad).mean(1))


KINDS = [Averaged, OneLayer, Attention, Pooled, Crossed]


def batches(pad):
    sizes = [5, 1, 6]
    return [((i, p), t) for i, p, t in zip(IDS.split(sizes), pad.split(sizes), T.split(sizes), strict=True)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_value_gradient_and_products_are_those_of_training(kind):
    model = seeded(kind)
    loss = jo.ModelLoss(model, functional.cross_entropy, batches(PAD))
    theta = loss.initial()
    assert_matches(loss, lambda t: functional.cross_entropy(outputs_at(model, t, IDS, PAD), T))
    V = numbers(212, 3, len(theta)) / len(theta) ** 0.5
    assert_near(differences(loss.value, theta, along=V), V @ loss.gradient(theta), 1e-8)


def test_the_value_is_that_of_the_model_called_with_gradients_on():
    model = seeded(Averaged)
    loss = jo.ModelLoss(model, functional.cross_entropy, ((IDS, PAD), T))
    assert_near(loss.value(loss.initial()), functional.cross_entropy(model(IDS, PAD), T).detach())
    with torch.no_grad():  # the shortcut is another function here, or this test would show nothing
        other = functional.cross_entropy(model(IDS, PAD), T)
    assert abs(float(other - loss.value(loss.initial()))) > 1e-3


def test_a_frozen_encoder_under_a_trained_head_gives_the_head_what_it_gives_in_training():
    model = seeded(Pooled)
    model.requires_grad_(False).head.requires_grad_(True)
    pad = PAD.clone()
    pad[::3] = False  # full rows: nothing is cut off, so that training sees the same with and without the shortcut
    features = []
    hook = model.head.register_forward_hook(lambda module, inputs, output: features.append(inputs[0].detach()))
    model(IDS, pad)
    hook.remove()

    def true(theta):
        return functional.cross_entropy(features[0] @ theta[:12].reshape(3, 4).mT + theta[12:], T)

    for data in (((IDS, pad), T), batches(pad), batches(pad)[::-1]):
        loss = jo.ModelLoss(model, functional.cross_entropy, data)
        assert loss.parameters.names == ("head.weight", "head.bias")
        assert_matches(loss, true, rtol=1e-11)


def test_the_users_setting_of_the_shortcut_is_left_alone():
    before = torch.backends.mha.get_fastpath_enabled()
    model = seeded(Averaged)
    loss = jo.ModelLoss(model, functional.cross_entropy, ((IDS, PAD), T))
    loss.value(loss.initial()), loss.gradient(loss.initial())
    assert torch.backends.mha.get_fastpath_enabled() == before
