"""A mistake in a call from Python is one line, a RobustillError that says what was found and what was expected."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import robustill as rb
from helpers.tiny_networks import tiny_network
from robustill.data import ImageDataset
from robustill.evaluation.transfer import transfer as transfer_of
from robustill.models.loading import LoadedNetwork, Shape

B, K = 4, 4
X = torch.linspace(0, 1, B * 64).view(B, 1, 8, 8)
Y = torch.arange(B)
LOGITS = torch.linspace(-1, 1, B * K).view(B, K)
THREAT = rb.Threat(norm="linf", eps=0.1)
NAN, INF = math.nan, math.inf


def with_value(value):
    x = X.clone()
    x[1, 0, 2, 3] = value
    return x


def network():
    return tiny_network(0, batchnorm=False)


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def summed(x):
    return x.sum(dim=(1, 2, 3))


def pgd(x=X, threat=THREAT, loss_fn=summed, **settings):
    return rb.pgd(loss_fn, x, threat, **{"steps": 1, "step_size": 0.01, **settings})


def step(student=None, method=None, teacher=None, threat=THREAT, **settings):
    student, method = student or network(), method or rb.build_method("at")
    return rb.Step(student, method, teacher, threat, **{"steps": 1, "step_size": 0.01, **settings})


def batch(x=X, y=Y, index=Y, **settings):
    return rb.Batch(x=x, y=y, index=index, **settings)


def attack(predict=None, x=X, y=Y, threat=THREAT, version=("apgd-ce",), **settings):
    return rb.autoattack(predict or network(), x, y, threat, version=version, **{"steps": 1, **settings})


def dataset(labels=Y):
    images = (X * 255).byte()
    return ImageDataset(name="made up", split="test", images=images, labels=labels, classes=tuple("abcd"))


class Unkind(torch.autograd.Function):
    """The identity, whose backward pass fails by an exception that is no RuntimeError."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, grad):
        raise TypeError("no derivative here")


class OwnData:
    """A data set of somebody's own, with the interface of `robustill.data.Dataset` but for what is given."""

    name, split, classes, num_classes, image_shape, fingerprint = "own", "test", tuple("abcd"), 4, (1, 8, 8), "0"
    labels = Y

    def __init__(self, **changes):
        vars(self).update(changes)

    def __len__(self):
        return B

    def read(self, indices):
        return (X * 255).byte()[indices]


def evaluate(model=None, data=None, threat=THREAT, **settings):
    return rb.evaluate(model or network(), data or dataset(), threat=threat, **{"suite": "pgd-20", **settings})


def build(name="resnet8", **settings):
    return rb.build_model(name, **{"num_classes": 4, "in_channels": 1, "image_size": 8, "width": 2, **settings})


# What is wrong: the call, and a part of the line.
LOSSES = {
    "ce: the label -100": (lambda: rb.losses.ce(LOGITS, torch.full((B,), -100)), "from -100 to -100, expected 0 to"),
    "ce: a label beyond the classes": (lambda: rb.losses.ce(LOGITS, Y + 1), "labels from 1 to 4"),
    "ce: labels of int32": (lambda: rb.losses.ce(LOGITS, Y.int()), r"with \.long\(\)"),
    "ce: labels of bool": (lambda: rb.losses.ce(LOGITS, Y.bool()), r"torch\.bool \[4\]"),
    "ce: labels [B,1]": (lambda: rb.losses.ce(LOGITS, Y[:, None]), r"y\.squeeze\(1\)"),
    "ce: fewer labels": (lambda: rb.losses.ce(LOGITS, Y[:2]), r"expected int64 \[4\]"),
    "ce: one-hot whole numbers": (lambda: rb.losses.ce(LOGITS, torch.eye(4).long()), r"y\.argmax"),
    "ce: probabilities of other classes": (lambda: rb.losses.ce(LOGITS, torch.ones(B, 2)), "shape of logits"),
    "ce: logits and labels swapped": (lambda: rb.losses.ce(Y, LOGITS), r"logits is torch\.int64 \[4\]"),
    "ce: logits of NumPy": (lambda: rb.losses.ce(LOGITS.numpy(), Y), r"torch\.from_numpy"),
    "ce: labels of NumPy": (lambda: rb.losses.ce(LOGITS, Y.numpy()), r"torch\.from_numpy"),
    "ce: a list": (lambda: rb.losses.ce(LOGITS, [0, 1, 2, 3]), "y is a list"),
    "ce: logits [K]": (lambda: rb.losses.ce(LOGITS[0], Y[0]), r"logits \[B,K\]"),
    "ce: whole numbers as logits": (lambda: rb.losses.ce(LOGITS.long(), Y), "floating-point logits"),
    "soft_ce: broadcast [1,K]": (lambda: rb.losses.soft_ce(LOGITS, LOGITS[:1]), r"\[1, 4\]"),
    "soft_ce: labels": (lambda: rb.losses.soft_ce(LOGITS, Y), "shape of logits"),
    "soft_ce: no target": (lambda: rb.losses.soft_ce(LOGITS, None), "target is None"),
    "kl: broadcast [1,K]": (lambda: rb.losses.kl(LOGITS, LOGITS[:1]), r"\[1, 4\].*expected the shape of prediction"),
    "kl: broadcast [B,1]": (lambda: rb.losses.kl(LOGITS, LOGITS[:, :1]), r"\[4, 1\]"),
    "kl: temperature 0": (lambda: rb.losses.kl(LOGITS, LOGITS, 0), "is 0, expected a finite number above 0"),
    "kl: temperature -1": (lambda: rb.losses.kl(LOGITS, LOGITS, -1.0), "above 0"),
    "kl: temperature NaN": (lambda: rb.losses.kl(LOGITS, LOGITS, NAN), "temperature is nan"),
    "kl: infinite temperature": (lambda: rb.losses.kl(LOGITS, LOGITS, INF), "temperature is inf"),
    "kl: temperature as text": (lambda: rb.losses.kl(LOGITS, LOGITS, "4"), "without quotes"),
    "kl: temperature True": (lambda: rb.losses.kl(LOGITS, LOGITS, True), "temperature is True"),
    "kl: whole numbers": (lambda: rb.losses.kl(LOGITS, torch.eye(4).long()), "target is torch.int64"),
    "kl: labels": (lambda: rb.losses.kl(LOGITS, Y), r"target is torch\.int64 \[4\]"),
    "soft_kl: broadcast [1,K]": (lambda: rb.losses.soft_kl(LOGITS, LOGITS[:1]), r"\[1, 4\]"),
    "soft_kl: temperature 0": (lambda: rb.losses.soft_kl(LOGITS, LOGITS, 0.0), "above 0"),
    "margin: one class": (lambda: rb.losses.margin(LOGITS[:, :1], Y * 0), "at least 2 classes"),
    "margin: the label -1": (lambda: rb.losses.margin(LOGITS, Y - 1), "labels from -1 to 2"),
    "margin: a label beyond the classes": (lambda: rb.losses.margin(LOGITS, Y + 1), "labels from 1 to 4"),
    "margin: probabilities": (lambda: rb.losses.margin(LOGITS, LOGITS), "one for each image"),
    "dlr: two classes": (lambda: rb.losses.dlr(LOGITS[:, :2], Y % 2), "at least 3 classes"),
    "dlr: fewer labels": (lambda: rb.losses.dlr(LOGITS, Y[:1]), r"int64 \[4\]"),
}  # fmt: skip

THREATS = {
    "an unknown norm": (lambda: rb.Threat(norm="linfty", eps=0.1), r"did you mean linf\?"),
    "a norm in capitals": (lambda: rb.Threat(norm="Linf", eps=0.1), r"did you mean linf\?"),
    "the norm as a number": (lambda: rb.Threat(norm=2, eps=0.1), "norm 2 is unknown"),
    "eps -1": (lambda: rb.Threat(norm="l2", eps=-1), "eps -1"),
    "eps NaN": (lambda: rb.Threat(norm="l2", eps=NAN), "eps nan"),
    "infinite eps": (lambda: rb.Threat(norm="l1", eps=INF), "eps inf"),
    "an eps of 400 digits": (lambda: rb.Threat(norm="l2", eps=10**400), "eps 1000"),
    "a step size of 400 digits": (lambda: pgd(step_size=10**400), "step_size is 1000.*expected a finite number"),
    "a backward that fails": (lambda: pgd(loss_fn=lambda z: Unkind.apply(z).sum(dim=(1, 2, 3))), "no derivative here"),
    "eps 8": (lambda: rb.Threat(norm="linf", eps=8), "did you mean 8/255"),
    "eps as another text": (lambda: rb.Threat(norm="linf", eps="small"), "fraction such as 8/255"),
    "eps 8/0": (lambda: rb.Threat(norm="linf", eps="8/0"), "fraction such as 8/255"),
    "no eps": (lambda: rb.Threat(norm="linf", eps=None), "eps None"),
    "eps True": (lambda: rb.Threat(norm="linf", eps=True), "eps True"),
    "several eps": (lambda: rb.Threat(norm="linf", eps=torch.tensor([0.1, 0.2])), r"eps torch\.float32 \[2\]"),
    "a list of eps": (lambda: rb.Threat(norm="linf", eps=[0.1]), "eps a list"),
    "start: bytes": (lambda: THREAT.start((X * 255).byte()), "divide them by 255"),
    "start: NumPy": (lambda: THREAT.start(X.numpy()), r"torch\.from_numpy"),
    "start: a seed as the generator": (lambda: THREAT.start(X, 0), r"manual_seed\(0\)"),
    "start: too few generators": (lambda: THREAT.start(X, [torch.Generator()]), "1 generators for 4 images"),
    "ascent: [B,D]": (lambda: rb.Threat(norm="l2", eps=1).ascent(X.flatten(1)), r"images \[B,C,H,W\]"),
    "project: broadcast": (lambda: THREAT.project(X, X[:1]), "expected the shape of x"),
    "distance: broadcast": (lambda: THREAT.distance(X[:1], X), "expected the shape of x"),
    "contains: other images": (lambda: THREAT.contains(X[:2], X), "expected the shape of x"),
}

PGD = {
    "images in 0 to 255": (lambda: pgd(X * 255), "values from 0 to 255, expected .0,1.: divide bytes by 255"),
    "normalised images": (lambda: pgd((X - 0.5) / 0.25), "values from -2 to 2"),
    "a NaN in an image": (lambda: pgd(with_value(NAN)), "NaN"),
    "an infinite pixel": (lambda: pgd(with_value(INF)), "values from 0 to inf"),
    "bytes": (lambda: pgd((X * 255).byte()), r"torch\.uint8.*divide them by 255"),
    "NumPy": (lambda: pgd(X.numpy()), r"convert it with torch\.from_numpy"),
    "a list": (lambda: pgd(X.tolist()), "x is a list"),
    "one image [C,H,W]": (lambda: pgd(X[0]), r"unsqueeze\(0\)"),
    "flat images": (lambda: pgd(X.flatten(1)), r"images \[B,C,H,W\]"),
    "no images": (lambda: pgd(X[:0]), "at least one"),
    "step size -1": (lambda: pgd(step_size=-1), "step_size is -1, expected a finite number of at least 0"),
    "step size NaN": (lambda: pgd(step_size=NAN), "step_size is nan"),
    "infinite step size": (lambda: pgd(step_size=INF), "step_size is inf"),
    "step size 2": (lambda: pgd(step_size=2), "did you mean 2/255"),
    "step size as text": (lambda: pgd(step_size="2/255"), "without quotes"),
    "no step size": (lambda: pgd(step_size=None), "step_size is None"),
    "steps -1": (lambda: pgd(steps=-1), "steps is -1, expected a whole number of at least 0"),
    "steps 1.5": (lambda: pgd(steps=1.5), "steps is 1.5"),
    "steps True": (lambda: pgd(steps=True), "steps is True"),
    "steps as text": (lambda: pgd(steps="10"), "steps is '10'"),
    "restarts 0": (lambda: pgd(restarts=0), "restarts is 0"),
    "an unknown start": (lambda: pgd(start="random"), "start 'random' is unknown"),
    "no start": (lambda: pgd(start=None), "start is None"),
    "a start of NumPy": (lambda: pgd(start=X.numpy()), "start is a ndarray"),
    "a start outside the ball": (lambda: pgd(start=1 - X), "outside linf:0.1 for 4 of 4 images"),
    "a start outside [0,1]": (lambda: pgd(start=X + 0.05), "outside linf:0.1 for 1 of 4 images"),
    "a start of NaN": (lambda: pgd(start=with_value(NAN)), "outside linf:0.1 for 1 of 4 images"),
    "a start of other images": (lambda: pgd(start=X[:1]), "expected the shape of x"),
    "a start in float64": (lambda: pgd(start=X.double()), r"start is torch\.float64"),
    "a seed as the generator": (lambda: pgd(generator=0), "generator is 0"),
    "too many generators": (lambda: pgd(generator=[torch.Generator()] * 5), "5 generators for 4 images"),
    "a threat of two words": (lambda: pgd(threat="linf 8/255"), "NORM:EPS"),
    "a number as the threat": (lambda: pgd(threat=0.1), "threat is a float"),
    "no function": (lambda: pgd(loss_fn=None), "loss_fn is None"),
    "the mean loss": (lambda: pgd(loss_fn=lambda z: summed(z).mean()), r"leave the mean out"),
    "logits as the loss": (lambda: pgd(loss_fn=lambda z: z.flatten(1)), r"one value for each image, \[4\]"),
    "a number as the loss": (lambda: pgd(loss_fn=lambda z: 1.0), r"loss_fn returns 1\.0"),
    "a loss without a gradient": (lambda: pgd(loss_fn=lambda z: summed(z.detach())), "no gradient"),
}

BATCHES = {
    "smoothing 2": (lambda: batch(smoothing=2), "smoothing is 2, expected a finite number of at least 0 and below 1"),
    "smoothing -0.1": (lambda: batch(smoothing=-0.1), "smoothing is -0.1"),
    "smoothing NaN": (lambda: batch(smoothing=NAN), "smoothing is nan"),
    "epoch -1": (lambda: batch(epoch=-1), "epoch is -1"),
    "epochs 0": (lambda: batch(epochs=0), "epochs is 0"),
    "images of NumPy": (lambda: batch(X.numpy()), r"torch\.from_numpy"),
    "bytes": (lambda: batch((X * 255).byte()), "divide them by 255"),
    "labels of int32": (lambda: batch(y=Y.int()), r"with \.long\(\)"),
    "labels in float": (lambda: batch(y=Y.float()), r"with \.long\(\)"),
    "fewer labels": (lambda: batch(y=Y[:2]), r"y is torch\.int64 \[2\], expected int64 \[4\]"),
    "fewer ids": (lambda: batch(index=Y[:2]), r"index is torch\.int64 \[2\]"),
    "labels as probabilities": (lambda: batch(y=torch.eye(4)), r"y\.argmax\(dim=1\)"),
    "mixed of other images": (lambda: batch(mixed=torch.ones(2, 4)), "mixed is"),
    "mixed as whole numbers": (lambda: batch(mixed=torch.eye(4).long()), r"probabilities \[4,K\]"),
    "an outcome of a number": (lambda: rb.Outcome(loss=0.5, logits=LOGITS), "loss is 0.5"),
    "an outcome without logits": (lambda: rb.Outcome(loss=LOGITS[:, 0], logits=None), "logits is None"),
    "a number among the terms": (lambda: rb.Outcome(loss=Y, logits=LOGITS, terms={"ce": 1}), "term ce is 1"),
}

STEPS = {
    "precision fp8": (lambda: step(precision="fp8"), "precision 'fp8' is unknown"),
    "no precision": (lambda: step(precision=None), "precision is None, expected one of bf16, fp32"),
    "batchnorm x": (lambda: step(batchnorm="x"), "batchnorm 'x' is unknown: known: eval, train"),
    "awp -1": (lambda: step(awp=-1), "awp is -1, expected a finite number of at least 0"),
    "awp NaN": (lambda: step(awp=NAN), "awp is nan"),
    "awp 5": (lambda: step(awp=5), "below 1"),
    "step size -1": (lambda: step(step_size=-1), "step_size is -1"),
    "step size NaN": (lambda: step(step_size=NAN), "step_size is nan"),
    "step size 2": (lambda: step(step_size=2), "did you mean 2/255"),
    "steps -1": (lambda: step(steps=-1), "steps is -1"),
    "steps 0.5": (lambda: step(steps=0.5), "steps is 0.5"),
    "an unknown start": (lambda: step(start="zero"), "start 'zero' is unknown"),
    "light as text": (lambda: step(light="no"), "light is 'no', expected True or False"),
    "recompute and awp": (lambda: step(recompute=True, awp=0.01), "use one of the two"),
    "a name as the student": (lambda: step("resnet8"), "load it with robustill.load_network"),
    "a class as the student": (lambda: step(nn.Flatten), "student is the class Flatten.*call it"),
    "a name as the method": (lambda: step(method="akd"), "build_method"),
    "a class as the method": (lambda: step(method=type(rb.build_method("at"))), "method is the class AT"),
    "a list of teachers": (lambda: step(teacher=[network()]), r"robustill\.Ensemble"),
    "a loaded network as the teacher": (lambda: step(teacher=loaded()), r"give its \.module"),
    "a number as the threat": (lambda: step(threat=8 / 255), "threat is a float"),
    "images in 0 to 255": (lambda: step()(batch(X * 255)), "values from 0 to 255"),
    "a NaN in an image": (lambda: step()(batch(with_value(NAN))), "NaN"),
    "the label -100": (lambda: step()(batch(y=Y - 100)), "labels from -100 to -97"),
    "a label beyond the classes": (lambda: step()(batch(y=Y + 1)), "labels from 1 to 4"),
    "an empty batch": (lambda: step()(batch(X[:0], Y[:0], Y[:0])), "at least one"),
    "a tuple as the batch": (lambda: step()((X, Y)), "batch is a tuple"),
    "a seed as the generator": (lambda: step()(batch(), 0), "generator is 0"),
    "no parts": (lambda: list(step().parts(batch(), count=0)), "count is 0"),
    "an attack from elsewhere": (lambda: step().attack(batch(), start="zero"), "start 'zero' is unknown"),
    "an attack on bytes in float": (lambda: step().attack(batch(X * 255)), "values from 0 to 255"),
    "an RGB network on grey images": (lambda: step(build(in_channels=3))(batch()), "images of 3 channels"),
}


def two():
    return {"a": network(), "b": network()}


def transfer(networks, data=None, **settings):
    return transfer_of(networks, data or dataset(), threat=THREAT, **{"suite": "pgd-20", **settings})


def loaded():
    shape = Shape(num_classes=K, in_channels=1, image_size=(8, 8))
    return LoadedNetwork(module=network(), spec="made up", sha256="", shape=shape, architecture="made up")


AUTOATTACKS = {
    "images in 0 to 255": (lambda: attack(x=X * 255), "values from 0 to 255"),
    "a NaN in an image": (lambda: attack(x=with_value(NAN)), "NaN"),
    "an image a little above 1": (lambda: attack(x=with_value(1.0000001)), "values from 0 to 1.00000012, expected"),
    "float64": (lambda: attack(x=X.double()), r"with \.float\(\)"),
    "bytes": (lambda: attack(x=(X * 255).byte()), "divide them by 255"),
    "NumPy": (lambda: attack(x=X.numpy()), r"torch\.from_numpy"),
    "no images": (lambda: attack(x=X[:0], y=Y[:0]), "at least one"),
    "labels of int32": (lambda: attack(y=Y.int()), r"with \.long\(\)"),
    "labels of NumPy": (lambda: attack(y=Y.numpy()), r"torch\.from_numpy"),
    "fewer labels": (lambda: attack(y=Y[:3]), r"int64 \[4\]"),
    "the label -1": (lambda: attack(y=Y - 1), "labels from -1 to 2, expected 0 to 3"),
    "a label beyond the classes": (lambda: attack(y=Y + 1), "labels from 1 to 4"),
    "an unknown version": (lambda: attack(version="standart"), r"did you mean standard\?"),
    "no version": (lambda: attack(version=None), "version is None"),
    "an unknown attack": (lambda: attack(version=["pgd"]), "attack 'pgd' is unknown"),
    "a number as an attack": (lambda: attack(version=[3]), "attack is 3"),
    "no attacks": (lambda: attack(version=[]), "empty list"),
    "an unknown precision": (lambda: attack(precision="bf16"), "precision 'bf16' is unknown"),
    "batch size 0": (lambda: attack(batch_size=0), "batch_size is 0"),
    "batch size 1.5": (lambda: attack(batch_size=1.5), "batch_size is 1.5"),
    "seed -1": (lambda: attack(seed=-1), "seed is -1"),
    "no seed": (lambda: attack(seed=None), "seed is None, expected a whole number"),
    "seed as text": (lambda: attack(seed="0"), "seed is '0'"),
    "steps 0": (lambda: attack(steps=0), "steps is 0"),
    "steps as text": (lambda: attack(steps="10"), "steps is '10'"),
    "repeats 0": (lambda: attack(repeats=0), "repeats is 0"),
    "targets 0": (lambda: attack(targets=0), "targets is 0"),
    "ids in float": (lambda: attack(index=Y.float()), r"index is torch\.float32"),
    "ids as a list": (lambda: attack(index=[0, 1, 2, 3]), "index is a list"),
    "a path as the state": (lambda: attack(state="state.npz"), "state is 'state.npz'"),
    "no function to save with": (lambda: attack(save="state.npz"), "save is 'state.npz'"),
    "a class as the network": (lambda: attack(nn.Flatten), "predict is the class Flatten"),
    "a loaded network": (lambda: attack(loaded()), "predict is a LoadedNetwork"),
    "a threat without eps": (lambda: attack(threat="linf"), "NORM:EPS"),
}

EVALUATIONS = {
    "no images": (lambda: evaluate(num_images=0), "0 images requested"),
    "a part of an image": (lambda: evaluate(num_images=1.5), "num_images is 1.5"),
    "too many images": (lambda: evaluate(num_images=5), "expected 1 to 4"),
    "an unknown suite": (lambda: evaluate(suite="standart"), r"did you mean standard\?"),
    "a number as the suite": (lambda: evaluate(suite=20), "suite is 20"),
    "an unknown precision": (lambda: evaluate(precision="fp16"), "precision 'fp16' is unknown"),
    "an unknown device": (lambda: evaluate(device="gpu"), "device 'gpu' is unknown"),
    "a number as the device": (lambda: evaluate(device=0), "device is 0"),
    "seed -1": (lambda: evaluate(seed=-1), "seed is -1"),
    "seed 0.5": (lambda: evaluate(seed=0.5), "seed is 0.5"),
    "batch size 0": (lambda: evaluate(batch_size=0), "batch_size is 0"),
    "batch size as text": (lambda: evaluate(batch_size="64"), "batch_size is '64'"),
    "a tuple as the data set": (lambda: evaluate(data=(X, Y)), "dataset is a tuple.*load_data"),
    "a name as the data set": (lambda: evaluate(data="digits"), "load_data"),
    "a data set of torch": (lambda: evaluate(data=torch.utils.data.TensorDataset(X, Y)), "dataset is a TensorDataset"),
    "labels of numpy": (lambda: evaluate(data=OwnData(labels=Y.numpy())), "its labels are a ndarray, expected a torch"),
    "labels of 32 bits": (lambda: evaluate(data=OwnData(labels=Y.int())), "labels are torch.int32 of shape"),
    "too few labels": (lambda: evaluate(data=OwnData(labels=Y[:-1])), "3 labels for 4 images"),
    "labels beyond the classes": (lambda: evaluate(data=OwnData(labels=Y + 1)), "found labels up to 4, expected 4"),
    "too few names of classes": (lambda: evaluate(data=OwnData(classes=("a",))), "1 names of classes, expected 4"),
    "images in [0,1]": (lambda: evaluate(data=OwnData(read=lambda ids: X[ids])), "multiply them by 255 and round"),
    "images of numpy": (lambda: evaluate(data=OwnData(read=lambda ids: X[ids].numpy())), "images are a ndarray"),
    "a specification as the network": (lambda: evaluate("run:runs/at"), "load_network"),
    "a loaded network": (lambda: evaluate(loaded()), r"give its \.module"),
    "a function": (lambda: evaluate(summed), "model is a function"),
    "a threat of every image": (lambda: evaluate(threat="l2:99"), "further apart"),
    "conditions that are not JSON": (lambda: evaluate(conditions={"a": {1}}), "cannot be written as JSON"),
    "a network of the transfer as text": (lambda: transfer({"a": network(), "b": "run:b"}), "network b is 'run:b'"),
    "a list of networks": (lambda: transfer([network(), network()]), "networks is a list, expected a dictionary"),
    "a transfer in batches of text": (lambda: transfer(two(), batch_size="3"), "batch_size is '3'"),
    "a transfer of no image": (lambda: transfer(two(), num_images=0), "num_images is 0"),
    "a tuple as the data of a transfer": (lambda: transfer(two(), data=(X, Y)), "dataset is a tuple"),
    "conditions as text": (lambda: evaluate(conditions="mine"), "conditions is 'mine'"),
    "progress True": (lambda: evaluate(progress=True), "progress is True, expected the label"),
    "eps_curve as text": (lambda: evaluate(eps_curve="no"), "eps_curve is 'no'"),
    "masking as text": (lambda: evaluate(masking="yes"), "masking is 'yes'"),
    "a path before": (lambda: evaluate(before="records"), "before is 'records'"),
    "a name as the surrogate": (lambda: evaluate(surrogate="run:runs/t"), "load_network"),
    "a number as the state": (lambda: evaluate(state=3), "state is 3, expected a path"),
    "a number as the run": (lambda: rb.evaluate_run(3), "run is 3, expected a path"),
    "an empty path": (lambda: rb.evaluate_run(""), "run is '', expected a path"),
    "one text of overrides": (lambda: rb.evaluate_run("run", overrides="--data.root data"), "expected a list of texts"),
    "a number as a checkpoint": (lambda: rb.evaluate_run("run", checkpoints=[3]), "checkpoints holds 3"),
    "no folder for the records": (lambda: rb.evaluate_file("w.pt", out=None, overrides=[]), "out is None"),
    "a number as the weights": (lambda: rb.evaluate_file(3, out="out", overrides=[]), "weights is 3"),
}  # fmt: skip

BUILDERS = {
    "an unknown method": (lambda: rb.build_method("adk"), r"did you mean akd\?"),
    "a number as the method": (lambda: rb.build_method(3), "method is 3"),
    "an unknown option": (lambda: rb.build_method("akd", alhpa=0.5), "did you mean alpha"),
    "alpha 2": (lambda: rb.build_method("akd", alpha=2), "alpha is 2"),
    "alpha NaN": (lambda: rb.build_method("akd", alpha=NAN), "alpha is nan"),
    "alpha True": (lambda: rb.build_method("akd", alpha=True), "alpha is True"),
    "alpha as text": (lambda: rb.build_method("akd", alpha="0.5"), "alpha is '0.5'"),
    "infinite beta": (lambda: rb.build_method("trades", beta=INF), "beta is inf"),
    "an unknown network": (lambda: build("resnet9"), "did you mean resnet8"),
    "a number as the network": (lambda: build(18), "name is 18"),
    "no classes": (lambda: build(num_classes=0), "num_classes is 0"),
    "classes as text": (lambda: build(num_classes="4"), "num_classes is '4'"),
    "channels 0": (lambda: build(in_channels=0), "in_channels is 0"),
    "image size 0": (lambda: build(image_size=0), "image_size is 0"),
    "three image sizes": (lambda: build(image_size=(3, 8, 8)), "image_size has 3 numbers"),
    "image size as text": (lambda: build(image_size="8"), "image_size is '8'"),
    "a network's seed -1": (lambda: build(seed=-1), "seed is -1"),
    "width 0": (lambda: build(width=0), "width"),
    "width -2": (lambda: build(width=-2), "width"),
    "width as text": (lambda: build(width="wide"), "cannot be built with"),
    "an unknown option of a network": (lambda: build(depth=3), "no option 'depth'"),
    "a mean of other channels": (lambda: build(mean=[0.5] * 3), "expected one per channel, 1"),
    "a number as the mean": (lambda: build(mean=0.5), "mean is 0.5"),
    "mean as text": (lambda: build(mean="0.5"), "mean is '0.5'"),
    "a mean of NaN": (lambda: build(mean=[NAN]), "mean of channel 0 is nan"),
    "std 0": (lambda: build(std=[0.0]), "expected positive values"),
    "grey images to an RGB network": (lambda: build(in_channels=3)(X), "expected .B,3,H,W."),
    "channels last": (lambda: build(in_channels=3)(torch.rand(2, 8, 8, 3)), "order of torch"),
    "no teachers": (lambda: rb.Ensemble([]), "at least one teacher"),
    "one network": (lambda: rb.Ensemble(network()), "members is a Sequential|weights"),
    "a name among the teachers": (lambda: rb.Ensemble(["run:runs/t"]), "member 0 is 'run:runs/t'"),
    "a loaded network among the teachers": (lambda: rb.Ensemble([loaded()]), r"give its \.module"),
    "too few weights": (lambda: rb.Ensemble([network(), network()], [1.0]), "one weight"),
    "weights as text": (lambda: rb.Ensemble([network()], "1"), "weights is '1'"),
    "a number as the weights": (lambda: rb.Ensemble([network()], 1.0), "weights is 1.0"),
    "a text among the weights": (lambda: rb.Ensemble([network()], ["1"]), "one weight of at least 0"),
    "a member that returns a tuple": (
        lambda: rb.Ensemble([network(), Pair()])(X),
        r"output of member 1 is a tuple, expected a tensor of logits \[B,K\]",
    ),
    "a mean of nothing": (lambda: rb.Ensemble([network()], mean="probs"), "mean 'probs' is unknown"),
}

FILES = {
    "an unknown data set": (lambda: rb.load_data("cifar"), r"did you mean cifar10"),
    "a number as the data set": (lambda: rb.load_data(10), "name is 10"),
    "an unknown split": (lambda: rb.load_data("digits", split="val"), "split 'val' is unknown"),
    "a list as the split": (lambda: rb.load_data("digits", split=["test"]), "split"),
    "image size 0": (lambda: rb.load_data("digits", image_size=0), "image_size is 0"),
    "image size 8.5": (lambda: rb.load_data("digits", image_size=8.5), "image_size is 8.5"),
    "other classes": (lambda: rb.load_data("digits", num_classes=7), "found 10 classes, expected 7"),
    "a number as the root": (lambda: rb.load_data("npz", root=3), "root is 3"),
    "download as text": (lambda: rb.load_data("mnist", download="no"), "download is 'no'"),
    "no specification": (lambda: rb.load_network(None), "spec is None"),
    "a missing file": (lambda: rb.load_network("missing.pt"), "missing.pt not found"),
    "a tuple as the shape": (lambda: rb.load_network("missing.pt", shape=(3, 32, 32)), "Shape"),
    "options as text": (lambda: rb.load_network("missing.pt", options="width=2"), "options is 'width=2'"),
    "a network for images of no size": (lambda: rb.load_network("missing.pt", image_size=0), "image_size is 0"),
    "an unknown recipe": (lambda: rb.recipe("digits_akt"), "did you mean"),
    "a number as the recipe": (lambda: rb.recipe(3), "3 is no configuration"),
    "one text of overrides": (lambda: rb.recipe("digits_at", "--seed 1"), "expected a list of texts"),
    "a number among the overrides": (lambda: rb.recipe("digits_at", ["--seed", 1]), "overrides holds 1"),
    "a dictionary of overrides": (lambda: rb.recipe("digits_at", {"seed": 1}), "overrides is a dict"),
    "a recipe with the seed -1": (lambda: rb.recipe("digits_at", ["--seed", "-1"]), "seed"),
    "a configuration with the seed -1": (lambda: rb.Config(seed=-1), "seed is -1"),
    "an unknown key of a configuration": (lambda: rb.Config(sed=1), r"unknown key sed: did you mean seed\?"),
    "a dictionary to train on": (lambda: rb.train({"seed": 0}, "new"), "is no configuration"),
    "no run directory": (lambda: rb.train("digits_at", None), "run is None, expected a path"),
    "an empty run directory": (lambda: rb.train("digits_at", ""), "run is '', expected a path"),
    "progress as text": (lambda: rb.train("digits_at", "new", progress="no"), "progress is 'no'"),
    "no runs to report": (lambda: rb.write_report([], "page.html"), "no run directory given"),
    "a number as the runs": (lambda: rb.write_report(3, "page.html"), "runs is 3"),
    "a number among the runs": (lambda: rb.write_report([3], "page.html"), "a run is 3"),
    "a run that is not there": (lambda: rb.write_report("missing", "page.html"), "missing is no run directory"),
    "no page": (lambda: rb.write_report(["missing"], None), "out is None"),
    "a number as the figures": (lambda: rb.write_report(["missing"], "page.html", figures=3), "figures is 3"),
}

TABLES = {
    "losses": LOSSES, "Threat": THREATS, "pgd": PGD, "Batch": BATCHES, "Step": STEPS, "autoattack": AUTOATTACKS,
    "evaluate": EVALUATIONS, "build": BUILDERS, "files": FILES,
}  # fmt: skip
MISUSES = {f"{group}: {name}": case for group, table in TABLES.items() for name, case in table.items()}


@pytest.mark.parametrize("name", MISUSES)
def test_a_misuse_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, line = MISUSES[name]
    with pytest.raises(rb.RobustillError, match=line) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_numbers_of_other_libraries_are_numbers():
    assert rb.Threat(norm="linf", eps="8/255") == rb.Threat(norm="linf", eps=8 / 255)
    assert rb.Threat(norm="l2", eps=torch.tensor(0.5)) == rb.Threat(norm="l2", eps=np.float32(0.5))
    assert type(rb.Threat(norm="l2", eps=np.float32(0.5)).eps) is float
    plain = pgd(steps=2, step_size=0.05, start="clean")
    assert torch.equal(pgd(steps=np.int64(2), step_size=np.float64(0.05), start="clean"), plain)


def test_paths_are_text_or_paths_and_one_run_is_a_list_of_one(tmp_path):
    for runs in (str(tmp_path / "none"), tmp_path / "none"):
        with pytest.raises(rb.RobustillError, match="none is no run directory"):
            rb.write_report(runs, tmp_path / "page.html")
    with pytest.raises(rb.RobustillError, match=r"none\.pt not found"):
        rb.load_network(tmp_path / "none.pt")


def test_images_may_be_rounded_and_tensors_of_any_float_type():
    rounded = with_value(1 + 1e-6)
    assert THREAT.contains(pgd(rounded), rounded.clamp(0, 1)).all()
    assert pgd(X.double()).dtype == torch.float64


def test_a_step_looks_at_the_values_of_its_first_batch_only():
    checked = step()
    checked(batch())
    # To look at them would wait for a GPU in every step; the student sees what it is given.
    assert torch.isfinite(checked(batch(X * 255)).loss).all()


def test_no_check_of_a_training_step_looks_at_values():
    # Tensors on the device "meta" have no values: to read one is an error.
    x, logits, y = (each.to("meta") for each in (X, LOGITS, Y))
    rb.Batch(x=x, y=y, index=y, mixed=logits)
    rb.Outcome(loss=logits[:, 0], logits=logits)
    losses = rb.losses
    values = [
        losses.ce(logits, y),
        losses.ce(logits, logits),
        losses.soft_ce(logits, logits),
        losses.kl(logits, logits),
    ]
    values += [losses.soft_kl(logits, logits), losses.margin(logits, y), losses.dlr(logits, y)]
    assert [value.shape for value in values] == [(B,)] * 7
    assert THREAT.project(THREAT.ascent(x), x).shape == THREAT.start(x).shape == X.shape


def test_a_label_outside_the_classes_is_never_a_loss_of_zero():
    for label in (-100, -1, K):
        for loss in (rb.losses.ce, rb.losses.margin, rb.losses.dlr):
            with pytest.raises(rb.RobustillError, match="expected 0 to 3"):
                loss(LOGITS, torch.tensor([0, 1, label, 3]))
