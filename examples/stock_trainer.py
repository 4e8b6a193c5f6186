"""IMoD in an ordinary script with transformers' Trainer and PEFT: the three marked lines are all there is to it.

    python examples/stock_trainer.py [--model FOLDER_OR_HUB_ID] [--steps 20] [--out adapter]

The model here is a language model that is given placeholder tokens for pictures, and the data are random, so that the
script runs anywhere in seconds; with a multimodal model of yours, take its processor and collator as ever.
"""

import argparse

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, Trainer, TrainingArguments

from imod_train import ImodCallback, ImodConfig  # 1

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def small_model() -> Qwen2ForCausalLM:
    """A random Qwen2 whose configuration names the placeholder, as a multimodal model's does."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=100, num_key_value_heads=2, image_token_id=99, **sizes))


def samples(placeholder: int, count: int = 64, length: int = 24) -> list[dict[str, torch.Tensor]]:
    """Rows of eight picture tokens and a text to learn by heart."""
    found = []
    for seed in range(count):
        ids = torch.randint(1, 99, (length,), generator=torch.Generator().manual_seed(seed % 8))
        labels = ids.clone()
        ids[:8], labels[:8] = placeholder, -100
        found.append({"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)})
    return found


def main() -> None:
    """Train an adapter and save it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a causal LM whose configuration names an image_token_id")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", default="adapter")
    options = parser.parse_args()
    base = AutoModelForCausalLM.from_pretrained(options.model) if options.model else small_model()
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=16, target_modules=LINEARS, task_type="CAUSAL_LM"))
    arguments = TrainingArguments(
        output_dir=options.out,
        max_steps=options.steps,
        per_device_train_batch_size=8,
        learning_rate=1e-2,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
    )
    imod = ImodCallback(ImodConfig())  # 2
    rows = samples(base.config.image_token_id)
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[imod])  # 3
    trainer.train()
    model.save_pretrained(options.out)


if __name__ == "__main__":
    main()
