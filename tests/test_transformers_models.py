"""Models of the transformers library: a causal language model, and a classifier with padding, in ragged batches."""

import functools

import pytest
import torch
from cases import numbers
from oracles import assert_near, exact, in_float64, outputs_at, theta_of, weights_at
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

import jvp_ops as jo

transformers = pytest.importorskip("transformers")

WORDS, LENGTHS = 13, torch.tensor([7, 2, 5, 3, 6, 4, 2, 7, 3, 5])
PLACES = torch.arange(7)
MASK = (LENGTHS[:, None] > PLACES).long()
IDS = torch.where(MASK == 1, (torch.arange(70).reshape(10, 7) * 5 + 1) % WORDS, 0)
# some words are number 0 themselves: BERT's embedding holds that row still, as padding_idx says, and so does its loss
NEXT = torch.where(MASK == 1, IDS, -100)
CLASSES = torch.arange(10) % 3
ATTENTION = ["eager", "sdpa"]


def made(kind, config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model = kind(config).eval()
        for p in model.parameters():  # torch's small start would leave attention almost without curvature
            p.data.add_(torch.randn_like(p) * 0.2)
    return model


@functools.cache
def language_model(attention):
    config = transformers.GPT2Config(
        vocab_size=WORDS,
        n_positions=8,
        n_embd=8,
        n_layer=2,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation=attention,
    )
    return made(transformers.GPT2LMHeadModel, config)


@functools.cache
def classifier(attention):
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
        num_labels=3,
        attn_implementation=attention,
    )
    return made(transformers.BertForSequenceClassification, config)


def batch_of(index, labels):
    """Pad some sequences to the longest of them."""
    longest = int(LENGTHS[index].max())
    batch = {"input_ids": IDS[index, :longest], "attention_mask": MASK[index, :longest]}
    return {**batch, "labels": labels[index, :longest] if labels.ndim == 2 else labels[index]}


def data_of(how, labels):
    everything = torch.arange(10)
    if how == "one batch":
        return batch_of(everything, labels)
    if how == "a loader":
        return DataLoader(range(10), batch_size=3, collate_fn=lambda rows: batch_of(torch.tensor(rows), labels))
    batches = [batch_of(index, labels) for index in everything.roll(3).split([4, 1, 3, 2])]
    return [transformers.BatchEncoding(batch) for batch in batches] if how == "encodings" else batches


WAYS = ["one batch", "ragged batches", "a loader", "encodings"]


def next_word(logits, labels):
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def logits_of(model, theta):
    return outputs_at(in_float64(model), theta, input_ids=IDS, attention_mask=MASK).logits


KINDS = {
    "language model": (language_model, NEXT, next_word),
    "classifier": (classifier, CLASSES, functional.cross_entropy),
}


def directions(theta):
    return numbers(800, len(theta), 3)


def exact_products(function, theta):
    """Value, gradient, and the Hessian along a few directions, of all sequences in one batch in float64."""
    leaf = theta.clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        value = function(leaf)
        (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
        columns = [torch.autograd.grad(slope, leaf, v, retain_graph=True)[0] for v in directions(theta).T]
    return value.detach(), slope.detach(), torch.stack(columns, 1)


def exact_split_products(logits, loss_of, theta):
    """Multiply Jᵀ (∂²ℓ/∂z²) J with a few directions."""
    leaf = theta.clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        z = logits(leaf)
        weights = torch.zeros_like(z, requires_grad=True)
        (back,) = torch.autograd.grad(z, leaf, weights, create_graph=True)
        at = z.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss_of(at), at, create_graph=True)
        columns = []
        for v in directions(theta).T:
            (forward,) = torch.autograd.grad(back, weights, v, retain_graph=True)
            (curved,) = torch.autograd.grad(slope, at, forward, retain_graph=True)
            columns.append(torch.autograd.grad(z, leaf, curved, retain_graph=True)[0])
    return torch.stack(columns, 1)


@functools.cache
def true_products(name, attention):
    make, labels, function = KINDS[name]
    model = make(attention)
    theta = theta_of(model)
    logits = functools.partial(logits_of, model)
    return (
        *exact_products(lambda t: function(logits(t), labels), theta),
        exact_split_products(logits, lambda z: function(z, labels), theta),
    )


def check(loss, true, rtol):
    theta = loss.initial()
    V = directions(theta).to(loss.dtype)
    assert_near(loss.value(theta), true[0], rtol, floor=1.0)
    assert_near(loss.gradient(theta), true[1], rtol)
    assert_near(loss.hessian(theta).apply(V), true[2], rtol)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", KINDS)
def test_the_loss_that_the_model_makes_is_that_of_one_batch(name, attention, how):
    make, labels, _ = KINDS[name]
    model = make(attention)
    loss = jo.ModelLoss(model, None, data_of(how, labels), dtype="float64")
    assert loss.samples == 10
    assert torch.equal(loss.initial(), theta_of(model))
    check(loss, true_products(name, attention), 1e-10)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", KINDS)
def test_so_is_a_loss_function_of_the_logits_and_its_gauss_newton_matrix(name, attention, how):
    make, labels, function = KINDS[name]

    def of_logits(outputs, targets):
        return function(outputs.logits, targets)

    true = true_products(name, attention)
    for options in ({}, {"outputs": "logits"}):
        loss = jo.ModelLoss(make(attention), of_logits, data_of(how, labels), dtype="float64", **options)
        theta = loss.initial()
        assert_near(loss.gauss_newton(theta).apply(directions(theta)), true[3], 1e-10)
    check(loss, true, 1e-10)


@pytest.mark.parametrize("name", KINDS)
def test_gauss_newton_of_the_models_own_loss_is_the_same_or_refused(name):
    make, labels, _ = KINDS[name]
    for options in ({}, {"outputs": "logits"}):
        loss = jo.ModelLoss(make("eager"), None, data_of("ragged batches", labels), dtype="float64", **options)
        theta = loss.initial()
        try:
            found = loss.gauss_newton(theta).apply(directions(theta))
        except jo.InputError as error:
            assert "loss_function" in str(error)  # noqa: PT017
        else:
            assert_near(found, true_products(name, "eager")[3], 1e-10)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("name", KINDS)
def test_in_float32_it_is_the_same_loss_to_its_rounding(name, attention):
    make, labels, function = KINDS[name]
    own = jo.ModelLoss(make(attention), None, data_of("ragged batches", labels))
    given = jo.ModelLoss(
        make(attention), lambda o, t: function(o.logits, t), data_of("ragged batches", labels), outputs="logits"
    )
    for loss in (own, given):
        assert loss.dtype == torch.float32
        check(loss, true_products(name, attention), 1e-4)
    theta = own.initial()
    assert_near(given.gauss_newton(theta).apply(directions(theta).float()), true_products(name, attention)[3], 1e-4)
    wide = own.hessian(theta).in_float64()
    assert_near(wide.apply(directions(theta)), true_products(name, attention)[2], 1e-10)


def test_without_labels_the_batch_is_the_target():
    model = language_model("eager")
    batches = data_of("ragged batches", NEXT)
    for batch in batches:
        del batch["labels"]

    def from_the_words(outputs, batch):
        words = torch.where(batch["attention_mask"] == 1, batch["input_ids"], -100)
        return next_word(outputs.logits, words)

    loss = jo.ModelLoss(model, from_the_words, batches, dtype="float64")
    check(loss, true_products("language model", "eager"), 1e-10)


def test_a_trained_head_over_a_frozen_model_has_its_dense_matrices():
    model = classifier("eager")
    loss = jo.ModelLoss(model, None, data_of("ragged batches", CLASSES), dtype="float64", parameters="classifier.*")
    whole, head = theta_of(model), theta_of(model.classifier)
    assert loss.parameters.names == ("classifier.weight", "classifier.bias")

    def true(theta):
        return functional.cross_entropy(logits_of(model, torch.cat([whole[: -len(head)], theta])), CLASSES)

    H = exact(true, head).hessian
    assert_near(loss.hessian(loss.initial()).dense(), H, 1e-10)
    pairs = jo.eigenpairs(loss.hessian(loss.initial()), k=2, which="LA", tol=1e-8)
    assert abs(pairs.values - torch.linalg.eigvalsh(H)[-2:].flip(0).numpy()).max() < 1e-7


def test_mini_batches_of_sequences_divide_by_their_own_words():
    model = language_model("eager")
    loss = jo.ModelLoss(model, None, data_of("one batch", NEXT), dtype="float64")
    f = jo.MinibatchSGD(loss, 4, optimizer=lambda loss: jo.GradientDescent(loss, lr=0.1))
    theta = loss.initial()
    for step in (0, 2):
        index = f.batch(step)
        slope = torch.autograd.functional.jacobian(
            lambda t, index=index: next_word(logits_of(model, t)[index], NEXT[index]), theta
        )
        assert_near(f(theta, step), theta - 0.1 * slope, 1e-10)


def test_the_users_model_is_left_as_it_was():
    model = language_model("eager")
    before = theta_of(model)
    loss = jo.ModelLoss(model, None, data_of("one batch", NEXT), dtype="float64")
    loss.hessian(loss.initial() + 0.1).apply(directions(before))
    assert torch.equal(theta_of(model), before)
    assert all(p.dtype == torch.float32 and p.grad is None for p in model.parameters())
    assert model.lm_head.weight is model.transformer.wte.weight
    assert isinstance(model.lm_head, nn.Linear)
    assert len(weights_at(model, before)[1]) == 0


def test_dropout_in_training_mode_is_refused_by_the_modules_name():
    model = made(
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(vocab_size=WORDS, n_positions=8, n_embd=8, n_layer=1, n_head=2),
    ).train()
    with pytest.raises(jo.InputError, match=r"module 'transformer\.drop' \(Dropout\) is in training mode"):
        jo.ModelLoss(model, None, data_of("one batch", NEXT))
