"""Tiny text models on disk, PEFT adapters of them, and PEFT's own merge of the two."""

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

from imod_export.export import ExportSettings, export

TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4},
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama(tied=False):
    changes = {**TEXT, "tie_word_embeddings": tied}
    config = transformers.LlamaConfig(**{k: v for k, v in changes.items() if k != "rope_parameters"})
    return transformers.LlamaForCausalLM(config)


def weights(folder):
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def make_base(folder, model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return folder


def make_adapter(folder, base, kind=transformers.LlamaForCausalLM, seed=0, **settings):
    """An adapter with random A and B, and everything else that it trains moved."""
    torch.manual_seed(seed)
    settings = {"r": 2, "init_lora_weights": False, "task_type": "CAUSAL_LM", **settings}
    model = peft.get_peft_model(kind.from_pretrained(base), peft.LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and ".lora_" not in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def merged_by_peft(folder, base, adapter, kind=transformers.LlamaForCausalLM):
    model = peft.PeftModel.from_pretrained(kind.from_pretrained(base), adapter)
    model.merge_and_unload().save_pretrained(folder)
    return weights(folder)


def check_equal(found, expected, base):
    """Within 1e-6 of each tensor's largest value; what the expected merge did not change is the base's bytes."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= 1e-6 * value.abs().max(), name
        if name in base and torch.equal(value, base[name]):
            assert torch.equal(found[name], base[name]), name
    assert any(not torch.equal(found[name], base[name]) for name in base)


def merge(adapter, base, out, **settings):
    return weights(export(adapter, out, base, ExportSettings(parity=False, **settings)))


def rewritten(base, folder, change):
    folder.mkdir()
    save_file(change(weights(base)), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((base / "config.json").read_text())
    return folder
