"""The non-text dominance rate after training: the definition, on single samples."""

import torch

from imod_core.modality import NON_TEXT, TEXT, token_modality
from imod_train import ImodConfig, attach
from imod_train.dominance import dominance


def test_the_rate_is_that_of_gradients_with_the_other_modalitys_tokens_left_out(tiny):
    """Against autograd, which is shown each modality's share of A's gradient by a copy of A for each."""
    model = tiny.make_lora(lora_dropout=0.0)
    batches = [tiny.make_inputs(seed, rows=1) for seed in range(4)]
    found = dominance(model, batches)
    fisher = {}
    for batch in batches:
        codes = token_modality(batch["input_ids"], None, (tiny.IMAGE, tiny.AUDIO), (tiny.VISION_START, tiny.VISION_END))
        copies, hooks = {}, []
        for name, module in model.named_modules():
            if name.endswith("lora_A.default"):
                copies[name] = [module.weight.detach().clone().requires_grad_() for _ in range(3)]
                hooks.append(module.register_forward_hook(by_modality(copies[name], codes)))
        model(**batch).loss.backward()
        for hook in hooks:
            hook.remove()
        for name, (text, other, _) in copies.items():
            known = fisher.setdefault(name, [0, 0])
            known[0], known[1] = known[0] + text.grad.square(), known[1] + other.grad.square()
    ahead = sum(int((other > text).sum()) for text, other in fisher.values())
    assert found.rate == ahead / sum(text.numel() for text, _ in fisher.values())
    assert 0 < found.rate < 1
    assert (found.samples, found.non_text_tokens) == (4, 12)


def by_modality(weights, codes):
    """A hook that computes A's output with one of three copies of its weight, by the modality of the token."""

    def hook(module, inputs, output):
        chosen = [(codes == TEXT), (codes == NON_TEXT), (codes != TEXT) & (codes != NON_TEXT)]
        parts = [inputs[0] @ weight.T * here.unsqueeze(-1) for weight, here in zip(weights, chosen, strict=True)]
        return torch.stack(parts).sum(0)

    return hook


def test_of_one_sample_it_is_the_running_estimate(tiny):
    inputs = tiny.make_inputs(3, rows=1)
    found = dominance(tiny.make_lora(), [inputs])
    model = tiny.make_lora()
    handle = attach(model, ImodConfig())
    handle.sample_next()
    tiny.step_gradients(model, inputs)
    assert abs(handle.signals()["imod/non_text_dominance"] - found.rate) < 1e-6
