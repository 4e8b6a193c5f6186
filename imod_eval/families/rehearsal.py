"""A few IMoD steps on a model of any family, and what stock PEFT makes of the adapter: part of `imod families`.

It leaves a plain LoRA adapter folder, with `rehearsal.json` in it. The data are the export's probes, each with an
answer to learn by heart: no recipe, no checkpoints. See `imod train` for those.
"""

from pathlib import Path
from typing import Any

from imod_core.artifacts import new_folder, write_json

STEPS = 8
RANK = 8
RATE = 5e-3
ANSWER = 8
"""Tokens of each answer, random ones."""


def rehearse(base: Path, out: Path) -> dict[str, Any]:
    """Train, save, load again with PEFT alone; what was measured."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model

    from imod_core.families import lora_modules
    from imod_export.subject import load_model
    from imod_train import ImodConfig, attach

    torch.manual_seed(0)
    lora = LoraConfig(
        r=RANK, lora_alpha=2 * RANK, task_type="CAUSAL_LM", base_model_name_or_path=str(base), **lora_modules(base),
    )  # fmt: skip
    model = get_peft_model(load_model(base, "float32", "float32"), lora)
    handle = attach(model, ImodConfig())
    batches = _batches(model, base)
    losses = _train(model, handle, list(batches.values()))
    signals = handle.signals()
    handle.detach()
    with new_folder(out) as folder:
        model.save_pretrained(str(folder), save_embedding_layers=False)
        again = PeftModel.from_pretrained(load_model(base, "float32", "float32"), folder)
        reload = {name: _difference(model, again, batch) for name, batch in batches.items()}
        found = {
            "losses": losses,
            "layers": len([name for name in dict(model.named_modules()) if name.endswith("lora_A.default")]),
            "signals": signals,
            "reload": reload,
        }
        write_json(folder / "rehearsal.json", found)
    return found


def _batches(model: Any, base: Path) -> dict[str, dict[str, Any]]:
    """Each probe with an answer behind it, as the model's forward takes it, labels included."""
    import torch

    from imod_core.families.load import load_processor
    from imod_export.probes import FRAMES, default_probes
    from imod_export.subject import Subject, modalities, sampling

    processor = load_processor(base)
    frames, rate = sampling(processor)
    subject, batches = Subject(model, processor), {}
    generator = torch.Generator().manual_seed(0)
    for probe in default_probes(modalities(base), rate, frames.num_frames or FRAMES):
        answer = torch.randint(100, 200, (ANSWER,), generator=generator).tolist()
        inputs = subject.continued(subject.prompt(probe), answer)
        labels = torch.full_like(inputs["input_ids"], -100)
        labels[0, -ANSWER:] = torch.tensor(answer)
        batches[probe.name] = {**inputs, "labels": labels}
    return batches


def _train(model: Any, handle: Any, batches: list[dict[str, Any]]) -> list[float]:
    """Mean loss of each step; all probes make one step."""
    import torch

    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=RATE, weight_decay=0.0)
    model.train()
    losses = []
    for step in range(STEPS):
        if step == STEPS - 1:
            handle.sample_next()
        total = 0.0
        for batch in batches:
            loss = model(**batch, use_cache=False).loss / len(batches)
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(total, 4))
    model.eval()
    return losses


def _difference(trained: Any, loaded: Any, batch: dict[str, Any]) -> float:
    """Largest difference of a logit between the trained model and the one loaded."""
    import torch

    with torch.inference_mode():
        one, other = (m.eval()(**batch, use_cache=False).logits for m in (trained, loaded))
    return (one - other).abs().max().item()
