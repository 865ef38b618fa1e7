"""Fine-tune a sentence encoder on pairs, with spectral shifts, in transformers' own Trainer.

    python examples/sentence_encoder.py MODEL OUTPUT [--steps N]

MODEL is a folder of a transformers encoder, such as all-MiniLM-L6-v2. Sentences that mean the same are drawn together,
and apart from the others of their batch. OUTPUT is a delta file of some tens of kilobytes, for `attach` and `bake`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from svdiff_delta import attach, open_base, save, zero_delta

PAIRS: Sequence[tuple[str, str]] = (
    ("the print is too pale", "not enough ink on the paper"),
    ("the lamp does not light up", "the bulb stays dark"),
    ("my parcel is late", "the delivery has not come yet"),
    ("the door squeaks", "the hinge makes a noise"),
    ("I cannot sign in", "the login fails"),
    ("the screen is cracked", "there is a break in the display"),
    ("please send the money back", "I would like a refund"),
    ("the soup is cold", "the food was not warm"),
)
TEMPERATURE = 0.05


class Pairs(nn.Module):
    """An encoder whose loss says how hard it is to tell each sentence's partner (InfoNCE)."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def embed(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """Return unit vectors (batch, width): the mean of the tokens' states."""
        states = self.encoder(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1)
        return nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

    def forward(self, left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss."""
        scores = self.embed(left) @ self.embed(right).T / TEMPERATURE
        return {"loss": nn.functional.cross_entropy(scores, torch.arange(len(scores), device=scores.device))}


def fine_tune(folder: Path, output: Path, steps: int) -> list[float]:
    """Train shifts of every attention layer, write them, and return the loss of each step."""
    from transformers import AutoModel, AutoTokenizer, Trainer, TrainingArguments

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)

    def collate(rows: Sequence[tuple[str, str]]) -> dict[str, Any]:
        left, right = zip(*rows, strict=True)
        return {
            name: dict(tokenizer(list(side), padding=True, return_tensors="pt"))
            for name, side in (("left", left), ("right", right))
        }

    base = open_base(folder)
    with attach(model, zero_delta(base, "model.encoder.*attention*"), base=base, trainable=True) as handle:
        arguments = TrainingArguments(
            output_dir=str(output.parent),
            max_steps=steps,
            per_device_train_batch_size=len(PAIRS),
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",  # the delta is what is kept
            report_to=[],
            remove_unused_columns=False,
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )
        trainer = Trainer(model=Pairs(model), args=arguments, train_dataset=list(PAIRS), data_collator=collate)
        trainer.train()
        save(handle.delta(training={"method": "svdiff", "steps": steps}), output)
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    losses = fine_tune(arguments.model, arguments.output, arguments.steps)
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last; {arguments.output.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
