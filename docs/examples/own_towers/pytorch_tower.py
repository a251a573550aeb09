"""A user tower in PyTorch in the place of build.py's, beside its item tower; it may be any module.

    pip install torch onnxscript
    python pytorch_tower.py items.jsonl activity.jsonl towers
    recall model pack --user-tower towers/user.onnx --item-tower towers/item.onnx \\
        --spec features.toml --vocabularies towers/vocabularies.json

What is trained here is what the worker will do: a history holds the newest events of strictly earlier seconds, their
items as history vectors (the item tower's own), codes as features.toml numbers them, ages in seconds.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from build import CODE_WEIGHTS, DIM, HISTORY, LIKED, Trained, item_tower, read, train
from onnx import save
from torch import Tensor, nn

EPOCHS, BATCH, RATE = 5, 256, 3e-3


class UserTower(nn.Module):
    """Starts as PureSVD's user: the sum of what was liked. Learns how fast that fades, and a correction."""

    def __init__(self, mean_user: Tensor) -> None:
        super().__init__()
        self.mean_user = nn.Parameter(mean_user)
        self.code_weights = nn.Parameter(torch.tensor(CODE_WEIGHTS))
        self.fading = nn.Parameter(torch.zeros(()))
        self.correction = nn.Sequential(nn.Linear(DIM, 64), nn.ReLU(), nn.Linear(64, DIM))
        nn.init.zeros_(self.correction[2].weight)
        nn.init.zeros_(self.correction[2].bias)

    def forward(self, history_vectors: Tensor, history_codes: Tensor, history_age_s: Tensor) -> Tensor:
        """float32[B, D]. The names of the arguments are those of the inputs."""
        weights = self.code_weights[history_codes] * torch.exp(-self.fading * torch.log1p(history_age_s))
        user = self.mean_user + (weights.unsqueeze(2) * history_vectors).sum(dim=1)
        return user + self.correction(user)


def samples(activity: list[dict[str, Any]], trained: Trained) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per liked rating: rows of the item table int64[N, H], codes int64[N, H], ages float32[N, H], target int64[N]."""
    row = {item_id: n for n, item_id in enumerate(trained.item_ids, 1)}
    of_user: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for each in sorted(activity, key=lambda each: each["timestamp_ms"]):
        if each["action"] == "rate" and each.get("item_id") in row:
            code = 1 if each["value"] >= LIKED else 2
            of_user[each["user_id"]].append((each["timestamp_ms"] // 1000, row[each["item_id"]], code))
    items, codes, ages, targets = [], [], [], []
    for events in of_user.values():
        for second, target, code in events:
            before = [event for event in events if event[0] < second][-HISTORY:]
            if code == 1 and before:
                blank = [0] * (HISTORY - len(before))
                items.append(blank + [event[1] for event in before])
                codes.append(blank + [event[2] for event in before])
                ages.append(blank + [second - event[0] for event in before])
                targets.append(target - 1)
    return torch.tensor(items), torch.tensor(codes), torch.tensor(ages, dtype=torch.float32), torch.tensor(targets)


def fit(trained: Trained, activity: list[dict[str, Any]]) -> UserTower:
    """Softmax over the whole catalogue, whose vectors stay as they are."""
    torch.manual_seed(0)
    tower, table = UserTower(torch.from_numpy(trained.mean_user)), torch.from_numpy(trained.items)
    sharpness = nn.Parameter(torch.tensor(2.0))  # of training alone: a factor changes no list
    optimizer = torch.optim.Adam([*tower.parameters(), sharpness], lr=RATE)
    items, codes, ages, targets = samples(activity, trained)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(targets)).split(BATCH):
            scores = sharpness.exp() * tower(table[items[rows]], codes[rows], ages[rows]) @ table[1:].T
            loss = nn.functional.cross_entropy(scores, targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return tower.eval()


def export(tower: UserTower, path: Path) -> None:
    """The names of features.toml, a free batch, and the weights in the file itself."""
    inputs = {
        "history_vectors": torch.zeros(2, HISTORY, DIM),
        "history_codes": torch.zeros(2, HISTORY, dtype=torch.int64),
        "history_age_s": torch.zeros(2, HISTORY),
    }
    torch.onnx.export(
        tower,
        tuple(inputs.values()),
        path,
        input_names=list(inputs),
        output_names=["user_embedding"],
        dynamic_shapes=[{0: "batch"}] * len(inputs),
        external_data=False,
        dynamo=True,
    )


def main(items: Path, activity: Path, folder: Path) -> None:
    """Train, and write both towers and the values that their codes stand for."""
    events = read(activity)
    trained = train(read(items), events)
    folder.mkdir(parents=True, exist_ok=True)
    save(item_tower(trained), folder / "item.onnx")
    export(fit(trained, events), folder / "user.onnx")
    words = {"values": {"item.genres": trained.genres}, "item_ids": trained.item_ids}
    (folder / "vocabularies.json").write_text(json.dumps(words))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
