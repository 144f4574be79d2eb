"""A Trainer of Hugging Face, with one line more: `callbacks=[LiveTune("huggingface-digits")]`.

A tiny vision transformer learns handwritten digits, with a learning rate that is far too small at first. While it runs,
type in another terminal:

    ltctl set huggingface-digits lr=0.003 --reason "it hardly moves"
    ltctl trigger huggingface-digits run.evaluate run.checkpoint
    ltctl metrics huggingface-digits
    ltctl trigger huggingface-digits run.stop
"""

import argparse
import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded

import torch
from sklearn.datasets import load_digits
from transformers import EvalPrediction, Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from livetune.integrations.huggingface import LiveTune


def digits() -> list[dict[str, Any]]:
    """Images (1, 8, 8) in 0..1 with their labels."""
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    return [{"pixel_values": image, "labels": int(label)} for image, label in zip(pixels, labels, strict=True)]


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return the share of digits that are told right."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    """Train until the steps are made or somebody says stop, then test."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000, help="how long to train (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("huggingface-out"), help="for checkpoints (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the network is too small for more

    data = digits()
    config = ViTConfig(
        image_size=8, patch_size=2, num_channels=1, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, num_labels=10,
    )  # fmt: skip
    trainer = Trainer(
        model=ViTForImageClassification(config),  # random weights
        args=TrainingArguments(
            output_dir=str(options.out),
            learning_rate=1e-6,
            lr_scheduler_type="cosine",
            max_steps=options.steps,
            per_device_train_batch_size=64,
            per_device_eval_batch_size=300,
            eval_strategy="steps",
            eval_steps=250,
            logging_steps=250,
            save_strategy="no",
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=data[:1200],
        eval_dataset=data[1200:1500],
        compute_metrics=accuracy,
        callbacks=[LiveTune("huggingface-digits")],  # the one line
    )
    trainer.train()
    result = trainer.predict(data[1500:]).metrics
    print(f"ended at step {trainer.state.global_step}: test accuracy {result['test_accuracy']:.1%}")


if __name__ == "__main__":
    main()
