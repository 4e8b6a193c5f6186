"""A tiny random language model whose vocabulary has placeholders, with an ordinary LoRA adapter on it."""

import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

IMAGE, AUDIO, VISION_START, VISION_END, PAD = 60, 61, 62, 63, 0
VOCABULARY, LAYERS, RANK = 64, 2, 4
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tiny_config(**changes):
    return transformers.Qwen2Config(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "image_token_id": IMAGE,
            "audio_token_id": AUDIO,
            "vision_start_token_id": VISION_START,
            "vision_end_token_id": VISION_END,
            "pad_token_id": PAD,
            **changes,
        }
    )


def make_base(seed=0, **changes):
    torch.manual_seed(seed)
    return transformers.Qwen2ForCausalLM(tiny_config(**changes))


def make_lora(seed=0, base=None, **changes):
    """A PEFT model with random A and random B, so that the task gradient of A is not zero at the first
    step."""
    base = base if base is not None else make_base(seed)
    torch.manual_seed(seed + 1)
    settings = {
        "r": RANK,
        "lora_alpha": 8,
        "target_modules": TARGETS,
        "lora_dropout": 0.0,
        "init_lora_weights": False,
        "task_type": "CAUSAL_LM",
    }
    return peft.get_peft_model(base, peft.LoraConfig(**{**settings, **changes})).train()


def make_inputs(seed=0, rows=2, length=12):
    """A padded batch: markers, media, text; one row in two has padding on the right."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(1, IMAGE, (rows, length), generator=generator)
    input_ids[:, 0], input_ids[:, 4] = VISION_START, VISION_END
    input_ids[:, 1:4] = torch.tensor([IMAGE, IMAGE, AUDIO])
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1::2, length - 3 :] = 0
    input_ids[attention_mask == 0] = PAD
    labels = input_ids.masked_fill((attention_mask == 0) | (input_ids >= IMAGE), -100)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def a_gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if "lora_A" in name}


def b_gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if "lora_B" in name}


def step_gradients(model, inputs=None, factor=1.0):
    """Gradients of A and of B after one forward and backward of `factor` times the loss."""
    model.zero_grad(set_to_none=True)
    (model(**(inputs or make_inputs())).loss * factor).backward()
    return a_gradients(model), b_gradients(model)


def largest_difference(left, right):
    """The largest relative difference between gradients of one name."""
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).norm() / right[name].norm()) for name in left)


def equal(left, right):
    """Whether gradients are the same bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def train(model, steps):
    """A few optimizer steps; returns the trained parameters."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2, weight_decay=0.0)
    model.train()
    for step in range(steps):
        model(**make_inputs(seed=step)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in trainable.items()}


@pytest.fixture
def tiny():
    """The functions of this file, for tests that are imported without a package."""
    import sys

    return sys.modules[__name__]
