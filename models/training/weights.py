"""Trained towers as a file of weights: what other formats are made of, and what ONNX no longer tells."""

import pickle
from dataclasses import asdict
from pathlib import Path

import torch

from models.bundle import Bundle
from models.fit import CONTENT_SCALE, FitError
from models.tensors import Encoding
from models.training.members import ItemMembers, Pair, UserMembers
from models.training.towers import Architecture, ItemTower, UserTower


def weights_of(bundle: Path) -> Path:
    """Where the weights of a bundle lie: beside its folder."""
    return bundle.with_name(f"{bundle.name}.pt")


def save_weights(bundle: Bundle, pair: Pair, shape: Architecture) -> None:
    """Write the weights of a bundle that was just written. Atomic."""
    path = weights_of(bundle.path)
    temporary = path.with_suffix(".part")
    user, item = pair
    torch.save({"shape": asdict(shape), "user": user.state_dict(), "item": item.state_dict()}, temporary)
    temporary.replace(path)


def load_weights(bundle: Path, encoding: Encoding) -> Pair:
    """The towers of a bundle, for use. Raises FitError when its weights are not there, or are of other towers."""
    path = weights_of(bundle)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        shape = Architecture(**state["shape"])
        one, items = shape.of_member(), len(encoding.vocabularies.item_ids)
        user = UserMembers([UserTower(encoding, one) for _ in range(shape.members)])
        item = ItemMembers([ItemTower(encoding, items, one, CONTENT_SCALE) for _ in range(shape.members)])
        user.load_state_dict(state["user"])
        item.load_state_dict(state["item"])
    except FileNotFoundError as error:
        raise FitError(f"{path} is not there: only bundles of `recall model train` have weights") from error
    except (RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise FitError(f"{path} is not the weights of this bundle's towers") from error
    return user.eval().requires_grad_(False), item.eval().requires_grad_(False)
